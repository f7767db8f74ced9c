//! Rows that come back to the system which deleted them.
//!
//! A deletion that lost to differences is told to nobody: the others have the row, and its system alone
//! gets back what it had of their sums ([`super::decide`]). Whoever reads its table before that finds no
//! such row, and does not know that there is something to read later. So the keys are kept until its log
//! has shown what brings them.
//!
//! In memory, and not replayed: a load begins when its system has what was journaled before, and notes
//! what it is told of here with every chunk.

use bytes::Bytes;

use super::held::Holds;
use crate::position::Seq;
use crate::schema::{EntityId, SystemId};

/// With more of them a chunk is read again, until fewer are on their way.
const ROWS_MAX: usize = 20_000;

#[derive(Debug)]
pub(super) struct Comes {
    system: SystemId,
    entity: EntityId,
    pub key_hash: u128,
    pub key: Bytes,
    seq: Seq,
}

#[derive(Debug)]
pub(super) struct Returning {
    rows: Vec<Comes>,
    rows_max: usize,
    /// By system: the last entry that brings a row which is not among them.
    unlisted: Vec<Seq>,
}

impl Returning {
    pub fn new(systems: usize) -> Self {
        Returning { rows: Vec::new(), rows_max: ROWS_MAX, unlisted: vec![0; systems] }
    }

    /// Entry `seq` brings it.
    pub fn comes(&mut self, system: SystemId, entity: EntityId, key_hash: u128, key: &[u8], seq: Seq) {
        if self.rows.len() >= self.rows_max {
            self.unlisted[system.index()] = seq;
            return;
        }
        self.rows.push(Comes { system, entity, key_hash, key: Bytes::copy_from_slice(key), seq });
    }

    /// The system's log, and every chunk that is being read, has shown `seen`. A key that it holds did not come.
    pub fn seen(&mut self, system: SystemId, seen: Seq, holds: &Holds) {
        self.rows.retain(|row| row.system != system || row.seq > seen || holds.holds(system, row.key_hash));
    }

    /// What may come to a system behind `base`; `None`: not all of it is known.
    pub fn behind(&self, system: SystemId, entity: EntityId, base: Seq) -> Option<impl Iterator<Item = &Comes>> {
        let own = move |row: &&Comes| row.system == system && row.entity == entity;
        (self.unlisted[system.index()] <= base).then(|| self.rows.iter().filter(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRM: SystemId = SystemId(0);
    const SHOP: SystemId = SystemId(1);
    const STOCK: EntityId = EntityId(0);

    fn keys(returning: &Returning, system: SystemId, base: Seq) -> Option<Vec<u128>> {
        Some(returning.behind(system, STOCK, base)?.map(|row| row.key_hash).collect())
    }

    #[test]
    fn rows_come_until_their_system_has_shown_what_brings_them() {
        let mut returning = Returning::new(2);
        for (system, key, seq) in [(CRM, 1, 5), (SHOP, 2, 6), (CRM, 3, 7)] {
            returning.comes(system, STOCK, key, b"key", seq);
        }
        returning.comes(CRM, EntityId(1), 4, b"key", 8);

        assert_eq!(keys(&returning, CRM, 0), Some(vec![1, 3]));
        returning.seen(CRM, 6, &Holds::default());
        assert_eq!((keys(&returning, CRM, 6), keys(&returning, SHOP, 6)), (Some(vec![3]), Some(vec![2])));
    }

    #[test]
    fn more_than_are_kept_are_told_as_not_known_until_all_have_come() {
        let mut returning = Returning { rows_max: 1, ..Returning::new(2) };
        returning.comes(CRM, STOCK, 1, b"key", 5);
        returning.comes(CRM, STOCK, 2, b"key", 6);

        assert_eq!((keys(&returning, CRM, 5), keys(&returning, SHOP, 5)), (None, Some(vec![])));
        returning.seen(CRM, 6, &Holds::default());
        assert_eq!(keys(&returning, CRM, 6), Some(vec![]));
    }
}
