//! What the agent may rely on: the configuration after it was read and checked.
//!
//! Two steps: `raw` is what was typed, [`Config`] what may be relied on, and `validate` leads
//! from one to the other. Every mistake is found in one run, each with its line and the
//! nearest valid name. Passwords appear in no message and no `Debug`.

mod address;
mod outgoing;
mod raw;
pub mod units;
mod validate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::outgoing::{AlertConfig, AlertTarget, Form, NotifyConfig, WebhookConfig};
use crate::catalog::TableName;
use crate::normalize::binding::Role;
use crate::normalize::dates::Dates;
pub use crate::rules::{Merge, OnClash, OnDelete, Policy as Conflict};
use crate::schema::SystemId;

#[derive(Debug, Clone)]
pub struct Config {
    pub agent: AgentConfig,
    pub journal: JournalConfig,
    /// Comparisons that nobody asks for; `None`: there are none.
    pub verify: Option<VerifyConfig>,
    /// Where operations are written out to, day by day; `None`: nowhere.
    pub audit: Option<AuditConfig>,
    /// In order of authority.
    pub systems: Vec<SystemConfig>,
    pub entities: Vec<EntityConfig>,
    /// Whom to tell when something is the matter.
    pub alerts: Vec<AlertConfig>,
    /// Whom to tell of changes.
    pub notifies: Vec<NotifyConfig>,
}

#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// `[a-z0-9_]{1,32}`
    pub id: String,
    pub data_dir: PathBuf,
    pub listen: std::net::SocketAddr,
    /// Always there where other machines can reach the port.
    pub token_file: Option<PathBuf>,
    /// What the port shows to who connects; `None`: it speaks no TLS, and only this machine can
    /// reach it, or `insecure` says that this is wanted.
    pub tls: Option<CertificateFiles>,
    pub insecure: bool,
    /// `/ready` fails above this lag. Default 60 s.
    pub max_lag: Duration,
}

#[derive(Debug, Clone)]
pub struct JournalConfig {
    pub retention: Duration,
    pub max_size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyConfig {
    /// From the end of one to the beginning of the next.
    pub every: Duration,
    /// Rows read per second at most. Default 2000.
    pub max_rate: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    pub dir: PathBuf,
    /// How long a closed file stays. Default 30 days.
    pub retention: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    /// MySQL or MariaDB: told apart by the server's version.
    Mysql,
}

#[derive(Debug, Clone)]
pub struct SystemConfig {
    pub name: Arc<str>,
    pub engine: Engine,
    pub connect: ConnectConfig,
    /// Schema (PostgreSQL) or database (MySQL), and table. Default: the agent's; its default:
    /// anechoic.marker.
    pub marker: TableName,
    /// MySQL, MariaDB: changes are taken from a log that a crash of the server may shorten.
    pub allow_unsafe_binlog: bool,
    /// PostgreSQL: a commit of ours waits for the server's disk. Where it does not, a crash of the server
    /// takes back what the journal still has.
    pub synchronous_commit: bool,
    /// Over so many connections it is written to.
    pub connections: usize,
}

#[derive(Debug, Clone)]
pub struct ConnectConfig {
    /// Host name, address, or the directory (PostgreSQL) or path (MySQL) of a unix socket.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    pub password: PasswordSource,
    pub tls: TlsConfig,
    pub connect_timeout: Duration,
}

/// Read again at each connect, so that rotation needs no restart.
#[derive(Clone)]
pub enum PasswordSource {
    None,
    Inline(String),
    File(PathBuf),
    Env(String),
}

impl std::fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PasswordSource::None => f.write_str("None"),
            PasswordSource::Inline(_) => f.write_str("Inline(…)"),
            PasswordSource::File(path) => write!(f, "File({})", path.display()),
            PasswordSource::Env(name) => write!(f, "Env({name})"),
        }
    }
}

/// Each asks for more than the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Debug, Clone)]
pub struct TlsConfig {
    pub mode: TlsMode,
    /// PEM file with the authorities to trust; the system's where absent.
    pub ca_file: Option<PathBuf>,
    /// Name to verify instead of the host's.
    pub server_name: Option<String>,
    /// Shown to a server that asks for it.
    pub client: Option<CertificateFiles>,
}

impl TlsConfig {
    /// Trusts the machine's authorities, and has no certificate to show.
    pub fn new(mode: TlsMode) -> Self {
        TlsConfig { mode, ca_file: None, server_name: None, client: None }
    }
}

/// PEM files, read again at each connect; those of the port at each reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What a conflict is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Row,
    /// Changes of different fields are none.
    Field,
}

/// Whether rows that were there before the agent are copied when it first starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadPolicy {
    /// Where every system that receives the entity is empty.
    IfEmpty,
    FirstRun,
    Never,
}

#[derive(Debug, Clone)]
pub struct EntityConfig {
    pub name: String,
    /// Canonical field names; empty: inserts only.
    pub key: Vec<String>,
    pub conflict: Conflict,
    /// The entity's own order: each system that binds it, once. `None`: that of the systems.
    pub authority: Option<Vec<SystemId>>,
    /// With [`Conflict::Latest`]: the field that says which is later. `None`: the commit time.
    pub latest_by: Option<String>,
    pub scope: Scope,
    /// `None`: by the policy.
    pub on_delete: Option<OnDelete>,
    /// By field. None of the key.
    pub merge: Vec<(String, Merge)>,
    /// By field. None of the key, none that is merged.
    pub unique: Vec<(String, OnClash)>,
    pub load: LoadPolicy,
    /// Fields whose values are shown to nobody. None of the key.
    pub sensitive: Vec<String>,
    pub bindings: Vec<BindingConfig>,
    /// In the file, for messages.
    pub line: usize,
}

impl EntityConfig {
    /// Says anything of conflicts beyond what holds anyway.
    pub fn decides(&self) -> bool {
        self.conflict != Conflict::Authority
            || self.authority.is_some()
            || self.on_delete.is_some()
            || !self.unique.is_empty()
            || self.carries_parts()
    }

    /// Some conflict is won by the later commit.
    pub fn compares_commit_times(&self) -> bool {
        let latest = Merge::Policy(Conflict::Latest);
        let fields = self.merge.iter().any(|(_, merge)| *merge == latest);
        self.latest_by.is_none() && (self.conflict == Conflict::Latest || fields)
    }

    /// What a change is about is less than its row: known by the row before it alone.
    pub fn carries_parts(&self) -> bool {
        self.scope == Scope::Field || !self.merge.is_empty()
    }
}

#[derive(Debug, Clone)]
pub struct BindingConfig {
    pub system: SystemId,
    /// Schema filled in: `public`, or the URL's database.
    pub table: TableName,
    pub role: Role,
    pub filter: Option<String>,
    /// `None`: every column whose name the entity's other bindings share.
    pub columns: Option<Vec<ColumnConfig>>,
    /// Without `columns`: these are left alone, whoever else has them.
    pub ignore: Vec<String>,
    /// What the table was called before it was renamed; an empty list says that it is another
    /// one. `None`: nothing was said.
    pub formerly: Option<Vec<TableName>>,
    pub line: usize,
}

impl BindingConfig {
    /// The table's name, and what it was called.
    pub fn names(&self) -> impl Iterator<Item = &TableName> {
        std::iter::once(&self.table).chain(self.formerly.iter().flatten())
    }
}

#[derive(Debug, Clone)]
pub struct ColumnConfig {
    pub field: String,
    pub column: String,
    pub format: Option<String>,
    /// (canonical, in the column)
    pub values: Option<Vec<(String, String)>>,
    /// What the column was called in rows that were logged before it was renamed; an empty list
    /// says that it is a new one. `None`: nothing was said.
    pub formerly: Option<Vec<String>>,
    /// What stands for dates that not all engines have; `None` where nothing was said.
    pub dates: Option<Dates>,
    pub line: usize,
}

/// One mistake in the file: `anechoic.toml:41: entity "contact" in "shop": …; nearest: "…"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// As it was given on the command line.
    pub file: String,
    /// 0 where the file could not be read at all.
    pub line: usize,
    pub message: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file; otherwise every mistake in it, in the order of its lines.
    pub fn load(path: &Path) -> Result<Config, Vec<ConfigError>> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Config::from_str(&text, &file),
            Err(error) => Err(vec![ConfigError { file, line: 0, message: format!("cannot be read: {error}") }]),
        }
    }

    /// Where a file says that the journal is, or leaves it, however broken it is otherwise.
    pub fn data_dir_in(path: &Path) -> Option<PathBuf> {
        let text = std::fs::read_to_string(path).ok()?;
        let said =
            text.lines().find_map(|line| line.trim_start().strip_prefix("data_dir")?.trim_start().strip_prefix('='));
        let Some(said) = said else { return Some(validate::DATA_DIR.into()) };
        let quoted = said.trim_start();
        let quote = quoted.chars().next().filter(|quote| ['"', '\''].contains(quote))?;
        quoted[1..].split(quote).next().map(PathBuf::from)
    }

    /// `file` is the name that messages give.
    pub fn from_str(text: &str, file: &str) -> Result<Config, Vec<ConfigError>> {
        let mut reader = raw::Reader::new(file, text);
        let config = reader.read().and_then(|raw| validate::validate(&raw, &mut reader));
        match config {
            Some(config) if reader.errors.is_empty() => Ok(config),
            _ => {
                let mut errors = reader.errors;
                errors.sort_by_key(|e| e.line);
                Err(errors)
            }
        }
    }

    /// In order of authority.
    pub fn system_ids(&self) -> impl Iterator<Item = SystemId> + use<> {
        (0..self.systems.len()).map(|index| SystemId(index as u8))
    }

    pub fn system(&self, id: SystemId) -> &SystemConfig {
        &self.systems[id.index()]
    }
}

/// The candidate most like `name`, where any is like it at all.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&folded, &candidate.to_lowercase());
    candidates
        .map(|candidate| (distance(candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= name.chars().count().max(candidate.chars().count()).div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// `contacts`, `public.contacts`, `"My Schema"."T.x"` (backticks too). Without a schema of its
/// own a name gets `schema`; `Err` completes the sentence that begins with the name.
pub fn table_name(text: &str, schema: Option<&str>) -> Result<TableName, &'static str> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let (part, after) = name_part(rest)?;
        parts.push(part);
        match after.strip_prefix('.') {
            Some(more) => rest = more,
            None if after.is_empty() => break,
            None => return Err("has something behind a closing quote"),
        }
    }
    match (parts.len(), schema) {
        (1, Some(schema)) => Ok(TableName { schema: schema.to_owned(), name: parts.remove(0) }),
        (1, None) => Err("needs a schema (PostgreSQL) or database (MySQL) in front: \"anechoic.marker\""),
        (2, _) => Ok(TableName { name: parts.remove(1), schema: parts.remove(0) }),
        _ => Err("has more parts than schema and table; quote names that contain dots"),
    }
}

fn name_part(text: &str) -> Result<(String, &str), &'static str> {
    let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '`')) else {
        let end = text.find('.').unwrap_or(text.len());
        return match &text[..end] {
            "" => Err("has an empty part"),
            part if part.contains(['"', '`']) => Err("has a quote in the middle of a name"),
            part => Ok((part.to_owned(), &text[end..])),
        };
    };
    let mut part = String::new();
    let mut chars = text[1..].char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            part.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            part.push(quote);
            chars.next();
        } else if part.is_empty() {
            return Err("has an empty part");
        } else {
            return Ok((part, &text[1 + at + 1..]));
        }
    }
    Err("has a quote that is not closed")
}

#[cfg(test)]
mod tests;
