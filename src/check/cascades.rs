//! Rows that a foreign key changes by itself, on servers that do not log that.
//!
//! MariaDB, and MySQL before 9.6, let InnoDB delete and change the rows that refer to a row, and
//! only the row itself stands in the log. The other systems stay in step where they do the same
//! with the same rows: then the parent's change, which is carried, has there what it has here.

use std::collections::BTreeSet;

use super::Survey;
use crate::apply::sql::{backquoted, backquoted_table};
use crate::catalog::ForeignKey;
use crate::config::{Config, Engine};
use crate::finding::Finding;
use crate::normalize::resolve::Bound;

pub(super) fn findings(config: &Config, surveys: &[Option<Survey>], bound: &[Bound<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for child in bound {
        let logged = surveys[child.binding.system.index()].as_ref().is_none_or(|survey| survey.logs_cascades);
        if logged || !child.binding.role.captures() || config.system(child.binding.system).engine == Engine::Postgres {
            continue;
        }
        for key in child.table.foreign_keys.iter().filter(|key| key.acts) {
            findings.extend(unlogged(config, bound, child, key));
        }
    }
    findings
}

fn unlogged(config: &Config, bound: &[Bound<'_>], child: &Bound<'_>, key: &ForeignKey) -> Option<Finding> {
    let system = child.binding.system;
    let parent = bound.iter().find(|other| other.binding.system == system && other.binding.table == key.references);
    let why = match parent {
        None => format!("{} is not bound, so no other system hears of it", key.references),
        Some(parent) => {
            let others = bound.iter().filter(|other| {
                other.entity.name == child.entity.name
                    && other.binding.system != system
                    && other.binding.role.receives()
            });
            let lacking: Vec<&str> = others
                .filter(|other| !does_the_same(bound, parent, child, other, key))
                .map(|other| &*config.system(other.binding.system).name)
                .collect();
            if lacking.is_empty() {
                return None;
            }
            format!("{} would not do the same", lacking.join(" and "))
        }
    };
    let mut rules = Vec::new();
    if key.on_delete.acts() {
        rules.push(format!("ON DELETE {}", key.on_delete.sql()));
    }
    if key.on_update.acts() {
        rules.push(format!("ON UPDATE {}", key.on_update.sql()));
    }
    let rules = rules.join(" ");
    let what = format!(
        "foreign key {:?} changes rows by itself ({rules}), which this server does not log, and {why}",
        key.name
    );
    let list = |columns: &[String]| columns.iter().map(|column| backquoted(column)).collect::<Vec<_>>().join(", ");
    let (table, name) = (backquoted_table(&child.table.name), backquoted(&key.name));
    let mend = format!(
        "ALTER TABLE {table} DROP FOREIGN KEY {name};\n\
         ALTER TABLE {table} ADD CONSTRAINT {name} FOREIGN KEY ({}) REFERENCES {} ({});\n\
         -- or bind what it refers to, and declare {rules} in every other system, too",
        list(&key.columns),
        backquoted_table(&key.references),
        list(&key.referenced),
    );
    let finding = Finding::error(&config.system(system).name, what);
    Some(finding.entity(&child.entity.name).table(&child.binding.table).by_owner(mend))
}

/// `other` has the same reference, of the same fields to the same entity, with the same actions.
fn does_the_same(
    bound: &[Bound<'_>],
    parent: &Bound<'_>,
    child: &Bound<'_>,
    other: &Bound<'_>,
    key: &ForeignKey,
) -> bool {
    let there = bound.iter().find(|b| b.binding.system == other.binding.system && b.entity.name == parent.entity.name);
    let Some(there) = there else { return false };
    let fields = |bound: &Bound<'_>, columns: &[String]| -> Option<BTreeSet<String>> {
        columns.iter().map(|column| bound.field(column).map(str::to_owned)).collect()
    };
    let wanted = fields(child, &key.columns);
    wanted.is_some()
        && other.table.foreign_keys.iter().any(|candidate| {
            candidate.references == there.table.name
                && (candidate.on_delete, candidate.on_update) == (key.on_delete, key.on_update)
                && fields(other, &candidate.columns) == wanted
        })
}
