//! A JSON document of which the log tells only what changed.
//!
//! With `binlog_row_value_options=PARTIAL_JSON` an update logs, in place of the new document,
//! what was replaced, inserted and removed in the old one. The old one is in the before image;
//! both together are the new one, written as if the log had it whole.
//!
//! ```text
//! change = operation u8, path: lenenc length, text; unless removed: lenenc length, binary JSON
//! ```
//!
//! Protocol: MySQL `json_diff.h`, `Partial_update_rows_event`.

use super::bytes::Bytes;
use super::jsonb::{DEPTH_MAX, entries, write_string, write_value};

const REPLACE: u8 = 0;
const INSERT: u8 = 1;
const REMOVE: u8 = 2;

/// Appends the document that `changes` make of `before`, binary JSON, as text.
pub fn write_changed(before: &[u8], changes: &[u8], out: &mut String) -> Option<()> {
    let mut document = read(before)?;
    let mut changes = Bytes(changes);
    while !changes.is_empty() {
        let operation = changes.u8()?;
        let path = parse_path(std::str::from_utf8(changes.sized()?).ok()?)?;
        let value = if operation == REMOVE { None } else { Some(read(changes.sized()?)?) };
        change(&mut document, operation, &path, value)?;
    }
    document.write(out);
    Some(())
}

enum Node {
    /// In the server's order of keys: shorter ones first, then by their bytes.
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    /// As text.
    Scalar(String),
}

/// Where a document goes on.
enum Leg {
    Member(String),
    Cell(usize),
}

fn read(data: &[u8]) -> Option<Node> {
    let Some((kind, value)) = data.split_first() else { return Some(Node::Scalar("null".to_owned())) };
    let mut budget = data.len();
    node(*kind, value, 0, &mut budget)
}

fn node(kind: u8, data: &[u8], depth: usize, budget: &mut usize) -> Option<Node> {
    if depth > DEPTH_MAX {
        return None;
    }
    Some(match kind {
        0x00 | 0x01 => {
            let mut members = Vec::new();
            entries(kind, data, budget, &mut |key, kind, value, budget| {
                members.push((key?.to_owned(), node(kind, value, depth + 1, budget)?));
                Some(())
            })?;
            Node::Object(members)
        }
        0x02 | 0x03 => {
            let mut cells = Vec::new();
            entries(kind, data, budget, &mut |_, kind, value, budget| {
                cells.push(node(kind, value, depth + 1, budget)?);
                Some(())
            })?;
            Node::Array(cells)
        }
        _ => {
            let mut text = String::new();
            write_value(kind, data, &mut text, depth, budget)?;
            Node::Scalar(text)
        }
    })
}

impl Node {
    fn write(&self, out: &mut String) {
        match self {
            Node::Scalar(text) => out.push_str(text),
            Node::Object(members) => {
                out.push('{');
                for (at, (key, value)) in members.iter().enumerate() {
                    out.push_str(if at > 0 { ", " } else { "" });
                    write_string(key, out);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
            Node::Array(cells) => {
                out.push('[');
                for (at, value) in cells.iter().enumerate() {
                    out.push_str(if at > 0 { ", " } else { "" });
                    value.write(out);
                }
                out.push(']');
            }
        }
    }

    /// The place of a member, or where it would stand.
    fn place(members: &[(String, Node)], name: &str) -> Result<usize, usize> {
        members.binary_search_by(|(key, _)| key.len().cmp(&name.len()).then_with(|| key.as_str().cmp(name)))
    }

    fn at(&mut self, leg: &Leg) -> Option<&mut Node> {
        match (self, leg) {
            (Node::Object(members), Leg::Member(name)) => {
                let at = Node::place(members, name).ok()?;
                Some(&mut members[at].1)
            }
            (Node::Array(cells), Leg::Cell(at)) => cells.get_mut(*at),
            // Anything is its own first cell.
            (node @ (Node::Object(_) | Node::Scalar(_)), Leg::Cell(0)) => Some(node),
            _ => None,
        }
    }
}

/// `None` where the document does not have what the change speaks of.
fn change(document: &mut Node, operation: u8, path: &[Leg], value: Option<Node>) -> Option<()> {
    let Some((last, parents)) = path.split_last() else {
        *document = value.filter(|_| operation == REPLACE)?;
        return Some(());
    };
    let parent = parents.iter().try_fold(document, |node, leg| node.at(leg))?;
    match (operation, parent, last) {
        (REPLACE, parent, leg) => *parent.at(leg)? = value?,
        (INSERT, Node::Object(members), Leg::Member(name)) => {
            let at = Node::place(members, name).err()?;
            members.insert(at, (name.clone(), value?));
        }
        (INSERT, Node::Array(cells), Leg::Cell(at)) => cells.insert((*at).min(cells.len()), value?),
        (REMOVE, Node::Object(members), Leg::Member(name)) => drop(members.remove(Node::place(members, name).ok()?)),
        (REMOVE, Node::Array(cells), Leg::Cell(at)) if *at < cells.len() => drop(cells.remove(*at)),
        _ => return None,
    }
    Some(())
}

/// `$.name."any name"[3]`; without wildcards and ranges, which no change has.
fn parse_path(text: &str) -> Option<Vec<Leg>> {
    let mut rest = text.trim().strip_prefix('$')?;
    let mut path = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(path);
        }
        if let Some(cell) = rest.strip_prefix('[') {
            let (number, behind) = cell.split_once(']')?;
            path.push(Leg::Cell(number.trim().parse().ok()?));
            rest = behind;
            continue;
        }
        let name = rest.strip_prefix('.')?.trim_start();
        if name.starts_with('"') {
            // A JSON string: its end is the first quote without a backslash.
            let mut escaped = false;
            let end = name.char_indices().skip(1).find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            })?;
            let (quoted, behind) = name.split_at(end.0 + 1);
            path.push(Leg::Member(serde_json::from_str(quoted).ok()?));
            rest = behind;
        } else {
            let end = name.find(['.', '[']).unwrap_or(name.len());
            let (plain, behind) = name.split_at(end);
            if plain.is_empty() || plain.contains('*') {
                return None;
            }
            path.push(Leg::Member(plain.trim_end().to_owned()));
            rest = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u8) -> Vec<u8> {
        vec![0x05, value, 0]
    }

    /// {"a": 1, "bb": [2, 3]}
    fn document() -> Vec<u8> {
        let mut array = vec![2, 0, 10, 0];
        array.extend([0x05, 2, 0, 0x05, 3, 0]);
        let mut object = vec![2, 0, 0, 0, 18, 0, 1, 0, 19, 0, 2, 0, 0x05, 1, 0, 0x02, 21, 0];
        object.extend(b"abb");
        object.extend(&array);
        object[2] = object.len() as u8;
        [&[0x00][..], &object].concat()
    }

    fn diff(operation: u8, path: &str, value: Option<Vec<u8>>) -> Vec<u8> {
        let mut diff = vec![operation, path.len() as u8];
        diff.extend(path.as_bytes());
        if let Some(value) = value {
            diff.push(value.len() as u8);
            diff.extend(value);
        }
        diff
    }

    fn changed(diffs: &[Vec<u8>]) -> Option<String> {
        let mut out = String::new();
        write_changed(&document(), &diffs.concat(), &mut out).map(|()| out)
    }

    #[test]
    fn changes_are_applied_in_their_order() {
        let one = |op, path: &str, value: Option<u8>| changed(&[diff(op, path, value.map(number))]);
        for (found, expected) in [
            (changed(&[]), r#"{"a": 1, "bb": [2, 3]}"#),
            (one(REPLACE, "$.a", Some(9)), r#"{"a": 9, "bb": [2, 3]}"#),
            (one(REPLACE, "$.bb[1]", Some(9)), r#"{"a": 1, "bb": [2, 9]}"#),
            (one(REPLACE, "$", Some(9)), "9"),
            (one(REPLACE, "$.a[0]", Some(9)), r#"{"a": 9, "bb": [2, 3]}"#),
            (one(INSERT, "$.b", Some(9)), r#"{"a": 1, "b": 9, "bb": [2, 3]}"#),
            (one(INSERT, "$.\"a b\\\"\"", Some(9)), r#"{"a": 1, "bb": [2, 3], "a b\"": 9}"#),
            (one(INSERT, "$.bb[7]", Some(9)), r#"{"a": 1, "bb": [2, 3, 9]}"#),
            (one(INSERT, "$.bb[0]", Some(9)), r#"{"a": 1, "bb": [9, 2, 3]}"#),
            (one(REMOVE, "$.bb[0]", None), r#"{"a": 1, "bb": [3]}"#),
            (changed(&[diff(REMOVE, "$.bb", None), diff(REMOVE, "$.a", None)]), "{}"),
        ] {
            assert_eq!(found.as_deref(), Some(expected));
        }
    }

    /// A document other than the one the server changed is no reason to guess.
    #[test]
    fn what_is_not_there_cannot_be_changed() {
        for (operation, path) in [
            (REPLACE, "$.c"),
            (REPLACE, "$.bb[2]"),
            (INSERT, "$.a"),
            (INSERT, "$.a.b"),
            (INSERT, "$"),
            (REMOVE, "$.c"),
            (REMOVE, "$"),
            (REPLACE, "$.*"),
            (REPLACE, "a"),
            (REPLACE, "$."),
            (3, "$.a"),
        ] {
            let value = (operation != REMOVE).then(|| number(1));
            assert_eq!(changed(&[diff(operation, path, value)]), None, "{operation} {path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn malformed_changes_are_refused_without_panic(
            before in proptest::collection::vec(0u8..20, 0..60), changes in proptest::collection::vec(0u8..130, 0..60),
        ) {
            let mut out = String::new();
            let _ = write_changed(&before, &changes, &mut out);
            let _ = write_changed(&document(), &changes, &mut out);
        }
    }
}
