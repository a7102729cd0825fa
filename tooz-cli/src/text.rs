//! How names, times and capabilities are shown.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tooz::driver::{Clock, HolderRecord, LockMode, MemberRecord};
use tooz::{Capabilities, MemberId};

use crate::exit::Failure;

/// The bytes of a name given on the command line.
pub(crate) fn bytes(text: &OsStr) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(text)
}

/// Writes all of `bytes`.
pub(crate) fn all(bytes: &[u8]) -> Result<(), Failure> {
    written(|output| output.write_all(bytes))
}

/// Writes one line. If the reader has closed the pipe (`tooz … | head -1`), `tooz` ends silently, as the shell's
/// tools do.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    written(|output| writeln!(output, "{text}"))
}

/// The same as [`line`], for a verb that goes on while its output is not read.
pub(crate) async fn line_in_background(text: String) -> Result<(), Failure> {
    match tokio::task::spawn_blocking(move || line(&text)).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error).into()),
    }
}

fn written(write: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match write(&mut output).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failure::silent(crate::exit::Code::BROKEN_PIPE))
        }
        result => Ok(result?),
    }
}

/// Writes one line, as JSON or as text.
pub(crate) fn show(
    json: bool,
    value: impl FnOnce() -> Value,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    line(&if json { value().to_string() } else { text() })
}

/// The name itself if it is UTF-8, else `{"hex": "…"}`: no two names look alike.
pub(crate) fn name(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

pub(crate) fn member(member: Option<&MemberId>) -> Value {
    member.map_or(Value::Null, |member| name(member.as_bytes()))
}

pub(crate) fn member_or_unknown(member: Option<&MemberId>) -> String {
    member.map_or_else(|| "an unknown member".to_owned(), |member| format!("\"{member}\""))
}

/// The time now, for a line about what has just happened.
pub(crate) fn now() -> String {
    time(Clock::boot().wall())
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn time(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date, with years that begin in March: H. Hinnant, *chrono-compatible low-level date algorithms*.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn optional_time(at: Option<SystemTime>) -> Value {
    at.map_or(Value::Null, |at| time(at).into())
}

/// ` since 2026-01-31T12:00:00Z (3 s ago)`, or nothing if the time is unknown.
pub(crate) fn since(at: Option<SystemTime>) -> String {
    let Some(at) = at else { return String::new() };
    let ago = Clock::boot().wall().duration_since(at).unwrap_or(Duration::ZERO);
    format!(" since {} ({} ago)", time(at), rough(ago))
}

fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn mode(mode: LockMode) -> String {
    match mode {
        LockMode::Exclusive => "exclusive".into(),
        LockMode::Shared => "shared".into(),
        LockMode::Permit { limit } => format!("permit of {limit}"),
        _ => "held".into(),
    }
}

/// A holder on one line.
pub(crate) fn holder(record: &HolderRecord) -> String {
    let who = member_or_unknown(record.member.as_ref());
    let token = record.token.map_or_else(String::new, |token| format!(", token {token}"));
    format!("{who} {}{}{token}", mode(record.mode), since(record.since))
}

pub(crate) fn holder_json(record: &HolderRecord) -> Value {
    json!({
        "member": member(record.member.as_ref()),
        "mode": mode(record.mode),
        "token": record.token.map(tooz::FencingToken::get),
        "since": optional_time(record.since),
    })
}

/// A member on one line: its name, and its capabilities if it has any.
pub(crate) fn member_line(record: &MemberRecord) -> String {
    if record.capabilities.is_none() {
        return record.member.to_string();
    }
    format!("{} {}", record.member, capabilities(&record.capabilities))
}

pub(crate) fn member_json(record: &MemberRecord) -> Value {
    json!({
        "member": name(record.member.as_bytes()),
        "capabilities": capabilities(&record.capabilities),
        "joined_at": optional_time(record.joined_at),
        "updated_at": optional_time(record.updated_at),
    })
}

/// As JSON where they have a JSON form, else as `{"msgpack": "hex"}`.
fn capabilities(capabilities: &Capabilities) -> Value {
    capabilities.get::<Value>().unwrap_or_else(|_| json!({ "msgpack": hex(capabilities.as_msgpack()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn any_capabilities_have_a_json_form() {
        let shown = |published: &Capabilities| capabilities(published).to_string();
        assert_eq!(shown(&Capabilities::none()), "null");
        assert_eq!(shown(&Capabilities::new(&json!({"weight": 3})).unwrap()), r#"{"weight":3}"#);
        assert_eq!(shown(&Capabilities::from_raw(b"\x01").unwrap()), r#"{"msgpack":"c40101"}"#);
    }

    #[test]
    fn no_two_names_look_alike() {
        assert_eq!(name("é".as_bytes()), json!("é"));
        assert_eq!(name(b"a\\xff"), json!("a\\xff"));
        assert_eq!(name(b"a\xff"), json!({ "hex": "61ff" }));
    }
}
