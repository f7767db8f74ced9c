//! The commands: what may be typed, what it prints, how it exits. Each command's file calls one
//! function of the library and prints what that returns.
//!
//! Exit codes: 0 done, 1 failed or found something, 2 usage or configuration; with 2 ends `check`,
//! too, where it found a configuration, server, grant or schema with which nothing may start.

mod check;
mod demo;
mod load;
mod run;
mod setup;
mod status;
mod teardown;
mod verify;
mod wait;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::error::Error;
use crate::finding::Finding;
use crate::telemetry::LogFormat;

/// Keeps the same business records in step across live databases, in every direction, without echoes.
#[derive(Debug, Parser)]
#[command(name = "anechoic", version)]
pub struct Arguments {
    /// The configuration
    #[arg(short, long, global = true, value_name = "FILE", default_value = "/etc/anechoic/anechoic.toml")]
    pub config: PathBuf,
    /// Form of the log on stderr; RUST_LOG says how much of it
    #[arg(long, global = true, value_enum, default_value = "human", value_name = "FORM")]
    pub log: LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent until SIGTERM; SIGHUP makes it read the configuration again
    Run,
    /// Ask every system what is missing, and say what mends it; writes nothing
    Check(CheckOptions),
    /// Create what the agent needs in the systems, and note where their logs stand
    Setup(Print),
    /// Remove from the systems what setup created
    Teardown(Print),
    /// Copy rows that were there before, and bring filled systems into step, while everybody writes
    Load(LoadOptions),
    /// Compare what all systems hold, while everybody writes; exits 0 same, 1 different, 2 trouble
    Verify(VerifyOptions),
    /// Return when everything committed before the call is applied everywhere
    Wait(WaitOptions),
    /// Show what the running agent does
    Status(Print),
    /// Private throw-away servers, live traffic, and the agent between them
    Demo(DemoOptions),
}

#[derive(Debug, Args)]
pub struct Print {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Only print the grants that the agent's role needs in each system; connects nowhere
    #[arg(long)]
    pub grants: bool,
}

#[derive(Debug, Args)]
pub struct WaitOptions {
    /// How long to wait at most
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LoadOptions {
    /// Entities; all that have a key where none is named
    #[arg(value_name = "ENTITY")]
    pub entities: Vec<String>,
    /// Whose rows count; by default the first system that writes the entity
    #[arg(long, value_name = "SYSTEM")]
    pub from: Option<String>,
    /// The position in that system's log is lost: make a new one, and bring it into step by difference
    #[arg(long, value_name = "SYSTEM", conflicts_with_all = ["entities", "from", "dry_run", "only_missing", "max_rate", "parallel"])]
    pub resync: Option<String>,
    /// With --resync: its tables are from a backup, and may lack what was written there since
    #[arg(long, requires = "resync")]
    pub restored: bool,
    /// Count what is equal, different and missing, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Create what is missing, and leave rows that differ as they are
    #[arg(long)]
    pub only_missing: bool,
    /// Delete what only the systems below the authority have; with --resync what only the others have
    #[arg(long)]
    pub delete_extra: bool,
    /// Rows read per second at most: 2000, or "2000 rows/s"
    #[arg(long, value_name = "ROWS", value_parser = rate)]
    pub max_rate: Option<u64>,
    /// Chunks that are read at once, while those before are compared and journaled; 3 where absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub parallel: Option<u8>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// Entities; all that have a key where none is named
    #[arg(value_name = "ENTITY")]
    pub entities: Vec<String>,
    /// Compare only so many of the rows, chosen by key
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub sample: Option<f64>,
    /// Bring the others to the authority's rows, through the journal
    #[arg(long)]
    pub repair: bool,
    /// Show the values that differ
    #[arg(long)]
    pub values: bool,
    /// Rows read per second at most: 2000, or "2000 rows/s"
    #[arg(long, value_name = "ROWS", value_parser = rate)]
    pub max_rate: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn rate(text: &str) -> Result<u64, String> {
    crate::config::units::rate(text).ok_or_else(|| format!("{text:?} is no rate such as 2000 or \"2000 rows/s\""))
}

/// Entities without a key are not among those that are meant where none is named.
fn tell_of_keyless(config: &Config, named: &[String]) {
    for entity in config.entities.iter().filter(|entity| entity.key.is_empty() && named.is_empty()) {
        complain(&format!(
            "{}: has no key, so its rows cannot be told apart: neither loaded nor compared, only streamed",
            entity.name
        ));
    }
}

/// `10%` or `10`.
fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| format!("{text:?} is no percentage"))?;
    if number > 0.0 && number <= 100.0 { Ok(number) } else { Err("a percentage above 0 and up to 100".into()) }
}

#[derive(Debug, Args)]
pub struct DemoOptions {
    /// End by itself after so long; until Ctrl-C where absent
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub duration: Option<Duration>,
}

impl Arguments {
    /// What is logged where RUST_LOG is silent: commands that print keep quiet.
    pub fn log_default(&self) -> &'static str {
        match self.command {
            Command::Run | Command::Demo(_) => "info",
            _ => "warn",
        }
    }
}

/// How a command ended, where nothing kept it from its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Failed, or found something.
    Found,
    /// What was given, or what it names, cannot be worked with; or what was asked cannot be told.
    Broken,
}

pub async fn run(arguments: Arguments) -> ExitCode {
    // It brings its own configuration.
    if let Command::Demo(options) = &arguments.command {
        return exit(demo::demo(options).await);
    }
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(mistakes) => {
            if let Command::Check(CheckOptions { json: true, .. }) = &arguments.command {
                check::mistaken(&mistakes);
                return ExitCode::from(2);
            }
            mistakes.iter().for_each(|mistake| complain(&mistake.to_string()));
            return ExitCode::from(2);
        }
    };
    exit(match arguments.command {
        Command::Run => run::run(config, arguments.config).await,
        Command::Check(options) => check::check(&config, &options).await,
        Command::Setup(print) => setup::setup(&config, &print).await,
        Command::Teardown(print) => teardown::teardown(&config, &print).await,
        Command::Load(options) => load::load(&config, options).await,
        // Whatever keeps it from telling is trouble, not a difference.
        Command::Verify(options) => verify::verify(&config, options).await.or_else(|error| {
            complain(&Finding::of("", &error).to_string());
            Ok(Outcome::Broken)
        }),
        Command::Wait(options) => wait::wait(&config, &options).await,
        Command::Status(print) => status::status(&config, &print).await,
        Command::Demo(_) => unreachable!("handled above"),
    })
}

fn exit(result: Result<Outcome, Error>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::FAILURE,
        Ok(Outcome::Broken) => ExitCode::from(2),
        Err(error) => {
            complain(&Finding::of("", &error).to_string());
            ExitCode::FAILURE
        }
    }
}

/// Prints to stdout; a reader that has gone away is nobody's trouble.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn print_json(value: &impl serde::Serialize) {
    print(&serde_json::to_string_pretty(value).expect("reports are plain data"));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn configuration_and_log_form_may_stand_on_either_side_of_the_command() {
        let before = parse("anechoic -c a.toml --log json run").unwrap();
        let after = parse("anechoic run -c a.toml --log json").unwrap();

        for arguments in [before, after] {
            assert_eq!(arguments.config, PathBuf::from("a.toml"));
            assert_eq!(arguments.log, LogFormat::Json);
        }
        assert_eq!(parse("anechoic run").unwrap().config, PathBuf::from("/etc/anechoic/anechoic.toml"));
    }

    #[test]
    fn wait_takes_a_duration_and_has_a_default() {
        let timeout = |line: &str| match parse(line).unwrap().command {
            Command::Wait(options) => options.timeout,
            other => panic!("{other:?}"),
        };

        assert_eq!(timeout("anechoic wait"), Duration::from_secs(60));
        assert_eq!(timeout("anechoic wait --timeout 5m"), Duration::from_secs(300));
    }

    #[test]
    fn a_wrong_command_line_exits_with_2() {
        let lines = [
            "anechoic",
            "anechoic dance",
            "anechoic wait --timeout soon",
            "anechoic run --json",
            "anechoic load --parallel 0",
            "anechoic load --resync shop --parallel 2",
        ];
        for line in lines {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[tokio::test]
    async fn a_wrong_configuration_exits_with_2() {
        let missing = parse("anechoic -c /nowhere/anechoic.toml status").unwrap();

        assert_eq!(format!("{:?}", run(missing).await), format!("{:?}", ExitCode::from(2)));
    }
}
