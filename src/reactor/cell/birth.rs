//! From the clone to the first registration, and to a later one when a loop takes over. Knows epoll by the core's words.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{After, CALL_GRACE, Call, Cell, Extra, Kin, Life, Owner};
use crate::cause::Cause;
use crate::error::{Error, ErrorKind, Result};
use crate::events::EventKind;
use crate::lifecycle::{Event, Phase};
use crate::pipe::capture::Capture;
use crate::process::{self, WaitMode};
use crate::reactor::stop::Delay;
use crate::scope::Scope;
use crate::signal::Signal;
use crate::tell::Level;
use crate::timer::Clock;
use crate::token::{Kind, Token};

impl Cell {
    /// What it needs beside its place. A stop that has come already has steps of its own.
    pub(crate) fn equip(&self, scope: Scope, extra: Option<Box<Extra>>) {
        self.with(|life| {
            life.scope = scope;
            let Some(mut extra) = extra else { return };
            if let Some(known) = life.extra.take() {
                std::mem::replace(&mut extra.ladder, known.ladder).retire();
            }
            life.extra = Some(extra);
        });
    }

    /// It came to nothing, and somebody may still hold it: what serves one spawn serves the next. What is returned may be the caller's to
    /// drop: not under a lock.
    pub(crate) fn strip(&self) -> Option<Box<Extra>> {
        self.lock().extra.take()
    }

    /// The exec succeeded, or a signal came before it: hands the child to the loop (`watched`) or to its creator, who waits for it; or, if it
    /// was stopped before its program began, ends it and says why. Had that begun, the exit will tell (promise 3).
    pub(crate) fn born(self: &Arc<Cell>, pid: u32, pidfd: OwnedFd, watched: bool) -> Result<()> {
        self.pid.store(pid, Ordering::Relaxed);
        let accepted = self.with(|life| {
            life.pidfd = Some(pidfd);
            if life.scope == Scope::Group {
                process::probe_group_flag(life.pidfd());
            }
            if let Some(cause) = life.pending.take_if(|_| !watched || !process::has_begun(pid)) {
                return Err(Error::stopped(*cause));
            }
            if life.died {
                return Err(Error::new(ErrorKind::ReactorDied));
            }
            if !watched {
                life.owner = Owner::Waiter;
                self.note_birth(life);
                return Ok(());
            }
            life.owner = Owner::Reactor;
            self.watch(life).map_err(|error| error.saying("the program had begun and was killed"))?;
            // Under the lock that their events wait for.
            life.extra.iter_mut().flat_map(|extra| extra.captures.iter_mut().flatten()).for_each(Capture::keep);
            self.note_birth(life);
            if life.pending.is_some() {
                if life.sent.kill {
                    life.record_cause();
                }
                self.feed(life, Event::Stop);
            } else {
                self.follow_pause_locked(life);
            }
            Ok(())
        });
        // No child outlives an error (promise 8).
        accepted.inspect_err(|_| self.put_down())
    }

    /// It is being created by this thread: until it is born nobody else asks for its span.
    pub(crate) fn trace_birth(&self, pid: u32) {
        let span = self.lock().span.take();
        if let Some(span) = span {
            span.born(pid);
            self.lock().span = span;
        }
    }

    /// It did not come to be.
    pub(crate) fn trace_failure(&self, error: &Error) {
        let span = self.lock().span.take();
        span.into_iter().for_each(|span| span.fail(error));
    }

    fn note_birth(&self, life: &mut Life) {
        self.core.recorder.spawned.increment();
        self.emit(life, || EventKind::Spawned);
    }

    /// Whether its end is not known yet. Its number may be somebody else's later on.
    pub(crate) fn is_to_be_reaped(&self) -> bool {
        let life = self.lock();
        life.owner != Owner::Nobody && life.ended.is_none()
    }

    /// Its pidfd for a thread that sleeps on it; `None` when it is reaped.
    pub(crate) fn lend(&self) -> Option<Arc<OwnedFd>> {
        self.with(|life| life.open_pidfd().is_some().then(|| life.lend_pidfd()))
    }

    /// A process that runs already is handed to the loop. If that fails it is left alone.
    pub(crate) fn adopted(self: &Arc<Cell>, pid: u32, pidfd: OwnedFd, kin: Kin) -> Result<()> {
        self.pid.store(pid, Ordering::Relaxed);
        self.with(|life| {
            (life.pidfd, life.kin, life.owner) = (Some(pidfd), kin, Owner::Reactor);
            if let Err(error) = self.watch(life) {
                (life.owner, life.phase) = (Owner::Nobody, Phase::Done);
                return Err(error);
            }
            self.note_birth(life);
            // A reason that came up since it was entered has found nobody to stop.
            if life.pending.is_some() {
                self.feed(life, Event::Stop);
            } else {
                self.follow_pause_locked(life);
            }
            Ok(())
        })
    }

    /// Ends a child that nobody is told of. It is awaited without the lock: a loop that looks at it would wait, too.
    pub(crate) fn put_down(&self) {
        let pidfd = self.with(|life| {
            self.unwatch(life);
            let _ = self.send(life, Signal::SIGKILL);
            life.owner = Owner::Nobody;
            life.phase = Phase::Done;
            // Somebody may be using it, or have used it.
            let pidfd = life.open_pidfd().is_some().then(|| life.lend_pidfd());
            self.release_pidfd(life);
            pidfd
        });
        if let Some(pidfd) = pidfd {
            let _ = process::reap(pidfd.as_fd(), WaitMode::Block);
        }
    }

    /// The clone or the exec failed; says why it was stopped if that is the reason.
    pub(crate) fn unborn(&self) -> Option<Cause> {
        self.with(|life| {
            life.owner = Owner::Nobody;
            life.phase = Phase::Done;
            life.pending.take().map(|cause| *cause)
        })
    }

    /// For a creator who kept it to itself: from now on the loop watches it.
    pub(crate) fn hand_over(self: &Arc<Cell>) -> Result<()> {
        self.with(|life| {
            if life.owner == Owner::Waiter {
                life.owner = Owner::Reactor;
                self.watch(life)?;
                life.extra.iter_mut().flat_map(|extra| extra.captures.iter_mut().flatten()).for_each(Capture::keep);
                self.follow_pause_locked(life);
            }
            Ok(())
        })
    }

    /// Enters the pidfd and our ends of the pipes in the epoll set.
    pub(super) fn watch(&self, life: &mut Life) -> Result<()> {
        let Some(token) = life.token else {
            return Ok(());
        };
        self.core.register_readable(life.pidfd(), token)?;
        self.watch_streams(life, token)
    }

    pub(super) fn watch_streams(&self, life: &Life, token: Token) -> Result<()> {
        self.watch_tree(life, token)?;
        let Some(extra) = &life.extra else {
            return Ok(());
        };
        if let Some(feed) = &extra.feed {
            self.core.register_writable(feed.fd.as_fd(), token.of_kind(Kind::Stdin))?;
        }
        for (capture, kind) in extra.captures.iter().zip([Kind::Stdout, Kind::Stderr]) {
            if let Some(capture) = capture {
                self.core.register_readable(capture.as_fd(), token.of_kind(kind))?;
            }
        }
        Ok(())
    }

    /// For a loop that takes over from one that died.
    pub(crate) fn register_again(self: &Arc<Cell>) {
        self.with(|life| {
            if life.owner == Owner::Creator {
                if life.pending.is_some() {
                    self.retry(life);
                }
                return;
            }
            self.arm_again(life);
            self.unwatch(life);
            let Some(token) = life.token else { return };
            let result = if life.owner == Owner::Reactor { self.watch(life) } else { self.watch_streams(life, token) };
            if let Err(error) = result {
                life.others().after.push(After::Say(Level::Error, error.to_string()));
            }
        });
    }

    /// What the former loop had taken and not dealt with comes again; the time of the rest is the same as before.
    pub(super) fn arm_again(&self, life: &Life) {
        let (Some(token), Some(extra)) = (life.token, &life.extra) else {
            return;
        };
        if let Some(at) = extra.ladder.due {
            self.core.arm(at, (token, Clock::Step));
        }
        if let Delay::At(at) = extra.delay {
            self.core.arm(at, (token, Clock::Delay));
        }
        if let (Call::Running, Some(death)) = (life.call, &life.ended) {
            self.core.arm(death.exited_at + CALL_GRACE, (token, Clock::Call));
        }
    }

    pub(super) fn unwatch(&self, life: &mut Life) {
        if let Some(pidfd) = life.open_pidfd() {
            self.core.deregister(pidfd.as_fd());
        }
        if let Some(cgroup) = life.cgroup() {
            self.core.deregister(cgroup.as_fd());
        }
        let Some(extra) = &life.extra else { return };
        if let Some(feed) = &extra.feed {
            self.core.deregister(feed.fd.as_fd());
        }
        for capture in extra.captures.iter().flatten() {
            self.core.deregister(capture.as_fd());
        }
    }
}
