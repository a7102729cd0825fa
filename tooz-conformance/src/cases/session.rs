//! S1, S3, S9: connecting, closing, and whose member id it is.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(connect_unknown_scheme_is_refused, "S1"),
    case!(connect_malformed_url_is_refused, "S1", "X4"),
    case!(connect_refuses_what_cannot_be_seen, "S1", "X4"),
    case!(connect_unknown_option_is_refused, "S1"),
    case!(connect_malformed_option_is_refused, "S1", "X4"),
    case!(connect_unclaimed_characteristics_are_refused, "S1"),
    case!(connect_keeps_what_is_claimed, "S1"),
    case!(connect_checks_the_member_id, "S1", "G6"),
    case!(an_option_beside_the_url_wins, "S1"),
    case!(connect_is_limited_while_the_backend_is_down, "S1").kit(),
    case!(close_leaves_and_releases, "S3"),
    case!(close_can_be_called_twice, "S3"),
    case!(close_is_limited_while_the_backend_is_down, "S3").kit(),
    case!(closed_means_closed, "S3", "X1"),
    case!(a_member_id_belongs_to_one_live_session, "S9"),
    case!(a_member_id_is_free_after_close, "S9"),
    case!(a_member_id_is_not_claimed_by_locks, "S9"),
    case!(a_member_id_is_free_once_its_session_ended, "S9").ttl(),
    case!(the_last_handle_closes, "S11"),
    case!(a_guard_keeps_the_session, "S11", "L5").lasting(),
    case!(a_watch_keeps_the_session, "S11").lasting(),
    case!(a_clone_is_the_same_coordinator, "S11"),
];

/// S1: an unknown scheme is its own kind and is named.
async fn connect_unknown_scheme_is_refused(h: Harness) -> Outcome {
    let error = refused(h.builder_at("nosuchscheme://x", "a").connect().await, ErrorKind::UnknownScheme)?;
    ensure(error.to_string().contains("nosuchscheme"), format!("the scheme is not named: {error}"))
}

/// S1, X4: a URL that is none is refused, and no password in it is shown.
async fn connect_malformed_url_is_refused(h: Harness) -> Outcome {
    for url in ["", "x", "://", "memory", "1x://h", "memory://u:hunter2@h:port", "memory://h#hunter2"] {
        let error = refused(h.builder_at(url, "a").connect().await, ErrorKind::InvalidUrl)?;
        ensure(!format!("{error} {error:?}").contains("hunter2"), format!("a secret is shown: {error:?}"))?;
    }
    Ok(())
}

/// S1, X4: what cannot be seen makes no other backend and no other namespace that looks the same.
async fn connect_refuses_what_cannot_be_seen(h: Harness) -> Outcome {
    for end in ["\n", " ", "\t", "\u{a0}", "\u{200b}", "\u{feff}"] {
        let url = format!("{}{end}", h.url());
        refused(h.builder_at(&url, "a").connect().await, ErrorKind::InvalidUrl)?;
        for namespace in [format!("hunter2{end}"), format!("{end}hunter2")] {
            let error =
                refused(h.builder("a").namespace(namespace).connect().await, ErrorKind::InvalidOption)?;
            let said = format!("{error} {error:?}");
            ensure(said.contains("namespace") && said.contains("U+"), format!("it is not named: {said}"))?;
            ensure(!said.contains("hunter2"), format!("the value is shown: {said}"))?;
        }
    }
    let error = refused(h.builder("a").namespace("a\nb").connect().await, ErrorKind::InvalidOption)?;
    ensure(error.to_string().contains("U+000A"), format!("{error}"))
}

/// S1: a mistyped option must not weaken anything silently.
async fn connect_unknown_option_is_refused(h: Harness) -> Outcome {
    let error = refused(h.builder("a").option("tll", "9s").connect().await, ErrorKind::InvalidOption)?;
    ensure(error.to_string().contains("tll"), format!("the option is not named: {error}"))
}

/// S1, X4: a malformed value is refused by the option's name, and not shown: it may be a secret.
async fn connect_malformed_option_is_refused(h: Harness) -> Outcome {
    for value in ["hunter2", "-1s", "0s", "99999d", ""] {
        let builder = h.builder("a").option("operation_timeout", value);
        let error = refused(builder.connect().await, ErrorKind::InvalidOption)?;
        ensure(error.to_string().contains("operation_timeout"), format!("it is not named: {error}"))?;
        ensure(!format!("{error:?}").contains("hunter2"), format!("the value is shown: {error:?}"))?;
    }
    Ok(())
}

/// S1: whoever needs what this backend cannot keep is told so at connect, by name.
async fn connect_unclaimed_characteristics_are_refused(h: Harness) -> Outcome {
    let unclaimed = Characteristics::all() - h.claimed();
    ensure(!unclaimed.is_empty(), "no backend can keep every characteristic")?;
    for flag in unclaimed.iter() {
        let result = h.builder("a").require(flag).connect().await;
        let error = refused(result, ErrorKind::MissingCharacteristic)?;
        ensure(error.to_string().contains(&flag.to_string()), format!("{flag} is not named: {error}"))?;
    }
    Ok(())
}

/// S1: what the registration claims can be required, and is what the coordinator answers.
async fn connect_keeps_what_is_claimed(h: Harness) -> Outcome {
    let c = h.keep(h.builder("a").require(h.claimed())).await?;
    ensure(c.characteristics() == h.claimed(), format!("{} is kept", c.characteristics()))
}

/// S1, G6: an empty or too long member id is refused before anything is sent.
async fn connect_checks_the_member_id(h: Harness) -> Outcome {
    refused(h.builder("").connect().await, ErrorKind::Invalid)?;
    refused(h.builder([b'm'; 256]).connect().await, ErrorKind::Invalid)?;
    h.coordinator([b'm'; 255]).await.map(|_| ())
}

/// S1: an option given beside the URL wins over the one in it.
async fn an_option_beside_the_url_wins(h: Harness) -> Outcome {
    let separator = if h.url().contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}namespace=elsewhere", h.url());
    let a = h.keep(h.builder_at(&url, "a")).await?; // the builder names the case's namespace
    a.group("g")?.create().await?;
    let b = h.coordinator("b").await?;
    ensure(b.groups().await?.len() == 1, "the namespace of the URL was taken")
}

/// S1: a backend that does not answer costs a caller no more than `connect_timeout`.
async fn connect_is_limited_while_the_backend_is_down(h: Harness) -> Outcome {
    let _keeps_the_backend = h.coordinator("a").await?;
    h.kit()?.pause();
    let watch = h.stopwatch();
    let error = h.builder("b").connect_timeout(secs(2)).connect().await.err();
    h.kit()?.resume();
    let error = error.ok_or("it connected to a backend that does not answer")?;
    ensure(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), error.to_string())?;
    ensure(watch.elapsed() <= secs(2) + h.soon(), format!("it took {:?}", watch.elapsed()))
}

/// S3: when close returns, everything is given back.
async fn close_leaves_and_releases(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let _guard = taken(&a, "x").await?;
    let _lead = a.election("g")?.campaign().await?;
    a.close().await?;
    ensure(ids(&b, "g").await?.is_empty(), "still a member after close")?;
    ensure(b.election("g")?.try_campaign().await?.is_some(), "still leader after close")?;
    taken(&b, "x").await.map(|_| ())
}

/// S3: closing twice is fine.
async fn close_can_be_called_twice(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.close().await?;
    Ok(a.close().await?)
}

/// S3: a backend that does not answer holds close up for no longer than `close_timeout`.
async fn close_is_limited_while_the_backend_is_down(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").close_timeout(secs(2))).await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = taken(&a, "x").await?;
    h.kit()?.pause();
    let watch = h.stopwatch();
    let answer = a.close().await;
    ensure(watch.elapsed() <= secs(2) + h.soon(), format!("close took {:?}", watch.elapsed()))?;
    if let Err(error) = answer {
        ensure(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
            format!("close says why it could not tell the backend: {error}"),
        )?;
    }
    ensure(!guard.is_held(), "a guard is held after close")
}

/// S3, X1: a closed coordinator says so.
async fn closed_means_closed(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let (group, lock) = (a.group("g")?, a.lock("x")?);
    group.create().await?;
    a.close().await?;
    refused(group.members().await, ErrorKind::Closed)?;
    refused(group.join(Capabilities::none()).await, ErrorKind::Closed)?;
    refused(lock.try_acquire().await, ErrorKind::Closed)?;
    refused(lock.acquire().await, ErrorKind::Closed)?;
    refused(a.groups().await, ErrorKind::Closed)?;
    ensure(matches!(a.liveness(), Liveness::Lost { .. }), "a closed coordinator is not alive")
}

/// S9: the id is claimed by the first join, in all groups of the namespace.
async fn a_member_id_belongs_to_one_live_session(h: Harness) -> Outcome {
    let (first, second) = (h.coordinator("same").await?, h.coordinator("same").await?);
    first.group("g")?.join_or_create(caps("first")?).await?;
    first.group("h")?.create().await?;
    refused(second.group("g")?.join(Capabilities::none()).await, ErrorKind::MemberExists)?;
    refused(second.group("h")?.join(Capabilities::none()).await, ErrorKind::MemberExists)?;
    let record = first.group("g")?.member("same").await?;
    ensure(record.capabilities == caps("first")?, "the refused join changed the record")?;
    ensure(ids(&first, "h").await?.is_empty(), "the refused join left a record")
}

/// S9: close gives the id back.
async fn a_member_id_is_free_after_close(h: Harness) -> Outcome {
    let (first, second) = (h.coordinator("same").await?, h.coordinator("same").await?);
    first.group("g")?.join_or_create(Capabilities::none()).await?;
    first.close().await?;
    second.group("g")?.join(caps("second")?).await?;
    ensure(ids(&second, "g").await? == ["same"], "the second is the member")
}

/// S9: nothing is claimed before the first join; locks are contended as between strangers.
async fn a_member_id_is_not_claimed_by_locks(h: Harness) -> Outcome {
    let (first, second) = (h.coordinator("same").await?, h.coordinator("same").await?);
    let guard = taken(&first, "x").await?;
    held_by_another(&second, "x").await?;
    guard.release().await?;
    taken(&second, "x").await.map(|_| ())
}

/// S9: when the first's session has ended, the second may join, and not before.
async fn a_member_id_is_free_once_its_session_ended(h: Harness) -> Outcome {
    let first = h.keep(h.builder("same").manual_heart().rejoin(false)).await?; // it never beats
    let second = h.coordinator("same").await?;
    first.group("g")?.join_or_create(caps("first")?).await?;
    refused(second.group("g")?.join(Capabilities::none()).await, ErrorKind::MemberExists)?;
    eventually("the second may join", h.gone(), async || {
        match second.group("g")?.join(caps("second")?).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::MemberExists => Ok(false),
            Err(error) => Err(error),
        }
    })
    .await?;
    ensure(
        !matches!(first.liveness(), Liveness::Alive { .. }),
        "the first lives, and its id was taken over",
    )?;
    let record = second.group("g")?.member("same").await?;
    ensure(record.capabilities == caps("second")?, "the second's record stands")
}

/// S11: when the last handle is gone, everything is given back in the background.
async fn the_last_handle_closes(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let a = h.builder("a").connect().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    drop(a.clone());
    a.heartbeat().await?; // whatever the drop began comes before it
    ensure(ids(&b, "g").await? == ["a"], "a clone was dropped, and the session ended")?;
    drop(a);
    h.soon_true("the member has left", async || Ok::<_, Error>(ids(&b, "g").await?.is_empty())).await
}

/// S11, L5: a guard alone keeps its session alive, and the session ends with it.
async fn a_guard_keeps_the_session(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let a = h.builder("a").connect().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = taken(&a, "x").await?;
    drop(a);
    h.pass(h.some_ttl() * 3).await;
    ensure(guard.is_held(), "the guard outlives its coordinator's handle")?;
    held_by_another(&b, "x").await?;
    drop(guard);
    h.soon_true("the lock is free", async || Ok::<_, Error>(b.lock("x")?.try_acquire().await?.is_some()))
        .await?;
    h.soon_true("the member has left", async || Ok::<_, Error>(ids(&b, "g").await?.is_empty())).await
}

/// S11: a watch alone keeps its session alive.
async fn a_watch_keeps_the_session(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let a = h.builder("a").connect().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let watch = a.group("g")?.watch().await?;
    drop(a);
    h.pass(h.some_ttl() * 3).await;
    ensure(ids(&b, "g").await? == ["a"], "the watch's session has ended")?;
    drop(watch);
    h.soon_true("the member has left", async || Ok::<_, Error>(ids(&b, "g").await?.is_empty())).await
}

/// S11: clones share the session.
async fn a_clone_is_the_same_coordinator(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let clone = a.clone();
    ensure(a.session_id().is_some() && a.session_id() == clone.session_id(), "they share one session")?;
    a.close().await?;
    refused(clone.groups().await, ErrorKind::Closed).map(|_| ())
}
