//! Device codes, tokens, identity and presence.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Rig, UNIT, not_authorized, split, tokens};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_code_lives_through_its_states() {
    let rig = Rig::start(|builder| builder).await;
    let code = rig.request_code().await;
    let user_code = code["user_code"].as_str().unwrap();
    assert!(user_code.len() == 6 && user_code.bytes().all(|digit| digit.is_ascii_digit()));
    assert_eq!(
        (&code["expires_in"], &code["interval"]),
        (&json!(120), &json!(5))
    );
    assert_eq!(code["name"], json!(format!("C2C-UPLINK-{UNIT}")));
    assert_eq!(code["verification_uri_complete"], Value::Null);
    let device_code = code["device_code"].as_str().unwrap();

    let answers = |status: u16, error: &str| (status, json!({ "error": error }));
    let poll = async || {
        let reply = rig.poll(device_code).await;
        (reply.status, reply.json())
    };
    assert_eq!(poll().await, answers(400, "authorization_pending"));
    rig.clock.advance(Duration::from_millis(4_999));
    assert_eq!(poll().await, answers(400, "slow_down"));
    rig.clock.advance(Duration::from_secs(5));
    assert_eq!(poll().await, answers(400, "authorization_pending"));
    rig.simulator
        .admin()
        .approve(user_code, None, None)
        .unwrap();
    rig.clock.advance(Duration::from_secs(5));
    let granted = rig.poll(device_code).await;
    assert_eq!(granted.status, 200);
    let pair = granted.json();
    assert_eq!(
        (&pair["expires_in"], &pair["token_type"]),
        (&json!(28_800), &json!("bearer"))
    );
    rig.clock.advance(Duration::from_secs(5));
    assert_eq!(poll().await, answers(400, "invalid_grant"));
    assert_eq!(
        rig.poll("unheard-of").await.json(),
        json!({ "error": "invalid_grant" })
    );
}

#[tokio::test]
async fn a_code_dies_after_two_minutes_and_can_be_denied() {
    let rig = Rig::start(|builder| builder).await;
    let code = rig.request_code().await;
    rig.clock.advance(Duration::from_secs(120));
    let pending = rig.poll(code["device_code"].as_str().unwrap()).await;
    assert_eq!(pending.json(), json!({ "error": "authorization_pending" }));
    rig.clock.advance(Duration::from_secs(5));
    assert!(
        rig.simulator
            .admin()
            .approve(code["user_code"].as_str().unwrap(), None, None)
            .is_err()
    );
    let expired = rig.poll(code["device_code"].as_str().unwrap()).await;
    assert_eq!(
        (expired.status, expired.json()),
        (400, json!({ "error": "expired_token" }))
    );

    let code = rig.request_code().await;
    rig.simulator
        .admin()
        .deny(code["user_code"].as_str().unwrap())
        .unwrap();
    let denied = rig.poll(code["device_code"].as_str().unwrap()).await;
    assert_eq!(
        (denied.status, denied.json()),
        (400, json!({ "error": "invalid_grant" }))
    );
}

#[tokio::test]
async fn a_strict_slow_down_stretches_the_interval() {
    let rig = Rig::start(|builder| builder.strict_slow_down(true)).await;
    let code = rig.request_code().await;
    let error = async |wait: u64| {
        rig.clock.advance(Duration::from_secs(wait));
        rig.poll(code["device_code"].as_str().unwrap()).await.json()["error"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(error(0).await, "authorization_pending");
    assert_eq!(error(4).await, "slow_down");
    assert_eq!(error(9).await, "slow_down");
    assert_eq!(error(15).await, "authorization_pending");
}

#[tokio::test]
async fn approval_by_itself_for_demos() {
    let rig = Rig::start(|builder| builder.auto_approve(true)).await;
    let code = rig.request_code().await;
    assert_eq!(
        rig.poll(code["device_code"].as_str().unwrap()).await.status,
        200
    );
}

#[tokio::test]
async fn the_link_is_given_to_who_asks_for_it() {
    let rig = Rig::start(|builder| builder).await;
    let secret = rig.simulator.client_secret();
    let fields = [
        ("client_id", UNIT),
        ("client_secret", &secret),
        ("scope", "offline asset_create"),
    ];
    let reply = rig
        .form(
            "/v2/device/code",
            &fields,
            &[("x-client-platypus-enabled", "true")],
        )
        .await
        .json();
    let complete = reply["verification_uri_complete"].as_str().unwrap();
    assert_eq!(
        complete,
        format!(
            "{}?code={}",
            reply["verification_uri"].as_str().unwrap(),
            reply["user_code"].as_str().unwrap()
        )
    );
    let other = rig
        .form(
            "/v2/device/code",
            &fields,
            &[("x-client-platypus-enabled", "false")],
        )
        .await;
    assert_eq!(
        (other.status, other.json()),
        (400, json!({ "error": "invalid_request" }))
    );
}

#[tokio::test]
async fn bad_code_requests_are_refused_in_the_simple_schema() {
    let rig = Rig::start(|builder| builder).await;
    let secret = rig.simulator.client_secret();
    let scope = ("scope", "asset_create offline");
    for (fields, error) in [
        (
            vec![("client_id", UNIT), ("client_secret", "wrong"), scope],
            "invalid_client",
        ),
        (vec![("client_id", UNIT), scope], "invalid_request"),
        (vec![("client_secret", &secret), scope], "invalid_request"),
        (
            vec![("client_id", UNIT), ("client_secret", &secret)],
            "invalid_request",
        ),
        (
            vec![
                ("client_id", UNIT),
                ("client_secret", &secret),
                ("scope", "asset_create"),
            ],
            "invalid_request",
        ),
        (
            vec![
                ("client_id", UNIT),
                ("client_secret", &secret),
                ("scope", "asset_create offline asset_read"),
            ],
            "invalid_request",
        ),
    ] {
        let reply = rig.form("/v2/auth/device/code", &fields, &[]).await;
        assert_eq!(
            (reply.status, reply.json()),
            (400, json!({ "error": error })),
            "{fields:?}"
        );
    }
    let json_body =
        json!({ "client_id": UNIT, "client_secret": secret, "scope": "asset_create offline" });
    let reply = rig
        .call("POST", "/v2/auth/device/code", "", &json_body)
        .await;
    assert_eq!(
        (reply.status, reply.json()),
        (400, json!({ "error": "invalid_request" }))
    );
    for suspicious in ["someone@example.com", "00:1B:44:11:3A:B7"] {
        let fields = [("client_id", suspicious), ("client_secret", &secret), scope];
        assert_eq!(
            rig.form("/v2/auth/device/code", &fields, &[]).await.status,
            200
        );
        let log = rig.simulator.admin().requests();
        assert_eq!(log.last().unwrap().violations.len(), 1, "{suspicious}");
    }
}

#[tokio::test]
async fn every_call_needs_a_semantic_version() {
    let rig = Rig::start(|builder| builder).await;
    let (token, _) = rig.pair().await;
    let bearer = format!("Bearer {token}");
    for version in [None, Some("1.2"), Some("v1.2.3"), Some("")] {
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(version.map(|version| ("x-client-version", version)));
        let reply = rig
            .send("GET", &rig.api("/v2/devices/me"), &headers, "")
            .await
            .unwrap();
        assert_eq!(
            (reply.status, reply.json()["message"].as_str()),
            (400, Some("Bad Request")),
            "{version:?}"
        );
        assert_eq!(
            rig.simulator
                .admin()
                .requests()
                .last()
                .unwrap()
                .violations
                .len(),
            1
        );
    }
    let health = rig.send("GET", &rig.api("/health"), &[], "").await.unwrap();
    assert_eq!(
        (health.status, health.json()),
        (200, json!({ "status": "ok" }))
    );
    assert_eq!(
        rig.simulator
            .admin()
            .requests()
            .last()
            .unwrap()
            .violations
            .len(),
        1
    );
    let health = rig
        .send(
            "GET",
            &rig.api("/v2/health"),
            &[("x-client-version", "1.0.0-rc.1")],
            "",
        )
        .await
        .unwrap();
    assert_eq!(health.status, 200);
    assert!(
        rig.simulator
            .admin()
            .requests()
            .last()
            .unwrap()
            .violations
            .is_empty()
    );
}

#[tokio::test]
async fn refreshing_rotates_and_kills_the_old_pair() {
    let rig = Rig::start(|builder| builder).await;
    let (access, refresh) = rig.pair().await;
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &access, &Value::Null)
            .await
            .status,
        200
    );
    let reply = rig.refresh(&refresh).await;
    assert_eq!(reply.status, 200);
    let (new_access, new_refresh) = tokens(&reply);
    assert!(new_access != access && new_refresh != refresh);
    let old = rig
        .call("GET", "/v2/devices/me", &access, &Value::Null)
        .await;
    assert_eq!((old.status, old.json()), (401, not_authorized()));
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &new_access, &Value::Null)
            .await
            .status,
        200
    );
    let spent = rig.refresh(&refresh).await;
    assert_eq!(
        (spent.status, spent.json()),
        (400, json!({ "error": "invalid_request" }))
    );
    let unknown = rig.refresh("00000000-0000-4000-8000-000000000000").await;
    assert_eq!(
        (unknown.status, unknown.json()),
        (400, json!({ "error": "invalid_grant" }))
    );
    // The reuse of a spent token does not hurt the living pair.
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &new_access, &Value::Null)
            .await
            .status,
        200
    );
    let serials: Vec<_> = rig
        .simulator
        .admin()
        .requests()
        .iter()
        .filter_map(|entry| entry.token)
        .collect();
    assert_eq!(serials, [1, 1, 2, 1, 2, 2]);
    assert_eq!(rig.simulator.admin().stats().refreshes, 1);
}

#[tokio::test]
async fn tokens_live_as_long_as_documented() {
    let rig = Rig::start(|builder| builder).await;
    let (access, refresh) = rig.pair().await;
    rig.clock.advance(Duration::from_secs(28_799));
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &access, &Value::Null)
            .await
            .status,
        200
    );
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &access, &Value::Null)
            .await
            .status,
        401
    );
    let (access, refresh) = tokens(&rig.refresh(&refresh).await);
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &access, &Value::Null)
            .await
            .status,
        200
    );
    rig.clock.advance(Duration::from_secs(14 * 86_400 - 1));
    let (_, refresh) = tokens(&rig.refresh(&refresh).await);
    rig.clock.advance(Duration::from_secs(14 * 86_400));
    let dead = rig.refresh(&refresh).await;
    assert_eq!((dead.status, dead.json()), (401, not_authorized()));
}

#[tokio::test]
async fn revoking_removing_and_expiry_end_in_401() {
    let rig = Rig::start(|builder| builder).await;
    let admin = rig.simulator.admin();
    let secret = rig.simulator.client_secret();
    let me = async |token: &str| {
        rig.call("GET", "/v2/devices/me", token, &Value::Null)
            .await
            .status
    };

    for by_refresh_token in [true, false] {
        let (access, refresh) = rig.pair().await;
        assert_eq!(me(&access).await, 200);
        let token = if by_refresh_token { &refresh } else { &access };
        let fields = [
            ("client_id", UNIT),
            ("client_secret", &secret),
            ("token", token),
        ];
        let reply = rig.form("/v2/auth/revoke", &fields, &[]).await;
        assert!(reply.status == 200 && reply.json().is_string());
        assert_eq!(me(&access).await, 401);
        assert_eq!(rig.refresh(&refresh).await.status, 401);
    }
    let (access, _) = rig.pair().await;
    admin.revoke_all();
    assert_eq!(me(&access).await, 401);

    let (access, _) = rig.pair().await;
    assert_eq!(admin.devices().len(), 1);
    admin.remove_device();
    assert_eq!((me(&access).await, admin.devices().len()), (401, 0));

    let code = rig.request_code().await;
    let end = rig.clock.now() + MINUTE;
    admin
        .approve(code["user_code"].as_str().unwrap(), None, Some(end))
        .unwrap();
    let (access, refresh) = tokens(&rig.poll(code["device_code"].as_str().unwrap()).await);
    rig.clock.advance(MINUTE - Duration::from_secs(1));
    assert_eq!(me(&access).await, 200);
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(me(&access).await, 401);
    assert_eq!(rig.refresh(&refresh).await.status, 401);
}

#[tokio::test]
async fn a_new_pairing_ends_the_old_one() {
    let rig = Rig::start(|builder| builder).await;
    let (old, _) = rig.pair().await;
    let (new, _) = rig.pair().await;
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &old, &Value::Null)
            .await
            .status,
        401
    );
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &new, &Value::Null)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn identity_is_told_whole_and_follows_the_project() {
    let rig =
        Rig::start(|builder| builder.project("Show B", "44444444-0000-4000-8000-000000000000"))
            .await;
    let admin = rig.simulator.admin();
    let (access, _) = rig.pair().await;
    let me = rig
        .call("GET", "/v2/devices/me", &access, &Value::Null)
        .await
        .json();
    assert_eq!(me["_type"], "project_device");
    assert_eq!(
        me["project"],
        json!({ "_type": "project", "id": me["project_id"], "name": "Show A" })
    );
    assert_eq!(
        (&me["status"], &me["asset_type"], &me["timezone"]),
        (&json!("online"), &json!("video"), &json!("UTC"))
    );
    assert_eq!(me["last_known_firmware_version"], "1.2.3");
    assert_eq!(me["last_seen_at"], "2023-11-14T22:13:20Z");
    assert_eq!(me["inserted_at"], "2023-11-14T22:13:20.000000Z");
    let scopes = me["authorization"]["scopes"].as_object().unwrap();
    let granted: Vec<_> = scopes
        .iter()
        .filter(|(_, value)| **value == json!(true))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(granted, ["asset_create", "offline"]);
    assert_eq!(me["authorization"]["expires_at"], Value::Null);
    assert_eq!(
        (
            me["channels"].as_array().unwrap().len(),
            &me["channels"][0]["external_index"]
        ),
        (1, &json!(0))
    );

    admin
        .rename_project(me["project_id"].as_str().unwrap(), "Show A, season 2")
        .unwrap();
    admin.pause(0);
    let paused = rig
        .call("GET", "/v2/devices/me", &access, &Value::Null)
        .await
        .json();
    assert_eq!(
        (&paused["status"], &paused["project"]["name"]),
        (&json!("paused"), &json!("Show A, season 2"))
    );
    admin.resume(0);
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &access, &Value::Null)
            .await
            .json()["status"],
        "online"
    );

    admin
        .rebind_device("44444444-0000-4000-8000-000000000000")
        .unwrap();
    let moved = rig
        .call("GET", "/v2/devices/me", &access, &Value::Null)
        .await
        .json();
    assert_eq!(moved["project"]["name"], "Show B");
    assert!(moved["device_id"] == me["device_id"] && moved["id"] != me["id"]);

    admin
        .move_device_to_project(me["project_id"].as_str().unwrap())
        .unwrap();
    assert_eq!(
        rig.call("GET", "/v2/devices/me", &access, &Value::Null)
            .await
            .status,
        401
    );
    let (access, _) = rig.pair().await;
    let back = rig
        .call("GET", "/v2/devices/me", &access, &Value::Null)
        .await
        .json();
    assert_eq!(
        (&back["id"], &back["project_id"]),
        (&me["id"], &me["project_id"])
    );
}

#[tokio::test]
async fn presence_follows_api_calls() {
    let rig = Rig::start(|builder| builder).await;
    let admin = rig.simulator.admin();
    let (access, _) = rig.pair().await;
    rig.clock.advance(Duration::from_secs(299));
    assert_eq!(admin.devices()[0].status, "online");
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(admin.devices()[0].status, "offline");
    let beat = rig
        .call("POST", "/v2/devices/heartbeat", &access, &Value::Null)
        .await;
    assert_eq!((beat.status, beat.body.len()), (204, 0));
    assert_eq!(admin.devices()[0].status, "online");
    rig.clock.advance(Duration::from_secs(59));
    assert_eq!(
        rig.call("POST", "/v2/devices/heartbeat", &access, &Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        admin.requests().last().unwrap().violations,
        ["a heartbeat less than 60 s after the last one"]
    );
    let refused = rig
        .call("POST", "/v2/devices/heartbeat", "nonsense", &Value::Null)
        .await;
    assert_eq!((refused.status, refused.json()), (401, not_authorized()));
}

#[tokio::test]
async fn unknown_addresses_and_methods() {
    let rig = Rig::start(|builder| builder).await;
    assert_eq!(
        rig.call("GET", "/v2/devices/nothing", "x", &Value::Null)
            .await
            .status,
        404
    );
    assert_eq!(
        rig.call("GET", "/v2/auth/token", "x", &Value::Null)
            .await
            .status,
        405
    );
    assert_ne!(
        split(&rig.simulator.api_url()).0,
        split(&rig.simulator.uploads_url()).0
    );
}
