//! A chunk that is open at the desk: from its low watermark on, what its system's log changes is
//! known there, until the rows are handed in or given up.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::{Context, gone};
use crate::agent::chunks::Copying;
use crate::agent::desk::Message;
use crate::error::Result;
use crate::position::Position;
use crate::schema::{EntityId, SystemId};

/// Given up where it is dropped.
pub struct Chunk {
    place: Place,
    /// Everything up to here was captured, and what is read must show it.
    pub low: Position,
}

impl Chunk {
    /// Its number, for what hands it in.
    pub fn into_number(mut self) -> u64 {
        self.place.open = false;
        self.place.number
    }
}

/// It has its number before the desk hears of it: whoever asks may be gone by the answer.
struct Place {
    number: u64,
    open: bool,
    desk: mpsc::WeakSender<Message>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let number = self.number;
        if let (true, Some(desk), Ok(runtime)) = (self.open, self.desk.upgrade(), Handle::try_current()) {
            // Without a desk the agent is going down, and nothing is open any more.
            runtime.spawn(async move { drop(desk.send(Message::Copying(Copying::Drop { chunk: number })).await) });
        }
    }
}

impl Context {
    /// `keys` have lost before.
    pub async fn open(&self, system: SystemId, entity: EntityId, keys: HashSet<u128>) -> Result<Chunk> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let place = Place { number: LAST.fetch_add(1, Ordering::Relaxed) + 1, open: true, desk: self.desk.clone() };
        let (reply, answer) = oneshot::channel();
        self.lay(Copying::Open { chunk: place.number, system, entity, keys, reply }).await?;
        let low = answer.await.map_err(|_| gone())?;
        Ok(Chunk { place, low })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_handed_in_is_given_up() {
        let (desk, mut inbox) = mpsc::channel(2);
        let chunk = |number| Chunk {
            place: Place { number, open: true, desk: desk.downgrade() },
            low: Position::Postgres { lsn: crate::position::Lsn(1) },
        };

        let handed_in = chunk(1).into_number();
        drop(chunk(2));

        assert_eq!(handed_in, 1);
        assert!(matches!(inbox.recv().await, Some(Message::Copying(Copying::Drop { chunk: 2 }))));
        assert!(inbox.try_recv().is_err());
    }
}
