//! How a child is stopped: the steps of its ladder, the delay, the rest of its group. What comes when is `lifecycle`'s to say.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{After, CALL_GRACE, Call, Cell, Life, Owner, Sent};
use crate::cause::Cause;
use crate::command::{Closure, Target};
use crate::error::{ErrorKind, Result};
use crate::events::EventKind;
use crate::helpers;
use crate::lifecycle::{Event, Phase};
use crate::pipe::capture::Capture;
use crate::process::{self, WaitMode};
use crate::reactor::stop::{Deed, Delay, Failure, Ladder, Rung};
use crate::scope::Scope;
use crate::signal::Signal;
use crate::tell::Level;
use crate::timer::Clock;

/// How soon a child that could not be signalled or reaped yet is tried again.
const RETRY: Duration = Duration::from_millis(5);

impl Cell {
    /// A reason to stop has come up.
    pub(crate) fn stop(self: &Arc<Cell>, cause: Cause) {
        self.with(|life| self.stop_locked(life, cause));
    }

    /// As [`Cell::stop`], by another ladder than the command's.
    pub(super) fn stop_by(self: &Arc<Cell>, life: &mut Life, cause: Cause, rungs: Vec<Rung>) {
        if life.phase == Phase::Running {
            std::mem::replace(&mut life.extra().ladder, Ladder::new(rungs)).retire();
        }
        self.stop_locked(life, cause);
    }

    pub(super) fn stop_locked(self: &Arc<Cell>, life: &mut Life, cause: Cause) {
        if life.phase == Phase::Running {
            life.pending.get_or_insert_with(|| Box::new(cause));
        }
        if life.owner == Owner::Creator {
            self.stop_unborn(life);
        } else {
            // Its clocks run from now on; it is continued when it has something to heed.
            let was_paused = self.end_pause(life);
            self.feed(life, Event::Stop);
            self.after_pause(life, was_paused);
        }
    }

    /// Its stop begins.
    pub(super) fn note_stop(&self, life: &mut Life) {
        life.extra().stopped_at = Some(Instant::now());
        if let Some(cause) = life.pending.as_deref().or(life.cause.as_deref()).cloned() {
            self.emit(life, || EventKind::Stopping { cause });
        }
    }

    /// Its creator is suspended until the exec, which may never come (a frozen cgroup, a filesystem that does not answer): SIGKILL
    /// through the number the kernel published. The creator finds `pending` when it runs on.
    ///
    /// Not there yet, or not installed yet (EBADF): the timer comes back until the creator is no longer the owner. If it still waits for
    /// its turn nobody is suspended: it leaves the queue.
    pub(super) fn stop_unborn(&self, life: &mut Life) {
        life.sent.kill |= self.published.kill();
        if !self.leave_queue_locked(life) {
            self.retry(life);
        }
    }

    pub(super) fn retry(&self, life: &mut Life) {
        if let Some(token) = life.token {
            self.core.arm(Instant::now() + RETRY, (token, Clock::Retry));
        }
    }

    /// SIGTERM, and after `grace` SIGKILL; of a child that is being stopped already only the latter.
    pub(crate) fn terminate(self: &Arc<Cell>, grace: Duration) {
        self.with(|life| {
            if life.phase == Phase::Stopping {
                // As every stop: its grace does not stand still, and it is continued.
                let was_paused = self.end_pause(life);
                self.start_delay(life, Some(grace));
                self.after_pause(life, was_paused);
            } else {
                let rungs = vec![Rung::signal(Signal::SIGTERM, Some(grace)), Rung::kill()];
                self.stop_by(life, Cause::Terminated, rungs);
            }
        });
    }

    /// SIGKILL for a child that is being stopped, whatever its ladder has left.
    pub(crate) fn kill_stopping(self: &Arc<Cell>, cause: Cause) {
        self.with(|life| {
            if life.phase == Phase::Running {
                self.stop_by(life, cause, vec![Rung::kill()]);
            } else {
                life.stopping_tree = life.ended.is_some();
                self.feed(life, Event::DelayOver);
            }
        });
    }

    /// A signal of the caller's own: no stop, no cause.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.core.check_ours()?;
        // A leader that has ended by itself leaves its group alone, also if nobody has seen its end yet.
        let is_over = |life: &Life| life.scope == Scope::Group && life.phase == Phase::Running && life.has_exited();
        self.with(|life| if is_over(life) { Ok(()) } else { self.send(life, signal) })
            .map_err(|e| self.error(ErrorKind::Io).saying(format!("could not send {signal}")).because(e))
    }

    /// The handle is gone.
    pub(crate) fn abandon(self: &Arc<Cell>) {
        // A forked copy: its locks may have been held when it was made.
        if !self.core.is_ours() {
            return;
        }
        let reasons = self.with(|life| {
            let reasons = life.extra.as_mut().and_then(|extra| {
                extra.piped = [None, None, None];
                extra.untaken_terminal = None;
                extra.results = [None, None];
                (extra.spoolings, extra.spools) = Default::default();
                extra.captures.iter_mut().flatten().for_each(Capture::discard);
                extra.reasons.take()
            });
            self.kill_if_wished(life);
            reasons
        });
        // With what a caller gave its contexts: outside the lock.
        drop(reasons);
    }

    /// The driver or reactor is gone.
    pub(crate) fn owner_gone(self: &Arc<Cell>) {
        self.with(|life| self.kill_if_wished(life));
    }

    pub(super) fn kill_if_wished(self: &Arc<Cell>, life: &mut Life) {
        match life.phase {
            _ if !life.kill_on_drop => {}
            // What a gentler stop has left to do nobody waits for any more.
            Phase::Draining | Phase::Done if life.cgroup().is_some() => {
                life.stopping_tree = true;
                self.kill(life);
            }
            Phase::Stopping => self.feed(life, Event::DelayOver),
            Phase::Running | Phase::Draining | Phase::Done => self.stop_by(life, Cause::Dropped, vec![Rung::kill()]),
        }
    }

    /// One clock: it is started once, and may be brought forward.
    pub(super) fn start_delay(self: &Arc<Cell>, life: &mut Life, delay: Option<Duration>) {
        let (Some(delay), Some(token)) = (delay, life.token) else {
            return;
        };
        let Some(at) = Instant::now().checked_add(delay) else {
            return;
        };
        match life.extra().delay {
            Delay::Over => return self.feed(life, Event::DelayOver),
            Delay::At(armed) if armed <= at => return,
            Delay::At(armed) => self.core.disarm(armed, (token, Clock::Delay)),
            Delay::Unset => {}
        }
        life.extra().delay = Delay::At(at);
        self.core.arm(at, (token, Clock::Delay));
    }

    /// Takes the next step of the ladder, and arms the time it has.
    pub(super) fn next_step(self: &Arc<Cell>, life: &mut Life) {
        let dead = life.ended.is_some();
        if dead && !life.is_stopping_rest() {
            // A clock that was taken from the timers before it was disarmed.
            return;
        }
        let Some(rung) = life.extra().ladder.advance() else {
            return;
        };
        if !dead && life.has_exited() {
            // Exit wins: the event is on its way. Nothing is sent, no cause is recorded.
            return;
        }
        if dead && !life.rest_is_alive() {
            return self.end_group_stop(life);
        }
        self.take(life, &rung);
        let at = rung.wait.and_then(|wait| Instant::now().checked_add(wait));
        if let (Some(at), Some(token)) = (at, life.token) {
            life.extra().ladder.due = Some(at);
            self.core.arm(at, (token, Clock::Step));
        }
        if dead && (life.extra().ladder.is_over() || !life.has_clock()) {
            self.end_group_stop(life);
        }
    }

    pub(super) fn take(self: &Arc<Cell>, life: &mut Life, rung: &Rung) {
        match &rung.deed {
            Deed::Signal(signal) => self.stop_with(life, *signal),
            Deed::CloseStdin => {
                life.sent.other = true;
                life.record_cause();
                if let Some(extra) = &mut life.extra {
                    extra.piped[0] = None;
                    extra.close_stdin(&self.core);
                }
            }
            Deed::Call(closure) => {
                life.call = Call::Queued;
                let (cell, closure) = (self.clone(), closure.clone());
                helpers::run(Box::new(move || cell.call(&closure)));
            }
        }
    }

    /// On a helper thread: the caller's own way to stop the child.
    pub(super) fn call(self: &Arc<Cell>, closure: &Closure) {
        let begins = self.with(|life| {
            // Exit wins, as for every other stop: looked at, recorded and begun in one critical section.
            let begins = life.call == Call::Queued && !life.has_exited();
            if begins {
                life.call = Call::Running;
                life.sent.other = true;
                life.record_cause();
            }
            begins
        });
        if begins {
            let result = catch_unwind(AssertUnwindSafe(|| (closure.0)(&Target(self))));
            self.with(|life| self.called(life, Failure::of(result)));
        }
    }

    /// The closure has returned. If it failed there was no stop (Go's rule): the cause is taken back, unless SIGKILL has followed, and
    /// waits for a stop that works.
    pub(super) fn called(self: &Arc<Cell>, life: &mut Life, failure: Option<Failure>) {
        if life.call != Call::Running {
            return;
        }
        life.call = Call::Over;
        if let Some(failure) = failure {
            life.sent.other = false;
            if !life.sent.kill {
                life.pending = life.cause.take();
            }
            if let Failure::Because(why) = failure {
                life.extra().cancel_failed = Some(why);
            }
        }
        if let (Some(death), Some(token)) = (&life.ended, life.token) {
            self.core.disarm(death.exited_at + CALL_GRACE, (token, Clock::Call));
            self.conclude(life);
            // Whoever turns the loop may be waiting for this very end.
            self.core.wake();
        }
    }

    /// Part of a stop: the cause is recorded, then the signal is sent.
    pub(super) fn stop_with(&self, life: &mut Life, signal: Signal) {
        life.record_cause();
        if signal == Signal::SIGKILL {
            life.sent.kill = true
        } else {
            life.sent.other = true
        }
        let result = self.send_stop(life, signal);
        if signal == Signal::SIGTERM {
            // A stopped child would not see it before it is continued.
            let _ = self.send_stop(life, Signal::SIGCONT);
        }
        if let Err(error) = result {
            life.others().after.push(After::Say(Level::Debug, format!("{signal}: {error}")));
        }
    }

    /// To the whole job, if it is part of one.
    fn send_stop(&self, life: &mut Life, signal: Signal) -> std::io::Result<()> {
        let membership = life.extra.as_mut().and_then(|extra| extra.membership.as_mut());
        if membership.is_some_and(|membership| membership.signal(self.pid(), signal)) {
            return Ok(());
        }
        self.send(life, signal)
    }

    pub(super) fn send(&self, life: &Life, signal: Signal) -> std::io::Result<()> {
        if let Some(cgroup) = life.cgroup() {
            return self.signal_tree(life, cgroup, signal);
        }
        let Some(pidfd) = life.open_pidfd() else {
            return Ok(());
        };
        process::send(pidfd.as_fd(), self.pid(), life.scope, signal)
    }

    /// SIGKILL now: for a child that outlived its delay, or for what is left of a group that is being stopped.
    pub(super) fn kill(self: &Arc<Cell>, life: &mut Life) {
        let dead = life.ended.is_some();
        if dead && !life.is_stopping_rest() {
            return;
        }
        if dead || !life.has_exited() {
            self.stop_with(life, Signal::SIGKILL);
        }
        if dead {
            self.end_group_stop(life);
        }
    }

    /// The leader died in the middle of a stop: the remaining steps still go to the group.
    pub(super) fn stop_group(self: &Arc<Cell>, life: &mut Life) {
        if !life.is_stopping_rest() {
            return self.end_group_stop(life);
        }
        if life.sent.kill {
            // A member that was being forked when the first one was sent may have missed it.
            let _ = self.send(life, Signal::SIGKILL);
        }
        if !life.has_clock() || !life.rest_is_alive() {
            self.end_group_stop(life);
        }
    }

    /// Nothing more will be sent: the pidfd (and the zombie, if it was kept) can go.
    pub(super) fn end_group_stop(self: &Arc<Cell>, life: &mut Life) {
        if std::mem::take(&mut life.unreaped) {
            let _ = process::reap(life.pidfd(), WaitMode::Poll);
        }
        self.disarm_step(life);
        life.sent = Sent::default();
        life.stopping_tree = false;
        self.release_pidfd(life);
        self.give_back_when_over(life);
    }

    pub(super) fn disarm_step(&self, life: &mut Life) {
        let Some(token) = life.token else { return };
        let Some(extra) = &mut life.extra else { return };
        if let Some(at) = extra.ladder.due.take() {
            self.core.disarm(at, (token, Clock::Step));
        }
    }
}
