//! `SHOW GRANTS`, read: what the current user may do where.
//!
//! Both servers list active roles' privileges among the user's own. Lines that are not
//! understood grant nothing; the password hash that MariaDB prints is never kept.

use std::collections::BTreeSet;

use crate::catalog::TableName;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Privileges {
    grants: Vec<Grant>,
    /// MySQL's partial revokes: database pattern and privilege.
    revokes: Vec<Grant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    scope: Scope,
    /// On the whole scope.
    whole: BTreeSet<String>,
    /// On some columns only.
    columns: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    Global,
    /// A LIKE pattern: `_` and `%` unless escaped.
    Database(String),
    Table(TableName),
}

/// How far a privilege on a table goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    None,
    SomeColumns,
    Whole,
}

impl Privileges {
    pub fn parse(lines: &[String]) -> Self {
        let mut privileges = Privileges::default();
        for line in lines {
            if let Some(grant) = parse_line(line, "GRANT ", " TO ") {
                privileges.grants.push(grant);
            } else if let Some(revoke) = parse_line(line, "REVOKE ", " FROM ") {
                privileges.revokes.push(revoke);
            }
        }
        privileges
    }

    /// On everything: REPLICATION SLAVE and its like.
    pub fn global(&self, privilege: &str) -> bool {
        self.grants.iter().any(|g| g.scope == Scope::Global && g.has(privilege))
    }

    pub fn database(&self, database: &str, privilege: &str) -> bool {
        self.grants.iter().any(|g| match &g.scope {
            Scope::Global => g.has(privilege) && !self.revoked(database, privilege),
            Scope::Database(pattern) => like(pattern, database) && g.has(privilege),
            Scope::Table(_) => false,
        })
    }

    pub fn table(&self, table: &TableName, privilege: &str) -> Extent {
        if self.database(&table.schema, privilege) {
            return Extent::Whole;
        }
        let on_table = self.grants.iter().filter(|g| matches!(&g.scope, Scope::Table(name) if same(name, table)));
        on_table
            .map(|g| match (g.has(privilege), g.columns.contains(privilege)) {
                (true, _) => Extent::Whole,
                (false, true) => Extent::SomeColumns,
                (false, false) => Extent::None,
            })
            .max()
            .unwrap_or(Extent::None)
    }

    fn revoked(&self, database: &str, privilege: &str) -> bool {
        self.revokes.iter().any(|r| matches!(&r.scope, Scope::Database(p) if like(p, database)) && r.has(privilege))
    }
}

impl Grant {
    fn has(&self, privilege: &str) -> bool {
        self.whole.contains(privilege) || self.whole.contains("ALL PRIVILEGES")
    }
}

/// Where lower_case_table_names folds, the server lists names folded.
fn same(a: &TableName, b: &TableName) -> bool {
    a.schema.eq_ignore_ascii_case(&b.schema) && a.name.eq_ignore_ascii_case(&b.name)
}

/// `GRANT SELECT, UPDATE (`a`, `b`) ON `db`.`t` TO …`
fn parse_line(line: &str, verb: &str, to: &str) -> Option<Grant> {
    let rest = line.strip_prefix(verb)?;
    let (list, rest) = split_outside_quotes(rest, " ON ")?;
    let (object, _) = split_outside_quotes(rest, to)?;
    let (mut whole, mut columns) = (BTreeSet::new(), BTreeSet::new());
    for item in items(list) {
        match item.split_once('(') {
            Some((name, _)) => columns.insert(name.trim().to_ascii_uppercase()),
            None => whole.insert(item.trim().to_ascii_uppercase()),
        };
    }
    let object = object.strip_prefix("TABLE ").unwrap_or(object);
    Some(Grant { scope: scope(object)?, whole, columns })
}

fn scope(object: &str) -> Option<Scope> {
    if object == "*.*" {
        return Some(Scope::Global);
    }
    let (schema, name) = split_outside_quotes(object, ".")?;
    let schema = unquoted(schema)?;
    Some(match name {
        "*" => Scope::Database(schema),
        name => Scope::Table(TableName { schema, name: unquoted(name)? }),
    })
}

/// Splits at commas that are not inside parentheses or quotes.
fn items(list: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut start, mut items) = (0, false, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '`' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    items
}

fn split_outside_quotes<'a>(text: &'a str, at: &str) -> Option<(&'a str, &'a str)> {
    let mut quoted = false;
    for (i, c) in text.char_indices() {
        if c == '`' {
            quoted = !quoted;
        }
        if !quoted && text[i..].starts_with(at) {
            return Some((&text[..i], &text[i + at.len()..]));
        }
    }
    None
}

fn unquoted(name: &str) -> Option<String> {
    Some(name.strip_prefix('`')?.strip_suffix('`')?.replace("``", "`"))
}

/// The server's pattern for databases; `\_` is an underscore. Without regard to case: the
/// server has decided that when it granted.
fn like(pattern: &str, name: &str) -> bool {
    fn matches(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['%', rest @ ..], name) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
            (['\\', c, rest @ ..], [n, names @ ..]) => c.eq_ignore_ascii_case(n) && matches(rest, names),
            (['_', rest @ ..], [_, names @ ..]) => matches(rest, names),
            ([c, rest @ ..], [n, names @ ..]) => c.eq_ignore_ascii_case(n) && matches(rest, names),
            _ => false,
        }
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    matches(&pattern, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privileges(lines: &[&str]) -> Privileges {
        Privileges::parse(&lines.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn table(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.into(), name: name.into() }
    }

    #[test]
    fn what_mysql_prints() {
        let p = privileges(&[
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO `ag`@`%`",
            "GRANT SELECT ON `sh\\_op`.* TO `ag`@`%`",
            "GRANT INSERT, UPDATE (`b`, `c`) ON `sh_op`.`t` TO `ag`@`%`",
            "GRANT `rr`@`%` TO `ag`@`%`",
        ]);

        assert!(p.global("REPLICATION SLAVE") && p.global("REPLICATION CLIENT") && !p.global("SUPER"));
        assert_eq!(p.table(&table("sh_op", "t"), "SELECT"), Extent::Whole);
        assert_eq!(p.table(&table("shXop", "t"), "SELECT"), Extent::None);
        assert_eq!(p.table(&table("sh_op", "t"), "INSERT"), Extent::Whole);
        assert_eq!(p.table(&table("sh_op", "t"), "UPDATE"), Extent::SomeColumns);
        assert_eq!(p.table(&table("sh_op", "t"), "DELETE"), Extent::None);
    }

    #[test]
    fn what_mariadb_prints_roles_included() {
        let p = privileges(&[
            "GRANT `rr` TO `ag`@`%`",
            "GRANT BINLOG MONITOR ON *.* TO `ag`@`%` IDENTIFIED BY PASSWORD '*D8'",
            "GRANT ALL PRIVILEGES ON `we``ird ON x`.* TO `rr`",
            "SET DEFAULT ROLE `rr` FOR `ag`@`%`",
        ]);

        assert!(p.global("BINLOG MONITOR"));
        assert_eq!(p.table(&table("we`ird ON x", "t"), "DELETE"), Extent::Whole);
    }

    #[test]
    fn a_partial_revoke_takes_a_database_out_of_a_global_grant() {
        let p = privileges(&["GRANT SELECT ON *.* TO `ag`@`%`", "REVOKE SELECT ON `hr`.* FROM `ag`@`%`"]);

        assert_eq!(p.table(&table("shop", "t"), "SELECT"), Extent::Whole);
        assert_eq!(p.table(&table("hr", "t"), "SELECT"), Extent::None);
    }

    #[test]
    fn database_names_are_patterns() {
        assert!(like("shop%", "shop_eu") && like("sh_p", "shop") && !like("sh\\_p", "shop") && like("sh\\_p", "sh_p"));
    }
}
