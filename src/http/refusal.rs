//! What a request comes to instead of an answer: `{"error": …, "hint": …}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;

use crate::error::Error;

#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub Error);

impl Refusal {
    /// For what is too much; a second later it is not.
    pub fn too_many(message: &str) -> Self {
        Refusal(StatusCode::TOO_MANY_REQUESTS, Error::stop(message, "ask again a second later, and less often"))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal(StatusCode::CONFLICT, error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Said {
            error: String,
            #[serde(skip_serializing_if = "String::is_empty")]
            hint: String,
        }
        let Refusal(code, Error { message, hint, .. }) = self;
        let mut response = (code, Json(Said { error: message, hint })).into_response();
        if code == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
