//! G1 to G5: groups, members and what they publish.

use tooz_core::capabilities::MAX_CAPABILITIES_BYTES;

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(group_create_twice_is_refused, "G1"),
    case!(group_delete_unknown_is_refused, "G1"),
    case!(group_delete_with_members_is_refused, "G1"),
    case!(group_delete_does_not_count_the_dead, "G1").ttl(),
    case!(group_deleted_can_be_created_again, "G1"),
    case!(group_list_is_every_group_and_nothing_else, "G1"),
    case!(join_an_unknown_group_is_refused, "G2"),
    case!(join_twice_is_refused, "G2"),
    case!(join_or_create_wins_every_race, "G2"),
    case!(join_or_create_joins_what_exists, "G2"),
    case!(leave_when_no_member_is_refused, "G3"),
    case!(leave_is_seen_and_can_be_undone, "G3"),
    case!(members_have_capabilities_and_times, "G4"),
    case!(members_of_an_unknown_group_are_refused, "G4"),
    case!(members_do_not_include_the_dead, "G4").ttl(),
    case!(members_of_a_hundred, "G4").budget(60),
    case!(capabilities_are_any_value, "G5"),
    case!(capabilities_have_a_limit, "G5"),
    case!(capabilities_of_others_cannot_be_updated, "G5"),
    case!(update_is_seen_by_others, "G5"),
];

/// G1: a group is created once.
async fn group_create_twice_is_refused(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    refused(a.group("g")?.create().await, ErrorKind::GroupExists)?;
    let error = refused(b.group("g")?.create().await, ErrorKind::GroupExists)?;
    ensure(error.to_string().contains('g'), format!("the group is not named: {error}"))
}

/// G1: what is not there cannot be deleted.
async fn group_delete_unknown_is_refused(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    refused(a.group("g")?.delete().await, ErrorKind::GroupNotFound).map(|_| ())
}

/// G1: a group with members stays.
async fn group_delete_with_members_is_refused(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    refused(b.group("g")?.delete().await, ErrorKind::GroupNotEmpty)?;
    ensure(ids(&b, "g").await? == ["a"], "the refused delete removed a member")?;
    a.group("g")?.leave().await?;
    Ok(b.group("g")?.delete().await?)
}

/// G1: members whose session ended are no members.
async fn group_delete_does_not_count_the_dead(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").manual_heart().rejoin(false)).await?; // it never beats
    let b = h.coordinator("b").await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    eventually("the group can be deleted", h.gone(), async || match b.group("g")?.delete().await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::GroupNotEmpty => Ok(false),
        Err(error) => Err(error),
    })
    .await
}

/// G1: the name is free again, and the new group is empty.
async fn group_deleted_can_be_created_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    a.group("g")?.leave().await?;
    a.group("g")?.delete().await?;
    refused(b.group("g")?.members().await, ErrorKind::GroupNotFound)?;
    b.group("g")?.create().await?;
    ensure(ids(&a, "g").await?.is_empty(), "the new group has a member")
}

/// G1: locks, elections and deleted groups do not show.
async fn group_list_is_every_group_and_nothing_else(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    ensure(a.groups().await?.is_empty(), "an empty backend has groups")?;
    for group in ["one", "two", "gone"] {
        a.group(group)?.create().await?;
    }
    let _guard = taken(&a, "a-lock").await?;
    let _lead = a.election("two")?.campaign().await?;
    a.group("gone")?.delete().await?;
    let names: Vec<_> = b.groups().await?.iter().map(ToString::to_string).collect();
    ensure(names == ["one", "two"], format!("{names:?}"))
}

/// G2: there must be a group to join.
async fn join_an_unknown_group_is_refused(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    refused(a.group("g")?.join(Capabilities::none()).await, ErrorKind::GroupNotFound)?;
    ensure(a.groups().await?.is_empty(), "the refused join created the group")
}

/// G2: the second join is refused, and the first one's capabilities stay.
async fn join_twice_is_refused(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(caps("first")?).await?;
    refused(a.group("g")?.join(caps("second")?).await, ErrorKind::MemberExists)?;
    refused(a.group("g")?.join_or_create(caps("third")?).await, ErrorKind::MemberExists)?;
    ensure(b.group("g")?.member_capabilities("a").await? == caps("first")?, "the capabilities changed")
}

/// G2: many join the same new group at once; none fails, and all are in.
async fn join_or_create_wins_every_race(h: Harness) -> Outcome {
    let mut joining = Vec::new();
    for n in 0..8 {
        let c = h.coordinator(format!("m{n}")).await?;
        joining.push(h.spawn(async move { c.group("g")?.join_or_create(Capabilities::none()).await }));
    }
    for join in joining {
        join.await??;
    }
    let a = h.coordinator("a").await?;
    ensure(ids(&a, "g").await?.len() == 8, "a member is missing")
}

/// G2: an existing group is joined as it is.
async fn join_or_create_joins_what_exists(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    b.group("g")?.join_or_create(Capabilities::none()).await?;
    ensure(ids(&a, "g").await? == ["a", "b"], "both are members, in order")
}

/// G3: only a member can leave.
async fn leave_when_no_member_is_refused(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    refused(a.group("g")?.leave().await, ErrorKind::GroupNotFound)?;
    b.group("g")?.join_or_create(Capabilities::none()).await?;
    refused(a.group("g")?.leave().await, ErrorKind::MemberNotFound)?;
    ensure(ids(&a, "g").await? == ["b"], "somebody else left")
}

/// G3: whoever left is gone, and may come back as somebody new.
async fn leave_is_seen_and_can_be_undone(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let group = a.group("g")?;
    group.join_or_create(Capabilities::none()).await?;
    let first = b.group("g")?.member("a").await?;
    group.leave().await?;
    refused(b.group("g")?.member("a").await, ErrorKind::MemberNotFound)?;
    refused(group.leave().await, ErrorKind::MemberNotFound)?;
    group.join(caps("again")?).await?;
    let second = b.group("g")?.member("a").await?;
    ensure(second.incarnation != first.incarnation, "both joins are one incarnation")
}

/// G4: ids in order, capabilities, and times that fit together.
async fn members_have_capabilities_and_times(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    b.group("g")?.join_or_create(caps("of b")?).await?;
    a.group("g")?.join(caps("of a")?).await?;
    let members = b.group("g")?.members().await?;
    let seen: Vec<_> = members.iter().map(|m| (m.member.to_string(), m.capabilities.clone())).collect();
    ensure(seen == [("a".into(), caps("of a")?), ("b".into(), caps("of b")?)], format!("{seen:?}"))?;
    ensure(members.iter().all(|m| m.joined_at <= m.updated_at), "updated before it joined")?;
    ensure(b.group("g")?.member("a").await? == members[0], "member() and members() differ")
}

/// G4: an unknown group has no members, which is not the same as none.
async fn members_of_an_unknown_group_are_refused(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    refused(a.group("g")?.members().await, ErrorKind::GroupNotFound)?;
    refused(a.group("g")?.member("a").await, ErrorKind::GroupNotFound)?;
    a.group("g")?.create().await?;
    refused(a.group("g")?.member("a").await, ErrorKind::MemberNotFound)?;
    refused(a.group("g")?.member_capabilities("a").await, ErrorKind::MemberNotFound)?;
    ensure(a.group("g")?.members().await?.is_empty(), "a new group has members")
}

/// G4: nobody is listed longer than its ttl and the grain.
async fn members_do_not_include_the_dead(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").manual_heart().rejoin(false)).await?; // it never beats
    let b = h.coordinator("b").await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    b.group("g")?.join(Capabilities::none()).await?;
    eventually("the dead member is gone", h.gone(), async || Ok::<_, Error>(ids(&b, "g").await? == ["b"]))
        .await?;
    refused(b.group("g")?.member("a").await, ErrorKind::MemberNotFound).map(|_| ())
}

/// G4: one view of a larger group.
async fn members_of_a_hundred(h: Harness) -> Outcome {
    let mut expected = Vec::new();
    for n in 0..100 {
        let id = format!("m{n:03}");
        h.coordinator(&id).await?.group("g")?.join_or_create(Capabilities::new(&n)?).await?;
        expected.push(id);
    }
    let a = h.coordinator("a").await?;
    ensure(ids(&a, "g").await? == expected, "the list is not complete and in order")?;
    ensure(
        a.group("g")?.member_capabilities("m042").await?.get::<u32>()? == 42,
        "somebody else's capabilities",
    )
}

/// G5: any value through serde, or raw bytes, and they come back as they were.
async fn capabilities_are_any_value(h: Harness) -> Outcome {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq)]
    struct Worker {
        name: String,
        weights: Vec<f64>,
        nested: Option<Box<Worker>>,
    }
    let inner = Worker { name: "ü\0\n".into(), weights: vec![], nested: None };
    let worker = Worker { name: "w".into(), weights: vec![0.5, -1.0], nested: Some(Box::new(inner)) };
    let (a, b) = h.pair().await?;
    let group = a.group("g")?;
    group.join_or_create(Capabilities::new(&worker)?).await?;
    let seen = b.group("g")?.member_capabilities("a").await?;
    ensure(seen.get::<Worker>()? == worker, "the value changed on its way")?;
    for bytes in [&b""[..], b"\0", b"\xc1\xff not messagepack", &[0xff; 4096]] {
        group.update_capabilities(Capabilities::from_raw(bytes)?).await?;
        let seen = b.group("g")?.member_capabilities("a").await?;
        ensure(seen.raw() == Some(bytes), "the bytes changed on their way")?;
    }
    group.update_capabilities(Capabilities::none()).await?;
    ensure(b.group("g")?.member_capabilities("a").await?.is_none(), "nothing became something")
}

/// G5: 64 KiB fit, and no byte more.
async fn capabilities_have_a_limit(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let most = Capabilities::from_raw(vec![7; MAX_CAPABILITIES_BYTES - 3])?; // bin 16 has a header of three bytes
    ensure(most.as_msgpack().len() == MAX_CAPABILITIES_BYTES, "not exactly the limit")?;
    a.group("g")?.join_or_create(most.clone()).await?;
    ensure(b.group("g")?.member_capabilities("a").await? == most, "they changed on their way")?;
    refused(Capabilities::from_raw(vec![7; MAX_CAPABILITIES_BYTES - 2]), ErrorKind::Invalid)?;
    refused(Capabilities::new(&"x".repeat(MAX_CAPABILITIES_BYTES)), ErrorKind::Invalid).map(|_| ())
}

/// G5: only a member publishes, and only about itself.
async fn capabilities_of_others_cannot_be_updated(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    refused(b.group("g")?.update_capabilities(caps("x")?).await, ErrorKind::GroupNotFound)?;
    a.group("g")?.join_or_create(caps("mine")?).await?;
    refused(b.group("g")?.update_capabilities(caps("x")?).await, ErrorKind::MemberNotFound)?;
    a.group("g")?.leave().await?;
    refused(a.group("g")?.update_capabilities(caps("x")?).await, ErrorKind::MemberNotFound)?;
    ensure(ids(&b, "g").await?.is_empty(), "an update brought a member back")
}

/// G5: others see the new capabilities, of the same incarnation.
async fn update_is_seen_by_others(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(caps("first")?).await?;
    let before = b.group("g")?.member("a").await?;
    a.group("g")?.update_capabilities(caps("second")?).await?;
    let after = b.group("g")?.member("a").await?;
    ensure(after.capabilities == caps("second")?, "the first capabilities still stand")?;
    ensure(after.incarnation == before.incarnation && after.joined_at == before.joined_at, "it joined anew")?;
    ensure(after.updated_at >= before.updated_at, "the time of the update went back")
}
