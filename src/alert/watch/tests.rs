use super::*;

const SECOND: Micros = 1_000_000;

/// One alert over time; names count up.
struct Story {
    watch: Watch,
    condition: Condition,
    now: Micros,
    named: u64,
}

impl Story {
    fn of(condition: &str) -> Story {
        Story { watch: Watch::default(), condition: Condition::parse(condition).unwrap(), now: 1, named: 0 }
    }

    /// A second later; the events that came of it.
    fn then(&mut self, look: Look) -> Vec<String> {
        self.now += SECOND;
        let before = self.watch.pending.len();
        let named = &mut self.named;
        let mut moment = Moment {
            alert: "ops",
            agent: "hq",
            settle: Duration::from_secs(3),
            now: self.now,
            name: &mut || {
                *named += 1;
                format!("n{named}")
            },
        };
        self.watch.step(vec![(&self.condition, Subject::System("crm".into()), look)], &mut moment);
        let events = self.watch.pending.iter().skip(before);
        events.map(|e| format!("{} {} {}", e.event.name(), e.incident, e.message)).collect()
    }

    fn holds(&mut self) -> Vec<String> {
        self.then(Look::Holds("crm is stopped".into()))
    }
}

fn nothing() -> Vec<String> {
    Vec::new()
}

#[test]
fn one_event_tells_that_it_begins_and_one_that_it_is_over() {
    let mut story = Story::of("stopped");

    assert_eq!(story.then(Look::Clear), nothing());
    assert_eq!(story.holds(), ["firing n1 crm is stopped"]);
    assert_eq!([story.holds(), story.holds(), story.then(Look::Unknown)].concat(), nothing());
    assert_eq!([story.then(Look::Clear), story.then(Look::Clear), story.then(Look::Clear)].concat(), nothing());
    assert_eq!(story.then(Look::Clear), ["resolved n1 no longer: crm is stopped"]);
    assert_eq!(story.then(Look::Clear), nothing());
    let ids: Vec<&str> = story.watch.pending.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["n2", "n3"], "each has its own");
    assert_eq!(story.watch.pending[0].system.as_deref(), Some("crm"));
}

#[test]
fn what_comes_and_goes_is_one_alert() {
    let mut story = Story::of("stopped");
    story.holds();

    for _ in 0..50 {
        assert_eq!([story.then(Look::Clear), story.then(Look::Clear), story.holds()].concat(), nothing());
    }
}

#[test]
fn what_happens_is_counted_until_it_has_been_quiet() {
    let mut story = Story::of("conflict");
    let met = |count| Look::Happened(count, "contact 7.0".into());

    assert_eq!(story.then(met(2)), ["firing n1 contact 7.0"]);
    assert_eq!([story.then(Look::Clear), story.then(met(5)), story.then(Look::Clear)].concat(), nothing());
    assert_eq!([story.then(Look::Clear), story.then(Look::Clear)].concat(), nothing());
    assert_eq!(story.then(Look::Clear), ["resolved n1 no more of it; 7 in all: contact 7.0"]);
}

#[test]
fn what_has_to_last_is_told_when_it_has() {
    let mut story = Story::of("unreachable > 2s");

    assert_eq!([story.holds(), story.holds(), story.then(Look::Clear)].concat(), nothing());
    assert_eq!([story.holds(), story.holds()].concat(), nothing());
    assert_eq!(story.holds(), ["firing n1 crm is stopped"]);
    assert_eq!(story.watch.pending[0].since, timestamp(story.now - 2 * SECOND));
}

#[test]
fn a_restart_neither_forgets_nor_repeats() {
    let mut story = Story::of("stopped");
    story.holds();
    let text = serde_json::to_string(&story.watch).unwrap();

    story.watch = serde_json::from_str(&text).unwrap();

    assert_eq!(story.watch.pending[0].id, "n2");
    assert_eq!(story.holds(), nothing());
    for _ in 0..3 {
        story.then(Look::Clear);
    }
    assert_eq!(story.then(Look::Clear), ["resolved n1 no longer: crm is stopped"]);
}

/// The receiver is away for days: what flaps is told as having gone on.
#[test]
fn what_flaps_does_not_pile_up_without_end() {
    let mut story = Story::of("stopped");

    for _ in 0..2000 {
        story.holds();
        (0..4).for_each(|_| drop(story.then(Look::Clear)));
    }

    assert!(story.watch.pending.len() <= PENDING_MAX + 2, "{}", story.watch.pending.len());
    let kinds: Vec<What> = story.watch.pending.iter().map(|event| event.event).collect();
    assert!(kinds.chunks(2).all(|pair| pair[0] == What::Firing && pair.get(1) != Some(&What::Firing)), "in turn");
}

#[test]
fn a_condition_that_is_no_longer_watched_is_over() {
    let mut story = Story::of("stopped");
    story.holds();
    story.condition = Condition::parse("journal_full").unwrap();

    let told: Vec<String> = (0..5).flat_map(|_| story.then(Look::Clear)).collect();

    assert_eq!(told, ["resolved n1 no longer: crm is stopped"]);
}
