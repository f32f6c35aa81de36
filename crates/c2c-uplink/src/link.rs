//! The way to the internet.
//!
//! A failure that is the network's takes the link offline: everybody waits, one probe looks (every 1 s, doubling to
//! 60 s), and its success wakes all at once. No try of any media is spent meanwhile.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use c2c_protocol::{Client, Error, ErrorKind, Stage};
use c2c_queue::Clock;
use serde::Serialize;
use tokio::sync::{Mutex, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::event::Event;
use crate::settle::{Outages, Refused, backoff};

/// Whether the service can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "link", rename_all = "snake_case")]
pub enum LinkState {
    /// Nothing speaks against it.
    Online,
    /// Everybody waits; a probe looks.
    Offline {
        /// What is broken.
        fault: LinkFault,
        /// For a person: what is broken and what to do.
        words: String,
    },
}

/// The first step on the way to the service that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkFault {
    /// The name of the host cannot be resolved.
    Dns,
    /// No connection to any of its addresses.
    Connect,
    /// The proxy on the way cannot be reached or does not let us through.
    Proxy,
    /// The handshake does not finish.
    Tls,
    /// Somebody else answers: the certificate is not trusted.
    Untrusted,
    /// Somebody else answers: a page, a redirect, an answer of another shape.
    Captive,
    /// The connection is there, but the service does not answer.
    Silent,
    /// The service answers its own health check with an error.
    Service,
    /// The API answers, the host for uploads cannot be reached or refuses everything.
    Uploads,
}

/// The host that a chunk goes to.
pub(crate) type UploadHost = (String, u16);

/// Watches the link on behalf of everybody.
#[derive(Debug)]
pub(crate) struct Link {
    client: Client,
    clock: Arc<dyn Clock>,
    state: watch::Sender<LinkState>,
    events: broadcast::Sender<Event>,
    /// One probe at a time; counts the finished ones.
    probing: Mutex<u64>,
    finished: watch::Sender<u64>,
    /// The upload host that was found unreachable while the API was not.
    uploads: std::sync::Mutex<Option<UploadHost>>,
    /// Upload hosts that refuse everybody.
    outages: std::sync::Mutex<Outages<UploadHost>>,
    nudge: tokio::sync::Notify,
    /// Counts the changes of the network.
    changes: watch::Sender<u64>,
}

impl Link {
    pub(crate) fn new(
        client: Client,
        clock: Arc<dyn Clock>,
        events: broadcast::Sender<Event>,
    ) -> Link {
        Link {
            client,
            clock,
            state: watch::Sender::new(LinkState::Online),
            events,
            probing: Mutex::new(0),
            finished: watch::Sender::new(0),
            uploads: std::sync::Mutex::new(None),
            outages: std::sync::Mutex::default(),
            nudge: tokio::sync::Notify::new(),
            changes: watch::Sender::new(0),
        }
    }

    pub(crate) fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Changes with every change of the network.
    pub(crate) fn watch_network(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn is_online(&self) -> bool {
        *self.state.borrow() == LinkState::Online
    }

    /// Waits until the link is online.
    pub(crate) async fn online(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| *state == LinkState::Online).await;
    }

    /// Whether the service can be reached right now: asks it, or shares the answer of a probe that began after this call.
    /// Takes the link offline if it cannot.
    pub(crate) async fn judge(&self) -> bool {
        if !self.is_online() {
            return false;
        }
        let asked_at = *self.finished.borrow();
        let mut probes = self.probing.lock().await;
        // A probe that both began and ended while we waited for the lock answers our question too.
        if *probes > asked_at + 1 {
            return self.is_online();
        }
        let found = self.probe().await;
        *probes += 1;
        self.finished.send_replace(*probes);
        let online = found == LinkState::Online;
        self.set(found);
        online
    }

    /// Asks the service whatever is believed of the link: for whoever works while nobody keeps the link.
    pub(crate) async fn recheck(&self) -> bool {
        let mut probes = self.probing.lock().await;
        let found = self.probe().await;
        *probes += 1;
        self.finished.send_replace(*probes);
        let online = found == LinkState::Online;
        self.set(found);
        online
    }

    /// Takes the link offline because of a fault that needs no further proof.
    pub(crate) async fn report(&self, error: &Error, upload_host: Option<UploadHost>) -> bool {
        let up = self.judge().await;
        if !up {
            return false;
        }
        // The API answers; if this was about connecting to the upload host, that one is what is broken.
        let Some((host, port)) = upload_host else {
            return true;
        };
        let never_reached = match &error.kind {
            ErrorKind::Transport(transport) => matches!(
                transport.stage,
                Stage::Resolve
                    | Stage::Connect
                    | Stage::ConnectTimeout
                    | Stage::Proxy
                    | Stage::Tls
                    | Stage::TlsCertificate
            ),
            _ => false,
        };
        if !never_reached {
            return true;
        }
        if self.client.probe_host(&host, port).await.is_ok() {
            return true;
        }
        *self.uploads.lock().unwrap_or_else(PoisonError::into_inner) = Some((host.clone(), port));
        self.set(LinkState::Offline {
            fault: LinkFault::Uploads,
            words: format!(
                "Frame.io answers, but {host} (where chunks go) cannot be reached: {}",
                root_cause(error)
            ),
        });
        false
    }

    /// The storage refused a chunk with a 5xx. Takes the link offline if it refuses everybody.
    pub(crate) fn storage_refused(&self, host: &UploadHost, refused: Refused) {
        let down = self
            .outages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .refused(host, refused, self.since_boot());
        if down {
            self.set(refuses_everybody(host));
        }
    }

    /// The storage took a chunk.
    pub(crate) fn storage_served(&self, host: &UploadHost) {
        self.outages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .served(host);
    }

    fn since_boot(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.clock.boot().0).unwrap_or(0))
    }

    /// The network changed: idle connections may be dead, and whether the service can be reached is asked at once.
    pub(crate) async fn network_changed(&self) {
        self.client.drop_idle();
        self.changes.send_modify(|count| *count += 1);
        if self.is_online() {
            self.judge().await;
        } else {
            self.nudge.notify_one();
        }
    }

    /// Brings the link back: runs for ever, sleeping while it is online.
    pub(crate) async fn keep(&self, stop: &CancellationToken, mut jitter: impl FnMut() -> f64) {
        let mut state = self.state.subscribe();
        loop {
            tokio::select! {
                _ = stop.cancelled() => return,
                _ = state.wait_for(|state| *state != LinkState::Online) => {}
            }
            let mut number = 1;
            while !self.is_online() {
                // Half fixed, half random, so that the first probe is not at once.
                let cap = backoff(number, Duration::from_secs(1), Duration::from_secs(60), 1.0);
                let wait = cap / 2 + cap.mul_f64(jitter() / 2.0);
                tokio::select! {
                    _ = stop.cancelled() => return,
                    _ = self.clock.sleep(wait) => number += 1,
                    _ = self.nudge.notified() => number = 1,
                }
                let found = self.probe().await;
                self.set(found);
            }
        }
    }

    fn set(&self, found: LinkState) {
        let changed = self.state.send_if_modified(|state| {
            let changed = *state != found;
            *state = found.clone();
            changed
        });
        if changed {
            match &found {
                LinkState::Online => {
                    *self.uploads.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    tracing::info!("the link is online");
                }
                LinkState::Offline { words, .. } => tracing::warn!("the link is offline: {words}"),
            }
            let _ = self.events.send(Event::Link(found));
        }
    }

    /// `/health` first; if that fails, each step on the way, to name the one that is broken.
    async fn probe(&self) -> LinkState {
        let error = match self.client.health().await {
            Ok(_) => return self.probe_uploads().await,
            Err(error) => error,
        };
        let offline = |fault, words: String| LinkState::Offline { fault, words };
        match &error.kind {
            ErrorKind::Refused(refusal) if (300..400).contains(&refusal.status) => offline(
                LinkFault::Captive,
                "a redirect instead of Frame.io; sign in to this Wi-Fi".into(),
            ),
            ErrorKind::Refused(refusal)
                if matches!(refusal.body, c2c_protocol::RefusalBody::Html)
                    && refusal.status < 500 =>
            {
                offline(
                    LinkFault::Captive,
                    "a page instead of Frame.io; sign in to this Wi-Fi".into(),
                )
            }
            ErrorKind::Refused(refusal) if refusal.status >= 500 => offline(
                LinkFault::Service,
                format!(
                    "Frame.io is reached but in trouble (status {}); waiting for it",
                    refusal.status
                ),
            ),
            // The service answers, even if unhappily: the link is not to blame.
            ErrorKind::Refused(_) => LinkState::Online,
            // An answer in the service's manner, if not the expected one: it is there.
            ErrorKind::Answer(answer) if !answer.looks_like_portal => LinkState::Online,
            ErrorKind::Answer(_) => offline(
                LinkFault::Captive,
                "something on the way answers instead of Frame.io; sign in to this Wi-Fi".into(),
            ),
            ErrorKind::Request(_) => LinkState::Online,
            ErrorKind::Transport(transport) => {
                let cause = root_cause(&error);
                if transport.stage == Stage::TlsCertificate {
                    return offline(
                        LinkFault::Untrusted,
                        format!(
                            "the certificate of {} is not trusted ({cause}); sign in to this Wi-Fi, check the clock of this unit, or add the CA",
                            self.client.api_host()
                        ),
                    );
                }
                if transport.stage == Stage::Proxy {
                    return offline(LinkFault::Proxy, transport.source.to_string());
                }
                self.name_broken_step(&cause, transport.stage).await
            }
            _ => offline(
                LinkFault::Silent,
                "Frame.io does not answer; waiting for it".into(),
            ),
        }
    }

    async fn name_broken_step(&self, cause: &str, stage: Stage) -> LinkState {
        let host = self.client.api_host().to_owned();
        if let Some(proxy) = self.client.api_proxy() {
            // Names and addresses are the proxy's matter, and it was passed.
            let fault = if stage == Stage::Tls {
                LinkFault::Tls
            } else {
                LinkFault::Silent
            };
            return LinkState::Offline {
                fault,
                words: format!(
                    "the proxy {proxy} lets us through, but {host} does not answer ({cause}); waiting for it"
                ),
            };
        }
        let addresses = match self.client.probe_dns().await {
            Ok(addresses) => addresses,
            Err(_) => {
                return LinkState::Offline {
                    fault: LinkFault::Dns,
                    words: format!(
                        "the name {host} cannot be resolved; check the network and its DNS"
                    ),
                };
            }
        };
        let Some(address) = self.first_that_connects(&addresses).await else {
            return LinkState::Offline {
                fault: LinkFault::Connect,
                words: format!(
                    "no connection to {host} ({cause}); check the network, its firewall and the cable"
                ),
            };
        };
        match self.client.probe_tls(address).await {
            Ok(()) => LinkState::Offline {
                fault: LinkFault::Silent,
                words: format!("{host} is reached but does not answer ({cause}); waiting for it"),
            },
            Err(_) => LinkState::Offline {
                fault: LinkFault::Tls,
                words: format!(
                    "no secure connection to {host} ({cause}); something on the way may be blocking it"
                ),
            },
        }
    }

    async fn first_that_connects(&self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        for address in addresses.iter().take(4) {
            if self.client.probe_tcp(*address).await.is_ok() {
                return Some(*address);
            }
        }
        None
    }

    /// While the upload host is what was broken, the link is not online before that host is back, or was left alone for long
    /// enough to be asked again.
    async fn probe_uploads(&self) -> LinkState {
        let held = self
            .outages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .held(self.since_boot())
            .map(refuses_everybody);
        if let Some(offline) = held {
            return offline;
        }
        let uploads = self
            .uploads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some((host, port)) = uploads else {
            return LinkState::Online;
        };
        match self.client.probe_host(&host, port).await {
            Ok(()) => LinkState::Online,
            Err(error) => LinkState::Offline {
                fault: LinkFault::Uploads,
                words: format!(
                    "Frame.io answers, but {host} (where chunks go) cannot be reached: {}",
                    root_cause(&error)
                ),
            },
        }
    }
}

fn refuses_everybody((host, _): &UploadHost) -> LinkState {
    LinkState::Offline {
        fault: LinkFault::Uploads,
        words: format!(
            "Frame.io answers, but {host} (where chunks go) is in trouble and refuses all of them; waiting for it"
        ),
    }
}

/// The innermost cause: what the system or the verifier itself said.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
