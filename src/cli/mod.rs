//! The commands: what may be typed, what it prints, how it exits. Each command's file calls one
//! function of the library and prints what that returns.
//!
//! Exit codes: 0 done, 1 failed or found something, 2 usage or configuration; with 2 ends `check`,
//! too, where it found a configuration, server, grant or schema with which nothing may start.

mod alert;
mod audit;
mod check;
mod conflicts;
mod demo;
mod generate;
mod history;
mod load;
mod person;
mod quarantine;
mod run;
mod setup;
mod status;
mod teardown;
mod undo;
mod verify;
mod wait;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::change::{ConflictId, Micros};
use crate::config::Config;
use crate::control::{Client, mask};
use crate::error::Error;
use crate::finding::Finding;
use crate::normalize::typed::typed;
use crate::status::now;
use crate::telemetry::LogFormat;
use crate::value::{Kind, Value};

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
    /// Log into this file instead: a new one each day, those before compressed, kept for 30 days
    #[arg(long, global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
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
    Status(StatusOptions),
    /// Neither read from a system nor write to it, until it is resumed; kept over restarts
    Pause(OneSystem),
    /// Let a paused system go on, from where it stood
    Resume(OneSystem),
    /// Have the running agent read its configuration again; says why where it is not taken
    Reload,
    /// Show the changes that a system refused; try them again, or give them up
    Quarantine(QuarantineOptions),
    /// Show what happened to one record: every version, who wrote it, and who has it since when
    History(HistoryOptions),
    /// Write out every operation on every record; or prove that nobody has altered the audit files
    Audit(AuditOptions),
    /// Show which changes met, and how that ended; decide those that wait for a person
    Conflicts(ConflictsOptions),
    /// Take transactions back in all systems: what they changed becomes what it was before them
    Undo(UndoOptions),
    /// Send a test event through the alerts of the configuration; exits 2 where one does not arrive
    Alert(AlertOptions),
    /// Private throw-away servers, live traffic, and the agent between them
    Demo(DemoOptions),
    /// Write the manual and the shells' completions into a directory; for who builds a package
    #[command(hide = true)]
    Generate(GenerateOptions),
}

#[derive(Debug, Args)]
pub struct GenerateOptions {
    /// Made where it is absent
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Print {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct AlertOptions {
    #[command(subcommand)]
    pub action: AlertAction,
}

#[derive(Debug, Subcommand)]
pub enum AlertAction {
    /// One try each, from here, whether the agent runs or not
    Test {
        /// Only this one
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct StatusOptions {
    /// Draw it again every second, with rates, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct OneSystem {
    /// As the configuration names it
    #[arg(value_name = "SYSTEM")]
    pub system: String,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct QuarantineOptions {
    #[command(subcommand)]
    pub action: Option<QuarantineAction>,
    #[command(flatten)]
    pub print: QuarantinePrint,
}

#[derive(Debug, Args)]
pub struct QuarantinePrint {
    /// Show the rows as they are to be, too
    #[arg(long)]
    pub values: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum QuarantineAction {
    /// Try now what waits for its time, or for a person who has mended what refused it
    Retry(WhichHeld),
    /// Give a change up: the system keeps the row that it has until somebody changes it again
    Drop(WhichHeld),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(["key", "all"]).required(true)))]
pub struct WhichHeld {
    /// The system that refuses it; without, all systems (--all)
    #[arg(value_name = "SYSTEM")]
    pub system: Option<String>,
    #[arg(value_name = "ENTITY", requires = "system")]
    pub entity: Option<String>,
    /// As the list shows it; of several fields: "7, DE"
    #[arg(value_name = "KEY", requires = "entity")]
    pub key: Option<String>,
    /// All, or of the system and the entity where they are named
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Only print the grants that the agent's role needs in each system
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
pub struct AuditOptions {
    /// From then on: 2026-01-31T12:00:00Z, or 30m ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Micros>,
    /// Until then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Micros>,
    /// Only of this entity
    #[arg(long, value_name = "ENTITY")]
    pub entity: Option<String>,
    /// Only what this system wrote; agent: what persons had the agent do
    #[arg(long, value_name = "SYSTEM")]
    pub system: Option<String>,
    #[arg(long, value_enum, value_name = "OPERATION")]
    pub op: Option<Operation>,
    #[arg(long, value_enum, default_value = "jsonl", value_name = "FORMAT")]
    pub format: AuditFormat,
    /// Prove that nobody has altered the files in [audit] dir
    #[arg(long, conflicts_with_all = ["since", "until", "entity", "system", "op", "format"])]
    pub check: bool,
    /// With --check: print JSON
    #[arg(long, requires = "check")]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    Insert,
    Update,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuditFormat {
    /// One JSON object per line.
    Jsonl,
    /// With a line of names; images are JSON.
    Csv,
}

#[derive(Debug, Args)]
pub struct HistoryOptions {
    #[arg(value_name = "ENTITY")]
    pub entity: String,
    /// The key's values, in its order
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    pub key: Vec<String>,
    /// The newest so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub limit: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ConflictsOptions {
    #[command(subcommand)]
    pub action: Option<ConflictsAction>,
    #[command(flatten)]
    pub list: ListOptions,
}

#[derive(Debug, Subcommand)]
pub enum ConflictsAction {
    /// The newest conflicts; what the command does where nothing else is named
    List(ListOptions),
    /// One conflict with both versions, who wrote them and when
    Show(ShowOptions),
    /// Decide a conflict that waits, in all systems
    Resolve(ResolveOptions),
}

#[derive(Debug, Args)]
pub struct ListOptions {
    /// Only of this entity
    #[arg(long, value_name = "ENTITY")]
    pub entity: Option<String>,
    /// Only those that wait for a person
    #[arg(long)]
    pub open: bool,
    /// The newest so many
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub limit: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShowOptions {
    /// As the list and the log name it: 1042.0
    #[arg(value_name = "ID")]
    pub id: ConflictId,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("decision").args(["take", "set", "set_null"]).required(true).multiple(true)))]
pub struct ResolveOptions {
    /// As the list and the log name it: 1042.0
    #[arg(value_name = "ID")]
    pub id: ConflictId,
    /// The version of this system stands
    #[arg(long, value_name = "SYSTEM")]
    pub take: Option<String>,
    /// A value of a person's own, on top of that version, or else of what is there
    #[arg(long, value_name = "FIELD=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// NULL in this field
    #[arg(long, value_name = "FIELD")]
    pub set_null: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(["tx", "since"]).required(true)))]
pub struct UndoOptions {
    /// The transaction, as its database and the log name it
    #[arg(long, value_name = "ID", conflicts_with_all = ["since", "until"])]
    pub tx: Option<String>,
    /// All that were committed in this system
    #[arg(long, value_name = "SYSTEM")]
    pub system: Option<String>,
    /// From then on: 2026-01-31T12:00:00Z, or 30m ago
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "system")]
    pub since: Option<Micros>,
    /// Until then
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "since")]
    pub until: Option<Micros>,
    /// Only rows of this entity
    #[arg(long, value_name = "ENTITY")]
    pub entity: Option<String>,
    /// Show what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Leave rows alone that others changed since, and take back the rest
    #[arg(long)]
    pub skip_changed: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (field, value) = text.split_once('=').ok_or("expected FIELD=VALUE")?;
    Ok((field.trim().to_owned(), value.to_owned()))
}

/// A time, UTC where it names no zone; or so long ago.
fn moment(text: &str) -> Result<Micros, String> {
    if let Some(Value::Timestamp(micros)) = typed(text, Kind::Timestamp, &mut Vec::new()) {
        return Ok(micros);
    }
    let ago = humantime::parse_duration(text.trim_end_matches(" ago"));
    let ago = ago.map_err(|_| format!("{text:?} is no time such as 2026-01-31T12:00:00Z or 30m"))?;
    Ok(now() - Micros::try_from(ago.as_micros()).map_err(|_| "that long ago nothing was".to_owned())?)
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
    // They need none, or bring their own.
    if let Command::Demo(options) = &arguments.command {
        return exit(demo::demo(options).await);
    }
    if let Command::Generate(options) = &arguments.command {
        return exit(generate::generate(options));
    }
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(mistakes) => {
            if let Command::Check(CheckOptions { json: true, .. }) = &arguments.command {
                check::mistaken(&mistakes);
                return ExitCode::from(2);
            }
            // Who is asked to take the file says itself, here and in its log, why it does not.
            if let Command::Reload = arguments.command
                && let Some(data_dir) = Config::data_dir_in(&arguments.config)
                && let Ok(Some(_)) = Client::connect(&data_dir).await
            {
                return exit(person::reload(&data_dir).await);
            }
            mistakes.iter().for_each(|mistake| complain(&mistake.to_string()));
            // An agent that runs goes on with what it had.
            if let Command::Status(options) = &arguments.command
                && let Some(data_dir) = Config::data_dir_in(&arguments.config)
            {
                complain("what the running agent works by is another file, or this one as it was:\n");
                return exit(status::without_file(&data_dir, options).await.map(|_| Outcome::Broken));
            }
            return ExitCode::from(2);
        }
    };
    mask::set(&config);
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
        Command::Status(options) => status::status(&config, &options).await,
        Command::Pause(of) => person::pause(&config, of.system, true).await,
        Command::Resume(of) => person::pause(&config, of.system, false).await,
        Command::Reload => person::reload(&config.agent.data_dir).await,
        Command::Quarantine(options) => quarantine::quarantine(&config, options).await,
        Command::Audit(options) => audit::audit(&config, options).await,
        Command::History(options) => history::history(&config, options).await,
        Command::Conflicts(options) => conflicts::conflicts(&config, options).await,
        Command::Undo(options) => undo::undo(&config, options).await,
        Command::Alert(AlertOptions { action: AlertAction::Test { name, json } }) => {
            alert::test(&config, name.as_deref(), json).await
        }
        Command::Demo(_) | Command::Generate(_) => unreachable!("handled above"),
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

/// A command that only a running agent can do.
fn nobody(what: &str) -> Error {
    Error::stop(what, "systemctl start anechoic, or by hand: anechoic run")
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
    fn conflicts_are_listed_where_nothing_else_is_named() {
        let action = |line: &str| match parse(line).unwrap().command {
            Command::Conflicts(options) => options,
            other => panic!("{other:?}"),
        };

        assert!(action("anechoic conflicts --open").list.open);
        assert!(action("anechoic conflicts").action.is_none());
        let listed = action("anechoic conflicts list --entity contact --limit 5").action;
        assert!(matches!(listed, Some(ConflictsAction::List(ListOptions { limit: 5, .. }))));
        let resolved = action("anechoic conflicts resolve 1042.3 --set name=A=b --set-null note").action;
        let Some(ConflictsAction::Resolve(options)) = resolved else { panic!("{resolved:?}") };
        assert_eq!((options.id.seq, options.id.index), (1042, 3));
        assert_eq!(options.set, [("name".to_owned(), "A=b".to_owned())]);
    }

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        let ago = moment("30m").map(|moment| now() - moment).unwrap();

        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1_000_000));
        assert_eq!(moment("1970-01-01 01:00+01"), Ok(0));
        assert!((1_800_000_000..1_801_000_000).contains(&ago), "{ago}");
        assert!(moment("yesterday").is_err());
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
            "anechoic conflicts show 7",
            "anechoic conflicts resolve 7.0",
            "anechoic conflicts resolve 7.0 --set name",
            "anechoic undo",
            "anechoic undo --since 1h",
            "anechoic undo --tx 7 --since 1h --system crm",
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
