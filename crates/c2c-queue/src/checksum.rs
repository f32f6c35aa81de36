//! The checksum of a whole file, made of the checksums of its chunks.
//!
//! CRC-64/NVME is what S3 calls a full-object checksum: that of a file follows from those of its parts and their lengths, so
//! nothing has to be read twice.

/// The polynomial, lowest power first: the bit of `x^0` is the highest.
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;

/// `x^0` in that order of bits.
const ONE: u64 = 1 << 63;

/// The CRC-64/NVME of two pieces, one behind the other. `length_b` is the length of the second, in bytes.
pub(crate) fn combine(crc_a: u64, crc_b: u64, length_b: u64) -> u64 {
    multiply(crc_a, power_of_x8(length_b)) ^ crc_b
}

/// The way in which S3 writes it: base64 of the 8 bytes, the highest first.
pub(crate) fn base64(crc: u64) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // 64 bits are ten digits and two thirds: two empty bits fill the last one, and a pad the group of four.
    let bits = u128::from(crc) << 2;
    let mut text: String = (0..11)
        .rev()
        .map(|digit| char::from(DIGITS[(bits >> (6 * digit)) as usize & 63]))
        .collect();
    text.push('=');
    text
}

/// The product of two polynomials, modulo [`POLYNOMIAL`].
fn multiply(a: u64, mut b: u64) -> u64 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ if b & 1 == 0 { 0 } else { POLYNOMIAL };
        bit >>= 1;
    }
    product
}

/// `x` to the power of eight times `exponent`: what a CRC is multiplied with when so many bytes follow.
fn power_of_x8(mut exponent: u64) -> u64 {
    let mut power = ONE;
    let mut square = ONE >> 8;
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = multiply(power, square);
        }
        square = multiply(square, square);
        exponent >>= 1;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the checksum is defined.
    fn crc(bytes: &[u8]) -> u64 {
        let step = |crc: u64, byte: &u8| {
            (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 0 { 0 } else { POLYNOMIAL }
            })
        };
        !bytes.iter().fold(u64::MAX, step)
    }

    #[test]
    fn the_checksum_is_the_one_that_s3_computes() {
        assert_eq!(crc(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(base64(0xae8b_1486_0a79_9888), "rosUhgp5mIg=");
        assert_eq!(base64(0), "AAAAAAAAAAA=");
        assert_eq!(base64(u64::MAX), "//////////8=");
    }

    proptest::proptest! {
        #[test]
        fn wherever_a_file_is_cut_its_checksum_is_the_same(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2000),
            cuts in proptest::collection::vec(0usize..2000, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let whole = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).fold(0, |sum, piece| {
                combine(sum, crc(piece), piece.len() as u64)
            });
            proptest::prop_assert_eq!(whole, crc(&bytes));
        }
    }

    #[test]
    fn a_length_beyond_any_memory_is_no_matter() {
        // As many zero bytes at once, or half of them twice.
        let half = power_of_x8(1 << 40);
        assert_eq!(power_of_x8(1 << 41), multiply(half, half));
    }
}
