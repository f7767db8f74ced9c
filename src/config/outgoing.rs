//! What the agent tells others by itself: alerts, and changes.

use std::path::PathBuf;
use std::time::Duration;

use super::PasswordSource;
use crate::alert::Condition;
use crate::change::Op;

/// Whom to tell when something is the matter, and when it is over.
#[derive(Debug, Clone)]
pub struct AlertConfig {
    /// Unique among alerts.
    pub name: String,
    pub on: Vec<Condition>,
    pub target: AlertTarget,
    /// For one try. Default 10 s.
    pub timeout: Duration,
    /// A condition that has been absent for so long is over. Default 60 s.
    pub settle: Duration,
}

#[derive(Debug, Clone)]
pub enum AlertTarget {
    Webhook(WebhookConfig, Form),
    /// Program and arguments; gets the event on its standard input.
    Command(Vec<String>),
}

/// Whom to tell of each committed change of an entity.
#[derive(Debug, Clone)]
pub struct NotifyConfig {
    /// Unique among these.
    pub name: String,
    pub entity: String,
    /// `None`: all that are not sensitive.
    pub fields: Option<Vec<String>>,
    pub on: Vec<Op>,
    /// Rows that a load copies, too.
    pub copies: bool,
    pub webhook: WebhookConfig,
    /// For one try. Default 10 s.
    pub timeout: Duration,
    /// Changes of one request. Default 100.
    pub batch: usize,
    /// Bytes of one request, about. Default 1 MiB.
    pub max_body: usize,
}

/// What a webhook is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    /// `{"text": …}`, as Slack, Mattermost and others take it.
    Slack,
}

/// Read again for each request, files too: nothing of it is shown, an address may hold a token.
#[derive(Clone)]
pub struct WebhookConfig {
    pub url: PasswordSource,
    /// What requests are signed with; [`PasswordSource::None`]: they are not.
    pub secret: PasswordSource,
    /// Beside those that every request has.
    pub headers: Vec<(String, String)>,
    /// PEM file with the authorities to trust; the machine's where absent.
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("WebhookConfig")
            .field("url", &self.url)
            .field("secret", &self.secret)
            .field("headers", &names)
            .field("ca_file", &self.ca_file)
            .finish()
    }
}
