//! What a system's applier waits for before it writes there.
//!
//! A write that the log does not show is a write that nobody can tell from older ones: an applier
//! that goes on where the log is lost would lay other systems' rows over what users have written
//! since. So nothing is applied before the log is read from our position, and nothing while the
//! rows behind a new position are being compared.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gate {
    /// The log was read from our position, or stands for another reason than that it is lost.
    pub placed: bool,
    pub lost: bool,
    /// What its users wrote unseen is being found.
    pub comparing: bool,
    /// A person wants it so.
    pub paused: bool,
}

impl Gate {
    pub fn is_open(&self) -> bool {
        self.placed && !self.lost && !self.comparing && !self.paused
    }
}

/// Moves a gate.
pub type Lever = watch::Sender<Gate>;

/// Changes it, and wakes whoever waits only where that is a change.
pub fn set(gate: &Lever, change: impl FnOnce(&mut Gate)) {
    gate.send_if_modified(|gate| {
        let before = *gate;
        change(gate);
        *gate != before
    });
}

/// Until a person lets it go on.
pub async fn while_paused(gate: &Lever) {
    // We hold a lever ourselves, so it does not go away; so below.
    let _ = gate.subscribe().wait_for(|gate| !gate.paused).await;
}

pub async fn until_paused(gate: &Lever) {
    let _ = gate.subscribe().wait_for(|gate| gate.paused).await;
}
