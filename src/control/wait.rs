//! Returns when everything that was committed anywhere before the call is applied everywhere.
//!
//! Each log's end is taken from its server; once the journal has every log up to there, and what
//! was there before any log is loaded, its head covers all of it; once every target has that head,
//! it is there. What was set aside on the way, and a system or a load that needs a person, make the
//! answer a failure.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Probe;
use crate::http::status::worst;
use crate::load::LoadProgress;
use crate::position::{Position, Seq};
use crate::schema::SystemId;
use crate::status::State;

/// How often progress is looked at: in memory, so it may be often.
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// Everything is applied everywhere, and nothing of it is in quarantine.
    pub done: bool,
    /// The journal's head that was waited for; 0 where it did not come so far.
    pub head: Seq,
    pub elapsed_ms: u64,
    /// Why not, one sentence each.
    pub problems: Vec<String>,
}

pub async fn wait(probe: &impl Probe, timeout: Duration) -> Waited {
    let started = Instant::now();
    let mut waiter = Waiter { probe, deadline: started + timeout, refused: refused(probe), head: 0 };
    let problems = match waiter.run().await {
        Ok(()) => waiter.set_aside(),
        Err(problems) => problems,
    };
    Waited {
        done: problems.is_empty(),
        head: waiter.head,
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        problems,
    }
}

/// Returns when the journal has everything that was committed before the call; what it may lack
/// after that time, one sentence each.
pub(super) async fn captured(probe: &impl Probe, timeout: Duration) -> Vec<String> {
    let waiter = Waiter { probe, deadline: Instant::now() + timeout, refused: 0, head: 0 };
    waiter.captured().await.err().unwrap_or_default()
}

struct Waiter<'a, P> {
    probe: &'a P,
    deadline: Instant,
    /// Changes quarantined at capture before the call.
    refused: u64,
    head: Seq,
}

impl<P: Probe> Waiter<'_, P> {
    async fn run(&mut self) -> Result<(), Vec<String>> {
        self.until(|probe| match *probe.status().state.lock().expect("never held across a panic") {
            "starting" => vec!["the agent is still starting".into()],
            _ => vec![],
        })
        .await?;
        self.captured().await?;
        // Logs are read, so that the first loads are on the list by now.
        self.until(loading).await?;
        let failed = failed_loads(self.probe);
        if !failed.is_empty() {
            return Err(failed);
        }
        let head = self.probe.head();
        self.head = head;
        self.until(|probe| {
            let seqs = systems(probe).filter_map(|s| Some((s, probe.applied(s)?)));
            let behind = seqs.filter(|(_, seq)| *seq < head);
            behind.map(|(s, seq)| format!("{}: has seq {seq} of {head}", name(probe, s))).collect()
        })
        .await
    }

    async fn captured(&self) -> Result<(), Vec<String>> {
        let ends = self.log_ends().await?;
        self.until(|probe| {
            let behind = ends.iter().filter(|(system, end)| !probe.captured(*system, end));
            behind.map(|(system, end)| format!("{}: not captured up to {end}", name(probe, *system))).collect()
        })
        .await
    }

    /// The end of each captured log; a server that does not answer is asked again.
    async fn log_ends(&self) -> Result<Vec<(SystemId, Position)>, Vec<String>> {
        let mut ends = Vec::new();
        for system in systems(self.probe).filter(|s| is_captured(self.probe, *s)) {
            loop {
                self.stopped()?;
                let error = match tokio::time::timeout_at(self.deadline.into(), self.probe.log_end(system)).await {
                    Ok(Ok(end)) => break ends.push((system, end)),
                    Ok(Err(error)) => error.full(),
                    Err(_) => "the server does not answer".into(),
                };
                if Instant::now() + POLL * 10 >= self.deadline {
                    return Err(vec![format!("{}: cannot tell the end of its log: {error}", name(self.probe, system))]);
                }
                tokio::time::sleep(POLL * 10).await;
            }
        }
        Ok(ends)
    }

    /// Polls until `missing` returns nothing; at the deadline what it returned is the answer.
    async fn until(&self, missing: impl Fn(&P) -> Vec<String>) -> Result<(), Vec<String>> {
        loop {
            self.stopped()?;
            let missing = missing(self.probe);
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                return Err(missing);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn stopped(&self) -> Result<(), Vec<String>> {
        let stopped = self.probe.status().systems.iter().filter_map(|system| match worst(system) {
            State::Stopped(error) => Some(format!("{}: stopped: {error}", system.name)),
            State::Paused => Some(format!("{0}: paused; anechoic resume {0}", system.name)),
            _ => None,
        });
        let stopped: Vec<String> = stopped.collect();
        if stopped.is_empty() { Ok(()) } else { Err(stopped) }
    }

    /// What is committed somewhere and not applied somewhere else, and will not be by waiting.
    fn set_aside(&self) -> Vec<String> {
        let held = self.probe.quarantined();
        let held = held.iter().filter(|held| held.held_seq <= self.head);
        let mut problems: Vec<String> =
            held.map(|h| format!("{}: {} {} is in quarantine: {}", h.system, h.entity, h.key, h.reason)).collect();
        let refused = refused(self.probe) - self.refused;
        if refused > 0 {
            problems.push(format!("{refused} changes could not be carried and are in quarantine"));
        }
        problems
    }
}

fn systems(probe: &impl Probe) -> impl Iterator<Item = SystemId> {
    (0..probe.status().systems.len()).map(|i| SystemId(u8::try_from(i).expect("at most 64 systems")))
}

/// Rows that were there before anything was read of their log are still copied.
fn loading(probe: &impl Probe) -> Vec<String> {
    let loads = probe.status().loads.lock().expect("never held across a panic");
    let under_way = loads.iter().filter(|load| !load.is_over());
    let told = |load: &LoadProgress| match &load.error {
        Some(error) => format!("{}: is still loaded: {error}", load.entity),
        None => format!("{}: is still loaded, {} rows read", load.entity, load.read),
    };
    under_way.map(told).collect()
}

fn failed_loads(probe: &impl Probe) -> Vec<String> {
    let loads = probe.status().loads.lock().expect("never held across a panic");
    let told = |load: &LoadProgress| {
        let why = load.error.as_deref().unwrap_or_default();
        format!("{0}: its load failed: {why}; then: anechoic load {0}", load.entity)
    };
    loads.iter().filter(|load| load.is_failed()).map(told).collect()
}

fn is_captured(probe: &impl Probe, system: SystemId) -> bool {
    let state = &probe.status().systems[system.index()].capture.state;
    *state.lock().expect("never held across a panic") != State::Unused
}

fn name(probe: &impl Probe, system: SystemId) -> String {
    probe.status().systems[system.index()].name.to_string()
}

fn refused(probe: &impl Probe) -> u64 {
    probe.status().systems.iter().map(|s| s.capture.refused.get()).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::alert::Tried;
    use crate::audit::conflicts::{Conflict, ListSpec, Shown};
    use crate::audit::export::{AuditSpec, Page};
    use crate::audit::history::{History, HistorySpec};
    use crate::audit::resolve::{Choice, Resolved};
    use crate::audit::undo::{UndoSpec, Undone};
    use crate::change::ConflictId;
    use crate::control::{Held, HeldSpec, OfHeld, Treated};
    use crate::error::{Error, Result};
    use crate::status::Status;

    /// Two systems whose logs end at 5; capture and apply stand where the test puts them.
    pub(crate) struct Fake {
        pub status: Arc<Status>,
        pub captured: AtomicU64,
        pub applied: AtomicU64,
        pub held: Vec<Held>,
        pub stopped: AtomicU64,
    }

    impl Fake {
        pub(crate) fn new(captured: u64, applied: u64) -> Self {
            Fake {
                status: crate::http::status::tests::example(),
                captured: captured.into(),
                applied: applied.into(),
                held: vec![],
                stopped: 0.into(),
            }
        }
    }

    impl Probe for Fake {
        fn status(&self) -> &Arc<Status> {
            &self.status
        }

        async fn log_end(&self, _: SystemId) -> Result<Position> {
            Ok(Position::Memory { index: 5 })
        }

        fn captured(&self, _: SystemId, end: &Position) -> bool {
            matches!(end, Position::Memory { index } if *index <= self.captured.load(Ordering::Relaxed))
        }

        fn head(&self) -> Seq {
            7
        }

        fn applied(&self, system: SystemId) -> Option<Seq> {
            (system.0 == 1).then(|| self.applied.load(Ordering::Relaxed))
        }

        fn quarantined(&self) -> Vec<Held> {
            self.held.clone()
        }

        fn verify(&self, _: crate::load::VerifySpec) -> Result<()> {
            Ok(())
        }

        fn resync(&self, _: crate::load::ResyncSpec) -> Result<()> {
            Ok(())
        }

        fn load(&self, _: crate::load::LoadSpec) -> Result<()> {
            Ok(())
        }

        async fn audit(&self, _: AuditSpec) -> Result<Page> {
            Ok(Page { operations: Vec::new(), next: None })
        }

        async fn history(&self, spec: HistorySpec) -> Result<History> {
            Err(Error::stop(format!("there is no entity {:?}", spec.entity), "anechoic status lists them"))
        }

        async fn conflicts(&self, _: ListSpec) -> Result<Vec<Conflict>> {
            Ok(Vec::new())
        }

        async fn conflict(&self, id: ConflictId) -> Result<Shown> {
            Err(Error::stop(format!("the journal has no conflict {id}"), "anechoic conflicts list"))
        }

        async fn resolve(&self, choice: Choice) -> Result<Resolved> {
            Ok(Resolved { id: choice.id, seq: 8 })
        }

        async fn undo(&self, _: UndoSpec) -> Result<Undone> {
            Ok(Undone { seq: 9, ..Undone::default() })
        }

        async fn pause(&self, system: &str, _: bool) -> Result<()> {
            let known = self.status.systems.iter().any(|known| *known.name == *system);
            known.then_some(()).ok_or_else(|| Error::stop(format!("there is no system {system:?}"), ""))
        }

        async fn set_aside(&self, _: HeldSpec, what: OfHeld) -> Result<Treated> {
            Ok(match what {
                OfHeld::Retry => Treated { done: 1, left: 0 },
                OfHeld::Drop => Treated { done: 0, left: 1 },
            })
        }

        async fn alert(&self, _: Option<String>) -> Vec<Tried> {
            Vec::new()
        }

        async fn reload(&self) -> Result<()> {
            Ok(())
        }

        fn stop(&self) {
            self.stopped.fetch_add(1, Ordering::Relaxed);
        }
    }

    const SHORT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn returns_once_captured_and_applied() {
        let fake = Arc::new(Fake::new(4, 6));
        let waiting = tokio::spawn({
            let fake = fake.clone();
            async move { wait(&*fake, Duration::from_secs(20)).await }
        });

        fake.captured.store(5, Ordering::Relaxed);
        fake.applied.store(7, Ordering::Relaxed);

        let waited = waiting.await.unwrap();
        assert!(waited.done, "{waited:?}");
        assert_eq!(waited.head, 7);
    }

    #[tokio::test]
    async fn at_the_deadline_it_says_who_is_behind() {
        assert_eq!(
            wait(&Fake::new(4, 7), SHORT).await.problems,
            ["crm: not captured up to 5", "shop: not captured up to 5"]
        );
        assert_eq!(wait(&Fake::new(5, 6), SHORT).await.problems, ["shop: has seq 6 of 7"]);
    }

    #[tokio::test]
    async fn a_stopped_system_ends_the_wait_at_once() {
        let fake = Fake::new(4, 7);
        *fake.status.systems[0].capture.state.lock().unwrap() = State::Stopped("slot is gone".into());

        let waited = wait(&fake, Duration::from_secs(3600)).await;

        assert_eq!((waited.done, waited.problems), (false, vec!["crm: stopped: slot is gone".into()]));
    }

    #[tokio::test]
    async fn a_paused_system_ends_the_wait_at_once_too() {
        let fake = Fake::new(4, 7);
        fake.status.systems[1].paused.store(true, Ordering::Relaxed);

        let waited = wait(&fake, Duration::from_secs(3600)).await;

        assert_eq!((waited.done, waited.problems), (false, vec!["shop: paused; anechoic resume shop".into()]));
    }

    #[tokio::test]
    async fn what_is_still_loaded_is_not_there_and_a_failed_load_ends_the_wait_at_once() {
        let load = |state: &str, error: Option<&str>| {
            let progress = LoadProgress { entity: "contact".into(), state: state.into(), ..LoadProgress::default() };
            LoadProgress { read: 20, error: error.map(Into::into), ..progress }
        };
        let fake = Arc::new(Fake::new(5, 7));
        let shown = |progress| *fake.status.loads.lock().unwrap() = vec![progress];

        shown(load("running", None));
        assert_eq!(wait(&*fake, SHORT).await.problems, ["contact: is still loaded, 20 rows read"]);
        shown(load("retrying", Some("away")));
        assert_eq!(wait(&*fake, SHORT).await.problems, ["contact: is still loaded: away"]);
        shown(load("failed", Some("no right")));
        assert!(captured(&*fake, SHORT).await.is_empty(), "the logs are read all the same");
        assert_eq!(
            wait(&*fake, Duration::from_secs(3600)).await.problems,
            ["contact: its load failed: no right; then: anechoic load contact"]
        );

        shown(load("waiting", None));
        let waiting = tokio::spawn({
            let fake = fake.clone();
            async move { wait(&*fake, Duration::from_secs(20)).await }
        });
        tokio::time::sleep(SHORT).await;
        assert!(!waiting.is_finished());
        shown(load("done", None));
        assert!(waiting.await.unwrap().done);
    }

    #[tokio::test]
    async fn what_is_in_quarantine_is_not_applied_everywhere() {
        let mut fake = Fake::new(5, 7);
        fake.held.push(Held {
            system: "shop".into(),
            entity: "contact".into(),
            key: "7".into(),
            before: None,
            after: None,
            op: "insert".into(),
            held_seq: 3,
            last_seq: 3,
            reason: "too long".into(),
            code: "1406".into(),
            attempts: 1,
            at: None,
        });

        let waited = wait(&fake, SHORT).await;

        assert_eq!((waited.done, waited.problems.len()), (false, 1), "{:?}", fake.held);
        assert!(waited.problems.iter().all(|p| p.contains("in quarantine: too long")));
    }
}
