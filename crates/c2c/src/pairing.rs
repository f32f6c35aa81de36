//! Pairing as a person sees it: the code, the time it is good for, and what came of it.
//!
//! Invariants:
//! * the code on the screen is always the current one; an expired one is replaced by itself;
//! * stopping ends the polling at once and leaves no half connection.

use std::pin::pin;
use std::time::Duration;

use c2c_queue::Identity;
use c2c_uplink::{PairingStep, Uplink};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cli::Patience;
use crate::code;
use crate::error::{Exit, Failure};
use crate::format;
use crate::interrupt::Interrupt;
use crate::terminal::Terminal;

/// Shows codes until a person typed one in at Frame.io.
///
/// # Errors
/// The service refuses this unit, or a person stopped it.
pub(crate) async fn pair(
    uplink: &Uplink,
    terminal: &Terminal,
    interrupt: &Interrupt,
    patience: Patience,
) -> Result<Identity, Failure> {
    let mut pairing = uplink.pair();
    let mut shown: Option<Shown> = None;
    // Since when there has been neither a code nor an answer, and what is said about it.
    let began = Instant::now();
    let mut waiting = (began, "the service does not answer".to_owned());
    loop {
        let step = {
            // The step must not be dropped to move the countdown: it may be carrying the tokens.
            let mut next = pin!(pairing.next());
            let mut second = interval(Duration::from_secs(1));
            second.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    step = &mut next => break step,
                    _ = second.tick() => {
                        if let Some(shown) = &shown {
                            shown.count_down();
                            // A code that ran out without a new one means that nobody answers any more.
                            waiting.0 = shown.until.max(began);
                        }
                        give_up(&waiting, patience)?;
                    }
                    () = interrupt.wait() => {
                        terminal.event(&json!({"event": "pairing_cancelled"}))?;
                        return Err(Failure::interrupted("pairing cancelled; the code is no longer valid here"));
                    }
                }
            }
        };
        match step.map_err(refused)? {
            Some(PairingStep::Code {
                user_code,
                verification_uri,
                verification_uri_complete,
                expires_in,
                device_name,
            }) => {
                terminal.event(&json!({
                    "event": "code",
                    "user_code": user_code,
                    "verification_uri": verification_uri,
                    "verification_uri_complete": verification_uri_complete,
                    "expires_in_seconds": expires_in.as_secs(),
                    "device_name": device_name,
                }))?;
                if shown.take().is_some() {
                    terminal.say("That code expired. Here is a new one:");
                }
                let lines = Card {
                    user_code: &user_code,
                    page: &verification_uri,
                    complete: verification_uri_complete.as_deref(),
                    device_name: &device_name,
                };
                for line in lines.draw(terminal.canvas()) {
                    terminal.say(&line);
                }
                shown = Some(Shown::new(terminal, expires_in));
            }
            Some(PairingStep::Waiting { words }) => {
                terminal.event(&json!({"event": "waiting", "words": words}))?;
                terminal.say(&format!("Waiting: {}", format::printable(&words)));
                waiting.1 = words;
            }
            Some(PairingStep::Paired(identity)) => {
                drop(shown);
                terminal.event(&json!({"event": "paired", "identity": identity}))?;
                return Ok(identity);
            }
            Some(_) => {}
            None => {
                return Err(Failure::new(
                    Exit::Failed,
                    "the pairing ended without an answer; try again",
                ));
            }
        }
    }
}

/// Fails when nothing was heard for longer than the patience lasts.
fn give_up((since, words): &(Instant, String), patience: Patience) -> Result<(), Failure> {
    match patience.limit {
        // `since` may lie ahead, while a code is good.
        Some(limit) if Instant::now().saturating_duration_since(*since) >= limit => {
            Err(Failure::new(
                Exit::Unreachable,
                format!("gave up after {}: {words}", format::duration(limit)),
            ))
        }
        _ => Ok(()),
    }
}

/// A refusal while pairing is about the client id or secret, whatever its status.
fn refused(error: c2c_uplink::UplinkError) -> Failure {
    let failure = Failure::from(error);
    if failure.exit() != Exit::NotPaired {
        return failure;
    }
    Failure::new(
        Exit::NotPaired,
        format!(
            "Frame.io refused to pair this unit; check the client secret: {}",
            failure.story()
        ),
    )
}

/// Everything that is drawn for one code.
struct Card<'a> {
    user_code: &'a str,
    page: &'a str,
    complete: Option<&'a str>,
    device_name: &'a str,
}

impl Card<'_> {
    fn draw(&self, canvas: code::Canvas) -> Vec<String> {
        const INDENT: usize = 2;
        let inner = code::Canvas {
            columns: canvas.columns.saturating_sub(INDENT),
            ..canvas
        };
        let user_code = format::printable(self.user_code);
        let mut lines = vec![String::new()];
        lines.extend(
            code::large(&user_code, inner)
                .into_iter()
                .map(|line| format!("  {line}")),
        );
        lines.push(String::new());
        lines.push(format!("  Code: {user_code}"));
        lines.push("  In the Frame.io project: C2C Connections, New C2C Connection, then type in the code.".to_owned());
        lines.push(format!(
            "  The unit is called {}.",
            format::printable(self.device_name)
        ));
        match self.complete {
            Some(complete) => {
                lines.push(format!("  Or open {}", format::printable(complete)));
                if let Some(drawing) = code::qr(complete, inner) {
                    lines.push(String::new());
                    lines.extend(drawing.into_iter().map(|line| format!("  {line}")));
                }
            }
            None => lines.push(format!("  The page is {}", format::printable(self.page))),
        }
        lines.push(String::new());
        lines
    }
}

/// The countdown below a code; gone when the code is.
struct Shown {
    bar: ProgressBar,
    until: Instant,
}

impl Shown {
    fn new(terminal: &Terminal, expires_in: Duration) -> Shown {
        let bar = terminal.bars().add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg}") {
            bar.set_style(style);
        }
        let shown = Shown {
            bar,
            until: Instant::now() + expires_in,
        };
        shown.count_down();
        if !terminal.interactive() {
            terminal.say(&format!(
                "The code is good for {}.",
                format::duration(expires_in)
            ));
        }
        shown
    }

    fn count_down(&self) {
        let left = self.until.saturating_duration_since(Instant::now());
        // Rounded up: the code is still good while this says one second.
        let left = Duration::from_secs(left.as_millis().div_ceil(1_000) as u64);
        self.bar.set_message(format!(
            "Waiting for the code to be typed in; it is good for {} more. Ctrl-C cancels.",
            format::duration(left)
        ));
        self.bar.tick();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Canvas;

    fn card(complete: Option<&str>, canvas: Canvas) -> String {
        let card = Card {
            user_code: "004213",
            page: "https://next.frame.io/pair",
            complete,
            device_name: "ACME\x1b[31m-1",
        };
        card.draw(canvas).join("\n")
    }

    #[test]
    fn the_card_has_the_code_as_received_and_a_qr_code_only_for_a_complete_link() {
        let canvas = Canvas {
            columns: 100,
            unicode: true,
            color: false,
        };
        let with = card(Some("https://next.frame.io/pair?code=004213"), canvas);
        assert!(with.contains("Code: 004213"));
        assert!(with.contains("https://next.frame.io/pair?code=004213"));
        assert!(with.contains('▀') && with.contains('▄'));
        let without = card(None, canvas);
        assert!(without.contains("https://next.frame.io/pair") && !without.contains('▀'));
        assert!(!with.contains('\x1b') && !without.contains('\x1b'));
        let ascii = card(
            None,
            Canvas {
                unicode: false,
                ..canvas
            },
        );
        assert!(ascii.is_ascii() || ascii.contains('\u{fffd}'));
    }
}
