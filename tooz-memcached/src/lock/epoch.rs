//! Which data a namespace holds, and where its tokens begin.
//!
//! A token is the cas number of the store that granted it, on top of the base. The server counts cas numbers up with every
//! store, and begins with 1 when it is started; the base is the server's time in microseconds when the data began, so that
//! tokens of later data are larger, unless the server stored more than a million items a second on average.

use std::sync::atomic::Ordering;

use tooz_core::Result;
use tooz_core::driver::{Epoch, Stamp};

use crate::client::Client;
use crate::connection::command::{Batch, Item, Look, Store};
use crate::connection::link::Link;
use crate::error::corrupt;

/// What the item at the epoch's key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) stamp: Stamp,
    /// Every token is larger.
    pub(crate) base: u64,
}

impl Origin {
    /// Of data that begins now.
    pub(crate) fn new(client: &Client, link: &Link) -> Self {
        let epoch = Epoch(client.context.entropy.id());
        Self { stamp: Stamp { layout: client.config.layout, epoch }, base: Self::least_base(client, link) }
    }

    /// The base of data that begins now.
    fn least_base(client: &Client, link: &Link) -> u64 {
        client.seconds(link).saturating_mul(1_000_000)
    }

    /// Of data whose stamp was evicted alone.
    pub(crate) fn again(client: &Client, link: &Link, stamp: Stamp) -> Self {
        let base = client.base.load(Ordering::Acquire);
        Self { stamp, base: base.max(Self::least_base(client, link)) }
    }

    pub(crate) fn write(self) -> Vec<u8> {
        format!("{}\n{}", self.stamp, self.base).into_bytes()
    }

    /// Reads it, and remembers the base.
    pub(crate) fn read(client: &Client, item: &Item) -> Result<Self> {
        let parsed = || {
            let text = std::str::from_utf8(&item.value).ok()?;
            let (stamp, base) = text.split_once('\n')?;
            Some(Self { stamp: Stamp::parse(stamp.as_bytes())?, base: base.parse().ok()? })
        };
        let what = "holds no stamp; end all programs that use it, then delete it";
        let origin = parsed().ok_or_else(|| corrupt(&client.keys.epoch(), what))?;
        client.base.store(origin.base, Ordering::Release);
        Ok(origin)
    }

    /// Reads what stands there, after adding `self` if nothing does.
    pub(crate) async fn or_add(self, client: &Client) -> Result<(Self, Item)> {
        let key = client.keys.epoch();
        let value = self.write();
        let mut batch = Batch::new();
        batch.add(Store::bytes(&key, 0, &value)).get(&key, Look::Whole);
        let mut answers = client.ask(&batch).await?.answers;
        answers.stored()?;
        let item = answers.item()?.ok_or_else(|| corrupt(&key, "vanishes as soon as it is stored"))?;
        Ok((Self::read(client, &item)?, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_comes_before_the_base() {
        let origin = Origin { stamp: Stamp { layout: 2, epoch: Epoch(7) }, base: 5 };
        assert_eq!(origin.write(), format!("2 {}\n5", Epoch(7)).into_bytes());
    }
}
