//! A look at one system's tables: as they are, and where its log ended before it was taken.

use mysql_async::Conn;
use tokio_postgres::Client;

use crate::capture;
use crate::catalog::{self, Table, TableName};
use crate::check::needs::Needs;
use crate::config::{Config, Engine};
use crate::connect;
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::normalize::follow::{Decided, Published, Seen};
use crate::normalize::resolve::Catalog;
use crate::schema::SystemId;

/// What a look shows.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    pub catalog: Catalog,
    pub seen: Seen,
    /// PostgreSQL: tables whose rows do not come in our stream.
    pub unpublished: Vec<TableName>,
    /// PostgreSQL: partitions whose old rows the log will hold only a part of, each with its table.
    pub weak: Vec<(TableName, TableName)>,
}

pub async fn look(config: &Config, system: SystemId) -> Result<Sight> {
    sight(config, system, true).await
}

/// Without the catalog, for who has asked for the tables anyway.
pub async fn glance(config: &Config, system: SystemId) -> Result<Sight> {
    sight(config, system, false).await
}

async fn sight(config: &Config, system: SystemId, catalog: bool) -> Result<Sight> {
    let names = Needs::of(config, system).names();
    let wanted = if catalog { &names[..] } else { &[] };
    let connect = &config.system(system).connect;
    let (mut sight, tables) = match config.system(system).engine {
        Engine::Postgres => {
            let client = connect::postgres::connect(connect, &format!("anechoic/{} look", config.agent.id)).await?;
            (postgres(&client, config, &names).await?, catalog::postgres::read(&client, wanted).await?)
        }
        Engine::Mysql => {
            let mut conn = connect::mysql::connect(connect).await?;
            let seen = mysql(&mut conn, wanted).await;
            let _ = conn.disconnect().await;
            seen?
        }
    };
    sight.catalog = wanted.iter().cloned().zip(tables).collect();
    Ok(sight)
}

async fn mysql(conn: &mut Conn, names: &[TableName]) -> Result<(Sight, Vec<Option<Table>>)> {
    let at = capture::mysql::log_end(conn).await?;
    let tables = catalog::mysql::read(conn, names).await?;
    Ok((Sight { seen: Seen { at: Some(at), ..Seen::default() }, ..Sight::default() }, tables))
}

/// All but the tables themselves. Nothing is written: not even a message into the log.
async fn postgres(client: &Client, config: &Config, names: &[TableName]) -> Result<Sight> {
    const IDENTITIES: &str = "
        WITH published AS MATERIALIZED (
            SELECT schemaname::text AS schema, tablename::text AS name FROM pg_catalog.pg_publication_tables
            WHERE pubname = $3::text)
        SELECT w.schema, w.name, c.oid, r.oid, p.oid IS NOT NULL AND t.name IS NULL
        FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS w (schema, name)
        JOIN pg_catalog.pg_namespace n ON n.nspname::text = w.schema
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname::text = w.name
        LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $3::text
        LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
        LEFT JOIN published t ON t.schema = w.schema AND t.name = w.name";
    let at = capture::postgres::current_position(client).await?;
    let (schemas, tables): (Vec<&str>, Vec<&str>) = names.iter().map(|n| (n.schema.as_str(), n.name.as_str())).unzip();
    let publication = capture::postgres::publication_name(&config.agent.id);
    let rows = client.query(IDENTITIES, &[&schemas, &tables, &publication]).await;
    let rows = rows.map_err(|e| connect::postgres::error(&e).context("cannot look at the tables"))?;
    let mut sight = Sight { seen: Seen { at: Some(at), ..Seen::default() }, ..Sight::default() };
    for row in rows {
        let name = TableName { schema: row.get(0), name: row.get(1) };
        let oid = row.get(2);
        sight.seen.oids.insert(name.clone(), oid);
        if let Some(member) = row.get(3) {
            sight.seen.published.insert(name.clone(), Published { table: oid, member });
        }
        if row.get(4) {
            sight.unpublished.push(name);
        }
    }
    partitions(client, &schemas, &tables, &mut sight).await?;
    Ok(sight)
}

async fn partitions(client: &Client, schemas: &[&str], tables: &[&str], sight: &mut Sight) -> Result<()> {
    const LEAVES: &str = "
        SELECT w.schema, w.name, l.oid, ln.nspname::text, l.relname::text
        FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS w (schema, name)
        JOIN pg_catalog.pg_namespace n ON n.nspname::text = w.schema
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname::text = w.name AND c.relkind = 'p'
        CROSS JOIN LATERAL pg_catalog.pg_partition_tree(c.oid) p
        JOIN pg_catalog.pg_class l ON l.oid = p.relid JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
        WHERE p.isleaf";
    let failed = |e: tokio_postgres::Error| connect::postgres::error(&e).context("cannot look at the partitions");
    let name = |row: &tokio_postgres::Row, at: usize| TableName { schema: row.get(at), name: row.get(at + 1) };
    for row in client.query(LEAVES, &[&schemas, &tables]).await.map_err(failed)? {
        let leaves = sight.seen.partitions.entry(name(&row, 0)).or_default();
        leaves.insert(row.get(2), name(&row, 3));
    }
    let wanted = "ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS w (schema, name)";
    let weak = capture::postgres::weaker_partitions(wanted);
    let rows = client.query(&weak, &[&schemas, &tables]).await.map_err(failed)?;
    sight.weak = rows.iter().map(|row| (name(row, 0), name(row, 2))).collect();
    Ok(())
}

/// What a look shows of partitions and no log tells: those that left take their rows along, and
/// those of a weaker identity will stop the flow at the first old row that is not whole.
pub fn of_partitions(config: &Config, system: SystemId, sight: &Sight, decided: &Decided) -> Vec<Finding> {
    let name = &config.system(system).name;
    let parted = decided.parted(name, &sight.seen).into_iter().map(|(table, leaf)| {
        let what = format!(
            "partition {leaf} was detached or dropped: its rows are no longer in {table}, which no log tells, and \
             still in the other systems"
        );
        Finding::warning(name, what).table(&table).mend("anechoic verify shows them; delete them there, too")
    });
    let captured = |table: &TableName| {
        let mut bindings = config.entities.iter().flat_map(|entity| &entity.bindings);
        bindings.any(|binding| binding.system == system && binding.table == *table && binding.role.captures())
    };
    let weak = sight.weak.iter().filter(|(table, _)| captured(table)).map(|(table, leaf)| {
        let what =
            format!("the replica identity of partition {leaf} is too weak: its first UPDATE or DELETE stops the flow");
        let sql = format!("ALTER TABLE {} REPLICA IDENTITY FULL;", crate::apply::sql::quoted_table(leaf));
        Finding::warning(name, what).table(table).by_owner(sql)
    });
    parted.chain(weak).collect()
}

/// Tables of PostgreSQL whose rows no longer reach us. Where another table took the name, what
/// was written to it since is in nobody's stream, and adding it in silence would hide that.
pub fn out_of_stream(config: &Config, system: SystemId, sight: &Sight, decided: &Decided) -> Vec<Finding> {
    let name = &config.system(system).name;
    let publication = capture::postgres::publication_name(&config.agent.id);
    let finding = |table: &TableName| {
        let (now, before) = (sight.seen.oids.get(table), decided.oid(name, table));
        let replaced = before.is_some_and(|before| Some(&before) != now);
        let sql = crate::apply::sql::quoted_table(table);
        let what = match replaced {
            true => format!("table {table} was replaced by another one, which publication {publication} lacks"),
            false => format!("table {table} is no longer in publication {publication}"),
        };
        Finding::error(name, what).table(table).mend(format!(
            "ALTER TABLE {sql} REPLICA IDENTITY FULL;\nALTER PUBLICATION {} ADD TABLE {sql};\nwhat was written to it \
             meanwhile is in no stream: UPDATE {sql} SET … = … sends each row once more, rows that were deleted are to \
             be deleted in the other systems; a table that is to replace another goes into the publication before it \
             does",
            crate::apply::sql::quoted(&publication),
        ))
    };
    sight.unpublished.iter().map(finding).collect()
}

/// Tables whose rows were not in the stream for a while, though they are the same tables. What was
/// written to them meanwhile no log tells, so that of the system is as good as lost.
pub fn gap(config: &Config, system: SystemId, seen: &Seen, decided: &Decided) -> Option<Error> {
    let name = &config.system(system).name;
    let tables = decided.unpublished(name, seen);
    let publication = capture::postgres::publication_name(&config.agent.id);
    let list: Vec<String> = tables.iter().map(ToString::to_string).collect();
    let what = format!(
        "{} was taken out of publication {publication}: what was written to it until it is back is in no stream",
        list.join(", ")
    );
    let error = || Error::lost(what, "it is put back, and what was written meanwhile is found, by").of_system(name);
    (!tables.is_empty()).then(error)
}
