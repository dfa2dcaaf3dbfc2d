//! What a child's own cgroup has beside it: told apart from its group, stopped after its end, seen to be gone. The steps are `stopping`'s.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::{Cell, Life};
use crate::cgroup::Cgroup;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::process;
use crate::scope::{Scope, TreeUsage};
use crate::signal::Signal;
use crate::token::{Kind, Token};

/// A child's cgroup, and what it used.
#[derive(Debug)]
pub(crate) enum Tree {
    /// Somebody may be in there.
    There(Cgroup),
    /// Empty and removed.
    Gone(TreeUsage),
}

impl Cell {
    /// Its `cgroup.events` has changed.
    pub(crate) fn on_tree(self: &Arc<Cell>) {
        self.with(|life| self.look_at_tree(life));
    }

    pub(super) fn watch_tree(&self, life: &Life, token: Token) -> Result<()> {
        match life.cgroup() {
            // An event that is older than the registration is told at once, as long as nobody has read the file.
            Some(cgroup) => self.core.register_tree(cgroup.as_fd(), token.of_kind(Kind::Tree)),
            None => Ok(()),
        }
    }

    /// It is gone when its last process is, and the child's own end is known: someone with the right to may have moved the child out.
    pub(super) fn look_at_tree(self: &Arc<Cell>, life: &mut Life) {
        if life.exit.is_none() || life.cgroup().is_none_or(Cgroup::is_populated) {
            return;
        }
        if let Some(Tree::There(cgroup)) = life.extra().tree.as_deref_mut() {
            self.core.deregister(cgroup.as_fd());
            let usage = cgroup.final_usage();
            // The directory goes with it.
            life.extra().tree = Some(Box::new(Tree::Gone(usage)));
        }
        if life.done {
            self.report_tree(life);
        }
        life.wake_all();
        self.wake_sleepers(life);
        self.end_group_stop(life);
    }

    /// What the child left in its cgroup is stopped as the child would have been.
    pub(super) fn stop_tree(self: &Arc<Cell>, life: &mut Life) {
        if life.cgroup().is_none() || life.is_stopping_rest() {
            return;
        }
        life.stopping_tree = true;
        let delay = life.extra.as_ref().and_then(|e| e.wait_delay);
        self.start_delay(life, delay);
        self.next_step(life);
    }

    /// The child first, wherever it is; then everybody in its cgroup.
    pub(super) fn signal_tree(&self, life: &Life, cgroup: &Cgroup, signal: Signal) -> std::io::Result<()> {
        let child = match life.open_pidfd() {
            Some(pidfd) => process::send(pidfd.as_fd(), self.pid(), Scope::Child, signal),
            None => Ok(()),
        };
        let rest = if signal == Signal::SIGKILL { cgroup.kill() } else { cgroup.signal(signal, self.pid()) };
        child.and(rest)
    }

    /// What everybody in its cgroup used so far, or, when they are gone, has used.
    pub(crate) fn tree_usage(&self) -> Result<TreeUsage> {
        self.core.check_ours()?;
        let life = self.lock();
        match life.extra.as_ref().and_then(|extra| extra.tree.as_deref()) {
            Some(Tree::There(cgroup)) => {
                cgroup.usage().map_err(|error| Error::os(Stage::Cgroup, error).of(&*self.label))
            }
            Some(Tree::Gone(usage)) => Ok(*usage),
            None => Err(self.treeless()),
        }
    }

    /// Whether there is, or was, one to wait for.
    pub(crate) fn check_tree(&self) -> Result<()> {
        self.core.check_ours()?;
        let has_tree = self.lock().extra.as_ref().is_some_and(|extra| extra.tree.is_some());
        if has_tree { Ok(()) } else { Err(self.treeless()) }
    }

    fn treeless(&self) -> Error {
        self.error(ErrorKind::Unsupported).saying("it has no cgroup of its own, which alone tells of its tree")
    }

    /// Waits until nobody is left in its cgroup, at most until `until`.
    pub(crate) fn wait_tree(&self, until: Option<Instant>) -> Result<Option<TreeUsage>> {
        self.check_tree()?;
        let mut life = self.lock();
        loop {
            if let Some(usage) = life.tree_end() {
                return Ok(Some(usage));
            }
            if life.died {
                return Err(self.error(ErrorKind::ReactorDied));
            }
            life = match self.sleep(life, until) {
                Some(life) => life,
                None => return Ok(None),
            };
        }
    }

    /// After its exit: then whoever turns the loop knows whose tree it is.
    pub(super) fn report_tree(&self, life: &Life) {
        if let (Some(token), Some(usage)) = (life.token, life.tree_end()) {
            self.core.report_tree(token, usage);
        }
    }
}

impl Life {
    /// As long as somebody may be in it.
    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        match self.extra.as_ref()?.tree.as_deref()? {
            Tree::There(cgroup) => Some(cgroup),
            Tree::Gone(_) => None,
        }
    }

    pub(super) fn tree_end(&self) -> Option<TreeUsage> {
        match self.extra.as_ref()?.tree.as_deref()? {
            Tree::There(_) => None,
            Tree::Gone(usage) => Some(*usage),
        }
    }

    /// Whether anybody is left whom the steps of a stop are for, of a child that is dead.
    pub(super) fn rest_is_alive(&self) -> bool {
        match self.scope {
            Scope::Group => process::group_is_alive(self.pidfd()),
            _ => self.cgroup().is_some_and(Cgroup::is_populated),
        }
    }
}
