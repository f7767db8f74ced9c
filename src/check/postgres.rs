//! What a PostgreSQL server says about itself and us, and what of it is in the way.
//!
//! [`Facts`] are read in a few queries and judged without I/O, so that each judgement has a
//! test that needs no broken server.

use std::collections::BTreeSet;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::needs::{Needs, TableNeed};
use crate::apply::postgres::origin;
use crate::apply::sql::{quoted, quoted_table};
use crate::catalog::{ReplicaIdentity, TableName};
use crate::connect::postgres::error;
use crate::error::{RESYNC, Result};
use crate::finding::Finding;

#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub role: String,
    pub database: String,
    pub version_num: i32,
    pub version: String,
    pub in_recovery: bool,
    pub wal_level: String,
    pub replication: bool,
    pub superuser: bool,
    /// May write under a replication origin.
    pub may_have_origin: bool,
    pub slots: (i64, i64),
    pub senders: (i64, i64),
    pub may_create_in_database: bool,
    /// `None`: there is no such schema.
    pub may_create_in_marker_schema: Option<bool>,
    pub marker: Option<TableFacts>,
    /// As the needs' tables; `None` where there is none.
    pub tables: Vec<Option<TableFacts>>,
    pub publication: Option<Publication>,
    pub slot: Option<Slot>,
    /// Our sessions may not write.
    pub read_only: bool,
    /// max_slot_wal_keep_size and idle_replication_slot_timeout as the server shows them; the
    /// second is unknown before 18.
    pub slot_limit: String,
    pub slot_idle_limit: Option<String>,
    /// Agents that have written into our marker table.
    pub agents: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub struct TableFacts {
    pub owner: String,
    /// Or a member of the owner, or superuser.
    pub we_own: bool,
    pub schema_usage: bool,
    /// Of SELECT, INSERT, UPDATE, DELETE, those that are missing on the whole table.
    pub missing: Vec<&'static str>,
    /// Some columns at least are granted, for each missing one.
    pub on_columns: bool,
    pub permanent: bool,
    pub rows_hidden: bool,
    pub primary_key: Vec<String>,
    pub identity: Option<ReplicaIdentity>,
    pub sequences: Vec<Sequence>,
    /// The columns of the index that is its identity.
    pub identity_columns: Vec<String>,
    /// Its leaf partitions, each with an identity of its own.
    pub partitions: Vec<Partition>,
    /// Tables that inherit from it, quoted.
    pub heirs: Vec<String>,
    /// Its virtual columns, each with the statements that store it.
    pub virtual_columns: Vec<(String, String)>,
}

/// A leaf of a partitioned table.
#[derive(Debug, Clone)]
pub struct Partition {
    pub name: TableName,
    pub identity: ReplicaIdentity,
    /// The columns of that identity, where it is not FULL.
    pub held: Vec<String>,
}

/// What numbers a column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    pub column: String,
    /// Quoted, with its schema.
    pub name: String,
    pub step: i64,
    /// Its last value where we may know it, else what it began with.
    pub value: i64,
}

fn identity(code: &str) -> ReplicaIdentity {
    match code {
        "d" => ReplicaIdentity::Default,
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Nothing,
    }
}

#[derive(Debug, Clone, Default)]
pub struct Publication {
    pub we_own: bool,
    pub all_tables: bool,
    /// Inserts, updates, deletes and truncates.
    pub all_actions: bool,
    /// Stored generated columns are left out: since version 18, where it does not say otherwise.
    pub leaves_out_generated: bool,
    pub tables: BTreeSet<TableName>,
    /// Of which a filter or a list of columns publishes only a part.
    pub narrowed: BTreeSet<TableName>,
}

#[derive(Debug, Clone, Default)]
pub struct Slot {
    pub plugin: String,
    pub database: String,
    pub active_pid: Option<i32>,
    pub wal_status: String,
    /// Why the server does not serve it any more.
    pub invalidated: Option<String>,
}

const SERVER: &str = "SELECT current_user::text, current_database()::text, \
    current_setting('server_version_num')::int4, current_setting('server_version'), pg_is_in_recovery(), \
    current_setting('wal_level'), r.rolreplication, r.rolsuper, \
    (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int8, \
    (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::int8, \
    has_database_privilege(current_database(), 'CREATE'), \
    current_setting('transaction_read_only') = 'on', current_setting('max_slot_wal_keep_size'), \
    current_setting('idle_replication_slot_timeout', true), \
    NOT EXISTS (SELECT FROM pg_proc p WHERE p.proname ~ \
    '^pg_replication_origin_(create|drop|session_setup|session_reset|xact_setup)$' \
    AND NOT has_function_privilege(p.oid, 'EXECUTE')) \
    FROM pg_roles r WHERE r.rolname = current_user";

/// One row per name, in order; `oid` is NULL where there is no table.
const TABLES: &str = "SELECT c.oid IS NOT NULL AS found, pg_get_userbyid(c.relowner)::text AS owner, \
    pg_has_role(c.relowner, 'USAGE') AS we_own, has_schema_privilege(n.oid, 'USAGE') AS schema_usage, \
    has_table_privilege(c.oid, 'SELECT') AS s, has_table_privilege(c.oid, 'INSERT') AS i, \
    has_table_privilege(c.oid, 'UPDATE') AS u, has_table_privilege(c.oid, 'DELETE') AS d, \
    has_any_column_privilege(c.oid, 'SELECT') AND has_any_column_privilege(c.oid, 'INSERT') \
    AND has_any_column_privilege(c.oid, 'UPDATE') AS on_columns, \
    c.relpersistence = 'p' AS permanent, row_security_active(c.oid) AS rows_hidden, \
    ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
    AND a.attnum = ANY (i.indkey) WHERE i.indrelid = c.oid AND i.indisprimary) AS primary_key, \
    c.relreplident::text AS identity, \
    ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
    AND a.attnum = ANY (i.indkey) WHERE i.indrelid = c.oid AND i.indisreplident) AS identity_columns, \
    ARRAY(SELECT format('%I.%I', hn.nspname, hc.relname) FROM pg_inherits h JOIN pg_class hc ON hc.oid = h.inhrelid \
    JOIN pg_namespace hn ON hn.oid = hc.relnamespace WHERE h.inhparent = c.oid AND c.relkind = 'r' ORDER BY 1) AS heirs, \
    ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v' \
    ORDER BY a.attnum) AS virtual_names, \
    ARRAY(SELECT format(E'ALTER TABLE %1$I.%2$I DROP COLUMN %3$I;\nALTER TABLE %1$I.%2$I ADD COLUMN %3$I %4$s \
    GENERATED ALWAYS AS (%5$s) STORED;', n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), \
    pg_get_expr(d.adbin, d.adrelid)) FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid \
    AND d.adnum = a.attnum WHERE a.attrelid = c.oid AND a.attgenerated = 'v' ORDER BY a.attnum) AS virtual_mends, \
    l.schemas AS leaf_schemas, l.names AS leaf_names, l.identities AS leaf_identities, l.held AS leaf_held \
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY t(schema, name, ord) \
    LEFT JOIN pg_namespace n ON n.nspname = t.schema \
    LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name AND c.relkind IN ('r', 'p') \
    CROSS JOIN LATERAL (SELECT coalesce(array_agg(ln.nspname::text ORDER BY lc.oid), '{}') AS schemas, \
    coalesce(array_agg(lc.relname::text ORDER BY lc.oid), '{}') AS names, \
    coalesce(array_agg(lc.relreplident::text ORDER BY lc.oid), '{}') AS identities, \
    coalesce(array_agg((SELECT jsonb_agg(a.attname) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
    AND a.attnum = ANY (i.indkey) WHERE i.indrelid = lc.oid AND CASE lc.relreplident WHEN 'd' THEN i.indisprimary \
    WHEN 'i' THEN i.indisreplident END)::text ORDER BY lc.oid), '{}') AS held \
    FROM pg_partition_tree(CASE WHEN c.relkind = 'p' THEN c.oid END) p JOIN pg_class lc ON lc.oid = p.relid \
    JOIN pg_namespace ln ON ln.oid = lc.relnamespace WHERE p.isleaf) l ORDER BY t.ord";

/// Identity columns own their sequence, other defaults name one.
const SEQUENCES: &str = "SELECT t.ord, a.attname::text, format('%I.%I', sn.nspname, sc.relname), s.seqincrement, \
    coalesce(CASE WHEN has_sequence_privilege(sc.oid, 'SELECT, USAGE') THEN pg_sequence_last_value(sc.oid) END, \
    s.seqstart) \
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY t(schema, name, ord) \
    JOIN pg_namespace n ON n.nspname = t.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name \
    JOIN LATERAL (SELECT d.refobjsubid::int AS attnum, d.objid AS sequence FROM pg_depend d \
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid \
    AND d.deptype = 'i' UNION SELECT f.adnum::int, d.refobjid FROM pg_attrdef f JOIN pg_depend d \
    ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass \
    WHERE f.adrelid = c.oid) g ON true \
    JOIN pg_sequence s ON s.seqrelid = g.sequence JOIN pg_class sc ON sc.oid = g.sequence \
    JOIN pg_namespace sn ON sn.oid = sc.relnamespace \
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = g.attnum";

pub async fn read(client: &Client, needs: &Needs, publication: &str, slot: &str) -> Result<Facts> {
    let rows = query(client, SERVER, &[]).await?;
    let row = &rows[0];
    let mut facts = Facts {
        role: row.get(0),
        database: row.get(1),
        version_num: row.get(2),
        version: row.get::<_, String>(3).split(' ').next().unwrap_or_default().to_owned(),
        in_recovery: row.get(4),
        wal_level: row.get(5),
        replication: row.get(6),
        superuser: row.get(7),
        slots: (row.get(8), row.get(9)),
        senders: (row.get(10), row.get(11)),
        may_create_in_database: row.get(12),
        read_only: row.get(13),
        slot_limit: row.get(14),
        slot_idle_limit: row.get(15),
        may_have_origin: row.get(16),
        ..Facts::default()
    };
    facts.tables = read_tables(client, &needs.names()).await?;
    if let Some(marker) = &needs.marker {
        let sql = "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1";
        facts.may_create_in_marker_schema = query(client, sql, &[&marker.schema]).await?.first().map(|row| row.get(0));
        facts.marker = read_tables(client, std::slice::from_ref(marker)).await?.pop().flatten();
        if facts.marker.is_some() {
            let sql = format!("SELECT DISTINCT agent FROM {} ORDER BY agent", quoted_table(marker));
            // Needs a privilege whose absence is a finding of its own.
            let rows = client.query(&sql, &[]).await.unwrap_or_default();
            facts.agents = rows.iter().map(|row| row.get(0)).collect();
        }
    }
    facts.publication = read_publication(client, publication).await?;
    let sql = "SELECT coalesce(plugin, '')::text, coalesce(database, '')::text, active_pid, \
               coalesce(wal_status, ''), to_jsonb(s) ->> 'invalidation_reason' \
               FROM pg_replication_slots s WHERE slot_name = $1";
    facts.slot = query(client, sql, &[&slot]).await?.first().map(|row| Slot {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        wal_status: row.get(3),
        invalidated: row.get(4),
    });
    Ok(facts)
}

async fn read_tables(client: &Client, names: &[TableName]) -> Result<Vec<Option<TableFacts>>> {
    let schemas: Vec<&str> = names.iter().map(|n| n.schema.as_str()).collect();
    let bare: Vec<&str> = names.iter().map(|n| n.name.as_str()).collect();
    let rows = query(client, TABLES, &[&schemas, &bare]).await?;
    let mut tables: Vec<Option<TableFacts>> =
        rows.iter().map(|row| row.get::<_, bool>("found").then(|| table_facts(row))).collect();
    for row in query(client, SEQUENCES, &[&schemas, &bare]).await? {
        if let Some(table) = &mut tables[row.get::<_, i64>(0) as usize - 1] {
            let (column, name, step, value) = (row.get(1), row.get(2), row.get(3), row.get(4));
            table.sequences.push(Sequence { column, name, step, value });
        }
    }
    Ok(tables)
}

fn partitions(row: &Row) -> Vec<Partition> {
    let texts = |column: &str| row.get::<_, Vec<String>>(column);
    let held = row.get::<_, Vec<Option<String>>>("leaf_held");
    let names = texts("leaf_schemas").into_iter().zip(texts("leaf_names"));
    let leaf = |(((schema, name), code), held): (((String, String), String), Option<String>)| Partition {
        name: TableName { schema, name },
        identity: identity(&code),
        held: held.and_then(|names| serde_json::from_str(&names).ok()).unwrap_or_default(),
    };
    names.zip(texts("leaf_identities")).zip(held).map(leaf).collect()
}

fn table_facts(row: &Row) -> TableFacts {
    let privileges = [("s", "SELECT"), ("i", "INSERT"), ("u", "UPDATE"), ("d", "DELETE")];
    TableFacts {
        owner: row.get("owner"),
        we_own: row.get("we_own"),
        schema_usage: row.get("schema_usage"),
        missing: privileges.iter().filter(|(column, _)| !row.get::<_, bool>(*column)).map(|(_, name)| *name).collect(),
        on_columns: row.get("on_columns"),
        permanent: row.get("permanent"),
        rows_hidden: row.get("rows_hidden"),
        primary_key: row.get("primary_key"),
        sequences: Vec::new(),
        identity: Some(identity(&row.get::<_, String>("identity"))),
        identity_columns: row.get("identity_columns"),
        partitions: partitions(row),
        heirs: row.get("heirs"),
        virtual_columns: row
            .get::<_, Vec<String>>("virtual_names")
            .into_iter()
            .zip(row.get::<_, Vec<String>>("virtual_mends"))
            .collect(),
    }
}

async fn read_publication(client: &Client, name: &str) -> Result<Option<Publication>> {
    let sql = "SELECT pg_has_role(pubowner, 'USAGE'), puballtables, \
               pubinsert AND pubupdate AND pubdelete AND pubtruncate, to_jsonb(p) ->> 'pubgencols' = 'n' \
               FROM pg_publication p WHERE pubname = $1";
    let Some(row) = query(client, sql, &[&name]).await?.into_iter().next() else {
        return Ok(None);
    };
    let sql = "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1";
    let tables = query(client, sql, &[&name]).await?;
    // Servers before 15 know neither filters nor lists of columns.
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
               JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE p.pubname = $1 AND (to_jsonb(r) -> 'prqual' <> 'null' OR to_jsonb(r) -> 'prattrs' <> 'null')";
    let narrowed = query(client, sql, &[&name]).await?;
    let narrowed = narrowed.iter().map(|row| TableName { schema: row.get(0), name: row.get(1) }).collect();
    Ok(Some(Publication {
        narrowed,
        we_own: row.get(0),
        all_tables: row.get(1),
        all_actions: row.get(2),
        leaves_out_generated: row.get::<_, Option<bool>>(3) == Some(true),
        tables: tables.iter().map(|row| TableName { schema: row.get(0), name: row.get(1) }).collect(),
    }))
}

async fn query(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
    client.query(sql, parameters).await.map_err(|e| error(&e).context("cannot read the catalog"))
}

/// What is in the way and is not for `setup` to mend. Missing tables are `normalize`'s to name.
pub fn findings(system: &str, facts: &Facts, needs: &Needs, slot: &str) -> Vec<Finding> {
    let mut findings = server_findings(system, facts, slot);
    for (need, table) in needs.tables.iter().zip(&facts.tables) {
        if let Some(table) = table {
            findings.extend(table_findings(system, facts, need, table));
        }
    }
    if let (Some(name), Some(marker)) = (&needs.marker, &facts.marker) {
        let missing: Vec<&str> = marker.missing.iter().copied().filter(|p| *p != "DELETE").collect();
        if !marker.schema_usage || !missing.is_empty() {
            let grant = grant(facts, name, marker, &missing);
            let lacking = lacking(facts, name, marker, &missing);
            let what = format!("{lacking}: the marker cannot be written");
            findings.push(Finding::error(system, what).table(name).by_administrator(grant));
        }
    }
    if needs.is_only_written() && facts.version_num >= 160_000 && !facts.may_have_origin {
        let what = "it is only written to, and yet sends all that is written back to the agent, about as much work \
             as writing it";
        findings.push(Finding::note(system, what).by_administrator(origin::grants(&facts.role)));
    }
    findings
}

fn server_findings(system: &str, facts: &Facts, slot_name: &str) -> Vec<Finding> {
    let error = |what: String, mend: String| Finding::error(system, what).by_administrator(mend);
    let role = quoted(&facts.role);
    let mut findings = Vec::new();
    if facts.version_num < 140_000 {
        findings.push(error(format!("PostgreSQL {} is too old", facts.version), "-- 14 or newer".into()));
    }
    if facts.in_recovery {
        findings.push(error(
            "the server is a standby: it cannot be written to".into(),
            "-- promote it, or name the primary in the url of this system".into(),
        ));
    } else if facts.read_only {
        let database = quoted(&facts.database);
        findings.push(error(
            format!("sessions of role {role} are read-only: the agent cannot write"),
            format!("ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = off;"),
        ));
    }
    if facts.wal_level != "logical" {
        findings.push(error(
            format!("wal_level is {}: row changes are not in the log", facts.wal_level),
            "ALTER SYSTEM SET wal_level = 'logical';\n-- then restart the server".into(),
        ));
    }
    if !facts.replication && !facts.superuser {
        findings.push(error(
            format!("role {role} may not read the log: it lacks REPLICATION"),
            format!("ALTER ROLE {role} REPLICATION;"),
        ));
    }
    if facts.slot.is_none() && facts.slots.0 >= facts.slots.1 {
        findings.push(error(
            format!("all {} replication slots are taken", facts.slots.1),
            format!("ALTER SYSTEM SET max_replication_slots = {};\n-- then restart the server", facts.slots.1 + 4),
        ));
    }
    if facts.slot.as_ref().is_none_or(|s| s.active_pid.is_none()) && facts.senders.0 >= facts.senders.1 {
        findings.push(error(
            format!("all {} walsenders are taken", facts.senders.1),
            format!("ALTER SYSTEM SET max_wal_senders = {};\n-- then restart the server", facts.senders.1 + 4),
        ));
    }
    if let Some(slot) = &facts.slot {
        findings.extend(slot_finding(system, facts, slot, slot_name));
    }
    findings.extend(slot_limits(system, facts));
    findings
}

/// What a slot may hold back, and for how long nobody may read it.
fn slot_limits(system: &str, facts: &Facts) -> Vec<Finding> {
    let reload = "SELECT pg_reload_conf();";
    let mut findings = Vec::new();
    if facts.slot_limit == "-1" {
        let what =
            "max_slot_wal_keep_size is unlimited: while nothing reads the agent's slot, WAL fills the server's disk";
        let mend = format!("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';\n{reload}");
        findings.push(Finding::note(system, what).by_administrator(mend));
    }
    if let Some(limit) = facts.slot_idle_limit.as_ref().filter(|limit| *limit != "0") {
        let what = format!("idle_replication_slot_timeout is {limit}: an agent that is down longer loses its place");
        let mend = format!("ALTER SYSTEM SET idle_replication_slot_timeout = 0;\n{reload}");
        findings.push(Finding::warning(system, what).by_administrator(mend));
    }
    findings
}

fn slot_finding(system: &str, facts: &Facts, slot: &Slot, name: &str) -> Option<Finding> {
    let (what, mend) = if slot.plugin != "pgoutput" || slot.database != facts.database {
        (
            format!("slot {name:?} belongs to database {:?} and plugin {:?}", slot.database, slot.plugin),
            format!("SELECT pg_drop_replication_slot('{name}');\n-- or choose another [agent] id"),
        )
    } else if slot.wal_status == "lost" || slot.invalidated.is_some() {
        let reason = slot.invalidated.as_deref().unwrap_or("wal_removed");
        let what = format!("slot {name:?} is lost ({reason}): what was committed since is not in step");
        let mend = format!("# {}, then\n{RESYNC} {system}", crate::capture::postgres::keeps_slots(reason));
        return Some(Finding::error(system, what).mend(mend));
    } else {
        return None;
    };
    Some(Finding::error(system, what).by_administrator(mend))
}

/// Each missing right by its name.
fn lacking(facts: &Facts, name: &TableName, table: &TableFacts, missing: &[&str]) -> String {
    let usage = (!table.schema_usage).then(|| format!("USAGE on schema {:?}", name.schema));
    let list: Vec<String> = usage.into_iter().chain(missing.iter().map(ToString::to_string)).collect();
    format!("role {:?} lacks {}", facts.role, list.join(", "))
}

fn table_findings(system: &str, facts: &Facts, need: &TableNeed, table: &TableFacts) -> Vec<Finding> {
    let here = |finding: Finding| finding.entity(&need.entity).table(&need.name);
    let mut findings = Vec::new();
    let wanted: &[&str] = if need.applied { &["SELECT", "INSERT", "UPDATE", "DELETE"] } else { &["SELECT"] };
    let missing: Vec<&str> = table.missing.iter().copied().filter(|p| wanted.contains(p)).collect();
    if !table.schema_usage || !missing.is_empty() {
        let what = lacking(facts, &need.name, table, &missing);
        let grant = grant(facts, &need.name, table, &missing);
        // Granted column by column it may suffice; only the columns that are bound matter.
        let by_column = table.schema_usage && table.on_columns && !missing.contains(&"DELETE");
        let finding = match by_column {
            true => Finding::warning(system, what + " on the whole table; it has them on some columns"),
            false => Finding::error(system, what),
        };
        findings.push(here(finding.by_administrator(grant)));
    }
    if !table.permanent {
        findings.push(here(
            Finding::error(system, "is unlogged: its changes are not in the log")
                .by_owner(format!("ALTER TABLE {} SET LOGGED;", quoted_table(&need.name))),
        ));
    }
    if !table.heirs.is_empty() {
        let parent = quoted_table(&need.name);
        let part: Vec<String> =
            table.heirs.iter().map(|heir| format!("ALTER TABLE {heir} NO INHERIT {parent};")).collect();
        findings.push(here(
            Finding::error(system, "other tables inherit from it: their rows are seen in it, but logged as theirs")
                .by_owner(format!("-- or make it a partitioned table\n{}", part.join("\n"))),
        ));
    }
    if refuses_updates(need, table) {
        let (names, mends): (Vec<_>, Vec<_>) = table.virtual_columns.iter().cloned().unzip();
        let what = format!(
            "computes {} without storing it: with REPLICA IDENTITY FULL, which is needed, PostgreSQL would refuse \
             every UPDATE and DELETE",
            names.join(", ")
        );
        findings.push(here(Finding::error(system, what).by_owner(mends.join("\n"))));
    }
    if table.rows_hidden {
        findings.push(here(
            Finding::error(system, format!("row level security hides rows from role {:?}", facts.role))
                .by_administrator(format!("ALTER ROLE {} BYPASSRLS;", quoted(&facts.role))),
        ));
    }
    findings
}

fn grant(facts: &Facts, name: &TableName, table: &TableFacts, missing: &[&str]) -> String {
    let role = quoted(&facts.role);
    let mut lines = Vec::new();
    if !table.schema_usage {
        lines.push(format!("GRANT USAGE ON SCHEMA {} TO {role};", quoted(&name.schema)));
    }
    if !missing.is_empty() {
        lines.push(format!("GRANT {} ON {} TO {role};", missing.join(", "), quoted_table(name)));
    }
    lines.join("\n")
}

/// Partitions whose old rows the log holds less of than their table's identity says; `full`: that
/// is to be FULL. The server tells the table's, and logs by the partition's.
pub fn weaker_partitions(table: &TableFacts, full: bool) -> impl Iterator<Item = &TableName> {
    let whole = full || table.identity == Some(ReplicaIdentity::Full);
    let own = if table.identity == Some(ReplicaIdentity::Index) { &table.identity_columns } else { &table.primary_key };
    let weaker = move |leaf: &&Partition| match leaf.identity {
        ReplicaIdentity::Full => false,
        ReplicaIdentity::Nothing => true,
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            whole || leaf.held.is_empty() || own.iter().any(|column| !leaf.held.contains(column))
        }
    };
    table.partitions.iter().filter(weaker).map(|leaf| &leaf.name)
}

/// Virtual columns and REPLICA IDENTITY FULL together: to publish the table would break the
/// application's own statements.
pub fn refuses_updates(need: &TableNeed, table: &TableFacts) -> bool {
    let full = table.identity == Some(ReplicaIdentity::Full) || !identity_suffices(need, table);
    full && !table.virtual_columns.is_empty()
}

/// Whether the log holds enough of an old row. Without any identity the server refuses the
/// application's own updates of a published table.
pub fn identity_suffices(need: &TableNeed, table: &TableFacts) -> bool {
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    match table.identity {
        Some(ReplicaIdentity::Full) => true,
        _ if need.full_images => false,
        Some(ReplicaIdentity::Default) if need.key.is_empty() => !table.primary_key.is_empty(),
        Some(ReplicaIdentity::Default) => set(&table.primary_key) == set(&need.key),
        Some(ReplicaIdentity::Index) => set(&table.identity_columns) == set(&need.key) || need.key.is_empty(),
        Some(ReplicaIdentity::Nothing) | None => false,
    }
}
