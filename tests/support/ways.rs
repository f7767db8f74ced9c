//! Every way in which the agent connects to a system, tried alike.

use std::sync::Arc;
use std::time::Duration;

use anechoic::capture::CaptureSpec;
use anechoic::capture::mysql::{self, MyCapture};
use anechoic::capture::postgres::{self, PgCapture};
use anechoic::catalog::TableName;
use anechoic::config::ConnectConfig;
use anechoic::connect;
use anechoic::error::Error;

use super::servers::Db;
use super::{SOON, eventually, unique};

/// Where a log starts, so that it can be asked for.
pub struct Ways {
    postgres: bool,
    spec: CaptureSpec,
}

impl Ways {
    /// To that database, whose position is created.
    pub async fn of(db: &Db) -> Ways {
        let (postgres, config, agent) = (db.kind.is_postgres(), db.connect_config(), format!("a{}", unique()));
        let (start, identity) = if postgres {
            let publication = postgres::publication_name(&agent);
            db.admin().await.execute(&format!("CREATE PUBLICATION {publication}")).await;
            let client = connect::postgres::connect(&config, "test").await.unwrap();
            // Not while another test of the same server has a transaction open.
            eventually(2 * SOON, || async {
                postgres::create_position(&client, &agent, &db.name).await.map_err(|error| error.full())
            })
            .await
        } else {
            let mut conn = connect::mysql::connect(&config).await.unwrap();
            mysql::create_position(&mut conn).await.unwrap()
        };
        let spec = CaptureSpec {
            agent,
            marker: TableName { schema: db.marker.clone(), name: "marker".into() },
            tables: Vec::new(),
            start: start.clone(),
            identity: Arc::from(identity),
            prepared: Default::default(),
            without_origins: false,
            acknowledged: tokio::sync::watch::channel(start).1,
        };
        Ways { postgres, spec }
    }

    /// A session, then a connection for the log.
    pub async fn try_all(&self, config: &ConnectConfig) -> [(&'static str, Result<(), Error>); 2] {
        [("session", self.session(config).await), ("log", self.log(config).await)]
    }

    pub async fn session(&self, config: &ConnectConfig) -> Result<(), Error> {
        if self.postgres {
            let client = connect::postgres::connect(config, "test").await?;
            client.batch_execute("SELECT 1").await.unwrap();
        } else {
            let mut conn = connect::mysql::connect(config).await?;
            connect::mysql::server(&mut conn).await?;
        }
        Ok(())
    }

    pub async fn log(&self, config: &ConnectConfig) -> Result<(), Error> {
        if !self.postgres {
            return MyCapture::connect(config, self.spec.clone()).await.map(drop);
        }
        let began = std::time::Instant::now();
        loop {
            match PgCapture::connect(config, self.spec.clone()).await {
                // The walsender of the connection before needs a moment to go.
                Err(error) if error.code.as_deref() == Some("55006") && began.elapsed() < SOON => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                result => return result.map(drop),
            }
        }
    }
}
