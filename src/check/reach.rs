//! Why a system could not be asked, and the way out: by the code of the server's answer.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::apply::sql::{backquoted, quoted};
use crate::config::{ConnectConfig, Engine, PasswordSource, SystemConfig, TlsMode, nearest};
use crate::connect;
use crate::error::Error;
use crate::finding::Finding;

/// What start-up stops for in the same words.
pub async fn finding(system: &SystemConfig, error: &Error) -> Finding {
    let finding = Finding::of(&system.name, error).mend(String::new());
    let hint = if error.hint.is_empty() { String::new() } else { format!("# {}\n", error.hint) };
    let (connect, code) = (&system.connect, error.code.as_deref().unwrap_or_default());
    let role = quoted(&connect.user);
    let account = format!("'{}'@'%'", connect.user.replace('\'', "''"));
    let said = finding.what.to_lowercase();
    let changed = |connect: &ConnectConfig| url(system, connect);
    match (system.engine, code) {
        (Engine::Postgres, "28P01") => finding
            .by_administrator(format!("ALTER ROLE {role} LOGIN PASSWORD '…';\n{}", where_the_password_is(connect))),
        (Engine::Postgres, "28000") if said.contains("pg_hba") => {
            let line = format!("host {} {} ADDRESS scram-sha-256", quoted(&connect.database), role);
            finding.by_administrator(format!("-- a line in pg_hba.conf: {line}\nSELECT pg_reload_conf();"))
        }
        (Engine::Postgres, "28000") if said.contains("not permitted to log in") => {
            finding.by_administrator(format!("ALTER ROLE {role} LOGIN;"))
        }
        (Engine::Postgres, "28000") => {
            finding.by_administrator(format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';"))
        }
        (Engine::Postgres, "42501") => {
            let grant = format!("GRANT CONNECT ON DATABASE {} TO {role};", quoted(&connect.database));
            Finding { what: format!("{}: it lacks CONNECT", finding.what), ..finding }.by_administrator(grant)
        }
        (Engine::Postgres, "3D000") | (Engine::Mysql, "1049") => unknown_database(system, finding).await,
        (Engine::Mysql, "1045" | "1698") => finding
            .by_administrator(format!("ALTER USER {account} IDENTIFIED BY '…';\n{}", where_the_password_is(connect))),
        (Engine::Mysql, "1044") => {
            // What does not exist is refused like what may not be seen.
            let known = databases(system).await;
            if nearest(&connect.database, known.iter().map(String::as_str)).is_some() {
                return unknown_database(system, finding).await;
            }
            let privileges = "SELECT, INSERT, UPDATE, DELETE, TRIGGER";
            let grant = format!("GRANT {privileges} ON {}.* TO {account};", backquoted(&connect.database));
            finding.by_administrator(format!("{grant}\n-- table by table: anechoic check --grants"))
        }
        (Engine::Postgres, "53300") => finding.by_administrator(
            "ALTER SYSTEM SET max_connections = 200;\n-- then restart the server, or end other sessions",
        ),
        (Engine::Mysql, "1040") => {
            finding.by_administrator("SET GLOBAL max_connections = 300;\n# my.cnf, [mysqld]: max_connections = 300")
        }
        (Engine::Mysql, "3159") => {
            let mut connect = connect.clone();
            connect.tls.mode = TlsMode::Require;
            finding.mend(format!("# the server insists on TLS\n{}", changed(&connect)))
        }
        _ if connect.tls.mode != TlsMode::Disable
            && ["tls", "ssl", "certificate"].iter().any(|word| said.contains(word)) =>
        {
            tls(system, finding, &hint)
        }
        (_, connect::UNREADABLE) => finding.mend(hint),
        // Not a word from the server itself.
        (_, "") => finding.mend(format!("{hint}# start it, or let the url lead to it:\n{}", changed(connect))),
        _ => finding.mend(hint),
    }
}

fn where_the_password_is(connect: &ConnectConfig) -> String {
    let place = match &connect.password {
        PasswordSource::None => "none is given: password_file or password_env in its [[system]]".to_owned(),
        PasswordSource::Inline(_) => "the url".to_owned(),
        PasswordSource::File(path) => path.display().to_string(),
        PasswordSource::Env(name) => format!("environment variable {name}"),
    };
    let then = match &connect.password {
        PasswordSource::Inline(_) => ", then: systemctl reload anechoic",
        _ => ", then: systemctl restart anechoic",
    };
    format!("-- '…' is the password that the agent has; or put the right one there: {place}{then}")
}

fn tls(system: &SystemConfig, finding: Finding, hint: &str) -> Finding {
    let mut loose = system.connect.clone();
    let why = if finding.what.contains("ertificate") {
        loose.tls.mode = TlsMode::Require;
        "# unverified, where nobody is between to read along:"
    } else {
        loose.tls.mode = TlsMode::Disable;
        "# unencrypted, where the network is yours:"
    };
    finding.mend(format!("{hint}{why}\n{}", url(system, &loose)))
}

async fn unknown_database(system: &SystemConfig, finding: Finding) -> Finding {
    let known = databases(system).await;
    let Some(near) = nearest(&system.connect.database, known.iter().map(String::as_str)) else {
        let name = match system.engine {
            Engine::Postgres => quoted(&system.connect.database),
            Engine::Mysql => backquoted(&system.connect.database),
        };
        return finding.by_administrator(format!("CREATE DATABASE {name};\n-- or name another one in the url"));
    };
    let what = format!("{}; nearest: {near:?}", finding.what);
    let connect = ConnectConfig { database: near.to_owned(), ..system.connect.clone() };
    Finding { what, ..finding }.mend(url(system, &connect))
}

/// Those that the role may see; none where it cannot log in elsewhere.
async fn databases(system: &SystemConfig) -> Vec<String> {
    let elsewhere = |database: &str| ConnectConfig { database: database.into(), ..system.connect.clone() };
    match system.engine {
        Engine::Postgres => {
            let Ok(client) = connect::postgres::connect(&elsewhere("postgres"), "anechoic check").await else {
                return vec![];
            };
            let sql = "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate";
            client.query(sql, &[]).await.map_or_else(|_| vec![], |rows| rows.iter().map(|row| row.get(0)).collect())
        }
        Engine::Mysql => {
            use mysql_async::prelude::Queryable;
            let Ok(mut conn) = connect::mysql::connect(&elsewhere("")).await else { return vec![] };
            let found = conn.query("SHOW DATABASES").await.unwrap_or_default();
            let _ = conn.disconnect().await; // the answer is there
            found
        }
    }
}

/// What stands for itself in a URL.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'.');

/// The system's lines with this url; never with a password.
fn url(system: &SystemConfig, connect: &ConnectConfig) -> String {
    let (scheme, socket) = match system.engine {
        Engine::Postgres => ("postgresql", "host"),
        Engine::Mysql => ("mysql", "socket"),
    };
    let escaped = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
    let mode = match connect.tls.mode {
        TlsMode::Disable => "disable",
        TlsMode::Prefer => "prefer",
        TlsMode::Require => "require",
        TlsMode::VerifyCa => "verify-ca",
        TlsMode::VerifyFull => "verify-full",
    };
    let (place, mut parameters) = match connect.host.starts_with('/') {
        true => (String::new(), vec![format!("{socket}={}", connect.host)]),
        false if connect.host.contains(':') => (format!("[{}]:{}", connect.host, connect.port), vec![]),
        false => (format!("{}:{}", connect.host, connect.port), vec![]),
    };
    if parameters.is_empty() {
        parameters.push(format!("sslmode={mode}"));
    }
    if let Some(file) = connect.tls.ca_file.as_ref().filter(|_| connect.tls.mode > TlsMode::Require) {
        parameters.push(format!("sslrootcert={}", file.display()));
    }
    if let Some(name) = connect.tls.server_name.as_ref().filter(|_| connect.tls.mode > TlsMode::Require) {
        parameters.push(format!("sslservername={name}"));
    }
    let url = format!(
        "{scheme}://{}@{place}/{}?{}",
        escaped(&connect.user),
        escaped(&connect.database),
        parameters.join("&")
    );
    let inline = matches!(connect.password, PasswordSource::Inline(_));
    let password = if inline { " # and the password, as it was" } else { "" };
    format!("[[system]]\nname = {:?}\nurl = {url:?}{password}", &*system.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// What is printed as a url is read as the same place.
    #[test]
    fn a_url_is_printed_as_it_may_be_typed_and_without_its_password() {
        for text in [
            "postgresql://anechoic:hunter2@crm-db:5433/b%C3%BCro?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "mysql://a%40b@[::1]:3307/shop",
            "mysql://a@localhost/shop?socket=/run/mysqld.sock",
            "postgresql://a@/crm?host=/run/pg",
        ] {
            let file = |url: &str| format!("[agent]\nid = \"hq\"\n[[system]]\nname = \"x\"\nurl = {url:?}\n");
            let config = Config::from_str(&file(text), "t").unwrap_or_else(|e| panic!("{e:?}"));
            let system = &config.systems[0];

            let printed = url(system, &system.connect);

            assert!(!printed.contains("hunter2"), "{printed}");
            let again = Config::from_str(&format!("[agent]\nid = \"hq\"\n{printed}\n"), "t")
                .unwrap_or_else(|e| panic!("{e:?}"));
            let place = |c: &ConnectConfig| format!("{:?}", (&c.host, &c.user, &c.database, &c.tls));
            assert_eq!(place(&again.systems[0].connect), place(&system.connect), "{printed}");
        }
    }
}
