//! Checksums at the speed of the wire.

mod crc64;

pub use crc64::{Crc64, combine, to_base64};
