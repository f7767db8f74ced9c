//! Named steps at which a test may have the process killed, a thread hang or panic, and patience
//! that it may shorten. Compiled to nothing without the feature `failpoints`.
//!
//! `ANECHOIC_KILL_AT=after-target-commit:3` kills with SIGKILL at the third pass of that step,
//! `ANECHOIC_HANG_AT` lets whoever passes it wait for ever, `ANECHOIC_PANIC_AT` panics there
//! (and says what `ANECHOIC_PANIC_SAYS` does),
//! `ANECHOIC_SLOW_AT` makes it take as long as on a machine that is busy elsewhere. The steps are
//! where [`pass`] is called, by name: `before-journal-sync`, `after-target-commit`, `desk-turn` …

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A step and the pass of it at which something happens.
    pub struct Point {
        variable: &'static str,
        wanted: OnceLock<Option<(String, u64)>>,
        passed: AtomicU64,
    }

    impl Point {
        pub const fn new(variable: &'static str) -> Point {
            Point { variable, wanted: OnceLock::new(), passed: AtomicU64::new(0) }
        }

        pub fn is_now(&self, step: &str) -> bool {
            let wanted = self.wanted.get_or_init(|| {
                let text = std::env::var(self.variable).ok()?;
                let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
                Some((name.to_owned(), count.parse().ok()?))
            });
            let Some((name, count)) = wanted else { return false };
            name == step && self.passed.fetch_add(1, Ordering::SeqCst) + 1 == *count
        }
    }
}

/// The process is to be killed at that step: what it follows upon may have to be on disk by then.
pub fn kills_at(step: &str) -> bool {
    let wanted = || std::env::var("ANECHOIC_KILL_AT").ok();
    cfg!(feature = "failpoints") && wanted().is_some_and(|wanted| wanted.split(':').next() == Some(step))
}

#[cfg(feature = "failpoints")]
pub fn pass(step: &str) {
    use armed::Point;
    static KILL: Point = Point::new("ANECHOIC_KILL_AT");
    static HANG: Point = Point::new("ANECHOIC_HANG_AT");
    static PANIC: Point = Point::new("ANECHOIC_PANIC_AT");
    static SLOW: Point = Point::new("ANECHOIC_SLOW_AT");
    if KILL.is_now(step) {
        // SAFETY: kill and getpid have no memory effects; the process ends here.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    if HANG.is_now(step) {
        tracing::warn!(step, "hangs, as a test wants it");
        loop {
            std::thread::park();
        }
    }
    if SLOW.is_now(step) {
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    if PANIC.is_now(step) {
        panic!("a test wants a panic at {step} {}", std::env::var("ANECHOIC_PANIC_SAYS").unwrap_or_default());
    }
}

/// How long another agent's lock is waited for: the given time, or
/// `ANECHOIC_LOCK_PATIENCE` seconds.
#[cfg(feature = "failpoints")]
pub fn lock_patience(given: std::time::Duration) -> std::time::Duration {
    let wanted = std::env::var("ANECHOIC_LOCK_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    wanted.map_or(given, std::time::Duration::from_secs)
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn lock_patience(given: std::time::Duration) -> std::time::Duration {
    given
}

/// After how many changes a batch is full: the given number, or `ANECHOIC_BATCH_CHANGES`.
pub fn batch_changes(given: u64) -> u64 {
    let wanted = || std::env::var("ANECHOIC_BATCH_CHANGES").ok()?.parse().ok();
    if cfg!(feature = "failpoints") { wanted().unwrap_or(given) } else { given }
}

/// How much is journaled between two checkpoints of the index, at least: the given bytes, or
/// `ANECHOIC_CHECKPOINT_EVERY` of them.
pub fn checkpoint_every(given: u64) -> u64 {
    let wanted = || std::env::var("ANECHOIC_CHECKPOINT_EVERY").ok()?.parse().ok();
    if cfg!(feature = "failpoints") { wanted().unwrap_or(given) } else { given }
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_step: &str) {}
