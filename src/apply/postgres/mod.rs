//! Writing to PostgreSQL: set-based statements, held back and sent with BEGIN, marker and
//! COMMIT in one flight.
//!
//! ```text
//! begin ── write ── write ── commit          a lone transaction: one flight, one round trip
//!   └─ held ─┴─ held ─┴──────▶ ▶▶▶▶▶
//! begin ── write ─ … ─ write ─ … ─ commit    a large one: a flight per MiB, at most four of
//!   └───── held ─▶▶▶ ── held ─▶▶▶ ─▶▶▶         them unanswered
//! ```
//!
//! Rows that are most likely not there yet are tried through COPY (`copy`).
//!
//! Guarantees of [`Target`]; the marker is the first statement of each transaction and fails
//! it when another writer has been here (`marker`). User triggers and foreign keys stay on;
//! triggers can tell us by `current_setting('anechoic.applying', true) = 'on'`.

mod copy;
mod error;
mod flight;
mod marker;
pub mod origin;
pub mod statement;
pub(crate) mod value;

pub use error::classify;
pub use marker::{lock_key, marker_ddl, touch_marker};

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use tracing::debug;

use self::copy::Unsent;
use self::flight::{Failed, Flight, MarkerParameters, Outcome, Step};
use self::origin::Origin;
use self::statement::{ARBITER, Form};
use self::value::Array;
use crate::apply::guess::Guess;
use crate::apply::patience::{AtWork, answered};
use crate::apply::sql::{Shape, may_propose};
use crate::apply::{TableRows, Target, TargetSpec, Write, fenced, highest, not_connected, own};
use crate::config::ConnectConfig;
use crate::error::{Error, Recovery, Result};
use crate::failpoint;
use crate::marker::{Marker, Unshown};
use crate::normalize::binding::Binding;
use crate::schema::EntityId;
use crate::value::Row;

/// The knee of throughput; more makes only the plan's constants larger.
const ROWS_PER_STATEMENT: usize = 1000;
const BYTES_PER_STATEMENT: usize = 1 << 20;
/// Held back at most, before a flight starts without its commit.
const BYTES_HELD: usize = 1 << 20;
const FLIGHTS_UNANSWERED: usize = 4;
/// How long another agent's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// Rows are found by index whatever the statistics say: a generic plan made while a table was
/// small would scan it for ever after. The server itself watches for our end (a lock that a
/// dead agent holds must not outlive it by two hours), and lets nobody block us unnoticed.
const SESSION: &str = "SET anechoic.applying = 'on'; SET synchronous_commit = on; \
    SET plan_cache_mode = force_custom_plan; SET default_transaction_isolation = 'read committed'; \
    SET default_transaction_read_only = off; SET default_transaction_deferrable = off; \
    SET statement_timeout = 0; SET lock_timeout = '30s'; SET idle_in_transaction_session_timeout = 0; \
    SET idle_session_timeout = 0; \
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'";

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// Not every platform of a server can look whether its client is still there.
const WATCH_CLIENT: &str = "SET client_connection_check_interval = '5s'";

pub struct PgTarget {
    connect: ConnectConfig,
    spec: TargetSpec,
    lock_patience: Duration,
    synchronous: bool,
    /// Where the log's reader need not be sent what is written.
    unshown: Option<Unshown>,
    session: Option<Session>,
}

impl PgTarget {
    pub fn new(connect: ConnectConfig, spec: TargetSpec) -> Self {
        let lock_patience = failpoint::lock_patience(LOCK_PATIENCE);
        PgTarget { connect, spec, lock_patience, synchronous: true, unshown: None, session: None }
    }

    /// Whether commits wait for the server's disk. What a crash takes back is above every marker that the log
    /// has shown, because that is read from the disk; so the journal still has it, and the marker says so.
    #[must_use]
    pub fn synchronous(mut self, synchronous: bool) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// The reader of the system's log need not be sent what is written.
    #[must_use]
    pub fn unshown(mut self, unshown: Option<Unshown>) -> Self {
        self.unshown = unshown;
        self
    }

    /// Waits this long for the lock of another agent of the same id (60 s by default).
    #[must_use]
    pub fn lock_patience(mut self, patience: Duration) -> Self {
        self.lock_patience = patience;
        self
    }

    /// Whether no other agent has the lock; it is let go at once. An error says who has it.
    pub async fn alone(self) -> Result<()> {
        let client = crate::connect::postgres::connect(&self.connect, &format!("anechoic/{}", self.spec.agent)).await?;
        marker::lock(&client, &self.spec, self.lock_patience).await
    }

    /// Rows that came in through COPY since it was opened.
    pub fn copied_rows(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.copied_rows)
    }

    fn session(&mut self) -> Result<&mut Session> {
        self.session.as_mut().ok_or_else(not_connected)
    }

    /// A connection that is what the rest relies on.
    async fn connect(&mut self) -> Result<Client> {
        let application = format!("anechoic/{}/apply", self.spec.agent);
        let client = crate::connect::postgres::connect(&self.connect, &application).await?;
        let failed = |error| classify(error, &self.spec.marker, &self.connect.user);
        client.batch_execute(SESSION).await.map_err(failed)?;
        if !self.synchronous {
            client.batch_execute("SET synchronous_commit = off").await.map_err(failed)?;
        }
        let _ = client.batch_execute(WATCH_CLIENT).await;
        Ok(client)
    }

    /// Begins to write with the agent's rows as they are.
    async fn begin_session(&mut self, client: Client, rows: Vec<Marker>) -> Result<()> {
        let current = own(&self.spec, &rows)?;
        let failed = |error| classify(error, &self.spec.marker, &self.connect.user);
        let advance = client.prepare(&marker::advance(&self.spec.marker)).await.map_err(failed)?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(failed)?.get(0);
        let origin = match &self.unshown {
            Some(unshown) => {
                let place = (self.connect.user.as_str(), self.connect.database.as_str());
                Origin::new(&client, &self.spec, place, unshown, &highest(&self.spec, &rows)?).await
            }
            None => None,
        };
        self.session = Some(Session {
            client: Arc::new(client),
            patience: Arc::new(Patience { connect: self.connect.clone(), pid }),
            spec: self.spec.clone(),
            role: self.connect.user.clone(),
            advance,
            origin,
            rows,
            current,
            next: None,
            prepared: HashMap::new(),
            reads: HashMap::new(),
            copies: HashMap::new(),
            guesses: HashMap::new(),
            copied_rows: 0,
            arbiters: HashMap::new(),
            held: Vec::new(),
            held_bytes: 0,
            flights: VecDeque::new(),
            begun: false,
            alone: false,
            check_at_once: false,
        });
        Ok(())
    }
}

/// What is waited for as long as the server is seen to work at it. An error of another kind
/// than the work's own ends the session.
struct Patience {
    connect: ConnectConfig,
    pid: i32,
}

impl Patience {
    async fn over<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        answered(work, || at_work(&self.connect, self.pid)).await?
    }
}

/// Asked on a connection of its own: what the session with that pid is doing.
async fn at_work(connect: &ConnectConfig, pid: i32) -> Result<AtWork> {
    const STATE: &str = "SELECT state LIKE 'idle%' AND state_change < clock_timestamp() - interval '20 s' \
        FROM pg_stat_activity WHERE pid = $1";
    let client = crate::connect::postgres::connect(connect, "anechoic watch").await?;
    let row = client.query_opt(STATE, &[&pid]).await.map_err(|error| crate::connect::postgres::error(&error))?;
    Ok(match row.map(|row| row.get::<_, Option<bool>>(0)) {
        None => AtWork::Gone,
        Some(Some(true)) => AtWork::Idle,
        Some(_) => AtWork::Yes,
    })
}

/// What a prepared statement was made for.
/// The columns that are carried, and that are added.
type StatementKey = (EntityId, Write, [u128; 2], Form);

struct Prepared {
    shape: Shape,
    statements: Vec<Statement>,
}

/// How rows of one table and shape are copied.
struct Copied {
    shape: Shape,
    /// `None`: they cannot be.
    statement: Option<Statement>,
}

struct Session {
    client: Arc<Client>,
    patience: Arc<Patience>,
    spec: TargetSpec,
    role: String,
    advance: Statement,
    /// What is written under it is not sent to the log's reader.
    origin: Option<Origin>,
    /// The agent's rows, as it was opened.
    rows: Vec<Marker>,
    /// As committed; what the next compare-and-set expects.
    current: Marker,
    /// Of the transaction under way.
    next: Option<Marker>,
    prepared: HashMap<StatementKey, Arc<Prepared>>,
    reads: HashMap<EntityId, Statement>,
    copies: HashMap<(EntityId, u128), Arc<Copied>>,
    guesses: HashMap<EntityId, Guess>,
    copied_rows: u64,
    /// Whether ON CONFLICT finds an index for the entity's key.
    arbiters: HashMap<EntityId, bool>,
    held: Vec<Step>,
    held_bytes: usize,
    /// Sent, not yet answered.
    flights: VecDeque<Flight>,
    /// Something of the transaction under way was sent.
    begun: bool,
    /// Rows of the transaction under way were written alone, behind savepoints.
    alone: bool,
    /// A commit failed on deferred constraints after such a replay: until one succeeds, they
    /// are checked row by row, so that the culprit is found.
    check_at_once: bool,
}

impl Target for PgTarget {
    async fn open(&mut self) -> Result<Marker> {
        self.session = None;
        let client = self.connect().await?;
        marker::lock(&client, &self.spec, self.lock_patience).await?;
        let rows = marker::raise_epoch(&client, &self.spec, &self.connect.user).await?;
        let highest = highest(&self.spec, &rows)?;
        self.begin_session(client, rows).await?;
        Ok(highest)
    }

    fn rows(&self) -> Vec<Marker> {
        self.session.as_ref().map_or_else(Vec::new, |session| session.rows.clone())
    }

    async fn join(&mut self, rows: Vec<Marker>) -> Result<()> {
        self.session = None;
        let client = self.connect().await?;
        self.begin_session(client, rows).await
    }

    async fn begin(&mut self, next: &Marker) -> Result<()> {
        let session = self.session()?;
        debug_assert!(session.next.is_none() && session.held.is_empty(), "one transaction at a time");
        session.held.push(Step::Command(BEGIN));
        if let Some(origin) = &mut session.origin {
            origin.begin(next.seq, next.part);
            session.held.push(Step::Command(origin::OF_TRANSACTION));
        }
        session.held.push(session.move_marker(next));
        session.next = Some(Marker { epoch: session.current.epoch, ..next.clone() });
        Ok(())
    }

    async fn write(&mut self, rows: &TableRows<'_>) -> Result<()> {
        let session = self.session()?;
        let patience = session.patience();
        patience.over(session.write(rows)).await
    }

    async fn write_alone(&mut self, rows: &TableRows<'_>) -> Result<()> {
        let session = self.session()?;
        let patience = session.patience();
        patience.over(session.write_alone(rows)).await
    }

    async fn read(&mut self, binding: &Binding, keys: &[Row<'_>]) -> Result<Vec<Option<Vec<u8>>>> {
        let session = self.session()?;
        let patience = session.patience();
        patience.over(session.read(binding, keys)).await
    }

    async fn holder(&mut self, binding: &Binding, columns: &[usize], values: Row<'_>) -> Result<Option<Vec<u8>>> {
        let session = self.session()?;
        let patience = session.patience();
        patience.over(session.holder(binding, columns, values)).await
    }

    async fn flush(&mut self) -> Result<()> {
        let session = self.session()?;
        let patience = session.patience();
        patience.over(session.flush()).await
    }

    async fn commit(&mut self) -> Result<()> {
        let session = self.session()?;
        let patience = session.patience();
        patience.over(session.commit()).await
    }

    async fn rollback(&mut self) -> Result<()> {
        let session = self.session()?;
        let patience = session.patience();
        patience.over(session.rollback()).await
    }

    fn hidden(&self) -> Option<Duration> {
        self.session.as_ref()?.origin.as_ref()?.hidden()
    }

    async fn show(&mut self) -> Result<()> {
        if self.hidden().is_none() {
            return Ok(());
        }
        let session = self.session()?;
        if session.next.is_some() {
            return Ok(()); // within a transaction that is given up
        }
        let patience = session.patience();
        patience.over(session.show()).await
    }
}

impl Session {
    /// From where it is to `next`; fails where it is not there.
    fn move_marker(&self, next: &Marker) -> Step {
        let from = &self.current;
        Step::Marker {
            statement: self.advance.clone(),
            parameters: MarkerParameters {
                agent: self.spec.agent.clone(),
                lane: self.spec.lane as i32,
                numbers: [from.epoch, from.seq, from.part, next.seq, next.part].map(u64::cast_signed),
                journal: format!("{:032x}", next.journal),
                origin: next.origin.clone(),
                txid: next.txid.clone(),
            },
        }
    }

    /// Writes the marker as it is, once without the origin.
    async fn show(&mut self) -> Result<()> {
        let failed = |error| classify(error, &self.spec.marker, &self.role);
        let Some(origin) = &self.origin else { return Ok(()) };
        origin.suspend(&self.client).await.map_err(failed)?;
        self.held = vec![Step::Command(BEGIN), self.move_marker(&self.current)];
        self.commit().await?;
        let failed = |error| classify(error, &self.spec.marker, &self.role);
        let Some(origin) = &mut self.origin else { return Ok(()) };
        origin.resume(&self.client).await.map_err(failed)
    }

    fn patience(&self) -> Arc<Patience> {
        self.patience.clone()
    }

    async fn commit(&mut self) -> Result<()> {
        self.held.push(Step::Command("COMMIT"));
        let result = match self.send().await {
            Ok(()) => self.land().await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => {
                self.check_at_once = false;
                if let Some(next) = self.next.take() {
                    self.current = next;
                }
                self.over();
            }
            Err(error) if error.recovery == Recovery::Quarantine && self.alone => self.check_at_once = true,
            Err(_) => {}
        }
        result
    }

    async fn flush(&mut self) -> Result<()> {
        self.send().await?;
        self.land().await
    }

    async fn rollback(&mut self) -> Result<()> {
        self.held.clear();
        // What went wrong in flight was told before, or does not matter any more.
        let _ = self.land().await;
        let result = match self.begun {
            true => self.client.batch_execute("ROLLBACK").await,
            false => Ok(()),
        };
        self.over();
        result.map_err(|error| Error::retry("the connection failed while rolling back").because(error))
    }

    fn over(&mut self) {
        self.next = None;
        self.held.clear();
        self.held_bytes = 0;
        self.begun = false;
        self.alone = false;
    }

    fn failed(&self, (failed, error): (Failed, tokio_postgres::Error)) -> Error {
        match failed {
            Failed::Marker if error.code().is_some_and(|code| marker::is_fence(code.code())) => {
                fenced(&self.spec.marker, &self.current)
            }
            Failed::Marker | Failed::Command => {
                let said = classify(error, &self.spec.marker, &self.role);
                match failed {
                    // Only deferred constraints make COMMIT itself say this: it is no one
                    // table's error.
                    Failed::Command if said.recovery == Recovery::Quarantine => said.context("at commit"),
                    _ => said,
                }
            }
            Failed::Rows(table) => classify(error, &table, &self.role),
        }
    }

    fn answered(&self, outcome: Outcome) -> Result<()> {
        outcome.map_err(|failure| self.failed(failure))
    }

    /// Sends what is held, waiting for older flights only where too many are unanswered.
    async fn send(&mut self) -> Result<()> {
        while self.flights.len() >= FLIGHTS_UNANSWERED {
            self.land_one().await?;
        }
        let steps = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        self.begun |= !steps.is_empty();
        let flight = flight::send(self.client.clone(), steps).await;
        self.flights.push_back(flight);
        Ok(())
    }

    async fn land_one(&mut self) -> Result<()> {
        let Some(flight) = self.flights.front_mut() else { return Ok(()) };
        let outcome = flight.await;
        self.flights.pop_front();
        self.answered(outcome)
    }

    /// Waits for all answers; the first error counts.
    async fn land(&mut self) -> Result<()> {
        let mut result = Ok(());
        while !self.flights.is_empty() {
            let landed = self.land_one().await;
            if result.is_ok() {
                result = landed;
            }
        }
        result
    }

    async fn write_alone(&mut self, rows: &TableRows<'_>) -> Result<()> {
        if !self.flights.is_empty() || self.held.iter().any(|step| matches!(step, Step::Rows { .. })) {
            self.send().await?;
            self.land().await?;
        }
        self.alone = true;
        let table = rows.binding.table.clone();
        self.held.push(Step::Command("SAVEPOINT alone"));
        let held_before = self.held.len();
        if let Err(error) = self.hold(rows, true).await {
            // The mapping refused the row: nothing of it was sent.
            self.held.truncate(held_before - 1);
            return Err(error);
        }
        if self.check_at_once {
            self.held.push(Step::Command("SET CONSTRAINTS ALL IMMEDIATE"));
        }
        self.held.push(Step::Command("RELEASE SAVEPOINT alone"));
        self.send().await?;
        let Some(flight) = self.flights.front_mut() else { return Ok(()) };
        let outcome = flight.await;
        self.flights.pop_front();
        let Err((failed, error)) = outcome else { return Ok(()) };
        let said = match failed {
            Failed::Marker => return Err(self.failed((failed, error))),
            Failed::Command | Failed::Rows(_) => classify(error, &table.name, &self.role),
        };
        if said.recovery == Recovery::Quarantine {
            self.client
                .batch_execute("ROLLBACK TO SAVEPOINT alone; RELEASE SAVEPOINT alone")
                .await
                .map_err(|error| classify(error, &table.name, &self.role))?;
        }
        Err(said)
    }

    async fn write(&mut self, rows: &TableRows<'_>) -> Result<()> {
        if rows.fresh && rows.rows.len() >= copy::ROWS_MIN && self.copy(rows).await? {
            return Ok(());
        }
        self.hold(rows, false).await?;
        if self.held_bytes >= BYTES_HELD {
            self.send().await?;
        }
        Ok(())
    }

    /// Writes rows that are most likely not there. `false`: nothing of them was written, because
    /// they are there, or cannot be copied.
    async fn copy(&mut self, rows: &TableRows<'_>) -> Result<bool> {
        let (binding, entity) = (rows.binding, rows.binding.entity);
        let copied = self.copied(binding, rows.carried).await?;
        let Some(statement) = &copied.statement else { return Ok(false) };
        if !self.guesses.entry(entity).or_default().is_worth_trying() {
            return Ok(false);
        }
        let Ok(pieces) = copy::Pieces::new(binding, &copied.shape, rows.rows) else { return Ok(false) };
        self.held.push(Step::Command("SAVEPOINT copied"));
        self.send().await?;
        let sent = copy::send(&self.client, statement, pieces).await;
        let guess = self.guesses.entry(entity).or_default();
        let error = match sent {
            Ok(count) if count == rows.rows.len() as u64 => {
                guess.was_right();
                self.copied_rows += count;
                self.held.push(Step::Command("RELEASE SAVEPOINT copied"));
                return Ok(true);
            }
            Ok(_) => Error::data("fewer rows were copied than sent"),
            // It cannot be brought into form; the ordinary way tells of it.
            Err(Unsent::Row(error)) => {
                guess.was_wrong();
                self.land().await?;
                error
            }
            Err(Unsent::Server(error)) => {
                guess.was_wrong();
                // What failed before it is what counts.
                self.land().await?;
                let refused = error.as_db_error().is_some_and(|db| copy::is_refusal(db.code().code()));
                let error = classify(error, &binding.table.name, &self.role);
                if !refused {
                    return Err(error);
                }
                error
            }
        };
        debug!(table = %binding.table.name, error = %error, "rows are not copied but written one by one");
        // At once: until then nothing can be prepared.
        let undone = self.client.batch_execute("ROLLBACK TO SAVEPOINT copied").await;
        undone.map_err(|error| classify(error, &binding.table.name, &self.role))?;
        Ok(false)
    }

    async fn copied(&mut self, binding: &Binding, carried: u128) -> Result<Arc<Copied>> {
        let key = (binding.entity, carried);
        if let Some(copied) = self.copies.get(&key) {
            return Ok(copied.clone());
        }
        let shape = Shape::of(binding, carried, 0);
        let text = copy::statement(binding, &shape).filter(|_| !binding.table.triggers && binding.key_len > 0);
        let statement = match text {
            // Without an index that tells, rows would be there twice.
            Some(text) if self.arbiter(binding).await? => self.client.prepare(&text).await.ok(),
            _ => None,
        };
        let copied = Arc::new(Copied { shape, statement });
        self.copies.insert(key, copied.clone());
        Ok(copied)
    }

    /// Encodes rows into statements and holds them back.
    async fn hold(&mut self, rows: &TableRows<'_>, alone: bool) -> Result<()> {
        let prepared = self.prepared(rows, alone).await?;
        let mut batch = Batch::new(rows.binding, &prepared.shape)?;
        let mut batches = Vec::new();
        let mut datums = Vec::with_capacity(rows.binding.columns.len());
        for row in rows.rows {
            if batch.rows >= ROWS_PER_STATEMENT || batch.bytes() >= BYTES_PER_STATEMENT {
                batches.push(std::mem::replace(&mut batch, Batch::new(rows.binding, &prepared.shape)?));
            }
            batch.push(*row, &mut datums)?;
        }
        batches.push(batch);
        for batch in batches.into_iter().filter(|batch| batch.rows > 0) {
            self.held_bytes += batch.bytes();
            let parameters = Arc::new(batch.arrays);
            for statement in &prepared.statements {
                self.held.push(Step::Rows {
                    statement: statement.clone(),
                    parameters: parameters.clone(),
                    table: rows.binding.table.clone(),
                });
            }
            if self.held_bytes >= BYTES_HELD && !alone {
                self.send().await?;
            }
        }
        Ok(())
    }

    async fn prepared(&mut self, rows: &TableRows<'_>, alone: bool) -> Result<Arc<Prepared>> {
        let (binding, write) = (rows.binding, rows.write);
        let carried = if write == Write::Delete { 0 } else { rows.carried };
        // A difference that is proposed as a value may not be one of the column's type.
        let form = match write == Write::Upsert && !alone && rows.added == 0 && may_propose(binding, carried) {
            true if self.arbiter(binding).await? => Form::Propose,
            _ => Form::UpdateThenInsert,
        };
        let key = (binding.entity, write, [carried, rows.added], form);
        if let Some(prepared) = self.prepared.get(&key) {
            return Ok(prepared.clone());
        }
        let shape = if write == Write::Delete { Shape::key(binding) } else { Shape::of(binding, carried, rows.added) };
        let mut statements = Vec::new();
        for text in statement::write(binding, &shape, write, form)? {
            statements.push(self.prepare(binding, &text).await?);
        }
        let prepared = Arc::new(Prepared { shape, statements });
        self.prepared.insert(key, prepared.clone());
        Ok(prepared)
    }

    async fn prepare(&mut self, binding: &Binding, text: &str) -> Result<Statement> {
        self.client.prepare(text).await.map_err(|error| classify(error, &binding.table.name, &self.role))
    }

    async fn arbiter(&mut self, binding: &Binding) -> Result<bool> {
        if let Some(known) = self.arbiters.get(&binding.entity) {
            return Ok(*known);
        }
        let table = &binding.table.name;
        let key: Vec<&str> = binding.columns[..binding.key_len].iter().map(|c| c.column.name.as_str()).collect();
        let row = self
            .client
            .query_one(ARBITER, &[&table.schema, &table.name, &key])
            .await
            .map_err(|error| classify(error, table, &self.role))?;
        self.arbiters.insert(binding.entity, row.get(0));
        Ok(row.get(0))
    }

    async fn read(&mut self, binding: &Binding, keys: &[Row<'_>]) -> Result<Vec<Option<Vec<u8>>>> {
        self.send().await?;
        self.land().await?;
        let shape = Shape::key(binding);
        let statement = match self.reads.get(&binding.entity) {
            Some(statement) => statement.clone(),
            None => {
                let statement = self.prepare(binding, &statement::read(binding, &shape, true)?).await?;
                self.reads.insert(binding.entity, statement.clone());
                statement
            }
        };
        let mut found = vec![None; keys.len()];
        for (chunk, keys) in keys.chunks(ROWS_PER_STATEMENT).enumerate() {
            let mut batch = Batch::new(binding, &shape)?;
            let mut datums = Vec::new();
            for key in keys {
                batch.push(*key, &mut datums)?;
            }
            let parameters: Vec<&(dyn ToSql + Sync)> =
                batch.arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
            let rows = self
                .client
                .query(&statement, &parameters)
                .await
                .map_err(|error| classify(error, &binding.table.name, &self.role))?;
            for row in rows {
                let number = row.get::<_, i64>(0) as usize - 1;
                found[chunk * ROWS_PER_STATEMENT + number] = Some(canonical(binding, &row)?);
            }
        }
        Ok(found)
    }

    async fn holder(&mut self, binding: &Binding, columns: &[usize], values: Row<'_>) -> Result<Option<Vec<u8>>> {
        self.send().await?;
        self.land().await?;
        let shape = Shape::sought(columns);
        let statement = self.prepare(binding, &statement::read(binding, &shape, false)?).await?;
        let mut batch = Batch::new(binding, &shape)?;
        batch.push(values, &mut Vec::new())?;
        let parameters: Vec<&(dyn ToSql + Sync)> =
            batch.arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
        let found = self.client.query(&statement, &parameters).await;
        let found = found.map_err(|error| classify(error, &binding.table.name, &self.role))?;
        found.first().map(|row| canonical(binding, row)).transpose()
    }
}

/// Rows of one statement, column by column.
pub(crate) struct Batch<'a> {
    binding: &'a Binding,
    /// Per parameter: the bound column, and the place of its field in a canonical row.
    columns: &'a [usize],
    pub(crate) arrays: Vec<Array>,
    rows: usize,
    scratch: Vec<u8>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(binding: &'a Binding, shape: &'a Shape) -> Result<Self> {
        let wire = |place: usize| shape.wire(place, &binding.columns[shape.sent[place]].column);
        let arrays: Result<_> = (0..shape.sent.len()).map(|place| Ok(Array::new(wire(place)?))).collect();
        Ok(Batch { binding, columns: &shape.sent, arrays: arrays?, rows: 0, scratch: Vec::new() })
    }

    fn bytes(&self) -> usize {
        self.arrays.iter().map(Array::bytes).sum()
    }

    /// `datums` is reused memory.
    pub(crate) fn push<'r>(&mut self, row: Row<'r>, datums: &mut Vec<crate::value::Datum<'r>>) -> Result<()> {
        row.read_into(datums);
        for (at, array) in self.columns.iter().zip(&mut self.arrays) {
            let bound = &self.binding.columns[*at];
            let datum = datums.get(bound.field).copied().unwrap_or(crate::value::Datum::NotSent);
            self.scratch.clear();
            array.push(&bound.column, bound.to_column(datum, &mut self.scratch)?)?;
        }
        self.rows += 1;
        Ok(())
    }
}

/// A row as read → a canonical row: one datum per field up to the last one that is bound.
fn canonical(binding: &Binding, row: &tokio_postgres::Row) -> Result<Vec<u8>> {
    let fields = binding.columns.iter().map(|c| c.field + 1).max().unwrap_or(0);
    let mut by_field = vec![None; fields];
    for (at, bound) in binding.columns.iter().enumerate() {
        by_field[bound.field] = Some(at);
    }
    let mut out = Vec::new();
    for at in by_field {
        match at {
            None => crate::value::write_datum(&mut out, crate::value::Datum::NotSent),
            Some(at) => {
                let raw: Option<Raw<'_>> = row.get(at + 1);
                let bound = &binding.columns[at];
                bound.to_canonical(value::decode(&bound.column, raw.map(|raw| raw.0))?, &mut out)?;
            }
        }
    }
    Ok(out)
}

/// A value's bytes as the server sent them.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl<'a> tokio_postgres::types::FromSql<'a> for Raw<'a> {
    fn from_sql(
        _: &tokio_postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(raw))
    }

    fn accepts(_: &tokio_postgres::types::Type) -> bool {
        true
    }
}
