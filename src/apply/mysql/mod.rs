//! Writing to MySQL and MariaDB: multi-row statements as text, held back and sent with BEGIN,
//! marker and COMMIT in one packet.
//!
//! ```text
//! begin ── write ── write ── commit          a lone transaction: one packet, one round trip
//!   └─ held ─┴─ held ─┴──────▶ ▶▶▶▶▶
//! begin ── write ─ … ─ write ─ … ─ commit    a large one: a packet per MiB; the next is made
//!   └───── held ─▶▶▶ ── held ─▶▶▶ ─▶▶▶         while the server works on the last
//! ```
//!
//! Rows that are most likely not there yet are tried through LOAD DATA (`load`).
//!
//! Guarantees of [`Target`]; the marker is the first statement of each transaction and fails
//! it when another writer has been here (`marker`). User triggers and foreign keys stay on;
//! triggers can tell us by `@anechoic_applying = 1`.

mod error;
mod flight;
pub(crate) mod literal;
mod load;
mod marker;
pub mod statement;
pub(crate) mod value;

pub use error::classify;
pub use marker::{lock_name, marker_ddl, touch_marker};

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio::task::JoinHandle;
use tracing::{debug, info};

use self::flight::{Outcome, Packet, Part};
use self::statement::{Facts, Form, Pattern};
use crate::apply::guess::Guess;
use crate::apply::patience::{AtWork, answered};
use crate::apply::sql::{Shape, may_propose};
use crate::apply::{TableRows, Target, TargetSpec, Write, fenced, highest, not_connected, own};
use crate::config::ConnectConfig;
use crate::connect::mysql::{Flavour, server};
use crate::error::{Error, Recovery, Result};
use crate::failpoint;
use crate::marker::Marker;
use crate::normalize::binding::Binding;
use crate::schema::EntityId;
use crate::value::{Datum, Row, write_datum};

const BYTES_PER_STATEMENT: usize = 1 << 20;
/// Held back at most, before a packet goes without its commit.
const BYTES_HELD: usize = 1 << 20;
/// Up to here rows are written one by one where they cannot be proposed: constants are found
/// by key whatever the optimizer thinks of a join.
const ROWS_ONE_BY_ONE: usize = 4;
/// A query that tells its keys apart by comparison grows with their square.
const KEYS_PER_READ: usize = 50;
/// How long another agent's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// READ COMMITTED takes no gap locks, which would make local writers wait for ours.
const SESSION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
    SET SESSION autocommit = 1, innodb_lock_wait_timeout = 30, lock_wait_timeout = 30, foreign_key_checks = 1, \
    unique_checks = 1, completion_type = 'NO_CHAIN', sql_safe_updates = 0, sql_auto_is_null = 0, \
    sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES', @anechoic_applying = 1";

/// A further connection has nothing to do until the next flood.
const IDLE_BETWEEN_FLOODS: &str = "SET SESSION wait_timeout = 31536000";

pub struct MyTarget {
    connect: ConnectConfig,
    spec: TargetSpec,
    lock_patience: Duration,
    session: Option<Session>,
}

impl MyTarget {
    pub fn new(connect: ConnectConfig, spec: TargetSpec) -> Self {
        MyTarget { connect, spec, lock_patience: failpoint::lock_patience(LOCK_PATIENCE), session: None }
    }

    /// Waits this long for the lock of another agent of the same id (60 s by default).
    #[must_use]
    pub fn lock_patience(mut self, patience: Duration) -> Self {
        self.lock_patience = patience;
        self
    }

    /// Whether no other agent has the lock; it is let go at once. An error says who has it.
    pub async fn alone(self) -> Result<()> {
        let mut conn = crate::connect::mysql::connect(&self.connect).await?;
        marker::lock(&mut conn, &self.spec, self.lock_patience).await?;
        // The answer is there; how the session ends does not matter.
        let _ = conn.disconnect().await;
        Ok(())
    }

    /// Rows that came in through LOAD DATA since it was opened.
    pub fn copied_rows(&self) -> u64 {
        self.session.as_ref().map_or(0, |session| session.copied_rows)
    }

    fn session(&mut self) -> Result<&mut Session> {
        self.session.as_mut().ok_or_else(not_connected)
    }

    /// A connection that is what the rest relies on, and the longest packet that the server takes.
    async fn connect(&mut self) -> Result<(Conn, Flavour, usize)> {
        let mut conn = crate::connect::mysql::connect(&self.connect).await?;
        let (flavour, ..) = server(&mut conn).await?;
        let packet_max = prepare_session(&mut conn, flavour, &self.spec, &self.connect.user).await?;
        Ok((conn, flavour, packet_max))
    }

    /// Begins to write with the agent's rows as they are.
    fn begin_session(&mut self, conn: Conn, flavour: Flavour, packet_max: usize, rows: Vec<Marker>) -> Result<()> {
        let current = own(&self.spec, &rows)?;
        self.session = Some(Session {
            patience: Arc::new(Patience { connect: self.connect.clone(), id: conn.id() }),
            line: Line::Free(Box::new(conn)),
            spec: self.spec.clone(),
            role: self.connect.user.clone(),
            flavour,
            packet_max,
            rows,
            current,
            next: None,
            facts: HashMap::new(),
            patterns: HashMap::new(),
            loadable: HashMap::new(),
            guesses: HashMap::new(),
            copied_rows: 0,
            load_is_off: false,
            held: Packet::default(),
            begun: false,
        });
        Ok(())
    }
}

/// What is waited for as long as the server is seen to work at it. An error of another kind
/// than the work's own ends the session.
struct Patience {
    connect: ConnectConfig,
    id: u32,
}

impl Patience {
    async fn over<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        answered(work, || at_work(&self.connect, self.id)).await?
    }
}

/// Asked on a connection of its own: what the session of that number is doing.
async fn at_work(connect: &ConnectConfig, id: u32) -> Result<AtWork> {
    let mut conn = crate::connect::mysql::connect(connect).await?;
    let query = format!("SELECT COMMAND = 'Sleep' AND TIME >= 20 FROM information_schema.PROCESSLIST WHERE ID = {id}");
    let idle: Option<Option<i64>> = conn.query_first(query).await.map_err(crate::connect::mysql::error)?;
    // The answer is there; how the session ends does not matter.
    let _ = conn.disconnect().await;
    Ok(match idle {
        None => AtWork::Gone,
        Some(Some(1)) => AtWork::Idle,
        Some(_) => AtWork::Yes,
    })
}

/// What patterns were made for.
/// The columns that are carried, and that are added.
type PatternKey = (EntityId, Write, [u128; 2], Form);

struct Patterns {
    shape: Shape,
    statements: Vec<Pattern>,
}

/// How rows of one table and shape are loaded.
struct Loadable {
    shape: Shape,
    /// `None`: they cannot be.
    statement: Option<String>,
}

/// The connection, or the packet that it is busy with.
enum Line {
    Free(Box<Conn>),
    Busy(Flying),
    /// The task that had it is gone.
    Lost,
}

/// A packet and its answers, under way; given up, it goes no further.
struct Flying(JoinHandle<(Box<Conn>, Outcome)>);

impl Drop for Flying {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Session {
    line: Line,
    patience: Arc<Patience>,
    spec: TargetSpec,
    role: String,
    flavour: Flavour,
    /// Longest packet that the server takes.
    packet_max: usize,
    /// The agent's rows, as it was opened.
    rows: Vec<Marker>,
    /// As committed; what the next compare-and-set expects.
    current: Marker,
    /// Of the transaction under way.
    next: Option<Marker>,
    facts: HashMap<EntityId, Arc<Facts>>,
    patterns: HashMap<PatternKey, Arc<Patterns>>,
    loadable: HashMap<(EntityId, u128), Arc<Loadable>>,
    guesses: HashMap<EntityId, Guess>,
    copied_rows: u64,
    /// The server loads nothing that a client has.
    load_is_off: bool,
    held: Packet,
    /// Something of the transaction under way was sent.
    begun: bool,
}

impl Target for MyTarget {
    async fn open(&mut self) -> Result<Marker> {
        self.session = None;
        let (mut conn, flavour, packet_max) = self.connect().await?;
        marker::lock(&mut conn, &self.spec, self.lock_patience).await?;
        let rows = marker::raise_epoch(&mut conn, &self.spec, &self.connect.user).await?;
        let highest = highest(&self.spec, &rows)?;
        self.begin_session(conn, flavour, packet_max, rows)?;
        Ok(highest)
    }

    fn rows(&self) -> Vec<Marker> {
        self.session.as_ref().map_or_else(Vec::new, |session| session.rows.clone())
    }

    async fn join(&mut self, rows: Vec<Marker>) -> Result<()> {
        self.session = None;
        let (mut conn, flavour, packet_max) = self.connect().await?;
        let failed = |error| classify(error, &self.spec.marker, &self.connect.user);
        conn.query_drop(IDLE_BETWEEN_FLOODS).await.map_err(failed)?;
        self.begin_session(conn, flavour, packet_max, rows)
    }

    async fn begin(&mut self, next: &Marker) -> Result<()> {
        let session = self.session()?;
        debug_assert!(session.next.is_none() && session.held.is_empty(), "one transaction at a time");
        session.held.add(Part::Command, b"START TRANSACTION READ WRITE");
        for statement in marker::advance(&session.spec, &session.current, next) {
            session.held.add(Part::Marker, statement.as_bytes());
        }
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
}

/// Makes the session what the rest relies on; the longest packet that the server takes.
async fn prepare_session(conn: &mut Conn, flavour: Flavour, spec: &TargetSpec, role: &str) -> Result<usize> {
    let failed = |error| classify(error, &spec.marker, role);
    conn.query_drop(SESSION).await.map_err(failed)?;
    if flavour == Flavour::Mariadb {
        // Halves what our writes add to the log; a right that not every role has.
        let _ = conn.query_drop("SET SESSION binlog_annotate_row_events = OFF").await;
    }
    let format: Option<(String, String)> =
        conn.query_first("SHOW SESSION VARIABLES LIKE 'binlog_format'").await.map_err(failed)?;
    if let Some((_, format)) = format
        && !format.eq_ignore_ascii_case("ROW")
    {
        return Err(Error::stop(
            format!("{} logs statements, not rows (binlog_format = {format})", spec.system),
            "SET GLOBAL binlog_format = ROW, and the same in the server's configuration file",
        ));
    }
    let packet: Option<u64> = conn.query_first("SELECT @@max_allowed_packet").await.map_err(failed)?;
    Ok(packet.unwrap_or(4 << 20) as usize)
}

impl Session {
    fn patience(&self) -> Arc<Patience> {
        self.patience.clone()
    }

    async fn commit(&mut self) -> Result<()> {
        self.held.add(Part::Command, b"COMMIT");
        self.send().await?;
        self.land().await?;
        if let Some(next) = self.next.take() {
            self.current = next;
        }
        self.over();
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        self.send().await?;
        self.land().await
    }

    async fn rollback(&mut self) -> Result<()> {
        self.held = Packet::default();
        // What went wrong in flight was told before, or does not matter any more.
        let _ = self.land().await;
        if self.begun {
            self.conn()
                .await?
                .query_drop("ROLLBACK")
                .await
                .map_err(|error| Error::retry("the connection failed while rolling back").because(error))?;
        }
        self.over();
        Ok(())
    }

    fn over(&mut self) {
        self.next = None;
        self.held = Packet::default();
        self.begun = false;
    }

    fn failed(&self, part: &Part, error: mysql_async::Error) -> Error {
        match (part, &error) {
            (Part::Marker, mysql_async::Error::Server(server)) if marker::is_fence(server.code) => {
                fenced(&self.spec.marker, &self.current)
            }
            (Part::Marker | Part::Command, _) => classify(error, &self.spec.marker, &self.role),
            (Part::Rows(table), _) => classify(error, &table.name, &self.role),
        }
    }

    /// Waits for the packet under way.
    async fn land(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.line, Line::Lost) {
            Line::Free(conn) => {
                self.line = Line::Free(conn);
                Ok(())
            }
            Line::Busy(mut flying) => {
                let (conn, outcome) =
                    (&mut flying.0).await.map_err(|_| Error::retry("the connection's task has ended"))?;
                self.line = Line::Free(conn);
                outcome.map_err(|(part, error)| self.failed(&part, error))
            }
            Line::Lost => Err(Error::retry("the connection is lost")),
        }
    }

    async fn conn(&mut self) -> Result<&mut Conn> {
        self.land().await?;
        match &mut self.line {
            Line::Free(conn) => Ok(conn),
            Line::Busy(_) | Line::Lost => Err(Error::retry("the connection is lost")),
        }
    }

    /// Sends what is held, as soon as the packet before it is answered.
    async fn send(&mut self) -> Result<()> {
        self.land().await?;
        let packet = std::mem::take(&mut self.held);
        if packet.is_empty() {
            return Ok(());
        }
        self.begun = true;
        let Line::Free(mut conn) = std::mem::replace(&mut self.line, Line::Lost) else {
            return Err(Error::retry("the connection is lost"));
        };
        self.line = Line::Busy(Flying(tokio::spawn(async move {
            let outcome = flight::run(&mut conn, packet).await;
            (conn, outcome)
        })));
        Ok(())
    }

    /// Waits with what was held before, so that an error is this row's and no other's.
    async fn write_alone(&mut self, rows: &TableRows<'_>) -> Result<()> {
        if self.held.has_rows() {
            self.send().await?;
        }
        self.land().await?;
        let part = Part::Rows(rows.binding.table.clone());
        let statements = self.spell(rows, true).await?;
        self.held.add(Part::Command, b"SAVEPOINT alone");
        for statement in &statements {
            self.hold(&part, statement).await?;
        }
        self.held.add(Part::Command, b"RELEASE SAVEPOINT alone");
        self.send().await?;
        let result = self.land().await;
        if let Err(error) = &result
            && error.recovery == Recovery::Quarantine
        {
            let undone = self.conn().await?.query_drop("ROLLBACK TO SAVEPOINT alone").await;
            undone.map_err(|error| classify(error, &rows.binding.table.name, &self.role))?;
        }
        result
    }

    /// Holds a statement back; where the packet would grow too long, what is there goes first.
    async fn hold(&mut self, part: &Part, statement: &[u8]) -> Result<()> {
        if !self.held.is_empty() && self.held.text.len() + statement.len() > self.bytes_max(BYTES_HELD) {
            self.send().await?;
        }
        self.held.add(part.clone(), statement);
        Ok(())
    }

    fn bytes_max(&self, wanted: usize) -> usize {
        wanted.min(self.packet_max / 2)
    }

    async fn write(&mut self, rows: &TableRows<'_>) -> Result<()> {
        if rows.fresh && rows.rows.len() >= load::ROWS_MIN && !self.load_is_off && self.load(rows).await? {
            return Ok(());
        }
        let part = Part::Rows(rows.binding.table.clone());
        for statement in self.spell(rows, false).await? {
            self.hold(&part, &statement).await?;
        }
        if self.held.text.len() >= BYTES_HELD {
            self.send().await?;
        }
        Ok(())
    }

    /// Writes rows that are most likely not there. `false`: nothing of them was written, because
    /// they are there, or cannot be loaded.
    async fn load(&mut self, rows: &TableRows<'_>) -> Result<bool> {
        let (binding, entity) = (rows.binding, rows.binding.entity);
        let loadable = self.loadable(binding, rows.carried);
        let Some(statement) = &loadable.statement else { return Ok(false) };
        if !self.guesses.entry(entity).or_default().is_worth_trying() {
            return Ok(false);
        }
        // A row that cannot be brought into form is told of by the ordinary way.
        let Ok(pieces) = load::lines(binding, &loadable.shape, rows.rows) else { return Ok(false) };
        self.held.add(Part::Command, b"SAVEPOINT loaded");
        self.send().await?;
        let sent = load::send(self.conn().await?, statement, pieces).await;
        let guess = self.guesses.entry(entity).or_default();
        match sent {
            Ok(loaded) if loaded.rows == rows.rows.len() as u64 && loaded.warnings == 0 => {
                guess.was_right();
                self.copied_rows += loaded.rows;
                return Ok(true);
            }
            Ok(loaded) => {
                guess.was_wrong();
                let (came_in, warnings) = (loaded.rows, loaded.warnings);
                debug!(table = %binding.table.name, rows = rows.rows.len(), came_in, warnings, "rows are written once more");
            }
            Err(mysql_async::Error::Server(server)) if load::is_off(server.code) => {
                self.load_is_off = true;
                info!(system = %self.spec.system, "local_infile is off: rows are loaded by INSERT, which takes longer");
            }
            Err(error) => {
                guess.was_wrong();
                let error = classify(error, &binding.table.name, &self.role);
                if error.recovery == Recovery::Retry {
                    return Err(error);
                }
                debug!(table = %binding.table.name, error = %error, "rows are written once more");
            }
        }
        self.held.add(Part::Command, b"ROLLBACK TO SAVEPOINT loaded");
        Ok(false)
    }

    fn loadable(&mut self, binding: &Binding, carried: u128) -> Arc<Loadable> {
        let make = || {
            let shape = Shape::of(binding, carried, 0);
            // Without a unique key of the entity's own, rows would be there twice.
            let key: Vec<&str> = binding.columns[..binding.key_len].iter().map(|c| &*c.column.name).collect();
            let tells =
                |unique: &Vec<String>| !unique.is_empty() && unique.iter().all(|name| key.contains(&name.as_str()));
            let loads = !key.is_empty() && !binding.table.triggers && binding.table.unique_keys.iter().any(tells);
            let statement = if loads { load::statement(binding, &shape) } else { None };
            Arc::new(Loadable { shape, statement })
        };
        self.loadable.entry((binding.entity, carried)).or_insert_with(make).clone()
    }

    /// The statements for these rows.
    async fn spell(&mut self, rows: &TableRows<'_>, alone: bool) -> Result<Vec<Vec<u8>>> {
        let binding = rows.binding;
        let patterns = self.patterns(rows, alone).await?;
        let (shape, limit) = (&patterns.shape, self.bytes_max(BYTES_PER_STATEMENT));
        let mut values = Columns::new(binding, &shape.sent);
        let mut statements = Vec::new();
        let (mut text, mut spelled) = (Vec::new(), Vec::new());
        for pattern in &patterns.statements {
            let mut count = 0;
            for row in rows.rows {
                spelled.clear();
                values.of(*row, |datums| pattern.row(binding, shape, datums, count == 0, &mut spelled))?;
                if count > 0 && (count == pattern.rows_max() || text.len() + spelled.len() > limit) {
                    pattern.end(&mut text);
                    statements.push(std::mem::take(&mut text));
                    count = 0;
                    spelled.clear();
                    values.of(*row, |datums| pattern.row(binding, shape, datums, true, &mut spelled))?;
                }
                if count == 0 {
                    pattern.begin(&mut text);
                }
                text.extend_from_slice(&spelled);
                count += 1;
            }
            if count > 0 {
                pattern.end(&mut text);
                statements.push(std::mem::take(&mut text));
            }
        }
        match statements.iter().any(|statement| statement.len() + PACKET_HEAD > self.packet_max) {
            true => Err(Error::data(format!(
                "{}: a row is longer than the {} bytes that the server takes in one packet",
                binding.table.name, self.packet_max
            ))
            .hint("raise max_allowed_packet")),
            false => Ok(statements),
        }
    }

    async fn patterns(&mut self, rows: &TableRows<'_>, alone: bool) -> Result<Arc<Patterns>> {
        let (binding, write) = (rows.binding, rows.write);
        let carried = if write == Write::Delete { 0 } else { rows.carried };
        let facts = self.facts(binding).await?;
        let form = match write {
            // Next to constants a difference is a number of any size; in a derived table it has a type.
            Write::Upsert if rows.added != 0 => Form::Each,
            Write::Upsert if !alone && facts.sole_key && may_propose(binding, carried) => Form::Propose,
            Write::Upsert if !alone && rows.rows.len() > ROWS_ONE_BY_ONE && facts.joinable() => Form::Join,
            _ => Form::Each,
        };
        let key = (binding.entity, write, [carried, rows.added], form);
        if let Some(patterns) = self.patterns.get(&key) {
            return Ok(patterns.clone());
        }
        let shape = if write == Write::Delete { Shape::key(binding) } else { Shape::of(binding, carried, rows.added) };
        let statements = statement::write(binding, &shape, write, form, &facts);
        let patterns = Arc::new(Patterns { shape, statements });
        self.patterns.insert(key, patterns.clone());
        Ok(patterns)
    }

    async fn facts(&mut self, binding: &Binding) -> Result<Arc<Facts>> {
        if let Some(facts) = self.facts.get(&binding.entity) {
            return Ok(facts.clone());
        }
        let (flavour, role) = (self.flavour, self.role.clone());
        let facts = read_facts(self.conn().await?, flavour, binding)
            .await
            .map_err(|error| classify(error, &binding.table.name, &role))?;
        let facts = Arc::new(facts);
        self.facts.insert(binding.entity, facts.clone());
        Ok(facts)
    }

    async fn read(&mut self, binding: &Binding, keys: &[Row<'_>]) -> Result<Vec<Option<Vec<u8>>>> {
        self.send().await?;
        self.land().await?;
        let shape = Shape::key(binding);
        let mut found = vec![None; keys.len()];
        for (chunk, rows) in keys.chunks(KEYS_PER_READ).enumerate() {
            for (number, row) in self.select(binding, &shape, rows, true).await? {
                found[chunk * KEYS_PER_READ + number] = Some(row);
            }
        }
        Ok(found)
    }

    async fn holder(&mut self, binding: &Binding, columns: &[usize], values: Row<'_>) -> Result<Option<Vec<u8>>> {
        self.send().await?;
        self.land().await?;
        let found = self.select(binding, &Shape::sought(columns), &[values], false).await?;
        Ok(found.into_iter().next().map(|(_, row)| row))
    }

    /// Canonical rows that have these values, each with the place of its values.
    async fn select(
        &mut self,
        binding: &Binding,
        shape: &Shape,
        rows: &[Row<'_>],
        locked: bool,
    ) -> Result<Vec<(usize, Vec<u8>)>> {
        let role = self.role.clone();
        let mut texts = vec![Vec::new(); rows.len() * shape.key];
        let mut scratch = texts.iter_mut();
        let mut datums = Vec::with_capacity(rows.len());
        for row in rows {
            let mut key = Vec::with_capacity(shape.key);
            for at in &shape.sent {
                let bound = &binding.columns[*at];
                let scratch = scratch.next().expect("one per key column");
                key.push(bound.to_column(row.get(bound.field), scratch)?);
            }
            datums.push(key);
        }
        let text = statement::read(binding, shape, &datums, locked)?;
        let conn = self.conn().await?;
        let failed = |error| classify(error, &binding.table.name, &role);
        // Prepared, because only the binary protocol returns numbers digit for digit.
        let query = conn.prep(text).await.map_err(failed)?;
        let answers: Result<Vec<mysql_async::Row>, _> = conn.exec(&query, ()).await;
        let closed = conn.close(query).await;
        let mut found = Vec::new();
        for row in answers.map_err(failed)? {
            let raw: Vec<mysql_async::Value> = row.unwrap();
            let number = match raw.first() {
                Some(mysql_async::Value::Int(n)) => *n as usize,
                Some(mysql_async::Value::UInt(n)) => *n as usize,
                _ => continue,
            };
            found.push((number, canonical(binding, &raw[1..])?));
        }
        closed.map_err(failed)?;
        Ok(found)
    }
}

/// For BEGIN, marker and the packet's own head, beside a statement.
const PACKET_HEAD: usize = 4096;

/// Brings canonical rows into column form, reusing memory.
struct Columns<'a> {
    binding: &'a Binding,
    sent: &'a [usize],
    scratch: Vec<Vec<u8>>,
}

impl<'a> Columns<'a> {
    fn new(binding: &'a Binding, sent: &'a [usize]) -> Self {
        Columns { binding, sent, scratch: vec![Vec::new(); sent.len()] }
    }

    fn of<T>(&mut self, row: Row<'_>, then: impl FnOnce(&[Datum<'_>]) -> Result<T>) -> Result<T> {
        let mut fields = Vec::with_capacity(self.binding.columns.len());
        row.read_into(&mut fields);
        let mut datums = Vec::with_capacity(self.sent.len());
        for (at, scratch) in self.sent.iter().zip(&mut self.scratch) {
            let bound = &self.binding.columns[*at];
            scratch.clear();
            datums.push(bound.to_column(fields.get(bound.field).copied().unwrap_or(Datum::NotSent), scratch)?);
        }
        then(&datums)
    }
}

async fn read_facts(conn: &mut Conn, flavour: Flavour, binding: &Binding) -> Result<Facts, mysql_async::Error> {
    let table = (binding.table.name.schema.as_str(), binding.table.name.name.as_str());
    let parts: Vec<(String, Option<String>, Option<u64>)> = conn
        .exec(
            "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART FROM information_schema.STATISTICS \
             WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND NON_UNIQUE = 0",
            table,
        )
        .await?;
    let collations: Vec<(String, Option<String>)> = conn
        .exec(
            "SELECT COLUMN_NAME, COLLATION_NAME FROM information_schema.COLUMNS \
             WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?",
            table,
        )
        .await?;
    let key: Vec<&str> = binding.columns[..binding.key_len].iter().map(|c| c.column.name.as_str()).collect();
    let one_index = parts.windows(2).all(|pair| pair[0].0 == pair[1].0);
    let whole_columns = parts.iter().all(|(_, column, part)| column.is_some() && part.is_none());
    let same_columns =
        parts.len() == key.len() && key.iter().all(|k| parts.iter().any(|(_, column, _)| column.as_deref() == Some(k)));
    let collation = |name: &&str| collations.iter().find(|(n, _)| n == name).and_then(|(_, c)| c.clone());
    Ok(Facts {
        flavour,
        sole_key: one_index && whole_columns && same_columns,
        collations: key.iter().map(collation).collect(),
    })
}

/// A row as read → a canonical row: one datum per field up to the last one that is bound.
fn canonical(binding: &Binding, raw: &[mysql_async::Value]) -> Result<Vec<u8>> {
    let fields = binding.columns.iter().map(|c| c.field + 1).max().unwrap_or(0);
    let mut by_field = vec![None; fields];
    for (at, bound) in binding.columns.iter().enumerate() {
        by_field[bound.field] = Some(at);
    }
    let mut out = Vec::new();
    for at in by_field {
        match at {
            None => write_datum(&mut out, Datum::NotSent),
            Some(at) => {
                let bound = &binding.columns[at];
                bound.to_canonical(value::decode(&bound.column, &raw[at])?, &mut out)?;
            }
        }
    }
    Ok(out)
}
