//! Power cuts: the state and the media lie on a file system of their own that stops dead at random moments. What was not flushed
//! by then is gone, and the program goes on from what is left.
//!
//! The file system is ext4 in an image on a loop device. Its `shutdown` call, made without flushing the journal, lets nothing more
//! through to the device from one instant to the next, and forgets what was only in memory: a power cut, at a point in time that no
//! copying of the image could have. Then the program is killed, the image is attached as another device, its journal is replayed
//! and it is checked.
//!
//! Needs root, loop devices and e2fsprogs; where they are missing it says so and proves nothing.

#![expect(clippy::unwrap_used, reason = "a test says what broke by panicking")]
#![cfg(target_os = "linux")]

mod support;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use c2c_simulator::{Admin, Effect, EndpointName, Fault};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::process::Signal;
use support::books::Books;
use support::ledger::{Ledger, arrived};
use support::{Ended, Place, Running, service};

const CHUNK: u64 = 128 << 10;
/// Parts of the media that are on the way during the cuts.
const PARTS: usize = 41 + 29 + 5 + 3;

/// A file system that can lose its power.
struct Disk {
    dir: tempfile::TempDir,
    device: Option<String>,
    mounted: bool,
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{program} {}: {words}", args.join(" ")))
}

impl Disk {
    /// A fresh one, mounted; or why there is none to be had on this machine.
    fn new() -> Result<Disk, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may mount a file system".to_owned());
        }
        let mut disk = Disk {
            dir: tempfile::tempdir().unwrap(),
            device: None,
            mounted: false,
        };
        let image = disk.image();
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        std::fs::create_dir(disk.mount_point()).unwrap();
        run("mkfs.ext4", &["-q", "-F", path(&image)])?;
        disk.attach()?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn attach(&mut self) -> Result<(), String> {
        let image = self.image();
        // Without direct I/O where the file system below has none: the cut happens above the device all the same.
        let device = run("losetup", &["-f", "--show", "--direct-io=on", path(&image)])
            .or_else(|_| run("losetup", &["-f", "--show", path(&image)]))?;
        if let Some(old) = self.device.replace(device) {
            run("losetup", &["-d", &old])?;
        }
        Ok(())
    }

    fn mount(&mut self) -> Result<(), String> {
        let device = self.device.clone().unwrap();
        // Nothing reaches the device on its own for five minutes: only what the program flushes.
        run(
            "mount",
            &[
                "-t",
                "ext4",
                "-o",
                "commit=300",
                &device,
                path(&self.mount_point()),
            ],
        )?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        let mut last = Ok(String::new());
        for _ in 0..100 {
            last = run("umount", &[path(&self.mount_point())]);
            if last.is_ok() {
                self.mounted = false;
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        last.map(drop)
    }

    /// From now on nothing reaches the device.
    fn cut(&self) {
        let root = File::open(self.mount_point()).unwrap();
        shut_down(&root).unwrap();
        let write = std::fs::write(self.mount_point().join("after"), "x");
        assert!(write.is_err(), "the file system goes on after the cut");
    }

    /// The power is back: another device number, a replayed journal, a clean file system.
    fn replug(&mut self) {
        self.unmount().unwrap();
        self.attach().unwrap();
        self.mount().unwrap();
        self.unmount().unwrap();
        run("e2fsck", &["-fn", path(&self.image())]).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted && self.unmount().is_err() {
            let _ = run("umount", &["-l", path(&self.mount_point())]);
        }
        if let Some(device) = self.device.take() {
            let _ = run("losetup", &["-d", &device]);
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[expect(unsafe_code, reason = "there is no safe wrapper for this call of ext4")]
fn shut_down(root: &File) -> rustix::io::Result<()> {
    /// `EXT4_IOC_SHUTDOWN`, as in the kernel's `fs/ext4/ext4.h`; the kernel reads one `u32` through the pointer.
    const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);
    /// `EXT4_GOING_FLAGS_NOLOGFLUSH`
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the opcode is the one of the call, and its argument is a pointer to a `u32`, which `Setter` passes.
    unsafe { ioctl(root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
}

/// The database as it lies there is sound.
fn sound(state: &Path) {
    let copy = tempfile::tempdir().unwrap();
    for name in ["queue.db", "queue.db-wal"] {
        if state.join(name).exists() {
            std::fs::copy(state.join(name), copy.path().join(name)).unwrap();
        }
    }
    let db = rusqlite::Connection::open(copy.path().join("queue.db")).unwrap();
    let words: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(words, "ok");
    let mut foreign = db.prepare("PRAGMA foreign_key_check").unwrap();
    assert!(foreign.query([]).unwrap().next().unwrap().is_none());
}

/// One unit that loses its power again and again.
struct Unit {
    disk: Disk,
    place: Place,
    admin: Admin,
    ledger: Ledger,
    /// Media whose `add` had returned before a cut.
    accepted: Vec<String>,
    dice: Dice,
    cuts: usize,
}

/// A small seeded generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

impl Unit {
    fn files(&self, prefix: &str, sizes: &[usize]) -> Vec<String> {
        let make = |(n, size): (usize, &usize)| {
            let name = format!("{prefix}{n}.mov");
            self.place.file(&name, *size);
            name
        };
        sizes.iter().enumerate().map(make).collect()
    }

    /// The cut, with the program running or not; then what is left must be whole, and hold everything that was told before.
    async fn cut(&mut self, running: Option<Running>) -> Option<Ended> {
        let unflushed = self.disk.mount_point().join("unflushed");
        let idle = running.is_none();
        if idle {
            std::fs::write(&unflushed, "never flushed").unwrap();
        }
        let told = running.as_ref().map(Running::told).unwrap_or_default();
        self.disk.cut();
        self.cuts += 1;
        let mut ended = None;
        if let Some(running) = running {
            running.signal(Signal::KILL);
            ended = Some(running.end().await);
        }
        self.disk.replug();
        assert!(
            !(idle && unflushed.exists()),
            "what was never flushed survived: this proves nothing"
        );
        sound(&self.place.state());
        let books = Books::read(&self.place.state()).await;
        assert!(books.paired, "the pairing is lost");
        books.keep_what_was_told(&told);
        for name in &self.accepted {
            assert!(
                books.media.contains_key(name),
                "{name} was accepted, and is lost"
            );
        }
        self.ledger.died(&self.admin, &books).await;
        self.place.run(&["status"]).await.exits(0);
        ended
    }

    /// Uploads, and loses power after a few more parts, between any two of them.
    async fn cut_while_uploading(&mut self) {
        let parts = arrived(&self.admin).len() + 1 + self.dice.below(4) as usize;
        assert!(
            parts <= PARTS,
            "too much arrived between two cuts for this to mean anything"
        );
        let running = self.place.start(&["upload"]);
        let wanted = |now: &c2c_simulator::Snapshot<'_>| {
            let sent = now.requests_for(EndpointName::PutChunk);
            let mut parts_there: Vec<_> = sent
                .filter(|request| request.status() == Some(200))
                .map(|request| (&request.asset_id, request.part))
                .collect();
            parts_there.sort();
            parts_there.dedup();
            parts_there.len() >= parts
        };
        let met = self
            .admin
            .wait_until_within(Duration::from_secs(60), wanted)
            .await;
        assert!(
            met,
            "no progress after {} cuts: {:?}",
            self.cuts,
            running.told()
        );
        // The moment is drawn by lot: anywhere between two events, not only just after one.
        std::thread::sleep(Duration::from_micros(self.dice.below(60_000)));
        self.cut(Some(running)).await;
    }

    /// Adds, and loses power meanwhile: all of them are there or none, and all if the program had said so.
    async fn cut_while_adding(&mut self, names: &[String]) {
        let args: Vec<&str> = std::iter::once("add")
            .chain(names.iter().map(String::as_str))
            .collect();
        let running = self.place.start(&args);
        std::thread::sleep(Duration::from_micros(self.dice.below(120_000)));
        let ended = self.cut(Some(running)).await.unwrap();
        let books = Books::read(&self.place.state()).await;
        let kept = names
            .iter()
            .filter(|name| books.media.contains_key(*name))
            .count();
        assert!(
            kept == 0 || kept == names.len(),
            "half of one add: {kept}: {ended:#?}"
        );
    }
}

async fn story(seed: u64) -> Result<usize, String> {
    let disk = Disk::new()?;
    let simulator = service(CHUNK).start().await.unwrap();
    let admin = simulator.admin().clone();
    // Slow enough that a cut finds parts in flight.
    let slow = Effect::SlowRead {
        bytes_per_sec: 8 * CHUNK,
    };
    admin.add_fault(Fault::new(EndpointName::PutChunk, slow));
    let place = Place::within(&disk.mount_point(), &simulator);
    let mut unit = Unit {
        disk,
        place,
        admin: admin.clone(),
        ledger: Ledger::default(),
        accepted: Vec::new(),
        dice: Dice(seed),
        cuts: 0,
    };
    let chunk = CHUNK as usize;
    let mut names = unit.files(
        "CLIP",
        &[41 * chunk - 5, 29 * chunk, 4 * chunk + 1, 20_000, 0, 999],
    );

    unit.place.run(&["pair"]).await.exits(0);
    unit.cut(None).await;

    let args: Vec<&str> = std::iter::once("add")
        .chain(names.iter().map(String::as_str))
        .collect();
    unit.place.run(&args).await.exits(0);
    unit.accepted.clone_from(&names);
    unit.cut(None).await;

    for _ in 0..4 {
        unit.cut_while_uploading().await;
    }
    let more = unit.files("MORE", &[chunk + 1, 50, 3_000]);
    unit.cut_while_adding(&more).await;

    let args: Vec<&str> = std::iter::once("upload")
        .chain(more.iter().map(String::as_str))
        .collect();
    unit.place.run(&args).await.exits(0);
    unit.place.run(&["upload"]).await.exits(0);
    names.extend(more);
    unit.accepted.clone_from(&names);
    unit.cut(None).await;
    let cost = unit.ledger.settle(&admin, &unit.place, &names).await;
    assert_eq!((cost.lost, cost.bytes_again), (0, 0));
    let _ = writeln!(
        std::io::stderr(),
        "power, seed {seed}: {} cuts, {} media, {} lost, {} parts in flight, {} bytes sent again",
        unit.cuts,
        names.len(),
        cost.lost,
        cost.in_flight,
        cost.bytes_again
    );
    simulator.shutdown().await;
    Ok(unit.cuts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_moment_loses_nothing_that_was_accepted() {
    for seed in [1, 20_260_731] {
        match story(seed).await {
            Ok(cuts) => assert_eq!(cuts, 8),
            Err(reason) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED: power cuts cannot be made here: {reason}"
                );
                return;
            }
        }
    }
}
