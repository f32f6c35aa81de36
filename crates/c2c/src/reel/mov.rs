//! A small QuickTime writer: Motion JPEG pictures, PCM sound and a timecode track.
//!
//! Invariants:
//! * every sample lies in the one `mdat`, every chunk offset points at the first byte of a sample;
//! * pictures and sound are interleaved second by second, as cameras do;
//! * the file is smaller than 4 GiB, because offsets are written as 32-bit `stco`.

use std::io::{self, Write};

/// Frames per second, and the time scale of the picture and timecode tracks.
pub(crate) const FRAME_RATE: u32 = 24;
/// Sound frames per second, and the time scale of the sound track.
pub(crate) const SAMPLE_RATE: u32 = 48_000;
/// Channels of the sound track.
pub(crate) const SOUND_CHANNELS: u16 = 2;
/// Bytes of one sound frame: two channels of 16 bits.
pub(crate) const SOUND_FRAME: u32 = 4;
/// Sound frames that last as long as one picture.
const SOUND_PER_PICTURE: u32 = SAMPLE_RATE / FRAME_RATE;
/// Seconds between 1904, where QuickTime time begins, and 1970.
const QUICKTIME_EPOCH: u64 = 2_082_844_800;

/// What is to be written as one clip.
pub(crate) struct Clip<'a> {
    /// Width of the pictures in pixels.
    pub(crate) width: u16,
    /// Height of the pictures in pixels.
    pub(crate) height: u16,
    /// Encoded pictures, shown in a cycle.
    pub(crate) pictures: &'a [Vec<u8>],
    /// How many pictures the clip lasts.
    pub(crate) length: u32,
    /// Timecode of the first picture, in frames since midnight.
    pub(crate) timecode: u32,
    /// Seconds since 1970 at which the clip claims to be made.
    pub(crate) made_at: u64,
    /// Pitch of the tone on the sound track, in hertz.
    pub(crate) tone: u32,
}

/// Where the samples of one track are.
#[derive(Default)]
struct Chunks {
    offsets: Vec<u32>,
    /// Samples per chunk.
    lengths: Vec<u32>,
}

impl Clip<'_> {
    fn picture(&self, number: u32) -> &[u8] {
        &self.pictures[number as usize % self.pictures.len()]
    }

    /// Writes the whole file to `out`, calling `wrote` with the number of bytes of each write.
    ///
    /// # Errors
    /// What `out` or `wrote` answers, and `InvalidInput` for a clip without pictures or of 4 GiB and more.
    pub(crate) fn write(
        &self,
        out: &mut dyn Write,
        wrote: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.pictures.is_empty() || self.length == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a clip needs at least one picture",
            ));
        }
        let mut put = |bytes: &[u8]| {
            out.write_all(bytes)?;
            wrote(bytes.len() as u64)
        };
        let payload: u64 = (0..self.length)
            .map(|n| self.picture(n).len() as u64)
            .sum::<u64>()
            + u64::from(self.length) * u64::from(SOUND_PER_PICTURE * SOUND_FRAME)
            + 4;
        let mdat = u32::try_from(payload + 8)
            .ok()
            .filter(|size| size.checked_add(1 << 20).is_some())
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a clip must be smaller than 4 GiB",
                )
            })?;

        let mut head = Vec::new();
        atom(&mut head, b"ftyp", |b| {
            b.extend(b"qt  ");
            be32(b, 0x2005_0300);
            b.extend(b"qt  ");
        });
        be32(&mut head, mdat);
        head.extend(b"mdat");
        put(&head)?;
        let mut at = head.len() as u32;

        let timecode = Chunks {
            offsets: vec![at],
            lengths: vec![1],
        };
        put(&self.timecode.to_be_bytes())?;
        at += 4;

        let (mut pictures, mut sound) = (Chunks::default(), Chunks::default());
        let tone = self.second_of_tone();
        for first in (0..self.length).step_by(FRAME_RATE as usize) {
            let count = FRAME_RATE.min(self.length - first);
            pictures.offsets.push(at);
            pictures.lengths.push(count);
            for number in first..first + count {
                let picture = self.picture(number);
                put(picture)?;
                at += picture.len() as u32;
            }
            let bytes = count * SOUND_PER_PICTURE * SOUND_FRAME;
            sound.offsets.push(at);
            sound.lengths.push(count * SOUND_PER_PICTURE);
            put(&tone[..bytes as usize])?;
            at += bytes;
        }
        put(&self.moov(&pictures, &sound, &timecode))
    }

    /// One second of a sine tone, both channels, little-endian.
    fn second_of_tone(&self) -> Vec<u8> {
        let mut second = Vec::with_capacity((SAMPLE_RATE * SOUND_FRAME) as usize);
        for n in 0..SAMPLE_RATE {
            let angle = f64::from(n * self.tone % SAMPLE_RATE) / f64::from(SAMPLE_RATE)
                * std::f64::consts::TAU;
            let level = ((angle.sin() * 3_000.0) as i16).to_le_bytes();
            second.extend(level);
            second.extend(level);
        }
        second
    }

    fn moov(&self, pictures: &Chunks, sound: &Chunks, timecode: &Chunks) -> Vec<u8> {
        let made_at = (self.made_at + QUICKTIME_EPOCH) as u32;
        let length = self.length;
        let mut out = Vec::new();
        atom(&mut out, b"moov", |b| {
            atom(b, b"mvhd", |b| {
                be32(b, 0);
                be32(b, made_at);
                be32(b, made_at);
                be32(b, FRAME_RATE);
                be32(b, length);
                be32(b, 0x0001_0000); // rate
                be16(b, 0x0100); // volume
                b.extend([0; 10]);
                matrix(b);
                b.extend([0; 24]);
                be32(b, 4); // next track
            });
            self.track(
                b,
                1,
                made_at,
                &Media {
                    kind: *b"vide",
                    scale: FRAME_RATE,
                    duration: length,
                    size: (self.width, self.height),
                    chunks: pictures,
                    deltas: &|b| entries(b, &[[length, 1]]),
                    sizes: &|b| {
                        be32(b, 0);
                        be32(b, length);
                        for number in 0..length {
                            be32(b, self.picture(number).len() as u32);
                        }
                    },
                    header: &|b| {
                        atom(b, b"vmhd", |b| {
                            be32(b, 1);
                            be16(b, 0x40);
                            b.extend([0x80, 0, 0x80, 0, 0x80, 0]);
                        });
                    },
                    description: &|b| self.picture_description(b),
                    timecode: Some(3),
                },
            );
            let sound_frames = length * SOUND_PER_PICTURE;
            self.track(
                b,
                2,
                made_at,
                &Media {
                    kind: *b"soun",
                    scale: SAMPLE_RATE,
                    duration: sound_frames,
                    size: (0, 0),
                    chunks: sound,
                    deltas: &|b| entries(b, &[[sound_frames, 1]]),
                    sizes: &|b| {
                        be32(b, SOUND_FRAME);
                        be32(b, sound_frames);
                    },
                    header: &|b| atom(b, b"smhd", |b| b.extend([0; 8])),
                    description: &sound_description,
                    timecode: Some(3),
                },
            );
            self.track(
                b,
                3,
                made_at,
                &Media {
                    kind: *b"tmcd",
                    scale: FRAME_RATE,
                    duration: length,
                    size: (0, 0),
                    chunks: timecode,
                    deltas: &|b| entries(b, &[[1, length]]),
                    sizes: &|b| {
                        be32(b, 4);
                        be32(b, 1);
                    },
                    header: &timecode_header,
                    description: &timecode_description,
                    timecode: None,
                },
            );
        });
        out
    }

    fn track(&self, out: &mut Vec<u8>, id: u32, made_at: u32, media: &Media<'_>) {
        atom(out, b"trak", |b| {
            atom(b, b"tkhd", |b| {
                be32(b, 0x0f); // enabled, in movie, preview and poster
                be32(b, made_at);
                be32(b, made_at);
                be32(b, id);
                be32(b, 0);
                be32(b, self.length);
                b.extend([0; 8]);
                be16(b, 0); // layer
                be16(b, 0); // alternate group
                be16(b, if media.kind == *b"soun" { 0x0100 } else { 0 });
                be16(b, 0);
                matrix(b);
                be32(b, u32::from(media.size.0) << 16);
                be32(b, u32::from(media.size.1) << 16);
            });
            if let Some(track) = media.timecode {
                atom(b, b"tref", |b| atom(b, b"tmcd", |b| be32(b, track)));
            }
            atom(b, b"mdia", |b| {
                atom(b, b"mdhd", |b| {
                    be32(b, 0);
                    be32(b, made_at);
                    be32(b, made_at);
                    be32(b, media.scale);
                    be32(b, media.duration);
                    be16(b, 0); // language
                    be16(b, 0); // quality
                });
                handler(b, b"mhlr", &media.kind);
                atom(b, b"minf", |b| {
                    (media.header)(b);
                    handler(b, b"dhlr", b"url ");
                    atom(b, b"dinf", |b| {
                        atom(b, b"dref", |b| {
                            be32(b, 0);
                            be32(b, 1);
                            atom(b, b"url ", |b| be32(b, 1)); // in this file
                        });
                    });
                    atom(b, b"stbl", |b| media.sample_table(b));
                });
            });
        });
    }

    fn picture_description(&self, b: &mut Vec<u8>) {
        atom(b, b"jpeg", |b| {
            b.extend([0; 6]);
            be16(b, 1); // data reference
            be32(b, 0); // version and revision
            b.extend(b"c2c ");
            be32(b, 0x200); // temporal quality
            be32(b, 0x200); // spatial quality
            be16(b, self.width);
            be16(b, self.height);
            be32(b, 72 << 16);
            be32(b, 72 << 16);
            be32(b, 0);
            be16(b, 1); // pictures per sample
            let name = b"Photo - JPEG";
            b.push(name.len() as u8);
            b.extend(name);
            b.extend(std::iter::repeat_n(0, 31 - name.len()));
            be16(b, 24); // depth
            be16(b, u16::MAX); // no colour table
        });
    }
}

/// A part of an atom that is written on demand.
type Body<'a> = &'a dyn Fn(&mut Vec<u8>);

/// What differs between the three tracks.
struct Media<'a> {
    kind: [u8; 4],
    scale: u32,
    duration: u32,
    size: (u16, u16),
    chunks: &'a Chunks,
    deltas: Body<'a>,
    sizes: Body<'a>,
    header: Body<'a>,
    description: Body<'a>,
    /// The track that carries the timecode of this one.
    timecode: Option<u32>,
}

impl Media<'_> {
    fn sample_table(&self, b: &mut Vec<u8>) {
        atom(b, b"stsd", |b| {
            be32(b, 0);
            be32(b, 1);
            (self.description)(b);
        });
        atom(b, b"stts", |b| {
            be32(b, 0);
            (self.deltas)(b);
        });
        atom(b, b"stsc", |b| {
            be32(b, 0);
            // One entry wherever the number of samples per chunk changes.
            let mut runs: Vec<[u32; 3]> = Vec::new();
            for (index, &samples) in self.chunks.lengths.iter().enumerate() {
                if runs.last().is_none_or(|run| run[1] != samples) {
                    runs.push([index as u32 + 1, samples, 1]);
                }
            }
            entries(b, &runs);
        });
        atom(b, b"stsz", |b| {
            be32(b, 0);
            (self.sizes)(b);
        });
        atom(b, b"stco", |b| {
            be32(b, 0);
            let offsets: Vec<[u32; 1]> =
                self.chunks.offsets.iter().map(|&offset| [offset]).collect();
            entries(b, &offsets);
        });
    }
}

fn sound_description(b: &mut Vec<u8>) {
    atom(b, b"sowt", |b| {
        b.extend([0; 6]);
        be16(b, 1); // data reference
        b.extend([0; 8]); // version, revision, vendor
        be16(b, SOUND_CHANNELS);
        be16(b, 16); // bits
        be32(b, 0); // compression, packet size
        be32(b, SAMPLE_RATE << 16);
    });
}

fn timecode_header(b: &mut Vec<u8>) {
    atom(b, b"gmhd", |b| {
        atom(b, b"gmin", |b| {
            be32(b, 0);
            be16(b, 0x40);
            b.extend([0x80, 0, 0x80, 0, 0x80, 0]);
            be32(b, 0);
        });
        atom(b, b"tmcd", |b| {
            atom(b, b"tcmi", |b| {
                be32(b, 0);
                be32(b, 0); // font, face
                be16(b, 12); // text size
                be16(b, 0);
                b.extend([0; 6]); // text colour
                b.extend([0xff; 6]); // background colour
                b.push(9);
                b.extend(b"Helvetica");
            });
        });
    });
}

fn timecode_description(b: &mut Vec<u8>) {
    atom(b, b"tmcd", |b| {
        b.extend([0; 6]);
        be16(b, 1); // data reference
        be32(b, 0);
        be32(b, 2); // wraps at 24 hours, not drop-frame
        be32(b, FRAME_RATE);
        be32(b, 1); // duration of a frame
        b.push(FRAME_RATE as u8);
        b.push(0);
    });
}

fn handler(out: &mut Vec<u8>, class: &[u8; 4], kind: &[u8; 4]) {
    atom(out, b"hdlr", |b| {
        be32(b, 0);
        b.extend(class);
        b.extend(kind);
        b.extend([0; 12]);
        b.push(3);
        b.extend(b"c2c");
    });
}

/// The identity matrix.
fn matrix(b: &mut Vec<u8>) {
    for value in [0x0001_0000, 0, 0, 0, 0x0001_0000, 0, 0, 0, 0x4000_0000] {
        be32(b, value);
    }
}

/// A counted table of fixed rows.
fn entries<const N: usize>(b: &mut Vec<u8>, rows: &[[u32; N]]) {
    be32(b, rows.len() as u32);
    for value in rows.iter().flatten() {
        be32(b, *value);
    }
}

fn be16(b: &mut Vec<u8>, value: u16) {
    b.extend(value.to_be_bytes());
}

fn be32(b: &mut Vec<u8>, value: u32) {
    b.extend(value.to_be_bytes());
}

/// Appends an atom whose size is filled in after its body was written.
fn atom(out: &mut Vec<u8>, kind: &[u8; 4], body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    be32(out, 0);
    out.extend(kind);
    body(out);
    let size = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of the atom at `path`; an element `trak2` means the second `trak`.
    pub(super) fn find<'a>(data: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
        let (wanted, rest) = path.split_first()?;
        let (name, mut nth) = (&wanted[..4], wanted[4..].parse::<usize>().unwrap_or(1));
        let mut at = 0;
        while at + 8 <= data.len() {
            let size = u32::from_be_bytes(data[at..at + 4].try_into().unwrap()) as usize;
            assert!(
                size >= 8 && at + size <= data.len(),
                "atom at {at} of size {size} leaves its parent"
            );
            if &data[at + 4..at + 8] == name.as_bytes() {
                nth -= 1;
                if nth == 0 {
                    let body = &data[at + 8..at + size];
                    return if rest.is_empty() {
                        Some(body)
                    } else {
                        find(body, rest)
                    };
                }
            }
            at += size;
        }
        None
    }

    fn number(data: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(data[at..at + 4].try_into().unwrap())
    }

    fn written(length: u32) -> Vec<u8> {
        let pictures: Vec<Vec<u8>> = (0..5u8)
            .map(|n| {
                let mut picture = vec![0xff, 0xd8, 0xff, 0xe0];
                picture.extend(vec![n; 100 + usize::from(n) * 7]);
                picture.extend([0xff, 0xd9]);
                picture
            })
            .collect();
        let clip = Clip {
            width: 1280,
            height: 720,
            pictures: &pictures,
            length,
            timecode: 24 * 3600,
            made_at: 1_790_000_000,
            tone: 440,
        };
        let (mut out, mut told) = (Vec::new(), 0);
        clip.write(&mut out, &mut |bytes| {
            told += bytes;
            Ok(())
        })
        .unwrap();
        assert_eq!(told, out.len() as u64);
        out
    }

    #[test]
    fn atoms_fill_the_file_and_every_picture_is_where_the_tables_say() {
        for length in [1, 23, 24, 25, 60] {
            let file = written(length);
            let mut top = Vec::new();
            let mut at = 0;
            while at < file.len() {
                let size = number(&file, at) as usize;
                top.push(String::from_utf8(file[at + 4..at + 8].to_vec()).unwrap());
                at += size;
            }
            assert_eq!(at, file.len());
            assert_eq!(top, ["ftyp", "mdat", "moov"]);

            let stbl = find(&file, &["moov", "trak", "mdia", "minf", "stbl"]).unwrap();
            let sizes = find(stbl, &["stsz"]).unwrap();
            assert_eq!((number(sizes, 4), number(sizes, 8)), (0, length));
            let offsets = find(stbl, &["stco"]).unwrap();
            let runs = find(stbl, &["stsc"]).unwrap();
            let per_chunk = |chunk: u32| {
                (0..number(runs, 4) as usize)
                    .map(|run| (number(runs, 8 + run * 12), number(runs, 12 + run * 12)))
                    .take_while(|(first, _)| *first <= chunk)
                    .last()
                    .unwrap()
                    .1
            };
            let mut picture = 0;
            for chunk in 0..number(offsets, 4) {
                let mut at = number(offsets, 8 + chunk as usize * 4) as usize;
                for _ in 0..per_chunk(chunk + 1) {
                    let size = number(sizes, 12 + picture * 4) as usize;
                    assert_eq!(
                        file[at..at + 2],
                        [0xff, 0xd8],
                        "picture {picture} of {length}"
                    );
                    assert_eq!(file[at + size - 2..at + size], [0xff, 0xd9]);
                    at += size;
                    picture += 1;
                }
            }
            assert_eq!(picture, length as usize);
        }
    }

    #[test]
    fn sound_lasts_as_long_as_the_pictures_and_timecode_is_one_sample() {
        let file = written(30);
        let sound = find(&file, &["moov", "trak2", "mdia", "minf", "stbl"]).unwrap();
        let sizes = find(sound, &["stsz"]).unwrap();
        assert_eq!((number(sizes, 4), number(sizes, 8)), (4, 30 * 2_000));
        assert_eq!(&find(sound, &["stsd"]).unwrap()[12..16], b"sowt");
        let offsets = find(sound, &["stco"]).unwrap();
        assert_eq!(number(offsets, 4), 2);
        // The second chunk holds the last quarter second and ends where the index begins.
        let moov = file.len() - find(&file, &["moov"]).unwrap().len() - 8;
        assert_eq!(number(offsets, 12) as usize + 6 * 2_000 * 4, moov);

        let timecode = find(&file, &["moov", "trak3", "mdia", "minf", "stbl"]).unwrap();
        assert_eq!(&find(timecode, &["stsd"]).unwrap()[12..16], b"tmcd");
        let at = number(find(timecode, &["stco"]).unwrap(), 8) as usize;
        assert_eq!(number(&file, at), 24 * 3600);
        let refers = find(&file, &["moov", "trak", "tref", "tmcd"]).unwrap();
        assert_eq!(number(refers, 0), 3);
    }

    #[test]
    fn a_clip_without_pictures_is_refused() {
        let clip = Clip {
            width: 1,
            height: 1,
            pictures: &[],
            length: 1,
            timecode: 0,
            made_at: 0,
            tone: 1,
        };
        let error = clip.write(&mut Vec::new(), &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
