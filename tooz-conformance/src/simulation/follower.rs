//! Who leads, as the driver says: where nothing of the core's stands between that could put it right.

use std::future::poll_fn;
use std::sync::Arc;

use tooz_core::driver::{Driver, LockKey};
use tooz_core::{FencingToken, GroupId};

use super::world::World;

/// Follows the leadership of a group; what is shown never goes back (E3).
pub(super) async fn follow_leader(world: Arc<World>, driver: Arc<dyn Driver>, group: &'static str) {
    let Ok(group) = GroupId::new(group) else { return };
    let key = LockKey::Leader(group);
    let mut holders = match driver.locks().watch(&key).await {
        Ok(holders) => holders,
        Err(error) => return world.wrong("E3", format!("{key} cannot be watched: {error}")),
    };
    let mut newest: Option<FencingToken> = None;
    while let Some(shown) = poll_fn(|cx| holders.as_mut().poll_next(cx)).await {
        let Ok(shown) = shown else { continue };
        for token in shown.holders.iter().filter_map(|holder| holder.token) {
            if newest.is_some_and(|newest| token < newest) {
                world.wrong("E3", format!("the driver shows {key} with token {token} after {newest:?}"));
            }
            newest = newest.max(Some(token));
        }
    }
}
