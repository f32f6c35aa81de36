//! How a media is cut into chunks.
//!
//! Invariants: the chunks of a plan cover the file exactly once, in order; all but the last have the same size; all
//! arithmetic is in `u64` and cannot overflow for any file size.

use std::ops::{Range, RangeInclusive};

/// The smallest size in bytes of every chunk except the last: 5 MiB, the S3 minimum for a part.
pub const MIN_CHUNK: u64 = 5_242_880;
/// The largest size in bytes of one chunk: 5 GiB, the S3 maximum for one PUT.
pub const MAX_CHUNK: u64 = 5 * 1024 * 1024 * 1024;
/// The largest number of chunks of one asset.
pub const MAX_CHUNKS: u32 = 10_000;
/// The largest file in bytes: 5 TiB.
pub const MAX_FILE: u64 = 5_497_558_138_880;

/// Why a file cannot be cut as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// The service handed out no URL at all.
    #[error("a file of {filesize} bytes came with no upload URL")]
    NoUrls {
        /// Size of the file in bytes.
        filesize: u64,
    },
    /// More URLs than chunks: the last ones would carry nothing.
    #[error(
        "a file of {filesize} bytes cannot be cut into {urls} chunks: {needed} chunks of {chunk_size} bytes already cover it"
    )]
    TooManyUrls {
        /// Size of the file in bytes.
        filesize: u64,
        /// URLs handed out.
        urls: u32,
        /// Chunks that would carry bytes.
        needed: u64,
        /// Bytes of one chunk.
        chunk_size: u64,
    },
    /// More chunks than the service knows.
    #[error("{urls} chunks for a file of {filesize} bytes are more than the limit of {MAX_CHUNKS}")]
    TooManyChunks {
        /// Size of the file in bytes.
        filesize: u64,
        /// Chunks asked for or handed out.
        urls: u32,
    },
    /// A chunk would be larger than one PUT can carry.
    #[error(
        "a file of {filesize} bytes in {urls} chunks needs chunks of {chunk_size} bytes, the limit is {MAX_CHUNK}"
    )]
    ChunkTooLarge {
        /// Size of the file in bytes.
        filesize: u64,
        /// Chunks asked for or handed out.
        urls: u32,
        /// Bytes of one chunk.
        chunk_size: u64,
    },
    /// The file is larger than the service takes.
    #[error("a file of {filesize} bytes is larger than the limit of {MAX_FILE} bytes (5 TiB)")]
    FileTooLarge {
        /// Size of the file in bytes.
        filesize: u64,
    },
    /// The wished number of parts breaks a limit for this file.
    #[error(
        "{parts} parts are not possible for a file of {filesize} bytes; allowed are {least} to {most}"
    )]
    PartsOutOfRange {
        /// Size of the file in bytes.
        filesize: u64,
        /// Parts asked for.
        parts: u32,
        /// Fewest parts allowed for this file.
        least: u32,
        /// Most parts allowed for this file.
        most: u32,
    },
}

/// The byte ranges of one file over its upload URLs: `chunk_size = ceil(filesize / urls)`, the last chunk is the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlan {
    filesize: u64,
    chunk_size: u64,
    count: u32,
}

impl ChunkPlan {
    /// Cuts `filesize` bytes over `urls` URLs.
    ///
    /// An empty file with one URL is one empty chunk.
    ///
    /// # Errors
    ///
    /// When there is no URL, when so many that trailing chunks would be empty, or when a limit is broken.
    pub fn new(filesize: u64, urls: u32) -> Result<Self, ChunkError> {
        if urls == 0 {
            return Err(ChunkError::NoUrls { filesize });
        }
        if filesize > MAX_FILE {
            return Err(ChunkError::FileTooLarge { filesize });
        }
        if urls > MAX_CHUNKS {
            return Err(ChunkError::TooManyChunks { filesize, urls });
        }
        let chunk_size = filesize.div_ceil(u64::from(urls));
        // An empty file still is one (empty) chunk.
        let needed = if chunk_size == 0 {
            1
        } else {
            filesize.div_ceil(chunk_size)
        };
        if needed != u64::from(urls) {
            return Err(ChunkError::TooManyUrls {
                filesize,
                urls,
                needed,
                chunk_size,
            });
        }
        if chunk_size > MAX_CHUNK {
            return Err(ChunkError::ChunkTooLarge {
                filesize,
                urls,
                chunk_size,
            });
        }
        Ok(Self {
            filesize,
            chunk_size,
            count: urls,
        })
    }

    /// Bytes of every chunk but the last, which may be shorter.
    #[must_use]
    pub fn chunk_size(&self) -> u64 {
        self.chunk_size
    }

    /// Number of chunks, at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn filesize(&self) -> u64 {
        self.filesize
    }

    /// The bytes of chunk `number`, counted from 0 in file order; `None` past the last one.
    #[must_use]
    pub fn range(&self, number: u32) -> Option<Range<u64>> {
        if number >= self.count {
            return None;
        }
        let start = u64::from(number) * self.chunk_size;
        Some(start..(start + self.chunk_size).min(self.filesize))
    }

    /// All chunks in file order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let plan = *self;
        (0..plan.count).filter_map(move |number| plan.range(number))
    }
}

/// How many parts may be asked for when a file of `filesize` bytes is registered.
///
/// One part needs no minimum size; several need `ceil(filesize / parts) >= `[`MIN_CHUNK`]. The lower end keeps every
/// chunk within [`MAX_CHUNK`].
#[must_use]
pub fn allowed_parts(filesize: u64) -> RangeInclusive<u32> {
    let clamp = |parts: u64| {
        u32::try_from(parts)
            .unwrap_or(MAX_CHUNKS)
            .clamp(1, MAX_CHUNKS)
    };
    let least = clamp(filesize.div_ceil(MAX_CHUNK));
    // ceil(filesize / n) >= MIN  <=>  filesize / n > MIN - 1  <=>  n * (MIN - 1) <= filesize - 1
    let most = clamp(filesize.saturating_sub(1) / (MIN_CHUNK - 1));
    // No chunk can be empty within these ends: that would need filesize <= n * (n - 1), and n - 1 < MIN.
    least..=most.max(least)
}

/// Whether `parts` may be asked for when a file of `filesize` bytes is registered.
///
/// # Errors
///
/// [`ChunkError::PartsOutOfRange`] names the allowed range for this file.
pub fn check_parts(filesize: u64, parts: u32) -> Result<(), ChunkError> {
    if filesize > MAX_FILE {
        return Err(ChunkError::FileTooLarge { filesize });
    }
    let allowed = allowed_parts(filesize);
    if !allowed.contains(&parts) {
        let (least, most) = allowed.into_inner();
        return Err(ChunkError::PartsOutOfRange {
            filesize,
            parts,
            least,
            most,
        });
    }
    ChunkPlan::new(filesize, parts).map(|_| ())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_worked_example_over_four_and_two() {
        let four = ChunkPlan::new(21_136_250, 4).unwrap();
        assert_eq!(four.chunk_size(), 5_284_063);
        let sizes: Vec<u64> = four.iter().map(|range| range.end - range.start).collect();
        assert_eq!(sizes, [5_284_063, 5_284_063, 5_284_063, 5_284_061]);
        assert_eq!(four.range(3), Some(15_852_189..21_136_250));
        assert_eq!(four.range(4), None);
        let two: Vec<_> = ChunkPlan::new(21_136_250, 2).unwrap().iter().collect();
        assert_eq!(two, [0..10_568_125, 10_568_125..21_136_250]);
    }

    #[test]
    fn boundaries() {
        let empty = ChunkPlan::new(0, 1).unwrap();
        assert_eq!(
            (empty.chunk_size(), empty.count(), empty.range(0)),
            (0, 1, Some(0..0))
        );
        assert_eq!(ChunkPlan::new(1, 1).unwrap().range(0), Some(0..1));
        assert_eq!(
            ChunkPlan::new(5, 0),
            Err(ChunkError::NoUrls { filesize: 5 })
        );
        assert_eq!(
            ChunkPlan::new(MAX_FILE, MAX_CHUNKS).unwrap().chunk_size(),
            549_755_814
        );
        assert_eq!(
            ChunkPlan::new(MAX_FILE + 1, 2_000),
            Err(ChunkError::FileTooLarge {
                filesize: MAX_FILE + 1
            })
        );
        assert!(matches!(
            ChunkPlan::new(u64::MAX, u32::MAX),
            Err(ChunkError::FileTooLarge { .. })
        ));
        assert!(matches!(
            ChunkPlan::new(1, u32::MAX),
            Err(ChunkError::TooManyChunks { .. })
        ));
        assert!(ChunkPlan::new(MAX_CHUNK, 1).is_ok());
        assert!(matches!(
            ChunkPlan::new(MAX_CHUNK + 1, 1),
            Err(ChunkError::ChunkTooLarge { .. })
        ));
        assert!(ChunkPlan::new(MAX_CHUNK + 1, 2).is_ok());
        let words = ChunkPlan::new(0, 2).unwrap_err().to_string();
        assert!(
            words.contains("0 bytes") && words.contains("2 chunks"),
            "{words}"
        );
        // 10 bytes over 6 URLs: chunks of 2 bytes, 5 of them.
        let words = ChunkPlan::new(10, 6).unwrap_err().to_string();
        assert!(
            words.contains("10 bytes") && words.contains("6 chunks") && words.contains("5 chunks"),
            "{words}"
        );
    }

    #[test]
    fn parts_are_checked_at_the_edges() {
        for (filesize, allowed) in [
            (0, 1..=1),
            (1, 1..=1),
            (MIN_CHUNK, 1..=1),
            (MIN_CHUNK + 1, 1..=1),
            // ceil(size / 2) reaches the minimum one byte before twice the minimum.
            (2 * MIN_CHUNK - 2, 1..=1),
            (2 * MIN_CHUNK - 1, 1..=2),
            (2 * MIN_CHUNK, 1..=2),
            (21_136_250, 1..=4),
            (MAX_CHUNK, 1..=1024),
            (MAX_CHUNK + 1, 2..=1024),
            (MAX_FILE, 1_024..=10_000),
        ] {
            assert_eq!(allowed_parts(filesize), allowed, "{filesize}");
            assert_eq!(
                check_parts(filesize, *allowed.start()),
                Ok(()),
                "{filesize}"
            );
            assert_eq!(check_parts(filesize, *allowed.end()), Ok(()), "{filesize}");
            for wrong in [allowed.start() - 1, allowed.end() + 1, u32::MAX] {
                let words = check_parts(filesize, wrong).unwrap_err().to_string();
                let range = format!("allowed are {} to {}", allowed.start(), allowed.end());
                assert!(
                    words.contains(&range) && words.contains(&wrong.to_string()),
                    "{words}"
                );
            }
        }
        assert!(
            check_parts(u64::MAX, 1)
                .unwrap_err()
                .to_string()
                .contains("5 TiB")
        );
    }

    proptest! {
        #[test]
        fn chunks_cover_the_file_exactly_once(filesize in 0..=MAX_FILE, urls in 1..=MAX_CHUNKS) {
            match ChunkPlan::new(filesize, urls) {
                Ok(plan) => {
                    let mut at = 0;
                    let mut count = 0;
                    for range in plan.iter() {
                        prop_assert_eq!(range.start, at);
                        prop_assert!(range.end > range.start || filesize == 0);
                        prop_assert!(range.end - range.start <= plan.chunk_size());
                        at = range.end;
                        count += 1;
                    }
                    prop_assert_eq!(at, filesize);
                    prop_assert_eq!(count, urls);
                }
                Err(ChunkError::TooManyUrls { needed, .. }) => prop_assert!(needed < u64::from(urls)),
                Err(ChunkError::ChunkTooLarge { chunk_size, .. }) => prop_assert!(chunk_size > MAX_CHUNK),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn small_files_over_many_urls_never_leave_an_empty_chunk(filesize in 0..5_000_u64, urls in 1..600_u32) {
            if let Ok(plan) = ChunkPlan::new(filesize, urls) {
                prop_assert!(plan.iter().all(|range| !range.is_empty() || filesize == 0));
                prop_assert_eq!(plan.iter().last().map(|range| range.end), Some(filesize));
            }
        }

        #[test]
        fn accepted_parts_keep_the_limits(filesize in 0..=MAX_FILE, parts in 1..=MAX_CHUNKS) {
            if check_parts(filesize, parts).is_ok() {
                let plan = ChunkPlan::new(filesize, parts).unwrap();
                prop_assert!(parts == 1 || plan.chunk_size() >= MIN_CHUNK);
                prop_assert!(plan.chunk_size() <= MAX_CHUNK);
            }
        }
    }
}
