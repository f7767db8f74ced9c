//! Before the first row: what the systems look like, whether it fits, and what is still to be
//! created in them.
//!
//! A system that cannot be reached does not keep the others from flowing: its tables are taken
//! as they were when it was last seen (a file beside the journal), if its position is known.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::look::{gap, glance, of_partitions, out_of_stream};
use super::{copying, decided, is_absent};
use crate::catalog::{Table, TableName};
use crate::change::{ResyncMark, ResyncState};
use crate::check::{self, Survey, needs::Needs};
use crate::config::{Config, Engine};
use crate::error::{Error, Recovery, Result, backoff};
use crate::finding::Finding;
use crate::journal::PositionRecord;
use crate::normalize::follow::{Decided, Seen, judge};
use crate::normalize::resolve::{Catalog, Model, resolve_after};
use crate::position::{Lsn, Position};
use crate::schema::SystemId;
use crate::setup::{self, Operator};
use crate::status::{State, Status, now};

/// How long an unreachable system is waited for before its last known tables are used.
const PATIENCE: Duration = Duration::from_secs(1);

/// For all that a system is asked before it starts.
const ANSWER: Duration = Duration::from_secs(60);

/// What the stages work from.
#[derive(Clone)]
pub struct Plan {
    pub model: Arc<Model>,
    /// What the model was made of, by system.
    pub catalogs: Vec<Catalog>,
    pub seen: Vec<Seen>,
    pub decided: Decided,
}

/// The plan, and where each system's log goes on. `None`: told to stop meanwhile.
pub async fn prepare(
    config: &Config,
    operator: &mut Operator,
    status: &Status,
    stop: &CancellationToken,
) -> Result<Option<(Plan, Vec<PositionRecord>)>> {
    left_behind(config, operator);
    let before = decided::load(config);
    let (mut catalogs, mut seen, mut surveys) = (Vec::new(), Vec::new(), Vec::new());
    // All at once: who is away keeps no other waiting.
    let asked = config.system_ids().map(|system| {
        let known = operator.recovered.positions.contains_key(&config.system(system).name);
        catalog(config, system, known, &before, status, stop)
    });
    for answer in try_join_all(asked).await? {
        match answer {
            Some((catalog, at, survey)) => {
                catalogs.push(catalog);
                seen.push(at);
                surveys.push(survey);
            }
            None => return Ok(None),
        }
    }
    let shared = check::shared_markers(config).await;
    if !shared.is_empty() {
        return Err(in_the_way(&shared));
    }
    let mut model = resolve_after(config, &catalogs, &before).map_err(|findings| in_the_way(&findings))?;
    let together = check::together(config, &surveys, &catalogs);
    let errors: Vec<Finding> = together.iter().filter(|finding| finding.is_error()).cloned().collect();
    if !errors.is_empty() {
        return Err(in_the_way(&errors));
    }
    for warning in model.warnings.iter().chain(&together) {
        warn!("{}", warning.logged());
    }
    let known = operator.recovered.positions.clone();
    let mut positions = Vec::new();
    for system in config.system_ids() {
        let gap = gap(config, system, &seen[system.index()], &before);
        let survey = surveys[system.index()].as_ref();
        match position(config, system, survey, gap, operator, status, stop).await? {
            Some(position) => positions.push(position),
            None => return Ok(None),
        }
    }
    for left in setup::decide_loads(config, operator).await? {
        warn!("{}", left.logged());
    }
    let mut decided = judge(&mut model, config, &catalogs, &seen, &[], &before);
    let new = config.systems.iter().filter(|system| !known.contains_key(&system.name));
    new.for_each(|system| decided.forget_published(&system.name));
    // A table that was out of the file comes back as a new member, however soon.
    for system in config.system_ids() {
        decided.forget_published_beside(&config.system(system).name, &Needs::of(config, system).names());
    }
    for (entity, fields) in decided.note_listed(config) {
        let list: Vec<String> = fields.iter().map(|field| format!("{field:?}")).collect();
        let what = format!(
            "{} not in the file before: what rows hold there is not compared, and what was written there meanwhile \
             reached nobody",
            match list.len() {
                1 => format!("field {} was", list[0]),
                _ => format!("fields {} were", list.join(", ")),
            },
        );
        let mend = format!("anechoic verify {entity} --repair\n# or: anechoic load {entity}");
        warn!("{}", Finding::warning("", what).entity(&entity).mend(mend).logged());
        copying::forget(config, status, &entity);
    }
    decided::save(config, &decided)?;
    Ok(Some((Plan { model: Arc::new(model), catalogs, seen, decided }, positions)))
}

/// The system's tables, asked of it with everything else, and when; as last seen, and no more, where
/// it does not answer and may be absent.
async fn catalog(
    config: &Config,
    system: SystemId,
    known: bool,
    decided: &Decided,
    status: &Status,
    stop: &CancellationToken,
) -> Result<Option<(Catalog, Seen, Option<Survey>)>> {
    let name = &config.system(system).name;
    let state = &status.systems[system.index()].capture.state;
    *state.lock().expect("never held across a panic") = State::Connecting;
    let (started, mut attempt) = (std::time::Instant::now(), 0);
    loop {
        let surveyed =
            answered(async { Ok((glance(config, system).await, check::survey(config, system).await?)) }).await;
        let error = match surveyed {
            Ok((sight, survey)) => {
                let mut errors = survey.errors();
                // What keeps it from being looked at is told by the survey.
                let sight = sight.unwrap_or_default();
                let replaced = |table: &TableName| {
                    let name = &config.system(system).name;
                    decided.oid(name, table).is_some_and(|oid| sight.seen.oids.get(table) != Some(&oid))
                };
                if known && sight.unpublished.iter().any(replaced) {
                    errors.extend(out_of_stream(config, system, &sight, decided));
                }
                if !errors.is_empty() {
                    return Err(in_the_way(&errors));
                }
                of_partitions(config, system, &sight, decided).iter().for_each(|warning| warn!("{}", warning.logged()));
                let server = &status.systems[system.index()].server;
                *server.lock().expect("never held across a panic") = (survey.kind.into(), survey.version.clone());
                let names = Needs::of(config, system).names();
                let catalog: Catalog = names.into_iter().zip(survey.tables.iter().cloned()).collect();
                remember(config, system, &catalog);
                return Ok(Some((catalog, sight.seen, Some(survey))));
            }
            Err(error) if error.recovery == Recovery::Stop => {
                return Err(in_the_way(&[check::reach::finding(config.system(system), &error).await]));
            }
            Err(error) => error,
        };
        *state.lock().expect("never held across a panic") = State::of(&error);
        if known
            && started.elapsed() >= PATIENCE
            && let Some(catalog) = last_seen(config, system)
        {
            warn!(system = %name, error = %error.full(), "cannot be reached; its tables are taken as last seen");
            return Ok(Some((catalog, Seen::default(), None)));
        }
        let pause = backoff(attempt, rand::random());
        warn!(system = %name, error = %error.full(), retry_in_ms = pause.as_millis() as u64, "cannot be reached");
        attempt += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

fn memory(config: &Config, system: SystemId) -> PathBuf {
    config.agent.data_dir.join(format!("tables-{}.json", config.system(system).name))
}

fn remember(config: &Config, system: SystemId, catalog: &Catalog) {
    let tables: Vec<&Table> = catalog.values().flatten().collect();
    let path = memory(config, system);
    let text = serde_json::to_vec(&tables).expect("tables are plain data");
    let fresh = path.with_extension("json.new");
    if let Err(error) = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)) {
        warn!(path = %path.display(), %error, "cannot write down the tables of a system");
    }
}

pub fn last_seen(config: &Config, system: SystemId) -> Option<Catalog> {
    let text = std::fs::read(memory(config, system)).ok()?;
    let tables: Vec<Table> = serde_json::from_slice(&text).ok()?;
    let mut seen: BTreeMap<_, _> = tables.into_iter().map(|table| (table.name.clone(), table)).collect();
    Some(Needs::of(config, system).names().into_iter().map(|name| (name.clone(), seen.remove(&name))).collect())
}

/// Where the system's log goes on; created where the journal knows of none. Nothing is applied
/// anywhere yet, so the marker cannot move meanwhile.
async fn position(
    config: &Config,
    system: SystemId,
    mut survey: Option<&Survey>,
    mut gap: Option<Error>,
    operator: &mut Operator,
    status: &Status,
    stop: &CancellationToken,
) -> Result<Option<PositionRecord>> {
    let name = config.system(system).name.clone();
    let mut attempt = 0;
    if let Some(unplaced) = unplaced(config, system, operator) {
        return Ok(Some(operator.recovered.positions.get(&name).cloned().unwrap_or(unplaced)));
    }
    // It did not answer just now, and is not asked again before the others go on.
    if let Some(position) = operator.recovered.positions.get(&name).filter(|_| survey.is_none()) {
        return Ok(Some(position.clone()));
    }
    loop {
        let known = operator.known(&name);
        // What is created may have to wait for long transactions; what is there is just looked at.
        let ensured = match known.positioned {
            // Before anything that is missing is put back in silence.
            true if gap.is_some() => Err(gap.take().expect("just looked at")),
            true => answered(setup::ensure(config, system, known, survey.take())).await,
            false => setup::ensure(config, system, known, survey.take()).await,
        };
        let error = match ensured {
            Ok(ensured) if !ensured.findings.is_empty() => return Err(in_the_way(&ensured.findings)),
            Ok(ensured) => {
                for done in &ensured.done {
                    info!(system = %name, done, "set up");
                }
                if let Some(new) = ensured.position {
                    operator.note(&name, &new)?;
                    return Ok(Some(PositionRecord {
                        position: new.position,
                        base: new.base,
                        identity: new.identity.into(),
                    }));
                }
                match operator.recovered.positions.get(&name) {
                    Some(position) => return Ok(Some(position.clone())),
                    None => return Err(Error::stop(format!("{name} has no bound tables"), "remove it, or bind it")),
                }
            }
            // The others flow, and the command that mends it needs a running agent.
            Err(error) if error.is_lost() => {
                error!(system = %name, error = %error.full(), "stopped: a person must act");
                let mark = needed(&name, &error);
                operator.resync(&mark)?;
                operator.recovered.resyncs.push(mark);
                return Ok(unplaced(config, system, operator));
            }
            Err(error) if error.recovery == Recovery::Stop => return Err(error.context(&name)),
            Err(error) => error,
        };
        if let Some(position) = operator.recovered.positions.get(&name) {
            warn!(system = %name, error = %error.full(), "cannot be asked whether it is set up; it was");
            return Ok(Some(position.clone()));
        }
        *status.systems[system.index()].capture.state.lock().expect("never held across a panic") = State::of(&error);
        let pause = backoff(attempt, rand::random());
        warn!(system = %name, error = %error.full(), retry_in_ms = pause.as_millis() as u64, "cannot be set up");
        attempt += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Its log cannot be read on from its position: a person has to say that it is begun anew.
pub fn needed(system: &Arc<str>, error: &Error) -> ResyncMark {
    ResyncMark {
        system: system.clone(),
        state: ResyncState::Needed,
        begun: now(),
        marker: 0,
        head: 0,
        causal: false,
        restored: false,
        delete_extra: false,
        reason: error.full(),
        done: Vec::new(),
    }
}

/// Of a system that has no position until somebody asks for a resync: where nothing is read from.
pub fn unplaced(config: &Config, system: SystemId, operator: &Operator) -> Option<PositionRecord> {
    let system = config.system(system);
    operator.recovered.resyncs.iter().find(|mark| mark.system == system.name && is_absent(mark))?;
    let position = match system.engine {
        Engine::Postgres => Position::Postgres { lsn: Lsn(0) },
        Engine::Mysql => {
            Position::Mysql { gtids: Default::default(), binlog: Default::default(), server_uuid: String::new() }
        }
    };
    Some(PositionRecord { position, base: operator.journal.head(), identity: "".into() })
}

/// A server that stalls after it has let us in is one that cannot be reached.
async fn answered<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::retry(format!("did not answer within {ANSWER:?}"));
    tokio::time::timeout(ANSWER, question).await.map_err(late)?
}

/// Systems that are out of the file: what keeps their logs there is nobody's any more.
fn left_behind(config: &Config, operator: &Operator) {
    let known = |name: &str| config.systems.iter().any(|system| *system.name == *name);
    for (system, record) in operator.recovered.positions.iter().filter(|(name, _)| !known(name)) {
        let way_out = match record.position {
            Position::Postgres { .. } => format!(
                "put it back in the file, or in its database: SELECT pg_drop_replication_slot(slot_name) FROM \
                 pg_replication_slots WHERE slot_name = 'anechoic_{}_' || current_database()",
                config.agent.id
            ),
            _ => "put it back in the file before its binlogs are purged".into(),
        };
        warn!(%system, %way_out, "no longer in the file: it is not followed");
    }
}

fn in_the_way(findings: &[Finding]) -> Error {
    let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Error::stop(list.join("\n"), "the whole list: anechoic check")
}
