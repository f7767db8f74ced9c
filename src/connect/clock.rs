//! A server's clock beside this machine's.

use std::time::{SystemTime, UNIX_EPOCH};

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio_postgres::Client;

use super::{mysql, postgres};
use crate::error::Result;

/// Microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// How far it is ahead of ours.
    pub ahead: i64,
    /// `ahead` is at most so far from the truth.
    pub doubt: i64,
}

impl Clock {
    /// The server's answer is from between the two moments.
    fn read(before: i64, server: i64, after: i64) -> Self {
        Clock { ahead: server - (before + after) / 2, doubt: (after - before) / 2 + 1 }
    }

    pub async fn of_postgres(client: &Client) -> Result<Clock> {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
        let before = now();
        let row = client.query_one(sql, &[]).await;
        let row = row.map_err(|error| postgres::error(&error).context("asking for the time"))?;
        Ok(Clock::read(before, row.get(0), now()))
    }

    /// SYSDATE, because a session may set what NOW is.
    pub async fn of_mysql(conn: &mut Conn) -> Result<Clock> {
        let sql = "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)";
        let before = now();
        let server: Option<i64> =
            conn.query_first(sql).await.map_err(|error| mysql::failed(error, "asking the server for the time"))?;
        Ok(Clock::read(before, server.unwrap_or(before), now()))
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_read_between_two_looks_at_ours() {
        assert_eq!(Clock::read(1000, 5000, 3000), Clock { ahead: 3000, doubt: 1001 });
    }
}
