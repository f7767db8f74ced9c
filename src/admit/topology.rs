//! What admission must know of the configuration: who takes part in which entity, in which
//! role, with which fields.
//!
//! Conflicts are found per key and *slot*. A slot is a class of fields that the same bindings
//! have: then a change carries a slot whole or not at all. Where all bindings have the same
//! fields there is one. Elsewhere slot 0 is the row's existence and has no fields: inserts and
//! deletes carry it, updates of different fields do not meet there.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::admit::index::{Slot, added, returned};
use crate::change::{Change, Op, Origin};
use crate::normalize::binding::{Binding, Role};
use crate::rules::{Merge, Rules};
use crate::schema::{EntitySchema, Schema, SystemId, SystemSet};

/// An entity has at most this many fields: a set of them is one u128.
pub const FIELDS_MAX: usize = 128;

#[derive(Debug, Clone)]
pub struct Topology {
    /// In order of authority.
    pub systems: Vec<Arc<str>>,
    pub schema: Arc<Schema>,
    /// By [`EntityId`].
    pub entities: Vec<EntityTopology>,
}

#[derive(Debug, Clone, Default)]
pub struct EntityTopology {
    pub rules: Arc<Rules>,
    pub members: Vec<Member>,
}

/// One binding, as far as admission cares.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    pub system: SystemId,
    pub role: Role,
    /// Bit i: the binding has field i.
    pub fields: u128,
    /// Of these, the ones whose mapping into this system is not exact: carried from here only
    /// when they changed here, so each is a slot of its own.
    pub inexact: u128,
}

impl Topology {
    /// From the resolved bindings of all systems, and the rules by [`EntityId`](crate::schema::EntityId).
    pub fn new(
        systems: Vec<Arc<str>>,
        schema: Arc<Schema>,
        bindings: &[Vec<Arc<Binding>>],
        rules: &[Arc<Rules>],
    ) -> Self {
        let of_entity = |i: usize| EntityTopology { rules: rules[i].clone(), members: Vec::new() };
        let mut entities: Vec<EntityTopology> = (0..schema.entities.len()).map(of_entity).collect();
        for binding in bindings.iter().flatten() {
            entities[binding.entity.index()].members.push(Member {
                system: binding.system,
                role: binding.role,
                fields: binding.columns.iter().fold(0, |set, column| set | 1 << column.field),
                inexact: 0,
            });
        }
        Topology { systems, schema, entities }
    }

    /// Whose version that is; without a name, where that system is gone.
    pub(super) fn who(&self, slot: Slot) -> Origin {
        let name = || self.systems.get(slot.origin().index()).cloned().unwrap_or_default();
        if slot.is_decided() { Origin::Agent } else { Origin::System(name()) }
    }

    pub fn find(&self, system: &str) -> Option<SystemId> {
        self.systems.iter().position(|name| &**name == system).map(|i| SystemId(i as u8))
    }
}

/// One entity's members and slots, made once from the topology.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub rules: Arc<Rules>,
    pub key_len: usize,
    members: Vec<Option<Member>>,
    /// Who receives changes of it.
    pub receivers: SystemSet,
    /// Fields of each slot, the key left out.
    pub slots: Vec<u128>,
    slot_of: Vec<u8>,
    /// By slot, where its one field is merged.
    merges: Vec<Option<Merge>>,
    /// Fields that any binding has.
    pub fields: u128,
    /// More than one system writes it, and it has a key: only then can there be a conflict.
    pub indexed: bool,
}

impl Layout {
    pub fn new(entity: &EntitySchema, topology: &EntityTopology, systems: usize, one_slot: bool) -> Self {
        assert!(entity.fields.len() <= FIELDS_MAX, "entity {:?} has more than {FIELDS_MAX} fields", entity.name);
        let mut members = vec![None; systems];
        for member in &topology.members {
            members[member.system.index()] = Some(*member);
        }
        let class = |field: usize| {
            let bit = 1u128 << field;
            let has: SystemSet = topology.members.iter().filter(|m| m.fields & bit != 0).map(|m| m.system).collect();
            let inexact = topology.members.iter().any(|m| m.inexact & bit != 0);
            let alone = inexact || topology.rules.by_field || topology.rules.merge(field).is_some();
            let alone = alone.then_some(field);
            (has, alone)
        };
        let classes: BTreeSet<_> =
            (entity.key_len..entity.fields.len()).map(class).filter(|c| !c.0.is_empty()).collect();
        let all: SystemSet = topology.members.iter().map(|m| m.system).collect();
        let even = one_slot || classes.iter().all(|c| *c == (all, None));
        let classes: Vec<_> = classes.into_iter().collect();
        let mut slots = vec![0u128; if even { 1 } else { 1 + classes.len() }];
        let mut slot_of = vec![0u8; entity.fields.len()];
        for (field, slot_of) in slot_of.iter_mut().enumerate().skip(entity.key_len) {
            let place = classes.binary_search(&class(field)).ok().filter(|_| !even);
            let slot = place.map_or(0, |place| 1 + place);
            slots[slot] |= 1 << field;
            *slot_of = slot as u8;
        }
        let merge = |fields: &u128| match fields.count_ones() {
            1 if !even => topology.rules.merge(fields.trailing_zeros() as usize),
            _ => None,
        };
        let writers = topology.members.iter().filter(|m| m.role != Role::Target).count();
        Layout {
            rules: topology.rules.clone(),
            merges: slots.iter().map(merge).collect(),
            key_len: entity.key_len,
            receivers: topology.members.iter().filter(|m| m.role != Role::Source).map(|m| m.system).collect(),
            fields: topology.members.iter().fold(0, |set, m| set | m.fields),
            members,
            slots,
            slot_of,
            indexed: writers > 1 && entity.key_len > 0,
        }
    }

    pub fn member(&self, system: SystemId) -> Option<&Member> {
        self.members.get(system.index()).and_then(Option::as_ref)
    }

    /// Systems that receive the entity and have any of `fields`.
    pub fn receivers_with(&self, fields: u128) -> SystemSet {
        self.receivers.iter().filter(|s| self.member(*s).is_some_and(|m| m.fields & fields != 0)).collect()
    }

    /// The numbers under which the index may know a key: its slots, and the differences of each writer and to it.
    pub fn numbers(&self) -> Arc<[usize]> {
        let additive = (0..self.slots.len()).filter(|slot| self.merges[*slot] == Some(Merge::Add));
        (0..self.slots.len()).chain(additive.flat_map(|slot| self.differences(slot))).collect()
    }

    fn differences(&self, slot: usize) -> impl Iterator<Item = usize> {
        let of = move |writer| [added(slot, writer, false), added(slot, writer, true), returned(slot, writer)];
        self.writers().flat_map(of)
    }

    /// Whose changes are journaled.
    pub fn writers(&self) -> impl Iterator<Item = SystemId> {
        self.members.iter().flatten().filter(|member| member.role != Role::Target).map(|member| member.system)
    }

    /// How the slot's field is merged.
    pub fn merge(&self, slot: usize) -> Option<Merge> {
        self.merges[slot]
    }

    /// The field of a slot that is merged.
    pub fn field_of(&self, slot: usize) -> usize {
        self.slots[slot].trailing_zeros() as usize
    }

    /// All slots, as a set.
    pub fn every_slot(&self) -> u128 {
        u128::MAX >> (128 - self.slots.len())
    }

    /// The slots that a change carries.
    pub fn carried(&self, change: &Change<'_>) -> u128 {
        if self.slots.len() == 1 {
            return 1;
        }
        let Some(after) = change.after else { return self.every_slot() };
        let exists = u128::from(change.op == Op::Insert);
        after
            .iter()
            .enumerate()
            .take(self.slot_of.len())
            .skip(self.key_len)
            .filter(|(_, datum)| datum.is_sent())
            .fold(exists, |set, (field, _)| set | 1 << self.slot_of[field])
    }

    /// The slots whose fields a binding has; slot 0 always.
    pub fn slots_of(&self, fields: u128) -> u128 {
        let having = |i: &usize| *i == 0 || self.slots[*i] & fields != 0;
        (0..self.slots.len()).filter(having).fold(0, |set, i| set | 1 << i)
    }

    /// The slots that have any of these fields.
    pub fn slots_with(&self, fields: u128) -> u128 {
        (0..self.slots.len()).filter(|i| self.slots[*i] & fields != 0).fold(0, |set, i| set | 1 << i)
    }

    /// All fields of a set of slots.
    pub fn fields_of(&self, slots: u128) -> u128 {
        bits(slots).fold(0, |set, i| set | self.slots[i])
    }
}

/// The members of a set of small numbers.
pub(super) fn bits(mut set: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Field;
    use crate::value::Kind;

    fn member(system: u8, fields: u128) -> Member {
        Member { system: SystemId(system), role: Role::Both, fields, inexact: 0 }
    }

    fn entity() -> EntitySchema {
        let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
        EntitySchema::new("stock", ["id", "count", "place", "note"].map(field).to_vec(), 1)
    }

    #[test]
    fn equal_bindings_make_one_slot() {
        let topology = EntityTopology { members: vec![member(0, 0b1111), member(1, 0b1111)], ..Default::default() };

        let layout = Layout::new(&entity(), &topology, 2, false);

        assert_eq!(layout.slots, [0b1110]);
        assert!(layout.indexed);
    }

    #[test]
    fn fields_of_equal_membership_share_a_slot() {
        let members = vec![member(0, 0b1111), member(1, 0b0011), member(2, 0b1111)];

        let layout = Layout::new(&entity(), &EntityTopology { members, ..Default::default() }, 3, false);

        assert_eq!(layout.slots, [0, 0b1100, 0b0010]);
        assert_eq!(layout.slots_of(0b0011), 0b101);
        assert_eq!(layout.fields_of(0b10), 0b1100);
    }

    #[test]
    fn a_field_that_one_system_cannot_carry_exactly_is_a_slot_alone() {
        let mut second = member(1, 0b1111);
        second.inexact = 0b1100;

        let layout = Layout::new(
            &entity(),
            &EntityTopology { members: vec![member(0, 0b1111), second], ..Default::default() },
            2,
            false,
        );

        assert_eq!(layout.slots, [0, 0b0010, 0b0100, 0b1000]);
    }

    #[test]
    fn one_writer_never_needs_the_index() {
        let mut target = member(1, 0b1111);
        target.role = Role::Target;
        let topology = EntityTopology { members: vec![member(0, 0b1111), target], ..Default::default() };

        assert!(!Layout::new(&entity(), &topology, 2, false).indexed);
    }
}
