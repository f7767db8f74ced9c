//! What the port has of the socket: lists for everybody who can reach it; row values, and what
//! changes something, for those who have the token.
//!
//! | request | asks |
//! |---|---|
//! | `GET /quarantine`, `?values=true` with the token | what is held, with both images |
//! | `GET /conflicts`, `?open=true&entity=…&limit=…` | the newest, without values |
//! | `GET /conflicts/ID`, with the token | one, with both images |
//! | `POST /conflicts/ID/resolve` `{"take": …}`, `{"set": {…}}` | a person's decision |
//! | `POST /quarantine/retry`, `/quarantine/drop` `{"system": …, "entity": …, "key": …}` | what is held, tried or given up |
//! | `POST /systems/NAME/pause`, `/systems/NAME/resume` | one system stands still, and goes on |
//! | `POST /entities/NAME/load` | a refresh from its authority |
//! | `POST /reload` | the file, read again |
//!
//! `Authorization: Bearer TOKEN`. The token is read at each request, so that it can be changed
//! without a restart. Every answer is JSON; what failed is `{"error": …, "hint": …}`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody, to_bytes};
use axum::extract::{Path, Query, Request as Asked, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::{Answer, Client, HeldSpec, Request};
use crate::audit::conflicts::ListSpec;
use crate::audit::resolve::Choice;
use crate::config::{AgentConfig, Config, PasswordSource};
use crate::connect::secret;
use crate::error::{Error, Result};
use crate::http::{Connection, Refusal, Token};
use crate::load::LoadSpec;

/// A guess costs as much.
const WRONG_TOKEN_TAKES: Duration = Duration::from_millis(500);
/// An agent that makes its flows anew answers a little later.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// More than any row that a person writes.
const BODY_MAX: usize = 2 << 20;
const BODY_WITHIN: Duration = Duration::from_secs(30);
const CONFLICTS_SHOWN: usize = 50;
const CONFLICTS_MAX: usize = 1000;

struct Bridge {
    data_dir: PathBuf,
    token_file: Option<PathBuf>,
    /// The one that is being answered.
    wrong_tokens: Mutex<()>,
}

/// Routes beside those that tell how the agent is.
pub fn routes(config: &Config) -> Router {
    let AgentConfig { data_dir, token_file, .. } = config.agent.clone();
    let bridge = Arc::new(Bridge { data_dir, token_file, wrong_tokens: Mutex::default() });
    let with_token = Router::new()
        .route("/conflicts/{id}", get(conflict))
        .route("/conflicts/{id}/resolve", post(resolve))
        .route("/quarantine/retry", post(retry))
        .route("/quarantine/drop", post(give_up))
        .route("/systems/{name}/pause", post(pause))
        .route("/systems/{name}/resume", post(resume))
        .route("/entities/{name}/load", post(load))
        .route("/reload", post(reload))
        .route_layer(from_fn_with_state(bridge.clone(), authorized));
    Router::new()
        .route("/quarantine", get(quarantine))
        .route("/conflicts", get(conflicts))
        .merge(with_token)
        .with_state(bridge)
}

type Shared = State<Arc<Bridge>>;

type Answered = std::result::Result<Response, Refusal>;

impl Bridge {
    async fn ask(&self, request: Request) -> std::result::Result<Answer, Refusal> {
        let exchange = async {
            let agent = Client::connect(&self.data_dir).await?;
            agent.ok_or_else(|| Error::retry("the agent is just starting or stopping"))?.ask(&request).await
        };
        match tokio::time::timeout(ANSWERED_WITHIN, exchange).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, Error::retry("the agent does not answer"))),
        }
    }

    /// For what is begun or done, and shows in the status.
    async fn tell(&self, request: Request) -> Answered {
        match self.ask(request).await? {
            Answer::Told => Ok(Json(serde_json::json!({})).into_response()),
            Answer::Treated(treated) => Ok(Json(treated).into_response()),
            Answer::Loading => Ok((StatusCode::ACCEPTED, Json(serde_json::json!({}))).into_response()),
            _ => Err(unexpected()),
        }
    }

    async fn authorize(&self, headers: &HeaderMap, from: &Connection) -> std::result::Result<(), Refusal> {
        let Some(file) = &self.token_file else {
            let error = Error::stop(
                "nothing can be changed here: there is no token",
                "write one into a file, and name it in [agent]: token_file = \"…\"",
            );
            return Err(Refusal(StatusCode::FORBIDDEN, error));
        };
        let expected = token(file).map_err(|error| Refusal(StatusCode::SERVICE_UNAVAILABLE, error))?;
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().trim();
        if !given.is_empty() {
            // Hashes take as long to compare wherever they differ.
            match from.token(Sha256::digest(given) == Sha256::digest(&expected)) {
                Token::Right => return Ok(()),
                Token::Ignored => return Err(Refusal::too_many("too many wrong tokens from this address")),
                Token::Wrong => {}
            }
            // One after the other: many at once are not faster, and the log is not filled by them.
            let _turn = self.wrong_tokens.lock().await;
            tokio::time::sleep(WRONG_TOKEN_TAKES).await;
            tracing::warn!(from = %from.address(), "a request with a wrong token was refused");
        }
        let hint = "send it as Authorization: Bearer TOKEN";
        Err(Refusal(StatusCode::UNAUTHORIZED, Error::stop("the token is missing or wrong", hint)))
    }
}

/// Before anything of the request is read that could be large, or slow to come.
async fn authorized(
    State(bridge): Shared,
    Extension(from): Extension<Arc<Connection>>,
    request: Asked,
    next: Next,
) -> Answered {
    bridge.authorize(request.headers(), &from).await?;
    let (parts, body) = request.into_parts();
    let too_large = || Refusal(StatusCode::PAYLOAD_TOO_LARGE, Error::stop("the request is larger than 2 MiB", ""));
    // Where it says so beforehand, nobody waits for it.
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(too_large());
    }
    let Ok(body) = tokio::time::timeout(BODY_WITHIN, to_bytes(body, BODY_MAX)).await else {
        let error = Error::stop(format!("the request has not arrived whole within {BODY_WITHIN:?}"), "");
        return Err(Refusal(StatusCode::REQUEST_TIMEOUT, error));
    };
    // Who broke it off does not read the answer.
    let body = body.map_err(|_| too_large())?;
    Ok(next.run(Asked::from_parts(parts, body.into())).await)
}

fn token(file: &std::path::Path) -> Result<String> {
    let source = PasswordSource::File(file.to_owned());
    let token = secret::password(&source)?.unwrap_or_default().trim().to_owned();
    match token.is_empty() {
        true => Err(Error::retry(format!("the token file {} is empty", file.display()))),
        false => Ok(token),
    }
}

fn unexpected() -> Refusal {
    Error::stop("the agent answered something else", "restart the agent after an upgrade").into()
}

#[derive(Deserialize)]
struct Values {
    #[serde(default)]
    values: bool,
}

async fn quarantine(
    State(bridge): Shared,
    Extension(from): Extension<Arc<Connection>>,
    Query(asked): Query<Values>,
    headers: HeaderMap,
) -> Answered {
    if asked.values {
        bridge.authorize(&headers, &from).await?;
    }
    let Answer::Quarantine { mut held } = bridge.ask(Request::Quarantine).await? else { return Err(unexpected()) };
    if !asked.values {
        held.iter_mut().for_each(|held| (held.before, held.after) = (None, None));
    }
    Ok(Json(held).into_response())
}

#[derive(Deserialize)]
struct Listed {
    entity: Option<String>,
    #[serde(default)]
    open: bool,
    limit: Option<usize>,
}

async fn conflicts(State(bridge): Shared, Query(asked): Query<Listed>) -> Answered {
    let Listed { entity, open, limit } = asked;
    let limit = limit.unwrap_or(CONFLICTS_SHOWN).min(CONFLICTS_MAX);
    match bridge.ask(Request::Conflicts(ListSpec { entity, open, limit })).await? {
        Answer::Conflicts { conflicts } => Ok(Json(conflicts).into_response()),
        _ => Err(unexpected()),
    }
}

async fn conflict(State(bridge): Shared, Path(id): Path<String>) -> Answered {
    match bridge.ask(Request::Conflict { id }).await? {
        Answer::Conflict(shown) => Ok(Json(shown).into_response()),
        _ => Err(unexpected()),
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    take: Option<String>,
    #[serde(default)]
    set: BTreeMap<String, Option<String>>,
}

async fn resolve(State(bridge): Shared, Path(id): Path<String>, body: Bytes) -> Answered {
    let Decision { take, set } = read(&body)?;
    match bridge.ask(Request::Resolve(Choice { id, take, set: set.into_iter().collect() })).await? {
        Answer::Resolved(resolved) => Ok(Json(resolved).into_response()),
        _ => Err(unexpected()),
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refresh {
    from: Option<String>,
    #[serde(default)]
    only_missing: bool,
}

async fn load(State(bridge): Shared, Path(name): Path<String>, body: Bytes) -> Answered {
    let Refresh { from, only_missing } = read(&body)?;
    let spec = LoadSpec { entities: vec![name], from, only_missing, ..LoadSpec::default() };
    bridge.tell(Request::Load(spec)).await
}

async fn retry(State(bridge): Shared, body: Bytes) -> Answered {
    let request = Request::Retry(read(&body)?);
    bridge.tell(request).await
}

async fn give_up(State(bridge): Shared, body: Bytes) -> Answered {
    let spec: HeldSpec = read(&body)?;
    if spec == HeldSpec::default() {
        let error = Error::stop("what is to be given up is not named", "name system, entity and key, or some of them");
        return Err(Refusal(StatusCode::BAD_REQUEST, error));
    }
    bridge.tell(Request::Drop(spec)).await
}

async fn pause(State(bridge): Shared, Path(system): Path<String>) -> Answered {
    bridge.tell(Request::Pause { system }).await
}

async fn resume(State(bridge): Shared, Path(system): Path<String>) -> Answered {
    bridge.tell(Request::Resume { system }).await
}

async fn reload(State(bridge): Shared) -> Answered {
    bridge.tell(Request::Reload).await
}

/// An empty body is an empty object.
fn read<T: Default + for<'a> Deserialize<'a>>(body: &[u8]) -> std::result::Result<T, Refusal> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        let error = Error::stop(format!("the request is not understood: {error}"), "");
        Refusal(StatusCode::BAD_REQUEST, error)
    })
}
