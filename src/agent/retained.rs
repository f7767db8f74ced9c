//! How much log a server keeps, and how much of it lies before us: asked now and then on a
//! connection of its own, so that a disk that fills is seen on the port before it is full.
//!
//! PostgreSQL keeps WAL for our slot. MySQL and MariaDB keep binlogs for so long, whoever reads
//! them: what matters there is how much of it is still to be read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::capture::mysql::binlogs;
use crate::capture::postgres::{current_position, retained};
use crate::config::{Config, Engine};
use crate::error::Result;
use crate::position::{BinlogPosition, Position};
use crate::schema::SystemId;
use crate::status::{CaptureStatus, Status};

const EVERY: Duration = Duration::from_secs(15);

/// Whose log, and how far we have it.
pub struct Retained {
    pub config: Arc<Config>,
    pub system: SystemId,
    pub taken: watch::Receiver<Position>,
    pub status: Arc<Status>,
}

impl Retained {
    /// Until `stop`. What keeps it from asking is told by the capture already.
    pub async fn watch(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let asked = stop.run_until_cancelled(self.ask()).await;
            if let Some(Err(error)) = asked {
                self.capture().retained_bytes.set(-1);
                self.capture().lag_bytes.set(-1);
                debug!(error = %error, "how much log is kept is not known");
            }
            stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
        }
    }

    fn capture(&self) -> &CaptureStatus {
        &self.status.systems[self.system.index()].capture
    }

    /// As long as the connection holds.
    async fn ask(&self) -> Result<()> {
        let (system, agent) = (self.config.system(self.system), &self.config.agent.id);
        match system.engine {
            Engine::Postgres => {
                let name = format!("anechoic/{agent} status");
                let client = crate::connect::postgres::connect(&system.connect, &name).await?;
                loop {
                    let taken = self.taken.borrow().clone();
                    let kept = retained(&client, agent, &system.connect.database).await?;
                    let behind = match (taken, current_position(&client).await?) {
                        (Position::Postgres { lsn: ours }, Position::Postgres { lsn: end }) => bytes(end.0, ours.0),
                        _ => -1,
                    };
                    self.note(kept.map_or(-1, |kept| kept.bytes), behind).await;
                }
            }
            Engine::Mysql => {
                let mut conn = crate::connect::mysql::connect(&system.connect).await?;
                loop {
                    let taken = self.taken.borrow().clone();
                    let logs = binlogs(&mut conn).await?;
                    let kept: u64 = logs.iter().map(|log| log.offset).sum();
                    let behind = match taken {
                        Position::Mysql { binlog, .. } | Position::Mariadb { binlog, .. } => behind(&logs, &binlog),
                        Position::Postgres { .. } | Position::Memory { .. } => -1,
                    };
                    self.note(i64::try_from(kept).unwrap_or(i64::MAX), behind).await;
                }
            }
        }
    }

    async fn note(&self, kept: i64, behind: i64) {
        self.capture().retained_bytes.set(kept);
        self.capture().lag_bytes.set(behind);
        tokio::time::sleep(EVERY).await;
    }
}

fn bytes(end: u64, ours: u64) -> i64 {
    i64::try_from(end.saturating_sub(ours)).unwrap_or(i64::MAX)
}

/// `logs`: names and sizes. Negative where ours is not among them.
fn behind(logs: &[BinlogPosition], ours: &BinlogPosition) -> i64 {
    if !logs.iter().any(|log| log.file_number() == ours.file_number()) {
        return -1;
    }
    let ahead = logs.iter().filter(|log| log.file_number() >= ours.file_number());
    bytes(ahead.map(|log| log.offset).sum(), ours.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: &str, offset: u64) -> BinlogPosition {
        BinlogPosition { file: file.into(), offset, begun: 0 }
    }

    #[test]
    fn behind_is_what_is_left_of_our_binlog_and_all_later_ones() {
        let logs = [at("binlog.999998", 500), at("binlog.999999", 100), at("binlog.1000000", 30)];

        assert_eq!(behind(&logs, &at("binlog.999999", 90)), 40);
        assert_eq!(behind(&logs, &at("binlog.1000000", 30)), 0);
        assert_eq!(behind(&logs, &at("binlog.000007", 4)), -1);
    }
}
