//! Servers and databases.
//!
//! A test gets databases of its own on servers that all tests share. Three roles are at hand:
//! the *administrator*, the *application* (owns the database and its tables; what `execute` and
//! `rows` run as) and the *agent*, with exactly the grants that README.md prints.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anechoic::apply::postgres::origin;
use anechoic::config::{ConnectConfig, PasswordSource, TlsConfig, TlsMode};
use mysql_async::prelude::Queryable;
use tokio::sync::Mutex;

use super::unique;

pub const PASSWORD: &str = "s3cret '\"\\ pässword";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Postgres15,
    Postgres17,
    Postgres18,
    Mysql,
    Mariadb,
    Mariadb11,
}

impl Kind {
    /// One of each engine: what most tests run on.
    pub const ENGINES: [Kind; 3] = [Kind::Postgres17, Kind::Mysql, Kind::Mariadb];

    /// As fixtures/servers.sh calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Postgres15 => "pg15",
            Kind::Postgres17 => "pg17",
            Kind::Postgres18 => "pg18",
            Kind::Mysql => "mysql",
            Kind::Mariadb => "mariadb",
            Kind::Mariadb11 => "mariadb11",
        }
    }

    pub fn is_postgres(self) -> bool {
        matches!(self, Kind::Postgres15 | Kind::Postgres17 | Kind::Postgres18)
    }

    pub fn is_mariadb(self) -> bool {
        matches!(self, Kind::Mariadb | Kind::Mariadb11)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the run's servers are; the same rule as in fixtures/servers.sh.
fn servers_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("ANECHOIC_TEST_SERVERS") {
        return dir.into();
    }
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("servers")
}

async fn script(args: &[&str]) -> String {
    let output = tokio::process::Command::new(root().join("fixtures/servers.sh")).args(args).output().await.unwrap();
    assert!(
        output.status.success(),
        "servers.sh {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    pub kind: Kind,
    pub dir: PathBuf,
    pub port: u16,
    /// File of the authority that signed its certificate (for localhost and 127.0.0.1).
    pub ca: PathBuf,
    options: Vec<String>,
    /// Ours alone: deleted when dropped.
    private: bool,
    /// As durable as the database's careful settings make it.
    durable: bool,
}

impl Server {
    /// The one that all tests of a run share. Never stop it.
    pub fn shared(kind: Kind) -> Arc<Server> {
        let dir = servers_dir().join(kind.name());
        let env = std::fs::read_to_string(dir.join("env")).unwrap_or_else(|_| {
            panic!("no {} server in {}: run `fixtures/servers.sh up {}`", kind.name(), dir.display(), kind.name())
        });
        Arc::new(Server::from_env(kind, dir, &env, Vec::new(), false))
    }

    /// An own one that waits for its disk, as users' servers do: to measure on.
    pub async fn durable(kind: Kind) -> Server {
        let dir = servers_dir().join(format!("private-{}", unique()));
        let env = Server::launch(kind, &dir, &[], true).await;
        let mut server = Server::from_env(kind, dir, &env, Vec::new(), true);
        server.durable = true;
        server
    }

    /// An own one, to be killed and restarted, or to be given other options
    /// (`--binlog-format=STATEMENT`; `-c`, `wal_level=replica`).
    pub async fn private(kind: Kind, options: &[&str]) -> Server {
        let dir = servers_dir().join(format!("private-{}", unique()));
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        let env = Server::launch(kind, &dir, &options, false).await;
        Server::from_env(kind, dir, &env, options, true)
    }

    async fn launch(kind: Kind, dir: &Path, options: &[String], durable: bool) -> String {
        let relaxed: &[&str] = if durable { &[] } else { &["--relaxed"] };
        let mut args = [&["start"], relaxed, &[kind.name(), dir.to_str().unwrap(), "auto"]].concat();
        args.extend(options.iter().map(String::as_str));
        script(&args).await
    }

    fn from_env(kind: Kind, dir: PathBuf, env: &str, options: Vec<String>, private: bool) -> Server {
        let value = |name: &str| {
            let line = env.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{} says no {name}", dir.display())).replace('\\', "")
        };
        Server {
            kind,
            port: value("PORT").parse().unwrap(),
            ca: value("CA").into(),
            dir,
            options,
            private,
            durable: false,
        }
    }

    pub fn pid(&self) -> u32 {
        let env = std::fs::read_to_string(self.dir.join("env")).unwrap();
        env.lines().find_map(|l| l.strip_prefix("PID=")).unwrap().parse().unwrap()
    }

    /// In good order: clients are told.
    pub async fn stop(&self) {
        assert!(self.private, "the shared servers belong to all tests");
        script(&["stop", self.dir.to_str().unwrap()]).await;
    }

    /// SIGKILL, all of its processes.
    pub async fn kill(&self) {
        assert!(self.private, "the shared servers belong to all tests");
        script(&["stop", self.dir.to_str().unwrap(), "KILL"]).await;
    }

    /// Again with the same data on the same port.
    pub async fn start(&self) {
        Server::launch(self.kind, &self.dir, &self.options, self.durable).await;
    }

    pub async fn restart(&self) {
        self.stop().await;
        self.start().await;
    }

    /// The same data and port under other options.
    pub async fn restart_with(&self, options: &[String]) {
        self.stop().await;
        Server::launch(self.kind, &self.dir, options, self.durable).await;
    }

    pub async fn admin(&self) -> Session {
        Session::open(self, if self.kind.is_postgres() { "postgres" } else { "root" }, None, None).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.private {
            let script = root().join("fixtures/servers.sh");
            let _ = std::process::Command::new(script).arg("destroy").arg(&self.dir).status();
        }
    }
}

/// One connection: statements on it share transactions and session settings.
pub enum Session {
    Postgres(tokio_postgres::Client),
    Mysql(Box<mysql_async::Conn>),
}

pub type Rows = Vec<Vec<Option<String>>>;

impl Session {
    /// As a role of [`PASSWORD`], perhaps through a proxy at `port`.
    pub async fn open_as(server: &Server, user: &str, port: u16, database: Option<&str>) -> Result<Session, String> {
        Session::connect(server.kind, port, user, Some(PASSWORD), database).await
    }

    async fn try_open(
        server: &Server,
        user: &str,
        password: Option<&str>,
        database: Option<&str>,
    ) -> Result<Session, String> {
        Session::connect(server.kind, server.port, user, password, database).await
    }

    async fn connect(
        kind: Kind,
        port: u16,
        user: &str,
        password: Option<&str>,
        database: Option<&str>,
    ) -> Result<Session, String> {
        if kind.is_postgres() {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(port).user(user).dbname(database.unwrap_or("postgres"));
            password.inspect(|p| {
                config.password(p);
            });
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|e| deep(&e))?;
            tokio::spawn(connection);
            Ok(Session::Postgres(client))
        } else {
            let options = mysql_async::OptsBuilder::default()
                .ip_or_hostname("127.0.0.1")
                .tcp_port(port)
                .prefer_socket(false)
                .user(Some(user))
                .pass(password)
                .db_name(database)
                .init(vec!["SET time_zone = '+00:00', NAMES utf8mb4"]);
            let conn = mysql_async::Conn::new(options).await.map_err(|e| e.to_string())?;
            Ok(Session::Mysql(Box::new(conn)))
        }
    }

    pub async fn open(server: &Server, user: &str, password: Option<&str>, database: Option<&str>) -> Session {
        Session::try_open(server, user, password, database)
            .await
            .unwrap_or_else(|error| panic!("connecting to {} as {user}: {error}", server.kind.name()))
    }

    /// One statement or several.
    pub async fn try_execute(&mut self, sql: &str) -> Result<(), String> {
        match self {
            Session::Postgres(client) => client.batch_execute(sql).await.map_err(|e| deep(&e)),
            Session::Mysql(conn) => conn.query_drop(sql).await.map_err(|e| e.to_string()),
        }
    }

    /// One statement; how many rows it wrote. Those that it left as they were count in PostgreSQL alone, which
    /// writes them all the same.
    pub async fn try_write(&mut self, sql: &str) -> Result<u64, String> {
        match self {
            Session::Postgres(client) => {
                let messages = client.simple_query(sql).await.map_err(|e| deep(&e))?;
                let written = messages.iter().find_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
                    _ => None,
                });
                Ok(written.expect("a statement is completed"))
            }
            Session::Mysql(conn) => {
                conn.query_drop(sql).await.map_err(|e| e.to_string())?;
                Ok(conn.affected_rows())
            }
        }
    }

    #[track_caller]
    pub fn execute(&mut self, sql: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let done = self.try_execute(sql).await;
            done.unwrap_or_else(|error| panic!("{place}: {error}\n  in: {}", excerpt(sql)));
        }
    }

    /// Values as the server prints them; what is not UTF-8 as 0x….
    pub async fn try_rows(&mut self, sql: &str) -> Result<Rows, String> {
        match self {
            Session::Postgres(client) => {
                let messages = client.simple_query(sql).await.map_err(|e| deep(&e))?;
                let rows = messages.iter().filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
                    }
                    _ => None,
                });
                Ok(rows.collect())
            }
            Session::Mysql(conn) => {
                let rows: Vec<mysql_async::Row> = conn.query(sql).await.map_err(|e| e.to_string())?;
                Ok(rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect())
            }
        }
    }

    #[track_caller]
    pub fn rows(&mut self, sql: &str) -> impl Future<Output = Rows> {
        let place = std::panic::Location::caller();
        async move {
            let rows = self.try_rows(sql).await;
            rows.unwrap_or_else(|error| panic!("{place}: {error}\n  in: {}", excerpt(sql)))
        }
    }
}

fn text(value: mysql_async::Value) -> Option<String> {
    match value {
        mysql_async::Value::NULL => None,
        mysql_async::Value::Bytes(bytes) => Some(String::from_utf8(bytes).unwrap_or_else(|error| {
            error.into_bytes().iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
        })),
        other => Some(other.as_sql(true)),
    }
}

fn deep(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || std::error::Error::source(error).map_or_else(|| error.to_string(), |e| format!("{error}: {e}")),
        |e| format!("{} ({})", e.message(), e.code().code()),
    )
}

fn excerpt(sql: &str) -> String {
    sql.chars().take(400).collect()
}

/// A database of this test alone.
pub struct Db {
    pub kind: Kind,
    pub server: Arc<Server>,
    /// Of the database.
    pub name: String,
    /// Owns the database and its tables.
    pub application: String,
    /// What the agent connects as.
    pub agent: String,
    /// Schema (PostgreSQL) or database (MySQL) where the agent may make its marker table.
    pub marker: String,
    session: Mutex<Option<Session>>,
}

impl Db {
    /// On the shared server of that kind.
    pub async fn new(kind: Kind) -> Db {
        Db::on(&Server::shared(kind), &unique()).await
    }

    /// `unique` makes its names.
    pub async fn on(server: &Arc<Server>, unique: &str) -> Db {
        Db::named(server, unique, format!("anechoic_{unique}")).await
    }

    /// Databases of one world share the marker's name, but may lie on one server.
    pub async fn for_world(server: &Arc<Server>, unique: &str, index: usize) -> Db {
        Db::named(server, &format!("{unique}_{index}"), format!("anechoic_{unique}")).await
    }

    async fn named(server: &Arc<Server>, unique: &str, marker: String) -> Db {
        let db = Db {
            kind: server.kind,
            server: server.clone(),
            name: format!("test_{unique}"),
            application: format!("app_{unique}"),
            agent: format!("anechoic_{unique}"),
            marker,
            session: Mutex::new(None),
        };
        db.create().await;
        db
    }

    async fn create(&self) {
        let Db { name, application, agent, marker, .. } = self;
        let mut admin = self.server.admin().await;
        let password = PASSWORD.replace('\'', "''");
        if self.kind.is_postgres() {
            admin.execute(&format!("CREATE ROLE {application} LOGIN PASSWORD '{password}'")).await;
            admin.execute(&format!("CREATE ROLE {agent} LOGIN REPLICATION PASSWORD '{password}'")).await;
            admin.execute(&format!("CREATE DATABASE {name} OWNER {application}")).await;
        } else {
            let password = password.replace('\\', "\\\\");
            for role in [application, agent] {
                admin.execute(&format!("CREATE USER {role}@'%' IDENTIFIED BY '{password}'")).await;
            }
            admin.execute(&format!("CREATE DATABASE {name} CHARACTER SET utf8mb4")).await;
            admin.execute(&format!("GRANT ALL ON {name}.* TO {application}@'%'")).await;
        }
        let mut admin = self.admin().await;
        for grant in grants(self.kind, name, marker, application, agent) {
            admin.execute(&grant).await;
        }
    }

    /// The administrator, in this database.
    pub async fn admin(&self) -> Session {
        let user = if self.kind.is_postgres() { "postgres" } else { "root" };
        Session::open(&self.server, user, None, Some(&self.name)).await
    }

    /// Another connection of the application.
    pub async fn session(&self) -> Session {
        Session::open(&self.server, &self.application, Some(PASSWORD), Some(&self.name)).await
    }

    async fn with<T>(&self, action: impl AsyncFn(&mut Session) -> Result<T, String>) -> Result<T, String> {
        let mut slot = self.session.lock().await;
        if slot.as_ref().is_none_or(|s| matches!(s, Session::Postgres(client) if client.is_closed())) {
            *slot = Some(Session::try_open(&self.server, &self.application, Some(PASSWORD), Some(&self.name)).await?);
        }
        let result = action(slot.as_mut().unwrap()).await;
        // after an error the session may be dead or inside a failed transaction
        if result.is_err() {
            *slot = None;
        }
        result
    }

    /// As the application. One statement or several, each for itself unless they say BEGIN.
    pub async fn try_execute(&self, sql: &str) -> Result<(), String> {
        self.with(async |session| session.try_execute(sql).await).await
    }

    #[track_caller]
    pub fn execute(&self, sql: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let done = self.try_execute(sql).await;
            done.unwrap_or_else(|error| panic!("{place}: {}: {error}\n  in: {}", self.kind.name(), excerpt(sql)));
        }
    }

    pub async fn try_rows(&self, sql: &str) -> Result<Rows, String> {
        self.with(async |session| session.try_rows(sql).await).await
    }

    /// As the server prints them.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> impl Future<Output = Rows> {
        let place = std::panic::Location::caller();
        async move {
            let rows = self.try_rows(sql).await;
            rows.unwrap_or_else(|error| panic!("{place}: {}: {error}\n  in: {}", self.kind.name(), excerpt(sql)))
        }
    }

    /// The first value of the first row.
    #[track_caller]
    pub fn value(&self, sql: &str) -> impl Future<Output = Option<String>> {
        let rows = self.rows(sql);
        async move { rows.await.into_iter().next().and_then(|row| row.into_iter().next()).flatten() }
    }

    /// For the configuration file; the password comes separately ([`PASSWORD`]).
    pub fn agent_url(&self) -> String {
        self.agent_url_at(self.server.port)
    }

    /// The same through a proxy at that port.
    pub fn agent_url_at(&self, port: u16) -> String {
        let scheme = if self.kind.is_postgres() { "postgresql" } else { "mysql" };
        format!("{scheme}://{}@127.0.0.1:{port}/{}?sslmode=disable", self.agent, self.name)
    }

    /// Of the agent's role, without TLS.
    pub fn connect_config(&self) -> ConnectConfig {
        ConnectConfig {
            host: "127.0.0.1".to_owned(),
            port: self.server.port,
            user: self.agent.clone(),
            database: self.name.clone(),
            password: PasswordSource::Inline(PASSWORD.to_owned()),
            tls: TlsConfig::new(TlsMode::Disable),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// What README.md tells an administrator to run for the agent's role, once it exists. Tables
/// that the application makes later are included.
pub fn grants(kind: Kind, database: &str, marker: &str, owner: &str, agent: &str) -> Vec<String> {
    if kind.is_postgres() {
        return vec![
            format!("GRANT CONNECT, CREATE ON DATABASE {database} TO {agent}"),
            format!("GRANT USAGE ON SCHEMA public TO {agent}"),
            format!(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {agent}"
            ),
            origin::grants(agent),
        ];
    }
    let log = if kind.is_mariadb() { "BINLOG MONITOR" } else { "REPLICATION CLIENT" };
    vec![
        format!("GRANT REPLICATION SLAVE, {log} ON *.* TO {agent}@'%'"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON {database}.* TO {agent}@'%'"),
        format!("GRANT CREATE, DROP, SELECT, INSERT, UPDATE, DELETE ON {marker}.* TO {agent}@'%'"),
    ]
}

impl Db {
    /// The application may look at the marker, once `setup` has made it.
    pub async fn show_marker(&self) {
        let (application, marker) = (&self.application, &self.marker);
        let grants = match self.kind.is_postgres() {
            true => format!(
                "GRANT USAGE ON SCHEMA {marker} TO {application}; GRANT SELECT ON {marker}.marker TO {application}"
            ),
            false => format!("GRANT SELECT ON {marker}.* TO {application}@'%'"),
        };
        self.admin().await.execute(&grants).await;
    }

    /// While `setup` runs, the agent's role is a member of the owner's (PostgreSQL): only owners
    /// publish tables and set their replica identity.
    pub async fn lend_ownership(&self, lend: bool) {
        if self.kind.is_postgres() {
            let (verb, towards) = if lend { ("GRANT", "TO") } else { ("REVOKE", "FROM") };
            self.admin().await.execute(&format!("{verb} {} {towards} {}", self.application, self.agent)).await;
        }
    }
}

/// Slots would hold back the shared server's log and are few, so everything goes when the test
/// ends. `ANECHOIC_KEEP=1` leaves it to be looked at.
impl Drop for Db {
    fn drop(&mut self) {
        if std::env::var_os("ANECHOIC_KEEP").is_some() || self.server.private {
            return;
        }
        let (server, name, marker) = (self.server.clone(), self.name.clone(), self.marker.clone());
        let roles = [self.application.clone(), self.agent.clone()];
        let cleanup = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(drop_database(&server, &name, &marker, &roles))
        });
        if let Ok(Err(error)) = cleanup.join() {
            eprintln!("leaving {} behind on {}: {error}", self.name, self.kind.name());
        }
    }
}

async fn drop_database(server: &Server, name: &str, marker: &str, roles: &[String]) -> Result<(), String> {
    let user = if server.kind.is_postgres() { "postgres" } else { "root" };
    let mut admin = Session::try_open(server, user, None, None).await?;
    if !server.kind.is_postgres() {
        admin.try_execute(&format!("DROP DATABASE IF EXISTS {name}; DROP DATABASE IF EXISTS {marker}")).await?;
        for role in roles {
            admin.try_execute(&format!("DROP USER IF EXISTS {role}@'%'")).await?;
        }
        return Ok(());
    }
    let slots = format!("FROM pg_replication_slots WHERE database = '{name}'");
    let mut last = Ok(());
    for _ in 0..50 {
        admin.try_rows(&format!("SELECT pg_terminate_backend(active_pid) {slots} AND active")).await?;
        last = admin.try_rows(&format!("SELECT pg_drop_replication_slot(slot_name) {slots}")).await.map(drop);
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await; // the walsender is on its way out
    }
    last?;
    admin.try_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
    let origins = format!("FROM pg_replication_origin WHERE roname LIKE '%/{name}/%'");
    admin.try_rows(&format!("SELECT pg_replication_origin_drop(roname) {origins}")).await?;
    for role in roles {
        admin.try_execute(&format!("DROP ROLE IF EXISTS {role}")).await?;
    }
    Ok(())
}
