//! MD5 of several streams in lock step: one stream in each lane of a vector.
//!
//! Each step of MD5 waits for the one before, so that a single stream leaves most of a processor idle, however wide it is.
//! Different streams wait for nobody.
//!
//! Invariants:
//! - A kernel advances `N` states by the same number of blocks and has no other effect; what a lane holds never reaches another.
//! - Which kernel is used changes the speed, never the result. The one for any processor is always there.
//! - The unsafe calls of this crate are in [`Instructions`] alone, next to the question whether the processor knows them.

use std::fmt;

use md5::block_api::compress;

use crate::stream::{BLOCK, INITIAL, State, conclude};

/// Blocks that lanes take at most before others are looked after: 256 KiB of each stream.
const STEP: usize = 4096;

/// One stream's part of a step: its state, and the whole blocks that follow.
pub(crate) struct Lane<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) blocks: &'a [[u8; BLOCK]],
}

/// The instructions that advance several MD5 streams at once.
///
/// ```
/// use c2c_digest::Instructions;
///
/// let digests = Instructions::best().md5(&[b"abc", b"message digest"]);
/// assert_eq!(digests[1][..3], [0xf9, 0x6b, 0x69]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(any(
        all(target_arch = "x86_64", target_feature = "sse2"),
        all(
            target_arch = "aarch64",
            target_feature = "neon",
            target_endian = "little"
        )
    ))]
    Narrow,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Set {
    /// Whether one lane out of all is faster than the plain code.
    fn is_faster_alone(self) -> bool {
        match self {
            // Each rotation and each function of a round is one instruction: a tenth faster than the plain code.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => true,
            _ => false,
        }
    }
}

impl Instructions {
    /// What every processor of this architecture knows.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// All that this processor knows, the best last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
        let mut known = vec![
            Self::PORTABLE,
            // A part of both architectures.
            #[cfg(any(
                all(target_arch = "x86_64", target_feature = "sse2"),
                all(
                    target_arch = "aarch64",
                    target_feature = "neon",
                    target_endian = "little"
                )
            ))]
            Self(Set::Narrow),
        ];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            known.push(Self(Set::Avx2));
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                known.push(Self(Set::Avx512));
            }
        }
        known
    }

    /// The best that this processor knows.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::PORTABLE)
    }

    /// How many streams are advanced at once at most; more are served in groups.
    pub const fn lanes(self) -> usize {
        match self.0 {
            Set::Portable => portable::LANES,
            #[cfg(any(
                all(target_arch = "x86_64", target_feature = "sse2"),
                all(
                    target_arch = "aarch64",
                    target_feature = "neon",
                    target_endian = "little"
                )
            ))]
            Set::Narrow => 2 * narrow::LANES,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 | Set::Avx512 => 2 * x86::LANES,
        }
    }

    /// The MD5 of each input, in their order.
    pub fn md5(self, inputs: &[&[u8]]) -> Vec<[u8; 16]> {
        let mut states = vec![INITIAL; inputs.len()];
        let mut lanes: Vec<_> = states
            .iter_mut()
            .zip(inputs)
            .map(|(state, input)| Lane {
                state,
                blocks: input.as_chunks().0,
            })
            .collect();
        while lanes.iter().any(|lane| !lane.blocks.is_empty()) {
            self.advance(&mut lanes);
        }
        states
            .into_iter()
            .zip(inputs)
            .map(|(state, input)| conclude(state, input.len() as u64, input.as_chunks::<BLOCK>().1))
            .collect()
    }

    /// Takes each lane that has blocks some of them further, and leaves the rest in its `blocks`. In each group of lanes the
    /// shortest is used up, unless it is longer than a step.
    pub(crate) fn advance(self, lanes: &mut [Lane<'_>]) {
        let mut busy: Vec<_> = lanes
            .iter_mut()
            .filter(|lane| !lane.blocks.is_empty())
            .collect();
        // Groups of equal size rather than full ones and a rest that would go alone.
        let groups = busy.len().div_ceil(self.lanes()).max(1);
        let size = busy.len().div_ceil(groups).max(1);
        for group in busy.chunks_mut(size) {
            self.advance_group(group);
        }
    }

    fn advance_group(self, lanes: &mut [&mut Lane<'_>]) {
        match (self.0, lanes.len()) {
            (set, 1) if !set.is_faster_alone() => advance_one(lanes[0]),
            (Set::Portable, _) => with(lanes, portable::advance::<{ portable::LANES }>),
            #[cfg(any(
                all(target_arch = "x86_64", target_feature = "sse2"),
                all(
                    target_arch = "aarch64",
                    target_feature = "neon",
                    target_endian = "little"
                )
            ))]
            (Set::Narrow, ..=narrow::LANES) => with(lanes, |states: &mut [State; 4], data| {
                #[expect(unsafe_code, reason = "every processor of this architecture has them")]
                // SAFETY: the target that this is compiled for has them.
                unsafe {
                    narrow::advance::<1>(states, &data);
                }
            }),
            #[cfg(any(
                all(target_arch = "x86_64", target_feature = "sse2"),
                all(
                    target_arch = "aarch64",
                    target_feature = "neon",
                    target_endian = "little"
                )
            ))]
            (Set::Narrow, _) => with(lanes, |states: &mut [State; 8], data| {
                #[expect(unsafe_code, reason = "every processor of this architecture has them")]
                // SAFETY: as above.
                unsafe {
                    narrow::advance::<2>(states, &data);
                }
            }),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, ..=x86::LANES) => with(lanes, |states: &mut [State; 8], data| {
                #[expect(unsafe_code, reason = "the processor was asked")]
                // SAFETY: this value exists only where `available` found AVX2.
                unsafe {
                    x86::avx2::advance::<1>(states, &data);
                }
            }),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx2, _) => with(lanes, |states: &mut [State; 16], data| {
                #[expect(unsafe_code, reason = "the processor was asked")]
                // SAFETY: this value exists only where `available` found AVX2.
                unsafe {
                    x86::avx2::advance::<2>(states, &data);
                }
            }),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, ..=x86::LANES) => with(lanes, |states: &mut [State; 8], data| {
                #[expect(unsafe_code, reason = "the processor was asked")]
                // SAFETY: this value exists only where `available` found AVX2, AVX-512F and AVX-512VL.
                unsafe {
                    x86::avx512::advance::<1>(states, &data);
                }
            }),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, _) => with(lanes, |states: &mut [State; 16], data| {
                #[expect(unsafe_code, reason = "the processor was asked")]
                // SAFETY: this value exists only where `available` found AVX2, AVX-512F and AVX-512VL.
                unsafe {
                    x86::avx512::advance::<2>(states, &data);
                }
            }),
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Set::Portable => "portable",
            #[cfg(any(
                all(target_arch = "x86_64", target_feature = "sse2"),
                all(
                    target_arch = "aarch64",
                    target_feature = "neon",
                    target_endian = "little"
                )
            ))]
            Set::Narrow => narrow::NAME,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "AVX-512",
        })
    }
}

/// A stream without company, by the plain code.
fn advance_one(lane: &mut Lane<'_>) {
    let (now, later) = lane.blocks.split_at(lane.blocks.len().min(STEP));
    compress(lane.state, now);
    lane.blocks = later;
}

/// Runs a kernel of `N` lanes on at most `N` streams; the lanes that are left repeat the last stream, to no effect.
fn with<const N: usize>(
    lanes: &mut [&mut Lane<'_>],
    kernel: impl FnOnce(&mut [State; N], [&[[u8; BLOCK]]; N]),
) {
    let shortest = lanes
        .iter()
        .map(|lane| lane.blocks.len())
        .min()
        .unwrap_or(0);
    let blocks = shortest.min(STEP);
    let last = lanes.len() - 1;
    let mut states = std::array::from_fn(|lane| *lanes[lane.min(last)].state);
    let data = std::array::from_fn(|lane| &lanes[lane.min(last)].blocks[..blocks]);
    kernel(&mut states, data);
    for (lane, state) in lanes.iter_mut().zip(states) {
        *lane.state = state;
        lane.blocks = &lane.blocks[blocks..];
    }
}

/// Sines of RFC 1321, 3.4.
#[rustfmt::skip]
const K: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

/// One step on the vectors `$a` to `$d`.
macro_rules! step {
    ($function:ident, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr, $turn:literal, $k:expr) => {
        // The word and the constant first: they wait for nothing, the function waits for the step before.
        $a = add(
            rol::<$turn, { 32 - $turn }, _>(add($function($b, $c, $d), add($a, add($word, splat($k))))),
            $b,
        );
    };
}

/// Four steps of each of the places `$at` of a round that begins with step `$first`, and takes the word `$offset` first and then
/// every `$stride`th.
macro_rules! round {
    (
        $function:ident, $first:literal, [$a:ident $b:ident $c:ident $d:ident], $words:ident from $offset:literal by $stride:literal,
        [$s0:literal $s1:literal $s2:literal $s3:literal], $($at:literal)*
    ) => {$(
        step!($function, $a, $b, $c, $d, $words[($offset + $stride * $at) % 16], $s0, K[$first + $at]);
        step!($function, $d, $a, $b, $c, $words[($offset + $stride * ($at + 1)) % 16], $s1, K[$first + $at + 1]);
        step!($function, $c, $d, $a, $b, $words[($offset + $stride * ($at + 2)) % 16], $s2, K[$first + $at + 2]);
        step!($function, $b, $c, $d, $a, $words[($offset + $stride * ($at + 3)) % 16], $s3, K[$first + $at + 3]);
    )*};
}

/// The 64 steps on `$state`, an array of four vectors, with the 16 vectors of words in `$words`. The operations `add`, `rol`,
/// `splat` and the functions of the rounds `f`, `g`, `h`, `i` are those in scope, so that each instruction set has its own.
macro_rules! steps {
    ($state:ident, $words:ident) => {{
        let [mut a, mut b, mut c, mut d] = $state;
        round!(f, 0, [a b c d], $words from 0 by 1, [7 12 17 22], 0 4 8 12);
        round!(g, 16, [a b c d], $words from 1 by 5, [5 9 14 20], 0 4 8 12);
        round!(h, 32, [a b c d], $words from 5 by 3, [4 11 16 23], 0 4 8 12);
        round!(i, 48, [a b c d], $words from 0 by 7, [6 10 15 21], 0 4 8 12);
        let [a0, b0, c0, d0] = $state;
        [add(a, a0), add(b, b0), add(c, c0), add(d, d0)]
    }};
}

#[cfg(any(
    all(target_arch = "x86_64", target_feature = "sse2"),
    all(
        target_arch = "aarch64",
        target_feature = "neon",
        target_endian = "little"
    )
))]
mod narrow;

/// For any processor. Compilers keep these lanes in registers of one word rather than in vectors, and it pays all the same: none
/// of the streams waits for another.
mod portable {
    use super::{BLOCK, K, State};

    /// Streams side by side; eight need more registers than there are, and were slower.
    pub(super) const LANES: usize = 4;

    type V<const N: usize> = [u32; N];

    /// The same operation on each word of three vectors.
    #[inline(always)]
    fn each<const N: usize>(
        mut b: V<N>,
        c: V<N>,
        d: V<N>,
        operation: impl Fn(u32, u32, u32) -> u32,
    ) -> V<N> {
        for ((b, c), d) in b.iter_mut().zip(c).zip(d) {
            *b = operation(*b, c, d);
        }
        b
    }

    #[inline(always)]
    fn add<const N: usize>(a: V<N>, b: V<N>) -> V<N> {
        each(a, b, b, |a, b, _| a.wrapping_add(b))
    }

    #[inline(always)]
    fn rol<const TURN: u32, const REST: u32, const N: usize>(a: V<N>) -> V<N> {
        each(a, a, a, |a, _, _| (a << TURN) | (a >> REST))
    }

    #[inline(always)]
    fn splat<const N: usize>(word: u32) -> V<N> {
        [word; N]
    }

    #[inline(always)]
    fn f<const N: usize>(b: V<N>, c: V<N>, d: V<N>) -> V<N> {
        each(b, c, d, |b, c, d| d ^ (b & (c ^ d)))
    }

    #[inline(always)]
    fn g<const N: usize>(b: V<N>, c: V<N>, d: V<N>) -> V<N> {
        // Two halves that share no bit: only one `and` waits for the step before.
        each(b, c, d, |b, c, d| (b & d) | (c & !d))
    }

    #[inline(always)]
    fn h<const N: usize>(b: V<N>, c: V<N>, d: V<N>) -> V<N> {
        each(b, c, d, |b, c, d| b ^ (c ^ d))
    }

    #[inline(always)]
    fn i<const N: usize>(b: V<N>, c: V<N>, d: V<N>) -> V<N> {
        each(b, c, d, |b, c, d| c ^ (b | !d))
    }

    /// Advances the states by the blocks of `data`, as many of each stream as of the first.
    pub(super) fn advance<const N: usize>(states: &mut [State; N], data: [&[[u8; BLOCK]]; N]) {
        let mut state: [V<N>; 4] =
            std::array::from_fn(|word| std::array::from_fn(|lane| states[lane][word]));
        for block in 0..data[0].len() {
            let blocks = data.map(|blocks| blocks[block].as_chunks::<4>().0);
            let words: [V<N>; 16] = std::array::from_fn(|word| {
                std::array::from_fn(|lane| u32::from_le_bytes(blocks[lane][word]))
            });
            state = steps!(state, words);
        }
        for (lane, out) in states.iter_mut().enumerate() {
            *out = state.map(|word| word[lane]);
        }
    }
}

/// Vectors of 256 bits. Everything here works on `G` of them side by side, for each alone waits for itself.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, K, State};

    /// Streams in a vector.
    pub(super) const LANES: usize = 8;

    type V<const G: usize> = [__m256i; G];

    /// The 32 bytes of a vector, without a pointer.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[[u8; 8]; 4]) -> __m256i {
        let [a, b, c, d] = [
            i64::from_le_bytes(bytes[0]),
            i64::from_le_bytes(bytes[1]),
            i64::from_le_bytes(bytes[2]),
            i64::from_le_bytes(bytes[3]),
        ];
        _mm256_setr_epi64x(a, b, c, d)
    }

    /// Eight words of each of eight streams become eight vectors with one word of each stream.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
        let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
        let (p0, p1) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
        let (p2, p3) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
        let (p4, p5) = (_mm256_unpacklo_epi32(r4, r5), _mm256_unpackhi_epi32(r4, r5));
        let (p6, p7) = (_mm256_unpacklo_epi32(r6, r7), _mm256_unpackhi_epi32(r6, r7));
        let (q0, q1) = (_mm256_unpacklo_epi64(p0, p2), _mm256_unpackhi_epi64(p0, p2));
        let (q2, q3) = (_mm256_unpacklo_epi64(p1, p3), _mm256_unpackhi_epi64(p1, p3));
        let (q4, q5) = (_mm256_unpacklo_epi64(p4, p6), _mm256_unpackhi_epi64(p4, p6));
        let (q6, q7) = (_mm256_unpacklo_epi64(p5, p7), _mm256_unpackhi_epi64(p5, p7));
        [
            _mm256_permute2x128_si256::<0x20>(q0, q4),
            _mm256_permute2x128_si256::<0x20>(q1, q5),
            _mm256_permute2x128_si256::<0x20>(q2, q6),
            _mm256_permute2x128_si256::<0x20>(q3, q7),
            _mm256_permute2x128_si256::<0x31>(q0, q4),
            _mm256_permute2x128_si256::<0x31>(q1, q5),
            _mm256_permute2x128_si256::<0x31>(q2, q6),
            _mm256_permute2x128_si256::<0x31>(q3, q7),
        ]
    }

    /// The 16 words of a block of each stream.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words<const G: usize>(data: &[&[[u8; BLOCK]]], block: usize) -> [V<G>; 16] {
        let mut words = [[_mm256_setzero_si256(); G]; 16];
        for group in 0..G {
            for half in 0..2 {
                let mut rows = [_mm256_setzero_si256(); LANES];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let bytes = data[group * LANES + lane][block].as_chunks::<8>().0;
                    let bytes = bytes.as_chunks::<4>().0;
                    *row = load(&bytes[half]);
                }
                for (word, vector) in transpose(rows).into_iter().enumerate() {
                    words[half * 8 + word][group] = vector;
                }
            }
        }
        words
    }

    /// The states as vectors: each word of all streams in one.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn state_in<const G: usize>(states: &[State]) -> [V<G>; 4] {
        let mut vectors = [[_mm256_setzero_si256(); G]; 4];
        for (word, vectors) in vectors.iter_mut().enumerate() {
            for (group, vector) in vectors.iter_mut().enumerate() {
                let mut lanes = [0; LANES];
                for (lane, out) in lanes.iter_mut().enumerate() {
                    *out = states[group * LANES + lane][word].cast_signed();
                }
                let [a, b, c, d, e, f, g, h] = lanes;
                *vector = _mm256_setr_epi32(a, b, c, d, e, f, g, h);
            }
        }
        vectors
    }

    /// The way back.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn state_out<const G: usize>(vectors: [V<G>; 4], states: &mut [State]) {
        for (word, vectors) in vectors.into_iter().enumerate() {
            for (group, vector) in vectors.into_iter().enumerate() {
                let lanes = [
                    _mm256_extract_epi32::<0>(vector),
                    _mm256_extract_epi32::<1>(vector),
                    _mm256_extract_epi32::<2>(vector),
                    _mm256_extract_epi32::<3>(vector),
                    _mm256_extract_epi32::<4>(vector),
                    _mm256_extract_epi32::<5>(vector),
                    _mm256_extract_epi32::<6>(vector),
                    _mm256_extract_epi32::<7>(vector),
                ];
                for (lane, value) in lanes.into_iter().enumerate() {
                    states[group * LANES + lane][word] = value.cast_unsigned();
                }
            }
        }
    }

    /// An instruction set: how vectors are turned, and the functions of the rounds on one vector each.
    macro_rules! set {
        ($name:ident, $features:literal, $turn:item, $($round:item)*) => {
            pub(super) mod $name {
                use super::*;

                $turn
                $($round)*

                #[inline]
                #[target_feature(enable = $features)]
                fn add<const G: usize>(mut a: V<G>, b: V<G>) -> V<G> {
                    for (a, b) in a.iter_mut().zip(b) {
                        *a = _mm256_add_epi32(*a, b);
                    }
                    a
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn rol<const TURN: i32, const REST: i32, const G: usize>(mut a: V<G>) -> V<G> {
                    for a in &mut a {
                        *a = turn::<TURN, REST>(*a);
                    }
                    a
                }

                #[inline]
                #[target_feature(enable = $features)]
                fn splat<const G: usize>(word: u32) -> V<G> {
                    [_mm256_set1_epi32(word.cast_signed()); G]
                }

                set!(@each $features f f1);
                set!(@each $features g g1);
                set!(@each $features h h1);
                set!(@each $features i i1);

                /// Advances `8 * G` states by the blocks of `data`, as many of each stream as of the first.
                #[target_feature(enable = $features)]
                pub(in super::super) fn advance<const G: usize>(
                    states: &mut [State],
                    data: &[&[[u8; BLOCK]]],
                ) {
                    let mut state = state_in::<G>(states);
                    for block in 0..data[0].len() {
                        let words = words::<G>(data, block);
                        state = steps!(state, words);
                    }
                    state_out(state, states);
                }
            }
        };
        (@each $features:literal $name:ident $one:ident) => {
            #[inline]
            #[target_feature(enable = $features)]
            fn $name<const G: usize>(mut b: V<G>, c: V<G>, d: V<G>) -> V<G> {
                for ((b, c), d) in b.iter_mut().zip(c).zip(d) {
                    *b = $one(*b, c, d);
                }
                b
            }
        };
    }

    set! {
        avx2, "avx2",
        #[inline]
        #[target_feature(enable = "avx2")]
        fn turn<const TURN: i32, const REST: i32>(a: __m256i) -> __m256i {
            _mm256_or_si256(_mm256_slli_epi32::<TURN>(a), _mm256_srli_epi32::<REST>(a))
        },
        #[inline]
        #[target_feature(enable = "avx2")]
        fn f1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            _mm256_xor_si256(d, _mm256_and_si256(b, _mm256_xor_si256(c, d)))
        }
        #[inline]
        #[target_feature(enable = "avx2")]
        fn g1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            // Two halves that share no bit: only one `and` waits for the step before.
            _mm256_or_si256(_mm256_and_si256(d, b), _mm256_andnot_si256(d, c))
        }
        #[inline]
        #[target_feature(enable = "avx2")]
        fn h1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            _mm256_xor_si256(b, _mm256_xor_si256(c, d))
        }
        #[inline]
        #[target_feature(enable = "avx2")]
        fn i1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            let not_d = _mm256_xor_si256(d, _mm256_set1_epi32(-1));
            _mm256_xor_si256(c, _mm256_or_si256(b, not_d))
        }
    }

    // The numbers are truth tables: bit `4 b + 2 c + d`.
    set! {
        avx512, "avx2,avx512f,avx512vl",
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512vl")]
        fn turn<const TURN: i32, const REST: i32>(a: __m256i) -> __m256i {
            _mm256_rol_epi32::<TURN>(a)
        },
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512vl")]
        fn f1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            _mm256_ternarylogic_epi32::<0b1100_1010>(b, c, d)
        }
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512vl")]
        fn g1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            _mm256_ternarylogic_epi32::<0b1110_0100>(b, c, d)
        }
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512vl")]
        fn h1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            _mm256_ternarylogic_epi32::<0b1001_0110>(b, c, d)
        }
        #[inline]
        #[target_feature(enable = "avx2,avx512f,avx512vl")]
        fn i1(b: __m256i, c: __m256i, d: __m256i) -> __m256i {
            _mm256_ternarylogic_epi32::<0b0011_1001>(b, c, d)
        }
    }
}

#[cfg(test)]
mod tests {
    use md5::{Digest, Md5};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_best_is_available() {
        let available = Instructions::available();
        assert_eq!(available[0], Instructions::PORTABLE);
        assert!(available.contains(&Instructions::best()));
    }

    #[test]
    fn every_number_of_streams_with_every_set() {
        let inputs: Vec<Vec<u8>> = (0..40_usize)
            .map(|stream| {
                (0..1000 + 13 * stream)
                    .map(|at| (at * 7 + stream * 31) as u8)
                    .collect()
            })
            .collect();
        for instructions in Instructions::available() {
            for count in 0..=inputs.len() {
                let inputs: Vec<_> = inputs[..count].iter().map(Vec::as_slice).collect();
                for (input, digest) in inputs.iter().zip(instructions.md5(&inputs)) {
                    assert_eq!(
                        digest[..],
                        Md5::digest(input)[..],
                        "{instructions}, {count} streams"
                    );
                }
            }
        }
    }

    #[test]
    fn longer_than_a_step() {
        let long = vec![0x5a; STEP * BLOCK * 2 + 77];
        let inputs = [&long[..], &long[1..], &long[..STEP * BLOCK]];
        for instructions in Instructions::available() {
            for (input, digest) in inputs.iter().zip(instructions.md5(&inputs)) {
                assert_eq!(digest[..], Md5::digest(input)[..], "{instructions}");
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_code(inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 0..36)) {
            let inputs: Vec<_> = inputs.iter().map(Vec::as_slice).collect();
            for instructions in Instructions::available() {
                for (input, digest) in inputs.iter().zip(instructions.md5(&inputs)) {
                    prop_assert_eq!(&digest[..], &Md5::digest(input)[..], "{}", instructions);
                }
            }
        }
    }
}
