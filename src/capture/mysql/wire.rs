//! A session of the client protocol that is our own from the first byte, for the dump.
//!
//! The crate's sessions serve statements. Its dump unpacks compressed transactions as a whole
//! in memory and passes over those that it cannot; so the log's connection is made here, with
//! the crate's packets for handshake and passwords, and what comes is handed on as it arrives.
//!
//! Protocol: MySQL internals, "Connection Phase" and "Text Protocol"; MariaDB's is the same
//! as far as it is used.

use std::io::ErrorKind;
use std::ops::Range;

use mysql_async::DriverError;
use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::packets::{AuthPlugin, AuthSwitchRequest, HandshakePacket, HandshakeResponse, SslRequest};
use mysql_common::proto::MySerialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::{ConnectConfig, TlsMode};
use crate::connect::mysql::{self as connection, Flavour, failed, not_connected};
use crate::error::{Error, Result};

/// Packets up to this are handed on where they lie.
pub const INBOX: usize = 256 << 10;
/// A longer packet goes on in another.
pub const PACKET_MAX: usize = 0xff_ffff;
/// What a server may send us in one event: as much as it can.
const EVENT_MAX: u32 = 1 << 30;

/// `utf8mb4_general_ci`, known to every server.
const UTF8MB4: u8 = 45;

pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// The connection, and what has arrived of it.
pub struct Wire {
    socket: Box<dyn Socket>,
    inbox: Box<[u8]>,
    arrived: Range<usize>,
    sequence: u8,
    /// TLS or a unix socket: a password may go through as it is.
    private: bool,
    pub flavour: Flavour,
    /// As the server writes it.
    pub version: String,
}

/// Bytes that MariaDB's newer plugins have signed.
const RANDOM_NONCE: usize = 32;

impl Wire {
    /// Connects and logs in, with the settings read anew.
    pub async fn connect(config: &ConnectConfig) -> Result<Wire> {
        let password = connection::password(config)?;
        let connecting = Self::open(config, password.as_deref().unwrap_or(""));
        tokio::time::timeout(config.connect_timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(crate::connect::late(config)))
    }

    async fn open(config: &ConnectConfig, password: &str) -> Result<Wire> {
        if let Some(path) = crate::connect::socket(config) {
            let socket = tokio::net::UnixStream::connect(path).await;
            let mut wire =
                Wire::over(Box::new(socket.map_err(|error| crate::connect::unreachable(config, error))?), true);
            let packet = wire.reply().await?.map_err(|error| not_connected(error, config))?;
            return wire.log_in(config, password, &parse_greeting(&packet)?, false).await;
        }
        let mut socket = crate::connect::tcp(config, crate::connect::Receives::Answers).await?;
        let packet = first_packet(&mut socket).await?.map_err(|error| not_connected(error, config))?;
        let greeting = parse_greeting(&packet)?;
        let able = greeting.capabilities().contains(CapabilityFlags::CLIENT_SSL);
        if config.tls.mode == TlsMode::Disable || config.tls.mode == TlsMode::Prefer && !able {
            return Wire::over(Box::new(socket), false).log_in(config, password, &greeting, false).await;
        }
        if !able {
            let error = DriverError::NoClientSslFlagFromServer;
            return Err(not_connected(mysql_async::Error::Driver(error), config));
        }
        let mut packet = vec![0, 0, 0, 1];
        let flags = client_flags(&greeting, config, true);
        SslRequest::new(flags, EVENT_MAX, UTF8MB4).serialize(&mut packet);
        let length = packet.len() as u32 - 4;
        packet[..3].copy_from_slice(&length.to_le_bytes()[..3]);
        socket.write_all(&packet).await?;
        let socket = crate::connect::tls_stream(config, socket).await?;
        let mut wire = Wire::over(Box::new(socket), true);
        wire.sequence = 2;
        wire.log_in(config, password, &greeting, true).await
    }

    pub fn over(socket: Box<dyn Socket>, private: bool) -> Wire {
        let inbox = vec![0; INBOX].into_boxed_slice();
        let (flavour, version) = (Flavour::Mysql, String::new());
        Wire { socket, inbox, arrived: 0..0, sequence: 1, private, flavour, version }
    }

    /// Proves who we are, by whatever the account wants.
    async fn log_in(
        mut self,
        config: &ConnectConfig,
        password: &str,
        greeting: &HandshakePacket<'_>,
        tls: bool,
    ) -> Result<Wire> {
        let version = greeting.server_version_str();
        // MariaDB 10 puts a number in front of its own, for old replicas.
        self.version = version.strip_prefix("5.5.5-").unwrap_or(&version).to_owned();
        let mariadb = self.version.to_ascii_lowercase().contains("mariadb");
        self.flavour = if mariadb { Flavour::Mariadb } else { Flavour::Mysql };
        let mut plugin = match greeting.auth_plugin() {
            Some(AuthPlugin::CachingSha2Password) => AuthPlugin::CachingSha2Password,
            _ => AuthPlugin::MysqlNativePassword,
        };
        let mut nonce = greeting.nonce();
        let proof = plugin.gen_data(Some(password), &nonce);
        let response = HandshakeResponse::new(
            proof.as_deref(),
            (8, 0, 0),
            Some(config.user.as_bytes()),
            (!config.database.is_empty()).then_some(config.database.as_bytes()),
            Some(plugin.borrow()),
            client_flags(greeting, config, tls),
            None,
            EVENT_MAX,
        );
        let mut body = Vec::new();
        response.serialize(&mut body);
        self.send(&body).await?;
        let refuse = |error| not_connected(mysql_async::Error::Driver(error), config);
        loop {
            let packet = self.reply().await?.map_err(|error| not_connected(error, config))?;
            match &packet[..] {
                [0, ..] => return Ok(self),
                [0xfe, _, ..] => {
                    let switch: AuthSwitchRequest<'_> =
                        ParseBuf(&packet).parse(()).map_err(|error| unexpected("logging in").because(error))?;
                    (plugin, nonce) = (switch.auth_plugin().into_owned(), switch.plugin_data().to_vec());
                    let random = matches!(plugin, AuthPlugin::Ed25519 | AuthPlugin::MariadbParsec { .. });
                    if random && nonce.len() == RANDOM_NONCE - 1 {
                        // Its last byte was zero, which the crate takes for the end of a text.
                        nonce.push(0);
                    }
                    let proof = match &plugin {
                        // As it is: to a server that has proved itself, or through the kernel alone.
                        AuthPlugin::MysqlClearPassword if !(self.private && proven(config)) => {
                            return Err(refuse(DriverError::CleartextPluginDisabled));
                        }
                        AuthPlugin::MysqlOldPassword => return Err(refuse(DriverError::MysqlOldPasswordDisabled)),
                        AuthPlugin::Other(name) => {
                            let name = String::from_utf8_lossy(name).into_owned();
                            return Err(refuse(DriverError::UnknownAuthPlugin { name }));
                        }
                        // Asks for the salt first.
                        AuthPlugin::MariadbParsec { .. } => None,
                        plugin => plugin.gen_data(Some(password), &nonce),
                    };
                    let mut body = Vec::new();
                    proof.iter().for_each(|proof| proof.serialize(&mut body));
                    self.send(&body).await?;
                }
                // caching_sha2_password: known already, or the password itself is asked for.
                [1, 3] if plugin == AuthPlugin::CachingSha2Password => {}
                [1, 4] if plugin == AuthPlugin::CachingSha2Password => self.send_password(password, &nonce).await?,
                salt if matches!(plugin, AuthPlugin::MariadbParsec { .. }) => {
                    let salt = salt.strip_prefix(&[1]).unwrap_or(salt);
                    plugin.read_add_data(salt).ok_or_else(|| unexpected("logging in"))?;
                    let proof = plugin.gen_data(Some(password), &nonce).ok_or_else(|| unexpected("logging in"))?;
                    self.send(&proof).await?;
                }
                _ => return Err(unexpected("logging in")),
            }
        }
    }

    async fn send_password(&mut self, password: &str, nonce: &[u8]) -> Result<()> {
        let mut secret = [password.as_bytes(), &[0]].concat();
        if !self.private {
            self.send(&[2]).await?;
            let key = self.answer("logging in").await?;
            let Some((1, key)) = key.split_first() else { return Err(unexpected("logging in")) };
            secret.iter_mut().zip(nonce.iter().cycle()).for_each(|(byte, nonce)| *byte ^= nonce);
            secret = mysql_common::crypto::encrypt(&secret, key);
        }
        self.send(&secret).await
    }

    /// A statement that returns no rows.
    pub async fn execute(&mut self, sql: &str, doing: &str) -> Result<()> {
        self.command(3, sql.as_bytes()).await?;
        match self.answer(doing).await?.first() {
            Some(0) => Ok(()),
            _ => Err(unexpected(doing)),
        }
    }

    /// The one row of a query, as text.
    pub async fn row(&mut self, sql: &str, doing: &str) -> Result<Vec<Option<String>>> {
        self.command(3, sql.as_bytes()).await?;
        let columns = self.answer(doing).await?;
        let columns = super::bytes::Bytes(&columns).lenenc().ok_or_else(|| unexpected(doing))?;
        let (mut ends, mut row) = (0, Vec::new());
        while ends < 2 {
            let packet = self.answer(doing).await?;
            if packet.first() == Some(&0xfe) && packet.len() < 9 {
                ends += 1;
            } else if ends == 1 && row.is_empty() {
                let mut bytes = super::bytes::Bytes(&packet);
                for _ in 0..columns {
                    row.push(if bytes.0.first() == Some(&0xfb) {
                        bytes.skip(1);
                        None
                    } else {
                        let text = bytes.sized().ok_or_else(|| unexpected(doing))?;
                        Some(String::from_utf8_lossy(text).into_owned())
                    });
                }
            }
        }
        Ok(row)
    }

    /// A command; what answers it is read by the caller.
    pub async fn command(&mut self, command: u8, body: &[u8]) -> Result<()> {
        self.sequence = 0;
        self.send(&[&[command], body].concat()).await
    }

    async fn send(&mut self, body: &[u8]) -> Result<()> {
        let mut rest = body;
        loop {
            let (chunk, behind) = rest.split_at(rest.len().min(PACKET_MAX));
            let length = (chunk.len() as u32).to_le_bytes();
            let header = [length[0], length[1], length[2], self.sequence];
            self.sequence = self.sequence.wrapping_add(1);
            self.socket.write_all(&[&header, chunk].concat()).await?;
            if chunk.len() < PACKET_MAX {
                break;
            }
            rest = behind;
        }
        Ok(self.socket.flush().await?)
    }

    /// One packet that answers; a server's refusal is the error.
    async fn answer(&mut self, doing: &str) -> Result<Vec<u8>> {
        self.reply().await?.map_err(|error| failed(error, doing))
    }

    /// One packet that answers, or the server's refusal. Answers are short.
    pub async fn reply(&mut self) -> Result<Result<Vec<u8>, mysql_async::Error>> {
        loop {
            let unread = self.unread();
            if let Some((length, sequence)) = packet_header(unread) {
                if length + 4 > INBOX {
                    return Err(unexpected("asking the server"));
                }
                if let Some(body) = unread.get(4..4 + length) {
                    let body = body.to_vec();
                    self.consume(4 + length);
                    self.sequence = sequence.wrapping_add(1);
                    return Ok(server_error(&body).map_or(Ok(body), Err));
                }
            }
            self.fill().await?;
        }
    }

    /// What has arrived and was not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.inbox[self.arrived.clone()]
    }

    /// Steps over bytes; they stay where they are until the next [`fill`](Self::fill).
    pub fn consume(&mut self, bytes: usize) -> Range<usize> {
        let from = self.arrived.start;
        debug_assert!(bytes <= self.arrived.len());
        self.arrived.start += bytes;
        from..from + bytes
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.inbox[range]
    }

    /// Waits for more. May be cancelled: what was read is kept.
    pub async fn fill(&mut self) -> Result<()> {
        if self.arrived.is_empty() {
            self.arrived = 0..0;
        } else if self.arrived.end == INBOX || self.arrived.start > INBOX / 2 {
            self.inbox.copy_within(self.arrived.clone(), 0);
            self.arrived = 0..self.arrived.len();
        }
        let read = self.socket.read(&mut self.inbox[self.arrived.end..]).await;
        match read {
            Ok(0) => Err(Error::retry("the connection failed").because(std::io::Error::from(ErrorKind::UnexpectedEof))),
            Ok(read) => {
                self.arrived.end += read;
                Ok(())
            }
            Err(error) => Err(Error::retry("the connection failed").because(error)),
        }
    }
}

/// The first packet of a connection that may go on in TLS: not a byte more is read than it has.
async fn first_packet(socket: &mut tokio::net::TcpStream) -> Result<Result<Vec<u8>, mysql_async::Error>> {
    let mut header = [0; 4];
    socket.read_exact(&mut header).await.map_err(hung_up)?;
    let length = packet_header(&header).map_or(0, |(length, _)| length);
    let mut packet = vec![0; length.min(INBOX)];
    socket.read_exact(&mut packet).await.map_err(hung_up)?;
    Ok(server_error(&packet).map_or(Ok(packet), Err))
}

fn hung_up(error: std::io::Error) -> Error {
    Error::retry("the server hung up before it said a word").because(error)
}

fn parse_greeting(packet: &[u8]) -> Result<HandshakePacket<'static>> {
    let greeting = ParseBuf(packet).parse::<HandshakePacket<'_>>(());
    Ok(greeting.map_err(|error| unexpected("connecting").because(error))?.into_owned())
}

/// The server has shown that it is the one that is meant, or is on this machine.
fn proven(config: &ConnectConfig) -> bool {
    let verified = matches!(config.tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull);
    verified || crate::connect::socket(config).is_some()
}

fn client_flags(greeting: &HandshakePacket<'_>, config: &ConnectConfig, tls: bool) -> CapabilityFlags {
    let mut flags = CapabilityFlags::CLIENT_LONG_PASSWORD
        | CapabilityFlags::CLIENT_LONG_FLAG
        | CapabilityFlags::CLIENT_PROTOCOL_41
        | CapabilityFlags::CLIENT_TRANSACTIONS
        | CapabilityFlags::CLIENT_SECURE_CONNECTION
        | CapabilityFlags::CLIENT_PLUGIN_AUTH
        | CapabilityFlags::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA;
    flags.set(CapabilityFlags::CLIENT_SSL, tls);
    flags.set(CapabilityFlags::CLIENT_CONNECT_WITH_DB, !config.database.is_empty());
    // MariaDB leaves out the first bit, by which its own extensions are told.
    flags & (greeting.capabilities() | CapabilityFlags::CLIENT_LONG_PASSWORD)
}

/// Length and number of the packet that begins here.
pub fn packet_header(bytes: &[u8]) -> Option<(usize, u8)> {
    let header: [u8; 4] = *bytes.first_chunk()?;
    Some((u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize, header[3]))
}

/// What a packet says if it is a refusal.
pub fn server_error(packet: &[u8]) -> Option<mysql_async::Error> {
    let [0xff, low, high, rest @ ..] = packet else { return None };
    let (state, message) = match rest {
        // Before the handshake is complete there is no state.
        [b'#', state @ ..] if state.len() >= 5 => state.split_at(5),
        _ => (&b"HY000"[..], rest),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = u16::from_le_bytes([*low, *high]);
    Some(mysql_async::Error::Server(mysql_async::ServerError { code, message: text(message), state: text(state) }))
}

fn unexpected(doing: &str) -> Error {
    Error::retry(format!("{doing}: the server answered something else than the protocol has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_with_and_without_a_state() {
        for (packet, expected) in [
            (&b"\xff\x15\x04#28000Access denied"[..], ("28000", "Access denied")),
            (b"\xff\x15\x04Host is blocked", ("HY000", "Host is blocked")),
        ] {
            let Some(mysql_async::Error::Server(error)) = server_error(packet) else { panic!("{packet:?}") };
            assert_eq!((error.code, error.state.as_str(), error.message.as_str()), (1045, expected.0, expected.1));
        }
        assert!(server_error(&[0, 1]).is_none() && server_error(&[0xff]).is_none());
    }
}
