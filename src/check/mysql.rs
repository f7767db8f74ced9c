//! What a MySQL or MariaDB server says about itself and us, and what of it is in the way.

use std::collections::BTreeMap;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

use super::needs::{Needs, TableNeed};
use super::privileges::{Extent, Privileges};
use crate::apply::sql::backquoted_table;
use crate::catalog::{Table, TableName};
use crate::connect::mysql::{Flavour, failed, server};
use crate::error::Result;
use crate::finding::Finding;

#[derive(Debug, Clone)]
pub struct Facts {
    pub flavour: Flavour,
    pub version: String,
    pub numbers: (u16, u16, u16),
    /// `'user'@'host'`, as GRANT takes it.
    pub user: String,
    /// Global variables, lower case; a server does not know all of them.
    pub variables: BTreeMap<String, String>,
    /// Our session's.
    pub session: BTreeMap<String, String>,
    pub privileges: Privileges,
    /// Databases that the binlog leaves out, or the only ones that it has.
    pub binlog_do: String,
    pub binlog_ignore: String,
    /// This server follows another one.
    pub is_replica: bool,
    pub marker_database: bool,
    pub marker: Option<MarkerTable>,
    /// Agents that have written into our marker table.
    pub agents: Vec<String>,
}

impl Facts {
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.variable(name)?.parse().ok()
    }

    /// What foreign keys do to rows stands in the log: in MySQL since 9.6, unless InnoDB is told
    /// to do it by itself.
    pub fn logs_cascades(&self) -> bool {
        let native = self.variable("innodb_native_foreign_keys").is_some_and(|value| value.eq_ignore_ascii_case("ON"));
        self.flavour == Flavour::Mysql && self.numbers >= (9, 6, 0) && !native
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerTable {
    pub engine: String,
}

const VARIABLES: &str = "('log_bin', 'binlog_format', 'binlog_row_image', 'binlog_row_metadata', \
    'gtid_mode', 'server_id', 'log_replica_updates', 'log_slave_updates', \
    'sync_binlog', 'innodb_flush_log_at_trx_commit', 'binlog_expire_logs_seconds', 'read_only', \
    'super_read_only', 'sql_log_bin', 'binlog_annotate_row_events', 'gtid_strict_mode', 'enforce_gtid_consistency', \
    'innodb_native_foreign_keys', 'auto_increment_increment', 'auto_increment_offset', 'init_connect')";

pub async fn read(conn: &mut Conn, needs: &Needs) -> Result<Facts> {
    let (flavour, version, numbers) = server(conn).await?;
    let user: Option<(String,)> = query(conn, "SELECT CURRENT_USER()").await?.into_iter().next();
    let grants: Vec<(String,)> = query(conn, "SHOW GRANTS").await?;
    let privileges = Privileges::parse(&grants.into_iter().map(|(line,)| line).collect::<Vec<_>>());
    let variables = variables(conn, "GLOBAL").await?;
    let session = self::variables(conn, "SESSION").await?;
    let (binlog_do, binlog_ignore) = binlog_filters(conn, flavour).await;
    let (marker_database, marker) = read_marker(conn, needs).await?;
    let agents = match (&needs.marker, &marker) {
        (Some(name), Some(_)) => agents(conn, name).await,
        _ => vec![],
    };
    Ok(Facts {
        flavour,
        version: version.split('-').next().unwrap_or_default().to_owned(),
        numbers,
        user: account(&user.map(|(user,)| user).unwrap_or_default()),
        is_replica: is_replica(conn, flavour).await,
        variables,
        session,
        privileges,
        binlog_do,
        binlog_ignore,
        marker_database,
        marker,
        agents,
    })
}

/// Needs a privilege whose absence is a finding of its own.
async fn agents(conn: &mut Conn, marker: &TableName) -> Vec<String> {
    let sql = format!("SELECT DISTINCT agent FROM {} ORDER BY agent", backquoted_table(marker));
    conn.query(sql).await.unwrap_or_default()
}

async fn variables(conn: &mut Conn, scope: &str) -> Result<BTreeMap<String, String>> {
    let rows: Vec<(String, String)> =
        query(conn, &format!("SHOW {scope} VARIABLES WHERE Variable_name IN {VARIABLES}")).await?;
    Ok(rows.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect())
}

/// Needs a privilege whose absence is a finding of its own.
async fn binlog_filters(conn: &mut Conn, flavour: Flavour) -> (String, String) {
    let sql = match flavour {
        Flavour::Mysql => "SHOW BINARY LOG STATUS",
        Flavour::Mariadb => "SHOW MASTER STATUS",
    };
    let row: Option<Row> = conn.query_first(sql).await.ok().flatten();
    let text = |name: &str| row.as_ref().and_then(|r| r.get::<Option<String>, _>(name)).flatten().unwrap_or_default();
    (text("Binlog_Do_DB"), text("Binlog_Ignore_DB"))
}

/// Best effort: what a plain role may see.
async fn is_replica(conn: &mut Conn, flavour: Flavour) -> bool {
    let sql = match flavour {
        Flavour::Mysql => "SELECT COUNT(*) FROM performance_schema.replication_connection_configuration",
        // SLAVE_CONNECTIONS counts those that read this server's own log, as the agent does.
        Flavour::Mariadb => {
            "SELECT COUNT(*) FROM information_schema.GLOBAL_STATUS \
             WHERE VARIABLE_NAME = 'SLAVES_RUNNING' AND VARIABLE_VALUE > 0"
        }
    };
    conn.query_first::<u64, _>(sql).await.ok().flatten().unwrap_or(0) > 0
}

async fn read_marker(conn: &mut Conn, needs: &Needs) -> Result<(bool, Option<MarkerTable>)> {
    let Some(marker) = &needs.marker else {
        return Ok((false, None));
    };
    let doing = "reading the catalog";
    let database: Option<u8> = conn
        .exec_first("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = ?", (&marker.schema,))
        .await
        .map_err(|e| failed(e, doing))?;
    let engine: Option<String> = conn
        .exec_first(
            "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?",
            (&marker.schema, &marker.name),
        )
        .await
        .map_err(|e| failed(e, doing))?;
    Ok((database.is_some(), engine.map(|engine| MarkerTable { engine })))
}

async fn query<T: mysql_async::prelude::FromRow + Send + 'static>(conn: &mut Conn, sql: &str) -> Result<Vec<T>> {
    conn.query(sql).await.map_err(|e| failed(e, "asking the server for its settings"))
}

/// `user@host` → `'user'@'host'`.
fn account(current_user: &str) -> String {
    let (user, host) = current_user.rsplit_once('@').unwrap_or((current_user, "%"));
    format!("'{}'@'{}'", user.replace('\'', "''"), host.replace('\'', "''"))
}

/// What is in the way and is not for `setup` to mend. Missing tables are `normalize`'s to name.
pub fn findings(system: &str, facts: &Facts, needs: &Needs, tables: &[Option<Table>]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = version(system, facts).into_iter().collect();
    findings.extend(settings(system, facts));
    findings.extend(unsafe_binlog(system, facts, needs));
    findings.extend(risks(system, facts));
    findings.extend(filters(system, facts, needs));
    findings.extend(log_privileges(system, facts));
    for (need, table) in needs.tables.iter().zip(tables) {
        if table.is_some() {
            findings.extend(table_privileges(system, facts, need));
        }
    }
    findings.extend(marker(system, facts, needs));
    findings
}

fn version(system: &str, facts: &Facts) -> Option<Finding> {
    let (needed, name) = match facts.flavour {
        Flavour::Mysql => ((8, 4, 0), "MySQL 8.4"),
        Flavour::Mariadb => ((10, 11, 0), "MariaDB 10.11"),
    };
    (facts.numbers < needed).then(|| {
        Finding::error(system, format!("version {} is too old", facts.version)).mend(format!("# {name} or newer"))
    })
}

/// Settings without which rows are lost or misread.
fn settings(system: &str, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut demand = |name: &str, wanted: &str, why: &str, restart: bool| {
        let Some(value) = facts.variables.get(name) else {
            return;
        };
        if !value.eq_ignore_ascii_case(wanted) {
            findings.push(
                Finding::error(system, format!("{name} is {}: {why}", shown(value)))
                    .by_administrator(set(name, wanted, restart)),
            );
        }
    };
    demand("log_bin", "ON", "changes are in no log", true);
    demand("binlog_format", "ROW", "the log holds statements, not rows", false);
    demand("binlog_row_image", "FULL", "the log holds only parts of the rows", false);
    if !minimal(facts) {
        demand("binlog_row_metadata", "FULL", "the log does not describe the columns", false);
    }
    if facts.variables.get("server_id").is_some_and(|id| id == "0") {
        findings.push(Finding::error(system, "server_id is 0: the server sends its log to nobody").by_administrator(
            format!("{}\n-- any number that no other server of yours has", set("server_id", "1", false)),
        ));
    }
    for (name, value) in &facts.session {
        let wanted = match name.as_str() {
            "binlog_format" => "ROW",
            "binlog_row_image" => "FULL",
            "sql_log_bin" => "ON",
            _ => continue,
        };
        let global = facts.variables.get(name).unwrap_or(value);
        if !value.eq_ignore_ascii_case(wanted) && (global.eq_ignore_ascii_case(wanted) || name == "sql_log_bin") {
            findings.push(
                Finding::error(system, format!("{name} is {} in the agent's own sessions", shown(value)))
                    .by_administrator(format!(
                        "SET GLOBAL init_connect = '';\n# my.cnf, [mysqld]: init_connect =\n-- it is now: {}",
                        facts.variable("init_connect").unwrap_or_default()
                    )),
            );
        }
    }
    let read_only = ["read_only", "super_read_only"]
        .iter()
        .find(|name| facts.variables.get(**name).is_some_and(|v| !v.eq_ignore_ascii_case("OFF") && v != "0"));
    if let Some(name) = read_only {
        findings.push(
            Finding::error(system, format!("{name} is on: the agent cannot write"))
                .by_administrator("SET GLOBAL read_only = OFF;\n-- or name the primary in the url of this system"),
        );
    }
    findings
}

/// The log describes its columns, but does not name them.
fn minimal(facts: &Facts) -> bool {
    facts.variables.get("binlog_row_metadata").is_some_and(|value| value.eq_ignore_ascii_case("MINIMAL"))
}

/// What works, but loses something when a server fails.
fn risks(system: &str, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut advise = |name: &str, wanted: &str, why: &str, restart: bool| {
        if facts.variables.get(name).is_some_and(|value| !value.eq_ignore_ascii_case(wanted)) {
            let value = shown(&facts.variables[name]);
            findings.push(
                Finding::warning(system, format!("{name} is {value}: {why}"))
                    .by_administrator(set(name, wanted, restart)),
            );
        }
    };
    if minimal(facts) {
        let why =
            "the log does not name the columns; rows from before an ALTER TABLE that the agent has not seen stop it";
        advise("binlog_row_metadata", "FULL", why, false);
    }
    advise("innodb_flush_log_at_trx_commit", "1", LOST, false);
    let order = "a transaction may enter the log behind a later one of its domain, and a position would skip it";
    advise("gtid_strict_mode", "ON", order, false);
    if facts.is_replica {
        let why = "this server is a replica, and what it receives does not enter its own log";
        advise("log_replica_updates", "ON", why, true);
        advise("log_slave_updates", "ON", why, true);
    }
    let seconds = facts.variables.get("binlog_expire_logs_seconds").and_then(|v| v.parse::<u64>().ok());
    if let Some(seconds) = seconds.filter(|s| (1..86_400).contains(s)) {
        findings.push(
            Finding::warning(
                system,
                format!("binlogs are kept for {seconds} s: an agent that is down longer loses its place"),
            )
            .by_administrator(set("binlog_expire_logs_seconds", "604800", false)),
        );
    }
    if let Some(mode) = facts.variable("gtid_mode").filter(|mode| !mode.eq_ignore_ascii_case("ON")) {
        let why = "positions hold for this one server only, not for one that takes its place";
        findings.push(Finding::warning(system, format!("gtid_mode is {mode}: {why}")).by_administrator(gtids_on(mode)));
    }
    if facts.variable("binlog_annotate_row_events").is_some_and(|value| value.eq_ignore_ascii_case("ON")) {
        let what =
            "binlog_annotate_row_events is ON: the log holds each statement's text beside its rows, twice the volume";
        let mend = set("binlog_annotate_row_events", "OFF", false);
        findings.push(Finding::note(system, what).by_administrator(mend));
    }
    findings
}

const LOST: &str = "a crash of the server may undo transactions that other systems have already got";

/// What others took from a log that was not on disk would stay there alone.
fn unsafe_binlog(system: &str, facts: &Facts, needs: &Needs) -> Option<Finding> {
    let value = facts.variable("sync_binlog").filter(|value| needs.captured && *value != "1")?;
    let what = format!("sync_binlog is {value}: {LOST}");
    let mend = set("sync_binlog", "1", false);
    Some(match needs.unsafe_binlog {
        true => Finding::warning(system, what + " (allow_unsafe_binlog)").by_administrator(mend),
        false => {
            let risk = format!("-- or take the risk: [[system]] name = {system:?}, allow_unsafe_binlog = true");
            Finding::error(system, what).by_administrator(format!("{mend}\n{risk}"))
        }
    })
}

/// One step at a time, while the server runs: from each mode only the next one can be reached.
fn gtids_on(mode: &str) -> String {
    let steps = ["OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"];
    let reached = steps.iter().position(|step| step.eq_ignore_ascii_case(mode)).unwrap_or(0);
    let mut lines = vec!["SET GLOBAL enforce_gtid_consistency = ON;".to_owned()];
    lines.extend(steps[reached + 1..].iter().map(|step| format!("SET GLOBAL gtid_mode = {step};")));
    lines.push("# my.cnf, [mysqld]: enforce_gtid_consistency = ON\n# my.cnf, [mysqld]: gtid_mode = ON".to_owned());
    lines.join("\n")
}

fn shown(value: &str) -> String {
    if value.is_empty() { "empty".into() } else { value.to_owned() }
}

fn set(name: &str, value: &str, restart: bool) -> String {
    let plain = value.chars().all(|c| c.is_ascii_alphanumeric()) && !value.is_empty();
    let quoted = if plain && value.parse::<u64>().is_ok() { value.to_owned() } else { format!("'{value}'") };
    // ON would be the files' name.
    let written = if name == "log_bin" { "binlog" } else { value };
    let file = format!("# my.cnf, [mysqld]: {name} = {written}").trim_end().to_owned();
    if restart {
        format!("{file}\n# then restart the server")
    } else {
        format!("SET GLOBAL {name} = {quoted};\n{file}")
    }
}

/// A log that leaves out the marker would make an endless loop, one that leaves out a bound
/// table loses its changes.
fn filters(system: &str, facts: &Facts, needs: &Needs) -> Vec<Finding> {
    let listed = |list: &str, name: &str| list.split(',').any(|n| n.trim().eq_ignore_ascii_case(name));
    let mut databases: Vec<&str> = needs.published().map(|t| &*t.schema).collect();
    databases.sort_unstable();
    databases.dedup();
    let hidden = databases.into_iter().filter_map(|database| {
        let (option, line) = if listed(&facts.binlog_ignore, database) {
            ("binlog_ignore_db names it", format!("without the line binlog_ignore_db = {database}"))
        } else if !facts.binlog_do.is_empty() && !listed(&facts.binlog_do, database) {
            // One line each.
            let all = facts.binlog_do.split(',').map(str::trim).chain([database]);
            let lines: Vec<String> = all.map(|name| format!("binlog_do_db = {name}")).collect();
            ("binlog_do_db does not name it", lines.join("\n# my.cnf, [mysqld]: "))
        } else {
            return None;
        };
        let marker = needs.marker.as_ref().is_some_and(|marker| *marker.schema == *database);
        let why = if marker { ": the agent could not tell its own writes from others'" } else { "" };
        Some(
            Finding::error(system, format!("the log leaves out database {database:?}: {option}{why}"))
                .by_administrator(format!("# my.cnf, [mysqld]: {line}\n# then restart the server")),
        )
    });
    hidden.collect()
}

fn log_privileges(system: &str, facts: &Facts) -> Option<Finding> {
    let p = &facts.privileges;
    let status = match facts.flavour {
        Flavour::Mysql => ["REPLICATION CLIENT", "SUPER"],
        Flavour::Mariadb => ["BINLOG MONITOR", "SUPER"],
    };
    let mut missing = Vec::new();
    if !p.global("REPLICATION SLAVE") {
        missing.push("REPLICATION SLAVE");
    }
    if !status.iter().any(|name| p.global(name)) {
        missing.push(status[0]);
    }
    (!missing.is_empty()).then(|| {
        let list = missing.join(", ");
        Finding::error(system, format!("{} may not read the log: it lacks {list}", facts.user))
            .by_administrator(format!("GRANT {list} ON *.* TO {};", facts.user))
    })
}

fn table_privileges(system: &str, facts: &Facts, need: &TableNeed) -> Vec<Finding> {
    let wanted: &[&str] = if need.applied { &["SELECT", "INSERT", "UPDATE", "DELETE"] } else { &["SELECT"] };
    let mut findings = Vec::new();
    let mut lacking = |extent: Extent, finding: fn(&str, String) -> Finding, privileges: &[&str], what: &str| {
        let missing: Vec<&str> =
            privileges.iter().copied().filter(|p| facts.privileges.table(&need.name, p) == extent).collect();
        if !missing.is_empty() {
            let list = missing.join(", ");
            let grant = format!("GRANT {list} ON {} TO {};", backquoted_table(&need.name), facts.user);
            let finding = finding(system, format!("{} lacks {list}{what}", facts.user)).by_administrator(grant);
            findings.push(finding.entity(&need.entity).table(&need.name));
        }
    };
    lacking(Extent::None, Finding::error, wanted, "");
    lacking(Extent::SomeColumns, Finding::warning, wanted, " on the whole table; it has them on some columns");
    if need.applied {
        let why = ": triggers of the table cannot be seen, and what they write would be taken for an echo";
        lacking(Extent::None, Finding::error, &["TRIGGER"], why);
    }
    findings
}

fn marker(system: &str, facts: &Facts, needs: &Needs) -> Vec<Finding> {
    let (Some(name), Some(table)) = (&needs.marker, &facts.marker) else {
        return vec![];
    };
    let mut findings = Vec::new();
    if !table.engine.eq_ignore_ascii_case("InnoDB") {
        findings.push(
            Finding::error(system, format!("the marker's engine {} has no transactions", table.engine))
                .table(name)
                .by_administrator(format!("ALTER TABLE {} ENGINE = InnoDB;", backquoted_table(name))),
        );
    }
    let missing = missing_on_marker(facts, name);
    if !missing.is_empty() {
        let list = missing.join(", ");
        findings.push(
            Finding::error(system, format!("{} may not write the marker: it lacks {list}", facts.user))
                .table(name)
                .by_administrator(format!("GRANT {list} ON {} TO {};", backquoted_table(name), facts.user)),
        );
    }
    findings
}

/// Of what writing the marker takes.
pub fn missing_on_marker(facts: &Facts, marker: &TableName) -> Vec<&'static str> {
    let wanted = ["SELECT", "INSERT", "UPDATE"];
    wanted.into_iter().filter(|p| facts.privileges.table(marker, p) != Extent::Whole).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn needs() -> Needs {
        let need = TableNeed {
            name: TableName { schema: "shop".into(), name: "customers".into() },
            entity: "contact".into(),
            applied: true,
            key: vec!["customer_id".into()],
            full_images: true,
        };
        let marker = TableName { schema: "anechoic".into(), name: "marker".into() };
        Needs { tables: vec![need], marker: Some(marker), captured: true, unsafe_binlog: false }
    }

    /// A server on which everything is as it should be.
    pub(crate) fn facts(flavour: Flavour, grants: &[&str]) -> Facts {
        let on = [
            ("log_bin", "ON"),
            ("binlog_format", "ROW"),
            ("binlog_row_image", "FULL"),
            ("binlog_row_metadata", "FULL"),
            ("gtid_mode", "ON"),
            ("server_id", "1"),
            ("sync_binlog", "1"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("binlog_expire_logs_seconds", "2592000"),
            ("read_only", "OFF"),
        ];
        Facts {
            flavour,
            version: "9.7.0".into(),
            numbers: (10, 11, 0),
            user: "'hq'@'%'".into(),
            variables: on.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
            session: BTreeMap::new(),
            privileges: Privileges::parse(&grants.iter().map(ToString::to_string).collect::<Vec<_>>()),
            binlog_do: String::new(),
            binlog_ignore: String::new(),
            is_replica: false,
            marker_database: false,
            marker: None,
            agents: vec![],
        }
    }

    pub(crate) const GRANTS: [&str; 3] = [
        "GRANT REPLICATION SLAVE, REPLICATION CLIENT, BINLOG MONITOR ON *.* TO `hq`@`%`",
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON `shop`.* TO `hq`@`%`",
        "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP ON `anechoic`.* TO `hq`@`%`",
    ];

    fn shown(facts: &Facts) -> String {
        // Whether a table is there is all that matters here.
        let table = Table::new(needs().tables[0].name.clone());
        let findings = findings("shop", facts, &needs(), &[Some(table)]);
        findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_server_as_it_should_be_has_no_findings() {
        assert_eq!(shown(&facts(Flavour::Mysql, &GRANTS)), "");
        assert_eq!(shown(&facts(Flavour::Mariadb, &GRANTS)), "");
    }

    #[test]
    fn each_setting_comes_with_the_line_that_mends_it() {
        let mut facts = facts(Flavour::Mysql, &GRANTS);
        let wrong = [
            ("log_bin", "OFF"),
            ("binlog_format", "MIXED"),
            ("binlog_row_image", "MINIMAL"),
            ("binlog_row_metadata", "NO_LOG"),
            ("gtid_mode", "OFF"),
            ("server_id", "0"),
            ("sync_binlog", "0"),
            ("binlog_expire_logs_seconds", "3600"),
            ("read_only", "ON"),
        ];
        facts.variables.extend(wrong.iter().map(|(n, v)| (n.to_string(), v.to_string())));
        facts.binlog_ignore = "mysql,anechoic".into();
        facts.session.insert("sql_log_bin".into(), "OFF".into());

        insta::assert_snapshot!(shown(&facts), @r#"
error: shop: log_bin is OFF: changes are in no log
    -- as an administrator:
    # my.cnf, [mysqld]: log_bin = binlog
    # then restart the server
error: shop: binlog_format is MIXED: the log holds statements, not rows
    -- as an administrator:
    SET GLOBAL binlog_format = 'ROW';
    # my.cnf, [mysqld]: binlog_format = ROW
error: shop: binlog_row_image is MINIMAL: the log holds only parts of the rows
    -- as an administrator:
    SET GLOBAL binlog_row_image = 'FULL';
    # my.cnf, [mysqld]: binlog_row_image = FULL
error: shop: binlog_row_metadata is NO_LOG: the log does not describe the columns
    -- as an administrator:
    SET GLOBAL binlog_row_metadata = 'FULL';
    # my.cnf, [mysqld]: binlog_row_metadata = FULL
error: shop: server_id is 0: the server sends its log to nobody
    -- as an administrator:
    SET GLOBAL server_id = 1;
    # my.cnf, [mysqld]: server_id = 1
    -- any number that no other server of yours has
error: shop: sql_log_bin is OFF in the agent's own sessions
    -- as an administrator:
    SET GLOBAL init_connect = '';
    # my.cnf, [mysqld]: init_connect =
    -- it is now: 
error: shop: read_only is on: the agent cannot write
    -- as an administrator:
    SET GLOBAL read_only = OFF;
    -- or name the primary in the url of this system
error: shop: sync_binlog is 0: a crash of the server may undo transactions that other systems have already got
    -- as an administrator:
    SET GLOBAL sync_binlog = 1;
    # my.cnf, [mysqld]: sync_binlog = 1
    -- or take the risk: [[system]] name = "shop", allow_unsafe_binlog = true
warning: shop: binlogs are kept for 3600 s: an agent that is down longer loses its place
    -- as an administrator:
    SET GLOBAL binlog_expire_logs_seconds = 604800;
    # my.cnf, [mysqld]: binlog_expire_logs_seconds = 604800
warning: shop: gtid_mode is OFF: positions hold for this one server only, not for one that takes its place
    -- as an administrator:
    SET GLOBAL enforce_gtid_consistency = ON;
    SET GLOBAL gtid_mode = OFF_PERMISSIVE;
    SET GLOBAL gtid_mode = ON_PERMISSIVE;
    SET GLOBAL gtid_mode = ON;
    # my.cnf, [mysqld]: enforce_gtid_consistency = ON
    # my.cnf, [mysqld]: gtid_mode = ON
error: shop: the log leaves out database "anechoic": binlog_ignore_db names it: the agent could not tell its own writes from others'
    -- as an administrator:
    # my.cnf, [mysqld]: without the line binlog_ignore_db = anechoic
    # then restart the server
"#);
    }

    #[test]
    fn each_missing_privilege_is_named_with_its_grant() {
        let facts = facts(
            Flavour::Mariadb,
            &[
                "GRANT REPLICATION SLAVE ON *.* TO `hq`@`%`",
                "GRANT SELECT, UPDATE (`land`) ON `shop`.`customers` TO `hq`@`%`",
            ],
        );

        insta::assert_snapshot!(shown(&facts), @r#"
error: shop: 'hq'@'%' may not read the log: it lacks BINLOG MONITOR
    -- as an administrator:
    GRANT BINLOG MONITOR ON *.* TO 'hq'@'%';
error: shop: contact (shop.customers): 'hq'@'%' lacks INSERT, DELETE
    -- as an administrator:
    GRANT INSERT, DELETE ON `shop`.`customers` TO 'hq'@'%';
warning: shop: contact (shop.customers): 'hq'@'%' lacks UPDATE on the whole table; it has them on some columns
    -- as an administrator:
    GRANT UPDATE ON `shop`.`customers` TO 'hq'@'%';
error: shop: contact (shop.customers): 'hq'@'%' lacks TRIGGER: triggers of the table cannot be seen, and what they write would be taken for an echo
    -- as an administrator:
    GRANT TRIGGER ON `shop`.`customers` TO 'hq'@'%';
"#);
    }
}
