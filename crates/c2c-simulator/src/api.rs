//! The API host: pairing, tokens, identity, presence, assets.
//!
//! Invariants: nothing is done for a call without a valid `x-client-version`; nothing but pairing, tokens and
//! health is done without a living bearer token; error bodies are those of the documentation, to the letter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts as Head;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::asset;
use crate::exchange::{BodyEnd, Connection, Exchange};
use crate::fault::{EndpointName, Subject};
use crate::fields::{self, Fields};
use crate::pairing::{ACCESS_LIFE, Bearer, CODE_LIFE, Pair, RefreshRefused};
use crate::realtime;
use crate::websocket;
use crate::world::{Allowance, News, World};

/// The largest body that any call to the API may have: 10,000 parts of a growing file fit.
const MAX_BODY: usize = 2 << 20;
const DEVICE_CODE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

enum Route {
    DeviceCode,
    Token,
    Revoke,
    Me,
    Heartbeat,
    Health,
    CreateAsset,
    RealtimeParts(String),
    Websocket,
    WrongMethod,
    Unknown,
}

impl Route {
    fn of(method: &http::Method, path: &str) -> Self {
        let (wanted, route) = match path {
            "/v2/auth/device/code" | "/v2/device/code" => ("POST", Self::DeviceCode),
            "/v2/auth/token" => ("POST", Self::Token),
            "/v2/auth/revoke" => ("POST", Self::Revoke),
            "/v2/devices/me" => ("GET", Self::Me),
            "/v2/devices/heartbeat" => ("POST", Self::Heartbeat),
            "/health" | "/v2/health" => ("GET", Self::Health),
            "/v2/devices/assets" | "/v2/assets" => ("POST", Self::CreateAsset),
            "/devices/websocket" => ("GET", Self::Websocket),
            other => {
                let rest = other
                    .strip_prefix("/v2/devices/assets/")
                    .or_else(|| other.strip_prefix("/v2/assets/"));
                let id = rest.and_then(|rest| rest.strip_suffix("/realtime_upload/parts"));
                match id.filter(|id| !id.is_empty() && !id.contains('/')) {
                    Some(id) => ("POST", Self::RealtimeParts(id.to_owned())),
                    None => return Self::Unknown,
                }
            }
        };
        if method.as_str() == wanted {
            route
        } else {
            Self::WrongMethod
        }
    }

    fn endpoint(&self) -> EndpointName {
        match self {
            Self::DeviceCode => EndpointName::DeviceCode,
            Self::Token => EndpointName::Token,
            Self::Revoke => EndpointName::Revoke,
            Self::Me => EndpointName::Me,
            Self::Heartbeat => EndpointName::Heartbeat,
            Self::Health => EndpointName::Health,
            Self::CreateAsset => EndpointName::CreateAsset,
            Self::RealtimeParts(_) => EndpointName::RealtimeParts,
            Self::Websocket => EndpointName::Websocket,
            Self::WrongMethod | Self::Unknown => EndpointName::Any,
        }
    }
}

/// What was read of a body before anything was decided.
enum Content {
    Nothing,
    Auth(Option<BTreeMap<String, String>>),
    Fields(Result<Fields, Box<Answer>>),
}

/// A call whose body was read.
struct Call<'a> {
    head: &'a Head,
    content: Content,
    bearer: Option<Bearer>,
}

/// Answers one request to the API host.
pub(crate) async fn handle(
    world: Arc<World>,
    connection: Arc<Connection>,
    request: http::Request<Incoming>,
) -> Answer {
    let (head, body) = request.into_parts();
    let route = Route::of(&head.method, head.uri.path());
    let mut endpoint = route.endpoint();
    let mut exchange = Exchange::open(world, connection, endpoint, &head);
    let body = match exchange.collect(body, MAX_BODY).await {
        Ok(body) => body,
        Err(BodyEnd::Gone) => return exchange.gone(),
        Err(BodyEnd::TooLong) => {
            let answer =
                answer::detailed(413, "Request Entity Too Large", "The request is too large");
            return exchange.finish(answer::closing(answer)).await;
        }
    };
    let length = body.len() as u64;
    let content = read(&route, &head, body).await;
    if let Content::Auth(Some(form)) = &content
        && matches!(route, Route::Token)
        && form
            .get("grant_type")
            .is_some_and(|grant| grant == "refresh_token")
    {
        endpoint = EndpointName::Refresh;
    }
    let bearer = identify(&exchange, &route, endpoint, &head, &content);
    let asset_name = known_asset(&exchange, &route, &content);
    exchange.meet_faults(Subject {
        endpoint,
        part: None,
        asset_name: asset_name.as_deref(),
    });
    if let Some(answer) = exchange.before_body().await {
        return exchange.finish(answer).await;
    }
    exchange.stall_at_start().await;
    exchange.count(length).await;
    let allowance = exchange
        .world
        .draw(&rate_key(&content, bearer.as_ref()), endpoint);
    if let Some(mut answer) = exchange.instead() {
        // Pages come from machines in between, which know nothing of the service's headers.
        if answer
            .headers()
            .get("content-type")
            .is_none_or(|kind| !kind.as_bytes().starts_with(b"text/html"))
        {
            sign_off(&mut answer, allowance);
        }
        return exchange.finish(answer).await;
    }
    let call = Call {
        head: &head,
        content,
        bearer,
    };
    let mut answer = if allowance.refused {
        answer::detailed(
            429,
            "Too Many Requests",
            "You have exceeded the rate limit for this resource",
        )
    } else {
        serve(&exchange, &route, endpoint, call)
    };
    sign_off(&mut answer, allowance);
    exchange.finish(answer).await
}

async fn read(route: &Route, head: &Head, body: Bytes) -> Content {
    let content_type = header(head, "content-type");
    match route {
        Route::DeviceCode | Route::Token | Route::Revoke => {
            Content::Auth(fields::multipart(content_type, body).await)
        }
        Route::CreateAsset => Content::Fields(Fields::read(content_type, &body, true)),
        Route::RealtimeParts(_) => Content::Fields(Fields::read(content_type, &body, false)),
        _ => Content::Nothing,
    }
}

/// Finds out who calls and writes it into the log.
fn identify(
    exchange: &Exchange,
    route: &Route,
    endpoint: EndpointName,
    head: &Head,
    content: &Content,
) -> Option<Bearer> {
    let world = &exchange.world;
    let in_query = || {
        let pairs = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
        pairs
            .into_owned()
            .find(|(name, _)| name == "Authorization")
            .map(|(_, value)| value)
    };
    let authorization = match route {
        Route::Websocket => in_query(),
        _ => header(head, "authorization").map(str::to_owned),
    };
    let token = authorization
        .as_deref()
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::trim);
    let now = world.clock.now();
    let (bearer, serial) = world.change(|state| {
        let bearer = token.and_then(|token| state.bearer(token, now));
        if let Some(bearer) = &bearer
            && let Some(device) = state.devices.get_mut(&bearer.client_id)
        {
            device.last_seen = now;
            if let Some(version) = header(head, "x-client-version") {
                version.clone_into(&mut device.firmware);
            }
        }
        (bearer, token.and_then(|token| state.token_serial(token)))
    });
    let named = match content {
        Content::Auth(Some(form)) => form.get("client_id").cloned(),
        _ => None,
    };
    let client_id = bearer
        .as_ref()
        .map(|bearer| bearer.client_id.clone())
        .or(named);
    exchange.entry.note(|entry| {
        entry.endpoint = endpoint;
        entry.token = serial;
        entry.client_id = client_id;
        if let (Content::Fields(Ok(fields)), Route::CreateAsset) = (content, route) {
            entry.create = Some(asset::create_fields(fields));
        }
    });
    bearer
}

/// The name of the asset that a call is about, noted in the log as far as it is known.
fn known_asset(exchange: &Exchange, route: &Route, content: &Content) -> Option<String> {
    let (id, name) = match (route, content) {
        (Route::CreateAsset, Content::Fields(Ok(fields))) => {
            (None, fields.text("name").ok().flatten())
        }
        (Route::RealtimeParts(id), _) => {
            let name = exchange
                .world
                .read(|state| state.assets.get(id).map(|asset| asset.name.clone()));
            (Some(id.clone()), name)
        }
        _ => (None, None),
    };
    let noted = name.clone();
    exchange.entry.note(|entry| {
        entry.asset_id = id;
        entry.asset_name = noted;
    });
    name
}

fn rate_key(content: &Content, bearer: Option<&Bearer>) -> String {
    let form_client = match content {
        Content::Auth(Some(form)) => form.get("client_id").cloned(),
        _ => None,
    };
    bearer
        .map(|bearer| bearer.client_id.clone())
        .or(form_client)
        .unwrap_or_default()
}

/// The headers that every answer of the service carries, unless a fault set them already.
fn sign_off(answer: &mut Answer, allowance: Allowance) {
    let limit = allowance.limit;
    for (name, value) in [
        ("x-request-id", uuid::Uuid::new_v4().simple().to_string()),
        ("x-ratelimit-limit", limit.limit.to_string()),
        ("x-ratelimit-remaining", allowance.remaining.to_string()),
        ("x-ratelimit-window", limit.window.as_millis().to_string()),
    ] {
        if !answer.headers().contains_key(name) {
            answer::put(answer, name, &value);
        }
    }
}

fn header<'a>(head: &'a Head, name: &str) -> Option<&'a str> {
    head.headers.get(name).and_then(|value| value.to_str().ok())
}

/// Every rule and effect of the API, without faults.
fn serve(exchange: &Exchange, route: &Route, endpoint: EndpointName, call: Call<'_>) -> Answer {
    if let Err(rule) = check_version(call.head) {
        exchange.entry.violation(rule);
        // The very first call that integrators are told to make is a bare GET of the health page, and a websocket
        // handshake is no API call in the narrow sense: there the rule is noted but not enforced.
        if !matches!(route, Route::Health | Route::Websocket) {
            return answer::detailed(400, "Bad Request", rule);
        }
    }
    match (route, call.content) {
        (Route::Health, _) => answer::json(200, &json!({ "status": "ok" })),
        (Route::Unknown, _) => {
            exchange.entry.violation("there is no such endpoint");
            answer::detailed(404, "Not Found", "There is nothing at this address")
        }
        (Route::WrongMethod, _) => {
            exchange.entry.violation("wrong method for this endpoint");
            answer::detailed(
                405,
                "Method Not Allowed",
                "This address does not know that method",
            )
        }
        (_, Content::Auth(None)) => {
            exchange
                .entry
                .violation("auth calls take a valid multipart/form-data body");
            answer::simple(400, "invalid_request")
        }
        (_, Content::Auth(Some(form))) => auth(exchange, route, endpoint, call.head, &form),
        (_, content) => match call.bearer {
            Some(bearer) => devices(exchange, route, call.head, content, &bearer),
            None if matches!(route, Route::Websocket) => {
                answer::detailed(403, "Forbidden", "The access token is not valid")
            }
            None => answer::not_authorized(),
        },
    }
}

fn check_version(head: &Head) -> Result<(), &'static str> {
    let Some(version) = head.headers.get("x-client-version") else {
        return Err("the header x-client-version is missing");
    };
    let version = version
        .to_str()
        .ok()
        .and_then(|text| semver::Version::parse(text).ok());
    version
        .map(drop)
        .ok_or("the header x-client-version is no semantic version")
}

fn auth(
    exchange: &Exchange,
    route: &Route,
    endpoint: EndpointName,
    head: &Head,
    form: &BTreeMap<String, String>,
) -> Answer {
    let world = &exchange.world;
    let field = |name: &str| {
        form.get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    };
    let invalid = |rule: &str| {
        exchange.entry.violation(rule.to_owned());
        answer::simple(400, "invalid_request")
    };
    let Some(client_id) = field("client_id") else {
        return invalid("client_id is missing");
    };
    if client_id.contains('@') {
        exchange
            .entry
            .violation("client_id looks like an e-mail address");
    }
    if looks_like_mac(client_id) {
        exchange
            .entry
            .violation("client_id looks like a MAC address");
    }
    match field("client_secret") {
        None => return invalid("client_secret is missing"),
        Some(secret) if secret != world.settings.client_secret => {
            return answer::simple(400, "invalid_client");
        }
        Some(_) => {}
    }
    let now = world.clock.now();
    match (route, endpoint) {
        (Route::DeviceCode, _) => {
            let mut scopes: Vec<&str> = field("scope").unwrap_or_default().split(' ').collect();
            scopes.sort_unstable();
            if scopes != ["asset_create", "offline"] {
                return invalid("scope is not exactly 'asset_create offline'");
            }
            let platypus = header(head, "x-client-platypus-enabled");
            if platypus.is_some_and(|value| value != "true") {
                return invalid("x-client-platypus-enabled may only be 'true'");
            }
            device_code(world, client_id, platypus.is_some())
        }
        (Route::Revoke, _) => {
            let Some(token) = field("token") else {
                return invalid("token is missing");
            };
            if world.change(|state| state.revoke_token(client_id, token)) {
                world.push(Some(client_id), News::Tokens);
            }
            // As RFC 7009 has it, a token that is unknown is as good as revoked.
            answer::json(200, &json!("revoked"))
        }
        (_, EndpointName::Refresh) => {
            let Some(token) = field("refresh_token") else {
                return invalid("refresh_token is missing");
            };
            match world.change(|state| state.refresh(client_id, token, now)) {
                Ok(pair) => {
                    world.push(Some(client_id), News::Tokens);
                    token_answer(exchange, &pair)
                }
                Err(RefreshRefused::NotAuthorized) => answer::not_authorized(),
                Err(RefreshRefused::Simple(error)) => {
                    if error == "invalid_request" {
                        exchange
                            .entry
                            .violation("a spent refresh token was used again");
                    }
                    answer::simple(400, error)
                }
            }
        }
        _ => {
            if field("grant_type") != Some(DEVICE_CODE_GRANT) {
                return invalid("grant_type is neither the device-code nor the refresh grant");
            }
            let Some(code) = field("device_code") else {
                return invalid("device_code is missing");
            };
            match world.change(|state| state.poll(&world.settings, client_id, code, now)) {
                Ok(pair) => token_answer(exchange, &pair),
                Err(error) => {
                    if error == "slow_down" {
                        exchange
                            .entry
                            .violation("polled sooner than the interval allows");
                    }
                    answer::simple(400, error)
                }
            }
        }
    }
}

/// Six groups of two hexadecimal digits between colons or dashes.
fn looks_like_mac(id: &str) -> bool {
    let groups: Vec<&str> = id.split([':', '-']).collect();
    let is_pair =
        |group: &&str| group.len() == 2 && group.bytes().all(|byte| byte.is_ascii_hexdigit());
    groups.len() == 6 && groups.iter().all(is_pair)
}

fn device_code(world: &World, client_id: &str, with_link: bool) -> Answer {
    let now = world.clock.now();
    let body = world.change(|state| {
        let (device_code, user_code, interval) = {
            let code = state.issue_code(&world.settings, client_id, now);
            (
                code.device_code.clone(),
                code.user_code.clone(),
                code.interval(),
            )
        };
        let pending = state.pending_codes(&world.settings, now);
        let name = pending
            .into_iter()
            .find(|code| code.user_code == user_code)
            .map(|code| code.name);
        let complete = with_link.then(|| format!("{}?code={user_code}", world.pair_url));
        json!({
            "device_code": device_code, "user_code": user_code, "expires_in": CODE_LIFE.as_secs(),
            "interval": seconds(interval), "name": name, "verification_uri": world.pair_url,
            "verification_uri_complete": complete,
        })
    });
    answer::json(200, &body)
}

/// Whole seconds as an integer, as the service writes them; others as they are.
fn seconds(span: Duration) -> Value {
    if span.subsec_nanos() == 0 {
        json!(span.as_secs())
    } else {
        json!(span.as_secs_f64())
    }
}

fn token_answer(exchange: &Exchange, pair: &Pair) -> Answer {
    exchange.entry.note(|entry| entry.token = Some(pair.serial));
    answer::json(
        200,
        &json!({
            "access_token": pair.access, "expires_in": ACCESS_LIFE.as_secs(),
            "refresh_token": pair.refresh, "token_type": "bearer",
        }),
    )
}

/// The calls that need a bearer token, which is good here.
fn devices(
    exchange: &Exchange,
    route: &Route,
    head: &Head,
    content: Content,
    bearer: &Bearer,
) -> Answer {
    let world = &exchange.world;
    let now = world.clock.now();
    match (route, content) {
        (Route::Me, _) => match world.read(|state| state.me(&world.settings, bearer, now)) {
            Some(me) => answer::json(200, &me),
            None => answer::not_authorized(),
        },
        (Route::Heartbeat, _) => {
            let last = world.change(|state| {
                let device = state.devices.get_mut(&bearer.client_id)?;
                device.last_heartbeat.replace(now)
            });
            if last.is_some_and(|last| {
                now.duration_since(last).unwrap_or_default() < Duration::from_secs(60)
            }) {
                exchange
                    .entry
                    .violation("a heartbeat less than 60 s after the last one");
            }
            answer::empty(204)
        }
        (Route::CreateAsset, Content::Fields(Ok(fields))) => {
            if let Some(rule) = fields
                .text("name")
                .ok()
                .flatten()
                .as_deref()
                .and_then(doubtful_name)
            {
                exchange.entry.violation(rule);
            }
            match asset::create(world, bearer, &fields) {
                Ok((id, body)) => {
                    exchange.entry.note(|entry| entry.asset_id = Some(id));
                    answer::json(200, &body)
                }
                Err(refusal) => refused(exchange, *refusal),
            }
        }
        (Route::RealtimeParts(id), Content::Fields(Ok(fields))) => {
            match realtime::parts(world, bearer, id, &fields) {
                Ok(body) => answer::json(200, &body),
                Err(refusal) => refused(exchange, *refusal),
            }
        }
        (_, Content::Fields(Err(refusal))) => refused(exchange, *refusal),
        (Route::Websocket, _) => websocket::accept(exchange, head, bearer),
        _ => answer::not_authorized(),
    }
}

/// A refusal for what the client sent is also a broken rule.
fn refused(exchange: &Exchange, refusal: Answer) -> Answer {
    let status = refusal.status().as_u16();
    if matches!(status, 400 | 422 | 500) {
        exchange
            .entry
            .violation(format!("the arguments were refused with {status}"));
    }
    refusal
}

/// Names that are accepted but that no careful client sends.
fn doubtful_name(name: &str) -> Option<&'static str> {
    if name.len() > 255 {
        Some("the name has more than 255 bytes")
    } else if name.contains('/') || name.chars().any(char::is_control) {
        Some("the name has a slash or a control character")
    } else {
        None
    }
}
