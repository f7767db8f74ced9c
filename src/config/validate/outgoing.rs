//! Whom the agent tells by itself, and of what.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{choice, duration};
use crate::alert::Condition;
use crate::change::Op;
use crate::config::outgoing::{AlertConfig, AlertTarget, Form, NotifyConfig, WebhookConfig};
use crate::config::raw::{At, RawAlert, RawEntity, RawNotify, RawWebhook, Reader};
use crate::config::{PasswordSource, nearest, units};
use crate::webhook::{self, Address};

/// More changes than that in one request are too many at any size.
const BATCH_MAX: usize = 10_000;
const BATCH: usize = 100;
const BODY: u64 = 1 << 20;
/// Least and most that one request may be limited to.
const BODY_LIMITS: std::ops::RangeInclusive<u64> = 4 << 10..=64 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(60);

pub(super) fn alerts(raw: &[RawAlert], reader: &mut Reader<'_>) -> Vec<AlertConfig> {
    let mut names = HashSet::new();
    raw.iter().enumerate().filter_map(|(index, raw)| alert(raw, index, &mut names, reader)).collect()
}

fn alert<'a>(
    raw: &'a RawAlert,
    index: usize,
    names: &mut HashSet<&'a str>,
    reader: &mut Reader<'_>,
) -> Option<AlertConfig> {
    let place = place("alert", index, raw.name.as_ref());
    let name = name(&raw.name, raw.line, &place, names, reader);
    if raw.on.is_empty() {
        reader.error(raw.line, &place, "says of nothing: on = [\"stopped\", \"lag > 60s\", \"quarantine\"]");
    }
    let mut on: Vec<Condition> = Vec::new();
    for at in &raw.on {
        match Condition::parse(&at.value) {
            Ok(condition) if on.contains(&condition) => {
                reader.error(at.line, &place, format!("{:?} is given twice", at.value));
            }
            Ok(condition) => on.push(condition),
            Err(why) => reader.error(at.line, &place, format!("on {:?} {why}", at.value)),
        }
    }
    if let Some(at) = &raw.format {
        choice(at, "format", &["json", "slack"], &place, reader);
    }
    let slack = raw.format.as_ref().is_some_and(|at| at.value == "slack");
    let given = given(&raw.webhook);
    let target = match &raw.command {
        Some(argv) => {
            let more = raw.webhook.secret().or(raw.webhook.ca_file.as_ref()).or(raw.format.as_ref());
            let header = raw.webhook.headers.first().map(|(name, _)| name);
            if let Some(at) = given.first().copied().or(more).or(header) {
                reader.error(at.line, &place, "has a command and a webhook's keys: give each an [[alert]] of its own");
            }
            if argv.first().is_none_or(|program| program.value.is_empty()) {
                reader.error(
                    raw.line,
                    &place,
                    "command names no program: command = [\"/usr/local/bin/page\", \"--urgent\"]",
                );
            }
            Some(AlertTarget::Command(argv.iter().map(|at| at.value.clone()).collect()))
        }
        None if given.is_empty() => {
            let message = "tells nobody: webhook = \"https://…\" (or webhook_file, webhook_env), or command = [\"…\"]";
            reader.error(raw.line, &place, message);
            None
        }
        None => {
            let form = if slack { Form::Slack } else { Form::Json };
            webhook(&raw.webhook, &place, reader).map(|webhook| AlertTarget::Webhook(webhook, form))
        }
    };
    let timeout = positive(&raw.webhook.timeout, "timeout", TIMEOUT, &place, reader);
    let settle = duration(&raw.settle, "settle", SETTLE, &place, reader);
    Some(AlertConfig { name: name?, on, target: target?, timeout, settle })
}

pub(super) fn notifies(raw: &[RawNotify], entities: &[RawEntity], reader: &mut Reader<'_>) -> Vec<NotifyConfig> {
    let mut names = HashSet::new();
    raw.iter().enumerate().filter_map(|(index, raw)| notify(raw, index, entities, &mut names, reader)).collect()
}

fn notify<'a>(
    raw: &'a RawNotify,
    index: usize,
    entities: &[RawEntity],
    names: &mut HashSet<&'a str>,
    reader: &mut Reader<'_>,
) -> Option<NotifyConfig> {
    let place = place("notify", index, raw.name.as_ref().or(raw.entity.as_ref()));
    // Called as its entity, where nothing else is said.
    let called = if raw.name.is_some() { &raw.name } else { &raw.entity };
    let name = raw.entity.as_ref().and_then(|_| name(called, raw.line, &place, names, reader));
    let entity = entity(raw, &place, entities, reader);
    let on = raw.on.as_ref().map_or_else(|| Op::ALL.to_vec(), |on| operations(on, &place, reader));
    if raw.on.as_ref().is_some_and(Vec::is_empty) {
        reader.error(raw.line, &place, "on names nothing: on = [\"insert\", \"update\", \"delete\"]");
    }
    if given(&raw.webhook).is_empty() {
        reader.error(raw.line, &place, "tells nobody: webhook = \"https://…\" (or webhook_file, webhook_env)");
        return None;
    }
    let webhook = webhook(&raw.webhook, &place, reader);
    let timeout = positive(&raw.webhook.timeout, "timeout", TIMEOUT, &place, reader);
    let batch = raw.batch.as_ref().map_or(BATCH, |at| {
        at.value.parse().ok().filter(|n| (1..=BATCH_MAX).contains(n)).unwrap_or_else(|| {
            reader.error(at.line, &place, format!("batch {:?} is no number from 1 to {BATCH_MAX}", at.value));
            BATCH
        })
    });
    let max_body = raw.max_body.as_ref().map_or(BODY, |at| {
        units::size(&at.value).filter(|size| BODY_LIMITS.contains(size)).unwrap_or_else(|| {
            reader.error(at.line, &place, format!("max_body {:?} is no size from \"4KiB\" to \"64MiB\"", at.value));
            BODY
        })
    });
    Some(NotifyConfig {
        name: name?,
        entity: entity?,
        fields: raw.fields.as_ref().map(|fields| fields.iter().map(|at| at.value.clone()).collect()),
        on,
        copies: raw.copies.as_ref().is_some_and(|at| at.value),
        webhook: webhook?,
        timeout,
        batch,
        max_body: usize::try_from(max_body).unwrap_or(usize::MAX),
    })
}

fn entity(raw: &RawNotify, place: &str, entities: &[RawEntity], reader: &mut Reader<'_>) -> Option<String> {
    let Some(at) = &raw.entity else {
        reader.error(raw.line, place, "key \"entity\" is missing: entity = \"contact\"");
        return None;
    };
    let known = || entities.iter().filter_map(|entity| entity.name.as_ref().map(|name| name.value.as_str()));
    if known().any(|name| name == at.value) {
        return Some(at.value.clone());
    }
    let way_out = match nearest(&at.value, known()) {
        Some(near) => format!("nearest: {near:?}"),
        None => format!("known: {}", known().collect::<Vec<_>>().join(", ")),
    };
    reader.error(at.line, place, format!("there is no entity {:?}; {way_out}", at.value));
    None
}

fn operations(on: &[At<String>], place: &str, reader: &mut Reader<'_>) -> Vec<Op> {
    let names = Op::ALL.map(Op::name);
    on.iter().for_each(|at| choice(at, "operation", &names, place, reader));
    Op::ALL.into_iter().filter(|op| on.iter().any(|at| at.value == op.name())).collect()
}

fn place(kind: &str, index: usize, name: Option<&At<String>>) -> String {
    match name {
        Some(name) => format!("{kind} {:?}", name.value),
        None => format!("{kind} number {}", index + 1),
    }
}

fn name<'a>(
    raw: &'a Option<At<String>>,
    line: usize,
    place: &str,
    names: &mut HashSet<&'a str>,
    reader: &mut Reader<'_>,
) -> Option<String> {
    let Some(name) = raw else {
        reader.error(line, place, "key \"name\" is missing: name = \"ops\"");
        return None;
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if name.value.is_empty() || name.value.len() > 63 || !name.value.bytes().all(legal) {
        reader.error(name.line, place, "the name has to be 1 to 63 letters, digits, _ or -");
    }
    if !names.insert(&name.value) {
        reader.error(name.line, place, "the name is given twice: choose another one");
    }
    Some(name.value.clone())
}

impl RawWebhook {
    fn secret(&self) -> Option<&At<String>> {
        self.secret_file.as_ref().or(self.secret_env.as_ref())
    }
}

/// Where the address is said to be.
fn given(raw: &RawWebhook) -> Vec<&At<String>> {
    [&raw.url, &raw.url_file, &raw.url_env].into_iter().flatten().collect()
}

fn webhook(raw: &RawWebhook, place: &str, reader: &mut Reader<'_>) -> Option<WebhookConfig> {
    if let [_, second, ..] = given(raw)[..] {
        reader.error(second.line, place, "the address is given twice: webhook, webhook_file, webhook_env; leave one");
    }
    if let (Some(_), Some(env)) = (&raw.secret_file, &raw.secret_env) {
        reader.error(env.line, place, "the secret is given twice: secret_file and secret_env; leave one out");
    }
    if let Some(at) = &raw.url
        && let Err(why) = Address::parse(&at.value)
    {
        reader.error(at.line, place, format!("the webhook {why}"));
    }
    let mut headers = Vec::new();
    for (name, value) in &raw.headers {
        match webhook::header(&name.value, value) {
            Ok(_) => headers.push((name.value.clone(), value.clone())),
            Err(why) => reader.error(name.line, place, format!("header {:?} {why}", name.value)),
        }
    }
    let source =
        |inline: &Option<At<String>>, file: &Option<At<String>>, env: &Option<At<String>>| match (inline, file, env) {
            (Some(at), ..) => PasswordSource::Inline(at.value.clone()),
            (_, Some(at), _) => PasswordSource::File(PathBuf::from(&at.value)),
            (.., Some(at)) => PasswordSource::Env(at.value.clone()),
            _ => PasswordSource::None,
        };
    Some(WebhookConfig {
        url: source(&raw.url, &raw.url_file, &raw.url_env),
        secret: source(&None, &raw.secret_file, &raw.secret_env),
        headers,
        ca_file: raw.ca_file.as_ref().map(|at| PathBuf::from(&at.value)),
    })
}

fn positive(raw: &Option<At<String>>, key: &str, default: Duration, place: &str, reader: &mut Reader<'_>) -> Duration {
    let given = duration(raw, key, default, place, reader);
    if let (Some(at), true) = (raw, given.is_zero()) {
        reader.error(at.line, place, format!("{key} is no time at all: {key} = \"10s\""));
    }
    given
}
