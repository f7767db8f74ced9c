//! The front door: arguments, logging, runtime, exit code; a panic ends the process.
#![allow(clippy::print_stderr)] // where there is no log yet

use std::process::ExitCode;

use anechoic::cli::{self, Arguments};
use anechoic::telemetry;
use clap::Parser;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = telemetry::start(arguments.log, arguments.log_file.as_deref(), arguments.log_default()) {
        let file = arguments.log_file.unwrap_or_default();
        eprintln!("cannot write the log file {}: {error}", file.display());
        return ExitCode::from(2);
    }
    telemetry::end_on_panic();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(arguments)),
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            ExitCode::FAILURE
        }
    }
}
