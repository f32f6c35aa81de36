//! Pairing by the device-code flow: a code to show, polling until a person typed it in, the identity.

use std::sync::Arc;
use std::time::Duration;

use c2c_protocol::{Client, DeviceCode, Error, ErrorKind, PollAnswer};
use c2c_queue::{Clock, Identity, Tokens};

use super::{Connection, Credentials};
use crate::error::UplinkError;
use crate::link::Link;

/// A step of the pairing that a person should see.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PairingStep {
    /// Show this code. A later `Code` replaces it: the earlier one expired.
    Code {
        /// Exactly as received; six digits.
        user_code: String,
        /// The page where it is typed in.
        verification_uri: String,
        /// The same page with the code filled in: encode it as a QR code, when it exists.
        verification_uri_complete: Option<String>,
        /// How long the code is good.
        expires_in: Duration,
        /// The name under which the project will show this unit.
        device_name: String,
    },
    /// The link is down or the service in trouble; the pairing goes on by itself.
    Waiting {
        /// What for, for a person.
        words: String,
    },
    /// Done.
    Paired(Identity),
}

enum State {
    Ask,
    Poll {
        code: DeviceCode,
        interval: Duration,
        expires_boot_ms: i64,
    },
    Done,
}

/// A pairing in progress. Dropping it cancels it: nothing is polled any more.
pub struct Pairing {
    connection: Arc<Connection>,
    client: Client,
    clock: Arc<dyn Clock>,
    link: Arc<Link>,
    state: State,
    failures: u32,
    /// What was in the way before the next step.
    pause: Option<Duration>,
}

impl std::fmt::Debug for Pairing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pairing").finish_non_exhaustive()
    }
}

/// RFC 8628: a client that is told to slow down waits five seconds more from then on.
const SLOW_DOWN: Duration = Duration::from_secs(5);

impl Pairing {
    pub(crate) fn new(
        connection: Arc<Connection>,
        client: Client,
        clock: Arc<dyn Clock>,
        link: Arc<Link>,
    ) -> Pairing {
        Pairing {
            connection,
            client,
            clock,
            link,
            state: State::Ask,
            failures: 0,
            pause: None,
        }
    }

    /// The next step, or `None` after [`PairingStep::Paired`].
    ///
    /// # Errors
    ///
    /// The service refuses this unit (its client id or secret); trying again with the same settings will not help.
    pub async fn next(&mut self) -> Result<Option<PairingStep>, UplinkError> {
        loop {
            if let Some(pause) = self.pause.take() {
                self.clock.sleep(pause).await;
                self.link.recheck().await;
            }
            match &mut self.state {
                State::Done => return Ok(None),
                State::Ask => match self.ask().await? {
                    Some(step) => return Ok(Some(step)),
                    None => continue,
                },
                State::Poll {
                    code,
                    interval,
                    expires_boot_ms,
                } => {
                    let left = *expires_boot_ms - self.clock.boot().0;
                    if left <= 0 {
                        self.state = State::Ask;
                        continue;
                    }
                    // The whole interval, even past the end of the code: what was typed in during its last seconds counts.
                    self.clock.sleep(*interval).await;
                    let Credentials {
                        client_id,
                        client_secret,
                    } = &self.connection.credentials;
                    let sent = self.clock.boot();
                    let answer = self
                        .client
                        .poll_token(client_id, client_secret, &code.device_code)
                        .await;
                    self.connection.note_call(&answer, sent).await;
                    match answer.map(|answered| answered.value) {
                        Ok(PollAnswer::Granted(pair)) => {
                            let tokens = Tokens {
                                access: pair.access_token,
                                refresh: pair.refresh_token,
                                expires_in_ms: pair.expires_in.as_millis() as u64,
                            };
                            // In a task of its own: what was granted is kept even if nobody waits for it any more.
                            let connection = self.connection.clone();
                            let taking =
                                tokio::spawn(async move { connection.paired(tokens).await });
                            let identity =
                                taking.await.map_err(|error| UplinkError::Settings {
                                    words: "a fault of this program while pairing".into(),
                                    source: Some(error.into()),
                                })??;
                            self.state = State::Done;
                            return Ok(Some(PairingStep::Paired(identity)));
                        }
                        Ok(PollAnswer::Pending) => self.failures = 0,
                        Ok(PollAnswer::SlowDown) => *interval += SLOW_DOWN,
                        Ok(PollAnswer::Expired) => self.state = State::Ask,
                        // Our code is not known any more, e.g. because the answer that granted it was lost.
                        Ok(_) => self.state = State::Ask,
                        Err(error) => {
                            if let Some(step) = self.trouble(error).await? {
                                return Ok(Some(step));
                            }
                        }
                    }
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<Option<PairingStep>, UplinkError> {
        let Credentials {
            client_id,
            client_secret,
        } = &self.connection.credentials;
        let sent = self.clock.boot();
        let answer = self
            .client
            .device_code(client_id, client_secret, true)
            .await;
        self.connection.note_call(&answer, sent).await;
        match answer.map(|answered| answered.value) {
            Ok(code) => {
                self.failures = 0;
                let step = PairingStep::Code {
                    user_code: code.user_code.clone(),
                    verification_uri: code.verification_uri.clone(),
                    verification_uri_complete: code.verification_uri_complete.clone(),
                    expires_in: code.expires_in,
                    device_name: code.name.clone(),
                };
                self.state = State::Poll {
                    interval: code.interval.max(Duration::from_millis(100)),
                    expires_boot_ms: self.clock.boot().0 + code.expires_in.as_millis() as i64,
                    code,
                };
                Ok(Some(step))
            }
            Err(error) => self.trouble(error).await,
        }
    }

    /// Waits for what passes; what does not pass is an error.
    async fn trouble(&mut self, error: Error) -> Result<Option<PairingStep>, UplinkError> {
        let passing = match &error.kind {
            ErrorKind::Transport(_) => true,
            ErrorKind::Answer(answer) => answer.looks_like_portal,
            ErrorKind::Refused(refusal) => {
                refusal.status == 429
                    || refusal.status >= 500
                    || refusal.status == 408
                    || (300..400).contains(&refusal.status)
                    || (refusal.status == 404 && refusal.simple().is_none())
            }
            _ => false,
        };
        if !passing {
            return Err(error.into());
        }
        self.failures += 1;
        let step = (self.failures == 1).then(|| PairingStep::Waiting {
            words: error.to_string(),
        });
        let wait = crate::settle::backoff(
            self.failures,
            Duration::from_secs(1),
            Duration::from_secs(30),
            1.0,
        );
        self.pause = Some(wait);
        Ok(step)
    }
}
