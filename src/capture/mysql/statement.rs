//! What the text of a query event means for the flow, told by its first words.
//!
//! Nothing here parses SQL: a statement that may write rows is told from the few that may
//! not, and the name that TRUNCATE empties is read.

use super::bytes::{Bytes, inflate};

/// A query event's default schema and text.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    pub schema: String,
    pub text: String,
    /// The text goes on.
    pub cut: bool,
}

/// What is kept of a statement's text.
const TEXT_MAX: usize = 4096;

/// Data of a query event; `compressed` is MariaDB's form of it.
pub fn parse_query(data: &[u8], compressed: bool) -> Option<Query> {
    let mut bytes = Bytes(data);
    bytes.skip(8)?;
    let schema = usize::from(bytes.u8()?);
    bytes.skip(2)?;
    let status = bytes.uint(2)? as usize;
    bytes.skip(status)?;
    let schema = String::from_utf8_lossy(bytes.take(schema)?).into_owned();
    bytes.skip(1)?;
    let text = if compressed {
        let mut plain = Vec::new();
        inflate(bytes, &mut plain)?;
        String::from_utf8_lossy(&plain).into_owned()
    } else {
        // Only the beginning is looked at; an INSERT may be megabytes.
        String::from_utf8_lossy(&bytes.0[..bytes.0.len().min(TEXT_MAX)]).into_owned()
    };
    let cut = !compressed && bytes.0.len() > TEXT_MAX;
    Some(Query { schema, text, cut })
}

/// Of a table, with its schema where the statement says it.
pub type Name = (Option<String>, String);

#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    Begin,
    Commit,
    Rollback,
    RollbackTo,
    Savepoint,
    XaStart,
    /// The xid as [`xid`] writes it; `None` where it could not be read.
    XaDecided {
        committed: bool,
        xid: Option<String>,
    },
    /// Schema and table, where they could be read.
    Truncate(Option<Name>),
    /// Tables that are gone, with their rows.
    Drop(Vec<Name>),
    /// Former and new names, of one statement.
    Rename(Vec<(Name, Name)>),
    /// May have changed rows, as text.
    Write,
    /// DDL, grants and the like: no rows of their own.
    Other,
}

pub fn classify(text: &str) -> Statement {
    let rest = skip_comments(text);
    let (first, rest) = word(rest);
    let second = || word(skip_comments(rest)).0;
    match first.as_str() {
        "BEGIN" => Statement::Begin,
        "START" if second() == "TRANSACTION" => Statement::Begin,
        "COMMIT" => Statement::Commit,
        "ROLLBACK" if second() == "TO" => Statement::RollbackTo,
        "ROLLBACK" => Statement::Rollback,
        "SAVEPOINT" | "RELEASE" => Statement::Savepoint,
        "XA" => match second().as_str() {
            "START" | "BEGIN" => Statement::XaStart,
            // COMMIT and ROLLBACK of a prepared one: a transaction of their own.
            verb @ ("COMMIT" | "ROLLBACK") => {
                let rest = word(skip_comments(rest)).1;
                Statement::XaDecided { committed: verb == "COMMIT", xid: parse_xid(rest) }
            }
            _ => Statement::Savepoint,
        },
        "TRUNCATE" => Statement::Truncate(truncated(rest)),
        "DROP" => dropped(rest).map_or(Statement::Other, Statement::Drop),
        "CREATE" => replaced(rest).map_or(Statement::Other, |name| Statement::Drop(vec![name])),
        "RENAME" => renamed(rest).map_or(Statement::Other, Statement::Rename),
        "ALTER" => altered(rest).map_or(Statement::Other, |names| Statement::Rename(vec![names])),
        "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" | "WITH" | "CALL" | "DO" | "SELECT" | "VALUES"
        | "EXECUTE" | "HANDLER" | "TABLE" | "(" => Statement::Write,
        _ => Statement::Other,
    }
}

/// A table of this name is given system versioning (MariaDB).
pub fn versions(text: &str, table: &str) -> bool {
    let lower = text.to_lowercase();
    lower.contains("system versioning") && !lower.contains("drop system versioning") && names(text, table)
}

/// The text has this name as a word, quoted or not, in any spelling.
pub fn names(text: &str, name: &str) -> bool {
    let (text, name) = (text.to_lowercase(), name.to_lowercase());
    let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    // Inside of backticks one is written twice.
    let spelled = name.replace('`', "``");
    text.match_indices(&spelled).any(|(at, _)| {
        let (before, behind) = (&text[..at], &text[at + spelled.len()..]);
        !before.ends_with(word) && !behind.starts_with(word)
    })
}

/// A prepared transaction's name, as the servers write it.
pub fn xid(format: i32, global: &[u8], branch: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * (global.len() + branch.len()) + 20);
    for part in [global, branch] {
        text.push_str("X'");
        for byte in part {
            let _ = write!(text, "{byte:02x}");
        }
        text.push_str("',");
    }
    let _ = write!(text, "{format}");
    text
}

/// `X'6162',X'',1`, the same whoever wrote it.
fn parse_xid(text: &str) -> Option<String> {
    let mut parts = text.trim().trim_end_matches(';').splitn(3, ',').map(str::trim);
    let mut bytes = || {
        let hex = parts.next()?.strip_prefix(['X', 'x'])?.strip_prefix('\'')?.strip_suffix('\'')?;
        let digit = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        (0..hex.len()).step_by(2).map(digit).collect::<Option<Vec<u8>>>()
    };
    let (global, branch) = (bytes()?, bytes()?);
    let format = parts.next()?.split_whitespace().next()?.parse().ok()?;
    Some(xid(format, &global, &branch))
}

/// The beginning of a statement for messages: its verbs and names, none of its values.
pub fn first_words(text: &str) -> String {
    let text = skip_comments(text);
    let words: Vec<&str> = text.split_whitespace().take(4).collect();
    let joined = words.join(" ");
    joined.split(['(', '=', '\'', '"']).next().unwrap_or("").trim().chars().take(80).collect()
}

/// The table of `[TABLE] name`.
fn truncated(rest: &str) -> Option<Name> {
    let (table, behind) = word(skip_comments(rest));
    let rest = if table == "TABLE" { behind } else { rest };
    table_name(rest).map(|(name, _)| name)
}

/// The tables of `[IF EXISTS] TABLE a, b`; temporary ones are nobody else's.
fn dropped(rest: &str) -> Option<Vec<Name>> {
    let mut rest = if_exists(after(rest, &["TABLE", "TABLES"])?);
    let mut names = Vec::new();
    loop {
        let (name, behind) = table_name(rest)?;
        names.push(name);
        match skip_comments(behind).strip_prefix(',') {
            Some(more) => rest = more,
            None => return Some(names),
        }
    }
}

/// The table of MariaDB's `OR REPLACE TABLE name`, which drops what was there.
fn replaced(rest: &str) -> Option<Name> {
    let rest = after(after(after(rest, &["OR"])?, &["REPLACE"])?, &["TABLE"])?;
    table_name(rest).map(|(name, _)| name)
}

/// The names of `TABLE a TO b, c TO d`.
fn renamed(rest: &str) -> Option<Vec<(Name, Name)>> {
    let mut rest = if_exists(after(rest, &["TABLE", "TABLES"])?);
    let mut names = Vec::new();
    loop {
        let (from, mut behind) = table_name(rest)?;
        // MariaDB: WAIT n, NOWAIT
        while word(skip_comments(behind)).0 != "TO" {
            let (passed, more) = name(skip_comments(behind))?;
            debug_assert!(!passed.is_empty(), "a name has letters");
            behind = more;
        }
        let (to, behind) = table_name(after(behind, &["TO"])?)?;
        names.push((from, to));
        match skip_comments(behind).strip_prefix(',') {
            Some(more) => rest = more,
            None => return Some(names),
        }
    }
}

/// The names of `[ONLINE] [IGNORE] TABLE a …, RENAME [TO|AS|=] b`, where it renames the table.
fn altered(rest: &str) -> Option<(Name, Name)> {
    let mut rest = rest;
    while let Some(behind) = after(rest, &["ONLINE", "IGNORE"]) {
        rest = behind;
    }
    let (from, mut rest) = table_name(if_exists(after(rest, &["TABLE"])?))?;
    loop {
        rest = skip_comments(rest);
        let quote = rest.chars().next()?;
        if matches!(quote, '`' | '"' | '\'') {
            rest = quoted(rest)?.1;
            continue;
        }
        let (found, behind) = word(rest);
        if found.is_empty() || found == "(" {
            rest = &rest[quote.len_utf8()..];
            continue;
        }
        rest = behind;
        if found == "RENAME" && after(rest, &["COLUMN", "INDEX", "KEY"]).is_none() {
            let rest = after(rest, &["TO", "AS"]).unwrap_or(rest);
            let rest = skip_comments(rest);
            return Some((from, table_name(rest.strip_prefix('=').unwrap_or(rest))?.0));
        }
    }
}

/// What follows one of these words.
fn after<'t>(text: &'t str, words: &[&str]) -> Option<&'t str> {
    let (found, rest) = word(skip_comments(text));
    words.contains(&found.as_str()).then_some(rest)
}

fn if_exists(text: &str) -> &str {
    after(text, &["IF"]).and_then(|rest| after(rest, &["EXISTS"])).unwrap_or(text)
}

/// `name` or `schema.name`.
fn table_name(text: &str) -> Option<(Name, &str)> {
    let (first, rest) = name(skip_comments(text))?;
    match skip_comments(rest).strip_prefix('.') {
        Some(rest) => name(skip_comments(rest)).map(|(second, rest)| ((Some(first), second), rest)),
        None => Some(((None, first), rest)),
    }
}

/// A name, quoted or not.
fn name(text: &str) -> Option<(String, &str)> {
    if text.starts_with(['`', '"']) {
        return quoted(text);
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$'))).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

/// What stands between the quotes with which the text begins, and what is behind them.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next()?;
    let mut name = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            name.push(c);
        } else if chars.next_if(|(_, next)| *next == quote).is_some() {
            name.push(quote);
        } else {
            return Some((name, &text[at + 1..]));
        }
    }
    None
}

fn word(text: &str) -> (String, &str) {
    if let Some(rest) = text.strip_prefix('(') {
        return ("(".to_owned(), rest);
    }
    let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
    (text[..end].to_ascii_uppercase(), &text[end..])
}

/// Past whitespace and comments; `/*!50000 TRUNCATE …*/` is no comment.
fn skip_comments(text: &str) -> &str {
    let mut text = text.trim_start();
    loop {
        let rest = if let Some(conditional) = text.strip_prefix("/*!").or_else(|| text.strip_prefix("/*M!")) {
            conditional.trim_start_matches(|c: char| c.is_ascii_digit())
        } else if let Some(comment) = text.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, rest)| rest)
        } else if text.starts_with('#') || text.starts_with("-- ") {
            text.split_once('\n').map_or("", |(_, rest)| rest)
        } else {
            return text;
        };
        text = rest.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_by_their_first_words() {
        for (text, expected) in [
            ("BEGIN", Statement::Begin),
            ("COMMIT", Statement::Commit),
            ("ROLLBACK", Statement::Rollback),
            ("ROLLBACK TO `s`", Statement::RollbackTo),
            ("SAVEPOINT `s`", Statement::Savepoint),
            ("XA START X'61',X'',1", Statement::XaStart),
            ("XA COMMIT X'61',X'',1", Statement::XaDecided { committed: true, xid: Some(xid(1, b"a", b"")) }),
            (
                "XA ROLLBACK X'4A',X'0aFF',-7",
                Statement::XaDecided { committed: false, xid: Some("X'4a',X'0aff',-7".into()) },
            ),
            ("XA COMMIT 'a'", Statement::XaDecided { committed: true, xid: None }),
            ("XA END X'61',X'',1", Statement::Savepoint),
            ("/* app */ insert into t values (1)", Statement::Write),
            ("-- x\nUPDATE t SET a=1", Statement::Write),
            ("/*!50000 DELETE */ FROM t", Statement::Write),
            ("WITH c AS (SELECT 1) DELETE FROM t", Statement::Write),
            ("CREATE TABLE t (a int)", Statement::Other),
            ("# Dummy event replacing", Statement::Other),
            ("", Statement::Other),
        ] {
            assert_eq!(classify(text), expected, "{text}");
        }
    }

    #[test]
    fn a_name_is_a_word_of_its_own() {
        for text in
            ["ALTER TABLE t ADD x int", "RENAME TABLE `T` TO u", "DROP TABLE a, d.t", "CREATE TABLE `d`.`t`(i int)"]
        {
            assert!(names(text, "t"), "{text}");
        }
        assert!(!names("ALTER TABLE tt ADD t_x int, ADD xt int", "t"));
        assert!(names("ALTER TABLE `a``b` DROP x", "a`b"));
    }

    #[test]
    fn system_versioning_is_noticed() {
        assert!(versions("ALTER TABLE `T` ADD SYSTEM VERSIONING", "t"));
        assert!(!versions("ALTER TABLE t DROP SYSTEM VERSIONING", "t"));
        assert!(!versions("ALTER TABLE u ADD SYSTEM VERSIONING", "t"));
    }

    #[test]
    fn the_table_of_a_truncate_is_read() {
        let table =
            |schema: Option<&str>, name: &str| Statement::Truncate(Some((schema.map(str::to_owned), name.to_owned())));
        assert_eq!(classify("truncate table `a``b` . `täble`"), table(Some("a`b"), "täble"));
        assert_eq!(classify("TRUNCATE /* x */ t"), table(None, "t"));
        assert_eq!(classify("TRUNCATE TABLE d.t;"), table(Some("d"), "t"));
        assert_eq!(classify("TRUNCATE `"), Statement::Truncate(None));
    }

    #[test]
    fn the_tables_that_a_statement_takes_away_are_read() {
        let name = |name: &str| (None, name.to_owned());
        let away = |from: &str, to: &str| Statement::Rename(vec![(name(from), name(to))]);
        for (text, expected) in [
            ("DROP TABLE `a`,d.b /* generated */", Statement::Drop(vec![name("a"), (Some("d".into()), "b".into())])),
            ("drop table if exists t", Statement::Drop(vec![name("t")])),
            ("DROP TEMPORARY TABLE t", Statement::Other),
            ("DROP INDEX i ON t", Statement::Other),
            ("CREATE OR REPLACE TABLE t (a int)", Statement::Drop(vec![name("t")])),
            (
                "RENAME TABLE a TO b, c NOWAIT TO a",
                Statement::Rename(vec![(name("a"), name("b")), (name("c"), name("a"))]),
            ),
            ("ALTER TABLE a RENAME b", away("a", "b")),
            ("alter table a add x int default 'RENAME y', rename = `b`", away("a", "b")),
            ("ALTER ONLINE TABLE IF EXISTS a RENAME TO b", away("a", "b")),
            ("ALTER TABLE a RENAME COLUMN x TO y, RENAME KEY k TO l", Statement::Other),
            ("ALTER TABLE a ADD x int", Statement::Other),
            ("RENAME USER a TO b", Statement::Other),
            ("ALTER TABLE a COMMENT = 'x", Statement::Other),
        ] {
            assert_eq!(classify(text), expected, "{text}");
        }
    }

    #[test]
    fn messages_show_no_values() {
        assert_eq!(first_words("INSERT INTO t VALUES ('secret')"), "INSERT INTO t VALUES");
        assert_eq!(first_words("UPDATE t SET a='secret'"), "UPDATE t SET a");
    }
}
