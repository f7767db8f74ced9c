//! One request and its answer over HTTP/1.1, on the connection that is still open where there is one.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Address, Failure, header};
use crate::config::{ConnectConfig, PasswordSource, TlsConfig, TlsMode};
use crate::connect::{Receives, tcp, tls_stream};
use crate::error::Error;

/// An answer is not looked at; more of it than this costs the connection.
const ANSWER_MAX: usize = 64 << 10;

#[derive(Debug)]
pub struct Connection {
    /// Who is at the other end: an address that has changed needs another.
    address: Address,
    sender: SendRequest<Full<Bytes>>,
}

pub struct Request<'a> {
    pub id: &'a str,
    pub seconds: i64,
    pub signature: Option<String>,
    pub body: &'a Bytes,
    pub headers: &'a [(String, String)],
}

pub async fn post(
    connection: &mut Option<Connection>,
    address: &Address,
    ca_file: Option<&PathBuf>,
    timeout: Duration,
    request: &Request<'_>,
) -> Result<(), Failure> {
    // Closed while it lay idle, as often as not just now: that costs another connection, not a try.
    if let Some(open) = connection.as_mut().filter(|open| open.address == *address && !open.sender.is_closed()) {
        let made = request.made(address)?;
        if open.sender.ready().await.is_ok()
            && let Ok(answer) = open.sender.send_request(made).await
        {
            return settle(connection, answer, address).await;
        }
    }
    let mut fresh = Connection { address: address.clone(), sender: connect(address, ca_file, timeout).await? };
    let answer = fresh.sender.send_request(request.made(address)?).await;
    let answer = answer.map_err(|error| broken(address, error))?;
    *connection = Some(fresh);
    settle(connection, answer, address).await
}

fn broken(address: &Address, error: hyper::Error) -> Error {
    Error::retry(format!("{address} took no request or gave no answer")).because(error)
}

async fn connect(
    address: &Address,
    ca_file: Option<&PathBuf>,
    timeout: Duration,
) -> Result<SendRequest<Full<Bytes>>, Error> {
    let config = ConnectConfig {
        host: address.host.clone(),
        port: address.port,
        user: String::new(),
        database: String::new(),
        password: PasswordSource::None,
        tls: TlsConfig { ca_file: ca_file.cloned(), ..TlsConfig::new(TlsMode::VerifyFull) },
        connect_timeout: timeout,
    };
    let stream = tcp(&config, Receives::Answers)
        .await
        .map_err(|error| error.hint("is the receiver running, and can it be reached?"))?;
    if !address.tls {
        return handshake(stream, address).await;
    }
    let hint = "the receiver's certificate has to be for that host, by an authority of this machine or of ca_file";
    let stream = tls_stream(&config, stream).await.map_err(|error| error.hint(hint))?;
    handshake(stream, address).await
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: &Address,
) -> Result<SendRequest<Full<Bytes>>, Error> {
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(address, error))?;
    // It ends with the sender; whoever sends hears of its errors.
    tokio::spawn(driver);
    Ok(sender)
}

impl Request<'_> {
    fn made(&self, address: &Address) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let mut builder = hyper::Request::post(&address.target)
            .header("host", &address.authority)
            .header("content-type", "application/json")
            .header("user-agent", concat!("anechoic/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", self.id)
            .header("idempotency-key", self.id)
            .header("webhook-timestamp", self.seconds);
        if let Some(signature) = &self.signature {
            builder = builder.header("webhook-signature", signature);
        }
        for (name, value) in self.headers {
            let (name, value) = header(name, value).expect("checked with the configuration");
            if let Some(headers) = builder.headers_mut() {
                headers.insert(name, value);
            }
        }
        builder
            .body(Full::new(self.body.clone()))
            .map_err(|_| Error::retry(format!("the address of {address} cannot be asked for")))
    }
}

/// What the answer means. Its text is not repeated: it may repeat what was sent.
async fn settle(
    connection: &mut Option<Connection>,
    answer: Response<Incoming>,
    address: &Address,
) -> Result<(), Failure> {
    let (head, body) = answer.into_parts();
    // Read to its end, so that the connection can be used again.
    if Limited::new(body, ANSWER_MAX).collect().await.is_err() {
        *connection = None;
    }
    judge(head.status, &head.headers, address)
}

fn judge(status: StatusCode, headers: &HeaderMap, address: &Address) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let (retry_after, code) = (seconds.map(Duration::from_secs), status.as_u16());
    let again = matches!(code, 408 | 425 | 429) || status.is_server_error();
    let (message, hint) = match code {
        300..=399 => (
            format!("{address} sends us elsewhere ({code})"),
            "redirections are not followed: configure the address that takes the request",
        ),
        401 | 403 => {
            (format!("{address} does not let us in ({code})"), "look at the address, its token and the secret")
        }
        _ if again => (format!("{address} cannot take it now ({code})"), ""),
        _ => (
            format!("{address} refuses the request ({code})"),
            "the receiver's log says why; it is tried again until it is taken, and nothing behind it goes before",
        ),
    };
    Err(Failure { error: Box::new(Error::retry(message).hint(hint)), refused: !again, retry_after })
}

#[cfg(test)]
mod tests {
    use super::super::Patience;
    use super::*;

    #[test]
    fn answers_are_told_apart_by_whether_a_person_has_to_look() {
        let address = Address::parse("http://h/planted").unwrap();
        let judged = |code: u16| judge(StatusCode::from_u16(code).unwrap(), &HeaderMap::new(), &address);

        assert!(judged(200).is_ok() && judged(204).is_ok());
        for (code, refused) in
            [(500, false), (503, false), (429, false), (408, false), (400, true), (404, true), (302, true)]
        {
            let failure = judged(code).unwrap_err();
            assert_eq!(failure.refused, refused, "{code}");
            assert!(failure.error.full().contains(&code.to_string()) && !failure.error.full().contains("planted"));
        }
    }

    #[test]
    fn a_receiver_that_asks_for_patience_gets_it_within_limits() {
        let address = Address::parse("http://h/").unwrap();
        let pause = |text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            Patience::default().pause(&judge(StatusCode::SERVICE_UNAVAILABLE, &headers, &address).unwrap_err(), 1.0)
        };

        assert_eq!(pause("7"), Duration::from_secs(7));
        assert_eq!(pause("86400"), Duration::from_secs(300));
        assert_eq!(pause("0"), Duration::from_millis(200));
        assert_eq!(pause("Fri, 31 Dec 1999 23:59:59 GMT"), Duration::from_millis(200));
    }
}
