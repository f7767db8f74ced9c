//! Comparisons that nobody asks for: every so often, slowly, and only when nothing else is under
//! way. What the newest one of each entity found is kept beside the journal, so that a restart
//! neither forgets it nor begins a new one at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tracing::{Instrument, debug, info_span, warn};

use super::{Context, Counted, Loads};
use crate::config::{Config, VerifyConfig};
use crate::load::{Classes, Verdict, VerifySpec};
use crate::schema::EntityId;
use crate::status::{State, Status, now};

/// Overdue, or taken off by a person: not at once.
const GRACE: Duration = Duration::from_secs(60);
/// How often it is looked whether all systems are there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// On disk.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// When the last run that came to its end did, µs; 0 before the first.
    ended: i64,
    verdicts: Vec<Verdict>,
}

fn path(config: &Config) -> PathBuf {
    config.agent.data_dir.join("verified.json")
}

/// What was found before the agent started.
pub fn recall(config: &Config, status: &Status) {
    let Ok(text) = std::fs::read(path(config)) else { return };
    // It is found anew by the next run.
    let Kept { ended, verdicts } = serde_json::from_slice(&text).unwrap_or_default();
    let known = |verdict: &Verdict| config.entities.iter().any(|entity| entity.name == verdict.entity);
    *status.verdicts.lock().expect("never held across a panic") = verdicts.into_iter().filter(known).collect();
    status.verify_ended.set(ended.min(now()));
}

fn keep(config: &Config, status: &Status) {
    let verdicts = status.verdicts.lock().expect("never held across a panic").clone();
    let text = serde_json::to_vec(&Kept { ended: status.verify_ended.get(), verdicts }).expect("counts are plain data");
    let (path, fresh) = (path(config), path(config).with_extension("json.new"));
    let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
    if let Err(error) = written {
        warn!(path = %path.display(), %error, "cannot keep what was compared: it is forgotten with the next restart");
    }
}

/// What was found of an entity no longer stands.
pub fn forget(config: &Config, status: &Status, entity: &str) {
    status.verdicts.lock().expect("never held across a panic").retain(|verdict| verdict.entity != entity);
    keep(config, status);
}

impl Context {
    /// What a comparison of all rows of an entity came to.
    pub fn judged(&self, mut verdict: Verdict) {
        // Keys of a few rows are for those who ask.
        verdict.systems.values_mut().for_each(|classes| classes.samples.clear());
        {
            let mut verdicts = self.status.verdicts.lock().expect("never held across a panic");
            match verdicts.iter_mut().find(|known| known.entity == verdict.entity) {
                // How far one came that failed says nothing.
                Some(known) if verdict.outcome == "failed" => {
                    *known = Verdict { systems: std::mem::take(&mut known.systems), ..verdict };
                }
                Some(known) => *known = verdict,
                None => verdicts.push(verdict),
            }
        }
        keep(&self.config, &self.status);
    }
}

impl Loads {
    /// The place of whoever works, free or about to be: a comparison that runs by itself makes
    /// room. `None`: somebody else works, and does not.
    pub(super) fn claim(&self) -> Option<Claim> {
        if let Ok(place) = self.busy.clone().try_lock_owned() {
            return Some(Claim::Free(place));
        }
        let background = self.background.lock().expect("never held across a panic").take()?;
        background.cancel();
        Some(Claim::Vacated(self.clone()))
    }

    /// Compares every so often, until the agent goes down.
    pub async fn by_itself(self) {
        let Some(settings) = self.context.config.verify else { return };
        let (context, status) = (self.context.clone(), self.context.status.clone());
        let grace = micros(settings.every.min(GRACE));
        let mut due = match status.verify_ended.get() {
            0 => status.started + micros(settings.every),
            ended => (ended + micros(settings.every)).max(now() + grace),
        };
        loop {
            status.verify_next.set(due);
            let pause = Duration::from_micros((due - now()).max(0) as u64);
            if context.pause(pause).await.is_err() {
                return;
            }
            due = match self.run(settings).await {
                Ran::ToItsEnd => {
                    status.verify_ended.set(now());
                    keep(&context.config, &status);
                    now() + micros(settings.every)
                }
                Ran::Interrupted => now() + grace,
                Ran::Stopped => return,
            };
        }
    }

    async fn run(&self, settings: VerifyConfig) -> Ran {
        let context = &self.context;
        let place = tokio::select! {
            place = self.when_quiet() => place,
            () = context.stop.cancelled() => return Ran::Stopped,
        };
        let token = context.stop.child_token();
        *self.background.lock().expect("never held across a panic") = Some(token.clone());
        let spec = VerifySpec { max_rate: Some(settings.max_rate), ..VerifySpec::default() };
        let entities = self.entities(&[]).unwrap_or_default();
        let ran = tokio::select! {
            () = compare_all(context, &spec, entities) => Ran::ToItsEnd,
            () = token.cancelled() => Ran::Interrupted,
        };
        *context.status.verifying.lock().expect("never held across a panic") = None;
        *self.background.lock().expect("never held across a panic") = None;
        drop(place);
        if context.stop.is_cancelled() { Ran::Stopped } else { ran }
    }

    /// Nothing is loaded or compared, and every system can be asked.
    async fn when_quiet(&self) -> OwnedMutexGuard<()> {
        loop {
            let place = self.busy.clone().lock_owned().await;
            let streams = |state: &std::sync::Mutex<State>| {
                matches!(*state.lock().expect("never held across a panic"), State::Streaming | State::Unused)
            };
            if self.context.status.systems.iter().all(|s| streams(&s.capture.state) && streams(&s.apply.state)) {
                return place;
            }
            drop(place);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

enum Ran {
    ToItsEnd,
    /// Somebody asked for a load, or a comparison of their own.
    Interrupted,
    Stopped,
}

pub(super) enum Claim {
    Free(OwnedMutexGuard<()>),
    Vacated(Loads),
}

impl Claim {
    pub async fn place(self) -> OwnedMutexGuard<()> {
        match self {
            Claim::Free(place) => place,
            Claim::Vacated(loads) => loads.busy.lock_owned().await,
        }
    }
}

async fn compare_all(context: &Arc<Context>, spec: &VerifySpec, entities: Vec<EntityId>) {
    for entity in entities {
        let name = context.model.schema.entity(entity).name.clone();
        *context.status.verifying.lock().expect("never held across a panic") = Some(name.clone());
        let mut counted = Counted::new(&name, context.status.clone());
        counted.kind = super::Kind::Background;
        let found =
            super::verify(context, spec, entity, counted).instrument(info_span!("verify", entity = %name)).await;
        match found {
            Some(systems) => warn_of(&name, &systems),
            None => debug!(entity = %name, "not compared"),
        }
    }
}

/// Without a row's values.
fn warn_of(entity: &str, systems: &std::collections::BTreeMap<String, Classes>) {
    for (system, classes) in systems.iter().filter(|(_, classes)| classes.differences() > 0) {
        let Classes { missing, extra, different, fields, .. } = classes;
        let fields = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let way_out =
            format!("anechoic verify --values {entity} shows them, anechoic verify --repair {entity} mends them");
        warn!(%entity, %system, missing, extra, different, fields, way_out, "a system differs from the authority");
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 4)
}
