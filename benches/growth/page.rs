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

/// The next magnitude, from the last two points: time grows with the rows, memory by what a magnitude adds.
fn on_paper(points: &[Point]) -> String {
    let [.., a, b] = points else { return String::new() };
    let rows = b.rows * 10;
    let further = (rows - b.rows) as f64 / (b.rows - a.rows) as f64;
    let took = b.took.as_secs_f64() + (b.took.as_secs_f64() - a.took.as_secs_f64()) * further;
    let memory = |point: &Point| point.memory as f64 / f64::from(1 << 20);
    format!(
        "\nOn paper: {} rows in {:.0} s ({} rows/s), from the slope between the last two;\npeak {:.0} MiB, where this \
         magnitude adds what the last one did.\n",
        grouped(rows),
        took,
        grouped((rows as f64 / took) as u64),
        memory(b) + (memory(b) - memory(a)).max(0.0),
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
