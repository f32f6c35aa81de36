//! A link that does not exist: two network namespaces with a modelled way between them.
//!
//! Invariants: nothing leaves this machine; the routes and devices of its own network stay as they are, and so do its settings, but
//! for a moment one ([`congestion`]); nothing is left when the process ends, however it ends.
//!
//! Needs root, `/dev/net/tun` and iproute2. Each namespace has one TUN device; two threads of this process move the packets between
//! them ([`forward`]), and a model decides which, and when ([`queue`]).

mod congestion;
mod forward;
mod netns;
mod profile;
mod queue;
mod stranger;
mod trial;
mod tun;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::Serialize;

use forward::{Forwarder, Strain};
use netns::{Namespaces, ip, within};
pub(crate) use profile::{Profile, UnknownProfile};
use queue::{Model, Tally};
pub(crate) use stranger::{Ping, Pinger, Stranger};
pub(crate) use trial::Trial;
use tun::Tun;

/// The address of the client's side.
pub(crate) const NEAR: &str = "10.77.0.1";

/// The address of the server's side.
pub(crate) const FAR: &str = "10.77.0.2";

/// The name of the device, in both namespaces.
const DEVICE: &str = "link0";

/// Packets that wait for this process: so many that only the modelled queue drops any.
const DEVICE_QUEUE: &str = "20000";

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// This machine or user cannot have one.
    #[error("links cannot be emulated here: {0}")]
    Unavailable(String),
    /// A program failed.
    #[error("`{command}` failed: {said}")]
    Command {
        /// With its arguments.
        command: String,
        /// What it said about it.
        said: String,
    },
    /// Something could not be done in a namespace.
    #[error("namespace {name}: {source}")]
    Namespace {
        /// Which one.
        name: String,
        /// What happened.
        source: io::Error,
    },
    /// The kernel does not know the congestion control, or does not allow it.
    #[error("the congestion control {name:?} is not available: {source}")]
    Congestion {
        /// As asked for.
        name: String,
        /// What the kernel said.
        source: Box<LinkError>,
    },
    /// A setting of the machine's network could not be read or written.
    #[error("the congestion controls that this machine allows could not be read or extended: {0}")]
    Setting(io::Error),
    /// The threads could not be started.
    #[error("no thread for the link could be started: {0}")]
    Thread(io::Error),
}

/// A link and what is at its ends. Both namespaces end with it, and so does whatever runs in them.
#[derive(Debug)]
pub(crate) struct Network {
    // The order matters: the threads end before the namespaces do.
    up: Forwarder,
    down: Forwarder,
    namespaces: Namespaces,
    profile: Profile,
    behind_router: bool,
    began: Instant,
}

/// What a link did since it came up, or since [`Network::renew`].
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Counts {
    /// From the client to the server.
    pub(crate) up: Way,
    /// From the server to the client.
    pub(crate) down: Way,
    /// Seconds since it came up.
    pub(crate) seconds: f64,
    /// Of these, seconds without a cut.
    pub(crate) seconds_up: f64,
    /// Processor seconds that moving the packets took, what the kernel did with them meanwhile included.
    pub(crate) cpu: f64,
}

/// What one direction of a link did. Bytes include IP headers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Way {
    /// Packets sent into it.
    pub(crate) packets: u64,
    /// Bytes sent into it.
    pub(crate) bytes: u64,
    /// Packets that arrived or are about to.
    pub(crate) delivered: u64,
    /// Bytes that arrived or are about to.
    pub(crate) delivered_bytes: u64,
    /// Packets lost on the way.
    pub(crate) lost: u64,
    /// Packets that found the queue full.
    pub(crate) dropped: u64,
    /// Packets that a cut took.
    pub(crate) cut: u64,
    /// Packets that the kernel did not take at the other end: should be 0.
    pub(crate) missed: u64,
    /// Milliseconds by which packets arrived later than they should, on average: about 0.1 where this machine keeps up.
    pub(crate) late_ms: f64,
    /// The worst of these.
    pub(crate) latest_ms: f64,
    /// Milliseconds that a packet waited in the queue, on average of those that were sent.
    pub(crate) queueing_ms: f64,
}

/// Whether links can be emulated here.
///
/// # Errors
///
/// [`LinkError::Unavailable`] says what is missing.
pub(crate) fn available() -> Result<(), LinkError> {
    if !rustix::process::geteuid().is_root() {
        return Err(LinkError::Unavailable("only root may".to_owned()));
    }
    std::fs::File::open(tun::CLONE)
        .map_err(|error| LinkError::Unavailable(format!("{}: {error}", tun::CLONE)))?;
    ip(&["-Version"]).map_err(|error| LinkError::Unavailable(error.to_string()))
}

impl Network {
    /// Makes both ends and the link between them, with this congestion control (`cubic`, `bbr`) for both.
    ///
    /// # Errors
    ///
    /// Where links cannot be emulated ([`available`]), or the congestion control is unknown. Nothing is left then.
    pub(crate) fn up(profile: &Profile, congestion: &str) -> Result<Network, LinkError> {
        available()?;
        let namespaces = Namespaces::make()?;
        let near = end(&namespaces.near, NEAR, FAR, congestion)?;
        let far = end(&namespaces.far, FAR, NEAR, congestion)?;
        let began = Instant::now();
        let (up, down) = models(profile);
        let up = Forwarder::start(
            "link-up",
            near.try_clone().map_err(LinkError::Thread)?,
            far.try_clone().map_err(LinkError::Thread)?,
            up,
            began,
        )
        .map_err(LinkError::Thread)?;
        let down =
            Forwarder::start("link-down", far, near, down, began).map_err(LinkError::Thread)?;
        Ok(Network {
            up,
            down,
            namespaces,
            profile: *profile,
            behind_router: false,
            began,
        })
    }

    /// The namespace of the client, for `ip netns exec`.
    pub(crate) fn near(&self) -> &str {
        match self.behind_router {
            true => &self.namespaces.home,
            false => &self.namespaces.near,
        }
    }

    /// The namespace of the server, for `ip netns exec`.
    pub(crate) fn far(&self) -> &str {
        &self.namespaces.far
    }

    /// Makes the far end the default gateway of the near one: the queue of the link lies before the first hop, as where the
    /// modem is the unit's own and the gateway that of the carrier.
    ///
    /// # Errors
    ///
    /// When iproute2 refuses.
    pub(crate) fn gateway(&self) -> Result<(), LinkError> {
        ip_in(self.near(), "route add default via", &[FAR, "dev", DEVICE])
    }

    /// Puts a router between the client and the link: the queue of the link lies behind the first hop. From now on
    /// [`Network::near`] is behind that router.
    ///
    /// # Errors
    ///
    /// When iproute2 or the kernel refuses.
    pub(crate) fn router(&mut self, congestion: &str) -> Result<(), LinkError> {
        let Namespaces {
            near, far, home, ..
        } = &self.namespaces;
        netns::add(home)?;
        let end = ["peer", "name", "lan1", "netns", near];
        ip_in(home, "link add lan0 type veth", &end)?;
        ip_in(near, "address add 10.78.0.1/24 dev lan1", &[])?;
        ip_in(home, "address add 10.78.0.2/24 dev lan0", &[])?;
        ip_in(near, "link set lan1 up", &[])?;
        ip_in(home, "link set lan0 up", &[])?;
        ip_in(home, "route add default via 10.78.0.1", &[])?;
        ip_in(far, "route add 10.78.0.0/24 dev", &[DEVICE])?;
        within(near, || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        })?;
        settle(home, congestion)?;
        self.behind_router = true;
        Ok(())
    }

    /// A connection that does not pass the link, between two who are both at the far end.
    ///
    /// # Errors
    ///
    /// When nobody listens.
    pub(crate) fn connect_far(&self, address: SocketAddr) -> Result<TcpStream, LinkError> {
        within(self.far(), || TcpStream::connect(address))
    }

    /// The link that is emulated.
    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Makes the link as new: empty, counts at zero, the first period of its cuts beginning now.
    pub(crate) fn renew(&mut self) {
        self.began = Instant::now();
        let (up, down) = models(&self.profile);
        self.up.renew(up, self.began);
        self.down.renew(down, self.began);
    }

    /// What the link did so far.
    pub(crate) fn counts(&self) -> Counts {
        let since = self.began.elapsed();
        let up = self.up.counts();
        let down = self.down.counts();
        Counts {
            up: Way::new(up.0, up.1),
            down: Way::new(down.0, down.1),
            seconds: since.as_secs_f64(),
            seconds_up: self
                .profile
                .cuts
                .map_or(since, |cuts| cuts.time_up(since))
                .as_secs_f64(),
            cpu: (up.2 + down.2).as_secs_f64(),
        }
    }
}

impl Way {
    fn new(tally: Tally, strain: Strain) -> Way {
        Way {
            packets: tally.packets,
            bytes: tally.bytes,
            delivered: tally.delivered,
            delivered_bytes: tally.delivered_bytes,
            lost: tally.lost,
            dropped: tally.dropped,
            cut: tally.cut,
            missed: strain.refused,
            late_ms: milliseconds(strain.late, strain.handed_over),
            latest_ms: milliseconds(strain.latest, 1),
            queueing_ms: milliseconds(tally.waited, tally.delivered + tally.lost),
        }
    }
}

fn milliseconds(total: Duration, count: u64) -> f64 {
    1000.0 * total.as_secs_f64() / count.max(1) as f64
}

fn models(profile: &Profile) -> (Model, Model) {
    // Another seed each time: what is measured several times is to meet several losses.
    (
        Model::new(profile.up, profile.cuts, Rng::new()),
        Model::new(profile.down, profile.cuts, Rng::new()),
    )
}

/// One end: the device, its address, and how TCP behaves there.
fn end(namespace: &str, own: &str, peer: &str, congestion: &str) -> Result<Tun, LinkError> {
    let tun = within(namespace, || Tun::make(DEVICE))?;
    let mtu = tun::MTU.to_string();
    ip(&[
        "-n", namespace, "address", "add", own, "peer", peer, "dev", DEVICE,
    ])?;
    ip(&[
        "-n",
        namespace,
        "link",
        "set",
        DEVICE,
        "mtu",
        &mtu,
        "txqueuelen",
        DEVICE_QUEUE,
        "up",
    ])?;
    settle(namespace, congestion)?;
    Ok(tun)
}

/// How TCP behaves in a namespace.
fn settle(namespace: &str, congestion: &str) -> Result<(), LinkError> {
    congestion::set(namespace, congestion)?;
    // What one connection learnt about the path would help the next, and the order of the runs would count.
    within(namespace, || {
        std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")
    })
}

/// Runs `ip` in a namespace: words, and what was not known when they were written.
fn ip_in(namespace: &str, words: &str, more: &[&str]) -> Result<(), LinkError> {
    let mut args = vec!["-n", namespace];
    args.extend(words.split(' '));
    args.extend(more);
    ip(&args)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn both_ends_and_what_runs_in_them_end_with_the_network() {
        if let Err(why) = available() {
            println!("skipped: {why}");
            return;
        }
        let network = Network::up(&Profile::ALL[0], "reno").unwrap();
        let [near, far] =
            [network.near(), network.far()].map(|name| Path::new("/run/netns").join(name));
        assert!(near.exists() && far.exists());
        let mut program = Command::new("ip")
            .args(["netns", "exec", network.far(), "cat"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // It is in the namespace when it is `cat`: only then can the guard find it.
        let name = format!("/proc/{}/comm", program.id());
        while std::fs::read_to_string(&name).unwrap().trim() != "cat" {
            assert_eq!(program.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        drop(network);
        assert!(!near.exists() && !far.exists());
        assert_eq!(program.wait().unwrap().code(), None, "killed, not ended");
    }

    #[test]
    fn a_client_behind_a_router_reaches_the_far_end_through_the_link() {
        if let Err(why) = available() {
            println!("skipped: {why}");
            return;
        }
        let profile: Profile = "lteclean".parse().unwrap();
        let mut network = Network::up(&profile, "cubic").unwrap();
        network.router("cubic").unwrap();
        let home = Path::new("/run/netns").join(network.near());
        assert!(home.exists());
        let listener = within(network.far(), || TcpListener::bind((FAR, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let before = network.counts().up.packets;
        let mut client = within(network.near(), || TcpStream::connect(address)).unwrap();
        client.write_all(&[0; 100_000]).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_string(), "10.78.0.2");
        io::copy(
            &mut Read::by_ref(&mut server).take(100_000),
            &mut io::sink(),
        )
        .unwrap();
        assert!(network.counts().up.packets > before + 60);
        drop(network);
        assert!(!home.exists());
    }
}
