//! `anechoic demo`

use super::Outcome;
use crate::error::{Error, Result};

pub(super) async fn demo() -> Result<Outcome> {
    Err(Error::stop("this build has no demo", "make demo"))
}
