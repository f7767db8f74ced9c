//! How fast changes travel, beside the databases' own replication in the same run: `make bench`.
//!
//! Servers of its own, as durable as users' are. In every round the agent and what it is held
//! against run the same workload in turn; ratios are of one round. `--json` prints for machines.
//!
//! | workload | held against |
//! |---|---|
//! | W1 inserts, W2 single rows, W3 TPC-B, W4 hot keys | native replication with its default settings; W1 between engines: PostgreSQL's |
//! | W5 latency of 500 transactions per second | native replication of the target's kind |
//! | W6 wide rows | `COPY` piped into `COPY` |
//! | W7 TPC-B in both directions at once | the agent in one direction |
//! | W8 TPC-B to two targets | two agents |
//! | W9 one transaction of 5,000,000 rows | nothing: time and memory |
//!
//! | variable | default |
//! |---|---|
//! | `ANECHOIC_BENCH_ROUNDS` | 5 |
//! | `ANECHOIC_BENCH_SCALE` | 1: the full sizes; 0.01 for a trial |
//! | `ANECHOIC_BENCH_ONLY` | all: `W1 W2` |
//! | `ANECHOIC_BENCH_WAYS` | all that a workload is made for: `pg17-pg17 mysql-pg17` |
//! | `ANECHOIC_BENCH_CONNECTIONS` | as without: over so many the agent writes to each system |
//! | `ANECHOIC_TEST_BINARY` | the agent of this build |
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // prints figures; a bench that cannot go on panics

#[path = "../common.rs"]
mod common;
mod contest;
mod latency;
mod native;
mod report;
#[path = "../../tests/support/mod.rs"]
mod support;
mod workload;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use common::{kind, number};
use contest::{Run, Way};
use report::Series;
use support::servers::{Kind, Server};
use workload::Workload;

/// Servers that are started once, when they are first needed: of each kind one to read from and
/// one to write to.
#[derive(Default)]
struct Servers(HashMap<(Kind, bool), Arc<Server>>);

impl Servers {
    async fn one(&mut self, kind: Kind, written: bool) -> Arc<Server> {
        match self.0.entry((kind, written)) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(place) => place.insert(Arc::new(Server::durable(kind).await)).clone(),
        }
    }

    async fn way(&mut self, from: Kind, to: Kind) -> Way {
        Way { from: self.one(from, false).await, to: self.one(to, true).await }
    }
}

/// Between which kinds a workload runs.
fn ways(workload: Workload) -> Vec<(Kind, Kind)> {
    let pairs = |from: &[Kind], to: &[Kind]| from.iter().flat_map(|f| to.iter().map(|t| (*f, *t))).collect();
    let (pg, mysql, mariadb) = (Kind::Postgres17, Kind::Mysql, Kind::Mariadb);
    match workload {
        Workload::Inserts => {
            vec![(pg, pg), (mariadb, mariadb), (mysql, mysql), (mysql, pg), (mariadb, pg), (pg, mysql), (pg, mariadb)]
        }
        Workload::Singles | Workload::Bank => vec![(pg, pg), (mariadb, mariadb), (mysql, mysql)],
        Workload::Steady => pairs(&Kind::ENGINES, &Kind::ENGINES),
        Workload::Hot | Workload::Wide | Workload::TwoWay | Workload::FanOut | Workload::Huge => vec![(pg, pg)],
    }
}

/// What the agent is held against, by name.
fn baseline(workload: Workload, (from, to): (Kind, Kind)) -> Option<(String, Kind)> {
    let native = |kind: Kind| match kind.is_postgres() {
        true => (format!("{} built-in", kind.name()), kind),
        false => (format!("{} native", kind.name()), kind),
    };
    match workload {
        Workload::Steady => Some(native(to)),
        Workload::Wide => Some(("COPY into COPY".to_owned(), to)),
        Workload::TwoWay => Some(("one way".to_owned(), to)),
        Workload::FanOut => Some(("two agents".to_owned(), to)),
        Workload::Huge => None,
        _ if from == to => Some(native(to)),
        _ => Some(native(Kind::Postgres17)),
    }
}

async fn held_against(servers: &mut Servers, way: &Way, workload: Workload, kind: Kind, scale: f64) -> Run {
    match workload {
        Workload::Wide => contest::by_pipe(way, workload, scale).await,
        Workload::TwoWay => contest::by_agent(way, Workload::Bank, scale).await,
        Workload::FanOut => contest::by_agent_each(way, workload, scale).await,
        _ => {
            let native = servers.way(kind, kind).await;
            contest::by_native(&native, workload, scale).await
        }
    }
}

async fn bench() -> Vec<Series> {
    let rounds = number("ANECHOIC_BENCH_ROUNDS", 5);
    let scale = std::env::var("ANECHOIC_BENCH_SCALE").map_or(1.0, |text| text.parse().unwrap());
    let only = std::env::var("ANECHOIC_BENCH_ONLY").ok();
    let chosen: Option<Vec<(Kind, Kind)>> = std::env::var("ANECHOIC_BENCH_WAYS").ok().map(|text| {
        let pair = |pair: &str| pair.split_once('-').map(|(from, to)| (kind(from), kind(to)));
        text.split_whitespace().map(|text| pair(text).unwrap_or_else(|| panic!("{text:?} is no way"))).collect()
    });
    let mut servers = Servers::default();
    let mut all = Vec::new();
    for workload in Workload::ALL {
        if only.as_ref().is_some_and(|only| !only.split_whitespace().any(|name| name == workload.name())) {
            continue;
        }
        let possible = ways(workload);
        for (from, to) in chosen.clone().unwrap_or_else(|| possible.clone()) {
            if only.is_none() && !possible.contains(&(from, to)) {
                continue;
            }
            let way = servers.way(from, to).await;
            let against = baseline(workload, way.kinds());
            let mut series = Series {
                workload,
                from: from.name().to_owned(),
                to: to.name().to_owned(),
                baseline: against.as_ref().map_or("–".to_owned(), |(name, _)| name.clone()),
                rounds: Vec::new(),
            };
            for round in 1..=rounds {
                let mut other = None;
                // In turn, so that neither always finds what the other has left.
                if let (1, Some((_, kind))) = (round % 2, &against) {
                    other = Some(held_against(&mut servers, &way, workload, *kind, scale).await);
                }
                let agent = contest::by_agent(&way, workload, scale).await;
                if let (None, Some((_, kind))) = (&other, &against) {
                    other = Some(held_against(&mut servers, &way, workload, *kind, scale).await);
                }
                series.rounds.push((agent, other));
                eprintln!("{}", series.round());
            }
            all.push(series);
        }
    }
    all
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all = runtime.block_on(bench());
    match std::env::args().any(|argument| argument == "--json") {
        true => println!("{}", report::json(&all)),
        false => println!("\n{}", report::table(&all)),
    }
    std::process::exit(i32::from(!report::is_met(&all)));
}
