//! What is read of the backend without a session.

use super::call::{Reads, read};
use crate::driver::{Holders, LockKey, MemberRecord};
use crate::{GroupId, Result};

pub(crate) async fn groups(reader: &dyn Reads) -> Result<Vec<GroupId>> {
    let driver = reader.driver();
    let call = Box::pin(async move { driver.groups().list().await });
    read(reader, call).await.map_err(|error| error.during("groups"))
}

pub(crate) async fn members(reader: &dyn Reads, id: &GroupId) -> Result<Vec<MemberRecord>> {
    let (driver, id) = (reader.driver(), id.clone());
    let call = Box::pin(async move { driver.groups().members(&id).await });
    read(reader, call).await.map_err(|error| error.during("members"))
}

pub(crate) async fn holders(reader: &dyn Reads, key: LockKey) -> Result<Holders> {
    let driver = reader.driver();
    let call = Box::pin(async move { driver.locks().holders(&key).await });
    read(reader, call).await.map_err(|error| error.during("holders"))
}
