//! `https://host:port/path?query`: taken apart once. Path and query may hold a token, so no message
//! and no `Debug` shows more than host and port.

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};

#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub tls: bool,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// As the header `Host` has it.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({self})")
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

impl Address {
    /// `Err` completes the sentence that begins with "the webhook", without the address.
    pub fn parse(text: &str) -> Result<Address, &'static str> {
        const FORM: &str = "is no address such as \"https://alerts.example.com/hook\"";
        let uri: Uri = text.trim().parse().map_err(|_| FORM)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("has to begin with https:// or http://"),
        };
        let authority = uri.authority().ok_or(FORM)?;
        if authority.as_str().contains('@') {
            return Err("holds a login; send it as a header: headers = { Authorization = \"…\" }");
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(FORM);
        }
        let port = match authority.port() {
            Some(port) => port.as_str().parse().ok().filter(|port| *port > 0).ok_or(FORM)?,
            None if authority.as_str().len() > authority.host().len() => return Err(FORM),
            None if tls => 443,
            None => 80,
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Address { tls, host: host.to_owned(), port, authority: authority.to_string(), target })
    }
}

/// Set by whoever sends, or by the protocol.
const RESERVED: [&str; 8] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "idempotency-key",
];

/// A header of the configuration; `Err` completes the sentence that begins with its name, without its value.
pub fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "is no name of a header")?;
    if RESERVED.contains(&name.as_str()) {
        return Err("is set by the agent: leave it out");
    }
    let mut value = HeaderValue::from_str(value).map_err(|_| "has a value with characters that no header takes")?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (bool, String, u16, String) {
        let Address { tls, host, port, target, .. } = Address::parse(text).unwrap();
        (tls, host, port, target)
    }

    #[test]
    fn an_address_is_taken_apart_and_shows_its_host_alone() {
        assert_eq!(parts("https://a.example/x?token=1"), (true, "a.example".into(), 443, "/x?token=1".into()));
        assert_eq!(parts("http://[::1]:8080"), (false, "::1".into(), 8080, "/".into()));
        assert_eq!(parts("http://h?a=b"), (false, "h".into(), 80, "/?a=b".into()));
        let address = Address::parse("https://a.example:8443/planted?token=planted").unwrap();
        assert_eq!(format!("{address} {address:?}"), "https://a.example:8443 Address(https://a.example:8443)");
        for wrong in [
            "",
            "a.example",
            "ftp://a/b",
            "https://",
            "https://a:b@h/",
            "https://h:0/",
            "https://h:/",
            "http://h:99999/",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers_are_checked_and_none_of_ours_is_replaced() {
        assert_eq!(header("Authorization", "Bearer x").unwrap().0, "authorization");
        assert!(header("Webhook-Id", "x").is_err() && header("a b", "x").is_err() && header("a", "x\ny").is_err());
        assert!(!format!("{:?}", header("Authorization", "planted")).contains("planted"));
    }
}
