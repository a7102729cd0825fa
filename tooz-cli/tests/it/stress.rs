//! Many processes increment a number in a file under one lock while a third of them is killed.

use crate::common::Backend;
use crate::common::counting::no_update_is_lost_or_done_twice;

#[test]
fn no_update_is_lost_or_done_twice_on_sqlite() {
    no_update_is_lost_or_done_twice(Backend::Sqlite);
}

#[test]
fn no_update_is_lost_or_done_twice_on_file() {
    no_update_is_lost_or_done_twice(Backend::File);
}
