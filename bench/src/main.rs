//! Measures c2c beside other uploaders.

mod growth;
mod link;
mod measure;
mod peer;
mod polite;
#[cfg(feature = "reqwest-peer")]
mod reqwest_peer;
mod restart;
mod run;
mod sink;
mod table;
mod work;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "c2c-bench", about = "Measures c2c beside other uploaders")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures
    Run(run::Run),
    /// Serves a storage that drops everything, and enough of Camera to Cloud to upload to it
    Sink {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1")]
        address: IpAddr,
        /// Directory for the certificate of its authority
        #[arg(long)]
        dir: PathBuf,
    },
    /// Measures what plain TCP gets through an emulated link, to see that the link is what it says
    Link(link::Trial),
    /// Uploads with reqwest; one of the peers
    #[cfg(feature = "reqwest-peer")]
    ReqwestPeer(reqwest_peer::ReqwestPeer),
}

/// What keeps the bench from measuring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{what} failed: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("the certificate could not be made: {0}")]
    Certificate(rcgen::Error),
    #[error("TLS could not be set up: {0}")]
    Tls(rustls::Error),
    #[error("c2c could not be paired: {0}")]
    Pairing(String),
    #[error("c2c could not be given a long queue: {0}")]
    Queue(String),
    #[error(transparent)]
    Profile(#[from] link::UnknownProfile),
    #[error(transparent)]
    Link(#[from] link::LinkError),
    #[error("{wanted} MiB of files do not fit below {dir}")]
    Room { wanted: u64, dir: String },
    #[error("JSON: {0}")]
    Json(serde_json::Error),
}

fn main() -> Result<(), Failure> {
    match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Sink { address, dir } => sink::serve(address, &dir),
        Command::Link(trial) => trial.run(),
        #[cfg(feature = "reqwest-peer")]
        Command::ReqwestPeer(peer) => peer.run(),
    }
}
