//! What the agent needs in the systems: created, found again, taken down.
//!
//! A [`Step`] is known before anything is written, so `check` shows what `setup` will do, and
//! what its role's privileges leave to an administrator. `setup` runs the allowed steps and
//! reports the others, all at once. Only when nothing is missing a system's position is
//! created: from then on its log is kept for us and nothing may be lost.

mod journal;
pub mod mysql;
mod place;
pub mod postgres;
mod rows;

pub use self::journal::{Operator, absent, exists, operator, options};
pub use self::place::{Placed, place};
pub use self::rows::{decide_loads, unasked};
use crate::capture::postgres::slot_name;
use crate::check::needs::Needs;
use crate::check::{self, Survey};
use crate::config::{Config, Engine};
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::position::{Position, Seq};
use crate::schema::SystemId;

/// Something that is missing in a system, and how it comes to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `the publication "anechoic_hq" does not exist`.
    pub missing: String,
    /// As the agent's role runs it.
    pub sql: Vec<String>,
    /// As an administrator or the tables' owner runs it.
    pub admin: Vec<String>,
    /// The role's privileges suffice.
    pub allowed: bool,
}

impl Step {
    /// What `check` says of it.
    pub fn finding(&self, system: &str) -> Finding {
        if self.allowed { Finding::warning(system, &self.missing).mend("anechoic setup") } else { self.refused(system) }
    }

    /// What `setup` leaves to others.
    pub fn refused(&self, system: &str) -> Finding {
        let sql: Vec<String> = self.admin.iter().map(|line| format!("{line};")).collect();
        Finding::error(system, format!("{}, and the agent's role may not mend that", self.missing))
            .by_administrator(sql.join("\n"))
    }
}

/// What the journal knows of a system when it is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub journal: u128,
    pub head: Seq,
    /// There is a position record of this system.
    pub positioned: bool,
}

/// What became of one system.
#[derive(Debug, Default)]
pub struct Ensured {
    /// What was created now; empty where everything was there.
    pub done: Vec<String>,
    /// What a person must do first; then no position was created.
    pub findings: Vec<Finding>,
    /// For the journal, where it had none.
    pub position: Option<NewPosition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPosition {
    pub position: Position,
    pub identity: String,
    pub base: Seq,
}

/// Brings one system into the state that the configuration asks for; `survey` is what has been seen of
/// it just now, if it has. May be repeated.
pub async fn ensure(config: &Config, system: SystemId, known: Known, survey: Option<&Survey>) -> Result<Ensured> {
    let needs = Needs::of(config, system);
    if needs.tables.is_empty() {
        return Ok(Ensured::default());
    }
    let asked = match survey {
        Some(_) => None,
        None => Some(check::survey(config, system).await?),
    };
    let survey = survey.or(asked.as_ref()).expect("one of the two");
    match config.system(system).engine {
        Engine::Postgres => postgres::ensure(config, system, &needs, known, survey).await,
        Engine::Mysql => mysql::ensure(config, system, &needs, known, survey).await,
    }
}

/// What [`remove`] took away, and what it left to a person.
#[derive(Debug, Default)]
pub struct Removed {
    pub done: Vec<String>,
    pub left: Vec<Finding>,
}

/// Removes what [`ensure`] created; says what it removed. May be repeated.
pub async fn remove(config: &Config, system: SystemId) -> Result<Removed> {
    match config.system(system).engine {
        Engine::Postgres => postgres::remove(config, system).await,
        Engine::Mysql => mysql::remove(config, system).await,
    }
}

/// What keeps a system from being set up, of a survey: its errors, without the steps.
fn in_the_way(survey: &Survey) -> Vec<Finding> {
    survey.errors()
}

/// What an agent of this id has left in the systems, where its journal is gone: setup refuses to
/// begin over it.
pub fn orphans(config: &Config, surveys: &[Option<Survey>]) -> Vec<Finding> {
    if !absent(config) {
        return vec![];
    }
    let of_system = |(system, survey): (SystemId, &Option<Survey>)| {
        let (survey, name) = (survey.as_ref()?, &config.system(system).name);
        let database = &config.system(system).connect.database;
        // One that cannot be ours is told of by the survey.
        let slot = survey.postgres.as_ref().and_then(|facts| facts.slot.as_ref());
        let slot = slot.filter(|slot| slot.database == *database && slot.plugin == "pgoutput");
        let error = match (slot, survey.own_marker) {
            (Some(slot), _) => {
                let slot_name = slot_name(&config.agent.id, database);
                orphaned_slot(config, system, &slot_name, slot.active_pid)
            }
            (None, true) => foreign_marker(config, system, "not in data_dir"),
            (None, false) => return None,
        };
        let finding = Finding::of(name, &error);
        let anew = "# or, where no change is missing anywhere, begin anew: anechoic teardown, then anechoic setup";
        let mend = format!("# {}\n{anew}", finding.mend);
        Some(finding.mend(mend))
    };
    config.system_ids().zip(surveys).filter_map(of_system).collect()
}

/// The marker row says which journal wrote to a system last.
fn foreign_marker(config: &Config, system: SystemId, journal: &str) -> Error {
    let name = &config.system(system).name;
    Error::lost(
        format!("the marker of agent {:?} in {name} belongs to another journal ({journal})", config.agent.id),
        "another installation has this id, or data_dir was replaced: start the agent, then",
    )
    .of_system(name)
}

/// A position is created once. Where its slot is there and the journal knows nothing of it,
/// the journal that did is gone, or is another agent's.
fn orphaned_slot(config: &Config, system: SystemId, slot: &str, reader: Option<i32>) -> Error {
    let name = &config.system(system).name;
    match reader {
        Some(pid) => at_work(config, system, &format!("process {pid} reads slot {slot:?}")),
        None => Error::lost(
            format!("slot {slot:?} exists in {name}, but the journal in data_dir has no position for it"),
            "data_dir was replaced, or setup was interrupted: start the agent, then",
        )
        .of_system(name),
    }
}

fn at_work(config: &Config, system: SystemId, who: &str) -> Error {
    let name = &config.system(system).name;
    Error::stop(
        format!("another agent with id {:?} is at work in {name}: {who}", config.agent.id),
        "stop the other agent, or give this one an id of its own",
    )
}
