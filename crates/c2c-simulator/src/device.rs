//! Units, the projects they are bound to, their presence and their pauses.
//!
//! Invariants: a unit keeps its `device_id` for ever and gets a project-device id per project; pause windows are
//! half open, `[start, end)`, and are never forgotten.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::clock::{rfc3339, stamp, stamp_secs};
use crate::pairing::Bearer;
use crate::world::{Settings, State};

/// Silence after which a unit is shown as offline.
pub(crate) const PRESENCE: Duration = Duration::from_secs(300);

/// One physical unit.
pub(crate) struct Device {
    pub(crate) device_id: String,
    pub(crate) name: String,
    pub(crate) firmware: String,
    pub(crate) last_seen: SystemTime,
    pub(crate) last_heartbeat: Option<SystemTime>,
    pub(crate) project_id: String,
    pub(crate) authorization: Option<usize>,
    pub(crate) removed: bool,
    pub(crate) websockets: u32,
    creator_id: String,
    bindings: HashMap<String, Binding>,
}

/// The ids that a unit has within one project.
pub(crate) struct Binding {
    pub(crate) project_device_id: String,
    channels: Vec<String>,
    inserted_at: SystemTime,
}

/// A unit as the admin sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceView {
    /// What the unit calls itself.
    pub client_id: String,
    /// Its key.
    pub device_id: String,
    /// Its name in the connected project.
    pub name: String,
    /// The project it is bound to.
    pub project_id: String,
    /// `online`, `offline` or `paused`.
    pub status: String,
    /// Whether it holds a living authorization.
    pub connected: bool,
    /// The last `x-client-version`.
    pub firmware: String,
    /// The last API call (simulated time).
    #[serde(with = "rfc3339")]
    pub last_seen: SystemTime,
    /// Open websockets.
    pub websockets: u32,
}

/// A time in which nothing may be created on a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PauseWindow {
    /// The channel's index.
    pub channel: u32,
    /// The unit; `None` is every unit.
    pub client_id: Option<String>,
    /// First paused moment.
    #[serde(with = "rfc3339")]
    pub start: SystemTime,
    /// First moment after the pause; `None` while it lasts.
    #[serde(with = "rfc3339::option")]
    pub end: Option<SystemTime>,
}

impl PauseWindow {
    fn covers(&self, client_id: &str, channel: Option<u32>, moment: SystemTime) -> bool {
        self.client_id.as_deref().is_none_or(|id| id == client_id)
            && channel.is_none_or(|channel| channel == self.channel)
            && moment >= self.start
            && self.end.is_none_or(|end| moment < end)
    }
}

impl Device {
    pub(crate) fn new(name: String, now: SystemTime) -> Self {
        let id = || uuid::Uuid::new_v4().to_string();
        Self {
            device_id: id(),
            name,
            firmware: "0.0.0".to_owned(),
            last_seen: now,
            last_heartbeat: None,
            project_id: String::new(),
            authorization: None,
            removed: false,
            websockets: 0,
            creator_id: id(),
            bindings: HashMap::new(),
        }
    }

    /// Binds the unit to a project, giving it ids there at the first time.
    pub(crate) fn bind(&mut self, project_id: &str, channels: u32, now: SystemTime) {
        let id = || uuid::Uuid::new_v4().to_string();
        self.bindings
            .entry(project_id.to_owned())
            .or_insert_with(|| Binding {
                project_device_id: id(),
                channels: (0..channels.max(1)).map(|_| id()).collect(),
                inserted_at: now,
            });
        project_id.clone_into(&mut self.project_id);
    }

    pub(crate) fn binding(&self) -> Option<&Binding> {
        self.bindings.get(&self.project_id)
    }

    pub(crate) fn creator_id(&self) -> &str {
        &self.creator_id
    }

    fn online(&self, now: SystemTime) -> bool {
        self.websockets > 0 || now.duration_since(self.last_seen).unwrap_or_default() < PRESENCE
    }
}

impl State {
    /// Whether a creation at `moment` falls into a pause.
    pub(crate) fn paused_at(&self, client_id: &str, channel: u32, moment: SystemTime) -> bool {
        self.pauses
            .iter()
            .any(|window| window.covers(client_id, Some(channel), moment))
    }

    pub(crate) fn status_of(&self, client_id: &str, now: SystemTime) -> &'static str {
        let paused = self
            .pauses
            .iter()
            .any(|window| window.end.is_none() && window.covers(client_id, None, now));
        match self.devices.get(client_id) {
            _ if paused => "paused",
            Some(device) if device.online(now) => "online",
            Some(_) | None => "offline",
        }
    }

    /// Opens a pause window unless one is open. Tells whether anything changed.
    pub(crate) fn pause(&mut self, client_id: Option<&str>, channel: u32, now: SystemTime) -> bool {
        let same = |window: &PauseWindow| {
            window.channel == channel && window.client_id.as_deref() == client_id
        };
        if self
            .pauses
            .iter()
            .any(|window| same(window) && window.end.is_none())
        {
            return false;
        }
        self.pauses.push(PauseWindow {
            channel,
            client_id: client_id.map(str::to_owned),
            start: now,
            end: None,
        });
        true
    }

    /// Closes the open pause windows of a channel. Tells whether there was one.
    pub(crate) fn resume(
        &mut self,
        client_id: Option<&str>,
        channel: u32,
        now: SystemTime,
    ) -> bool {
        let mut changed = false;
        for window in &mut self.pauses {
            if window.end.is_none()
                && window.channel == channel
                && window.client_id.as_deref() == client_id
            {
                window.end = Some(now);
                changed = true;
            }
        }
        changed
    }

    /// Moves units to a project. With `keep_tokens` they go on with what they hold, else they must pair again.
    pub(crate) fn move_devices(
        &mut self,
        settings: &Settings,
        client_id: Option<&str>,
        project_id: &str,
        keep_tokens: bool,
        now: SystemTime,
    ) {
        if !keep_tokens {
            self.revoke(client_id);
            self.next_project = Some(project_id.to_owned());
        }
        for (id, device) in &mut self.devices {
            if client_id.is_some_and(|only| only != id) {
                continue;
            }
            device.bind(project_id, settings.channels, now);
            if let Some(authorization) = device.authorization {
                project_id.clone_into(&mut self.authorizations[authorization].project_id);
            }
        }
    }

    /// Takes units out of their project; their tokens die.
    pub(crate) fn remove_devices(&mut self, client_id: Option<&str>) {
        self.revoke(client_id);
        for (_, device) in self
            .devices
            .iter_mut()
            .filter(|(id, _)| client_id.is_none_or(|only| only == *id))
        {
            device.removed = true;
        }
    }

    pub(crate) fn devices(&self, now: SystemTime) -> Vec<DeviceView> {
        let present = self.devices.iter().filter(|(_, device)| !device.removed);
        present
            .map(|(client_id, device)| DeviceView {
                client_id: client_id.clone(),
                device_id: device.device_id.clone(),
                name: device.name.clone(),
                project_id: device.project_id.clone(),
                status: self.status_of(client_id, now).to_owned(),
                connected: device.authorization.is_some_and(|index| {
                    let authorization = &self.authorizations[index];
                    !authorization.revoked && authorization.expires_at.is_none_or(|end| now < end)
                }),
                firmware: device.firmware.clone(),
                last_seen: device.last_seen,
                websockets: device.websockets,
            })
            .collect()
    }

    /// The whole body of `GET /v2/devices/me`.
    pub(crate) fn me(
        &self,
        settings: &Settings,
        bearer: &Bearer,
        now: SystemTime,
    ) -> Option<Value> {
        let device = self.devices.get(&bearer.client_id)?;
        let binding = device.binding()?;
        let authorization = &self.authorizations[bearer.authorization];
        let project = self.project(&device.project_id)?;
        let status = self.status_of(&bearer.client_id, now);
        let (inserted, updated) = (stamp(binding.inserted_at), stamp(now));
        let channels: Vec<Value> = binding
            .channels
            .iter()
            .enumerate()
            .map(|(index, id)| {
                json!({
                    "_type": "project_device_channel", "id": id, "name": settings.model_name, "external_index": index,
                    "asset_type": settings.asset_type, "status": if status == "offline" { "offline" } else { "online" },
                    "actor_id": device.creator_id, "device_id": device.device_id,
                    "project_device_id": binding.project_device_id, "project_id": project.id,
                    "real_time_logging_capable": false, "inserted_at": inserted, "updated_at": updated,
                })
            })
            .collect();
        Some(json!({
            "_type": "project_device",
            "id": binding.project_device_id,
            "device_id": device.device_id,
            "name": device.name,
            "asset_type": settings.asset_type,
            "status": status,
            "timezone": settings.timezone_name,
            "project": { "_type": "project", "id": project.id, "name": project.name },
            "project_id": project.id,
            "creator_id": device.creator_id,
            "inserted_at": inserted,
            "updated_at": updated,
            "last_seen_at": stamp_secs(now),
            "deleted_at": null,
            "last_known_firmware_version": device.firmware,
            "authorization": {
                "_type": "project_device_authorization",
                "id": authorization.id,
                "creator": { "_type": "user", "id": device.creator_id, "name": "A. Simulated User" },
                "creator_id": device.creator_id,
                "expires_at": authorization.expires_at.map(stamp),
                "inserted_at": stamp(authorization.inserted_at),
                "project_device_id": binding.project_device_id,
                "scopes": scopes(&authorization.scopes_id),
            },
            "channels": channels,
        }))
    }
}

fn scopes(id: &str) -> Value {
    const ACTIONS: [&str; 4] = ["create", "delete", "read", "update"];
    let mut scopes = Map::new();
    for group in [
        "action",
        "asset",
        "comment",
        "presentation",
        "project",
        "reviewlink",
        "webhook",
    ] {
        for action in ACTIONS {
            scopes.insert(
                format!("{group}_{action}"),
                json!(group == "asset" && action == "create"),
            );
        }
    }
    for name in [
        "account_read",
        "auditlog_read",
        "device_connect",
        "team_create",
        "team_read",
        "team_update",
    ] {
        scopes.insert(name.to_owned(), json!(false));
    }
    scopes.insert("offline".to_owned(), json!(true));
    scopes.insert("id".to_owned(), json!(id));
    Value::Object(scopes)
}
