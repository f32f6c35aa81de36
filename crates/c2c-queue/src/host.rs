//! Everything that differs between operating systems, in one place.
//!
//! Linux is the reference. macOS and Windows tell their boot by other means; on any other system there is no boot id, so
//! that no capture is ever compared across an unseen restart.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Milliseconds since the system started, time asleep included where the platform counts it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn boot_ms() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

/// Milliseconds since the system started; on Apple systems this clock runs on during sleep.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
pub(crate) fn boot_ms() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    i64::from(time.tv_sec) * 1000 + i64::from(time.tv_nsec) / 1_000_000
}

/// Milliseconds since the system started, time asleep included.
#[cfg(windows)]
pub(crate) fn boot_ms() -> i64 {
    #[expect(
        unsafe_code,
        reason = "a call without arguments that cannot fail; std has none for it"
    )]
    let ticks = unsafe { windows_sys::Win32::System::SystemInformation::GetTickCount64() };
    i64::try_from(ticks).unwrap_or(i64::MAX)
}

/// Milliseconds since this program first asked: good for measuring, and never compared across runs
/// because there is no boot id to go with it.
#[cfg(not(any(unix, windows)))]
pub(crate) fn boot_ms() -> i64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    let elapsed = START.get_or_init(std::time::Instant::now).elapsed();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// The name of the current run of the operating system.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn boot_id() -> Option<String> {
    static ID: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let ask = || {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let id = id.trim();
        (!id.is_empty()).then(|| id.to_owned())
    };
    // Each commit of the queue asks.
    ID.get_or_init(ask).clone()
}

/// The name of the current run of the operating system: the kernel makes a new one at each boot.
#[cfg(target_os = "macos")]
pub(crate) fn boot_id() -> Option<String> {
    static ID: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let ask = || first_line("/usr/sbin/sysctl", &["-n", "kern.bootsessionuuid"]);
    ID.get_or_init(ask).clone()
}

/// The name of the current run of the operating system: Windows counts its boots in the registry.
#[cfg(windows)]
pub(crate) fn boot_id() -> Option<String> {
    const KEY: &str = r"HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters";
    static ID: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let ask = || {
        let line = first_line_with("reg", &["query", KEY, "/v", "BootId"], "REG_DWORD")?;
        line.split_whitespace()
            .last()
            .map(|count| format!("boot-{count}"))
    };
    ID.get_or_init(ask).clone()
}

/// This platform does not tell.
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "macos",
    windows
)))]
pub(crate) fn boot_id() -> Option<String> {
    None
}

#[cfg(target_os = "macos")]
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    first_line_with(program, arguments, "")
}

/// The first line of what a program of the system prints that is not empty and has `word` in it.
#[cfg(any(target_os = "macos", windows))]
fn first_line_with(program: &str, arguments: &[&str], word: &str) -> Option<String> {
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && line.contains(word));
    line.filter(|_| output.status.success()).map(str::to_owned)
}

/// The bytes of a path that is not Unicode.
#[cfg(unix)]
pub(crate) fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

/// The path whose bytes these are.
#[cfg(unix)]
pub(crate) fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// The UTF-16 units of a path that is not Unicode, little-endian.
#[cfg(windows)]
pub(crate) fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::windows::ffi::OsStrExt;
    path.as_os_str()
        .encode_wide()
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// The path whose UTF-16 units these are.
#[cfg(windows)]
pub(crate) fn path_from_bytes(bytes: &[u8]) -> PathBuf {
    use std::os::windows::ffi::OsStringExt;
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    PathBuf::from(std::ffi::OsString::from_wide(&units))
}

/// Options that create a file for its owner alone, where the platform has such modes.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

/// Makes a file for its owner alone, to be written and read, that is gone when it is closed or the process ends.
#[cfg(unix)]
pub(crate) fn create_fleeting(path: &Path) -> io::Result<File> {
    let file = private()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// Makes a file to be written and read that Windows deletes when it is closed or the process ends.
#[cfg(windows)]
pub(crate) fn create_fleeting(path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
    let mut options = private();
    options.read(true).write(true).create_new(true);
    options.custom_flags(FILE_FLAG_DELETE_ON_CLOSE).open(path)
}

/// Makes a file to be written and read. This platform keeps it.
#[cfg(not(any(unix, windows)))]
pub(crate) fn create_fleeting(path: &Path) -> io::Result<File> {
    private().read(true).write(true).create_new(true).open(path)
}

/// Makes the directory, and those above it, for their owner alone. One that exists stays as it is:
/// it may serve other purposes too.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(dir)
}

/// Takes a file away from everybody but its owner.
#[cfg(unix)]
pub(crate) fn make_private(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if file.metadata()?.permissions().mode() & 0o177 == 0 {
        return Ok(());
    }
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

/// The access rights of the directory decide here.
#[cfg(not(unix))]
pub(crate) fn make_private(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Whether anybody but the owner may read or change the file.
#[cfg(unix)]
pub(crate) fn open_to_others(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.metadata()?.permissions().mode() & 0o077 != 0)
}

/// The access rights of the directory decide here.
#[cfg(not(unix))]
pub(crate) fn open_to_others(_file: &File) -> io::Result<bool> {
    Ok(false)
}

/// Makes new names in the directory survive a power cut.
#[cfg(unix)]
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A directory cannot be opened for this here; the file system journals names by itself.
#[cfg(not(unix))]
pub(crate) fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Writes a path for JSON: what is not Unicode in it is shown as `U+FFFD`.
pub(crate) mod lossy_path {
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&path.display())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<PathBuf, D::Error> {
        PathBuf::deserialize(deserializer)
    }
}
