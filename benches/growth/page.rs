//! GROWTH.md, from the measured points.

use std::fmt::Write;
use std::path::Path;

use crate::Point;
use crate::plot::{Curve, svg};

/// What a series is about: heading, what its points are, and what was written.
fn about(what: &str) -> (&'static str, &'static str, &'static str) {
    match what {
        "tables" => {
            ("Tables", "tables", "1,000,000 rows over all tables, each transaction of 1,000 into the next of them.")
        }
        "systems" => {
            ("Systems", "systems", "500,000 rows from one system to all others, which are databases of one server.")
        }
        "backlog" => ("Waiting changes", "rows", "A backlog of that many rows, in transactions of 1,000."),
        "width" => {
            ("Width of a row", "bytes a row", "200 MiB of text that does not compress well, 100 rows a transaction.")
        }
        _ => unreachable!("the series are named by the bench"),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub fn page(all: &[(&str, Vec<Point>)]) -> String {
    let mut out = "# How it grows\n\n\
        Written by `make bench-growth` on two cores that the servers, the agent and the bench share; PostgreSQL 17 to PostgreSQL 17, both\n\
        waiting for their disks. Every point is one run: differences of a tenth mean nothing. *Rows per second* are those that arrive, in all\n\
        targets together, from the first one on; *first row* is from the agent's start.\n"
        .to_owned();
    for (what, points) in all {
        let (heading, _, text) = about(what);
        write!(out, "\n## {heading}\n\n{text}\n\n![{heading}](benches/growth/{what}.svg)\n\n").unwrap();
        out += match *what {
            "width" => {
                "| bytes a row | rows/s | MB/s | first row, s | agent, s | peak MiB |\n|---|---|---|---|---|---|\n"
            }
            _ => "| how many | rows/s | first row, s | agent, s per million rows | peak MiB |\n|---|---|---|---|---|\n",
        };
        for point in points {
            let (at, rate, memory) = (grouped(point.at), grouped(point.rows_per_second() as u64), point.memory >> 20);
            let (ready, agent) = (point.ready.as_secs_f64(), point.agent.as_secs_f64());
            match *what {
                "width" => {
                    let megabytes = point.megabytes_per_second();
                    writeln!(out, "| {at} | {rate} | {megabytes:.0} | {ready:.2} | {agent:.2} | {memory} |").unwrap();
                }
                _ => {
                    let per_million = agent * 1e6 / (point.rows * point.targets) as f64;
                    writeln!(out, "| {at} | {rate} | {ready:.2} | {per_million:.2} | {memory} |").unwrap();
                }
            }
        }
        if *what == "backlog" {
            out += &on_paper(points);
        }
    }
    out
}

/// The next magnitude, from the slope between the last two points.
fn on_paper(points: &[Point]) -> String {
    let [.., a, b] = points else { return String::new() };
    let rows = b.rows * 10;
    let further = (rows - b.rows) as f64 / (b.rows - a.rows) as f64;
    let slope = |of: fn(&Point) -> f64| of(b) + (of(b) - of(a)) * further;
    let took = slope(|point| point.took.as_secs_f64());
    let memory = slope(|point| point.memory as f64 / f64::from(1 << 20));
    format!(
        "\nOn paper, from the slope between the last two: {} rows in {:.0} s ({} rows/s), peak {:.0} MiB.\n",
        grouped(rows),
        took,
        grouped((rows as f64 / took) as u64),
        memory.max(b.memory as f64 / f64::from(1 << 20)),
    )
}

pub fn write(page: &str, all: &[(&str, Vec<Point>)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::write(root.join("GROWTH.md"), page).unwrap();
    for (what, points) in all {
        let (_, unit, _) = about(what);
        let places: Vec<(f64, String)> = points.iter().map(|point| (point.at as f64, grouped(point.at))).collect();
        let rate = match *what {
            "width" => Curve {
                name: "MB/s",
                color: "#2a78d6",
                values: points.iter().map(Point::megabytes_per_second).collect(),
            },
            _ => {
                Curve { name: "rows/s", color: "#2a78d6", values: points.iter().map(Point::rows_per_second).collect() }
            }
        };
        let memory = Curve {
            name: "agent's peak, MiB",
            color: "#c4561b",
            values: points.iter().map(|point| (point.memory >> 20) as f64).collect(),
        };
        let path = root.join(format!("benches/growth/{what}.svg"));
        std::fs::write(path, svg(unit, &places, &rate, &memory)).unwrap();
    }
}
