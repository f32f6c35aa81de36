//! `pair`, `add` and `upload`: what talks to Frame.io, or prepares it.

use c2c_uplink::Uplink;

use crate::cli::{Add, Global, Patience, Upload};
use crate::deliver;
use crate::error::Failure;
use crate::format;
use crate::interrupt::Interrupt;
use crate::pairing;
use crate::session::{self, Need};
use crate::terminal::Terminal;

/// Connects this unit to a project.
pub(crate) async fn pair(
    global: &Global,
    terminal: &Terminal,
    interrupt: &Interrupt,
    patience: Patience,
) -> Result<(), Failure> {
    let uplink = session::open(global, Need::Service).await?;
    let paired = pairing::pair(&uplink, terminal, interrupt, patience).await;
    let identity = close(&uplink, paired).await?;
    terminal.result(&format!(
        "Paired with project {} as {}.",
        format::printable(&identity.project_name),
        format::printable(&identity.device_name)
    ))?;
    Ok(())
}

/// Adds files without uploading them.
pub(crate) async fn add(global: &Global, terminal: &Terminal, args: &Add) -> Result<(), Failure> {
    let uplink = session::open(global, Need::Queue).await?;
    let added = deliver::add(&uplink, terminal, &args.files, &args.options).await;
    let added = close(&uplink, added).await?;
    let new = added.iter().filter(|added| added.already.is_none()).count() as u64;
    terminal.result(&format!(
        "{} to the queue; `c2c upload` sends the queue.",
        format::count(new, "file added", "files added")
    ))?;
    Ok(())
}

/// Adds files and uploads until nothing is left to do.
pub(crate) async fn upload(
    global: &Global,
    terminal: &Terminal,
    interrupt: &Interrupt,
    args: &Upload,
) -> Result<(), Failure> {
    let uplink = session::open(global, Need::Service).await?;
    let worked = async {
        let added = deliver::add(&uplink, terminal, &args.files, &args.options).await?;
        let wanted: Vec<_> = added.iter().map(|added| added.id).collect();
        let wanted = (!wanted.is_empty()).then_some(wanted.as_slice());
        let summary = deliver::deliver(&uplink, terminal, interrupt, wanted, args.patience).await?;
        if !summary.interrupted {
            // A receipt is whole only with its digest, and the next run may be far away.
            tokio::select! {
                sealed = uplink.wait_sealed() => sealed?,
                () = interrupt.wait() => {}
            }
        }
        Ok(summary)
    };
    let worked = worked.await;
    let summary = close(&uplink, worked).await?;
    summary.print(terminal)?;
    summary.outcome()
}

/// Shuts the uplink down whatever happened. The first thing that went wrong is the one that is told.
async fn close<T>(uplink: &Uplink, worked: Result<T, Failure>) -> Result<T, Failure> {
    let closed = uplink.shutdown().await;
    let worked = worked?;
    closed?;
    Ok(worked)
}
