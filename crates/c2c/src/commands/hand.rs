//! `retry`, `cancel`, `prioritize`, `hold` and `release`: what a person decides about media.

use c2c_queue::{ByHand, MediaId, Selection};
use serde_json::json;

use crate::cli::{Chosen, Global};
use crate::error::{Exit, Failure};
use crate::format;
use crate::session::{self, Need};
use crate::terminal::Terminal;

/// Does `action` to the chosen media, in one transaction with a history line each.
pub(crate) async fn by_hand(
    global: &Global,
    terminal: &Terminal,
    chosen: &Chosen,
    action: ByHand,
) -> Result<(), Failure> {
    let selection = selection(chosen)?;
    let uplink = session::open(global, Need::Queue).await?;
    let done = uplink.queue().by_hand(selection, action).await;
    uplink.shutdown().await?;
    let done = done?;
    let ids: Vec<i64> = done.iter().map(|id| id.0).collect();
    terminal.document(&json!({ "action": action.as_str(), "media": ids }))?;
    let did = match action {
        ByHand::Retry => "will be tried again",
        ByHand::Cancel => "cancelled",
        ByHand::Prioritize(_) => "moved in the queue",
        ByHand::Hold => "held until released",
        ByHand::Release => "released",
    };
    let files = format::count(done.len() as u64, "file", "files");
    terminal.result(&format!("{files} {did}."))?;
    Ok(())
}

fn selection(chosen: &Chosen) -> Result<Selection, Failure> {
    let ways = usize::from(!chosen.ids.is_empty())
        + usize::from(chosen.state.is_some())
        + usize::from(chosen.held)
        + usize::from(chosen.all);
    if ways != 1 {
        return Err(Failure::new(
            Exit::Usage,
            "say which media: either ids (`c2c list` shows them), --state STATE, --held or --all",
        ));
    }
    Ok(match chosen.state {
        Some(state) => Selection::State(state),
        None if chosen.held => Selection::Held,
        None if chosen.all => Selection::All,
        None => Selection::Ids(chosen.ids.iter().copied().map(MediaId).collect()),
    })
}
