//! The tree that a child with a cgroup of its own has: what it used, when the last of it is gone. Knows its cell.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use super::Child;
use crate::error::{Error, ErrorKind, Result};
use crate::reactor::cell::{Awaited, Cell, WakeKey};
use crate::scope::TreeUsage;

/// Its tree, if it was started with [`Command::cgroup_scope`](crate::Command::cgroup_scope).
impl Child {
    /// Waits until it and everything it has started are gone, and its cgroup is removed; gives what all of them used. Stops nobody.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if it has no cgroup of its own: then nobody tells. Else as [`Child::wait`].
    pub fn wait_tree(&self) -> Result<TreeUsage> {
        sure(self.cell.wait_tree(None)?)
    }

    /// As [`Child::wait_tree`], for at most `limit`; `None` if somebody is left then.
    ///
    /// # Errors
    ///
    /// As [`Child::wait_tree`].
    pub fn wait_tree_timeout(&self, limit: Duration) -> Result<Option<TreeUsage>> {
        self.cell.wait_tree(Instant::now().checked_add(limit))
    }

    /// As [`Child::wait_tree`], for any runtime.
    ///
    /// # Errors
    ///
    /// As [`Child::wait_tree`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub fn wait_tree_async(&self) -> impl Future<Output = Result<TreeUsage>> + Send + '_ {
        Felled { cell: self.cell.clone(), key: None }
    }

    /// What it and everything it has started used up to now.
    ///
    /// # Errors
    ///
    /// As [`Child::wait_tree`].
    pub fn tree_usage(&self) -> Result<TreeUsage> {
        self.cell.tree_usage()
    }
}

fn sure(usage: Option<TreeUsage>) -> Result<TreeUsage> {
    usage.ok_or_else(|| Error::new(ErrorKind::StatusLost))
}

/// Waits until nobody is left.
#[derive(Debug)]
struct Felled {
    cell: Arc<Cell>,
    key: Option<WakeKey>,
}

impl Future for Felled {
    type Output = Result<TreeUsage>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<TreeUsage>> {
        let this = &mut *self;
        // Asked first, by a call that says why there is nothing to wait for.
        if let Err(error) = this.cell.check_tree() {
            return Poll::Ready(Err(error));
        }
        if this.cell.wake_when(Awaited::Tree, &mut this.key, cx.waker()) {
            return Poll::Pending;
        }
        Poll::Ready(this.cell.wait_tree(Some(Instant::now())).and_then(sure))
    }
}

impl Drop for Felled {
    fn drop(&mut self) {
        self.key.into_iter().for_each(|key| self.cell.forget_waker(key));
    }
}
