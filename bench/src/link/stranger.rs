//! Somebody else on the link, and what the link is like for them.
//!
//! Invariants: both go through the same queue as the client that is measured; who sends stops at once when told to, and leaves
//! nothing in the kernel that would still be sent; who asks for the round trip sends so little that it changes nothing.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv, sockopt};
use serde::Serialize;

use super::netns::within;
use super::{FAR, LinkError, Network};

/// Bytes of one write.
const WRITE: usize = 64 * 1024;

/// Between two questions.
const EVERY: Duration = Duration::from_millis(50);

/// Sends as much as TCP lets it, over one connection with the congestion control of the link, from the client's side.
pub(crate) struct Stranger {
    client: TcpStream,
    server: TcpStream,
    threads: Vec<JoinHandle<()>>,
}

impl Stranger {
    /// Connects, which takes as long as the link does, and begins. What arrives is added to `arrived`.
    ///
    /// # Errors
    ///
    /// When there is no connection, or the system has no thread left.
    pub(crate) fn begin(near: &str, far: &str, arrived: Arc<AtomicU64>) -> io::Result<Stranger> {
        let listener = within(far, || TcpListener::bind((FAR, 0))).map_err(io::Error::other)?;
        let address = listener.local_addr()?;
        let client = within(near, || TcpStream::connect(address)).map_err(io::Error::other)?;
        let server = listener.accept()?.0;
        // What was not sent when it is closed is dropped.
        sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
        let mut threads = Vec::new();
        let sender = client.try_clone()?;
        let receiver = server.try_clone()?;
        threads.push(thread::Builder::new().spawn(move || fill(sender))?);
        threads.push(thread::Builder::new().spawn(move || drain(&receiver, &arrived))?);
        Ok(Stranger {
            client,
            server,
            threads,
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // A connection that is gone already has ended its threads.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

/// Until the connection is shut down.
fn fill(mut stream: TcpStream) {
    let bytes = vec![0; WRITE];
    while stream.write_all(&bytes).is_ok() {}
}

/// Until the connection is shut down; the kernel drops what came.
fn drain(stream: &TcpStream, arrived: &AtomicU64) {
    let mut nothing = vec![0; WRITE];
    while let Ok((_, count)) = recv(stream, &mut nothing[..], RecvFlags::TRUNC) {
        if count == 0 {
            return;
        }
        arrived.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// One question over the link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ping {
    /// Seconds since the begin.
    pub(crate) sent: f64,
    /// Seconds to the answer; `None` if none came.
    pub(crate) round_trip: Option<f64>,
}

/// Asks the far end for an answer, again and again, over UDP.
pub(crate) struct Pinger {
    end: Arc<AtomicBool>,
    pings: Arc<Mutex<Vec<Ping>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pinger {
    /// Begins; times count from `began`.
    ///
    /// # Errors
    ///
    /// When there is no socket or no thread.
    pub(crate) fn begin(network: &Network, began: Instant) -> Result<Pinger, LinkError> {
        let echo = within(network.far(), || UdpSocket::bind((FAR, 0)))?;
        let address = within(network.far(), || echo.local_addr())?;
        let own = within(network.near(), || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(address)?;
            Ok(socket)
        })?;
        let mut pinger = Pinger {
            end: Arc::default(),
            pings: Arc::default(),
            threads: Vec::new(),
        };
        let (end, pings) = (pinger.end.clone(), pinger.pings.clone());
        let answer = {
            let end = end.clone();
            move || answer(&echo, &end)
        };
        for work in [
            Box::new(answer) as Box<dyn FnOnce() + Send>,
            Box::new(move || ask(&own, began, &end, &pings)),
        ] {
            let thread = thread::Builder::new()
                .spawn(work)
                .map_err(LinkError::Thread)?;
            pinger.threads.push(thread);
        }
        Ok(pinger)
    }

    /// Ends; everything that was asked. What was asked last has no answer yet.
    pub(crate) fn end(self) -> Vec<Ping> {
        let pings = self.pings.clone();
        drop(self);
        let mut pings = pings.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *pings)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

fn answer(socket: &UdpSocket, end: &AtomicBool) {
    let mut buffer = [0; 64];
    // Without it the end would not be seen.
    if socket.set_read_timeout(Some(EVERY)).is_err() {
        return;
    }
    while !end.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // What does not come is what is counted.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

fn ask(socket: &UdpSocket, began: Instant, end: &AtomicBool, pings: &Mutex<Vec<Ping>>) {
    let mut buffer = [0; 64];
    let mut next = Instant::now();
    while !end.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= next {
            next = now.max(next + EVERY);
            let number = {
                let mut pings = pings.lock().unwrap_or_else(PoisonError::into_inner);
                pings.push(Ping {
                    sent: began.elapsed().as_secs_f64(),
                    round_trip: None,
                });
                pings.len() as u64 - 1
            };
            // What does not go out has no answer.
            let _ = socket.send(&number.to_be_bytes());
        }
        let wait = next
            .saturating_duration_since(Instant::now())
            .max(Duration::from_micros(100));
        if socket.set_read_timeout(Some(wait)).is_err() {
            return;
        }
        let Ok(8) = socket.recv(&mut buffer) else {
            continue;
        };
        let mut number = [0; 8];
        number.copy_from_slice(&buffer[..8]);
        let mut pings = pings.lock().unwrap_or_else(PoisonError::into_inner);
        let number = usize::try_from(u64::from_be_bytes(number)).unwrap_or(usize::MAX);
        if let Some(ping) = pings.get_mut(number) {
            ping.round_trip = Some(began.elapsed().as_secs_f64() - ping.sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Profile, available};

    #[test]
    fn a_stranger_fills_the_queue_as_the_round_trip_shows_and_is_gone_when_told() {
        if let Err(why) = available() {
            println!("skipped: {why}");
            return;
        }
        let profile: Profile = "ltebloat".parse().unwrap();
        let network = Network::up(&profile, "cubic").unwrap();
        let pinger = Pinger::begin(&network, Instant::now()).unwrap();
        thread::sleep(Duration::from_secs(1));
        let arrived = Arc::new(AtomicU64::new(0));
        let stranger = Stranger::begin(network.near(), network.far(), arrived.clone()).unwrap();
        thread::sleep(Duration::from_secs(3));
        let arrived = arrived.load(Ordering::Relaxed);
        assert!(arrived > 1_000_000, "{arrived}");
        drop(stranger);
        // What is in the queue needs up to a second.
        thread::sleep(Duration::from_millis(1_500));
        let before = network.counts().up.packets;
        thread::sleep(Duration::from_millis(500));
        let after = network.counts().up.packets - before;
        let pings = pinger.end();
        assert!(after <= 12, "only the questions go on: {after}");
        let most = |from: f64, to: f64| {
            pings
                .iter()
                .filter(|ping| ping.sent >= from && ping.sent < to)
                .filter_map(|ping| ping.round_trip)
                .fold(0.0, f64::max)
        };
        assert!(most(0.0, 1.0) >= 0.06, "{pings:?}");
        assert!(most(1.0, 4.0) > 0.15, "{pings:?}");
    }
}
