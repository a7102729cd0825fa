//! G6, G7: names of any shape, and namespaces.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(group_ids_are_any_bytes, "G6"),
    case!(member_ids_are_any_bytes, "G6").budget(60),
    case!(lock_names_are_any_bytes, "G6", "L11"),
    case!(election_names_are_any_bytes, "G6").budget(40),
    case!(names_that_are_none_are_refused, "G6", "X2"),
    case!(locks_groups_and_elections_do_not_meet, "G6"),
    case!(namespaces_are_disjoint, "G7"),
    case!(namespaces_that_begin_alike_are_disjoint, "G7"),
];

/// Names that some layout would confuse: with each other, with a path, with a word of its own, or with nothing.
fn awkward() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b"a"[..],
        b"A",
        b"a ",
        b" a",
        b"a\0",
        b"a\0b",
        b"\0",
        b"a\n",
        b"\n",
        b"a/b",
        b"a%2Fb",
        b"a%2fb",
        b"/",
        b"/a",
        b"a/",
        b"//",
        b".",
        b"..",
        b"../x",
        b"%",
        b"%00",
        b"*",
        b"a*",
        b"?",
        b"[a]",
        b"_",
        b"-",
        b"a_b",
        b"a:b",
        b"a;b",
        b"'",
        b"\"",
        b"a' OR '1'='1",
        b"\\",
        b"\\0",
        b"\xff",
        b"\xff\xfe",
        b"\xc3\x28",
        "é".as_bytes(),
        "e\u{301}".as_bytes(),
        "İ".as_bytes(),
        "i̇".as_bytes(),
        "🦀".as_bytes(),
        b"leader",
        b"leaders",
        b"locks",
        b"lock",
        b"groups",
        b"group",
        b"members",
        b"__created__",
        b"tmp",
        b"LIST",
        b"tooz",
        b".driver_lock",
        b"sessions",
        b"beats",
        b"null",
        b"NULL",
        b"0",
        b"00",
        b"-1",
        b"1e3",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    names.extend([vec![b'x'; 254], vec![b'x'; 255], vec![0; 255], vec![0xff; 255], vec![b'/'; 255]]);
    names
}

/// G6: each id is a group of its own, and the list gives it back byte by byte.
async fn group_ids_are_any_bytes(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut expected = awkward();
    for name in &expected {
        a.group(name)?.create().await.map_err(|error| format!("{name:?}: {error}"))?;
    }
    let listed: Vec<_> = b.groups().await?.iter().map(|group| group.as_bytes().to_vec()).collect();
    expected.sort();
    ensure(listed == expected, "the list differs from what was created")?;
    a.group(&expected[7])?.join(Capabilities::none()).await?;
    for (n, name) in expected.iter().enumerate() {
        let members = b.group(name)?.members().await?.len();
        ensure(members == usize::from(n == 7), format!("{name:?} has {members} members"))?;
    }
    Ok(())
}

/// G6: each id is a member of its own.
async fn member_ids_are_any_bytes(h: Harness) -> Outcome {
    let mut expected = awkward();
    for name in &expected {
        let c = h.coordinator(name).await?;
        ensure(c.member().as_bytes() == name, "the coordinator has another id")?;
        let joined = c.group("g")?.join_or_create(Capabilities::from_raw(name)?).await;
        joined.map_err(|error| format!("{name:?}: {error}"))?;
    }
    let watcher = h.coordinator("watcher").await?;
    let members = watcher.group("g")?.members().await?;
    expected.sort();
    let listed: Vec<_> = members.iter().map(|record| record.member.as_bytes().to_vec()).collect();
    ensure(listed == expected, "the list differs from who joined")?;
    for record in &members {
        ensure(record.capabilities.raw() == Some(record.member.as_bytes()), "capabilities of somebody else")?;
    }
    Ok(())
}

/// G6, L11: each name is a lock of its own.
async fn lock_names_are_any_bytes(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut guards = Vec::new();
    for name in awkward() {
        let guard = a.lock(&name)?.try_acquire().await?;
        guards.push(guard.ok_or_else(|| format!("{name:?} is another name's lock"))?);
    }
    for name in awkward() {
        ensure(b.lock(&name)?.try_acquire().await?.is_none(), format!("{name:?} is not held"))?;
    }
    Ok(())
}

/// G6: each id has an election of its own.
async fn election_names_are_any_bytes(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut leads = Vec::new();
    for name in awkward() {
        a.group(&name)?.create().await?;
        let lead = a.election(&name)?.try_campaign().await?;
        leads.push(lead.ok_or_else(|| format!("{name:?} is another id's election"))?);
        let leader = b.election(&name)?.leader().await?.ok_or("nobody leads")?;
        ensure(leader.member.as_ref() == Some(a.member()), format!("{:?} leads", leader.member))?;
    }
    Ok(())
}

/// G6, X2: empty and too long names are refused before anything is sent, and nothing panics.
async fn names_that_are_none_are_refused(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    for name in [vec![], vec![b'x'; 256], vec![0; 100_000]] {
        refused(a.group(&name), ErrorKind::Invalid)?;
        refused(a.lock(&name), ErrorKind::Invalid)?;
        refused(a.election(&name), ErrorKind::Invalid)?;
        refused(a.lock_all([&name]), ErrorKind::Invalid)?;
        a.group("g")?.create().await.or_else(|error| match error.kind() {
            ErrorKind::GroupExists => Ok(()),
            _ => Err(error),
        })?;
        refused(a.group("g")?.member(&name).await, ErrorKind::Invalid)?;
    }
    Ok(())
}

/// G6: a lock, a group, a member and an election of one name are four things.
async fn locks_groups_and_elections_do_not_meet(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for name in ["a", "leader", "g:a", "leader_of_g", "group:g"] {
        let lock = a.lock(name)?.try_acquire().await?;
        a.group(name)?.join_or_create(Capabilities::none()).await?;
        let lead = b.election(name)?.try_campaign().await?;
        ensure(lock.is_some() && lead.is_some(), format!("{name}: one is in the other's way"))?;
        ensure(ids(&b, name).await? == ["a"], format!("{name}: other members"))?;
        ensure(a.lock(name)?.holders().await?.holders.len() == 1, format!("{name}: other holders"))?;
    }
    Ok(())
}

/// G7: the same names in another namespace are other things; so is a member of the same id.
async fn namespaces_are_disjoint(h: Harness) -> Outcome {
    let a = h.coordinator("same").await?;
    let other = h.keep(h.builder("same").namespace(format!("{}-other", h.namespace()))).await?;
    apart(&a, &other).await
}

/// G7: namespaces of which one begins with the other, or differ in what a layout might fold.
async fn namespaces_that_begin_alike_are_disjoint(h: Harness) -> Outcome {
    let mut coordinators = Vec::new();
    for suffix in ["", "_a", "A", "a", "/a", ".a", "a ", "%", "é", "e\u{301}"] {
        let namespace = format!("{}n{suffix}", h.namespace());
        match h.keep(h.builder("same").namespace(namespace)).await {
            Ok(c) => coordinators.push(c),
            // A layout may refuse a namespace; what it accepts has to be apart.
            Err(error) => ensure(error.to_string().contains("namespace"), format!("{error}"))?,
        }
    }
    ensure(coordinators.len() > 3, "nearly every namespace is refused")?;
    for pair in coordinators.windows(2) {
        apart(&pair[0], &pair[1]).await?;
        for c in pair {
            c.group("g")?.leave().await?;
            c.group("g")?.delete().await?;
            c.group("mine")?.delete().await.or_else(|error| match error.kind() {
                ErrorKind::GroupNotFound => Ok(()),
                _ => Err(error),
            })?;
        }
    }
    Ok(())
}

async fn apart(a: &Coordinator, other: &Coordinator) -> Outcome {
    a.group("mine")?.create().await?;
    a.group("g")?.join_or_create(caps("one")?).await?;
    let guard = taken(a, "x").await?;
    let lead = a.election("g")?.campaign().await?;
    ensure(other.groups().await?.is_empty(), "groups of another namespace are listed")?;
    refused(other.group("mine")?.members().await, ErrorKind::GroupNotFound)?;
    other.group("g")?.join_or_create(caps("other")?).await?;
    ensure(other.group("g")?.member_capabilities("same").await? == caps("other")?, "another one's record")?;
    ensure(a.group("g")?.member_capabilities("same").await? == caps("one")?, "the record was overwritten")?;
    let second = taken(other, "x").await?;
    let other_lead = other.election("g")?.try_campaign().await?.ok_or("another namespace's leader counts")?;
    ensure(guard.is_held() && lead.is_held(), "lost to another namespace")?;
    second.release().await?;
    other_lead.resign().await?;
    ensure(a.election("g")?.leader().await?.is_some(), "deposed from another namespace")?;
    taken(other, "x").await?.release().await?;
    guard.release().await?;
    lead.resign().await?;
    Ok(())
}
