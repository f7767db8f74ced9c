//! The agent at a glance: a line per system and entity, then whatever needs an eye.

use std::fmt::Write;
use std::time::Duration;

use crate::control::Held;
use crate::http::status::{AlertReport, EntityReport, NotifyReport, PairReport, Report, SystemReport, VerdictReport};

/// Held records that are named; of more the list tells.
const HELD_SHOWN: usize = 5;

/// `since`: an earlier report and how long ago, which rates are made of.
pub(super) fn draw(report: &Report, since: Option<(&Report, Duration)>, held: &[Held]) -> String {
    let mut text = format!(
        "{}: {}, journal head {}, {}{}\n",
        report.agent,
        report.state,
        report.journal.head,
        bytes(report.journal.bytes),
        if report.state == "stopped" { "" } else { "; counts since it started" }
    );
    if let Some(error) = &report.journal.error {
        let _ = writeln!(text, "  {error}");
    }
    if let Some(error) = &report.file_error {
        let _ = writeln!(text, "  the file was read again and is not taken: {}", error.replace('\n', "\n    "));
    }
    if !report.systems.is_empty() {
        text += &rows(&[SYSTEMS.map(str::to_owned).to_vec()], &report.systems, |system| of_system(system, since));
        text += &troubles(&report.systems);
    }
    if !report.entities.is_empty() {
        text += &rows(&[ENTITIES.map(str::to_owned).to_vec()], &report.entities, of_entity);
    }
    for load in report.loads.iter().filter(|load| load.state != "done") {
        let of = load.error.clone().unwrap_or_else(|| format!("{} rows read", load.read));
        // Not known before every system has been looked at.
        let from = if load.from.is_empty() { String::new() } else { format!(" from {}", load.from) };
        let _ = writeln!(text, "load of {}{from}: {}, {of}", load.entity, load.state);
    }
    for verdict in report.verification.iter().flat_map(|verification| &verification.entities) {
        text += &verified(verdict);
    }
    for alert in report.alerts.iter().filter(|alert| alert.firing > 0 || alert.error.is_some()) {
        let AlertReport { name, firing, holds, pending, error, .. } = alert;
        let error = error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let _ = writeln!(text, "alert {name}: {firing} firing, {pending} to be delivered{error}");
        for message in holds {
            let _ = writeln!(text, "  {}", message.replace('\n', "\n    "));
        }
    }
    for notify in &report.notifications {
        let NotifyReport { name, pending, lag_seconds, changes, lost, error, .. } = notify;
        let behind = duration(*lag_seconds);
        let lost = if *lost > 0 { format!(", {lost} entries lost") } else { String::new() };
        let error = error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let _ = writeln!(
            text,
            "notify {name}: {changes} changes told, {pending} entries pending, {behind} behind{lost}{error}"
        );
    }
    let waiting: i64 = report.entities.iter().map(|entity| entity.waiting).sum();
    if waiting > 0 {
        let _ = writeln!(text, "{waiting} conflicts wait for a person: anechoic conflicts --open");
    }
    for held in held.iter().take(HELD_SHOWN) {
        let _ = writeln!(text, "in quarantine: {} {} {}: {}", held.system, held.entity, held.key, held.reason);
    }
    if held.len() > HELD_SHOWN {
        let _ = writeln!(text, "… and {} more in quarantine: anechoic quarantine", held.len() - HELD_SHOWN);
    }
    text.trim_end().to_owned()
}

const SYSTEMS: [&str; 9] =
    ["SYSTEM", "SERVER", "STATE", "READ", "READ BEHIND", "LOG KEPT", "WRITTEN", "PENDING", "WRITE BEHIND"];
const ENTITIES: [&str; 6] = ["ENTITY", "WRITTEN", "CONFLICTS", "REJECTED", "QUARANTINE", "LAST CHANGE"];

fn of_system(system: &SystemReport, since: Option<(&Report, Duration)>) -> Vec<String> {
    let earlier = since.and_then(|(report, ago)| {
        Some((report.systems.iter().find(|earlier| earlier.name == system.name)?, ago.as_secs_f64()))
    });
    // A counter that began anew with the agent has no rate yet.
    let rated = |count: u64, of: fn(&SystemReport) -> u64| {
        let rate = earlier.map(|(earlier, ago)| count.saturating_sub(of(earlier)) as f64 / ago);
        rate.map_or_else(|| count.to_string(), |rate| format!("{count} ({rate:.0}/s)"))
    };
    let written = |system: &SystemReport| system.apply.as_ref().map_or(0, |apply| apply.changes);
    let nothing = || "-".to_owned();
    let apply = system.apply.as_ref();
    vec![
        system.name.clone(),
        format!("{} {}", system.kind, system.version).trim().to_owned(),
        system.state.clone(),
        rated(system.capture.changes, |system| system.capture.changes),
        // Of a log that cannot be read nobody knows.
        system.capture.lag_seconds.filter(|_| system.error.is_none()).map_or_else(nothing, duration),
        system.capture.retained_bytes.map_or_else(nothing, bytes),
        apply.map_or_else(nothing, |apply| rated(apply.changes, written)),
        apply.map_or_else(nothing, |apply| apply.pending.to_string()),
        apply.map_or_else(nothing, |apply| duration(apply.lag_seconds)),
    ]
}

fn of_entity(entity: &EntityReport) -> Vec<String> {
    vec![
        entity.name.clone(),
        entity.applied.to_string(),
        entity.conflicts.to_string(),
        entity.rejected.to_string(),
        entity.quarantined.to_string(),
        entity.last_change.clone().unwrap_or_else(|| "-".into()),
    ]
}

/// Columns as wide as what is in them: names to the left, numbers to the right.
fn rows<T>(head: &[Vec<String>], of: &[T], row: impl Fn(&T) -> Vec<String>) -> String {
    let table: Vec<Vec<String>> = head.iter().cloned().chain(of.iter().map(row)).collect();
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let is_number = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-') && !cell.contains('T');
    let columns = table[0].len();
    let right: Vec<bool> = (0..columns).map(|at| table.iter().skip(1).all(|row| is_number(&row[at]))).collect();
    let mut text = String::new();
    for row in &table {
        let cells = row.iter().enumerate().map(|(at, cell)| match right[at] {
            true => format!("{cell:>width$}", width = width(at)),
            false => format!("{cell:<width$}", width = width(at)),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    format!("\n{text}")
}

fn troubles(systems: &[SystemReport]) -> String {
    let mut text = String::new();
    for system in systems {
        if let Some(error) = &system.error {
            let _ = writeln!(text, "  {}: {}", system.name, error.replace('\n', "\n    "));
        }
        if system.paused {
            let _ = writeln!(text, "  {0}: paused by a person; anechoic resume {0}", system.name);
        }
    }
    text
}

/// One line, and one for each system that differs.
fn verified(verdict: &VerdictReport) -> String {
    let VerdictReport { entity, against, at, outcome, error, systems, .. } = verdict;
    let at = at.as_deref().unwrap_or_default();
    let mut text = format!("{entity}: {outcome}, compared with {against} at {at}");
    let _ = write!(text, "{}{}", if error.is_some() { ": " } else { "" }, error.as_deref().unwrap_or_default());
    for (system, pair) in systems.iter().filter(|(_, pair)| pair.different + pair.missing + pair.extra > 0) {
        let PairReport { different, missing, extra, .. } = pair;
        let _ = write!(text, "\n  {system}: {different} different, {missing} missing, {extra} only there");
    }
    text.push('\n');
    text
}

fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        seconds if seconds < 3600.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::status::tests::{NOW, example};
    use crate::load::LoadProgress;
    use crate::status::State;

    #[test]
    fn the_agent_at_a_glance() {
        let status = example();
        *status.systems[1].capture.state.lock().unwrap() = State::Retrying("connection refused".into());

        insta::assert_snapshot!(draw(&Report::of(&status, NOW), None, &[]));
    }

    #[test]
    fn rates_are_made_of_two_looks_and_a_paused_system_says_how_it_goes_on() {
        let status = example();
        let before = Report::of(&status, NOW);
        status.systems[0].capture.changes.add(240);
        status.systems[0].apply.changes.add(12);
        status.systems[1].paused.store(true, std::sync::atomic::Ordering::Relaxed);

        let after = Report::of(&status, NOW);
        let drawn = draw(&after, Some((&before, Duration::from_secs(2))), &[]);

        assert!(drawn.contains("9360 (120/s)") && drawn.contains("5242 (6/s)"), "{drawn}");
        assert!(drawn.contains("shop: paused by a person; anechoic resume shop"), "{drawn}");
    }

    #[test]
    fn a_load_says_whose_rows_it_copies_once_that_is_known() {
        let status = example();
        let drawn = |from: &str| {
            let mut load =
                LoadProgress { entity: "contact".into(), state: "waiting".into(), ..LoadProgress::default() };
            load.from = from.into();
            *status.loads.lock().unwrap() = vec![load];
            draw(&Report::of(&status, NOW), None, &[])
        };

        assert!(drawn("").contains("load of contact: waiting, 0 rows read\n"), "{}", drawn(""));
        assert!(drawn("crm").contains("load of contact from crm: waiting, 0 rows read\n"), "{}", drawn("crm"));
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([0, 1023, 1536, 73_400_320].map(bytes), ["0 B", "1023 B", "1.5 KiB", "70.0 MiB"]);
        assert_eq!([0.04, 59.9, 90.0, 7200.0].map(duration), ["0.0 s", "59.9 s", "2 min", "2.0 h"]);
    }
}
