//! Names that met, and errors that said everything twice.

use std::error::Error as _;

use super::super::prelude::*;

pub(super) const CASES: &[Case] = &[case!(incident_opendal_8085, "G6", "G1"), case!(incident_sqlx_669, "X1")];

/// G6, G1: names that a pattern or a careless comparison takes for each other.
async fn incident_opendal_8085(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let names =
        ["a_b", "aXb", "a%b", "a%", "ab", "AB", "aB", "a*b", "a?b", "a b", "a", "a/", "a/b", "[ab]", "a\\_b"];
    let mut guards = Vec::new();
    for name in names {
        guards.push(taken(&a, name).await.map_err(|error| format!("{name}: {error}"))?);
        a.group(name)?.create().await.map_err(|error| format!("{name}: {error}"))?;
    }
    a.group("a_b")?.join(Capabilities::none()).await?;
    for name in names {
        held_by_another(&b, name).await?;
        let members = ids(&b, name).await?;
        ensure(members.len() == usize::from(name == "a_b"), format!("{name} has members {members:?}"))?;
    }
    let mut expected: Vec<&str> = names.to_vec();
    expected.sort_unstable();
    let listed: Vec<String> = b.groups().await?.iter().map(ToString::to_string).collect();
    let mut listed_sorted = listed.clone();
    listed_sorted.sort_unstable();
    ensure(listed_sorted.len() == expected.len(), format!("{listed:?}"))?;
    a.group("a%")?.delete().await?;
    drop(guards.remove(0));
    for (guard, name) in guards.iter().zip(&names[1..]) {
        ensure(guard.is_held() && guard.name().as_bytes() == name.as_bytes(), format!("{name} was lost"))?;
        ensure(*name == "a%" || ids(&b, name).await.is_ok(), format!("{name} was deleted with another"))?;
    }
    Ok(())
}

/// X1: an error that is shown with its causes says nothing twice.
async fn incident_sqlx_669(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let errors = [
        a.group("g")?.members().await.err(),
        a.group("g")?.delete().await.err(),
        a.lock("x")?.permits(0).err(),
        a.lock("").err(),
        h.builder_at("nosuchscheme://x", "a").connect().await.err(),
        h.builder("a").option("no_such_option", "1").connect().await.err(),
        h.builder("a").option("ttl", "soon").connect().await.err(),
        h.builder("").connect().await.err(),
    ];
    for error in errors {
        let error = error.ok_or("it went well where an error was due")?;
        let (shown, mut cause) = (error.to_string(), error.source());
        ensure(!shown.contains('\n') && !shown.is_empty(), format!("not one line: {shown:?}"))?;
        let words: Vec<&str> = shown.split(": ").collect();
        for (n, part) in words.iter().enumerate() {
            ensure(!words[..n].contains(part), format!("\"{part}\" is said twice: {shown}"))?;
        }
        while let Some(inner) = cause {
            ensure(!shown.contains(&inner.to_string()), format!("{shown} repeats its cause {inner}"))?;
            cause = inner.source();
        }
    }
    Ok(())
}
