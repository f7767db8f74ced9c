//! `anechoic pause`, `anechoic resume`, `anechoic reload`: what a person tells the running agent.

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
    tell(config, &request).await?;
    print(&match paused {
        true => format!("{system} is paused: its log waits on its server, and grows; anechoic resume {system}"),
        false => format!("{system} goes on"),
    });
    Ok(Outcome::Done)
}

pub(super) async fn reload(config: &Config) -> Result<Outcome> {
    tell(config, &Request::Reload).await?;
    print("the file is taken");
    Ok(Outcome::Done)
}

async fn tell(config: &Config, request: &Request) -> Result<()> {
    match connected(config).await?.ask(request).await? {
        Answer::Told => Ok(()),
        _ => Err(something_else()),
    }
}

pub(super) async fn connected(config: &Config) -> Result<Client> {
    Client::connect(&config.agent.data_dir).await?.ok_or_else(|| super::nobody("no agent runs on this data_dir"))
}
