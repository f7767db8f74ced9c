//! `make bench-stages`: how fast each stage is by itself, without servers, sockets or syncs, on fixed input.
//!
//! ```text
//! pgoutput ─▶ decode ┐
//!                    ├▶ normalize (mapping) ─▶ admit ─▶ journal: append, read ─▶ batch ─▶ statement text
//! binlog ───▶ decode ┘
//! ```
//!
//! One transaction of a thousand rows of seven mixed columns everywhere; criterion tells rows per second
//! and compares with the last run.

mod journaled;
mod logs;
mod table;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use table::ROWS;

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(ROWS));
    let messages = logs::pgoutput();
    group.bench_function("pgoutput", |b| {
        // Values are decoded in the place where they were received.
        b.iter_batched(|| messages.clone(), |mut messages| logs::read_pgoutput(&mut messages), BatchSize::LargeInput);
    });
    let events = logs::binlog();
    group.bench_function("binlog", |b| b.iter(|| logs::read_binlog(&events)));
    group.finish();
}

fn normalize(c: &mut Criterion) {
    let mut group = c.benchmark_group("normalize");
    group.throughput(Throughput::Elements(ROWS));
    for (name, binding) in [("as it is", table::Mapping::Plain), ("mapped", table::Mapping::Mapped)] {
        let mut stage = table::Stage::new(binding);
        group.bench_function(name, |b| b.iter(|| stage.transaction()));
    }
    group.finish();
}

fn journal(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal");
    group.throughput(Throughput::Elements(ROWS));
    let (mut arbiter, mut stage) = (journaled::arbiter(), table::Stage::new(table::Mapping::Plain));
    group.bench_function("admit", |b| {
        let admit = |captured| journaled::admit(&mut arbiter, captured);
        b.iter_batched(|| stage.transaction(), admit, BatchSize::LargeInput);
    });
    let mut journaled = journaled::Journaled::new();
    group.bench_function("append", |b| b.iter(|| journaled.append()));
    journaled.sync();
    let mut reader = journaled.reader();
    group.bench_function("read", |b| {
        b.iter(|| {
            if journaled::read(&mut reader) == 0 {
                reader = journaled.reader();
            }
        });
    });
    group.finish();
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(ROWS));
    let inserts = journaled::Batched::new(ROWS);
    let hot = journaled::Batched::new(10);
    group.bench_function("batch of distinct keys", |b| b.iter(|| inserts.groups()));
    group.bench_function("batch of ten hot keys", |b| b.iter(|| hot.groups()));
    let group_of = inserts.groups();
    let mut text = Vec::new();
    group.bench_function("statement text", |b| {
        b.iter(|| {
            text.clear();
            journaled::statement(&group_of[0], &mut text);
        });
    });
    group.finish();
}

criterion_group!(stages, decode, normalize, journal, apply);
criterion_main!(stages);
