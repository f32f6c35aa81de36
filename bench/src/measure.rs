//! Running one command and what it cost.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;

use crate::Failure;

/// What to run, and where.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(String, OsString)>,
    pub(crate) dir: PathBuf,
    /// Only on this core, so that client and server do not share one.
    pub(crate) core: Option<usize>,
    /// In this network namespace.
    pub(crate) namespace: Option<String>,
    /// What it says is kept here.
    pub(crate) log: Option<PathBuf>,
    /// Killed after this, for work that is measured by what went through.
    pub(crate) limit: Option<Duration>,
}

/// What in the environment would change where a client connects to, or whom it trusts.
const SURROUNDINGS: [&str; 12] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "AWS_CA_BUNDLE",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];

/// What one run cost, as the system accounts for the finished process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Cost {
    pub(crate) wall: f64,
    /// User and system seconds.
    pub(crate) cpu: f64,
    /// Peak resident memory, MiB.
    pub(crate) memory: f64,
    pub(crate) ended_well: bool,
    /// The limit was reached.
    pub(crate) cut_off: bool,
}

impl Task {
    pub(crate) fn new(program: impl Into<OsString>, dir: &Path) -> Task {
        Task {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: dir.to_owned(),
            core: None,
            namespace: None,
            log: None,
            limit: None,
        }
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Task {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Task {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    fn command(&self) -> Command {
        // Each of these becomes the program itself, so that what is waited for is the program.
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(OsString::from));
        }
        if let Some(core) = self.core {
            words.extend(["taskset".into(), "-c".into(), core.to_string().into()]);
        }
        words.push(self.program.clone());
        words.extend(self.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        // Where to go and whom to trust is the bench's to say.
        for name in SURROUNDINGS {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end or its limit. Its last words are the error if it fails.
    pub(crate) fn run(&self) -> Result<(Cost, String), Failure> {
        self.run_until(|| Ok(false))
    }

    /// The same, and it is killed as soon as `enough` says so, which is asked every few milliseconds.
    pub(crate) fn run_until(
        &self,
        mut enough: impl FnMut() -> Result<bool, Failure>,
    ) -> Result<(Cost, String), Failure> {
        let failed = |source: io::Error| Failure::Io {
            what: format!("running {}", self.program.to_string_lossy()),
            source,
        };
        let log = match &self.log {
            Some(path) => std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path),
            None => tempfile::tempfile(),
        }
        .map_err(failed)?;
        let mut command = self.command();
        command
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log.try_clone().map_err(failed)?)
            .process_group(0);
        let begun = Instant::now();
        let child = command.spawn().map_err(failed)?;
        let pid = child.id() as libc::pid_t;
        let mut cut_off = false;
        let mut trouble = None;
        let (status, usage) = loop {
            if let Some(ended) = wait(pid).map_err(failed)? {
                break ended;
            }
            let over = self.limit.is_some_and(|limit| begun.elapsed() >= limit);
            // Whoever cannot be asked any more leaves nothing running.
            let asked = if cut_off { Ok(false) } else { enough() };
            if !cut_off && (over || !matches!(asked, Ok(false))) {
                cut_off = true;
                if let Some(pid) = Pid::from_raw(pid) {
                    // With whatever it started; it may have ended this very moment.
                    let _ = kill_process_group(pid, Signal::KILL);
                }
            }
            trouble = trouble.or(asked.err());
            std::thread::sleep(Duration::from_millis(2));
        };
        if let Some(trouble) = trouble {
            return Err(trouble);
        }
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        let cost = Cost {
            wall: begun.elapsed().as_secs_f64(),
            cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            memory: usage.ru_maxrss as f64 / 1024.0,
            ended_well: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            cut_off,
        };
        Ok((cost, tail(log)))
    }

    /// Starts it and leaves it running; its output is for the caller.
    pub(crate) fn start(&self) -> Result<std::process::Child, Failure> {
        self.command()
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|source| Failure::Io {
                what: format!("starting {}", self.program.to_string_lossy()),
                source,
            })
    }
}

/// What it said last.
fn tail(mut log: std::fs::File) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    let end = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let read = log
        .seek(SeekFrom::Start(end.saturating_sub(600)))
        .and_then(|_| log.read_to_end(&mut text));
    match read {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => error.to_string(),
    }
}

/// The end of a child, if it has ended, with what it used.
#[expect(
    unsafe_code,
    reason = "the standard library does not tell what a child used"
)]
fn wait(pid: libc::pid_t) -> io::Result<Option<(libc::c_int, libc::rusage)>> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live variables of the right types; a zeroed rusage is a valid one.
    let (ended, usage) = unsafe {
        let ended = libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr());
        (ended, usage.assume_init())
    };
    match ended {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(Some((status, usage))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_client_started_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("pid");
        let script = "sleep 1000 & echo $! > pid.new; mv pid.new pid; wait";
        let task = Task::new("sh", dir.path()).args(["-c", script]);
        let (cost, _) = task.run_until(|| Ok(told.exists())).unwrap();
        assert!(cost.cut_off && !cost.ended_well);
        let pid = std::fs::read_to_string(&told).unwrap();
        // Whoever inherits it may take a while to hear of it.
        let alive = || {
            std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
                .is_ok_and(|stat| !stat.contains(") Z "))
        };
        let begun = Instant::now();
        while alive() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{pid} lives on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_client_costs_what_the_system_says() {
        let dir = tempfile::tempdir().unwrap();
        let run = |script: &str| Task::new("sh", dir.path()).args(["-c", script]).run();
        let (cost, words) =
            run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exit 3").unwrap();
        assert!(!cost.ended_well && !cost.cut_off);
        assert!(
            cost.cpu > 0.0 && cost.memory > 0.0 && cost.wall > 0.0,
            "{cost:?}"
        );
        assert_eq!(words.trim(), "done");
        assert!(Task::new("no such program", dir.path()).run().is_err());
        let broken = Task::new("sleep", dir.path())
            .args(["1000"])
            .run_until(|| Err(Failure::Pairing("the sink is gone".into())));
        assert!(matches!(broken, Err(Failure::Pairing(_))));
    }
}
