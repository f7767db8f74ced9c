//! `anechoic alert test`: whether what is configured reaches anybody.

use super::conflicts::something_else;
use super::{Outcome, complain, print, print_json};
use crate::alert::{Tried, try_each};
use crate::config::{Config, nearest};
use crate::control::{Answer, Client, Request};
use crate::error::Result;

/// By the running agent where there is one: with the user, the files and the walls of every real alert.
pub(super) async fn test(config: &Config, name: Option<&str>, json: bool) -> Result<Outcome> {
    let known = |name: &str| config.alerts.iter().any(|alert| alert.name == name);
    if config.alerts.is_empty() || name.is_some_and(|name| !known(name)) {
        let names = || config.alerts.iter().map(|alert| alert.name.as_str());
        complain(&match name {
            Some(name) if !config.alerts.is_empty() => {
                let near = nearest(name, names()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
                format!("there is no alert {name:?}{near}")
            }
            _ => "the file has no [[alert]]".to_owned(),
        });
        return Ok(Outcome::Broken);
    }
    let tried = match Client::connect(&config.agent.data_dir).await? {
        Some(mut agent) => match agent.ask(&Request::Alert { name: name.map(str::to_owned) }).await? {
            Answer::Alerted(tried) => tried,
            _ => return Err(something_else()),
        },
        None => {
            complain("no agent runs: sent by this command, with what its own user may do");
            try_each(config, name).await
        }
    };
    if tried.is_empty() {
        complain("the running agent has no such alert yet: anechoic reload");
        return Ok(Outcome::Broken);
    }
    match json {
        true => print_json(&tried),
        false => tried.iter().for_each(|tried| print(&line(tried))),
    }
    Ok(if tried.iter().all(|tried| tried.arrived) { Outcome::Done } else { Outcome::Broken })
}

fn line(tried: &Tried) -> String {
    let Tried { alert, target, error, .. } = tried;
    match error {
        None => format!("{alert}: {target}: arrived"),
        Some(error) => format!("{alert}: {target}: {error}"),
    }
}
