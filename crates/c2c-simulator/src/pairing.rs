//! Device codes and tokens: who may speak for which unit in which project.
//!
//! Invariants: a device code gives at most one token pair; a refresh token is good once, and the pair it belongs
//! to is dead from that moment; a unit has at most one living authorization; nothing ever revives a dead token.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::device::Device;
use crate::world::{Settings, State};

/// Life of a device code.
pub(crate) const CODE_LIFE: Duration = Duration::from_secs(120);
/// Life of an access token.
pub(crate) const ACCESS_LIFE: Duration = Duration::from_secs(28_800);
/// Life of a refresh token.
pub(crate) const REFRESH_LIFE: Duration = Duration::from_secs(14 * 86_400);

/// A device code and how far it got.
pub(crate) struct Code {
    pub(crate) device_code: String,
    pub(crate) user_code: String,
    pub(crate) client_id: String,
    pub(crate) issued_at: SystemTime,
    interval: Duration,
    last_poll: Option<SystemTime>,
    polls: u32,
    pub(crate) state: CodeState,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CodeState {
    Pending,
    Granted {
        project_id: String,
        expires_at: Option<SystemTime>,
    },
    Consumed,
    Denied,
}

/// A code that waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingCode {
    /// The six digits.
    pub user_code: String,
    /// The unit that asked for it.
    pub client_id: String,
    /// The unit's name as users would see it.
    pub name: String,
    /// When it was issued (simulated time).
    #[serde(with = "rfc3339")]
    pub issued_at: SystemTime,
    /// When it dies (simulated time).
    #[serde(with = "rfc3339")]
    pub expires_at: SystemTime,
    /// How often it was polled.
    pub polls: u32,
}

/// The permission of one unit to act in one project.
pub(crate) struct Authorization {
    pub(crate) id: String,
    pub(crate) scopes_id: String,
    pub(crate) client_id: String,
    pub(crate) project_id: String,
    pub(crate) expires_at: Option<SystemTime>,
    pub(crate) inserted_at: SystemTime,
    pub(crate) revoked: bool,
}

impl Authorization {
    fn alive(&self, now: SystemTime) -> bool {
        !self.revoked && self.expires_at.is_none_or(|end| now < end)
    }
}

/// A token that was issued once.
#[derive(Clone)]
pub(crate) struct Token {
    kind: TokenKind,
    authorization: usize,
    issued_at: SystemTime,
    /// Access and refresh token of one pair share their number.
    serial: u64,
    state: TokenState,
}

#[derive(Clone, Copy, PartialEq)]
enum TokenKind {
    Access,
    Refresh,
}

#[derive(Clone, Copy, PartialEq)]
enum TokenState {
    Live,
    /// A refresh token that was used.
    Spent,
    Dead,
}

/// A fresh pair.
pub(crate) struct Pair {
    pub(crate) access: String,
    pub(crate) refresh: String,
    pub(crate) serial: u64,
}

/// Whom a good bearer token speaks for.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    pub(crate) client_id: String,
    pub(crate) authorization: usize,
}

/// Why a refresh is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefreshRefused {
    /// 400 with this simple error.
    Simple(&'static str),
    /// 401 Not Authorized.
    NotAuthorized,
}

impl State {
    /// A new code for a unit. User codes of living codes differ from each other.
    pub(crate) fn issue_code(
        &mut self,
        settings: &Settings,
        client_id: &str,
        now: SystemTime,
    ) -> &Code {
        let user_code = loop {
            let digits = format!("{:06}", self.rng.u32(0..1_000_000));
            if !self
                .codes
                .iter()
                .any(|code| code.user_code == digits && code.age(now) <= CODE_LIFE)
            {
                break digits;
            }
        };
        // Codes that can be neither granted nor asked about usefully are forgotten in bulk.
        self.codes.retain(|code| code.age(now) <= CODE_LIFE * 30);
        let device_code = uuid::Uuid::new_v4().to_string();
        self.secrets.push(device_code.clone());
        self.codes.push(Code {
            device_code,
            user_code,
            client_id: client_id.to_owned(),
            issued_at: now,
            interval: settings.poll_interval,
            last_poll: None,
            polls: 0,
            state: CodeState::Pending,
        });
        let last = self.codes.len() - 1;
        &self.codes[last]
    }

    pub(crate) fn pending_codes(&self, settings: &Settings, now: SystemTime) -> Vec<PendingCode> {
        let pending = self
            .codes
            .iter()
            .filter(|code| code.state == CodeState::Pending && code.age(now) <= CODE_LIFE);
        pending
            .map(|code| PendingCode {
                user_code: code.user_code.clone(),
                client_id: code.client_id.clone(),
                name: self.device_name(settings, &code.client_id),
                issued_at: code.issued_at,
                expires_at: code.issued_at + CODE_LIFE,
                polls: code.polls,
            })
            .collect()
    }

    /// The living code with these digits that waits for a person.
    pub(crate) fn waiting_code(&mut self, user_code: &str, now: SystemTime) -> Option<&mut Code> {
        self.codes.iter_mut().find(|code| {
            code.user_code == user_code
                && code.state == CodeState::Pending
                && code.age(now) <= CODE_LIFE
        })
    }

    /// One poll: a token pair, or the error of the simple schema.
    pub(crate) fn poll(
        &mut self,
        settings: &Settings,
        client_id: &str,
        device_code: &str,
        now: SystemTime,
    ) -> Result<Pair, &'static str> {
        let project = self.landing_project();
        let code = self
            .codes
            .iter_mut()
            .find(|code| code.device_code == device_code)
            .ok_or("invalid_grant")?;
        if code.client_id != client_id {
            return Err("invalid_client");
        }
        let since = code
            .last_poll
            .map(|last| now.duration_since(last).unwrap_or_default());
        code.last_poll = Some(now);
        code.polls += 1;
        if code.state == CodeState::Pending && code.age(now) > CODE_LIFE {
            return Err("expired_token");
        }
        if code.state == CodeState::Pending && settings.auto_approve {
            code.state = CodeState::Granted {
                project_id: project,
                expires_at: None,
            };
        }
        match code.state.clone() {
            CodeState::Consumed | CodeState::Denied => Err("invalid_grant"),
            CodeState::Pending if since.is_some_and(|gap| gap < code.interval) => {
                if settings.strict_slow_down {
                    code.interval += Duration::from_secs(5);
                }
                Err("slow_down")
            }
            CodeState::Pending => Err("authorization_pending"),
            CodeState::Granted {
                project_id,
                expires_at,
            } => {
                code.state = CodeState::Consumed;
                Ok(self.pair(settings, client_id, project_id, expires_at, now))
            }
        }
    }

    /// Where the next pairing lands unless the person chooses.
    pub(crate) fn landing_project(&self) -> String {
        let chosen = self.next_project.clone();
        chosen
            .or_else(|| self.projects.first().map(|project| project.id.clone()))
            .unwrap_or_default()
    }

    fn pair(
        &mut self,
        settings: &Settings,
        client_id: &str,
        project_id: String,
        expires_at: Option<SystemTime>,
        now: SystemTime,
    ) -> Pair {
        self.revoke(Some(client_id));
        let id = || uuid::Uuid::new_v4().to_string();
        let authorization = self.authorizations.len();
        self.authorizations.push(Authorization {
            id: id(),
            scopes_id: id(),
            client_id: client_id.to_owned(),
            project_id: project_id.clone(),
            expires_at,
            inserted_at: now,
            revoked: false,
        });
        let name = self.device_name(settings, client_id);
        let device = self
            .devices
            .entry(client_id.to_owned())
            .or_insert_with(|| Device::new(name, now));
        device.bind(&project_id, settings.channels, now);
        device.authorization = Some(authorization);
        device.removed = false;
        self.issue(authorization, now)
    }

    fn issue(&mut self, authorization: usize, now: SystemTime) -> Pair {
        self.token_serial += 1;
        self.stats.tokens_issued += 1;
        let serial = self.token_serial;
        let random = || uuid::Uuid::new_v4().simple().to_string();
        let access = format!("eyJhbGciOiJIUzI1NiJ9.{}.{}{}", random(), random(), random());
        let refresh = uuid::Uuid::new_v4().to_string();
        for (text, kind) in [(&access, TokenKind::Access), (&refresh, TokenKind::Refresh)] {
            let token = Token {
                kind,
                authorization,
                issued_at: now,
                serial,
                state: TokenState::Live,
            };
            self.tokens.insert(text.clone(), token);
            self.secrets.push(text.clone());
        }
        Pair {
            access,
            refresh,
            serial,
        }
    }

    /// Trades a refresh token for a new pair; the old pair is dead at once.
    pub(crate) fn refresh(
        &mut self,
        client_id: &str,
        refresh_token: &str,
        now: SystemTime,
    ) -> Result<Pair, RefreshRefused> {
        let token = self
            .tokens
            .get(refresh_token)
            .filter(|token| token.kind == TokenKind::Refresh)
            .cloned();
        let token = token.ok_or(RefreshRefused::Simple("invalid_grant"))?;
        let authorization = &self.authorizations[token.authorization];
        if authorization.client_id != client_id {
            return Err(RefreshRefused::Simple("invalid_client"));
        }
        match token.state {
            TokenState::Spent => return Err(RefreshRefused::Simple("invalid_request")),
            TokenState::Dead => return Err(RefreshRefused::NotAuthorized),
            TokenState::Live => {}
        }
        let age = now.duration_since(token.issued_at).unwrap_or_default();
        if age >= REFRESH_LIFE || !authorization.alive(now) {
            return Err(RefreshRefused::NotAuthorized);
        }
        for old in self
            .tokens
            .values_mut()
            .filter(|old| old.serial == token.serial)
        {
            old.state = if old.kind == TokenKind::Refresh {
                TokenState::Spent
            } else {
                TokenState::Dead
            };
        }
        self.stats.refreshes += 1;
        Ok(self.issue(token.authorization, now))
    }

    /// Whom an access token speaks for, if it is any good.
    pub(crate) fn bearer(&self, token: &str, now: SystemTime) -> Option<Bearer> {
        let token = self.tokens.get(token)?;
        let authorization = &self.authorizations[token.authorization];
        let good = token.kind == TokenKind::Access
            && token.state == TokenState::Live
            && now.duration_since(token.issued_at).unwrap_or_default() < ACCESS_LIFE
            && authorization.alive(now);
        good.then(|| Bearer {
            client_id: authorization.client_id.clone(),
            authorization: token.authorization,
        })
    }

    /// Whether an authorization still stands, whatever became of its tokens.
    pub(crate) fn is_authorized(&self, authorization: usize, now: SystemTime) -> bool {
        self.authorizations[authorization].alive(now)
    }

    /// The number of a token of ours, good or not.
    pub(crate) fn token_serial(&self, token: &str) -> Option<u64> {
        self.tokens.get(token).map(|token| token.serial)
    }

    /// Kills the authorization that a token (of either kind) belongs to. Unknown tokens are nobody's.
    pub(crate) fn revoke_token(&mut self, client_id: &str, token: &str) -> bool {
        let Some(token) = self.tokens.get(token).cloned() else {
            return false;
        };
        if self.authorizations[token.authorization].client_id != client_id
            || token.state != TokenState::Live
        {
            return false;
        }
        self.authorizations[token.authorization].revoked = true;
        self.bury();
        true
    }

    /// Kills the authorizations of one unit or of all.
    pub(crate) fn revoke(&mut self, client_id: Option<&str>) {
        for authorization in &mut self.authorizations {
            if client_id.is_none_or(|id| authorization.client_id == id) {
                authorization.revoked = true;
            }
        }
        self.bury();
    }

    fn bury(&mut self) {
        for token in self.tokens.values_mut() {
            if self.authorizations[token.authorization].revoked && token.state == TokenState::Live {
                token.state = TokenState::Dead;
            }
        }
    }

    fn device_name(&self, settings: &Settings, client_id: &str) -> String {
        let known = self
            .devices
            .get(client_id)
            .map(|device| device.name.clone());
        known.unwrap_or_else(|| format!("{}-{client_id}", settings.model_name))
    }
}

impl Code {
    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.issued_at).unwrap_or_default()
    }

    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }
}
