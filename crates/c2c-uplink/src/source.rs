//! The file behind a media: opening it, and telling whether it still is what it was.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use c2c_queue::{FileFacts, Media, WallTime};

use crate::host;
use crate::settle::Fault;

/// A file whose modification time is younger than this may still be written to.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a file system may take to open a file. A dead network drive never answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Mount points whose file system did not answer: their media wait without costing a thread each.
#[derive(Debug, Default)]
pub(crate) struct Hung(Mutex<BTreeSet<PathBuf>>);

impl Hung {
    /// The file systems answer again, or shall be asked again.
    pub(crate) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn holds(&self, media: &Media) -> bool {
        let hung = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hung.iter().any(|place| media.path.starts_with(place))
    }

    fn insert(&self, media: &Media) {
        let place = match &media.volume {
            Some(volume) => Some(volume.mount_point.clone()),
            None => media.path.parent().map(PathBuf::from),
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(place);
    }
}

/// Opens the file of a media and looks at it.
pub(crate) async fn open(media: &Media, hung: &Hung) -> Result<(File, FileFacts), Fault> {
    if hung.holds(media) {
        return Err(Fault::VolumeAway);
    }
    let asked = media.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let file = File::open(&asked.path).map_err(|error| fault_of_open(&asked, &error))?;
        let unreadable = |error: std::io::Error| Fault::Unreadable {
            words: error.to_string(),
        };
        let facts = host::facts_of(&file.metadata().map_err(unreadable)?);
        Ok((file, facts))
    });
    // Real time: the disk does not run on our clock. The thread ends whenever the file system lets it.
    match tokio::time::timeout(PATIENCE, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(panic)) => Err(Fault::Program {
            words: panic.to_string(),
        }),
        Err(_) => {
            hung.insert(media);
            Err(Fault::VolumeAway)
        }
    }
}

/// What differs between two looks at a file, for a person; `None` if nothing does.
pub(crate) fn difference(was: &FileFacts, is: &FileFacts) -> Option<String> {
    if was.size != is.size {
        Some(format!(
            "its size went from {} to {} bytes",
            was.size, is.size
        ))
    } else if was.mtime_ns != is.mtime_ns {
        Some("it was modified".into())
    } else {
        // The number of the device changes when a volume is mounted elsewhere; the number of the file does not.
        let same = match (was.file_id, is.file_id) {
            (Some(was), Some(is)) => was.file == is.file,
            _ => true,
        };
        (!same).then(|| "it was replaced by another file".into())
    }
}

/// Whether the file may still be written to: its modification is only just past.
pub(crate) fn is_fresh(facts: &FileFacts, wall: WallTime) -> bool {
    let age = wall.0 - facts.mtime_ns.div_euclid(1_000_000);
    (-2_000..SETTLE.as_millis() as i64).contains(&age)
}

/// What it means that a media's file cannot be opened.
pub(crate) fn fault_of_open(media: &Media, error: &std::io::Error) -> Fault {
    if error.kind() != std::io::ErrorKind::NotFound
        && error.kind() != std::io::ErrorKind::NotADirectory
    {
        return Fault::Unreadable {
            words: error.to_string(),
        };
    }
    match &media.volume {
        Some(volume) if volume.removable => {
            let mounted = host::volumes();
            match host::relocate(&media.path, volume, &mounted) {
                None => Fault::VolumeAway,
                // Mounted elsewhere: upkeep finds the file there and releases the hold with its new path.
                Some((path, _)) if path != media.path && path.exists() => Fault::VolumeAway,
                Some(_) => gone(media),
            }
        }
        _ => gone(media),
    }
}

fn gone(media: &Media) -> Fault {
    Fault::FileGone {
        words: format!("the file {} is gone", media.path.display()),
    }
}
