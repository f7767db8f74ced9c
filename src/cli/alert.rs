//! `anechoic alert test`: whether what is configured reaches anybody.

use serde::Serialize;

use super::{Outcome, complain, print, print_json};
use crate::alert::try_each;
use crate::config::{AlertConfig, Config, nearest};
use crate::error::{Error, Result};

#[derive(Serialize)]
struct Told<'a> {
    alert: &'a str,
    target: &'a str,
    arrived: bool,
    error: Option<String>,
}

pub(super) async fn test(config: &Config, name: Option<&str>, json: bool) -> Result<Outcome> {
    let alerts: Vec<&AlertConfig> =
        config.alerts.iter().filter(|alert| name.is_none_or(|name| name == alert.name)).collect();
    if alerts.is_empty() {
        let names = || config.alerts.iter().map(|alert| alert.name.as_str());
        complain(&match name {
            _ if config.alerts.is_empty() => "the file has no [[alert]]".to_owned(),
            Some(name) => {
                let near = nearest(name, names()).map_or_else(String::new, |near| format!("; nearest: {near:?}"));
                format!("there is no alert {name:?}{near}")
            }
            None => unreachable!("without a name all are meant"),
        });
        return Ok(Outcome::Broken);
    }
    let tried = try_each(config, &alerts).await;
    let told: Vec<Told<'_>> = tried
        .iter()
        .map(|tried| Told {
            alert: &tried.alert,
            target: &tried.target,
            arrived: tried.failed.is_none(),
            error: tried.failed.as_ref().map(Error::full),
        })
        .collect();
    match json {
        true => print_json(&told),
        false => told.iter().for_each(|told| print(&line(told))),
    }
    Ok(if told.iter().all(|told| told.arrived) { Outcome::Done } else { Outcome::Broken })
}

fn line(told: &Told<'_>) -> String {
    let Told { alert, target, error, .. } = told;
    match error {
        None => format!("{alert}: {target}: arrived"),
        Some(error) => format!("{alert}: {target}: {error}"),
    }
}
