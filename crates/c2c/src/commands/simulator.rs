//! `simulator`: a Frame.io Camera to Cloud in the foreground, until somebody stops it.

use std::collections::HashSet;
use std::time::Duration;

use c2c_simulator::Simulator;
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::SimulatorArgs;
use crate::error::{Exit, Failure};
use crate::format;
use crate::interrupt::{Interrupt, Scratch};
use crate::terminal::Terminal;

/// Runs the simulator until it is interrupted, which is its regular end.
pub(crate) async fn simulator(
    terminal: &Terminal,
    interrupt: &Interrupt,
    args: &SimulatorArgs,
) -> Result<(), Failure> {
    let scratch;
    let root = match &args.root {
        Some(root) => root.as_path(),
        None => {
            scratch = Scratch::new().map_err(|error| {
                Failure::because(Exit::Failed, "cannot make a temporary directory", error)
            })?;
            scratch.path()
        }
    };
    let mut builder = Simulator::builder()
        .root(root)
        .api_port(args.port)
        .uploads_port(args.uploads_port)
        .admin_port(args.admin_port)
        .auto_approve(args.auto_approve);
    if let Some(secret) = &args.secret {
        builder = builder.client_secret(secret);
    }
    let simulator = builder
        .start()
        .await
        .map_err(|error| Failure::because(Exit::Failed, "the simulator does not start", error))?;
    let shown = announce(&simulator, terminal, args.auto_approve);
    if shown.is_ok() {
        serve(&simulator, terminal, interrupt).await;
    }
    simulator.shutdown().await;
    Ok(shown?)
}

fn announce(simulator: &Simulator, terminal: &Terminal, auto_approve: bool) -> std::io::Result<()> {
    // One line for whoever started this, whatever form of results was asked for; the rest is for a person.
    let announcement = serde_json::to_string(&simulator.announcement())?;
    if terminal.json() {
        terminal.event(&simulator.announcement())?;
    } else {
        terminal.result(&announcement)?;
    }
    for line in [
        format!("export C2C_API_URL={}", quoted(&simulator.api_url())),
        format!(
            "export C2C_CA_FILE={}",
            quoted(&simulator.ca_file().display().to_string())
        ),
        format!(
            "export C2C_CLIENT_SECRET={}",
            quoted(&simulator.client_secret())
        ),
    ] {
        terminal.say(&line);
    }
    terminal.say("A Frame.io for tests is running. Set the variables above in another shell, then run `c2c pair`.");
    terminal.say(&format!(
        "What arrives is in {}.",
        simulator.root().display()
    ));
    terminal.say(&format!(
        "Faults, pauses and the request log: {} (GET it for what there is).",
        simulator.admin_url()
    ));
    if auto_approve {
        terminal.say("Pairing codes are approved by themselves.");
    }
    terminal.say("Ctrl-C ends it.");
    Ok(())
}

/// Tells how to approve each new code, until the program is asked to stop.
async fn serve(simulator: &Simulator, terminal: &Terminal, interrupt: &Interrupt) {
    let mut told = HashSet::new();
    let mut look = interval(Duration::from_millis(300));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = interrupt.wait() => return,
            _ = look.tick() => {}
        }
        let pending = simulator.admin().pending_codes();
        told.retain(|code| pending.iter().any(|pending| &pending.user_code == code));
        for code in pending {
            if !told.insert(code.user_code.clone()) {
                continue;
            }
            let name = format::printable(&code.name);
            terminal.say(&format!(
                "{name} asks to be paired with code {code}. Approve it at {admin}/pair?code={code} or with\n  \
                 curl -X POST {admin}/codes/{code}/approve",
                code = code.user_code,
                admin = simulator.admin_url(),
            ));
        }
    }
}

/// `text` so that a shell reads it as one word.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn the_variables_survive_a_shell() {
        assert_eq!(quoted("https://localhost:8443"), "https://localhost:8443");
        assert_eq!(quoted("/tmp/a b/it's"), r"'/tmp/a b/it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
