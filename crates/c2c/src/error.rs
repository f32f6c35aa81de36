//! How a run of the program ends: one sentence for a person, one number for a script.

use std::error::Error as StdError;

use c2c_protocol::ErrorKind;
use c2c_queue::QueueError;
use c2c_uplink::UplinkError;

/// The exit codes; `c2c --help` lists them, and they do not change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done; everything asked for was delivered.
    Ok = 0,
    /// Something that has no number of its own.
    Failed = 1,
    /// The command line or a setting makes no sense.
    Usage = 2,
    /// Not paired, the pairing was refused, or the authorization is gone.
    NotPaired = 3,
    /// The queue is in use by another process, or cannot be used.
    Queue = 4,
    /// The network or the service cannot be reached.
    Unreachable = 5,
    /// The work ended, but some media are withheld, parked, failed, held or cancelled.
    Undelivered = 6,
    /// Interrupted; what is in the queue goes on with the next run.
    Interrupted = 130,
}

/// Why the program ends without having done what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    words: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// A failure in words that say what to do.
    pub(crate) fn new(exit: Exit, words: impl Into<String>) -> Failure {
        Failure {
            exit,
            words: words.into(),
            source: None,
        }
    }

    /// The same with what caused it.
    pub(crate) fn because(
        exit: Exit,
        words: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Failure {
        Failure {
            exit,
            words: words.into(),
            source: Some(source.into()),
        }
    }

    /// A person or the system asked to stop.
    pub(crate) fn interrupted(words: impl Into<String>) -> Failure {
        Failure::new(Exit::Interrupted, words)
    }

    /// The number for the shell.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The whole story in one line: the sentence, then every cause that it does not already tell.
    pub(crate) fn story(&self) -> String {
        let mut story = self.words.clone();
        let mut cause = self
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static));
        while let Some(error) = cause {
            let words = error.to_string();
            if !words.is_empty() && !story.contains(&words) {
                if !story.is_empty() {
                    story.push_str(": ");
                }
                story.push_str(&words);
            }
            cause = error.source();
        }
        story
    }
}

/// Writing results to a closed pipe is how `c2c list | head` ends; it is not worth a message.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::new(Exit::Ok, "");
        }
        Failure::because(Exit::Failed, "cannot write the results", error)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Failure {
        Failure {
            exit: exit_of_queue(&error),
            words: String::new(),
            source: Some(Box::new(error)),
        }
    }
}

impl From<UplinkError> for Failure {
    fn from(error: UplinkError) -> Failure {
        let exit = match &error {
            UplinkError::Queue(error) => exit_of_queue(error),
            UplinkError::Settings { .. } => Exit::Usage,
            UplinkError::NotPaired => Exit::NotPaired,
            UplinkError::ShuttingDown => Exit::Interrupted,
            UplinkError::Service(error) => exit_of_service(error),
            _ => Exit::Failed,
        };
        let words = match &error {
            UplinkError::NotPaired => "run `c2c pair` first".to_owned(),
            _ => String::new(),
        };
        if words.is_empty() {
            return Failure {
                exit,
                words,
                source: Some(Box::new(error)),
            };
        }
        Failure::new(exit, format!("{error}: {words}"))
    }
}

fn exit_of_queue(error: &QueueError) -> Exit {
    match error {
        QueueError::NoSuchMedia(_) | QueueError::IllegalMove { .. } | QueueError::LeaseLost(_) => {
            Exit::Failed
        }
        QueueError::Invalid(_) => Exit::Usage,
        _ => Exit::Queue,
    }
}

fn exit_of_service(error: &c2c_protocol::Error) -> Exit {
    match &error.kind {
        ErrorKind::Transport(_) => Exit::Unreachable,
        ErrorKind::Answer(answer) if answer.looks_like_portal => Exit::Unreachable,
        ErrorKind::Refused(refusal) => match refusal.status {
            408 | 429 | 500.. => Exit::Unreachable,
            300..=399 => Exit::Unreachable,
            400 | 401 | 403 => Exit::NotPaired,
            _ => Exit::Failed,
        },
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use c2c_queue::{MediaId, Owner};
    use std::io;

    #[test]
    fn a_cause_that_is_told_already_is_not_told_twice() {
        let inner = io::Error::other("disk on fire");
        let outer = QueueError::Io {
            action: "read",
            path: "/x/queue.db".into(),
            source: inner,
        };
        let failure = Failure::from(UplinkError::from(outer));
        assert_eq!(failure.story(), "cannot read /x/queue.db: disk on fire");
        assert_eq!(failure.exit(), Exit::Queue);

        let failure = Failure::because(Exit::Failed, "cannot write", io::Error::other("no room"));
        assert_eq!(failure.story(), "cannot write: no room");
    }

    #[test]
    fn every_kind_has_its_number() {
        let in_use = QueueError::InUse {
            path: "/state".into(),
            owner: Owner {
                pid: Some(42),
                command: Some("c2c upload".into()),
            },
        };
        let table = [
            (UplinkError::from(in_use), Exit::Queue),
            (
                UplinkError::from(QueueError::NoSuchMedia(MediaId(7))),
                Exit::Failed,
            ),
            (UplinkError::NotPaired, Exit::NotPaired),
            (UplinkError::ShuttingDown, Exit::Interrupted),
            (
                UplinkError::Settings {
                    words: "odd".into(),
                    source: None,
                },
                Exit::Usage,
            ),
            (
                UplinkError::Add {
                    path: "/a".into(),
                    words: "gone".into(),
                    source: None,
                },
                Exit::Failed,
            ),
        ];
        for (error, exit) in table {
            let words = error.to_string();
            let failure = Failure::from(error);
            assert_eq!(failure.exit(), exit, "{words}");
            assert!(
                failure.story().contains(&words),
                "{} lacks {words}",
                failure.story()
            );
        }
    }

    #[test]
    fn a_closed_pipe_is_silent() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit(), failure.story().as_str()), (Exit::Ok, ""));
    }
}
