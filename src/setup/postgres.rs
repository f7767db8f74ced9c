//! Schema, marker, replica identities, publication and slot of a PostgreSQL system.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::{Ensured, Known, NewPosition, Removed, Step, at_work, foreign_marker, in_the_way, orphaned_slot};
use crate::apply::postgres::{lock_key, marker_ddl, origin};
use crate::apply::sql::{quoted, quoted_table};
use crate::capture::postgres::{application_name, create_position, publication_name, slot_name};
use crate::catalog::TableName;
use crate::check::Survey;
use crate::check::needs::Needs;
use crate::check::postgres::{Facts, identity_suffices, refuses_updates, weaker_partitions};
use crate::config::Config;
use crate::connect::postgres::{connect, error};
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::position::Seq;
use crate::schema::SystemId;

/// What is missing, in the order in which it must be created.
pub fn steps(facts: &Facts, needs: &Needs, publication: &str) -> Vec<Step> {
    let mut steps = marker_steps(facts, needs);
    let marker_possible = steps.iter().all(|step| step.allowed);
    // Whoever publishes the marker for us may have to make it first.
    let marker_first = if marker_possible { marker_by_others(facts, needs) } else { vec![] };
    for (need, table) in needs.tables.iter().zip(&facts.tables) {
        let Some(table) = table else { continue };
        if refuses_updates(need, table) {
            // A finding says so, and nothing is published before that is mended.
            return steps;
        }
        let full = !identity_suffices(need, table);
        let weak = full.then_some(&need.name).into_iter().chain(weaker_partitions(table, full));
        let sql: Vec<String> =
            weak.map(|name| format!("ALTER TABLE {} REPLICA IDENTITY FULL", quoted_table(name))).collect();
        if !sql.is_empty() {
            let missing = format!("{}: the log does not hold whole old rows (REPLICA IDENTITY FULL)", need.name);
            steps.push(Step { missing, admin: sql.clone(), sql, allowed: table.we_own });
        }
    }
    let publication = publication_step(facts, needs, publication, marker_possible);
    steps.extend(publication.map(|step| Step { admin: [marker_first, step.admin].concat(), ..step }));
    steps
}

/// The marker as an administrator makes it for our role; nothing where it is there.
fn marker_by_others(facts: &Facts, needs: &Needs) -> Vec<String> {
    let Some(marker) = needs.marker.as_ref().filter(|_| facts.marker.is_none()) else { return vec![] };
    let (role, schema) = (quoted(&facts.role), quoted(&marker.schema));
    let mut sql = vec![format!("CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {role}")];
    sql.extend(marker_ddl(marker).into_iter().filter(|sql| sql.starts_with("CREATE TABLE")));
    sql.push(format!("ALTER TABLE {} OWNER TO {role}", quoted_table(marker)));
    sql
}

fn marker_steps(facts: &Facts, needs: &Needs) -> Vec<Step> {
    let Some(marker) = needs.marker.as_ref().filter(|_| facts.marker.is_none()) else {
        return vec![];
    };
    let (role, schema) = (quoted(&facts.role), quoted(&marker.schema));
    let table = marker_ddl(marker).into_iter().filter(|sql| sql.starts_with("CREATE TABLE")).collect::<Vec<_>>();
    let mut steps = Vec::new();
    let allowed = facts.may_create_in_marker_schema.unwrap_or(facts.may_create_in_database);
    if facts.may_create_in_marker_schema.is_none() {
        steps.push(Step {
            missing: format!("schema {schema} does not exist"),
            sql: vec![format!("CREATE SCHEMA {schema}")],
            admin: vec![format!("CREATE SCHEMA {schema} AUTHORIZATION {role}")],
            allowed,
        });
    }
    let mut admin = table.clone();
    admin.push(format!("ALTER TABLE {} OWNER TO {role}", quoted_table(marker)));
    steps.push(Step { missing: format!("the marker table {marker} does not exist"), sql: table, admin, allowed });
    steps
}

fn publication_step(facts: &Facts, needs: &Needs, name: &str, marker_possible: bool) -> Option<Step> {
    let tables: BTreeSet<TableName> = needs
        .tables
        .iter()
        .zip(&facts.tables)
        .filter(|(_, table)| table.is_some())
        .map(|(need, _)| need.name.clone())
        .chain(needs.marker.clone())
        .collect();
    let list = tables.iter().map(quoted_table).collect::<Vec<_>>().join(", ");
    let we_own_all = marker_possible
        && facts.tables.iter().flatten().all(|table| table.we_own)
        && facts.marker.as_ref().is_none_or(|marker| marker.we_own);
    let Some(publication) = &facts.publication else {
        // Partitioned tables are bound by their root. Since version 18 a table with stored generated
        // columns that are not published takes no UPDATE under REPLICA IDENTITY FULL.
        let generated = if facts.version_num >= 180_000 { ", publish_generated_columns = stored" } else { "" };
        let name = quoted(name);
        let sql =
            format!("CREATE PUBLICATION {name} FOR TABLE {list} WITH (publish_via_partition_root = true{generated})");
        return Some(Step {
            missing: format!("the publication {name} does not exist"),
            sql: vec![sql.clone()],
            admin: vec![sql],
            allowed: we_own_all && facts.may_create_in_database,
        });
    };
    let absent: Vec<String> = tables.difference(&publication.tables).map(ToString::to_string).collect();
    // More than is needed costs only bandwidth; it is taken out where we may.
    let spare = !publication.all_tables && publication.we_own && we_own_all && publication.tables != tables;
    let narrowed: Vec<String> = publication.narrowed.intersection(&tables).map(ToString::to_string).collect();
    let leaves_out = publication.leaves_out_generated;
    if absent.is_empty() && !spare && publication.all_actions && narrowed.is_empty() && !leaves_out {
        return None;
    }
    let mut sql = Vec::new();
    if leaves_out {
        sql.push(format!("ALTER PUBLICATION {} SET (publish_generated_columns = stored)", quoted(name)));
    }
    if !publication.all_actions {
        sql.push(format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')", quoted(name)));
    }
    if !absent.is_empty() || spare || !narrowed.is_empty() {
        sql.push(format!("ALTER PUBLICATION {} SET TABLE {list}", quoted(name)));
    }
    let missing = match (absent.is_empty(), publication.all_actions) {
        (false, _) => format!("the publication {name:?} does not publish {}", absent.join(", ")),
        _ if !narrowed.is_empty() => {
            format!("the publication {name:?} publishes only some rows or columns of {}", narrowed.join(", "))
        }
        (true, false) => format!("the publication {name:?} does not publish every kind of change"),
        (true, true) if leaves_out => format!(
            "the publication {name:?} leaves out stored generated columns: with REPLICA IDENTITY FULL a table that has \
             one takes no UPDATE and DELETE"
        ),
        (true, true) => format!("the publication {name:?} is not down to the bound tables"),
    };
    Some(Step { missing, admin: sql.clone(), sql, allowed: publication.we_own && we_own_all })
}

pub(super) async fn ensure(
    config: &Config,
    system: SystemId,
    needs: &Needs,
    known: Known,
    survey: &Survey,
) -> Result<Ensured> {
    let connect_config = &config.system(system).connect;
    let agent = config.agent.id.as_str();
    let (publication, slot) = (publication_name(agent), slot_name(agent, &connect_config.database));
    let client = connect(connect_config, &application_name(agent)).await?;
    let facts = survey.postgres.as_ref().expect("a survey of PostgreSQL has its facts");
    let mut ensured = Ensured { findings: in_the_way(survey), ..Ensured::default() };
    if let Some(found) = facts.slot.as_ref().filter(|_| !known.positioned) {
        return Err(orphaned_slot(config, system, &slot, found.active_pid));
    }
    for step in steps(facts, needs, &publication) {
        let system_name = &config.system(system).name;
        if !step.allowed {
            ensured.findings.push(step.refused(system_name));
            continue;
        }
        for sql in &step.sql {
            client.batch_execute(sql).await.map_err(|e| error(&e).context(sql))?;
            ensured.done.push(sql.clone());
        }
    }
    if ensured.findings.is_empty() && !known.positioned {
        let base = mark(&client, config, system, needs, known).await?;
        let (position, identity) = create_position(&client, agent, &connect_config.database).await?;
        ensured.done.push(format!("slot {slot:?} at {position}"));
        ensured.position = Some(NewPosition { position, identity, base });
    }
    Ok(ensured)
}

/// The base of a system that is new to the journal. It gets nothing of what came before it, so
/// its marker begins at the journal's head.
async fn mark(client: &Client, config: &Config, system: SystemId, needs: &Needs, known: Known) -> Result<Seq> {
    let Some(marker) = &needs.marker else {
        return Ok(0);
    };
    let (table, journal) = (quoted_table(marker), format!("{:032x}", known.journal));
    let insert = format!(
        "INSERT INTO {table} (agent, lane, journal, epoch, seq, part, origin, txid, applied_at, format) \
         VALUES ($1, 0, $2, 1, $3, 0, '', '', clock_timestamp(), $4) ON CONFLICT (agent, lane) DO NOTHING"
    );
    let (head, format) = (i64::try_from(known.head).expect("a seq"), i32::from(crate::marker::FORMAT));
    let failed = |e: tokio_postgres::Error| error(&e).context(format!("cannot write the marker {marker}"));
    let parameters: [&(dyn ToSql + Sync); 4] = [&config.agent.id, &journal, &head, &format];
    client.execute(&insert, &parameters).await.map_err(failed)?;
    let select = format!("SELECT journal, max(seq) FROM {table} WHERE agent = $1 GROUP BY journal");
    let rows = client.query(&select, &[&config.agent.id]).await.map_err(failed)?;
    if let Some(foreign) = rows.iter().map(|row| row.get::<_, String>(0)).find(|id| *id != journal) {
        let key = lock_key(&config.agent.id, marker, 0);
        // Ours for the rest of this session, where nobody has it.
        let free: bool =
            client.query_one("SELECT pg_catalog.pg_try_advisory_lock($1)", &[&key]).await.map_err(failed)?.get(0);
        return Err(match free {
            true => foreign_marker(config, system, &foreign),
            false => at_work(config, system, "a session holds its lock"),
        });
    }
    Ok(rows.iter().map(|row| row.get::<_, i64>(1)).max().unwrap_or(0).unsigned_abs())
}

pub(super) async fn remove(config: &Config, system: SystemId) -> Result<Removed> {
    let (agent, connect_config) = (config.agent.id.as_str(), &config.system(system).connect);
    let client = connect(connect_config, &application_name(agent)).await?;
    let (name, slot) = (publication_name(agent), slot_name(agent, &connect_config.database));
    let mut done = Vec::new();
    if drop_slot(&client, &slot, &application_name(agent)).await? {
        done.push(format!("slot {slot:?}"));
    }
    if exists(&client, "SELECT 1 FROM pg_publication WHERE pubname = $1", &[&name]).await? {
        execute(&client, &format!("DROP PUBLICATION {}", quoted(&name))).await?;
        done.push(format!("publication {name:?}"));
    }
    if origin::drop(&client, agent, &connect_config.database).await.map_err(|e| error(&e))? {
        done.push("the replication origin".into());
    }
    done.extend(remove_marker(&client, config, system).await?);
    Ok(Removed { done, left: left_full(&client, config, system).await? })
}

/// Tables whose old rows stand whole in the log. Whether that was so before setup nobody knows any
/// more, and what else reads the log may count on it.
async fn left_full(client: &Client, config: &Config, system: SystemId) -> Result<Vec<Finding>> {
    const FULL: &str = "
        SELECT w.schema, w.name, ln.nspname::text, l.relname::text
        FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS w (schema, name)
        JOIN pg_catalog.pg_namespace n ON n.nspname::text = w.schema
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname::text = w.name
        CROSS JOIN LATERAL (SELECT c.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p) AS part
        JOIN pg_catalog.pg_class l ON l.oid = part.oid JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
        WHERE l.relreplident = 'f' ORDER BY 1, 2, 3, 4";
    let names = Needs::of(config, system).names();
    let (schemas, tables): (Vec<&str>, Vec<&str>) = names.iter().map(|n| (n.schema.as_str(), n.name.as_str())).unzip();
    let mut full: BTreeMap<TableName, Vec<String>> = BTreeMap::new();
    for row in query(client, FULL, &[&schemas, &tables]).await? {
        let name = |at: usize| TableName { schema: row.get(at), name: row.get(at + 1) };
        let sql = format!("ALTER TABLE {} REPLICA IDENTITY DEFAULT;", quoted_table(&name(2)));
        full.entry(name(0)).or_default().push(sql);
    }
    let left = full.into_iter().map(|(table, sql)| {
        let what = "still has REPLICA IDENTITY FULL: the log holds its old rows whole, which nothing of ours needs now";
        Finding::note(&config.system(system).name, what).table(&table).by_owner(sql.join("\n"))
    });
    Ok(left.collect())
}

/// Our slot, that cannot be read from any more; says what went.
pub(super) async fn drop_own_slot(config: &Config, system: SystemId) -> Result<Option<String>> {
    let (agent, connect_config) = (config.agent.id.as_str(), &config.system(system).connect);
    let client = connect(connect_config, &application_name(agent)).await?;
    let slot = slot_name(agent, &connect_config.database);
    let dropped = drop_slot(&client, &slot, &application_name(agent)).await?;
    Ok(dropped.then(|| format!("slot {slot:?} dropped")))
}

/// Ends our own walsender, if one is left, and nobody else's.
async fn drop_slot(client: &Client, name: &str, ours: &str) -> Result<bool> {
    let find = "SELECT s.active_pid, a.application_name = $2 \
                FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid \
                WHERE s.slot_name = $1 AND s.database = current_database()";
    for _ in 0..100 {
        let rows = query(client, find, &[&name, &ours]).await?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        match row.get::<_, Option<i32>>(0) {
            None => {
                query(client, "SELECT pg_drop_replication_slot($1)", &[&name]).await?;
                return Ok(true);
            }
            Some(pid) if row.get::<_, Option<bool>>(1) != Some(true) => {
                return Err(Error::stop(
                    format!("slot {name:?} is read by another program (process {pid} of the server)"),
                    format!("stop it, or SELECT pg_terminate_backend({pid})"),
                ));
            }
            Some(pid) => {
                query(client, "SELECT pg_terminate_backend($1)", &[&pid]).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    Err(Error::retry(format!("slot {name:?} is still read")))
}

/// Our rows; the table when no other agent has one; the schema when nothing else is in it.
async fn remove_marker(client: &Client, config: &Config, system: SystemId) -> Result<Vec<String>> {
    let marker = &config.system(system).marker;
    let table = quoted_table(marker);
    let mut done = Vec::new();
    let find = "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                WHERE n.nspname = $1 AND c.relname = $2";
    if exists(client, find, &[&marker.schema, &marker.name]).await? {
        query(client, &format!("DELETE FROM {table} WHERE agent = $1"), &[&config.agent.id]).await?;
        if exists(client, &format!("SELECT 1 FROM {table} LIMIT 1"), &[]).await? {
            done.push(format!("rows of agent {:?} in {marker}; other agents still use the table", config.agent.id));
            return Ok(done);
        }
        execute(client, &format!("DROP TABLE {table}")).await?;
        done.push(format!("table {marker}"));
    }
    let empty = "SELECT 1 FROM pg_namespace n WHERE n.nspname = $1 AND pg_has_role(n.nspowner, 'USAGE') \
                 AND n.nspname <> 'public' AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid) \
                 AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid) \
                 AND NOT EXISTS (SELECT FROM pg_type t WHERE t.typnamespace = n.oid)";
    if exists(client, empty, &[&marker.schema]).await? {
        execute(client, &format!("DROP SCHEMA {}", quoted(&marker.schema))).await?;
        done.push(format!("schema {:?}", marker.schema));
    }
    Ok(done)
}

async fn execute(client: &Client, sql: &str) -> Result<()> {
    client.batch_execute(sql).await.map_err(|e| error(&e).context(sql))
}

async fn exists(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<bool> {
    Ok(!query(client, sql, parameters).await?.is_empty())
}

async fn query(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<tokio_postgres::Row>> {
    client.query(sql, parameters).await.map_err(|e| error(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ReplicaIdentity;
    use crate::check::needs::TableNeed;
    use crate::check::postgres::{Partition, Publication, TableFacts};

    fn name(table: &str) -> TableName {
        TableName { schema: "public".into(), name: table.into() }
    }

    fn needs() -> Needs {
        let need = |table: &str| TableNeed {
            name: name(table),
            entity: table.into(),
            applied: true,
            key: vec!["id".into()],
            full_images: true,
        };
        let marker = TableName { schema: "anechoic".into(), name: "marker".into() };
        let tables = vec![need("contacts"), need("Order \"Lines\"")];
        Needs { tables, marker: Some(marker), captured: true, unsafe_binlog: false }
    }

    fn table() -> TableFacts {
        TableFacts {
            we_own: true,
            primary_key: vec!["id".into()],
            identity: Some(ReplicaIdentity::Default),
            ..TableFacts::default()
        }
    }

    fn facts() -> Facts {
        Facts {
            role: "hq agent".into(),
            may_create_in_database: true,
            tables: vec![Some(table()), Some(table())],
            ..Facts::default()
        }
    }

    fn shown(steps: &[Step]) -> String {
        let line = |step: &Step| {
            let (who, sql) = if step.allowed { ("agent", &step.sql) } else { ("administrator", &step.admin) };
            format!("{}\n  {who}: {}", step.missing, sql.join(";\n  "))
        };
        steps.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Each partition has an identity of its own, and the log goes by that.
    #[test]
    fn partitions_are_made_as_strong_as_their_table() {
        let leaf = |leaf: &str, identity| Partition { name: name(leaf), identity, held: vec!["id".into()] };
        let partitions = vec![leaf("p1", ReplicaIdentity::Default), leaf("p2", ReplicaIdentity::Full)];
        let full = TableFacts { identity: Some(ReplicaIdentity::Full), partitions, ..table() };
        let needs = Needs { tables: vec![needs().tables[0].clone()], marker: None, ..needs() };
        let facts = Facts { tables: vec![Some(full)], ..facts() };

        let steps = steps(&facts, &needs, "anechoic_hq");

        assert_eq!(steps[0].sql, ["ALTER TABLE \"public\".\"p1\" REPLICA IDENTITY FULL"]);
    }

    #[test]
    fn a_role_that_owns_the_tables_does_everything() {
        insta::assert_snapshot!(shown(&steps(&facts(), &needs(), "anechoic_hq")), @r#"
schema "anechoic" does not exist
  agent: CREATE SCHEMA "anechoic"
the marker table anechoic.marker does not exist
  agent: CREATE TABLE IF NOT EXISTS "anechoic"."marker" (agent text NOT NULL, lane integer NOT NULL, journal text NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL, part bigint NOT NULL, origin text NOT NULL, txid text NOT NULL, applied_at timestamptz(6) NOT NULL, format integer NOT NULL, PRIMARY KEY (agent, lane)) WITH (fillfactor = 20)
public.contacts: the log does not hold whole old rows (REPLICA IDENTITY FULL)
  agent: ALTER TABLE "public"."contacts" REPLICA IDENTITY FULL
public.Order "Lines": the log does not hold whole old rows (REPLICA IDENTITY FULL)
  agent: ALTER TABLE "public"."Order ""Lines""" REPLICA IDENTITY FULL
the publication "anechoic_hq" does not exist
  agent: CREATE PUBLICATION "anechoic_hq" FOR TABLE "anechoic"."marker", "public"."Order ""Lines""", "public"."contacts" WITH (publish_via_partition_root = true)
"#);
    }

    #[test]
    fn what_a_plain_role_may_not_do_is_left_to_an_administrator() {
        let mut facts = facts();
        facts.may_create_in_database = false;
        facts.tables[0] = Some(TableFacts { we_own: false, ..table() });

        insta::assert_snapshot!(shown(&steps(&facts, &needs(), "anechoic_hq")), @r#"
schema "anechoic" does not exist
  administrator: CREATE SCHEMA "anechoic" AUTHORIZATION "hq agent"
the marker table anechoic.marker does not exist
  administrator: CREATE TABLE IF NOT EXISTS "anechoic"."marker" (agent text NOT NULL, lane integer NOT NULL, journal text NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL, part bigint NOT NULL, origin text NOT NULL, txid text NOT NULL, applied_at timestamptz(6) NOT NULL, format integer NOT NULL, PRIMARY KEY (agent, lane)) WITH (fillfactor = 20);
  ALTER TABLE "anechoic"."marker" OWNER TO "hq agent"
public.contacts: the log does not hold whole old rows (REPLICA IDENTITY FULL)
  administrator: ALTER TABLE "public"."contacts" REPLICA IDENTITY FULL
public.Order "Lines": the log does not hold whole old rows (REPLICA IDENTITY FULL)
  agent: ALTER TABLE "public"."Order ""Lines""" REPLICA IDENTITY FULL
the publication "anechoic_hq" does not exist
  administrator: CREATE PUBLICATION "anechoic_hq" FOR TABLE "anechoic"."marker", "public"."Order ""Lines""", "public"."contacts" WITH (publish_via_partition_root = true)
"#);
    }

    #[test]
    fn nothing_is_left_to_do_the_second_time() {
        let mut facts = facts();
        let full = TableFacts { identity: Some(ReplicaIdentity::Full), ..table() };
        facts.tables = vec![Some(full.clone()), Some(full.clone())];
        facts.marker = Some(full);
        let needs = needs();
        let tables: BTreeSet<_> = needs.names().into_iter().chain(needs.marker.clone()).collect();
        facts.publication = Some(Publication { we_own: true, all_actions: true, tables, ..Publication::default() });

        assert_eq!(steps(&facts, &needs, "anechoic_hq"), []);
    }

    #[test]
    fn a_table_that_was_bound_later_joins_the_publication() {
        let mut facts = facts();
        let full = TableFacts { identity: Some(ReplicaIdentity::Full), ..table() };
        facts.tables = vec![Some(full.clone()), Some(full.clone())];
        facts.marker = Some(full);
        let tables = [name("contacts"), name("old")].into();
        facts.publication = Some(Publication { we_own: true, all_actions: true, tables, ..Publication::default() });

        insta::assert_snapshot!(shown(&steps(&facts, &needs(), "anechoic_hq")), @r#"
the publication "anechoic_hq" does not publish anechoic.marker, public.Order "Lines"
  agent: ALTER PUBLICATION "anechoic_hq" SET TABLE "anechoic"."marker", "public"."Order ""Lines""", "public"."contacts"
"#);
    }
}
