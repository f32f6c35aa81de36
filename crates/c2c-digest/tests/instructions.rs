//! What the hot paths take in instructions. A bound that is passed means that a
//! vector or an inlined step was lost, not that the machine was busy.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod callgrind;

use std::hint::black_box;

use c2c_digest::{Crc64, Instructions, combine};

/// 11.5 when written. Plain code for a step takes about as many: the gain is in what runs at the same time, and lost if a lane is
/// spilled or a step is not inlined (above 1,000).
#[test]
fn md5_in_four_portable_lanes() {
    let each = callgrind::per_unit("md5_in_four_portable_lanes", 1 << 20, |bytes| {
        let input = vec![0; bytes / 4];
        black_box(Instructions::PORTABLE.md5(black_box(&[&input[..]; 4])));
    });
    if let Some(each) = each {
        assert!(each < 14.0, "{each:.2} instructions a byte");
    }
}

/// 3.6 when written: one instruction for four streams.
#[test]
fn md5_in_eight_lanes_of_sse2() {
    in_eight_lanes("md5_in_eight_lanes_of_sse2", "SSE2", 4.5);
}

/// 1.5 when written: one instruction for eight streams.
#[test]
fn md5_in_eight_lanes_of_avx2() {
    in_eight_lanes("md5_in_eight_lanes_of_avx2", "AVX2", 2.0);
}

#[expect(clippy::print_stdout, reason = "a skipped test says so")]
fn in_eight_lanes(test: &str, instructions: &str, bound: f64) {
    let Some(instructions) = Instructions::available()
        .into_iter()
        .find(|set| set.to_string() == instructions)
    else {
        println!("SKIPPED {test}: this processor has no {instructions}");
        return;
    };
    let each = callgrind::per_unit(test, 1 << 20, |bytes| {
        let input = vec![0; bytes / 8];
        black_box(instructions.md5(black_box(&[&input[..]; 8])));
    });
    if let Some(each) = each {
        assert!(each < bound, "{each:.2} instructions a byte");
    }
}

/// 0.34 when written, without what callgrind does not know (AVX-512).
#[test]
fn crc64_of_a_buffer() {
    let each = callgrind::per_unit("crc64_of_a_buffer", 1 << 22, |bytes| {
        let mut crc = Crc64::new();
        crc.update(black_box(&vec![0; bytes]));
        black_box(crc.finalize());
    });
    if let Some(each) = each {
        assert!(each < 0.6, "{each:.2} instructions a byte");
    }
}

/// 16,700 when written, for a length with 22 bits set; the squares of matrices would be above 500,000.
#[test]
fn crc64_combined() {
    let each = callgrind::per_unit("crc64_combined", 1000, |calls| {
        for call in 0..calls as u64 {
            black_box(combine(
                black_box(call),
                black_box(!call),
                black_box((25 << 20) - 1),
            ));
        }
    });
    if let Some(each) = each {
        assert!(each < 20_000.0, "{each:.0} instructions a call");
    }
}
