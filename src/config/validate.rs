//! From what was typed to what may be relied on: defaults, units, names, and whether the
//! parts fit together. Whatever needs a server's catalog is `normalize::resolve`'s business.

mod conflicts;
mod outgoing;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{
    At, RawAgent, RawAudit, RawBinding, RawColumn, RawConfig, RawEntity, RawJournal, RawSystem, RawVerify, Reader,
};
use super::{
    AgentConfig, AuditConfig, BindingConfig, CertificateFiles, ColumnConfig, Config, Engine, EntityConfig,
    JournalConfig, LoadPolicy, PasswordSource, SystemConfig, VerifyConfig, address, nearest, table_name, units,
};
use crate::catalog::TableName;
use crate::normalize::binding::Role;
use crate::normalize::dates::{Dates, Special, StandIn};
use crate::normalize::filter::Filter;
use crate::normalize::format::Format;
use crate::schema::SystemId;

const CONNECTIONS_MAX: usize = 16;
const SYSTEMS_MAX: usize = 64;
/// A row's carried columns are one 128 bit word.
const COLUMNS_MAX: usize = 128;

/// Where a file does not say.
pub(super) const DATA_DIR: &str = "/var/lib/anechoic";

/// `None` where an error was noted.
pub(super) fn validate(raw: &RawConfig, reader: &mut Reader<'_>) -> Option<Config> {
    let agent = match &raw.agent {
        Some(agent) => self::agent(agent, reader),
        None => {
            reader.error(1, "", "section [agent] is missing; it needs at least: id = \"hq\"");
            None
        }
    };
    let journal = journal(&raw.journal, reader);
    let verify = raw.verify.as_ref().and_then(|raw| verify(raw, reader));
    let audit = raw.audit.as_ref().and_then(|raw| audit(raw, reader));
    let marker = marker(&raw.agent, reader);
    let systems = systems(&raw.systems, &marker, reader);
    let entities = entities(&raw.entities, &raw.systems, &systems, reader);
    let alerts = outgoing::alerts(&raw.alerts, reader);
    let notifies = outgoing::notifies(&raw.notifies, &raw.entities, reader);
    if !reader.errors.is_empty() {
        return None;
    }
    Some(Config {
        agent: agent?,
        journal,
        verify,
        audit,
        systems: systems.into_iter().collect::<Option<_>>()?,
        entities,
        alerts,
        notifies,
    })
}

fn agent(raw: &RawAgent, reader: &mut Reader<'_>) -> Option<AgentConfig> {
    const PLACE: &str = "[agent]";
    let id = required(&raw.id, "id", raw.line, PLACE, reader)?;
    if id.value.is_empty() || id.value.len() > 32 || !id.value.bytes().all(is_id_byte) {
        let message = format!("id {:?} has to be 1 to 32 of a-z, 0-9 and _: it becomes part of slot names", id.value);
        reader.error(id.line, PLACE, message);
    }
    let listen = match &raw.listen {
        None => SocketAddr::from(([127, 0, 0, 1], 8642)),
        Some(at) => at.value.parse().unwrap_or_else(|_| {
            let message = format!("listen {:?} is not an address and port such as \"127.0.0.1:8642\"", at.value);
            reader.error(at.line, PLACE, message);
            SocketAddr::from(([127, 0, 0, 1], 8642))
        }),
    };
    port(raw, listen, reader);
    let file = |given: &Option<At<String>>| given.as_ref().map(|at| PathBuf::from(&at.value));
    Some(AgentConfig {
        id: id.value.clone(),
        data_dir: raw.data_dir.as_ref().map_or_else(|| DATA_DIR.into(), |at| PathBuf::from(&at.value)),
        listen,
        token_file: file(&raw.token_file),
        tls: file(&raw.tls_cert)
            .zip(file(&raw.tls_key))
            .map(|(certificate, key)| CertificateFiles { certificate, key }),
        insecure: is_insecure(raw),
        max_lag: duration(&raw.max_lag, "max_lag", Duration::from_secs(60), PLACE, reader),
    })
}

/// What other machines can reach asks for a token, and sends nothing in the clear unless that is said.
fn port(raw: &RawAgent, listen: SocketAddr, reader: &mut Reader<'_>) {
    const PLACE: &str = "[agent]";
    for (given, missing, example) in
        [(&raw.tls_cert, &raw.tls_key, "tls_key"), (&raw.tls_key, &raw.tls_cert, "tls_cert")]
    {
        if let (Some(at), None) = (given, missing) {
            let message = format!("a certificate is two files: {example} = \"FILE.pem\" is missing beside this one");
            reader.error(at.line, PLACE, message);
        }
    }
    if listen.ip().is_loopback() {
        return;
    }
    let line = raw.listen.as_ref().map_or(raw.line, |at| at.line);
    if raw.token_file.is_none() {
        let message = format!(
            "listen {listen} can be reached by other machines, and there is no token; \
             token_file = \"/etc/anechoic/passwords/token\", or listen = \"127.0.0.1:{}\"",
            listen.port()
        );
        reader.error(line, PLACE, message);
    }
    if raw.tls_cert.is_none() && raw.tls_key.is_none() && !is_insecure(raw) {
        let message = format!(
            "listen {listen} can be reached by other machines, and what they are sent would not be encrypted; \
             tls_cert and tls_key, or listen = \"127.0.0.1:{}\" behind a proxy, or insecure = true",
            listen.port()
        );
        reader.error(line, PLACE, message);
    }
}

fn is_insecure(raw: &RawAgent) -> bool {
    raw.insecure.as_ref().is_some_and(|at| at.value)
}

/// Of all systems that do not name their own.
fn marker(raw: &Option<RawAgent>, reader: &mut Reader<'_>) -> TableName {
    let given = raw.as_ref().and_then(|raw| raw.marker.as_ref());
    given
        .and_then(|at| marker_name(at, "[agent]", reader))
        .unwrap_or_else(|| TableName { schema: "anechoic".into(), name: "marker".into() })
}

fn marker_name(at: &At<String>, place: &str, reader: &mut Reader<'_>) -> Option<TableName> {
    table_name(&at.value, None).map_err(|why| reader.error(at.line, place, format!("marker {:?} {why}", at.value))).ok()
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

fn journal(raw: &RawJournal, reader: &mut Reader<'_>) -> JournalConfig {
    const PLACE: &str = "[journal]";
    let retention = duration(&raw.retention, "retention", Duration::from_secs(30 * 86_400), PLACE, reader);
    let mut max_size = 20 << 30;
    if let Some(at) = &raw.max_size {
        match units::size(&at.value) {
            Some(size) => max_size = size,
            None => {
                let message =
                    format!("max_size {:?} is not a size such as \"64KiB\", \"512MiB\" or \"20GiB\"", at.value);
                reader.error(at.line, PLACE, message);
            }
        }
    }
    JournalConfig { retention, max_size }
}

fn verify(raw: &RawVerify, reader: &mut Reader<'_>) -> Option<VerifyConfig> {
    const PLACE: &str = "[verify]";
    let given = required(&raw.every, "every", raw.line, PLACE, reader);
    let every = given.and_then(|at| units::duration(&at.value)).filter(|every| !every.is_zero());
    if let (Some(at), None) = (given, every) {
        let message = format!("every {:?} is not a duration such as \"30m\", \"1h\" or \"1d\"", at.value);
        reader.error(at.line, PLACE, message);
    }
    let mut max_rate = 2000;
    if let Some(at) = &raw.max_rate {
        match units::rate(&at.value) {
            Some(rate) => max_rate = rate,
            None => {
                let message = format!("max_rate {:?} is not a rate such as \"2000 rows/s\"", at.value);
                reader.error(at.line, PLACE, message);
            }
        }
    }
    Some(VerifyConfig { every: every?, max_rate })
}

fn audit(raw: &RawAudit, reader: &mut Reader<'_>) -> Option<AuditConfig> {
    const PLACE: &str = "[audit]";
    let dir = required(&raw.dir, "dir", raw.line, PLACE, reader);
    let retention = duration(&raw.retention, "retention", Duration::from_secs(30 * 86_400), PLACE, reader);
    Some(AuditConfig { dir: PathBuf::from(&dir?.value), retention })
}

fn duration(raw: &Option<At<String>>, key: &str, default: Duration, place: &str, reader: &mut Reader<'_>) -> Duration {
    let Some(at) = raw else { return default };
    units::duration(&at.value).unwrap_or_else(|| {
        let message = format!("{key} {:?} is not a duration such as \"30s\", \"5m\", \"2h\" or \"30d\"", at.value);
        reader.error(at.line, place, message);
        default
    })
}

fn required<'a>(
    raw: &'a Option<At<String>>,
    key: &str,
    line: usize,
    place: &str,
    reader: &mut Reader<'_>,
) -> Option<&'a At<String>> {
    if raw.is_none() {
        let example = match key {
            "id" => "hq",
            "every" => "1h",
            "url" => "postgresql://user@host:5432/database",
            "table" => "public.contacts",
            _ => "crm",
        };
        reader.error(line, place, format!("key {key:?} is missing: {key} = {example:?}"));
    }
    raw.as_ref()
}

/// One slot per system of the file, so that numbers stay right where one is faulty.
fn systems(raw: &[RawSystem], marker: &TableName, reader: &mut Reader<'_>) -> Vec<Option<SystemConfig>> {
    if raw.is_empty() {
        reader.error(1, "", "there is no [[system]]; two are needed to keep anything in step");
    }
    if let Some(over) = raw.get(SYSTEMS_MAX) {
        reader.error(over.line, "", format!("more than {SYSTEMS_MAX} systems"));
    }
    let mut names = HashSet::new();
    let mut found: Vec<Option<SystemConfig>> = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let system = system(raw, index, marker, &mut names, reader);
        if let Some(new) = &system
            && let Some(same) = found.iter().flatten().find(|old| same_database(old, new))
        {
            let place = format!("system {:?}", &*new.name);
            let message = format!("is the same database as {:?}; a database is one system", &*same.name);
            reader.error(raw.line, &place, message);
        }
        found.push(system);
    }
    found
}

fn same_database(a: &SystemConfig, b: &SystemConfig) -> bool {
    let (left, right) = (&a.connect, &b.connect);
    a.engine == b.engine && (&left.host, left.port, &left.database) == (&right.host, right.port, &right.database)
}

fn system<'a>(
    raw: &'a RawSystem,
    index: usize,
    marker: &TableName,
    names: &mut HashSet<&'a str>,
    reader: &mut Reader<'_>,
) -> Option<SystemConfig> {
    let place = match &raw.name {
        Some(name) => format!("system {:?}", name.value),
        None => format!("system number {}", index + 1),
    };
    let name = required(&raw.name, "name", raw.line, &place, reader);
    if let Some(name) = name {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if name.value.is_empty() || name.value.len() > 63 || !name.value.bytes().all(legal) {
            reader.error(name.line, &place, "the name has to be 1 to 63 letters, digits, _ or -");
        }
        if !names.insert(&name.value) {
            reader.error(name.line, &place, "the name is given twice: choose another one");
        }
    }
    let url = required(&raw.url, "url", raw.line, &place, reader)?;
    let parsed = address::parse(&url.value);
    if let Err(why) = &parsed {
        let form = match why.contains("nearest: ") || why.contains("expected ") {
            true => "",
            false => "; expected: postgresql://user@host:5432/database or mysql://user@host:3306/database",
        };
        reader.error(url.line, &place, format!("the url {why}{form}"));
    }
    let (engine, mut connect) = parsed.ok()?;
    let given = match (&raw.password_file, &raw.password_env) {
        (Some(_), Some(env)) => {
            reader.error(
                env.line,
                &place,
                "the password is given twice: password_file and password_env; leave one out",
            );
            None
        }
        (Some(file), None) => Some((file.line, PasswordSource::File(PathBuf::from(&file.value)))),
        (None, Some(env)) => Some((env.line, PasswordSource::Env(env.value.clone()))),
        (None, None) => None,
    };
    if let Some((line, source)) = given {
        if matches!(connect.password, PasswordSource::Inline(_)) {
            reader.error(line, &place, "the password is given twice: in the url and outside of it; leave one out");
        }
        connect.password = source;
    }
    if let Some(at) = &raw.allow_unsafe_binlog
        && engine == Engine::Postgres
    {
        reader.error(at.line, &place, "allow_unsafe_binlog is for MySQL and MariaDB: leave it out");
    }
    if let Some(at) = &raw.synchronous_commit
        && engine == Engine::Mysql
    {
        reader.error(at.line, &place, "synchronous_commit is for PostgreSQL: leave it out");
    }
    let connections = raw.connections.as_ref().map_or(Some(1), |at| connections(at, &place, reader));
    let synchronous_commit = raw.synchronous_commit.as_ref().is_none_or(|at| at.value);
    let allow_unsafe_binlog = raw.allow_unsafe_binlog.as_ref().is_some_and(|at| at.value);
    let own = raw.marker.as_ref().and_then(|at| marker_name(at, &place, reader));
    let marker = own.unwrap_or_else(|| marker.clone());
    let name = Arc::from(name?.value.as_str());
    let connections = connections?;
    Some(SystemConfig { name, engine, connect, marker, allow_unsafe_binlog, synchronous_commit, connections })
}

fn connections(at: &At<String>, place: &str, reader: &mut Reader) -> Option<usize> {
    let number = at.value.parse().ok().filter(|number| (1..=CONNECTIONS_MAX).contains(number));
    if number.is_none() {
        let message = format!("connections {:?} is not a number from 1 to {CONNECTIONS_MAX}", at.value);
        reader.error(at.line, place, message);
    }
    number
}

fn entities(
    raw: &[RawEntity],
    raw_systems: &[RawSystem],
    systems: &[Option<SystemConfig>],
    reader: &mut Reader<'_>,
) -> Vec<EntityConfig> {
    let mut names = HashSet::new();
    let mut found = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let place = match &raw.name {
            Some(name) => format!("entity {:?}", name.value),
            None => format!("entity number {}", index + 1),
        };
        if let Some(name) = required(&raw.name, "name", raw.line, &place, reader) {
            if name.value.trim().is_empty() || name.value.len() > 63 || name.value.chars().any(char::is_control) {
                reader.error(name.line, &place, "the name has to be 1 to 63 printable characters");
            }
            if !names.insert(name.value.as_str()) {
                reader.error(name.line, &place, "the name is given twice: choose another one");
            }
        }
        found.push(entity(raw, &place, raw_systems, systems, reader));
    }
    one_table_one_entity(raw, &found, reader);
    found
}

fn entity(
    raw: &RawEntity,
    place: &str,
    raw_systems: &[RawSystem],
    systems: &[Option<SystemConfig>],
    reader: &mut Reader<'_>,
) -> EntityConfig {
    let mut seen = HashSet::new();
    for key in &raw.key {
        if !seen.insert(&key.value) {
            reader.error(key.line, place, format!("key field {:?} is given twice", key.value));
        }
    }
    for at in raw.sensitive.iter().filter(|at| raw.key.iter().any(|key| key.value == at.value)) {
        let message =
            format!("sensitive names {:?}, which is of the key: records are named by it everywhere", at.value);
        reader.error(at.line, place, message);
    }
    if let Some(at) = &raw.load {
        choice(at, "load", &["first-run", "never"], place, reader);
    }
    let mut bindings = Vec::new();
    for raw_binding in &raw.bindings {
        let place = format!("{place} in {:?}", raw_binding.system.value);
        let known = || raw_systems.iter().filter_map(|s| s.name.as_ref().map(|n| n.value.as_str()));
        let Some(index) =
            raw_systems.iter().position(|s| s.name.as_ref().is_some_and(|n| n.value == raw_binding.system.value))
        else {
            let way_out = match nearest(&raw_binding.system.value, known()) {
                Some(near) => format!("nearest: {near:?}"),
                None if raw_systems.is_empty() => continue, // that there is none is told already
                None => format!("known: {}", known().collect::<Vec<_>>().join(", ")),
            };
            reader.error(raw_binding.system.line, &place, format!("no system has this name; {way_out}"));
            continue;
        };
        let system = systems.get(index).and_then(Option::as_ref);
        bindings.extend(binding(raw_binding, &raw.key, index, system, &place, reader));
    }
    bindings.sort_by_key(|b: &BindingConfig| b.system);
    if bindings.len() == raw.bindings.len() {
        flows(&bindings, raw.line, place, reader);
    }
    let conflicts = conflicts::Entity { raw, place, raw_systems, bindings: &bindings }.conflicts(reader);
    EntityConfig {
        name: raw.name.as_ref().map(|n| n.value.clone()).unwrap_or_default(),
        key: raw.key.iter().map(|k| k.value.clone()).collect(),
        conflict: conflicts.conflict,
        authority: conflicts.authority,
        latest_by: conflicts.latest_by,
        scope: conflicts.scope,
        on_delete: conflicts.on_delete,
        merge: conflicts.merge,
        unique: conflicts.unique,
        load: match raw.load.as_ref().map(|at| at.value.as_str()) {
            Some("first-run") => LoadPolicy::FirstRun,
            Some("never") => LoadPolicy::Never,
            _ => LoadPolicy::IfEmpty,
        },
        sensitive: raw.sensitive.iter().map(|at| at.value.clone()).collect(),
        bindings,
        line: raw.line,
    }
}

/// Something has to write it and something else to receive it.
fn flows(bindings: &[BindingConfig], line: usize, place: &str, reader: &mut Reader<'_>) {
    let writers = bindings.iter().filter(|b| b.role != Role::Target).count();
    let receivers = bindings.iter().filter(|b| b.role != Role::Source).count();
    let message = match bindings.len() {
        0 => "is bound nowhere; it needs [entity.in.SYSTEM] for two systems or more",
        1 => "is bound in one system only; it needs [entity.in.SYSTEM] for two systems or more",
        _ if writers == 0 => "is only received (role \"target\" everywhere): nothing would be captured",
        _ if receivers == 0 => "is only captured (role \"source\" everywhere): nothing would be applied",
        _ => return,
    };
    reader.error(line, place, message);
}

/// A key with a closed set of words.
fn choice(at: &At<String>, key: &str, known: &[&str], place: &str, reader: &mut Reader<'_>) {
    let value = at.value.as_str();
    if known.contains(&value) {
        return;
    }
    let message = match nearest(value, known.iter().copied()) {
        Some(near) => format!("unknown {key} {value:?}; nearest: {near:?}"),
        None => format!("unknown {key} {value:?}; available: {}", quoted(known)),
    };
    reader.error(at.line, place, message);
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(", ")
}

fn binding(
    raw: &RawBinding,
    key: &[At<String>],
    index: usize,
    system: Option<&SystemConfig>,
    place: &str,
    reader: &mut Reader<'_>,
) -> Option<BindingConfig> {
    let role = match raw.role.as_ref().map(|at| (at, at.value.as_str())) {
        None | Some((_, "both")) => Role::Both,
        Some((_, "source")) => Role::Source,
        Some((_, "target")) => Role::Target,
        Some((at, _)) => {
            choice(at, "role", &["both", "source", "target"], place, reader);
            Role::Both
        }
    };
    if let Some(at) = &raw.filter
        && let Err(why) = Filter::check_syntax(&at.value)
    {
        let expected = "expected: a predicate over fields, such as \"country = 'DE'\"";
        reader.error(at.line, place, format!("where {why}; {expected}"));
    }
    let columns = raw.columns.as_ref().map(|columns| self::columns(columns, key, raw.system.line, place, reader));
    if let (Some(at), true) = (raw.ignore.first(), raw.columns.is_some()) {
        reader.error(at.line, place, "has both columns and ignore; what columns do not name is left alone anyway");
    }
    for at in raw.ignore.iter().filter(|at| key.iter().any(|key| key.value == at.value)) {
        reader.error(at.line, place, format!("ignores {:?}, which is of the key", at.value));
    }
    let table = required(&raw.table, "table", raw.system.line, place, reader)?;
    let schema = system.map(|system| match system.engine {
        Engine::Postgres => "public",
        Engine::Mysql => &system.connect.database,
    });
    // Without its system the table's schema is unknown; the system's own error is told already.
    let name = table_name(&table.value, Some(schema.unwrap_or("?")))
        .map_err(|why| reader.error(table.line, place, format!("table {:?} {why}", table.value)))
        .ok()?;
    let formerly = raw.formerly.as_ref().map(|names| {
        let names = names.iter().filter_map(|at| {
            let name = table_name(&at.value, Some(schema.unwrap_or("?")));
            name.map_err(|why| reader.error(at.line, place, format!("formerly {:?} {why}", at.value))).ok()
        });
        names.collect()
    });
    Some(BindingConfig {
        system: SystemId(u8::try_from(index).ok()?),
        table: name,
        role,
        filter: raw.filter.as_ref().map(|at| at.value.clone()),
        columns,
        ignore: raw.ignore.iter().map(|at| at.value.clone()).collect(),
        formerly,
        line: raw.system.line,
    })
}

fn columns(
    raw: &[RawColumn],
    key: &[At<String>],
    line: usize,
    place: &str,
    reader: &mut Reader<'_>,
) -> Vec<ColumnConfig> {
    for key in key {
        if !raw.iter().any(|c| c.field.value == key.value) {
            let near = nearest(&key.value, raw.iter().map(|c| c.field.value.as_str()));
            let way_out = near.map_or_else(String::new, |near| format!("; nearest: {near:?}"));
            reader.error(line, place, format!("columns do not name the key field {:?}{way_out}", key.value));
        }
    }
    if raw.len() > COLUMNS_MAX {
        reader.error(line, place, format!("binds {} columns; {COLUMNS_MAX} are the most", raw.len()));
    }
    let mut seen = HashSet::new();
    for column in raw {
        if !seen.insert(&column.column.value) {
            let message = format!("column {:?} is bound to two fields: leave one out", column.column.value);
            reader.error(column.column.line, place, message);
        }
        mapping(column, place, reader);
        let bound = |at: &At<String>| raw.iter().any(|other| other.column.value == at.value);
        for at in column.formerly.iter().flatten().filter(|at| bound(at)) {
            let message = format!("formerly of {:?} names {:?}, which is bound", column.field.value, at.value);
            reader.error(at.line, place, message);
        }
    }
    let dates: Vec<Option<Dates>> = raw.iter().map(|column| dates(column, place, reader)).collect();
    raw.iter()
        .zip(dates)
        .map(|(column, dates)| ColumnConfig {
            dates,
            field: column.field.value.clone(),
            column: column.column.value.clone(),
            format: column.format.as_ref().map(|at| at.value.clone()),
            values: column.values.clone(),
            formerly: column.formerly.as_ref().map(|names| names.iter().map(|at| at.value.clone()).collect()),
            line: column.field.line,
        })
        .collect()
}

/// A map has to be one to one: it is read in both directions.
fn mapping(column: &RawColumn, place: &str, reader: &mut Reader<'_>) {
    let field = &column.field.value;
    if let (Some(format), Some(_)) = (&column.format, &column.values) {
        reader.error(format.line, place, format!("field {field:?} has both format and values; one is possible"));
    }
    if let Some(at) = &column.format
        && let Err(why) = Format::new(&at.value)
    {
        reader.error(at.line, place, format!("format {:?} of field {field:?} {why}", at.value));
    }
    let mut stored = HashSet::new();
    for (_, value) in column.values.iter().flatten() {
        if !stored.insert(value) {
            let message = format!(
                "values of field {field:?} map two canonical values to {value:?}: they are read in both directions"
            );
            reader.error(column.column.line, place, message);
        }
    }
    if column.values.as_ref().is_some_and(Vec::is_empty) {
        reader.error(column.column.line, place, format!("values of field {field:?} are empty"));
    }
}

/// What stands for `0000-00-00`, `infinity` and `-infinity`; no date may stand for two of them.
fn dates(column: &RawColumn, place: &str, reader: &mut Reader<'_>) -> Option<Dates> {
    let field = &column.field.value;
    let first = column.dates.iter().flatten().next()?;
    if column.format.is_some() || column.values.is_some() {
        let message = format!("field {field:?} has format or values, and a stand-in for dates; one is possible");
        reader.error(first.line, place, message);
    }
    let mut stand_ins = [StandIn::Itself; 3];
    for ((special, text), stand_in) in Special::ALL.iter().zip(&column.dates).zip(&mut stand_ins) {
        let Some(at) = text else { continue };
        match StandIn::parse(&at.value) {
            Some(parsed) => *stand_in = parsed,
            None => {
                let message = format!(
                    "{} {:?} of field {field:?} is neither \"quarantine\" nor \"null\" nor a date such as \"9999-12-31\"",
                    special.key(),
                    at.value
                );
                reader.error(at.line, place, message);
            }
        }
    }
    let dates = stand_ins.iter().filter(|stand_in| matches!(stand_in, StandIn::At(..)));
    if dates.clone().enumerate().any(|(at, one)| dates.clone().skip(at + 1).any(|other| one == other)) {
        reader.error(first.line, place, format!("field {field:?} has one date stand for two others"));
    }
    Some(Dates(stand_ins))
}

/// Two entities in one table would have to share every change of it.
fn one_table_one_entity(raw: &[RawEntity], entities: &[EntityConfig], reader: &mut Reader<'_>) {
    let mut owners: Vec<(&BindingConfig, &str)> = Vec::new();
    for (raw, entity) in raw.iter().zip(entities) {
        for binding in &entity.bindings {
            let other = owners.iter().find(|(b, _)| b.system == binding.system && b.table == binding.table);
            if let Some((_, other)) = other {
                let system = raw.bindings.iter().find(|b| b.system.line == binding.line);
                let system = system.map_or("", |b| b.system.value.as_str());
                let place = format!("entity {:?} in {system:?}", entity.name);
                let message = format!("table {} is bound by entity {other:?} already", binding.table);
                reader.error(binding.line, &place, message);
            }
            owners.push((binding, &entity.name));
        }
    }
}
