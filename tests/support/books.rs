//! The agent's counters, as its port tells them.

use std::collections::BTreeMap;

use super::agent::Agent;

/// One reading of `/metrics`.
#[derive(Debug, Clone)]
pub struct Books(BTreeMap<String, f64>);

impl Books {
    pub async fn read(agent: &Agent) -> Books {
        let text = agent.metrics().await;
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Books(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// `capture_changes_total` of a system, `entity_conflicts_total` of an entity.
    #[track_caller]
    pub fn get(&self, name: &str, of: &str) -> u64 {
        let label = if name.starts_with("entity_") { "entity" } else { "system" };
        let name = format!("anechoic_{name}{{{label}=\"{of}\"}}");
        *self.0.get(&name).unwrap_or_else(|| panic!("no {name} in {:#?}", self.0)) as u64
    }

    pub fn known(&self, name: &str, system: &str) -> bool {
        self.0.contains_key(&format!("anechoic_{name}{{system=\"{system}\"}}"))
    }

    /// The sum over all samples of a metric that have this label.
    pub fn sum(&self, name: &str, system: &str) -> u64 {
        let (name, label) = (format!("anechoic_{name}{{"), format!("system=\"{system}\""));
        let samples = self.0.iter().filter(|(sample, _)| sample.starts_with(&name) && sample.contains(&label));
        samples.map(|(_, value)| value).sum::<f64>() as u64
    }

    /// One sample, named in full: `capture_entity_changes_total{system="crm",entity="order",operation="delete"}`.
    #[track_caller]
    pub fn sample(&self, name: &str) -> f64 {
        *self.0.get(&format!("anechoic_{name}")).unwrap_or_else(|| panic!("no anechoic_{name} in {:#?}", self.0))
    }

    /// By how much a counter grew since `earlier`.
    #[track_caller]
    pub fn since(&self, earlier: &Books, name: &str, of: &str) -> u64 {
        self.get(name, of) - earlier.get(name, of)
    }

    /// What was captured has one fate each; so has what was addressed.
    #[track_caller]
    pub fn assert_balanced(&self, systems: &[&str]) {
        for system in systems {
            let parts = ["journaled", "filtered", "rejected", "quarantined"]
                .map(|part| (part, self.get(&format!("capture_{part}_changes_total"), system)));
            let captured = self.get("capture_changes_total", system);
            assert_eq!(captured, parts.iter().map(|(_, n)| n).sum::<u64>(), "{system} captured {parts:?}");

            let done = ["apply_changes_total", "apply_coalesced_changes_total", "apply_held_changes_total"]
                .map(|part| (part, self.get(part, system)));
            let (addressed, pending) =
                (self.get("apply_addressed_changes_total", system), self.get("apply_pending_changes", system));
            assert_eq!(addressed, pending + done.iter().map(|(_, n)| n).sum::<u64>(), "{system} {pending} {done:?}");
            // by entity and operation the same
            let journaled = self.get("capture_journaled_changes_total", system);
            assert_eq!(self.sum("capture_entity_changes_total", system), journaled, "{system} by operation");
            let written = self.get("apply_changes_total", system);
            assert_eq!(self.sum("apply_entity_changes_total", system), written, "{system} by operation");
            assert_eq!(self.sum("apply_batch_changes_sum", system), written, "{system} by batch");
            // nothing was counted twice
            assert!(addressed >= done.iter().map(|(_, n)| n).sum(), "{system} addressed {addressed} {done:?}");
        }
    }
}
