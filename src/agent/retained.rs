//! How much log a PostgreSQL server keeps for our slot: asked now and then on a connection of
//! its own, so that a disk that fills is seen on the port before it is full.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::capture::postgres::retained;
use crate::config::{Config, Engine};
use crate::error::Result;
use crate::schema::SystemId;
use crate::status::Status;

const EVERY: Duration = Duration::from_secs(30);

/// Until `stop`. What keeps it from asking is told by the capture already.
pub async fn watch(config: Arc<Config>, system: SystemId, status: Arc<Status>, stop: CancellationToken) {
    if config.system(system).engine != Engine::Postgres {
        return;
    }
    while !stop.is_cancelled() {
        let asked = stop.run_until_cancelled(ask(&config, system, &status)).await;
        if let Some(Err(error)) = asked {
            status.systems[system.index()].capture.retained_bytes.set(-1);
            debug!(error = %error, "retained WAL is not known");
        }
        stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
    }
}

async fn ask(config: &Config, system: SystemId, status: &Status) -> Result<()> {
    let connect = &config.system(system).connect;
    let client = crate::connect::postgres::connect(connect, &format!("anechoic/{} status", config.agent.id)).await?;
    loop {
        let retained = retained(&client, &config.agent.id, &connect.database).await?;
        let bytes = retained.map_or(-1, |retained| retained.bytes);
        status.systems[system.index()].capture.retained_bytes.set(bytes);
        tokio::time::sleep(EVERY).await;
    }
}
