//! A child's pipes as far as they are ours: pumped, noted at the death, cut, taken, read after all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{After, Cell, Life, Reasons, Teller};
use crate::cause::Cause;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::events::EventKind;
use crate::exit::{Captured, Server, Stream, Unserved};
use crate::lifecycle::Event;
use crate::pipe::Pumped;
use crate::pipe::capture::Capture;
use crate::pipe::copier::Copier;
use crate::pipe::spool::Spooling;
use crate::queue::QueueEnd;
use crate::reactor::core::fired;
use crate::reactor::stop::Delay;
use crate::stdio::Limit;
use crate::terminal;
use crate::timer::Clock;
use crate::token::Kind;

/// How long the caller's writers have, after a cut, to take what the child had left for them.
const COPY_GRACE: Duration = Duration::from_millis(250);
/// What a stopped child left is read before anybody hears of its end if it is no more than this.
const CUT_AT_ONCE_BYTES: usize = 4 << 10;

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

    /// Before there is a child: whom the consumers of its output ask to go on.
    pub(crate) fn attach_queues(self: &Arc<Cell>) {
        self.with(|life| {
            let Some(extra) = &mut life.extra else { return };
            for (which, capture) in extra.captures.iter_mut().enumerate() {
                if let Some(capture) = capture {
                    capture.attach(Arc::new(Teller::new(self, which + 1)));
                }
            }
        });
    }

    pub(super) fn pump_capture(self: &Arc<Cell>, life: &mut Life, which: usize, hung_up: bool) -> bool {
        let Some(capture) = life.extra.as_mut().and_then(|e| e.captures[which].as_mut()) else {
            return false;
        };
        let pumped = capture.pump(hung_up);
        self.core.recorder.read_bytes.add(capture.take_count());
        let woken = capture.take_woken();
        if !woken.is_empty() {
            life.others().after.extend(woken.into_iter().map(After::Wake));
        }
        match pumped {
            Pumped::More => true,
            Pumped::Blocked => false,
            Pumped::Exceeded => {
                self.stop_locked(life, Cause::OutputLimit);
                true
            }
            Pumped::Ended | Pumped::Refused => {
                note_complaint(life, which, pumped == Pumped::Refused);
                self.end_capture(life, which, false);
                self.check_streams(life);
                false
            }
        }
    }

    /// The consumer of a stream has made room, or wants no more: the loop looks at the pipe again.
    pub(super) fn resume(&self, which: usize) {
        // A forked copy: its lock may have been held when it was made.
        if self.core.is_ours() {
            self.with(|life| self.look_again(life, which));
        }
    }

    fn look_again(&self, life: &Life, which: usize) {
        let capture = life.extra.as_ref().and_then(|e| e.captures[which].as_ref());
        if let (Some(capture), Some(token)) = (capture, life.token) {
            self.core.report_again(capture.as_fd(), token.of_kind([Kind::Stdout, Kind::Stderr][which]));
        }
    }

    pub(super) fn end_capture(&self, life: &mut Life, which: usize, held: bool) {
        let Some(extra) = &mut life.extra else { return };
        let Some(mut capture) = extra.captures[which].take() else {
            return;
        };
        self.core.deregister(capture.as_fd());
        capture.end(if held { QueueEnd::HeldOpen } else { QueueEnd::Complete });
        let woken = capture.take_woken();
        *extra.held_open.flag(which) |= held;
        extra.over_limit |= capture.is_over_limit();
        extra.results[which] = Some(capture.into_bytes());
        if !woken.is_empty() {
            life.others().after.extend(woken.into_iter().map(After::Wake));
        }
        if !held {
            self.emit(life, || EventKind::OutputClosed { stream: Stream::ALL[which + 1] });
        }
    }

    /// Nobody will read any more: the consumers of its output are told.
    pub(super) fn abandon_queues(&self, life: &mut Life) {
        let mut woken = Vec::new();
        for capture in life.extra.iter_mut().flat_map(|extra| extra.captures.iter_mut().flatten()) {
            capture.end(QueueEnd::Abandoned);
            woken.extend(capture.take_woken());
        }
        if !woken.is_empty() {
            life.others().after.extend(woken.into_iter().map(After::Wake));
        }
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
            extra.spools = std::mem::take(&mut extra.spoolings).map(|spooling| spooling.map(Spooling::finish));
            extra.copiers.iter().flatten().for_each(Copier::note_owed);
            // Nobody asked to wait longer for the output of what was stopped.
            if stopped && extra.wait_delay.is_none() && life.has_streams() {
                return self.cut_when_told(life);
            }
        }
        (0..2).for_each(|which| self.read_rest(life, which));
        self.check_streams(life);
    }

    /// Of a dead child: what it left is read, whether its consumer has room or not; of what nobody takes no more is awaited. Where that was
    /// not the end, it is known from now on how much of what is there may be the child's own.
    fn read_rest(self: &Arc<Cell>, life: &mut Life, which: usize) {
        let Some(capture) = life.extra.as_mut().and_then(|e| e.captures[which].as_mut()) else {
            return;
        };
        if capture.is_refused() {
            let came = capture.pump(true) == Pumped::Refused;
            note_complaint(life, which, came);
            return self.end_capture(life, which, false);
        }
        if capture.has_consumer() {
            capture.note_owed();
        }
        let is_more = self.pump_capture(life, which, true);
        let Some(capture) = life.extra.as_mut().and_then(|e| e.captures[which].as_mut()) else {
            return;
        };
        if is_more {
            capture.note_owed();
            self.look_again(life, which);
        } else if !capture.has_consumer() {
            capture.owe_nothing();
        }
    }

    /// The exit is published, and who waits for it gets the lock first: what takes time to read is left to the loop, which does it after the
    /// exits and the stops of the same turn.
    fn cut_when_told(self: &Arc<Cell>, life: &mut Life) {
        if let (Some(extra), Some(token)) = (&mut life.extra, life.token) {
            let owed_bytes: usize = extra.captures.iter_mut().flatten().map(Capture::owed).sum();
            if owed_bytes > CUT_AT_ONCE_BYTES {
                return self.core.arm(Instant::now(), (token, Clock::Cut));
            }
        }
        self.cut(life);
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
            self.core.recorder.read_bytes.add(capture.take_count());
            note_complaint(life, which, false);
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
                let (stream, why) = (Stream::ALL[which], Arc::new(error));
                extra.stream_failed.get_or_insert(Unserved { stream, by: Server::Code, why });
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

    /// Our end of its terminal, if it is the caller's and nobody has taken it yet.
    pub(crate) fn take_terminal(&self) -> Option<OwnedFd> {
        if self.core.is_ours() { self.lock().extra.as_mut()?.untaken_terminal.take() } else { None }
    }

    pub(crate) fn resize_terminal(&self, rows: u16, columns: u16) -> Result<()> {
        self.core.check_ours()?;
        let life = self.lock();
        let ends = life.extra.as_ref().map(|extra| [&extra.terminal, &extra.untaken_terminal]);
        let Some(end) = ends.into_iter().flatten().find_map(Option::as_ref) else {
            return Err(self.error(ErrorKind::InvalidInput).saying("it has no terminal here, or no more"));
        };
        terminal::resize(end.as_fd(), rows, columns)
            .map_err(|e| self.error(ErrorKind::Io).saying("could not resize its terminal").because(e))
    }

    /// Lets the loop read the piped ends that nobody took, as std's `wait_with_output` does.
    pub(crate) fn capture_piped(self: &Arc<Cell>) -> Result<()> {
        self.core.check_ours()?;
        let contexts = self.with(|life| {
            let Some(extra) = &mut life.extra else {
                return Ok(Vec::new());
            };
            let [_, mut stdout, stderr] = std::mem::take(&mut extra.piped);
            let is_terminal = stdout.is_none() && extra.captures[0].is_none() && extra.untaken_terminal.is_some();
            if is_terminal {
                // Once more, if there is a number left: the child may close it, and not want to be hung up by that.
                stdout = extra.untaken_terminal.take();
                extra.terminal = stdout.as_ref().and_then(|fd| fd.try_clone().ok());
            }
            if stdout.is_none() && stderr.is_none() {
                return Ok(Vec::new());
            }
            let reasons = extra.reasons.take().filter(|_| life.done);
            if life.done {
                self.reopen(life, reasons.as_ref());
            }
            // What fails is closed; the rest is read.
            let added = self.add_capture(life, 0, stdout, is_terminal).and(self.add_capture(life, 1, stderr, false));
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

    pub(super) fn add_capture(
        &self,
        life: &mut Life,
        which: usize,
        fd: Option<OwnedFd>,
        is_terminal: bool,
    ) -> Result<()> {
        let (Some(fd), Some(extra)) = (fd, &mut life.extra) else {
            return Ok(());
        };
        crate::pipe::set_nonblocking(fd.as_fd()).map_err(|e| Error::os(Stage::Streams, e).of(&*self.label))?;
        let mut capture = Capture::new(fd, None::<Limit>);
        if is_terminal {
            capture.is_of_terminal();
        }
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
        [captured.stdout_spool, captured.stderr_spool] = std::mem::take(&mut extra.spools);
        let [stdout, stderr] = &mut extra.results;
        (captured.stdout, captured.stdout_omitted_bytes) = stdout.take().unwrap_or_default();
        (captured.stderr, captured.stderr_omitted_bytes) = stderr.take().unwrap_or_default();
        captured
    }
}

/// The consumer of stdout (0) or stderr (1) does not take what `came`, or whatever would come.
fn note_complaint(life: &mut Life, which: usize, came: bool) {
    let Some(extra) = &mut life.extra else { return };
    if let Some(why) = extra.captures[which].as_mut().and_then(|capture| capture.complaint(came)) {
        let (stream, why) = (Stream::ALL[which + 1], Arc::new(why));
        extra.stream_failed.get_or_insert(Unserved { stream, by: Server::Queue, why });
    }
}
