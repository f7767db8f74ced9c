//! Keys that the servers make themselves. Two systems that both number new rows give one number
//! to two of them, unless their series never meet: steps and offsets as the servers have them.

use super::Survey;
use super::mysql::Facts as MysqlFacts;
use super::needs::Needs;
use super::postgres::Facts as PostgresFacts;
use crate::catalog::{Table, TableName};
use crate::config::Config;
use crate::finding::Finding;
use crate::normalize::resolve::Bound;

/// The series of values that one column gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbering {
    pub table: TableName,
    pub column: String,
    pub step: i64,
    /// Any value of the series.
    pub value: i64,
    /// PostgreSQL: quoted, with its schema. Elsewhere the whole server has one step and offset.
    pub sequence: Option<String>,
}

impl Numbering {
    pub(super) fn of_postgres(needs: &Needs, facts: &PostgresFacts) -> Vec<Self> {
        let tables = needs.tables.iter().zip(&facts.tables);
        let sequences =
            tables.flat_map(|(need, table)| table.iter().flat_map(move |t| t.sequences.iter().map(move |s| (need, s))));
        let numbering = |(need, sequence): (&super::needs::TableNeed, &super::postgres::Sequence)| Numbering {
            table: need.name.clone(),
            column: sequence.column.clone(),
            step: sequence.step,
            value: sequence.value,
            sequence: Some(sequence.name.clone()),
        };
        sequences.map(numbering).collect()
    }

    pub(super) fn of_mysql(needs: &Needs, facts: &MysqlFacts, tables: &[Option<Table>]) -> Vec<Self> {
        let number = |name: &str| facts.number(name).map_or(1, |value| value as i64);
        let (step, offset) = (number("auto_increment_increment"), number("auto_increment_offset"));
        let columns = needs.tables.iter().zip(tables).filter_map(|(need, table)| {
            let column = table.as_ref()?.columns.iter().find(|column| column.auto_increment)?;
            // An offset beyond the step is not heeded.
            let value = if offset > step { 1 } else { offset };
            Some(Numbering { table: need.name.clone(), column: column.name.clone(), step, value, sequence: None })
        });
        columns.collect()
    }

    /// Some number is in both series, if they go on.
    fn meets(&self, other: &Self) -> bool {
        (self.value - other.value) % gcd(self.step.abs(), other.step.abs()).max(1) == 0
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

pub(super) fn findings(config: &Config, surveys: &[Option<Survey>], bound: &[Bound<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entity in config.entities.iter().filter(|entity| entity.key.len() == 1) {
        let key = &entity.key[0];
        let numbered: Vec<(&Bound<'_>, &Numbering)> = bound
            .iter()
            .filter(|bound| bound.entity.name == entity.name && bound.binding.role.captures())
            .filter_map(|bound| {
                let column = bound.column(key)?;
                let survey = surveys[bound.binding.system.index()].as_ref()?;
                let of = |n: &&Numbering| n.table == bound.binding.table && n.column == column.name;
                Some((bound, survey.numbering.iter().find(of)?))
            })
            .collect();
        let systems: Vec<&str> = numbered.iter().map(|(bound, _)| &*config.system(bound.binding.system).name).collect();
        for (at, (bound, own)) in numbered.iter().enumerate() {
            let others = numbered.iter().enumerate().filter(|(other, _)| *other != at);
            if !others.into_iter().any(|(_, (_, other))| own.meets(other)) {
                continue;
            }
            let what = format!(
                "{} each generate keys of this entity, here in steps of {}: new rows of two systems will get one key",
                systems.join(" and "),
                own.step
            );
            let system = config.system(bound.binding.system);
            let finding = Finding::warning(&system.name, what).entity(&entity.name).table(&bound.binding.table);
            findings.push(finding.by_administrator(mend(own, at as i64 + 1, numbered.len() as i64)));
        }
    }
    debug_assert!(
        findings.iter().all(|finding: &Finding| !finding.is_error()),
        "who creates rows is not for us to say"
    );
    findings
}

/// System number `place` of `count` takes every `count`th number.
fn mend(numbering: &Numbering, place: i64, count: i64) -> String {
    let otherwise = "-- or let one system alone create rows, or use uuids";
    match &numbering.sequence {
        Some(sequence) => format!(
            "ALTER SEQUENCE {sequence} INCREMENT BY {count} START WITH {place};\n\
             SELECT setval('{}', (last_value / {count} + 1) * {count} + {place}, false) FROM {sequence};\n{otherwise}",
            sequence.replace('\'', "''")
        ),
        None => format!(
            "SET GLOBAL auto_increment_increment = {count};\nSET GLOBAL auto_increment_offset = {place};\n\
             # my.cnf, [mysqld]: auto_increment_increment = {count}\n\
             # my.cnf, [mysqld]: auto_increment_offset = {place}\n{otherwise}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_meet_unless_their_steps_keep_them_apart() {
        let series = |step, value| Numbering {
            table: TableName { schema: "s".into(), name: "t".into() },
            column: "id".into(),
            step,
            value,
            sequence: None,
        };

        for ((a, b), meet) in [
            ((series(1, 1), series(1, 1)), true),
            ((series(1, 1), series(2, 2)), true),
            ((series(2, 1), series(2, 2)), false),
            ((series(2, 41), series(2, 1)), true),
            ((series(4, 1), series(6, 2)), false),
            ((series(4, 1), series(6, 3)), true),
            ((series(3, 1), series(2, 2)), true),
        ] {
            assert_eq!((a.meets(&b), b.meets(&a)), (meet, meet), "{a:?} {b:?}");
        }
    }
}
