//! The death: seen, reaped, published; and the place given back. The one reaper at a time is whoever the cell calls its owner.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{After, CALL_GRACE, Call, Cell, Death, Extra, Kin, Life, Owner};
use crate::command::{Dead, Inspect};
use crate::events::EventKind;
use crate::exit::{Ending, Exit, HeldOpen};
use crate::helpers;
use crate::lifecycle::Event;
use crate::process::{self, Foreign, Reaped, WaitMode};
use crate::reactor::stop::Delay;
use crate::signal::Signal;
use crate::tell::{Level, tell};
use crate::timer::Clock;

/// How long the parent of a process that is somebody else's child has to reap it: only then its status is known.
const FOREIGN_GRACE: Duration = Duration::from_millis(500);
/// How long a closure may look at a zombie before that is reaped all the same.
const INSPECTION_MAX: Duration = Duration::from_secs(1);

impl Cell {
    /// Reaps a child that the caller owns, if it is dead.
    pub(super) fn try_reap(self: &Arc<Cell>, life: &mut Life) {
        if life.open_pidfd().is_none() {
            return;
        }
        // Deregistered before it is reaped: reaping raises one more edge, which an outer loop would hear.
        if !life.traced {
            self.core.deregister(life.pidfd());
        }
        if life.leaves_group_behind() {
            // While its leader is a zombie a group's number is nobody else's.
            let _ = self.send(life, Signal::SIGKILL);
        }
        if life.kin == Kin::Foreign {
            return self.try_foreign(life);
        }
        if let Some(inspect) = life.extra.as_mut().and_then(|extra| extra.inspect.take()) {
            return self.begin_inspection(life, inspect);
        }
        let keep = life.keeps_zombie();
        match process::reap(life.pidfd(), if keep { WaitMode::PollAndLeave } else { WaitMode::Poll }) {
            Ok(Reaped::NotYet) => self.not_yet(life),
            Ok(reaped) => self.ended(life, reaped, keep),
            Err(error) => {
                life.others().after.push(After::Say(Level::Error, format!("waitid: {error}")));
                self.retry(life);
            }
        }
    }

    /// Somebody else's child is dead. When its parent reaps it there is one more edge, and its status; if that takes long it is lost.
    fn try_foreign(self: &Arc<Cell>, life: &mut Life) {
        let now = Instant::now();
        match process::look_at_foreign(life.pidfd()) {
            Foreign::Zombie if life.seen_at().is_none() => {
                life.extra().seen_at = Some(now);
                if let Some(token) = life.token {
                    self.core.arm(now + FOREIGN_GRACE, (token, Clock::Retry));
                }
                self.not_yet(life);
            }
            Foreign::Zombie if life.seen_at().is_some_and(|seen_at| now < seen_at + FOREIGN_GRACE) => {
                self.not_yet(life)
            }
            Foreign::Zombie => self.ended(life, Reaped::Stolen(None), false),
            Foreign::Reaped(status) => self.ended(life, Reaped::Stolen(status), false),
        }
    }

    /// Nobody else is its owner meanwhile, for a second at most.
    fn begin_inspection(self: &Arc<Cell>, life: &mut Life, inspect: Inspect) {
        let now = Instant::now();
        life.owner = Owner::Inspector;
        life.extra().seen_at = Some(now);
        if let Some(token) = life.token {
            self.core.arm(now + INSPECTION_MAX, (token, Clock::Retry));
        }
        let cell = self.clone();
        helpers::run(Box::new(move || {
            if cell.lock().owner != Owner::Inspector {
                // It had to wait for a helper until the child was reaped: its number may be anybody's.
                return tell(Level::Warn, format_args!("{}: too late for the closure of inspect", cell.label));
            }
            let dead = Dead { pid: cell.pid() };
            if catch_unwind(AssertUnwindSafe(|| (inspect.0)(&dead))).is_err() {
                tell(Level::Warn, format_args!("{}: the closure of inspect panicked", cell.label));
            }
            cell.with(|life| cell.end_inspection(life));
            // Whoever turns the loop may be waiting for this very end.
            cell.core.wake();
        }));
    }

    /// It has been looked at, or that takes too long.
    pub(super) fn end_inspection(self: &Arc<Cell>, life: &mut Life) {
        if life.owner == Owner::Inspector {
            life.owner = Owner::Reactor;
            self.try_reap(life);
        }
    }

    /// Readable but not waitable: a tracer has it. The registration stays from now on, and the next edge tells.
    pub(super) fn not_yet(&self, life: &mut Life) {
        if life.traced {
            return;
        }
        match life.token.map(|token| self.core.register_readable(life.pidfd(), token)) {
            Some(Ok(())) => life.traced = true,
            _ => self.retry(life),
        }
    }

    /// The one place where a death becomes known.
    pub(super) fn ended(self: &Arc<Cell>, life: &mut Life, reaped: Reaped, unreaped: bool) {
        if life.traced {
            self.core.deregister(life.pidfd());
        }
        // What is left of its group is not left stopped.
        let was_paused = self.end_pause(life);
        self.after_pause(life, was_paused);
        let now = Instant::now();
        let exited_at = life.seen_at().unwrap_or(now);
        // A zombie that somebody else reaped keeps no number.
        life.unreaped = unreaped && matches!(reaped, Reaped::Ended(..));
        let (status, usage, reaped_at) = match reaped {
            Reaped::Ended(status, usage) => (Some(status), Some(usage), (!unreaped).then_some(now)),
            Reaped::Stolen(status) => (status, None, None),
            Reaped::NotYet => return,
        };
        life.ended = Some(Box::new(Death { status, usage, exited_at, reaped_at }));
        life.owner = Owner::Nobody;
        match life.token {
            // What it returns says whether this was a stop. It is given a moment: one that blocks for ever holds up nothing else.
            Some(token) if life.call == Call::Running && !life.was_killed_by_us() => {
                self.core.arm(exited_at + CALL_GRACE, (token, Clock::Call));
            }
            _ => self.conclude(life),
        }
    }

    /// The end is published, with what is known by now of its reason. A closure that has not begun never will, and what one that still
    /// runs returns no longer counts.
    pub(super) fn conclude(self: &Arc<Cell>, life: &mut Life) {
        life.call = Call::Over;
        life.take_back_cause();
        self.feed(life, Event::Exited);
        self.look_at_tree(life);
    }

    pub(super) fn publish(self: &Arc<Cell>, life: &mut Life) {
        let exit = self.make_exit(life);
        life.exit = Some(exit.clone());
        self.note_exit(life, exit);
        life.wake_all();
        self.wake_sleepers(life);
    }

    /// Counts it, and tells of it.
    fn note_exit(&self, life: &mut Life, exit: Exit) {
        let recorder = &self.core.recorder;
        recorder.exited.increment();
        if exit.cause().is_some() {
            recorder.cancelled.increment();
            if let Some(at) = life.extra.as_ref().and_then(|e| e.stopped_at) {
                recorder.cancel_to_exit.record_time(exit.exited_at().saturating_duration_since(at));
            }
        }
        if life.was_killed_by_us() {
            recorder.killed.increment();
        }
        self.release(life);
        let told = exit.clone();
        self.emit(life, || EventKind::Exited { exit: told });
        if let Some(span) = life.span.take() {
            life.others().after.push(After::Close(span, exit));
        }
    }

    pub(super) fn make_exit(&self, life: &Life) -> Exit {
        let death = life.ended.as_ref().expect("published when it is known");
        Exit::new(Ending {
            command: self.label.clone(),
            pid: self.pid(),
            scope: life.scope,
            status: death.status,
            cause: life.cause.as_deref().cloned(),
            usage: death.usage,
            spawned_at: life.spawned_at,
            exited_at: death.exited_at,
            reaped_at: death.reaped_at,
            held_open: life.extra.as_ref().map_or_else(HeldOpen::default, |e| e.held_open),
            over_limit: life.extra.as_ref().is_some_and(|e| e.over_limit),
            cancel_failed: life.extra.as_ref().and_then(|e| e.cancel_failed.clone()),
            stream_failed: life.extra.as_ref().and_then(|e| e.stream_failed.clone()),
        })
    }

    pub(super) fn release_pidfd(&self, life: &mut Life) {
        life.pidfd = None;
        if let Some(extra) = &mut life.extra {
            extra.membership = None;
        }
        if let Some(others) = &mut life.others {
            others.lent = None;
        }
    }

    pub(super) fn finish(self: &Arc<Cell>, life: &mut Life) {
        // As long as its output was read, somebody whom it left behind may have read its input.
        if let Some(extra) = &mut life.extra {
            extra.close_stdin(&self.core);
            extra.terminal = None;
        }
        if life.extra.as_deref().is_some_and(Extra::tells_more) {
            life.exit = Some(self.make_exit(life));
        }
        if let (Some(token), Some(extra)) = (life.token, &mut life.extra) {
            if let (Delay::At(at), false) = (extra.delay, life.sent.kill || life.sent.other) {
                self.core.disarm(at, (token, Clock::Delay));
            }
        }
        life.done = true;
        if let Some(streams) = life.extra.as_ref().map(|e| e.held_open).filter(|streams| streams.any()) {
            self.emit(life, || EventKind::HeldOpen { streams });
        }
        life.wake_all();
        self.wake_sleepers(life);
        if let Some(token) = life.token {
            self.core.report(token, self);
            self.report_tree(life);
        }
        self.give_back_when_over(life);
    }

    /// Its slot is kept while a stop goes on without it, and while anybody is left in its cgroup.
    pub(super) fn give_back_when_over(&self, life: &mut Life) {
        if life.done && !life.is_stopping_rest() && life.cgroup().is_none() {
            self.give_back(life);
        }
    }

    pub(super) fn give_back(&self, life: &mut Life) {
        let Some(token) = life.token.take() else {
            return;
        };
        if let Some(Delay::At(at)) = life.extra.as_ref().map(|e| e.delay) {
            self.core.disarm(at, (token, Clock::Delay));
        }
        self.core.leave(token);
    }

    /// The loop died and nobody took over.
    pub(crate) fn loop_died(&self) {
        self.with(|life| {
            life.died = true;
            self.abandon_queues(life);
            self.leave_queue_locked(life);
            life.wake_all();
            self.wake_sleepers(life);
        });
    }
}
