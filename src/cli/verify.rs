//! `anechoic verify`: the running agent compares; this asks it to, and prints what it found.

use std::fmt::Write as _;

use super::load::{look_on, text};
use super::{Outcome, VerifyOptions, print, print_json, tell_of_keyless};
use crate::config::Config;
use crate::control::{Client, Request};
use crate::error::Result;
use crate::load::{Classes, LoadProgress, VerifySpec};

pub(super) async fn verify(config: &Config, options: VerifyOptions) -> Result<Outcome> {
    let Some(mut agent) = Client::connect(&config.agent.data_dir).await? else {
        return Err(super::nobody("no agent runs on this data_dir: it reads the logs meanwhile"));
    };
    let VerifyOptions { entities, sample, repair, values, max_rate, json } = options;
    tell_of_keyless(config, &entities);
    agent.ask(&Request::Verify(VerifySpec { entities, sample_percent: sample, repair, values, max_rate })).await?;
    let found = look_on(&mut agent, json, |report| report.verified.clone()).await?;
    match json {
        true => print_json(&found),
        false => found.iter().for_each(|entity| print(&human(entity, repair))),
    }
    // What differed is mended then, but for rows that are written all the time.
    let mended = repair && found.iter().all(|entity| entity.lost == 0);
    Ok(match found.iter().all(|entity| entity.state == "done") {
        false => Outcome::Broken,
        true if mended => Outcome::Done,
        true if found.iter().flat_map(|entity| entity.systems.values()).any(differs) => Outcome::Found,
        true => Outcome::Done,
    })
}

fn differs(classes: &Classes) -> bool {
    classes.differences() > 0
}

fn human(entity: &LoadProgress, repair: bool) -> String {
    let mut out = match &entity.error {
        Some(error) => format!("{}: {}\n  {error}", entity.entity, entity.state),
        None => format!(
            "{}: {} rows read in {:.1} s, compared with {}",
            entity.entity, entity.read, entity.seconds, entity.from
        ),
    };
    for (system, classes) in &entity.systems {
        out += &text(system, classes);
    }
    if entity.refused > 0 {
        let _ = write!(out, "\n  {} rows hold what cannot be carried, and are no measure", entity.refused);
    }
    if entity.lost > 0 {
        let _ = write!(out, "\n  {} rows are written all the time and were left to the log", entity.lost);
    }
    if repair && entity.copied > 0 {
        let _ = write!(out, "\n  repaired: {} rows journaled", entity.copied);
    }
    out
}
