//! The file as it was typed: keys, strings and their lines, nothing believed yet.
//!
//! Read by hand from TOML's spanned tree rather than by derive, because a derived reader
//! stops at the first mistake and an operator wants to see all of them in one run.

mod conflicts;
mod outgoing;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(super) use self::conflicts::{RawClash, RawConflicts};
pub(super) use self::outgoing::{RawAlert, RawNotify, RawWebhook};
use super::{ConfigError, nearest};
use crate::normalize::dates::Special;

/// A value with the line it stands on.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub value: T,
    pub line: usize,
}

#[derive(Debug, Default)]
pub(super) struct RawConfig {
    pub agent: Option<RawAgent>,
    pub journal: RawJournal,
    pub verify: Option<RawVerify>,
    pub audit: Option<RawAudit>,
    pub systems: Vec<RawSystem>,
    pub entities: Vec<RawEntity>,
    pub alerts: Vec<RawAlert>,
    pub notifies: Vec<RawNotify>,
}

#[derive(Debug)]
pub(super) struct RawAgent {
    pub line: usize,
    pub id: Option<At<String>>,
    pub data_dir: Option<At<String>>,
    pub listen: Option<At<String>>,
    pub token_file: Option<At<String>>,
    pub tls_cert: Option<At<String>>,
    pub tls_key: Option<At<String>>,
    pub insecure: Option<At<bool>>,
    pub marker: Option<At<String>>,
    pub max_lag: Option<At<String>>,
}

#[derive(Debug, Default)]
pub(super) struct RawJournal {
    pub retention: Option<At<String>>,
    pub max_size: Option<At<String>>,
}

#[derive(Debug)]
pub(super) struct RawVerify {
    pub line: usize,
    pub every: Option<At<String>>,
    pub max_rate: Option<At<String>>,
}

#[derive(Debug)]
pub(super) struct RawAudit {
    pub line: usize,
    pub dir: Option<At<String>>,
    pub retention: Option<At<String>>,
}

/// No `Debug`: the URL may hold a password.
pub(super) struct RawSystem {
    pub line: usize,
    pub name: Option<At<String>>,
    pub url: Option<At<String>>,
    pub password_file: Option<At<String>>,
    pub password_env: Option<At<String>>,
    pub marker: Option<At<String>>,
    pub allow_unsafe_binlog: Option<At<bool>>,
    pub synchronous_commit: Option<At<bool>>,
    pub connections: Option<At<String>>,
}

impl std::fmt::Debug for RawSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawSystem").field("line", &self.line).field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct RawEntity {
    pub line: usize,
    pub name: Option<At<String>>,
    pub key: Vec<At<String>>,
    pub conflicts: RawConflicts,
    pub load: Option<At<String>>,
    pub sensitive: Vec<At<String>>,
    /// In the order of the file.
    pub bindings: Vec<RawBinding>,
}

#[derive(Debug)]
pub(super) struct RawBinding {
    pub system: At<String>,
    pub table: Option<At<String>>,
    pub role: Option<At<String>>,
    pub filter: Option<At<String>>,
    pub columns: Option<Vec<RawColumn>>,
    pub ignore: Vec<At<String>>,
    pub formerly: Option<Vec<At<String>>>,
}

#[derive(Debug)]
pub(super) struct RawColumn {
    pub field: At<String>,
    pub column: At<String>,
    pub format: Option<At<String>>,
    pub values: Option<Vec<(String, String)>>,
    pub formerly: Option<Vec<At<String>>>,
    /// In the order of [`Special::ALL`].
    pub dates: [Option<At<String>>; 3],
}

/// Every key of the file by the table it stands in: what unknown keys are measured against,
/// and what `config/reference.toml` has to show.
pub(super) const KEYS: [(&str, &[&str]); 13] = [
    ("", &["agent", "journal", "verify", "audit", "system", "entity", "alert", "notify"]),
    ("agent", &["id", "data_dir", "listen", "token_file", "tls_cert", "tls_key", "insecure", "marker", "max_lag"]),
    ("journal", &["retention", "max_size"]),
    ("verify", &["every", "max_rate"]),
    ("audit", &["dir", "retention"]),
    (
        "system",
        &[
            "name",
            "url",
            "password_file",
            "password_env",
            "marker",
            "allow_unsafe_binlog",
            "synchronous_commit",
            "apply",
        ],
    ),
    ("system.apply", &["connections"]),
    (
        "entity",
        &[
            "name",
            "key",
            "conflict",
            "authority",
            "latest_by",
            "scope",
            "on_delete",
            "merge",
            "unique",
            "load",
            "sensitive",
            "in",
        ],
    ),
    ("entity.unique", &["policy", "template"]),
    ("entity.in", &["table", "role", "where", "columns", "ignore", "formerly"]),
    ("entity.in.columns", &["column", "format", "values", "formerly", "zero_date", "infinity", "minus_infinity"]),
    (
        "alert",
        &[
            "name",
            "on",
            "webhook",
            "webhook_file",
            "webhook_env",
            "secret_file",
            "secret_env",
            "headers",
            "ca_file",
            "format",
            "command",
            "timeout",
            "settle",
        ],
    ),
    (
        "notify",
        &[
            "name",
            "entity",
            "fields",
            "on",
            "copies",
            "webhook",
            "webhook_file",
            "webhook_env",
            "secret_file",
            "secret_env",
            "headers",
            "ca_file",
            "timeout",
            "batch",
            "max_body",
        ],
    ),
];

fn keys_of(table: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == table).map_or(&[], |(_, keys)| keys)
}

/// One table of the file, and how messages call it.
struct Section<'d, 'i> {
    place: String,
    line: usize,
    table: &'d DeTable<'i>,
}

/// The file while it is being read.
pub(super) struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    /// Where each line but the first begins.
    lines: Vec<usize>,
    pub errors: Vec<ConfigError>,
}

impl<'t> Reader<'t> {
    pub fn new(file: &'t str, text: &'t str) -> Self {
        let lines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1).collect();
        Reader { file, text, lines, errors: Vec::new() }
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.lines.partition_point(|begins| *begins <= offset)
    }

    /// `place` may be empty.
    pub fn error(&mut self, line: usize, place: &str, message: impl AsRef<str>) {
        let colon = if place.is_empty() { "" } else { ": " };
        let message = format!("{place}{colon}{}", message.as_ref());
        self.errors.push(ConfigError { file: self.file.to_owned(), line, message });
    }

    /// What could be read; `None` where the text is not TOML.
    pub fn read(&mut self) -> Option<RawConfig> {
        let (tree, faults) = DeTable::parse_recoverable(self.text);
        // What follows may be nothing but its consequence.
        if let Some(fault) = faults.first() {
            let line = fault.span().map_or(1, |span| self.line(span.start));
            self.error(line, "", format!("not valid TOML: {}", fault.message().trim_end()));
            return None;
        }
        let root = Section { place: String::new(), line: 1, table: tree.get_ref() };
        self.known_keys(&root, "");
        let agent = self.table(&root, "agent", "[agent]").map(|s| self.agent(&s));
        let journal = self.table(&root, "journal", "[journal]").map(|s| self.journal(&s)).unwrap_or_default();
        let verify = self.table(&root, "verify", "[verify]").map(|s| self.verify(&s));
        let systems = self.tables(&root, "system").iter().map(|s| self.system(s)).collect();
        let entities = self.tables(&root, "entity").iter().map(|s| self.entity(s)).collect();
        let audit = self.table(&root, "audit", "[audit]").map(|s| self.audit(&s));
        let alerts = self.tables(&root, "alert").iter().map(|s| self.alert(s)).collect();
        let notifies = self.tables(&root, "notify").iter().map(|s| self.notify(s)).collect();
        Some(RawConfig { agent, journal, verify, audit, systems, entities, alerts, notifies })
    }

    fn agent(&mut self, section: &Section<'_, '_>) -> RawAgent {
        self.known_keys(section, "agent");
        RawAgent {
            line: section.line,
            id: self.string(section, "id"),
            data_dir: self.string(section, "data_dir"),
            listen: self.string(section, "listen"),
            token_file: self.string(section, "token_file"),
            tls_cert: self.string(section, "tls_cert"),
            tls_key: self.string(section, "tls_key"),
            insecure: self.boolean(section, "insecure"),
            marker: self.string(section, "marker"),
            max_lag: self.string(section, "max_lag"),
        }
    }

    fn journal(&mut self, section: &Section<'_, '_>) -> RawJournal {
        self.known_keys(section, "journal");
        RawJournal { retention: self.string(section, "retention"), max_size: self.string(section, "max_size") }
    }

    fn verify(&mut self, section: &Section<'_, '_>) -> RawVerify {
        self.known_keys(section, "verify");
        let max_rate = self.number(section, "max_rate");
        RawVerify { line: section.line, every: self.string(section, "every"), max_rate }
    }

    fn audit(&mut self, section: &Section<'_, '_>) -> RawAudit {
        self.known_keys(section, "audit");
        RawAudit { line: section.line, dir: self.string(section, "dir"), retention: self.string(section, "retention") }
    }

    fn system(&mut self, section: &Section<'_, '_>) -> RawSystem {
        self.known_keys(section, "system");
        let apply = self.table(section, "apply", &format!("{}, apply", section.place));
        let connections = apply.and_then(|apply| {
            self.known_keys(&apply, "system.apply");
            self.number(&apply, "connections")
        });
        RawSystem {
            line: section.line,
            name: self.string(section, "name"),
            url: self.string(section, "url"),
            password_file: self.string(section, "password_file"),
            password_env: self.string(section, "password_env"),
            marker: self.string(section, "marker"),
            allow_unsafe_binlog: self.boolean(section, "allow_unsafe_binlog"),
            synchronous_commit: self.boolean(section, "synchronous_commit"),
            connections,
        }
    }

    fn entity(&mut self, section: &Section<'_, '_>) -> RawEntity {
        self.known_keys(section, "entity");
        let mut bindings = Vec::new();
        if let Some(systems) = self.table(section, "in", &section.place) {
            for (system, value) in in_order(systems.table) {
                let place = format!("{} in {:?}", section.place, system.value);
                let line = self.line(system.line);
                if let Some(binding) = self.as_table(value, line, place) {
                    bindings.push(self.binding(&binding, At { value: system.value, line }));
                }
            }
        }
        RawEntity {
            line: section.line,
            name: self.string(section, "name"),
            key: self.strings(section, "key"),
            conflicts: self.conflicts(section),
            load: self.string(section, "load"),
            sensitive: self.strings(section, "sensitive"),
            bindings,
        }
    }

    fn binding(&mut self, section: &Section<'_, '_>, system: At<String>) -> RawBinding {
        self.known_keys(section, "entity.in");
        let columns = self.table(section, "columns", &section.place).map(|columns| self.columns(&columns));
        RawBinding {
            system,
            table: self.string(section, "table"),
            role: self.string(section, "role"),
            filter: self.string(section, "where"),
            columns,
            ignore: self.strings(section, "ignore"),
            formerly: section.table.contains_key("formerly").then(|| self.strings(section, "formerly")),
        }
    }

    fn columns(&mut self, section: &Section<'_, '_>) -> Vec<RawColumn> {
        let mut columns = Vec::new();
        for (field, value) in in_order(section.table) {
            let field = At { line: self.line(field.line), value: field.value };
            let line = self.line(value.span().start);
            match value.get_ref() {
                DeValue::String(column) => {
                    let column = At { value: column.to_string(), line };
                    let dates = [None, None, None];
                    columns.push(RawColumn { field, column, format: None, values: None, formerly: None, dates });
                }
                DeValue::Table(_) => {
                    let place = format!("{}: column of {:?}", section.place, field.value);
                    if let Some(inner) = self.as_table(value, line, place) {
                        columns.extend(self.mapped_column(&inner, field));
                    }
                }
                other => self.wrong_type(line, &section.place, &field.value, "a column name or a table", other),
            }
        }
        columns
    }

    fn mapped_column(&mut self, section: &Section<'_, '_>, field: At<String>) -> Option<RawColumn> {
        self.known_keys(section, "entity.in.columns");
        let format = self.string(section, "format");
        let values = self.table(section, "values", &section.place).map(|map| self.values(&map));
        let formerly = section.table.contains_key("formerly").then(|| self.strings(section, "formerly"));
        let dates = Special::ALL.map(|special| self.string(section, special.key()));
        let column = self.string(section, "column");
        if column.is_none() && !section.table.contains_key("column") {
            self.error(section.line, &section.place, "key \"column\" is missing");
        }
        Some(RawColumn { field, column: column?, format, values, formerly, dates })
    }

    /// Canonical value → column value; integers and booleans may stand without quotes.
    fn values(&mut self, section: &Section<'_, '_>) -> Vec<(String, String)> {
        let mut values = Vec::new();
        for (canonical, value) in in_order(section.table) {
            let stored = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                DeValue::Boolean(flag) => flag.to_string(),
                other => {
                    let line = self.line(value.span().start);
                    self.wrong_type(line, &section.place, &canonical.value, "a string, integer or boolean", other);
                    continue;
                }
            };
            values.push((canonical.value, stored));
        }
        values
    }

    fn known_keys(&mut self, section: &Section<'_, '_>, table: &str) {
        let known = keys_of(table);
        for (key, _) in in_order(section.table) {
            if !known.contains(&key.value.as_str()) {
                let line = self.line(key.line);
                let way_out = match nearest(&key.value, known.iter().copied()) {
                    Some(near) => format!("nearest: {near:?}"),
                    None => format!("known: {}", known.join(", ")),
                };
                self.error(line, &section.place, format!("unknown key {:?}; {way_out}", key.value));
            }
        }
    }

    fn string(&mut self, section: &Section<'_, '_>, key: &str) -> Option<At<String>> {
        let value = section.table.get(key)?;
        let line = self.line(value.span().start);
        match value.get_ref() {
            DeValue::String(text) => Some(At { value: text.to_string(), line }),
            other => {
                self.wrong_type(line, &section.place, key, "a string", other);
                None
            }
        }
    }

    /// With or without quotes.
    fn number(&mut self, section: &Section<'_, '_>, key: &str) -> Option<At<String>> {
        match section.table.get(key).map(|value| (value, value.get_ref())) {
            Some((value, DeValue::Integer(number))) if number.radix() == 10 => {
                Some(At { value: number.as_str().to_owned(), line: self.line(value.span().start) })
            }
            _ => self.string(section, key),
        }
    }

    fn boolean(&mut self, section: &Section<'_, '_>, key: &str) -> Option<At<bool>> {
        let value = section.table.get(key)?;
        let line = self.line(value.span().start);
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(At { value: *flag, line }),
            other => {
                self.wrong_type(line, &section.place, key, "true or false", other);
                None
            }
        }
    }

    fn strings(&mut self, section: &Section<'_, '_>, key: &str) -> Vec<At<String>> {
        let Some(value) = section.table.get(key) else { return Vec::new() };
        let line = self.line(value.span().start);
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(line, &section.place, key, "a list of strings", value.get_ref());
            return Vec::new();
        };
        let mut strings = Vec::new();
        for item in items.iter() {
            let line = self.line(item.span().start);
            match item.get_ref() {
                DeValue::String(text) => strings.push(At { value: text.to_string(), line }),
                other => self.wrong_type(line, &section.place, key, "a list of strings", other),
            }
        }
        strings
    }

    fn table<'d, 'i>(&mut self, section: &Section<'d, 'i>, key: &str, place: &str) -> Option<Section<'d, 'i>> {
        let (name, value) = section.table.get_key_value(key)?;
        let line = self.line(name.span().start);
        self.as_table(value, line, place.to_owned())
    }

    fn as_table<'d, 'i>(
        &mut self,
        value: &'d Spanned<DeValue<'i>>,
        line: usize,
        place: String,
    ) -> Option<Section<'d, 'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Section { place, line, table }),
            other => {
                self.error(line, &place, format!("expected a table, found {}", type_name(other)));
                None
            }
        }
    }

    /// The tables of `[[key]]`, called by their `name`.
    fn tables<'d, 'i>(&mut self, section: &Section<'d, 'i>, key: &str) -> Vec<Section<'d, 'i>> {
        let Some((_, value)) = section.table.get_key_value(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let line = self.line(value.span().start);
            self.error(line, "", format!("{key:?} is a list: write [[{key}]], not [{key}]"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let line = self.line(item.span().start);
            let name = item.get_ref().get("name").and_then(|n| n.get_ref().as_str());
            let place = match name {
                Some(name) => format!("{key} {name:?}"),
                None => format!("{key} number {}", index + 1),
            };
            tables.extend(self.as_table(item, line, place));
        }
        tables
    }

    fn wrong_type(&mut self, line: usize, place: &str, key: &str, expected: &str, found: &DeValue<'_>) {
        self.error(line, place, format!("{key:?} has to be {expected}, found {}", type_name(found)));
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Entries as they follow each other in the file (the tree sorts them by name). `line` of the
/// key is its byte offset still.
fn in_order<'d, 'i>(table: &'d DeTable<'i>) -> Vec<(At<String>, &'d Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table
        .iter()
        .map(|(key, value)| (At { value: key.get_ref().to_string(), line: key.span().start }, value))
        .collect();
    entries.sort_by_key(|(key, _)| key.line);
    entries
}
