//! Named steps at which a test may kill the process, and patience that it may shorten. Compiled
//! to nothing without the feature `failpoints`.
//!
//! `ANECHOIC_KILL_AT=after-target-commit:3` kills with SIGKILL at the third pass of that step.
//! Steps: `before-journal-sync`, `after-journal-sync`, `before-target-commit`,
//! `after-target-commit`.

#[cfg(feature = "failpoints")]
pub fn pass(step: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("ANECHOIC_KILL_AT").ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), count.parse().ok()?))
    });
    if let Some((name, count)) = wanted
        && name == step
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        // SAFETY: kill and getpid have no memory effects; the process ends here.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
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

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_step: &str) {}
