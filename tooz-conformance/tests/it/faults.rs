//! A backend that is deliberately wrong must redden exactly the cases that are there to notice it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tooz_conformance::{Case, cases, run_within, targets};

/// Each fault of `memory://…?fault=` and that of the machine, and the case that is there for it. All that turn red stand in `FAULTS.md`.
const FAULTS: [(&str, &str); 35] = [
    ("two-holders", "lock_is_exclusive"),
    ("stale-release", "release_twice_leaves_the_next_holder_alone"),
    ("token-repeats", "tokens_grow_with_every_grant"),
    ("lost-wakeup", "acquire_waits"),
    ("dead-member", "members_do_not_include_the_dead"),
    ("watch-gap", "what_is_delivered_is_the_membership"),
    ("cancel-leaks", "an_acquire_dropped_while_held_leaves_nothing"),
    ("barging", "nobody_passes_the_queue"),
    ("reader-beside-writer", "a_writer_keeps_readers_out"),
    ("silent-break", "break_tells_the_victim"),
    ("resurrect", "capabilities_of_others_cannot_be_updated"),
    ("leader-backwards", "a_holders_watch_never_goes_back"),
    ("deadline-late", "the_deadline_is_before_the_backends"),
    ("group-ids-fold", "group_ids_are_any_bytes"),
    ("namespace-leak", "namespaces_are_disjoint"),
    ("deadline-from-reply", "the_deadline_is_before_the_backends"),
    ("unknown-is-failure", "a_lost_answer_to_a_try_is_no_none"),
    ("unknown-is-success", "a_lost_answer_to_a_release_is_repaired"),
    ("late-update", "a_clients_changes_keep_their_order"),
    ("resume-too-far", "what_is_delivered_is_the_membership"),
    ("resume-too-early", "a_wait_for_the_next_change_dropped_loses_none"),
    ("place-lost", "a_waiter_whose_place_vanished_asks_again"),
    ("too-many-permits", "permits_are_limited"),
    ("renews-the-dead", "after_an_expiry_groups_are_joined_again"),
    ("dead-waiter", "a_crashed_waiter_is_in_nobodys_way"),
    ("orphan-lock", "a_crashed_leader_is_followed"),
    ("last-first", "coordinators_are_served_in_order"),
    ("deletion-untold", "a_deleted_group_ends_its_watch"),
    ("loss-untold", "lost_data_is_written_again"),
    ("close-leaks", "close_leaves_and_releases"),
    ("leave-ignored", "leave_is_seen_and_can_be_undone"),
    ("tokens-restart", "tokens_grow_across_ends_of_any_kind"),
    ("raise-ignored", "raised_tokens_are_those_of_every_later_grant"),
    ("ends-unmarked", "a_holder_that_was_cut_off_did_not_release"),
    (targets::memory::CLOCKS_STOP, "a_suspended_machine_holds_nothing"),
];

/// What no fault of these has anything to do with.
const ALWAYS_GREEN: &[&str] = &[
    "connect_unknown_scheme_is_refused",
    "capabilities_have_a_limit",
    "an_unknown_hook_is_refused",
    "errors_say_whether_to_try_again",
];

/// On the virtual clock a case takes milliseconds; one that hangs is ended by the virtual limit.
const BUDGET: Duration = Duration::from_secs(20);

/// The cases that turn red, with the reason.
type Red = BTreeMap<&'static str, String>;

/// What turns red with each of these faults. All are in one queue: a case that hangs holds up one thread, and no other fault.
fn red(faults: &[&'static str]) -> BTreeMap<&'static str, Red> {
    let mut queue = Vec::new();
    for fault in faults {
        let target = targets::memory::with_ttl(fault);
        let applicable: Vec<Case> = cases::all()
            .into_iter()
            .filter(|case| case.why_not(&target).is_none() && case.is_virtual(&target))
            .collect();
        assert!(applicable.len() > 100, "only {} cases run", applicable.len());
        queue.extend(applicable.into_iter().map(|case| (*fault, target.clone(), case)));
    }
    let red: BTreeMap<&'static str, Red> = faults.iter().map(|fault| (*fault, Red::new())).collect();
    let (queue, red) = (Mutex::new(queue), Mutex::new(red));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let Some((fault, target, case)) = next else { return };
                    if let Err(why) = run_within(&target, &case, BUDGET) {
                        let mut red = red.lock().unwrap_or_else(PoisonError::into_inner);
                        red.entry(fault).or_default().insert(case.name(), why);
                    }
                }
            });
        }
    });
    red.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_sound_backend_reddens_nothing() {
    let red = red(&[""]);
    assert!(red[""].is_empty(), "{red:#?}");
}

#[test]
fn each_fault_reddens_exactly_its_cases() {
    let mut table = String::from(
        "# Which fault reddens which case\n\nWritten by `TOOZ_BLESS=1 cargo test -p tooz-conformance --test it faults` and \
         compared by it. The first case of each is the one that is there for it.\n",
    );
    let mut wrong = Vec::new();
    let mut all = red(&FAULTS.map(|(fault, _)| fault));
    for (fault, expected) in FAULTS {
        let mut red = all.remove(fault).unwrap_or_default();
        for green in ALWAYS_GREEN {
            if let Some(why) = red.get(green) {
                wrong.push(format!("{fault}: {green} is red: {why}"));
            }
        }
        if red.remove(expected).is_none() {
            wrong.push(format!("{fault}: {expected} stays green; red: {red:#?}"));
        }
        let others: Vec<_> = red.keys().map(|name| format!("- {name}\n")).collect();
        let _ = write!(table, "\n## {fault}\n\n- {expected}\n{}", others.concat());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("FAULTS.md");
    if std::env::var_os("TOOZ_BLESS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == table, "other cases turn red than FAULTS.md says:\n{table}");
}
