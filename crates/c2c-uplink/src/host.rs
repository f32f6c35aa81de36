//! What is particular to one operating system: volumes and the identity of files.
//!
//! Linux is complete; elsewhere the plain fallbacks know less and the callers poll.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use c2c_queue::{FileFacts, FileId, Volume};

/// Size, time and identity of a file that is open or was just looked at.
pub(crate) fn facts_of(metadata: &std::fs::Metadata) -> FileFacts {
    FileFacts {
        size: metadata.len(),
        mtime_ns: mtime_ns(metadata),
        file_id: file_id(metadata),
    }
}

#[cfg(unix)]
fn mtime_ns(metadata: &std::fs::Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt;
    metadata
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.mtime_nsec())
}

#[cfg(not(unix))]
fn mtime_ns(metadata: &std::fs::Metadata) -> i64 {
    metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos() as i64)
}

#[cfg(unix)]
fn file_id(metadata: &std::fs::Metadata) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    Some(FileId {
        device: metadata.dev(),
        file: metadata.ino(),
    })
}

#[cfg(not(unix))]
fn file_id(_: &std::fs::Metadata) -> Option<FileId> {
    None
}

/// Reads exactly `buffer.len()` bytes at `offset`, without moving a file position.
pub(crate) fn read_exact_at(
    file: &std::fs::File,
    buffer: &mut [u8],
    offset: u64,
) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
    }
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buffer.len() {
            let read = std::os::windows::fs::FileExt::seek_read(
                file,
                &mut buffer[done..],
                offset + done as u64,
            )?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            done += read;
        }
        Ok(())
    }
}

/// Reads at `offset` what is in memory already, without waiting for a disk; how many bytes that were, from the start. 0 as well
/// where the system or the file system cannot tell.
pub(crate) fn read_cached_at(file: &std::fs::File, buffer: &mut [u8], offset: u64) -> usize {
    #[cfg(target_os = "linux")]
    {
        use rustix::io::{ReadWriteFlags, preadv2};
        let mut into = [std::io::IoSliceMut::new(buffer)];
        preadv2(file, &mut into, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, buffer, offset);
        0
    }
}

/// Whether the file system under `path` keeps the number of a file. FAT and many network file systems make one up each time.
pub(crate) fn keeps_file_ids(path: &Path) -> bool {
    platform::keeps_file_ids(path)
}

/// The volumes that are mounted now.
pub(crate) fn volumes() -> Arc<[Volume]> {
    platform::volumes()
}

/// The volume that holds `path`: the one with the longest mount point above it.
pub(crate) fn volume_of(path: &Path, volumes: &[Volume]) -> Option<Volume> {
    volumes
        .iter()
        .filter(|volume| path.starts_with(&volume.mount_point))
        .max_by_key(|volume| volume.mount_point.as_os_str().len())
        .cloned()
}

/// Where a file of `volume` is now, if the volume is mounted (perhaps elsewhere than before).
pub(crate) fn relocate(
    path: &Path,
    volume: &Volume,
    volumes: &[Volume],
) -> Option<(PathBuf, Volume)> {
    let within = path.strip_prefix(&volume.mount_point).ok()?;
    let now = volumes.iter().find(|mounted| mounted.id == volume.id)?;
    Some((now.mount_point.join(within), now.clone()))
}

#[cfg(target_os = "linux")]
mod platform {
    use std::ffi::OsString;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::ffi::OsStringExt;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use c2c_queue::Volume;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    /// File systems that hold no media.
    const PSEUDO: [&str; 14] = [
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "cgroup",
        "cgroup2",
        "mqueue",
        "securityfs",
        "debugfs",
        "tracefs",
        "bpf",
        "pstore",
        "nsfs",
        "rpc_pipefs",
    ];

    /// The magic numbers of statfs(2) of file systems whose numbers of files stay.
    const LASTING: [u64; 8] = [
        0xef53,      // ext2 to ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0xf2f5_2010, // F2FS
        0x0102_1994, // tmpfs
        0x794c_7630, // overlayfs
        0x2fc1_2fc1, // ZFS
        0xca45_1a4e, // bcachefs
    ];

    pub(super) fn keeps_file_ids(path: &Path) -> bool {
        rustix::fs::statfs(path)
            .is_ok_and(|stat| LASTING.contains(&(stat.f_type as u64 & 0xffff_ffff)))
    }

    const MOUNTS: &str = "/proc/self/mountinfo";
    /// The name that udev gives to a device may come a moment after the mount, of which alone the kernel tells.
    const FRESH: Duration = Duration::from_secs(1);

    /// What was mounted at the last look.
    struct Known {
        /// Tells that something was mounted or unmounted since.
        mounts: File,
        at: Instant,
        volumes: Arc<[Volume]>,
    }

    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

    impl Known {
        fn holds(&self) -> bool {
            let mut asked = [PollFd::new(&self.mounts, PollFlags::PRI)];
            let unchanged = poll(&mut asked, Some(&Timespec::default())) == Ok(0);
            unchanged && self.at.elapsed() < FRESH
        }
    }

    /// Each still is looked up among them: so they are read once a second at most, and whenever they change.
    pub(super) fn volumes() -> Arc<[Volume]> {
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known().as_ref().filter(|known| known.holds()) {
            return known.volumes.clone();
        }
        // Without the lock: a network drive that does not answer must not stop those who do not need it.
        let at = Instant::now();
        let mut text = Vec::new();
        let read = File::open(MOUNTS).and_then(|mut mounts| {
            mounts.read_to_end(&mut text)?;
            Ok(mounts)
        });
        let volumes: Arc<[Volume]> = text
            .split(|byte| *byte == b'\n')
            .filter_map(volume)
            .collect();
        if let Ok(mounts) = read {
            let volumes = volumes.clone();
            *known() = Some(Known {
                mounts,
                at,
                volumes,
            });
        }
        volumes
    }

    /// One line of mountinfo: `id parent major:minor root mount-point options [fields] - type source super-options`.
    fn volume(line: &[u8]) -> Option<Volume> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let kind = String::from_utf8_lossy(fields.get(dash + 1)?).into_owned();
        if PSEUDO.contains(&kind.as_str()) {
            return None;
        }
        let device = String::from_utf8_lossy(fields.get(2)?).into_owned();
        let mount_point = PathBuf::from(OsString::from_vec(unescape(fields.get(4)?)));
        let source = PathBuf::from(OsString::from_vec(unescape(fields.get(dash + 2)?)));
        let id = uuid_of(&source).unwrap_or_else(|| file_system_id(&mount_point, &kind, &source));
        let removable = is_removable(&device, &mount_point);
        Some(Volume {
            id,
            mount_point,
            removable,
        })
    }

    /// Space, tab, newline and backslash are written as `\ooo`.
    fn unescape(field: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(field.len());
        let mut rest = field;
        while let [first, tail @ ..] = rest {
            let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
            let value = octal.and_then(|digits| std::str::from_utf8(digits).ok());
            match value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
                Some(byte) => {
                    out.push(byte);
                    rest = &tail[3..];
                }
                None => {
                    out.push(*first);
                    rest = tail;
                }
            }
        }
        out
    }

    /// The UUID that udev knows for a block device.
    fn uuid_of(source: &Path) -> Option<String> {
        let device = std::fs::canonicalize(source).ok()?;
        std::fs::read_dir("/dev/disk/by-uuid")
            .ok()?
            .flatten()
            .find_map(|entry| {
                let target = std::fs::canonicalize(entry.path()).ok()?;
                (target == device).then(|| format!("uuid:{}", entry.file_name().to_string_lossy()))
            })
    }

    /// The id that the file system itself reports; derived from its UUID by ext4, XFS and Btrfs.
    fn file_system_id(mount_point: &Path, kind: &str, source: &Path) -> String {
        match rustix::fs::statvfs(mount_point) {
            Ok(stat) if stat.f_fsid != 0 => format!("{kind}:{:016x}", stat.f_fsid),
            _ => format!("{kind}:{}", source.display()),
        }
    }

    fn is_removable(device: &str, mount_point: &Path) -> bool {
        const PLACES: [&str; 4] = ["/media", "/run/media", "/mnt", "/Volumes"];
        let flag = |name: &str| {
            std::fs::read_to_string(format!("/sys/dev/block/{device}/{name}"))
                .is_ok_and(|text| text.trim() == "1")
        };
        let usb = std::fs::canonicalize(format!("/sys/dev/block/{device}"))
            .is_ok_and(|path| path.to_string_lossy().contains("/usb"));
        mount_point != Path::new("/")
            && (flag("removable")
                || flag("../removable")
                || usb
                || PLACES.iter().any(|place| mount_point.starts_with(place)))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn mount_points_with_blanks_are_read() {
            let line = b"36 35 98:0 /mnt1 /media/A\\040CARD rw,noatime master:1 - ext3 /dev/none rw,errors=continue";
            let volume = volume(line).unwrap();
            assert_eq!(volume.mount_point, Path::new("/media/A CARD"));
            assert!(volume.removable);
        }

        #[test]
        fn the_root_is_a_volume_that_stays() {
            let all = volumes();
            let root = super::super::volume_of(Path::new("/"), &all).unwrap();
            assert!(!root.removable);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use c2c_queue::Volume;

    /// Nothing is known about the file system: the number of a file proves nothing.
    pub(super) fn keeps_file_ids(_: &Path) -> bool {
        false
    }

    /// Where macOS and Windows put volumes; a volume is known by its name there.
    pub(super) fn volumes() -> Arc<[Volume]> {
        let volume = |mount_point: PathBuf| Volume {
            id: mount_point.display().to_string(),
            mount_point,
            removable: true,
        };
        if cfg!(windows) {
            let roots = ('A'..='Z').map(|letter| PathBuf::from(format!("{letter}:\\")));
            return roots.filter(|root| root.exists()).map(volume).collect();
        }
        let entries = std::fs::read_dir("/Volumes")
            .into_iter()
            .flatten()
            .flatten();
        entries.map(|entry| volume(entry.path())).collect()
    }
}
