//! `/metrics` in the Prometheus text format, straight from the counters.
//!
//! Rendered by hand: the counters belong to the stages, and a registry would be a second home
//! for each of them.

use std::fmt::Write;
use std::time::Duration;

use super::health::readiness;
use super::status::{Report, apply_lag, capture_lag, seconds, worst};
use crate::load::{Classes, Verdict};
use crate::status::{EntityStatus, State, Status, SystemStatus};
use crate::telemetry::metric;

pub fn render(status: &Status, max_lag: Duration, now: i64) -> String {
    let mut page = Page::default();
    agent(&mut page, status, max_lag, now);
    capture(&mut page, &status.systems, now);
    apply(&mut page, status, now);
    entities(&mut page, &status.entities);
    verified(&mut page, &status.verdicts.lock().expect("never held across a panic"));
    page.text
}

fn agent(page: &mut Page, status: &Status, max_lag: Duration, now: i64) {
    let ready = readiness(&Report::of(status, now), max_lag).ready;
    page.gauge(metric::INFO, "Version and agent id");
    page.sample(metric::INFO, &[("agent", &status.agent), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.one(metric::START_TIME, "Start of the process, seconds since 1970", seconds(status.started));
    page.one(metric::READY, "1 where /ready answers 200", f64::from(u8::from(ready)));
    page.one(metric::JOURNAL_HEAD, "Number of the last durable journal entry", float(status.journal_head.get()));
    page.one(metric::JOURNAL_BYTES, "Size of the journal on disk", float(status.journal_bytes.get()));
    page.counter(metric::JOURNAL_SYNCS, "Group commits of the journal");
    page.sample(metric::JOURNAL_SYNCS, &[], float(status.journal_syncs.get()));

    page.gauge(metric::SYSTEM_STATE, "1 for the state that a system is in");
    for system in &status.systems {
        let current = worst(system).name();
        for state in ["connecting", "loading", "streaming", "retrying", "stopped"] {
            let value = f64::from(u8::from(state == current));
            page.sample(metric::SYSTEM_STATE, &[("system", &system.name), ("state", state)], value);
        }
    }
}

fn capture(page: &mut Page, systems: &[SystemStatus], now: i64) {
    type Read = fn(&crate::status::CaptureStatus) -> u64;
    let counters: [(&str, &str, Read); 10] = [
        (metric::CAPTURE_TRANSACTIONS, "Local transactions read from a log, echoes not counted", |c| {
            c.transactions.get()
        }),
        (
            metric::CAPTURE_CHANGES,
            "Row changes read from a log: the sum of journaled, filtered, rejected and quarantined",
            |c| c.changes.get(),
        ),
        (metric::CAPTURE_JOURNALED, "Captured changes accepted into the journal", |c| c.journaled.get()),
        (metric::CAPTURE_FILTERED, "Captured changes outside a filter, or drift", |c| c.filtered.get()),
        (metric::CAPTURE_REJECTED, "Captured changes that lost a conflict", |c| c.rejected.get()),
        (metric::CAPTURE_REFUSED, "Captured changes that cannot be carried", |c| c.refused.get()),
        (metric::CAPTURE_DRIFT, "Local changes in tables that are only written to by the agent", |c| c.drift.get()),
        (metric::CAPTURE_ECHOES, "Transactions of the agent that came back in a log and were dropped", |c| {
            c.echoes.get()
        }),
        (
            metric::CAPTURE_SIDE_EFFECTS,
            "Captured changes that triggers and referential actions made while the agent applied",
            |c| c.side_effects.get(),
        ),
        (metric::CAPTURE_REWRITTEN, "Rows that a trigger or an action rewrote while they were applied", |c| {
            c.rewritten.get()
        }),
    ];
    for (name, help, read) in counters {
        page.counter(name, help);
        for system in systems {
            page.sample(name, &[("system", &system.name)], float(read(&system.capture)));
        }
    }
    page.gauge(metric::CAPTURE_LAG, "How far behind its log's end a capture is; absent before the first read");
    for system in systems {
        if let Some(lag) = capture_lag(&system.capture, now) {
            page.sample(metric::CAPTURE_LAG, &[("system", &system.name)], lag);
        }
    }
    page.gauge(metric::CAPTURE_LAST_COMMIT, "Commit time of the last transaction read; absent before the first");
    for system in systems.iter().filter(|s| s.capture.last_commit.get() != 0) {
        let time = seconds(system.capture.last_commit.get());
        page.sample(metric::CAPTURE_LAST_COMMIT, &[("system", &system.name)], time);
    }
    page.gauge(metric::CAPTURE_RETAINED, "Bytes of WAL that a PostgreSQL server keeps for the slot; absent if unknown");
    for system in systems.iter().filter(|s| is_postgres(s) && s.capture.retained_bytes.get() >= 0) {
        let bytes = system.capture.retained_bytes.get() as f64;
        page.sample(metric::CAPTURE_RETAINED, &[("system", &system.name)], bytes);
    }
}

fn is_postgres(system: &SystemStatus) -> bool {
    system.server.lock().expect("nobody panics while holding a name").0 == "postgresql"
}

fn apply(page: &mut Page, status: &Status, now: i64) {
    type Read = fn(&crate::status::ApplyStatus) -> u64;
    let counters: [(&str, &str, Read); 7] = [
        (metric::APPLY_COMMITS, "Target transactions committed", |a| a.commits.get()),
        (metric::APPLY_TRANSACTIONS, "Journal entries applied", |a| a.transactions.get()),
        (metric::APPLY_ADDRESSED, "Changes for a target: the sum of written, coalesced, held and pending", |a| {
            a.addressed.get()
        }),
        (metric::APPLY_CHANGES, "Changes written", |a| a.changes.get()),
        (metric::APPLY_COALESCED, "Changes that a later one of their key in the same batch replaced", |a| {
            a.coalesced.get()
        }),
        (metric::APPLY_HELD, "Changes set aside in quarantine, or folded onto one that is", |a| a.held.get()),
        (metric::APPLY_RETRIES, "Batches tried again", |a| a.retries.get()),
    ];
    let head = status.journal_head.get();
    let targets: Vec<&SystemStatus> = status
        .systems
        .iter()
        .filter(|s| *s.apply.state.lock().expect("never held across a panic") != State::Unused)
        .collect();
    for (name, help, read) in counters {
        page.counter(name, help);
        for system in &targets {
            page.sample(name, &[("system", &system.name)], float(read(&system.apply)));
        }
    }
    page.gauge(metric::APPLY_SEQ, "Number of the last journal entry that a target has");
    for system in &targets {
        page.sample(metric::APPLY_SEQ, &[("system", &system.name)], float(system.apply.seq.get()));
    }
    page.gauge(metric::APPLY_PENDING, "Journal entries that a target does not have yet");
    for system in &targets {
        let pending = head.saturating_sub(system.apply.seq.get());
        page.sample(metric::APPLY_PENDING, &[("system", &system.name)], float(pending));
    }
    page.gauge(metric::APPLY_PENDING_CHANGES, "Changes for a target that it does not have yet");
    for system in &targets {
        page.sample(metric::APPLY_PENDING_CHANGES, &[("system", &system.name)], float(system.apply.pending()));
    }
    page.gauge(metric::APPLY_LAG, "Age of the oldest entry that a target does not have yet");
    for system in &targets {
        page.sample(metric::APPLY_LAG, &[("system", &system.name)], apply_lag(&system.apply, now));
    }
    page.gauge(metric::APPLY_LATENCY, "From the source's commit to the target's, of the last entry");
    for system in &targets {
        page.sample(metric::APPLY_LATENCY, &[("system", &system.name)], seconds(system.apply.latency.get()));
    }
}

fn entities(page: &mut Page, entities: &[EntityStatus]) {
    type Read = fn(&EntityStatus) -> u64;
    let counters: [(&str, &str, Read); 4] = [
        (metric::ENTITY_APPLIED, "Changes written, over all targets", |e| e.applied.get()),
        (metric::ENTITY_CONFLICTS, "Concurrent changes of one record in two systems", |e| e.conflicts.get()),
        (metric::ENTITY_REJECTED, "Changes that lost a conflict", |e| e.rejected.get()),
        (metric::ENTITY_REWRITTEN, "Rows that a system rewrote while they were applied there", |e| e.rewritten.get()),
    ];
    for (name, help, read) in counters {
        page.counter(name, help);
        for entity in entities {
            page.sample(name, &[("entity", &entity.name)], float(read(entity)));
        }
    }
    page.counter(
        metric::ENTITY_DECIDED,
        "Conflicts by what decided them, and how that ended for the change that came second",
    );
    for entity in entities {
        for ((rule, outcome), count) in entity.decisions.get() {
            let labels = [("entity", &*entity.name), ("policy", rule.name()), ("outcome", outcome.name())];
            page.sample(metric::ENTITY_DECIDED, &labels, float(count));
        }
    }
    page.gauge(metric::ENTITY_WAITING, "Conflicts that wait for a person");
    for entity in entities {
        page.sample(metric::ENTITY_WAITING, &[("entity", &entity.name)], entity.waiting.get() as f64);
    }
    page.gauge(metric::ENTITY_QUARANTINED, "Records in quarantine, over all targets");
    for entity in entities {
        page.sample(metric::ENTITY_QUARANTINED, &[("entity", &entity.name)], entity.quarantined.get() as f64);
    }
    page.gauge(metric::ENTITY_LAST_CHANGE, "Commit time of the last change; absent before the first");
    for entity in entities.iter().filter(|e| e.last_change.get() != 0) {
        page.sample(metric::ENTITY_LAST_CHANGE, &[("entity", &entity.name)], seconds(entity.last_change.get()));
    }
}

/// Of what was never compared there is nothing to tell.
fn verified(page: &mut Page, verdicts: &[Verdict]) {
    if verdicts.is_empty() {
        return;
    }
    type Read = fn(&Classes) -> u64;
    let gauges: [(&str, &str, Read); 5] = [
        (
            metric::VERIFY_COMPARED,
            "Rows of the authority that were compared, of the newest comparison",
            Classes::compared,
        ),
        (metric::VERIFY_MISSING, "Of these: not there", |c| c.missing),
        (metric::VERIFY_DIFFERENT, "Of these: different there", |c| c.different),
        (metric::VERIFY_HELD, "Of these: different there, and in quarantine", |c| c.held),
        (metric::VERIFY_EXTRA, "Rows that the authority does not have", |c| c.extra),
    ];
    for (name, help, read) in gauges {
        page.gauge(name, help);
        for verdict in verdicts {
            for (system, classes) in &verdict.systems {
                let labels = [("entity", &*verdict.entity), ("system", system), ("against", &verdict.against)];
                page.sample(name, &labels, float(read(classes)));
            }
        }
    }
    page.gauge(metric::VERIFY_LAST_RUN, "End of the newest comparison, seconds since 1970");
    for verdict in verdicts {
        page.sample(metric::VERIFY_LAST_RUN, &[("entity", &verdict.entity)], seconds(verdict.ended));
    }
    page.gauge(metric::VERIFY_DURATION, "How long the newest comparison took");
    for verdict in verdicts {
        page.sample(metric::VERIFY_DURATION, &[("entity", &verdict.entity)], verdict.seconds);
    }
    page.gauge(metric::VERIFY_OUTCOME, "1 for what the newest comparison came to");
    for verdict in verdicts {
        for outcome in Verdict::OUTCOMES {
            let value = f64::from(u8::from(outcome == verdict.outcome));
            page.sample(metric::VERIFY_OUTCOME, &[("entity", &verdict.entity), ("outcome", outcome)], value);
        }
    }
}

fn float(n: u64) -> f64 {
    n as f64
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn counter(&mut self, name: &str, help: &str) {
        self.head(name, help, "counter");
    }

    fn gauge(&mut self, name: &str, help: &str) {
        self.head(name, help, "gauge");
    }

    /// A gauge without labels.
    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.gauge(name, help);
        self.sample(name, &[], value);
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{}\"", escape(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{NOW, example};
    use super::*;

    #[test]
    fn metrics_have_base_units_and_documented_names() {
        let text = render(&example(), Duration::from_secs(60), NOW);

        insta::assert_snapshot!(text, @r#"
# HELP anechoic_info Version and agent id
# TYPE anechoic_info gauge
anechoic_info{agent="hq",version="0.1.0"} 1
# HELP anechoic_start_time_seconds Start of the process, seconds since 1970
# TYPE anechoic_start_time_seconds gauge
anechoic_start_time_seconds 1769857200
# HELP anechoic_ready 1 where /ready answers 200
# TYPE anechoic_ready gauge
anechoic_ready 1
# HELP anechoic_journal_head_seq Number of the last durable journal entry
# TYPE anechoic_journal_head_seq gauge
anechoic_journal_head_seq 1042
# HELP anechoic_journal_bytes Size of the journal on disk
# TYPE anechoic_journal_bytes gauge
anechoic_journal_bytes 73400320
# HELP anechoic_journal_syncs_total Group commits of the journal
# TYPE anechoic_journal_syncs_total counter
anechoic_journal_syncs_total 0
# HELP anechoic_system_state 1 for the state that a system is in
# TYPE anechoic_system_state gauge
anechoic_system_state{system="crm",state="connecting"} 0
anechoic_system_state{system="crm",state="loading"} 0
anechoic_system_state{system="crm",state="streaming"} 1
anechoic_system_state{system="crm",state="retrying"} 0
anechoic_system_state{system="crm",state="stopped"} 0
anechoic_system_state{system="shop",state="connecting"} 0
anechoic_system_state{system="shop",state="loading"} 0
anechoic_system_state{system="shop",state="streaming"} 1
anechoic_system_state{system="shop",state="retrying"} 0
anechoic_system_state{system="shop",state="stopped"} 0
# HELP anechoic_capture_transactions_total Local transactions read from a log, echoes not counted
# TYPE anechoic_capture_transactions_total counter
anechoic_capture_transactions_total{system="crm"} 881
anechoic_capture_transactions_total{system="shop"} 0
# HELP anechoic_capture_changes_total Row changes read from a log: the sum of journaled, filtered, rejected and quarantined
# TYPE anechoic_capture_changes_total counter
anechoic_capture_changes_total{system="crm"} 9120
anechoic_capture_changes_total{system="shop"} 0
# HELP anechoic_capture_journaled_changes_total Captured changes accepted into the journal
# TYPE anechoic_capture_journaled_changes_total counter
anechoic_capture_journaled_changes_total{system="crm"} 9118
anechoic_capture_journaled_changes_total{system="shop"} 0
# HELP anechoic_capture_filtered_changes_total Captured changes outside a filter, or drift
# TYPE anechoic_capture_filtered_changes_total counter
anechoic_capture_filtered_changes_total{system="crm"} 0
anechoic_capture_filtered_changes_total{system="shop"} 0
# HELP anechoic_capture_rejected_changes_total Captured changes that lost a conflict
# TYPE anechoic_capture_rejected_changes_total counter
anechoic_capture_rejected_changes_total{system="crm"} 2
anechoic_capture_rejected_changes_total{system="shop"} 0
# HELP anechoic_capture_quarantined_changes_total Captured changes that cannot be carried
# TYPE anechoic_capture_quarantined_changes_total counter
anechoic_capture_quarantined_changes_total{system="crm"} 0
anechoic_capture_quarantined_changes_total{system="shop"} 0
# HELP anechoic_capture_drift_changes_total Local changes in tables that are only written to by the agent
# TYPE anechoic_capture_drift_changes_total counter
anechoic_capture_drift_changes_total{system="crm"} 0
anechoic_capture_drift_changes_total{system="shop"} 0
# HELP anechoic_capture_echoes_total Transactions of the agent that came back in a log and were dropped
# TYPE anechoic_capture_echoes_total counter
anechoic_capture_echoes_total{system="crm"} 430
anechoic_capture_echoes_total{system="shop"} 0
# HELP anechoic_capture_side_effect_changes_total Captured changes that triggers and referential actions made while the agent applied
# TYPE anechoic_capture_side_effect_changes_total counter
anechoic_capture_side_effect_changes_total{system="crm"} 0
anechoic_capture_side_effect_changes_total{system="shop"} 0
# HELP anechoic_capture_rewritten_rows_total Rows that a trigger or an action rewrote while they were applied
# TYPE anechoic_capture_rewritten_rows_total counter
anechoic_capture_rewritten_rows_total{system="crm"} 0
anechoic_capture_rewritten_rows_total{system="shop"} 0
# HELP anechoic_capture_lag_seconds How far behind its log's end a capture is; absent before the first read
# TYPE anechoic_capture_lag_seconds gauge
anechoic_capture_lag_seconds{system="crm"} 0.02
anechoic_capture_lag_seconds{system="shop"} 0
# HELP anechoic_capture_last_commit_time_seconds Commit time of the last transaction read; absent before the first
# TYPE anechoic_capture_last_commit_time_seconds gauge
# HELP anechoic_capture_retained_bytes Bytes of WAL that a PostgreSQL server keeps for the slot; absent if unknown
# TYPE anechoic_capture_retained_bytes gauge
anechoic_capture_retained_bytes{system="crm"} 0
# HELP anechoic_apply_commits_total Target transactions committed
# TYPE anechoic_apply_commits_total counter
anechoic_apply_commits_total{system="crm"} 0
anechoic_apply_commits_total{system="shop"} 0
# HELP anechoic_apply_transactions_total Journal entries applied
# TYPE anechoic_apply_transactions_total counter
anechoic_apply_transactions_total{system="crm"} 161
anechoic_apply_transactions_total{system="shop"} 0
# HELP anechoic_apply_addressed_changes_total Changes for a target: the sum of written, coalesced, held and pending
# TYPE anechoic_apply_addressed_changes_total counter
anechoic_apply_addressed_changes_total{system="crm"} 5230
anechoic_apply_addressed_changes_total{system="shop"} 0
# HELP anechoic_apply_changes_total Changes written
# TYPE anechoic_apply_changes_total counter
anechoic_apply_changes_total{system="crm"} 5230
anechoic_apply_changes_total{system="shop"} 0
# HELP anechoic_apply_coalesced_changes_total Changes that a later one of their key in the same batch replaced
# TYPE anechoic_apply_coalesced_changes_total counter
anechoic_apply_coalesced_changes_total{system="crm"} 0
anechoic_apply_coalesced_changes_total{system="shop"} 0
# HELP anechoic_apply_held_changes_total Changes set aside in quarantine, or folded onto one that is
# TYPE anechoic_apply_held_changes_total counter
anechoic_apply_held_changes_total{system="crm"} 0
anechoic_apply_held_changes_total{system="shop"} 0
# HELP anechoic_apply_retries_total Batches tried again
# TYPE anechoic_apply_retries_total counter
anechoic_apply_retries_total{system="crm"} 0
anechoic_apply_retries_total{system="shop"} 0
# HELP anechoic_apply_seq Number of the last journal entry that a target has
# TYPE anechoic_apply_seq gauge
anechoic_apply_seq{system="crm"} 1042
anechoic_apply_seq{system="shop"} 1040
# HELP anechoic_apply_pending_entries Journal entries that a target does not have yet
# TYPE anechoic_apply_pending_entries gauge
anechoic_apply_pending_entries{system="crm"} 0
anechoic_apply_pending_entries{system="shop"} 2
# HELP anechoic_apply_pending_changes Changes for a target that it does not have yet
# TYPE anechoic_apply_pending_changes gauge
anechoic_apply_pending_changes{system="crm"} 0
anechoic_apply_pending_changes{system="shop"} 0
# HELP anechoic_apply_lag_seconds Age of the oldest entry that a target does not have yet
# TYPE anechoic_apply_lag_seconds gauge
anechoic_apply_lag_seconds{system="crm"} 0
anechoic_apply_lag_seconds{system="shop"} 1.5
# HELP anechoic_apply_latency_seconds From the source's commit to the target's, of the last entry
# TYPE anechoic_apply_latency_seconds gauge
anechoic_apply_latency_seconds{system="crm"} 0
anechoic_apply_latency_seconds{system="shop"} 0
# HELP anechoic_entity_applied_changes_total Changes written, over all targets
# TYPE anechoic_entity_applied_changes_total counter
anechoic_entity_applied_changes_total{entity="contact"} 9120
# HELP anechoic_entity_conflicts_total Concurrent changes of one record in two systems
# TYPE anechoic_entity_conflicts_total counter
anechoic_entity_conflicts_total{entity="contact"} 3
# HELP anechoic_entity_rejected_changes_total Changes that lost a conflict
# TYPE anechoic_entity_rejected_changes_total counter
anechoic_entity_rejected_changes_total{entity="contact"} 2
# HELP anechoic_entity_rewritten_rows_total Rows that a system rewrote while they were applied there
# TYPE anechoic_entity_rewritten_rows_total counter
anechoic_entity_rewritten_rows_total{entity="contact"} 0
# HELP anechoic_entity_conflicts_decided_total Conflicts by what decided them, and how that ended for the change that came second
# TYPE anechoic_entity_conflicts_decided_total counter
anechoic_entity_conflicts_decided_total{entity="contact",policy="latest",outcome="lost"} 2
anechoic_entity_conflicts_decided_total{entity="contact",policy="manual",outcome="waiting"} 1
# HELP anechoic_entity_waiting_conflicts Conflicts that wait for a person
# TYPE anechoic_entity_waiting_conflicts gauge
anechoic_entity_waiting_conflicts{entity="contact"} 1
# HELP anechoic_entity_quarantined_keys Records in quarantine, over all targets
# TYPE anechoic_entity_quarantined_keys gauge
anechoic_entity_quarantined_keys{entity="contact"} 0
# HELP anechoic_entity_last_change_time_seconds Commit time of the last change; absent before the first
# TYPE anechoic_entity_last_change_time_seconds gauge
anechoic_entity_last_change_time_seconds{entity="contact"} 1769860800.000001
"#);
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
