//! A child's pipes as far as they are ours: pumped, noted at the death, cut, taken, read after all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Cell, Life, Reasons};
use crate::cause::Cause;
use crate::error::{Error, Result, Stage};
use crate::exit::{Captured, Stream};
use crate::lifecycle::Event;
use crate::pipe::copier::Copier;
use crate::pipe::{Capture, Pumped};
use crate::reactor::core::fired;
use crate::reactor::stop::Delay;
use crate::stdio::Limit;
use crate::timer::Clock;
use crate::token::Kind;

/// How long the caller's writers have, after a cut, to take what the child had left for them.
const COPY_GRACE: Duration = Duration::from_millis(250);

impl Cell {
    pub(super) fn pump_feed(&self, life: &mut Life) -> bool {
        let Some(extra) = &mut life.extra else {
            return false;
        };
        let Some(feed) = &mut extra.feed else {
            return false;
        };
        match feed.pump() {
            Pumped::More => true,
            Pumped::Ended => {
                self.core.deregister(feed.fd.as_fd());
                extra.feed = None;
                false
            }
            _ => false,
        }
    }

    pub(super) fn pump_capture(self: &Arc<Cell>, life: &mut Life, which: usize, hung_up: bool) -> bool {
        let Some(capture) = life.extra.as_mut().and_then(|e| e.captures[which].as_mut()) else {
            return false;
        };
        match capture.pump(hung_up) {
            Pumped::More => true,
            Pumped::Blocked => false,
            Pumped::Exceeded => {
                self.stop_locked(life, Cause::OutputLimit);
                true
            }
            Pumped::Ended => {
                self.end_capture(life, which, false);
                self.check_streams(life);
                false
            }
        }
    }

    pub(super) fn end_capture(&self, life: &mut Life, which: usize, held: bool) {
        let Some(extra) = &mut life.extra else { return };
        let Some(capture) = extra.captures[which].take() else {
            return;
        };
        self.core.deregister(capture.as_fd());
        *extra.held_open.flag(which) |= held;
        extra.over_limit |= capture.is_over_limit();
        extra.results[which] = Some(capture.into_bytes());
    }

    pub(super) fn check_streams(self: &Arc<Cell>, life: &mut Life) {
        if life.exit.is_some() && !life.has_streams() {
            self.feed(life, Event::StreamsDone);
        }
    }

    pub(super) fn drain(self: &Arc<Cell>, life: &mut Life, stopped: bool) {
        if !life.is_stopping_rest() {
            self.disarm_step(life);
            self.release_pidfd(life);
        }
        if let Some(extra) = &mut life.extra {
            extra.captures.iter_mut().flatten().for_each(Capture::note_owed);
            extra.copiers.iter().flatten().for_each(Copier::note_owed);
            // Nobody asked to wait longer for the output of what was stopped.
            if stopped && extra.wait_delay.is_none() && life.has_streams() {
                return self.cut(life);
            }
        }
        self.check_streams(life);
    }

    pub(super) fn cut(self: &Arc<Cell>, life: &mut Life) {
        if let Some(extra) = &mut life.extra {
            extra.close_stdin(&self.core);
        }
        for which in 0..2 {
            let Some(capture) = life.extra.as_mut().and_then(|e| e.captures[which].as_mut()) else {
                continue;
            };
            let held = capture.cut();
            self.end_capture(life, which, held);
        }
        self.cut_copiers(life);
        self.check_streams(life);
    }

    /// Their threads hand on what the child left. A writer that works takes that in no time; one that blocks is not waited for.
    pub(super) fn cut_copiers(&self, life: &mut Life) {
        let (Some(extra), Some(token)) = (&mut life.extra, life.token) else {
            return;
        };
        for which in 0..2 {
            if let Some(copier) = &extra.copiers[which + 1] {
                *extra.held_open.flag(which) |= copier.cut();
                self.core.arm(Instant::now() + COPY_GRACE, (token, Clock::Copy));
            }
        }
    }

    /// What they have not taken by now they may take in their own time.
    pub(super) fn leave_copiers(self: &Arc<Cell>, life: &mut Life) {
        if let Some(extra) = &mut life.extra {
            for which in 0..2 {
                *extra.held_open.flag(which) |= extra.copiers[which + 1].take().is_some();
            }
        }
        self.check_streams(life);
    }

    pub(super) fn copier_failed(&self, which: usize, error: io::Error) {
        self.with(|life| {
            let Some(extra) = &mut life.extra else { return };
            // One that was left behind has nothing more to say.
            if extra.copiers[which].is_some() {
                extra.stream_failed.get_or_insert((Stream::ALL[which], Arc::new(error)));
            }
        });
    }

    pub(super) fn copier_ended(self: &Arc<Cell>, which: usize) {
        let done = self.with(|life| {
            if life.extra.as_mut().and_then(|e| e.copiers[which].take()).is_some() {
                self.check_streams(life);
            }
            life.done
        });
        if done {
            // A loop that its caller turns has somebody to report.
            self.core.wake();
        }
    }

    /// A piped end that nobody has taken yet.
    pub(crate) fn take_piped(&self, which: usize) -> Option<OwnedFd> {
        // A forked copy: its lock may have been held when it was made.
        if self.core.is_ours() { self.lock().extra.as_mut()?.piped[which].take() } else { None }
    }

    /// Lets the loop read the piped ends that nobody took, as std's `wait_with_output` does.
    pub(crate) fn capture_piped(self: &Arc<Cell>) -> Result<()> {
        self.core.check_ours()?;
        let contexts = self.with(|life| {
            let Some(extra) = &mut life.extra else {
                return Ok(Vec::new());
            };
            let [_, stdout, stderr] = std::mem::take(&mut extra.piped);
            if stdout.is_none() && stderr.is_none() {
                return Ok(Vec::new());
            }
            let reasons = extra.reasons.take().filter(|_| life.done);
            if life.done {
                self.reopen(life, reasons.as_ref());
            }
            // What fails is closed; the rest is read.
            let added = self.add_capture(life, 0, stdout).and(self.add_capture(life, 1, stderr));
            if life.exit.is_some() && !life.waits_for_streams() {
                self.cut(life);
            }
            self.check_streams(life);
            added.map(|()| reasons.map_or_else(Vec::new, |reasons| reasons.contexts))
        })?;
        // Entered first, read now, as at the spawn: whoever cancels later finds the slot.
        if let Some(cause) = fired(&contexts) {
            self.stop(cause);
        }
        Ok(())
    }

    /// It is done, and its output is asked for after all: it is draining again, under the reasons to stop that it had.
    pub(super) fn reopen(self: &Arc<Cell>, life: &mut Life, reasons: Option<&Reasons>) {
        if let (None, Some(reasons)) = (life.token, reasons) {
            // Refused by a reactor that is shutting down: what is there is read, and no more is awaited.
            life.token = self.core.enter(self, &reasons.contexts, reasons.deadline).ok();
        }
        life.done = false;
        self.feed(life, Event::Reopened);
        if let (Some(token), Some(Delay::At(at))) = (life.token, life.extra.as_ref().map(|e| e.delay)) {
            self.core.arm(at, (token, Clock::Delay));
        }
    }

    pub(super) fn add_capture(&self, life: &mut Life, which: usize, fd: Option<OwnedFd>) -> Result<()> {
        let (Some(fd), Some(extra)) = (fd, &mut life.extra) else {
            return Ok(());
        };
        crate::pipe::set_nonblocking(fd.as_fd()).map_err(|e| Error::os(Stage::Streams, e).of(&*self.label))?;
        let mut capture = Capture::new(fd, None::<Limit>);
        if let Some(token) = life.token {
            let kind = [Kind::Stdout, Kind::Stderr][which];
            self.core.register_readable(capture.as_fd(), token.of_kind(kind))?;
        }
        if life.exit.is_some() {
            capture.note_owed();
        }
        extra.captures[which] = Some(capture);
        Ok(())
    }

    /// What was captured; once.
    pub(crate) fn take_captured(&self) -> Captured {
        let mut life = self.lock();
        let mut captured = Captured::default();
        let Some(extra) = &mut life.extra else {
            return captured;
        };
        let [stdout, stderr] = &mut extra.results;
        (captured.stdout, captured.stdout_omitted_bytes) = stdout.take().unwrap_or_default();
        (captured.stderr, captured.stderr_omitted_bytes) = stderr.take().unwrap_or_default();
        captured
    }
}
