//! The trees that this process has open: one for each directory, namespace and kind of lock.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tooz_core::Result;
use tooz_core::driver::{Epoch, Stamp};
use tooz_local::os_lock::Flavor;

use crate::config::Config;
use crate::tree::base::open_base;
use crate::tree::layout;
use crate::tree::open_tree::{Tree, cannot_open};
use crate::tree::stamp;

/// By what a tree is found.
type Identity = (PathBuf, Option<String>, Flavor, Option<String>, u32, u32, bool);

static TREES: Mutex<BTreeMap<Identity, Weak<Tree>>> = Mutex::new(BTreeMap::new());

/// The tree of this directory: the one that the process has open, unless its directory was replaced.
pub(crate) fn open(config: &Config, epoch: Epoch) -> Result<Arc<Tree>> {
    let (base, known_file_system) = open_base(config)?;
    let fresh = Stamp { layout: config.layout, epoch };
    let identity = (
        base.path.clone(),
        config.namespace.clone(),
        config.flavor,
        config.boot_id.clone(),
        config.mode,
        config.layout,
        config.view,
    );
    let mut trees = TREES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tree) = trees.get(&identity).and_then(Weak::upgrade)
        && tree.owner.is_current()
        && tree.is_in_place()
    {
        stamp::check_locks(&tree.home, &tree.tmp, config, |cause| cannot_open(&base.path, cause))?;
        if stamp::read(&tree.home)? == Some(tree.stamp) {
            return Ok(tree);
        }
    }
    let mut tree = Tree::open(config, base, known_file_system, fresh)?;
    if config.view {
        tree.stamp.readable(&tree.base.path.display(), config.layout)?;
    } else {
        layout::bring_up(&mut tree, fresh)?;
    }
    let tree = Arc::new(tree);
    trees.retain(|_, tree| tree.strong_count() > 0);
    trees.insert(identity, Arc::downgrade(&tree));
    Ok(tree)
}
