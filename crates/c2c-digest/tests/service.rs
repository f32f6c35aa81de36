//! The hasher as transfers use it: many streams at once, joining, leaving, cancelled, blocked, and a thread that dies.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use c2c_digest::{DigestError, Digests, Stream};
use md5::{Digest, Md5};
use proptest::prelude::*;
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap()
}

/// A buffer that tells when it is dropped, and then waits to be let go.
struct Gate {
    bytes: Vec<u8>,
    reached: Sender<()>,
    open: Receiver<()>,
}

impl Gate {
    fn buffer(length: usize) -> (Bytes, Receiver<()>, Sender<()>) {
        let (reached, is_reached) = channel();
        let (let_go, open) = channel();
        let gate = Gate {
            bytes: vec![7; length],
            reached,
            open,
        };
        (Bytes::from_owner(gate), is_reached, let_go)
    }
}

impl AsRef<[u8]> for Gate {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.reached.send(());
        let _ = self.open.recv();
    }
}

/// A buffer that takes the thread with it.
struct Bomb;

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        &[0; 64]
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a buffer that cannot be dropped, for the test");
    }
}

/// A waker that says so.
struct Called(Sender<()>);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

fn poll_ready(stream: &mut Stream) -> Poll<Result<(), DigestError>> {
    stream.poll_ready(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn nothing_has_a_digest_too() {
    let digests = Digests::new(4);
    let stream = digests.begin().unwrap();
    let digest = runtime().block_on(stream.finish()).unwrap();
    assert_eq!(hex::encode(digest), "d41d8cd98f00b204e9800998ecf8427e");
}

#[test]
fn a_stream_holds_no_more_than_its_backlog() {
    let digests = Digests::new(2);
    let mut busy = digests.begin().unwrap();
    let (gate, reached, open) = Gate::buffer(64);
    busy.push(gate).unwrap();
    reached.recv().unwrap();

    // The thread stands at the gate; nothing is hashed.
    let mut stream = digests.begin().unwrap();
    for _ in 0..2 {
        assert!(matches!(poll_ready(&mut stream), Poll::Ready(Ok(()))));
        stream.push(Bytes::from_static(&[1; 100])).unwrap();
    }
    let (called, is_called) = channel();
    let waker = Waker::from(Arc::new(Called(called)));
    assert!(
        stream
            .poll_ready(&mut Context::from_waker(&waker))
            .is_pending()
    );
    assert!(matches!(
        stream.push(Bytes::from_static(b"too much")),
        Err(DigestError::Full)
    ));

    open.send(()).unwrap();
    is_called.recv().unwrap();
    assert!(matches!(poll_ready(&mut stream), Poll::Ready(Ok(()))));
    let digest = runtime().block_on(stream.finish()).unwrap();
    assert_eq!(
        digest[..],
        Md5::digest([1; 200])[..],
        "what did not fit was hashed"
    );
}

#[test]
fn a_cancelled_stream_gives_its_buffers_back() {
    let digests = Digests::new(4);
    let _idle = digests.begin().unwrap();
    let mut stream = digests.begin().unwrap();
    // One of four, and another stream that may bring company: not due, so that it is held.
    let (gate, reached, open) = Gate::buffer(640);
    open.send(()).unwrap();
    stream.push(gate).unwrap();
    assert!(reached.try_recv().is_err());
    drop(stream);
    reached.recv().unwrap();
}

#[test]
fn the_others_do_not_wait_for_a_cancelled_stream() {
    let digests = Digests::new(4);
    let idle = digests.begin().unwrap();
    let mut stream = digests.begin().unwrap();
    let (gate, reached, open) = Gate::buffer(640);
    open.send(()).unwrap();
    stream.push(gate).unwrap();
    drop(idle);
    reached.recv().unwrap();
}

#[test]
fn a_dead_thread_is_an_error_and_the_next_stream_has_another() {
    let runtime = runtime();
    let digests = Digests::new(1);
    let mut waiting = digests.begin().unwrap();
    let mut bomber = digests.begin().unwrap();
    let (gate, reached, open) = Gate::buffer(64);
    waiting.push(gate).unwrap();
    reached.recv().unwrap();
    let waiting = runtime.spawn(async move {
        // Full until the thread dies or goes on; whichever comes first, nobody hangs.
        waiting.update(Bytes::from_static(b"more")).await?;
        waiting.finish().await
    });
    bomber.push(Bytes::from_owner(Bomb)).unwrap();
    let bomber = runtime.spawn(bomber.finish());
    open.send(()).unwrap();

    assert!(matches!(
        runtime.block_on(bomber).unwrap(),
        Err(DigestError::Stopped)
    ));
    match runtime.block_on(waiting).unwrap() {
        Err(DigestError::Stopped) => {}
        Ok(digest) => assert_eq!(
            digest[..],
            Md5::digest([&[7; 64][..], b"more"].concat())[..]
        ),
        Err(error) => panic!("{error}"),
    }

    let mut stream = digests.begin().unwrap();
    stream.push(Bytes::from_static(b"abc")).unwrap();
    let digest = runtime.block_on(async move {
        stream.update(Bytes::new()).await?;
        stream.finish().await
    });
    assert_eq!(
        hex::encode(digest.unwrap()),
        "900150983cd24fb0d6963f7d28e17f72"
    );
}

/// What one task does with its streams, one after the other.
#[derive(Clone, Debug)]
struct Work {
    buffers: Vec<Vec<u8>>,
    cancel: bool,
}

fn work() -> impl Strategy<Value = Work> {
    let length = prop_oneof![0..70_usize, 0..5000_usize, Just(64), Just(4096)];
    let buffer = (length, any::<u8>()).prop_map(|(length, seed)| {
        (0..length)
            .map(|at| (at as u8).wrapping_mul(31) ^ seed)
            .collect()
    });
    (
        prop::collection::vec(buffer, 0..12),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(buffers, cancel)| Work { buffers, cancel })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_stream_has_its_own_digest(
        tasks in prop::collection::vec(prop::collection::vec(work(), 1..4), 1..40),
        backlog in 1..6_usize,
    ) {
        let runtime = runtime();
        let digests = Digests::new(backlog);
        let tasks: Vec<_> = tasks
            .into_iter()
            .map(|works| {
                let digests = digests.clone();
                runtime.spawn(async move {
                    for work in works {
                        let mut stream = digests.begin().unwrap();
                        for buffer in &work.buffers {
                            stream.update(Bytes::copy_from_slice(buffer)).await.unwrap();
                        }
                        if !work.cancel {
                            let digest = stream.finish().await.unwrap();
                            assert_eq!(digest[..], Md5::digest(work.buffers.concat())[..]);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
    }
}
