//! What is shown of a URL with a secret in its password, encoded or not.
#![no_main]

#[path = "../../tooz-core/tests/it/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|parts: (&str, &str, &str)| {
    let (user, before, after) = parts;
    // An "@" or a ":" of the user is where the password begins; a "#" is refused.
    let user: String = user.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    checks::hidden(&format!("x://{user}:{before}{}{after}@h/0", checks::MARK));
    let encoded: String =
        format!("{before}{}{after}", checks::MARK).bytes().map(|byte| format!("%{byte:02x}")).collect();
    checks::hidden(&format!("x://{user}:{encoded}@h/{user}?password={encoded}"));
});
