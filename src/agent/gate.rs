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
    /// Its log is being read.
    pub reading: bool,
    /// Its applier is at work.
    pub writing: bool,
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

pub async fn until_paused(gate: &Lever) {
    // We hold a lever ourselves, so it does not go away; so below.
    let _ = gate.subscribe().wait_for(|gate| gate.paused).await;
}

/// Until neither its log is read nor anything written there any more.
pub async fn until_at_rest(gate: &Lever) {
    let _ = gate.subscribe().wait_for(|gate| !gate.reading && !gate.writing).await;
}

/// Waits until its log may be read; it is shown as being read until the answer is dropped.
pub async fn to_read(gate: &Lever) -> Passing<'_> {
    pass(gate, |gate| !gate.paused, |gate| &mut gate.reading).await
}

/// Waits until something may be written there; so it is shown until the answer is dropped.
pub async fn to_write(gate: &Lever) -> Passing<'_> {
    pass(gate, Gate::is_open, |gate| &mut gate.writing).await
}

/// A half of a flow at work.
pub struct Passing<'a> {
    gate: &'a Lever,
    at_work: fn(&mut Gate) -> &mut bool,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        set(self.gate, |gate| *(self.at_work)(gate) = false);
    }
}

/// Looks and enters in one step: who shuts the gate sees everybody who has passed it.
async fn pass(gate: &Lever, may: fn(&Gate) -> bool, at_work: fn(&mut Gate) -> &mut bool) -> Passing<'_> {
    loop {
        let _ = gate.subscribe().wait_for(may).await;
        let passed = gate.send_if_modified(|gate| {
            let open = may(gate);
            *at_work(gate) = open;
            open
        });
        if passed {
            return Passing { gate, at_work };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn who_shuts_it_sees_whoever_has_passed_and_nobody_passes_after() {
        let mut now = Context::from_waker(Waker::noop());
        let gate = Lever::new(Gate { placed: true, ..Gate::default() });
        let (reads, writes) = (to_read(&gate).await, to_write(&gate).await);
        set(&gate, |gate| gate.paused = true);
        let (mut rest, mut again) = (pin!(until_at_rest(&gate)), pin!(to_read(&gate)));

        assert!(rest.as_mut().poll(&mut now).is_pending() && again.as_mut().poll(&mut now).is_pending());
        drop(reads);
        assert!(rest.as_mut().poll(&mut now).is_pending());
        drop(writes);
        assert!(rest.poll(&mut now).is_ready() && again.as_mut().poll(&mut now).is_pending());
        set(&gate, |gate| gate.paused = false);
        assert!(again.poll(&mut now).is_ready());
    }
}
