//! What we write under a replication origin, so that the reader of the system's log need not be sent it.
//!
//! Only where the system is only written to: nothing then depends on what its log shows of us but the
//! marker, and that is shown now and then by a transaction without the origin. A server that does not
//! let us, or cannot leave anything out (before version 16), sends everything back, as elsewhere.
//!
//! See <https://www.postgresql.org/docs/current/replication-origins.html>.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::info;

use crate::apply::TargetSpec;
use crate::apply::sql::quoted;
use crate::marker::{Marker, Unshown};

/// Behind BEGIN: each transaction has its own commit time; without it the first one's would stay.
pub const OF_TRANSACTION: &str = "SELECT pg_replication_origin_xact_setup('0/0', clock_timestamp())";

/// What is called for it; only superusers may unless it is granted.
const FUNCTIONS: [&str; 5] = [
    "pg_replication_origin_create(text)",
    "pg_replication_origin_drop(text)",
    "pg_replication_origin_session_setup(text)",
    "pg_replication_origin_session_reset()",
    "pg_replication_origin_xact_setup(pg_lsn, timestamptz)",
];

/// A backend that was ended has let go of it soon.
const PATIENCE: Duration = Duration::from_secs(2);

/// A session that writes under an origin.
pub struct Origin {
    name: String,
    unshown: Unshown,
    /// When the first transaction began that the log's reader has not been shown the marker of.
    hidden_since: Option<Instant>,
}

/// Origins are of the whole server, agents of a database.
fn name(agent: &str, database: &str, lane: u32) -> String {
    format!("anechoic/{agent}/{database}/{lane}")
}

impl Origin {
    /// `None` where the server does not let us.
    pub async fn new(
        client: &Client,
        spec: &TargetSpec,
        (role, database): (&str, &str),
        unshown: &Unshown,
        current: &Marker,
    ) -> Option<Origin> {
        let name = name(&spec.agent, database, spec.lane);
        // Whatever comes of it: the marker is in the log by now, without an origin.
        unshown.reaches(current.seq, current.part);
        match set_up(client, &name).await {
            Ok(true) => Some(Origin { name, unshown: unshown.clone(), hidden_since: None }),
            Ok(false) => None,
            Err(error) => {
                let reason = error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
                let way_out = match error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
                    true => grants(role),
                    false => String::new(),
                };
                info!(reason, way_out, "the server will send back what is written: no replication origin");
                None
            }
        }
    }

    /// A transaction is to be written that moves the marker there.
    pub fn begin(&mut self, seq: u64, part: u64) {
        self.unshown.reaches(seq, part);
        self.hidden_since.get_or_insert_with(Instant::now);
    }

    pub fn hidden(&self) -> Option<Duration> {
        self.hidden_since.map(|since| since.elapsed())
    }

    /// Until `resume` what is written is shown.
    pub async fn suspend(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        client.batch_execute("SELECT pg_replication_origin_session_reset()").await
    }

    pub async fn resume(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        client.execute("SELECT pg_replication_origin_session_setup($1)", &[&self.name]).await?;
        self.hidden_since = None;
        Ok(())
    }
}

/// What an administrator runs, so that `role` may have an origin.
pub fn grants(role: &str) -> String {
    format!("GRANT EXECUTE ON FUNCTION {} TO {};", FUNCTIONS.join(", "), quoted(role))
}

/// For the agent's teardown; `true` where there was one.
pub async fn drop(client: &Client, agent: &str, database: &str) -> Result<bool, tokio_postgres::Error> {
    let name = name(agent, database, 0);
    // The right to drop is asked for even where there is nothing to drop.
    let there = client.query_opt("SELECT FROM pg_replication_origin WHERE roname = $1", &[&name]).await?.is_some();
    if there {
        client.execute("SELECT pg_replication_origin_drop($1)", &[&name]).await?;
    }
    Ok(there)
}

/// `false`: the server's version cannot leave anything out.
async fn set_up(client: &Client, name: &str) -> Result<bool, tokio_postgres::Error> {
    let version = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await?;
    if version.get::<_, i32>(0) < 160_000 {
        return Ok(false);
    }
    let create = "SELECT pg_replication_origin_create($1) \
        WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = $1)";
    client.execute(create, &[&name]).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.execute("SELECT pg_replication_origin_session_setup($1)", &[&name]).await {
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            answer => return answer.map(|_| true),
        }
    }
}
