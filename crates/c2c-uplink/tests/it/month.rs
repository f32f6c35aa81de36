//! Thirty days without anybody but the user of Frame.io: tokens are renewed, taken away and lost, the authorization ends, the
//! project changes three times, and pauses begin and end while media is captured at both sides of both edges.
//!
//! What must hold in the end: nothing that was captured in a pause was ever delivered, everything else was, each into the
//! project it was captured for, and nothing of one project is in another.

use std::collections::BTreeSet;
use std::time::Duration;

use c2c_simulator::{Effect, EndpointName, Fault, Simulator};
use c2c_uplink::queue::{Hold, MediaId, MediaState};
use c2c_uplink::{AddMedia, Event, PairingStep, Standing, Uplink};
use tokio::sync::broadcast::Receiver;

use crate::bench::{Bench, PATIENCE, media};
use crate::presence::no_socket;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: u64 = 86_400;
/// While nothing is captured, time passes this much at once.
const STRIDE: Duration = Duration::from_secs(3000);

struct Month {
    bench: Bench,
    uplink: Uplink,
    events: Receiver<Event>,
    random: fastrand::Rng,
    project: String,
    paused: bool,
    captured: Vec<Captured>,
    /// Why the unit asked for a pairing, in that order.
    pair_again: Vec<String>,
    announced: usize,
}

struct Captured {
    id: MediaId,
    name: String,
    project: String,
    paused: bool,
    /// The queue was emptied before it could be sent.
    cleared: bool,
}

impl Month {
    async fn begin() -> Month {
        let sim = Simulator::builder()
            .poll_interval(Duration::from_millis(100))
            .project("Show A", "project-a")
            .project("Show B", "project-b")
            .project("Show C", "project-c")
            .project("Show D", "project-d")
            .log_capacity(200_000);
        let bench = Bench::paced(sim, 0.0).await;
        let uplink = bench.uplink().open().await.unwrap();
        let mut month = Month {
            events: uplink.events(),
            bench,
            uplink,
            random: fastrand::Rng::with_seed(30),
            project: "project-a".into(),
            paused: false,
            captured: Vec::new(),
            pair_again: Vec::new(),
            announced: 0,
        };
        month.pair("project-a", None).await;
        month.uplink.start().await;
        month
    }

    fn now_secs(&self) -> u64 {
        self.bench.clock().elapsed() as u64 / 1000
    }

    /// The user types the code into a project.
    async fn pair(&mut self, project: &str, ends_in: Option<Duration>) {
        let mut pairing = self.uplink.pair();
        let paired = async {
            while let Some(step) = pairing.next().await.unwrap() {
                if let PairingStep::Code { user_code, .. } = step {
                    let end = ends_in.map(|span| self.bench.sim.clock().now() + span);
                    self.bench
                        .sim
                        .admin()
                        .approve(&user_code, Some(project), end)
                        .unwrap();
                }
            }
        };
        self.bench.drive(SECOND, paired).await;
        project.clone_into(&mut self.project);
        assert_eq!(self.uplink.identity().unwrap().project_id, project);
    }

    /// Notes what the unit said meanwhile. Tells whether it needs a pairing now.
    fn listen(&mut self) -> bool {
        loop {
            match self.events.try_recv() {
                Ok(Event::PairAgain { words }) => self.pair_again.push(words),
                Ok(Event::AuthorizationExpiring { .. }) => self.announced += 1,
                Ok(_) | Err(tokio::sync::broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return matches!(self.uplink.standing(), Standing::PairAgain { .. }),
            }
        }
    }

    /// Lets time pass, unattended, until so many seconds after the start. When the unit needs a pairing, its user pairs it.
    async fn until(&mut self, second: u64) {
        while self.now_secs() < second {
            let left = Duration::from_secs(second - self.now_secs());
            self.bench.advance(STRIDE.min(left));
            let now = self.bench.sim.clock().now();
            // The unit is heard of after every stride, or asks for a pairing.
            let heard = async {
                let seen = self
                    .bench
                    .sim
                    .admin()
                    .wait_until(|sim| sim.devices()[0].last_seen >= now);
                let lost = async {
                    while !matches!(self.uplink.standing(), Standing::PairAgain { .. }) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    () = seen => {}
                    () = lost => {}
                }
            };
            self.bench.drive(SECOND, heard).await;
            if self.listen() {
                let project = self.project.clone();
                self.pair(&project, None).await;
            }
        }
    }

    async fn capture(&mut self) -> MediaId {
        let name = format!("{:03}.mov", self.captured.len());
        let file = self.bench.file(&name, 2000, self.captured.len() as u64 + 1);
        let added = self
            .uplink
            .add([AddMedia::path(file).captured_now()])
            .await
            .unwrap();
        let id = added[0].id;
        // Time must not be moved under a request that is on its way: its offset would be wrong by as much.
        let quiet = async {
            loop {
                let now = media(&self.uplink, id).await;
                let waits = now.state == MediaState::Queued && now.hold.is_none();
                if !waits && now.state != MediaState::Registering {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, quiet)
            .await
            .expect("registered, or held");
        self.captured.push(Captured {
            id,
            name,
            project: self.project.clone(),
            paused: self.paused,
            cleared: false,
        });
        id
    }

    /// Waits until a media is settled, in a time that hardly moves.
    async fn settled(&self, id: MediaId) -> MediaState {
        let settled = async {
            loop {
                let state = media(&self.uplink, id).await.state;
                if state.is_resting() {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        self.bench.drive(Duration::from_millis(50), settled).await
    }

    fn pause(&mut self, paused: bool) {
        let admin = self.bench.sim.admin();
        if paused {
            admin.pause(0);
        } else {
            admin.resume(0);
        }
        self.paused = paused;
    }

    /// A pause with media at both sides of both edges, two to five seconds away.
    async fn a_pause_with_captures(&mut self) {
        let mut ids = Vec::new();
        for paused in [true, false] {
            ids.push(self.capture().await);
            self.near();
            self.pause(paused);
            self.near();
            ids.push(self.capture().await);
            if paused {
                // From a moment to most of a day.
                let span = self.random.u64(10..60_000);
                self.until(self.now_secs() + span).await;
            }
        }
        let mut states = Vec::new();
        for id in ids {
            states.push(self.settled(id).await);
        }
        use MediaState::{Delivered, Withheld};
        assert_eq!(
            states,
            [Delivered, Withheld, Withheld, Delivered],
            "day {}",
            self.now_secs() / DAY
        );
    }

    fn near(&mut self) {
        let by = self.random.u64(2_000..5_000);
        self.bench.advance(Duration::from_millis(by));
    }

    /// A day's work at random times, with a pause on two days of three.
    async fn day(&mut self, day: u64) {
        let start = day * DAY;
        for part in 0..3 {
            let at = start + part * 7 * 3600 + self.random.u64(0..3600);
            self.until(at).await;
            let id = self.capture().await;
            assert_eq!(self.settled(id).await, MediaState::Delivered, "day {day}");
            if part == 1 && !day.is_multiple_of(3) {
                self.a_pause_with_captures().await;
            }
        }
    }

    /// Another project, with media of the old one still waiting: it is emptied, and never sent anywhere.
    async fn another_project(&mut self, project: &str, ends_in: Option<Duration>) {
        self.near();
        self.pause(true);
        // Known to the unit, so that what is captured now waits.
        let known = async {
            while self.uplink.standing() != (Standing::Paired { paused: true }) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        self.bench.drive(SECOND, known).await;
        self.near();
        let id = self.capture().await;
        let held = async {
            while media(&self.uplink, id).await.hold != Some(Hold::ChannelPaused) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, held)
            .await
            .expect("it waits for the end of the pause");
        self.pair(project, ends_in).await;
        let cleared = self.uplink.queue().media(id).await.unwrap().is_none();
        assert!(cleared, "nothing of the old project is left");
        self.captured.last_mut().unwrap().cleared = true;
        self.near();
        self.pause(false);
        self.near();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_days_unattended() {
    let mut month = Month::begin().await;
    let admin = month.bench.sim.admin().clone();
    let mut socket = None;
    for day in 0..30 {
        match day {
            // Half of the month the service has no socket.
            6 | 20 => socket = Some(admin.add_fault(no_socket(404))),
            10 | 25 => {
                admin.remove_fault(socket.take().unwrap());
            }
            _ => {}
        }
        match day {
            4 => admin.revoke_all(),
            8 => month.another_project("project-b", None).await,
            12 => {
                admin.add_fault(Fault::new(EndpointName::Refresh, Effect::CutBeforeAnswer).once());
            }
            15 => {
                month
                    .another_project("project-c", Some(Duration::from_secs(3 * DAY + 1800)))
                    .await
            }
            23 => month.another_project("project-d", None).await,
            _ => {}
        }
        month.day(day).await;
    }
    month.until(30 * DAY).await;
    month.bench.pass(MINUTE, SECOND).await;
    month.listen();

    // Three reasons to pair again, each in its own words; nobody else was asked for anything.
    let [revoked, lost, ended] = &month.pair_again[..] else {
        panic!("{:?}", month.pair_again);
    };
    assert!(revoked.contains("does not renew"), "{revoked}");
    assert!(lost.contains("does not renew"), "{lost}");
    assert!(ended.contains("ended at"), "{ended}");
    assert_eq!(month.announced, 1, "a day before the end");
    let refreshes = admin.stats().refreshes;
    assert!(
        (100..=140).contains(&refreshes),
        "{refreshes} refreshes in thirty days"
    );

    let delivered = admin.delivered();
    let got: BTreeSet<(&str, &str)> = delivered
        .iter()
        .map(|file| (file.name.as_str(), file.project_id.as_str()))
        .collect();
    assert_eq!(got.len(), delivered.len(), "nothing was delivered twice");
    let expected: BTreeSet<(&str, &str)> = month
        .captured
        .iter()
        .filter(|captured| !captured.paused && !captured.cleared)
        .map(|captured| (captured.name.as_str(), captured.project.as_str()))
        .collect();
    assert_eq!(got, expected);
    let withheld = month
        .captured
        .iter()
        .filter(|captured| captured.paused)
        .count();
    assert!(
        withheld >= 40 && expected.len() >= 120,
        "{withheld} of {}",
        month.captured.len()
    );
    // What the unit says itself about the project it is in.
    for captured in month
        .captured
        .iter()
        .filter(|captured| captured.project == "project-d")
    {
        let state = media(&month.uplink, captured.id).await.state;
        let wanted = if captured.paused {
            MediaState::Withheld
        } else {
            MediaState::Delivered
        };
        assert_eq!(state, wanted, "{}", captured.name);
    }
    // One rule was broken, once, because it had to be: after the lost answer only asking again can tell that the token is spent.
    let broken: Vec<EndpointName> = admin
        .requests()
        .iter()
        .filter(|request| !request.violations.is_empty())
        .map(|request| request.endpoint)
        .collect();
    assert_eq!(broken, [EndpointName::Refresh]);
    month.uplink.shutdown().await.unwrap();
}
