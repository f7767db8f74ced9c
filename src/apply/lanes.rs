//! The connections over which one target is written, and the transactions under way on them.
//!
//! ```text
//! submit ─▶ begin ─▶ write … ─▶ flush ─▶ wait ─▶ commit        the turn: `land` of the oldest one
//!              ▲                           │
//!              └── when it is its turn ◀── rollback: the server refused it, or it is in the way
//! ```
//!
//! COMMITs are sent one after the other, each when the one before it is acknowledged. A later transaction
//! never saw what an earlier one has not committed: what the server says of it before its turn may be
//! untrue then, so it is repeated. And it may hold a lock that an earlier one needs, which no server can
//! see, because it waits for us: when the oldest one takes longer than it should while a later one
//! is done, the later one gives way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{Instrument, debug};

use crate::apply::batch::Group;
use crate::apply::{Target, is_fenced};
use crate::error::{Error, Recovery, Result};
use crate::failpoint;
use crate::marker::Marker;

/// The oldest transaction is given so much longer than a later one took, in proportion, before that one gives way.
const GIVES_WAY_AFTER: Duration = Duration::from_millis(50);
const TIMES_AS_LONG: f64 = 4.0;
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Where the log's reader is not sent what is written (with one connection only), it is shown the marker so
/// often while there is something to write.
pub(super) const SHOW_EVERY: Duration = Duration::from_millis(500);

/// What one transaction writes.
#[derive(Debug)]
pub struct Flight {
    pub marker: Marker,
    pub groups: Vec<Group>,
}

impl Flight {
    fn rows(&self) -> usize {
        self.groups.iter().map(|group| group.rows.len()).sum()
    }
}

/// What a transaction is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Others come first.
    Later,
    /// Others come first, and it is in their way.
    GiveWay,
    Now,
    /// One before it was refused.
    Never,
}

/// How long a transaction took to be written; none while it is not.
type Written = Option<Duration>;

/// A transaction under way, on the connection that comes back with its outcome.
struct Aloft<T> {
    lane: usize,
    rows: usize,
    turn: watch::Sender<Turn>,
    written: watch::Receiver<Written>,
    task: JoinHandle<(T, Result<()>)>,
}

impl<T> Drop for Aloft<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Make<T> = Box<dyn Fn(u32) -> T + Send>;

pub struct Lanes<T> {
    make: Make<T>,
    /// Connections with nothing under way.
    free: Vec<Option<T>>,
    /// The oldest one first.
    aloft: VecDeque<Aloft<T>>,
}

impl<T: Target + 'static> Lanes<T> {
    /// So many connections, of which `make` makes each by its number.
    pub fn new(connections: usize, make: impl Fn(u32) -> T + Send + 'static) -> Self {
        let free = (0..connections).map(|_| None).collect();
        Lanes { make: Box::new(make), free, aloft: VecDeque::new() }
    }

    pub fn connections(&self) -> usize {
        self.free.len()
    }

    /// The first connection, for what is written alone.
    pub fn first(&mut self) -> &mut T {
        debug_assert!(self.aloft.is_empty(), "what is written alone waits for the others");
        self.free[0].get_or_insert_with(|| (self.make)(0))
    }

    /// The first connection where nothing is under way on it.
    pub fn idle(&mut self) -> Option<&mut T> {
        self.free[0].as_mut()
    }

    /// Lets go of what is under way, and of the locks that it has; the marker tells what became of it.
    pub fn give_up(&mut self) {
        self.aloft.clear();
    }

    /// Opens all connections.
    pub async fn open(&mut self) -> Result<Marker> {
        self.give_up();
        for (lane, free) in self.free.iter_mut().enumerate() {
            free.get_or_insert_with(|| (self.make)(lane as u32));
        }
        let (first, others) = self.free.split_first_mut().expect("there is one at least");
        let first = first.as_mut().expect("made above");
        let marker = first.open().await?;
        for other in others.iter_mut().flatten() {
            other.join(first.rows()).await?;
        }
        Ok(marker)
    }

    /// Begins to write a transaction on a connection that is free.
    pub fn submit(&mut self, flight: Flight) {
        let lane = self.free.iter().position(Option::is_some).expect("no more are under way than there are lanes");
        let target = self.free[lane].take().expect("found just now");
        let first = if self.aloft.is_empty() { Turn::Now } else { Turn::Later };
        let (turn, told) = watch::channel(first);
        let (tell, written) = watch::channel(None);
        let rows = flight.rows();
        let task = tokio::spawn(fly(target, flight, told, tell).in_current_span());
        self.aloft.push_back(Aloft { lane, rows, turn, written, task });
    }

    /// Waits for the commit of the oldest transaction. `Quarantine`: it was refused in its turn, nothing
    /// of it and of later ones was committed, and all connections are free. After any other error
    /// they have to be opened.
    pub async fn land(&mut self) -> Result<()> {
        let Some(mut oldest) = self.aloft.pop_front() else { return Ok(()) };
        oldest.turn.send_replace(Turn::Now);
        let since = Instant::now();
        let ended = loop {
            tokio::select! {
                ended = &mut oldest.task => break ended,
                () = tokio::time::sleep(LOOK_EVERY), if !self.aloft.is_empty() => self.give_way(oldest.rows, since),
            }
        };
        let (target, outcome) = ended.map_err(|_| Error::retry("the connection's task has ended"))?;
        self.free[oldest.lane] = Some(target);
        match outcome {
            Err(error) if error.recovery == Recovery::Quarantine => {
                self.ground().await?;
                Err(error)
            }
            outcome => outcome,
        }
    }

    /// Has those give way that are done while the oldest one, in its turn `since` then, takes too long.
    fn give_way(&self, rows: usize, since: Instant) {
        for later in &self.aloft {
            let Some(took) = *later.written.borrow() else { continue };
            let times = TIMES_AS_LONG * (rows as f64 / later.rows.max(1) as f64).max(1.0);
            if *later.turn.borrow() == Turn::Later && since.elapsed() > GIVES_WAY_AFTER + took.mul_f64(times) {
                debug!(lane = later.lane, "a transaction gives way to an earlier one");
                later.turn.send_replace(Turn::GiveWay);
            }
        }
    }

    /// Takes all back that is under way.
    async fn ground(&mut self) -> Result<()> {
        let mut result = Ok(());
        for later in &self.aloft {
            later.turn.send_replace(Turn::Never);
        }
        while let Some(mut later) = self.aloft.pop_front() {
            let ended = (&mut later.task).await.map_err(|_| Error::retry("the connection's task has ended"));
            match ended {
                Ok((target, Ok(()))) => self.free[later.lane] = Some(target),
                Ok((_, Err(error))) | Err(error) => result = Err(error),
            }
        }
        result
    }
}

/// One transaction until it is committed, or given up. Not `Ok` where it was told never to commit
/// and could not be rolled back.
async fn fly<T: Target>(
    mut target: T,
    flight: Flight,
    mut turn: watch::Receiver<Turn>,
    written: watch::Sender<Written>,
) -> (T, Result<()>) {
    let outcome = steer(&mut target, &flight, &mut turn, &written).await;
    (target, outcome)
}

async fn steer<T: Target>(
    target: &mut T,
    flight: &Flight,
    turn: &mut watch::Receiver<Turn>,
    written: &watch::Sender<Written>,
) -> Result<()> {
    loop {
        let in_turn = *turn.borrow() == Turn::Now;
        let begun = Instant::now();
        if let Err(error) = write(target, flight, turn).await {
            if in_turn || is_fenced(&error) {
                return refused(target, error).await;
            }
            debug!(error = %error, "a transaction was refused before its turn, and is repeated in it");
            target.rollback().await?;
        } else {
            written.send_replace(Some(begun.elapsed()));
            match told(turn, |turn| turn != Turn::Later).await? {
                Turn::Now => return commit(target).await,
                Turn::Never => return target.rollback().await,
                Turn::GiveWay | Turn::Later => target.rollback().await?,
            }
        }
        written.send_replace(None);
        if told(turn, |turn| matches!(turn, Turn::Now | Turn::Never)).await? == Turn::Never {
            return Ok(());
        }
    }
}

async fn told(turn: &mut watch::Receiver<Turn>, is: impl Fn(Turn) -> bool) -> Result<Turn> {
    let given_up = |_| Error::retry("the transaction was given up");
    turn.wait_for(|turn| is(*turn)).await.map(|turn| *turn).map_err(given_up)
}

async fn write<T: Target>(target: &mut T, flight: &Flight, turn: &watch::Receiver<Turn>) -> Result<()> {
    target.begin(&flight.marker).await?;
    for group in &flight.groups {
        let rows = group.rows();
        target.write(&group.table_rows(&rows)).await?;
    }
    // In its turn all goes with the commit.
    let in_turn = *turn.borrow() == Turn::Now;
    match in_turn {
        true => Ok(()),
        false => target.flush().await,
    }
}

async fn commit<T: Target>(target: &mut T) -> Result<()> {
    failpoint::pass("before-target-commit");
    if let Err(error) = target.commit().await {
        return refused(target, error).await;
    }
    failpoint::pass("after-target-commit");
    match target.hidden().is_some_and(|since| since > SHOW_EVERY) {
        true => target.show().await,
        false => Ok(()),
    }
}

/// What was refused leaves the connection usable.
async fn refused<T: Target>(target: &mut T, error: Error) -> Result<()> {
    if error.recovery == Recovery::Quarantine {
        target.rollback().await?;
    }
    Err(error)
}
