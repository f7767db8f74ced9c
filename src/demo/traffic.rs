//! People at work: small transactions in each system, several per second.
//!
//! Each system makes keys of its own range; contacts 2 to 12 and the stock belong to everybody,
//! so that now and then two systems write one row at once and the primary wins.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::servers::{NAMES, PASSWORD, Servers};
use crate::config::{ConnectConfig, PasswordSource, TlsConfig, TlsMode};
use crate::connect;
use crate::error::{Error, Result};

const FIRST_NAMES: [&str; 8] = ["Ada", "Grace", "Edsger", "Barbara", "Zoë", "Jürgen", "Noor", "李"];
const LAST_NAMES: [&str; 8] = ["Lovelace", "O'Hara", "Dijkstra", "Liskov", "Müller", "Şahin", "Khan", "García"];
const SKUS: [&str; 9] = ["BOLT-6", "BOLT-8", "NUT-6", "NUT-8", "GEAR-A", "GEAR-B", "LAMP", "CABLE", "FUSE"];
const STATES: [&str; 3] = ["new", "paid", "shipped"];

pub struct Traffic {
    tasks: JoinSet<()>,
}

impl Traffic {
    pub async fn finished(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Sample rows in the primary, from where they spread; then everybody works until `stop`.
pub async fn start(servers: &Servers, stop: &CancellationToken) -> Result<Traffic> {
    let mut primary = Session::open(servers, 0).await?;
    for transaction in sample() {
        primary.transaction(&transaction).await?;
    }
    let mut tasks = JoinSet::new();
    for system in 0..NAMES.len() {
        let session = Session::open(servers, system).await?;
        tasks.spawn(work(session, Worker::new(system), stop.clone()));
    }
    Ok(Traffic { tasks })
}

async fn work(mut session: Session, mut worker: Worker, stop: CancellationToken) {
    loop {
        let pause = Duration::from_millis(rand::random_range(30..130));
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        let statements = worker.next();
        if let Err(error) = session.transaction(&statements).await {
            super::say(&format!("the traffic of {} ends: {}", NAMES[worker.system], error.full()));
            return;
        }
    }
}

enum Session {
    Postgres(tokio_postgres::Client),
    Mysql(Box<mysql_async::Conn>),
}

impl Session {
    async fn open(servers: &Servers, system: usize) -> Result<Self> {
        let name = NAMES[system];
        let config = ConnectConfig {
            host: "127.0.0.1".to_owned(),
            port: servers.port(name),
            user: name.to_owned(),
            database: name.to_owned(),
            password: PasswordSource::Inline(PASSWORD.to_owned()),
            tls: TlsConfig::new(TlsMode::Disable),
            connect_timeout: Duration::from_secs(10),
        };
        Ok(match system {
            0 => Session::Postgres(connect::postgres::connect(&config, "demo").await?),
            _ => Session::Mysql(Box::new(connect::mysql::connect(&config).await?)),
        })
    }

    async fn transaction(&mut self, statements: &[String]) -> Result<()> {
        let text = format!("BEGIN; {}; COMMIT", statements.join("; "));
        match self {
            Session::Postgres(client) => {
                client.batch_execute(&text).await.map_err(|e| Error::retry(e.to_string()).because(e))
            }
            Session::Mysql(conn) => conn.query_drop(text).await.map_err(|e| Error::retry(e.to_string()).because(e)),
        }
    }
}

/// What people do; each system says it in its own tables' words.
enum Action {
    NewContact { id: u64, first: &'static str, last: &'static str, day: u32 },
    Rename { contact: u64, last: &'static str },
    SetActive { contact: u64, active: bool },
    NewOrder { id: u64, contact: u64, sku: &'static str, quantity: u32 },
    Advance { order: u64, state: usize },
    DeleteOrder { order: u64 },
    Restock { sku: &'static str, quantity: u32 },
    NewUser { id: String, login: String, name: &'static str },
    Enable { user: String, enabled: bool },
}

struct Worker {
    system: usize,
    contacts: u64,
    orders: u64,
    users: u64,
}

impl Worker {
    fn new(system: usize) -> Self {
        Worker { system, contacts: 0, orders: 0, users: 0 }
    }

    /// Keys of different systems never meet.
    fn id(&self, count: u64) -> u64 {
        (self.system as u64 + 1) * 1_000_000 + count
    }

    fn user(&self, count: u64) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.id(count))
    }

    /// One of everybody's, or one of this system's.
    fn some_contact(&self) -> u64 {
        if self.contacts == 0 || rand::random_bool(0.3) { rand::random_range(2..=12) } else { self.own_contact() }
    }

    fn own_contact(&self) -> u64 {
        self.id(rand::random_range(1..=self.contacts.max(1)))
    }

    fn next(&mut self) -> Vec<String> {
        // each system sells three of the articles, so that stock rarely clashes
        let sku = SKUS[self.system * 3 + rand::random_range(0..3)];
        let action = match rand::random_range(0..20) {
            0..=2 => {
                self.contacts += 1;
                Action::NewContact {
                    id: self.id(self.contacts),
                    first: FIRST_NAMES[rand::random_range(0..8)],
                    last: LAST_NAMES[rand::random_range(0..8)],
                    day: rand::random_range(1..29),
                }
            }
            3..=4 => Action::Rename { contact: self.some_contact(), last: LAST_NAMES[rand::random_range(0..8)] },
            5 => Action::SetActive { contact: self.own_contact(), active: rand::random_bool(0.5) },
            6..=11 => {
                self.orders += 1;
                Action::NewOrder {
                    id: self.id(self.orders),
                    contact: self.some_contact(),
                    sku,
                    quantity: rand::random_range(1..5),
                }
            }
            12..=14 => Action::Advance {
                order: self.id(rand::random_range(1..=self.orders.max(1))),
                state: rand::random_range(1..3),
            },
            15 => Action::DeleteOrder { order: self.id(rand::random_range(1..=self.orders.max(1))) },
            16..=17 => Action::Restock { sku, quantity: rand::random_range(5..50) },
            18 if self.system != 2 => {
                self.users += 1;
                Action::NewUser {
                    id: self.user(self.users),
                    login: format!("{}{}", NAMES[self.system], self.users),
                    name: FIRST_NAMES[rand::random_range(0..8)],
                }
            }
            19 if self.system != 2 => Action::Enable {
                user: self.user(rand::random_range(1..=self.users.max(1))),
                enabled: rand::random_bool(0.7),
            },
            _ => Action::Restock { sku, quantity: 1 },
        };
        match self.system {
            0 => crm(&action),
            1 => shop(&action),
            _ => erp(&action),
        }
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn crm(action: &Action) -> Vec<String> {
    vec![match action {
        Action::NewContact { id, first, last, day } => format!(
            "INSERT INTO contacts VALUES ({id}, {}, {}, 'c{id}@example.org', '2026-01-{day:02}', 'active', 'met at the fair')",
            quoted(first),
            quoted(last)
        ),
        Action::Rename { contact, last } => {
            format!("UPDATE contacts SET \"lastName\" = {} WHERE id = {contact}", quoted(last))
        }
        Action::SetActive { contact, active } => {
            let state = if *active { "active" } else { "closed" };
            format!("UPDATE contacts SET state = '{state}' WHERE id = {contact}")
        }
        Action::NewOrder { id, contact, sku, quantity } => {
            return vec![
                format!("UPDATE stock SET on_hand = on_hand - {quantity} WHERE sku = '{sku}'"),
                format!(
                    "INSERT INTO orders VALUES ({id}, {contact}, '{sku}', {quantity}, {quantity} * 9.95, clock_timestamp(), 'new')"
                ),
            ];
        }
        Action::Advance { order, state } => {
            format!("UPDATE orders SET state = '{}' WHERE id = {order}", STATES[*state])
        }
        Action::DeleteOrder { order } => format!("DELETE FROM orders WHERE id = {order}"),
        Action::Restock { sku, quantity } => {
            format!("UPDATE stock SET on_hand = on_hand + {quantity} WHERE sku = '{sku}'")
        }
        Action::NewUser { id, login, name } => {
            format!("INSERT INTO users VALUES ('{id}', '{login}', {}, true, '{{\"theme\": \"dark\"}}')", quoted(name))
        }
        Action::Enable { user, enabled } => format!("UPDATE users SET enabled = {enabled} WHERE id = '{user}'"),
    }]
}

fn shop(action: &Action) -> Vec<String> {
    vec![match action {
        Action::NewContact { id, first, last, day } => format!(
            "INSERT INTO customers VALUES ({id}, {}, {}, 'c{id}@example.com', '{day:02}/02/2026', 'A')",
            quoted(first),
            quoted(last)
        ),
        Action::Rename { contact, last } => {
            format!("UPDATE customers SET surname = {} WHERE customer_id = {contact}", quoted(last))
        }
        Action::SetActive { contact, active } => {
            let st = if *active { 'A' } else { 'C' };
            format!("UPDATE customers SET st = '{st}' WHERE customer_id = {contact}")
        }
        Action::NewOrder { id, contact, sku, quantity } => {
            return vec![
                format!("UPDATE inventory SET in_stock = in_stock - {quantity} WHERE sku = '{sku}'"),
                format!(
                    "INSERT INTO `order` VALUES ({id}, {contact}, '{sku}', {quantity}, {quantity} * 9.95, now(6), 'new')"
                ),
            ];
        }
        Action::Advance { order, state } => {
            format!("UPDATE `order` SET status = '{}' WHERE no = {order}", STATES[*state])
        }
        Action::DeleteOrder { order } => format!("DELETE FROM `order` WHERE no = {order}"),
        Action::Restock { sku, quantity } => {
            format!("UPDATE inventory SET in_stock = in_stock + {quantity} WHERE sku = '{sku}'")
        }
        Action::NewUser { id, login, name } => format!(
            "INSERT INTO accounts VALUES ('{id}', '{login}', {}, true, '{{\"news\": [\"weekly\"]}}')",
            quoted(name)
        ),
        Action::Enable { user, enabled } => {
            format!("UPDATE accounts SET is_enabled = {enabled} WHERE account_id = '{user}'")
        }
    }]
}

fn erp(action: &Action) -> Vec<String> {
    vec![match action {
        Action::NewContact { id, first, last, day } => format!(
            "INSERT INTO partner VALUES ({id}, {}, {}, NULL, '2026-03-{day:02}', 'active')",
            quoted(first),
            quoted(last)
        ),
        Action::Rename { contact, last } => {
            format!("UPDATE partner SET nachname = {} WHERE nr = {contact}", quoted(last))
        }
        Action::SetActive { contact, active } => {
            let state = if *active { "active" } else { "closed" };
            format!("UPDATE partner SET zustand = '{state}' WHERE nr = {contact}")
        }
        Action::NewOrder { id, contact, sku, quantity } => {
            return vec![
                format!("UPDATE artikel SET `stückzahl` = `stückzahl` - {quantity} WHERE nummer = '{sku}'"),
                format!(
                    "INSERT INTO auftrag VALUES ({id}, {contact}, '{sku}', {quantity}, {quantity} * 9.95, utc_timestamp(6), 'N')"
                ),
            ];
        }
        Action::Advance { order, state } => {
            format!("UPDATE auftrag SET stand = '{}' WHERE nr = {order}", ["N", "P", "S"][*state])
        }
        Action::DeleteOrder { order } => format!("DELETE FROM auftrag WHERE nr = {order}"),
        Action::Restock { sku, quantity } => {
            format!("UPDATE artikel SET `stückzahl` = `stückzahl` + {quantity} WHERE nummer = '{sku}'")
        }
        // users are made elsewhere
        Action::NewUser { .. } | Action::Enable { .. } => "SELECT 1".to_owned(),
    }]
}

fn sample() -> Vec<Vec<String>> {
    let contacts = (1..=12).map(|id| Action::NewContact {
        id,
        first: FIRST_NAMES[id as usize % 8],
        last: LAST_NAMES[id as usize % 7],
        day: id as u32,
    });
    let stock = SKUS
        .iter()
        .map(|sku| format!("INSERT INTO stock VALUES ('{sku}', {}, 500, 9.95)", quoted(&sku.to_lowercase())))
        .collect();
    vec![contacts.flat_map(|action| crm(&action)).collect(), stock]
}
