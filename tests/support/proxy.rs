//! A network that misbehaves on request, between the agent and one server.
//!
//! ```text
//! agent ──▶ listener ──bytes──▶ server       pass · delay · stall · refuse
//!       ◀───────────────────────             cut · half-close · cut after bytes that match
//! ```

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, PartialEq)]
enum Mode {
    Pass,
    /// Each piece of bytes waits that long, in either direction.
    Delay(Duration),
    /// Connections are accepted, bytes go nowhere, nobody is told.
    Stall,
    /// Nobody listens.
    Refuse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Agent,
    Server,
}

/// What ends the connections of one generation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Reset,
    HalfClose(Side),
}

/// When the connection is cut that carries the awaited bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server gets what comes before them.
    Before,
    /// The server has them, and may still be at work.
    Sent,
    /// The server's answer came, and is thrown away.
    Answered,
}

struct Shared {
    server: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Counts up; connections older than it end as it says.
    end: watch::Sender<(u64, Option<End>)>,
    /// Bytes from the agent after which its connection is cut, once.
    trigger: Mutex<Option<(Vec<u8>, Cut)>>,
    fired: watch::Sender<u64>,
    connections: AtomicU64,
    bytes: AtomicU64,
}

/// Dropped: everything is cut and nobody listens.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn new(server_port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", super::free_port())).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: SocketAddr::from(([127, 0, 0, 1], server_port)),
            mode: watch::Sender::new(Mode::Pass),
            end: watch::Sender::new((0, None)),
            trigger: Mutex::new(None),
            fired: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(shared.clone(), listener, port));
        Proxy { port, shared, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As if nothing was ever wrong; what a stall held back goes on.
    pub fn pass(&self) {
        self.shared.mode.send_replace(Mode::Pass);
    }

    pub fn delay(&self, delay: Duration) {
        self.shared.mode.send_replace(Mode::Delay(delay));
    }

    pub fn stall(&self) {
        self.shared.mode.send_replace(Mode::Stall);
    }

    /// Cuts all connections, and new ones are refused until [`pass`](Self::pass).
    pub fn refuse(&self) {
        self.shared.mode.send_replace(Mode::Refuse);
        self.cut();
    }

    /// Resets (RST) the connections there are; new ones pass.
    pub fn cut(&self) {
        self.shared.end.send_modify(|(count, end)| (*count, *end) = (*count + 1, Some(End::Reset)));
    }

    /// Tells one side that the other has no more to say (FIN), while its own bytes are still
    /// taken: what a load balancer or a dying peer leaves behind.
    pub fn half_close(&self, towards: Side) {
        self.shared.end.send_modify(|(count, end)| (*count, *end) = (*count + 1, Some(End::HalfClose(towards))));
    }

    /// Once: when the agent sends bytes that contain `pattern`, they are passed on, the server's
    /// answer is awaited and thrown away, and the connection is reset. The agent cannot know
    /// whether its statement was carried out. Needs a connection without TLS.
    pub fn cut_after(&self, pattern: impl Into<Vec<u8>>) {
        self.cut_at(pattern, Cut::Answered);
    }

    /// The same, cut sooner.
    pub fn cut_at(&self, pattern: impl Into<Vec<u8>>, cut: Cut) {
        *self.shared.trigger.lock().unwrap() = Some((pattern.into(), cut));
    }

    /// How often a [`cut_at`](Self::cut_at) has come about.
    pub fn fired(&self) -> u64 {
        *self.shared.fired.borrow()
    }

    pub async fn wait_until_fired(&self, times: u64) {
        let mut fired = self.shared.fired.subscribe();
        tokio::time::timeout(super::SOON, fired.wait_for(|count| *count >= times))
            .await
            .unwrap_or_else(|_| panic!("the agent never sent the bytes that the proxy waits for"))
            .unwrap();
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Passed on so far, both directions.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, port: u16) {
    let mut mode = shared.mode.subscribe();
    let mut listener = Some(listener);
    loop {
        if *mode.borrow_and_update() == Mode::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(("127.0.0.1", port)).await.ok(); // std sets SO_REUSEADDR
        }
        tokio::select! {
            accepted = async { listener.as_ref().unwrap().accept().await }, if listener.is_some() => {
                if let Ok((agent, _)) = accepted {
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(connection(shared.clone(), agent));
                }
            }
            changed = mode.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_millis(20)), if listener.is_none() => {}
        }
    }
}

fn reset(stream: TcpStream) {
    // zero linger: close sends RST
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

async fn connection(shared: Arc<Shared>, mut agent: TcpStream) {
    let mut end = shared.end.subscribe();
    let mut mode = shared.mode.subscribe();
    end.borrow_and_update();
    if mode.wait_for(|mode| *mode != Mode::Stall).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(shared.server).await else { return reset(agent) };
    let _ = (agent.set_nodelay(true), server.set_nodelay(true));

    let mut from_agent = vec![0; 64 * 1024];
    let mut from_server = vec![0; 64 * 1024];
    let mut tail = Vec::new();
    let (mut agent_open, mut server_open) = (true, true);
    let (mut to_agent, mut to_server) = (true, true); // false: half-closed, bytes are thrown away
    while agent_open || server_open {
        let stalled = *mode.borrow_and_update() == Mode::Stall;
        tokio::select! {
            changed = end.changed() => {
                let last = end.borrow_and_update().1;
                match last {
                    Some(End::HalfClose(Side::Agent)) if changed.is_ok() => {
                        let _ = agent.shutdown().await;
                        to_agent = false;
                    }
                    Some(End::HalfClose(Side::Server)) if changed.is_ok() => {
                        let _ = server.shutdown().await;
                        to_server = false;
                    }
                    _ => break,
                }
            }
            _ = mode.changed() => {}
            read = agent.read(&mut from_agent), if agent_open && !stalled => {
                let length = read.unwrap_or(0);
                let bytes = &from_agent[..length];
                if length == 0 {
                    agent_open = false;
                    let _ = server.shutdown().await;
                } else if to_server {
                    let matched = matches(&shared, &mut tail, bytes);
                    let bytes = match matched {
                        Some((before, Cut::Before)) => &bytes[..before],
                        _ => bytes,
                    };
                    if pass(&shared, bytes, &mut server).await.is_err() {
                        break;
                    }
                    if let Some((_, cut)) = matched {
                        if cut == Cut::Answered {
                            swallow_answer(&mut server, &mut from_server).await;
                        }
                        shared.fired.send_modify(|count| *count += 1);
                        break;
                    }
                }
            }
            read = server.read(&mut from_server), if server_open && !stalled => {
                let length = read.unwrap_or(0);
                if length == 0 {
                    server_open = false;
                    let _ = agent.shutdown().await;
                } else if to_agent && pass(&shared, &from_server[..length], &mut agent).await.is_err() {
                    break;
                }
            }
        }
    }
    reset(agent);
    reset(server);
}

async fn pass(shared: &Shared, bytes: &[u8], to: &mut TcpStream) -> std::io::Result<()> {
    let delay = if let Mode::Delay(delay) = *shared.mode.borrow() { Some(delay) } else { None };
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    to.write_all(bytes).await
}

/// Whether the trigger's bytes end in this piece, perhaps begun in the one before, and where
/// in it they begin; disarms it.
fn matches(shared: &Shared, tail: &mut Vec<u8>, bytes: &[u8]) -> Option<(usize, Cut)> {
    let mut trigger = shared.trigger.lock().unwrap();
    let Some((pattern, cut)) = trigger.as_ref() else {
        tail.clear();
        return None;
    };
    let earlier = tail.len();
    tail.extend_from_slice(bytes);
    let found = tail.windows(pattern.len()).position(|window| window == pattern.as_slice());
    if let Some(at) = found {
        let matched = (at.saturating_sub(earlier), *cut);
        *trigger = None;
        return Some(matched);
    }
    let keep = tail.len().min(pattern.len() - 1);
    tail.drain(..tail.len() - keep);
    None
}

/// Until the server has answered and says no more: then the statement was carried out.
async fn swallow_answer(server: &mut TcpStream, buffer: &mut [u8]) {
    let mut patience = Duration::from_secs(10);
    while let Ok(Ok(1..)) = tokio::time::timeout(patience, server.read(buffer)).await {
        patience = Duration::from_millis(100);
    }
}
