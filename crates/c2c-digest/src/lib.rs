//! Checksums at the speed of the wire.

mod crc64;
mod md5x;
mod service;
mod stream;

pub use crc64::{Crc64, combine, to_base64};
pub use md5x::Instructions;
pub use service::{DigestError, Digests, Finish, Stream};
