//! `/status`: the running agent at a glance, as a value that `status` prints too.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::load::{Classes, LoadProgress, Verdict};
use crate::status::{AlertStatus, ApplyStatus, CaptureStatus, EntityStatus, NotifyStatus, State, Status, SystemStatus};
use crate::value::{MICROS_PER_DAY, civil_from_days};

/// A log is heard of every few seconds even when nothing is written; longer silence is lag.
const SILENCE_ALLOWED: i64 = 15_000_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub agent: String,
    /// `starting`, `running`, `stopping`; `stopped` where no agent runs.
    pub state: String,
    /// Why the file, read again, is not what the agent works by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_error: Option<String>,
    pub journal: JournalReport,
    pub systems: Vec<SystemReport>,
    pub entities: Vec<EntityReport>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<LoadProgress>,
    /// The newest comparison of each entity that a command asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verified: Vec<LoadProgress>,
    /// How what the configuration says of alerts is delivered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alerts: Vec<AlertReport>,
    /// How far others have been told of changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<NotifyReport>,
    /// What was found of all rows, last; where anything was, or will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Box<VerificationReport>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerificationReport {
    /// The entity that is compared by itself now.
    pub comparing: Option<String>,
    /// When the next comparison by itself is due; `null` where none is.
    pub next: Option<String>,
    pub entities: Vec<VerdictReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerdictReport {
    pub entity: String,
    /// Whose rows were the measure.
    pub against: String,
    pub at: Option<String>,
    pub seconds: f64,
    /// `same`, `different`, `repaired`, `failed`.
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub systems: BTreeMap<String, PairReport>,
}

/// One system beside the authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairReport {
    pub compared: u64,
    pub different: u64,
    pub missing: u64,
    pub extra: u64,
    pub quarantined: u64,
    /// Fields in which rows differ, and in how many.
    pub fields: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalReport {
    pub head: u64,
    pub bytes: u64,
    /// Why it cannot be written, and capture pauses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemReport {
    pub name: String,
    /// `postgresql`, `mysql`, `mariadb`; empty until connected.
    pub kind: String,
    pub version: String,
    /// The worse of capture and apply.
    pub state: String,
    /// With the way out, where a person must act.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// A person has told it to stand still, whatever else is the matter with it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub paused: bool,
    pub capture: CaptureReport,
    /// `null` where nothing is applied.
    pub apply: Option<ApplyReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptureReport {
    pub position: String,
    /// `null` before the log was first read.
    pub lag_seconds: Option<f64>,
    /// Of log that is not read yet, and that the server keeps (PostgreSQL: for the slot); `null`
    /// where it is not known.
    #[serde(default)]
    pub lag_bytes: Option<u64>,
    #[serde(default)]
    pub retained_bytes: Option<u64>,
    pub transactions: u64,
    pub changes: u64,
    pub echoes: u64,
    /// Of the changes: written by triggers and referential actions while the agent applied.
    pub side_effects: u64,
    /// Rows that a trigger or an action rewrote while they were applied: not sent back.
    pub rewritten: u64,
    pub filtered: u64,
    pub rejected: u64,
    pub quarantined: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApplyReport {
    pub seq: u64,
    /// Journal entries not yet applied.
    pub pending: u64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    pub transactions: u64,
    pub changes: u64,
    pub coalesced: u64,
    pub held: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityReport {
    pub name: String,
    pub applied: u64,
    pub conflicts: u64,
    /// Of these since the start, by what decided them and how it ended for the change that had
    /// not seen the other.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub decided: BTreeMap<String, BTreeMap<String, u64>>,
    /// Conflicts that wait for a person.
    #[serde(default)]
    pub waiting: i64,
    pub rejected: u64,
    /// Rows that a system rewrote while they were applied there: it differs from the others.
    pub rewritten: u64,
    pub quarantined: i64,
    /// `null` before the first.
    pub last_change: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertReport {
    pub name: String,
    /// Conditions that hold.
    pub firing: i64,
    /// Of these, what is said of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<String>,
    /// Events that are still to be delivered.
    pub pending: i64,
    pub delivered: u64,
    /// Why the last try did not arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl AlertReport {
    fn of(alert: &AlertStatus) -> Self {
        AlertReport {
            name: alert.name.clone(),
            firing: alert.firing.get(),
            holds: alert.messages.lock().expect("never held across a panic").clone(),
            pending: alert.pending.get(),
            delivered: alert.fired.get() + alert.resolved.get(),
            error: alert.error.lock().expect("never held across a panic").clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotifyReport {
    pub name: String,
    pub entity: String,
    /// Journal entries that are not told, or were not looked at.
    pub pending: u64,
    /// Age of the oldest change that is being told.
    pub lag_seconds: f64,
    pub changes: u64,
    /// Entries that the journal dropped before they were told.
    pub lost: u64,
    /// Why the last try did not arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl NotifyReport {
    fn of(notify: &NotifyStatus, head: u64, now: i64) -> Self {
        NotifyReport {
            name: notify.name.clone(),
            entity: notify.entity.clone(),
            pending: notify.pending(head),
            lag_seconds: seconds(notify.lag(now)),
            changes: notify.changes.get(),
            lost: notify.lost.get(),
            error: notify.error.lock().expect("never held across a panic").clone(),
        }
    }
}

impl Report {
    pub fn of(status: &Status, now: i64) -> Self {
        let head = status.journal_head.get();
        Report {
            agent: status.agent.clone(),
            state: (*status.state.lock().expect("never held across a panic")).to_owned(),
            file_error: status.file_error.lock().expect("never held across a panic").clone(),
            journal: JournalReport {
                head,
                bytes: status.journal_bytes.get(),
                error: status.journal_error.lock().expect("nobody panics while holding an error").clone(),
            },
            systems: status.systems.iter().map(|s| SystemReport::of(s, head, now)).collect(),
            entities: status.entities.iter().map(EntityReport::of).collect(),
            loads: status.loads.lock().expect("never held across a panic").clone(),
            verified: status.verified.lock().expect("never held across a panic").clone(),
            alerts: status.alerts.iter().map(AlertReport::of).collect(),
            notifications: status.notifies.iter().map(|notify| NotifyReport::of(notify, head, now)).collect(),
            verification: VerificationReport::of(status).map(Box::new),
        }
    }
}

impl VerificationReport {
    fn of(status: &Status) -> Option<Self> {
        let verdicts = status.verdicts.lock().expect("never held across a panic");
        let next = timestamp(status.verify_next.get());
        (next.is_some() || !verdicts.is_empty()).then(|| VerificationReport {
            comparing: status.verifying.lock().expect("never held across a panic").clone(),
            next,
            entities: verdicts.iter().map(VerdictReport::of).collect(),
        })
    }
}

impl VerdictReport {
    fn of(verdict: &Verdict) -> Self {
        let Verdict { entity, against, ended, seconds, outcome, error, systems } = verdict.clone();
        let pair = |(system, classes): (String, Classes)| (system, PairReport::of(classes));
        let systems = systems.into_iter().map(pair).collect();
        VerdictReport { entity, against, at: timestamp(ended), seconds, outcome, error, systems }
    }
}

impl PairReport {
    fn of(classes: Classes) -> Self {
        let compared = classes.compared();
        let Classes { different, missing, extra, held, fields, .. } = classes;
        PairReport { compared, different, missing, extra, quarantined: held, fields }
    }
}

impl SystemReport {
    fn of(system: &SystemStatus, head: u64, now: i64) -> Self {
        let (kind, version) = system.server.lock().expect("never held across a panic").clone();
        let state = worst(system);
        SystemReport {
            name: system.name.to_string(),
            kind,
            version,
            state: state.name().into(),
            error: state.error().map(Into::into),
            paused: system.paused.load(Ordering::Relaxed),
            capture: CaptureReport::of(&system.capture, now),
            apply: ApplyReport::of(&system.apply, head, now),
        }
    }
}

/// The state that a system shows: the worse of its halves, or that it is paused.
pub fn worst(system: &SystemStatus) -> State {
    let capture = system.capture.state.lock().expect("never held across a panic").clone();
    let apply = system.apply.state.lock().expect("never held across a panic").clone();
    match capture.max(apply) {
        State::Stopped(error) => State::Stopped(error),
        // What either half was about when it was told to stand still is past.
        _ if system.paused.load(Ordering::Relaxed) => State::Paused,
        state => state,
    }
}

impl CaptureReport {
    fn of(capture: &CaptureStatus, now: i64) -> Self {
        CaptureReport {
            position: capture.position.lock().expect("never held across a panic").clone(),
            lag_seconds: capture_lag(capture, now),
            lag_bytes: u64::try_from(capture.lag_bytes.get()).ok(),
            retained_bytes: u64::try_from(capture.retained_bytes.get()).ok(),
            transactions: capture.transactions.get(),
            changes: capture.changes.get(),
            echoes: capture.echoes.get(),
            side_effects: capture.side_effects.get(),
            rewritten: capture.rewritten.get(),
            filtered: capture.filtered.get(),
            rejected: capture.rejected.get(),
            quarantined: capture.refused.get(),
        }
    }
}

/// How far behind the log's end the capture is: what it was behind when it last read, and since
/// when it heard nothing. An idle database is not lag.
pub fn capture_lag(capture: &CaptureStatus, now: i64) -> Option<f64> {
    let heard = capture.heard.get();
    if heard == 0 {
        return None;
    }
    let silence = (now - heard).max(0);
    let silence = if silence > SILENCE_ALLOWED { silence } else { 0 };
    Some(seconds(capture.lag.get().max(0) + silence))
}

impl ApplyReport {
    fn of(apply: &ApplyStatus, head: u64, now: i64) -> Option<Self> {
        if *apply.state.lock().expect("never held across a panic") == State::Unused {
            return None;
        }
        Some(ApplyReport {
            seq: apply.seq.get(),
            pending: head.saturating_sub(apply.seq.get()),
            lag_seconds: apply_lag(apply, now),
            transactions: apply.transactions.get(),
            changes: apply.changes.get(),
            coalesced: apply.coalesced.get(),
            held: apply.held.get(),
        })
    }
}

pub fn apply_lag(apply: &ApplyStatus, now: i64) -> f64 {
    match apply.oldest_pending.get() {
        0 => 0.0,
        oldest => seconds((now - oldest).max(0)),
    }
}

impl EntityReport {
    fn of(entity: &EntityStatus) -> Self {
        let mut decided: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for ((rule, outcome), count) in entity.decisions.get() {
            decided.entry(rule.name().into()).or_default().insert(outcome.name().into(), count);
        }
        EntityReport {
            decided,
            waiting: entity.waiting.get(),
            name: entity.name.clone(),
            applied: entity.applied.get(),
            conflicts: entity.conflicts.get(),
            rejected: entity.rejected.get(),
            rewritten: entity.rewritten.get(),
            quarantined: entity.quarantined.get(),
            last_change: timestamp(entity.last_change.get()),
        }
    }
}

/// µs → seconds.
pub fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

/// µs → `2026-01-31T12:00:00.000001Z`; `None` for 0, which stands for never.
pub fn timestamp(micros: i64) -> Option<String> {
    if micros == 0 {
        return None;
    }
    let (days, rest) = (micros.div_euclid(MICROS_PER_DAY), micros.rem_euclid(MICROS_PER_DAY));
    let (year, month, day) = civil_from_days(i32::try_from(days).ok()?);
    let (second, micro) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{Op, Operations, Outcome, Rule};
    use crate::status::{AlertStatus, Counter, Gauge, NotifyStatus, Validity};

    pub(crate) const NOW: i64 = 1_769_860_800_000_000;

    fn system(name: &str, kind: &str, version: &str) -> SystemStatus {
        let system = SystemStatus::new(name.into(), 1);
        *system.server.lock().unwrap() = (kind.into(), version.into());
        system
    }

    fn operations(inserts: u64, updates: u64, deletes: u64) -> Operations {
        let mut operations = Operations::default();
        for (op, count) in Op::ALL.into_iter().zip([inserts, updates, deletes]) {
            (0..count).for_each(|_| operations.add(op));
        }
        operations
    }

    fn streaming(system: &SystemStatus) {
        *system.capture.state.lock().unwrap() = State::Streaming;
        *system.apply.state.lock().unwrap() = State::Streaming;
        system.capture.heard.set(NOW - 1_000_000);
    }

    /// Two systems that stream, one entity.
    pub(crate) fn example() -> Arc<Status> {
        let status = Status {
            max_lag: std::time::Duration::from_secs(60),
            agent: "hq".into(),
            started: NOW - 3_600_000_000,
            state: std::sync::Mutex::new("running"),
            systems: vec![system("crm", "postgresql", "15.18"), system("shop", "mysql", "9.7.0")],
            entities: vec![EntityStatus::new("contact")],
            alerts: vec![AlertStatus::new("ops")],
            notifies: vec![NotifyStatus::new("billing", "contact")],
            journal_head: Counter::default(),
            journal_bytes: Counter::default(),
            file_error: Default::default(),
            journal_syncs: crate::status::sync_times(),
            loads: Default::default(),
            verified: Default::default(),
            verdicts: Default::default(),
            verifying: Default::default(),
            verify_next: Gauge::default(),
            verify_ended: Gauge::default(),
            certificate: std::sync::Mutex::new(Some(Validity { from: 0, until: NOW + 90 * MICROS_PER_DAY })),
            journal_error: std::sync::Mutex::default(),
            desk_works: true.into(),
            desk_turns: Counter::default(),
        };
        status.systems.iter().for_each(streaming);
        let crm = &status.systems[0];
        *crm.capture.position.lock().unwrap() = "0/1A2B3C8".into();
        crm.capture.lag.set(20_000);
        crm.capture.transactions.set(881);
        crm.capture.changes.set(9120);
        crm.capture.journaled.set(9118);
        crm.capture.rejected.set(2);
        crm.capture.entities[0].add(&operations(9000, 100, 18));
        crm.capture.bytes.set(1_824_000);
        crm.capture.retained_bytes.set(16_777_216);
        crm.capture.lag_bytes.set(0);
        crm.capture.echoes.set(430);
        crm.apply.seq.set(1042);
        crm.apply.transactions.set(161);
        crm.apply.addressed.set(5230);
        crm.apply.changes.set(5230);
        crm.apply.entities[0].writes.set(5200);
        crm.apply.entities[0].deletes.set(30);
        [0.004, 0.03, 0.04].into_iter().for_each(|seconds| crm.apply.latency.observe(seconds));
        status.systems[1].apply.seq.set(1040);
        status.systems[1].apply.oldest_pending.set(NOW - 1_500_000);
        status.entities[0].applied.set(9120);
        status.entities[0].conflicts.set(3);
        status.entities[0].decisions.add(Rule::Latest, Outcome::Lost);
        status.entities[0].decisions.add(Rule::Latest, Outcome::Lost);
        status.entities[0].decisions.add(Rule::Manual, Outcome::Waiting);
        status.entities[0].waiting.set(1);
        status.entities[0].rejected.set(2);
        status.entities[0].last_change.set(NOW + 1);
        status.journal_head.set(1042);
        status.journal_bytes.set(73_400_320);
        Arc::new(status)
    }

    #[test]
    fn the_report_has_the_documented_form() {
        let report = Report::of(&example(), NOW);

        insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap(), @r#"
{
  "agent": "hq",
  "state": "running",
  "journal": {
    "head": 1042,
    "bytes": 73400320
  },
  "systems": [
    {
      "name": "crm",
      "kind": "postgresql",
      "version": "15.18",
      "state": "streaming",
      "capture": {
        "position": "0/1A2B3C8",
        "lag_seconds": 0.02,
        "lag_bytes": 0,
        "retained_bytes": 16777216,
        "transactions": 881,
        "changes": 9120,
        "echoes": 430,
        "side_effects": 0,
        "rewritten": 0,
        "filtered": 0,
        "rejected": 2,
        "quarantined": 0
      },
      "apply": {
        "seq": 1042,
        "pending": 0,
        "lag_seconds": 0.0,
        "transactions": 161,
        "changes": 5230,
        "coalesced": 0,
        "held": 0
      }
    },
    {
      "name": "shop",
      "kind": "mysql",
      "version": "9.7.0",
      "state": "streaming",
      "capture": {
        "position": "",
        "lag_seconds": 0.0,
        "lag_bytes": null,
        "retained_bytes": null,
        "transactions": 0,
        "changes": 0,
        "echoes": 0,
        "side_effects": 0,
        "rewritten": 0,
        "filtered": 0,
        "rejected": 0,
        "quarantined": 0
      },
      "apply": {
        "seq": 1040,
        "pending": 2,
        "lag_seconds": 1.5,
        "transactions": 0,
        "changes": 0,
        "coalesced": 0,
        "held": 0
      }
    }
  ],
  "entities": [
    {
      "name": "contact",
      "applied": 9120,
      "conflicts": 3,
      "decided": {
        "latest": {
          "lost": 2
        },
        "manual": {
          "waiting": 1
        }
      },
      "waiting": 1,
      "rejected": 2,
      "rewritten": 0,
      "quarantined": 0,
      "last_change": "2026-01-31T12:00:00.000001Z"
    }
  ],
  "alerts": [
    {
      "name": "ops",
      "firing": 0,
      "pending": 0,
      "delivered": 0
    }
  ],
  "notifications": [
    {
      "name": "billing",
      "entity": "contact",
      "pending": 0,
      "lag_seconds": 0.0,
      "changes": 0,
      "lost": 0
    }
  ]
}
"#);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn a_system_shows_the_worse_of_its_halves() {
        let status = example();
        let crm = &status.systems[0];
        *crm.capture.state.lock().unwrap() = State::Retrying("connection refused".into());
        assert_eq!(Report::of(&status, NOW).systems[0].state, "retrying");

        *crm.apply.state.lock().unwrap() = State::Stopped("marker is not ours".into());

        let report = &Report::of(&status, NOW).systems[0];
        assert_eq!((report.state.as_str(), report.error.as_deref()), ("stopped", Some("marker is not ours")));
    }

    #[test]
    fn silence_is_lag_only_when_a_heartbeat_is_overdue() {
        let capture = CaptureStatus::default();
        assert_eq!(capture_lag(&capture, NOW), None);

        capture.heard.set(NOW - 10_000_000);
        assert_eq!(capture_lag(&capture, NOW), Some(0.0));

        capture.heard.set(NOW - 60_000_000);
        capture.lag.set(2_000_000);
        assert_eq!(capture_lag(&capture, NOW), Some(62.0));
    }

    #[test]
    fn a_system_to_which_nothing_is_applied_has_no_backlog() {
        let status = example();
        *status.systems[1].apply.state.lock().unwrap() = State::Unused;

        assert_eq!(Report::of(&status, NOW).systems[1].apply, None);
    }
}
