//! Packets to and from the kernel: a TUN device, one IP packet for each read and write.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// What makes TUN devices.
pub(crate) const CLONE: &str = "/dev/net/tun";

/// The longest packet that either end sends.
pub(crate) const MTU: usize = 1500;

/// A TUN device of the namespace in which it was made. It ends with the last handle.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Makes a device in the network namespace of the calling thread. The name is at most 15 bytes.
    ///
    /// # Errors
    ///
    /// Without `/dev/net/tun` or the right to administer the network, and where the name is taken.
    pub(crate) fn make(name: &str) -> io::Result<Tun> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(CLONE)?;
        attach(&file, name)?;
        Ok(Tun { file })
    }

    /// Another handle of the same device.
    ///
    /// # Errors
    ///
    /// When the process has too many files open.
    pub(crate) fn try_clone(&self) -> io::Result<Tun> {
        self.file.try_clone().map(|file| Tun { file })
    }

    /// The next packet that the kernel sends over the device: its bytes, or `None` when there is none now.
    ///
    /// # Errors
    ///
    /// When the device is gone.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands a packet to the kernel, which receives it from the device before this returns.
    ///
    /// # Errors
    ///
    /// When the device is down or the kernel does not take the packet for one.
    pub(crate) fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(|_| ())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[expect(unsafe_code, reason = "no safe wrapper makes a TUN device")]
fn attach(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: all of `ifreq` is integers, arrays of integers, pointers and unions of them, for which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives for the call, its name ended by a zero.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
