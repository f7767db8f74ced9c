//! The databases' own replication with its default settings, as what the agent is held against.

use std::sync::Arc;

use crate::support::servers::{Server, Session};
use crate::support::unique;
use crate::support::world::{World, quote};

/// One way between two servers of a kind. Made stopped, its position taken.
pub struct Native {
    source: Arc<Server>,
    target: Arc<Server>,
    name: String,
    /// Where the rows come out: in PostgreSQL the world's second database, in MySQL one that is
    /// named as the source's.
    database: String,
}

impl Native {
    /// From the world's first system to its second one; no agent runs there.
    pub async fn new(world: &World) -> Native {
        let [from, to] = [&world.systems[0].db, &world.systems[1].db];
        let name = format!("bench_{}", unique());
        let (source, target) = (from.server.clone(), to.server.clone());
        if from.kind.is_postgres() {
            let mut admin = from.admin().await;
            admin.execute(&format!("CREATE PUBLICATION {name} FOR ALL TABLES")).await;
            admin.rows(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
            let connection =
                format!("host=127.0.0.1 port={} user=postgres dbname={} sslmode=disable", source.port, from.name);
            let subscription = format!(
                "CREATE SUBSCRIPTION {name} CONNECTION '{connection}' PUBLICATION {name} \
                 WITH (enabled = false, create_slot = false, slot_name = '{name}', copy_data = false)"
            );
            to.admin().await.execute(&subscription).await;
            return Native { source, target, name, database: to.name.clone() };
        }
        let mut admin = target.admin().await;
        admin.execute(&format!("CREATE DATABASE {} CHARACTER SET utf8mb4", from.name)).await;
        for entity in &world.entities {
            let table = quote(to.kind, &entity.name);
            admin.execute(&format!("CREATE TABLE {}.{table} LIKE {}.{table}", from.name, to.name)).await;
            let rows = format!("INSERT INTO {}.{table} SELECT * FROM {}.{table}", from.name, to.name);
            admin.execute(&rows).await;
        }
        let mut there = source.admin().await;
        there.execute(&format!("CREATE USER {name}@'%' IDENTIFIED BY 'bench'")).await;
        there.execute(&format!("GRANT REPLICATION SLAVE ON *.* TO {name}@'%'")).await;
        let status = if from.kind.is_mariadb() { "SHOW MASTER STATUS" } else { "SHOW BINARY LOG STATUS" };
        let position = there.rows(status).await.remove(0);
        let (file, offset) = (position[0].as_deref().unwrap(), position[1].as_deref().unwrap());
        let (what, word, key) = match from.kind.is_mariadb() {
            true => ("MASTER", "MASTER", ""),
            false => ("REPLICATION SOURCE", "SOURCE", ", GET_SOURCE_PUBLIC_KEY = 1"),
        };
        if from.kind.is_mariadb() {
            // What the agent wrote here before has numbers of its own in the same domain.
            admin.execute("SET GLOBAL gtid_strict_mode = OFF").await;
        }
        let change = format!(
            "CHANGE {what} TO {word}_HOST = '127.0.0.1', {word}_PORT = {}, {word}_USER = '{name}', \
             {word}_PASSWORD = 'bench', {word}_LOG_FILE = '{file}', {word}_LOG_POS = {offset}{key}",
            source.port
        );
        admin.execute(&change).await;
        Native { source, target, name, database: from.name.clone() }
    }

    /// Where the rows come out.
    pub async fn session(&self) -> Session {
        let mut session = match self.target.kind.is_postgres() {
            true => Session::open(&self.target, "postgres", None, Some(&self.database)).await,
            false => self.target.admin().await,
        };
        if !self.target.kind.is_postgres() {
            session.execute(&format!("USE {}", self.database)).await;
        }
        session
    }

    fn replica(&self) -> &'static str {
        if self.target.kind.is_mariadb() { "SLAVE" } else { "REPLICA" }
    }

    pub async fn start(&self) {
        let sql = match self.target.kind.is_postgres() {
            true => format!("ALTER SUBSCRIPTION {} ENABLE", self.name),
            false => format!("START {}", self.replica()),
        };
        self.session().await.execute(&sql).await;
    }

    pub async fn remove(self) {
        let mut session = self.session().await;
        if !self.target.kind.is_postgres() {
            session.execute(&format!("STOP {}", self.replica())).await;
            session.execute(&format!("RESET {} ALL", self.replica())).await;
            session.execute(&format!("DROP DATABASE {}", self.database)).await;
            return;
        }
        let Native { name, source, .. } = &self;
        session.execute(&format!("ALTER SUBSCRIPTION {name} DISABLE")).await;
        session.execute(&format!("ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")).await;
        session.execute(&format!("DROP SUBSCRIPTION {name}")).await;
        let mut there = source.admin().await;
        let slot = format!("FROM pg_replication_slots WHERE slot_name = '{name}'");
        // The walsender takes a moment to leave.
        crate::support::eventually(crate::support::SOON, async || {
            let mut there = source.admin().await;
            there.try_rows(&format!("SELECT pg_drop_replication_slot(slot_name) {slot}")).await.map(drop)
        })
        .await;
        assert!(there.rows(&format!("SELECT 1 {slot}")).await.is_empty());
    }
}
