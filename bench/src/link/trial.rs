//! Plain TCP through a link: is the link what it says?

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::net::{RecvFlags, recv};

use super::netns::within;
use super::{Counts, FAR, LinkError, Network, Profile};
use crate::Failure;

/// Bytes of one write.
const WRITE: usize = 256 * 1024;

/// Streams from the client's side to the server's, for a time.
#[derive(Args, Debug)]
pub(crate) struct Trial {
    /// The link by its name
    profile: Profile,
    /// cubic or bbr
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// Connections that send at the same time
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// How long, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How many times, each with the link as new
    #[arg(long, default_value_t = 1)]
    rounds: u32,
}

impl Trial {
    /// Measures and prints what came out.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut network = Network::up(&self.profile, &self.congestion)?;
        let mut out = io::stdout();
        for _ in 0..self.rounds {
            network.renew();
            let took = Duration::from_secs(self.seconds);
            let bytes = send(&network, self.streams, took)?;
            let counts = network.counts();
            let share = share(&network, bytes, &counts);
            writeln!(
                out,
                "{} {}, {} streams: {:.1} Mbit/s, {:.1} % of the link while it was up; {}",
                self.profile.name,
                self.congestion,
                self.streams,
                bytes as f64 * 8e-6 / self.seconds as f64,
                share * 100.0,
                serde_json::to_string(&counts).map_err(Failure::Json)?,
            )
            .map_err(|source| Failure::Io {
                what: "writing the result".to_owned(),
                source,
            })?;
        }
        Ok(())
    }
}

/// The share of what the link could carry while it was up.
fn share(network: &Network, bytes: u64, counts: &Counts) -> f64 {
    bytes as f64 * 8.0 / (network.profile().rate() as f64 * counts.seconds_up)
}

/// Sends over so many connections for so long, from the first connection attempt on; the bytes that the server read by then.
fn send(network: &Network, streams: usize, length: Duration) -> Result<u64, LinkError> {
    let listener = within(network.far(), || TcpListener::bind((FAR, 0)))?;
    let address = within(network.far(), || listener.local_addr())?;
    let began = Instant::now();
    let read = AtomicU64::new(0);
    let mut pairs = Vec::new();
    for _ in 0..streams {
        let client = within(network.near(), || TcpStream::connect(address))?;
        let server = within(network.far(), || listener.accept())?.0;
        pairs.push((client, server));
    }
    thread::scope(|scope| {
        for (client, server) in &pairs {
            scope.spawn(|| drain(server, &read));
            scope.spawn(|| fill(client));
        }
        thread::sleep(length.saturating_sub(began.elapsed()));
        let bytes = read.load(Ordering::Relaxed);
        for (client, server) in &pairs {
            // A connection that is gone already has ended its threads.
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
        Ok(bytes)
    })
}

/// Until the connection is shut down.
fn fill(mut stream: &TcpStream) {
    let bytes = vec![0; WRITE];
    while stream.write_all(&bytes).is_ok() {}
}

/// Until the connection is shut down; the kernel drops what came.
fn drain(stream: &TcpStream, read: &AtomicU64) {
    let mut nothing = vec![0; WRITE];
    while let Ok((_, count)) = recv(stream, &mut nothing[..], RecvFlags::TRUNC) {
        if count == 0 {
            return;
        }
        read.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::available;

    #[test]
    fn tcp_gets_through_a_link_no_faster_than_the_link_is_and_the_counts_agree() {
        if let Err(why) = available() {
            println!("skipped: {why}");
            return;
        }
        let profile: Profile = "lteclean".parse().unwrap();
        let mut network = Network::up(&profile, "cubic").unwrap();
        let bytes = send(&network, 2, Duration::from_secs(2)).unwrap();
        let counts = network.counts();
        assert!(bytes > 0);
        assert!(counts.up.delivered_bytes > bytes, "headers count too");
        assert!(counts.down.delivered > 0, "acknowledgements");
        assert!(counts.down.bytes < counts.up.bytes / 10);
        let most = profile.up.rate as f64 / 8.0 * counts.seconds + profile.up.queue as f64;
        assert!(counts.up.delivered_bytes as f64 <= most, "{counts:?}");
        assert!(
            share(&network, bytes, &counts) < 0.966,
            "headers take 3.5 %"
        );
        assert_eq!((counts.up.lost, counts.up.cut, counts.up.missed), (0, 0, 0));
        assert_eq!(
            counts.up.packets,
            counts.up.delivered + counts.up.dropped,
            "nothing else happens on this link"
        );

        network.renew();
        assert!(network.counts().up.packets < counts.up.packets);
    }
}
