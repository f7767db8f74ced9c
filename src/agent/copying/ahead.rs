//! Reads the chunks of a pass ahead of what is made of them.
//!
//! ```text
//! reader 1   low ─▶ rows ─▶ log's end ─▶ captured so far ─┐
//! reader 2            low ─▶ rows ─▶ log's end ─▶ …       ├─▶ in key order: compared, handed in
//! reader 3                    low ─▶ rows ─▶ …            ┘
//! ```
//!
//! Each chunk has its own two moments of the log, and its own read. Where one ends the next
//! begins, so rows come one chunk after the other: one connection's are as many as can be
//! written. What is done at once is all the rest: the waits for the log, the comparing, the
//! journal.
//!
//! There are never more chunks in memory than readers, all together about as large whatever
//! their number.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::chunk::Chunk;
use super::{Context, gone};
use crate::error::Result;
use crate::scan::{Page, PageSize, Plan, Scanner};
use crate::schema::SystemId;

/// What is read, and how.
#[derive(Clone)]
pub struct Spec {
    pub context: Arc<Context>,
    pub source: SystemId,
    pub plan: Plan,
    /// Rows per second.
    pub max_rate: Option<u64>,
}

/// One chunk, all of it captured by now or behind what was read.
pub struct Fetched {
    pub chunk: Chunk,
    pub page: Page,
    /// Another one may be read when it is dropped.
    pub place: OwnedSemaphorePermit,
}

/// Gives up whatever it has read where it is dropped.
pub struct Ahead {
    chunks: mpsc::Receiver<oneshot::Receiver<Result<Fetched>>>,
    _readers: JoinSet<()>,
}

/// Where the next chunk begins; who has it reads.
struct Next {
    after: Option<Vec<u8>>,
    size: PageSize,
    /// Nothing is left, or something failed.
    ended: bool,
    read: u64,
    started: Instant,
}

impl Ahead {
    pub fn begin(spec: &Spec, parallel: usize, after: Option<Vec<u8>>, size: PageSize) -> Self {
        let next = Next { after, size, ended: false, read: 0, started: Instant::now() };
        let (next, places) = (Arc::new(Mutex::new(next)), Arc::new(Semaphore::new(parallel)));
        let (told, chunks) = mpsc::channel(parallel);
        let mut readers = JoinSet::new();
        for _ in 0..parallel {
            let reader = Reader { spec: spec.clone(), scanner: None };
            readers.spawn(reader.run(next.clone(), places.clone(), told.clone()).in_current_span());
        }
        Ahead { chunks, _readers: readers }
    }

    /// The next one in key order. After an error there is none.
    pub async fn next(&mut self) -> Result<Fetched> {
        let chunk = self.chunks.recv().await.ok_or_else(gone)?;
        chunk.await.map_err(|_| gone())?
    }
}

struct Reader {
    spec: Spec,
    scanner: Option<Scanner>,
}

impl Reader {
    async fn run(
        mut self,
        next: Arc<Mutex<Next>>,
        places: Arc<Semaphore>,
        told: mpsc::Sender<oneshot::Receiver<Result<Fetched>>>,
    ) {
        loop {
            // Without the place nobody needs the key; with it, places are taken in key order.
            let mut next = next.lock().await;
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (reply, chunk) = oneshot::channel();
            if next.ended || told.send(chunk).await.is_err() {
                return;
            }
            let read = self.read(&mut next).await;
            next.ended |= read.as_ref().map_or(true, |(_, page)| page.end);
            drop(next);
            let fetched = match read {
                Ok((chunk, page)) => self.until_captured().await.map(|()| Fetched { chunk, page, place }),
                Err(error) => Err(error),
            };
            let failed = fetched.is_err();
            if reply.send(fetched).is_err() || failed {
                return;
            }
        }
    }

    /// No faster than asked, and little at a time rather than much and then nothing for long.
    async fn read(&mut self, next: &mut Next) -> Result<(Chunk, Page)> {
        let Spec { context, source, plan, max_rate } = &self.spec;
        let rate = max_rate.filter(|rate| *rate > 0);
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(next.read as f64 / rate as f64);
            context.pause(due.saturating_sub(next.started.elapsed())).await?;
        }
        let size = rate.map_or(next.size, |rate| next.size.at_most(rate.div_ceil(2) as usize));
        let scanner = match &mut self.scanner {
            Some(scanner) => scanner,
            none => none.insert(Scanner::connect(&context.config, *source).await?),
        };
        let chunk = context.open(*source, plan.entity, Default::default()).await?;
        context.begin(scanner, &chunk.low).await?;
        let page = scanner.page(plan, next.after.as_deref(), size).await?;
        next.size.learn(&page);
        next.read += page.seen;
        next.after = page.last.clone().or(next.after.take());
        Ok((chunk, page))
    }

    async fn until_captured(&mut self) -> Result<()> {
        let Spec { context, source, .. } = &self.spec;
        let scanner = self.scanner.as_mut().expect("it has just read");
        let high = scanner.finish().await?;
        context.captured(*source, scanner, &high).await
    }
}
