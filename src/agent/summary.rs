//! Once a minute a line for each system where anything happened, and for each entity with conflicts:
//! what a reader of the log wants to know between two state changes.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::status::{EntityStatus, Status, SystemStatus};

const EVERY: Duration = Duration::from_secs(60);

/// How far the counters of one system or entity were.
#[derive(Debug, Clone, Copy)]
struct Counts<const N: usize>([u64; N]);

impl<const N: usize> Counts<N> {
    fn since(self, before: Self) -> Self {
        let mut grown = self;
        grown.0.iter_mut().zip(before.0).for_each(|(now, before)| *now = now.saturating_sub(before));
        grown
    }

    fn any(self) -> bool {
        self.0.iter().any(|count| *count > 0)
    }
}

fn of_system(system: &SystemStatus) -> Counts<5> {
    let (capture, apply) = (&system.capture, &system.apply);
    Counts([
        capture.changes.get(),
        capture.transactions.get(),
        capture.echoes.get(),
        apply.changes.get(),
        apply.transactions.get(),
    ])
}

fn of_entity(entity: &EntityStatus) -> Counts<2> {
    Counts([entity.conflicts.get(), entity.rejected.get()])
}

/// Until `stop`.
pub async fn tell(status: Arc<Status>, stop: CancellationToken) {
    tell_every(EVERY, status, stop).await;
}

async fn tell_every(every: Duration, status: Arc<Status>, stop: CancellationToken) {
    let mut systems: Vec<Counts<5>> = status.systems.iter().map(of_system).collect();
    let mut entities: Vec<Counts<2>> = status.entities.iter().map(of_entity).collect();
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        for (system, before) in status.systems.iter().zip(&mut systems) {
            let now = of_system(system);
            let grown = now.since(std::mem::replace(before, now));
            if grown.any() {
                let Counts([captured, transactions, echoes, applied, entries]) = grown;
                let pending = system.apply.pending();
                let lag_ms = system.capture.lag.get().max(0) / 1000;
                info!(system = %system.name, captured, transactions, echoes, applied, entries, pending, lag_ms, "last minute");
            }
        }
        for (entity, before) in status.entities.iter().zip(&mut entities) {
            let now = of_entity(entity);
            let grown = now.since(std::mem::replace(before, now));
            if grown.any() {
                let Counts([conflicts, rejected]) = grown;
                let (waiting, quarantined) = (entity.waiting.get(), entity.quarantined.get());
                info!(entity = entity.name, conflicts, rejected, waiting, quarantined, "conflicts of the last minute");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;
    use crate::http::status::tests::example;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn only_what_moved_is_told_with_by_how_much() {
        let (status, lines, stop) = (example(), Lines::default(), CancellationToken::new());
        let writer = lines.clone();
        let log =
            tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(log);
        let telling = tell_every(Duration::from_millis(20), status.clone(), stop.clone());
        let moving = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            status.systems[0].capture.changes.add(7);
            status.systems[0].capture.transactions.add(2);
            status.entities[0].conflicts.add(3);
            tokio::time::sleep(Duration::from_millis(70)).await;
            stop.cancel();
        };

        tokio::join!(telling, moving);

        let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains("last minute system=crm captured=7 transactions=2 echoes=0 applied=0"), "{said}");
        assert!(
            said.contains("conflicts of the last minute entity=\"contact\" conflicts=3 rejected=0 waiting=1"),
            "{said}"
        );
    }
}
