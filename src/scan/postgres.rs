//! Pages of PostgreSQL tables, each in a snapshot of its own.

use std::collections::HashMap;

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::{Collector, Page, PageSize, Plan};
use crate::apply::postgres::statement;
use crate::apply::postgres::value::{self, Array, Wire};
use crate::apply::postgres::{Batch, Raw};
use crate::apply::sql::{Shape, quoted_table};
use crate::config::ConnectConfig;
use crate::connect::postgres::{connect, error};
use crate::error::{Error, Result};
use crate::position::Position;
use crate::schema::EntityId;
use crate::value::{Datum, Row};

/// Values as the capture yields them, and nothing that a person set for the role.
const SESSION: &str = "SET default_transaction_read_only = off; SET statement_timeout = 0; \
    SET plan_cache_mode = force_custom_plan; SET enable_seqscan = on";
/// Where the log will end that has everything committed by now; not yet on disk, perhaps.
const LOG_END: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
    ELSE pg_catalog.pg_current_wal_insert_lsn() END)::text";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    First,
    Next,
    Keys,
}

pub struct PgScanner {
    connect: ConnectConfig,
    application: String,
    client: Client,
    prepared: HashMap<(EntityId, Kind), Statement>,
    running: Vec<u32>,
    begun: bool,
}

impl PgScanner {
    pub async fn connect(config: &ConnectConfig, agent: &str) -> Result<Self> {
        let application = format!("anechoic/{agent} scan");
        let client = session(config, &application).await?;
        let connect = config.clone();
        Ok(PgScanner { connect, application, client, prepared: HashMap::new(), running: Vec::new(), begun: false })
    }

    /// Whatever is still on its way is not waited for.
    async fn hang_up(&mut self) -> Result<()> {
        self.client = session(&self.connect, &self.application).await?;
        self.prepared.clear();
        self.begun = false;
        Ok(())
    }

    pub async fn begin(&mut self) -> Result<()> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        const SNAPSHOT: &str = "SELECT pg_catalog.pg_current_snapshot()::text";
        self.client.batch_execute(BEGIN).await.map_err(|e| error(&e))?;
        self.begun = true;
        let row = self.client.query_one(SNAPSHOT, &[]).await.map_err(|e| error(&e))?;
        self.running = running(row.get(0));
        Ok(())
    }

    async fn statement(&mut self, plan: &Plan, kind: Kind) -> Result<Statement> {
        if let Some(statement) = self.prepared.get(&(plan.entity, kind)) {
            return Ok(statement.clone());
        }
        let text = match kind {
            Kind::First => super::text::postgres_page(&plan.binding, false)?,
            Kind::Next => super::text::postgres_page(&plan.binding, true)?,
            Kind::Keys => statement::read(&plan.binding, &Shape::key(&plan.binding), false)?,
        };
        let statement = self.client.prepare(&text).await.map_err(|e| self.failed(&e, plan))?;
        self.prepared.insert((plan.entity, kind), statement.clone());
        Ok(statement)
    }

    fn failed(&self, e: &tokio_postgres::Error, plan: &Plan) -> Error {
        error(e).context(format!("reading {}", plan.binding.table.name))
    }

    pub async fn page(&mut self, plan: &Plan, after: Option<&[u8]>, size: PageSize) -> Result<Page> {
        let statement = self.statement(plan, if after.is_some() { Kind::Next } else { Kind::First }).await?;
        let mut key = Vec::new();
        if let Some(after) = after {
            for (bound, datum) in plan.binding.columns.iter().zip(Row(after).iter()) {
                let (mut array, mut scratch) = (Array::new(Wire::of(&bound.column)?), Vec::new());
                array.push(&bound.column, bound.to_column(datum, &mut scratch)?)?;
                key.push(array);
            }
        }
        let limit = size.rows() as i64;
        let mut parameters: Vec<&(dyn ToSql + Sync)> = key.iter().map(|array| array as _).collect();
        parameters.push(&limit);
        let mut collector = Collector::new(plan);
        let found = self.client.query_raw(&statement, parameters).await.map_err(|e| self.failed(&e, plan))?;
        pin_mut!(found);
        while let Some(row) = found.next().await {
            let row = row.map_err(|e| self.failed(&e, plan))?;
            collector.add(|at| datum(plan, &row, at, 0))?;
            if collector.is_full(size) {
                self.hang_up().await?;
                return Ok(Page { running: self.running.clone(), end: false, ..collector.done(size.rows()) });
            }
        }
        Ok(Page { running: self.running.clone(), ..collector.done(size.rows()) })
    }

    pub async fn by_keys(&mut self, plan: &Plan, keys: &[Row<'_>]) -> Result<Page> {
        let statement = self.statement(plan, Kind::Keys).await?;
        let shape = Shape::key(&plan.binding);
        let mut collector = Collector::new(plan);
        for keys in keys.chunks(1000) {
            let mut batch = Batch::new(&plan.binding, &shape)?;
            let mut datums = Vec::new();
            for key in keys {
                batch.push(*key, &mut datums)?;
            }
            let parameters: Vec<&(dyn ToSql + Sync)> = batch.arrays.iter().map(|array| array as _).collect();
            let found = self.client.query(&statement, &parameters).await.map_err(|e| self.failed(&e, plan))?;
            for row in &found {
                collector.add(|at| datum(plan, row, at, 1))?;
            }
        }
        Ok(Page { running: self.running.clone(), ..collector.done(0) })
    }

    pub async fn finish(&mut self) -> Result<Position> {
        if std::mem::take(&mut self.begun) {
            self.client.batch_execute("COMMIT").await.map_err(|e| error(&e))?;
        }
        let row = self.client.query_one(LOG_END, &[]).await.map_err(|e| error(&e))?;
        let lsn = row.get::<_, &str>(0).parse().map_err(Error::retry)?;
        Ok(Position::Postgres { lsn })
    }

    pub async fn nudge(&mut self) -> Result<()> {
        crate::capture::postgres::log_end(&self.client).await.map(drop)
    }

    pub async fn exists(&mut self, text: &str) -> Result<bool> {
        Ok(self.client.query_one(text, &[]).await.map_err(|e| error(&e))?.get(0))
    }

    pub async fn estimate(&mut self, plan: &Plan) -> Result<Option<u64>> {
        const ROWS: &str = "SELECT reltuples::bigint FROM pg_catalog.pg_class WHERE oid = $1::text::regclass";
        let table = quoted_table(&plan.binding.table.name);
        let row = self.client.query_opt(ROWS, &[&table]).await.map_err(|e| error(&e))?;
        Ok(row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()))
    }
}

async fn session(config: &ConnectConfig, application: &str) -> Result<Client> {
    let client = connect(config, application).await?;
    client.batch_execute(SESSION).await.map_err(|e| error(&e))?;
    Ok(client)
}

fn datum<'r>(plan: &Plan, row: &'r tokio_postgres::Row, at: usize, skip: usize) -> Result<Datum<'r>> {
    let raw: Option<Raw<'_>> = row.get(at + skip);
    value::decode(&plan.binding.columns[at].column, raw.map(|raw| raw.0))
}

/// `xmin:xmax:xip,xip`: what the snapshot does not see of what has begun. Transaction ids
/// without their epoch, as the log has them.
fn running(snapshot: &str) -> Vec<u32> {
    let ids = snapshot.rsplit(':').next().unwrap_or_default().split(',');
    ids.filter_map(|id| id.parse::<u64>().ok()).map(|id| id as u32).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_snapshot_names_what_it_does_not_see() {
        assert_eq!(super::running("4294967300:4294967310:4294967300,4294967303"), [4, 7]);
        assert!(super::running("10:10:").is_empty());
    }
}
