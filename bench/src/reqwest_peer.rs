//! The yardstick: PUTs of file ranges over reqwest, four at once, each from a reader with 256 KiB buffers. No queue, no
//! registration, no verification: what a careful programmer gets from the common client.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::Failure;

/// Bytes per PUT.
const PIECE: u64 = 25 << 20;

#[derive(Args)]
pub(crate) struct ReqwestPeer {
    /// Base of the URLs to PUT to
    #[arg(long)]
    base: String,
    #[arg(long)]
    ca_file: PathBuf,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    files: Vec<PathBuf>,
}

impl ReqwestPeer {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Failure::Io {
                what: "starting the runtime".into(),
                source,
            })?;
        runtime
            .block_on(self.upload())
            .map_err(|source| Failure::Io {
                what: "the upload".into(),
                source,
            })
    }

    async fn upload(self) -> std::io::Result<()> {
        let pem = std::fs::read(&self.ca_file)?;
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem).map_err(std::io::Error::other)?])
            .http1_only()
            .no_proxy()
            .build()
            .map_err(std::io::Error::other)?;
        let mut pieces = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            let size = std::fs::metadata(file)?.len();
            let mut start = 0;
            while start < size {
                let length = PIECE.min(size - start);
                let url = format!("{}/reqwest/{number}/{start}", self.base);
                pieces.push((file.clone(), start, length, url));
                start += length;
            }
        }
        let (pieces, next) = (Arc::new(pieces), Arc::new(AtomicUsize::new(0)));
        let workers: Vec<_> = (0..self.connections)
            .map(|_| {
                let (client, pieces, next) = (client.clone(), pieces.clone(), next.clone());
                tokio::spawn(async move {
                    while let Some((file, start, length, url)) =
                        pieces.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let mut file = tokio::fs::File::open(file).await?;
                        file.set_max_buf_size(256 * 1024);
                        file.seek(std::io::SeekFrom::Start(*start)).await?;
                        let stream = ReaderStream::with_capacity(file.take(*length), 256 * 1024);
                        let answer = client
                            .put(url)
                            .header("content-length", *length)
                            .body(reqwest::Body::wrap_stream(stream))
                            .send()
                            .await
                            .map_err(std::io::Error::other)?;
                        answer.error_for_status().map_err(std::io::Error::other)?;
                    }
                    std::io::Result::Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker.await.map_err(std::io::Error::other)??;
        }
        Ok(())
    }
}
