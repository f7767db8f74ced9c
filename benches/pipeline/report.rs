//! Figures as people and as machines read them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::spread;
use crate::contest::Run;
use crate::latency::per_mille;
use crate::workload::Workload;

/// What a workload is to reach between these kinds: at least so many times the baseline's rate,
/// or for latencies at most so many times its time.
fn wanted(workload: Workload, from: &str, to: &str) -> Option<f64> {
    let postgres = |kind: &str| kind.starts_with("pg");
    Some(match (workload, postgres(from), postgres(to)) {
        (Workload::Inserts, true, true) => 1.0,
        (Workload::Inserts, false, true) => 0.9,
        (Workload::Inserts, true, false) => 0.6,
        (Workload::Inserts, false, false) => 0.8,
        (Workload::Singles, true, true) => 0.9,
        (Workload::Bank, true, true) => 1.2,
        (Workload::Singles | Workload::Bank, false, false) => 8.0,
        (Workload::Hot, true, true) => 2.0,
        (Workload::Steady, ..) => 2.0,
        (Workload::Wide, ..) => 0.5,
        (Workload::TwoWay, ..) => 0.8,
        (Workload::FanOut, ..) => 1.5,
        _ => return None,
    })
}

/// The rounds of one workload on one way.
pub struct Series {
    pub workload: Workload,
    pub from: String,
    pub to: String,
    /// What the agent was held against.
    pub baseline: String,
    pub rounds: Vec<(Run, Option<Run>)>,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Series {
    fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        spread(self.rounds.iter().map(|(agent, _)| of(agent)).collect()).1
    }

    fn ratios(&self, of: impl Fn(&Run) -> f64) -> Option<(f64, f64, f64)> {
        let ratios: Vec<f64> = self.rounds.iter().filter_map(|(a, b)| Some(of(a) / of(b.as_ref()?))).collect();
        (!ratios.is_empty()).then(|| spread(ratios))
    }

    /// The ratios that count: of rates, or of the latency that so many of a thousand stay below.
    fn counted(&self) -> Vec<(&'static str, (f64, f64, f64))> {
        let part = |of_thousand| self.ratios(move |run| ms(per_mille(&run.latencies, of_thousand)).max(0.01));
        match self.workload {
            Workload::Steady => [("p50", part(500)), ("p99", part(990))].map(|(n, r)| r.map(|r| (n, r))).into_iter(),
            _ => [("", self.ratios(Run::rows_per_second)), ("", None)].map(|(n, r)| r.map(|r| (n, r))).into_iter(),
        }
        .flatten()
        .collect()
    }

    /// Seconds of the agent's processor time per million rows.
    fn per_million(run: &Run) -> f64 {
        run.agent.as_secs_f64() * 1e6 / run.rows as f64
    }

    fn memory_max(&self) -> u64 {
        self.rounds.iter().map(|(agent, _)| agent.memory).max().unwrap_or(0)
    }

    fn is_met(&self) -> bool {
        let wanted = wanted(self.workload, &self.from, &self.to);
        let ratios = self.counted().iter().all(|(_, (_, median, _))| {
            wanted.is_none_or(|wanted| match self.workload {
                Workload::Steady => *median <= wanted,
                _ => *median >= wanted,
            })
        });
        let memory = match self.workload {
            Workload::Huge => 150 << 20,
            // Several agents' memory is not one's.
            _ => 100 << 20,
        };
        let processor = self.workload != Workload::Inserts || self.median(Series::per_million) <= 4.0;
        ratios && self.memory_max() < memory && processor
    }

    pub fn round(&self) -> String {
        let (agent, baseline) = self.rounds.last().expect("called after a round");
        let rate = |run: &Run| match self.workload.row_bytes() {
            Some(bytes) => format!("{:.1} MB/s", run.rows_per_second() * bytes as f64 / 1e6),
            None => format!("{:.0} rows/s", run.rows_per_second()),
        };
        let latency = |run: &Run| match run.latencies.is_empty() {
            true => String::new(),
            false => {
                let part = |of_thousand| ms(per_mille(&run.latencies, of_thousand));
                format!(", p50 {:.2} p99 {:.2} p999 {:.2} ms", part(500), part(990), part(999))
            }
        };
        let mut text = format!(
            "  {} {} ─▶ {} round {}: agent {} ({:.2} s), processor {:.2} s + servers {:.2} s, {} MiB{}",
            self.workload.name(),
            self.from,
            self.to,
            self.rounds.len(),
            rate(agent),
            agent.took.as_secs_f64(),
            agent.agent.as_secs_f64(),
            agent.servers.as_secs_f64(),
            agent.memory >> 20,
            latency(agent),
        );
        if let Some(run) = baseline {
            text += &format!(
                "; {} {} ({:.2} s), servers {:.2} s{}",
                self.baseline,
                rate(run),
                run.took.as_secs_f64(),
                run.servers.as_secs_f64(),
                latency(run),
            );
        }
        text
    }

    fn line(&self) -> String {
        let latency = |of_thousand: usize| match self.workload {
            Workload::Steady => format!("{:.2}", self.median(|run| ms(per_mille(&run.latencies, of_thousand)))),
            _ => "–".to_owned(),
        };
        let counted = self.counted();
        let ratios = counted.iter().map(|(name, (least, median, most))| {
            format!("{name} {least:.2} / **{median:.2}** / {most:.2}").trim().to_owned()
        });
        let ratios = if counted.is_empty() { "–".to_owned() } else { ratios.collect::<Vec<_>>().join("; ") };
        let wanted = wanted(self.workload, &self.from, &self.to);
        let wanted = wanted.map_or("–".to_owned(), |wanted| match self.workload {
            Workload::Steady => format!("≤ {wanted:.1}"),
            _ => format!("≥ {wanted:.1}"),
        });
        format!(
            "| {} {} ─▶ {} | {:.0} | {:.0} | {:.2} | {} | {} | {} | {} | {} | {ratios} | {wanted} | {} |",
            self.workload.name(),
            self.from,
            self.to,
            self.median(Run::rows_per_second),
            self.median(|run| run.transactions as f64 / run.took.as_secs_f64()),
            self.median(Series::per_million),
            self.memory_max() >> 20,
            latency(500),
            latency(990),
            latency(999),
            self.baseline,
            if self.is_met() { "yes" } else { "no" },
        )
    }

    fn json(&self) -> Value {
        let run = |run: &Run| {
            let part = |of_thousand| (!run.latencies.is_empty()).then(|| ms(per_mille(&run.latencies, of_thousand)));
            json!({
                "seconds": run.took.as_secs_f64(), "rows": run.rows, "transactions": run.transactions,
                "agent_processor_seconds": run.agent.as_secs_f64(),
                "servers_processor_seconds": run.servers.as_secs_f64(), "memory_bytes": run.memory,
                "p50_ms": part(500), "p99_ms": part(990), "p999_ms": part(999),
            })
        };
        let ratios = self.counted().into_iter().map(|(name, (least, median, most))| {
            json!({ "of": if name.is_empty() { "rate" } else { name }, "min": least, "median": median, "max": most })
        });
        json!({
            "workload": self.workload.name(), "about": self.workload.about(),
            "from": self.from, "to": self.to, "baseline": self.baseline,
            "rounds": self.rounds.iter().map(|(agent, baseline)| {
                json!({ "agent": run(agent), "baseline": baseline.as_ref().map(run) })
            }).collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
            "wanted": wanted(self.workload, &self.from, &self.to), "met": self.is_met(),
        })
    }
}

/// Everything, as a table of Markdown.
pub fn table(all: &[Series]) -> String {
    let mut text =
        "| workload | rows/s | tx/s | CPU s per million rows | peak MiB | p50 ms | p99 ms | p999 ms | baseline \
        | ratio min / **median** / max | wanted | met |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for series in all {
        text += &format!("{}\n", series.line());
    }
    text
}

pub fn json(all: &[Series]) -> String {
    Value::Array(all.iter().map(Series::json).collect()).to_string()
}

pub fn is_met(all: &[Series]) -> bool {
    all.iter().all(Series::is_met)
}
