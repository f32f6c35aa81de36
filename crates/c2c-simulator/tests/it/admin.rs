//! The controls over plain HTTP.

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::client::{Reply, Rig, UNIT, exchange, split};

async fn ask(rig: &Rig, method: &str, path: &str, body: &Value) -> Reply {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    raw(
        rig,
        method,
        path,
        &[("content-type", "application/json")],
        body,
    )
    .await
}

async fn raw(rig: &Rig, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Reply {
    let url = format!("{}{path}", rig.simulator.admin_url());
    let stream = TcpStream::connect(("127.0.0.1", split(&url).1))
        .await
        .unwrap();
    exchange(stream, method, &url, headers, body.into())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_session_by_script() {
    let rig = Rig::start(|builder| builder).await;
    let ok = async |method: &str, path: &str, body: Value| {
        let reply = ask(&rig, method, path, &body).await;
        assert_eq!(reply.status, 200, "{method} {path}: {}", reply.text());
        reply.json()
    };
    assert_eq!(
        ok("GET", "/", Value::Null).await,
        rig.simulator.announcement()
    );
    let project = ok("POST", "/projects", json!({ "name": "Show B" })).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let code = rig.request_code().await;
    let user_code = code["user_code"].as_str().unwrap();
    assert_eq!(
        ok("GET", "/codes", Value::Null).await[0]["user_code"],
        *user_code
    );
    ok(
        "POST",
        &format!("/codes/{user_code}/approve"),
        json!({ "project_id": project, "expires_at": "2030-01-01T00:00:00Z" }),
    )
    .await;
    let pair = rig.poll(code["device_code"].as_str().unwrap()).await.json();
    let token = pair["access_token"].as_str().unwrap();
    assert_eq!(
        ask(
            &rig,
            "POST",
            &format!("/codes/{user_code}/approve"),
            &Value::Null
        )
        .await
        .status,
        404
    );
    let me = rig
        .call("GET", "/v2/devices/me", token, &Value::Null)
        .await
        .json();
    assert_eq!(me["project"]["name"], "Show B");
    assert_eq!(
        me["authorization"]["expires_at"],
        "2030-01-01T00:00:00.000000Z"
    );
    ok(
        "POST",
        &format!("/projects/{project}/rename"),
        json!({ "name": "Show C" }),
    )
    .await;
    assert_eq!(
        ok("GET", "/projects", Value::Null).await[1]["name"],
        "Show C"
    );
    ok(
        "POST",
        "/devices/rename",
        json!({ "client_id": UNIT, "name": "A cam" }),
    )
    .await;
    assert_eq!(ok("GET", "/devices", Value::Null).await[0]["name"], "A cam");

    ok("POST", "/pause", json!({})).await;
    assert_eq!(
        ok("GET", "/devices", Value::Null).await[0]["status"],
        "paused"
    );
    ok("POST", "/resume", json!({ "channel": 0 })).await;
    let pauses = ok("GET", "/pauses", Value::Null).await;
    assert_eq!(
        (pauses.as_array().unwrap().len(), &pauses[0]["channel"]),
        (1, &json!(0))
    );

    let fault = json!({ "on": { "endpoint": "me" }, "effect": { "status": { "status": 503, "body": "html" } }, "times": 1 });
    let id = ok("POST", "/faults", fault).await["id"].as_u64().unwrap();
    assert_eq!(
        rig.call("GET", "/v2/devices/me", token, &Value::Null)
            .await
            .status,
        503
    );
    assert_eq!(ok("GET", "/faults", Value::Null).await[0]["hits"], 1);
    ok("DELETE", &format!("/faults/{id}"), Value::Null).await;
    assert_eq!(
        ask(&rig, "DELETE", &format!("/faults/{id}"), &Value::Null)
            .await
            .status,
        404
    );
    ok("DELETE", "/faults", Value::Null).await;
    let typo = json!({ "effect": "explode" });
    assert!(ask(&rig, "POST", "/faults", &typo).await.status >= 400);

    let url = rig.urls(token, "a.mov", 3, &Value::Null).await.remove(0);
    assert_eq!(rig.put(&url, "abc").await.status, 200);
    assert_eq!(
        ok("GET", "/wait?delivered=1", Value::Null).await["met"],
        true
    );
    assert_eq!(
        ask(
            &rig,
            "GET",
            "/wait?delivered=2&timeout_seconds=0",
            &Value::Null
        )
        .await
        .status,
        408
    );
    let delivered = ok("GET", "/delivered", Value::Null).await;
    assert!(
        delivered[0]["path"]
            .as_str()
            .unwrap()
            .ends_with("/VIDEO/A cam/a.mov")
    );
    assert_eq!(
        ok("GET", "/assets", Value::Null).await[0]["stage"],
        "delivered"
    );
    assert_eq!(ok("GET", "/stats", Value::Null).await["tokens_issued"], 1);

    let requests = ok("GET", "/requests", Value::Null).await.to_string();
    let secrets = ok("GET", "/secrets", Value::Null).await;
    for secret in secrets.as_array().unwrap() {
        assert!(
            !requests.contains(secret.as_str().unwrap()),
            "{secret} is in the log"
        );
    }
    assert!(secrets.as_array().unwrap().contains(&json!(url)));
    assert_eq!(
        ok("GET", "/requests?violations=true", Value::Null).await,
        json!([])
    );
    ok("DELETE", "/requests", Value::Null).await;
    assert_eq!(ok("GET", "/requests", Value::Null).await, json!([]));

    assert_eq!(
        ok("POST", "/clock/advance", json!({ "seconds": 1.5 })).await["now"],
        "2023-11-14T22:13:21.500000Z"
    );
    assert_eq!(
        ok("POST", "/clock/date-skew", json!({ "seconds": -60 })).await["date_skew_seconds"],
        -60
    );
    assert_eq!(
        ask(&rig, "POST", "/clock/advance", &json!({ "seconds": -1 }))
            .await
            .status,
        422
    );

    ok(
        "POST",
        "/devices/move",
        json!({ "project_id": project, "keep_tokens": true }),
    )
    .await;
    assert_eq!(
        rig.call("GET", "/v2/devices/me", token, &Value::Null)
            .await
            .status,
        200
    );
    ok("POST", &format!("/projects/{project}/next"), Value::Null).await;
    ok("POST", "/devices/remove", json!({ "client_id": UNIT })).await;
    assert_eq!(
        rig.call("GET", "/v2/devices/me", token, &Value::Null)
            .await
            .status,
        401
    );
    ok("POST", "/tokens/revoke", Value::Null).await;
    assert_eq!(ask(&rig, "GET", "/nothing", &Value::Null).await.status, 404);
    assert_eq!(
        ask(&rig, "POST", "/projects/none/next", &Value::Null)
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn a_person_enters_a_code_on_the_page() {
    let rig = Rig::start(|builder| builder.project("<b>Show</b>", "b")).await;
    let code = rig.request_code().await;
    let user_code = code["user_code"].as_str().unwrap();
    let page = raw(
        &rig,
        "GET",
        &format!("/pair?code={user_code}"),
        &[],
        String::new(),
    )
    .await;
    assert!(
        page.text().contains(&format!("value=\"{user_code}\""))
            && page.text().contains("&lt;b&gt;Show")
    );
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let wrong = raw(
        &rig,
        "POST",
        "/pair",
        &form,
        "code=%22%3E000&project_id=b".to_owned(),
    )
    .await;
    assert!(wrong.status == 404 && !wrong.text().contains("\">000"));
    let right = raw(
        &rig,
        "POST",
        "/pair",
        &form,
        format!("code={user_code}&project_id=b"),
    )
    .await;
    assert_eq!(right.status, 200);
    assert_eq!(
        rig.poll(code["device_code"].as_str().unwrap()).await.status,
        200
    );
    assert_eq!(rig.simulator.admin().devices()[0].project_id, "b");
}

#[tokio::test]
async fn only_loopback_names_are_served() {
    let rig = Rig::start(|builder| builder).await;
    for (host, status) in [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("192.168.0.1", 403),
        ("", 403),
    ] {
        assert_eq!(
            raw(&rig, "GET", "/", &[("host", host)], String::new())
                .await
                .status,
            status,
            "{host}"
        );
    }
    for (origin, status) in [
        ("http://127.0.0.1:99", 200),
        ("https://evil.example", 403),
        ("null", 403),
    ] {
        let reply = raw(
            &rig,
            "POST",
            "/tokens/revoke",
            &[("origin", origin)],
            String::new(),
        )
        .await;
        assert_eq!(reply.status, status, "{origin}");
    }
}

#[tokio::test]
async fn the_log_forgets_the_oldest() {
    let rig = Rig::start(|builder| builder.log_capacity(2)).await;
    for _ in 0..3 {
        assert_eq!(
            rig.send("GET", &rig.api("/health"), &[], "")
                .await
                .unwrap()
                .status,
            200
        );
    }
    let log = rig.simulator.admin().requests();
    assert_eq!(
        log.iter()
            .map(|entry| (entry.id, entry.status()))
            .collect::<Vec<_>>(),
        [(2, Some(200)), (3, Some(200))]
    );
    assert_eq!(rig.simulator.admin().stats().api_accepted, 3);
}
