//! Systems, entities and an agent together.
//!
//! ```ignore
//! let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)])
//!     .entity(Entity::new("contact").key("id", Type::Int).field("name", Type::Text).renamed())
//!     .start()
//!     .await;
//! world["crm"].execute("INSERT INTO contact VALUES (7, 'Ada')").await;
//! world.quiet().await;
//! ```
//!
//! An entity is stored as the table `contact` with columns as its fields; [`Entity::renamed`]
//! has every system but the first call them `contact_shop` and `name_shop`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::agent::Agent;
use super::proxy::Proxy;
use super::servers::{Db, Kind, PASSWORD, Rows, Server};
use super::trail::Table;
use super::{SOON, eventually, unique};

/// How a field is stored: the natural column type of each engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    Bool,
    SmallInt,
    Int,
    BigInt,
    /// bigint unsigned, numeric(20) in PostgreSQL.
    Unsigned,
    Decimal(u8, u8),
    /// Without limits in PostgreSQL, the largest that MySQL has.
    Numeric,
    Float,
    Double,
    Char(u32),
    Varchar(u32),
    Text,
    Bytes,
    /// varbinary, bytea in PostgreSQL.
    Varbinary(u32),
    Date,
    Time,
    /// Without zone.
    DateTime,
    /// An instant.
    Timestamp,
    /// uuid, char(36) in MySQL and MariaDB.
    Uuid,
    /// uuid, binary(16) in MySQL and MariaDB.
    Uuid16,
    Json,
    /// enum, text in PostgreSQL.
    Enum(&'static [&'static str]),
}

impl Type {
    fn ddl(&self, kind: Kind) -> String {
        let postgres = kind.is_postgres();
        let either = |in_postgres: &str, in_mysql: &str| if postgres { in_postgres } else { in_mysql }.to_owned();
        match self {
            Type::Bool => either("boolean", "tinyint(1)"),
            Type::SmallInt => "smallint".to_owned(),
            Type::Int => either("integer", "int"),
            Type::BigInt => "bigint".to_owned(),
            Type::Unsigned => either("numeric(20)", "bigint unsigned"),
            Type::Decimal(precision, scale) => format!("decimal({precision},{scale})"),
            Type::Numeric => either("numeric", "decimal(65,30)"),
            Type::Float => either("real", "float"),
            Type::Double => either("double precision", "double"),
            Type::Char(chars) => format!("char({chars})"),
            Type::Varchar(chars) => format!("varchar({chars})"),
            Type::Text => either("text", "longtext"),
            Type::Bytes => either("bytea", "longblob"),
            Type::Varbinary(bytes) => either("bytea", &format!("varbinary({bytes})")),
            Type::Date => "date".to_owned(),
            Type::Time => "time(6)".to_owned(),
            Type::DateTime => either("timestamp(6)", "datetime(6)"),
            Type::Timestamp => either("timestamptz(6)", "timestamp(6) NULL"),
            Type::Uuid => either("uuid", "char(36)"),
            Type::Uuid16 => either("uuid", "binary(16)"),
            Type::Json => either("jsonb", "json"),
            Type::Enum(_) if postgres => "text".to_owned(),
            Type::Enum(labels) => format!("enum('{}')", labels.join("','")),
        }
    }

    /// An expression whose text is the same in every engine, up to [`Type::settle`].
    fn select(&self, column: &str, kind: Kind) -> String {
        let postgres = kind.is_postgres();
        match self {
            Type::Bool if postgres => format!("{column}::int"),
            Type::Float | Type::Double if postgres => format!("{column}::float8"),
            Type::Float | Type::Double => format!("cast({column} as double)"),
            Type::Char(_) if postgres => format!("{column}::text"),
            Type::Bytes | Type::Varbinary(_) if postgres => format!("encode({column}, 'hex')"),
            Type::Uuid16 if postgres => format!("replace({column}::text, '-', '')"),
            Type::Bytes | Type::Varbinary(_) | Type::Uuid16 => format!("lower(hex({column}))"),
            Type::Time if postgres => format!("to_char({column}, 'HH24:MI:SS.US')"),
            Type::Time => format!("time_format({column}, '%H:%i:%s.%f')"),
            Type::DateTime if postgres => format!("to_char({column}, 'YYYY-MM-DD HH24:MI:SS.US')"),
            Type::Timestamp if postgres => format!("to_char({column} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"),
            Type::DateTime | Type::Timestamp => format!("date_format({column}, '%Y-%m-%d %H:%i:%s.%f')"),
            Type::Uuid if !postgres => format!("lower({column})"),
            _ => column.to_owned(),
        }
    }

    /// Makes equal values equal texts.
    fn settle(&self, text: String) -> String {
        match self {
            Type::Numeric if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            Type::Float | Type::Double => format!("{:?}", text.parse::<f64>().unwrap()),
            Type::Json => one_spelling(serde_json::from_str(&text).unwrap()).to_string(),
            _ => text,
        }
    }
}

/// Numbers as digits and the power of ten behind them: 1.50e3 and 1500 are one number.
pub fn one_spelling(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) => {
            let text = number.to_string();
            let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, "0"));
            let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
            let digits = format!("{whole}{fraction}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
            let kept = digits.trim_end_matches('0');
            let exponent =
                exponent.parse::<i64>().unwrap() - fraction.len() as i64 + (digits.len() - kept.len()) as i64;
            match kept.trim_start_matches('0') {
                "" => "number 0".into(),
                digits => format!("number {sign}{digits}e{exponent}").into(),
            }
        }
        Value::Array(values) => values.into_iter().map(one_spelling).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, one_spelling(value))).collect(),
        other => other,
    }
}

#[derive(Debug, Clone)]
pub struct Entity {
    pub name: String,
    keys: Vec<String>,
    fields: Vec<(String, Type)>,
    renamed: bool,
    /// Systems that have it; none named: all.
    systems: Vec<String>,
    /// TOML lines of the entity; of its binding in a system.
    options: Vec<String>,
    binding_options: Vec<(String, String)>,
    /// System, field, column type of its own there.
    stored: Vec<(String, String, String)>,
    /// System, name of entity or field, its name there.
    named: Vec<(String, String, String)>,
    /// System, field, what the configuration says instead of the column's name.
    mapped: Vec<(String, String, String)>,
}

impl Entity {
    pub fn new(name: &str) -> Entity {
        Entity {
            name: name.to_owned(),
            keys: Vec::new(),
            fields: Vec::new(),
            renamed: false,
            systems: Vec::new(),
            options: Vec::new(),
            binding_options: Vec::new(),
            stored: Vec::new(),
            named: Vec::new(),
            mapped: Vec::new(),
        }
    }

    /// That system's column has another type: `varchar(5) NOT NULL`.
    pub fn stored(mut self, system: &str, field: &str, ddl: &str) -> Entity {
        self.stored.push((system.to_owned(), field.to_owned(), ddl.to_owned()));
        self
    }

    /// That system's name of the table (`name` is the entity's) or of a field's column.
    pub fn named(mut self, system: &str, name: &str, there: &str) -> Entity {
        self.named.push((system.to_owned(), name.to_owned(), there.to_owned()));
        self
    }

    /// The field's column with more than its name: `{ column = "st", values = { … } }`.
    pub fn mapped(mut self, system: &str, field: &str, toml: &str) -> Entity {
        self.mapped.push((system.to_owned(), field.to_owned(), toml.to_owned()));
        self
    }

    /// A field of the key. An entity without one takes inserts only.
    pub fn key(mut self, name: &str, ty: Type) -> Entity {
        self.keys.push(name.to_owned());
        self.field(name, ty)
    }

    pub fn field(mut self, name: &str, ty: Type) -> Entity {
        self.fields.push((name.to_owned(), ty));
        self
    }

    /// Other table and column names in every system but the first.
    pub fn renamed(mut self) -> Entity {
        self.renamed = true;
        self
    }

    pub fn only(mut self, systems: &[&str]) -> Entity {
        self.systems = systems.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    /// A line of TOML in `[[entity]]`.
    pub fn option(mut self, line: &str) -> Entity {
        self.options.push(line.to_owned());
        self
    }

    /// A line of TOML in `[entity.in.SYSTEM]`: `role = "source"`, `where = "…"`.
    pub fn option_in(mut self, system: &str, line: &str) -> Entity {
        self.binding_options.push((system.to_owned(), line.to_owned()));
        self
    }

    fn is_in(&self, system: &str) -> bool {
        self.systems.is_empty() || self.systems.iter().any(|s| s == system)
    }

    fn name_in(&self, name: &str, system: &System) -> String {
        if let Some((_, _, there)) = self.named.iter().find(|(s, n, _)| *s == system.name && n == name) {
            return there.clone();
        }
        if self.renamed && system.index > 0 { format!("{name}_{}", system.name) } else { name.to_owned() }
    }

    fn ddl(&self, system: &System) -> String {
        let kind = system.db.kind;
        let quoted = |name: &str| quote(kind, &self.name_in(name, system));
        let own = |name: &str| self.stored.iter().find(|(s, n, _)| *s == system.name && n == name).map(|(.., ty)| ty);
        let ddl = |name: &str, ty: &Type| own(name).cloned().unwrap_or_else(|| ty.ddl(kind));
        let mut columns: Vec<String> =
            self.fields.iter().map(|(name, ty)| format!("{} {}", quoted(name), ddl(name, ty))).collect();
        if !self.keys.is_empty() {
            let keys: Vec<String> = self.keys.iter().map(|key| quoted(key)).collect();
            columns.push(format!("PRIMARY KEY ({})", keys.join(", ")));
        }
        // Texts are equal where their bytes are, or a text key would not be one key everywhere.
        let charset = match kind {
            _ if kind.is_postgres() => "",
            _ if kind.is_mariadb() => " CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
            _ => " CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin",
        };
        format!("CREATE TABLE {} ({}){charset}", quoted(&self.name), columns.join(", "))
    }

    fn toml(&self, systems: &[System]) -> String {
        let mut text = format!("[[entity]]\nname = {:?}\nkey = {:?}\n", self.name, self.keys);
        for line in &self.options {
            text += &format!("{line}\n");
        }
        for system in systems.iter().filter(|s| self.is_in(&s.name)) {
            text += &format!("\n[entity.in.{}]\ntable = {}\n", system.name, self.toml_table(system));
            for (_, line) in self.binding_options.iter().filter(|(name, _)| *name == system.name) {
                text += &format!("{line}\n");
            }
            // without columns, equal names find each other
            if self.renamed || !self.named.is_empty() || !self.mapped.is_empty() {
                text += &format!("[entity.in.{}.columns]\n", system.name);
                for (field, _) in &self.fields {
                    let mapped = self.mapped.iter().find(|(s, f, _)| *s == system.name && f == field);
                    let column = toml_text(&self.name_in(field, system));
                    let column = mapped.map_or(column, |(.., toml)| toml.clone());
                    text += &format!("{} = {column}\n", toml_text(field));
                }
            }
        }
        text + "\n"
    }

    /// Quoted for the configuration where it needs to be.
    fn toml_table(&self, system: &System) -> String {
        let name = self.name_in(&self.name, system);
        match name.contains(['.', '"', '`']) {
            true => toml_text(&format!("\"{}\"", name.replace('"', "\"\""))),
            false => toml_text(&name),
        }
    }

    /// A query whose answer is the same wherever the rows are: how many, and a sum over a hash of
    /// each. For tables that are too large to be compared row by row.
    pub fn digest(&self, system: &System) -> String {
        let kind = system.db.kind;
        let text = |column: &str, ty: &Type| {
            let value = ty.select(&quote(kind, &self.name_in(column, system)), kind);
            let cast = if kind.is_postgres() { "text" } else { "char" };
            format!("coalesce(cast({value} as {cast}), 'NULL')")
        };
        let columns: Vec<String> = self.fields.iter().map(|(name, ty)| text(name, ty)).collect();
        let row = format!("concat_ws('|', {})", columns.join(", "));
        let number = match kind.is_postgres() {
            true => format!("('x' || substr(encode(sha256(convert_to({row}, 'UTF8')), 'hex'), 1, 8))::bit(32)::bigint"),
            false => format!("cast(conv(substr(sha2({row}, 256), 1, 8), 16, 10) as unsigned)"),
        };
        let table = quote(kind, &self.name_in(&self.name, system));
        format!("SELECT count(*), coalesce(sum({number}), 0) FROM {table}")
    }

    /// All rows, values in the order of the fields, rows sorted: the same in every system.
    async fn rows(&self, system: &System) -> Result<Rows, String> {
        let kind = system.db.kind;
        let quoted = |name: &str| quote(kind, &self.name_in(name, system));
        let columns: Vec<String> = self.fields.iter().map(|(name, ty)| ty.select(&quoted(name), kind)).collect();
        let query = format!("SELECT {} FROM {}", columns.join(", "), quoted(&self.name));
        let mut rows = system.db.try_rows(&query).await?;
        for row in &mut rows {
            for (value, (_, ty)) in row.iter_mut().zip(&self.fields) {
                *value = value.take().map(|text| ty.settle(text));
            }
        }
        rows.sort();
        Ok(rows)
    }
}

/// As a basic string of TOML.
fn toml_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

pub fn quote(kind: Kind, name: &str) -> String {
    if kind.is_postgres() {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        format!("`{}`", name.replace('`', "``"))
    }
}

pub struct System {
    pub name: String,
    index: usize,
    pub db: Db,
    pub proxy: Option<Proxy>,
    options: Vec<String>,
}

struct Plan {
    name: String,
    kind: Kind,
    /// Server options of an own server.
    private: Option<Vec<String>>,
    /// This server.
    server: Option<Arc<Server>>,
    proxied: bool,
    /// TOML lines of `[[system]]`.
    options: Vec<String>,
}

#[derive(Default)]
pub struct Builder {
    plans: Vec<Plan>,
    entities: Vec<Entity>,
    ddl: Vec<(String, String)>,
    toml: String,
}

impl Builder {
    fn plan(&mut self, system: &str) -> &mut Plan {
        self.plans.iter_mut().find(|p| p.name == system).unwrap_or_else(|| panic!("no system {system}"))
    }

    pub fn entity(mut self, entity: Entity) -> Builder {
        self.entities.push(entity);
        self
    }

    /// The system gets a server of its own, which may be killed.
    pub fn private(self, system: &str) -> Builder {
        self.private_with(system, &[])
    }

    pub fn private_with(mut self, system: &str, options: &[&str]) -> Builder {
        self.plan(system).private = Some(options.iter().map(|o| (*o).to_owned()).collect());
        self
    }

    /// The system lies on that server.
    pub fn on(mut self, system: &str, server: &Arc<Server>) -> Builder {
        self.plan(system).server = Some(server.clone());
        self
    }

    /// A line of TOML in `[[system]]`.
    pub fn system_option(mut self, system: &str, line: &str) -> Builder {
        self.plan(system).options.push(line.to_owned());
        self
    }

    /// The agent reaches the system through a proxy.
    pub fn proxied(mut self, system: &str) -> Builder {
        self.plan(system).proxied = true;
        self
    }

    /// Run by the application before the agent's setup.
    pub fn ddl(mut self, system: &str, sql: &str) -> Builder {
        self.ddl.push((system.to_owned(), sql.to_owned()));
        self
    }

    /// Added to the configuration as it is, behind systems and entities.
    pub fn toml(mut self, text: &str) -> Builder {
        self.toml += text;
        self
    }

    /// Databases, tables and configuration; nothing of the agent has run.
    pub async fn build(self) -> World {
        let unique = unique();
        let mut systems = Vec::new();
        for (index, plan) in self.plans.into_iter().enumerate() {
            let server = match plan.private {
                _ if plan.server.is_some() => plan.server.expect("just seen"),
                Some(options) => {
                    let options: Vec<&str> = options.iter().map(String::as_str).collect();
                    Arc::new(Server::private(plan.kind, &options).await)
                }
                None => Server::shared(plan.kind),
            };
            // systems of one world may share a server, its databases and roles must differ
            let db = Db::for_world(&server, &unique, index).await;
            let proxy = if plan.proxied { Some(Proxy::new(server.port).await) } else { None };
            systems.push(System { name: plan.name, index, db, proxy, options: plan.options });
        }
        let mut config = String::new();
        for system in &systems {
            let port = system.proxy.as_ref().map_or(system.db.server.port, Proxy::port);
            let url = system.db.agent_url_at(port);
            // No test takes the power away, and waiting for the disk takes time from all of them.
            let unsafe_binlog = if system.db.kind.is_postgres() { "" } else { "allow_unsafe_binlog = true\n" };
            config += &format!(
                "[[system]]\nname = {:?}\nurl = {url:?}\npassword_env = \"ANECHOIC_TEST_PASSWORD\"\n{unsafe_binlog}{}\n",
                system.name,
                system
                    .options
                    .iter()
                    .map(|line| format!("{}\n", line.replace("MARKER", &system.db.marker)))
                    .collect::<String>()
            );
        }
        for entity in &self.entities {
            config += &entity.toml(&systems);
        }
        config += &self.toml;
        for system in &systems {
            for entity in self.entities.iter().filter(|e| e.is_in(&system.name)) {
                system.db.execute(&entity.ddl(system)).await;
            }
            for (_, sql) in self.ddl.iter().filter(|(name, _)| *name == system.name) {
                system.db.execute(sql).await;
            }
        }
        let mut agent = Agent::new(&unique, &format!("anechoic_{unique}.marker"), &config);
        agent.set_env("ANECHOIC_TEST_PASSWORD", PASSWORD);
        World { systems, entities: self.entities, agent }
    }

    /// Everything, and an agent that is ready.
    pub async fn start(self) -> World {
        let mut world = self.build().await;
        world.setup().await;
        world.agent.start();
        world.agent.ready().await;
        world
    }
}

pub struct World {
    /// Dropped first: it would complain about vanishing databases.
    pub agent: Agent,
    pub systems: Vec<System>,
    pub entities: Vec<Entity>,
}

impl World {
    pub fn of(systems: &[(&str, Kind)]) -> Builder {
        let plans = systems.iter().map(|(name, kind)| Plan {
            name: (*name).into(),
            kind: *kind,
            private: None,
            server: None,
            proxied: false,
            options: Vec::new(),
        });
        Builder { plans: plans.collect(), ..Builder::default() }
    }

    pub async fn setup(&self) {
        for system in &self.systems {
            system.db.lend_ownership(true).await;
        }
        // PostgreSQL begins no log while another test of the same server has a transaction open.
        eventually(2 * SOON, || async {
            let output = self.agent.command(&["setup"]).await;
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            if said.contains("was not created within") {
                return Err(said);
            }
            assert!(output.status.success(), "anechoic setup: {}\n{said}", output.status);
            Ok(())
        })
        .await;
        for system in &self.systems {
            system.db.lend_ownership(false).await;
        }
    }

    pub fn system(&self, name: &str) -> &System {
        self.systems.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no system {name}"))
    }

    pub fn proxy(&self, system: &str) -> &Proxy {
        self.system(system).proxy.as_ref().unwrap_or_else(|| panic!("{system} is not proxied"))
    }

    pub fn server(&self, system: &str) -> &Server {
        &self.system(system).db.server
    }

    fn entity(&self, name: &str) -> &Entity {
        self.entities.iter().find(|e| e.name == name).unwrap_or_else(|| panic!("no entity {name}"))
    }

    /// As quoted in SQL.
    pub fn table(&self, entity: &str, system: &str) -> String {
        let system = self.system(system);
        quote(system.db.kind, &self.entity(entity).name_in(entity, system))
    }

    pub fn column(&self, entity: &str, field: &str, system: &str) -> String {
        let system = self.system(system);
        quote(system.db.kind, &self.entity(entity).name_in(field, system))
    }

    /// Values in the order of the fields, the same text in every engine; rows sorted.
    #[track_caller]
    pub fn rows(&self, entity: &str, system: &str) -> impl Future<Output = Rows> {
        let place = std::panic::Location::caller();
        async move {
            let rows = self.entity(entity).rows(self.system(system)).await;
            rows.unwrap_or_else(|error| panic!("{place}: {entity} in {system}: {error}"))
        }
    }

    /// The same rows by key (of one field), as the agent shows them: field by field.
    #[track_caller]
    pub fn by_key(&self, entity: &str, system: &str) -> impl Future<Output = Table> {
        let rows = self.rows(entity, system);
        async move {
            let fields = &self.entity(entity).fields;
            let image = |row: Vec<_>| fields.iter().map(|(name, _)| name.clone()).zip(row).collect();
            rows.await.into_iter().map(|row| (row[0].clone().unwrap(), image(row))).collect()
        }
    }

    /// All rows of all systems, value by value; the first differences.
    pub async fn compare(&self) -> Result<(), String> {
        for entity in &self.entities {
            let mut first: Option<(&str, Rows)> = None;
            for system in self.systems.iter().filter(|s| entity.is_in(&s.name)) {
                let rows = entity.rows(system).await?;
                match &first {
                    None => first = Some((&system.name, rows)),
                    Some((reference, expected)) if *expected != rows => {
                        let parts = [(*reference, expected), (system.name.as_str(), &rows)];
                        return Err(format!("{} differs:\n{}", entity.name, difference(parts)));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Waits until everything that was committed is applied, then all systems must be equal.
    #[track_caller]
    pub fn quiet(&self) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        let wait = self.agent.wait_quiet();
        async move {
            wait.await;
            self.compare().await.unwrap_or_else(|error| panic!("{place}: {error}"));
        }
    }

    /// The same, told by the rows alone.
    #[track_caller]
    pub fn converged(&self, deadline: Duration) -> impl Future<Output = ()> {
        eventually(deadline, || self.compare())
    }
}

impl std::ops::Index<&str> for World {
    type Output = Db;

    fn index(&self, system: &str) -> &Db {
        &self.system(system).db
    }
}

/// Up to five rows that only one of two systems has.
fn difference(parts: [(&str, &Rows); 2]) -> String {
    let mut counts: BTreeMap<&Vec<Option<String>>, i64> = BTreeMap::new();
    for (sign, (_, rows)) in [1, -1].into_iter().zip(&parts) {
        for row in *rows {
            *counts.entry(row).or_default() += sign;
        }
    }
    let mut text = format!("{} has {} rows, {} has {}", parts[0].0, parts[0].1.len(), parts[1].0, parts[1].1.len());
    for (row, count) in counts.into_iter().filter(|(_, count)| *count != 0).take(5) {
        let system = if count > 0 { parts[0].0 } else { parts[1].0 };
        let values: Vec<String> =
            row.iter().map(|v| v.as_deref().map_or("NULL".into(), |t| t.chars().take(60).collect())).collect();
        text += &format!("\n  only in {system}: {}", values.join(" | "));
    }
    text
}
