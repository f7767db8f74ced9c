//! `anechoic quarantine`: of the running agent, else of its journal.

use std::fmt::Write;

use super::conflicts::something_else;
use super::person::connected;
use super::{Outcome, QuarantineAction, QuarantineOptions, WhichHeld, print, print_json};
use crate::config::Config;
use crate::control::{Answer, Client, Held, HeldSpec, Image, OfHeld, Request, Treated};
use crate::error::Result;
use crate::setup::{exists, operator};

pub(super) async fn quarantine(config: &Config, options: QuarantineOptions) -> Result<Outcome> {
    match options.action {
        Some(QuarantineAction::Retry(which)) => treat(config, which, OfHeld::Retry).await,
        Some(QuarantineAction::Drop(which)) => treat(config, which, OfHeld::Drop).await,
        None => {
            let held = held(config).await?;
            match options.print.json {
                true => print_json(&held),
                false if held.is_empty() => print("nothing is in quarantine"),
                false => print(&table(&held, options.print.values)),
            }
            Ok(Outcome::Done)
        }
    }
}

async fn held(config: &Config) -> Result<Vec<Held>> {
    match Client::connect(&config.agent.data_dir).await? {
        Some(mut agent) => match agent.ask(&Request::Quarantine).await? {
            Answer::Quarantine { held } => Ok(held),
            _ => Err(something_else()),
        },
        None if !exists(config) => Ok(Vec::new()),
        None => Ok(operator(config)?.recovered.quarantined.iter().map(Held::from).collect()),
    }
}

async fn treat(config: &Config, which: WhichHeld, what: OfHeld) -> Result<Outcome> {
    let WhichHeld { system, entity, key, json, .. } = which;
    let of = HeldSpec { system, entity, key };
    let request = match what {
        OfHeld::Retry => Request::Retry(of),
        OfHeld::Drop => Request::Drop(of),
    };
    let Answer::Treated(treated) = connected(&config.agent.data_dir).await?.ask(&request).await? else {
        return Err(something_else());
    };
    let Treated { done, left } = treated;
    let told = match what {
        OfHeld::Retry => format!("{done} tried now; what is refused again stays in the list"),
        OfHeld::Drop => format!("{done} given up; `anechoic verify` shows where rows differ for that"),
    };
    match json {
        true => print_json(&treated),
        false if left > 0 => print(&format!("{told}; {left} left alone: being tried just now, or changed meanwhile")),
        false => print(&told),
    }
    Ok(if left > 0 { Outcome::Found } else { Outcome::Done })
}

fn table(held: &[Held], values: bool) -> String {
    let mut text = format!(
        "{:<16} {:<16} {:<20} {:<8} {:>8}  {:<27} {}",
        "SYSTEM", "ENTITY", "KEY", "CHANGE", "ATTEMPTS", "SINCE", "WHY"
    );
    for one in held {
        let Held { system, entity, key, op, reason, .. } = one;
        // Never again by the clock: only the next change of the record, or a person.
        let attempts = if one.attempts == u32::MAX { "-".into() } else { one.attempts.to_string() };
        let at = one.at.as_deref().unwrap_or_default();
        let _ = write!(text, "\n{system:<16} {entity:<16} {key:<20} {op:<8} {attempts:>8}  {at:<27} {reason}");
        for (name, image) in [("before", &one.before), ("after", &one.after)].into_iter().filter(|_| values) {
            if let Some(image) = image {
                let _ = write!(text, "\n    {name:<6} {}", fields(image));
            }
        }
    }
    text
}

fn fields(image: &Image) -> String {
    let field = |(name, value): (&String, &Option<String>)| format!("{name} = {}", value.as_deref().unwrap_or("NULL"));
    image.iter().map(field).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_only_when_asked_for() {
        let held = Held {
            system: "shop".into(),
            entity: "contact".into(),
            key: "7".into(),
            op: "update".into(),
            before: None,
            after: Some([("id".into(), Some("7".into())), ("name".into(), None)].into()),
            held_seq: 3,
            last_seq: 4,
            reason: "Column 'name' cannot be null".into(),
            code: "1048".into(),
            attempts: u32::MAX,
            at: Some("2026-01-31T12:00:00.000001Z".into()),
        };

        assert!(!table(std::slice::from_ref(&held), false).contains("NULL"));
        insta::assert_snapshot!(table(&[held], true), @r#"
SYSTEM           ENTITY           KEY                  CHANGE   ATTEMPTS  SINCE                       WHY
shop             contact          7                    update          -  2026-01-31T12:00:00.000001Z Column 'name' cannot be null
    after  id = 7, name = NULL
"#);
    }
}
