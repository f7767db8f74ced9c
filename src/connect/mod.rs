//! How the agent reaches a server: socket, TLS, password, session settings.
//!
//! `tls` and `secret` are shared; `postgres` and `mysql` each open sessions of their own engine. A session
//! never depends on the settings of role, database or server: what matters is set here.

pub mod clock;
pub mod mysql;
pub mod postgres;
pub(crate) mod secret;
pub mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};

pub use self::secret::{UNREADABLE, password};
use crate::config::{ConnectConfig, TlsMode};
use crate::error::{Error, Result};

/// Host and port, or the socket's path: how errors name a server.
pub fn place(config: &ConnectConfig) -> String {
    match &*config.host {
        socket if is_socket(socket) => socket.to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]:{}", config.port),
        host => format!("{host}:{}", config.port),
    }
}

fn is_socket(host: &str) -> bool {
    host.starts_with(['/', '@'])
}

/// The unix socket that is meant, as the system wants its path; `@` stands for the abstract ones.
pub(crate) fn socket(config: &ConnectConfig) -> Option<String> {
    is_socket(&config.host).then(|| match config.host.strip_prefix('@') {
        Some(name) => format!("\0{name}"),
        None => config.host.clone(),
    })
}

/// What a connection mostly receives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receives {
    Answers,
    /// A log, in a great many small pieces.
    Log,
}

/// Of a log's pieces from a server on this machine the kernel keeps few for us: while they wait,
/// it puts those that follow together on the server's side, which costs the server much less than
/// a packet for each (see `capture::postgres::gather`). In bytes; the kernel doubles it.
const NEAR_BUFFER: u32 = 32 << 10;
const WIDE_BUFFER: usize = 128 << 10;

/// TCP with what a connection needs that may lie idle for days: a peer that vanished without
/// a word is noticed within about a minute.
pub(crate) async fn tcp(config: &ConnectConfig, receives: Receives) -> Result<TcpStream> {
    let stream = tokio::time::timeout(config.connect_timeout, any_address(config, receives))
        .await
        .map_err(|_| late(config))?
        .map_err(|error| unreachable(config, error))?;
    watch_over(&stream)?;
    Ok(stream)
}

/// Answers at once, and notices within about a minute that the peer is gone, or takes nothing.
pub(crate) fn watch_over(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    Ok(())
}

/// The first of the host's addresses that answers. One that swallows packets (an IPv6 address
/// without a route) does not use up the time of the others.
async fn any_address(config: &ConnectConfig, receives: Receives) -> std::io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((&*config.host, config.port)).await?.collect();
    let share = config.connect_timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(share, connect(address, receives)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last)
}

async fn connect(address: SocketAddr, receives: Receives) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if receives == Receives::Log && is_here(address) {
        socket.set_recv_buffer_size(NEAR_BUFFER)?;
    }
    socket.connect(address).await
}

/// With TLS the log's pieces come in records, and only the runtime reads them: there a small
/// buffer would be in the way.
pub(crate) fn widen(stream: &TcpStream) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    match socket.recv_buffer_size()? <= 2 * NEAR_BUFFER as usize {
        true => socket.set_recv_buffer_size(WIDE_BUFFER),
        false => Ok(()),
    }
}

/// Whether the address is one of this machine's: what goes there comes from the same address.
pub(crate) fn is_here(address: SocketAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let from = || {
        let probe = std::net::UdpSocket::bind(any)?;
        probe.connect(address)?; // nothing is sent
        probe.local_addr()
    };
    from().is_ok_and(|from| from.ip() == address.ip())
}

pub(crate) fn unreachable(config: &ConnectConfig, error: std::io::Error) -> Error {
    let hint = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "is the server running, and does it listen there?",
        std::io::ErrorKind::NotFound => "is the server running, and is its socket there?",
        std::io::ErrorKind::PermissionDenied => "the agent's user must be allowed to use it",
        std::io::ErrorKind::TimedOut => "is the server running, and does the network let us through?",
        _ => "check host and port in the system's url",
    };
    Error::retry(format!("cannot connect to {}", place(config))).hint(hint).because(error)
}

pub(crate) fn late(config: &ConnectConfig) -> Error {
    Error::retry(format!("no answer from {} within {:?}", place(config), config.connect_timeout))
        .hint("is the server running, and does the network let us through? connect_timeout in the url gives it longer")
}

pub(crate) fn no_tls(config: &ConnectConfig, on_the_server: &str) -> Error {
    Error::retry(format!("{} offers no TLS", place(config)))
        .hint(format!("{on_the_server}, or sslmode=disable in the system's url"))
}

/// What a certificate is checked against: the configured name, else the host. Where no name is
/// checked, one that could not be in a certificate is left out.
pub(crate) fn server_name(config: &ConnectConfig) -> Result<ServerName<'static>> {
    // The zone of a link-local address ("%eth0") is an affair of this machine.
    let host = config.host.split('%').next().unwrap_or_default();
    let name = config.tls.server_name.as_deref().unwrap_or(host);
    match ServerName::try_from(name.to_owned()) {
        Ok(name) => Ok(name),
        Err(_) if config.tls.mode != TlsMode::VerifyFull => Ok(ServerName::from(IpAddr::from([0, 0, 0, 0]))),
        Err(error) => Err(Error::stop(
            format!("{name:?} cannot be the name in a certificate"),
            "give the name in the server's certificate as sslservername in the url, or use sslmode=verify-ca",
        )
        .because(error)),
    }
}

/// A TLS session over `stream`, checked as `config` says.
pub(crate) async fn tls_stream(
    config: &ConnectConfig,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let client = tls::client_config(&config.tls)?;
    let name = server_name(config)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&client));
    match tokio::time::timeout(config.connect_timeout, connector.connect(name, stream)).await {
        Err(_) => Err(late(config).context("TLS handshake")),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match tls::refusal(&error, config) {
            Some(refusal) => refusal,
            None => Error::retry(format!("the TLS handshake with {} failed", place(config))).because(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PasswordSource, TlsConfig};

    fn at(host: &str, mode: TlsMode) -> ConnectConfig {
        ConnectConfig {
            host: host.to_owned(),
            port: 5432,
            user: "a".into(),
            database: "d".into(),
            password: PasswordSource::None,
            tls: TlsConfig::new(mode),
            connect_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_server_is_named_as_its_url_names_it() {
        for (host, expected) in [
            ("crm-db", "crm-db:5432"),
            ("::1", "[::1]:5432"),
            ("fe80::1%eth0", "[fe80::1%eth0]:5432"),
            ("/run/pg", "/run/pg"),
            ("@pg", "@pg"),
        ] {
            assert_eq!(place(&at(host, TlsMode::Disable)), expected);
        }
        assert_eq!(socket(&at("@pg", TlsMode::Disable)).as_deref(), Some("\0pg"));
    }

    #[test]
    fn the_name_that_is_verified_is_the_hosts() {
        let name = |host, mode| server_name(&at(host, mode)).map(|name| name.to_str().into_owned());

        assert_eq!(name("crm-db", TlsMode::VerifyFull).unwrap(), "crm-db");
        assert_eq!(name("fe80::1%eth0", TlsMode::VerifyFull).unwrap(), "fe80::1", "the zone is this machine's affair");
        assert!(name("not a name", TlsMode::VerifyFull).unwrap_err().hint.contains("sslservername"));
        assert_eq!(name("not a name", TlsMode::Require).unwrap(), "0.0.0.0", "nobody looks at it");
    }

    /// Nobody listens at the first address: the second one gets its share of the time.
    #[tokio::test]
    async fn an_address_that_refuses_does_not_keep_us_from_the_next() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = at("localhost", TlsMode::Disable); // ::1 comes first, where there is one
        config.port = listener.local_addr().unwrap().port();

        tcp(&config, Receives::Answers).await.unwrap();
    }

    #[test]
    fn an_address_of_this_machine_is_known() {
        assert!(is_here("127.0.0.1:5432".parse().unwrap()));
        assert!(!is_here("192.0.2.1:5432".parse().unwrap()), "set aside for documentation");
    }

    /// Only then has the connection the buffer that keeps little.
    #[tokio::test]
    async fn a_log_from_this_machine_is_kept_on_the_servers_side() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = at("127.0.0.1", TlsMode::Disable);
        config.port = listener.local_addr().unwrap().port();
        let room = |stream: &TcpStream| socket2::SockRef::from(stream).recv_buffer_size().unwrap();

        let log = tcp(&config, Receives::Log).await.unwrap();
        assert_eq!(room(&log), 2 * NEAR_BUFFER as usize);
        widen(&log).unwrap();
        assert_eq!(room(&log), 2 * WIDE_BUFFER, "inside TLS");
        let answers = tcp(&config, Receives::Answers).await.unwrap();
        let before = room(&answers);
        widen(&answers).unwrap();
        assert_eq!(room(&answers), before);
    }

    #[tokio::test]
    async fn an_unreachable_server_is_named_with_its_port() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = at("127.0.0.1", TlsMode::Disable);
        config.port = port;

        let error = tcp(&config, Receives::Answers).await.unwrap_err();

        assert!(error.full().contains(&format!("cannot connect to 127.0.0.1:{port}")), "{}", error.full());
        assert!(error.hint.contains("does it listen there"), "{}", error.hint);
    }
}
