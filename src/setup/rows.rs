//! Whether there is anything to load, noted while the logs begin: what is written from then on is
//! in them, and a first start must not copy it a second time.

use super::Operator;
use crate::change::{LoadMark, LoadState, Record};
use crate::config::{Config, EntityConfig};
use crate::error::Result;
use crate::scan::Scanner;
use crate::schema::{Schema, SystemId};
use crate::status::now;

/// Notes every entity whose tables are all empty as one that needs no load. One that cannot be
/// looked at now is decided on when the agent starts.
pub async fn note_empty(config: &Config, operator: &mut Operator) -> Result<()> {
    let undecided = |entity: &&EntityConfig| {
        let known = operator.recovered.loads.iter().any(|mark| *mark.entity == *entity.name);
        !entity.key.is_empty() && !known
    };
    let undecided: Vec<&EntityConfig> = config.entities.iter().filter(undecided).collect();
    let mut filled = vec![false; undecided.len()];
    for system in config.system_ids() {
        if let Err(error) = look(config, system, &undecided, &mut filled).await {
            tracing::debug!(error = %error.full(), "whether tables are empty is asked at the first start");
            return Ok(());
        }
    }
    for (entity, _) in undecided.iter().zip(&filled).filter(|(_, filled)| !**filled) {
        let Some(first) = entity.bindings.first() else { continue };
        let name = &config.system(first.system).name;
        operator.writer.append(&Record::Load(LoadMark {
            entity: entity.name.as_str().into(),
            system: name.clone(),
            authority: name.clone(),
            only_missing: false,
            fresh: true,
            state: LoadState::Skipped,
            begun: now(),
            schema: Schema::new(Vec::new()),
            key: bytes::Bytes::new(),
            read: 0,
            copied: 0,
        }))?;
    }
    operator.writer.sync().map(drop)
}

async fn look(config: &Config, system: SystemId, entities: &[&EntityConfig], filled: &mut [bool]) -> Result<()> {
    let mut scanner = Scanner::connect(config, system).await?;
    for (entity, filled) in entities.iter().zip(filled) {
        for binding in entity.bindings.iter().filter(|binding| binding.system == system) {
            *filled |= !scanner.is_empty(&binding.table).await?;
        }
    }
    Ok(())
}
