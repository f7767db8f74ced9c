//! What an entity says of conflicts: words, names, and what does not go together. What needs
//! the columns' types, or columns bound by their names, is `normalize::resolve`'s business.

use super::super::raw::{At, RawClash, RawEntity, RawSystem, Reader};
use super::super::{BindingConfig, Conflict, Merge, OnClash, OnDelete, Scope, nearest};
use super::{choice, quoted};
use crate::normalize::binding::Role;
use crate::schema::SystemId;

const POLICIES: [&str; 3] = ["authority", "latest", "manual"];
const MERGES: [&str; 4] = ["add", "max", "min", "union"];
const CLASHES: [&str; 3] = ["reject", "rename", "manual"];
const PLACEHOLDERS: [&str; 3] = ["value", "system", "key"];
const RENAME: &str = "{ policy = \"rename\", template = \"{value}-{system}-{key}\" }";

/// As [`super::EntityConfig`] has them.
pub(super) struct Conflicts {
    pub conflict: Conflict,
    pub authority: Option<Vec<SystemId>>,
    pub latest_by: Option<String>,
    pub scope: Scope,
    pub on_delete: Option<OnDelete>,
    pub merge: Vec<(String, Merge)>,
    pub unique: Vec<(String, OnClash)>,
}

/// The entity that says it.
pub(super) struct Entity<'r> {
    pub raw: &'r RawEntity,
    pub place: &'r str,
    pub raw_systems: &'r [RawSystem],
    /// Those that are right.
    pub bindings: &'r [BindingConfig],
}

impl Entity<'_> {
    pub fn conflicts(&self, reader: &mut Reader<'_>) -> Conflicts {
        let raw = &self.raw.conflicts;
        let conflict = self.word(&raw.conflict, "conflict", &POLICIES, reader).map_or(Conflict::Authority, policy);
        let scope = match self.word(&raw.scope, "scope", &["row", "field"], reader) {
            Some("field") => Scope::Field,
            _ => Scope::Row,
        };
        let on_delete =
            self.word(&raw.on_delete, "on_delete", &["update_wins", "delete_wins"], reader).map(|word| match word {
                "update_wins" => OnDelete::UpdateWins,
                _ => OnDelete::DeleteWins,
            });
        let authority = raw.authority.as_ref().map(|at| self.authority(at, reader));
        if let Some(at) = &raw.latest_by {
            self.latest_by(at, conflict, reader);
        }
        let merge: Vec<(String, Merge)> =
            raw.merge.iter().filter_map(|(field, how)| self.merge(field, how, scope, reader)).collect();
        let unique = raw.unique.iter().filter_map(|clash| self.clash(clash, reader)).collect();
        self.needs_a_key(conflict, scope, reader);
        self.whole_rows_in_filters(scope, &merge, reader);
        Conflicts { conflict, authority, latest_by: raw.latest_by.as_ref().map(value), scope, on_delete, merge, unique }
    }

    /// One of a closed set; a wrong one is told.
    fn word<'a>(&self, at: &'a Option<At<String>>, key: &str, of: &[&str], reader: &mut Reader<'_>) -> Option<&'a str> {
        let at = at.as_ref()?;
        choice(at, key, of, self.place, reader);
        Some(&at.value)
    }

    /// Each system that binds the entity, once.
    fn authority(&self, at: &At<Vec<At<String>>>, reader: &mut Reader<'_>) -> Vec<SystemId> {
        let binds = |name: &str| self.raw.bindings.iter().any(|b| b.system.value == name);
        let mut order = Vec::new();
        for (place, name) in at.value.iter().enumerate() {
            if at.value[..place].iter().any(|before| before.value == name.value) {
                reader.error(name.line, self.place, format!("authority names {:?} twice", name.value));
            } else if !binds(&name.value) {
                let way_out = self.nearest_binding(&name.value);
                let message = format!("authority names {:?}, which does not bind the entity{way_out}", name.value);
                reader.error(name.line, self.place, message);
            } else if let Some(system) = self.system(&name.value) {
                order.push(system);
            }
        }
        let named = |name: &str| at.value.iter().any(|at| at.value == name);
        let missing: Vec<&str> =
            self.raw.bindings.iter().map(|b| b.system.value.as_str()).filter(|name| !named(name)).collect();
        if !missing.is_empty() {
            let message =
                format!("authority lacks {}; it has to name each system that binds the entity", quoted(&missing));
            reader.error(at.line, self.place, message);
        }
        order
    }

    fn system(&self, name: &str) -> Option<SystemId> {
        let named = |system: &RawSystem| system.name.as_ref().is_some_and(|at| at.value == name);
        self.raw_systems.iter().position(named).map(|index| SystemId(index as u8))
    }

    fn nearest_binding(&self, name: &str) -> String {
        let known = || self.raw.bindings.iter().map(|b| b.system.value.as_str());
        match nearest(name, known()) {
            Some(near) => format!("; nearest: {near:?}"),
            None => format!("; known: {}", known().collect::<Vec<_>>().join(", ")),
        }
    }

    fn latest_by(&self, at: &At<String>, conflict: Conflict, reader: &mut Reader<'_>) {
        if conflict != Conflict::Latest {
            reader.error(at.line, self.place, "latest_by is for conflict = \"latest\": leave one out");
        }
        if !self.is_field(at, "latest_by", reader) {
            return;
        }
        // Who writes without it has no version.
        for binding in self.bindings.iter().filter(|binding| binding.role != Role::Target) {
            let lacks = binding.columns.as_ref().is_some_and(|c| c.iter().all(|c| c.field != at.value));
            if lacks && let Some(name) = self.raw_systems[binding.system.index()].name.as_ref() {
                let place = format!("{} in {:?}", self.place, name.value);
                let message = format!("columns do not name {:?}, which latest_by compares", at.value);
                reader.error(binding.line, &place, message);
            }
        }
    }

    fn merge(
        &self,
        field: &At<String>,
        how: &At<String>,
        scope: Scope,
        reader: &mut Reader<'_>,
    ) -> Option<(String, Merge)> {
        let place = format!("{}: merge", self.place);
        let known: Vec<&str> = MERGES.into_iter().chain(POLICIES).collect();
        choice(how, &format!("merge of {:?}:", field.value), &known, self.place, reader);
        if !self.is_field(field, "merge", reader) {
            return None;
        }
        let merge = match how.value.as_str() {
            "add" => Merge::Add,
            "max" => Merge::Max,
            "min" => Merge::Min,
            "union" => Merge::Union,
            word if POLICIES.contains(&word) => Merge::Policy(policy(word)),
            _ => return None,
        };
        if matches!(merge, Merge::Policy(_)) && scope == Scope::Row {
            let message = format!("{:?} has a policy of its own, which needs scope = \"field\"", field.value);
            reader.error(how.line, &place, message);
        }
        if merge == Merge::Add {
            self.is_plain(field, "is added up, which", reader);
            if self.raw.conflicts.latest_by.as_ref().is_some_and(|at| at.value == field.value) {
                let message = format!("{:?} is added up and cannot say which row is later, too", field.value);
                reader.error(field.line, &place, message);
            }
        }
        Some((field.value.clone(), merge))
    }

    fn clash(&self, raw: &RawClash, reader: &mut Reader<'_>) -> Option<(String, OnClash)> {
        let field = &raw.field;
        let place = format!("{}: unique {:?}", self.place, field.value);
        choice(&raw.policy, &format!("policy of unique {:?}:", field.value), &CLASHES, self.place, reader);
        if !self.is_field(field, "unique", reader) {
            return None;
        }
        let merged = self.raw.conflicts.merge.iter().find(|(of, how)| of.value == field.value && is_merge(how));
        if let Some((_, how)) = merged {
            let message = format!("is merged by {:?}, so no record owns its value: leave one out", how.value);
            reader.error(field.line, &place, message);
        }
        let clash = match (raw.policy.value.as_str(), &raw.template) {
            ("rename", Some(template)) => {
                self.template(template, &place, reader);
                self.is_plain(field, "is renamed, which", reader);
                OnClash::Rename(template.value.clone())
            }
            ("rename", None) => {
                let message = format!("\"rename\" needs a template: {} = {RENAME}", field.value);
                reader.error(raw.policy.line, &place, message);
                return None;
            }
            ("reject", _) => OnClash::Reject,
            ("manual", _) => OnClash::Manual,
            _ => return None,
        };
        if let (Some(template), false) = (&raw.template, matches!(clash, OnClash::Rename(_))) {
            let message = format!("template is for policy = \"rename\", not {:?}: leave it out", raw.policy.value);
            reader.error(template.line, &place, message);
        }
        Some((field.value.clone(), clash))
    }

    /// Two records must not get one name, and none its old one.
    fn template(&self, template: &At<String>, place: &str, reader: &mut Reader<'_>) {
        let text = template.value.as_str();
        let found = match placeholders(text) {
            Ok(found) => found,
            Err(why) => return reader.error(template.line, place, format!("template {text:?} {why}")),
        };
        for name in found.iter().filter(|name| !PLACEHOLDERS.contains(name)) {
            let way_out = match nearest(name, PLACEHOLDERS.into_iter()) {
                Some(near) => format!("nearest: \"{{{near}}}\""),
                None => "known: {value}, {system}, {key}".to_owned(),
            };
            let message = format!("template {text:?} has the unknown placeholder \"{{{name}}}\"; {way_out}");
            reader.error(template.line, place, message);
        }
        if text == "{value}" {
            let message = "template \"{value}\" leaves the value as it is; \"{value}-{key}\" would not";
            reader.error(template.line, place, message);
        } else if found.iter().all(|name| *name == "system") {
            let message = format!("template {text:?} gives all records one value; it needs {{value}} or {{key}}");
            reader.error(template.line, place, message);
        }
    }

    /// What `key` names is a field of some binding, as far as the file tells, and not of the key.
    fn is_field(&self, at: &At<String>, key: &str, reader: &mut Reader<'_>) -> bool {
        let place = format!("{}: {key}", self.place);
        if self.raw.key.iter().any(|field| field.value == at.value) {
            let message = format!("{:?} is of the key, which is the same in every version of a record", at.value);
            reader.error(at.line, &place, message);
            return false;
        }
        let by_name =
            self.bindings.len() < self.raw.bindings.len() || self.bindings.iter().any(|b| b.columns.is_none());
        let fields = || self.bindings.iter().flat_map(|b| b.columns.iter().flatten()).map(|c| c.field.as_str());
        if by_name || fields().any(|field| field == at.value) {
            return true;
        }
        let way_out = nearest(&at.value, fields()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
        reader.error(at.line, &place, format!("no binding has a field {:?}{way_out}", at.value));
        false
    }

    /// What is computed is not among the values that a mapping knows.
    fn is_plain(&self, field: &At<String>, what: &str, reader: &mut Reader<'_>) {
        for raw in &self.raw.bindings {
            let column = raw.columns.iter().flatten().find(|column| column.field.value == field.value);
            let Some(column) = column.filter(|column| column.format.is_some() || column.values.is_some()) else {
                continue;
            };
            let place = format!("{} in {:?}", self.place, raw.system.value);
            let message = format!("field {:?} {what} goes with neither format nor values", field.value);
            reader.error(column.field.line, &place, message);
        }
    }

    fn needs_a_key(&self, conflict: Conflict, scope: Scope, reader: &mut Reader<'_>) {
        if !self.raw.key.is_empty() {
            return;
        }
        let raw = &self.raw.conflicts;
        let one = |at: &Option<At<String>>| at.as_ref().map(|at| at.line);
        let said = [
            ("conflict", one(&raw.conflict).filter(|_| conflict != Conflict::Authority)),
            ("authority", raw.authority.as_ref().map(|at| at.line)),
            ("latest_by", one(&raw.latest_by)),
            ("scope", one(&raw.scope).filter(|_| scope != Scope::Row)),
            ("on_delete", one(&raw.on_delete)),
            ("merge", raw.merge.first().map(|(field, _)| field.line)),
            ("unique", raw.unique.first().map(|clash| clash.field.line)),
        ];
        for (key, line) in said {
            if let Some(line) = line {
                let message = format!("{key} needs a key: without one, rows are only inserted and nothing conflicts");
                reader.error(line, self.place, message);
            }
        }
    }

    /// A filter judges whole rows: what enters it by parts would not be there.
    fn whole_rows_in_filters(&self, scope: Scope, merge: &[(String, Merge)], reader: &mut Reader<'_>) {
        let merged = merge.iter().find(|(_, merge)| !matches!(merge, Merge::Policy(_)));
        let what = match (scope, merged) {
            (Scope::Field, _) => "scope = \"field\"".to_owned(),
            (Scope::Row, Some((field, _))) => format!("merge of {field:?}"),
            (Scope::Row, None) => return,
        };
        for raw in &self.raw.bindings {
            let receives = raw.role.as_ref().is_none_or(|role| role.value != "source");
            if let (Some(at), true) = (&raw.filter, receives) {
                let place = format!("{} in {:?}", self.place, raw.system.value);
                let message = format!(
                    "where does not go with {what}: a row that enters the filter would be there in parts; take one \
                     out, or give the binding role = \"source\""
                );
                reader.error(at.line, &place, message);
            }
        }
    }
}

fn value(at: &At<String>) -> String {
    at.value.clone()
}

fn policy(word: &str) -> Conflict {
    match word {
        "latest" => Conflict::Latest,
        "manual" => Conflict::Manual,
        _ => Conflict::Authority,
    }
}

fn is_merge(how: &At<String>) -> bool {
    MERGES.contains(&how.value.as_str())
}

/// The names in braces; `Err` completes the sentence that begins with the template.
fn placeholders(text: &str) -> Result<Vec<&str>, &'static str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let Some(open) = rest[at..].strip_prefix('{') else { return Err("has a \"}\" without \"{\"") };
        let Some(end) = open.find(['{', '}']).filter(|end| open[*end..].starts_with('}')) else {
            return Err("has a \"{\" without \"}\"");
        };
        found.push(&open[..end]);
        rest = &open[end + 1..];
    }
    Ok(found)
}
