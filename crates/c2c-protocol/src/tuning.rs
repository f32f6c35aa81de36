//! How connections are tuned, and what the kernel tells about them.
//!
//! Invariants: a tuning that the system refuses is left away, never an error; what the kernel does not tell is `None`,
//! never a guess.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// Which congestion control the connections use, where the system lets a program choose (Linux).
///
/// On a line that loses packets it decides about almost everything: with cubic, one connection reached about a sixth of a
/// 20 Mbit/s line with 60 ms and 0.5 % loss, with BBR nine tenths (docs/PERFORMANCE.md).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Congestion {
    /// BBR where the kernel offers it, except to this machine itself, where it only costs processor time; else the
    /// system's default.
    #[default]
    Auto,
    /// The system's default.
    System,
    /// One by its name in the kernel, such as `bbr` or `cubic`; the system's default where there is none of that name.
    Named(String),
}

/// How the connections are tuned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Which congestion control to use.
    pub congestion: Congestion,
    /// How many bytes may wait in the kernel that were never sent (Linux `TCP_NOTSENT_LOWAT`), in bytes. 256 KiB: what was
    /// handed over is nearly what is on the way, and still never too little for a connection to go on while this program
    /// sleeps. `None` leaves it to the system.
    pub unsent_limit: Option<u32>,
    /// How long sent bytes may stay unconfirmed before the kernel gives the connection up (Linux `TCP_USER_TIMEOUT`).
    /// 30 s: longer than a handover between cells, shorter than our own limit for a transfer without progress.
    pub user_timeout: Duration,
    /// How long a connection may be silent before the kernel asks whether the other side is still there. 20 s: shorter
    /// than the memory of a common NAT.
    pub keepalive: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            congestion: Congestion::Auto,
            unsent_limit: Some(256 * 1024),
            user_timeout: Duration::from_secs(30),
            keepalive: Duration::from_secs(20),
        }
    }
}

impl Tuning {
    /// Sets up a socket before it connects.
    pub(crate) fn apply(&self, socket: &TcpSocket, to_loopback: bool) -> io::Result<()> {
        let options = SockRef::from(socket);
        options.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(self.keepalive);
        #[cfg(not(any(
            target_os = "openbsd",
            target_os = "haiku",
            target_os = "redox",
            target_os = "solaris"
        )))]
        let keepalive = keepalive.with_interval(Duration::from_secs(5));
        options.set_tcp_keepalive(&keepalive)?;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            options.set_tcp_user_timeout(Some(self.user_timeout))?;
            if let Some(limit) = self.unsent_limit {
                options.set_tcp_notsent_lowat(limit)?;
            }
            let name = match &self.congestion {
                Congestion::Auto if to_loopback => None,
                Congestion::Auto => Some("bbr"),
                Congestion::System => None,
                Congestion::Named(name) => Some(name.as_str()),
            };
            // Not in this kernel, or not for everybody: then what there is.
            if let Some(name) = name
                && let Err(error) = options.set_tcp_congestion(name.as_bytes())
            {
                tracing::debug!("no congestion control {name} on this system: {error}");
            }
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = (self, to_loopback);
        Ok(())
    }
}

/// What the kernel knows about the connection of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transport {
    /// The smoothed round trip.
    pub round_trip: Duration,
    /// The shortest round trip of the last minutes.
    pub shortest_round_trip: Option<Duration>,
    /// Bytes sent since the connection was made, those sent again included.
    pub sent: u64,
    /// Bytes sent again since the connection was made.
    pub resent: u64,
    /// Bytes that wait in the kernel and were never sent.
    pub unsent: u64,
    /// Whether the congestion control takes every lost packet for congestion, as cubic and reno do and BBR does not.
    pub loss_based: bool,
}

/// Whether the congestion control of a connection takes loss for congestion.
pub(crate) fn loss_based(tcp: &TcpStream) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let name = SockRef::from(tcp).tcp_congestion().unwrap_or_default();
        !name.starts_with(b"bbr")
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = tcp;
        true
    }
}

/// Asks the kernel (Linux `TCP_INFO`).
#[cfg(any(target_os = "linux", target_os = "android"))]
#[expect(unsafe_code, reason = "the socket option has no safe wrapper")]
pub(crate) fn transport(tcp: &TcpStream, loss_based: bool) -> Option<Transport> {
    use std::os::fd::AsRawFd;

    // The kernel's `struct tcp_info` only ever grows at its end; these are the places of its fields.
    const RTT: usize = 68;
    const UNSENT: usize = 144;
    const MIN_RTT: usize = 148;
    const SENT: usize = 200;
    const RESENT: usize = 208;

    let mut info = [0_u8; 256];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the descriptor is an open TCP socket, borrowed for the call; the kernel writes at most `length` bytes into
    // `info` and sets `length` to their number.
    let status = unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return None;
    }
    let known = info.get(..length as usize)?;
    let short = |at: usize| {
        let bytes = known.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_ne_bytes)
    };
    let long = |at: usize| {
        let bytes = known.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_ne_bytes)
    };
    Some(Transport {
        round_trip: Duration::from_micros(short(RTT)?.into()),
        shortest_round_trip: short(MIN_RTT)
            .filter(|rtt| (1..u32::MAX).contains(rtt))
            .map(|rtt| Duration::from_micros(rtt.into())),
        sent: long(SENT)?,
        resent: long(RESENT)?,
        unsent: short(UNSENT)?.into(),
        loss_based,
    })
}

/// Nobody tells.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn transport(_tcp: &TcpStream, _loss_based: bool) -> Option<Transport> {
    None
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected(tuning: &Tuning) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        tuning.apply(&socket, false).unwrap();
        let ours = socket
            .connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        (ours, theirs)
    }

    fn named(name: &str) -> Tuning {
        Tuning {
            congestion: Congestion::Named(name.to_owned()),
            ..Tuning::default()
        }
    }

    #[tokio::test]
    async fn the_tuning_arrives_at_the_socket() {
        let (ours, _theirs) = connected(&named("reno")).await;
        let options = SockRef::from(&ours);
        assert!(options.tcp_nodelay().unwrap() && options.keepalive().unwrap());
        assert_eq!(options.tcp_notsent_lowat().unwrap(), 256 * 1024);
        assert_eq!(
            options.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(30))
        );
        assert!(options.tcp_congestion().unwrap().starts_with(b"reno"));
        assert!(loss_based(&ours));
    }

    #[tokio::test]
    async fn an_unknown_congestion_control_is_left_away() {
        let (ours, _theirs) = connected(&named("no-such-thing")).await;
        let fallback = SockRef::from(&ours).tcp_congestion().unwrap();
        assert!(!fallback.starts_with(b"no-such"));
    }

    #[tokio::test]
    async fn the_kernel_tells_what_was_sent() {
        let (mut ours, mut theirs) = connected(&Tuning::default()).await;
        ours.write_all(&[7; 3000]).await.unwrap();
        theirs.read_exact(&mut [0; 3000]).await.unwrap();
        let told = transport(&ours, false).unwrap();
        assert_eq!((told.sent, told.resent, told.unsent), (3000, 0, 0));
        assert!(told.round_trip > Duration::ZERO);
    }
}
