//! What there is to do.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Failure;
use crate::link::{self, Network, Profile};
use crate::peer::{Ours, PIECE, Peer};
use crate::run::{make, pieces};

/// One work.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Files, and the bytes of each.
    count: u64,
    size: u64,
    pub(crate) connections: usize,
    /// A link by its name, and the congestion control on it; loopback without.
    pub(crate) link: Option<(&'static str, &'static str)>,
    pub(crate) kind: Kind,
    gateway: Gateway,
    /// What went through in this time counts, instead of the time until all is through.
    pub(crate) limit: Option<Duration>,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What it costs and what goes through.
    Through,
    /// The client is killed at half and started again.
    Kill,
    /// Somebody else uses the line for a while.
    Shared,
    /// The same client with more and more to do.
    Growth,
}

/// Where the client's first hop is on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gateway {
    /// Nowhere: the link is point to point.
    None,
    /// At its far end: what waits in its queue waits on the way to the first hop.
    BehindTheQueue,
    /// A router before the link: what waits does so behind the first hop.
    BeforeTheQueue,
}

/// The files of a work.
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
    pub(crate) whole: Vec<PathBuf>,
    pub(crate) pieces: Vec<PathBuf>,
    pub(crate) bytes: u64,
}

const MIB: u64 = 1 << 20;

impl Work {
    pub(crate) fn all() -> Vec<Work> {
        let loopback = Work {
            name: "big",
            what: "One file of 2 GiB over TLS on loopback, client and server on a core each, CUBIC.",
            count: 1,
            size: 2048 * MIB,
            connections: 4,
            link: None,
            kind: Kind::Through,
            gateway: Gateway::None,
            limit: None,
        };
        let stills = Work {
            name: "stills",
            what: "1,000 files of 1 MiB over TLS on loopback, client and server on a core each, CUBIC. c2c keeps each in its durable queue and registers it at the API; the others do not.",
            count: 1000,
            size: MIB,
            ..loopback
        };
        let over = |name, what, profile, congestion, seconds| Work {
            name,
            what,
            link: Some((profile, congestion)),
            limit: Some(Duration::from_secs(seconds)),
            ..loopback
        };
        let kill = Work {
            name: "kill",
            what: "One file of 5 GiB over TLS on loopback: killed (SIGKILL) when half of it had arrived, and the same command again.",
            size: 5120 * MIB,
            kind: Kind::Kill,
            ..loopback
        };
        vec![
            loopback,
            stills,
            kill,
            over(
                "lte-cubic",
                "LTE, 20 Mbit/s, 60 ms, 0.5 % loss, CUBIC: the first 60 s of a large file.",
                "lte",
                "cubic",
                60,
            ),
            over("lte-bbr", "The same with BBR.", "lte", "bbr", 60),
            over(
                "wifi-cubic",
                "Bad Wi-Fi, 10 Mbit/s, 30 ± 20 ms, 2 % loss, CUBIC: the first 60 s.",
                "wifi",
                "cubic",
                60,
            ),
            over("wifi-bbr", "The same with BBR.", "wifi", "bbr", 60),
            over(
                "sat-cubic",
                "Satellite, 20 Mbit/s, 600 ms, 1 % loss, CUBIC: the first 120 s.",
                "sat",
                "cubic",
                120,
            ),
            over("sat-bbr", "The same with BBR.", "sat", "bbr", 120),
            over(
                "gig",
                "1 Gbit/s, 20 ms, no loss, CUBIC: the first 15 s.",
                "gig",
                "cubic",
                15,
            ),
            over(
                "cuts",
                "10 Mbit/s, 60 ms, cut for 2 s every 20 s, CUBIC: the first 90 s.",
                "cuts",
                "cubic",
                // Not within a cut: what the last one cost shows after it.
                90,
            ),
            over(
                "ltebloat",
                "LTE, 20 Mbit/s, 60 ms, no loss, a queue of one second, CUBIC: the first 60 s.",
                "ltebloat",
                "cubic",
                60,
            ),
            Work {
                kind: Kind::Shared,
                gateway: Gateway::BehindTheQueue,
                ..over(
                    "polite",
                    "LTE as in the work before, the gateway behind its queue. After 20 s somebody else on the same line sends over one TCP connection, CUBIC, for 20 s.",
                    "ltebloat",
                    "cubic",
                    80,
                )
            },
            Work {
                kind: Kind::Shared,
                ..over(
                    "polite-direct",
                    "The same without a gateway, as with a modem that is point to point: c2c goes by the round trips of its connections.",
                    "ltebloat",
                    "cubic",
                    80,
                )
            },
            Work {
                kind: Kind::Shared,
                gateway: Gateway::BeforeTheQueue,
                ..over(
                    "polite-router",
                    "The same behind a router: it is the first hop, and its queue towards LTE lies behind it.",
                    "ltebloat",
                    "cubic",
                    80,
                )
            },
            Work {
                count: 1000,
                size: MIB,
                connections: 8,
                ..over(
                    "lte-stills",
                    "1,000 files of 1 MiB over LTE without loss, CUBIC: the first 60 s.",
                    "lteclean",
                    "cubic",
                    60,
                )
            },
            Work {
                name: "growth",
                what: "c2c, verified, over TLS on loopback, client and server on a core each, CUBIC: one thing grows, all else stays.",
                kind: Kind::Growth,
                ..loopback
            },
        ]
    }

    pub(crate) fn includes(&self, peer: Peer) -> bool {
        match (peer, self.kind) {
            (Peer::Ours(Ours::Polite), kind) => kind == Kind::Shared,
            // Wherever the gateway is, nothing is different for these.
            (Peer::Ours(Ours::Auto), Kind::Shared) => self.gateway == Gateway::BehindTheQueue,
            (Peer::Ours(Ours::Auto), _) => self.link.is_some(),
            (Peer::Ours(Ours::Sixteen), _) => self.name == "big",
            (Peer::Ours(_), _) => self.link.is_none(),
            (_, Kind::Shared) => peer == Peer::S5cmd && self.gateway == Gateway::BehindTheQueue,
            // They have nothing to go on from, and no files of their own to keep it in.
            (Peer::Reqwest | Peer::Curl, Kind::Kill) => false,
            // The queue is what counts there, and TCP fills it for all alike.
            _ if self.name == "ltebloat" => matches!(peer, Peer::Reqwest | Peer::S5cmd),
            _ => true,
        }
    }

    /// A small part of the work, to see that everything runs: the figures are worth nothing.
    pub(crate) fn quick(self) -> Work {
        Work {
            count: self.count.div_ceil(8),
            size: if self.count == 1 {
                self.size / 8
            } else {
                self.size
            },
            limit: self.limit.map(|limit| limit / 8),
            ..self
        }
    }

    pub(crate) fn place(&self) -> Result<Place, Failure> {
        Ok(match self.link {
            None => Place::Loopback,
            Some((profile, congestion)) => {
                let mut network = Network::up(&profile.parse::<Profile>()?, congestion)?;
                match self.gateway {
                    Gateway::None => {}
                    Gateway::BehindTheQueue => network.gateway()?,
                    Gateway::BeforeTheQueue => network.router(congestion)?,
                }
                Place::Link(Box::new(network))
            }
        })
    }

    /// Whether there is room for what is missing of the files, and half a gigabyte for everybody else.
    fn room(&self, dir: &Path, cut: &Path, cuts_wanted: bool) -> Result<(), Failure> {
        let bytes = self.count * self.size;
        let mut missing = bytes.saturating_sub(present(dir));
        if cuts_wanted {
            missing += bytes.saturating_sub(present(cut));
        }
        let space = rustix::fs::statvfs(dir).map_err(|error| Failure::Io {
            what: "looking for room".into(),
            source: error.into(),
        })?;
        if missing > 0 && space.f_bavail * space.f_frsize < missing + 512 * MIB {
            return Err(Failure::Room {
                wanted: missing / MIB,
                dir: dir.display().to_string(),
            });
        }
        Ok(())
    }

    /// The same work with other files.
    pub(crate) fn with(self, count: u64, size: u64) -> Work {
        Work {
            count,
            size,
            ..self
        }
    }

    /// Makes the files, once; the pieces only if they are wanted.
    pub(crate) fn files(&self, under: &Path, pieces_wanted: bool) -> Result<Files, Failure> {
        let dir = under.join(format!("{}x{}", self.count, self.size));
        let cut = under.join(format!("{}x{}-pieces", self.count, self.size));
        let cuts_wanted = pieces_wanted && pieces(self.size) > 1;
        make(&dir)?;
        self.room(&dir, &cut, cuts_wanted)?;
        if cuts_wanted {
            make(&cut)?;
        }
        let io = |source| Failure::Io {
            what: "making the files".into(),
            source,
        };
        let (mut whole, mut cuts) = (Vec::new(), Vec::new());
        for number in 0..self.count {
            let path = dir.join(format!("A{number:04}.mov"));
            if fs::metadata(&path).map_or(0, |known| known.len()) != self.size {
                fill(&path, self.size, number).map_err(io)?;
            }
            if pieces(self.size) == 1 {
                cuts.push(path.clone());
            } else if cuts_wanted {
                cuts.extend(split(&path, &cut, self.size).map_err(io)?);
            }
            whole.push(path);
        }
        Ok(Files {
            dir,
            whole,
            pieces: cuts,
            bytes: self.count * self.size,
        })
    }
}

/// Bytes of the files in a directory.
fn present(dir: &Path) -> u64 {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Bytes that look random and are the same each time.
fn fill(path: &Path, size: u64, seed: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut block = vec![0_u8; 1 << 20];
    let mut left = size;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let length = left.min(block.len() as u64) as usize;
        file.write_all(&block[..length])?;
        left -= length as u64;
    }
    Ok(())
}

fn split(path: &Path, into: &Path, size: u64) -> std::io::Result<Vec<PathBuf>> {
    let mut from = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut cuts = Vec::new();
    for number in 0..pieces(size) {
        let cut = into.join(format!("{number:04}"));
        let length = PIECE.min(size - number * PIECE);
        let mut part = Read::by_ref(&mut from).take(length);
        if fs::metadata(&cut).map_or(0, |known| known.len()) == length {
            std::io::copy(&mut part, &mut std::io::sink())?;
        } else {
            std::io::copy(&mut part, &mut File::create(&cut)?)?;
        }
        cuts.push(cut);
    }
    Ok(cuts)
}

/// Where the ends of a work are.
pub(crate) enum Place {
    /// This machine itself.
    Loopback,
    /// Two namespaces with a link between them.
    Link(Box<Network>),
}

impl Place {
    /// Namespace of the client.
    pub(crate) fn near(&self) -> Option<String> {
        match self {
            Place::Loopback => None,
            Place::Link(network) => Some(network.near().to_owned()),
        }
    }

    /// Namespace of the server.
    pub(crate) fn far(&self) -> Option<String> {
        match self {
            Place::Loopback => None,
            Place::Link(network) => Some(network.far().to_owned()),
        }
    }

    /// Address of the server.
    pub(crate) fn address(&self) -> IpAddr {
        match self {
            Place::Loopback => Ipv4Addr::LOCALHOST.into(),
            Place::Link(_) => Ipv4Addr::new(10, 77, 0, 2).into(),
        }
    }

    /// Connects to a port of the server, from its own side.
    pub(crate) fn connect(&self, port: u16) -> Result<TcpStream, Failure> {
        let address = SocketAddr::new(self.address(), port);
        match self {
            Place::Loopback => TcpStream::connect(address).map_err(|source| Failure::Io {
                what: format!("connecting to {address}"),
                source,
            }),
            Place::Link(network) => Ok(network.connect_far(address)?),
        }
    }

    /// Begins a run: the link is empty, its counts are zero.
    pub(crate) fn renew(&mut self) {
        if let Place::Link(network) = self {
            network.renew();
        }
    }

    /// What the link did in this run.
    pub(crate) fn counts(&self) -> Option<link::Counts> {
        match self {
            Place::Loopback => None,
            Place::Link(network) => Some(network.counts()),
        }
    }

    /// Bits per second of the link.
    pub(crate) fn rate(&self) -> Option<u64> {
        match self {
            Place::Loopback => None,
            Place::Link(network) => Some(network.profile().rate()),
        }
    }
}
