//! `anechoic wait`: asks the running agent.

use super::{Outcome, WaitOptions, print, print_json};
use crate::config::Config;
use crate::control::{Answer, Client, Request};
use crate::error::{Error, Result};

pub(super) async fn wait(config: &Config, options: &WaitOptions) -> Result<Outcome> {
    let Some(mut agent) = Client::connect(&config.agent.data_dir).await? else {
        return Err(super::nobody("no agent runs on this data_dir: nothing to wait for"));
    };
    let timeout_ms = u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX);
    let Answer::Waited(waited) = agent.ask(&Request::Wait { timeout_ms }).await? else {
        return Err(Error::stop("the agent answered something else", "restart the agent after an upgrade"));
    };
    if options.json {
        print_json(&waited);
    } else if waited.done {
        print(&format!("everything up to seq {} is applied everywhere ({} ms)", waited.head, waited.elapsed_ms));
    } else {
        waited.problems.iter().for_each(|problem| print(problem));
    }
    Ok(if waited.done { Outcome::Done } else { Outcome::Found })
}
