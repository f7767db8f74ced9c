//! Which rows of a filtered binding (`where`) are written, given what is there.
//!
//! ```text
//! image matches    nothing there, or the row there matches   written
//!                  the row there does not match              refused: it is not ours
//! image does not   the row there matches                     deleted
//!                  else                                      left alone
//! ```

use crate::apply::Write;
use crate::apply::batch::Group;
use crate::error::Error;
use crate::normalize::filter::Filter;
use crate::value::{Datum, Row};

#[derive(Debug)]
pub(super) enum Checked {
    /// What is to be written of the group; empty where nothing is.
    Write(Vec<Group>),
    Refused(Error),
}

pub(super) fn check(group: &Group, there: &[Option<Vec<u8>>]) -> Checked {
    let Some(filter) = &group.binding.filter else { return Checked::Write(vec![group.clone()]) };
    debug_assert_eq!(group.rows.len(), there.len(), "one answer per row");
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for (row, there) in group.rows.iter().zip(there) {
        let there = there.as_deref().map(Row);
        let ours = there.map(|there| matches(filter, there, None));
        if group.write == Write::Delete {
            if ours == Some(true) {
                gone.push(row.clone());
            }
            continue;
        }
        match (matches(filter, Row(row), there), ours) {
            (true, None | Some(true)) => kept.push(row.clone()),
            (true, Some(false)) => {
                let table = &group.binding.table.name;
                return Checked::Refused(Error::data(format!(
                    "a row that is outside the filter of {table} has this key"
                )));
            }
            (false, Some(true)) => gone.push(row.clone()),
            (false, _) => {}
        }
    }
    let part = |write, rows: Vec<_>| Group { write, rows, ..group.clone() };
    let parts = [part(Write::Delete, gone), part(group.write, kept)];
    Checked::Write(parts.into_iter().filter(|part| !part.rows.is_empty()).collect())
}

/// The image, over the row that is there where it does not carry a field.
fn matches(filter: &Filter, row: Row<'_>, under: Option<Row<'_>>) -> bool {
    let mut datums: Vec<Datum<'_>> = row.iter().collect();
    if let Some(under) = under {
        for (datum, below) in datums.iter_mut().zip(under.iter()) {
            if !datum.is_sent() {
                *datum = below;
            }
        }
    }
    filter.matches(&datums) == Some(true)
}
