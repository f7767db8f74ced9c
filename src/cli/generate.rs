//! `anechoic generate`: the manual and the completions of the shells, made from the commands
//! themselves when the package is built, so that they cannot disagree.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, GenerateOptions, Outcome};
use crate::error::{Error, Result};

pub(super) fn generate(options: &GenerateOptions) -> Result<Outcome> {
    std::fs::create_dir_all(&options.dir).and_then(|()| write(&options.dir)).map_err(|error| {
        let message = format!("cannot write to {}: {error}", options.dir.display());
        Error::stop(message, "name a directory that may be written")
    })?;
    Ok(Outcome::Done)
}

fn write(dir: &Path) -> std::io::Result<()> {
    let mut command = shown();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "anechoic", dir)?;
    }
    clap_mangen::generate_to(shown(), dir)
}

/// Without what `--help` hides, which completions would offer, and without a page for each `help`.
fn shown() -> Command {
    let all = Arguments::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set());
    let command = Command::new("anechoic").version(env!("CARGO_PKG_VERSION")).subcommand_required(true);
    command
        .about(all.get_about().cloned().unwrap_or_default())
        .args(all.get_arguments().cloned())
        .subcommands(shown.cloned())
        .disable_help_subcommand(true)
}
