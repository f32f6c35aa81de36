//! The retry table, one test for each row, named after the row.

use std::time::{Duration, UNIX_EPOCH};

use c2c_protocol::{
    AnswerError, Endpoint, Error, ErrorKind, RateLimit, Reached, Refusal, RefusalBody, RetryAfter,
    Stage, TransportError,
};
use c2c_queue::{Attempt, Hold, Operation, Scope, Verdict};
use proptest::prelude::*;

use super::classify::{classify_create, classify_put};
use super::fault::{Asked, Effect, Fault};
use super::policy::{ROUNDS, Situation, TRIES, backoff, decide};

fn at(number: u32, round: u32) -> Situation {
    Situation {
        operation: Operation::Transfer,
        attempt: Attempt {
            number,
            round,
            final_try: false,
        },
        registrations: 1,
        link_up: true,
        now: UNIX_EPOCH + Duration::from_secs(1_000_000),
        jitter: 0.5,
    }
}

fn verdict(fault: &Fault, number: u32, round: u32) -> Verdict {
    decide(fault, &at(number, round)).verdict
}

fn is_uncounted(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Again { counted: false, .. })
}

fn is_counted(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Again { counted: true, .. })
}

/// Ten tries in each of three rounds, then parked.
fn has_the_whole_budget(fault: &Fault) {
    for round in 1..=ROUNDS {
        for number in 1..TRIES {
            assert!(
                is_counted(&verdict(fault, number, round)),
                "{fault:?} try {number} of round {round}"
            );
        }
        let last = verdict(fault, TRIES, round);
        if round < ROUNDS {
            assert!(
                matches!(last, Verdict::NextRound { .. }),
                "{fault:?}: {last:?}"
            );
        } else {
            assert_eq!(last, Verdict::Park, "{fault:?}");
        }
    }
}

fn costs_nobody_a_try(fault: &Fault) {
    for (number, round) in [(1, 1), (TRIES, ROUNDS), (TRIES + 5, ROUNDS)] {
        let down = Situation {
            link_up: fault.scope() != Scope::Link,
            ..at(number, round)
        };
        assert!(is_uncounted(&decide(fault, &down).verdict), "{fault:?}");
    }
}

fn transport(stage: Stage, reached: Reached) -> Error {
    let source = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let error = TransportError {
        stage,
        reused: false,
        reached,
        source: source.into(),
    };
    Error {
        endpoint: Endpoint::CreateAsset,
        kind: ErrorKind::Transport(error),
    }
}

fn refusal(status: u16, body: RefusalBody) -> Refusal {
    let (title, words) = match &body {
        RefusalBody::Simple { error } => (None, error.clone()),
        RefusalBody::Detailed { message, .. } => (Some(message.clone()), message.clone()),
        RefusalBody::S3 { message, .. } => (None, message.clone()),
        _ => (None, String::new()),
    };
    Refusal {
        status,
        body,
        title,
        words,
        request_id: None,
        retry_after: None,
        rate_limit: None,
        date: None,
        location_host: None,
    }
}

fn refused(refusal: Refusal) -> Error {
    Error {
        endpoint: Endpoint::CreateAsset,
        kind: ErrorKind::Refused(Box::new(refusal)),
    }
}

fn detailed(status: u16, message: &str) -> Error {
    refused(refusal(
        status,
        RefusalBody::Detailed {
            code: None,
            message: message.into(),
            errors: Vec::new(),
        },
    ))
}

fn s3(status: u16, code: &str, message: &str) -> Error {
    refused(refusal(
        status,
        RefusalBody::S3 {
            code: code.into(),
            message: message.into(),
        },
    ))
}

fn create(error: &Error) -> Fault {
    classify_create(error, false, true)
}

#[test]
fn r1_the_network_is_not_there() {
    for stage in [
        Stage::Resolve,
        Stage::Connect,
        Stage::ConnectTimeout,
        Stage::Tls,
    ] {
        for fault in [
            create(&transport(stage, Reached::No)),
            classify_put(&transport(stage, Reached::No), true),
        ] {
            assert_eq!(
                (fault.scope(), fault.effect()),
                (Scope::Link, Effect::LinkDown),
                "{stage:?}"
            );
            costs_nobody_a_try(&fault);
        }
    }
}

#[test]
fn r2_somebody_else_answers_the_handshake() {
    let fault = create(&transport(Stage::TlsCertificate, Reached::No));
    assert_eq!(
        (fault.code(), fault.effect()),
        ("untrusted_tls", Effect::LinkDown)
    );
    costs_nobody_a_try(&fault);
}

#[test]
fn r3_the_connection_breaks_after_the_request_was_sent() {
    for stage in [Stage::Send, Stage::Answer, Stage::AnswerTimeout] {
        let fault = classify_put(&transport(stage, Reached::Maybe), true);
        assert_eq!(fault.scope(), Scope::Service);
        has_the_whole_budget(&fault);
        // The same, when the link turns out to be dead: nobody's clip is charged.
        let fault = classify_put(&transport(stage, Reached::Maybe), false);
        assert_eq!(
            (fault.scope(), fault.effect()),
            (Scope::Link, Effect::LinkDown)
        );
        costs_nobody_a_try(&fault);
    }
}

#[test]
fn r4_the_access_token_is_refused() {
    // The service once documented a bad token under 409; the title decides.
    for error in [
        detailed(401, "Not Authorized"),
        detailed(409, "Not Authorized"),
        refused(refusal(401, RefusalBody::Empty)),
    ] {
        let fault = create(&error);
        assert_eq!(
            (fault.scope(), fault.effect()),
            (Scope::Credentials, Effect::Refresh)
        );
        costs_nobody_a_try(&fault);
    }
}

#[test]
fn r12_the_answer_of_a_create_is_lost() {
    has_the_whole_budget(&create(&transport(Stage::Answer, Reached::Maybe)));
}

#[test]
fn r13_the_channel_is_paused() {
    let fault = create(&detailed(409, "Channel Paused"));
    assert_eq!(fault.scope(), Scope::Refusal);
    assert_eq!(verdict(&fault, 1, 1), Verdict::Withhold);
}

#[test]
fn r14_a_conflict_that_says_slow_down() {
    for error in [
        detailed(409, "slow_down"),
        refused(refusal(
            409,
            RefusalBody::Simple {
                error: "slow_down".into(),
            },
        )),
    ] {
        let fault = create(&error);
        has_the_whole_budget(&fault);
        let Verdict::Again { after, .. } = verdict(&fault, 1, 1) else {
            panic!()
        };
        assert!(after >= Duration::from_secs(5));
    }
}

/// A 409 whose words did not arrive may be any of the three: it is asked again.
#[test]
fn r13_a_409_that_was_cut_is_not_guessed() {
    for body in [RefusalBody::Other, RefusalBody::NotUtf8, RefusalBody::Empty] {
        let fault = create(&refused(refusal(409, body)));
        assert_eq!(fault, Fault::Unknown);
        has_the_whole_budget(&fault);
    }
}

#[test]
fn r15_another_conflict_gets_three_tries() {
    let fault = create(&detailed(409, "Conflict"));
    assert!(is_counted(&verdict(&fault, 1, 1)) && is_counted(&verdict(&fault, 2, 1)));
    assert_eq!(verdict(&fault, 3, 1), Verdict::Park);
}

#[test]
fn r16_a_refused_request_fails_at_once() {
    for status in [400, 422] {
        let fault = create(&detailed(status, "Bad"));
        assert_eq!(
            (fault.scope(), verdict(&fault, 1, 1)),
            (Scope::Request, Verdict::Fail)
        );
    }
}

#[test]
fn r17_the_account_is_over_its_limits() {
    let fault = create(&detailed(402, "Payment Required"));
    assert_eq!(
        (fault.scope(), fault.effect()),
        (Scope::Account, Effect::StopRegistering)
    );
    costs_nobody_a_try(&fault);
}

#[test]
fn r18_forbidden() {
    let fault = create(&detailed(403, "Forbidden"));
    assert_eq!(fault.scope(), Scope::Account);
    has_the_whole_budget(&fault);
    // A page with 403 was not written by the service.
    assert_eq!(
        create(&refused(refusal(403, RefusalBody::Html))).scope(),
        Scope::Link
    );
}

#[test]
fn r19_not_found_is_no_proof() {
    has_the_whole_budget(&create(&detailed(404, "Not Found")));
    let page = create(&refused(refusal(404, RefusalBody::Html)));
    assert_eq!(page.scope(), Scope::Link);
    costs_nobody_a_try(&page);
}

#[test]
fn r20_trouble_in_between_honours_retry_after() {
    for status in [408, 425, 502, 503, 504, 520, 527] {
        let mut refusal = refusal(status, RefusalBody::Html);
        refusal.retry_after = Some(RetryAfter::Delay(Duration::from_secs(90)));
        let fault = create(&refused(refusal));
        has_the_whole_budget(&fault);
        let Verdict::Again { after, .. } = verdict(&fault, 1, 1) else {
            panic!()
        };
        assert_eq!(after, Duration::from_secs(90), "{status}");
    }
    // The other form: a date.
    let until = at(1, 1).now + Duration::from_secs(70);
    let fault = Fault::Infrastructure(Asked {
        until: Some(until),
        ..Asked::default()
    });
    let Verdict::Again { after, .. } = verdict(&fault, 1, 1) else {
        panic!()
    };
    assert_eq!(after, Duration::from_secs(70));
}

#[test]
fn r20_r22_r25_a_service_that_is_down_altogether_costs_nobody_a_try() {
    // Of the storage: `outage` tells that it is down. R-25 is what one media meets.
    for fault in [
        Fault::Infrastructure(Asked::default()),
        Fault::ServerError,
        Fault::Storage(Asked::default()),
    ] {
        let down = Situation {
            link_up: false,
            ..at(TRIES, ROUNDS)
        };
        assert!(is_uncounted(&decide(&fault, &down).verdict), "{fault:?}");
    }
}

#[test]
fn r21_the_rate_limit_is_waited_for_and_not_counted() {
    let mut refusal = refusal(
        429,
        RefusalBody::Detailed {
            code: None,
            message: "Too many".into(),
            errors: Vec::new(),
        },
    );
    refusal.rate_limit = Some(RateLimit {
        limit: Some(5),
        remaining: Some(0),
        window: Some(Duration::from_secs(7)),
    });
    let fault = create(&refused(refusal));
    costs_nobody_a_try(&fault);
    let Verdict::Again { after, .. } = verdict(&fault, 1, 1) else {
        panic!()
    };
    assert!(after >= Duration::from_secs(7));
    let Verdict::Again { after, .. } = verdict(&Fault::RateLimited(Asked::default()), 1, 1) else {
        panic!()
    };
    assert!(after >= Duration::from_secs(1));
}

#[test]
fn r22_the_service_has_an_error() {
    has_the_whole_budget(&create(&detailed(500, "Something went wrong")));
}

#[test]
fn r23_parts_that_the_service_dislikes_are_dropped() {
    let fault = classify_create(&detailed(500, "Something went wrong"), true, true);
    assert_eq!(fault.scope(), Scope::Request);
    let judged = decide(&fault, &at(1, 1));
    assert!(judged.drop_parts && is_counted(&judged.verdict));
}

#[test]
fn r25_the_storage_is_in_trouble() {
    for error in [
        s3(500, "InternalError", "We encountered an internal error"),
        s3(503, "SlowDown", "Please reduce your request rate"),
        s3(
            400,
            "RequestTimeout",
            "Your socket connection was not read from",
        ),
        s3(
            400,
            "IncompleteBody",
            "You did not provide the number of bytes",
        ),
        s3(
            400,
            "BadDigest",
            "The Content-MD5 you specified did not match",
        ),
        refused(refusal(502, RefusalBody::Html)),
    ] {
        let fault = classify_put(&error, true);
        assert_eq!(fault.code(), "storage", "{error}");
        has_the_whole_budget(&fault);
    }
}

#[test]
fn r26_an_expired_url_is_registered_again_and_bounded() {
    let fault = classify_put(&s3(403, "AccessDenied", "Request has expired"), true);
    assert_eq!(fault.scope(), Scope::Stale);
    assert!(matches!(
        verdict(&fault, 1, 1),
        Verdict::RegisterAgain { .. }
    ));
    let often = Situation {
        registrations: 4,
        ..at(1, 1)
    };
    assert_eq!(decide(&fault, &often).verdict, Verdict::Park);
}

#[test]
fn r27_a_refused_signature_is_tried_once_more_then_registered_again() {
    let fault = classify_put(
        &s3(403, "SignatureDoesNotMatch", "The request signature"),
        true,
    );
    assert_eq!(fault.scope(), Scope::Request);
    assert!(is_counted(&verdict(&fault, 1, 1)));
    assert!(matches!(
        verdict(&fault, 2, 1),
        Verdict::RegisterAgain { .. }
    ));
    let often = Situation {
        registrations: 4,
        ..at(2, 1)
    };
    assert_eq!(decide(&fault, &often).verdict, Verdict::Park);
}

#[test]
fn r28_a_malformed_put_is_our_bug() {
    for error in [
        s3(400, "EntityTooLarge", ""),
        s3(400, "EntityTooSmall", ""),
        s3(411, "MissingContentLength", ""),
        s3(405, "MethodNotAllowed", ""),
    ] {
        assert_eq!(
            verdict(&classify_put(&error, true), 1, 1),
            Verdict::Park,
            "{error}"
        );
    }
}

#[test]
fn r29_a_middle_box_answers_the_put() {
    let mut redirect = refusal(302, RefusalBody::Empty);
    redirect.location_host = Some("login.hotel.example".into());
    for error in [
        refused(redirect),
        refused(refusal(404, RefusalBody::Html)),
        s3(404, "NoSuchBucket", ""),
        refused(refusal(511, RefusalBody::Html)),
    ] {
        let fault = classify_put(&error, true);
        assert_eq!(
            (fault.scope(), fault.effect()),
            (Scope::Link, Effect::LinkDown),
            "{error}"
        );
        costs_nobody_a_try(&fault);
    }
    let portal = AnswerError {
        status: 200,
        what: "HTML".into(),
        looks_like_portal: true,
        date: None,
    };
    let portal = Error {
        endpoint: Endpoint::CreateAsset,
        kind: ErrorKind::Answer(portal),
    };
    costs_nobody_a_try(&create(&portal));
}

/// The storage itself says that it does not know the key: no waiting helps, another asset may, a bounded number of times.
#[test]
fn r29_a_key_that_the_storage_does_not_know() {
    for code in ["NoSuchKey", "NoSuchUpload"] {
        let fault = classify_put(&s3(404, code, "The specified key does not exist."), true);
        assert_eq!(fault, Fault::UploadGone);
        assert_eq!(fault.effect(), Effect::None);
        assert!(matches!(
            verdict(&fault, 1, 1),
            Verdict::RegisterAgain { counted: false, .. }
        ));
        let mut often = at(1, 1);
        often.registrations = 4;
        assert_eq!(decide(&fault, &often).verdict, Verdict::Park);
    }
}

#[test]
fn r30_a_stall_counts_unless_the_link_is_dead() {
    has_the_whole_budget(&Fault::Stalled {
        words: String::new(),
        link_up: true,
    });
    costs_nobody_a_try(&Fault::Stalled {
        words: String::new(),
        link_up: false,
    });
}

#[test]
fn r31_a_read_error_waits_1_5_25_seconds() {
    let fault = Fault::Unreadable {
        words: "I/O error".into(),
    };
    for (number, seconds) in [(1, 1), (2, 5), (3, 25)] {
        let wanted = Verdict::Again {
            after: Duration::from_secs(seconds),
            counted: true,
        };
        assert_eq!(verdict(&fault, number, 1), wanted);
    }
    assert!(matches!(verdict(&fault, 4, 1), Verdict::NextRound { .. }));
    assert_eq!(verdict(&fault, 4, ROUNDS), Verdict::Park);
}

#[test]
fn r32_a_missing_file_is_cancelled_a_missing_volume_waited_for() {
    assert_eq!(
        verdict(
            &Fault::FileGone {
                words: String::new()
            },
            1,
            1
        ),
        Verdict::Cancel
    );
    assert_eq!(
        verdict(&Fault::VolumeAway, 1, 1),
        Verdict::Hold(Hold::VolumeAway)
    );
}

#[test]
fn r33_a_changed_file_is_registered_again_when_stable() {
    let fault = Fault::FileChanged {
        words: String::new(),
    };
    assert!(matches!(
        verdict(&fault, 1, 1),
        Verdict::RegisterAgain { .. }
    ));
    assert_eq!(
        verdict(&Fault::FileChanging, 1, 1),
        Verdict::Hold(Hold::FileChanging)
    );
    let often = Situation {
        registrations: 4,
        ..at(1, 1)
    };
    assert_eq!(decide(&fault, &often).verdict, Verdict::Park);
}

#[test]
fn r34_lost_workers_use_up_rounds() {
    assert!(matches!(
        verdict(&Fault::WorkerLost, TRIES + 1, 1),
        Verdict::NextRound { .. }
    ));
    assert_eq!(
        verdict(&Fault::WorkerLost, TRIES + 1, ROUNDS),
        Verdict::Park
    );
}

#[test]
fn r36_fresh_media_waits_while_the_channel_is_paused() {
    assert_eq!(
        verdict(&Fault::PausedNow, 1, 1),
        Verdict::Hold(Hold::ChannelPaused)
    );
}

#[test]
fn r39_what_is_not_understood_is_tried_like_trouble_in_between() {
    for error in [detailed(418, "Teapot"), detailed(499, "?")] {
        has_the_whole_budget(&create(&error));
    }
}

/// A create that was accepted must not be repeated ten times because its answer is not understood: each may leave an asset.
#[test]
fn r39_an_accepted_create_with_an_unreadable_answer_is_tried_once_more() {
    let cut = AnswerError {
        status: 200,
        what: "`id`".into(),
        looks_like_portal: false,
        date: None,
    };
    let fault = create(&Error {
        endpoint: Endpoint::CreateAsset,
        kind: ErrorKind::Answer(cut),
    });
    assert!(is_counted(&verdict(&fault, 1, 1)));
    assert_eq!(verdict(&fault, 2, 1), Verdict::Park);
}

/// With the link up, a middle box that catches one request must not hold up the others for ever.
#[test]
fn r29_a_middle_box_on_a_working_link_is_counted() {
    has_the_whole_budget(&Fault::MiddleBox {
        words: String::new(),
    });
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let words = String::new;
    let up = prop::bool::ANY;
    prop_oneof![
        Just(Fault::Unreachable { words: words() }),
        Just(Fault::Untrusted { words: words() }),
        Just(Fault::MiddleBox { words: words() }),
        up.prop_map(move |link_up| Fault::Interrupted {
            words: words(),
            link_up
        }),
        up.prop_map(move |link_up| Fault::Stalled {
            words: words(),
            link_up
        }),
        Just(Fault::Unauthorized),
        Just(Fault::AccountLimit),
        Just(Fault::Forbidden),
        Just(Fault::NotFound),
        Just(Fault::SlowDown(Asked::default())),
        Just(Fault::Conflict),
        Just(Fault::PartsRefused),
        (0u64..1 << 40).prop_map(|s| Fault::RateLimited(Asked {
            delay: Some(Duration::from_secs(s)),
            ..Asked::default()
        })),
        Just(Fault::ServerError),
        (0u64..1 << 40).prop_map(|s| Fault::Storage(Asked {
            delay: Some(Duration::from_secs(s)),
            ..Asked::default()
        })),
        Just(Fault::UrlExpired),
        Just(Fault::UploadGone),
        Just(Fault::SignatureRefused),
        Just(Fault::Malformed),
        Just(Fault::DigestMismatch),
        Just(Fault::Unreadable { words: words() }),
        Just(Fault::FileChanged { words: words() }),
        Just(Fault::WorkerLost),
        Just(Fault::Program { words: words() }),
        Just(Fault::Unknown),
    ]
}

proptest! {
    /// Counted faults in a row end in a resting state after a bounded number of tries, whatever they are.
    #[test]
    fn nothing_is_tried_for_ever(faults in prop::collection::vec(any_fault(), 200), jitter in 0.0..1.0f64) {
        let (mut number, mut round, mut registrations, mut counted) = (1, 1, 1, 0);
        for fault in &faults {
            let judged = decide(fault, &Situation { registrations, jitter, ..at(number, round) });
            let free = matches!(fault.scope(), Scope::Link | Scope::Credentials) && !matches!(fault, Fault::MiddleBox { .. }) || matches!(fault, Fault::AccountLimit | Fault::RateLimited(_));
            match judged.verdict {
                Verdict::Again { counted: true, after } => {
                    prop_assert!(!free);
                    prop_assert!(after <= Duration::from_secs(3600 + 60));
                    number += 1;
                    counted += 1;
                }
                Verdict::Again { counted: false, after } => {
                    prop_assert!(free, "{:?}", fault);
                    prop_assert!(after <= Duration::from_secs(2 * 3600));
                }
                Verdict::NextRound { .. } => { number = 1; round += 1; counted += 1; }
                Verdict::RegisterAgain { .. } => { registrations += 1; number = 1; }
                _ => return Ok(()),
            }
            // A new registration has new chunks with tries of their own; there are at most three more of them.
            prop_assert!(counted <= TRIES * (ROUNDS + 3), "{counted} tries");
        }
    }

    /// The one more try after a restart is one.
    #[test]
    fn a_final_try_is_final(fault in any_fault(), jitter in 0.0..1.0f64) {
        let mut situation = Situation { jitter, ..at(1, 1) };
        situation.attempt.final_try = true;
        match decide(&fault, &situation).verdict {
            Verdict::Again { counted, .. } => prop_assert!(!counted || fault == Fault::PartsRefused),
            Verdict::NextRound { .. } | Verdict::Park => prop_assert!(false, "{:?} goes on", fault),
            _ => {}
        }
    }

    #[test]
    fn waits_are_fully_jittered_and_capped(number in 0u32..1000, jitter in 0.0..1.0f64) {
        let wait = backoff(number, Duration::from_secs(1), Duration::from_secs(60), jitter);
        prop_assert!(wait <= Duration::from_secs(60));
        let full = backoff(number, Duration::from_secs(1), Duration::from_secs(60), 1.0);
        prop_assert!((wait.as_secs_f64() - full.as_secs_f64() * jitter).abs() < 0.001);
    }
}
