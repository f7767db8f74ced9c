//! `anechoic run`

use std::path::PathBuf;

use super::Outcome;
use crate::config::Config;
use crate::error::Result;
use crate::{agent, shutdown};

pub(super) async fn run(config: Config, file: PathBuf) -> Result<Outcome> {
    let stop = shutdown::on_signal()?;
    let reload = agent::Reload::on_hangup(file)?;
    agent::run(config, reload, stop).await?;
    Ok(Outcome::Done)
}
