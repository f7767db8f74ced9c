//! What the agent may rely on: the configuration after it was read and checked.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::TableName;
use crate::normalize::binding::Role;
use crate::schema::SystemId;

#[derive(Debug, Clone)]
pub struct Config {
    pub agent: AgentConfig,
    pub journal: JournalConfig,
    /// In order of authority.
    pub systems: Vec<SystemConfig>,
    pub entities: Vec<EntityConfig>,
}

#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// `[a-z0-9_]{1,32}`
    pub id: String,
    pub data_dir: PathBuf,
    pub listen: std::net::SocketAddr,
    pub token_file: Option<PathBuf>,
    /// Schema (PostgreSQL) or database (MySQL), and table. Default: anechoic.marker.
    pub marker: TableName,
    /// `/ready` fails above this lag. Default 60 s.
    pub max_lag: Duration,
}

#[derive(Debug, Clone)]
pub struct JournalConfig {
    pub retention: Duration,
    pub max_size: u64,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    Authority,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Row,
}

#[derive(Debug, Clone)]
pub struct EntityConfig {
    pub name: String,
    /// Canonical field names; empty: inserts only.
    pub key: Vec<String>,
    pub conflict: Conflict,
    pub scope: Scope,
    pub bindings: Vec<BindingConfig>,
    /// In the file, for messages.
    pub line: usize,
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
    pub line: usize,
}

#[derive(Debug, Clone)]
pub struct ColumnConfig {
    pub field: String,
    pub column: String,
    pub format: Option<String>,
    /// (canonical, in the column)
    pub values: Option<Vec<(String, String)>>,
    pub line: usize,
}
