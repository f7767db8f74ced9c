//! anechoic keeps the same business records in step across live databases, in every
//! direction, and never answers its own writes.
//!
//! ```text
//! system's log ─▶ capture ─▶ normalize ─▶ admit ─▶ JOURNAL ─▶ apply ─▶ other systems' tables
//!  (WAL, binlog)   decode     binding,     conflicts  one order,  batch,   one transaction:
//!                  drop       filter,      policy     fsync       map,     marker + rows
//!                  echoes     map                     seq         write
//!                    ▲                                                        │
//!                    └───────────── the marker comes back in the log ─────────┘
//! ```
//!
//! The modules follow that way: nouns first, then the stages in the order in which a row
//! meets them, then what watches over them. Stages know the nouns and at most the journal,
//! never each other; `agent` alone sees both ends.

pub mod error;
pub mod failpoint;
pub mod file;
pub mod finding;
pub mod value;
pub mod charset;
pub mod position;
pub mod schema;
pub mod rules;
pub mod catalog;
pub mod change;
pub mod marker;
pub mod status;
pub mod load;

pub mod config;
pub mod connect;
pub mod capture;
pub mod normalize;
pub mod admit;
pub mod journal;
pub mod apply;
pub mod scan;
pub mod audit;

pub mod agent;

pub mod check;
pub mod setup;
pub mod control;
pub mod http;
pub mod webhook;
pub mod alert;
pub mod feed;
pub mod telemetry;
pub mod notify;
pub mod shutdown;
pub mod cli;
pub mod demo;
