//! Files of every size arrive as they are, in the chunks that the service wants.

use c2c_simulator::Simulator;
use c2c_uplink::AddMedia;
use c2c_uplink::queue::MediaState;
use std::time::Duration;

use crate::bench::{Bench, idle, media};

const MIB: u64 = 1024 * 1024;

/// One, two and four chunks, nothing at all, and a byte to each side of every boundary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_size_arrives() {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(MIB);
    let bench = Bench::with(sim).await;
    let uplink = bench.working().await;
    let sizes = [
        0,
        1,
        MIB - 1,
        MIB,
        MIB + 1,
        2 * MIB - 1,
        2 * MIB,
        2 * MIB + 1,
        4 * MIB - 1,
        4 * MIB,
        4 * MIB + 1,
        256 * 1024,
        256 * 1024 + 1,
    ];
    let files: Vec<_> = sizes
        .iter()
        .map(|&size| (size, bench.file(&format!("{size}.mov"), size, size + 1)))
        .collect();
    let added = uplink
        .add(files.iter().map(|(_, file)| file))
        .await
        .unwrap();
    let status = idle(&uplink).await;
    assert_eq!(status.of(MediaState::Delivered).media, sizes.len() as u64);
    for ((size, file), added) in files.iter().zip(&added) {
        bench.assert_delivered(&format!("{size}.mov"), file).await;
        let receipt = uplink.receipt(added.id).await.unwrap().unwrap();
        assert_eq!(
            receipt.chunks.len() as u64,
            size.div_ceil(MIB).max(1),
            "{size}"
        );
        assert_eq!(
            receipt.chunks.iter().map(|chunk| chunk.length).sum::<u64>(),
            *size
        );
        assert!(
            receipt
                .chunks
                .iter()
                .all(|chunk| chunk.verified == Some(true)),
            "{receipt:?}"
        );
        assert_eq!(receipt.bytes_resent, 0);
    }
    bench.assert_no_violations();
    uplink.wait_sealed().await.unwrap();
    for ((size, file), added) in files.iter().zip(&added) {
        let receipt = uplink.receipt(added.id).await.unwrap().unwrap();
        assert_eq!(receipt.sha256, Some(crate::bench::sha256(file)), "{size}");
        let mut crc64 = c2c_digest::Crc64::new();
        crc64.update(&std::fs::read(file).unwrap());
        let whole = c2c_digest::to_base64(crc64.finalize());
        assert_eq!(receipt.crc64nvme, Some(whole), "{size}");
    }
    uplink.shutdown().await.unwrap();
}

/// The worked example of the guide: 21,136,250 bytes over four chunks that were asked for, and over the two of the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_chunks_can_be_chosen() {
    let sim = Simulator::builder()
        .poll_interval(Duration::from_millis(100))
        .default_chunk_size(20 * MIB);
    let bench = Bench::with(sim).await;
    let uplink = bench.working().await;
    let file = bench.file("C2C_TEST_CLIP.mp4", 21_136_250, 1);
    let four = AddMedia::path(&file).parts(4).name("four.mp4");
    let two = AddMedia::path(&file).again().name("two.mp4");
    let added = uplink.add([four, two]).await.unwrap();
    idle(&uplink).await;
    let lengths = async |index: usize| -> Vec<u64> {
        let receipt = uplink.receipt(added[index].id).await.unwrap().unwrap();
        receipt.chunks.iter().map(|chunk| chunk.length).collect()
    };
    assert_eq!(
        lengths(0).await,
        [5_284_063, 5_284_063, 5_284_063, 5_284_061]
    );
    assert_eq!(lengths(1).await, [10_568_125, 10_568_125]);
    bench.assert_delivered("four.mp4", &file).await;
    bench.assert_delivered("two.mp4", &file).await;
    uplink.shutdown().await.unwrap();
}

/// A number that the storage cannot take is refused before anything is queued, with the range that it can.
#[tokio::test]
async fn impossible_numbers_of_chunks_are_refused_at_once() {
    let bench = Bench::start().await;
    let uplink = bench.uplink().open().await.unwrap();
    let file = bench.file("clip.mov", 21_136_250, 1);
    let error = uplink
        .add([AddMedia::path(&file).parts(5)])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("clip.mov") && error.contains('4'), "{error}");
    assert_eq!(uplink.queue().status().await.unwrap().active(), 0);
    uplink.shutdown().await.unwrap();
}

/// A server that does not like the number all the same decides itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_number_of_chunks_is_left_to_the_server() {
    use c2c_simulator::{BodyKind, Effect, EndpointName, Fault, Target};
    let bench = Bench::start().await;
    let body = BodyKind::Detailed {
        title: "Something went wrong".into(),
        detail: "There was a problem with your request".into(),
    };
    bench.sim.admin().add_fault(Fault {
        on: Target {
            endpoint: EndpointName::CreateAsset,
            part: None,
            asset_name: None,
        },
        effect: Effect::Status {
            status: 500,
            body,
            headers: Vec::new(),
        },
        times: Some(1),
        after: 0,
        probability: None,
    });
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 12_000_000, 1);
    let id = uplink.add([AddMedia::path(&file).parts(2)]).await.unwrap()[0].id;
    idle(&uplink).await;
    assert_eq!(uplink.receipt(id).await.unwrap().unwrap().chunks.len(), 1);
    assert_eq!(media(&uplink, id).await.parts, None);
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}

/// Every kind of UTF-8 in a name reaches the project as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_arrive_as_they_are() {
    let bench = Bench::start().await;
    let uplink = bench.working().await;
    let names = [
        "plain.mov",
        "with blanks and 'quotes\".mov",
        "Überspielung ß.mov",
        "e\u{301} decomposed.mov",
        "第1巻 クリップ.mov",
        "مشهد.mov",
        "🎬🏳️‍🌈.mov",
        "back\\slash & % ? # ; = + , $.mov",
        "-rf.mov",
        "trailing dot..mov.",
        &format!("{}.mov", "é".repeat(125)),
    ];
    let files: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| bench.file(name, 1000 + n as u64, n as u64 + 1))
        .collect();
    uplink.add(&files).await.unwrap();
    idle(&uplink).await;
    for (name, file) in names.iter().zip(&files) {
        bench.assert_delivered(name, file).await;
    }
    bench.assert_no_violations();
    uplink.shutdown().await.unwrap();
}

/// A file that is added twice is one media.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_file_is_not_sent_twice() {
    let bench = Bench::start().await;
    let uplink = bench.working().await;
    let file = bench.file("clip.mov", 5000, 1);
    let first = uplink.add([&file]).await.unwrap()[0];
    let second = uplink.add([&file]).await.unwrap()[0];
    assert_eq!(first.id, second.id);
    assert!(first.already.is_none() && second.already.is_some());
    idle(&uplink).await;
    let third = uplink.add([&file]).await.unwrap()[0];
    assert_eq!(third.already, Some(MediaState::Delivered));
    bench.assert_delivered("clip.mov", &file).await;
    uplink.shutdown().await.unwrap();
}
