//! CRC-64/NVME, streamed, and put together from the checksums of parts.
//!
//! Invariants:
//! - Whatever the order in which parts were hashed, [`combine`] in the order of the file gives the checksum of the whole file.
//! - The value is the one that S3 calls `CRC64NVME` with the type `FULL_OBJECT`; [`to_base64`] writes it as S3 does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm::Crc64Nvme;

/// A CRC-64/NVME under way: no allocation, tens of gigabytes a second where the processor multiplies without carry.
///
/// ```
/// use c2c_digest::Crc64;
///
/// let mut crc = Crc64::new();
/// crc.update(b"12345");
/// crc.update(b"6789");
/// assert_eq!(crc.finalize(), 0xAE8B_1486_0A79_9888);
/// ```
#[derive(Clone, Debug)]
pub struct Crc64 {
    digest: crc_fast::Digest,
}

impl Crc64 {
    /// The checksum of nothing so far.
    pub fn new() -> Self {
        Self {
            digest: crc_fast::Digest::new(Crc64Nvme),
        }
    }

    /// Adds the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// How many bytes were added: what [`combine`] wants to know of the second part.
    pub fn len(&self) -> u64 {
        self.digest.get_amount()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The checksum of everything added so far; more may be added afterwards.
    pub fn finalize(&self) -> u64 {
        self.digest.finalize()
    }
}

impl Default for Crc64 {
    fn default() -> Self {
        Self::new()
    }
}

/// The polynomial, its highest power in the lowest bit.
const POLYNOMIAL: u64 = 0x9A6C_9329_AC4B_C9B5;

/// What a checksum is multiplied by when 2^k zero bytes follow: x to the power of 8 * 2^k.
const SHIFTS: [u64; 64] = {
    let mut shifts = [1 << (63 - 8); 64];
    let mut k = 1;
    while k < 64 {
        shifts[k] = multiply(shifts[k - 1], shifts[k - 1]);
        k += 1;
    }
    shifts
};

/// The product modulo the polynomial.
const fn multiply(mut a: u64, mut b: u64) -> u64 {
    let mut product = 0;
    while a != 0 {
        product ^= b & (a >> 63).wrapping_neg();
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
    }
    product
}

/// The checksum of two parts that follow each other, from the checksum of each and the length of the second in bytes.
///
/// The time grows with the logarithm of the length: about a microsecond for a chunk of any size. The checksum of nothing is 0, so
/// that a fold over the parts of a file begins with 0.
pub const fn combine(first: u64, second: u64, second_len: u64) -> u64 {
    // The combination that `crc_fast` offers squares matrices, which takes about a thousand times as long.
    let mut shifted = first;
    let mut k = 0;
    while k < 64 && second_len >> k != 0 {
        if second_len >> k & 1 == 1 {
            shifted = multiply(SHIFTS[k], shifted);
        }
        k += 1;
    }
    shifted ^ second
}

/// The checksum as S3 writes it: base64 of its 8 bytes, most significant first.
pub fn to_base64(crc: u64) -> String {
    STANDARD.encode(crc.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit from the definition: polynomial 0xAD93D23594C93659 reflected, begun and ended with all ones.
    fn by_definition(bytes: &[u8]) -> u64 {
        !bytes.iter().fold(!0, |mut crc: u64, byte| {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
            }
            crc
        })
    }

    fn of(bytes: &[u8]) -> u64 {
        let mut crc = Crc64::new();
        crc.update(bytes);
        crc.finalize()
    }

    #[test]
    fn the_published_check_value() {
        assert_eq!(of(b"123456789"), 0xAE8B_1486_0A79_9888);
        assert_eq!(to_base64(of(b"123456789")), "rosUhgp5mIg=");
    }

    #[test]
    fn nothing_is_zero_and_neutral() {
        assert_eq!(of(b""), 0);
        assert!(Crc64::new().is_empty());
        let crc = of(b"clip");
        assert_eq!(combine(0, crc, 4), crc);
        assert_eq!(combine(crc, 0, 0), crc);
    }

    #[test]
    fn lengths_beyond_memory() {
        let byte = of(b"x");
        let (mut half, mut half_len) = (of(&[0; 1024]), 1024_u64);
        while half_len < 1 << 39 {
            half = combine(half, half, half_len);
            half_len *= 2;
        }
        let tebibyte = combine(half, half, half_len);
        assert_eq!(
            combine(byte, tebibyte, 2 * half_len),
            combine(combine(byte, half, half_len), half, half_len)
        );
    }

    proptest! {
        #[test]
        fn agrees_with_the_squares_of_matrices(first: u64, second: u64, len: u64) {
            prop_assert_eq!(
                combine(first, second, len),
                crc_fast::checksum_combine(Crc64Nvme, first, second, len)
            );
        }

        #[test]
        fn agrees_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(of(&bytes), by_definition(&bytes));
        }

        #[test]
        fn parts_in_any_split_make_the_whole(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = parts.concat();
            let folded = parts.iter().fold(0, |crc, part| combine(crc, of(part), part.len() as u64));
            prop_assert_eq!(folded, of(&whole));

            let mut streamed = Crc64::new();
            let (front, back) = whole.split_at(cut.index(whole.len() + 1));
            streamed.update(front);
            streamed.update(back);
            prop_assert_eq!(streamed.finalize(), of(&whole));
            prop_assert_eq!(streamed.len(), whole.len() as u64);
        }
    }
}
