//! `anechoic run`

use super::Outcome;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::shutdown;

pub(super) async fn run(config: Config) -> Result<Outcome> {
    let _stop = shutdown::on_signal()?;
    Err(Error::stop(format!("this build has no agent to run as {:?}", config.agent.id), ""))
}
