//! No marker is seen without its rows, nor rows before their marker: readers look at each system while all
//! this goes on, at marker and ledger in one snapshot, and remember. Which entry each row of the ledger is
//! of, the audit trail tells afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::account::Written;
use crate::support::servers::{Db, Rows, Session};

/// Between two looks at a system.
const PAUSE: Duration = Duration::from_millis(4);

/// What one snapshot showed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    seq: u64,
    part: u64,
    /// Of the transactions in the ledger, from `first` on.
    numbers: BTreeSet<u64>,
}

/// What was seen of one system in one schedule.
pub struct Watch {
    looks: Vec<Look>,
    system: String,
    first: u64,
    seed: u64,
}

/// One that is looking at a system, for as long as it lives.
pub struct Watching {
    system: String,
    /// From which transaction on; those before are everywhere.
    first: Arc<AtomicU64>,
    looks: Arc<Mutex<Vec<Look>>>,
    _stop: DropGuard,
}

impl Watching {
    pub fn new(db: &Db, system: &str) -> Watching {
        let stop = CancellationToken::new();
        let watching = Watching {
            system: system.to_owned(),
            first: Arc::default(),
            looks: Arc::default(),
            _stop: stop.clone().drop_guard(),
        };
        let (server, user, name) = (db.server.clone(), db.application.clone(), db.name.clone());
        let (marker, first, looks) = (db.marker.clone(), watching.first.clone(), watching.looks.clone());
        tokio::spawn(async move {
            let mut session = None;
            while !stop.is_cancelled() {
                if session.is_none() {
                    session = Session::open_as(&server, &user, server.port, Some(&name)).await.ok();
                }
                // A server that died is looked at again when it lives.
                if let Some(open) = &mut session {
                    match open.try_rows(&look(&marker, first.load(Ordering::Relaxed))).await {
                        Ok(rows) => remember(&mut looks.lock().unwrap(), &rows),
                        Err(_) => session = None,
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        watching
    }

    /// From here on at transactions from `first` on.
    pub fn begin(&self, first: u64) {
        self.first.store(first, Ordering::Relaxed);
        self.looks.lock().unwrap().clear();
    }

    /// What was seen since it began.
    pub fn end(&self, seed: u64) -> Watch {
        let looks = std::mem::take(&mut *self.looks.lock().unwrap());
        assert!(!looks.is_empty(), "nobody looks at {}", self.system);
        Watch { looks, system: self.system.clone(), first: self.first.load(Ordering::Relaxed), seed }
    }
}

/// One statement, one snapshot.
fn look(marker: &str, first: u64) -> String {
    format!("SELECT 0, seq, part FROM {marker}.marker UNION ALL SELECT 1, n, 0 FROM ledger WHERE n >= {first}")
}

fn remember(looks: &mut Vec<Look>, rows: &Rows) {
    let number = |value: &Option<String>| value.as_deref().unwrap().parse::<u64>().unwrap();
    let is_marker = |row: &Vec<Option<String>>| number(&row[0]) == 0;
    let marker = rows.iter().find(|row| is_marker(row)).expect("the agent has made its marker");
    let numbers = rows.iter().filter(|row| !is_marker(row)).map(|row| number(&row[1])).collect();
    let look = Look { seq: number(&marker[1]), part: number(&marker[2]), numbers };
    if looks.last() != Some(&look) {
        looks.push(look);
    }
}

impl Watch {
    /// `entries`: each transaction's. Returns how many looks were at different states.
    pub fn check(&self, entries: &BTreeMap<u64, Written>) -> usize {
        for Look { seq, part, numbers } in &self.looks {
            let from_others = entries.range(self.first..).filter(|(_, entry)| entry.system != self.system);
            for (number, entry) in from_others {
                // In the midst of an entry, its rows come one after the other.
                if *part != 0 && entry.seq == seq + 1 {
                    continue;
                }
                let (told, there) = (entry.seq <= *seq, numbers.contains(number));
                assert_eq!(
                    told, there,
                    "seed {}: {} had marker {seq} and transactions {numbers:?}: {number} is entry {} of {}",
                    self.seed, self.system, entry.seq, entry.system
                );
            }
        }
        self.looks.len()
    }
}
