//! What the file says of conflicts, against the columns as they are: a difference that would be
//! rounded somewhere, or an order that servers do not share, would let systems drift apart.

use super::keys::by_owner;
use super::{Draft, DraftColumn, Resolver, ddl};
use crate::catalog::{ColumnType, DecimalLimits, Loose, Table};
use crate::config::{Config, EntityConfig, Merge, OnClash, Scope, nearest};
use crate::finding::Finding;
use crate::normalize::binding::{Binding, BoundColumn};
use crate::rules::{Rules, Unique};
use crate::schema::{EntitySchema, Field, SystemId};
use crate::value::Kind;

/// What was configured, by the numbers of fields and systems. Names are known to be right.
pub(super) fn rules(config: &Config, entity: &EntityConfig, schema: &EntitySchema, bindings: &[Binding]) -> Rules {
    let authority = entity.authority.as_deref().unwrap_or_default();
    let rank = |system: SystemId| authority.iter().position(|of| *of == system).unwrap_or(authority.len()) as u8;
    let merge = |(name, merge): &(String, Merge)| schema.field(name).map(|field| (field, *merge));
    let unique = |(name, on_clash): &(String, OnClash)| {
        let field = schema.field(name)?;
        Some(Unique { field, on_clash: on_clash.clone(), chars: chars(field, bindings) })
    };
    Rules {
        policy: entity.conflict,
        ranks: if authority.is_empty() { Vec::new() } else { config.system_ids().map(rank).collect() },
        version: entity.latest_by.as_deref().and_then(|name| schema.field(name)),
        by_field: entity.scope == Scope::Field,
        on_delete: entity.on_delete,
        merges: entity.merge.iter().filter_map(merge).collect(),
        uniques: entity.unique.iter().filter_map(unique).collect(),
    }
}

/// So many characters of the field fit everywhere, whatever they are.
fn chars(field: usize, bindings: &[Binding]) -> Option<u32> {
    let columns = bindings.iter().flat_map(|binding| &binding.columns).filter(|bound| bound.field == field);
    let limit = |ty: &ColumnType| match ty {
        ColumnType::Char { chars } => Some(*chars),
        ColumnType::Text { chars, bytes } => {
            let bytes = bytes.map(|bytes| u32::try_from(bytes / 4).unwrap_or(u32::MAX));
            chars.iter().copied().chain(bytes).min()
        }
        _ => None,
    };
    columns.filter_map(|bound| limit(&bound.column.ty)).min()
}

/// Unique keys of whole values of their columns, in all rows: by them a row is found.
fn whole_keys(table: &Table) -> impl Iterator<Item = &Vec<String>> {
    let tells = |at: usize| {
        let loose = table.loose_keys.iter().find(|loose| loose.at == at);
        loose.is_none_or(|loose| matches!(loose.why, Loose::Deferrable | Loose::Invisible(_)))
    };
    table.unique_keys.iter().enumerate().filter(move |(at, _)| tells(*at)).map(|(_, columns)| columns)
}

/// What [`Binding::clash_keys`] says.
pub(super) fn clash_keys(
    entity: &EntityConfig,
    schema: &EntitySchema,
    table: &Table,
    columns: &[BoundColumn],
) -> Vec<Vec<usize>> {
    let place = |name: &String| columns.iter().position(|bound| bound.column.name == *name);
    let decided = |at: &usize| entity.unique.iter().any(|(name, _)| *name == schema.fields[columns[*at].field].name);
    let keys = whole_keys(table).filter_map(|names| names.iter().map(place).collect::<Option<Vec<usize>>>());
    keys.filter(|key| key.iter().any(decided)).collect()
}

impl Resolver<'_> {
    pub(super) fn conflicts(
        &mut self,
        entity: &EntityConfig,
        schema: &EntitySchema,
        drafts: &[Draft<'_>],
        bindings: &[Binding],
    ) {
        for (name, merge) in &entity.merge {
            let Some(at) = self.known(entity, "merge", name, schema) else { continue };
            let field = &schema.fields[at];
            match merge {
                Merge::Add => {
                    self.additive(entity, field, drafts);
                    self.not_filtered(entity, at, field, drafts, bindings);
                }
                Merge::Max | Merge::Min => self.ordered(entity, field, drafts),
                Merge::Union => self.united(entity, field, drafts),
                Merge::Policy(_) => {}
            }
        }
        for (name, clash) in &entity.unique {
            let Some(at) = self.known(entity, "unique", name, schema) else { continue };
            self.clashing(entity, &schema.fields[at], clash, drafts);
        }
        for name in &entity.sensitive {
            self.known(entity, "sensitive", name, schema);
        }
        for notify in self.config.notifies.iter().filter(|notify| notify.entity == entity.name) {
            let of_key = |name: &&String| entity.key.contains(name);
            for name in notify.fields.iter().flatten().filter(|name| !of_key(name)) {
                self.known(entity, &format!("notify {:?}", notify.name), name, schema);
            }
        }
        if let Some(name) = &entity.latest_by
            && let Some(at) = self.known(entity, "latest_by", name, schema)
        {
            self.version(entity, &schema.fields[at], drafts);
        }
        self.one_writer(entity, drafts);
        self.undecided_keys(entity, drafts);
    }

    /// Two systems may each write what one table cannot hold.
    fn undecided_keys(&mut self, entity: &EntityConfig, drafts: &[Draft<'_>]) {
        let writers = entity.bindings.iter().filter(|binding| binding.role.captures()).count();
        if writers < 2 || entity.key.is_empty() {
            return;
        }
        for draft in drafts.iter().filter(|draft| draft.config.role.receives()) {
            let bound = |name: &String| draft.columns.iter().find(|own| own.column.name == *name);
            for names in whole_keys(draft.table) {
                let Some(columns) = names.iter().map(bound).collect::<Option<Vec<_>>>() else { continue };
                let decided = |own: &&DraftColumn<'_>| entity.unique.iter().any(|(field, _)| *field == own.field);
                let of_key = |own: &&DraftColumn<'_>| entity.key.contains(&own.field);
                let field = columns.iter().find(|own| !of_key(own));
                // By the key alone a record is itself.
                let (Some(field), false) = (field, columns.iter().any(decided)) else { continue };
                if entity.key.iter().all(|key| columns.iter().any(|own| own.field == *key)) {
                    continue;
                }
                let what = format!(
                    "keeps ({}) unique: where two systems write the same value in two records, both wait in quarantine",
                    names.join(", ")
                );
                let mend =
                    format!("[entity.unique]\n{:?} = \"manual\"\n# or \"reject\", or a name of its own", field.field);
                let finding = Finding::note(self.system(draft.config.system), what).entity(&entity.name);
                self.findings.push(finding.table(&draft.table.name).mend(mend));
            }
        }
    }

    /// `key` names a field of the entity.
    fn known(&mut self, entity: &EntityConfig, key: &str, name: &str, schema: &EntitySchema) -> Option<usize> {
        let found = schema.fields.iter().position(|field| field.name == name);
        if found.is_none() {
            let fields = || schema.fields[schema.key_len..].iter().map(|field| field.name.as_str());
            let way_out = nearest(name, fields()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
            let what = format!("{key} names {name:?}, which is no field of any binding{way_out}");
            let mend = format!("# one of: {}", fields().collect::<Vec<_>>().join(", "));
            self.findings.push(Finding::error("", what).entity(&entity.name).mend(mend));
        }
        found
    }

    /// Whole differences must fit everywhere: what one column rounds, the sum lacks.
    fn additive(&mut self, entity: &EntityConfig, field: &Field, drafts: &[Draft<'_>]) {
        let number = |ty: &ColumnType| matches!(ty, ColumnType::Int { .. } | ColumnType::Decimal { .. });
        if self.each(entity, field, drafts, number, "merge \"add\"", "adds up whole and decimal numbers only") {
            return;
        }
        for (draft, own) in columns(field, drafts).filter(|(draft, _)| draft.config.role.receives()) {
            let others = columns(field, drafts)
                .filter(|(other, _)| other.config.system != draft.config.system && other.config.role.captures());
            let Some((other, source)) = others.max_by_key(|(_, source)| scale(source)) else { continue };
            if scale(source) <= scale(own) {
                continue;
            }
            // Where one has no limits, no type elsewhere holds all of them: it gets the limits.
            let (at, column, beside, than, what, ty) = match &source.column.ty {
                ColumnType::Decimal { limits: None } => {
                    (other, source, draft, own, "takes any number of decimal places, other", own.column.ty.clone())
                }
                ty => (draft, own, other, source, "has fewer decimal places", both(&own.column.ty, ty)),
            };
            let what = format!(
                "column {:?} ({}) {what} than {:?} in {} ({}): differences of {:?}, which is added up, would be rounded",
                column.column.name,
                column.column.type_name,
                than.column.name,
                self.system(beside.config.system),
                than.column.type_name,
                field.name,
            );
            let engine = self.engine(at.config.system);
            let mend = match ddl::type_for(engine, &ty) {
                Some(ty) => by_owner(&ddl::of_type(engine, at.table, column.column, &ty)),
                None => "-- no type of this server holds all of them".to_owned(),
            };
            self.error(entity, at.config, what, mend);
        }
    }

    /// Systems know different parts of a sum at one moment, and would filter by different ones.
    fn not_filtered(
        &mut self,
        entity: &EntityConfig,
        at: usize,
        field: &Field,
        drafts: &[Draft<'_>],
        bindings: &[Binding],
    ) {
        for (draft, binding) in drafts.iter().zip(bindings) {
            if binding.filter.as_ref().is_some_and(|filter| filter.fields().contains(&at)) {
                let what =
                    format!("where asks for field {:?}, which is added up and differs until all have all", field.name);
                self.error(entity, draft.config, what, "# another predicate, or another merge".into());
            }
        }
    }

    fn ordered(&mut self, entity: &EntityConfig, field: &Field, drafts: &[Draft<'_>]) {
        let kind = matches!(
            field.kind,
            Kind::Int
                | Kind::Decimal
                | Kind::Float32
                | Kind::Float64
                | Kind::Date
                | Kind::Time
                | Kind::DateTime
                | Kind::Timestamp
                | Kind::Text
        );
        // Text to us; their servers order it by something else.
        let ordered = |ty: &ColumnType| {
            let otherwise = matches!(
                ty,
                ColumnType::Enum { .. } | ColumnType::Set { .. } | ColumnType::Verbatim | ColumnType::Inet { .. }
            );
            kind && !otherwise
        };
        let unfit = "has no order that all servers share; numbers, dates, times and texts (by their bytes) have";
        self.each(entity, field, drafts, ordered, "merge \"max\" or \"min\"", unfit);
    }

    fn united(&mut self, entity: &EntityConfig, field: &Field, drafts: &[Draft<'_>]) {
        let set = columns(field, drafts).any(|(_, own)| matches!(own.column.ty, ColumnType::Set { .. }));
        let members = |_: &ColumnType| set || matches!(field.kind, Kind::Array | Kind::Json);
        self.each(
            entity,
            field,
            drafts,
            members,
            "merge \"union\"",
            "has no members; sets, arrays and JSON arrays have",
        );
    }

    /// A clash is with what a server calls unique, and a new value has to be text.
    fn clashing(&mut self, entity: &EntityConfig, field: &Field, clash: &OnClash, drafts: &[Draft<'_>]) {
        if let OnClash::Rename(_) = clash {
            let text = |ty: &ColumnType| {
                matches!(ty, ColumnType::Char { .. } | ColumnType::Text { .. }) && field.kind == Kind::Text
            };
            if self.each(entity, field, drafts, text, "unique \"rename\"", "is no text, which the template makes") {
                return;
            }
        }
        let unique = |(draft, own): (&Draft<'_>, &DraftColumn<'_>)| {
            draft.config.role.receives() && whole_keys(draft.table).any(|key| key.contains(&own.column.name))
        };
        if !columns(field, drafts).any(unique) {
            let what = format!(
                "unique names {:?}, which no table that receives rows has in a unique key of all its rows",
                field.name
            );
            let mend = "# leave it out, or create the unique key";
            self.findings.push(Finding::error("", what).entity(&entity.name).mend(mend));
        }
    }

    /// Every row that somebody writes has a version, and versions are ordered exactly.
    fn version(&mut self, entity: &EntityConfig, field: &Field, drafts: &[Draft<'_>]) {
        let kind = matches!(field.kind, Kind::Int | Kind::Decimal | Kind::Date | Kind::DateTime | Kind::Timestamp);
        let unfit = "says of no two rows which is later; a timestamp, a date, a whole or decimal number does";
        if self.each(entity, field, drafts, |_| kind, "latest_by", unfit) {
            return;
        }
        for draft in drafts.iter().filter(|draft| draft.config.role.captures()) {
            if draft.columns.iter().all(|own| own.field != field.name) {
                let what = format!("does not bind {:?}, which latest_by compares", field.name);
                let columns = draft.columns.iter().map(|own| (own.field.as_str(), own.column.name.as_str()));
                let columns = columns.chain([(field.name.as_str(), "…")]);
                let list = super::columns_list(self.system(draft.config.system), draft.config, columns, &[]);
                self.error(entity, draft.config, what, format!("{list}\n# with a column that every write sets"));
            }
        }
    }

    /// Nothing is ever decided where one system alone writes.
    fn one_writer(&mut self, entity: &EntityConfig, drafts: &[Draft<'_>]) {
        let writers = entity.bindings.iter().filter(|binding| binding.role.captures()).count();
        if let (true, [draft, ..]) = (writers == 1 && entity.decides(), drafts) {
            let what = "one system alone writes the entity: what the file says of its conflicts never applies";
            self.warning(
                entity,
                draft.config,
                what.into(),
                "# leave it out, or give another system role = \"both\"".into(),
            );
        }
    }

    /// Tells of each column whose type does not do; whether there was one.
    fn each(
        &mut self,
        entity: &EntityConfig,
        field: &Field,
        drafts: &[Draft<'_>],
        does: impl Fn(&ColumnType) -> bool,
        key: &str,
        unfit: &str,
    ) -> bool {
        let mut any = false;
        for (draft, own) in columns(field, drafts).filter(|(_, own)| !does(&own.column.ty)) {
            let what =
                format!("{key} of {:?}: column {:?} ({}) {unfit}", field.name, own.column.name, own.column.type_name);
            self.error(entity, draft.config, what, "# another type for the column, or leave it out".into());
            any = true;
        }
        any
    }
}

fn columns<'d>(field: &Field, drafts: &'d [Draft<'d>]) -> impl Iterator<Item = (&'d Draft<'d>, &'d DraftColumn<'d>)> {
    let name = field.name.clone();
    drafts.iter().filter_map(move |draft| Some((draft, draft.columns.iter().find(|own| own.field == name)?)))
}

/// Decimal places; without limits as many as anybody writes.
fn scale(own: &DraftColumn<'_>) -> u16 {
    match &own.column.ty {
        ColumnType::Decimal { limits: Some(limits) } => limits.scale,
        ColumnType::Decimal { limits: None } => u16::MAX,
        _ => 0,
    }
}

/// A type that holds what either does.
fn both(own: &ColumnType, other: &ColumnType) -> ColumnType {
    let limits = |ty: &ColumnType| match ty {
        ColumnType::Decimal { limits: Some(limits) } => *limits,
        _ => DecimalLimits { precision: 20, scale: 0 },
    };
    let (own, other) = (limits(own), limits(other));
    let scale = own.scale.max(other.scale);
    let whole = |limits: DecimalLimits| limits.precision.saturating_sub(limits.scale);
    ColumnType::Decimal { limits: Some(DecimalLimits { precision: whole(own).max(whole(other)) + scale, scale }) }
}
