//! Nothing of an emulated link outlives its process.

#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// A hang is a failure, not a wait.
const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let began = Instant::now();
    while !true_now() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

fn runs_thread(pid: u32, name: &str) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .any(|thread| thread.trim() == name)
}

#[test]
fn namespaces_end_with_their_process_however_it_ends() {
    let has_ip = Command::new("ip").arg("-Version").output().is_ok();
    if !geteuid().is_root() || !has_ip || std::fs::File::open("/dev/net/tun").is_err() {
        println!("skipped: this needs root, /dev/net/tun and iproute2");
        return;
    }
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_c2c-bench"))
            .args(["link", "lteclean", "--seconds", "600"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let names = ["near", "far"]
            .map(|end| PathBuf::from(format!("/run/netns/c2c-{end}-{}-0", program.id())));
        until("the link coming up", || {
            assert_eq!(program.try_wait().unwrap(), None);
            runs_thread(program.id(), "link-down")
        });
        assert!(names.iter().all(|name| name.exists()));
        let pid = Pid::from_child(&program);
        kill_process(pid, signal).unwrap();
        program.wait().unwrap();
        until("the end of the namespaces", || {
            names.iter().all(|name| !name.exists())
        });
    }
}
