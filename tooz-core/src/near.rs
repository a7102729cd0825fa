//! What a mistyped word was meant to be.

/// The known word that differs least from `word`, if it is near: one slip apart, or two if the known word is long.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().filter_map(|known| {
        let slips = distance(word, known);
        (slips <= if known.len() < 6 { 1 } else { 2 }).then_some((slips, known))
    });
    near.min_by_key(|(slips, _)| *slips).map(|(_, known)| known)
}

/// How many letters have to be added, removed, replaced, or exchanged with the next one.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    // A long text is no slip, and the table stays small.
    if one.len().abs_diff(other.len()) > 2 {
        return usize::MAX;
    }
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let same = one[i - 1] == other[j - 1];
            let mut least =
                (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + usize::from(!same));
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_fingers() {
        let known = ["redis", "rediss", "sqlite", "etcd", "ttl", "namespace"];
        for (word, meant) in [
            ("reddis", Some("redis")),
            ("redsis", Some("redis")),
            ("redisss", Some("rediss")),
            ("sqlit", Some("sqlite")),
            ("etdc", Some("etcd")),
            ("tll", Some("ttl")),
            ("namspece", Some("namespace")),
            ("hunter2", None),
            ("s3cret", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), known), None);
    }
}
