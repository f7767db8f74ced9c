//! Brings the events of one alert to where they are to be, in order, each until it has arrived.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Desk;
use super::command;
use super::watch::{Event, What};
use crate::config::{AlertConfig, AlertTarget, Form};
use crate::status::{AlertStatus, Status};
use crate::webhook::{Failure, Patience, Webhook};

/// Where an alert goes.
pub enum Target {
    Webhook(Box<Webhook>, Form),
    Command(Vec<String>),
}

impl Target {
    pub fn of(alert: &AlertConfig) -> Target {
        match &alert.target {
            AlertTarget::Webhook(config, form) => {
                Target::Webhook(Box::new(Webhook::new(config.clone(), alert.timeout)), *form)
            }
            AlertTarget::Command(argv) => Target::Command(argv.clone()),
        }
    }

    /// For people; no more of an address than they may see.
    pub fn place(&self) -> String {
        match self {
            Target::Webhook(webhook, _) => webhook.place(),
            Target::Command(argv) => argv.first().cloned().unwrap_or_default(),
        }
    }

    /// One try.
    pub async fn tell(&mut self, alert: &AlertConfig, event: &Event) -> Result<(), Failure> {
        match self {
            Target::Webhook(webhook, form) => webhook.post(&event.id, &body(event, *form)).await,
            Target::Command(argv) => Ok(command::run(argv, &body(event, Form::Json), alert.timeout).await?),
        }
    }
}

fn body(event: &Event, form: Form) -> Bytes {
    #[derive(Serialize)]
    struct Text {
        text: String,
    }
    let written = match form {
        Form::Json => serde_json::to_vec(event),
        Form::Slack => serde_json::to_vec(&Text { text: text(event) }),
    };
    written.expect("events are plain data").into()
}

fn text(event: &Event) -> String {
    let sign = match event.event {
        What::Firing => ":rotating_light:",
        What::Resolved => ":white_check_mark:",
        What::Test => ":wave:",
    };
    let Event { agent, condition, message, .. } = event;
    // What it would take for a mention or a link.
    let plain = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("{sign} *{}* anechoic {agent}, {}: {}", event.event.name(), plain(condition), plain(message))
}

/// Until `stop`.
pub async fn deliver(alert: AlertConfig, desk: Arc<Desk>, status: Arc<Status>, stop: CancellationToken) {
    let Some(told) = status.alerts.iter().find(|told| told.name == alert.name) else { return };
    let mut target = Target::of(&alert);
    let mut woken = desk.woken();
    let mut patience = Patience::default();
    loop {
        woken.borrow_and_update();
        let Some(event) = desk.first(&alert.name).await else {
            if stop.run_until_cancelled(woken.changed()).await.is_none_or(|changed| changed.is_err()) {
                return;
            }
            continue;
        };
        let Some(tried) = stop.run_until_cancelled(target.tell(&alert, &event)).await else { return };
        match tried {
            Ok(()) => {
                arrived(told, &alert, &event, std::mem::take(&mut patience).attempts);
                desk.delivered(&alert.name, &event.id, told).await;
            }
            Err(failure) => {
                failed(told, &alert, &target, patience.attempts, &failure);
                let pause = patience.pause(&failure, rand::random());
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
            }
        }
    }
}

fn arrived(told: &AlertStatus, alert: &AlertConfig, event: &Event, attempts: u32) {
    match event.event {
        What::Firing => told.fired.add(1),
        What::Resolved | What::Test => told.resolved.add(1),
    }
    *told.error.lock().expect("never held across a panic") = None;
    if attempts > 0 {
        info!(alert = alert.name, attempts, "alerts are delivered again");
    }
}

fn failed(told: &AlertStatus, alert: &AlertConfig, target: &Target, attempt: u32, failure: &Failure) {
    told.failures.add(1);
    let text = failure.error.full();
    let before = told.error.lock().expect("never held across a panic").replace(text.clone());
    // Once for each reason, not for each try.
    if attempt > 0 && before.as_ref() == Some(&text) {
        return;
    }
    let place = target.place();
    match failure.refused {
        true => error!(alert = alert.name, target = place, error = text, "an alert is refused; trying on"),
        false => warn!(alert = alert.name, target = place, error = text, "an alert is not delivered; trying on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            id: "1".into(),
            event: What::Firing,
            alert: "ops".into(),
            agent: "hq".into(),
            incident: "2".into(),
            condition: "lag > 60s".into(),
            system: Some("crm".into()),
            entity: None,
            notify: None,
            message: "crm is 83 s behind".into(),
            since: Some("2026-01-31T12:00:00.000001Z".into()),
            at: Some("2026-01-31T12:00:00.000001Z".into()),
            count: None,
        }
    }

    #[test]
    fn a_body_says_what_when_and_of_whom() {
        let json = String::from_utf8(body(&event(), Form::Json).to_vec()).unwrap();
        let slack = String::from_utf8(body(&event(), Form::Slack).to_vec()).unwrap();

        insta::assert_snapshot!(format!("{json}\n{slack}"), @r#"
        {"id":"1","event":"firing","alert":"ops","agent":"hq","incident":"2","condition":"lag > 60s","system":"crm","message":"crm is 83 s behind","since":"2026-01-31T12:00:00.000001Z","at":"2026-01-31T12:00:00.000001Z"}
        {"text":":rotating_light: *firing* anechoic hq, lag &gt; 60s: crm is 83 s behind"}
        "#);
    }
}
