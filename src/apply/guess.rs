//! Whether rows are tried the fast way, as rows that are not there yet. Pure.

/// One table's. A guess that was wrong costs a second write, so it is made the more seldom the
/// more often it was wrong.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Guess {
    /// Batches that are written the ordinary way before the next try.
    pause: u32,
    wrong: u32,
}

const PAUSE_MAX: u32 = 256;

impl Guess {
    /// Asked once per batch.
    pub fn is_worth_trying(&mut self) -> bool {
        let now = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        now
    }

    pub fn was_right(&mut self) {
        self.wrong = 0;
    }

    pub fn was_wrong(&mut self) {
        self.wrong += 1;
        self.pause = (1 << self.wrong.min(8)).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_often_it_was_wrong_the_longer_it_pauses() {
        let mut guess = Guess::default();
        let paused = |guess: &mut Guess| (0..).take_while(|_| !guess.is_worth_trying()).count();
        assert_eq!(paused(&mut guess), 0);
        guess.was_wrong();
        assert_eq!(paused(&mut guess), 2);
        guess.was_wrong();
        assert_eq!(paused(&mut guess), 4);
        guess.was_right();
        guess.was_wrong();
        assert_eq!(paused(&mut guess), 2);
    }
}
