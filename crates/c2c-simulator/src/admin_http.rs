//! The controls over plain HTTP on loopback. The table of calls is in the crate documentation.
//!
//! Invariants: only requests addressed to a loopback name are served, so that no web page can reach the controls
//! through a name of its own; every answer but the pairing page is JSON; errors are `{"error": "…"}`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::admin::{Admin, AdminError};
use crate::answer::escape;
use crate::clock::{rfc3339, stamp};
use crate::fault::Fault;
use crate::world::World;

#[derive(Clone)]
struct Desk {
    admin: Admin,
    announcement: Arc<Value>,
}

pub(crate) fn router(admin: Admin, announcement: Value) -> Router {
    Router::new()
        .route("/", get(announce))
        .route("/pair", get(pair_page).post(pair_form))
        .route(
            "/codes",
            get(|desk: State<Desk>| async move { Json(desk.admin.pending_codes()) }),
        )
        .route("/codes/{code}/approve", post(approve))
        .route("/codes/{code}/deny", post(deny))
        .route("/tokens/revoke", post(revoke))
        .route(
            "/projects",
            get(|desk: State<Desk>| async move { Json(desk.admin.projects()) }).post(add_project),
        )
        .route("/projects/{id}/rename", post(rename_project))
        .route("/projects/{id}/next", post(next_project))
        .route(
            "/devices",
            get(|desk: State<Desk>| async move { Json(desk.admin.devices()) }),
        )
        .route("/devices/move", post(move_devices))
        .route("/devices/remove", post(remove_devices))
        .route("/devices/rename", post(rename_device))
        .route(
            "/pauses",
            get(|desk: State<Desk>| async move { Json(desk.admin.pause_windows()) }),
        )
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route(
            "/faults",
            get(|desk: State<Desk>| async move { Json(desk.admin.faults()) })
                .post(add_fault)
                .delete(clear_faults),
        )
        .route("/faults/{id}", delete(remove_fault))
        .route("/requests", get(requests).delete(clear_requests))
        .route(
            "/assets",
            get(|desk: State<Desk>| async move { Json(desk.admin.assets()) }),
        )
        .route(
            "/delivered",
            get(|desk: State<Desk>| async move { Json(desk.admin.delivered()) }),
        )
        .route(
            "/stats",
            get(|desk: State<Desk>| async move { Json(desk.admin.stats()) }),
        )
        .route(
            "/secrets",
            get(|desk: State<Desk>| async move { Json(desk.admin.issued_secrets()) }),
        )
        .route("/clock", get(clock))
        .route("/clock/advance", post(advance))
        .route("/clock/date-skew", post(date_skew))
        .route("/wait", get(wait))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such control") })
        .layer(middleware::from_fn(loopback_only))
        .with_state(Desk {
            admin,
            announcement: Arc::new(announcement),
        })
}

/// Serves the controls until the simulator stops.
pub(crate) async fn listen(world: Arc<World>, listener: TcpListener, router: Router) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = world.shutdown.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let stop = world.shutdown.clone();
        world.tasks.spawn(async move {
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = serving => if let Err(error) = served {
                    tracing::debug!(%error, "an admin connection ended in the middle");
                },
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn loopback_only(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let origin_is_local = text(header::ORIGIN).is_none_or(|origin| {
        origin
            .split_once("://")
            .is_some_and(|(_, authority)| is_loopback(authority))
    });
    if is_loopback(text(header::HOST).unwrap_or_default()) && origin_is_local {
        next.run(request).await
    } else {
        refuse(
            StatusCode::FORBIDDEN,
            "the controls answer to loopback names only",
        )
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}

fn done(result: Result<(), AdminError>) -> Response {
    match result {
        Ok(()) => Json(json!({ "ok": true })).into_response(),
        Err(error) => refuse(StatusCode::NOT_FOUND, &error.to_string()),
    }
}

/// A JSON body that may be left out.
fn optional<T: Default + DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    if body.is_empty() {
        Ok(T::default())
    } else {
        serde_json::from_slice(body)
    }
}

fn unreadable(error: &serde_json::Error) -> Response {
    refuse(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())
}

async fn announce(desk: State<Desk>) -> Response {
    Json((*desk.announcement).clone()).into_response()
}

// ---- pairing ----

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Approval {
    project_id: Option<String>,
    #[serde(with = "rfc3339::option")]
    expires_at: Option<SystemTime>,
}

async fn approve(desk: State<Desk>, Path(code): Path<String>, body: Bytes) -> Response {
    match optional::<Approval>(&body) {
        Ok(Approval {
            project_id,
            expires_at,
        }) => done(desk.admin.approve(&code, project_id.as_deref(), expires_at)),
        Err(error) => unreadable(&error),
    }
}

async fn deny(desk: State<Desk>, Path(code): Path<String>) -> Response {
    done(desk.admin.deny(&code))
}

async fn revoke(desk: State<Desk>) -> Response {
    desk.admin.revoke_all();
    done(Ok(()))
}

#[derive(Deserialize)]
struct Entered {
    #[serde(default)]
    code: String,
}

async fn pair_page(desk: State<Desk>, Query(entered): Query<Entered>) -> Html<String> {
    Html(page(&desk, &entered.code, ""))
}

async fn pair_form(desk: State<Desk>, headers: HeaderMap, body: String) -> Response {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if !content_type.starts_with("application/x-www-form-urlencoded") {
        return refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the pairing page sends a form",
        );
    }
    let field = |name: &str| {
        let mut pairs = form_urlencoded::parse(body.as_bytes());
        pairs
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    let (code, project) = (field("code").trim().to_owned(), field("project_id"));
    let project = Some(project.as_str()).filter(|project| !project.is_empty());
    match desk.admin.approve(&code, project, None) {
        Ok(()) => Html(page(&desk, "", "Connected. The device goes on by itself.")).into_response(),
        Err(error) => (
            StatusCode::NOT_FOUND,
            Html(page(&desk, &code, &error.to_string())),
        )
            .into_response(),
    }
}

fn page(desk: &Desk, code: &str, message: &str) -> String {
    let options: String = desk
        .admin
        .projects()
        .iter()
        .map(|project| {
            format!(
                "<option value=\"{}\">{}</option>",
                escape(&project.id),
                escape(&project.name)
            )
        })
        .collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>New C2C connection</title>\
         <meta name=\"viewport\" content=\"width=device-width\"></head>\
         <body style=\"font-family:sans-serif;max-width:24em;margin:3em auto\">\
         <h1>Device ready to connect</h1><p role=\"status\">{}</p><form method=\"post\" action=\"/pair\">\
         <p><label>Code <input name=\"code\" inputmode=\"numeric\" autocomplete=\"off\" value=\"{}\"></label></p>\
         <p><label>Project <select name=\"project_id\">{options}</select></label></p>\
         <p><button>Authorize</button></p></form></body></html>\n",
        escape(message),
        escape(code),
    )
}

// ---- projects, units, pauses ----

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

async fn add_project(desk: State<Desk>, Json(named): Json<Named>) -> Response {
    Json(json!({ "id": desk.admin.add_project(&named.name) })).into_response()
}

async fn rename_project(
    desk: State<Desk>,
    Path(id): Path<String>,
    Json(named): Json<Named>,
) -> Response {
    done(desk.admin.rename_project(&id, &named.name))
}

async fn next_project(desk: State<Desk>, Path(id): Path<String>) -> Response {
    done(desk.admin.next_pairing_project(&id))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Move {
    project_id: String,
    #[serde(default)]
    client_id: Option<String>,
    #[serde(default)]
    keep_tokens: bool,
}

async fn move_devices(desk: State<Desk>, Json(order): Json<Move>) -> Response {
    done(desk.admin.move_devices(
        order.client_id.as_deref(),
        &order.project_id,
        order.keep_tokens,
    ))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    client_id: Option<String>,
    channel: u32,
}

async fn remove_devices(desk: State<Desk>, body: Bytes) -> Response {
    match optional::<Which>(&body) {
        Ok(Which {
            client_id: Some(client_id),
            ..
        }) => done(desk.admin.remove_device_of(&client_id)),
        Ok(_) => {
            desk.admin.remove_device();
            done(Ok(()))
        }
        Err(error) => unreadable(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rename {
    client_id: String,
    name: String,
}

async fn rename_device(desk: State<Desk>, Json(order): Json<Rename>) -> Response {
    done(desk.admin.rename_device(&order.client_id, &order.name))
}

async fn pause(desk: State<Desk>, body: Bytes) -> Response {
    let which: Which = match optional(&body) {
        Ok(which) => which,
        Err(error) => return unreadable(&error),
    };
    desk.admin
        .pause_device(which.client_id.as_deref(), which.channel);
    done(Ok(()))
}

async fn resume(desk: State<Desk>, body: Bytes) -> Response {
    let which: Which = match optional(&body) {
        Ok(which) => which,
        Err(error) => return unreadable(&error),
    };
    desk.admin
        .resume_device(which.client_id.as_deref(), which.channel);
    done(Ok(()))
}

// ---- faults and the log ----

async fn add_fault(desk: State<Desk>, Json(fault): Json<Fault>) -> Response {
    Json(json!({ "id": desk.admin.add_fault(fault) })).into_response()
}

async fn clear_faults(desk: State<Desk>) -> Response {
    desk.admin.clear_faults();
    done(Ok(()))
}

async fn remove_fault(desk: State<Desk>, Path(id): Path<u64>) -> Response {
    if desk.admin.remove_fault(id) {
        done(Ok(()))
    } else {
        refuse(StatusCode::NOT_FOUND, "there is no such fault")
    }
}

#[derive(Deserialize)]
struct Filter {
    #[serde(default)]
    violations: bool,
    #[serde(default)]
    after: u64,
}

async fn requests(desk: State<Desk>, Query(filter): Query<Filter>) -> Response {
    let mut requests = desk.admin.requests();
    requests.retain(|entry| {
        entry.id > filter.after && (!filter.violations || !entry.violations.is_empty())
    });
    Json(requests).into_response()
}

async fn clear_requests(desk: State<Desk>) -> Response {
    desk.admin.clear_requests();
    done(Ok(()))
}

// ---- time ----

async fn clock(desk: State<Desk>) -> Response {
    let clock = desk.admin.clock();
    Json(json!({ "now": stamp(clock.now()), "date_skew_seconds": clock.date_skew() }))
        .into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    seconds: f64,
}

async fn advance(desk: State<Desk>, Json(span): Json<Span>) -> Response {
    match Duration::try_from_secs_f64(span.seconds) {
        // A longer step would leave the range of dates that can be written down.
        Ok(by) if by <= Duration::from_secs(100 * 366 * 86_400) => {
            desk.admin.clock().advance(by);
            clock(desk).await
        }
        _ => refuse(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the clock moves forward only, by at most a hundred years",
        ),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skew {
    seconds: i64,
}

async fn date_skew(desk: State<Desk>, Json(skew): Json<Skew>) -> Response {
    desk.admin.clock().set_date_skew(skew.seconds);
    clock(desk).await
}

#[derive(Deserialize)]
struct Wait {
    #[serde(default)]
    delivered: usize,
    #[serde(default)]
    requests: usize,
    #[serde(default)]
    codes: usize,
    #[serde(default = "a_minute")]
    timeout_seconds: f64,
}

fn a_minute() -> f64 {
    60.0
}

async fn wait(desk: State<Desk>, Query(wait): Query<Wait>) -> Response {
    let limit =
        Duration::try_from_secs_f64(wait.timeout_seconds.min(3_600.0)).unwrap_or(Duration::ZERO);
    let met = desk.admin.wait_until_within(limit, |snapshot| {
        snapshot.delivered().len() >= wait.delivered
            && snapshot.requests().len() >= wait.requests
            && snapshot.pending_codes().len() >= wait.codes
    });
    let met = met.await;
    let status = if met {
        StatusCode::OK
    } else {
        StatusCode::REQUEST_TIMEOUT
    };
    (status, Json(json!({ "met": met }))).into_response()
}
