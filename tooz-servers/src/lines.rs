//! What no line that tells an error may hold.

/// What is wrong with a line that tells an error; `None`: nothing.
///
/// It must be one line, say nothing twice, and hold no text that is made for programmers of Rust.
pub fn fault(line: &str) -> Option<String> {
    if line.trim_end().contains('\n') {
        return Some("several lines".to_owned());
    }
    let words = line.split(|c: char| c.is_whitespace() || "\"'`(),;:=".contains(c));
    if let Some(word) = words.into_iter().find(|word| is_camel_case(word)) {
        return Some(format!("a name of Rust, {word}"));
    }
    if line.contains(" { ") || line.contains("script: ") || line.contains("user_script") {
        return Some("the inside of a program".to_owned());
    }
    let lower = line.to_lowercase().replace("caused by: ", "");
    let parts: Vec<_> = lower.split([':', ';']).map(|part| cut(part.trim())).collect();
    let twice = parts.iter().filter(|part| part.contains(' ')).find(|part| lower.matches(**part).count() > 1);
    twice.map(|part| format!("\"{part}\" twice"))
}

/// Without the number of the operating system.
fn cut(part: &str) -> &str {
    part.split(" (os error").next().unwrap_or(part)
}

/// `UnknownIssuer` is, `SQLite`, `gRPC` and a path are not.
fn is_camel_case(word: &str) -> bool {
    let humps = word.as_bytes().windows(2);
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && humps.into_iter().any(|two| two[0].is_ascii_lowercase() && two[1].is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_line() {
        for bad in [
            "x: connection refused: Connection refused (os error 111)",
            "x: Connection refused (os error 111): Connection refused (os error 111)",
            "invalid peer certificate: UnknownIssuer",
            "code: InvalidCertificate(1)",
            "Os { code: 111 }",
            "failed; script: 1c2d, on @user_script:12",
            "one\ntwo",
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
        for good in ["SQLite and gRPC, in /tmp/AbCd: Permission denied (os error 13)\n", "a: b: a"] {
            assert_eq!(fault(good), None, "{good}");
        }
    }
}
