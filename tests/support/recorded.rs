//! A sink that writes down what a capture hands on.

use anechoic::capture::{Begin, Commit, RowEvent, Sink};
use anechoic::change::Op;
use anechoic::error::Result;
use anechoic::marker::Marker;
use anechoic::position::Position;
use anechoic::value::Datum;

/// What a capture handed on, as lines.
#[derive(Default)]
pub struct Recorded {
    pub lines: Vec<String>,
    pub rows: usize,
    /// Of the last commit, echo or passing.
    pub position: Option<Position>,
    pub quiet: bool,
    /// Echoes are told row by row.
    pub echo_rows: bool,
}

impl Recorded {
    pub fn commits(&self) -> usize {
        self.lines.iter().filter(|line| *line == "commit").count()
    }
}

impl AsRef<Recorded> for Recorded {
    fn as_ref(&self) -> &Recorded {
        self
    }
}

/// One row image: values as they print, apart by spaces.
pub fn image(datums: Option<&[Datum<'_>]>) -> String {
    let Some(datums) = datums else { return "-".into() };
    let texts = datums.iter().map(|datum| match datum {
        Datum::NotSent => "not sent".to_owned(),
        Datum::Null => "NULL".to_owned(),
        Datum::Value(value) => format!("{value:?}"),
        Datum::Added(difference) => format!("added {difference}"),
    });
    texts.collect::<Vec<_>>().join(" ")
}

impl Sink for Recorded {
    fn begin(&mut self, begin: Begin<'_>) -> Result<()> {
        assert!(!begin.txid.is_empty());
        self.lines.push("begin".into());
        Ok(())
    }

    fn row(&mut self, row: RowEvent<'_>) -> Result<()> {
        self.rows += 1;
        if self.quiet {
            return Ok(());
        }
        let op = match row.op {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        };
        let refused = row.refused.map_or(String::new(), |reason| format!(" refused: {reason}"));
        self.lines.push(format!("{op} {} {} => {}{refused}", row.table, image(row.before), image(row.after)));
        Ok(())
    }

    fn truncate(&mut self, table: usize) -> Result<()> {
        self.lines.push(format!("truncate {table}"));
        Ok(())
    }

    fn commit(&mut self, commit: Commit<'_>) -> Result<()> {
        let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64 - commit.committed_at;
        assert!((-1_000_000..600_000_000).contains(&age), "committed {age} µs ago");
        self.lines.push("commit".into());
        self.position = Some(commit.position);
        Ok(())
    }

    fn prepare(&mut self, xid: &str, position: Position) -> Result<()> {
        self.lines.push(format!("prepare {xid}"));
        self.position = Some(position);
        Ok(())
    }

    fn decide(&mut self, xid: &str, committed: bool, commit: Commit<'_>) -> Result<()> {
        self.lines.push(format!("{} {xid}", if committed { "commit" } else { "rollback" }));
        self.position = Some(commit.position);
        Ok(())
    }

    fn wants_echo(&mut self, _: &Marker) -> Result<bool> {
        Ok(self.echo_rows)
    }

    fn echo(&mut self, marker: &Marker, position: Position) -> Result<()> {
        self.lines.push(format!("echo {}", marker.seq));
        self.position = Some(position);
        Ok(())
    }

    fn passed(&mut self, position: Position) -> Result<()> {
        self.position = Some(position);
        Ok(())
    }

    fn full(&self) -> bool {
        false
    }
}
