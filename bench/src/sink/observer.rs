//! Asks a sink what has arrived, from its own side of a link, over one connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Addresses, Counts};
use crate::Failure;
use crate::work::Place;

/// A sink that takes longer is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a sink that does not count.
pub(crate) struct Observer {
    tcp: BufReader<TcpStream>,
}

impl Observer {
    pub(crate) fn connect(sink: &Addresses, place: &Place) -> Result<Observer, Failure> {
        let port = sink.plain.rsplit(':').next();
        let port = port.and_then(|port| port.parse().ok()).unwrap_or(0);
        let tcp = place.connect(port)?;
        tcp.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Observer {
            tcp: BufReader::new(tcp),
        })
    }

    /// What arrived since the counts were taken anew.
    pub(crate) fn counts(&mut self) -> Result<Counts, Failure> {
        self.ask("GET /_counts")
    }

    /// Takes the counts anew.
    pub(crate) fn reset(&mut self) -> Result<(), Failure> {
        self.ask::<serde_json::Value>("POST /_reset").map(drop)
    }

    fn ask<T: DeserializeOwned>(&mut self, what: &str) -> Result<T, Failure> {
        let words = format!("{what} HTTP/1.1\r\n\r\n");
        self.tcp
            .get_mut()
            .write_all(words.as_bytes())
            .map_err(failed)?;
        let body = answer(&mut self.tcp).map_err(failed)?;
        serde_json::from_slice(&body).map_err(Failure::Json)
    }
}

/// The body of an answer.
fn answer(tcp: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if tcp.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.parse().map_err(io::Error::other)?;
        }
    }
    let mut body = Vec::new();
    tcp.by_ref().take(length).read_to_end(&mut body)?;
    Ok(body)
}

fn failed(source: io::Error) -> Failure {
    Failure::Io {
        what: "asking the sink".into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_is_read_and_no_more() {
        let mut said = &b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1"[..];
        assert_eq!(answer(&mut said).unwrap(), b"{}");
        assert_eq!(said, b"HTTP/1.1");
        assert!(answer(&mut &b"HTTP/1.1 200 OK\r\n"[..]).is_err());
    }
}
