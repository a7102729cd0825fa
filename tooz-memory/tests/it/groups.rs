//! Groups, member ids, watches.

use crate::common::*;
use tooz_core::driver::{End, GroupChange, Join, Notice};
use tooz_core::{Capabilities, ErrorKind};
use tooz_memory::Kit;

fn join(name: &str) -> Join {
    Join::new(group(name), Capabilities::none())
}

#[tokio::test(start_paused = true)]
async fn groups_and_their_errors() {
    let (driver, a) = member("memory://groups", "a").await;
    let (groups, mine, g) = (driver.groups(), a.groups(), group("g"));
    for result in [groups.delete(&g).await, mine.join(&join("g")).await, mine.leave(&g).await] {
        assert_eq!(kind(result), ErrorKind::GroupNotFound);
    }
    assert_eq!(kind(mine.update(&g, &Capabilities::none()).await), ErrorKind::GroupNotFound);
    assert_eq!(kind(groups.members(&g).await), ErrorKind::GroupNotFound);
    assert_eq!(kind(groups.member(&g, &id("a")).await), ErrorKind::GroupNotFound);
    assert_eq!(kind(groups.watch(&g).await.map(drop)), ErrorKind::GroupNotFound);

    groups.create(&g).await.unwrap();
    assert_eq!(kind(groups.create(&g).await), ErrorKind::GroupExists);
    assert_eq!(kind(mine.leave(&g).await), ErrorKind::MemberNotFound);
    assert_eq!(kind(mine.update(&g, &Capabilities::none()).await), ErrorKind::MemberNotFound);
    assert_eq!(kind(groups.member(&g, &id("a")).await), ErrorKind::MemberNotFound);

    let first = Capabilities::new("first").unwrap();
    mine.join(&Join::new(g.clone(), first.clone())).await.unwrap();
    assert_eq!(kind(mine.join(&join("g")).await), ErrorKind::MemberExists);
    let record = groups.member(&g, &id("a")).await.unwrap();
    assert_eq!(record.capabilities, first);
    assert!(record.joined_at.is_some() && record.joined_at == record.updated_at);
    assert_eq!(kind(groups.delete(&g).await), ErrorKind::GroupNotEmpty);

    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    mine.update(&g, &Capabilities::new("second").unwrap()).await.unwrap();
    let updated = groups.member(&g, &id("a")).await.unwrap();
    assert_eq!(updated.capabilities.get::<String>().unwrap(), "second");
    assert_eq!((updated.joined_at, updated.incarnation), (record.joined_at, record.incarnation));
    assert!(updated.updated_at > record.updated_at);

    mine.leave(&g).await.unwrap();
    mine.join(&join("g")).await.unwrap();
    assert_ne!(groups.member(&g, &id("a")).await.unwrap().incarnation, record.incarnation);
    mine.leave(&g).await.unwrap();
    groups.delete(&g).await.unwrap();
    assert!(groups.list().await.unwrap().is_empty());
    mine.join(&join("g").create(true)).await.unwrap();
    assert_eq!(groups.list().await.unwrap(), [g]);
}

#[tokio::test(start_paused = true)]
async fn lists_are_sorted_by_bytes_and_ids_never_meet() {
    let (driver, a) = member("memory://ids", "a").await;
    let ids: [&[u8]; 8] = [b"a", b"A", b"a\0", b"a\0b", b"..", b"a/b", b"\xff\xfe", b"leader"];
    for bytes in ids {
        driver.groups().create(&tooz_core::GroupId::new(bytes).unwrap()).await.unwrap();
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let listed = driver.groups().list().await.unwrap();
    assert_eq!(listed.iter().map(tooz_core::GroupId::as_bytes).collect::<Vec<_>>(), sorted);
    a.groups().join(&join("a")).await.unwrap();
    assert!(driver.groups().members(&group("A")).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_member_id_belongs_to_one_live_session_of_a_namespace() {
    let url = "memory://claims";
    let (driver, one) = member(url, "a").await;
    let (_d2, two) = member(url, "a").await;
    let (_d3, elsewhere) = member("memory://claims?namespace=other", "a").await;
    driver.groups().create(&group("h")).await.unwrap();
    one.groups().join(&join("g").create(true)).await.unwrap();
    // In any group, and whether or not the first is still in one.
    assert_eq!(kind(two.groups().join(&join("h")).await), ErrorKind::MemberExists);
    one.groups().leave(&group("g")).await.unwrap();
    assert_eq!(kind(two.groups().join(&join("h")).await), ErrorKind::MemberExists);
    elsewhere.groups().join(&join("g").create(true)).await.unwrap();

    drop(one);
    two.groups().join(&join("h")).await.unwrap();
    // The next session of the same coordinator goes on with the id, and nobody else gets it between.
    let (_d4, rival) = member(url, "a").await;
    let next = driver.open_session(&opening("a").after(Some(two.id()))).await.unwrap();
    assert!(driver.groups().members(&group("h")).await.unwrap().is_empty());
    assert_eq!(kind(rival.groups().join(&join("h")).await), ErrorKind::MemberExists);
    next.groups().join(&join("h")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn namespaces_do_not_see_each_other() {
    let (one, a) = member("memory://spaces", "a").await;
    let (two, b) = member("memory://spaces?namespace=other", "b").await;
    let (same, _c) = member("memory://spaces?namespace=tooz", "c").await;
    one.groups().create(&group("g")).await.unwrap();
    assert!(two.groups().list().await.unwrap().is_empty());
    assert_eq!(same.groups().list().await.unwrap(), [group("g")]);
    granted(&a, 1, Exclusive).await;
    granted(&b, 2, Exclusive).await;
    assert_eq!(two.locks().holders(&key("x")).await.unwrap().holders[0].member, Some(id("b")));
}

#[tokio::test(start_paused = true)]
async fn a_watch_delivers_every_change_once_and_in_order() {
    let url = "memory://watch";
    let (driver, a) = member(url, "a").await;
    let (_db, b) = member(url, "b").await;
    let g = group("g");
    a.groups().join(&join("g").create(true)).await.unwrap();
    let mut changes = driver.groups().watch(&g).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[a]");
    assert!(quiet(&mut changes).await);
    b.groups().join(&join("g")).await.unwrap();
    a.groups().update(&g, &Capabilities::new(&1).unwrap()).await.unwrap();
    a.groups().leave(&g).await.unwrap();
    a.groups().join(&join("g")).await.unwrap();
    drop(b);
    for expected in ["+b", "~a", "-a", "+a", "-b"] {
        assert_eq!(short(next(&mut changes).await), expected);
    }
    assert!(quiet(&mut changes).await);
    // A second watcher starts where the group is now.
    let mut late = driver.groups().watch(&g).await.unwrap();
    assert_eq!(short(next(&mut late).await), "[a]");
    let kit = Kit::of(url).unwrap();
    assert_eq!(kit.watchers(), 2);
    drop((changes, late));
    assert_eq!(kit.watchers(), 0);
}

#[tokio::test(start_paused = true)]
async fn deleting_ends_a_watch_and_the_next_group_of_that_name_is_another() {
    let (driver, a) = member("memory://deleted", "a").await;
    let g = group("g");
    driver.groups().create(&g).await.unwrap();
    let mut seen = driver.groups().watch(&g).await.unwrap();
    let mut unread = driver.groups().watch(&g).await.unwrap();
    assert_eq!(short(next(&mut seen).await), "[]");
    a.groups().join(&join("g")).await.unwrap();
    a.groups().leave(&g).await.unwrap();
    driver.groups().delete(&g).await.unwrap();
    a.groups().join(&join("g").create(true)).await.unwrap();
    for expected in ["+a", "-a", "deleted", "end", "end"] {
        assert_eq!(short(next(&mut seen).await), expected);
    }
    for expected in ["[]", "deleted", "end"] {
        assert_eq!(short(next(&mut unread).await), expected);
    }
    let mut fresh = driver.groups().watch(&g).await.unwrap();
    assert_eq!(short(next(&mut fresh).await), "[a]");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_gets_a_view() {
    let (driver, a) = member("memory://slow", "a").await;
    let (_db, b) = member("memory://slow", "b").await;
    let g = group("g");
    driver.groups().create(&g).await.unwrap();
    let mut slow = driver.groups().watch(&g).await.unwrap();
    let mut gone = driver.groups().watch(&g).await.unwrap();
    assert_eq!(short(next(&mut slow).await), "[]");
    assert_eq!(short(next(&mut gone).await), "[]");
    b.groups().join(&join("g")).await.unwrap();
    for _ in 0..600 {
        a.groups().join(&join("g")).await.unwrap();
        a.groups().leave(&g).await.unwrap();
    }
    assert_eq!(short(next(&mut slow).await), "[b]");
    assert!(quiet(&mut slow).await);
    a.groups().join(&join("g")).await.unwrap();
    assert_eq!(short(next(&mut slow).await), "+a");
    // Behind, and deleted meanwhile: the deletion still comes last.
    a.close(End::Clean).await.unwrap();
    b.close(End::Clean).await.unwrap();
    driver.groups().delete(&g).await.unwrap();
    for expected in ["[]", "deleted", "end"] {
        assert_eq!(short(next(&mut gone).await), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_evicted_member_is_told_and_can_join_again() {
    let url = "memory://evict";
    let (driver, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    a.groups().join(&join("g").create(true)).await.unwrap();
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[a]");
    assert!(!kit.evict("g", "nobody") && !kit.evict("nothing", "a") && !kit.evict("", ""));
    assert!(kit.evict("g", "a"));
    assert!(matches!(soon(a.notice()).await, Notice::Evicted(g) if g == group("g")));
    assert_eq!(kind(a.groups().leave(&group("g")).await), ErrorKind::MemberNotFound);
    a.groups().join(&join("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "-a");
    assert_eq!(short(next(&mut changes).await), "+a");
}

#[tokio::test(start_paused = true)]
async fn a_watch_survives_the_loss_of_all_data() {
    let url = "memory://lost";
    let (driver, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    a.groups().join(&join("g").create(true)).await.unwrap();
    let grant = granted(&a, 1, Exclusive).await;
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    let mut holders = driver.locks().watch(&key("x")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[a]");
    assert_eq!(next(&mut holders).await.unwrap().holders.len(), 1);
    kit.lose_data();
    assert_eq!((kit.sessions(), kit.held()), (0, 0));
    assert!(driver.groups().list().await.unwrap().is_empty());
    assert_eq!(short(next(&mut changes).await), "[]");
    assert!(next(&mut holders).await.unwrap().holders.is_empty());
    assert!(matches!(soon(a.notice()).await, Notice::SessionLost(tooz_core::LossReason::Vanished)));

    let again = driver.open_session(&opening("a").after(Some(a.id()))).await.unwrap();
    assert_ne!(again.epoch(), a.epoch());
    assert!(granted(&again, 2, Exclusive).await.token > grant.token);
    again.groups().join(&join("g").create(true)).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "+a");
    again.close(End::Clean).await.unwrap();
    driver.groups().delete(&group("g")).await.unwrap();
    for expected in ["-a", "deleted", "end"] {
        assert_eq!(short(next(&mut changes).await), expected);
    }
    drop((changes, holders));
    assert_eq!(kit.watchers(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_delivered_adds_up_to_the_group() {
    let url = "memory://adds-up";
    let (driver, a) = member(url, "a").await;
    let (_db, b) = member(url, "b").await;
    driver.groups().create(&group("g")).await.unwrap();
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    let mut known = std::collections::BTreeMap::new();
    for round in 0..50_u32 {
        let session = if round % 3 == 0 { &b } else { &a };
        if session.groups().join(&join("g")).await.is_err() {
            match round % 4 {
                0 => session.groups().leave(&group("g")).await.unwrap(),
                _ => session.groups().update(&group("g"), &Capabilities::new(&round).unwrap()).await.unwrap(),
            }
        }
        if round % 5 == 0 {
            while let Ok(change) =
                tokio::time::timeout(std::time::Duration::from_millis(1), next(&mut changes)).await
            {
                match change.unwrap() {
                    GroupChange::View(all) => {
                        known = all.into_iter().map(|record| (record.member.clone(), record)).collect();
                    }
                    GroupChange::Joined(record) | GroupChange::Updated(record) => {
                        known.insert(record.member.clone(), record);
                    }
                    GroupChange::Left(record, _) => {
                        known.remove(&record.member);
                    }
                    other => panic!("{other:?}"),
                }
            }
            let members = driver.groups().members(&group("g")).await.unwrap();
            assert_eq!(known.values().cloned().collect::<Vec<_>>(), members, "round {round}");
        }
    }
}
