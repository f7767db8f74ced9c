//! Statements sent together and answered together: one round trip for a whole transaction.
//!
//! The driver sends a request when its future is first polled; so all are polled once, in
//! order, and then awaited one after the other. After the first failure the server answers
//! every further statement of the transaction with 25P02 and COMMIT with ROLLBACK, hence the
//! first error is the one that counts, and a commit is only believed when nothing before it
//! has failed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::value::Array;
use crate::catalog::TableName;

/// One request of a flight.
pub enum Step {
    /// BEGIN, COMMIT, savepoints.
    Command(&'static str),
    Marker {
        statement: Statement,
        parameters: MarkerParameters,
    },
    Rows {
        statement: Statement,
        parameters: Arc<Vec<Array>>,
        table: Arc<crate::catalog::Table>,
    },
}

pub struct MarkerParameters {
    pub agent: String,
    pub lane: i32,
    pub numbers: [i64; 5],
    pub journal: String,
    pub origin: String,
    pub txid: String,
}

impl MarkerParameters {
    fn list(&self) -> [&(dyn ToSql + Sync); 10] {
        let [epoch, seq, part, next_seq, next_part] = &self.numbers;
        [&self.agent, &self.lane, epoch, seq, part, &self.journal, next_seq, next_part, &self.origin, &self.txid]
    }
}

/// Which request failed.
pub enum Failed {
    Command,
    Marker,
    Rows(TableName),
}

pub type Outcome = Result<(), (Failed, tokio_postgres::Error)>;

/// A flight under way.
pub type Flight = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Sends the steps; the returned future ends with the answers.
pub async fn send(client: Arc<Client>, steps: Vec<Step>) -> Flight {
    let mut flight: Flight = Box::pin(run(client, steps));
    let early = std::future::poll_fn(|context| Poll::Ready(flight.as_mut().poll(context))).await;
    match early {
        Poll::Pending => flight,
        Poll::Ready(outcome) => Box::pin(std::future::ready(outcome)),
    }
}

async fn run(client: Arc<Client>, steps: Vec<Step>) -> Outcome {
    let mut requests: Vec<_> = steps.iter().map(|step| Box::pin(request(&client, step))).collect();
    let mut answers: Vec<Option<Result<(), tokio_postgres::Error>>> = requests.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (request, answer) in requests.iter_mut().zip(&mut answers) {
            if let Poll::Ready(result) = request.as_mut().poll(context) {
                *answer = Some(result);
            }
        }
        Poll::Ready(())
    })
    .await;
    let mut first = None;
    for ((request, answer), step) in requests.into_iter().zip(answers).zip(&steps) {
        let result = match answer {
            Some(result) => result,
            None => request.await,
        };
        if let Err(error) = result {
            let failed = match step {
                Step::Command(_) => Failed::Command,
                Step::Marker { .. } => Failed::Marker,
                Step::Rows { table, .. } => Failed::Rows(table.name.clone()),
            };
            first.get_or_insert((failed, error));
        }
    }
    first.map_or(Ok(()), Err)
}

async fn request(client: &Client, step: &Step) -> Result<(), tokio_postgres::Error> {
    match step {
        Step::Command(text) => client.batch_execute(text).await,
        Step::Marker { statement, parameters } => client.execute(statement, &parameters.list()).await.map(|_| ()),
        Step::Rows { statement, parameters, .. } => {
            let list: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
            client.execute(statement, &list).await.map(|_| ())
        }
    }
}
