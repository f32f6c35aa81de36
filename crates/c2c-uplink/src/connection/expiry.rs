//! The end that a person gave the authorization: said a day ahead, once, and named when it has come.
//!
//! Invariant: the service decides whether an authorization has ended; the date is for people only.

use std::time::{Duration, SystemTime};

use super::Connection;
use crate::event::Event;

/// How long before the end it is said.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

impl Connection {
    /// Says that the authorization ends within a day; once for each date.
    pub(super) fn announce_expiry(&self) {
        let Some(date) = self.expiry() else { return };
        let left = remaining(&date, self.time.now());
        let Some(left) = left.filter(|left| !left.is_zero() && *left <= AHEAD) else {
            return;
        };
        let announced = self
            .announced_expiry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .replace(date.clone());
        if announced.as_deref() != Some(date.as_str()) {
            tracing::warn!("the authorization of this unit ends at {date}; pair again before");
            let _ = self
                .events
                .send(Event::AuthorizationExpiring { at: date, left });
        }
    }

    /// Why the service may not renew the authorization, for a person.
    pub(super) fn words_of_loss(&self) -> String {
        match self.expiry() {
            Some(date) if remaining(&date, self.time.now()).is_some_and(|left| left.is_zero()) => {
                format!("the authorization of this unit ended at {date}, as set in Frame.io")
            }
            _ => "Frame.io does not renew the authorization of this unit".to_owned(),
        }
    }

    fn expiry(&self) -> Option<String> {
        self.identity
            .borrow()
            .as_ref()?
            .authorization_expires_at
            .clone()
    }
}

/// Time until a date as the service writes it, zero if it has passed; `None` if it cannot be read.
fn remaining(date: &str, now: SystemTime) -> Option<Duration> {
    let at = date.parse::<jiff::Timestamp>().or_else(|_| {
        // Without a zone it is taken for UTC, as everything else the service writes.
        let civil = date.parse::<jiff::civil::DateTime>()?;
        civil
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map(|at| at.timestamp())
    });
    let at = SystemTime::from(at.ok()?);
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_the_service_writes_them() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_735_786_800); // 2025-01-02T03:00:00Z
        for (date, left) in [
            ("2025-01-02T03:00:10Z", Some(10)),
            ("2025-01-02T03:01:00.000000Z", Some(60)),
            ("2025-01-02T04:00:30+01:00", Some(30)),
            ("2025-01-02T04:00:00", Some(3600)),
            ("2025-01-03", Some(75_600)),
            ("2024-12-31T00:00:00Z", Some(0)),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(
                remaining(date, now).map(|left| left.as_secs()),
                left,
                "{date}"
            );
        }
    }
}
