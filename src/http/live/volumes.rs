//! How much went where lately: what counters were at moments of the last two minutes and day.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;

use crate::change::Op;
use crate::status::{Status, SystemStatus};

const SECOND: i64 = 1_000_000;
/// Seconds of rates that a dashboard begins with.
const HISTORY: usize = 120;

/// Changes of an entity that came from a system and went to it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Volume {
    entity: String,
    system: Arc<str>,
    captured: Windows,
    applied: Windows,
}

/// In the last minute, hour and day, or since the start where that is later.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Windows {
    minute: u64,
    hour: u64,
    day: u64,
}

/// What all counters were at a few moments of one window.
#[derive(Debug)]
struct Ring {
    window: i64,
    every: i64,
    samples: VecDeque<(i64, Box<[u64]>)>,
}

impl Ring {
    fn new(window: i64, every: i64) -> Self {
        Ring { window, every, samples: VecDeque::new() }
    }

    fn sample(&mut self, now: i64, counters: &[u64]) {
        if self.samples.back().is_some_and(|(at, _)| now - at < self.every) {
            return;
        }
        self.samples.push_back((now, counters.into()));
        // The newest that is older than the window is what there was before it.
        while self.samples.get(1).is_some_and(|(at, _)| now - at >= self.window) {
            self.samples.pop_front();
        }
    }

    /// How much a counter has grown in the window.
    fn growth(&self, counter: usize, now: i64, counters: &[u64]) -> u64 {
        let before = self.samples.front().filter(|(at, _)| now - at >= self.window);
        counters[counter].saturating_sub(before.map_or(0, |(_, counters)| counters[counter]))
    }
}

/// Counters of each entity and system, in both directions.
#[derive(Debug)]
pub struct Rings {
    minute: Ring,
    hour: Ring,
    day: Ring,
}

impl Default for Rings {
    fn default() -> Self {
        Rings {
            minute: Ring::new(60 * SECOND, 2 * SECOND),
            hour: Ring::new(3600 * SECOND, 120 * SECOND),
            day: Ring::new(86_400 * SECOND, 1800 * SECOND),
        }
    }
}

impl Rings {
    pub fn sample(&mut self, status: &Status, now: i64) {
        let counters = counters(status);
        for ring in [&mut self.minute, &mut self.hour, &mut self.day] {
            ring.sample(now, &counters);
        }
    }

    /// Of pairs of which anything is known.
    pub fn volumes(&self, status: &Status, now: i64) -> Vec<Volume> {
        let counters = counters(status);
        let windows = |counter: usize| {
            let [minute, hour, day] =
                [&self.minute, &self.hour, &self.day].map(|ring| ring.growth(counter, now, &counters));
            Windows { minute, hour, day }
        };
        let mut volumes = Vec::new();
        for (e, entity) in status.entities.iter().enumerate() {
            for (s, system) in status.systems.iter().enumerate() {
                let counter = 2 * (s * status.entities.len() + e);
                if counters[counter] + counters[counter + 1] > 0 {
                    let (captured, applied) = (windows(counter), windows(counter + 1));
                    volumes.push(Volume {
                        entity: entity.name.clone(),
                        system: system.name.clone(),
                        captured,
                        applied,
                    });
                }
            }
        }
        volumes
    }
}

/// By system, entity and direction.
fn counters(status: &Status) -> Vec<u64> {
    let of_system = |system: &SystemStatus| {
        let captured = system.capture.entities.iter().map(|counters| Op::ALL.iter().map(|op| counters.get(*op)).sum());
        let applied = system.apply.entities.iter().map(|counters| counters.writes.get() + counters.deletes.get());
        captured.zip(applied).flat_map(|(captured, applied): (u64, u64)| [captured, applied]).collect::<Vec<_>>()
    };
    status.systems.iter().flat_map(of_system).collect()
}

/// Changes a second from and to each system, of the last two minutes, oldest first.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Rates {
    systems: BTreeMap<Arc<str>, VecDeque<[f64; 2]>>,
    #[serde(skip)]
    before: Option<(i64, Vec<[u64; 2]>)>,
}

impl Rates {
    pub fn sample(&mut self, status: &Status, now: i64) {
        let counters = status.systems.iter().map(|system| [system.capture.changes.get(), system.apply.changes.get()]);
        let counters: Vec<[u64; 2]> = counters.collect();
        if let Some((at, before)) = &self.before {
            let seconds = (now - at).max(1) as f64 / SECOND as f64;
            for ((system, counters), before) in status.systems.iter().zip(&counters).zip(before) {
                let rate = |n: usize| (counters[n].saturating_sub(before[n]) as f64 / seconds * 10.0).round() / 10.0;
                let points = self.systems.entry(system.name.clone()).or_default();
                points.push_back([rate(0), rate(1)]);
                if points.len() > HISTORY {
                    points.pop_front();
                }
            }
        }
        self.before = Some((now, counters));
    }

    pub fn latest(&self) -> BTreeMap<Arc<str>, [f64; 2]> {
        self.systems.iter().filter_map(|(name, points)| Some((name.clone(), *points.back()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::status::tests::{NOW, example};
    use super::*;
    use crate::change::Operations;

    fn written(status: &Status, n: u64) {
        let mut operations = Operations::default();
        (0..n).for_each(|_| operations.add(Op::Update));
        status.systems[1].capture.entities[0].add(&operations);
        status.systems[1].apply.entities[0].writes.add(n);
    }

    #[test]
    fn windows_tell_what_came_in_the_last_minute_hour_and_day() {
        let (status, mut rings) = (example(), Rings::default());
        let shop =
            |rings: &Rings, now| rings.volumes(&status, now).into_iter().find(|volume| &*volume.system == "shop");
        let read = |rings: &Rings, now| {
            let Windows { minute, hour, day } = shop(rings, now).unwrap().captured;
            [minute, hour, day]
        };
        assert_eq!(shop(&rings, NOW), None, "nothing came from there, and nothing went there");

        let mut now = NOW;
        let mut seen = Vec::new();
        // One change a second, for a day and two hours.
        for second in 0..26 * 3600 {
            written(&status, 1);
            rings.sample(&status, now);
            if [30, 600, 7200, 26 * 3600 - 1].contains(&second) {
                seen.push(read(&rings, now));
            }
            now += SECOND;
        }

        assert_eq!(seen[0], [31, 31, 31]);
        assert!((60..63).contains(&seen[1][0]) && seen[1][1..] == [601, 601], "{:?}", seen[1]);
        assert!((3600..3721).contains(&seen[2][1]) && seen[2][2] == 7201, "{:?}", seen[2]);
        assert!((86_400..88_201).contains(&seen[3][2]), "{:?}", seen[3]);
        let samples = [&rings.minute, &rings.hour, &rings.day].map(|ring| ring.samples.len());
        assert!(samples.iter().all(|samples| *samples < 52), "{samples:?}");
        let applied = shop(&rings, now).unwrap().applied;
        assert!(applied.minute >= 58, "{applied:?}");
    }

    #[test]
    fn rates_are_per_second_whenever_the_clock_was_read() {
        let (status, mut rates) = (example(), Rates::default());
        rates.sample(&status, NOW);
        assert!(rates.latest().is_empty());

        status.systems[0].capture.changes.add(50);
        rates.sample(&status, NOW + 2 * SECOND);

        assert_eq!(rates.latest()["crm"], [25.0, 0.0]);
        (0..200).for_each(|n| rates.sample(&status, NOW + n * SECOND));
        assert_eq!((rates.systems["crm"].len(), rates.latest()["crm"]), (HISTORY, [0.0, 0.0]));
    }
}
