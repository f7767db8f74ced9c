//! The front door: arguments, logging, runtime, exit code; a panic ends the process.

use std::process::ExitCode;

use anechoic::cli::{self, Arguments};
use anechoic::telemetry;
use clap::Parser;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start(arguments.log, arguments.log_default());
    telemetry::end_on_panic();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(arguments)),
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            ExitCode::FAILURE
        }
    }
}
