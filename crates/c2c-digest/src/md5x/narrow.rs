//! Vectors of 128 bits, which nearly every 64-bit processor has: SSE2 on x86-64, NEON on ARM. Everything here works on `G` of them side by
//! side, for each alone waits for itself.

use super::{BLOCK, K, State};

use arch::{
    Vector, add_one, choose, either_and_not, exchange, from_lanes, load, parity, splat_one,
    to_lanes, turn,
};

/// What these vectors are called where this is compiled.
#[cfg(target_arch = "x86_64")]
pub(super) const NAME: &str = "SSE2";
/// What these vectors are called where this is compiled.
#[cfg(target_arch = "aarch64")]
pub(super) const NAME: &str = "NEON";

/// Streams in a vector.
pub(super) const LANES: usize = 4;

type V<const G: usize> = [Vector; G];

/// Gives items the features that this file is about: those that all processors of the architecture have.
macro_rules! with_features {
    ($($item:item)*) => {$(
        #[inline]
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "sse2"))]
        #[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon"))]
        $item
    )*};
}

with_features! {
    fn add<const G: usize>(mut a: V<G>, b: V<G>) -> V<G> {
        for (a, b) in a.iter_mut().zip(b) {
            *a = add_one(*a, b);
        }
        a
    }

    fn rol<const TURN: i32, const REST: i32, const G: usize>(mut a: V<G>) -> V<G> {
        for a in &mut a {
            *a = turn::<TURN, REST>(*a);
        }
        a
    }

    fn splat<const G: usize>(word: u32) -> V<G> {
        [splat_one(word); G]
    }

    fn f<const G: usize>(mut b: V<G>, c: V<G>, d: V<G>) -> V<G> {
        for ((b, c), d) in b.iter_mut().zip(c).zip(d) {
            *b = choose(*b, c, d);
        }
        b
    }

    fn g<const G: usize>(mut b: V<G>, c: V<G>, d: V<G>) -> V<G> {
        for ((b, c), d) in b.iter_mut().zip(c).zip(d) {
            *b = exchange(*b, c, d);
        }
        b
    }

    fn h<const G: usize>(mut b: V<G>, c: V<G>, d: V<G>) -> V<G> {
        for ((b, c), d) in b.iter_mut().zip(c).zip(d) {
            *b = parity(*b, c, d);
        }
        b
    }

    fn i<const G: usize>(mut b: V<G>, c: V<G>, d: V<G>) -> V<G> {
        for ((b, c), d) in b.iter_mut().zip(c).zip(d) {
            *b = either_and_not(*b, c, d);
        }
        b
    }

    /// The 16 words of a block of each stream.
    fn words<const G: usize>(data: &[&[[u8; BLOCK]]], block: usize) -> [V<G>; 16] {
        let mut words = [splat(0); 16];
        for group in 0..G {
            for quarter in 0..4 {
                let mut rows = [splat_one(0); LANES];
                for (lane, row) in rows.iter_mut().enumerate() {
                    *row = load(&data[group * LANES + lane][block].as_chunks().0[quarter]);
                }
                for (word, vector) in arch::transpose(rows).into_iter().enumerate() {
                    words[quarter * 4 + word][group] = vector;
                }
            }
        }
        words
    }

    /// Advances `4 * G` states by the blocks of `data`, as many of each stream as of the first.
    pub(super) fn advance<const G: usize>(states: &mut [State], data: &[&[[u8; BLOCK]]]) {
        let mut state = [splat::<G>(0); 4];
        for (word, vectors) in state.iter_mut().enumerate() {
            for (group, vector) in vectors.iter_mut().enumerate() {
                let mut lanes = [0; LANES];
                for (lane, value) in lanes.iter_mut().enumerate() {
                    *value = states[group * LANES + lane][word];
                }
                *vector = from_lanes(lanes);
            }
        }
        for block in 0..data[0].len() {
            let words = words::<G>(data, block);
            state = steps!(state, words);
        }
        for (word, vectors) in state.into_iter().enumerate() {
            for (group, vector) in vectors.into_iter().enumerate() {
                for (lane, value) in to_lanes(vector).into_iter().enumerate() {
                    states[group * LANES + lane][word] = value;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use std::arch::x86_64::*;

    pub(super) type Vector = __m128i;

    with_features! {
        pub(super) fn splat_one(word: u32) -> Vector {
            _mm_set1_epi32(word.cast_signed())
        }

        pub(super) fn from_lanes(lanes: [u32; 4]) -> Vector {
            let [a, b, c, d] = lanes.map(u32::cast_signed);
            _mm_setr_epi32(a, b, c, d)
        }

        pub(super) fn to_lanes(x: Vector) -> [u32; 4] {
            let low = _mm_cvtsi128_si64(x).cast_unsigned();
            let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(x, x)).cast_unsigned();
            [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
        }

        pub(super) fn load(bytes: &[u8; 16]) -> Vector {
            let [low, high] = [0, 1].map(|half| i64::from_le_bytes(bytes.as_chunks().0[half]));
            _mm_set_epi64x(high, low)
        }

        pub(super) fn add_one(a: Vector, b: Vector) -> Vector {
            _mm_add_epi32(a, b)
        }

        pub(super) fn turn<const TURN: i32, const REST: i32>(a: Vector) -> Vector {
            _mm_or_si128(_mm_slli_epi32::<TURN>(a), _mm_srli_epi32::<REST>(a))
        }

        pub(super) fn choose(b: Vector, c: Vector, d: Vector) -> Vector {
            _mm_xor_si128(d, _mm_and_si128(b, _mm_xor_si128(c, d)))
        }

        pub(super) fn exchange(b: Vector, c: Vector, d: Vector) -> Vector {
            // Two halves that share no bit: only one `and` waits for the step before.
            _mm_or_si128(_mm_and_si128(b, d), _mm_andnot_si128(d, c))
        }

        pub(super) fn parity(b: Vector, c: Vector, d: Vector) -> Vector {
            _mm_xor_si128(b, _mm_xor_si128(c, d))
        }

        pub(super) fn either_and_not(b: Vector, c: Vector, d: Vector) -> Vector {
            _mm_xor_si128(c, _mm_or_si128(b, _mm_xor_si128(d, _mm_set1_epi32(-1))))
        }

        /// Four words of each of four streams become four vectors with one word of each stream.
        pub(super) fn transpose(rows: [Vector; 4]) -> [Vector; 4] {
            let [r0, r1, r2, r3] = rows;
            let (p0, p1) = (_mm_unpacklo_epi32(r0, r1), _mm_unpackhi_epi32(r0, r1));
            let (p2, p3) = (_mm_unpacklo_epi32(r2, r3), _mm_unpackhi_epi32(r2, r3));
            [
                _mm_unpacklo_epi64(p0, p2),
                _mm_unpackhi_epi64(p0, p2),
                _mm_unpacklo_epi64(p1, p3),
                _mm_unpackhi_epi64(p1, p3),
            ]
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use std::arch::aarch64::*;

    pub(super) type Vector = uint32x4_t;

    with_features! {
        pub(super) fn splat_one(word: u32) -> Vector {
            vdupq_n_u32(word)
        }

        pub(super) fn from_lanes(lanes: [u32; 4]) -> Vector {
            let [a, b, c, d] = lanes.map(u64::from);
            vcombine_u32(vcreate_u32(a | b << 32), vcreate_u32(c | d << 32))
        }

        pub(super) fn to_lanes(x: Vector) -> [u32; 4] {
            [
                vgetq_lane_u32::<0>(x),
                vgetq_lane_u32::<1>(x),
                vgetq_lane_u32::<2>(x),
                vgetq_lane_u32::<3>(x),
            ]
        }

        pub(super) fn load(bytes: &[u8; 16]) -> Vector {
            let [low, high] = [0, 1].map(|half| u64::from_le_bytes(bytes.as_chunks().0[half]));
            vcombine_u32(vcreate_u32(low), vcreate_u32(high))
        }

        pub(super) fn add_one(a: Vector, b: Vector) -> Vector {
            vaddq_u32(a, b)
        }

        /// A shift, and another that inserts what it shifts. By 16, the halves of each word change places.
        pub(super) fn turn<const TURN: i32, const REST: i32>(a: Vector) -> Vector {
            if TURN == 16 {
                vreinterpretq_u32_u16(vrev32q_u16(vreinterpretq_u16_u32(a)))
            } else {
                vsriq_n_u32::<REST>(vshlq_n_u32::<TURN>(a), a)
            }
        }

        pub(super) fn choose(b: Vector, c: Vector, d: Vector) -> Vector {
            vbslq_u32(b, c, d)
        }

        pub(super) fn exchange(b: Vector, c: Vector, d: Vector) -> Vector {
            vbslq_u32(d, b, c)
        }

        pub(super) fn parity(b: Vector, c: Vector, d: Vector) -> Vector {
            veorq_u32(b, veorq_u32(c, d))
        }

        pub(super) fn either_and_not(b: Vector, c: Vector, d: Vector) -> Vector {
            veorq_u32(c, vornq_u32(b, d))
        }

        /// Four words of each of four streams become four vectors with one word of each stream.
        pub(super) fn transpose(rows: [Vector; 4]) -> [Vector; 4] {
            let [r0, r1, r2, r3] = rows;
            let even = (
                vreinterpretq_u64_u32(vtrn1q_u32(r0, r1)),
                vreinterpretq_u64_u32(vtrn1q_u32(r2, r3)),
            );
            let odd = (
                vreinterpretq_u64_u32(vtrn2q_u32(r0, r1)),
                vreinterpretq_u64_u32(vtrn2q_u32(r2, r3)),
            );
            [
                vreinterpretq_u32_u64(vtrn1q_u64(even.0, even.1)),
                vreinterpretq_u32_u64(vtrn1q_u64(odd.0, odd.1)),
                vreinterpretq_u32_u64(vtrn2q_u64(even.0, even.1)),
                vreinterpretq_u32_u64(vtrn2q_u64(odd.0, odd.1)),
            ]
        }
    }
}
