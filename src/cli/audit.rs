//! `anechoic audit`: of the running agent, else of its journal; and of the audit files.

use std::io::Write;

use super::conflicts::{known_entity, something_else};
use super::{AuditFormat, AuditOptions, Outcome, print, print_json};
use crate::audit::export::{AuditSpec, Page, page};
use crate::audit::ledger::{Checked, check};
use crate::audit::operation::Operation;
use crate::config::Config;
use crate::control::{Answer, Client, Image, Request};
use crate::error::{Error, Result};
use crate::setup::operator;

pub(super) async fn audit(config: &Config, options: AuditOptions) -> Result<Outcome> {
    if options.check {
        return checked(config, options.json);
    }
    known_entity(config, options.entity.as_deref())?;
    let op = options.op.map(|op| format!("{op:?}").to_lowercase());
    let AuditOptions { since, until, entity, system, format, .. } = options;
    let mut spec = AuditSpec { since, until, entity, system, op, ..AuditSpec::default() };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut agent = Client::connect(&config.agent.data_dir).await?;
    let operator = if agent.is_none() { Some(operator(config)?) } else { None };
    if format == AuditFormat::Csv && out.write_all(NAMES.as_bytes()).is_err() {
        return Ok(Outcome::Done);
    }
    loop {
        let Page { operations, next } = match (&mut agent, &operator) {
            (Some(agent), _) => match agent.ask(&Request::Audit(spec.clone())).await? {
                Answer::Audited(page) => page,
                _ => return Err(something_else()),
            },
            (None, Some(operator)) => page(&operator.journal, &spec)?,
            (None, None) => unreachable!("one of them was there"),
        };
        let lines: String = operations.iter().map(|operation| line(operation, format)).collect();
        // A reader that has gone away is nobody's trouble.
        if out.write_all(lines.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(Outcome::Done);
        }
        match next {
            Some(next) => spec.from = next,
            None => return Ok(Outcome::Done),
        }
    }
}

fn line(operation: &Operation, format: AuditFormat) -> String {
    match format {
        AuditFormat::Jsonl => serde_json::to_string(operation).expect("operations are plain data") + "\n",
        AuditFormat::Csv => csv(operation),
    }
}

const NAMES: &str =
    "seq,index,at,origin,how,txid,entity,key,op,decision,lost_to,rule,outcome,conflict,before,after,instead\r\n";

/// As RFC 4180 has it.
fn csv(operation: &Operation) -> String {
    let json = |image: &Option<Image>| {
        image.as_ref().map_or_else(String::new, |image| serde_json::to_string(image).expect("plain data"))
    };
    let met = operation.conflict.as_ref();
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let values = [
        operation.seq.to_string(),
        operation.index.to_string(),
        text(operation.at.as_deref()),
        operation.origin.clone(),
        operation.how.clone(),
        operation.txid.clone(),
        operation.entity.clone(),
        operation.key.clone(),
        operation.op.clone(),
        operation.decision.clone(),
        operation.lost_to.map_or_else(String::new, |seq| seq.to_string()),
        text(met.map(|met| met.rule.as_str())),
        text(met.map(|met| met.outcome.as_str())),
        text(met.map(|met| met.id.as_str())),
        json(&operation.before),
        json(&operation.after),
        operation.instead.as_ref().map_or_else(String::new, |instead| json(&instead.after)),
    ];
    values.map(|value| quoted(&value)).join(",") + "\r\n"
}

fn quoted(value: &str) -> String {
    match value.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value.to_owned(),
    }
}

fn checked(config: &Config, json: bool) -> Result<Outcome> {
    let none = || Error::stop("no audit files are written: the file has no [audit]", "[audit] dir = \"…\"");
    let audit = config.audit.as_ref().ok_or_else(none)?;
    let checked = check(&audit.dir)?;
    let faults = checked.iter().filter(|file| file.fault.is_some()).count();
    if json {
        print_json(&checked);
        return Ok(if faults > 0 { Outcome::Found } else { Outcome::Done });
    }
    for Checked { file, operations, state, fault } in &checked {
        match fault {
            None => print(&format!("{file}: {state}, {operations} operations, as they were written")),
            Some(fault) => print(&format!("{file}: {fault}")),
        }
    }
    match (checked.is_empty(), faults) {
        (true, _) => print("no audit files yet"),
        (false, 0) => print("nothing was altered"),
        (false, _) => print("altered: see above; the journal tells what it was, as far as it reaches back"),
    }
    Ok(if faults > 0 { Outcome::Found } else { Outcome::Done })
}
