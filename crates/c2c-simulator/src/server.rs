//! Listeners and connections of the two public hosts.
//!
//! Invariants: every connection is one task that ends when it is cut, when the simulator stops, or when both
//! sides are done; an answer given before the body was read still reaches a client that goes on sending.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::answer::Answer;
use crate::exchange::Connection;
use crate::log::HostKind;
use crate::wire::{Tap, Wire};
use crate::world::World;
use crate::{api, uploads, websocket};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long a connection lingers for a client that still sends after its early answer.
const LINGER: Duration = Duration::from_secs(3);

/// Accepts connections until the simulator stops.
pub(crate) async fn listen(
    world: Arc<World>,
    listener: TcpListener,
    host: HostKind,
    tls: TlsAcceptor,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = world.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (served, tls) = (Arc::clone(&world), tls.clone());
                world.tasks.spawn(async move {
                    tokio::select! {
                        () = connection(&served, stream, host, tls) => {}
                        () = served.shutdown.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Without a free descriptor the same error comes back at once.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(world: &Arc<World>, stream: TcpStream, host: HostKind, tls: TlsAcceptor) {
    let (number, _open) = world.connection_opened(host);
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "small answers may be delayed");
    }
    let aborts = world.change(|state| {
        let mut rng = state.rng.fork();
        state
            .faults
            .aborts_handshake(host == HostKind::Uploads, &mut rng)
    });
    let wire = Wire::new(stream, world.clock.clone());
    if aborts {
        // The client is in the middle of its handshake once its first byte is here.
        let _ = wire.tap().read_u8().await;
        world.change(|state| state.stats.tls_failures += 1);
        wire.cut(true);
        return;
    }
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(wire.tap())).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, number, "the handshake failed");
            world.change(|state| state.stats.tls_failures += 1);
            return;
        }
        Err(_) => {
            world.change(|state| state.stats.tls_failures += 1);
            return;
        }
    };
    let connection = Arc::new(Connection {
        number,
        host,
        wire: Arc::clone(&wire),
        websocket: Mutex::new(None),
    });
    let ended = tokio::select! {
        ended = speak_http(world, Arc::clone(&connection), stream) => ended,
        () = wire.cut_ordered() => return,
    };
    let Some((stream, already_read)) = ended else {
        return;
    };
    let seat = connection
        .websocket
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match seat {
        Some(seat) => tokio::select! {
            () = websocket::serve(world, seat, stream, already_read) => {}
            () = wire.cut_ordered() => {}
        },
        None => linger(stream).await,
    }
}

type Handling = Pin<Box<dyn Future<Output = Result<Answer, std::convert::Infallible>> + Send>>;

/// Serves requests until the connection is done with HTTP, and gives back what is left of it.
async fn speak_http(
    world: &Arc<World>,
    connection: Arc<Connection>,
    stream: TlsStream<Tap>,
) -> Option<(TlsStream<Tap>, Vec<u8>)> {
    let number = connection.number;
    let service = service_fn(|request: http::Request<Incoming>| -> Handling {
        let (world, connection) = (Arc::clone(world), Arc::clone(&connection));
        match connection.host {
            HostKind::Api => {
                Box::pin(async move { Ok(api::handle(world, connection, request).await) })
            }
            HostKind::Uploads => {
                Box::pin(async move { Ok(uploads::handle(world, connection, request).await) })
            }
        }
    });
    let mut builder = http1::Builder::new();
    // Dates come from the simulated clock.
    builder.auto_date_header(false).max_buf_size(256 * 1024);
    let mut serving = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = poll_fn(|cx| serving.poll_without_shutdown(cx)).await {
        tracing::debug!(%error, number, "a connection ended in the middle");
        return None;
    }
    let parts = serving.into_parts();
    Some((parts.io.into_inner(), parts.read_buf.to_vec()))
}

/// Ends the answering side and reads on for a while: closing with unread bytes would reset the connection and
/// could take the answer away from a client that is still sending.
async fn linger(mut stream: TlsStream<Tap>) {
    let closing = async {
        stream.shutdown().await?;
        let mut waste = vec![0; 16 * 1024];
        while stream.read(&mut waste).await? > 0 {}
        std::io::Result::Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(LINGER, closing).await {
        tracing::trace!(%error, "the client closed without a word");
    }
}
