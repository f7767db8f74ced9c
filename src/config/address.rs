//! `postgresql://` and `mysql://` URLs.
//!
//! By hand, not by the `url` crate: passwords hold `/`, `?`, `#` and `@` that people do not
//! escape, hosts may be socket directories, and an error must never repeat the password.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::{CertificateFiles, ConnectConfig, Engine, PasswordSource, TlsConfig, TlsMode, nearest};

const PARAMETERS: [&str; 10] = [
    "sslmode",
    "sslrootcert",
    "sslservername",
    "sslcert",
    "sslkey",
    "connect_timeout",
    "host",
    "port",
    "user",
    "socket",
];
const MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

/// What is wrong with a URL, without the URL.
pub(super) fn parse(url: &str) -> Result<(Engine, ConnectConfig), String> {
    let (scheme, rest) = url.split_once("://").ok_or("is not of the form postgresql://user@host:5432/database")?;
    let engine = match scheme {
        "postgresql" | "postgres" => Engine::Postgres,
        "mysql" | "mariadb" => Engine::Mysql,
        other if other.chars().all(|c| c.is_ascii_alphanumeric()) => {
            let near = nearest(other, ["postgresql", "mysql", "mariadb"].into_iter()).unwrap_or("postgresql");
            return Err(format!("has the unknown scheme {other:?}; nearest: {near:?}"));
        }
        _ => return Err("has no scheme: expected postgresql:// or mysql://".into()),
    };
    let (main, query) = split_query(rest);
    let (login, place) = main.rsplit_once('@').map_or((None, main), |(login, place)| (Some(login), place));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let (host, port) = host_and_port(authority)?;
    let (user, password) = match login.map(|l| l.split_once(':').map_or((l, None), |(u, p)| (u, Some(p)))) {
        Some((user, password)) => (decode(user)?, password.map(decode).transpose()?),
        None => (String::new(), None),
    };
    let mut connect = ConnectConfig {
        host,
        port: port.unwrap_or(default_port(engine)),
        user,
        database: decode(database)?,
        password: password.map_or(PasswordSource::None, PasswordSource::Inline),
        tls: TlsConfig::new(TlsMode::Prefer),
        connect_timeout: Duration::from_secs(10),
    };
    let mut client = (None, None);
    for (key, value) in query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
        match key {
            "sslcert" => client.0 = Some(PathBuf::from(decode(value)?)),
            "sslkey" => client.1 = Some(PathBuf::from(decode(value)?)),
            _ => parameter(&mut connect, engine, key, &decode(value)?)?,
        }
    }
    connect.tls.client = match client {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) => return Err("has sslcert without sslkey".into()),
        (None, Some(_)) => return Err("has sslkey without sslcert".into()),
    };
    complete(connect).map(|connect| (engine, connect))
}

fn default_port(engine: Engine) -> u16 {
    match engine {
        Engine::Postgres => 5432,
        Engine::Mysql => 3306,
    }
}

/// The part behind the last `?`, unless that one belongs to a password.
fn split_query(rest: &str) -> (&str, &str) {
    match rest.rsplit_once('?') {
        Some((main, query)) if query.is_empty() || query.split('&').all(|p| p.contains('=') && !p.contains('@')) => {
            (main, query)
        }
        _ => (rest, ""),
    }
}

fn host_and_port(authority: &str) -> Result<(String, Option<u16>), String> {
    if authority.contains(',') {
        return Err("names several hosts; name the one to follow".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or("has an IPv6 address without \"]\"")?;
            (host, rest.strip_prefix(':'))
        }
        None => authority.rsplit_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.contains(':') && !authority.starts_with('[') {
        return Err("has an IPv6 address outside [ ]".into());
    }
    let port = port.map(port_number).transpose()?;
    Ok((decode(host)?, port))
}

fn port_number(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "has a port that is not 1 to 65535".to_owned())
}

fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "has percent escapes that are not UTF-8")?;
    if text.contains('\0') {
        return Err("holds a zero byte".into());
    }
    Ok(text.into_owned())
}

fn parameter(connect: &mut ConnectConfig, engine: Engine, key: &str, value: &str) -> Result<(), String> {
    match (key, engine) {
        ("sslmode", _) => connect.tls.mode = tls_mode(value)?,
        ("sslrootcert", _) => connect.tls.ca_file = Some(PathBuf::from(value)),
        ("sslservername", _) => connect.tls.server_name = Some(value.to_owned()),
        ("connect_timeout", _) => {
            let seconds = value.parse().ok().filter(|s| *s > 0);
            connect.connect_timeout =
                Duration::from_secs(seconds.ok_or("has a connect_timeout that is not a number of seconds")?);
        }
        ("host", Engine::Postgres) | ("socket", Engine::Mysql) => connect.host = value.to_owned(),
        ("port", _) => connect.port = port_number(value)?,
        ("user", _) => connect.user = value.to_owned(),
        ("password", _) => return Err("has the password as a parameter; use password_file or password_env".into()),
        (other, _) => {
            let near = nearest(other, PARAMETERS.into_iter());
            let way_out =
                near.map_or_else(|| format!("known: {}", PARAMETERS.join(", ")), |n| format!("nearest: {n:?}"));
            return Err(format!("has the unknown parameter {other:?}; {way_out}"));
        }
    }
    Ok(())
}

/// PostgreSQL's names, and MySQL's for the same five.
fn tls_mode(value: &str) -> Result<TlsMode, String> {
    Ok(match value.to_ascii_lowercase().replace('_', "-").as_str() {
        "disable" | "disabled" => TlsMode::Disable,
        "prefer" | "preferred" => TlsMode::Prefer,
        "require" | "required" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" | "verify-identity" => TlsMode::VerifyFull,
        other => {
            let near = nearest(other, MODES.into_iter());
            let way_out = near.map_or_else(|| format!("known: {}", MODES.join(", ")), |n| format!("nearest: {n:?}"));
            return Err(format!("has the unknown sslmode {other:?}; {way_out}"));
        }
    })
}

fn complete(mut connect: ConnectConfig) -> Result<ConnectConfig, String> {
    if connect.user.is_empty() {
        return Err("names no user".into());
    }
    if connect.database.is_empty() {
        return Err("names no database".into());
    }
    if connect.host.is_empty() {
        connect.host = "localhost".into();
    }
    if connect.host.starts_with(['/', '@']) {
        connect.tls.mode = TlsMode::Disable; // a unix socket has no TLS
    }
    Ok(connect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(url: &str) -> (Engine, ConnectConfig) {
        parse(url).unwrap_or_else(|e| panic!("{url}: {e}"))
    }

    fn password(url: &str) -> String {
        match good(url).1.password {
            PasswordSource::Inline(password) => password,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_usual_urls_are_understood() {
        let (engine, c) = good("postgresql://anechoic@crm-db:5433/crm?sslmode=verify-full&sslrootcert=/etc/ca.pem");
        assert_eq!(
            (engine, &*c.host, c.port, &*c.user, &*c.database),
            (Engine::Postgres, "crm-db", 5433, "anechoic", "crm")
        );
        assert_eq!((c.tls.mode, c.tls.ca_file), (TlsMode::VerifyFull, Some("/etc/ca.pem".into())));
        let (engine, c) = good("mysql://a@[::1]/shop?connect_timeout=3");
        assert_eq!((engine, &*c.host, c.port), (Engine::Mysql, "::1", 3306));
        assert_eq!((c.tls.mode, c.connect_timeout), (TlsMode::Prefer, Duration::from_secs(3)));
        assert_eq!(good("mariadb://a@h/b%C3%BCro").1.database, "büro");
    }

    #[test]
    fn unix_sockets_are_hosts_that_begin_with_a_slash() {
        for url in
            ["postgresql://a@/crm?host=/run/pg", "postgres://a@%2Frun%2Fpg/crm", "postgres:///crm?host=/run/pg&user=a"]
        {
            let c = good(url).1;
            assert_eq!((&*c.host, &*c.user, c.tls.mode), ("/run/pg", "a", TlsMode::Disable), "{url}");
        }
        assert_eq!(good("mysql://a@localhost/shop?socket=/run/mysqld.sock").1.host, "/run/mysqld.sock");
    }

    #[test]
    fn passwords_keep_their_special_characters() {
        for (url, expected) in [
            ("mysql://a:p%40ss%2Fw%3A@h/d", "p@ss/w:"),
            ("mysql://a:p@ss@h/d", "p@ss"),
            ("mysql://a:p/w#x@h/d", "p/w#x"),
            ("mysql://a:p?w@h/d", "p?w"),
            ("mysql://a:p?w@h/d?sslmode=disable", "p?w"),
            ("mysql://a:100%@h/d", "100%"),
            ("mysql://a:a+b@h/d", "a+b"),
            ("mysql://a:@h/d", ""),
        ] {
            assert_eq!(password(url), expected, "{url}");
        }
    }

    #[test]
    fn errors_name_the_part_and_never_the_password() {
        for (url, part) in [
            ("postgres//a:hunter2@h/d", "form"),
            ("postgers://a:hunter2@h/d", "nearest: \"postgresql\""),
            ("mysql://a:hunter2@h:99999/d", "port"),
            ("mysql://a:hunter2@h:3306", "database"),
            ("mysql://:hunter2@h/d", "user"),
            ("mysql://a:hunter2@h,i/d", "several hosts"),
            ("mysql://a:hunter2@h/d?sslmod=disable", "nearest: \"sslmode\""),
            ("mysql://a:hunter2@h/d?sslmode=verify-fool", "nearest: \"verify-full\""),
            ("mysql://a@h/d?password=hunter2", "password_file"),
            ("mysql://a:hunter2@::1/d", "IPv6"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(!format!("{:?}", good("mysql://a:hunter2@h/d")).contains("hunter2"));
    }
}
