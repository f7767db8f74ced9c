//! Which columns a binding by name has, as its tables change: what is carried, what is left
//! alone, and what waits for its like in another system.
//!
//! A binding without `columns` means "what the tables have in common". Asked anew after each
//! ALTER that would lose values: a column that one table had all along holds values that the
//! other, which gets it today, does not have; carried from now on, the new table's defaults
//! would be written over them. So it is decided once per column, when it is first seen, and
//! kept beside the journal:
//!
//! ```text
//! in two tables when first seen                    carried
//! in one table when the entity was first bound     left alone, for good
//! new in one table                                 awaited: no row with it passes, until …
//! … new in another one too                         carried, with every value
//! new where others have carried it for a while     left alone: its rows lack their values
//! carried, and gone from one table of several      an error: a person says what is meant
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::resolve::{Catalog, Model};
use crate::capture::{Moved, TableNow};
use crate::catalog::{Column, ColumnType, Table, TableName};
use crate::config::{BindingConfig, Config, EntityConfig};
use crate::position::Position;
use crate::schema::SystemId;

/// What was decided of the columns of one binding by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    table: String,
    carried: BTreeSet<String>,
    left: BTreeSet<String>,
}

/// What was decided, of all entities; kept across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// By entity, by system.
    entities: BTreeMap<String, BTreeMap<String, Names>>,
    /// By system, by table: PostgreSQL's identity of it.
    oids: BTreeMap<String, BTreeMap<String, u32>>,
    /// By entity, by system: the table that was bound.
    tables: BTreeMap<String, BTreeMap<String, TableName>>,
    /// By system, by table: names that it had for a while.
    also: BTreeMap<String, BTreeMap<String, Vec<Also>>>,
    /// By system, by table: its leaf partitions when they were last looked at.
    #[serde(default)]
    partitions: BTreeMap<String, BTreeMap<String, Partitions>>,
    /// By system, by table: how PostgreSQL's publication has held it since its log was begun.
    #[serde(default)]
    published: BTreeMap<String, BTreeMap<String, Published>>,
    /// By entity, by system: fields that the file listed when their flow was last made.
    #[serde(default)]
    listed: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

/// That a table of PostgreSQL is in our publication. Taken out and put back it is in there anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Identity of the table, and of its being a member.
    pub table: u32,
    pub member: u32,
}

/// Leaf partitions of a table of PostgreSQL by their identity.
pub type Partitions = BTreeMap<u32, TableName>;

/// A name that a table had; its rows were logged under it up to that end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Also {
    name: TableName,
    #[serde(with = "ends")]
    until: Position,
}

/// When and by which identity a system's tables were looked at.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Where its log ended before that; `None`: it was not asked.
    pub at: Option<Position>,
    /// PostgreSQL only.
    pub oids: BTreeMap<TableName, u32>,
    /// PostgreSQL only.
    pub partitions: BTreeMap<TableName, Partitions>,
    /// PostgreSQL only: tables that the publication lists.
    pub published: BTreeMap<TableName, Published>,
}

impl Decided {
    pub fn names(&self, entity: &str, system: &str, binding: &BindingConfig) -> Option<&Names> {
        let bound = |name: &str| binding.names().any(|table| table.to_string() == name);
        self.entities.get(entity)?.get(system).filter(|names| bound(&names.table))
    }

    /// Another table was bound before, and the file does not say what became of it.
    pub fn rebound(&self, entity: &str, system: &str, binding: &BindingConfig) -> Option<&TableName> {
        let before = self.tables.get(entity)?.get(system)?;
        (*before != binding.table && binding.formerly.is_none()).then_some(before)
    }

    /// The names that a table had, with those that it is met under now, and those that the file
    /// tells of when it is bound anew.
    fn also(
        &self,
        entity: &EntityConfig,
        system: &str,
        binding: &BindingConfig,
        moved: &[TableName],
        at: Option<&Position>,
    ) -> Vec<Also> {
        let known = self.also.get(system).and_then(|tables| tables.get(&binding.table.to_string()));
        let mut also = known.cloned().unwrap_or_default();
        let before = self.tables.get(&entity.name).and_then(|systems| systems.get(system));
        let told = binding.formerly.iter().flatten().filter(|_| before.is_some_and(|before| *before != binding.table));
        let Some(until) = at else { return also };
        for name in moved.iter().chain(told) {
            also.retain(|also| also.name != *name);
            also.push(Also { name: name.clone(), until: until.clone() });
        }
        also
    }

    /// Partitions that a table had and has no more: their rows left it without a word in the log.
    pub fn parted(&self, system: &str, seen: &Seen) -> Vec<(TableName, TableName)> {
        let Some(before) = self.partitions.get(system) else { return Vec::new() };
        let of = |(table, now): (&TableName, &Partitions)| {
            let gone = before.get(&table.to_string()).into_iter().flatten().filter(|(oid, _)| !now.contains_key(oid));
            gone.map(|(_, leaf)| (table.clone(), leaf.clone())).collect::<Vec<_>>()
        };
        seen.partitions.iter().flat_map(of).collect()
    }

    /// Takes in the partitions as they are now; `true`: they were others.
    pub fn note_partitions(&mut self, system: &str, seen: &Seen) -> bool {
        let now = seen.partitions.iter().map(|(table, leaves)| (table.to_string(), leaves.clone())).collect();
        let changed = self.partitions.get(system) != Some(&now);
        self.partitions.insert(system.to_owned(), now);
        changed
    }

    /// Tables that were out of the publication for a while, or are now: of what was written to them
    /// then nothing is in the stream. One that another took the name of is told of otherwise.
    pub fn unpublished(&self, system: &str, seen: &Seen) -> Vec<TableName> {
        let Some(before) = self.published.get(system) else { return Vec::new() };
        let gap = |(table, oid): &(&TableName, &u32)| {
            let before = before.get(&table.to_string()).filter(|before| before.table == **oid);
            before.is_some_and(|before| seen.published.get(*table) != Some(before))
        };
        seen.oids.iter().filter(gap).map(|(table, _)| table.clone()).collect()
    }

    /// Takes in which tables are published; `true`: something is new.
    pub fn note_published(&mut self, system: &str, seen: &Seen) -> bool {
        let now: BTreeMap<_, _> = seen.published.iter().map(|(table, how)| (table.to_string(), *how)).collect();
        let changed = self.published.get(system) != Some(&now);
        self.published.insert(system.to_owned(), now);
        changed
    }

    /// Its log is begun anew: what was published before is past.
    pub fn forget_published(&mut self, system: &str) {
        self.published.remove(system);
    }

    /// Of all tables but these.
    pub fn forget_published_beside(&mut self, system: &str, tables: &[TableName]) {
        if let Some(published) = self.published.get_mut(system) {
            published.retain(|table, _| tables.iter().any(|known| known.to_string() == *table));
        }
    }

    /// Which of its tables are published has not been looked at yet.
    pub fn knows_published(&self, system: &str) -> bool {
        self.published.contains_key(system)
    }

    /// Fields that the file lists now and did not when the flow was made before, by entity: what rows
    /// hold in them nobody has compared, and what was written meanwhile nobody is told. Takes in what
    /// it lists.
    pub fn note_listed(&mut self, config: &Config) -> BTreeMap<String, BTreeSet<String>> {
        let mut listed: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        let mut fresh: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for entity in config.entities.iter().filter(|entity| !entity.key.is_empty()) {
            let known = self.listed.get(&entity.name);
            for binding in &entity.bindings {
                let Some(columns) = &binding.columns else { continue };
                let system = &config.system(binding.system).name;
                let fields: BTreeSet<String> = columns.iter().map(|column| column.field.clone()).collect();
                if let Some(before) = known.and_then(|systems| systems.get(&**system)) {
                    let new = fields.difference(before).cloned();
                    fresh.entry(entity.name.clone()).or_default().extend(new);
                }
                listed.entry(entity.name.clone()).or_default().insert(system.to_string(), fields);
            }
        }
        fresh.retain(|_, fields| !fields.is_empty());
        self.listed = listed;
        fresh
    }

    /// The table's identity when it was last bound.
    pub fn oid(&self, system: &str, table: &TableName) -> Option<u32> {
        self.oids.get(system)?.get(&table.to_string()).copied()
    }
}

/// One by-name binding on its way.
pub struct Member<'a> {
    pub binding: &'a BindingConfig,
    pub table: &'a Table,
    pub decided: Option<&'a Names>,
}

/// What becomes of a column that two tables have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Carried,
    LeftAlone,
    /// New here, and others have had values of it before.
    Late,
}

impl Member<'_> {
    /// `listed`: another binding names the field in its `columns`.
    pub fn fate(&self, column: &str, all: &[Member<'_>], listed: bool) -> Fate {
        let Some(own) = self.decided else { return Fate::Carried };
        if own.carried.contains(column) {
            return Fate::Carried;
        }
        if own.left.contains(column) {
            return Fate::LeftAlone;
        }
        let had = |names: &Names| names.carried.contains(column) || names.left.contains(column);
        let elsewhere = all.iter().filter_map(|member| member.decided).any(had);
        if listed || elsewhere { Fate::Late } else { Fate::Carried }
    }

    /// Columns that were carried from here and are no longer in the table.
    pub fn vanished(&self) -> impl Iterator<Item = &str> {
        let there = |name: &str| self.table.column(name).is_some_and(|column| !column.generated);
        let ignored = |name: &str| self.binding.ignore.iter().any(|ignored| ignored == name);
        let carried = self.decided.into_iter().flat_map(|names| &names.carried).map(String::as_str);
        carried.filter(move |name| !there(name) && !ignored(name))
    }

    /// Columns that nothing was decided of yet: what a vanished one may be called now.
    pub fn fresh(&self) -> impl Iterator<Item = &Column> {
        let known = |name: &String| self.decided.is_some_and(|n| n.carried.contains(name) || n.left.contains(name));
        self.table.columns.iter().filter(move |column| self.decided.is_some() && !known(&column.name))
    }
}

fn lists_columns(entity: &EntityConfig) -> bool {
    entity.bindings.iter().any(|binding| binding.columns.is_some())
}

/// Completes a resolved model with what the captures judge their logs by, and says what is
/// decided from now on. `moved`: tables that are called otherwise in the log for a while.
pub fn judge(
    model: &mut Model,
    config: &Config,
    catalogs: &[Catalog],
    seen: &[Seen],
    moved: &[(SystemId, Moved)],
    before: &Decided,
) -> Decided {
    let mut decided =
        Decided { published: before.published.clone(), listed: before.listed.clone(), ..Decided::default() };
    let known = |name: &String| config.systems.iter().any(|system| *system.name == **name);
    decided.published.retain(|name, _| known(name));
    for system in config.system_ids() {
        let name = config.system(system).name.to_string();
        let oids = seen[system.index()].oids.iter().map(|(table, oid)| (table.to_string(), *oid));
        if seen[system.index()].at.is_some() {
            decided.note_partitions(&name, &seen[system.index()]);
        } else if let Some(known) = before.partitions.get(&name) {
            decided.partitions.insert(name.clone(), known.clone());
        }
        let kept = before.oids.get(&name).filter(|_| seen[system.index()].at.is_none()).cloned();
        decided.oids.insert(name, kept.unwrap_or_else(|| oids.collect()));
    }
    for (index, entity) in config.entities.iter().enumerate() {
        for binding in &entity.bindings {
            let system = binding.system;
            let Some(table) = catalogs[system.index()].get(&binding.table).and_then(Option::as_ref) else { continue };
            let Some(place) = model.bindings[system.index()].iter().position(|b| b.entity.index() == index) else {
                continue;
            };
            let by_name = binding.columns.is_none();
            let names = by_name.then(|| names(model, config, catalogs, before, entity, binding, table, place));
            let awaited: Vec<String> = match &names {
                Some(names) if !lists_columns(entity) => {
                    let open = |c: &&Column| !names.carried.contains(&c.name) && !names.left.contains(&c.name);
                    table.columns.iter().filter(open).map(|column| column.name.clone()).collect()
                }
                _ => Vec::new(),
            };
            let seen = &seen[system.index()];
            let oid = seen.oids.get(&binding.table).copied();
            let system_name = &config.system(system).name;
            let tables = decided.tables.entry(entity.name.clone()).or_default();
            // Its names are noted together with the log's end, or not at all.
            let asked = seen.at.is_some();
            let former = before.tables.get(&entity.name).and_then(|tables| tables.get(&**system_name));
            let table_now = former.filter(|_| !asked).unwrap_or(&binding.table);
            tables.insert(system_name.to_string(), table_now.clone());
            let moved = moved.iter().filter(|(of, moved)| *of == system && moved.table == binding.table);
            let moved: Vec<TableName> = moved.map(|(_, moved)| moved.to.clone()).collect();
            let also = before.also(entity, system_name, binding, &moved, seen.at.as_ref());
            let of_system = decided.also.entry(system_name.to_string()).or_default();
            of_system.insert(binding.table.to_string(), also.clone());
            let wanted = &mut model.wanted[system.index()][place];
            let formerly = |(at, column): (usize, &crate::capture::WantedColumn)| {
                let of = binding.columns.iter().flatten().find(|config| config.column == column.name)?;
                Some((at, of.formerly.clone()?))
            };
            wanted.now = Some(Arc::new(TableNow {
                at: seen.at.clone(),
                columns: table.columns.iter().map(|column| column.name.clone()).collect(),
                shape: table.columns.clone(),
                formerly: wanted.columns.iter().enumerate().filter_map(formerly).collect(),
                by_name: by_name && !lists_columns(entity) && binding.role.captures(),
                awaited,
                also: also.into_iter().map(|also| (also.name, also.until)).collect(),
                oid: oid.filter(|oid| before.oid(system_name, &binding.table) == Some(*oid)),
            }));
            if let Some(names) = names {
                decided.entities.entry(entity.name.clone()).or_default().insert(system_name.to_string(), names);
            }
        }
    }
    decided
}

/// What is decided of a binding by name: all but the awaited ones.
fn names(
    model: &Model,
    config: &Config,
    catalogs: &[Catalog],
    before: &Decided,
    entity: &EntityConfig,
    binding: &BindingConfig,
    table: &Table,
    place: usize,
) -> Names {
    let carried: BTreeSet<String> =
        model.bindings[binding.system.index()][place].columns.iter().map(|bound| bound.column.name.clone()).collect();
    let known = before.names(&entity.name, &config.system(binding.system).name, binding);
    let elsewhere = |name: &str| {
        entity.bindings.iter().filter(|other| other.system != binding.system).any(|other| {
            let table = catalogs[other.system.index()].get(&other.table).and_then(Option::as_ref);
            table.is_some_and(|table| table.column(name).is_some()) && !other.ignore.iter().any(|i| i == name)
        })
    };
    let left = |column: &&Column| {
        let name = &column.name;
        let decided = known.is_none_or(|names| names.carried.contains(name) || names.left.contains(name));
        let cannot = column.generated || column.ty == ColumnType::Unsupported || binding.ignore.contains(name);
        !carried.contains(name) && (decided || cannot || elsewhere(name))
    };
    let left = table.columns.iter().filter(left).map(|column| column.name.clone()).collect();
    Names { table: binding.table.to_string(), carried, left }
}

/// What of a model the running stages depend on: where it is equal, nothing has to be made anew.
pub fn fingerprint(model: &Model) -> String {
    let mut text = format!("{:?}", model.schema.entities);
    for (system, (bindings, wanted)) in model.bindings.iter().zip(&model.wanted).enumerate() {
        for (binding, wanted) in bindings.iter().zip(wanted) {
            let table = &binding.table;
            text += &format!(
                "\n{:?} {} {:?} {:?} {:?} {:?} {} {:?} {} {} {:?} {:?}",
                SystemId(system as u8),
                table.name,
                binding.role,
                table.primary_key,
                (&table.unique_keys, &table.loose_keys),
                table.foreign_keys,
                table.referenced_by,
                (table.triggers, &table.named_triggers),
                table.delete_triggers,
                table.transactional,
                table.replica_identity,
                wanted.now.as_ref().map(|now| (&now.awaited, &now.formerly, now.by_name)),
            );
            for bound in &binding.columns {
                // A default changes nothing: every bound column is written.
                let column = Column { has_default: false, definition: String::new(), ..bound.column.clone() };
                text += &format!("\n  {} {:?} {column:?} {:?}", bound.field, bound.kind, bound.transform);
            }
        }
    }
    text
}

mod ends;
#[cfg(test)]
mod tests;
