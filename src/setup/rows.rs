//! Rows that were there before: what is to be done about them is decided while nothing is
//! applied yet, and noted in the journal. From then on a table may fill from the logs.

use std::sync::Arc;

use tracing::debug;

use super::Operator;
use crate::change::{LoadMark, LoadState, Record};
use crate::config::{Config, EntityConfig, LoadPolicy};
use crate::error::Result;
use crate::finding::Finding;
use crate::load::{Decision, Found, decide};
use crate::scan::Scanner;
use crate::schema::SystemId;
use crate::status::now;

/// Of every entity that is new, or that a system was added to; what is not going to be compared is
/// returned. What cannot be looked at now is decided on when it can.
pub async fn decide_loads(config: &Config, operator: &mut Operator) -> Result<Vec<Finding>> {
    let mut left = Vec::new();
    let undecided: Vec<Undecided<'_>> =
        config.entities.iter().filter_map(|entity| Undecided::of(config, entity, &operator.recovered.loads)).collect();
    if undecided.is_empty() {
        return Ok(left);
    }
    let mut tables = vec![Vec::new(); undecided.len()];
    for system in config.system_ids() {
        if let Err(error) = look(config, system, &undecided, &mut tables).await {
            debug!(error = %error.full(), "rows that were there before are looked at when the system can be asked");
            return Ok(left);
        }
    }
    for (Undecided { entity, bound, settled }, tables) in undecided.into_iter().zip(&tables) {
        let mut mark = LoadMark::settled(&entity.name, bound, now());
        match decide(tables, &settled, entity.load) {
            Decision::Nothing => {}
            Decision::Unasked => left.push(unasked(&entity.name)),
            Decision::Load { authority, fresh, settled } => {
                mark = LoadMark {
                    system: authority.clone(),
                    authority,
                    fresh,
                    settled,
                    state: LoadState::Running,
                    ..mark
                };
            }
        }
        operator.recovered.loads.push(mark.clone());
        operator.writer.append(&Record::Load(mark))?;
    }
    operator.writer.sync().map(|_| left)
}

/// Of rows that are left as they are.
pub fn unasked(entity: &str) -> Finding {
    let what = "rows were there before, in more than one system: they are not compared";
    Finding::warning("", what).entity(entity).mend(format!("anechoic load --dry-run {entity}"))
}

struct Undecided<'c> {
    entity: &'c EntityConfig,
    bound: Vec<Arc<str>>,
    /// Of these; empty where the entity is new.
    settled: Vec<Arc<str>>,
}

impl<'c> Undecided<'c> {
    fn of(config: &Config, entity: &'c EntityConfig, marks: &[LoadMark]) -> Option<Self> {
        let own = || marks.iter().filter(|mark| *mark.entity == *entity.name);
        let binds = |system: &SystemId| entity.bindings.iter().any(|binding| binding.system == *system);
        let bound: Vec<_> = config.system_ids().filter(binds).map(|id| config.system(id).name.clone()).collect();
        let mut settled = LoadMark::newest(own()).map(|mark| mark.settled.clone()).unwrap_or_default();
        settled.retain(|system| bound.contains(system));
        let runs = own().any(|mark| mark.state == LoadState::Running);
        let covered = settled.len() == bound.len();
        let decided = runs || covered || entity.key.is_empty() || entity.load == LoadPolicy::Never;
        (!decided).then_some(Undecided { entity, bound, settled })
    }
}

async fn look(config: &Config, system: SystemId, undecided: &[Undecided<'_>], tables: &mut [Vec<Found>]) -> Result<()> {
    let mut scanner = Scanner::connect(config, system).await?;
    for (Undecided { entity, .. }, tables) in undecided.iter().zip(tables) {
        for binding in entity.bindings.iter().filter(|binding| binding.system == system) {
            let empty = scanner.is_empty(&binding.table).await?;
            tables.push(Found::new(config.system(system).name.clone(), binding.role, empty));
        }
    }
    Ok(())
}
