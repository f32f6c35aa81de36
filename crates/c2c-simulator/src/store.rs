//! Files on disk: parts as they arrive, and the folders where whole files end up.
//!
//! Invariants: a part becomes visible by a rename, whole or not at all, and the last one to finish wins; memory
//! does not grow with the size of a part or a file; no name from outside can leave its folder; a file in the
//! delivered tree is always whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use md5::{Digest, Md5};
use sha2::Sha256;

use crate::asset::{AssetStage, Delivered};
use crate::clock::timestamp;
use crate::world::World;

/// Bytes gathered before they are hashed and written.
const BATCH: usize = 512 * 1024;
/// The longest file name of common file systems, in bytes.
const MAX_NAME: usize = 255;

/// Makes the folders of a simulator.
pub(crate) fn prepare(root: &Path) -> io::Result<()> {
    let incoming = root.join("incoming");
    // Whatever a run before left behind belongs to nobody.
    match fs::remove_dir_all(&incoming) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(incoming)?;
    fs::create_dir_all(root.join("delivered"))
}

/// A part on its way in. Dropped before [`PartWriter::finish`] it leaves nothing behind.
pub(crate) struct PartWriter {
    work: Option<Work>,
    path: PathBuf,
    kept: bool,
}

struct Work {
    file: File,
    md5: Md5,
    batch: Vec<u8>,
}

impl PartWriter {
    pub(crate) fn create(world: &World, request: &str) -> io::Result<Self> {
        let path = world.root.join("incoming").join(format!("{request}.part"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        let work = Work {
            file,
            md5: Md5::new(),
            batch: Vec::with_capacity(BATCH),
        };
        Ok(Self {
            work: Some(work),
            path,
            kept: false,
        })
    }

    /// Takes bytes; tells whether a batch was written.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        let mut written = false;
        while !bytes.is_empty() {
            let Some(work) = &mut self.work else {
                return Err(io::Error::other("an earlier write failed"));
            };
            let (now, later) = bytes.split_at(bytes.len().min(BATCH - work.batch.len()));
            work.batch.extend_from_slice(now);
            bytes = later;
            if work.batch.len() == BATCH {
                self.write_batch().await?;
                written = true;
            }
        }
        Ok(written)
    }

    async fn write_batch(&mut self) -> io::Result<()> {
        let Some(mut work) = self.work.take() else {
            return Err(io::Error::other("an earlier write failed"));
        };
        let task = tokio::task::spawn_blocking(move || {
            work.md5.update(&work.batch);
            work.file.write_all(&work.batch)?;
            work.batch.clear();
            io::Result::Ok(work)
        });
        self.work = Some(task.await.map_err(io::Error::other)??);
        Ok(())
    }

    /// Writes the rest out and tells the MD5 of everything.
    pub(crate) async fn finish(&mut self) -> io::Result<[u8; 16]> {
        self.write_batch().await?;
        let Some(work) = self.work.take() else {
            return Err(io::Error::other("an earlier write failed"));
        };
        Ok(work.md5.finalize().into())
    }

    /// Puts the finished part in its place.
    pub(crate) fn keep(mut self, place: &Path) -> io::Result<()> {
        fs::rename(&self.path, place)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, "a part that did not arrive whole could not be removed");
        }
    }
}

/// Where a stored part lies. The name is made of ids only.
pub(crate) fn part_path(world: &World, asset_id: &str, part: u32) -> PathBuf {
    world
        .root
        .join("incoming")
        .join(format!("{asset_id}.{part}"))
}

/// Joins the parts of a complete asset on a thread of its own and puts the file in its place.
pub(crate) fn join_in_background(world: &Arc<World>, asset_id: String) {
    let joining = Arc::clone(world);
    world.tasks.spawn_blocking(move || {
        if let Err(error) = join(&joining, &asset_id) {
            tracing::error!(%error, asset_id, "the parts of an asset could not be joined");
            joining.change(|state| {
                if let Some(asset) = state.assets.get_mut(&asset_id) {
                    asset.stage = AssetStage::Failed(error.to_string());
                }
            });
        }
    });
}

fn join(world: &World, asset_id: &str) -> io::Result<()> {
    let parts = world.read(|state| {
        let asset = state.assets.get(asset_id)?;
        Some(asset.parts.keys().copied().collect::<Vec<u32>>())
    });
    let parts = parts
        .filter(|parts| !parts.is_empty())
        .ok_or_else(|| io::Error::other("the asset has no parts"))?;
    let whole = part_path(world, asset_id, parts[0]);
    let mut digests = Digests {
        md5: Md5::new(),
        sha256: Sha256::new(),
        size: 0,
        buffer: vec![0; BATCH],
    };
    digests.read(&mut File::open(&whole)?, None)?;
    let mut out = OpenOptions::new().append(true).open(&whole)?;
    for number in &parts[1..] {
        let path = part_path(world, asset_id, *number);
        digests.read(&mut File::open(&path)?, Some(&mut out))?;
        fs::remove_file(path)?;
    }
    drop(out);
    let folder = folder(world, asset_id).ok_or_else(|| io::Error::other("the asset is gone"))?;
    let name = world
        .read(|state| state.assets.get(asset_id).map(|asset| asset.name.clone()))
        .unwrap_or_default();
    let path = place(world, &whole, &folder, &name)?;
    let now = world.clock.now();
    world.change(|state| {
        let Some(asset) = state.assets.get_mut(asset_id) else {
            return;
        };
        asset.stage = AssetStage::Delivered;
        state.delivered.push(Delivered {
            asset_id: asset.id.clone(),
            name: asset.name.clone(),
            client_id: asset.client_id.clone(),
            project_id: asset.project_id.clone(),
            path,
            size: digests.size,
            md5: hex::encode(digests.md5.finalize()),
            sha256: hex::encode(digests.sha256.finalize()),
            parts: u32::try_from(parts.len()).unwrap_or(u32::MAX),
            captured_at: asset.captured_at,
            delivered_at: now,
        });
    });
    Ok(())
}

struct Digests {
    md5: Md5,
    sha256: Sha256,
    size: u64,
    buffer: Vec<u8>,
}

impl Digests {
    fn read(&mut self, from: &mut File, mut to: Option<&mut File>) -> io::Result<()> {
        loop {
            let count = from.read(&mut self.buffer)?;
            if count == 0 {
                return Ok(());
            }
            let bytes = &self.buffer[..count];
            self.md5.update(bytes);
            self.sha256.update(bytes);
            self.size += count as u64;
            if let Some(to) = &mut to {
                to.write_all(bytes)?;
            }
        }
    }
}

/// `Cloud Devices/YYYY_MM_DD/TYPE/DEVICE` below the delivered tree.
fn folder(world: &World, asset_id: &str) -> Option<PathBuf> {
    let settings = &world.settings;
    let (captured_at, extension, device) = world.read(|state| {
        let asset = state.assets.get(asset_id)?;
        let extension = asset
            .name
            .rsplit_once('.')
            .map(|(_, extension)| extension.to_lowercase());
        Some((
            asset.captured_at,
            extension.unwrap_or_default(),
            asset.device_name.clone(),
        ))
    })?;
    let day = timestamp(captured_at)
        .to_zoned(settings.timezone.clone())
        .strftime("%Y_%m_%d")
        .to_string();
    let kind = settings
        .folders
        .get(&extension)
        .cloned()
        .unwrap_or_else(|| settings.asset_type.to_uppercase());
    let mut folder = world.root.join("delivered").join("Cloud Devices").join(day);
    folder.push(safe_name(&kind, 0));
    folder.push(safe_name(&device, 0));
    Some(folder)
}

/// Moves a file into a folder under a name that is free there.
fn place(world: &World, file: &Path, folder: &Path, name: &str) -> io::Result<PathBuf> {
    let _placing = world.placing.lock().unwrap_or_else(PoisonError::into_inner);
    fs::create_dir_all(folder)?;
    for copy in 1_u32.. {
        let path = folder.join(safe_name(name, copy));
        if path.symlink_metadata().is_err() {
            fs::rename(file, &path)?;
            return Ok(path);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        "there is no free name left",
    ))
}

/// A name that is one ordinary path component: no separators, no control characters, no dots alone, at most 255
/// bytes. From the second copy on, ` (2)` and so on stands before the extension.
fn safe_name(name: &str, copy: u32) -> String {
    let forbidden = |character: char| {
        matches!(character, '/' | '\\')
            || character.is_control()
            || (cfg!(windows) && matches!(character, '<' | '>' | ':' | '"' | '|' | '?' | '*'))
    };
    let mut safe: String = name
        .chars()
        .map(|character| if forbidden(character) { '_' } else { character })
        .collect();
    if safe.is_empty()
        || safe
            .chars()
            .all(|character| character == '.' || character == ' ')
    {
        safe = safe.replace(['.', ' '], "_");
        safe.push('_');
    }
    let suffix = if copy > 1 {
        format!(" ({copy})")
    } else {
        String::new()
    };
    let (stem, extension) = match safe.rfind('.') {
        Some(dot) if dot > 0 && safe.len() - dot <= 32 => safe.split_at(dot),
        _ => (safe.as_str(), ""),
    };
    let mut room = MAX_NAME - suffix.len() - extension.len();
    while room < stem.len() && !stem.is_char_boundary(room) {
        room -= 1;
    }
    format!("{}{suffix}{extension}", &stem[..room.min(stem.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_in_their_folder() {
        for (name, safe) in [
            ("A001.mov", "A001.mov"),
            ("..", "___"),
            (".", "__"),
            ("", "_"),
            ("../../etc/passwd", ".._.._etc_passwd"),
            ("a\0b\n.mov", "a_b_.mov"),
            ("a\\b.mov", "a_b.mov"),
            (".hidden", ".hidden"),
        ] {
            assert_eq!(safe_name(name, 1), safe, "{name:?}");
            assert_eq!(
                Path::new(&safe_name(name, 1)).components().count(),
                1,
                "{name:?}"
            );
        }
        assert_eq!(safe_name("A001.mov", 2), "A001 (2).mov");
        assert_eq!(safe_name("README", 3), "README (3)");
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        for name in [
            "é".repeat(200) + ".mov",
            "x".repeat(400),
            "x".repeat(200) + "." + &"y".repeat(200),
        ] {
            for copy in [1, 2, 1_000] {
                let safe = safe_name(&name, copy);
                assert!(safe.len() <= 255 && safe.len() > 240, "{}", safe.len());
            }
        }
        assert!(safe_name(&("é".repeat(200) + ".mov"), 2).ends_with(" (2).mov"));
        let exact = "é".repeat(125) + "a.mov";
        assert_eq!((exact.len(), safe_name(&exact, 1)), (255, exact.clone()));
    }
}
