//! How long an answer is waited for: as long as the server is seen to work at it.
//!
//! A statement may take minutes, and a connection may die without a word; TCP tells neither
//! apart, least of all through a proxy. So when an answer is late, the server is asked over a
//! connection of its own. What it cannot say within that connection's timeout, or says it is
//! not doing, will not be answered any more.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Error, Result};

/// What the server says a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtWork {
    Yes,
    /// It waits for us, and has for a while.
    Idle,
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Then the server is asked; and again after as much.
    late: Duration,
    /// For the server to say.
    says: Duration,
    /// For an answer that was on its way while the server was asked.
    grace: Duration,
}

const PACE: Pace = Pace { late: Duration::from_secs(10), says: Duration::from_secs(20), grace: Duration::from_secs(2) };

/// The answer of `work`; an error when there will be none: the session is of no use then.
pub async fn answered<T, F>(work: impl Future<Output = T>, at_work: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<AtWork>>,
{
    answered_at(PACE, work, at_work).await
}

async fn answered_at<T, F>(pace: Pace, work: impl Future<Output = T>, at_work: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<AtWork>>,
{
    let Pace { late, says, grace } = pace;
    let mut work = pin!(work);
    loop {
        if let Ok(answer) = timeout(late, &mut work).await {
            return Ok(answer);
        }
        let asked = tokio::select! {
            answer = &mut work => return Ok(answer),
            asked = timeout(says, at_work()) => asked,
        };
        let silent = || Error::retry(format!("no answer for {} s", late.as_secs()));
        let why = match asked {
            Ok(Ok(AtWork::Yes)) => continue,
            // It answers, if only to turn us away: nothing is known about the session.
            Ok(Err(error)) if error.code.is_some() => continue,
            Ok(Ok(AtWork::Idle)) => Error::retry("an answer was lost: the server waits for us"),
            Ok(Ok(AtWork::Gone)) => Error::retry("an answer was lost: the server has ended the session"),
            Ok(Err(error)) => silent().because(error),
            Err(_) => silent(),
        };
        return timeout(grace, work).await.map_err(|_| why);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const SHORT: Pace =
        Pace { late: Duration::from_millis(20), says: Duration::from_millis(500), grace: Duration::from_millis(5) };

    async fn after(millis: u64) -> u8 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        7
    }

    #[tokio::test]
    async fn a_server_that_works_is_waited_for() {
        let full = || ready(Err(Error::retry("too many clients").code("53300")));

        assert_eq!(answered_at(SHORT, after(200), || ready(Ok(AtWork::Yes))).await.unwrap(), 7);
        assert_eq!(answered_at(SHORT, after(200), full).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_works_at_is_given_up() {
        for said in [AtWork::Idle, AtWork::Gone] {
            assert!(answered_at(SHORT, pending::<()>(), || ready(Ok(said))).await.is_err());
        }
        let error = answered_at(SHORT, pending::<()>(), || ready(Err(Error::retry("no route")))).await.unwrap_err();
        assert_eq!(error.full(), "no answer for 0 s: no route");
        assert!(answered_at(SHORT, pending::<()>(), pending).await.is_err());
    }

    #[tokio::test]
    async fn an_answer_that_comes_while_the_server_is_asked_counts() {
        let asked = || async {
            after(300).await;
            Ok(AtWork::Gone)
        };

        assert_eq!(answered_at(SHORT, after(100), asked).await.unwrap(), 7);
    }
}
