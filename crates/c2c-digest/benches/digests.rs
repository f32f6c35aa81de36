//! What the checksums cost: `cargo bench -p c2c-digest`. The plain MD5 of one stream is what the lanes are measured against.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that fails has nobody to tell but the one who runs it"
)]

use bytes::Bytes;
use c2c_digest::{Crc64, Digests, Instructions, combine};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use md5::{Digest, Md5};

/// As the sender's buffers.
const BUFFER: usize = 256 * 1024;

const STREAMS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

fn main() {
    divan::main();
}

fn buffers(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|stream| (0..BUFFER).map(|at| (at * 7 + stream) as u8).collect())
        .collect()
}

#[divan::bench]
fn md5_plain(bencher: Bencher<'_, '_>) {
    let buffer = buffers(1).remove(0);
    bencher
        .counter(BytesCount::new(BUFFER))
        .bench_local(|| Md5::digest(black_box(&buffer)));
}

#[divan::bench]
fn sha256(bencher: Bencher<'_, '_>) {
    let buffer = buffers(1).remove(0);
    bencher
        .counter(BytesCount::new(BUFFER))
        .bench_local(|| sha2::Sha256::digest(black_box(&buffer)));
}

#[divan::bench]
fn crc64(bencher: Bencher<'_, '_>) {
    let buffer = buffers(1).remove(0);
    bencher.counter(BytesCount::new(BUFFER)).bench_local(|| {
        let mut crc = Crc64::new();
        crc.update(black_box(&buffer));
        crc.finalize()
    });
}

#[divan::bench]
fn crc64_combine(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| combine(black_box(0x1234), black_box(0x5678), black_box(25 << 20)));
}

/// A set of instructions by its name, if the processor has it.
fn lanes(bencher: Bencher<'_, '_>, set: &str, streams: usize) {
    let available = Instructions::available();
    let Some(instructions) = available.iter().find(|known| known.to_string() == set) else {
        return;
    };
    let buffers = buffers(streams);
    let inputs: Vec<_> = buffers.iter().map(Vec::as_slice).collect();
    bencher
        .counter(BytesCount::new(BUFFER * streams))
        .bench_local(|| instructions.md5(black_box(&inputs)));
}

#[divan::bench(args = STREAMS)]
fn md5_portable(bencher: Bencher<'_, '_>, streams: usize) {
    lanes(bencher, "portable", streams);
}

#[divan::bench(args = STREAMS)]
fn md5_sse2(bencher: Bencher<'_, '_>, streams: usize) {
    lanes(bencher, "SSE2", streams);
}

#[divan::bench(args = STREAMS)]
fn md5_neon(bencher: Bencher<'_, '_>, streams: usize) {
    lanes(bencher, "NEON", streams);
}

#[divan::bench(args = STREAMS)]
fn md5_avx2(bencher: Bencher<'_, '_>, streams: usize) {
    lanes(bencher, "AVX2", streams);
}

#[divan::bench(args = STREAMS)]
fn md5_avx512(bencher: Bencher<'_, '_>, streams: usize) {
    lanes(bencher, "AVX-512", streams);
}

/// The whole service: streams fed in turn by one task, begun and finished, 4 MiB each.
#[divan::bench(args = STREAMS, sample_count = 20)]
fn service(bencher: Bencher<'_, '_>, streams: usize) {
    const EACH: usize = 16;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let digests = Digests::new(4);
    let buffers: Vec<_> = buffers(streams).into_iter().map(Bytes::from).collect();
    bencher
        .counter(BytesCount::new(BUFFER * EACH * streams))
        .bench_local(|| {
            runtime.block_on(async {
                let mut open: Vec<_> = buffers.iter().map(|_| digests.begin().unwrap()).collect();
                for _ in 0..EACH {
                    for (stream, buffer) in open.iter_mut().zip(&buffers) {
                        stream.update(buffer.clone()).await.unwrap();
                    }
                }
                let ends: Vec<_> = open.into_iter().map(|stream| stream.finish()).collect();
                for end in ends {
                    black_box(end.await.unwrap());
                }
            });
        });
}
