//! `demo`: the whole way on one machine, from making files to comparing what arrived.
//!
//! Invariants:
//! * it talks to nothing but this machine, and needs no account;
//! * it uses the same code as `pair` and `upload`; only the other end is a simulator;
//! * however it ends, no process and, without `--keep`, no file stays behind.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use c2c_queue::{KeyStore, MediaId, Receipt};
use c2c_simulator::{Delivered, Simulator};
use c2c_uplink::Uplink;
use indicatif::{ProgressBar, ProgressStyle};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cli::{AddOptions, Demo, Global, Patience};
use crate::deliver;
use crate::error::{Exit, Failure};
use crate::format::{self, Align, Table};
use crate::interrupt::{Interrupt, Scratch};
use crate::pairing;
use crate::reel::{self, ReelError, ReelPlan};
use crate::session::{self, Need};
use crate::terminal::Terminal;
use crate::tuning::{Switch, Tuning};

/// How often the demonstration asks whether its code was typed in, in place of the usual five seconds.
const POLL: std::time::Duration = std::time::Duration::from_secs(1);

/// The longest wait for the other end to put the chunks of the files together.
const JOIN: std::time::Duration = std::time::Duration::from_secs(60);

/// The other end is on this machine: if it cannot be reached for this long, something blocks the way.
const PATIENCE: Patience = Patience {
    limit: Some(std::time::Duration::from_secs(30)),
};

/// Shows the whole way.
pub(crate) async fn demo(
    global: &Global,
    terminal: &Terminal,
    interrupt: &Interrupt,
    args: &Demo,
) -> Result<(), Failure> {
    // Declared first, so that it goes last: the simulator and the uplink let go of it before.
    let scratch;
    let base = match &args.keep {
        Some(dir) => {
            kept(dir)?;
            dir.as_path()
        }
        None => {
            scratch = Scratch::new().map_err(|error| {
                Failure::because(Exit::Failed, "cannot make a temporary directory", error)
            })?;
            scratch.path()
        }
    };
    let files = match args.files.as_slice() {
        [] => make_reel(&base.join("media"), terminal, interrupt).await?,
        files => files.to_vec(),
    };
    terminal.say("Starting a Frame.io on this machine.");
    let simulator = Simulator::builder()
        .root(base.join("frameio"))
        .auto_approve(true)
        .poll_interval(POLL)
        .project("Demo project", "demo-project")
        .start()
        .await
        .map_err(|error| {
            Failure::because(
                Exit::Failed,
                "the Frame.io for the demonstration does not start",
                error,
            )
        })?;
    terminal.event(&json!({"event": "simulator", "simulator": simulator.announcement()}))?;
    let state_dir = base.join("state");
    let result = tokio::select! {
        biased;
        result = against(&simulator, &state_dir, global, terminal, interrupt, &files) => result,
        // The steps that can take long listen for themselves and end cleanly; this catches the rest.
        () = grace(interrupt) => Err(Failure::interrupted("the demonstration was stopped")),
    };
    simulator.shutdown().await;
    if let (Ok(()), Some(dir)) = (&result, &args.keep) {
        terminal.result(&format!(
            "Everything is kept in {}.",
            format::printable(&dir.display().to_string())
        ))?;
    }
    result
}

/// Ends some time after the program was asked to stop.
async fn grace(interrupt: &Interrupt) {
    interrupt.wait().await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
}

/// Makes sure that nothing of the user's is mixed up with the demonstration.
fn kept(dir: &Path) -> Result<(), Failure> {
    let failed = |error| {
        Failure::because(
            Exit::Usage,
            format!("cannot use {} for --keep", dir.display()),
            error,
        )
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    if std::fs::read_dir(dir).map_err(failed)?.next().is_some() {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "{} is not empty; give --keep a new or an empty directory",
                dir.display()
            ),
        ));
    }
    Ok(())
}

async fn make_reel(
    dir: &Path,
    terminal: &Terminal,
    interrupt: &Interrupt,
) -> Result<Vec<PathBuf>, Failure> {
    terminal.say("Making three clips and six stills, about 100 MB.");
    std::fs::create_dir_all(dir).map_err(|error| {
        Failure::because(
            Exit::Failed,
            format!("cannot make {}", dir.display()),
            error,
        )
    })?;
    let plan = ReelPlan::default();
    let bar = terminal.bars().add(ProgressBar::new(plan.size()));
    if let Ok(style) = ProgressStyle::with_template("  {wide_bar} {percent:>3}%") {
        bar.set_style(if terminal.canvas().unicode {
            style
        } else {
            style.progress_chars("#- ")
        });
    }
    let (dir, interrupt, shown) = (dir.to_owned(), interrupt.clone(), bar.clone());
    let made = tokio::task::spawn_blocking(move || {
        reel::generate(&dir, &plan, |bytes| {
            shown.set_position(bytes);
            !interrupt.asked()
        })
    });
    let made = made.await;
    bar.finish_and_clear();
    match made.map_err(|error| Failure::because(Exit::Failed, "a fault of this program", error))? {
        Ok(files) => Ok(files),
        Err(ReelError::Stopped) => Err(Failure::interrupted("the demonstration was stopped")),
        Err(error @ ReelError::Write { .. }) => {
            let words = error.to_string();
            Err(Failure::because(Exit::Failed, words, error))
        }
        Err(error) => Err(Failure::because(
            Exit::Failed,
            "cannot make the test files",
            error,
        )),
    }
}

async fn against(
    simulator: &Simulator,
    state_dir: &Path,
    global: &Global,
    terminal: &Terminal,
    interrupt: &Interrupt,
    files: &[PathBuf],
) -> Result<(), Failure> {
    let settings = Global {
        state_dir: Some(state_dir.to_owned()),
        api_url: simulator.api_url(),
        ca_file: Some(simulator.ca_file()),
        client_id: Some("C2C-DEMO-1".to_owned()),
        client_secret: Some(SecretString::from(simulator.client_secret())),
        client_secret_file: None,
        // Nothing of the demonstration goes into the keyring of whoever tries it.
        key_store: KeyStore::File,
        resolve: Vec::new(),
        log: global.log.clone(),
        json: global.json,
        tuning: Tuning {
            receipt_sha256: Switch::On,
            ..global.tuning.clone()
        },
        organise_by: global.organise_by,
        volume_patience: global.volume_patience,
        // Everything is on this machine.
        proxy: Some("none".to_owned()),
    };
    let uplink = session::open(&settings, Need::Service).await?;
    let worked = work(&uplink, simulator, terminal, interrupt, files).await;
    let closed = uplink.shutdown().await;
    worked?;
    Ok(closed?)
}

async fn work(
    uplink: &Uplink,
    simulator: &Simulator,
    terminal: &Terminal,
    interrupt: &Interrupt,
    files: &[PathBuf],
) -> Result<(), Failure> {
    terminal.say("Pairing. The demonstration types the code in by itself.");
    let identity = pairing::pair(uplink, terminal, interrupt, PATIENCE).await?;
    terminal.say(&format!(
        "Paired with project {}.",
        format::printable(&identity.project_name)
    ));
    let options = AddOptions {
        files_from: None,
        again: false,
        channel: 0,
        priority: 0,
        filetype: None,
        parts: None,
    };
    let added = deliver::add(uplink, terminal, files, &options).await?;
    let ids: Vec<MediaId> = added.iter().map(|added| added.id).collect();
    let summary = deliver::deliver(uplink, terminal, interrupt, Some(&ids), PATIENCE).await?;
    summary.print(terminal)?;
    if summary.interrupted {
        return Err(Failure::interrupted("the demonstration was stopped"));
    }
    summary.outcome()?;
    terminal.say("Comparing what arrived with what was sent.");
    let compared = tokio::select! {
        compared = compare(uplink, simulator, files, &ids) => compared?,
        () = interrupt.wait() => return Err(Failure::interrupted("the demonstration was stopped")),
    };
    report(terminal, &compared)
}

/// A file at both ends.
#[derive(Debug, Serialize)]
struct Compared {
    name: String,
    size: u64,
    chunks: u32,
    asset_id: String,
    /// SHA-256 of the file that was sent, as it is on disk now.
    sent_sha256: String,
    /// SHA-256 of the file that arrived, as it is on disk now.
    arrived_sha256: String,
    /// SHA-256 in the receipt.
    receipt_sha256: Option<String>,
    identical: bool,
}

async fn compare(
    uplink: &Uplink,
    simulator: &Simulator,
    files: &[PathBuf],
    ids: &[MediaId],
) -> Result<Vec<Compared>, Failure> {
    uplink.wait_sealed().await?;
    let mut receipts: Vec<(PathBuf, Receipt)> = Vec::new();
    for (file, id) in files.iter().zip(ids) {
        let receipt = uplink.receipt(*id).await?;
        let receipt = receipt.ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!(
                    "there is no receipt for {}; please report this",
                    file.display()
                ),
            )
        })?;
        receipts.push((file.clone(), receipt));
    }
    // The last chunk is answered before the chunks of a file are joined at the other end.
    let admin = simulator.admin();
    let wanted: Vec<&str> = receipts
        .iter()
        .map(|(_, receipt)| receipt.asset_id.as_str())
        .collect();
    let all = admin.wait_until(|seen| {
        wanted
            .iter()
            .all(|asset| seen.delivered().iter().any(|file| file.asset_id == *asset))
    });
    // What does not arrive is named one by one below.
    let _ = tokio::time::timeout(JOIN, all).await;
    let arrived: HashMap<String, Delivered> = admin
        .delivered()
        .into_iter()
        .map(|file| (file.asset_id.clone(), file))
        .collect();
    let task = tokio::task::spawn_blocking(move || {
        receipts
            .iter()
            .map(|(file, receipt)| compare_one(file, receipt, &arrived))
            .collect::<Result<Vec<_>, _>>()
    });
    task.await
        .map_err(|error| Failure::because(Exit::Failed, "a fault of this program", error))?
}

fn compare_one(
    file: &Path,
    receipt: &Receipt,
    arrived: &HashMap<String, Delivered>,
) -> Result<Compared, Failure> {
    let there = arrived.get(&receipt.asset_id).ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            format!(
                "{} has a receipt but did not arrive; please report this",
                receipt.name
            ),
        )
    })?;
    let sent_sha256 = sha256_of(file)?;
    let arrived_sha256 = sha256_of(&there.path)?;
    Ok(Compared {
        name: receipt.name.clone(),
        size: receipt.size,
        chunks: receipt.chunks.len() as u32,
        asset_id: receipt.asset_id.clone(),
        identical: sent_sha256 == arrived_sha256
            && receipt
                .sha256
                .as_deref()
                .is_none_or(|sealed| sealed == sent_sha256),
        sent_sha256,
        arrived_sha256,
        receipt_sha256: receipt.sha256.clone(),
    })
}

fn sha256_of(path: &Path) -> Result<String, Failure> {
    let failed = |error| {
        Failure::because(
            Exit::Failed,
            format!("cannot read {}", path.display()),
            error,
        )
    };
    let mut file = File::open(path).map_err(failed)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hex::encode(digest.finalize())),
            length => digest.update(&buffer[..length]),
        }
    }
}

fn report(terminal: &Terminal, compared: &[Compared]) -> Result<(), Failure> {
    let different = compared.iter().filter(|file| !file.identical).count() as u64;
    terminal
        .event(&json!({"event": "compared", "files": compared, "identical": different == 0}))?;
    let mut table = Table::new(&[
        ("NAME", Align::Elastic),
        ("SIZE", Align::Right),
        ("CHUNKS", Align::Right),
        ("SHA-256", Align::Left),
        ("ARRIVED", Align::Left),
    ]);
    for file in compared {
        table.row([
            file.name.clone(),
            format::bytes(file.size),
            file.chunks.to_string(),
            file.sent_sha256.chars().take(16).collect(),
            if file.identical {
                "identical"
            } else {
                "DIFFERENT"
            }
            .to_owned(),
        ]);
    }
    for line in table.lines(terminal.columns()) {
        terminal.result(&line)?;
    }
    if different > 0 {
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "{} arrived different; please report this",
                format::count(different, "file", "files")
            ),
        ));
    }
    terminal.result(&format!(
        "{} arrived byte for byte.",
        format::count(compared.len() as u64, "file", "files")
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_in_it_is_not_taken_for_keep() {
        let dir = tempfile::tempdir().unwrap();
        assert!(kept(&dir.path().join("new/deep")).is_ok());
        let failure = kept(dir.path()).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(
            failure.story().contains("is not empty"),
            "{}",
            failure.story()
        );
    }

    #[test]
    fn a_difference_is_found_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, b"abc").unwrap();
        assert_eq!(
            sha256_of(&file).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let compared = |identical| Compared {
            name: "a".into(),
            size: 3,
            chunks: 1,
            asset_id: "x".into(),
            sent_sha256: "1".into(),
            arrived_sha256: "2".into(),
            receipt_sha256: None,
            identical,
        };
        let terminal = Terminal::new(true);
        assert!(report(&terminal, &[compared(true)]).is_ok());
        assert_eq!(
            report(&terminal, &[compared(true), compared(false)])
                .unwrap_err()
                .exit(),
            Exit::Failed
        );
    }
}
