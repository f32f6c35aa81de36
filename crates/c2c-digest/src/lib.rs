//! Checksums at the speed of the wire.
//!
//! The only proof that S3 gives for a chunk is its ETag, and that is an MD5. One MD5 is slow, for each of its steps waits for the
//! one before: on a fast processor it costs four to five times as much as sending the bytes under TLS. But a sender has several
//! chunks under way, and those wait for nobody:
//!
//! - [`Digests`] is the hasher that all transfers share. A transfer gives it the buffers that it sends anyway ([`Stream::update`]),
//!   without a copy, and asks for the digest behind the last one ([`Stream::finish`]). One thread advances all streams together,
//!   each in a lane of a vector.
//! - [`Instructions`] are those lanes: what every processor has, SSE2 or NEON, AVX2, AVX-512, chosen when the program runs.
//! - [`Crc64`] is the checksum of the whole file for its receipt: the CRC-64/NVME of each chunk, computed while it is sent, in whatever
//!   order, and put together with [`combine`]. No file is read twice.
//!
//! # What it costs
//!
//! In multiples of the plain code of one stream (`cargo bench -p c2c-digest`; a Xeon with AVX-512, buffers of 256 KiB that are in
//! the cache, medians on a busy machine):
//!
//! | streams | portable | SSE2 | AVX2 | AVX-512 |
//! | --- | --- | --- | --- | --- |
//! | 1 | 1.0 | 1.0 | 1.0 | 1.1 |
//! | 2 | 1.3 | 1.5 | 1.7 | 2.2 |
//! | 4 | 2.5 | 3.0 | 3.4 | 4.4 |
//! | 8 | 2.5 | 5.3 | 6.8 | 8.7 |
//! | 16 | 2.4 | 5.2 | 9.0 | 14 |
//!
//! NEON is proven under an emulator and not measured: 2.6 instructions a byte with four streams, where the portable lanes take 9.6.
//!
//! A stream without company takes the plain code, unless AVX-512 is there. Each number of lanes costs the same whether they are taken or not, so that a
//! hasher waits for company where that delays nobody. A CRC-64 costs less than a hundredth of a plain MD5, a combination 0.3 µs.
//!
//! # Memory
//!
//! A hasher holds what its streams were given and not yet hashed: at most the backlog times the length of a buffer for each. Its own
//! state is about 200 bytes a stream, and one thread.

mod crc64;
mod md5x;
mod service;
mod stream;

pub use crc64::{Crc64, combine, to_base64};
pub use md5x::Instructions;
pub use service::{DigestError, Digests, Finish, Stream};
