//! What follows the journal for people who look back: the index of keys, the audit files, and when
//! which system had what. Nothing waits for it, and what it lacks is made again from the journal.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::audit::applied::AppliedLog;
use crate::audit::keys::KeyIndex;
use crate::audit::ledger::Ledger;
use crate::config::Config;
use crate::journal::Journal;
use crate::schema::SystemId;
use crate::status::{Status, now};

/// What came meanwhile is read together.
const INDEX_EVERY: Duration = Duration::from_millis(250);
const WRITE_EVERY: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// A disk that is full is not asked at once again.
const AFTER_ERROR: Duration = Duration::from_secs(30);

/// Keeps the index up with the journal, until `stop`.
pub async fn index(index: KeyIndex, journal: Journal, stop: CancellationToken) {
    let mut durable = journal.durable();
    while !stop.is_cancelled() {
        durable.borrow_and_update();
        let (following, ending) = (index.clone(), stop.clone());
        let followed = tokio::task::spawn_blocking(move || following.follow(&|| ending.is_cancelled())).await;
        let pause = match followed {
            Ok(Ok(())) => INDEX_EVERY,
            Ok(Err(error)) => {
                warn!(error = %error.full(), "the index of keys stands: history reads the journal meanwhile");
                AFTER_ERROR
            }
            Err(_) => return, // a panic ends the process
        };
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        if stop.run_until_cancelled(durable.changed()).await.is_none_or(|changed| changed.is_err()) {
            return;
        }
    }
}

/// Writes the audit files, until `stop`.
pub async fn ledger(config: Arc<Config>, journal: Journal, stop: CancellationToken) {
    let Some(audit) = config.audit.clone() else { return };
    let (mut ledger, mut failing) = (None, false);
    while !stop.is_cancelled() {
        let (agent, audit, journal) = (config.agent.id.clone(), audit.clone(), journal.clone());
        let (taken, ending) = (ledger.take(), stop.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut ledger = match taken {
                Some(ledger) => ledger,
                None => Ledger::open(&audit.dir, audit.retention, &agent, &journal)?,
            };
            ledger.follow(now(), &|| ending.is_cancelled()).map(|()| ledger)
        });
        let pause = match written.await {
            Ok(Ok(written)) => {
                if std::mem::take(&mut failing) {
                    info!("the audit files are written again");
                }
                ledger = Some(written);
                WRITE_EVERY
            }
            // Opened anew: what it holds then is what the disk has.
            Ok(Err(failed)) => {
                if !std::mem::replace(&mut failing, true) {
                    error!(error = %failed.full(), "the audit files are not written; the journal has what they lack");
                }
                AFTER_ERROR
            }
            Err(_) => return, // a panic ends the process
        };
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

/// Notes when a system had what, until `stop`.
pub async fn applied(
    config: Arc<Config>,
    system: SystemId,
    status: Arc<Status>,
    journal: Journal,
    stop: CancellationToken,
) {
    let mut log = AppliedLog::open(&config.agent.data_dir, journal.id(), &config.system(system).name);
    let apply = &status.systems[system.index()].apply;
    let (mut interval, mut forgotten) = (tokio::time::interval(LOOK_EVERY), tokio::time::Instant::now());
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        // Nobody saw when it got what it had already.
        let noted = log.note(apply.found.get(), 0).and_then(|()| log.note(apply.seq.get(), now()));
        if let Err(error) = noted {
            warn!(system = %config.system(system).name, %error, "when it had what is not noted");
            stop.run_until_cancelled(tokio::time::sleep(AFTER_ERROR)).await;
        }
        if forgotten.elapsed() > FORGET_EVERY {
            forgotten = tokio::time::Instant::now();
            log.forget(journal.oldest());
        }
    }
}
