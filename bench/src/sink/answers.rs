//! What the sink says: Camera to Cloud, S3, counts.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::Sink;
use super::http::{Head, answer};

/// Bytes of a chunk if the client does not ask for a number of them.
const CHUNK: u64 = 25 << 20;

/// The answer to a request whose body, unless it is a PUT, is `body`.
pub(crate) fn to(head: &Head, body: &[u8], sink: &Sink) -> Vec<u8> {
    match (head.method.as_str(), head.path.as_str()) {
        ("PUT", _) => answer(
            "200 OK",
            "ETag: \"discarded-1\"\r\nx-amz-request-id: sink\r\n",
            "",
        ),
        ("GET", "/_counts") => {
            let counts = serde_json::to_value(sink.tally().counts()).unwrap_or(Value::Null);
            json_answer(&counts)
        }
        ("POST", "/_reset") => {
            sink.reset();
            json_answer(&json!({}))
        }
        ("POST", "/v2/auth/device/code") => json_answer(&json!({
            "device_code": "sink-device-code",
            "user_code": "123456",
            "expires_in": 120,
            "interval": 1,
            "name": "Bench",
            "verification_uri": "https://localhost/",
        })),
        ("POST", "/v2/auth/token") => json_answer(&json!({
            "access_token": "sink-access",
            "refresh_token": "sink-refresh",
            "expires_in": 28_800,
            "token_type": "bearer",
        })),
        ("GET", "/v2/devices/me") => json_answer(&json!({
            "id": "sink-unit",
            "device_id": "sink-device",
            "name": "Bench",
            "asset_type": "video",
            "status": "online",
            "project_id": "sink-project",
            "project": { "name": "Bench" },
            "channels": [],
        })),
        ("POST", "/v2/devices/heartbeat") => json_answer(&json!({})),
        ("GET", "/health" | "/v2/health") => json_answer(&json!({ "status": "ok" })),
        ("POST", "/v2/devices/assets") => asset(body, sink),
        ("POST", path) if path.starts_with("/v4/") && path.ends_with("/files/local_upload") => {
            file(body, sink)
        }
        (_, path) if path.starts_with("/v2/") || path == "/devices/websocket" => answer(
            "404 Not Found",
            "Content-Type: application/json\r\n",
            "{\"error\":\"not_found\"}",
        ),
        _ => s3(head),
    }
}

fn json_answer(value: &Value) -> Vec<u8> {
    answer(
        "200 OK",
        "Content-Type: application/json\r\n",
        &value.to_string(),
    )
}

/// What Frame.io's own SDK asks for.
fn file(body: &[u8], sink: &Sink) -> Vec<u8> {
    let Ok(wanted) = serde_json::from_slice::<Value>(body) else {
        return answer("400 Bad Request", "", "");
    };
    let data = &wanted["data"];
    let name = data["name"].as_str().unwrap_or_default();
    let size = data["file_size"].as_u64().unwrap_or(0);
    let parts = size.div_ceil(CHUNK).max(1);
    let each = size.div_ceil(parts);
    let urls: Vec<Value> = (1..=parts)
        .map(|part| {
            let size = each.min(size - (part - 1) * each);
            json!({ "size": size, "url": format!("{}/v4/{name}/{part}", sink.secure) })
        })
        .collect();
    sink.tally().assets.fetch_add(1, Ordering::Relaxed);
    let id = sink.assets.fetch_add(1, Ordering::Relaxed);
    json_answer(&json!({
        "data": {
            "id": format!("file-{id}"),
            "name": name,
            "type": "file",
            "status": "created",
            "file_size": size,
            "media_type": "application/octet-stream",
            "upload_urls": urls,
        }
    }))
}

fn asset(body: &[u8], sink: &Sink) -> Vec<u8> {
    let Ok(wanted) = serde_json::from_slice::<Value>(body) else {
        return answer("400 Bad Request", "", "");
    };
    let size = wanted["filesize"].as_u64().unwrap_or(0);
    let parts = wanted["parts"]
        .as_u64()
        .unwrap_or_else(|| size.div_ceil(CHUNK))
        .clamp(1, 10_000);
    let id = sink.assets.fetch_add(1, Ordering::Relaxed);
    sink.tally().assets.fetch_add(1, Ordering::Relaxed);
    let urls: Vec<String> = (1..=parts)
        .map(|part| format!("{}/parts/{id}/{part}?X-Amz-Expires=86400", sink.secure))
        .collect();
    json_answer(&json!({
        "id": format!("asset-{id}"),
        "name": wanted["name"],
        "upload_urls": urls,
    }))
}

fn s3(head: &Head) -> Vec<u8> {
    const XML: &str = "Content-Type: application/xml\r\n";
    let key = head.path.trim_start_matches('/');
    let (bucket, key) = key.split_once('/').unwrap_or((key, ""));
    match head.method.as_str() {
        "POST" if head.has("uploads") => answer(
            "200 OK",
            XML,
            &format!(
                "<?xml version=\"1.0\"?><InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key><UploadId>sink</UploadId></InitiateMultipartUploadResult>"
            ),
        ),
        "POST" => answer(
            "200 OK",
            XML,
            &format!(
                "<?xml version=\"1.0\"?><CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key><ETag>\"discarded-2\"</ETag></CompleteMultipartUploadResult>"
            ),
        ),
        "HEAD" if key.is_empty() => answer("200 OK", "", ""),
        "HEAD" => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        "GET" if head.has("location") => answer(
            "200 OK",
            XML,
            "<?xml version=\"1.0\"?><LocationConstraint>us-east-1</LocationConstraint>",
        ),
        "GET" => answer(
            "200 OK",
            XML,
            &format!(
                "<?xml version=\"1.0\"?><ListBucketResult><Name>{bucket}</Name><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"
            ),
        ),
        _ => answer("200 OK", "", ""),
    }
}
