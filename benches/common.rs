//! What the benches share: their sizes, the rows they write, and what was spent on them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::servers::{Db, Kind, Server};
use crate::support::world::{Entity, Type};

pub fn item() -> Entity {
    Entity::new("item")
        .key("id", Type::BigInt)
        .field("name", Type::Varchar(60))
        .field("price", Type::Decimal(12, 2))
        .field("made", Type::Date)
        .field("changed", Type::DateTime)
        .field("active", Type::Bool)
        .field("stock", Type::Int)
}

/// The columns of item number `n`, an expression of a number.
pub fn item_values(kind: Kind, n: &str) -> String {
    match kind.is_postgres() {
        true => format!(
            "{n}, 'item number ' || {n}, ({n} % 1000000) / 100.0, date '2000-01-01' + ({n} % 9000)::int, \
             timestamp '2024-01-01' + {n} * interval '1 second', {n} % 2 = 0, {n}::bigint * 7 % 100003"
        ),
        false => format!(
            "{n}, CONCAT('item number ', {n}), ({n} % 1000000) / 100, DATE_ADD('2000-01-01', INTERVAL {n} % 9000 DAY), \
             DATE_ADD('2024-01-01', INTERVAL {n} SECOND), {n} % 2 = 0, {n} * 7 % 100003"
        ),
    }
}

/// A derived table `s` with the numbers `n` from 1 on.
pub fn series(kind: Kind, count: u64) -> String {
    match kind {
        _ if kind.is_postgres() => format!("generate_series(1, {count}::bigint) AS s(n)"),
        _ if kind.is_mariadb() => format!("(SELECT seq AS n FROM seq_1_to_{count}) AS s"),
        _ => format!(
            "(WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < {count}) \
             SELECT /*+ SET_VAR(cte_max_recursion_depth=100000000) */ n FROM r) AS s"
        ),
    }
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.replace('_', "").parse().unwrap())
}

pub fn kind(name: &str) -> Kind {
    use Kind::*;
    let all = [Postgres15, Postgres17, Postgres18, Mysql, Mariadb, Mariadb11];
    all.into_iter().find(|kind| kind.name() == name).unwrap_or_else(|| panic!("there is no kind {name:?}"))
}

/// A shell command of an administrator: on the server's own clients and sockets.
pub async fn shell(text: &str) -> Duration {
    let begun = Instant::now();
    let status =
        tokio::process::Command::new("bash").args(["-e", "-o", "pipefail", "-c", text]).status().await.unwrap();
    assert!(status.success(), "{text}");
    begun.elapsed()
}

pub fn client(db: &Db, options: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/servers.sh");
    let database =
        if db.kind.is_postgres() { format!("-q -d {}", db.name) } else { format!("--local-infile=1 {}", db.name) };
    format!("{} sql {} {options} {database}", script.display(), db.server.dir.display())
}

/// Processor time of the processes that `counts` takes by pid and parent, and of their children
/// that have ended.
pub fn processor(counts: impl Fn(u32, u32) -> bool) -> Duration {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let ticks = |pid: u32| {
        let text = stat(pid)?;
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        let times = fields[11..15].iter().filter_map(|field| field.parse::<u64>().ok());
        counts(pid, fields[1].parse().ok()?).then(|| times.sum::<u64>())
    };
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // SAFETY: asks for a constant.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Duration::from_millis(pids.filter_map(ticks).sum::<u64>() * 1000 / per_second)
}

pub fn at_servers(servers: &[&Server]) -> Duration {
    let pids: Vec<u32> = servers.iter().map(|server| server.pid()).collect();
    processor(|pid, parent| pids.contains(&pid) || pids.contains(&parent))
}

/// Least, median and most.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}
