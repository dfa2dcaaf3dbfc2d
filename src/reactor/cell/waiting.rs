//! Those who wait for a child: by `waitid` as its owner, asleep until somebody publishes, or by a waker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use rustix::event::Timespec;

use super::{Awaited, Cell, Kin, Life, Owner, WakeKey};
use crate::error::{ErrorKind, Result};
use crate::exit::Exit;
use crate::process::{self, WaitMode};
use crate::scope::Scope;

impl Cell {
    /// Waits for the death, at most until `until`.
    ///
    /// While nobody else reaps it the caller does, by `waitid`: no hop through the loop.
    pub(crate) fn wait(self: &Arc<Cell>, until: Option<Instant>) -> Result<Option<Exit>> {
        self.core.check_ours()?;
        self.close_untaken_stdin();
        let mut life = self.lock();
        loop {
            if let Some(exit) = &life.exit {
                return Ok(Some(exit.clone()));
            }
            if life.died {
                return Err(self.error(ErrorKind::ReactorDied));
            }
            if life.owner == Owner::Reactor && !life.traced {
                life.owner = Owner::Waiter;
                self.core.deregister(life.pidfd());
                drop(life);
                match self.wait_as_owner(until)? {
                    None if until.is_none_or(|until| until > Instant::now()) => {}
                    ended => return Ok(ended),
                }
                // A tracer has it, or a closure still decides about its cause: the loop tells.
                life = self.lock();
                continue;
            }
            life = match self.sleep(life, until) {
                Some(life) => life,
                None => return Ok(None),
            };
        }
    }

    /// As std: a child that reads its stdin to the end would wait for us.
    pub(crate) fn close_untaken_stdin(&self) {
        drop(self.take_piped(0));
    }

    /// Waits until the streams are done, too; always by the loop.
    pub(crate) fn wait_done(&self, until: Option<Instant>) -> Result<Option<Exit>> {
        self.core.check_ours()?;
        let mut life = self.lock();
        loop {
            match &life.exit {
                Some(exit) if life.done => return Ok(Some(exit.clone())),
                _ if life.died => return Err(self.error(ErrorKind::ReactorDied)),
                _ => {}
            }
            life = match self.sleep(life, until) {
                Some(life) => life,
                None => return Ok(None),
            };
        }
    }

    pub(super) fn sleep<'a>(
        &self,
        mut life: MutexGuard<'a, Life>,
        until: Option<Instant>,
    ) -> Option<MutexGuard<'a, Life>> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return None;
        }
        life.sleepers += 1;
        let was_dead = life.exit.is_some();
        let mut life = match left {
            Some(left) => self.changed.wait_timeout(life, left).unwrap_or_else(PoisonError::into_inner).0,
            None => self.changed.wait(life).unwrap_or_else(PoisonError::into_inner),
        };
        life.sleepers -= 1;
        match &life.exit {
            Some(exit) if !was_dead => self.woken(exit),
            _ => {}
        }
        Some(life)
    }

    /// Who waited for the end runs again.
    pub(crate) fn woken(&self, exit: &Exit) {
        self.core.recorder.exit_to_wake.record_time(exit.exited_at().elapsed());
    }

    /// To signal a condition nobody waits for is a system call all the same.
    pub(super) fn wake_sleepers(&self, life: &Life) {
        if life.sleepers > 0 {
            self.changed.notify_all();
        }
    }

    /// The caller owns the child, which is not in the epoll set: wait, reap, publish; or give it back when the time is over.
    pub(crate) fn wait_as_owner(self: &Arc<Cell>, until: Option<Instant>) -> Result<Option<Exit>> {
        let (pidfd, grouped, born) = {
            let mut life = self.lock();
            (life.lend_pidfd(), life.scope != Scope::Child || life.is_inspected(), life.kin == Kin::Born)
        };
        let outcome = match until {
            // A pidfd of the caller's may be one that does not block; and who is not our child can only be polled for.
            None if !born => {
                while !process::wait_readable(pidfd.as_fd(), None) {}
                Ok(None)
            }
            // A group's leader, and one that is to be inspected, is looked at first: what becomes of the group is decided before it is reaped.
            None if grouped => process::reap(pidfd.as_fd(), WaitMode::BlockAndLeave).map(|_| None),
            None => process::reap(pidfd.as_fd(), WaitMode::Block).map(Some),
            Some(until) => {
                wait_until_exit(pidfd.as_fd(), until);
                Ok(None)
            }
        };
        self.with(|life| {
            life.traced = false;
            match outcome {
                Ok(Some(reaped)) => self.ended(life, reaped, false),
                Ok(None) => self.reap_or_return(life),
                Err(error) => {
                    self.return_to_loop(life);
                    return Err(self.error(ErrorKind::Io).saying("waitid").because(error));
                }
            }
            Ok(life.exit.clone())
        })
    }

    pub(super) fn reap_or_return(self: &Arc<Cell>, life: &mut Life) {
        if life.has_exited() {
            life.owner = Owner::Reactor;
            self.try_reap(life);
        } else {
            self.return_to_loop(life);
        }
    }

    /// Adding a descriptor that is readable already reports at once: nothing is missed.
    pub(super) fn return_to_loop(&self, life: &mut Life) {
        life.owner = Owner::Reactor;
        let Some(token) = life.token else { return };
        if self.core.register_readable(life.pidfd(), token).is_err() {
            self.retry(life);
        }
    }

    /// The exit, if there is one; reaps on the spot, as std's `try_wait`.
    pub(crate) fn try_wait(self: &Arc<Cell>) -> Result<Option<Exit>> {
        self.core.check_ours()?;
        self.with(|life| {
            if life.owner == Owner::Reactor && !life.traced && life.has_exited() {
                self.try_reap(life);
            }
            match &life.exit {
                None if life.died => Err(self.error(ErrorKind::ReactorDied)),
                exit => Ok(exit.clone()),
            }
        })
    }

    /// The exit, when it is there; or (`streams`) when the streams are done, too.
    pub(crate) fn outcome(self: &Arc<Cell>, streams: bool) -> Result<Option<Exit>> {
        if streams { self.wait_done(Some(Instant::now())) } else { self.try_wait() }
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    /// Has `waker` woken when that has happened; false if it has already. Again with the same key: in place of the former waker.
    pub(crate) fn wake_when(&self, awaited: Awaited, key: &mut Option<WakeKey>, waker: &Waker) -> bool {
        // Cloned and dropped outside the lock: a waker is somebody else's code.
        let waker = waker.clone();
        let mut life = self.lock();
        let is_there = match awaited {
            Awaited::Death => life.exit.is_some(),
            Awaited::Streams => life.done,
            Awaited::Tree => life.tree_end().is_some(),
        };
        if is_there || life.died {
            return false;
        }
        let others = life.others();
        let key = *key.get_or_insert_with(|| {
            others.next_key += 1;
            WakeKey(others.next_key)
        });
        let known = others.wakers.iter_mut().find(|(other, _)| *other == key);
        let former = match known {
            Some((_, known)) => Some(std::mem::replace(known, waker)),
            None => {
                others.wakers.push((key, waker));
                None
            }
        };
        drop(life);
        drop(former);
        true
    }

    /// The future is dropped.
    pub(crate) fn forget_waker(&self, key: WakeKey) {
        if !self.core.is_ours() {
            return;
        }
        let mut life = self.lock();
        let wakers = life.others.as_mut().map(|others| &mut others.wakers);
        let former = wakers.and_then(|wakers| {
            let place = wakers.iter().position(|(other, _)| *other == key)?;
            Some(wakers.swap_remove(place))
        });
        drop(life);
        drop(former);
    }

    /// A duplicate of the pidfd.
    pub(crate) fn pidfd(&self) -> Result<OwnedFd> {
        self.core.check_ours()?;
        let life = self.lock();
        let Some(pidfd) = life.open_pidfd() else {
            return Err(self.error(ErrorKind::NoSuchChild).saying("it has been reaped"));
        };
        // No number is left, or no memory for a longer table.
        pidfd.try_clone().map_err(|e| self.error(ErrorKind::NoDescriptors).because(e))
    }
}

fn wait_until_exit(pidfd: BorrowedFd<'_>, until: Instant) {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        if process::wait_readable(pidfd, Some(wait)) || left.is_zero() {
            return;
        }
    }
}
