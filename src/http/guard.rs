//! What stands before every route: who asks too often, who calls us by a name that is not ours, and
//! whose page wants something changed is refused; and every answer says how it may be used.
//!
//! A page of another site can have a browser send requests here. It reads no answer, and cannot
//! send the token; but a name that it controls and lets point to 127.0.0.1 would make it our own
//! page (DNS rebinding). On loopback we therefore answer to `localhost` and to addresses only. Where
//! there is TLS, the certificate's names say it already.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::limits::Connection;
use super::refusal::Refusal;
use crate::error::Error;

/// Unless the route says otherwise. No HSTS: it would bind every port of the machine's name.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::CACHE_CONTROL, "no-store"),
];

/// `local_names`: whether it has to be called by a name that only this machine can mean.
pub async fn guard(State(local_names): State<bool>, request: Request, next: Next) -> Response {
    let mut response = match refuse(&request, local_names) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn refuse(request: &Request, local_names: bool) -> Option<Refusal> {
    let headers = request.headers();
    let connection = request.extensions().get::<Arc<Connection>>().expect("each request comes by a connection");
    if !connection.request() {
        return Some(Refusal::too_many("too many requests from this address"));
    }
    if local_names && !headers.get_all(header::HOST).iter().all(is_local) {
        let hint = "open it as http://127.0.0.1:PORT/; a proxy sends Host: 127.0.0.1:PORT";
        let error = Error::stop("on loopback the port answers to localhost and to addresses, not to names", hint);
        return Some(Refusal(StatusCode::MISDIRECTED_REQUEST, error));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) && is_foreign(headers) {
        let hint = "use the dashboard; a proxy that sends another Host sends X-Forwarded-Host, too";
        let error = Error::stop("a page of another site may not change anything here", hint);
        return Some(Refusal(StatusCode::FORBIDDEN, error));
    }
    None
}

/// `localhost`, and addresses: no name server decides where these lead.
fn is_local(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    if let Some((v6, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return v6.parse::<Ipv6Addr>().is_ok();
    }
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

/// Whether a browser sends it for a page that is not ours. Browsers say so; those that do not
/// (old ones; any without TLS, but for localhost) name the page's origin.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(site) = text("sec-fetch-site") {
        return !["same-origin", "none"].contains(&site);
    }
    let Some(origin) = text("origin") else { return false };
    let page = origin.split_once("://").map_or("", |(_, authority)| authority);
    let ours = ["host", "x-forwarded-host"].map(|name| text(name).unwrap_or_default());
    !ours.iter().any(|ours| !page.is_empty() && ours.eq_ignore_ascii_case(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_point_here_are_local() {
        for host in
            ["localhost", "LOCALHOST:8642", "localhost.", "me.localhost:80", "127.0.0.1:8642", "10.0.0.7", "[::1]:8642"]
        {
            assert!(is_local(&HeaderValue::from_static(host)), "{host}");
        }
        for host in [
            "rebind.example:8642",
            "localhost.example",
            "notlocalhost",
            "127.0.0.1.example",
            "[::1.example]",
            "x",
            "",
            "[::1",
        ] {
            assert!(!is_local(&HeaderValue::from_static(host)), "{host:?}");
        }
        assert!(!is_local(&HeaderValue::from_bytes(b"\xff").unwrap()));
    }

    #[test]
    fn a_page_of_another_site_is_told_from_ours_and_from_what_is_no_browser() {
        let foreign = |given: &[(&'static str, &'static str)]| {
            let headers =
                given.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_foreign(&headers.collect())
        };

        assert!(!foreign(&[("host", "127.0.0.1:8642")]));
        assert!(!foreign(&[("host", "127.0.0.1:8642"), ("origin", "http://127.0.0.1:8642")]));
        // Behind a proxy that calls us by our address.
        let proxied = [("host", "127.0.0.1:8642"), ("origin", "https://agent.example")];
        assert!(!foreign(&[proxied[0], proxied[1], ("sec-fetch-site", "same-origin")]));
        assert!(!foreign(&[proxied[0], proxied[1], ("x-forwarded-host", "agent.example")]));

        assert!(foreign(&proxied));
        assert!(foreign(&[("host", "127.0.0.1:8642"), ("sec-fetch-site", "cross-site")]));
        // Another port of this machine is another page.
        assert!(foreign(&[("host", "127.0.0.1:8642"), ("sec-fetch-site", "same-site")]));
        assert!(foreign(&[("host", "127.0.0.1:8642"), ("origin", "http://127.0.0.1:3000")]));
        assert!(foreign(&[("host", ""), ("origin", "null")]));
    }
}
