//! How far the servers' clocks are apart: what commit times are corrected by where the later commit
//! wins. Asked now and then, on a connection of its own, and only where something is decided by it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::{Config, Engine};
use crate::connect::clock::Clock;
use crate::error::Result;
use crate::schema::SystemId;
use crate::status::Status;

const EVERY: Duration = Duration::from_secs(60);
/// Of several answers the one that came fastest tells most.
const LOOKS: usize = 5;

/// Until `stop`. A system that cannot be asked keeps what was last known of it.
pub async fn watch(config: Arc<Config>, system: SystemId, status: Arc<Status>, stop: CancellationToken) {
    if !config.entities.iter().any(|entity| entity.compares_commit_times()) {
        return;
    }
    while !stop.is_cancelled() {
        match stop.run_until_cancelled(look(&config, system)).await {
            Some(Ok(clock)) => status.systems[system.index()].capture.clock_ahead.set(surely_ahead(clock)),
            Some(Err(error)) => debug!(error = %error, "the server's clock is not known"),
            None => return,
        }
        stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
    }
}

/// What may be none is taken for none: an answer that was slow would make a clock wrong that is right.
fn surely_ahead(clock: Clock) -> i64 {
    if clock.ahead.abs() <= clock.doubt { 0 } else { clock.ahead }
}

async fn look(config: &Config, system: SystemId) -> Result<Clock> {
    let connect = &config.system(system).connect;
    let name = format!("anechoic/{} clock", config.agent.id);
    let mut best: Option<Clock> = None;
    let mut keep = |clock: Clock| {
        if best.is_none_or(|best| clock.doubt < best.doubt) {
            best = Some(clock);
        }
    };
    match config.system(system).engine {
        Engine::Postgres => {
            let client = crate::connect::postgres::connect(connect, &name).await?;
            for _ in 0..LOOKS {
                keep(Clock::of_postgres(&client).await?);
            }
        }
        Engine::Mysql => {
            let mut conn = crate::connect::mysql::connect(connect).await?;
            for _ in 0..LOOKS {
                keep(Clock::of_mysql(&mut conn).await?);
            }
            // It has said what there was to say.
            let _ = conn.disconnect().await;
        }
    }
    Ok(best.expect("it was asked at least once"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_makes_no_clock_wrong() {
        assert_eq!(surely_ahead(Clock { ahead: -80_000, doubt: 85_000 }), 0);
        assert_eq!(surely_ahead(Clock { ahead: -80_000, doubt: 500 }), -80_000);
    }
}
