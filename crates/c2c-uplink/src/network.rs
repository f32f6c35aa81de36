//! Notices when an address or a route of this unit changes: sockets on a lost address are dead although nothing says so.
//!
//! Linux tells by netlink, at once; elsewhere the addresses are looked at every two seconds, where that is possible.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::pace::network_key;

/// The network as far as this unit can see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Snapshot {
    addresses: BTreeSet<IpAddr>,
    routes: Vec<String>,
    /// What the network is known by: the gateways of the default routes.
    gateways: Vec<String>,
}

impl Snapshot {
    fn key(&self) -> Option<String> {
        network_key(self.gateways.iter().map(String::as_str))
    }
}

/// After the first word of a change, more follows within this time: an address comes with its routes.
const SETTLE: Duration = Duration::from_millis(200);

/// Tells the link of every change, and gives up the transfers whose address is gone. Until the shutdown.
pub(crate) async fn watch(engine: Arc<Engine>) {
    let mut changes = platform::Changes::open();
    let mut before = look().await;
    engine.helm.network.send_replace(before.key());
    loop {
        tokio::select! {
            _ = engine.stop.cancelled() => return,
            () = changes.next() => {}
        }
        // Real time: the kernel does not run on our clock.
        tokio::time::sleep(SETTLE).await;
        let now = look().await;
        if now == before {
            continue;
        }
        tracing::info!("the network changed");
        let lost: BTreeSet<IpAddr> = before
            .addresses
            .difference(&now.addresses)
            .copied()
            .collect();
        before = now;
        let key = before.key();
        engine
            .helm
            .network
            .send_if_modified(|known| std::mem::replace(known, key.clone()) != key);
        if !lost.is_empty() {
            engine.addresses_lost.send_replace(lost);
        }
        engine.link.network_changed().await;
    }
}

async fn look() -> Snapshot {
    tokio::task::spawn_blocking(platform::snapshot)
        .await
        .unwrap_or_default()
}

#[cfg(target_os = "linux")]
mod platform {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use tokio::net::UnixDatagram;

    use super::Snapshot;

    /// Links, IPv4 and IPv6 addresses and routes: the RTMGRP_* bits of rtnetlink(7).
    const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

    /// The kernel's word that something changed. A netlink socket is read like any socket of datagrams; this type of the
    /// runtime does just that.
    pub(super) struct Changes(Option<UnixDatagram>);

    impl Changes {
        pub(super) fn open() -> Changes {
            let opened = open();
            if let Err(error) = &opened {
                tracing::debug!("no netlink ({error}), looking every two seconds");
            }
            Changes(opened.ok())
        }

        /// Waits for the next change, or for the next time to look.
        pub(super) async fn next(&mut self) {
            let Some(socket) = &self.0 else {
                return tokio::time::sleep(Duration::from_secs(2)).await;
            };
            if socket.readable().await.is_err() {
                self.0 = None;
                return;
            }
            // What exactly changed is looked up afresh: the messages only wake us, even those that overflowed.
            let mut buffer = [0u8; 8192];
            loop {
                match socket.try_recv(&mut buffer) {
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                    Err(error) => {
                        tracing::debug!("netlink: {error}");
                        return;
                    }
                }
            }
        }
    }

    fn open() -> std::io::Result<UnixDatagram> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        UnixDatagram::from_std(socket.into())
    }

    pub(super) fn snapshot() -> Snapshot {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mut snapshot = Snapshot::default();
        let neighbours = read("/proc/net/arp");
        // Interface, destination, gateway and mask; the counters between them change by themselves.
        for line in read("/proc/net/route").lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let kept = [0, 1, 2, 7]
                .iter()
                .filter_map(|&index| fields.get(index).copied());
            snapshot.routes.push(kept.collect::<Vec<_>>().join(" "));
            if fields.get(1) == Some(&"00000000")
                && let (Some(interface), Some(gateway)) = (fields.first(), fields.get(2))
            {
                let hardware = hardware_of(gateway, interface, &neighbours);
                snapshot
                    .gateways
                    .push(format!("{interface} {gateway} {hardware}"));
            }
        }
        for line in read("/proc/net/ipv6_route").lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let kept = [0, 1, 4, 9]
                .iter()
                .filter_map(|&index| fields.get(index).copied());
            snapshot.routes.push(kept.collect::<Vec<_>>().join(" "));
        }
        for line in read("/proc/net/if_inet6").lines() {
            let digits = line.split_whitespace().next().unwrap_or_default();
            if let Ok(bits) = u128::from_str_radix(digits, 16) {
                snapshot
                    .addresses
                    .insert(IpAddr::V6(Ipv6Addr::from_bits(bits)));
            }
        }
        // Each address stands before a line that calls it a local host.
        let trie = read("/proc/net/fib_trie");
        let mut last = None;
        for line in trie.lines() {
            if let Some(address) = line.trim().strip_prefix("|-- ") {
                last = address.parse::<Ipv4Addr>().ok();
            } else if line.contains("/32 host LOCAL")
                && let Some(address) = last
            {
                snapshot.addresses.insert(IpAddr::V4(address));
            }
        }
        snapshot
    }

    /// The hardware address of a gateway, given as the kernel writes it (hexadecimal, in memory order); empty if it is not known.
    fn hardware_of<'a>(gateway: &str, interface: &str, neighbours: &'a str) -> &'a str {
        let Ok(bits) = u32::from_str_radix(gateway, 16) else {
            return "";
        };
        let address = Ipv4Addr::from(bits.to_ne_bytes()).to_string();
        neighbours
            .lines()
            .find_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let same = fields.first() == Some(&address.as_str())
                    && fields.last().copied() == Some(interface);
                fields.get(3).copied().filter(|_| same)
            })
            .unwrap_or_default()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_gateway_is_known_by_its_hardware() {
            let neighbours = "IP address       HW type     Flags       HW address            Mask     Device\n\
                              192.168.1.1      0x1         0x2         aa:bb:cc:dd:ee:ff     *        wlan0\n";
            let gateway = format!("{:08X}", u32::from_ne_bytes([192, 168, 1, 1]));
            assert_eq!(
                hardware_of(&gateway, "wlan0", neighbours),
                "aa:bb:cc:dd:ee:ff"
            );
            assert_eq!(hardware_of(&gateway, "eth0", neighbours), "");
            assert_eq!(hardware_of("x", "wlan0", neighbours), "");
        }

        #[test]
        fn loopback_is_among_the_addresses() {
            assert!(
                snapshot()
                    .addresses
                    .contains(&IpAddr::V4(Ipv4Addr::LOCALHOST))
            );
        }

        /// An address of its own comes and goes in a network namespace made for the test, and the kernel's word arrives.
        #[tokio::test]
        async fn a_new_address_is_told_at_once() {
            let ip = |args: &[&str]| {
                std::process::Command::new("ip")
                    .args(args)
                    .output()
                    .is_ok_and(|output| output.status.success())
            };
            let mut changes = Changes::open();
            if changes.0.is_none() || !ip(&["addr", "add", "127.77.0.1/32", "dev", "lo"]) {
                eprintln!(
                    "SKIPPED: adding an address to the loopback interface needs root and iproute2"
                );
                return;
            }
            let told = tokio::time::timeout(Duration::from_secs(20), changes.next()).await;
            let with = snapshot();
            assert!(ip(&["addr", "del", "127.77.0.1/32", "dev", "lo"]));
            assert!(told.is_ok(), "netlink said nothing");
            assert!(
                with.addresses
                    .contains(&IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1)))
            );
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::time::Duration;

    use super::Snapshot;

    pub(super) struct Changes;

    impl Changes {
        pub(super) fn open() -> Changes {
            Changes
        }

        pub(super) async fn next(&mut self) {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// The address that a packet to the internet would leave from, which changes with the network. Nothing is sent.
    pub(super) fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (bind, to) in [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")] {
            let address = std::net::UdpSocket::bind(bind)
                .and_then(|socket| socket.connect(to).and_then(|()| socket.local_addr()));
            if let Ok(address) = address {
                snapshot.addresses.insert(address.ip());
            }
        }
        snapshot
    }
}
