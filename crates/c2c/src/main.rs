//! `c2c`: Frame.io Camera to Cloud uploads from the command line.
//!
//! Invariants:
//! * results go to stdout, everything else to stderr;
//! * the exit code tells what happened, and codes keep their meaning (`c2c --help`);
//! * whatever stops the program, the queue is left so that the next run goes on.

mod cli;
mod code;
mod commands;
mod deliver;
mod error;
mod format;
mod interrupt;
mod pairing;
mod progress;
mod reel;
mod session;
mod terminal;
mod tuning;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use c2c_queue::ByHand;
use clap::Parser;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};
use error::{Exit, Failure};
use interrupt::Interrupt;
use terminal::Terminal;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::new(cli.global.json);
    match start(cli, &terminal) {
        Ok(()) => ExitCode::from(Exit::Ok as u8),
        Err(failure) => {
            let story = failure.story();
            if !story.is_empty() {
                terminal.say(&format!("c2c: {}", format::printable(&story)));
                // Nobody may be left to read it; the exit code remains.
                let _ = terminal.event(&json!({
                    "event": "error",
                    "words": story,
                    "exit_code": failure.exit() as u8,
                }));
            }
            ExitCode::from(failure.exit() as u8)
        }
    }
}

fn start(cli: Cli, terminal: &Terminal) -> Result<(), Failure> {
    let filter = EnvFilter::builder()
        .parse(&cli.global.log)
        .map_err(|error| {
            Failure::because(
                Exit::Usage,
                format!("--log {} is not a filter", cli.global.log),
                error,
            )
        })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(terminal.clone())
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::because(
                Exit::Failed,
                "cannot start the threads of this program",
                error,
            )
        })?;
    let result = runtime.block_on(run(cli, terminal));
    // A read of a dead network drive may hang for ever; the queue is closed, nothing waits for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run(cli: Cli, terminal: &Terminal) -> Result<(), Failure> {
    let interrupt = Interrupt::listen(terminal.clone())
        .map_err(|error| Failure::because(Exit::Failed, "cannot listen for Ctrl-C", error))?;
    let global = &cli.global;
    match &cli.command {
        Command::Demo(args) => commands::demo(global, terminal, &interrupt, args).await,
        Command::Simulator(args) => commands::simulator(terminal, &interrupt, args).await,
        Command::Pair(args) => commands::pair(global, terminal, &interrupt, *args).await,
        Command::Upload(args) => commands::upload(global, terminal, &interrupt, args).await,
        Command::Add(args) => commands::add(global, terminal, args).await,
        Command::Status => commands::status(global, terminal).await,
        Command::List(args) => commands::list(global, terminal, args).await,
        Command::Explain(args) => commands::explain(global, terminal, args).await,
        Command::Receipt(args) => commands::receipt(global, terminal, args).await,
        Command::Retry(chosen) => commands::by_hand(global, terminal, chosen, ByHand::Retry).await,
        Command::Cancel(chosen) => {
            commands::by_hand(global, terminal, chosen, ByHand::Cancel).await
        }
        Command::Prioritize(args) => {
            let action = ByHand::Prioritize(args.priority);
            commands::by_hand(global, terminal, &args.chosen, action).await
        }
        Command::Hold(chosen) => commands::by_hand(global, terminal, chosen, ByHand::Hold).await,
        Command::Release(chosen) => {
            commands::by_hand(global, terminal, chosen, ByHand::Release).await
        }
    }
}
