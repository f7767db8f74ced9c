//! What an alert is about, as the configuration writes it, and whether it holds, by what the agent
//! says of itself anyway.

use std::time::Duration;

use crate::config::{nearest, units};
use crate::http::status::{apply_lag, capture_lag, worst};
use crate::status::{NotifyStatus, State, Status, SystemStatus};

#[derive(Debug, Clone)]
pub struct Condition {
    pub kind: Kind,
    /// As it was written, without needless spaces: names it in events and on disk.
    pub text: String,
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A system needs a person.
    Stopped,
    /// A system is not connected for so long.
    Unreachable(Duration),
    /// Behind a log's end, or with what is to be applied.
    Lag(Duration),
    /// Bytes of log that a server keeps.
    RetainedWal(u64),
    /// The journal is as large.
    Journal(u64),
    /// It cannot be written, and capture pauses.
    JournalFull,
    /// Changes met. The only one that happens, and does not last.
    Conflict,
    /// Conflicts wait for a person.
    ConflictWaiting,
    /// More records than that are in quarantine.
    Quarantine(u64),
    /// The newest comparison found differences.
    VerifyDifference,
    /// It came to no end.
    VerifyFailed,
    /// Others are told of changes so much later.
    NotifyLag(Duration),
    /// The journal had to drop what was not told.
    NotifyLost,
    /// The port's is not valid, or not for much longer.
    Certificate,
}

/// Name, and an example of its limit.
const NAMES: [(&str, Option<&str>); 14] = [
    ("stopped", None),
    ("unreachable", Some("5m")),
    ("lag", Some("60s")),
    ("retained_wal", Some("5GiB")),
    ("journal", Some("15GiB")),
    ("journal_full", None),
    ("conflict", None),
    ("conflict_waiting", None),
    ("quarantine", None),
    ("verify_difference", None),
    ("verify_failed", None),
    ("notify_lag", Some("5m")),
    ("notify_lost", None),
    ("certificate", None),
];

/// µs
const LOST_TOLD_FOR: i64 = 86_400_000_000;

/// What it is the matter with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Agent,
    System(String),
    Entity(String),
    /// Who is told of changes.
    Notify(String),
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// One sentence for people, without values of rows.
    Holds(String),
    /// So often since the last look.
    Happened(u64, String),
    Clear,
    /// It cannot be told now: what was said last stands.
    Unknown,
}

impl Condition {
    /// `Err` completes the sentence that begins with what was written.
    pub fn parse(text: &str) -> Result<Condition, String> {
        let (name, limit) = match text.split_once('>') {
            Some((name, limit)) => (name.trim(), Some(limit.trim())),
            None => (text.trim(), None),
        };
        let Some((_, example)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let names = || NAMES.iter().map(|(name, _)| *name);
            return Err(match nearest(name, names()) {
                Some(near) => format!("is not known; nearest: {near:?}"),
                None => format!("is not known; available: {}", names().collect::<Vec<_>>().join(", ")),
            });
        };
        let wrong = |what: &str| {
            let example = example.unwrap_or("10");
            format!("needs {what} as its limit: \"{name} > {example}\"")
        };
        let time = || limit.and_then(units::duration).ok_or_else(|| wrong("a duration"));
        let size = || limit.and_then(units::size).ok_or_else(|| wrong("a size"));
        let kind = match name {
            "unreachable" => Kind::Unreachable(time()?),
            "lag" => Kind::Lag(time()?),
            "notify_lag" => Kind::NotifyLag(time()?),
            "retained_wal" => Kind::RetainedWal(size()?),
            "journal" => Kind::Journal(size()?),
            "quarantine" => {
                let limit = limit.map_or(Ok(0), |limit| limit.parse().map_err(|_| wrong("a number")));
                Kind::Quarantine(limit?)
            }
            _ if limit.is_some() => return Err(format!("has a limit, and {name:?} takes none")),
            "stopped" => Kind::Stopped,
            "journal_full" => Kind::JournalFull,
            "conflict" => Kind::Conflict,
            "conflict_waiting" => Kind::ConflictWaiting,
            "verify_difference" => Kind::VerifyDifference,
            "verify_failed" => Kind::VerifyFailed,
            "certificate" => Kind::Certificate,
            _ => Kind::NotifyLost,
        };
        let text = limit.map_or_else(|| name.to_owned(), |limit| format!("{name} > {limit}"));
        Ok(Condition { kind, text })
    }

    /// How long it has to hold before anybody is told.
    pub fn after(&self) -> Duration {
        match self.kind {
            Kind::Unreachable(after) => after,
            _ => Duration::ZERO,
        }
    }

    /// Of everything that it can be about. What happens ([`Kind::Conflict`]) no look can see.
    pub fn look(&self, status: &Status, now: i64) -> Vec<(Subject, Look)> {
        // Before that, what the journal tells is not known yet.
        let running = *status.state.lock().expect("never held across a panic") == "running";
        let systems = |look: &dyn Fn(&SystemStatus) -> Look| -> Vec<(Subject, Look)> {
            status.systems.iter().map(|system| (Subject::System(system.name.to_string()), look(system))).collect()
        };
        let entities = |count: &dyn Fn(usize) -> i64, limit: u64, what: &str| -> Vec<(Subject, Look)> {
            let look = |index: usize, name: &str| match count(index) {
                _ if !running => Look::Unknown,
                count if u64::try_from(count).unwrap_or(0) > limit => Look::Holds(format!("{name}: {count} {what}")),
                _ => Look::Clear,
            };
            let names = status.entities.iter().map(|entity| &entity.name).enumerate();
            names.map(|(index, name)| (Subject::Entity(name.clone()), look(index, name))).collect()
        };
        match self.kind {
            Kind::Stopped => systems(&stopped),
            Kind::Unreachable(_) => systems(&|system| unreachable(system, running)),
            Kind::Lag(limit) => systems(&|system| lag(system, limit, now)),
            Kind::RetainedWal(limit) => systems(&|system| match system.capture.retained_bytes.get() {
                kept if kept < 0 => Look::Unknown,
                kept => above(kept.unsigned_abs(), limit, || {
                    format!("{} keeps {kept} bytes of its log for us", system.name)
                }),
            }),
            Kind::Journal(limit) => {
                let bytes = status.journal_bytes.get();
                vec![(Subject::Agent, above(bytes, limit, || format!("the journal takes {bytes} bytes")))]
            }
            Kind::JournalFull => {
                let error = status.journal_error.lock().expect("never held across a panic").clone();
                vec![(Subject::Agent, error.map_or(Look::Clear, Look::Holds))]
            }
            Kind::Conflict => Vec::new(),
            Kind::ConflictWaiting => {
                entities(&|index| status.entities[index].waiting.get(), 0, "conflicts wait for a person")
            }
            Kind::Quarantine(limit) => {
                entities(&|index| status.entities[index].quarantined.get(), limit, "records are in quarantine")
            }
            Kind::NotifyLag(limit) => notifies(status, &|notify| {
                let lag = notify.lag(now);
                above(lag.unsigned_abs(), u64::try_from(limit.as_micros()).unwrap_or(u64::MAX), || {
                    let error = notify.error.lock().expect("never held across a panic").clone().unwrap_or_default();
                    format!("{} is told of changes {} s late: {error}", notify.name, lag / 1_000_000)
                })
            }),
            // Nothing mends it: it is over when everybody has heard of it.
            Kind::NotifyLost => notifies(status, &|notify| match notify.lost_at.get() {
                at if at > now - LOST_TOLD_FOR => Look::Holds(format!(
                    "{} entries had to leave the full journal before {} was told of them",
                    notify.lost.get(),
                    notify.name
                )),
                _ => Look::Clear,
            }),
            Kind::Certificate => {
                let validity = *status.certificate.lock().expect("never held across a panic");
                let trouble = validity.and_then(|validity| validity.trouble(now));
                vec![(Subject::Agent, trouble.map_or(Look::Clear, Look::Holds))]
            }
            Kind::VerifyDifference => compared(status, &["same", "repaired"], "different"),
            Kind::VerifyFailed => compared(status, &["same", "repaired", "different"], "failed"),
        }
    }
}

fn notifies(status: &Status, look: &dyn Fn(&NotifyStatus) -> Look) -> Vec<(Subject, Look)> {
    status.notifies.iter().map(|notify| (Subject::Notify(notify.name.clone()), look(notify))).collect()
}

fn above(value: u64, limit: u64, text: impl FnOnce() -> String) -> Look {
    if value > limit { Look::Holds(text()) } else { Look::Clear }
}

fn stopped(system: &SystemStatus) -> Look {
    match worst(system) {
        State::Stopped(error) => Look::Holds(format!("{} is stopped: {error}", system.name)),
        // Whether it is still, is to be seen.
        State::Connecting | State::Retrying(_) => Look::Unknown,
        State::Unused | State::Streaming | State::Loading | State::Paused => Look::Clear,
    }
}

fn unreachable(system: &SystemStatus, running: bool) -> Look {
    match worst(system) {
        // Its turn has not come yet.
        State::Connecting if !running => Look::Unknown,
        State::Retrying(error) => Look::Holds(format!("{} is not to be had: {error}", system.name)),
        State::Connecting => Look::Holds(format!("{} is not connected", system.name)),
        State::Unused | State::Streaming | State::Loading | State::Paused | State::Stopped(_) => Look::Clear,
    }
}

fn lag(system: &SystemStatus, limit: Duration, now: i64) -> Look {
    let apply = apply_lag(&system.apply, now);
    let Some(capture) = capture_lag(&system.capture, now) else {
        // Not read yet: what waits to be applied is known all the same.
        return if apply > limit.as_secs_f64() { Look::Holds(behind(system, apply)) } else { Look::Unknown };
    };
    let worst = capture.max(apply);
    if worst > limit.as_secs_f64() { Look::Holds(behind(system, worst)) } else { Look::Clear }
}

fn behind(system: &SystemStatus, seconds: f64) -> String {
    format!("{} is {seconds:.0} s behind", system.name)
}

fn compared(status: &Status, clear: &[&str], wanted: &str) -> Vec<(Subject, Look)> {
    let verdicts = status.verdicts.lock().expect("never held across a panic");
    let look = |outcome: &str, entity: &str| match outcome {
        outcome if outcome == wanted && wanted == "different" => {
            Look::Holds(format!("the systems hold different rows of {entity}: anechoic verify {entity} --values"))
        }
        outcome if outcome == wanted => Look::Holds(format!("the comparison of {entity} came to no end")),
        outcome if clear.contains(&outcome) => Look::Clear,
        _ => Look::Unknown,
    };
    verdicts.iter().map(|v| (Subject::Entity(v.entity.clone()), look(&v.outcome, &v.entity))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::status::tests::{NOW, example};
    use crate::status::Validity;
    use crate::value::MICROS_PER_DAY;

    fn holds(text: &str, status: &Status) -> Vec<String> {
        let looks = Condition::parse(text).unwrap().look(status, NOW);
        let held = looks.into_iter().filter_map(|(_, look)| match look {
            Look::Holds(text) => Some(text),
            _ => None,
        });
        held.collect()
    }

    #[test]
    fn conditions_are_read_with_their_limits() {
        let kind = |text: &str| Condition::parse(text).map(|condition| condition.kind);

        assert_eq!(kind("stopped"), Ok(Kind::Stopped));
        assert_eq!(kind("lag>60s"), Ok(Kind::Lag(Duration::from_secs(60))));
        assert_eq!(kind(" retained_wal >  5GiB "), Ok(Kind::RetainedWal(5 << 30)));
        assert_eq!((kind("quarantine"), kind("quarantine > 10")), (Ok(Kind::Quarantine(0)), Ok(Kind::Quarantine(10))));
        assert_eq!(Condition::parse("lag>60s").unwrap().text, "lag > 60s");
        assert!(NAMES.iter().all(|(name, limit)| {
            kind(&limit.map_or((*name).to_owned(), |limit| format!("{name} > {limit}"))).is_ok()
        }));
        for (wrong, why) in [
            ("stoped", "nearest: \"stopped\""),
            ("lag", "needs a duration as its limit: \"lag > 60s\""),
            ("lag > much", "needs a duration"),
            ("retained_wal > 5", "needs a size as its limit: \"retained_wal > 5GiB\""),
            ("stopped > 5", "takes none"),
            ("quarantine > some", "needs a number as its limit: \"quarantine > 10\""),
        ] {
            let said = kind(wrong).unwrap_err();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_condition_holds_for_what_it_is_the_matter_with() {
        let status = example();
        *status.state.lock().unwrap() = "running";
        assert_eq!(holds("stopped", &status), Vec::<String>::new());
        *status.systems[1].apply.state.lock().unwrap() = State::Stopped("a table is gone".into());
        status.entities[0].quarantined.set(3);

        assert_eq!(holds("stopped", &status), ["shop is stopped: a table is gone"]);
        assert_eq!(holds("lag > 1s", &status), ["shop is 2 s behind"]);
        assert_eq!(holds("lag > 2s", &status), Vec::<String>::new());
        assert_eq!(holds("retained_wal > 10MiB", &status), ["crm keeps 16777216 bytes of its log for us"]);
        assert_eq!(holds("quarantine > 2", &status), ["contact: 3 records are in quarantine"]);
        assert_eq!(holds("quarantine > 3", &status), Vec::<String>::new());
        assert_eq!(holds("conflict_waiting", &status), ["contact: 1 conflicts wait for a person"]);
        *status.certificate.lock().unwrap() = None;
        assert_eq!(holds("certificate", &status), Vec::<String>::new(), "no TLS");
        let valid_for = |days: i64| Some(Validity { from: 0, until: NOW + days * MICROS_PER_DAY });
        *status.certificate.lock().unwrap() = valid_for(15);
        assert_eq!(holds("certificate", &status), Vec::<String>::new());
        *status.certificate.lock().unwrap() = valid_for(13);
        assert!(holds("certificate", &status)[0].starts_with("the port's certificate expires in 13 days"));
    }

    #[test]
    fn what_is_not_known_yet_is_neither_over_nor_there() {
        let status = example();
        *status.state.lock().unwrap() = "starting";
        *status.systems[0].capture.state.lock().unwrap() = State::Connecting;
        let looks = |text: &str| Condition::parse(text).unwrap().look(&status, NOW);

        assert_eq!(looks("quarantine")[0].1, Look::Unknown);
        assert_eq!(looks("stopped")[0].1, Look::Unknown);
        assert_eq!(looks("retained_wal > 1B")[1].1, Look::Unknown, "shop has not told");
        assert_eq!(looks("unreachable > 5m")[0].1, Look::Unknown, "its turn has not come");
        *status.state.lock().unwrap() = "running";
        let looks = |text: &str| Condition::parse(text).unwrap().look(&status, NOW);
        assert!(matches!(looks("unreachable > 5m")[0].1, Look::Holds(_)));
    }
}
