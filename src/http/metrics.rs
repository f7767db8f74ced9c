//! `/metrics` in the Prometheus text format, straight from the counters.
//!
//! Rendered by hand: the counters belong to the stages, and a registry would be a second home
//! for each of them.

mod page;
mod process;

use std::time::Duration;

use self::page::Page;
use self::process::Process;
use super::health::readiness;
use super::status::{Report, apply_lag, capture_lag, seconds, worst};
use crate::change::Op;
use crate::load::{Classes, Verdict};
use crate::status::{AlertStatus, EntityStatus, NotifyStatus, State, Status, SystemStatus};
use crate::telemetry::metric;

pub fn render(status: &Status, max_lag: Duration, now: i64) -> String {
    let mut page = Page::default();
    process::render(&mut page, Process::now());
    counters(&mut page, status, max_lag, now);
    page.text
}

fn counters(page: &mut Page, status: &Status, max_lag: Duration, now: i64) {
    agent(page, status, max_lag, now);
    capture(page, status, now);
    apply(page, status, now);
    entities(page, &status.entities);
    alerts(page, &status.alerts);
    notifies(page, status, now);
    verified(page, &status.verdicts.lock().expect("never held across a panic"));
}

fn agent(page: &mut Page, status: &Status, max_lag: Duration, now: i64) {
    let ready = readiness(&Report::of(status, now), max_lag).ready;
    page.gauge(metric::INFO, "Version and agent id");
    page.sample(metric::INFO, &[("agent", &status.agent), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.one(metric::START_TIME, "Start of the process, seconds since 1970", seconds(status.started));
    page.one(metric::READY, "1 where /ready answers 200", f64::from(u8::from(ready)));
    if let Some(validity) = *status.certificate.lock().expect("never held across a panic") {
        page.one(metric::CERTIFICATE_EXPIRY, "When the port's certificate expires", seconds(validity.until));
    }
    page.one(metric::JOURNAL_HEAD, "Number of the last durable journal entry", float(status.journal_head.get()));
    page.one(metric::JOURNAL_BYTES, "Size of the journal on disk", float(status.journal_bytes.get()));
    page.histogram(metric::JOURNAL_SYNCS, "How long group commits of the journal took");
    page.buckets(metric::JOURNAL_SYNCS, &[], &status.journal_syncs);

    page.gauge(metric::SYSTEM_STATE, "1 for the state that a system is in");
    for system in &status.systems {
        let current = worst(system).name();
        for state in ["connecting", "loading", "streaming", "paused", "retrying", "stopped"] {
            let value = f64::from(u8::from(state == current));
            page.sample(metric::SYSTEM_STATE, &[("system", &system.name), ("state", state)], value);
        }
    }
}

fn capture(page: &mut Page, status: &Status, now: i64) {
    let systems = &status.systems;
    type Read = fn(&crate::status::CaptureStatus) -> u64;
    let counters: [(&str, &str, Read); 12] = [
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
        (metric::CAPTURE_BYTES, "Captured transactions in canonical form", |c| c.bytes.get()),
        (metric::CAPTURE_RETRIES, "Captures that ended and were made anew", |c| c.retries.get()),
    ];
    for (name, help, read) in counters {
        page.counter(name, help);
        for system in systems {
            page.sample(name, &[("system", &system.name)], float(read(&system.capture)));
        }
    }
    page.counter(metric::CAPTURE_ENTITY, "Captured changes accepted into the journal, by entity and operation");
    for system in systems {
        for (entity, counters) in status.entities.iter().zip(&system.capture.entities) {
            for op in Op::ALL {
                let labels = [("system", &*system.name), ("entity", &entity.name), ("operation", op.name())];
                page.sample(metric::CAPTURE_ENTITY, &labels, float(counters.get(op)));
            }
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
    type Bytes = fn(&crate::status::CaptureStatus) -> i64;
    let gauges: [(&str, &str, Bytes); 2] = [
        (metric::CAPTURE_LAG_BYTES, "Bytes of log that are not read yet; absent if unknown", |c| c.lag_bytes.get()),
        (
            metric::CAPTURE_RETAINED,
            "Bytes of log that a server keeps: WAL for the slot, or all binlogs; absent if unknown",
            |c| c.retained_bytes.get(),
        ),
    ];
    for (name, help, read) in gauges {
        page.gauge(name, help);
        for system in systems.iter().filter(|system| read(&system.capture) >= 0) {
            page.sample(name, &[("system", &system.name)], read(&system.capture) as f64);
        }
    }
}

fn apply(page: &mut Page, status: &Status, now: i64) {
    type Read = fn(&crate::status::ApplyStatus) -> u64;
    let counters: [(&str, &str, Read); 8] = [
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
        (metric::APPLY_BYTES, "Changes for a target in canonical form, of committed batches", |a| a.bytes.get()),
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
    page.gauge(metric::APPLY_QUARANTINED, "Records in quarantine on their way into a target");
    for system in &targets {
        page.sample(metric::APPLY_QUARANTINED, &[("system", &system.name)], system.apply.quarantined.get() as f64);
    }
    page.counter(metric::APPLY_ENTITY, "Changes written, by entity and whether the row is gone now");
    for system in &targets {
        for (entity, counters) in status.entities.iter().zip(&system.apply.entities) {
            for (operation, counter) in [("write", &counters.writes), ("delete", &counters.deletes)] {
                let labels = [("system", &*system.name), ("entity", &entity.name), ("operation", operation)];
                page.sample(metric::APPLY_ENTITY, &labels, float(counter.get()));
            }
        }
    }
    page.histogram(
        metric::APPLY_LATENCY,
        "From a transaction's commit in its source to the target's; loads not counted",
    );
    for system in &targets {
        page.buckets(metric::APPLY_LATENCY, &[("system", &system.name)], &system.apply.latency);
    }
    page.histogram(metric::APPLY_BATCH, "Changes written by one target transaction");
    for system in &targets {
        page.buckets(metric::APPLY_BATCH, &[("system", &system.name)], &system.apply.batches);
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

fn alerts(page: &mut Page, alerts: &[AlertStatus]) {
    page.counter(metric::ALERTS_SENT, "Events of alerts that arrived");
    for alert in alerts {
        for (event, count) in [("firing", &alert.fired), ("resolved", &alert.resolved)] {
            let labels = [("alert", &*alert.name), ("event", event)];
            page.sample(metric::ALERTS_SENT, &labels, float(count.get()));
        }
    }
    page.counter(metric::ALERTS_FAILURES, "Tries to deliver an event that did not arrive; it is tried again");
    for alert in alerts {
        page.sample(metric::ALERTS_FAILURES, &[("alert", &alert.name)], float(alert.failures.get()));
    }
    type Read = fn(&AlertStatus) -> i64;
    let gauges: [(&str, &str, Read); 2] = [
        (metric::ALERTS_FIRING, "Conditions of an alert that hold", |a| a.firing.get()),
        (metric::ALERTS_PENDING, "Events that are still to be delivered", |a| a.pending.get()),
    ];
    for (name, help, read) in gauges {
        page.gauge(name, help);
        for alert in alerts {
            page.sample(name, &[("alert", &alert.name)], read(alert) as f64);
        }
    }
}

fn notifies(page: &mut Page, status: &Status, now: i64) {
    let head = status.journal_head.get();
    type Read<'a> = &'a dyn Fn(&NotifyStatus) -> f64;
    let counters: [(&str, &str, Read<'_>); 4] = [
        (metric::NOTIFY_CHANGES, "Changes that others were told of", &|n| float(n.changes.get())),
        (metric::NOTIFY_REQUESTS, "Requests that arrived with them", &|n| float(n.requests.get())),
        (metric::NOTIFY_FAILURES, "Requests that did not arrive; they are tried again", &|n| float(n.failures.get())),
        (metric::NOTIFY_LOST, "Journal entries that had to go before they were told", &|n| float(n.lost.get())),
    ];
    let gauges: [(&str, &str, Read<'_>); 2] = [
        (metric::NOTIFY_PENDING, "Journal entries that are not told, or were not looked at", &|n| {
            float(n.pending(head))
        }),
        (metric::NOTIFY_LAG, "Age of the oldest change that is being told", &|n| seconds(n.lag(now))),
    ];
    let counters = counters.into_iter().map(|(name, help, read)| (true, name, help, read));
    for (counts, name, help, read) in
        counters.chain(gauges.into_iter().map(|(name, help, read)| (false, name, help, read)))
    {
        if counts {
            page.counter(name, help);
        } else {
            page.gauge(name, help);
        }
        for notify in &status.notifies {
            page.sample(name, &[("notify", &notify.name), ("entity", &notify.entity)], read(notify));
        }
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::status::tests::{NOW, example};
    use super::*;

    fn verdict() -> Verdict {
        Verdict {
            entity: "contact".into(),
            against: "crm".into(),
            ended: NOW,
            seconds: 3.5,
            outcome: "different".into(),
            error: None,
            systems: BTreeMap::from([("shop".into(), Classes { missing: 1, ..Classes::default() })]),
        }
    }

    #[test]
    fn metrics_have_base_units_and_documented_names() {
        let mut page = Page::default();
        counters(&mut page, &example(), Duration::from_secs(60), NOW);

        insta::assert_snapshot!(page.text);
    }

    /// The names that are told, histograms with what is made of them.
    fn exported(text: &str) -> BTreeSet<String> {
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names = kinds.flat_map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let endings: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            endings.iter().map(move |ending| format!("{name}{ending}"))
        });
        names.collect()
    }

    /// What a query or a rule names of ours, with the labels that it picks by.
    fn asked(text: &str) -> Vec<(String, Vec<String>)> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let starts = text.match_indices("anechoic_").chain(text.match_indices("process_"));
        let names = starts.filter(|(at, _)| !text[..*at].ends_with(word)).map(|(at, _)| {
            let end = text[at..].find(|c| !word(c)).map_or(text.len(), |length| at + length);
            let picked = text[end..].strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(of, _)| of);
            let labels = picked.split(',').filter_map(|pair| pair.split(['=', '!']).next()).map(str::trim);
            (text[at..end].to_owned(), labels.filter(|label| !label.is_empty()).map(str::to_owned).collect())
        });
        names.collect()
    }

    fn assert_exported(text: &str, asked: &[(String, Vec<String>)]) {
        let exported = exported(text);
        for (name, labels) in asked {
            assert!(exported.contains(name), "{name} is asked for, and not told");
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).collect();
            for label in labels.iter().filter(|label| *label != "instance" && *label != "job") {
                assert!(lines.iter().any(|line| line.contains(&format!("{label}=\""))), "{name} has no label {label}");
            }
        }
    }

    #[test]
    fn the_dashboard_and_the_alerts_ask_for_what_is_told() {
        let status = example();
        *status.verdicts.lock().unwrap() = vec![verdict()];
        let text = render(&status, Duration::from_secs(60), NOW);

        let dashboard: serde_json::Value =
            serde_json::from_str(include_str!("../../config/grafana/anechoic.json")).unwrap();
        let panels = dashboard["panels"].as_array().unwrap().iter();
        let targets = panels.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
        let queries: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
        let rules = include_str!("../../config/prometheus/anechoic.rules.yml").lines().map(str::trim);
        let rules: Vec<_> = rules.filter_map(|line| line.strip_prefix("expr: ")).map(str::to_owned).collect();

        assert!(queries.len() > 30 && rules.len() > 10, "{} queries, {} rules", queries.len(), rules.len());
        for query in queries.iter().chain(&rules).filter(|query| !query.starts_with("up{")) {
            let asked = asked(query);
            assert!(!asked.is_empty(), "{query}");
            assert_exported(&text, &asked);
        }
    }

    #[test]
    #[should_panic(expected = "anechoic_capture_echos_total is asked for, and not told")]
    fn a_misspelt_metric_in_a_query_is_found() {
        let text = render(&example(), Duration::from_secs(60), NOW);

        assert_exported(&text, &asked("sum by (system) (rate(anechoic_capture_echos_total{instance=~\"$i\"}[5m]))"));
    }

    #[test]
    #[should_panic(expected = "anechoic_apply_seq has no label entity")]
    fn a_label_that_a_metric_lacks_is_found() {
        let text = render(&example(), Duration::from_secs(60), NOW);

        assert_exported(&text, &asked("anechoic_apply_seq{instance=\"a\",entity=\"contact\"}"));
    }
}
