//! Checksums at the speed of the wire.

mod crc64;
mod lanes;
mod service;
mod stream;

pub use crc64::{Crc64, combine, to_base64};
pub use service::{DigestError, Digests, Finish, Stream};
