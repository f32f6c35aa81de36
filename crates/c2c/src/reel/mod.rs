//! A shooting day in small: three clips and six stills to try the product with.
//!
//! Invariants:
//! * every file is valid and plays; clips carry pictures, sound and timecode;
//! * no two files have the same bytes;
//! * memory stays at a few pictures, whatever the size of the reel.

mod mov;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use jpeg_encoder::{ColorType, Encoder};

use mov::{Clip, FRAME_RATE, SAMPLE_RATE, SOUND_FRAME};

/// How large the files of a reel are.
#[derive(Clone, Debug)]
pub(crate) struct ReelPlan {
    /// Bytes of each clip, about.
    pub(crate) clips: Vec<u64>,
    /// Number of stills.
    pub(crate) stills: u32,
    /// Width and height of the clips in pixels.
    pub(crate) clip_size: (u16, u16),
    /// Width and height of the stills in pixels.
    pub(crate) still_size: (u16, u16),
    /// Different pictures in a clip before they repeat.
    pub(crate) pictures: u32,
}

impl Default for ReelPlan {
    /// Three clips and six stills, about 100 MB together.
    fn default() -> ReelPlan {
        ReelPlan {
            clips: vec![42_000_000, 30_000_000, 18_000_000],
            stills: 6,
            clip_size: (1280, 720),
            still_size: (2400, 1600),
            pictures: 8,
        }
    }
}

impl ReelPlan {
    /// Bytes of the whole reel, about.
    pub(crate) fn size(&self) -> u64 {
        let (width, height) = self.still_size;
        // Test pictures of this grain take about two and a half bits a pixel.
        let still = u64::from(width) * u64::from(height) * 5 / 16;
        self.clips.iter().sum::<u64>() + u64::from(self.stills) * still
    }
}

/// Why there is no reel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReelError {
    /// A file could not be written.
    #[error("cannot write the test file {path}; is there room for about 100 MB?")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A picture could not be encoded.
    #[error("cannot encode a test picture")]
    Encode(#[from] jpeg_encoder::EncodingError),
    /// The caller asked to stop.
    #[error("stopped while making the test files")]
    Stopped,
}

/// Writes a reel into `dir`, which must exist, and returns its files in the order of shooting.
///
/// `progress` is told the bytes written so far; answering `false` stops the work and removes the file at hand.
///
/// # Errors
/// [`ReelError::Write`] if a file cannot be written, [`ReelError::Stopped`] if `progress` said so.
pub(crate) fn generate(
    dir: &Path,
    plan: &ReelPlan,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Vec<PathBuf>, ReelError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut written = 0;
    let mut files = Vec::new();
    for (index, &size) in (0u32..).zip(&plan.clips) {
        let (width, height) = plan.clip_size;
        let mut pictures = Vec::new();
        for number in 0..plan.pictures.max(1) {
            if !progress(written) {
                return Err(ReelError::Stopped);
            }
            pictures.push(picture(
                width,
                height,
                80,
                u64::from(index) << 32 | u64::from(number),
            )?);
        }
        let each = pictures.iter().map(|p| p.len() as u64).sum::<u64>() / pictures.len() as u64
            + u64::from(SAMPLE_RATE / FRAME_RATE * SOUND_FRAME);
        let clip = Clip {
            width,
            height,
            length: u32::try_from(size / each).unwrap_or(u32::MAX).max(1),
            timecode: (index + 1) * 3600 * FRAME_RATE,
            made_at: now,
            tone: 330 + 110 * index,
            pictures: &pictures,
        };
        let path = dir.join(format!("A001C{:03}.mov", index + 1));
        write_file(&path, &mut written, &mut progress, |out, wrote| {
            clip.write(out, wrote)
        })?;
        files.push(path);
    }
    for number in 1..=plan.stills {
        let (width, height) = plan.still_size;
        let bytes = picture(width, height, 88, u64::from(number) << 48)?;
        let path = dir.join(format!("STILL_{number:04}.jpg"));
        write_file(&path, &mut written, &mut progress, |out, wrote| {
            out.write_all(&bytes)?;
            wrote(bytes.len() as u64)
        })?;
        files.push(path);
    }
    Ok(files)
}

/// Told how many bytes were written; an error of it stops the writing.
type Wrote<'a> = &'a mut dyn FnMut(u64) -> io::Result<()>;

fn write_file(
    path: &Path,
    written: &mut u64,
    progress: &mut impl FnMut(u64) -> bool,
    fill: impl FnOnce(&mut dyn Write, Wrote<'_>) -> io::Result<()>,
) -> Result<(), ReelError> {
    let mut stopped = false;
    let result = File::create_new(path).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out, &mut |bytes| {
            *written += bytes;
            if progress(*written) {
                return Ok(());
            }
            stopped = true;
            Err(io::Error::other("stopped"))
        })?;
        out.flush()
    });
    result.map_err(|source| {
        if source.kind() != io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(path);
        }
        if stopped {
            ReelError::Stopped
        } else {
            ReelError::Write {
                path: path.to_owned(),
                source,
            }
        }
    })
}

/// A test picture: colour bars, a ramp, a box that moves with the low bits of `seed`, and grain from all of it.
fn picture(width: u16, height: u16, quality: u8, seed: u64) -> Result<Vec<u8>, ReelError> {
    const BARS: [[u8; 3]; 7] = [
        [180, 180, 180],
        [180, 180, 16],
        [16, 180, 180],
        [16, 180, 16],
        [180, 16, 180],
        [180, 16, 16],
        [16, 16, 180],
    ];
    let (w, h) = (usize::from(width), usize::from(height));
    let mut grain = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = (seed & 0xffff) as usize;
    let (box_side, box_x, box_y) = (h / 5, step * w / 16 % w, step * h / 24 % h);
    let mut pixels = vec![0u8; w * h * 3];
    for (y, line) in pixels.chunks_exact_mut(w * 3).enumerate() {
        let in_box_line = y.wrapping_sub(box_y) < box_side;
        for (x, pixel) in line.chunks_exact_mut(3).enumerate() {
            let base = if in_box_line && x.wrapping_sub(box_x) < box_side {
                [235; 3]
            } else if y * 4 < h * 3 {
                BARS[x * BARS.len() / w]
            } else {
                [(x * 255 / w) as u8; 3]
            };
            // xorshift64: sensor noise that JPEG cannot squeeze away, the same on every run.
            grain ^= grain << 13;
            grain ^= grain >> 7;
            grain ^= grain << 17;
            let noise = (grain >> 59) as u8;
            for (value, base) in pixel.iter_mut().zip(base) {
                *value = base.saturating_add(noise);
            }
        }
    }
    let mut out = Vec::with_capacity(w * h / 2);
    Encoder::new(&mut out, quality).encode(&pixels, width, height, ColorType::Rgb)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn small() -> ReelPlan {
        ReelPlan {
            clips: vec![900_000, 700_000, 500_000],
            stills: 6,
            clip_size: (160, 90),
            still_size: (240, 160),
            pictures: 3,
        }
    }

    #[test]
    fn a_reel_has_nine_valid_files_that_all_differ() {
        let dir = tempfile::tempdir().unwrap();
        let plan = small();
        let mut last = 0;
        let files = generate(dir.path(), &plan, |bytes| {
            assert!(bytes >= last);
            last = bytes;
            true
        })
        .unwrap();
        assert_eq!(files.len(), 9);
        let mut seen = HashSet::new();
        let mut total = 0;
        for (index, file) in files.iter().enumerate() {
            let bytes = std::fs::read(file).unwrap();
            total += bytes.len() as u64;
            if let Some(&wanted) = plan.clips.get(index) {
                assert_eq!(&bytes[4..12], b"ftypqt  ");
                let ratio = bytes.len() as f64 / wanted as f64;
                assert!(
                    (0.9..1.1).contains(&ratio),
                    "{} is {} bytes, not {wanted}",
                    file.display(),
                    bytes.len()
                );
            } else {
                assert_eq!(bytes[..3], [0xff, 0xd8, 0xff]);
                assert_eq!(bytes[bytes.len() - 2..], [0xff, 0xd9]);
            }
            assert!(
                seen.insert(bytes),
                "{} repeats another file",
                file.display()
            );
        }
        assert_eq!(total, last);
    }

    #[test]
    fn stopping_leaves_no_half_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = generate(dir.path(), &small(), |bytes| bytes < 100_000).unwrap_err();
        assert!(matches!(error, ReelError::Stopped), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("A001C001.mov");
        std::fs::write(&theirs, b"mine").unwrap();
        let error = generate(dir.path(), &small(), |_| true).unwrap_err();
        assert!(matches!(error, ReelError::Write { .. }), "{error}");
        assert_eq!(std::fs::read(&theirs).unwrap(), b"mine");
    }

    /// Makes the whole reel in the directory named by `C2C_REEL_DIR`, to look at with other programs.
    #[test]
    #[ignore = "writes 100 MB; run by hand"]
    fn full_reel() {
        let dir = PathBuf::from(std::env::var_os("C2C_REEL_DIR").unwrap());
        let files = generate(&dir, &ReelPlan::default(), |_| true).unwrap();
        let total: u64 = files
            .iter()
            .map(|file| file.metadata().unwrap().len())
            .sum();
        assert!((90_000_000..115_000_000).contains(&total), "{total} bytes");
    }
}
