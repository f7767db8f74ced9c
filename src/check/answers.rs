//! Triggers of two systems that may answer each other.
//!
//! What a trigger writes while the agent applies goes on to the other systems like anybody's write. Where
//! that fires a trigger there that writes what fires the first one again, on other rows each time,
//! it never ends, and the flow stops when that is seen. No catalog says what a trigger writes, so both are named.

use crate::config::Config;
use crate::finding::Finding;
use crate::normalize::resolve::Bound;
use crate::schema::SystemId;

pub(super) fn findings(config: &Config, bound: &[Bound<'_>]) -> Vec<Finding> {
    let triggered = |system: &SystemId| {
        let mut tables: Vec<String> = bound
            .iter()
            .filter(|b| b.binding.system == *system && b.table.triggers)
            .filter(|b| b.binding.role.captures() && b.binding.role.receives())
            .map(|b| b.table.name.to_string())
            .collect();
        tables.sort();
        tables.dedup();
        (!tables.is_empty()).then_some((*system, tables))
    };
    let systems: Vec<_> = config.system_ids().filter_map(|system| triggered(&system)).collect();
    let names = |of: SystemId| {
        let others = systems.iter().filter(|(system, _)| *system != of);
        others.map(|(system, _)| config.system(*system).name.to_string()).collect::<Vec<_>>().join(", ")
    };
    let finding = |(system, tables): &(SystemId, Vec<String>)| {
        let what = format!(
            "triggers on {} and in {} run for what the agent applies, too: if one writes what sets off the other, they \
             answer each other until the flow stops",
            tables.join(", "),
            names(*system)
        );
        Finding::note(&config.system(*system).name, what).mend(
            "-- a trigger that is to stand aside for the agent:\n\
             -- PostgreSQL: IF current_setting('anechoic.applying', true) = 'on' THEN RETURN NEW; END IF;\n\
             -- MySQL, MariaDB: IF @anechoic_applying IS NULL THEN … END IF;",
        )
    };
    if systems.len() < 2 { Vec::new() } else { systems.iter().map(finding).collect() }
}
