//! `anechoic run`

use super::Outcome;
use crate::config::Config;
use crate::error::Result;
use crate::{agent, shutdown};

pub(super) async fn run(config: Config) -> Result<Outcome> {
    let stop = shutdown::on_signal()?;
    agent::run(config, stop).await?;
    Ok(Outcome::Done)
}
