//! `anechoic pause`, `anechoic resume`, `anechoic reload`: what a person tells the running agent.

use std::path::Path;

use super::conflicts::something_else;
use super::{Outcome, print};
use crate::config::Config;
use crate::control::{Answer, Client, Request};
use crate::error::Result;

pub(super) async fn pause(config: &Config, system: String, paused: bool) -> Result<Outcome> {
    let request = match paused {
        true => Request::Pause { system: system.clone() },
        false => Request::Resume { system: system.clone() },
    };
    tell(&config.agent.data_dir, &request).await?;
    print(&match paused {
        true => format!("{system} is paused: its log waits on its server, and grows; anechoic resume {system}"),
        false => format!("{system} goes on"),
    });
    Ok(Outcome::Done)
}

/// The agent of that directory reads its file again, whatever it is called here.
pub(super) async fn reload(data_dir: &Path) -> Result<Outcome> {
    tell(data_dir, &Request::Reload).await?;
    print("the file is taken");
    Ok(Outcome::Done)
}

async fn tell(data_dir: &Path, request: &Request) -> Result<()> {
    match connected(data_dir).await?.ask(request).await? {
        Answer::Told => Ok(()),
        _ => Err(something_else()),
    }
}

pub(super) async fn connected(data_dir: &Path) -> Result<Client> {
    Client::connect(data_dir).await?.ok_or_else(|| super::nobody("no agent runs on this data_dir"))
}
