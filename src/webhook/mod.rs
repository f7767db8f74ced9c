//! Posts to an address that the configuration names, signed, and says what became of it.
//!
//! ```text
//! POST /path                              the address, read anew for each connection
//! Webhook-Id, Idempotency-Key: ID         the same however often it is tried
//! Webhook-Timestamp: SECONDS              of this try
//! Webhook-Signature: v1,BASE64            HMAC-SHA256 of "ID.SECONDS.BODY" by the secret
//! ```
//!
//! A secret that begins with `whsec_` is the Base64 behind it, else its own bytes. Redirections are
//! not followed: a signed body goes where a person said and nowhere else. Nothing of an address but
//! host and port is ever shown.
//!
//! Protocol: Standard Webhooks 1.0 (standardwebhooks.com), RFC 9110, 9112.

mod address;
mod exchange;

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use sha2::Sha256;

pub use self::address::{Address, header};
use self::exchange::Connection;
use crate::config::{PasswordSource, WebhookConfig};
use crate::connect::password;
use crate::error::{Error, Result, backoff};
use crate::status::now;

/// A receiver that says how long to wait is believed up to this.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Between tries of what a receiver has refused so often that it will hardly take it by itself.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
const REFUSED_SOON: u32 = 6;

/// Why a try did not arrive. Whatever it is, it is tried again.
#[derive(Debug)]
pub struct Failure {
    pub error: Box<Error>,
    /// The receiver understood, and will not have it: a person has to look.
    pub refused: bool,
    /// It asks for so much patience.
    pub retry_after: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error: Box::new(error), refused: false, retry_after: None }
    }
}

/// How long one message has been tried already.
#[derive(Debug, Default)]
pub struct Patience {
    /// Tries that did not arrive, and how many of the last ones were refused.
    pub attempts: u32,
    refused: u32,
}

impl Patience {
    /// Before the next try. `random` in 0..1.
    pub fn pause(&mut self, failure: &Failure, random: f64) -> Duration {
        let attempt = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        self.refused = if failure.refused { self.refused.saturating_add(1) } else { 0 };
        match failure.retry_after {
            Some(asked) => asked.min(WAIT_MAX).max(backoff(0, random)),
            None if self.refused > REFUSED_SOON => REFUSED_PAUSE,
            // Whoever answers gets another chance at once, however long nobody did.
            None if self.refused > 0 => backoff(self.refused - 1, random),
            None => backoff(attempt, random),
        }
    }
}

/// One address, and the connection to it that was used last.
#[derive(Debug)]
pub struct Webhook {
    config: WebhookConfig,
    /// For one try.
    timeout: Duration,
    connection: Option<Connection>,
}

impl Webhook {
    pub fn new(config: WebhookConfig, timeout: Duration) -> Self {
        Webhook { config, timeout, connection: None }
    }

    /// Host and port, as far as they can be told.
    pub fn place(&self) -> String {
        self.address().map_or_else(|_| "its address".to_owned(), |address| address.to_string())
    }

    fn address(&self) -> Result<Address> {
        let text = password(&self.config.url)?.unwrap_or_default();
        Address::parse(&text).map_err(|why| {
            let place = match &self.config.url {
                PasswordSource::File(path) => format!(" in {}", path.display()),
                PasswordSource::Env(name) => format!(" in the environment variable {name}"),
                PasswordSource::Inline(_) | PasswordSource::None => String::new(),
            };
            Error::retry(format!("the webhook{place} {why}"))
        })
    }

    /// One try. `id` names the message, so that a receiver knows what it has already.
    pub async fn post(&mut self, id: &str, body: &Bytes) -> Result<(), Failure> {
        let address = self.address()?;
        let secret = password(&self.config.secret)?;
        let seconds = now() / 1_000_000;
        let signature = secret.map(|secret| signature(&key(&secret)?, id, seconds, body)).transpose()?;
        let request = exchange::Request { id, seconds, signature, body, headers: &self.config.headers };
        let exchange =
            exchange::post(&mut self.connection, &address, self.config.ca_file.as_ref(), self.timeout, &request);
        let answer = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::retry(format!("no answer from {address} within {:?}", self.timeout)).into()),
        };
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }
}

fn key(secret: &str) -> Result<Vec<u8>> {
    match secret.trim().strip_prefix("whsec_") {
        None => Ok(secret.as_bytes().to_vec()),
        Some(encoded) => BASE64_STANDARD
            .decode(encoded)
            .map_err(|_| Error::retry("the secret begins with whsec_, and what follows is no Base64")),
    }
}

/// As the header has it.
fn signature(key: &[u8], id: &str, seconds: i64, body: &[u8]) -> Result<String> {
    if key.is_empty() {
        return Err(Error::retry("the secret that requests are signed with is empty"));
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body);
    Ok(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests;
