//! A small HTTPS client and the usual first steps.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use c2c_simulator::{Builder, SimClock, Simulator};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) type Problem = Box<dyn std::error::Error + Send + Sync>;

pub(crate) const MIB: u64 = 1 << 20;
/// 2023-11-14 22:13:20 UTC
pub(crate) const START: u64 = 1_700_000_000;
pub(crate) const UNIT: &str = "CAM-000123";

/// Waits for what must happen: a hang is a failure with a name.
pub(crate) async fn soon<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), waiting)
        .await
        .unwrap()
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    }

    /// The content of an element of an XML answer.
    pub(crate) fn xml(&self, element: &str) -> String {
        assert_eq!(
            self.header("content-type"),
            "application/xml",
            "{}",
            self.text()
        );
        let mut reader = quick_xml::Reader::from_reader(&self.body[..]);
        loop {
            match reader.read_event().unwrap() {
                quick_xml::events::Event::Start(start) if start.name().as_ref() == element => {
                    let end = start.to_end().into_owned();
                    let raw = reader.read_text(end.name()).unwrap();
                    return raw.to_string();
                }
                quick_xml::events::Event::Eof => panic!("no <{element}> in {}", self.text()),
                _ => {}
            }
        }
    }
}

/// Splits `https://host:port/path?query`.
pub(crate) fn split(url: &str) -> (String, u16, String) {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
        .unwrap();
    let (authority, path) = rest
        .split_once('/')
        .map_or((rest, String::new()), |(a, p)| (a, p.to_owned()));
    let (host, port) = authority.rsplit_once(':').unwrap();
    (host.to_owned(), port.parse().unwrap(), format!("/{path}"))
}

pub(crate) struct Rig {
    pub(crate) simulator: Simulator,
    pub(crate) clock: SimClock,
    tls: TlsConnector,
}

impl Rig {
    /// A simulator whose clock stands still at [`START`].
    pub(crate) async fn start(adjust: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = SimClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(START), 0.0);
        Self::start_at(clock, adjust).await
    }

    pub(crate) async fn start_at(clock: SimClock, adjust: impl FnOnce(Builder) -> Builder) -> Self {
        let builder = Simulator::builder()
            .clock(clock.clone())
            .project("Show A", "33333333-3333-4333-8333-333333333333");
        let simulator = adjust(builder).start().await.unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(simulator.ca_file()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            simulator,
            clock,
            tls: TlsConnector::from(Arc::new(config)),
        }
    }

    /// A TLS connection to the host of a URL.
    pub(crate) async fn connect(&self, url: &str) -> Result<TlsStream<TcpStream>, Problem> {
        let (host, port, _) = split(url);
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        Ok(self
            .tls
            .connect(ServerName::try_from(host)?, stream)
            .await?)
    }

    /// One request on a connection of its own. Adds `Host` and nothing else.
    pub(crate) async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, Problem> {
        let stream = self.connect(url).await?;
        exchange(stream, method, url, headers, body.into()).await
    }

    pub(crate) fn api(&self, path: &str) -> String {
        format!("{}{path}", self.simulator.api_url())
    }

    /// A call to the API with the version header.
    pub(crate) async fn call(&self, method: &str, path: &str, token: &str, body: &Value) -> Reply {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![
            ("x-client-version", "1.2.3"),
            ("authorization", bearer.as_str()),
        ];
        let body = if body.is_null() {
            String::new()
        } else {
            headers.push(("content-type", "application/json"));
            body.to_string()
        };
        self.send(method, &self.api(path), &headers, body)
            .await
            .unwrap()
    }

    /// A multipart form to the API.
    pub(crate) async fn form(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        more: &[(&str, &str)],
    ) -> Reply {
        let mut headers = vec![
            ("x-client-version", "1.2.3"),
            ("content-type", "multipart/form-data; boundary=b"),
        ];
        headers.extend_from_slice(more);
        self.send("POST", &self.api(path), &headers, multipart(fields))
            .await
            .unwrap()
    }

    pub(crate) async fn request_code(&self) -> Value {
        let secret = self.simulator.client_secret();
        let fields = [
            ("client_id", UNIT),
            ("client_secret", &secret),
            ("scope", "asset_create offline"),
        ];
        let reply = self.form("/v2/auth/device/code", &fields, &[]).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    pub(crate) async fn poll(&self, device_code: &str) -> Reply {
        let secret = self.simulator.client_secret();
        let grant = "urn:ietf:params:oauth:grant-type:device_code";
        let fields = [
            ("client_id", UNIT),
            ("client_secret", &secret),
            ("grant_type", grant),
            ("device_code", device_code),
        ];
        self.form("/v2/auth/token", &fields, &[]).await
    }

    pub(crate) async fn refresh(&self, refresh_token: &str) -> Reply {
        let secret = self.simulator.client_secret();
        let fields = [
            ("client_id", UNIT),
            ("client_secret", &secret),
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token),
        ];
        self.form("/v2/auth/token", &fields, &[]).await
    }

    /// Pairs and tells the access and refresh token.
    pub(crate) async fn pair(&self) -> (String, String) {
        let code = self.request_code().await;
        self.simulator
            .admin()
            .approve(code["user_code"].as_str().unwrap(), None, None)
            .unwrap();
        let reply = self.poll(code["device_code"].as_str().unwrap()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        tokens(&reply)
    }

    pub(crate) async fn create(
        &self,
        token: &str,
        name: &str,
        filesize: u64,
        more: &Value,
    ) -> Reply {
        let mut body = json!({ "name": name, "filetype": "video/quicktime", "filesize": filesize, "offset": 0 });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap_or_default());
        self.call("POST", "/v2/devices/assets", token, &body).await
    }

    /// Creates an asset and tells its upload URLs.
    pub(crate) async fn urls(
        &self,
        token: &str,
        name: &str,
        filesize: u64,
        more: &Value,
    ) -> Vec<String> {
        let reply = self.create(token, name, filesize, more).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let urls = reply.json()["upload_urls"].as_array().unwrap().clone();
        urls.iter()
            .map(|url| url.as_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) async fn put(&self, url: &str, body: impl Into<Bytes>) -> Reply {
        self.try_put(url, body).await.unwrap()
    }

    pub(crate) async fn try_put(
        &self,
        url: &str,
        body: impl Into<Bytes>,
    ) -> Result<Reply, Problem> {
        let headers = [
            ("content-type", "video/quicktime"),
            ("x-amz-acl", "private"),
        ];
        self.send("PUT", url, &headers, body).await
    }
}

pub(crate) fn tokens(reply: &Reply) -> (String, String) {
    let pair = reply.json();
    let text = |name: &str| pair[name].as_str().unwrap().to_owned();
    (text("access_token"), text("refresh_token"))
}

pub(crate) async fn exchange<S>(
    stream: S,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<Reply, Problem>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (host, port, path) = split(url);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Dropping the exchange in the middle closes the connection.
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let has_host = headers.iter().any(|(name, _)| *name == "host");
    let mut request = http::Request::builder().method(method).uri(path);
    if !has_host {
        request = request.header("host", format!("{host}:{port}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let reply = sender.send_request(request.body(Full::new(body))?).await?;
    let (head, body) = reply.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(driver);
    Ok(Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
    })
}

pub(crate) fn multipart(fields: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (name, value) in fields {
        body +=
            &format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    }
    body + "--b--\r\n"
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn noise(length: u64, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.u8(..))
        .take(usize::try_from(length).unwrap())
        .collect()
}

pub(crate) fn md5(bytes: &[u8]) -> String {
    use md5::Digest;
    hex::encode(md5::Md5::digest(bytes))
}

/// The detailed error schema, whole.
pub(crate) fn detailed(status: u16, title: &str, detail: &str) -> Value {
    let error = json!({ "code": status, "detail": detail, "status": status, "title": title });
    json!({ "code": status, "errors": [error], "message": title })
}

pub(crate) fn not_authorized() -> Value {
    detailed(
        401,
        "Not Authorized",
        "You are not allowed to access that resource",
    )
}
