//! The command line: what can be said to the program.

use std::path::PathBuf;
use std::time::Duration;

use c2c_queue::{KeyStore, MediaState};
use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand};
use secrecy::SecretString;

use crate::tuning::Tuning;

const EXIT_CODES: &str = "\
Exit codes:
    0  done; everything asked for was delivered
    1  something went wrong that has no number of its own
    2  the command line or a setting makes no sense
    3  not paired, the pairing was refused, or the authorization is gone: run `c2c pair`
    4  the queue is in use by another process, or cannot be used
    5  the network or the service cannot be reached
    6  the work ended, but some media are withheld, parked, failed, held or cancelled
  130  interrupted; what is in the queue goes on with the next run

Results go to stdout, progress and messages to stderr.";

/// Uploads camera originals, stills and sound to Frame.io through Camera to Cloud.
///
/// Try `c2c demo` first: it needs no account and no network.
#[derive(Parser)]
#[command(name = "c2c", version, after_long_help = EXIT_CODES, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Args)]
pub(crate) struct Global {
    /// Directory of the queue, the pairing and the receipts [default: $XDG_STATE_HOME/c2c or ~/.local/state/c2c]
    #[arg(
        long,
        global = true,
        env = "C2C_STATE_DIR",
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(crate) state_dir: Option<PathBuf>,

    /// Where the Camera to Cloud API is
    #[arg(
        long,
        global = true,
        env = "C2C_API_URL",
        value_name = "URL",
        default_value = "https://api.frame.io",
        help_heading = "Global options"
    )]
    pub(crate) api_url: String,

    /// PEM file with certificate authorities to trust besides those of the system
    #[arg(
        long,
        global = true,
        env = "C2C_CA_FILE",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) ca_file: Option<PathBuf>,

    /// Identifies this unit at Frame.io; made up once and kept when not given
    #[arg(
        long,
        global = true,
        env = "C2C_CLIENT_ID",
        value_name = "ID",
        help_heading = "Global options"
    )]
    pub(crate) client_id: Option<String>,

    /// The secret of the product, issued by Frame.io. Other users of this machine can read the command
    /// line: prefer the environment or a file
    #[arg(
        long,
        global = true,
        env = "C2C_CLIENT_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        value_parser = secret,
        conflicts_with = "client_secret_file",
        help_heading = "Global options"
    )]
    pub(crate) client_secret: Option<SecretString>,

    /// File with the secret of the product
    #[arg(
        long,
        global = true,
        env = "C2C_CLIENT_SECRET_FILE",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) client_secret_file: Option<PathBuf>,

    /// Where the key is kept that the stored secrets are sealed under, for a new state directory: `auto` takes the keyring of the
    /// system where one is there and unlocked, and a file otherwise. An existing key stays where it is, but for `file`, which
    /// moves it out of the keyring
    #[arg(
        long,
        global = true,
        env = "C2C_KEY_STORE",
        value_name = "PLACE",
        default_value_t = KeyStore::Auto,
        value_parser = clap::builder::PossibleValuesParser::new(KeyStore::ALL.map(KeyStore::as_str)).try_map(|text| text.parse::<KeyStore>()),
        help_heading = "Global options"
    )]
    pub(crate) key_store: KeyStore,

    /// Connect to ADDR instead of what HOST resolves to, for connections to this port; may be repeated
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT:ADDR",
        help_heading = "Global options"
    )]
    pub(crate) resolve: Vec<String>,

    /// What to log to stderr, e.g. `info` or `c2c_uplink=debug`
    #[arg(
        long,
        global = true,
        env = "C2C_LOG",
        value_name = "FILTER",
        default_value = "warn",
        help_heading = "Global options"
    )]
    pub(crate) log: String,

    /// Results as JSON: one document, or one line per event for commands that take time
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,

    /// Which day's folder media appear in: that of the capture, or that of the upload. `upload-date` gives up the
    /// protection by pauses: Frame.io can no longer tell what was captured while the channel was paused, and media of
    /// an earlier pause is uploaded
    #[arg(
        long,
        global = true,
        env = "C2C_ORGANISE_BY",
        value_enum,
        default_value = "capture-date",
        help_heading = "Global options"
    )]
    pub(crate) organise_by: Organise,

    /// How many hours the media of a card or disk that was taken out wait for it, before they are cancelled
    #[arg(
        long,
        global = true,
        env = "C2C_VOLUME_PATIENCE",
        value_name = "HOURS",
        default_value_t = 72,
        value_parser = clap::value_parser!(u32).range(1..=8_760),
        help_heading = "Global options"
    )]
    pub(crate) volume_patience: u32,

    /// Proxy for everything: http://, socks5:// or socks5h://, with a name and password if it wants them, or `none`.
    /// By default HTTPS_PROXY, ALL_PROXY and NO_PROXY count
    #[arg(
        long,
        global = true,
        env = "C2C_PROXY",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub(crate) proxy: Option<String>,

    #[command(flatten)]
    pub(crate) tuning: Tuning,
}

/// Which day's folder media appear in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Organise {
    CaptureDate,
    UploadDate,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Shows the whole way without an account: makes clips and stills, pairs with a Frame.io on this
    /// machine, uploads, and compares what arrived byte by byte
    Demo(Demo),
    /// Runs a Frame.io Camera to Cloud on this machine to try uploads and faults against
    Simulator(SimulatorArgs),
    /// Connects this unit to a project: shows the code to type in at Frame.io and waits
    Pair(Patience),
    /// Adds files and uploads until nothing is left to do; run again, it goes on where it stopped
    Upload(Upload),
    /// Adds files to the queue without uploading them now
    Add(Add),
    /// Shows the connection and the queue in numbers
    Status,
    /// Lists the media in the queue
    List(List),
    /// Tells the life of one media: each try, fault, verdict and wait, and what happens next and when
    Explain(One),
    /// Prints the proof of a delivery as JSON
    Receipt(One),
    /// Gives media fresh tries: parked, failed, withheld or cancelled ones, or those that wait
    Retry(Chosen),
    /// Takes media out of the work for good
    Cancel(Chosen),
    /// Moves media before or behind the others
    Prioritize(Prioritize),
    /// Holds media back until they are released
    Hold(Chosen),
    /// Lets held media go on; accepts the capture time of those held for it
    Release(Chosen),
}

#[derive(Args)]
pub(crate) struct Demo {
    /// Files to upload instead of the ones made for the occasion
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// Keep everything in this directory: the files, the queue, and what arrived
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct SimulatorArgs {
    /// Directory for what arrives and for the certificate [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,

    /// Port of the API; 0 takes any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) port: u16,

    /// Port for the uploads; 0 takes any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) uploads_port: u16,

    /// Port of the control API; 0 takes any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) admin_port: u16,

    /// Approve every pairing by itself
    #[arg(long)]
    pub(crate) auto_approve: bool,

    /// The client secret that it accepts [default: a new one]
    #[arg(
        long,
        value_name = "SECRET",
        env = "C2C_SIMULATOR_SECRET",
        hide_env_values = true
    )]
    pub(crate) secret: Option<String>,
}

/// How files are added.
#[derive(Args)]
pub(crate) struct AddOptions {
    /// Also add the files named in FILE, one a line or with NUL between them; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) files_from: Option<PathBuf>,

    /// Add a file even if it is in the queue already, or was delivered
    #[arg(long)]
    pub(crate) again: bool,

    /// Channel of the unit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) channel: u32,

    /// Higher goes first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) priority: i32,

    /// MIME type of the files [default: by their names]
    #[arg(long, value_name = "TYPE")]
    pub(crate) filetype: Option<String>,

    /// Number of chunks to ask for [default: Frame.io decides]
    #[arg(long, value_name = "N")]
    pub(crate) parts: Option<u32>,
}

/// How long a command waits for what may come back.
#[derive(Args, Clone, Copy)]
pub(crate) struct Patience {
    /// Give up with exit code 5 when the service could not be reached for this long [default: wait for ever]
    #[arg(long = "give-up-after", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) limit: Option<Duration>,
}

#[derive(Args)]
pub(crate) struct Upload {
    /// Files to add; without any, what is in the queue is uploaded
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) options: AddOptions,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Args)]
pub(crate) struct Add {
    /// Files to add
    #[arg(value_name = "FILE", required_unless_present = "files_from")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) options: AddOptions,
}

#[derive(Args)]
pub(crate) struct List {
    /// Only media in this state; may be repeated
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    pub(crate) states: Vec<MediaState>,
}

/// One media.
#[derive(Args)]
pub(crate) struct One {
    /// The number of the media, as `c2c list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: i64,
}

/// Which media a person means.
#[derive(Args)]
pub(crate) struct Chosen {
    /// Numbers of media, as `c2c list` shows them
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<i64>,

    /// All media in this state
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub(crate) state: Option<MediaState>,

    /// All media that are held
    #[arg(long)]
    pub(crate) held: bool,

    /// All media
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Args)]
pub(crate) struct Prioritize {
    #[command(flatten)]
    pub(crate) chosen: Chosen,

    /// The new priority: higher goes first, 0 is normal
    #[arg(
        long = "to",
        value_name = "N",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    pub(crate) priority: i32,
}

fn secret(text: &str) -> Result<SecretString, String> {
    match text.trim() {
        "" => Err("the secret is empty".to_owned()),
        text => Ok(SecretString::from(text)),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=31_536_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("give whole seconds, at least 1 and at most a year".to_owned()),
    }
}

fn state(text: &str) -> Result<MediaState, String> {
    MediaState::parse(text).ok_or_else(|| {
        let known: Vec<&str> = MediaState::ALL
            .into_iter()
            .map(MediaState::as_str)
            .collect();
        format!("the states are {}", known.join(", "))
    })
}

impl Global {
    /// The state directory: what was given, or the place that the platform has for such things.
    ///
    /// # Errors
    /// In words, if nothing was given and the platform does not tell.
    pub(crate) fn state_dir(&self) -> Result<PathBuf, String> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => default_state_dir(|name| std::env::var_os(name).map(PathBuf::from))
                .ok_or_else(|| "there is no home directory; give --state-dir".to_owned()),
        }
    }
}

fn default_state_dir(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // The specification says that a relative path is to be ignored.
    let absolute = |name: &str| var(name).filter(|path| path.is_absolute());
    if cfg!(windows) {
        absolute("LOCALAPPDATA").map(|dir| dir.join("c2c"))
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Application Support/c2c"))
    } else {
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|dir| dir.join("c2c"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_stand_after_the_command() {
        let cli = Cli::try_parse_from([
            "c2c",
            "upload",
            "a.mov",
            "--json",
            "--transfers",
            "3",
            "--priority",
            "-2",
        ]);
        let cli = cli.unwrap_or_else(|error| panic!("{error}"));
        assert!(cli.global.json);
        assert_eq!(cli.global.tuning.transfers, c2c_uplink::Transfers::Fixed(3));
        let Command::Upload(upload) = cli.command else {
            panic!("another command")
        };
        assert_eq!((upload.files.len(), upload.options.priority), (1, -2));
    }

    #[test]
    fn nonsense_is_refused_with_words() {
        for (args, words) in [
            (vec!["c2c", "upload", "--transfers", "0"], "from 1 to 64"),
            (
                vec!["c2c", "list", "--state", "lost"],
                "the states are queued",
            ),
            (vec!["c2c", "add"], "required"),
            (
                vec!["c2c", "status", "--client-secret", " "],
                "the secret is empty",
            ),
            (
                vec![
                    "c2c",
                    "pair",
                    "--client-secret",
                    "a",
                    "--client-secret-file",
                    "b",
                ],
                "cannot be used with",
            ),
        ] {
            let error = Cli::try_parse_from(&args)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }

    #[test]
    fn help_names_every_exit_code_and_never_a_secret() {
        let help = Cli::command().render_long_help().to_string();
        for code in [
            "  0  ", "  1  ", "  2  ", "  3  ", "  4  ", "  5  ", "  6  ", "130  ",
        ] {
            assert!(help.contains(code), "{code} in {help}");
        }
        let secret = Cli::command();
        let secret = secret
            .get_arguments()
            .find(|arg| arg.get_id() == "client_secret")
            .unwrap();
        assert!(secret.is_hide_env_values_set());
    }

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn the_state_directory_follows_the_base_directory_rules() {
        let dir = |state: Option<&str>, home: Option<&str>| {
            default_state_dir(|name| match name {
                "XDG_STATE_HOME" => state.map(PathBuf::from),
                "HOME" => home.map(PathBuf::from),
                _ => None,
            })
        };
        assert_eq!(dir(Some("/s"), Some("/h")), Some("/s/c2c".into()));
        assert_eq!(
            dir(Some("relative"), Some("/h")),
            Some("/h/.local/state/c2c".into())
        );
        assert_eq!(
            dir(Some(""), Some("/h")),
            Some("/h/.local/state/c2c".into())
        );
        assert_eq!(dir(None, None), None);
    }
}
