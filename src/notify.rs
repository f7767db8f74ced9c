//! What the service manager is told, in the words of systemd: that we are ready, alive, going.
//!
//! One datagram per message to the socket that `NOTIFY_SOCKET` names (a path, or `@` and the name
//! of an abstract one); without it nothing is said. Nobody waits for the manager: what cannot be
//! sent at once is not sent.
//!
//! Protocol: sd_notify(3), systemd.service(5) `WatchdogSec=`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::warn;

pub struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// It ends us after so long without a sign of life.
    pub watchdog: Option<Duration>,
}

impl Manager {
    /// Where there is one, and it wants to hear from us.
    pub fn from_env() -> Option<Manager> {
        let name = std::env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty())?;
        let variable = |name| std::env::var(name).ok();
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id());
        match Manager::open(&name, watchdog) {
            Ok(manager) => Some(manager),
            Err(error) => {
                warn!(socket = name, %error, "the service manager cannot be told anything");
                None
            }
        }
    }

    fn open(name: &str, watchdog: Option<Duration>) -> std::io::Result<Manager> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Manager { socket, address, watchdog })
    }

    /// Lines of `NAME=value`.
    pub fn tell(&self, lines: &[&str]) {
        if let Err(error) = self.socket.send_to_addr(lines.join("\n").as_bytes(), &self.address) {
            warn!(%error, "the service manager was not told something");
        }
    }
}

/// `usec` says how long it waits, and `pid` whom it means.
fn watchdog(usec: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let usec = usec?.parse().ok().filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_as_one_datagram_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("anechoic-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();

        Manager::open(path.to_str().unwrap(), None).unwrap().tell(&["READY=1", "STATUS=all is well"]);
        Manager::open(&format!("@{name}"), None).unwrap().tell(&["STOPPING=1"]);

        let mut buffer = [0; 100];
        let size = by_path.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..size], b"READY=1\nSTATUS=all is well");
        let size = by_name.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..size], b"STOPPING=1");
    }

    #[test]
    fn a_watchdog_is_ours_where_it_names_us_or_nobody() {
        let of = |usec: &str, pid: Option<&str>| watchdog(Some(usec.into()), pid.map(str::to_owned), 7);

        assert_eq!(of("60000000", Some("7")), Some(Duration::from_secs(60)));
        assert_eq!(of("500000", None), Some(Duration::from_millis(500)));
        assert_eq!(of("60000000", Some("8")), None);
        assert_eq!(of("0", None), None);
        assert_eq!(of("soon", None), None);
        assert_eq!(watchdog(None, None, 7), None);
    }
}
