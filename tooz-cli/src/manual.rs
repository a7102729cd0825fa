//! `tooz completions` and `tooz man`: what is generated from the definition of the command line.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Cli, Completions, Man};
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
pub(crate) fn man(options: &Man) -> Result<Code, Failure> {
    if let Some(directory) = &options.directory {
        write_pages(directory)?;
        return Ok(DONE);
    }
    let mut command = Cli::command();
    command.build();
    for verb in &options.verb {
        let found = command.find_subcommand(verb).cloned();
        command = found.ok_or_else(|| {
            Failure::new(USAGE, format!("there is no verb {verb:?}; `tooz --help` lists them"))
        })?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    text::all(&page)?;
    Ok(DONE)
}

fn write_pages(directory: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), directory).map_err(|error| {
        let directory = directory.display();
        Failure::new(
            USAGE,
            format!("cannot write pages to {directory} ({error}); name a directory that can be written"),
        )
    })
}
