//! `/ready`: every system connected, nothing stopped, lag below its limit; else the reasons.

use std::time::Duration;

use serde::Serialize;

use super::status::{Report, SystemReport};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    pub ready: bool,
    pub reasons: Vec<Reason>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Empty where it is the agent itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system: String,
    /// A state (`connecting`, `loading`, `paused`, `retrying`, `stopped`, `starting`, `stopping`),
    /// `journal`, `capture_lag` or `apply_lag`.
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Quarantined rows do not make an agent unready: everything else goes on, and `/status` and
/// the metrics count them.
pub fn readiness(report: &Report, max_lag: Duration) -> Readiness {
    let mut reasons = Vec::new();
    if report.state != "running" {
        reasons.push(Reason { system: String::new(), reason: report.state.clone(), detail: String::new() });
    }
    if let Some(error) = &report.journal.error {
        reasons.push(Reason { system: String::new(), reason: "journal".into(), detail: error.clone() });
    }
    for load in report.loads.iter().filter(|load| load.state != "done") {
        let detail = load.error.clone().unwrap_or_else(|| format!("{} rows read", load.read));
        reasons.push(Reason {
            system: load.from.clone(),
            reason: "loading".into(),
            detail: format!("{}: {detail}", load.entity),
        });
    }
    for system in &report.systems {
        reasons.extend(unready(system, max_lag));
    }
    Readiness { ready: reasons.is_empty(), reasons }
}

fn unready(system: &SystemReport, max_lag: Duration) -> Vec<Reason> {
    let reason = |reason: &str, detail: String| Reason { system: system.name.clone(), reason: reason.into(), detail };
    let mut reasons = Vec::new();
    if system.state != "streaming" {
        reasons.push(reason(&system.state, system.error.clone().unwrap_or_default()));
    }
    let lags = [
        ("capture_lag", system.capture.lag_seconds.unwrap_or(0.0)),
        ("apply_lag", system.apply.as_ref().map_or(0.0, |a| a.lag_seconds)),
    ];
    for (name, lag) in lags {
        if lag > max_lag.as_secs_f64() {
            reasons.push(reason(name, format!("{lag:.1} s behind; the limit is {:.1} s", max_lag.as_secs_f64())));
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{NOW, example};
    use super::*;
    use crate::status::State;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn ready_when_everything_streams() {
        let readiness = readiness(&Report::of(&example(), NOW), LIMIT);

        assert_eq!(readiness, Readiness { ready: true, reasons: vec![] });
    }

    #[test]
    fn a_journal_that_cannot_be_written_is_a_reason() {
        let status = example();
        *status.journal_error.lock().unwrap() = Some("no space".into());

        let readiness = readiness(&Report::of(&status, NOW), LIMIT);

        assert_eq!((readiness.ready, readiness.reasons[0].detail.as_str()), (false, "no space"));
    }

    #[test]
    fn every_reason_is_named_at_once() {
        let status = example();
        *status.state.lock().unwrap() = "starting";
        *status.systems[0].apply.state.lock().unwrap() = State::Stopped("marker is not ours".into());
        *status.systems[1].capture.state.lock().unwrap() = State::Connecting;
        status.systems[1].apply.oldest_pending.set(NOW - 61_000_000);

        let readiness = readiness(&Report::of(&status, NOW), LIMIT);

        insta::assert_snapshot!(serde_json::to_string_pretty(&readiness).unwrap(), @r#"
{
  "ready": false,
  "reasons": [
    {
      "reason": "starting"
    },
    {
      "system": "crm",
      "reason": "stopped",
      "detail": "marker is not ours"
    },
    {
      "system": "shop",
      "reason": "connecting"
    },
    {
      "system": "shop",
      "reason": "apply_lag",
      "detail": "61.0 s behind; the limit is 60.0 s"
    }
  ]
}
"#);
    }

    #[test]
    fn a_lag_at_its_limit_is_still_ready() {
        let status = example();
        status.systems[1].apply.oldest_pending.set(NOW - 60_000_000);

        assert!(readiness(&Report::of(&status, NOW), LIMIT).ready);
    }
}
