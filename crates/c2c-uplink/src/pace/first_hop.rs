//! The way to the first hop and back: how long packets wait on the way out of this unit.
//!
//! Invariants: what is sent goes to the default gateway alone, a few dozen bytes at a time; an answer counts only for the
//! question that it answers; the time is taken here, never told by the gateway.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UdpSocket};

/// Where everything goes that is not for a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// The interface that leads there, e.g. `wlan0`.
    pub interface: String,
    /// The number of that interface, which belongs to a link-local IPv6 address; else 0.
    pub scope: u32,
}

/// How the first hop is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// An ICMP echo over a socket that needs no privilege, where the system allows it.
    IcmpDatagram,
    /// An ICMP echo over a raw socket, as root.
    IcmpRaw,
    /// The refusal of a TCP connection to this port, on which nobody is expected to listen.
    Tcp(u16),
}

/// Why the first hop cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirstHopError {
    /// There is no default gateway: a modem without one, or no network at all.
    #[error("this unit has no default gateway; the connections of the upload are watched instead")]
    NoGateway,
    /// It answers neither pings nor connections.
    #[error(
        "the gateway {address} answers neither pings nor connections; the connections of the upload are watched instead"
    )]
    Silent {
        /// The gateway.
        address: IpAddr,
    },
}

/// The default gateway of this unit; IPv4 first. `None` where there is none, and where the system does not tell.
#[must_use]
pub fn default_gateway() -> Option<Gateway> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (address, interface) = gateway_v4(&read("/proc/net/route"))
        .or_else(|| gateway_v6(&read("/proc/net/ipv6_route")))?;
    let scope = match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let index = read(&format!("/sys/class/net/{interface}/ifindex"));
            index.trim().parse().unwrap_or(0)
        }
        _ => 0,
    };
    Some(Gateway {
        address,
        interface,
        scope,
    })
}

/// Up, and by way of a gateway: `RTF_UP | RTF_GATEWAY` of route(8).
const BY_GATEWAY: u32 = 0x1 | 0x2;

/// Interface, destination, gateway, flags, references, use, metric, mask: the addresses as the machine stores a number.
fn gateway_v4(table: &str) -> Option<(IpAddr, String)> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
        let metric: u32 = fields.get(6)?.parse().ok()?;
        let is_default = hex(1)? == 0 && hex(7)? == 0 && hex(3)? & BY_GATEWAY == BY_GATEWAY;
        let address = IpAddr::from(hex(2)?.to_ne_bytes());
        is_default.then(|| (metric, address, (*fields[0]).to_owned()))
    });
    let (_, address, interface) = routes.min_by_key(|(metric, ..)| *metric)?;
    Some((address, interface))
}

/// Destination, its prefix, source, its prefix, next hop, metric, references, use, flags, interface.
fn gateway_v6(table: &str) -> Option<(IpAddr, String)> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |index: usize| u128::from_str_radix(fields.get(index)?, 16).ok();
        let flags = hex(8)? as u32;
        let is_default = hex(0)? == 0 && hex(1)? == 0 && flags & BY_GATEWAY == BY_GATEWAY;
        let address = IpAddr::from(hex(4)?.to_be_bytes());
        let interface = (*fields.get(9)?).to_owned();
        is_default.then_some((hex(5)?, address, interface))
    });
    let (_, address, interface) = routes.min_by_key(|(metric, ..)| *metric)?;
    Some((address, interface))
}

/// Asks the first hop, again and again.
#[derive(Debug)]
pub struct FirstHop {
    address: SocketAddr,
    way: Way,
    socket: Option<UdpSocket>,
    /// Tells our echoes from those of others.
    cookie: u64,
    sequence: u16,
}

/// Ports that should be closed.
const CLOSED: [u16; 2] = [9, 1];
/// How long the first answer is waited for on each way.
const FIRST: Duration = Duration::from_secs(1);
/// A lost SYN is sent again after a second: what takes longer is no round trip.
const LONGEST_TCP: Duration = Duration::from_millis(900);

impl FirstHop {
    /// Finds the default gateway and a way in which it answers.
    ///
    /// # Errors
    ///
    /// There is no gateway, or it does not answer.
    pub async fn find() -> Result<FirstHop, FirstHopError> {
        let gateway = default_gateway().ok_or(FirstHopError::NoGateway)?;
        FirstHop::towards(&gateway).await
    }

    /// Finds a way in which this gateway answers.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn towards(gateway: &Gateway) -> Result<FirstHop, FirstHopError> {
        let ways = [
            Way::IcmpDatagram,
            Way::IcmpRaw,
            Way::Tcp(CLOSED[0]),
            Way::Tcp(CLOSED[1]),
        ];
        for way in ways {
            let mut hop = match FirstHop::by(gateway, way) {
                Ok(hop) => hop,
                Err(error) => {
                    tracing::debug!("the first hop cannot be asked by {way:?}: {error}");
                    continue;
                }
            };
            match hop.probe(FIRST).await {
                Ok(Some(_)) => return Ok(hop),
                Ok(None) => tracing::debug!("the first hop does not answer by {way:?}"),
                Err(error) => tracing::debug!("the first hop cannot be asked by {way:?}: {error}"),
            }
        }
        let address = gateway.address;
        Err(FirstHopError::Silent { address })
    }

    /// How it is asked.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    fn by(gateway: &Gateway, way: Way) -> io::Result<FirstHop> {
        let port = match way {
            Way::Tcp(port) => port,
            _ => 0,
        };
        let address = match gateway.address {
            IpAddr::V4(v4) => SocketAddr::from((v4, port)),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, gateway.scope).into(),
        };
        let socket = match way {
            Way::IcmpDatagram => Some(icmp::open(address, false)?),
            Way::IcmpRaw => Some(icmp::open(address, true)?),
            Way::Tcp(_) => None,
        };
        Ok(FirstHop {
            address,
            way,
            socket,
            cookie: fastrand::u64(..),
            sequence: 0,
        })
    }

    /// Asks once; the round trip, or `None` if no answer came within `patience`. What comes later is ignored.
    ///
    /// # Errors
    ///
    /// The question could not be sent: the network is gone. Find the first hop anew.
    pub async fn probe(&mut self, patience: Duration) -> io::Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let begun = Instant::now();
        let answered = match &self.socket {
            Some(socket) => {
                let echo = Echo {
                    v6: self.address.is_ipv6(),
                    raw: self.way == Way::IcmpRaw,
                    cookie: self.cookie,
                    sequence: self.sequence,
                };
                tokio::time::timeout(patience, echo.ask(socket)).await
            }
            None => {
                let patience = patience.min(LONGEST_TCP);
                tokio::time::timeout(patience, refused(self.address)).await
            }
        };
        match answered {
            Ok(Ok(())) => Ok(Some(begun.elapsed())),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

/// Ready when the other side has refused the connection, or against all expectation accepted it.
async fn refused(address: SocketAddr) -> io::Result<()> {
    match TcpStream::connect(address).await {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// One echo request and its answer.
struct Echo {
    v6: bool,
    raw: bool,
    cookie: u64,
    sequence: u16,
}

/// Type, code, checksum, identifier, sequence, cookie.
const ECHO: usize = 16;

impl Echo {
    async fn ask(&self, socket: &UdpSocket) -> io::Result<()> {
        match socket.send(&self.request()).await {
            Ok(_) => {}
            // An error that an earlier question had left on the socket: this one is just lost.
            Err(error) if error.kind() == io::ErrorKind::HostUnreachable => {}
            Err(error) => return Err(error),
        }
        let mut buffer = [0; 512];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if self.is_answered_by(&buffer[..length]) {
                return Ok(());
            }
        }
    }

    fn request(&self) -> [u8; ECHO] {
        let mut packet = [0; ECHO];
        packet[0] = if self.v6 { 128 } else { 8 };
        packet[4..6].copy_from_slice(&(self.cookie as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        packet[8..].copy_from_slice(&self.cookie.to_be_bytes());
        // That of IPv6 covers the addresses, too; the kernel writes it.
        if !self.v6 {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    fn is_answered_by(&self, mut packet: &[u8]) -> bool {
        // A raw IPv4 socket delivers the IP header, too.
        if self.raw && !self.v6 {
            let header = packet
                .first()
                .map_or(0, |first| usize::from(first & 0xf) * 4);
            packet = packet.get(header..).unwrap_or_default();
        }
        let reply = if self.v6 { 129 } else { 0 };
        packet.len() >= ECHO
            && packet[0] == reply
            && packet[6..8] == self.sequence.to_be_bytes()
            && packet[8..ECHO] == self.cookie.to_be_bytes()
    }
}

/// The ones' complement of the ones' complement sum of 16-bit words.
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(target_os = "linux")]
mod icmp {
    use std::io;
    use std::net::SocketAddr;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
    use tokio::net::UdpSocket;

    /// A socket of datagrams is a socket of datagrams to the runtime, whatever the protocol.
    pub(super) fn open(address: SocketAddr, raw: bool) -> io::Result<UdpSocket> {
        let (family, protocol) = match address {
            SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let kind = if raw {
            SocketType::RAW
        } else {
            SocketType::DGRAM
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, kind, flags, Some(protocol))?;
        rustix::net::connect(&socket, &address)?;
        UdpSocket::from_std(socket.into())
    }
}

#[cfg(not(target_os = "linux"))]
mod icmp {
    use std::io;
    use std::net::SocketAddr;

    use tokio::net::UdpSocket;

    pub(super) fn open(_address: SocketAddr, _raw: bool) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_best_default_route_is_found() {
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
            wlan0 00000000 0101A8C0 0003 0 0 600 00000000 0 0 0\n\
            eth0 00000000 010200C0 0003 0 0 100 00000000 0 0 0\n\
            tun0 00000000 00000000 0001 0 0 50 00000000 0 0 0\n\
            tun0 00000000 0100000A 0003 0 0 0 00000080 0 0 0\n\
            eth1 00000000 0100010A 0002 0 0 10 00000000 0 0 0\n\
            eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        let found = gateway_v4(table).unwrap();
        assert_eq!(
            found,
            (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), "eth0".to_owned())
        );
        assert_eq!(gateway_v4("Iface Destination\nwwan0 00000000\n"), None);
    }

    #[test]
    fn the_best_default_route_of_ipv6_is_found() {
        let zero = "00000000000000000000000000000000";
        let table = format!(
            "fd000000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n\
             {zero} 00 {zero} 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003 eth0\n\
             {zero} 00 {zero} 00 fe800000000000000000000000000001 00000200 00000003 00000000 00450003 wlan0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n"
        );
        let (address, interface) = gateway_v6(&table).unwrap();
        assert_eq!(address, "fe80::1".parse::<IpAddr>().unwrap());
        assert_eq!(interface, "wlan0");
    }

    #[test]
    fn checksums_are_those_of_the_internet() {
        // The example of RFC 1071, whose sum is ddf2.
        let sum = checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum, !0xddf2);
    }

    fn loopback(address: IpAddr) -> Gateway {
        Gateway {
            address,
            interface: "lo".into(),
            scope: 0,
        }
    }

    /// Each way that this machine allows, to this machine itself.
    #[tokio::test]
    async fn the_round_trip_is_taken_on_every_way() {
        let all = [Way::IcmpDatagram, Way::IcmpRaw, Way::Tcp(9)];
        for address in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            for way in all {
                let mut hop = match FirstHop::by(&loopback(address), way) {
                    Ok(hop) => hop,
                    Err(error) => {
                        eprintln!("SKIPPED: {way:?} to {address}: {error}");
                        continue;
                    }
                };
                for _ in 0..3 {
                    match hop.probe(Duration::from_secs(30)).await {
                        Ok(answer) => assert!(answer.is_some() || way == Way::Tcp(9), "{way:?}"),
                        // A machine without IPv6.
                        Err(error) => eprintln!("SKIPPED: {way:?} to {address}: {error}"),
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_way_that_answers_is_found() {
        let gateway = loopback(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut hop = FirstHop::towards(&gateway).await.unwrap();
        assert!(hop.probe(Duration::from_secs(30)).await.unwrap().is_some());
    }

    /// A gateway in our own hands: first it says what does not count, then nothing.
    #[tokio::test]
    async fn only_the_answer_to_this_question_counts() {
        let gateway = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(gateway.local_addr().unwrap()).await.unwrap();
        let mut hop = FirstHop {
            address: gateway.local_addr().unwrap(),
            way: Way::IcmpDatagram,
            socket: Some(socket),
            cookie: 7,
            sequence: u16::MAX,
        };
        let mut buffer = [0; 64];
        let serve = async {
            let (length, from) = gateway.recv_from(&mut buffer).await.unwrap();
            let request = buffer[..length].to_vec();
            assert_eq!((length, request[0], checksum(&request)), (ECHO, 8, 0));
            let mut other_sequence = request.clone();
            (other_sequence[0], other_sequence[7]) = (0, 99);
            let mut other_program = request.clone();
            (other_program[0], other_program[15]) = (0, 99);
            for wrong in [&request[..], &other_sequence, &other_program, &[0; 3], &[]] {
                gateway.send_to(wrong, from).await.unwrap();
            }
            // Not answered yet: it waits for the right one.
            let mut right = request;
            right[0] = 0;
            gateway.send_to(&right, from).await.unwrap();
        };
        let (answer, ()) = tokio::join!(hop.probe(Duration::from_secs(60)), serve);
        assert!(answer.unwrap().is_some());
        let silent = hop.probe(Duration::from_millis(1)).await.unwrap();
        assert_eq!(silent, None);
    }

    /// Two network namespaces made for the test: this unit, and the gateway at the other end of a cable.
    #[cfg(target_os = "linux")]
    struct Cable {
        unit: String,
        gateway: String,
    }

    #[cfg(target_os = "linux")]
    impl Cable {
        fn lay() -> Option<Cable> {
            let number = std::process::id();
            let cable = Cable {
                unit: format!("c2c-unit-{number}"),
                gateway: format!("c2c-gate-{number}"),
            };
            let Cable { unit, gateway } = &cable;
            let laid = ip(&format!("netns add {unit}"))
                && ip(&format!("netns add {gateway}"))
                && ip(&format!(
                    "-n {unit} link add v0 type veth peer name v1 netns {gateway}"
                ))
                && ip(&format!("-n {unit} addr add 10.77.0.2/24 dev v0"))
                && ip(&format!("-n {gateway} addr add 10.77.0.1/24 dev v1"))
                && ip(&format!("-n {gateway} link set v1 up"))
                && ip(&format!("-n {unit} link set v0 up"))
                && ip(&format!("-n {unit} route add default via 10.77.0.1"));
            laid.then_some(cable)
        }
    }

    #[cfg(target_os = "linux")]
    impl Drop for Cable {
        fn drop(&mut self) {
            ip(&format!("netns del {}", self.unit));
            ip(&format!("netns del {}", self.gateway));
        }
    }

    #[cfg(target_os = "linux")]
    fn ip(arguments: &str) -> bool {
        std::process::Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .is_ok_and(|output| output.status.success())
    }

    #[cfg(target_os = "linux")]
    const INSIDE: &str = "C2C_TEST_INSIDE_NAMESPACE";

    /// The gateway of a network of our own is found and asked, until its cable is pulled.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_gateway_is_found_and_asked() {
        let Some(cable) = Cable::lay() else {
            eprintln!("SKIPPED: network namespaces need root and iproute2");
            return;
        };
        let program = std::env::current_exe().unwrap();
        let output = std::process::Command::new("ip")
            .args(["netns", "exec", &cable.unit])
            .arg(program)
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("pace::first_hop::tests::inside_the_namespace")
            .env(INSIDE, &cable.gateway)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}{said}");
        assert!(told.contains("1 passed"), "{told}");
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    #[ignore = "runs in the namespace that another test makes"]
    async fn inside_the_namespace() {
        let Ok(gateway_namespace) = std::env::var(INSIDE) else {
            return;
        };
        let gateway = default_gateway().unwrap();
        assert_eq!(
            (
                gateway.address.to_string().as_str(),
                gateway.interface.as_str()
            ),
            ("10.77.0.1", "v0")
        );
        // A port that nobody listens on answers as well as a ping.
        let mut by_tcp = FirstHop::by(&gateway, Way::Tcp(CLOSED[0])).unwrap();
        let patience = Duration::from_secs(60);
        assert!(by_tcp.probe(patience).await.unwrap().is_some());
        let mut hop = FirstHop::find().await.unwrap();
        assert_eq!(
            hop.way(),
            Way::IcmpRaw,
            "root may, and the namespace allows no other"
        );
        assert!(hop.probe(patience).await.unwrap().is_some());
        // Where the system lets everybody ping, no privilege is used.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        let mut hop = FirstHop::find().await.unwrap();
        assert_eq!(hop.way(), Way::IcmpDatagram);
        assert!(hop.probe(patience).await.unwrap().is_some());
        assert!(ip(&format!("-n {gateway_namespace} link set v1 down")));
        let answer = hop.probe(Duration::from_millis(300)).await;
        assert!(!matches!(answer, Ok(Some(_))), "{answer:?}");
        assert!(ip("link set v0 down"));
        let error = FirstHop::find().await.unwrap_err();
        assert!(matches!(error, FirstHopError::NoGateway), "{error}");
    }
}
