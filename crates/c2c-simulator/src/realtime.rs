//! Growing files: URLs for parts while the recording still runs.
//!
//! Invariants: a part number stands for one size for ever; the final part is registered once and has the highest
//! number; the sizes of all parts never exceed the announced size of the file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::asset::{Asset, MAX_FILE, MAX_PART, MAX_PARTS, MIN_PART, has_extension};
use crate::fields::{Fields, bad_request};
use crate::pairing::Bearer;
use crate::world::World;

struct Wanted {
    number: u32,
    size: u64,
    is_final: bool,
}

/// Registers parts and issues their URLs, in the order they were asked for.
pub(crate) fn parts(
    world: &World,
    bearer: &Bearer,
    asset_id: &str,
    fields: &Fields,
) -> Result<Value, Box<Answer>> {
    let wanted = wanted(fields)
        .map_err(|_| bad_request("`parts` must list number, size and is_final of each part"))?;
    let filesize = fields
        .whole("asset_filesize")
        .map_err(|_| bad_request("`asset_filesize` must be a whole number"))?;
    let name = fields
        .text("asset_name")
        .map_err(|_| bad_request("`asset_name` must be a string"))?;
    if wanted.is_empty() {
        return Err(bad_request("`parts` must name at least one part"));
    }
    if filesize.is_some_and(|size| !(1..=MAX_FILE).contains(&size)) {
        return Err(bad_request(
            "`asset_filesize` must be between 1 byte and 5 TiB",
        ));
    }
    if name.as_deref().is_some_and(|name| !has_extension(name)) {
        return Err(bad_request("`asset_name` must have an extension"));
    }
    let now = world.clock.now();
    world.change(|state| {
        let unknown = || Box::new(answer::detailed(404, "Not Found", "There is no such asset"));
        let asset = state.assets.get_mut(asset_id).ok_or_else(unknown)?;
        if asset.client_id != bearer.client_id {
            return Err(unknown());
        }
        check(asset, &wanted, filesize).map_err(|detail| bad_request(&detail))?;
        for part in &wanted {
            asset.register(part.number, part.size, now);
        }
        let last = wanted
            .iter()
            .find(|part| part.is_final)
            .map(|part| part.number);
        if let Some(realtime) = &mut asset.realtime {
            realtime.final_part = realtime.final_part.or(last);
            if let Some(name) = name
                && std::mem::take(&mut realtime.default_name)
            {
                asset.name = name;
            }
        }
        if last.is_some() {
            asset.filesize = filesize;
        }
        let urls: Vec<String> = wanted
            .iter()
            .filter_map(|part| asset.url(world, part.number))
            .collect();
        Ok(json!({ "upload_urls": urls }))
    })
}

fn wanted(fields: &Fields) -> Result<Vec<Wanted>, Box<Answer>> {
    let missing = || bad_request("");
    let read = |item: &Value| {
        let item = Fields::from(item.as_object().ok_or_else(missing)?.clone());
        let number = item
            .whole("number")?
            .and_then(|number| u32::try_from(number).ok());
        Ok(Wanted {
            number: number.ok_or_else(missing)?,
            size: item.whole("size")?.ok_or_else(missing)?,
            is_final: item.flag("is_final")?.ok_or_else(missing)?,
        })
    };
    fields.array("parts")?.iter().map(read).collect()
}

fn check(asset: &Asset, wanted: &[Wanted], filesize: Option<u64>) -> Result<(), String> {
    let Some(realtime) = &asset.realtime else {
        return Err("the asset is no real-time upload".to_owned());
    };
    let mut sizes: BTreeMap<u32, u64> = asset
        .parts
        .iter()
        .map(|(number, part)| (*number, part.size))
        .collect();
    let mut last = realtime.final_part;
    let mut seen = Vec::new();
    for part in wanted {
        let number = part.number;
        if !(1..=MAX_PARTS).contains(&u64::from(number)) {
            return Err(format!(
                "part number {number} is not between 1 and {MAX_PARTS}"
            ));
        }
        if seen.contains(&number) {
            return Err(format!("part {number} is named twice"));
        }
        seen.push(number);
        let least = if part.is_final { 1 } else { MIN_PART };
        if !(least..=MAX_PART).contains(&part.size) {
            return Err(format!(
                "part {number} has {} bytes, allowed are {least} to {MAX_PART}",
                part.size
            ));
        }
        if sizes.get(&number).is_some_and(|known| *known != part.size) {
            return Err(format!("part {number} was registered with another size"));
        }
        if part.is_final && last.is_some_and(|last| last != number) {
            return Err("there is a final part already".to_owned());
        }
        if !part.is_final && last == Some(number) {
            return Err(format!("part {number} was registered as the final one"));
        }
        if part.is_final {
            last = Some(number);
        }
        sizes.insert(number, part.size);
    }
    if last.is_some_and(|last| {
        sizes
            .keys()
            .next_back()
            .is_some_and(|highest| *highest > last)
    }) {
        return Err("the final part must have the highest number".to_owned());
    }
    if wanted.iter().any(|part| part.is_final) && filesize.is_none() {
        return Err("`asset_filesize` is required with the final part".to_owned());
    }
    let total = filesize.filter(|_| last.is_some()).or(asset.filesize);
    if let (Some(known), Some(new)) = (asset.filesize, filesize)
        && known != new
    {
        return Err("`asset_filesize` differs from the one given before".to_owned());
    }
    let sum: u64 = sizes.values().sum();
    if total.is_some_and(|total| sum > total) {
        return Err(format!(
            "the parts have {sum} bytes together, more than `asset_filesize`"
        ));
    }
    Ok(())
}
