//! What the core's source says: which of its functions have to be awaited, and where it awaits.

use std::collections::{BTreeMap, BTreeSet};

/// A place at which the core awaits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Await {
    /// The file, below `src`.
    pub file: String,
    /// The line, which moves with every change above it.
    pub line: usize,
    /// The function, and what stands there; unique in its file, so that it means the same after a change elsewhere.
    pub place: String,
}

/// The code of a file without its tests and comments, with the numbers of the lines.
fn code(text: &str) -> Vec<(usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let before_tests = numbered.take_while(|(_, line)| *line != "#[cfg(test)]");
    before_tests.filter(|(_, line)| !line.trim_start().starts_with("//")).collect()
}

/// The word with which a text begins.
fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// A type without its path and its parameters: `Future` of `std::future::Future<Output = u32>`.
fn type_name(text: &str) -> String {
    let path = text.split(['<', ' ']).next().unwrap_or_default();
    word(path.rsplit("::").next().unwrap_or_default())
}

/// Whom an `impl` line at the beginning of a line is for: the type, and the trait if it is one's.
fn implemented(line: &str) -> Option<(String, Option<String>)> {
    let rest = line.strip_prefix("impl")?;
    // Behind the parameters, in which brackets may stand in brackets.
    let rest = if rest.starts_with('<') {
        let mut depth = 0_usize;
        let end = rest.char_indices().find(|(_, c)| {
            depth = match c {
                '<' => depth + 1,
                '>' => depth.saturating_sub(1),
                _ => depth,
            };
            depth == 0
        });
        rest.get(end?.0 + 1..)?
    } else {
        rest
    };
    Some(match rest.split_once(" for ") {
        Some((of, whom)) => (type_name(whom.trim()), Some(type_name(of.trim()))),
        None => (type_name(rest.trim()), None),
    })
}

/// What an answer is that has to be awaited.
const AWAITED: [&str; 7] =
    ["impl Future", "dyn Future", "impl Stream", "dyn Stream", "Owned<", "Connecting", "impl IntoFuture"];

/// The public functions that have to be awaited, as `Type::function`, and the public types that can be, as
/// `Type as Trait`, of a crate's files.
pub fn operations(files: &BTreeMap<String, String>) -> BTreeSet<String> {
    let public: BTreeSet<String> = files
        .values()
        .flat_map(|text| code(text))
        .filter_map(|(_, line)| {
            let line = line.trim_start();
            line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum ")).map(type_name)
        })
        .collect();
    let mut found = BTreeSet::new();
    for (file, text) in files {
        let mut owner: Option<(String, Option<String>)> = None;
        let lines = code(text);
        for (index, (_, line)) in lines.iter().enumerate() {
            if line.starts_with("impl") {
                owner = implemented(line);
                if let Some((whom, Some(of))) = &owner
                    && ["Future", "Stream", "IntoFuture"].contains(&of.as_str())
                    && public.contains(whom)
                {
                    found.insert(format!("{whom} as {of}"));
                }
            } else if *line == "}" {
                owner = None;
            }
            let (is_async, rest) = match line.trim_start() {
                line if line.starts_with("pub async fn ") => (true, &line["pub async fn ".len()..]),
                line if line.starts_with("pub fn ") => (false, &line["pub fn ".len()..]),
                _ => continue,
            };
            // The head of a function ends where its body begins.
            let head: Vec<&str> = lines[index..]
                .iter()
                .map(|(_, line)| *line)
                .scan(false, |over, line| {
                    let was_over = std::mem::replace(over, line.ends_with('{') || line.ends_with(';'));
                    (!was_over).then_some(line)
                })
                .collect();
            let head = head.join(" ");
            let answer = head.rsplit_once(") ->").map_or("", |(_, answer)| answer);
            if is_async || AWAITED.iter().any(|word| answer.contains(word)) {
                let name = word(rest);
                found.insert(match &owner {
                    Some((whom, _)) => format!("{whom}::{name}"),
                    None => format!("{}::{name}", file.trim_end_matches(".rs")),
                });
            }
        }
    }
    found
}

/// The places at which a crate's files await; a `select!` is one.
pub fn awaits(files: &BTreeMap<String, String>) -> Vec<Await> {
    let mut found = Vec::new();
    for (file, text) in files {
        let mut function = "";
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let lines = code(text);
        for (index, (number, line)) in lines.iter().enumerate() {
            if let Some(name) = function_name(line) {
                function = name;
            }
            if !line.contains(".await") && !line.contains("select! {") {
                continue;
            }
            let what = statement(&lines[..=index]);
            let place = format!("{function}: {what}");
            let times = places.entry(place.clone()).or_default();
            *times += 1;
            let place = if *times > 1 { format!("{place} ({times})") } else { place };
            found.push(Await { file: file.clone(), line: *number, place });
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let at = if line.starts_with("fn ") { 0 } else { line.find(" fn ")? + 1 };
    // A type of a function has no name.
    let head = &line[..at];
    let is_head =
        head.split_whitespace().all(|word| word.starts_with("pub") || word == "async" || word == "const");
    let rest = &line[at + 3..];
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (is_head && end > 0).then(|| &rest[..end])
}

/// What the last of these lines says, with the beginning of its statement if it says only how that goes on.
fn statement(lines: &[(usize, &str)]) -> String {
    let Some((last, before)) = lines.split_last() else { return String::new() };
    let goes_on = |line: &str| line.starts_with(['.', '}', ')', ']']);
    let text = last.1.trim();
    if !goes_on(text) {
        return text.to_owned();
    }
    let indent = |line: &str| line.len() - line.trim_start().len();
    let begin = before.iter().rev().map(|(_, line)| *line).find(|line| {
        !line.trim().is_empty() && indent(line) <= indent(last.1) && !goes_on(line.trim_start())
    });
    format!("{} … {text}", begin.unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
pub struct Thing<T>(T);
struct Hidden;

impl<T: Into<Vec<u8>>> Thing<T> {
    /// pub async fn of_a_comment()
    pub async fn first<F: Future>(&self) -> Result<F::Output> {
        self.second()
            .third(|x| {
                x
            })
            .await;
        one().await + 1
    }

    pub(crate) async fn not_public(&self) {
        let f: fn() = || {};
        tokio::select! {
            biased;
            () = one() => {}
        }
        one().await;
        one().await;
    }

    pub fn given<F>(
        &self,
        f: F,
    ) -> impl Future<Output = u32> {
        f
    }

    pub fn plain(&self, future: impl Future) -> u32 {
        1
    }
}

impl<T> std::future::Future for Thing<T> {
}

impl Future for Hidden {
}

pub async fn free() {}

#[cfg(test)]
mod tests {
    pub async fn of_a_test() { one().await }
}
";

    fn files() -> BTreeMap<String, String> {
        [("made_up.rs".to_owned(), TEXT.to_owned())].into()
    }

    #[test]
    fn every_function_that_has_to_be_awaited_is_found() {
        let expected = ["Thing as Future", "Thing::first", "Thing::given", "made_up::free"];
        assert_eq!(operations(&files()), expected.map(str::to_owned).into());
    }

    #[test]
    fn every_await_is_found_with_its_function() {
        let places: Vec<_> = awaits(&files()).into_iter().map(|found| (found.line, found.place)).collect();
        let expected = [
            (12, "first: self.second() … .await;"),
            (13, "first: one().await + 1"),
            (18, "not_public: tokio::select! {"),
            (22, "not_public: one().await;"),
            (23, "not_public: one().await; (2)"),
        ];
        assert_eq!(places, expected.map(|(line, place)| (line, place.to_owned())));
    }
}
