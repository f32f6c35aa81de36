//! One MD5 under way, fed with buffers of any length, advanced in whole blocks by whoever holds its state.
//!
//! Invariants:
//! - Bytes are hashed in the order in which they were pushed; a buffer is dropped with its last byte, not before.
//! - Of a buffer at most one block is copied: the one that begins in it and ends in a later one.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use md5::block_api::compress;

/// Bytes in a block of MD5.
pub(crate) const BLOCK: usize = 64;

/// The four words that MD5 carries from block to block.
pub(crate) type State = [u32; 4];

/// What MD5 begins with (RFC 1321, 3.3).
pub(crate) const INITIAL: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The state of one stream, with the buffers that wait for it.
#[derive(Debug)]
pub(crate) struct Md5Stream {
    state: State,
    /// Bytes that the state covers.
    hashed: u64,
    /// The beginning of a block that ends in the next buffer.
    partial: [u8; BLOCK],
    partial_len: usize,
    buffers: VecDeque<Bytes>,
}

impl Md5Stream {
    pub(crate) fn new() -> Self {
        Self {
            state: INITIAL,
            hashed: 0,
            partial: [0; BLOCK],
            partial_len: 0,
            buffers: VecDeque::new(),
        }
    }

    /// Puts a buffer behind those that wait.
    pub(crate) fn push(&mut self, buffer: Bytes) {
        self.buffers.push_back(buffer);
    }

    /// How many buffers are still held.
    pub(crate) fn held(&self) -> usize {
        self.buffers.len()
    }

    /// Takes up what does not fill a block and drops what is used up. Afterwards either nothing waits, or the first buffer begins
    /// with at least one whole block.
    pub(crate) fn settle(&mut self) {
        while let Some(buffer) = self.buffers.front_mut() {
            if self.partial_len > 0 || buffer.len() < BLOCK {
                let taken = (BLOCK - self.partial_len).min(buffer.len());
                self.partial[self.partial_len..][..taken].copy_from_slice(&buffer[..taken]);
                self.partial_len += taken;
                buffer.advance(taken);
                if self.partial_len == BLOCK {
                    compress(&mut self.state, &[self.partial]);
                    self.hashed += BLOCK as u64;
                    self.partial_len = 0;
                }
            }
            if buffer.is_empty() {
                self.buffers.pop_front();
            } else if self.partial_len == 0 && buffer.len() >= BLOCK {
                return;
            }
        }
    }

    /// The state and the whole blocks that can be hashed next, without a copy; nothing unless [`settle`](Self::settle) left some.
    pub(crate) fn ready(&mut self) -> (&mut State, &[[u8; BLOCK]]) {
        let blocks = match self.buffers.front() {
            Some(buffer) if self.partial_len == 0 => buffer.as_chunks().0,
            _ => &[],
        };
        (&mut self.state, blocks)
    }

    /// Notes that the state covers so many blocks more of what [`ready`](Self::ready) gave.
    pub(crate) fn advance(&mut self, blocks: usize) {
        if let Some(buffer) = self.buffers.front_mut() {
            buffer.advance(blocks * BLOCK);
            self.hashed += (blocks * BLOCK) as u64;
        }
        self.settle();
    }

    /// The digest of everything, once nothing waits.
    pub(crate) fn finalize(&self) -> [u8; 16] {
        debug_assert!(self.buffers.is_empty(), "bytes were left out");
        let length = self.hashed + self.partial_len as u64;
        conclude(self.state, length, &self.partial[..self.partial_len])
    }
}

/// The digest of `length` bytes: the state after their whole blocks, and the `rest`, less than a block.
pub(crate) fn conclude(mut state: State, length: u64, rest: &[u8]) -> [u8; 16] {
    let mut end = [[0; BLOCK]; 2];
    end[0][..rest.len()].copy_from_slice(rest);
    end[0][rest.len()] = 0x80;
    let blocks = if rest.len() < BLOCK - 8 { 1 } else { 2 };
    end[blocks - 1][BLOCK - 8..].copy_from_slice(&length.wrapping_mul(8).to_le_bytes());
    compress(&mut state, &end[..blocks]);
    let mut digest = [0; 16];
    for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_le_bytes();
    }
    digest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest_in_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut stream = Md5Stream::new();
        for part in parts {
            stream.push(Bytes::copy_from_slice(part));
            stream.settle();
            loop {
                let (state, blocks) = stream.ready();
                let count = blocks.len();
                if count == 0 {
                    break;
                }
                compress(state, blocks);
                stream.advance(count);
            }
        }
        assert_eq!(stream.held(), 0);
        hex::encode(stream.finalize())
    }

    #[test]
    fn vectors_of_rfc_1321() {
        for (text, digest) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            (
                "abcdefghijklmnopqrstuvwxyz",
                "c3fcd3d76192e4007dfb496cca67e13b",
            ),
            (
                "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                "d174ab98d277d9f5a5611c2c9f419d9f",
            ),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            assert_eq!(digest_in_parts([text.as_bytes()]), digest, "of {text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_split_is_the_same(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..12)) {
            use md5::{Digest, Md5};
            prop_assert_eq!(
                digest_in_parts(parts.iter().map(Vec::as_slice)),
                hex::encode(Md5::digest(parts.concat()))
            );
        }
    }
}
