//! Many processes increment a number in a file under one lock while a third of them is killed.
//!
//! `TOOZ_STRESS=200` for the full size; the default fits into an ordinary run.

use std::fs;

use super::{Backend, Running, TestBackend, eventually};
use nix::sys::signal::Signal;

/// Says who is at work, reads the counter, waits a little so that an overlap would show, writes it back by rename, and only then logs
/// token and value: a killed one has either not counted or counted whole, and every counted one knows its value.
const INCREMENT: &str = r#"
    me="$TOOZ_FENCING_TOKEN $TOOZ_MEMBER"
    echo "$me" > "holder.$$" && mv "holder.$$" holder
    n=$(cat counter)
    sleep 0.01
    echo "$((n + 1))" > "next.$$"
    echo "$TOOZ_FENCING_TOKEN $((n + 1))" > "done.$((n + 1)).$TOOZ_FENCING_TOKEN"
    [ "$(cat holder)" = "$me" ] || echo "$me" >> overlaps
    mv "next.$$" counter
"#;

pub(crate) fn no_update_is_lost_or_done_twice(backend: Backend) {
    let size: usize =
        std::env::var("TOOZ_STRESS").map_or(45, |text| text.parse().expect("TOOZ_STRESS: a number"));
    let place = TestBackend::on(backend);
    fs::write(place.path("counter"), "0\n").unwrap();
    let mut all: Vec<_> = (0..size)
        .map(|_| Running::start(place.tooz(&["lock", "counter", "--", "sh", "-c", INCREMENT])))
        .collect();
    // Every third, spread over the whole run. By turns whoever is at work, and one that may be starting, waiting,
    // at work, or just letting go.
    let mut at_work = 0;
    for index in (0..size).step_by(3) {
        eventually("the counter moves on", || value(&place) >= index / 4 || all.iter_mut().all(is_over));
        let mut victim = index;
        if index % 2 == 0 {
            let before = place.read("holder");
            eventually("the next one works", || {
                place.read("holder") != before || all.iter_mut().all(is_over)
            });
            let holder = holder(&place);
            if let Some(found) = all.iter().position(|running| Some(running.pid().as_raw()) == holder) {
                victim = found;
                at_work += 1;
            }
        }
        if !is_over(&mut all[victim]) {
            all[victim].signal(Signal::SIGKILL);
        }
    }
    let codes: Vec<_> = all.iter_mut().map(Running::code).collect();
    let succeeded = codes.iter().filter(|code| **code == 0).count();
    let killed = codes.iter().filter(|code| **code == 137).count();
    assert_eq!(succeeded + killed, size, "whoever was not killed succeeds: {codes:?}");
    assert!(
        killed >= size / 6 && at_work > 0,
        "{killed} of {size} killed, {at_work} at work: it proves nothing"
    );
    assert_eq!(place.read("overlaps"), "", "these were at work when a later one had begun");
    let last = value(&place);
    // A killed one may have counted just before its death; one that ended well has counted for certain.
    assert!((succeeded..=succeeded + killed).contains(&last), "{last} after {succeeded} whole increments");
    let mut done: Vec<(u64, u64)> = fs::read_dir(place.path(""))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (value, token) = name.strip_prefix("done.")?.split_once('.')?;
            Some((value.parse().ok()?, token.parse().ok()?))
        })
        .collect();
    done.sort_unstable();
    // One that died between its log and its rename is repeated by the next, with a larger token.
    assert!(done.windows(2).all(|pair| pair[0].1 < pair[1].1), "tokens grow with the value: {done:?}");
    let mut values: Vec<_> = done.iter().map(|(value, _)| *value).collect();
    values.dedup();
    assert!(values.into_iter().take(last).eq(1..=last as u64), "each value was reached: {done:?}");
    println!(
        "{backend:?}: {size} processes, {killed} killed ({at_work} of them at work), {succeeded} succeeded, the counter shows {last}"
    );
    assert_eq!(
        place.run(&["lock", "--try", "counter", "--", "true"]).code,
        Some(0),
        "nothing is left behind"
    );
}

/// The process of `tooz` whose command began last: the default member's name is `host-pid-random`.
fn holder(place: &TestBackend) -> Option<i32> {
    let text = place.read("holder");
    let (_, member) = text.trim().split_once(' ')?;
    member.rsplit('-').nth(1)?.parse().ok()
}

fn value(place: &TestBackend) -> usize {
    place.read("counter").trim().parse().unwrap_or(0)
}

fn is_over(running: &mut Running) -> bool {
    running.0.try_wait().unwrap().is_some()
}
