//! Upload URLs that carry their own permission, in the shape of S3's query authentication.
//!
//! Invariants: a URL is a pure function of the grant, so every URL ever issued can be told again; the signature
//! covers the method, path, query, `content-type`, `host` and `x-amz-acl`; who cannot compute it cannot make one.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::clock::timestamp;

/// How long an upload URL lives.
pub(crate) const URL_LIFE: Duration = Duration::from_secs(86_400);

/// Everything one URL is made from.
pub(crate) struct Grant<'a> {
    pub(crate) asset_id: &'a str,
    pub(crate) resource_id: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) project_id: &'a str,
    pub(crate) extension: &'a str,
    pub(crate) filetype: &'a str,
    pub(crate) realtime: bool,
    pub(crate) part: u32,
    /// Number of parts, when it is known.
    pub(crate) total: Option<usize>,
    pub(crate) issued_at: SystemTime,
}

/// The parts of a request that the signature speaks about.
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// The query without its signature, any order.
    pub(crate) query: &'a [(String, String)],
    pub(crate) content_type: &'a str,
    pub(crate) host: &'a str,
    pub(crate) acl: &'a str,
}

/// Makes and checks signatures with a key of its own.
pub(crate) struct Signer {
    key: [u8; 32],
    host: String,
}

impl Signer {
    /// `host` is the authority of the uploads host, e.g. `127.0.0.1:4443`.
    pub(crate) fn new(host: String) -> Self {
        let mut key = [0; 32];
        key[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        Self { key, host }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn url(&self, grant: &Grant<'_>) -> String {
        let path = match grant.total {
            Some(1) if !grant.realtime => format!(
                "/uploads/{}/original.{}",
                grant.resource_id, grant.extension
            ),
            _ => format!("/parts/{}_{}", grant.resource_id, grant.part),
        };
        let total = grant
            .total
            .map_or_else(|| "0".to_owned(), |total| total.to_string());
        let date = timestamp(grant.issued_at);
        let pairs: Vec<(String, String)> = [
            ("x-amz-meta-asset_id", grant.asset_id.to_owned()),
            ("x-amz-meta-extension", grant.extension.to_owned()),
            ("x-amz-meta-is_realtime_upload", grant.realtime.to_string()),
            ("x-amz-meta-part_count", total.clone()),
            ("x-amz-meta-part_number", grant.part.to_string()),
            ("x-amz-meta-project_id", grant.project_id.to_owned()),
            ("x-amz-meta-request_id", grant.request_id.to_owned()),
            ("x-amz-meta-resource_id", grant.resource_id.to_owned()),
            ("x-amz-meta-resource_type", "asset".to_owned()),
            ("x-amz-meta-total_parts", total),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
            (
                "X-Amz-Credential",
                format!(
                    "C2CSIMULATOR/{}/us-east-1/s3/aws4_request",
                    date.strftime("%Y%m%d")
                ),
            ),
            ("X-Amz-Date", date.strftime("%Y%m%dT%H%M%SZ").to_string()),
            ("X-Amz-Expires", URL_LIFE.as_secs().to_string()),
            (
                "X-Amz-SignedHeaders",
                "content-type;host;x-amz-acl".to_owned(),
            ),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let signature = hex::encode(
            self.mac(&Signed {
                method: "PUT",
                path: &path,
                query: &pairs,
                content_type: grant.filetype,
                host: &self.host,
                acl: "private",
            })
            .finalize()
            .into_bytes(),
        );
        let mut url = format!("https://{}{path}?", self.host);
        for (name, value) in &pairs {
            let _ = write!(url, "{name}={}&", percent_encode(value));
        }
        let _ = write!(url, "X-Amz-Signature={signature}");
        url
    }

    /// Whether `signature` (hexadecimal) belongs to what is signed. Takes the same time for every wrong one.
    pub(crate) fn verify(&self, signed: &Signed<'_>, signature: &str) -> bool {
        hex::decode(signature).is_ok_and(|bytes| self.mac(signed).verify_slice(&bytes).is_ok())
    }

    fn mac(&self, signed: &Signed<'_>) -> Hmac<Sha256> {
        let mut query: Vec<String> = signed
            .query
            .iter()
            .map(|(name, value)| format!("{}={}", percent_encode(name), percent_encode(value)))
            .collect();
        query.sort_unstable();
        let text = format!(
            "{}\n{}\n{}\ncontent-type:{}\nhost:{}\nx-amz-acl:{}\n\ncontent-type;host;x-amz-acl\nUNSIGNED-PAYLOAD",
            signed.method,
            signed.path,
            query.join("&"),
            signed.content_type.trim(),
            signed.host,
            signed.acl.trim(),
        );
        #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.key)
            .expect("HMAC takes keys of every length");
        mac.update(text.as_bytes());
        mac
    }
}

/// A decoded query as name and value pairs, in order.
pub(crate) fn query_pairs(query: &str) -> Vec<(String, String)> {
    // A literal plus is a plus here, as S3 has it; form decoding would make it a blank.
    let pairs = query.replace('+', "%2B");
    form_urlencoded::parse(pairs.as_bytes())
        .into_owned()
        .collect()
}

/// Encodes all but the unreserved characters of RFC 3986.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_proves_itself_and_nothing_else() {
        let signer = Signer::new("127.0.0.1:1".to_owned());
        let grant = Grant {
            asset_id: "a",
            resource_id: "r",
            request_id: "q",
            project_id: "p",
            extension: "mov",
            filetype: "video/quicktime",
            realtime: false,
            part: 2,
            total: Some(3),
            issued_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let url = signer.url(&grant);
        assert_eq!(url, signer.url(&grant));
        assert!(url.starts_with("https://127.0.0.1:1/parts/r_2?x-amz-meta-asset_id=a&"));
        assert!(url.contains("X-Amz-Date=20231114T221320Z&X-Amz-Expires=86400&"));
        assert!(url.contains("X-Amz-SignedHeaders=content-type%3Bhost%3Bx-amz-acl&"));
        let mut pairs = query_pairs(url.split_once('?').unwrap().1);
        let signature = pairs.pop().unwrap().1;
        let check = |method: &str, content_type: &str, acl: &str, query: &[(String, String)]| {
            let host = "127.0.0.1:1";
            signer.verify(
                &Signed {
                    method,
                    path: "/parts/r_2",
                    query,
                    content_type,
                    host,
                    acl,
                },
                &signature,
            )
        };
        assert!(check("PUT", "video/quicktime", "private", &pairs));
        assert!(!check("POST", "video/quicktime", "private", &pairs));
        assert!(!check("PUT", "video/mp4", "private", &pairs));
        assert!(!check("PUT", "video/quicktime", "public-read", &pairs));
        pairs.reverse();
        assert!(check("PUT", "video/quicktime", "private", &pairs));
        pairs[0].1.push('x');
        assert!(!check("PUT", "video/quicktime", "private", &pairs));
    }
}
