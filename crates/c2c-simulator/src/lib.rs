//! A strict Frame.io Camera to Cloud to talk to: the API and the uploads host over real HTTPS, with a clock of
//! its own, faults on demand and a log of everything.
//!
//! Invariants: it listens on loopback only; its certificates come from an authority made for this run alone;
//! every time it decides by is that of its [`SimClock`]; memory does not grow with the size of what is uploaded.
//!
//! ```no_run
//! # async fn example() -> Result<(), c2c_simulator::SimulatorError> {
//! use c2c_simulator::{Effect, EndpointName, Fault, Simulator, Target};
//!
//! let simulator = Simulator::builder().auto_approve(true).start().await?;
//! println!("{}", simulator.announcement());
//! let second_part = Target::endpoint(EndpointName::PutChunk).part(2);
//! simulator.admin().add_fault(Fault::new(second_part, Effect::CutBeforeAnswer).once());
//! // … let a client upload something …
//! let delivered = simulator.admin().wait_for_delivered(1).await;
//! println!("{}", delivered[0].path.display());
//! simulator.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What it serves
//!
//! The API host (`https://localhost:…`): `POST /v2/auth/device/code` (also `/v2/device/code`),
//! `POST /v2/auth/token`, `POST /v2/auth/revoke`, `GET /v2/devices/me`, `POST /v2/devices/heartbeat`,
//! `GET /health` (also `/v2/health`), `POST /v2/devices/assets` (also `/v2/assets`),
//! `POST /v2/devices/assets/{id}/realtime_upload/parts`, and the websocket `/devices/websocket`.
//! The uploads host (`https://127.0.0.1:…`): `PUT` of parts with pre-signed URLs.
//!
//! Whole files end up in `<root>/delivered/Cloud Devices/YYYY_MM_DD/TYPE/UNIT/NAME`, dated by registration minus
//! `offset` in the units' time zone.
//!
//! # The admin API
//!
//! Plain HTTP on `127.0.0.1`, without authentication; requests whose `Host` (or `Origin`) is no loopback name
//! are refused. Bodies and answers are JSON; times are RFC 3339; `?` marks what may be left out.
//!
//! | call | body or query | effect or answer |
//! | --- | --- | --- |
//! | `GET /` | | URLs, CA file, client secret, root |
//! | `GET /pair`, `POST /pair` | `code` | the page that a person opens to enter a code |
//! | `GET /codes` | | codes that wait for a person |
//! | `POST /codes/{code}/approve` | `project_id?`, `expires_at?` | enters the code |
//! | `POST /codes/{code}/deny` | | refuses the code |
//! | `POST /tokens/revoke` | | kills every token |
//! | `GET /projects`, `POST /projects` | `name` | lists or adds projects |
//! | `POST /projects/{id}/rename` | `name` | renames |
//! | `POST /projects/{id}/next` | | the next pairing lands here |
//! | `GET /devices` | | units and their presence |
//! | `POST /devices/move` | `project_id`, `client_id?`, `keep_tokens?` | moves units to a project |
//! | `POST /devices/remove` | `client_id?` | removes units, their tokens die |
//! | `POST /devices/rename` | `client_id`, `name` | renames a unit |
//! | `GET /pauses` | | all pause windows |
//! | `POST /pause`, `POST /resume` | `channel?`, `client_id?` | begins or ends a pause |
//! | `GET /faults`, `POST /faults`, `DELETE /faults` | a [`Fault`] | lists, adds (answers `id`) or clears faults |
//! | `DELETE /faults/{id}` | | lifts one fault |
//! | `GET /requests`, `DELETE /requests` | `?violations=true`, `?after=ID` | the log, or empties it |
//! | `GET /assets` | | every asset with its parts |
//! | `GET /delivered` | | every file with its path, MD5 and SHA-256 |
//! | `GET /stats` | | connection and token counters |
//! | `GET /secrets` | | every secret ever issued, for leak tests |
//! | `GET /clock` | | simulated time and `Date` skew |
//! | `POST /clock/advance` | `seconds` | moves the clock forward |
//! | `POST /clock/date-skew` | `seconds` | makes `Date` headers lie by so much |
//! | `GET /wait` | `?delivered=N`, `?requests=N`, `?codes=N`, `?timeout_seconds=S` | waits; 408 if in vain |
//!
//! A fault in JSON, here the second part of one clip refused once and then let through:
//!
//! ```json
//! {"on": {"endpoint": "put_chunk", "part": 2, "asset_name": "A001.mov"},
//!  "effect": {"status": {"status": 503, "body": {"s3": {"code": "SlowDown", "message": "Please reduce your request rate."}}}},
//!  "times": 1}
//! ```

mod admin;
mod admin_http;
mod answer;
mod api;
mod asset;
mod certs;
mod clock;
mod device;
mod exchange;
mod fault;
mod fields;
mod log;
mod pairing;
mod presign;
mod realtime;
mod server;
mod simulator;
mod store;
mod uploads;
mod websocket;
mod wire;
mod world;

pub use admin::{Admin, AdminError, Snapshot};
pub use asset::{AssetStage, AssetView, Delivered, PartView};
pub use clock::SimClock;
pub use device::{DeviceView, PauseWindow};
pub use fault::{ActiveFault, BodyKind, Effect, EndpointName, Fault, Target};
pub use log::{CreateFields, HostKind, LoggedRequest, Outcome};
pub use pairing::PendingCode;
pub use simulator::{Builder, Simulator, SimulatorError};
pub use world::{Project, RateLimit, Stats};
