//! What is waited for between two moments: that a read shows what was captured, that what it saw
//! is captured, that what is journaled is applied.

use std::time::{Duration, Instant};

use super::{Context, gone};
use crate::error::{Error, Result};
use crate::position::{Position, Seq};
use crate::scan::Scanner;
use crate::schema::{EntityId, SystemId};

/// A commit that is in the log is visible within moments, unless something is stuck.
const VISIBLE_WITHIN: Duration = Duration::from_secs(60);
const CAPTURED_WITHIN: Duration = Duration::from_secs(120);
/// After this an idle log is made to move: it may end before the position that its server tells.
const NUDGE_AFTER: Duration = Duration::from_millis(300);
pub const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Context {
    /// Begins a read that shows everything that the log has up to `low`.
    pub async fn begin(&self, scanner: &mut Scanner, low: &Position) -> Result<()> {
        let deadline = Instant::now() + VISIBLE_WITHIN;
        while !scanner.begin(low).await? {
            if Instant::now() > deadline {
                return Err(Error::retry(format!(
                    "a transaction before {low} is in the log and does not become visible"
                )));
            }
            self.pause(Duration::from_millis(2)).await?;
        }
        Ok(())
    }

    /// Until that system's log is captured up to `end`. `scanner` is one of the system.
    pub async fn captured(&self, system: SystemId, scanner: &mut Scanner, end: &Position) -> Result<()> {
        let mut taken = self.taken[system.index()].clone();
        if let Ok(reached) = tokio::time::timeout(NUDGE_AFTER, taken.wait_for(|at| at.reached(end))).await {
            return reached.map(drop).map_err(|_| gone());
        }
        scanner.nudge().await?;
        match tokio::time::timeout(CAPTURED_WITHIN, taken.wait_for(|at| at.reached(end))).await {
            Ok(reached) => reached.map(drop).map_err(|_| gone()),
            Err(_) => {
                Err(Error::retry(format!("the capture of {} has not come to {end}", self.config.system(system).name)))
            }
        }
    }

    /// Whether that system has what was journaled of the entity up to `seq`; to one that receives
    /// none of it nothing is to come.
    pub fn has(&self, system: SystemId, entity: EntityId, seq: Seq) -> bool {
        let receives = self.plan(system, entity).is_some_and(|(_, role)| role.receives());
        !receives || self.status.systems[system.index()].apply.seq.get() >= seq
    }

    /// Nothing is applied there until its rows are compared: who is to do that does not wait for it.
    pub fn stands(&self, system: SystemId) -> bool {
        let gate = *self.gates[system.index()].borrow();
        gate.comparing || gate.lost
    }

    /// Until it has.
    pub async fn applied(&self, system: SystemId, entity: EntityId, seq: Seq, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while !self.has(system, entity, seq) {
            if Instant::now() > deadline {
                return Err(Error::retry(format!("{} is too far behind", self.config.system(system).name)));
            }
            self.pause(LOOK_EVERY).await?;
        }
        Ok(())
    }
}
