//! What moves where: the agent's `/status`, one line per second.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

use super::say;
use crate::error::{Error, Result};
use crate::http::status::Report;

/// Status code and body.
async fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let late = || Error::retry(format!("no answer to GET {path} within 2 s"));
    let answer = tokio::time::timeout(Duration::from_secs(2), exchange).await.map_err(|_| late())??;
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| Some((head.get(9..12)?.parse().ok()?, body)));
    let (code, body) = parts.ok_or_else(|| Error::retry(format!("GET {path} was not answered with HTTP")))?;
    Ok((code, body.to_owned()))
}

async fn report(port: u16) -> Result<Report> {
    let (_, body) = get(port, "/status").await?;
    serde_json::from_str(&body).map_err(|e| Error::retry("the agent's /status is not understood").because(e))
}

/// The agent has ended, or has not done in time what it should: with its last words.
fn failed(what: &str, log: &Path) -> Error {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(15)..].join("\n");
    Error::stop(format!("{what}; its log ends with\n{last}"), "")
}

pub async fn until_ready(port: u16, agent: &mut Child, log: &Path) -> Result<()> {
    let began = Instant::now();
    let mut reasons = String::new();
    while began.elapsed() < Duration::from_secs(60) {
        if agent.try_wait()?.is_some() {
            return Err(failed("the agent ended instead of getting ready", log));
        }
        match get(port, "/ready").await {
            Ok((200, _)) => return Ok(()),
            Ok((_, body)) => reasons = body,
            Err(error) => reasons = error.full(),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(failed(&format!("the agent was not ready within a minute: {reasons}"), log))
}

/// Until it is dropped, or the agent ends.
pub async fn lines(port: u16, agent: &mut Child, log: &Path) -> Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut last = report(port).await?;
    let mut count = 0_u32;
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if agent.try_wait()?.is_some() {
            return Err(failed("the agent ended", log));
        }
        if count.is_multiple_of(20) {
            let names: Vec<String> = last.systems.iter().map(|s| format!("{:<23}", s.name)).collect();
            say(&format!("seconds  {}journal", names.concat()));
        }
        count += 1;
        match report(port).await {
            Ok(now) => {
                say(&line(count, &last, &now));
                last = now;
            }
            Err(error) => say(&format!("{count:>5}    {}", error.full())),
        }
    }
}

/// Changes that people wrote there and that arrived there since the last line; what waits.
fn line(count: u32, last: &Report, now: &Report) -> String {
    let mut text = format!("{count:>5}    ");
    for (before, system) in last.systems.iter().zip(&now.systems) {
        let written = system.capture.changes.saturating_sub(before.capture.changes);
        let arrived = |report: &crate::http::status::SystemReport| report.apply.as_ref().map_or(0, |a| a.changes);
        let arrived = arrived(system).saturating_sub(arrived(before));
        let trouble = match system.state.as_str() {
            "streaming" => String::new(),
            state => format!(" {state}!"),
        };
        let waits = system.apply.as_ref().map_or(0, |a| a.pending);
        let waits = if waits > 0 { format!(" +{waits}") } else { String::new() };
        text.push_str(&format!("{:<23}", format!("{written} out, {arrived} in{waits}{trouble}")));
    }
    let conflicts: u64 = now.entities.iter().map(|e| e.conflicts).sum();
    let quarantined: i64 = now.entities.iter().map(|e| e.quarantined).sum();
    text.push_str(&format!("{} entries", now.journal.head));
    if conflicts > 0 {
        text.push_str(&format!(", {conflicts} conflicts"));
    }
    if quarantined > 0 {
        text.push_str(&format!(", {quarantined} in quarantine"));
    }
    text
}

/// Traffic has ended: waits for the rest, and counts.
pub async fn summary(config: &Path, port: u16) {
    if let Err(error) = super::anechoic(config, "wait").await {
        say(&error.full());
    }
    let Ok(report) = report(port).await else { return };
    say("");
    for entity in &report.entities {
        say(&format!(
            "{:<10} {} changes applied, {} conflicts, {} rejected, {} in quarantine",
            entity.name, entity.applied, entity.conflicts, entity.rejected, entity.quarantined
        ));
    }
    for system in &report.systems {
        let arrived = system.apply.as_ref().map_or(0, |a| a.changes);
        say(&format!(
            "{:<10} {} changes out, {arrived} in, {} echoes dropped",
            system.name, system.capture.changes, system.capture.echoes
        ));
    }
}
