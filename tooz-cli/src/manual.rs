//! `tooz completions` and `tooz man`: what is generated from the definition of the command line.

use std::path::Path;
use std::{fs, io};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::{self, Cli, Completions};
use crate::exit::{Code, DONE, Failure, USAGE};
use crate::text;

/// Prints the completion script of a shell.
pub(crate) fn completions(options: &Completions) -> Result<Code, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "tooz", &mut script);
    // What stands after `--` is another command, whose completions the shell knows. clap tells that to zsh alone.
    match options.shell {
        Shell::Bash => script.extend_from_slice(include_bytes!("completions/command.bash")),
        Shell::Fish => script.extend_from_slice(include_bytes!("completions/command.fish")),
        _ => {}
    }
    text::all(&script)?;
    Ok(DONE)
}

/// Prints one page, or writes all of them.
pub(crate) fn man(options: &args::Man) -> Result<Code, Failure> {
    if let Some(directory) = &options.directory {
        write_pages(directory)?;
        return Ok(DONE);
    }
    let mut command = built();
    for verb in &options.verb {
        let found = command.find_subcommand(verb).cloned();
        command = found.ok_or_else(|| {
            Failure::new(USAGE, format!("there is no verb {verb:?}; `tooz --help` lists them"))
        })?;
    }
    text::all(page(&Man::new(command))?.as_bytes())?;
    Ok(DONE)
}

fn built() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// A page, with the titles that readers of manual pages look for instead of clap's one.
fn page(manual: &Man) -> io::Result<String> {
    let mut page = Vec::new();
    manual.render(&mut page)?;
    let page = String::from_utf8(page).map_err(io::Error::other)?;
    let page = page.replace("\n.SH EXTRA\nExit codes:\n", "\n.SH \"EXIT STATUS\"\n");
    let page = page.replace(
        "\nThe backend is the first of",
        "\n.SH \"ENVIRONMENT AND FILES\"\nThe backend is the first of",
    );
    Ok(page.replace("\n.SH EXTRA\n", "\n.SH NOTES\n"))
}

fn write_pages(directory: &Path) -> Result<(), Failure> {
    write_below(&built(), directory).map_err(|error| {
        let directory = directory.display();
        Failure::new(
            USAGE,
            format!("cannot write pages to {directory} ({error}); name a directory that can be written"),
        )
    })
}

fn write_below(command: &Command, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_below(below, directory)?;
    }
    let manual = Man::new(command.clone());
    fs::write(directory.join(manual.get_filename()), page(&manual)?)
}
