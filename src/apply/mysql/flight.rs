//! Several statements in one packet: one round trip for a whole transaction.
//!
//! The server runs them in order and stops at the first error, so the number of answers tells
//! which statement failed, and a COMMIT at the end is reached only when nothing before it did.

use std::sync::Arc;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use crate::catalog::Table;

/// What a statement of a flight was.
#[derive(Debug, Clone)]
pub enum Part {
    /// Transaction control.
    Command,
    Marker,
    Rows(Arc<Table>),
}

/// Statements to be sent together.
#[derive(Debug, Default)]
pub struct Packet {
    pub text: Vec<u8>,
    pub parts: Vec<Part>,
}

impl Packet {
    pub fn add(&mut self, part: Part, statement: &[u8]) {
        if !self.text.is_empty() {
            self.text.push(b';');
        }
        self.text.extend_from_slice(statement);
        self.parts.push(part);
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub fn has_rows(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Rows(_)))
    }
}

pub type Outcome = Result<(), (Part, mysql_async::Error)>;

/// Sends the packet and reads all answers.
pub async fn run(conn: &mut Conn, packet: Packet) -> Outcome {
    let Packet { text, parts } = packet;
    let mut answered = 0;
    let result = async {
        let mut answers = conn.query_iter(text).await?;
        answered = 1;
        while !answers.is_empty() {
            answers.for_each(drop).await?;
            answered += 1;
        }
        // The driver keeps the error of a later statement back until it is asked for more.
        answers.drop_result().await.inspect_err(|_| answered -= 1)
    }
    .await;
    match result {
        Err(error) => Err((parts.get(answered).cloned().unwrap_or(Part::Command), error)),
        Ok(()) if answered < parts.len() => {
            let lost = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the answers ended early");
            Err((parts[answered].clone(), mysql_async::Error::Io(lost.into())))
        }
        Ok(()) => Ok(()),
    }
}
