//! Media on their way into the queue that are too many to be in memory at once.
//!
//! They lie in a file that only this process knows and that goes with it: it need not survive anything, because nothing is
//! accepted until [`crate::Queue::add_spooled`] has all of them on disk in one transaction.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::Capture;
use crate::error::QueueError;
use crate::host;
use crate::media::{FileFacts, Hold, NewMedia, Volume};

/// Media to be added together, in the order in which they were put in.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<File>,
    path: PathBuf,
    length: u64,
}

impl Spool {
    /// An empty one, in a directory that has room. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`QueueError::Io`] if no file can be made there.
    pub fn in_dir(dir: &Path) -> Result<Spool, QueueError> {
        let path = dir.join(format!("intake-{}.tmp", uuid::Uuid::new_v4()));
        let file = host::create_fleeting(&path).map_err(failed("make the file", &path))?;
        Ok(Spool {
            file: BufWriter::with_capacity(64 * 1024, file),
            path,
            length: 0,
        })
    }

    /// Puts one in. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`QueueError::Io`] if the disk is full or fails.
    pub fn push(&mut self, media: &NewMedia) -> Result<(), QueueError> {
        let mut write = || -> io::Result<()> {
            serde_json::to_writer(&mut self.file, &Line::of(media))?;
            self.file.write_all(b"\n")
        };
        write().map_err(failed("write to", &self.path))?;
        self.length += 1;
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes them out, one at a time. Blocks on the disk, and so does each step.
    ///
    /// # Errors
    ///
    /// [`QueueError::Io`] if the disk is full or fails.
    pub fn into_media(self) -> Result<SpooledMedia, QueueError> {
        let Spool { file, path, length } = self;
        let rewound = file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|mut file| file.rewind().map(|()| file));
        let file = rewound.map_err(failed("read", &path))?;
        Ok(SpooledMedia {
            file: BufReader::with_capacity(64 * 1024, file),
            path,
            left: length,
            line: Vec::new(),
        })
    }
}

/// What comes out of a [`Spool`].
#[derive(Debug)]
pub struct SpooledMedia {
    file: BufReader<File>,
    path: PathBuf,
    left: u64,
    line: Vec<u8>,
}

impl Iterator for SpooledMedia {
    type Item = Result<NewMedia, QueueError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        self.line.clear();
        let media = self
            .file
            .read_until(b'\n', &mut self.line)
            .and_then(|_| Ok(serde_json::from_slice::<Line<'static>>(&self.line)?));
        Some(
            media
                .map(Line::into_media)
                .map_err(failed("read", &self.path)),
        )
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QueueError {
    move |source| QueueError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

type Text<'a> = std::borrow::Cow<'a, str>;

/// A [`NewMedia`] as it lies in the file. Paths lose nothing here.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    path: Place<'a>,
    name: Text<'a>,
    facts: FileFacts,
    volume: Option<(Text<'a>, Place<'a>, bool)>,
    filetype: Text<'a>,
    capture: Capture,
    channel: u32,
    priority: i32,
    parts: Option<u32>,
    auto_version_id: Option<Text<'a>>,
    hold: Option<Hold>,
    again: bool,
}

/// A path: as text where it is Unicode.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Place<'a> {
    Text(Text<'a>),
    Bytes(Vec<u8>),
}

impl Place<'_> {
    fn of(path: &Path) -> Place<'_> {
        match path.to_str() {
            Some(text) => Place::Text(text.into()),
            None => Place::Bytes(host::path_bytes(path)),
        }
    }

    fn into_path(self) -> PathBuf {
        match self {
            Place::Text(text) => PathBuf::from(text.into_owned()),
            Place::Bytes(bytes) => host::path_from_bytes(&bytes),
        }
    }
}

impl Line<'_> {
    fn of(media: &NewMedia) -> Line<'_> {
        let volume = media.volume.as_ref().map(|volume| {
            let mount_point = Place::of(&volume.mount_point);
            (volume.id.as_str().into(), mount_point, volume.removable)
        });
        Line {
            path: Place::of(&media.path),
            name: media.name.as_str().into(),
            facts: media.facts.clone(),
            volume,
            filetype: media.filetype.as_str().into(),
            capture: media.capture.clone(),
            channel: media.channel,
            priority: media.priority,
            parts: media.parts,
            auto_version_id: media.auto_version_id.as_deref().map(Into::into),
            hold: media.hold,
            again: media.again,
        }
    }

    fn into_media(self) -> NewMedia {
        NewMedia {
            path: self.path.into_path(),
            name: self.name.into_owned(),
            facts: self.facts,
            volume: self.volume.map(|(id, mount_point, removable)| Volume {
                id: id.into_owned(),
                mount_point: mount_point.into_path(),
                removable,
            }),
            filetype: self.filetype.into_owned(),
            capture: self.capture,
            channel: self.channel,
            priority: self.priority,
            parts: self.parts,
            auto_version_id: self.auto_version_id.map(Text::into_owned),
            hold: self.hold,
            again: self.again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{BootId, BootTime, CaptureSource, WallTime};
    use crate::media::FileId;

    fn media(path: PathBuf) -> NewMedia {
        NewMedia {
            path: path.clone(),
            name: "Überspielung \"1\"\u{2028}.mov".to_owned(),
            facts: FileFacts {
                size: u64::MAX >> 1,
                mtime_ns: -5,
                file_id: Some(FileId {
                    device: u64::MAX,
                    file: 3,
                }),
            },
            volume: Some(Volume {
                id: "card".to_owned(),
                mount_point: path,
                removable: true,
            }),
            filetype: "video/quicktime".to_owned(),
            capture: Capture {
                wall: WallTime(1),
                boot_id: Some(BootId("boot".to_owned())),
                boot: Some(BootTime(2)),
                source: CaptureSource::Doubted,
            },
            channel: 1,
            priority: -2,
            parts: Some(3),
            auto_version_id: Some("asset".to_owned()),
            hold: Some(Hold::CaptureTimeUnknown),
            again: true,
        }
    }

    #[test]
    fn what_goes_in_comes_out_and_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::in_dir(dir.path()).unwrap();
        let mut paths = vec![
            PathBuf::from("/card/a\nb"),
            PathBuf::from("/card/\u{1f3ac}"),
        ];
        #[cfg(unix)]
        paths.push(host::path_from_bytes(b"/card/\xff\xfe"));
        for path in &paths {
            spool.push(&media(path.clone())).unwrap();
        }
        let mut plain = media(PathBuf::from("/plain"));
        plain.volume = None;
        plain.parts = None;
        plain.auto_version_id = None;
        plain.hold = None;
        spool.push(&plain).unwrap();
        assert_eq!(spool.len(), paths.len() as u64 + 1);
        let mut out = spool.into_media().unwrap();
        for path in paths {
            let got = out.next().unwrap().unwrap();
            assert_eq!(format!("{got:?}"), format!("{:?}", media(path)));
        }
        let got = out.next().unwrap().unwrap();
        assert_eq!(format!("{got:?}"), format!("{plain:?}"));
        assert!(out.next().is_none());
        drop(out);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
