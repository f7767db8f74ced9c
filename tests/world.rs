//! The pure core in a simulated world: two to four in-memory systems, seeded interleavings of
//! local writes, XA transactions, captures, syncs and appliers' steps, lost connections, refusing targets,
//! crashes and restarts; then quiet, and all systems must be equal. A restart takes the arbiter from its last
//! checkpoint, where there is one, and that must be what the whole journal makes of it.
//!
//! The arbiter, the batches and the steps are the ones that run against servers. A failure
//! prints its seed: `ANECHOIC_SEED=n cargo test world` runs that schedule alone;
//! `ANECHOIC_SCHEDULES=n` sets how many run (4,000; in the soak 100,000).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test that cannot go on panics; seeds are printed

#[path = "world/check.rs"]
mod check;
#[path = "world/copy.rs"]
mod copy;
#[path = "world/log.rs"]
mod log;
#[path = "world/model.rs"]
mod model;
#[path = "world/outcomes.rs"]
mod outcomes;
#[path = "world/run.rs"]
mod run;

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anechoic::admit::Bugs;
use run::{Planted, Tally, World};

const STEPS: usize = 220;

fn simulate(seed: u64, planted: Planted) -> Result<Tally, String> {
    let mut world = World::new(seed, planted);
    // Short ones are easier to understand when they fail.
    let steps = 20 + world.random.below(STEPS);
    world.run(steps).map(|()| world.tally)
}

fn simulate_unique(seed: u64, planted: Planted) -> Result<Tally, String> {
    let mut world = World::with_unique(seed, planted);
    let steps = 20 + world.random.below(STEPS);
    world.run(steps).map(|()| world.tally)
}

fn simulate_sum(seed: u64, planted: Planted) -> Result<Tally, String> {
    let mut world = World::with_sum(seed, planted);
    let steps = 20 + world.random.below(STEPS);
    world.run(steps).map(|()| world.tally)
}

fn simulate_load(seed: u64, planted: Planted) -> Result<Tally, String> {
    let mut world = World::with_load(seed, planted);
    // Soon at rest: nothing that comes later mends what was left behind.
    let steps = 20 + world.random.below(STEPS / 4);
    world.run(steps).map(|()| world.tally)
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds() -> Range<u64> {
    let schedules = if std::env::var_os("ANECHOIC_SOAK").is_some() { 100_000 } else { 4000 };
    match from_env("ANECHOIC_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("ANECHOIC_SCHEDULES").unwrap_or(schedules),
    }
}

/// On all cores; what failed comes in the order of the seeds.
fn simulate_all(seeds: Range<u64>, simulate: fn(u64, Planted) -> Result<Tally, String>) -> (Tally, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let (mut sum, mut failed) = (Tally::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (sum, failed);
            }
            match simulate(seed, Planted::default()) {
                Ok(tally) => sum += tally,
                Err(why) => failed.push((seed, why)),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (sum, mut failed) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).fold(
            (Tally::default(), Vec::new()),
            |(mut sum, mut all), (tally, failed)| {
                sum += tally;
                all.extend(failed);
                (sum, all)
            },
        )
    });
    failed.sort();
    (sum, failed.into_iter().map(|(seed, why)| format!("seed {seed}: {why}")).collect())
}

/// Whatever seeds are asked for: how many, and what happened in them.
fn all_end_equal(simulate: fn(u64, Planted) -> Result<Tally, String>) -> (u64, Tally) {
    let seeds = seeds();
    let begun = Instant::now();
    let (sum, failed) = simulate_all(seeds.clone(), simulate);
    let schedules = seeds.end - seeds.start;
    println!("{schedules} schedules in {:.1?}: {sum:?}", begun.elapsed());
    assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed[..failed.len().min(10)].join("\n"));
    (schedules, sum)
}

#[test]
fn whatever_is_written_concurrently_all_systems_end_equal() {
    let (schedules, sum) = all_end_equal(simulate);

    if schedules > 100 {
        assert!(sum.conflicts > 1000 && sum.rejected > 100 && sum.quarantined > 100 && sum.crashes > 100, "{sum:?}");
        assert!(sum.copied > 1000 && sum.lost > 100, "{sum:?}");
        assert!(sum.differences > 500 && sum.waited > 100 && sum.by_hand > 100, "{sum:?}");
        assert!(sum.side_effects > 100 && sum.decided > 1000 && sum.restored > 1000, "{sum:?}");
    }
}

/// Two records want one value, in systems that are each right: one of them gives way everywhere, or a person
/// is asked; and when that person has spoken, nothing is held anywhere.
#[test]
fn records_that_cannot_both_be_are_parted_in_all_systems() {
    let (schedules, sum) = all_end_equal(simulate_unique);

    if schedules > 100 {
        let [_, lost, partly, _, waiting, renamed] = sum.clashes;
        assert!(lost > 100 && partly > 20 && waiting > 100 && renamed > 100 && sum.crashes > 100, "{sum:?}");
    }
}

#[test]
fn a_sum_is_the_same_everywhere_whatever_becomes_of_its_row() {
    let (schedules, sum) = all_end_equal(simulate_sum);

    if schedules > 100 {
        assert!(sum.conflicts > 1000 && sum.restored > 100 && sum.crashes > 100, "{sum:?}");
    }
}

/// Rows whose sums differ when they are loaded, and that are changed, deleted and made again meanwhile.
#[test]
fn a_row_is_loaded_whatever_becomes_of_it_meanwhile() {
    let (schedules, sum) = all_end_equal(simulate_load);

    if schedules > 100 {
        assert!(sum.copied > 1000 && sum.lost > 1000 && sum.missed > 10 && sum.crashes > 100, "{sum:?}");
    }
}

/// A planted mistake must make some schedule end with systems that differ.
fn must_diverge(what: &str, planted: Planted) {
    must_diverge_from(0, what, planted);
}

/// One that few schedules show: looked for from a seed on that did. Any other one is as good.
fn must_diverge_from(first: u64, what: &str, planted: Planted) {
    const SEEDS: u64 = 60_000;
    let mut seeds = (first..SEEDS).chain(0..first);
    let diverged = seeds.find(|seed| simulate(*seed, planted).is_err_and(|why| why.starts_with("diverged")));
    assert!(diverged.is_some(), "{what}: not caught by divergence within {SEEDS} seeds");
    println!("{what}: caught by seed {}", diverged.unwrap_or_default());
}

#[test]
fn side_effects_that_are_taken_for_ours_are_caught() {
    must_diverge("side effects dropped", Planted { side_effects_dropped: true, ..Planted::default() });
}

/// Systems would still end equal, after writes that nobody made.
#[test]
fn rows_of_ours_that_are_taken_for_side_effects_are_caught() {
    let planted = Planted { echo_of_last_entry: true, ..Planted::default() };
    let caught = (0..2000).find(|seed| simulate(*seed, planted).is_err_and(|why| why.contains("were captured")));
    assert!(caught.is_some());
}

#[test]
fn a_base_taken_from_the_marker_table_at_a_restart_is_caught() {
    must_diverge("base from the marker table", Planted { base_from_marker_table: true, ..Planted::default() });
}

#[test]
fn an_xa_transaction_that_is_journaled_when_it_is_prepared_is_caught() {
    let planted = Planted { journaled_when_prepared: true, ..Planted::default() };
    must_diverge("XA journaled when prepared", planted);
}

/// Systems would still end equal: what it wrote was locked, so nothing newer of it was applied.
#[test]
fn an_xa_commit_with_the_base_of_its_prepare_is_caught() {
    let planted = Planted { base_of_prepare: true, ..Planted::default() };
    let caught = (0..2000).find(|seed| simulate(*seed, planted).is_err_and(|why| why.contains("has base")));
    assert!(caught.is_some());
}

#[test]
fn a_base_of_the_last_journaled_entry_is_caught() {
    let bugs = Bugs { base_of_last_entry: true, ..Bugs::default() };
    must_diverge("base of the last entry", Planted { bugs, ..Planted::default() });
}

#[test]
fn either_everywhere_left_out_is_caught() {
    let own = Bugs { own_everywhere_left_out: true, ..Bugs::default() };
    let won = Bugs { won_everywhere_left_out: true, ..Bugs::default() };
    must_diverge("own everywhere left out", Planted { bugs: own, ..Planted::default() });
    must_diverge("won everywhere left out", Planted { bugs: won, ..Planted::default() });
}

#[test]
fn writing_only_changed_columns_is_caught() {
    let bugs = Bugs { only_changed_columns: true, ..Bugs::default() };
    must_diverge("only changed columns", Planted { bugs, ..Planted::default() });
}

#[test]
fn one_slot_per_key_where_bindings_differ_is_caught() {
    let bugs = Bugs { one_slot: true, ..Bugs::default() };
    must_diverge("one slot", Planted { bugs, ..Planted::default() });
}

#[test]
fn a_held_key_whose_later_base_is_not_lowered_is_caught() {
    let bugs = Bugs { held_base_not_lowered: true, ..Bugs::default() };
    must_diverge("held base not lowered", Planted { bugs, ..Planted::default() });
}

#[test]
fn a_field_that_only_the_loser_of_a_row_made_again_has_is_caught() {
    let bugs = Bugs { lone_fields_lost: true, ..Bugs::default() };
    must_diverge_from(48_723, "lone fields lost", Planted { bugs, ..Planted::default() });
}

#[test]
fn a_difference_that_a_whole_value_undoes_at_its_origin_is_caught() {
    let bugs = Bugs { differences_left_out: true, ..Bugs::default() };
    must_diverge("differences left out", Planted { bugs, ..Planted::default() });
}

#[test]
fn a_row_that_outlives_its_deletion_without_its_sums_is_caught() {
    let bugs = Bugs { returned_left_out: true, ..Bugs::default() };
    must_diverge("returned left out", Planted { bugs, ..Planted::default() });
}

#[test]
fn a_copied_row_that_wins_like_a_live_one_is_caught() {
    let bugs = Bugs { copies_are_live: true, ..Bugs::default() };
    must_diverge("copies are live", Planted { bugs, ..Planted::default() });
}

#[test]
fn a_delete_that_could_not_see_the_losing_insert_is_caught() {
    let bugs = Bugs { redelete_left_out: true, ..Bugs::default() };
    must_diverge_from(19_856, "redelete left out", Planted { bugs, ..Planted::default() });
}

/// Systems would still end equal, after a record that was in nobody's way had to go.
#[test]
fn a_rival_that_is_taken_for_what_it_was_is_caught() {
    let bugs = Bugs { rivals_stay: true, ..Bugs::default() };
    let planted = Planted { bugs, ..Planted::default() };
    let caught = (0..4000).find(|seed| simulate_unique(*seed, planted).is_err_and(|why| why.starts_with("clash")));
    assert!(caught.is_some());
}

#[test]
fn a_field_that_a_person_sets_without_the_rest_of_its_row_is_caught() {
    let bugs = Bugs { set_alone: true, ..Bugs::default() };
    must_diverge("set alone", Planted { bugs, ..Planted::default() });
}
