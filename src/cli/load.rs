//! `anechoic load`: the running agent copies; this asks it to, and shows how it goes.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use super::{LoadOptions, Outcome, print, print_json, tell_of_keyless};
use crate::config::Config;
use crate::control::{Answer, Client, Request};
use crate::error::{Error, Result};
use crate::http::status::Report;
use crate::load::{Classes, LoadProgress, LoadSpec, ResyncSpec};

const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn load(config: &Config, options: LoadOptions) -> Result<Outcome> {
    let Some(mut agent) = Client::connect(&config.agent.data_dir).await? else {
        return Err(super::nobody("no agent runs on this data_dir: it reads the logs meanwhile"));
    };
    let LoadOptions { entities, from, resync, restored, dry_run, only_missing, delete_extra, max_rate, parallel, json } =
        options;
    let request = match resync {
        Some(system) => Request::Resync(ResyncSpec { system, restored, delete_extra }),
        None => {
            tell_of_keyless(config, &entities);
            Request::Load(LoadSpec { entities, from, dry_run, only_missing, max_rate, parallel, delete_extra })
        }
    };
    agent.ask(&request).await?;
    let loads = look_on(&mut agent, json, |report| report.loads.clone()).await?;
    match json {
        true => print_json(&loads),
        false => loads.iter().for_each(|load| print(&human(load))),
    }
    Ok(if loads.iter().all(|load| load.state == "done") { Outcome::Done } else { Outcome::Found })
}

/// Draws a bar on a terminal until what was asked for is over.
pub(super) async fn look_on(
    agent: &mut Client,
    json: bool,
    of: impl Fn(&Report) -> Vec<LoadProgress>,
) -> Result<Vec<LoadProgress>> {
    let draws = !json && std::io::stderr().is_terminal();
    loop {
        let Answer::Status { report } = agent.ask(&Request::Status).await? else {
            return Err(Error::stop("the agent answered something else", "restart the agent after an upgrade"));
        };
        let progress = of(&report);
        let over = progress.iter().all(LoadProgress::is_over);
        if draws && over {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        } else if draws {
            draw(&progress);
        }
        if over {
            return Ok(progress);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One line that is drawn again and again.
fn draw(loads: &[LoadProgress]) {
    let Some(load) = loads.iter().find(|load| !load.is_over()) else { return };
    let _ = write!(std::io::stderr().lock(), "\r\x1b[K{}", bar(load));
}

fn bar(load: &LoadProgress) -> String {
    const WIDTH: u64 = 24;
    let mut line = format!("{} from {} ", load.entity, load.from);
    if let Some(total) = load.total.filter(|total| *total >= load.read && *total > 0) {
        let filled = (load.read * WIDTH / total) as usize;
        let left = (total - load.read) as f64 / load.rate().max(1.0);
        let _ = write!(line, "[{}{}] ", "#".repeat(filled), ".".repeat(WIDTH as usize - filled));
        let _ = write!(line, "{} of about {total} rows, {:.0} rows/s, {left:.0} s left", load.read, load.rate());
    } else {
        let _ = write!(line, "{} rows, {:.0} rows/s", load.read, load.rate());
    }
    if let Some(error) = &load.error {
        let _ = write!(line, " ({}: {error})", load.state);
    }
    line
}

fn human(load: &LoadProgress) -> String {
    let mut text = format!(
        "{}: {}; {} rows read in {:.1} s, compared with {}, {} copied",
        load.entity, load.state, load.read, load.seconds, load.from, load.copied
    );
    if let Some(error) = &load.error {
        let _ = write!(text, "\n  {error}");
    }
    if load.deleted > 0 {
        let _ = write!(text, ", {} deleted that only the others had", load.deleted);
    }
    if load.refused > 0 {
        let _ = write!(text, "\n  {} rows set aside: they cannot be carried", load.refused);
    }
    for (system, classes) in &load.systems {
        text += &self::text(system, classes);
    }
    text
}

/// What was found of one system, in lines of its own.
pub(super) fn text(system: &str, classes: &Classes) -> String {
    let mut text = format!(
        "\n  {system}: {} equal, {} different, {} missing, {} only there",
        classes.equal, classes.different, classes.missing, classes.extra
    );
    if classes.held > 0 {
        let _ = write!(text, ", {} in quarantine", classes.held);
    }
    for (field, rows) in &classes.fields {
        let _ = write!(text, "\n    {field} differs in {rows}");
    }
    for (class, keys) in &classes.samples {
        let _ = write!(text, "\n    {class}, for example: {}", keys.join("; "));
    }
    text
}
