//! X1, X2, X4: errors, input that is none, secrets.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(errors_name_the_thing_and_the_operation, "X1"),
    case!(errors_say_whether_to_try_again, "X1"),
    case!(no_url_panics, "X2", "S1"),
    case!(no_option_panics, "X2", "S1"),
    case!(no_name_panics, "X2", "G6"),
    case!(no_duration_panics, "X2", "L2"),
    case!(secrets_are_not_shown, "X4"),
    case!(capabilities_are_not_shown, "X4", "G5"),
];

/// X1: one line, with what the caller named.
async fn errors_name_the_thing_and_the_operation(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    for error in [
        a.group("workers")?.members().await.err(),
        a.group("workers")?.join(Capabilities::none()).await.err(),
        a.group("workers")?.leave().await.err(),
        a.group("workers")?.delete().await.err(),
        a.group("workers")?.watch().await.err(),
        a.group("workers")?.update_capabilities(caps("x")?).await.err(),
    ] {
        let error = error.ok_or("an unknown group was known")?;
        let text = error.to_string();
        ensure(text.contains("workers") && !text.contains('\n'), format!("not named on one line: {text}"))?;
        ensure(!error.operation().is_empty(), format!("the operation is not named: {text}"))?;
    }
    Ok(())
}

/// X1: what the caller did wrong does not get right by trying again, and certainly did not happen.
async fn errors_say_whether_to_try_again(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let error = refused(a.group("g")?.members().await, ErrorKind::GroupNotFound)?;
    ensure(!error.is_retryable() && !error.is_indeterminate(), format!("{error}"))?;
    let error = refused(a.lock("x")?.permits(0), ErrorKind::Invalid)?;
    ensure(!error.is_retryable() && !error.is_indeterminate(), format!("{error}"))?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let error = refused(a.group("g")?.join(Capabilities::none()).await, ErrorKind::MemberExists)?;
    ensure(!error.is_retryable() && !error.is_indeterminate(), format!("{error}"))
}

/// X2, S1: the target's own URL, cut off and bent at every place.
async fn no_url_panics(h: Harness) -> Outcome {
    // Nothing but the scheme and the options is bent: a path would name files outside of the case.
    let url = h.url().to_owned();
    let scheme = url.split("://").next().unwrap_or_default().to_owned();
    let urls = [
        scheme.clone(),
        format!("{scheme}:"),
        format!("{scheme}:/"),
        format!("{url}?"),
        format!("{url}#"),
        format!("{url}%"),
        format!("{url}%zz"),
        format!("{url}?=&=&="),
        format!("{url}?&&&"),
        format!("{scheme}://:@:/"),
        format!("{scheme}://[::1"),
        format!("{scheme}://host:99999/x"),
        format!("{scheme}://%00/"),
        format!("{scheme}:///%00"),
        format!("{scheme}://user@/"),
        format!("{}://x", "s".repeat(10_000)),
        format!("{scheme}://{},", "h".repeat(10_000)),
    ];
    let mut refusals = 0;
    for url in urls {
        match h.builder_at(&url, "a").connect().await {
            Ok(c) => c.close().await?,
            Err(error) => {
                refusals += 1;
                ensure(!error.to_string().contains('\n'), format!("more than one line: {error}"))?;
            }
        }
    }
    ensure(refusals > 5, "nearly every bent URL connects")
}

/// X2, S1: whatever stands in an option is a value, or refused with its name.
async fn no_option_panics(h: Harness) -> Outcome {
    for option in tooz_core::COMMON_OPTIONS {
        for value in
            ["", "0", "-1", "1e400", "NaN", "inf", "1s1s", "\0", "ü", "true", "99999999999999999999s"]
        {
            match h.builder("a").option(option.name(), value).connect().await {
                Ok(c) => c.close().await?,
                Err(error) => {
                    let kind = error.kind();
                    ensure(
                        matches!(kind, ErrorKind::InvalidOption | ErrorKind::Invalid),
                        format!("{error}"),
                    )?;
                    ensure(error.to_string().contains(option.name()), format!("not named: {error}"))?;
                }
            }
        }
    }
    Ok(())
}

/// X2, G6: neither in a name nor in what is said about it.
async fn no_name_panics(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for length in [1, 2, 3, 17, 63, 64, 65, 127, 128, 200, 254, 255] {
        let name: Vec<u8> = (0..length)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.to_le_bytes()[0]
            })
            .collect();
        let error = refused(a.group(&name)?.members().await, ErrorKind::GroupNotFound)?;
        ensure(!error.to_string().contains(['\n', '\0']), format!("not on one line: {error:?}"))?;
        a.group(&name)?.create().await?;
        a.group(&name)?.delete().await?;
        let guard = a.lock(&name)?.acquire().await?;
        ensure(!format!("{guard:?}").contains('\0'), "a NUL is shown")?;
        guard.release().await?;
    }
    Ok(())
}

/// X2, L2: from nothing to for ever.
async fn no_duration_panics(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for limit in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX / 2, Duration::MAX] {
        drop(a.lock("x")?.acquire_within(limit).await); // too short for an answer, perhaps
        let guard = within("the lock", h.soon(), a.lock("x")?.acquire()).await??;
        let waiting = {
            let lock = b.lock("x")?;
            h.spawn(async move { lock.acquire_within(limit).await.is_ok_and(|guard| guard.is_some()) })
        };
        if limit > secs(1) {
            h.waiters("x", 1).await?;
        }
        guard.release().await?;
        let granted = h.soon_done("the hand-over", waiting).await??;
        ensure(granted || limit < secs(1), "not granted within for ever")?;
    }
    Ok(())
}

/// X4: neither in what a URL shows nor in an error about it.
async fn secrets_are_not_shown(h: Harness) -> Outcome {
    let scheme = h.url().split("://").next().unwrap_or_default().to_owned();
    let builder = h.builder_at(&format!("{scheme}://user:hunter2@host/path"), "a");
    ensure(!format!("{builder:?}").contains("hunter2"), "a builder shows a password")?;
    match builder.connect_timeout(secs(1)).connect().await {
        Ok(c) => {
            ensure(
                !format!("{c:?} {:?} {}", c.url(), c.url()).contains("hunter2"),
                "a coordinator shows it",
            )?;
            c.close().await?;
        }
        Err(error) => {
            let mut text = format!("{error} {error:?}");
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                text = format!("{text} {inner} {inner:?}");
                cause = inner.source();
            }
            ensure(!text.contains("hunter2"), format!("an error shows a password: {text}"))?;
        }
    }
    let builder = h.builder("a").option("password", "hunter2").option("auth_token", "hunter2");
    ensure(!format!("{builder:?}").contains("hunter2"), "a builder shows an option's secret")?;
    let error = builder.connect().await.err().map(|error| format!("{error} {error:?}")).unwrap_or_default();
    ensure(!error.contains("hunter2"), format!("an error shows an option's secret: {error}"))
}

/// X4, G5: what members publish may be private.
async fn capabilities_are_not_shown(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.join_or_create(caps("hunter2")?).await?;
    let mut watch = a.group("g")?.watch().await?;
    let snapshot = h.soon_done("the snapshot", watch.next()).await?;
    let text = format!("{a:?} {:?} {snapshot:?} {watch:?}", a.group("g")?.members().await?);
    ensure(!text.contains("hunter2"), format!("capabilities are shown: {text}"))
}
