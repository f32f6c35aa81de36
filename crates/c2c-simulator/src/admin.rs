//! The controls: what a Frame.io user, the weather and a test harness can do to the service.
//!
//! Invariants: every control acts at once and whole; what is told is a copy of one consistent moment.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::asset::{AssetView, Delivered};
use crate::clock::SimClock;
use crate::device::{DeviceView, PauseWindow};
use crate::fault::{ActiveFault, EndpointName, Fault};
use crate::log::LoggedRequest;
use crate::pairing::{CodeState, PendingCode};
use crate::world::{News, Project, State, Stats, World};

/// Why a control could not act.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// No living code waits with these digits.
    #[error("no code {0} is waiting; it may be mistyped, used or older than two minutes")]
    UnknownCode(String),
    /// There is no such project.
    #[error("there is no project {0}; list the projects to see their ids")]
    UnknownProject(String),
    /// There is no such unit.
    #[error("no unit {0} is known; list the devices to see their client ids")]
    UnknownDevice(String),
}

/// A handle to the controls of a simulator. Clones control the same one.
#[derive(Clone)]
pub struct Admin {
    world: Arc<World>,
}

/// The state of the service at one moment, for [`Admin::wait_until`].
pub struct Snapshot<'a> {
    state: &'a State,
    now: SystemTime,
    world: &'a World,
}

impl Snapshot<'_> {
    /// The log, oldest first.
    pub fn requests(&self) -> &VecDeque<LoggedRequest> {
        &self.state.log.entries
    }

    /// The logged requests for one endpoint.
    pub fn requests_for(&self, endpoint: EndpointName) -> impl Iterator<Item = &LoggedRequest> {
        self.state
            .log
            .entries
            .iter()
            .filter(move |entry| entry.endpoint == endpoint)
    }

    /// The files that arrived whole.
    pub fn delivered(&self) -> &[Delivered] {
        &self.state.delivered
    }

    /// All assets, in order of registration.
    pub fn assets(&self) -> Vec<AssetView> {
        self.state.asset_views()
    }

    /// Codes that wait for a person.
    pub fn pending_codes(&self) -> Vec<PendingCode> {
        self.state.pending_codes(&self.world.settings, self.now)
    }

    /// The units.
    pub fn devices(&self) -> Vec<DeviceView> {
        self.state.devices(self.now)
    }

    /// The faults in force.
    pub fn faults(&self) -> Vec<ActiveFault> {
        self.state.faults.list()
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.state.stats
    }
}

impl Admin {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    fn now(&self) -> SystemTime {
        self.world.clock.now()
    }

    /// The clock of the service.
    pub fn clock(&self) -> &SimClock {
        &self.world.clock
    }

    // ---- pairing ----

    /// Enters a code as a user of `project_id` (`None`: where the next pairing lands). The authorization ends at
    /// `expires_at`, if given.
    ///
    /// # Errors
    ///
    /// When no such code waits, or there is no such project.
    pub fn approve(
        &self,
        user_code: &str,
        project_id: Option<&str>,
        expires_at: Option<SystemTime>,
    ) -> Result<(), AdminError> {
        let now = self.now();
        self.world.change(|state| {
            let project_id = project_id.map_or_else(|| state.landing_project(), str::to_owned);
            known_project(state, &project_id)?;
            let code = state.waiting_code(user_code, now);
            let code = code.ok_or_else(|| AdminError::UnknownCode(user_code.to_owned()))?;
            code.state = CodeState::Granted {
                project_id,
                expires_at,
            };
            Ok(())
        })
    }

    /// Refuses a code; its polls are answered `invalid_grant` from now on.
    ///
    /// # Errors
    ///
    /// When no such code waits.
    pub fn deny(&self, user_code: &str) -> Result<(), AdminError> {
        let now = self.now();
        self.world.change(|state| {
            let code = state.waiting_code(user_code, now);
            code.ok_or_else(|| AdminError::UnknownCode(user_code.to_owned()))?
                .state = CodeState::Denied;
            Ok(())
        })
    }

    /// The codes that wait for a person.
    pub fn pending_codes(&self) -> Vec<PendingCode> {
        self.look(|snapshot| snapshot.pending_codes())
    }

    /// Kills every token and authorization; calls are answered 401 from now on.
    pub fn revoke_all(&self) {
        self.world.change(|state| state.revoke(None));
        self.world.push(None, News::Tokens);
    }

    // ---- projects and units ----

    /// The projects.
    pub fn projects(&self) -> Vec<Project> {
        self.world.read(|state| state.projects.clone())
    }

    /// Adds a project and tells its id.
    pub fn add_project(&self, name: &str) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        self.world.change(|state| {
            state.projects.push(Project {
                id: id.clone(),
                name: name.to_owned(),
            })
        });
        id
    }

    /// Changes a project's name; its id stays.
    ///
    /// # Errors
    ///
    /// When there is no such project.
    pub fn rename_project(&self, project_id: &str, name: &str) -> Result<(), AdminError> {
        self.world.change(|state| {
            let project = state
                .projects
                .iter_mut()
                .find(|project| project.id == project_id);
            let project =
                project.ok_or_else(|| AdminError::UnknownProject(project_id.to_owned()))?;
            name.clone_into(&mut project.name);
            Ok(())
        })
    }

    /// Lands the next pairings in this project unless the person chooses another.
    ///
    /// # Errors
    ///
    /// When there is no such project.
    pub fn next_pairing_project(&self, project_id: &str) -> Result<(), AdminError> {
        self.world.change(|state| {
            known_project(state, project_id)?;
            state.next_project = Some(project_id.to_owned());
            Ok(())
        })
    }

    /// Moves every unit to another project: its tokens die (401), and the next pairing lands there.
    ///
    /// # Errors
    ///
    /// When there is no such project.
    pub fn move_device_to_project(&self, project_id: &str) -> Result<(), AdminError> {
        self.move_devices(None, project_id, false)
    }

    /// Moves every unit to another project while it keeps its tokens: the identity call tells another project
    /// from now on.
    ///
    /// # Errors
    ///
    /// When there is no such project.
    pub fn rebind_device(&self, project_id: &str) -> Result<(), AdminError> {
        self.move_devices(None, project_id, true)
    }

    /// Moves one unit (or all) to another project, with or without its tokens.
    ///
    /// # Errors
    ///
    /// When there is no such project or unit.
    pub fn move_devices(
        &self,
        client_id: Option<&str>,
        project_id: &str,
        keep_tokens: bool,
    ) -> Result<(), AdminError> {
        let now = self.now();
        self.world.change(|state| {
            known_project(state, project_id)?;
            known_device(state, client_id)?;
            state.move_devices(
                &self.world.settings,
                client_id,
                project_id,
                keep_tokens,
                now,
            );
            Ok(())
        })?;
        self.world.push(client_id, News::Tokens);
        Ok(())
    }

    /// Removes every unit from its project, as a user does on the connection card: calls are answered 401.
    pub fn remove_device(&self) {
        self.world.change(|state| state.remove_devices(None));
        self.world.push(None, News::Tokens);
    }

    /// Removes one unit; see [`Admin::remove_device`].
    ///
    /// # Errors
    ///
    /// When there is no such unit.
    pub fn remove_device_of(&self, client_id: &str) -> Result<(), AdminError> {
        self.world.change(|state| {
            known_device(state, Some(client_id))?;
            state.remove_devices(Some(client_id));
            Ok(())
        })?;
        self.world.push(Some(client_id), News::Tokens);
        Ok(())
    }

    /// Gives a unit another name, which changes the folder of what is delivered for later assets.
    ///
    /// # Errors
    ///
    /// When there is no such unit.
    pub fn rename_device(&self, client_id: &str, name: &str) -> Result<(), AdminError> {
        self.world.change(|state| {
            let device = state.devices.get_mut(client_id);
            name.clone_into(
                &mut device
                    .ok_or_else(|| AdminError::UnknownDevice(client_id.to_owned()))?
                    .name,
            );
            Ok(())
        })
    }

    /// The units that are in a project.
    pub fn devices(&self) -> Vec<DeviceView> {
        self.look(|snapshot| snapshot.devices())
    }

    // ---- pauses ----

    /// Pauses a channel of every unit from now on. Does nothing when it is paused already.
    pub fn pause(&self, channel: u32) {
        self.pause_device(None, channel);
    }

    /// Pauses a channel of one unit (or of all) from now on.
    pub fn pause_device(&self, client_id: Option<&str>, channel: u32) {
        let now = self.now();
        if self
            .world
            .change(|state| state.pause(client_id, channel, now))
        {
            self.world.push(client_id, News::Status);
        }
    }

    /// Ends the pause of a channel of every unit; what was created in it stays refused.
    pub fn resume(&self, channel: u32) {
        self.resume_device(None, channel);
    }

    /// Ends the pause that [`Admin::pause_device`] with the same arguments began.
    pub fn resume_device(&self, client_id: Option<&str>, channel: u32) {
        let now = self.now();
        if self
            .world
            .change(|state| state.resume(client_id, channel, now))
        {
            self.world.push(client_id, News::Status);
        }
    }

    /// All pauses there ever were.
    pub fn pause_windows(&self) -> Vec<PauseWindow> {
        self.world.read(|state| state.pauses.clone())
    }

    // ---- faults ----

    /// Puts a fault in force and tells its number.
    pub fn add_fault(&self, fault: Fault) -> u64 {
        self.world.change(|state| state.faults.add(fault))
    }

    /// Lifts one fault; tells whether it was in force. Requests that it stalls go on.
    pub fn remove_fault(&self, id: u64) -> bool {
        self.world.change(|state| state.faults.remove(id))
    }

    /// Lifts every fault. Requests that are stalled go on.
    pub fn clear_faults(&self) {
        self.world.change(|state| state.faults.clear());
    }

    /// The faults in force, also those that have acted as often as they may.
    pub fn faults(&self) -> Vec<ActiveFault> {
        self.world.read(|state| state.faults.list())
    }

    // ---- what happened ----

    /// The log, oldest first.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.world
            .read(|state| state.log.entries.iter().cloned().collect())
    }

    /// Empties the log. Requests at work are forgotten, too.
    pub fn clear_requests(&self) {
        self.world.change(|state| state.log.clear());
    }

    /// The files that arrived whole, in that order.
    pub fn delivered(&self) -> Vec<Delivered> {
        self.world.read(|state| state.delivered.clone())
    }

    /// All assets, in order of registration.
    pub fn assets(&self) -> Vec<AssetView> {
        self.world.read(State::asset_views)
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.world.read(|state| state.stats)
    }

    /// Every secret ever issued: tokens, device codes, upload URLs with their signatures, and the product
    /// secret. For checks that none of them shows up where it should not.
    pub fn issued_secrets(&self) -> Vec<String> {
        self.world.read(|state| {
            let mut secrets = state.secrets.clone();
            secrets.push(self.world.settings.client_secret.clone());
            for asset in state
                .asset_order
                .iter()
                .filter_map(|id| state.assets.get(id))
            {
                for url in asset.all_urls(&self.world) {
                    if let Some((_, signature)) = url.rsplit_once('=') {
                        secrets.push(signature.to_owned());
                    }
                    secrets.push(url);
                }
            }
            secrets
        })
    }

    // ---- waiting ----

    /// Looks at one consistent moment. The service stands still meanwhile: be quick, and use what the snapshot
    /// offers, for any other control would wait for this look to end, for ever.
    pub fn look<T>(&self, act: impl FnOnce(&Snapshot<'_>) -> T) -> T {
        let now = self.now();
        self.world.read(|state| {
            act(&Snapshot {
                state,
                now,
                world: &self.world,
            })
        })
    }

    /// Waits until a look at the service satisfies the condition. Looks again after every change, and never
    /// sleeps; conditions on the clock alone are not noticed. The rules of [`Admin::look`] apply.
    pub async fn wait_until(&self, mut condition: impl FnMut(&Snapshot<'_>) -> bool) {
        let mut changes = self.world.watch();
        loop {
            changes.mark_unchanged();
            if self.look(&mut condition) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// [`Admin::wait_until`], but for at most `limit` of real time. Tells whether the condition was met.
    pub async fn wait_until_within(
        &self,
        limit: Duration,
        condition: impl FnMut(&Snapshot<'_>) -> bool,
    ) -> bool {
        tokio::time::timeout(limit, self.wait_until(condition))
            .await
            .is_ok()
    }

    /// Waits until this many files were delivered, and tells them.
    pub async fn wait_for_delivered(&self, count: usize) -> Vec<Delivered> {
        self.wait_until(|snapshot| snapshot.delivered().len() >= count)
            .await;
        self.delivered()
    }

    /// Waits until a code waits for a person, and tells it.
    pub async fn wait_for_code(&self) -> PendingCode {
        loop {
            self.wait_until(|snapshot| !snapshot.pending_codes().is_empty())
                .await;
            if let Some(code) = self.pending_codes().pop() {
                return code;
            }
        }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

fn known_project(state: &State, project_id: &str) -> Result<(), AdminError> {
    let found = state.project(project_id).is_some();
    found
        .then_some(())
        .ok_or_else(|| AdminError::UnknownProject(project_id.to_owned()))
}

fn known_device(state: &State, client_id: Option<&str>) -> Result<(), AdminError> {
    match client_id {
        Some(id) if !state.devices.contains_key(id) => {
            Err(AdminError::UnknownDevice(id.to_owned()))
        }
        Some(_) | None => Ok(()),
    }
}
