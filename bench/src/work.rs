//! What there is to do.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Failure;
use crate::peer::{PIECE, Peer};
use crate::run::{Place, make, pieces};

/// One work.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Files, and the bytes of each.
    count: u64,
    size: u64,
    pub(crate) connections: usize,
    /// A link by its name; loopback without.
    pub(crate) link: Option<&'static str>,
    /// What went through in this time counts, instead of the time until all is through.
    pub(crate) limit: Option<Duration>,
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
        vec![
            Work {
                name: "big",
                what: "One file of 2 GiB over TLS on loopback, client and server on a core each, CUBIC.",
                count: 1,
                size: 2048 * MIB,
                connections: 4,
                link: None,
                limit: None,
            },
            Work {
                name: "stills",
                what: "1,000 files of 1 MiB over TLS on loopback, client and server on a core each, CUBIC. c2c registers each at the API; the others do not.",
                count: 1000,
                size: MIB,
                connections: 4,
                link: None,
                limit: None,
            },
        ]
    }

    pub(crate) fn includes(&self, peer: Peer) -> bool {
        match peer {
            Peer::Ours { auto, .. } => auto == self.link.is_some(),
            _ => true,
        }
    }

    pub(crate) fn rate(&self) -> Option<u64> {
        None
    }

    pub(crate) fn place(&self) -> Result<Box<dyn Place>, Failure> {
        Ok(Box::new(Loopback))
    }

    /// Makes the files, once.
    pub(crate) fn files(&self, under: &Path) -> Result<Files, Failure> {
        let dir = under.join(format!("{}x{}", self.count, self.size));
        let cut = under.join(format!("{}x{}-pieces", self.count, self.size));
        make(&dir)?;
        make(&cut)?;
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
            } else {
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

/// This machine itself.
struct Loopback;

impl Place for Loopback {
    fn near(&self) -> Option<String> {
        None
    }

    fn far(&self) -> Option<String> {
        None
    }

    fn address(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }
}
