//! Route and map: table rows become canonical changes, canonical rows become table rows.

pub mod binding;
pub mod filter;
pub mod resolve;
pub mod transform;
