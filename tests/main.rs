//! All integration tests, in one binary: real servers, one fresh database per test.
//!
//! `fixtures/servers.sh up` starts the servers; without them a test fails and says so.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test that cannot go on panics, and says why on stderr

mod support;

mod alerts;
mod alter;
mod answers;
mod apply;
mod backlog;
mod books;
mod capture_mysql;
mod capture_postgres;
mod catalogue;
mod checkpoint;
mod clash;
mod commit;
mod conflict;
mod connections;
mod crash;
mod dashboard;
mod decide;
mod demo;
mod echo;
mod fixtures;
mod history;
mod idle;
mod large;
mod leaks;
mod load;
mod login;
mod log_forms;
mod mapping;
mod matrix;
mod monitoring;
mod notifications;
mod operate;
mod origin;
mod outage;
mod package;
mod person;
mod policies;
mod port;
mod quarantine;
mod reload;
mod replicate;
mod restart;
mod resync;
mod service;
mod side_effects;
mod tables;
mod tls;
mod trail;
mod undo;
mod values;
mod verify;
mod wholeness;
mod xa;
