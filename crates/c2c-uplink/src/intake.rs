//! From a path to a media: what the file is, when it was captured, what it is called.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use c2c_protocol::{MAX_FILE, check_parts};
use c2c_queue::{Added, Capture, Hold, NewMedia, Queue, Volume};

use crate::crash;
use crate::error::UplinkError;
use crate::host;
use crate::time::TimeKeeper;

/// A file to add, with what the caller wants different from the defaults.
#[derive(Clone, Debug)]
pub struct AddMedia {
    path: PathBuf,
    name: Option<String>,
    filetype: Option<String>,
    captured: Captured,
    channel: u32,
    priority: i32,
    parts: Option<u32>,
    auto_version_id: Option<String>,
    again: bool,
}

#[derive(Clone, Debug)]
enum Captured {
    ByFileTime,
    Now,
    At(Capture),
}

impl AddMedia {
    /// The file at `path`, captured when the file was last modified.
    pub fn path(path: impl Into<PathBuf>) -> AddMedia {
        AddMedia {
            path: path.into(),
            name: None,
            filetype: None,
            captured: Captured::ByFileTime,
            channel: 0,
            priority: 0,
            parts: None,
            auto_version_id: None,
            again: false,
        }
    }

    /// The name in Frame.io; by default the name of the file. At most 255 bytes of UTF-8, without `/` and control characters.
    pub fn name(mut self, name: impl Into<String>) -> AddMedia {
        self.name = Some(name.into());
        self
    }

    /// The MIME type; by default from the extension.
    pub fn filetype(mut self, filetype: impl Into<String>) -> AddMedia {
        self.filetype = Some(filetype.into());
        self
    }

    /// The media was created right now: for devices that add each file as soon as it is finished. Immune to any wall clock.
    pub fn captured_now(mut self) -> AddMedia {
        self.captured = Captured::Now;
        self
    }

    /// The media was created at this moment.
    pub fn captured_at(mut self, capture: Capture) -> AddMedia {
        self.captured = Captured::At(capture);
        self
    }

    /// The channel of the device; `0` by default.
    pub fn channel(mut self, channel: u32) -> AddMedia {
        self.channel = channel;
        self
    }

    /// Higher goes first; `0` by default.
    pub fn priority(mut self, priority: i32) -> AddMedia {
        self.priority = priority;
        self
    }

    /// The number of chunks to ask the service for. Each but the last must have at least 5 MiB; at most 10,000.
    pub fn parts(mut self, parts: u32) -> AddMedia {
        self.parts = Some(parts);
        self
    }

    /// The asset that this media becomes the next version of.
    pub fn next_version_of(mut self, asset_id: impl Into<String>) -> AddMedia {
        self.auto_version_id = Some(asset_id.into());
        self
    }

    /// Adds it even if the very same file is in the queue already, or was delivered.
    pub fn again(mut self) -> AddMedia {
        self.again = true;
        self
    }
}

impl<P: Into<PathBuf>> From<P> for AddMedia {
    fn from(path: P) -> AddMedia {
        AddMedia::path(path)
    }
}

/// Media that are looked at, and in memory, at a time.
const BATCH: usize = 1000;

/// Looks at all the files, then adds all of them at once. Also tells their names.
pub(crate) async fn accept(
    queue: &dyn Queue,
    time: &Arc<TimeKeeper>,
    media: impl Iterator<Item = AddMedia>,
) -> Result<(Vec<Added>, Names), UplinkError> {
    let mut media = media;
    let mut names = Names::default();
    let mut batch: Vec<AddMedia> = media.by_ref().take(BATCH).collect();
    if batch.len() < BATCH {
        let time = time.clone();
        let examined = blocking(move || {
            let mut places = Places::now();
            batch
                .into_iter()
                .map(|add| examine(add, &time, &mut places))
                .collect::<Result<Vec<_>, _>>()
        });
        let examined = examined.await?;
        for media in &examined {
            names.push(&media.name);
        }
        crash::point("add.before");
        return Ok((queue.add(examined).await?, names));
    }
    let mut spool = queue.spool().await?;
    let mut places = blocking(|| Ok(Places::now())).await?;
    while !batch.is_empty() {
        let time = time.clone();
        let examined = blocking(move || {
            for add in batch {
                let new = examine(add, &time, &mut places)?;
                names.push(&new.name);
                spool.push(&new)?;
            }
            places.forget();
            Ok((spool, places, names))
        });
        (spool, places, names) = examined.await?;
        batch = media.by_ref().take(BATCH).collect();
    }
    crash::point("add.before");
    Ok((queue.add_spooled(spool).await?, names))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UplinkError> + Send + 'static,
) -> Result<T, UplinkError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| UplinkError::Settings {
        words: "a fault of this program while looking at the files".into(),
        source: Some(error.into()),
    })?
}

/// Many names in little memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Names {
    text: String,
    ends: Vec<usize>,
}

impl Names {
    fn push(&mut self, name: &str) {
        self.text.push_str(name);
        self.ends.push(self.text.len());
    }

    /// All of them, as they were put in.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.text[start..*end])
    }
}

/// Where files are. What is found out of a directory holds for the files that are looked at together with it.
struct Places {
    mounted: Arc<[Volume]>,
    directories: HashMap<PathBuf, Directory>,
}

#[derive(Clone)]
struct Directory {
    path: PathBuf,
    volume: Option<Volume>,
    keeps_file_ids: bool,
}

impl Places {
    /// With the volumes that are mounted now. Blocks on the disk.
    fn now() -> Places {
        Places {
            mounted: host::volumes(),
            directories: HashMap::new(),
        }
    }

    fn forget(&mut self) {
        self.directories.clear();
    }

    /// The true path of a file, and what is known of its directory. Blocks on the disk.
    fn find(&mut self, path: &Path) -> std::io::Result<(PathBuf, Directory)> {
        // Elsewhere a path may differ from the true one by more than links, such as upper and lower case.
        let simple = cfg!(target_os = "linux")
            && !std::fs::symlink_metadata(path)?.is_symlink()
            && !self.mounted.iter().any(|volume| volume.mount_point == path);
        let (true_path, parent) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if simple => {
                if let Some(known) = self.directories.get(parent) {
                    return Ok((known.path.join(name), known.clone()));
                }
                let above = if parent == Path::new("") {
                    Path::new(".")
                } else {
                    parent
                };
                let above = std::fs::canonicalize(above)?;
                (above.join(name), Some(parent))
            }
            _ => (std::fs::canonicalize(path)?, None),
        };
        let directory = Directory {
            path: true_path.parent().unwrap_or(&true_path).to_owned(),
            volume: host::volume_of(&true_path, &self.mounted),
            keeps_file_ids: host::keeps_file_ids(&true_path),
        };
        if let Some(parent) = parent {
            self.directories
                .insert(parent.to_owned(), directory.clone());
        }
        Ok((true_path, directory))
    }
}

/// Looks at the file. Blocks on the disk.
fn examine(add: AddMedia, time: &TimeKeeper, places: &mut Places) -> Result<NewMedia, UplinkError> {
    let failed = |words: &str, source: Option<std::io::Error>| UplinkError::Add {
        path: add.path.clone(),
        words: words.to_owned(),
        source,
    };
    let (path, directory) = places.find(&add.path).map_err(|error| {
        let words = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => error.to_string(),
        };
        failed(&words, Some(error))
    })?;
    // Opening it now tells the person who adds it, not somebody an hour later, that it cannot be read.
    let file =
        std::fs::File::open(&path).map_err(|error| failed(&error.to_string(), Some(error)))?;
    let metadata = file
        .metadata()
        .map_err(|error| failed(&error.to_string(), Some(error)))?;
    if metadata.is_dir() {
        return Err(failed("it is a directory; add the files in it", None));
    }
    if !metadata.is_file() {
        return Err(failed("it is not a regular file", None));
    }
    let mut facts = host::facts_of(&metadata);
    if !directory.keeps_file_ids {
        facts.file_id = None;
    }
    if facts.size > MAX_FILE {
        return Err(failed("it is larger than Frame.io takes (5 TiB)", None));
    }
    if let Some(parts) = add.parts {
        check_parts(facts.size, parts).map_err(|error| failed(&error.to_string(), None))?;
    }
    // The path as given has the name that the person knows; a link may lead to another one.
    let name = match add.name.clone() {
        Some(name) => name,
        None => name_of(&add.path)
            .or_else(|| name_of(&path))
            .ok_or_else(|| failed("it has no name", None))?,
    };
    check_name(&name).map_err(|words| failed(words, None))?;
    let filetype = add
        .filetype
        .clone()
        .unwrap_or_else(|| filetype_of(&name).to_owned());
    if filetype.is_empty() || !filetype.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Err(failed(
            "its MIME type must be printable ASCII, like video/quicktime",
            None,
        ));
    }
    let (capture, unknown) = match add.captured.clone() {
        Captured::ByFileTime => time.capture_of_file(facts.mtime_ns),
        Captured::Now => (time.capture_now(), None),
        Captured::At(capture) => (capture, None),
    };
    Ok(NewMedia {
        path,
        name,
        facts,
        volume: directory.volume,
        filetype,
        capture,
        channel: add.channel,
        priority: add.priority,
        parts: add.parts,
        auto_version_id: add.auto_version_id,
        hold: unknown.map(|_| Hold::CaptureTimeUnknown),
        again: add.again,
    })
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name == "." || name == ".." {
        Err("its name in Frame.io would be empty; give it one")
    } else if name.len() > 255 {
        Err("its name is longer than 255 bytes; give it a shorter one")
    } else if name.contains('/') || name.chars().any(char::is_control) {
        Err("its name contains a slash or a control character; give it another one")
    } else {
        Ok(())
    }
}

/// The MIME type by the extension. Formats of cameras first: general tables do not know them, or know others by that name.
pub(crate) fn filetype_of(name: &str) -> &'static str {
    let extension = name
        .rsplit_once('.')
        .map(|(_, extension)| extension.to_ascii_lowercase());
    let Some(extension) = extension else {
        return FALLBACK;
    };
    match extension.as_str() {
        "mov" | "qt" => "video/quicktime",
        "mp4" | "m4v" | "insv" | "lrv" => "video/mp4",
        "mxf" => "application/mxf",
        "mts" | "m2ts" => "video/mp2t",
        "r3d" => "video/x-red-r3d",
        "braw" => "video/x-blackmagic-raw",
        "ari" | "arx" => "image/x-arriraw",
        "crm" => "video/x-canon-crm",
        "nev" => "video/x-nikon-nraw",
        "wav" | "bwf" => "audio/wav",
        "aif" | "aiff" => "audio/aiff",
        "dng" => "image/x-adobe-dng",
        "cr2" | "cr3" => "image/x-canon-raw",
        "nef" => "image/x-nikon-nef",
        "arw" => "image/x-sony-arw",
        "raf" => "image/x-fuji-raf",
        "rw2" => "image/x-panasonic-rw2",
        "heic" => "image/heic",
        "heif" | "hif" => "image/heif",
        "exr" => "image/x-exr",
        "dpx" => "image/x-dpx",
        "cube" | "3dl" | "look" => "application/x-lut",
        "cdl" | "cc" | "ccc" | "mhl" => "application/xml",
        "ale" | "edl" => "text/plain",
        "las" => "application/vnd.las",
        _ => mime_guess::from_ext(&extension)
            .first_raw()
            .unwrap_or(FALLBACK),
    }
}

const FALLBACK: &str = "application/octet-stream";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_of_the_field_are_known() {
        for (name, filetype) in [
            ("A001C003.MOV", "video/quicktime"),
            ("clip.mxf", "application/mxf"),
            ("shot.r3d", "video/x-red-r3d"),
            ("T01.wav", "audio/wav"),
            ("still.JPG", "image/jpeg"),
            ("report.pdf", "application/pdf"),
            ("look.cube", "application/x-lut"),
            ("nothing", FALLBACK),
            ("odd.zzzz", FALLBACK),
        ] {
            assert_eq!(filetype_of(name), filetype, "{name}");
        }
    }

    #[test]
    fn names_that_frame_io_cannot_show_are_refused() {
        assert!(check_name("Überspielung – 第1巻 🎬.mov").is_ok());
        for name in ["", ".", "..", "a/b", "a\nb", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    /// However a path leads to a file, with what was known before or without, it is found where it truly is.
    #[cfg(target_os = "linux")]
    #[test]
    fn files_are_found_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(root.join("card/a")).unwrap();
        std::fs::write(root.join("card/a/clip.mov"), "x").unwrap();
        std::os::unix::fs::symlink(root.join("card"), root.join("link")).unwrap();
        std::os::unix::fs::symlink("clip.mov", root.join("card/a/alias.mov")).unwrap();
        let mut places = Places::now();
        for _ in 0..2 {
            for path in [
                "card/a/clip.mov",
                "card/a/alias.mov",
                "link/a/clip.mov",
                "link/a/../a/clip.mov",
                "link/a/alias.mov",
                "card/./a//clip.mov",
            ] {
                let (found, directory) = places.find(&root.join(path)).unwrap();
                assert_eq!(found, root.join("card/a/clip.mov"), "{path}");
                assert_eq!(directory.path, root.join("card/a"), "{path}");
                assert_eq!(
                    directory.volume,
                    host::volume_of(&found, &places.mounted),
                    "{path}"
                );
                assert_eq!(directory.keeps_file_ids, host::keeps_file_ids(&found));
            }
        }
        assert!(places.find(&root.join("card/a/none.mov")).is_err());
        assert!(places.find(&root.join("none/a.mov")).is_err());
        // A file may be a place where something is mounted.
        let bound = Volume {
            id: "bound".to_owned(),
            mount_point: root.join("card/a/clip.mov"),
            removable: false,
        };
        places.mounted = places.mounted.iter().cloned().chain([bound]).collect();
        let (_, directory) = places.find(&root.join("card/a/clip.mov")).unwrap();
        assert_eq!(directory.volume.unwrap().id, "bound");
    }

    #[test]
    fn names_come_back_in_order() {
        let mut names = Names::default();
        for name in ["one", "", "Überspielung"] {
            names.push(name);
        }
        assert_eq!(
            names.iter().collect::<Vec<_>>(),
            ["one", "", "Überspielung"]
        );
    }
}
