//! From commit at the source to visible at the target, of a steady trickle.

use std::time::{Duration, Instant};

use crate::common::item_values;
use crate::contest::Run;
use crate::support::servers::{Db, Session};

/// Transactions per second, from so many connections: one that waits for its disk at each
/// commit would not get there.
const RATE: u64 = 500;
const WRITERS: u64 = 4;
/// Each writer's keys begin at a multiple of this.
const APART: u64 = 1_000_000;
/// How often the reader looks.
const LOOK: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes for a minute times `scale` (5 s at least), and fills in what became of it.
pub async fn measure(source: &Db, mut target: Session, scale: f64, run: &mut Run) {
    let lasts = Duration::from_secs_f64((60.0 * scale).max(5.0));
    let each = (lasts.as_secs_f64() * RATE as f64 / WRITERS as f64) as u64;
    let (told, mut committed) = tokio::sync::mpsc::unbounded_channel();
    let begun = Instant::now();
    for writer in 0..WRITERS {
        let (mut session, told, kind) = (source.session().await, told.clone(), source.kind);
        tokio::spawn(async move {
            for n in 1..=each {
                let due = Duration::from_secs_f64((n * WRITERS + writer) as f64 / RATE as f64);
                tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
                let id = writer * APART + n;
                session.execute(&format!("INSERT INTO item SELECT {}", item_values(kind, &id.to_string()))).await;
                let _ = told.send((id, Instant::now()));
            }
        });
    }
    drop(told);
    let last = |w: u64| {
        let (low, high) = (w * APART, (w + 1) * APART);
        format!("(SELECT coalesce(max(id), {low}) FROM item WHERE id > {low} AND id < {high})")
    };
    let query = format!("SELECT {}", (0..WRITERS).map(last).collect::<Vec<_>>().join(", "));
    let mut waiting: Vec<(u64, Instant)> = Vec::new();
    let mut seen = vec![(0, Instant::now()); (WRITERS * each) as usize];
    let mut highest: Vec<u64> = (0..WRITERS).map(|w| w * APART).collect();
    while run.latencies.len() < (WRITERS * each) as usize {
        let now_there: Vec<u64> =
            target.rows(&query).await[0].iter().map(|id| id.as_ref().unwrap().parse().unwrap()).collect();
        let now = Instant::now();
        let place = |id: u64| (id / APART * each + id % APART - 1) as usize;
        for (from, to) in highest.iter_mut().zip(now_there) {
            (*from + 1..=to).for_each(|id| seen[place(id)] = (id, now));
            *from = to;
        }
        while let Ok(commit) = committed.try_recv() {
            waiting.push(commit);
        }
        // What is seen before its writer is answered took no time.
        waiting.retain(|(id, at)| {
            let (found, when) = seen[place(*id)];
            if found == *id {
                run.latencies.push(when.saturating_duration_since(*at));
            }
            found != *id
        });
        assert!(begun.elapsed() < lasts + PATIENCE, "{} are not there {PATIENCE:?} after the last one", waiting.len());
        tokio::time::sleep(LOOK).await;
    }
    run.took = begun.elapsed();
    (run.rows, run.transactions) = (WRITERS * each, WRITERS * each);
    run.latencies.sort();
}

/// The latency that so many of a thousand stay below.
pub fn per_mille(sorted: &[Duration], of_thousand: usize) -> Duration {
    sorted[(sorted.len() * of_thousand / 1000).min(sorted.len() - 1)]
}
