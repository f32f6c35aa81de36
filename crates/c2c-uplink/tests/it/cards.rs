//! Cards that are taken out, come back somewhere else, or have another card in their place. Each is an ext4 file system in an image
//! of its own, mounted for the test.
//!
//! Needs root, loop devices and e2fsprogs; where they are missing it says so and proves nothing.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use c2c_simulator::{Effect, EndpointName, Fault, Simulator};
use c2c_uplink::queue::{Hold, Media, MediaId, MediaState};
use c2c_uplink::{Event, Transfers, Uplink};

use crate::bench::{Bench, PATIENCE, bytes, media, reaches};

const CHUNK: u64 = 64 * 1024;

async fn bench() -> Bench {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(CHUNK);
    Bench::paced(sim, 50.0).await
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{program} {}: {words}", args.join(" ")))
}

/// A card, in a slot or on the table.
struct Card {
    image: PathBuf,
    slot: Option<PathBuf>,
}

impl Card {
    /// A formatted card in a slot; or why there is none to be had on this machine.
    fn new(image: PathBuf, slot: &Path) -> Result<Card, String> {
        File::create(&image).unwrap().set_len(8 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
        let mut card = Card { image, slot: None };
        card.insert(slot)?;
        Ok(card)
    }

    fn insert(&mut self, slot: &Path) -> Result<(), String> {
        std::fs::create_dir_all(slot).unwrap();
        let (image, slot_name) = (self.image.to_str().unwrap(), slot.to_str().unwrap());
        run("mount", &["-t", "ext4", "-o", "loop", image, slot_name])?;
        self.slot = Some(slot.to_owned());
        Ok(())
    }

    /// Even while files on it are open, as people do it.
    fn take_out(&mut self) {
        if let Some(slot) = self.slot.take() {
            run("umount", &["-l", slot.to_str().unwrap()]).unwrap();
        }
    }

    /// A clip whose size and times are those of its namesake on any other card.
    fn clip(&self, size: u64, seed: u64) -> PathBuf {
        let path = self.slot.as_ref().unwrap().join("A001C001.mov");
        std::fs::write(&path, bytes(size, seed)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
        file.sync_all().unwrap();
        path
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let _ = run("umount", &["-l", slot.to_str().unwrap()]);
        }
    }
}

/// Waits, in real time, until the media is as it should be.
async fn becomes(uplink: &Uplink, id: MediaId, wanted: impl Fn(&Media) -> bool) -> Media {
    let becomes = async {
        loop {
            let now = media(uplink, id).await;
            if wanted(&now) {
                return now;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, becomes).await.unwrap()
}

fn is_away(media: &Media) -> bool {
    media.hold == Some(Hold::VolumeAway)
}

/// Taken out before anything was sent: it waits, without a request, and goes on from wherever the card is mounted then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_that_returns_elsewhere_is_found_there() {
    let bench = bench().await;
    let slots = [bench.dir.path().join("A"), bench.dir.path().join("B 2")];
    let mut card = match Card::new(bench.dir.path().join("a.img"), &slots[0]) {
        Ok(card) => card,
        Err(words) => return println!("skipped: {words}"),
    };
    let clip = card.clip(3 * CHUNK, 1);
    let content = crate::bench::sha256(&clip);
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let id = uplink.add([&clip]).await.unwrap()[0].id;
    card.take_out();
    uplink.start().await;
    becomes(&uplink, id, is_away).await;
    bench
        .pass(Duration::from_secs(3600), Duration::from_secs(5))
        .await;
    let waiting = media(&uplink, id).await;
    assert!(is_away(&waiting) && waiting.tries == 0, "{waiting:#?}");
    assert_eq!(bench.creates("A001C001.mov"), 0);

    card.insert(&slots[1]).unwrap();
    let delivered = reaches(&uplink, id, MediaState::Delivered).await;
    assert_eq!(delivered.path, slots[1].join("A001C001.mov"));
    assert_eq!(bench.delivered("A001C001.mov").await.sha256, content);
    assert_eq!(bench.creates("A001C001.mov"), 1);
    uplink.shutdown().await.unwrap();
}

/// Taken out in the middle: what was sent stays sent, and the rest follows when the card is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_that_leaves_in_the_middle_goes_on_where_it_was() {
    let bench = bench().await;
    let slots = [bench.dir.path().join("A"), bench.dir.path().join("B")];
    let mut card = match Card::new(bench.dir.path().join("a.img"), &slots[0]) {
        Ok(card) => card,
        Err(words) => return println!("skipped: {words}"),
    };
    let clip = card.clip(12 * CHUNK, 1);
    let content = crate::bench::sha256(&clip);
    // The last ones wait for an answer until the card is out.
    let slow = Fault {
        after: 3,
        ..Fault::new(
            EndpointName::PutChunk,
            Effect::Delay(Duration::from_millis(500)),
        )
    };
    let slow = bench.sim.admin().add_fault(slow);
    let one = bench.uplink().transfers(Transfers::Fixed(1));
    let uplink = bench.working_as(one).await;
    let mut events = uplink.events();
    let id = uplink.add([&clip]).await.unwrap()[0].id;
    while !matches!(events.recv().await.unwrap(), Event::ChunkSent { .. }) {}
    card.take_out();
    let left = becomes(&uplink, id, is_away).await;
    assert!(left.chunks_sent > 0 && left.chunks_sent < 12, "{left:#?}");
    bench.sim.admin().remove_fault(slow);
    card.insert(&slots[1]).unwrap();
    reaches(&uplink, id, MediaState::Delivered).await;
    let delivered = bench.delivered("A001C001.mov").await;
    assert_eq!(delivered.sha256, content);
    let puts = bench.puts(&delivered.asset_id);
    assert!(
        puts.len() == 12 && puts.values().all(|count| *count == 1),
        "{puts:?}"
    );
    assert_eq!(bench.creates("A001C001.mov"), 1);
    uplink.shutdown().await.unwrap();
}

/// Another card in the same slot, with a file of the same name, size and time: it is not what was added.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_card_in_the_same_slot_is_not_taken_for_the_first() {
    let bench = bench().await;
    let slot = bench.dir.path().join("A");
    let mut first = match Card::new(bench.dir.path().join("a.img"), &slot) {
        Ok(card) => card,
        Err(words) => return println!("skipped: {words}"),
    };
    let clip = first.clip(3 * CHUNK, 1);
    let content = crate::bench::sha256(&clip);
    let uplink = bench.uplink().open().await.unwrap();
    bench.pair(&uplink).await;
    let id = uplink.add([&clip]).await.unwrap()[0].id;
    first.take_out();
    let mut second = Card::new(bench.dir.path().join("b.img"), &slot).unwrap();
    second.clip(3 * CHUNK, 2);
    uplink.start().await;
    becomes(&uplink, id, is_away).await;
    bench
        .pass(Duration::from_secs(3600), Duration::from_secs(5))
        .await;
    assert!(is_away(&media(&uplink, id).await));
    assert_eq!(bench.creates("A001C001.mov"), 0);

    // What is on the second card is a media of its own.
    let other = uplink.add([&clip]).await.unwrap()[0].id;
    assert_ne!(other, id);
    reaches(&uplink, other, MediaState::Delivered).await;
    assert!(is_away(&media(&uplink, id).await));
    second.take_out();
    first.insert(&slot).unwrap();
    reaches(&uplink, id, MediaState::Delivered).await;
    let there = |sim: &c2c_simulator::Snapshot<'_>| sim.delivered().len() == 2;
    assert!(bench.sim.admin().wait_until_within(PATIENCE, there).await);
    let receipt = uplink.receipt(id).await.unwrap().unwrap();
    let delivered = bench.sim.admin().delivered();
    let ours = delivered
        .iter()
        .find(|delivered| delivered.asset_id == receipt.asset_id)
        .unwrap();
    assert_eq!(ours.sha256, content);
    uplink.shutdown().await.unwrap();
}
