//! Configuration and catalogs become the model that every stage works from: entities with
//! kinds, bindings with their columns. What does not fit is found here, before the first row.
//!
//! A field's canonical kind is the one that all its columns can be brought to exactly. A
//! table that could lose, mix up or refuse rows is an error with what mends it.

mod conflicts;
mod ddl;
mod keys;
mod narrow;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::array;
use super::binding::{Binding, BoundColumn, Role, Transform};
use super::dates::Dates;
use super::filter::Filter;
use super::follow::{Decided, Fate, Member};
use super::format::Format;
use super::transform::{ValueMap, fits};
use crate::capture::{WantedColumn, WantedTable};
use crate::catalog::{Column, ColumnType, ReplicaIdentity, Table, TableName};
use crate::config::{BindingConfig, ColumnConfig, Config, Engine, EntityConfig, nearest};
use crate::finding::Finding;
use crate::rules::Rules;
use crate::schema::{EntityId, EntitySchema, Field, Schema, SystemId};
use crate::value::Kind;

/// Rows say which columns they carry in one 128 bit word.
const FIELDS_MAX: usize = 128;

/// One system's tables by name; `None` where a table does not exist.
pub type Catalog = BTreeMap<TableName, Option<Table>>;

#[derive(Debug, Clone)]
pub struct Model {
    pub schema: Arc<Schema>,
    /// Per system, by its number.
    pub bindings: Vec<Vec<Arc<Binding>>>,
    /// Per system, what its capture is to hand on; `id` is the index in `bindings`.
    pub wanted: Vec<Vec<WantedTable>>,
    /// Per entity.
    pub rules: Vec<Arc<Rules>>,
    /// What works, with a risk that a person should know.
    pub warnings: Vec<Finding>,
}

impl Model {
    pub fn binding(&self, system: SystemId, entity: EntityId) -> Option<&Arc<Binding>> {
        self.bindings[system.index()].iter().find(|binding| binding.entity == entity)
    }

    /// Nothing is captured there and nothing that is applied has side effects: what we write need not be
    /// seen in its log, the marker now and then excepted.
    pub fn is_only_written(&self, system: SystemId) -> bool {
        let bindings = &self.bindings[system.index()];
        let only = |binding: &Arc<Binding>| binding.role == Role::Target && !binding.table.side_effects;
        !bindings.is_empty() && bindings.iter().all(only)
    }
}

/// The tables that `resolve` needs of one system.
pub fn tables(config: &Config, system: SystemId) -> Vec<TableName> {
    let bindings = config.entities.iter().flat_map(|entity| &entity.bindings);
    bindings.filter(|binding| binding.system == system).map(|binding| binding.table.clone()).collect()
}

/// `catalogs[i]` is of system `i`. Everything wrong is found in one run.
pub fn resolve(config: &Config, catalogs: &[Catalog]) -> Result<Model, Vec<Finding>> {
    resolve_after(config, catalogs, &Decided::default())
}

/// The same, with what was decided of bindings by name when their tables looked otherwise.
pub fn resolve_after(config: &Config, catalogs: &[Catalog], decided: &Decided) -> Result<Model, Vec<Finding>> {
    let mut resolver = Resolver { config, catalogs, decided, findings: Vec::new() };
    let (mut entities, mut rules) = (Vec::new(), Vec::new());
    let mut bindings: Vec<Vec<Arc<Binding>>> = vec![Vec::new(); config.systems.len()];
    for (index, entity) in config.entities.iter().enumerate() {
        let Some((schema, bound)) = resolver.entity(EntityId(index as u16), entity) else { continue };
        rules.push(Arc::new(conflicts::rules(config, entity, &schema, &bound)));
        entities.push(schema);
        bound.into_iter().for_each(|binding| bindings[binding.system.index()].push(Arc::new(binding)));
    }
    if resolver.findings.iter().any(Finding::is_error) {
        return Err(resolver.findings);
    }
    let wanted = bindings.iter().map(|bindings| bindings.iter().enumerate().map(wanted).collect()).collect();
    Ok(Model { schema: Schema::new(entities), bindings, wanted, rules, warnings: resolver.findings })
}

/// Of a target only the number of its local writes is wanted, so none of its columns.
fn wanted((id, binding): (usize, &Arc<Binding>)) -> WantedTable {
    let (columns, key_len) =
        if binding.role.captures() { (&binding.columns[..], binding.key_len) } else { (&[][..], 0) };
    WantedTable {
        id,
        name: binding.table.name.clone(),
        columns: columns
            .iter()
            .map(|bound| WantedColumn { name: bound.column.name.clone(), ty: bound.column.ty.clone() })
            .collect(),
        key: columns[..key_len].iter().map(|bound| bound.column.name.clone()).collect(),
        now: None,
    }
}

struct Resolver<'c> {
    config: &'c Config,
    catalogs: &'c [Catalog],
    decided: &'c Decided,
    findings: Vec<Finding>,
}

/// One binding on its way: its table found, its columns known.
struct Draft<'c> {
    config: &'c BindingConfig,
    table: &'c Table,
    columns: Vec<DraftColumn<'c>>,
}

struct DraftColumn<'c> {
    field: String,
    column: &'c Column,
    format: Option<Format>,
    values: Option<&'c [(String, String)]>,
    dates: Option<Dates>,
}

impl DraftColumn<'_> {
    /// What the column contributes to the choice of the canonical kind; a values map follows
    /// the others.
    fn kind(&self) -> Option<Kind> {
        match (&self.format, self.values) {
            (Some(format), _) => Some(format.kind),
            (None, Some(_)) => None,
            (None, None) => self.column.ty.kind(),
        }
    }
}

impl<'c> Resolver<'c> {
    fn system(&self, id: SystemId) -> &'c str {
        &self.config.systems[id.index()].name
    }

    fn engine(&self, id: SystemId) -> Engine {
        self.config.systems[id.index()].engine
    }

    fn error(&mut self, entity: &EntityConfig, binding: &BindingConfig, what: String, mend: String) {
        let finding = Finding::error(self.system(binding.system), what);
        self.findings.push(finding.entity(&entity.name).table(&binding.table).mend(mend));
    }

    fn warning(&mut self, entity: &EntityConfig, binding: &BindingConfig, what: String, mend: String) {
        let finding = Finding::warning(self.system(binding.system), what);
        self.findings.push(finding.entity(&entity.name).table(&binding.table).mend(mend));
    }

    fn entity(&mut self, id: EntityId, entity: &'c EntityConfig) -> Option<(EntitySchema, Vec<Binding>)> {
        let before = self.errors();
        let drafts = self.drafts(entity);
        if self.errors() > before {
            return None; // kinds cannot be told while columns are missing
        }
        let schema = self.schema(entity, &drafts);
        self.lonely_fields(entity, &drafts);
        self.same_texts(entity, &schema, &drafts);
        self.narrower(entity, &drafts);
        let bindings: Vec<Binding> =
            drafts.iter().map(|draft| self.binding(id, entity, &schema, draft, &drafts)).collect();
        self.conflicts(entity, &schema, &drafts, &bindings);
        (self.errors() == before).then_some((schema, bindings))
    }

    fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_error()).count()
    }

    fn drafts(&mut self, entity: &'c EntityConfig) -> Vec<Draft<'c>> {
        let mut found = Vec::new();
        for binding in &entity.bindings {
            if binding.table == self.config.system(binding.system).marker {
                let mend = "# bind another table, or give the agent another one: [agent] marker".into();
                self.error(entity, binding, "the marker table is the agent's own".into(), mend);
                continue;
            }
            match self.catalogs[binding.system.index()].get(&binding.table).and_then(Option::as_ref) {
                Some(table) => {
                    self.rebound(entity, binding);
                    found.push((binding, table));
                }
                None => self.missing_table(entity, binding),
            }
        }
        let shared = shared_fields(&found);
        let members: Vec<Member<'c>> = found.iter().filter_map(|found| self.member(entity, *found)).collect();
        self.vanished(entity, &found, &members);
        let mut drafts = Vec::new();
        let all_known = found.len() == entity.bindings.len();
        for (config, table) in found {
            if !all_known && config.columns.is_none() {
                continue; // what it has in common with the others cannot be told
            }
            let columns = match &config.columns {
                Some(columns) => self.named_columns(entity, config, table, columns),
                None => self.same_named_columns(entity, config, &members, &shared),
            };
            let draft = Draft { config, table, columns };
            self.check_columns(entity, &draft);
            drafts.push(draft);
        }
        drafts
    }

    fn member(&self, entity: &EntityConfig, found: (&'c BindingConfig, &'c Table)) -> Option<Member<'c>> {
        let (binding, table) = found;
        let decided = self.decided.names(&entity.name, self.system(binding.system), binding);
        binding.columns.is_none().then_some(Member { binding, table, decided })
    }

    fn same_named_columns(
        &mut self,
        entity: &EntityConfig,
        binding: &'c BindingConfig,
        members: &[Member<'c>],
        shared: &HashSet<String>,
    ) -> Vec<DraftColumn<'c>> {
        let Some(own) = members.iter().find(|member| member.binding.system == binding.system) else {
            return Vec::new();
        };
        let takes = |column: &&Column| {
            shared.contains(&column.name) && !column.generated && !binding.ignore.contains(&column.name)
        };
        let lists = |other: &BindingConfig, name: &str| other.columns.iter().flatten().any(|c| c.field == name);
        let mut columns = Vec::new();
        for column in own.table.columns.iter().filter(takes) {
            let listed = entity.bindings.iter().any(|other| lists(other, &column.name));
            match own.fate(&column.name, members, listed) {
                Fate::Carried => {
                    columns.push(DraftColumn {
                        field: column.name.clone(),
                        column,
                        format: None,
                        values: None,
                        dates: None,
                    });
                }
                Fate::LeftAlone => {}
                Fate::Late => {
                    let what = format!(
                        "column {:?} is new here, and other systems have had values of it before: it is left alone, \
                         because rows that were there lack them",
                        column.name
                    );
                    let mend = "fill it from the others, then name the binding's columns in the file".to_owned();
                    self.warning(entity, binding, what, mend);
                }
            }
        }
        columns
    }

    /// What was carried by its name and is gone from one table, while others have it still.
    fn vanished(&mut self, entity: &EntityConfig, found: &[(&BindingConfig, &Table)], members: &[Member<'_>]) {
        for member in members {
            let binding = member.binding;
            for name in member.vanished() {
                let field = |b: &BindingConfig, table: &Table| match &b.columns {
                    Some(columns) => columns.iter().any(|column| column.field == name),
                    None => table.column(name).is_some() && !b.ignore.iter().any(|ignored| ignored == name),
                };
                let still = found.iter().filter(|(b, table)| b.system != binding.system && field(b, table));
                let still: Vec<&str> = still.map(|(b, _)| self.system(b.system)).collect();
                if still.is_empty() {
                    continue;
                }
                let engine = self.engine(binding.system);
                let table = quoted_table(engine, member.table);
                let renamed: Vec<&str> = member.fresh().map(|column| column.name.as_str()).collect();
                let to = renamed.first().unwrap_or(&"…");
                let what = format!(
                    "column {name:?} is gone from the table and was carried until now; {} {} it still",
                    still.join(" and "),
                    if still.len() == 1 { "has" } else { "have" },
                );
                let mend = format!(
                    "dropped: drop it there too, or ignore = [{name:?}] here\nby mistake: ALTER TABLE {table} ADD {} …;\n\
                     renamed: name the columns of this binding in the file, with {name} = {{ column = {to:?}, \
                     formerly = [{name:?}] }}",
                    quoted(engine, name)
                );
                self.error(entity, binding, what, mend);
            }
        }
    }

    /// The file names another table than before: rows of the former one are in the log still.
    fn rebound(&mut self, entity: &EntityConfig, binding: &BindingConfig) {
        let Some(before) = self.decided.rebound(&entity.name, self.system(binding.system), binding) else { return };
        let what = format!("the entity was kept in table {before} here until now");
        let mend = format!(
            "[entity.in.{}]\nformerly = [{:?}]   # it was renamed: rows under the former name are this table's\n\
             formerly = []   # it is another table",
            self.system(binding.system),
            before.to_string()
        );
        self.error(entity, binding, what, mend);
    }

    fn missing_table(&mut self, entity: &EntityConfig, binding: &BindingConfig) {
        let catalog = &self.catalogs[binding.system.index()];
        let known: Vec<String> =
            catalog.iter().filter(|(_, t)| t.is_some()).map(|(name, _)| name.to_string()).collect();
        let near = nearest(&binding.table.to_string(), known.iter().map(String::as_str)).map(str::to_owned);
        let way_out = near.map_or_else(String::new, |near| format!("; nearest: {near:?}"));
        let what = format!("there is no table {} (or the agent's role may not see it){way_out}", binding.table);
        let mend = "# names are taken exactly as the database spells them; parts with dots stand in quotes".to_owned();
        self.error(entity, binding, what, mend);
    }

    fn named_columns(
        &mut self,
        entity: &EntityConfig,
        binding: &BindingConfig,
        table: &'c Table,
        columns: &'c [ColumnConfig],
    ) -> Vec<DraftColumn<'c>> {
        let mut found = Vec::new();
        for config in columns {
            let Some(column) = table.column(&config.column) else {
                let near = nearest(&config.column, table.columns.iter().map(|c| c.name.as_str()));
                let way_out = near.map_or_else(String::new, |near| format!("; nearest: {near:?}"));
                let what = format!("line {}: the table has no column {:?}{way_out}", config.line, config.column);
                let system = self.system(binding.system);
                let mend = match near {
                    Some(near) => {
                        format!(
                            "[entity.in.{system}.columns]\n{} = {}",
                            toml_key(&config.field),
                            toml_column(config, near)
                        )
                    }
                    None => {
                        let known: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
                        format!("# take the field out, or name one of: {}", known.join(", "))
                    }
                };
                self.error(entity, binding, what, mend);
                continue;
            };
            let format = config.format.as_deref().and_then(|text| Format::new(text).ok());
            found.push(DraftColumn {
                field: config.field.clone(),
                column,
                format,
                values: config.values.as_deref(),
                dates: config.dates,
            });
        }
        found
    }

    /// What can be said of each column alone.
    fn check_columns(&mut self, entity: &EntityConfig, draft: &Draft<'_>) {
        for key in &entity.key {
            if draft.config.columns.is_none() && !draft.columns.iter().any(|c| c.field == *key) {
                let near = nearest(key, draft.table.columns.iter().map(|c| c.name.as_str()));
                let way_out = near.map_or_else(String::new, |near| format!("; nearest: {near:?}"));
                let what = format!("the table has no column {key:?}, which is the key{way_out}");
                let system = self.system(draft.config.system);
                let others = draft.columns.iter().filter(|c| near.is_none_or(|near| c.column.name != near));
                let rest: String = others.map(|c| format!(", {} = {:?}", toml_key(&c.field), c.column.name)).collect();
                let column = near.unwrap_or("…");
                let mend = format!("[entity.in.{system}]\ncolumns = {{ {} = {column:?}{rest} }}", toml_key(key));
                self.error(entity, draft.config, what, mend);
            }
        }
        if draft.columns.is_empty() {
            let what = "shares no column with the entity's other tables".to_owned();
            let system = self.system(draft.config.system);
            let mend =
                format!("# which column is which field\n[entity.in.{system}]\ncolumns = {{ field = \"column\" }}");
            self.error(entity, draft.config, what, mend);
        }
        // One list for all of them, so that each mends the others, too.
        let refused = |bound: &&DraftColumn<'_>| bound.column.ty == ColumnType::Unsupported || bound.column.generated;
        let fields: Vec<&str> = draft.columns.iter().filter(refused).map(|bound| bound.field.as_str()).collect();
        let mend = match fields.iter().any(|field| entity.key.iter().any(|key| key == field)) {
            true => "# a key has to be carried: give the column another type, or choose another key".to_owned(),
            false => {
                let columns = draft.columns.iter().map(|bound| (bound.field.as_str(), bound.column.name.as_str()));
                let list = columns_list(self.system(draft.config.system), draft.config, columns, &fields);
                format!("{list}\n# without what cannot be carried")
            }
        };
        for bound in &draft.columns {
            let Column { name, type_name, ty, generated, .. } = bound.column;
            if *ty == ColumnType::Unsupported {
                let what = format!("column {name:?} is of type {type_name}, which cannot be carried yet");
                self.error(entity, draft.config, what, mend.clone());
            } else if *generated {
                let what = format!("column {name:?} is computed by the server, which neither logs nor takes it");
                self.error(entity, draft.config, what, mend.clone());
            } else if bound.format.is_some() && !matches!(ty, ColumnType::Char { .. } | ColumnType::Text { .. }) {
                let what = format!("column {name:?} is of type {type_name}; a format needs text");
                let system = self.system(draft.config.system);
                let mend = format!("[entity.in.{system}.columns]\n{} = {name:?}", toml_key(&bound.field));
                self.error(entity, draft.config, what, mend);
            } else if let Some(dates) = bound.dates {
                self.check_dates(entity, draft, bound, dates);
            }
        }
    }

    fn check_dates(&mut self, entity: &EntityConfig, draft: &Draft<'_>, bound: &DraftColumn<'_>, dates: Dates) {
        let Column { name, type_name, ty, .. } = bound.column;
        let Some(kind @ (Kind::Date | Kind::DateTime | Kind::Timestamp)) = ty.kind() else {
            let what = format!("column {name:?} is of type {type_name}; zero_date and infinity need a date or a time");
            let system = self.system(draft.config.system);
            let mend = format!("[entity.in.{system}.columns]\n{} = {name:?}", toml_key(&bound.field));
            return self.error(entity, draft.config, what, mend);
        };
        let engine = self.engine(draft.config.system);
        if entity.key.contains(&bound.field) && dates.has_null() {
            let what = format!("column {name:?} is of the key, in which NULL cannot stand for a date");
            self.error(entity, draft.config, what, "# a date of its own, or \"quarantine\"".into());
        }
        for (special, value) in dates.stored(kind, engine) {
            if let Err(why) = fits(value, ty, engine) {
                let what = format!("{} of column {name:?} does not suit it: {why}", special.key());
                self.error(entity, draft.config, what, "# a date that the column holds, or \"quarantine\"".into());
            }
        }
    }

    fn schema(&mut self, entity: &EntityConfig, drafts: &[Draft<'_>]) -> EntitySchema {
        let mut names: Vec<&str> = entity.key.iter().map(String::as_str).collect();
        for bound in drafts.iter().flat_map(|draft| &draft.columns) {
            if !names.contains(&bound.field.as_str()) {
                names.push(&bound.field);
            }
        }
        if names.len() > FIELDS_MAX
            && let Some(draft) = drafts.first()
        {
            let what = format!("the entity has {} fields; {FIELDS_MAX} are the most", names.len());
            self.error(entity, draft.config, what, "bind fewer columns, or make two entities of it".into());
        }
        let mut fields = Vec::new();
        for name in names {
            let kind = self.kind(entity, name, drafts);
            if entity.key.iter().any(|key| key == name)
                && matches!(kind, Kind::Float32 | Kind::Float64 | Kind::Json | Kind::Array)
            {
                let what = format!("key field {name:?} is of type {}, which does not identify anything", kind.name());
                self.error(
                    entity,
                    drafts[0].config,
                    what,
                    "# key = fields of whole numbers, text, dates or uuids".into(),
                );
            }
            fields.push(Field { name: name.to_owned(), kind });
        }
        EntitySchema::new(&entity.name, fields, entity.key.len())
    }

    /// The kind that all columns of a field have in common.
    fn kind(&mut self, entity: &EntityConfig, field: &str, drafts: &[Draft<'_>]) -> Kind {
        let bound: Vec<(&Draft<'_>, &DraftColumn<'_>)> =
            drafts.iter().flat_map(|d| d.columns.iter().filter(|c| c.field == field).map(move |c| (d, c))).collect();
        let kinds: BTreeSet<Kind> = bound.iter().filter_map(|(_, column)| column.kind()).collect();
        let plain = bound.iter().filter(|(_, column)| column.format.is_none() && column.values.is_none());
        let elements: Vec<&ColumnType> = elements(field, drafts).collect();
        let one_class = elements.windows(2).all(|pair| array::same_class(pair[0], pair[1]));
        if one_class && let Some(kind) = common_kind(&kinds, plain.map(|(_, column)| &column.column.ty)) {
            return kind;
        }
        let types: Vec<String> = bound
            .iter()
            .map(|(draft, bound)| {
                let system = self.system(draft.config.system);
                format!("{} in {system} ({:?})", bound.column.type_name, bound.column.name)
            })
            .collect();
        let what = format!("field {field:?} has types that have no exact common form: {}", types.join(", "));
        let draft = bound[0].0;
        let otherwise = "# or change a column's type, or map it with format or values";
        let mend = match entity.key.iter().any(|key| key == field) {
            true => otherwise.replacen("or change", "change", 1),
            false => {
                let columns = draft.columns.iter().map(|bound| (bound.field.as_str(), bound.column.name.as_str()));
                let list = columns_list(self.system(draft.config.system), draft.config, columns, &[field]);
                format!("{list}\n# and not in the others, either; {}", &otherwise[2..])
            }
        };
        self.error(entity, draft.config, what, mend);
        Kind::Text
    }

    fn binding(
        &mut self,
        id: EntityId,
        entity: &EntityConfig,
        schema: &EntitySchema,
        draft: &Draft<'_>,
        drafts: &[Draft<'_>],
    ) -> Binding {
        let mut columns: Vec<BoundColumn> = Vec::new();
        for (field, spec) in schema.fields.iter().enumerate() {
            if let Some(bound) = draft.columns.iter().find(|bound| bound.field == spec.name) {
                columns.extend(self.bound_column(entity, draft, field, spec, bound, drafts));
            }
        }
        self.check_key(entity, draft);
        self.check_identity(entity, draft, drafts);
        if draft.config.role.receives() {
            self.check_target(entity, draft);
        }
        let filter = self.filter(entity, schema, draft);
        let clash_keys = conflicts::clash_keys(entity, schema, draft.table, &columns);
        Binding {
            system: draft.config.system,
            entity: id,
            table: Arc::new(draft.table.clone()),
            role: draft.config.role,
            columns,
            key_len: schema.key_len,
            filter,
            clash_keys,
        }
    }

    fn bound_column(
        &mut self,
        entity: &EntityConfig,
        draft: &Draft<'_>,
        field: usize,
        spec: &Field,
        bound: &DraftColumn<'_>,
        drafts: &[Draft<'_>],
    ) -> Option<BoundColumn> {
        let engine = self.engine(draft.config.system);
        let transform = match (&bound.format, bound.values) {
            (Some(format), _) => Transform::Format(format.clone()),
            (None, None) => match (bound.dates, &bound.column.ty, elements(&spec.name, drafts).next()) {
                (Some(dates), ..) => Transform::Dates(dates),
                (None, ColumnType::Json, Some(element)) if spec.kind == Kind::Array => {
                    Transform::Array(element.clone())
                }
                _ => Transform::None,
            },
            (None, Some(pairs)) => {
                let own = bound.column.ty.kind()?;
                let map = ValueMap::new(pairs, spec.kind, own).and_then(|map| {
                    let refusal = map.stored().find_map(|value| fits(value, &bound.column.ty, engine).err());
                    refusal.map_or(Ok(map), Err)
                });
                match map {
                    Ok(map) => Transform::Values(map),
                    Err(why) => {
                        let what = format!(
                            "the values of field {:?} do not suit column {:?}: {why}",
                            spec.name, bound.column.name
                        );
                        let system = self.system(draft.config.system);
                        let mend = format!(
                            "# change the map, or the column's type\n[entity.in.{system}.columns]\n{} = {:?}",
                            toml_key(&spec.name),
                            bound.column.name
                        );
                        self.error(entity, draft.config, what, mend);
                        return None;
                    }
                }
            }
        };
        let label = format!("field {:?} of {} (column {:?})", spec.name, entity.name, bound.column.name);
        let column = bound.column.clone();
        Some(BoundColumn { field, kind: spec.kind, column, transform, engine, label: label.into() })
    }

    fn filter(&mut self, entity: &EntityConfig, schema: &EntitySchema, draft: &Draft<'_>) -> Option<Filter> {
        let text = draft.config.filter.as_deref()?;
        let filter = match Filter::compile(text, schema) {
            Ok(filter) => filter,
            Err(why) => {
                let known: Vec<&str> = schema.fields.iter().map(|field| field.name.as_str()).collect();
                let mend = format!("# a predicate over the entity's fields: {}", known.join(", "));
                self.error(entity, draft.config, format!("where {why}"), mend);
                return None;
            }
        };
        for &field in filter.fields() {
            let name = &schema.fields[field].name;
            if !draft.columns.iter().any(|bound| bound.field == *name) {
                let what = format!("where needs field {name:?}, which this binding does not have");
                let column = nearest(name, draft.table.columns.iter().map(|c| c.name.as_str())).unwrap_or("…");
                let system = self.system(draft.config.system);
                let mend = format!("[entity.in.{system}.columns]\n{} = {column:?}", toml_key(name));
                self.error(entity, draft.config, what, mend);
            }
        }
        Some(filter)
    }

    /// PostgreSQL logs of an old row only what the replica identity says. Targets are
    /// published too, for their drift.
    fn check_identity(&mut self, entity: &EntityConfig, draft: &Draft<'_>, drafts: &[Draft<'_>]) {
        let Some(identity) = draft.table.replica_identity else { return };
        let key: BTreeSet<&str> = key_columns(entity, draft).iter().map(|column| column.name.as_str()).collect();
        let primary: BTreeSet<&str> = draft.table.primary_key.iter().map(String::as_str).collect();
        let writers = drafts.iter().filter(|draft| draft.config.role.captures()).count();
        let why = if identity == ReplicaIdentity::Full {
            return;
        } else if entity.key.is_empty() || !draft.config.role.captures() {
            if identity == ReplicaIdentity::Index || (identity == ReplicaIdentity::Default && !primary.is_empty()) {
                return;
            }
            "PostgreSQL refuses UPDATE and DELETE on a published table without identity"
        } else if entity.carries_parts() {
            "differences and single fields are carried, which need whole old rows"
        } else if writers > 1 {
            "several systems write the entity, so conflicts need whole old rows"
        } else if draft.config.filter.is_some() {
            "the filter has to see old rows"
        } else if identity != ReplicaIdentity::Default || primary != key {
            "the log does not say the key of an old row"
        } else {
            return;
        };
        let name = match identity {
            ReplicaIdentity::Default => "DEFAULT",
            ReplicaIdentity::Nothing => "NOTHING",
            ReplicaIdentity::Full => "FULL",
            ReplicaIdentity::Index => "USING INDEX",
        };
        let table = quoted_table(Engine::Postgres, draft.table);
        let what = format!("replica identity {name} is too weak: {why}");
        self.error(entity, draft.config, what, keys::by_owner(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL;")));
    }

    /// Whether rows can be written there at all, and be taken back.
    fn check_target(&mut self, entity: &EntityConfig, draft: &Draft<'_>) {
        let engine = self.engine(draft.config.system);
        if !draft.table.transactional {
            let what = "the table's engine is not transactional: what is written there cannot be taken back".to_owned();
            let mend = format!("ALTER TABLE {} ENGINE=InnoDB;", quoted_table(engine, draft.table));
            self.error(entity, draft.config, what, keys::by_owner(&mend));
        }
        let bound: HashSet<&str> = draft.columns.iter().map(|bound| bound.column.name.as_str()).collect();
        for column in &draft.table.columns {
            let filled = column.nullable || column.has_default || column.generated;
            if filled || column.auto_increment || column.identity_always || bound.contains(column.name.as_str()) {
                continue;
            }
            let what = format!("column {:?} is NOT NULL without a default and not bound: inserts fail", column.name);
            let mend = keys::by_owner(&ddl::nullable(engine, draft.table, column));
            self.error(
                entity,
                draft.config,
                what,
                mend + "\n-- or give it a default, or bind it, or role = \"source\"",
            );
        }
    }

    fn lonely_fields(&mut self, entity: &EntityConfig, drafts: &[Draft<'_>]) {
        for draft in drafts {
            for bound in &draft.columns {
                let elsewhere = drafts.iter().any(|other| {
                    other.config.system != draft.config.system && other.columns.iter().any(|c| c.field == bound.field)
                });
                if !elsewhere {
                    let what = format!("field {:?} is bound here only, so it goes nowhere", bound.field);
                    let columns = draft.columns.iter().map(|c| (c.field.as_str(), c.column.name.as_str()));
                    let list = columns_list(self.system(draft.config.system), draft.config, columns, &[&bound.field]);
                    self.warning(entity, draft.config, what, format!("{list}\n# or bind it elsewhere, too"));
                }
            }
        }
    }
}

/// What a binding without `columns` may take. Where some binding lists its columns, that list
/// says what is synchronised at all; otherwise it is what two tables or more have in common.
fn shared_fields(found: &[(&BindingConfig, &Table)]) -> HashSet<String> {
    let listed: HashSet<String> =
        found.iter().filter_map(|(b, _)| b.columns.as_ref()).flatten().map(|column| column.field.clone()).collect();
    if !listed.is_empty() {
        return listed;
    }
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for (binding, table) in found {
        for column in table.columns.iter().filter(|column| !binding.ignore.contains(&column.name)) {
            *count.entry(&column.name).or_default() += 1;
        }
    }
    count.into_iter().filter(|(_, tables)| *tables > 1).map(|(name, _)| name.to_owned()).collect()
}

/// The types of the elements of all arrays of a field.
fn elements<'d>(field: &str, drafts: &'d [Draft<'_>]) -> impl Iterator<Item = &'d ColumnType> {
    drafts.iter().flat_map(|draft| &draft.columns).filter(move |bound| bound.field == field).filter_map(|bound| {
        match &bound.column.ty {
            ColumnType::Array { element } => Some(&**element),
            _ => None,
        }
    })
}

/// One entity in one system, as far as names tell.
#[derive(Debug, Clone)]
pub struct Bound<'c> {
    pub entity: &'c EntityConfig,
    pub binding: &'c BindingConfig,
    pub table: &'c Table,
    /// Field, column.
    pub columns: Vec<(&'c str, &'c Column)>,
}

impl Bound<'_> {
    pub fn column(&self, field: &str) -> Option<&Column> {
        self.columns.iter().find(|(name, _)| *name == field).map(|(_, column)| *column)
    }

    pub fn field(&self, column: &str) -> Option<&str> {
        self.columns.iter().find(|(_, bound)| bound.name == column).map(|(field, _)| *field)
    }
}

/// What is bound to what, of the tables and columns that exist, whatever else is wrong with them.
pub fn bound<'c>(config: &'c Config, catalogs: &'c [Catalog]) -> Vec<Bound<'c>> {
    let mut all = Vec::new();
    for entity in &config.entities {
        let table = |binding: &BindingConfig| catalogs[binding.system.index()].get(&binding.table)?.as_ref();
        let found: Vec<(&BindingConfig, &Table)> =
            entity.bindings.iter().filter_map(|binding| Some((binding, table(binding)?))).collect();
        let shared = shared_fields(&found);
        for (binding, table) in found {
            let columns = match &binding.columns {
                Some(columns) => {
                    columns.iter().filter_map(|c| Some((c.field.as_str(), table.column(&c.column)?))).collect()
                }
                None => {
                    let takes = |column: &&Column| {
                        shared.contains(&column.name) && !column.generated && !binding.ignore.contains(&column.name)
                    };
                    table.columns.iter().filter(takes).map(|column| (column.name.as_str(), column)).collect()
                }
            };
            all.push(Bound { entity, binding, table, columns });
        }
    }
    all
}

/// The binding's `columns` as the file takes them, without some fields.
pub fn columns_toml(system: &str, bound: &Bound<'_>, without: &[&str]) -> String {
    let columns = bound.columns.iter().map(|(field, column)| (*field, column.name.as_str()));
    columns_list(system, bound.binding, columns, without)
}

fn columns_list<'a>(
    system: &str,
    binding: &BindingConfig,
    columns: impl Iterator<Item = (&'a str, &'a str)>,
    without: &[&str],
) -> String {
    let line = |(field, column): (&str, &str)| {
        let config = binding.columns.iter().flatten().find(|config| config.field == field);
        let column = config.map_or_else(|| format!("{column:?}"), |config| toml_column(config, column));
        format!("{} = {column}", toml_key(field))
    };
    let list: Vec<String> = columns.filter(|(field, _)| !without.contains(field)).map(line).collect();
    format!("[entity.in.{system}]\ncolumns = {{ {} }}", list.join(", "))
}

/// With all that the file says of the column.
fn toml_column(config: &ColumnConfig, column: &str) -> String {
    let mut parts = Vec::new();
    if let Some(format) = &config.format {
        parts.push(format!("format = {format:?}"));
    }
    if let Some(values) = &config.values {
        let pairs: Vec<String> = values.iter().map(|(from, to)| format!("{} = {to:?}", toml_key(from))).collect();
        parts.push(format!("values = {{ {} }}", pairs.join(", ")));
    }
    if let Some(names) = &config.formerly {
        parts.push(format!("formerly = {names:?}"));
    }
    if let Some(dates) = &config.dates {
        parts.extend(dates.toml());
    }
    match parts.is_empty() {
        true => format!("{column:?}"),
        false => format!("{{ column = {column:?}, {} }}", parts.join(", ")),
    }
}

fn toml_key(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare { key.to_owned() } else { format!("{key:?}") }
}

/// Some unique key of the table is exactly these columns.
fn is_key(table: &Table, key: &[&Column]) -> bool {
    let names: BTreeSet<&str> = key.iter().map(|column| column.name.as_str()).collect();
    let same = |columns: &Vec<String>| columns.iter().map(String::as_str).collect::<BTreeSet<_>>() == names;
    let firm = |at: usize| table.loose_keys.iter().all(|loose| loose.at != at);
    table.unique_keys.iter().enumerate().any(|(at, columns)| same(columns) && firm(at))
}

fn key_columns<'c>(entity: &EntityConfig, draft: &Draft<'c>) -> Vec<&'c Column> {
    let column = |key: &String| draft.columns.iter().find(|bound| bound.field == *key).map(|bound| bound.column);
    entity.key.iter().filter_map(column).collect()
}

fn common_kind<'t>(kinds: &BTreeSet<Kind>, mut plain: impl Iterator<Item = &'t ColumnType>) -> Option<Kind> {
    let only = |allowed: &[Kind]| kinds.iter().all(|kind| allowed.contains(kind));
    match kinds.len() {
        0 => Some(Kind::Text), // values maps alone: their canonical side is text
        1 => kinds.first().copied(),
        _ if only(&[Kind::Bool, Kind::Int]) => Some(Kind::Bool),
        // One binary digit is a flag.
        _ if kinds.contains(&Kind::Bool) && only(&[Kind::Bool, Kind::Int, Kind::Bits]) => {
            plain.all(|ty| !matches!(ty, ColumnType::Bits { length, .. } if *length != Some(1))).then_some(Kind::Bool)
        }
        _ if only(&[Kind::Bits, Kind::Text]) => Some(Kind::Bits),
        _ if kinds.contains(&Kind::Array) && only(&[Kind::Array, Kind::Json, Kind::Text]) => Some(Kind::Array),
        _ if only(&[Kind::Int, Kind::Decimal]) => Some(Kind::Decimal),
        _ if only(&[Kind::Float32, Kind::Float64]) => Some(Kind::Float64),
        _ if only(&[Kind::Json, Kind::Text]) => Some(Kind::Json),
        _ if only(&[Kind::DateTime, Kind::Timestamp]) => Some(Kind::Timestamp),
        _ if kinds.contains(&Kind::Uuid) && only(&[Kind::Uuid, Kind::Text, Kind::Bytes]) => {
            plain.all(holds_uuid).then_some(Kind::Uuid)
        }
        _ => None,
    }
}

fn holds_uuid(ty: &ColumnType) -> bool {
    match ty {
        ColumnType::Uuid => true,
        ColumnType::Char { chars } => *chars >= 36,
        ColumnType::Text { chars, bytes } => chars.is_none_or(|n| n >= 36) && bytes.is_none_or(|n| n >= 36),
        ColumnType::Binary { bytes } => *bytes == 16,
        ColumnType::Bytes { bytes } => bytes.is_none_or(|n| n >= 16),
        _ => false,
    }
}

fn quoted(engine: Engine, name: &str) -> String {
    match engine {
        Engine::Postgres => format!("\"{}\"", name.replace('"', "\"\"")),
        Engine::Mysql => format!("`{}`", name.replace('`', "``")),
    }
}

fn quoted_table(engine: Engine, table: &Table) -> String {
    format!("{}.{}", quoted(engine, &table.name.schema), quoted(engine, &table.name.name))
}

#[cfg(test)]
mod tests;
