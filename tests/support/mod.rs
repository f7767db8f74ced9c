//! What the integration tests stand on, from the ground up:
//!
//! - [`servers`]: the run's shared servers, a fresh database per test, private servers to kill;
//! - [`proxy`]: a TCP proxy that stalls, cuts, refuses and answers too late;
//! - [`quarantine`]: what the agent has set aside;
//! - [`receiver`]: whoever takes webhooks, with trouble of its own;
//! - [`recorded`]: a sink that writes down what a capture hands on;
//! - [`agent`]: the real binary as a process, with its configuration and its port;
//! - [`books`]: the counters that the port tells;
//! - [`browser`]: Chromium, for what people see;
//! - [`certificates`]: authorities and certificates, and servers that show them;
//! - [`trail`]: the audit trail, and what it comes to;
//! - [`traffic`]: writers that remember what was acknowledged, and check what became of it;
//! - [`ways`]: every way in which the agent connects, tried alike;
//! - [`world`]: systems, entities and an agent together, compared value by value.
//!
//! Tests wait for conditions with a deadline ([`eventually`]), never by sleeping.
#![allow(dead_code)] // each test takes what it needs

use std::future::Future;
use std::time::{Duration, Instant};

pub mod agent;
pub mod books;
pub mod browser;
pub mod certificates;
pub mod proxy;
pub mod quarantine;
pub mod receiver;
pub mod recorded;
pub mod servers;
pub mod traffic;
pub mod trail;
pub mod ways;
pub mod world;

/// How long a test waits for what should take a moment; generous, because machines are shared.
pub const SOON: Duration = Duration::from_secs(60);

/// Polls until `check` yields a value; panics at the deadline with the last reason it gave.
#[track_caller]
pub fn eventually<T, F, Fut>(deadline: Duration, mut check: F) -> impl Future<Output = T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let place = std::panic::Location::caller();
    async move {
        let began = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            match check().await {
                Ok(value) => return value,
                Err(reason) if began.elapsed() > deadline => {
                    panic!("{place}: not within {deadline:?}: {reason}")
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

/// A seed of its own each time, printed; `ANECHOIC_SEED` repeats one.
pub fn seeded() -> rand::rngs::StdRng {
    let seed = std::env::var("ANECHOIC_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("ANECHOIC_SEED={seed}");
    rand::SeedableRng::seed_from_u64(seed)
}

/// The long figures in full: `make soak`.
pub fn soak() -> bool {
    std::env::var_os("ANECHOIC_SOAK").is_some()
}

/// Different in every test of every run, short enough for names: `[0-9a-z_]{1,18}`.
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let seconds = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() & 0xff_ffff;
    format!("{seconds:x}_{:x}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A port nobody listens on, below the range that outgoing connections are given.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 37) as u16 * 120;
    loop {
        let port = 15_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 5_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
