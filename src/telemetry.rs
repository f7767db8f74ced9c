//! What the agent tells operators by: the log, and every name that dashboards, alerts and log
//! searches rely on. A name here changes only with a line in the changelog.

mod file;
mod journald;

use std::any::Any;
use std::cell::Cell;
use std::future::poll_fn;
use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::task::Poll;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

pub use self::file::LogFile;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// One line per event, coloured on a terminal; for systemd's journal with its priorities, and
    /// without the time that it knows.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Starts the log, in `file` or else on stderr: what commands print on stdout stays clean. `RUST_LOG`
/// decides what is shown, `default` where it is not set.
pub fn start(format: LogFormat, file: Option<&Path>, default: &str) -> std::io::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let (writer, colours) = match file {
        Some(path) => (BoxMakeWriter::new(LogFile::open(path)?), false),
        None => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // A second start (tests) changes nothing.
    let _ = match format {
        LogFormat::Human if file.is_none() && journald::listens() => {
            log.with_ansi(false).event_format(journald::Lines::new()).try_init()
        }
        LogFormat::Human => log.with_target(false).with_ansi(colours).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).try_init(),
    };
    Ok(())
}

/// A panic is a bug, in whatever thread or task: it ends the process, and the service manager
/// brings it back. An agent that goes on without one of its parts would only look alive; what it
/// had acknowledged is on disk.
///
/// The place is told, and of the message only what the code says in so many words: what was put
/// together at run time may hold values of rows or passwords, and is told where `ANECHOIC_PANIC_TEXT`
/// asks for it.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        if CAUGHT.get() {
            return;
        }
        let message = message(panic.payload(), std::env::var_os("ANECHOIC_PANIC_TEXT").is_some());
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            format!("\n{backtrace}")
        } else {
            String::new()
        };
        let text = format!(
            "panicked at {place} in thread {:?}: {message}; this is a bug in anechoic, and the process ends{backtrace}",
            thread.name().unwrap_or_default(),
        );
        if tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!("{text}");
        } else {
            let _ = writeln!(std::io::stderr().lock(), "{text}"); // nobody is left to tell
        }
        std::process::abort();
    }));
}

thread_local! {
    /// Whether what runs in this thread just now is `caught`.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// `None` where the future panics: only for code of others that is known to do so on what a
/// server may send, and of which nothing is used any more afterwards.
pub async fn caught<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| {
        CAUGHT.set(true);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        CAUGHT.set(false);
        polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

fn message(payload: &dyn Any, asked: bool) -> &str {
    match (payload.downcast_ref::<&'static str>(), payload.downcast_ref::<String>()) {
        (Some(literal), _) => literal,
        (None, Some(text)) if asked => text,
        (None, _) => "its message is withheld, because it may hold values (ANECHOIC_PANIC_TEXT=1 shows it)",
    }
}

/// Fields of log events and spans.
pub mod field {
    pub const SYSTEM: &str = "system";
    pub const ENTITY: &str = "entity";
    pub const TABLE: &str = "table";
    pub const POSITION: &str = "position";
    pub const SEQ: &str = "seq";
    pub const ROWS: &str = "rows";
    pub const ELAPSED_MS: &str = "elapsed_ms";
    pub const ERROR: &str = "error";
}

/// Metrics of `/metrics`: base units, counters end in `_total`.
pub mod metric {
    pub const INFO: &str = "anechoic_info";
    pub const START_TIME: &str = "anechoic_start_time_seconds";
    pub const READY: &str = "anechoic_ready";
    /// Of what the port shows; absent without TLS.
    pub const CERTIFICATE_EXPIRY: &str = "anechoic_certificate_expiry_time_seconds";

    pub const JOURNAL_HEAD: &str = "anechoic_journal_head_seq";
    pub const JOURNAL_BYTES: &str = "anechoic_journal_bytes";
    /// A histogram.
    pub const JOURNAL_SYNCS: &str = "anechoic_journal_sync_seconds";

    /// As every exporter names them.
    pub const PROCESS_CPU: &str = "process_cpu_seconds_total";
    pub const PROCESS_RESIDENT: &str = "process_resident_memory_bytes";
    pub const PROCESS_VIRTUAL: &str = "process_virtual_memory_bytes";
    pub const PROCESS_FILES: &str = "process_open_fds";
    pub const PROCESS_THREADS: &str = "process_threads";

    /// Per system; `state` is a label, the current one is 1.
    pub const SYSTEM_STATE: &str = "anechoic_system_state";

    pub const CAPTURE_TRANSACTIONS: &str = "anechoic_capture_transactions_total";
    /// The books of a source: captured = journaled + filtered + rejected + refused.
    pub const CAPTURE_CHANGES: &str = "anechoic_capture_changes_total";
    pub const CAPTURE_JOURNALED: &str = "anechoic_capture_journaled_changes_total";
    pub const CAPTURE_FILTERED: &str = "anechoic_capture_filtered_changes_total";
    pub const CAPTURE_REJECTED: &str = "anechoic_capture_rejected_changes_total";
    pub const CAPTURE_REFUSED: &str = "anechoic_capture_quarantined_changes_total";
    /// Part of the filtered ones: local writes in a `target` table.
    pub const CAPTURE_DRIFT: &str = "anechoic_capture_drift_changes_total";
    pub const CAPTURE_ECHOES: &str = "anechoic_capture_echoes_total";
    pub const CAPTURE_SIDE_EFFECTS: &str = "anechoic_capture_side_effect_changes_total";
    pub const CAPTURE_REWRITTEN: &str = "anechoic_capture_rewritten_rows_total";
    pub const CAPTURE_BYTES: &str = "anechoic_capture_bytes_total";
    pub const CAPTURE_RETRIES: &str = "anechoic_capture_retries_total";
    /// By entity and operation; their sum is `CAPTURE_JOURNALED`.
    pub const CAPTURE_ENTITY: &str = "anechoic_capture_entity_changes_total";
    pub const CAPTURE_LAG: &str = "anechoic_capture_lag_seconds";
    pub const CAPTURE_LAG_BYTES: &str = "anechoic_capture_lag_bytes";
    pub const CAPTURE_LAST_COMMIT: &str = "anechoic_capture_last_commit_time_seconds";
    pub const CAPTURE_RETAINED: &str = "anechoic_capture_retained_bytes";

    pub const APPLY_SEQ: &str = "anechoic_apply_seq";
    pub const APPLY_PENDING: &str = "anechoic_apply_pending_entries";
    pub const APPLY_PENDING_CHANGES: &str = "anechoic_apply_pending_changes";
    pub const APPLY_COMMITS: &str = "anechoic_apply_commits_total";
    pub const APPLY_TRANSACTIONS: &str = "anechoic_apply_transactions_total";
    /// The books of a target: addressed = applied + coalesced + held + pending.
    pub const APPLY_ADDRESSED: &str = "anechoic_apply_addressed_changes_total";
    pub const APPLY_CHANGES: &str = "anechoic_apply_changes_total";
    pub const APPLY_COALESCED: &str = "anechoic_apply_coalesced_changes_total";
    pub const APPLY_HELD: &str = "anechoic_apply_held_changes_total";
    pub const APPLY_RETRIES: &str = "anechoic_apply_retries_total";
    pub const APPLY_LAG: &str = "anechoic_apply_lag_seconds";
    pub const APPLY_BYTES: &str = "anechoic_apply_bytes_total";
    /// By entity and operation (write, delete); their sum is `APPLY_CHANGES`.
    pub const APPLY_ENTITY: &str = "anechoic_apply_entity_changes_total";
    pub const APPLY_QUARANTINED: &str = "anechoic_apply_quarantined_keys";
    /// Histograms.
    pub const APPLY_LATENCY: &str = "anechoic_apply_latency_seconds";
    pub const APPLY_BATCH: &str = "anechoic_apply_batch_changes";

    pub const ENTITY_APPLIED: &str = "anechoic_entity_applied_changes_total";
    pub const ENTITY_CONFLICTS: &str = "anechoic_entity_conflicts_total";
    /// By the labels `policy` and `outcome`.
    pub const ENTITY_DECIDED: &str = "anechoic_entity_conflicts_decided_total";
    pub const ENTITY_WAITING: &str = "anechoic_entity_waiting_conflicts";
    pub const ENTITY_REJECTED: &str = "anechoic_entity_rejected_changes_total";
    pub const ENTITY_REWRITTEN: &str = "anechoic_entity_rewritten_rows_total";
    pub const ENTITY_QUARANTINED: &str = "anechoic_entity_quarantined_keys";
    pub const ENTITY_LAST_CHANGE: &str = "anechoic_entity_last_change_time_seconds";

    /// Per alert; `event` is a label (firing, resolved).
    pub const ALERTS_SENT: &str = "anechoic_alerts_sent_total";
    pub const ALERTS_FAILURES: &str = "anechoic_alerts_failed_attempts_total";
    pub const ALERTS_FIRING: &str = "anechoic_alerts_firing";
    pub const ALERTS_PENDING: &str = "anechoic_alerts_pending_events";

    /// Per part of the configuration that has others told of changes, and its entity.
    pub const NOTIFY_CHANGES: &str = "anechoic_notify_changes_total";
    pub const NOTIFY_REQUESTS: &str = "anechoic_notify_requests_total";
    pub const NOTIFY_FAILURES: &str = "anechoic_notify_failed_attempts_total";
    pub const NOTIFY_LOST: &str = "anechoic_notify_lost_entries_total";
    pub const NOTIFY_PENDING: &str = "anechoic_notify_pending_entries";
    pub const NOTIFY_LAG: &str = "anechoic_notify_lag_seconds";

    /// Of the newest comparison of an entity: how a system's rows compare with the authority's.
    pub const VERIFY_COMPARED: &str = "anechoic_verify_compared_rows";
    pub const VERIFY_MISSING: &str = "anechoic_verify_missing_rows";
    pub const VERIFY_EXTRA: &str = "anechoic_verify_extra_rows";
    pub const VERIFY_DIFFERENT: &str = "anechoic_verify_different_rows";
    pub const VERIFY_HELD: &str = "anechoic_verify_quarantined_rows";
    pub const VERIFY_LAST_RUN: &str = "anechoic_verify_last_run_time_seconds";
    pub const VERIFY_DURATION: &str = "anechoic_verify_duration_seconds";
    /// `outcome` is a label, the newest one is 1.
    pub const VERIFY_OUTCOME: &str = "anechoic_verify_outcome";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_panic_of_what_is_caught_is_let_pass() {
        let waits = async {
            tokio::task::yield_now().await;
            CAUGHT.get()
        };
        assert_eq!(caught(waits).await, Some(true));
        let panics = async {
            tokio::task::yield_now().await;
            "planted".parse::<u8>().unwrap()
        };
        assert_eq!(caught(panics).await, None);
        assert!(!CAUGHT.get(), "whatever comes now ends the process");
    }

    #[test]
    fn a_panic_says_what_the_code_says_and_nothing_that_was_put_together() {
        let literal: Box<dyn Any> = Box::new("never empty");
        let made: Box<dyn Any> = Box::new(format!("{} is no number", "planted"));

        assert_eq!(message(&*literal, false), "never empty");
        assert!(!message(&*made, false).contains("planted"));
        assert_eq!(message(&*made, true), "planted is no number");
    }
}
