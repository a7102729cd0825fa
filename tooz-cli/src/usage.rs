//! Wrong usage: what clap says of the arguments, with a tip where its own would mislead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The error with a tip for one who forgot `--`, or knows flock(1).
pub(crate) fn explained(mut error: clap::Error) -> clap::Error {
    if let Some(tip) = tip(&error) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

fn tip(error: &clap::Error) -> Option<&'static str> {
    // Only in the usage of verbs that run a command.
    error.get(ContextKind::Usage).filter(|usage| usage.to_string().contains("CMD"))?;
    let arguments = match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(argument) => std::slice::from_ref(argument),
        ContextValue::Strings(arguments) => arguments,
        _ => return None,
    };
    let names = |wanted: &str| arguments.iter().any(|argument| argument.contains(wanted));
    match error.kind() {
        ErrorKind::UnknownArgument if arguments == ["-c"] => {
            Some("a shell's command line stands after `--`, as in: tooz lock NAME -- sh -c 'a && b'")
        }
        ErrorKind::UnknownArgument => {
            Some("the command and its options stand after `--`, as in: tooz lock NAME -- CMD")
        }
        ErrorKind::MissingRequiredArgument if names("CMD") => {
            Some("the command stands after `--`, as in: tooz lock NAME -- CMD")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn says(line: &str) -> String {
        let error = crate::args::Cli::try_parse_from(line.split(' ')).unwrap_err();
        explained(error).to_string()
    }

    #[test]
    fn a_command_without_its_dashes_is_told_of_them() {
        for line in
            ["tooz lock x true", "tooz lock x -z -- true", "tooz lock x", "tooz lock", "tooz join g ls"]
        {
            let said = says(line);
            assert!(said.contains("after `--`") && !said.contains("as a value"), "{line}: {said}");
        }
        assert!(says("tooz lock x -c ls").contains("sh -c"));
        assert!(says("tooz lock --tri x -- ls").contains("--try"));
        assert!(says("tooz lock -E 300 x -- ls").contains("from 0 to 255"));
        for line in ["tooz members", "tooz members g h", "tooz", "tooz lock --try --wait 1 x -- ls"] {
            assert!(!says(line).contains("after `--`"), "{line}");
        }
    }
}
