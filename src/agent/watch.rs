//! Tables change while the agent runs: looked at again when a stage meets what it does not
//! know, every few seconds while something is stopped or held for that, and now and then.
//!
//! ```text
//! capture: a row of another shape ─┐
//! apply: no such column, table ────┼─▶ look at all ─▶ resolve ─┬─ nothing new: goes on
//! clock ───────────────────────────┘                           ├─ another model: renewed
//!                                                              └─ does not fit: stays stopped, saying why
//! ```
//!
//! Renewed means that the wiring is taken down in order and made again from the journal, as at
//! the start: no stage ever works with half of a model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::decided;
use super::look::{Sight, gap, look, of_partitions, out_of_stream};
use super::prepare::{Plan, needed};
use crate::capture::Moved;
use crate::change::ResyncMark;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::normalize::follow::{fingerprint, judge};
use crate::normalize::resolve::{Catalog, resolve_after};
use crate::schema::SystemId;
use crate::status::{State, Status};

/// While something waits for a table to change.
const EVERY_WHILE_STOPPED: Duration = Duration::from_secs(3);
/// While something is set aside that a wider column would take.
const EVERY_WHILE_HELD: Duration = Duration::from_secs(5);
/// Else: a trigger, a key or a width may have changed without a word in any log.
const EVERY: Duration = Duration::from_secs(60);
/// For all that one system is asked.
const ANSWER: Duration = Duration::from_secs(30);

/// Which half of a system met something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    Capture,
    Apply,
}

/// What a stage says before it stands still.
#[derive(Debug)]
pub struct Notice {
    pub system: SystemId,
    pub half: Half,
    /// A look decides. Else only a change of the tables helps.
    pub unseen: bool,
    pub error: Error,
}

pub struct Watch {
    pub config: Arc<Config>,
    pub status: Arc<Status>,
    /// What the stages work with.
    pub plan: Plan,
    /// Times in a row that the wiring was made anew for a target and stopped again at once.
    pub fruitless: u32,
    read: Vec<SystemId>,
    stopped: BTreeMap<(SystemId, Half), Notice>,
    /// What the last look found in the way.
    in_the_way: Vec<Finding>,
    /// Captured tables that are not there any more: in PostgreSQL no log tells.
    missing: Vec<(SystemId, String)>,
    /// What it showed and nothing waits for.
    noted: Vec<Finding>,
}

/// The next model, and why.
pub struct Renewal {
    pub plan: Plan,
    pub fruitless: u32,
    /// The log of a system has a gap: it stops until a person has it begun anew.
    pub lost: Option<ResyncMark>,
}

impl Watch {
    /// `read`: systems whose logs are read.
    pub fn new(config: Arc<Config>, status: Arc<Status>, plan: Plan, fruitless: u32, read: Vec<SystemId>) -> Self {
        Watch {
            read,
            config,
            status,
            plan,
            fruitless,
            stopped: BTreeMap::new(),
            in_the_way: Vec::new(),
            missing: Vec::new(),
            noted: Vec::new(),
        }
    }

    /// Until the wiring has to be made anew.
    pub async fn run(mut self, mut notices: mpsc::Receiver<Notice>) -> Renewal {
        let before = fingerprint(&self.plan.model);
        let mut looked = Instant::now();
        // Which tables are published is known from here on.
        if !self.read.iter().all(|system| self.plan.decided.knows_published(&self.config.system(*system).name))
            && let Some(renewal) = self.look(&before).await
        {
            return renewal;
        }
        loop {
            // What is held shows on the status alone, so the pause is asked for anew.
            let notice = tokio::time::timeout(Duration::from_secs(1), notices.recv()).await;
            let mut at_once = false;
            if let Ok(Some(notice)) = notice {
                at_once = notice.unseen && (notice.half == Half::Capture || self.fruitless == 0);
                self.stopped.insert((notice.system, notice.half), notice);
            }
            if !at_once && looked.elapsed() < self.pause() {
                continue;
            }
            if let Some(renewal) = self.look(&before).await {
                return renewal;
            }
            looked = Instant::now();
        }
    }

    fn pause(&self) -> Duration {
        let held = self.status.entities.iter().any(|entity| entity.quarantined.get() > 0);
        match (self.stopped.is_empty() && self.in_the_way.is_empty(), held) {
            (true, false) => EVERY,
            (true, true) => EVERY_WHILE_HELD,
            (false, _) => (EVERY_WHILE_STOPPED * 2u32.pow(self.fruitless.min(5))).min(EVERY),
        }
    }

    async fn look(&mut self, before: &str) -> Option<Renewal> {
        let sights = join_all(self.config.system_ids().map(|system| sight(&self.config, system))).await;
        if let Some(lost) = self.lost(&sights) {
            return Some(Renewal { plan: self.plan.clone(), fruitless: self.fruitless, lost: Some(lost) });
        }
        self.note(&sights);
        let Plan { catalogs, seen, decided, .. } = &self.plan;
        let (mut catalogs, mut seen): (Vec<Catalog>, _) = (catalogs.clone(), seen.clone());
        let mut findings = Vec::new();
        let mut unasked = Vec::new();
        for (system, sight) in self.config.system_ids().zip(sights) {
            match sight {
                Ok(sight) => {
                    findings.extend(out_of_stream(&self.config, system, &sight, decided));
                    (catalogs[system.index()], seen[system.index()]) = (sight.catalog, sight.seen);
                }
                Err(error) => {
                    debug!(system = %self.config.system(system).name, error = %error.full(), "cannot be looked at");
                    unasked.push(system);
                }
            }
        }
        let resolved = resolve_after(&self.config, &catalogs, decided);
        let mut model = match resolved {
            Ok(model) if findings.is_empty() => model,
            Ok(_) => return self.stay(findings),
            Err(found) => {
                findings.extend(found.into_iter().filter(Finding::is_error));
                self.missing = self.gone(&catalogs);
                return self.stay(findings);
            }
        };
        let moved = |notice: &Notice| Some((notice.system, Moved::of(&notice.error)?.clone()));
        let moved: Vec<_> = self.stopped.values().filter_map(moved).collect();
        let decided = judge(&mut model, &self.config, &catalogs, &seen, &moved, decided);
        let differs = fingerprint(&model) != before;
        let asked = |system: &SystemId| !unasked.contains(system);
        let unseen = self.stopped.values().any(|notice| notice.unseen && asked(&notice.system));
        let mended = !std::mem::take(&mut self.in_the_way).is_empty();
        if !(differs || unseen || mended) {
            if self.stopped.is_empty() {
                self.fruitless = 0;
            }
            return None;
        }
        let for_target = self.stopped.keys().any(|(_, half)| *half == Half::Apply);
        let fruitless = if differs || !for_target { 0 } else { self.fruitless + 1 };
        info!(differs, "the tables were looked at again; the flows are made anew");
        for warning in &model.warnings {
            warn!("{}", warning.logged());
        }
        let plan = Plan { model: Arc::new(model), catalogs, seen, decided };
        Some(Renewal { plan, fruitless, lost: None })
    }

    /// One of several: the next look tells of the others.
    fn lost(&self, sights: &[Result<Sight>]) -> Option<ResyncMark> {
        self.read.iter().find_map(|system| {
            let sight = sights[system.index()].as_ref().ok()?;
            let error = gap(&self.config, *system, &sight.seen, &self.plan.decided)?;
            error!(system = %self.config.system(*system).name, error = %error.full(), "stopped: a person must act");
            Some(needed(&self.config.system(*system).name, &error))
        })
    }

    fn gone(&self, catalogs: &[Catalog]) -> Vec<(SystemId, String)> {
        let bindings = self.config.entities.iter().flat_map(|entity| &entity.bindings);
        let gone = bindings.filter(|binding| {
            let shown = catalogs[binding.system.index()].get(&binding.table);
            binding.role.captures() && shown.is_some_and(Option::is_none)
        });
        gone.map(|binding| (binding.system, binding.table.to_string())).collect()
    }

    /// Told once, and taken in.
    fn note(&mut self, sights: &[Result<Sight>]) {
        let (mut noted, mut changed) = (Vec::new(), false);
        for (system, sight) in self.config.system_ids().zip(sights) {
            let Ok(sight) = sight else { continue };
            noted.extend(of_partitions(&self.config, system, sight, &self.plan.decided));
            let name = &self.config.system(system).name;
            changed |= self.plan.decided.note_partitions(name, &sight.seen);
            if self.read.contains(&system) {
                changed |= self.plan.decided.note_published(name, &sight.seen);
            }
        }
        noted.iter().filter(|note| !self.noted.contains(note)).for_each(|note| warn!("{}", note.logged()));
        self.noted = noted;
        if changed && let Err(error) = decided::save(&self.config, &self.plan.decided) {
            warn!(error = %error.full(), "what was seen of the tables is told of again after a restart");
        }
    }

    /// The flows go on as far as they can with what they know; what stands still says why.
    fn stay(&mut self, findings: Vec<Finding>) -> Option<Renewal> {
        if findings != self.in_the_way {
            let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
            error!("the tables no longer fit the configuration: a person must act\n{}", list.join("\n"));
        }
        for ((system, half), notice) in &self.stopped {
            self.show(*system, *half, told(&notice.error, &findings));
        }
        for finding in &findings {
            // A table out of the stream is missed by nobody else.
            let system = self.config.system_ids().find(|system| *self.config.system(*system).name == *finding.system);
            let unheard = |system: &SystemId| {
                finding.entity.is_empty() || self.missing.contains(&(*system, finding.table.clone()))
            };
            if let Some(system) = system.filter(unheard) {
                self.show(system, Half::Capture, finding.to_string());
            }
        }
        self.in_the_way = findings;
        None
    }

    fn show(&self, system: SystemId, half: Half, text: String) {
        let status = &self.status.systems[system.index()];
        let state = match half {
            Half::Capture => &status.capture.state,
            Half::Apply => &status.apply.state,
        };
        *state.lock().expect("never held across a panic") = State::Stopped(text);
    }
}

async fn sight(config: &Config, system: SystemId) -> Result<Sight> {
    let late = |_| Error::retry(format!("did not answer within {ANSWER:?}"));
    tokio::time::timeout(ANSWER, look(config, system)).await.map_err(late)?
}

/// What was met, what is in the way, and how it goes on.
fn told(error: &Error, findings: &[Finding]) -> String {
    let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
    format!(
        "{}\n{}\nwhen the tables fit again the flow goes on by itself; a column that was renamed: {{ column = \"new\", \
         formerly = [\"old\"] }} in the binding; after a change of the file: restart the agent",
        error.message,
        list.join("\n")
    )
}
