//! The file behind a media: opening it, and telling whether it still is what it was.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use c2c_queue::{FileFacts, Media, Volume, WallTime};

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
    ask(media, hung, open_now).await
}

/// The same, and makes sure that it lies on the volume that it was added from: another card may carry a file of that name.
pub(crate) async fn open_on_volume(media: &Media, hung: &Hung) -> Result<(File, FileFacts), Fault> {
    let open = |media: &Media| {
        on_its_volume(media, &host::volumes())?;
        open_now(media)
    };
    ask(media, hung, open).await
}

/// Looks at an open file once more.
pub(crate) async fn look_again(
    media: &Media,
    hung: &Hung,
    file: Arc<File>,
) -> Result<FileFacts, Fault> {
    ask(media, hung, move |_| {
        Ok(host::facts_of(&file.metadata().map_err(unreadable)?))
    })
    .await
}

async fn ask<T: Send + 'static>(
    media: &Media,
    hung: &Hung,
    question: impl FnOnce(&Media) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    if hung.holds(media) {
        return Err(Fault::VolumeAway);
    }
    let asked = media.clone();
    let asking = tokio::task::spawn_blocking(move || question(&asked));
    // Real time: the disk does not run on our clock. The thread ends whenever the file system lets it.
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => Err(Fault::Program {
            words: panic.to_string(),
        }),
        Err(_) => {
            hung.insert(media);
            Err(Fault::VolumeAway)
        }
    }
}

fn open_now(media: &Media) -> Result<(File, FileFacts), Fault> {
    let file =
        File::open(&media.path).map_err(|error| fault_of_open(media, &error, &host::volumes()))?;
    let facts = host::facts_of(&file.metadata().map_err(unreadable)?);
    Ok((file, facts))
}

fn unreadable(error: std::io::Error) -> Fault {
    Fault::Unreadable {
        words: error.to_string(),
    }
}

/// Whether what is mounted where the media lies is the volume that it was added from.
pub(crate) fn on_its_volume(media: &Media, mounted: &[Volume]) -> Result<(), Fault> {
    let Some(volume) = &media.volume else {
        return Ok(());
    };
    match host::volume_of(&media.path, mounted) {
        Some(there) if there.id != volume.id => Err(Fault::VolumeAway),
        _ => Ok(()),
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
pub(crate) fn fault_of_open(media: &Media, error: &std::io::Error, mounted: &[Volume]) -> Fault {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    if !matches!(error.kind(), NotFound | NotADirectory) {
        return Fault::Unreadable {
            words: error.to_string(),
        };
    }
    if let Some(volume) = &media.volume {
        match host::relocate(&media.path, volume, mounted) {
            // Any volume may come later than we do, not only a card.
            None => return Fault::VolumeAway,
            // Mounted elsewhere: upkeep finds the file there and releases the hold with its new path.
            Some((path, _)) if path != media.path && path.exists() => return Fault::VolumeAway,
            Some(_) => {}
        }
    }
    Fault::FileGone {
        words: format!("the file {} is gone", media.path.display()),
    }
}
