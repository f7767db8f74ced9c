//! Pages of MySQL and MariaDB tables.
//!
//! A transaction is in the binlog, and sent to us, before readers see it. So a page is read only
//! when the server says that everything captured is visible: MySQL adds a GTID to its executed
//! set behind the commit, MariaDB tells the log position of a consistent snapshot. MySQL without
//! GTIDs tells nothing; there rows are read under a shared lock, which waits for their writers.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use super::{Collector, Page, PageSize, Plan};
use crate::apply::mysql::statement;
use crate::apply::mysql::value::decode;
use crate::apply::sql::Shape;
use crate::capture::mysql::log_end;
use crate::config::ConnectConfig;
use crate::connect::mysql::{Flavour, connect, failed, server};
use crate::error::Result;
use crate::position::{BinlogPosition, Position};
use crate::value::{Datum, Row};

/// Keys per look-up, as comparisons with constants.
const KEYS: usize = 200;

pub struct MyScanner {
    connect: ConnectConfig,
    conn: Conn,
    flavour: Flavour,
    locking: bool,
    begun: bool,
}

impl MyScanner {
    pub async fn connect(config: &ConnectConfig) -> Result<Self> {
        let mut conn = session(config).await?;
        let (flavour, ..) = server(&mut conn).await?;
        Ok(MyScanner { connect: config.clone(), conn, flavour, locking: false, begun: false })
    }

    /// Whatever is still on its way is not waited for.
    async fn hang_up(&mut self) -> Result<()> {
        self.conn = session(&self.connect).await?;
        self.begun = false;
        Ok(())
    }

    pub async fn begin(&mut self, captured: &Position) -> Result<bool> {
        match (self.flavour, captured) {
            (Flavour::Mariadb, captured) => self.begin_at_snapshot(captured).await,
            (Flavour::Mysql, Position::Mysql { gtids, .. }) if !gtids.is_empty() => {
                let query = "SELECT GTID_SUBSET(?, @@GLOBAL.gtid_executed)";
                let seen: Option<bool> = self
                    .conn
                    .exec_first(query, (gtids.to_string(),))
                    .await
                    .map_err(|e| failed(e, "reading the executed GTIDs"))?;
                Ok(seen == Some(true))
            }
            (Flavour::Mysql, _) => {
                self.locking = true;
                Ok(true)
            }
        }
    }

    async fn begin_at_snapshot(&mut self, captured: &Position) -> Result<bool> {
        let asked = |e| failed(e, "beginning a consistent snapshot");
        self.conn.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT").await.map_err(asked)?;
        self.begun = true;
        let found: Vec<(String, String)> =
            self.conn.query("SHOW STATUS LIKE 'binlog_snapshot_%'").await.map_err(asked)?;
        let of = |name: &str| found.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
        let (file, offset) = (of("binlog_snapshot_file"), of("binlog_snapshot_position"));
        let snapshot = BinlogPosition {
            file: file.unwrap_or_default(),
            offset: offset.and_then(|offset| offset.parse().ok()).unwrap_or(0),
            begun: 0,
        };
        let Position::Mariadb { binlog, .. } = captured else { return Ok(true) };
        if snapshot.reached(binlog) {
            return Ok(true);
        }
        self.conn.query_drop("COMMIT").await.map_err(asked)?;
        self.begun = false;
        Ok(false)
    }

    pub async fn page(&mut self, plan: &Plan, after: Option<&[u8]>, size: PageSize) -> Result<Page> {
        let (mut texts, rows) = (vec![Vec::new(); plan.binding.key_len], size.rows());
        let text = match after {
            None => super::text::mysql_page(&plan.binding, None, rows, self.locking)?,
            Some(after) => {
                let key = key(plan, Row(after), &mut texts)?;
                super::text::mysql_page(&plan.binding, Some(&key), rows, self.locking)?
            }
        };
        let mut collector = Collector::new(plan);
        let whole = self.read(plan, text, 0, &mut collector, Some(size)).await?;
        let page = collector.done(rows);
        Ok(Page { end: page.end && whole, ..page })
    }

    pub async fn by_keys(&mut self, plan: &Plan, keys: &[Row<'_>]) -> Result<Page> {
        let mut collector = Collector::new(plan);
        let shape = Shape::key(&plan.binding);
        for keys in keys.chunks(KEYS) {
            let mut texts: Vec<Vec<Vec<u8>>> = vec![vec![Vec::new(); shape.key]; keys.len()];
            let datums: Vec<Vec<Datum<'_>>> =
                keys.iter().zip(&mut texts).map(|(row, texts)| key(plan, *row, texts)).collect::<Result<_>>()?;
            let text = statement::read(&plan.binding, &shape, &datums, self.locking)?;
            self.read(plan, text, 1, &mut collector, None).await?;
        }
        Ok(collector.done(0))
    }

    /// Prepared, because only the binary protocol returns numbers digit for digit. `false`: not
    /// all of it, there is more than the page takes.
    async fn read(
        &mut self,
        plan: &Plan,
        text: Vec<u8>,
        skip: usize,
        collector: &mut Collector<'_>,
        size: Option<PageSize>,
    ) -> Result<bool> {
        let doing = format!("reading {}", plan.binding.table.name);
        let query = self.conn.prep(text).await.map_err(|e| failed(e, &doing))?;
        let mut found = self.conn.exec_iter(&query, ()).await.map_err(|e| failed(e, &doing))?;
        let mut outcome = Ok(());
        while let Some(row) = found.next().await.map_err(|e| failed(e, &doing))? {
            if outcome.is_ok() {
                let raw: Vec<mysql_async::Value> = row.unwrap();
                outcome = collector.add(|at| decode(&plan.binding.columns[at].column, &raw[at + skip]));
            }
            if size.is_some_and(|size| collector.is_full(size)) {
                drop(found);
                self.hang_up().await?;
                return outcome.map(|()| false);
            }
        }
        drop(found);
        self.conn.close(query).await.map_err(|e| failed(e, &doing))?;
        outcome.map(|()| true)
    }

    pub async fn finish(&mut self) -> Result<Position> {
        if std::mem::take(&mut self.begun) {
            self.conn.query_drop("COMMIT").await.map_err(|e| failed(e, "ending the snapshot"))?;
        }
        log_end(&mut self.conn).await
    }

    pub async fn exists(&mut self, text: &str) -> Result<bool> {
        let found: Option<bool> = self.conn.query_first(text).await.map_err(|e| failed(e, "looking for rows"))?;
        Ok(found == Some(true))
    }

    pub async fn estimate(&mut self, plan: &Plan) -> Result<Option<u64>> {
        let name = &plan.binding.table.name;
        let query = "SELECT TABLE_ROWS FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?";
        let found: Option<Option<u64>> = self
            .conn
            .exec_first(query, (name.schema.as_str(), name.name.as_str()))
            .await
            .map_err(|e| failed(e, "reading the catalog"))?;
        Ok(found.flatten())
    }
}

async fn session(config: &ConnectConfig) -> Result<Conn> {
    let mut conn = connect(config).await?;
    conn.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        .await
        .map_err(|e| failed(e, "preparing the session"))?;
    Ok(conn)
}

/// The key as the columns take it.
fn key<'a>(plan: &'a Plan, row: Row<'a>, texts: &'a mut [Vec<u8>]) -> Result<Vec<Datum<'a>>> {
    let columns = plan.binding.columns[..plan.binding.key_len].iter().zip(row.iter()).zip(texts);
    columns.map(|((bound, datum), scratch)| bound.to_column(datum, scratch)).collect()
}
