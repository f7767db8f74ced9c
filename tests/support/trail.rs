//! The audit trail, as `anechoic audit` and the audit files tell it, and what it comes to.

use std::collections::BTreeMap;

use anechoic::audit::operation::Operation;
use anechoic::control::Image;
use bigdecimal::BigDecimal;
use serde_json::Value;

/// The operations; lines of files that begin or end one are left out.
pub fn operations(lines: &str) -> Vec<Operation> {
    let parsed = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    parsed.filter(|line| line.get("decision").is_some()).map(|line| serde_json::from_value(line).unwrap()).collect()
}

/// Rows by key.
pub type Table = BTreeMap<String, Image>;

/// What operations come to, entity by entity: what a system has that wrote none of it.
#[derive(Debug, Clone, Default)]
pub struct Replayed(BTreeMap<String, Table>);

impl Replayed {
    pub fn of(operations: &[Operation]) -> Replayed {
        let mut replayed = Replayed::default();
        operations.iter().for_each(|operation| replayed.apply(operation));
        replayed
    }

    pub fn table(&self, entity: &str) -> Table {
        self.0.get(entity).cloned().unwrap_or_default()
    }

    pub fn apply(&mut self, operation: &Operation) {
        let instead = operation.instead.as_ref();
        let lost = instead.is_none() && matches!(operation.decision.as_str(), "rejected" | "drift");
        // What is tried again is what one system alone lacks.
        if lost || operation.how == "retried" {
            return;
        }
        let table = self.0.entry(operation.entity.clone()).or_default();
        match instead.map_or(&operation.after, |instead| &instead.after) {
            Some(after) => lay(table.entry(operation.key.clone()).or_default(), after),
            None => drop(table.remove(&operation.key)),
        }
    }
}

/// What is carried; differences are added, to nothing where nothing is.
fn lay(row: &mut Image, after: &Image) {
    for (field, value) in after {
        let number = |text: &str| text.parse::<BigDecimal>().unwrap();
        let value = match value.as_deref().and_then(|value| value.strip_prefix("add ")) {
            Some(difference) => {
                let before = row.get(field).cloned().flatten().map_or_else(BigDecimal::default, |text| number(&text));
                Some((before + number(difference)).to_plain_string())
            }
            None => value.clone(),
        };
        row.insert(field.clone(), value);
    }
}
