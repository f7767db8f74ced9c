//! `anechoic demo`

use super::{DemoOptions, Outcome};
use crate::demo;
use crate::error::Result;

pub(super) async fn demo(options: &DemoOptions) -> Result<Outcome> {
    demo::run(demo::Options { duration: options.duration }).await?;
    Ok(Outcome::Done)
}
