//! What everybody who deals with one child shares: its pidfd, who may reap it, how far its life has got, how it ended.
//! Does what `lifecycle` decides. Knows its reactor only as the place to register, arm and leave.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use rustix::event::Timespec;

use super::core::{Core, fired};
use super::stop::{Deed, Delay, Failure, Ladder, Rung};
use crate::cause::Cause;
use crate::command::{Closure, Leftovers, Signals, Target};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::exit::{Captured, Ending, Exit, HeldOpen, Stream, Usage};
use crate::helpers;
use crate::lifecycle::{self, Action, Event, Phase};
use crate::pipe::copier::{Copier, Told};
use crate::pipe::{Capture, Feed, Pumped};
use crate::process::{self, Reaped, Scope, WaitMode};
use crate::signal::Signal;
use crate::stdio::Limit;
use crate::sys::process::Published;
use crate::tell::{Level, tell};
use crate::timer::Clock;
use crate::token::{Kind, Token};

/// How soon a child that could not be signalled or reaped yet is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// How long the end of a child stays unpublished at most while its `Cancel::call` closure runs: what the closure returns decides whether
/// the child was stopped.
const CALL_GRACE: Duration = Duration::from_millis(500);
/// How long the caller's writers have, after a cut, to take what the child had left for them.
const COPY_GRACE: Duration = Duration::from_millis(250);

/// A child, as its reactor, its handle and its waiters share it.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) core: Arc<Core>,
    /// The command as a shell line.
    pub(crate) label: Arc<str>,
    /// The pidfd's number, written by the kernel before the child runs: its creator is suspended until the exec.
    pub(crate) published: Published,
    /// 0 before it is born. Not under the lock, which may be held for ever in a forked copy.
    pid: AtomicU32,
    life: Mutex<Life>,
    /// Signalled at the death and when the streams are done.
    changed: Condvar,
}

/// Who acts on the child's exit. There is exactly one reaper at a time (promise 7): whoever is not the owner waits for the
/// published [`Exit`]. Looking with WNOWAIT while another reaps would lose: ECHILD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Its creator: it is between clone and exec.
    Creator,
    /// The loop, through epoll.
    Reactor,
    /// A caller of `wait`, by `waitid`; the pidfd is not in the epoll set.
    Waiter,
    /// It is reaped (or lost).
    Nobody,
}

/// The part of a child that changes, under its lock: the critical section of promise 1.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) phase: Phase,
    pub(crate) owner: Owner,
    /// Its place in the tables, until it leaves them.
    token: Option<Token>,
    /// Closed when the child is reaped; in `others` from when somebody sleeps in `waitid` on it.
    pidfd: Option<OwnedFd>,
    /// Why it is stopped: what will be, and what has been sent.
    pending: Option<Box<Cause>>,
    cause: Option<Box<Cause>>,
    sent: Sent,
    call: Call,
    scope: Scope,
    spawned_at: Instant,
    ended: Option<Box<Death>>,
    exit: Option<Exit>,
    /// The streams are done: `exit` says everything there is to say.
    done: bool,
    /// A tracer hides its death: the registration stays and the next edge is awaited.
    traced: bool,
    /// Its zombie is kept, so that its pid goes on naming its group.
    unreaped: bool,
    kill_on_drop: bool,
    died: bool,
    /// How many threads sleep until `changed`.
    sleepers: u32,
    others: Option<Box<Others>>,
    extra: Option<Box<Extra>>,
}

/// Other people's futures and code. Most children that merely live have neither, and each of them pays for every field of its [`Life`].
#[derive(Debug, Default)]
struct Others {
    /// The pidfd, shared with who sleeps on it without the lock: closed when the child is reaped and nobody does any more.
    lent: Option<Arc<OwnedFd>>,
    /// Whom to wake, each by the key of its future.
    wakers: Vec<(WakeKey, Waker)>,
    next_key: u64,
    after: Vec<After>,
}

/// Names a future that waits for a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WakeKey(u64);

/// Other people's code, to be run when the lock is gone.
#[derive(Debug)]
enum After {
    Wake(Waker),
    Say(Level, String),
}

/// What a stop has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    kill: bool,
    other: bool,
}

/// How far the closure of `Cancel::call` has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Call {
    /// There is none, or what it does no longer counts.
    #[default]
    Over,
    /// It waits for a helper thread: nothing has been done to the child yet.
    Queued,
    Running,
}

/// What is known of the end, before it is published.
#[derive(Clone, Debug)]
struct Death {
    status: Option<ExitStatus>,
    usage: Option<Usage>,
    exited_at: Instant,
    reaped_at: Option<Instant>,
}

/// What most children do without.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    pub(crate) ladder: Ladder,
    pub(crate) wait_delay: Option<Duration>,
    pub(crate) delay: Delay,
    pub(crate) leftovers: Leftovers,
    /// The ends of pipes that the caller may still take: stdin, stdout, stderr.
    pub(crate) piped: [Option<OwnedFd>; 3],
    pub(crate) feed: Option<Feed>,
    /// Why the reading of those may be ended, should it begin only after the death.
    pub(crate) reasons: Option<Reasons>,
    /// stdout and stderr, while they are read.
    pub(crate) captures: [Option<Capture>; 2],
    /// stdout and stderr, when they are complete or cut: the bytes and how many were left out.
    pub(crate) results: [Option<(Vec<u8>, u64)>; 2],
    /// stdin, stdout, stderr, while they are served by the caller's own code and somebody waits for that.
    pub(crate) copiers: [Option<Copier>; 3],
    /// Which of those failed first, and why.
    pub(crate) stream_failed: Option<(Stream, Arc<io::Error>)>,
    pub(crate) held_open: HeldOpen,
    pub(crate) over_limit: bool,
    pub(crate) cancel_failed: Option<Arc<str>>,
}

/// The command's contexts and deadline.
#[derive(Debug)]
pub(crate) struct Reasons {
    pub(crate) contexts: Vec<Context>,
    pub(crate) deadline: Option<Instant>,
}

impl Extra {
    /// Ends the serving of stdin. A reader that blocks is left behind.
    fn close_stdin(&mut self, core: &Core) {
        if let Some(feed) = self.feed.take() {
            core.deregister(feed.fd.as_fd());
        }
        if let Some(copier) = self.copiers[0].take() {
            copier.close();
        }
    }

    /// Whether the exit that was published at the death does not say everything.
    fn tells_more(&self) -> bool {
        self.held_open.any() || self.over_limit || self.cancel_failed.is_some() || self.stream_failed.is_some()
    }
}

/// How a copier's thread reaches the child. It keeps nothing alive: one that is left behind would keep the reactor's descriptors open.
pub(crate) struct Teller {
    cell: Weak<Cell>,
    which: usize,
}

impl Teller {
    pub(crate) fn new(cell: &Arc<Cell>, which: usize) -> Teller {
        Teller { cell: Arc::downgrade(cell), which }
    }
}

impl Told for Teller {
    fn failed(&self, error: io::Error) {
        if let Some(cell) = self.cell.upgrade() {
            cell.copier_failed(self.which, error);
        }
    }

    fn ended(&self) {
        if let Some(cell) = self.cell.upgrade() {
            cell.copier_ended(self.which);
        }
    }
}

/// What a cell is made of.
pub(crate) struct Birth {
    pub(crate) label: Arc<str>,
    pub(crate) spawned_at: Instant,
    pub(crate) scope: Scope,
    pub(crate) kill_on_drop: bool,
    pub(crate) extra: Option<Box<Extra>>,
}

impl Cell {
    pub(crate) fn new(core: &Arc<Core>, birth: Birth) -> Arc<Cell> {
        Arc::new(Cell {
            core: core.clone(),
            label: birth.label,
            published: Published::new(),
            pid: AtomicU32::new(0),
            changed: Condvar::new(),
            life: Mutex::new(Life {
                phase: Phase::Running,
                owner: Owner::Creator,
                token: None,
                pidfd: None,
                pending: None,
                cause: None,
                sent: Sent::default(),
                call: Call::Over,
                scope: birth.scope,
                spawned_at: birth.spawned_at,
                ended: None,
                exit: None,
                done: false,
                traced: false,
                unreaped: false,
                kill_on_drop: birth.kill_on_drop,
                died: false,
                sleepers: 0,
                others: None,
                extra: birth.extra,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` in the child's critical section; wakes whom it made ready, and says what it had to say, after the lock is gone.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Life) -> T) -> T {
        let mut life = self.lock();
        let result = f(&mut life);
        let after = life.others.as_mut().map(|others| std::mem::take(&mut others.after)).unwrap_or_default();
        drop(life);
        for after in after {
            match after {
                After::Wake(waker) => {
                    // A waker is somebody else's code.
                    if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                        tell(Level::Warn, format_args!("a waker panicked"));
                    }
                }
                After::Say(level, what) => tell(level, format_args!("{}: {what}", self.label)),
            }
        }
        result
    }

    /// Takes a place in the tables.
    pub(crate) fn enter(self: &Arc<Cell>, contexts: &[Context], deadline: Option<Instant>) -> Result<Token> {
        self.with(|life| {
            let token = self.core.enter(self, contexts, deadline)?;
            life.token = Some(token);
            Ok(token)
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub(crate) fn check_ours(&self) -> Result<()> {
        self.core.check_ours()
    }

    /// An error about this child.
    pub(crate) fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind).of(&*self.label)
    }

    // ── birth ──

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
                return Ok(());
            }
            life.owner = Owner::Reactor;
            self.watch(life).map_err(|error| error.saying("the program had begun and was killed"))?;
            if life.pending.is_some() {
                if life.sent.kill {
                    life.record_cause();
                }
                self.feed(life, Event::Stop);
            }
            Ok(())
        });
        // No child outlives an error (promise 8).
        accepted.inspect_err(|_| self.put_down())
    }

    /// Ends a child that nobody is told of. It is awaited without the lock: a loop that looks at it would wait, too.
    fn put_down(&self) {
        let pidfd = self.with(|life| {
            self.unwatch(life);
            let _ = self.send(life, Signal::SIGKILL);
            life.owner = Owner::Nobody;
            life.phase = Phase::Done;
            life.pidfd.take()
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

    /// Enters the pidfd and our ends of the pipes in the epoll set.
    fn watch(&self, life: &mut Life) -> Result<()> {
        let Some(token) = life.token else {
            return Ok(());
        };
        self.core.register_readable(life.pidfd(), token)?;
        self.watch_streams(life, token)
    }

    fn watch_streams(&self, life: &Life, token: Token) -> Result<()> {
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
    fn arm_again(&self, life: &Life) {
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

    fn unwatch(&self, life: &mut Life) {
        if let Some(pidfd) = life.open_pidfd() {
            self.core.deregister(pidfd.as_fd());
        }
        let Some(extra) = &life.extra else { return };
        if let Some(feed) = &extra.feed {
            self.core.deregister(feed.fd.as_fd());
        }
        for capture in extra.captures.iter().flatten() {
            self.core.deregister(capture.as_fd());
        }
    }

    // ── stopping ──

    /// A reason to stop has come up.
    pub(crate) fn stop(self: &Arc<Cell>, cause: Cause) {
        self.with(|life| self.stop_locked(life, cause));
    }

    /// As [`Cell::stop`], by another ladder than the command's.
    fn stop_by(self: &Arc<Cell>, life: &mut Life, cause: Cause, rungs: Vec<Rung>) {
        if life.phase == Phase::Running {
            std::mem::replace(&mut life.extra().ladder, Ladder::new(rungs)).retire();
        }
        self.stop_locked(life, cause);
    }

    fn stop_locked(self: &Arc<Cell>, life: &mut Life, cause: Cause) {
        if life.phase == Phase::Running {
            life.pending.get_or_insert_with(|| Box::new(cause));
        }
        if life.owner == Owner::Creator {
            self.stop_unborn(life);
        } else {
            self.feed(life, Event::Stop);
        }
    }

    /// Its creator is suspended until the exec, which may never come (a frozen cgroup, a filesystem that does not answer): SIGKILL
    /// through the number the kernel published. The creator finds `pending` when it runs on.
    ///
    /// Not there yet, or not installed yet (EBADF): the timer comes back until the creator is no longer the owner.
    fn stop_unborn(&self, life: &mut Life) {
        life.sent.kill |= self.published.kill();
        self.retry(life);
    }

    fn retry(&self, life: &mut Life) {
        if let Some(token) = life.token {
            self.core.arm(Instant::now() + RETRY, (token, Clock::Retry));
        }
    }

    /// SIGTERM, and after `grace` SIGKILL; of a child that is being stopped already only the latter.
    pub(crate) fn terminate(self: &Arc<Cell>, grace: Duration) {
        self.with(|life| {
            if life.phase == Phase::Stopping {
                self.start_delay(life, Some(grace));
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
                self.feed(life, Event::DelayOver);
            }
        });
    }

    /// A signal of the caller's own: no stop, no cause.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.core.check_ours()?;
        self.with(|life| self.send(life, signal))
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
                extra.results = [None, None];
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

    fn kill_if_wished(self: &Arc<Cell>, life: &mut Life) {
        match life.phase {
            _ if !life.kill_on_drop => {}
            // What a gentler stop has left to do nobody waits for any more.
            Phase::Stopping => self.feed(life, Event::DelayOver),
            Phase::Running | Phase::Draining | Phase::Done => self.stop_by(life, Cause::Dropped, vec![Rung::kill()]),
        }
    }

    // ── events, from the loop ──

    /// The pidfd is readable.
    pub(crate) fn on_readable(self: &Arc<Cell>) {
        self.with(|life| {
            // Somebody else reaps it, or has: the event was in flight when it took over.
            if life.owner == Owner::Reactor {
                self.try_reap(life);
            }
        });
    }

    pub(crate) fn on_alarm(self: &Arc<Cell>, clock: Clock) {
        self.with(|life| match clock {
            Clock::Deadline => self.stop_locked(life, Cause::DeadlineExceeded),
            Clock::Step => {
                life.extra().ladder.due = None;
                self.feed(life, Event::StepDue);
            }
            Clock::Delay => {
                life.extra().delay = Delay::Over;
                self.feed(life, Event::DelayOver);
            }
            Clock::Retry => match life.owner {
                Owner::Creator => self.stop_unborn(life),
                Owner::Reactor => self.try_reap(life),
                Owner::Waiter | Owner::Nobody => {}
            },
            Clock::Call if life.call == Call::Running && life.ended.is_some() => self.conclude(life),
            Clock::Call => {}
            Clock::Copy => self.leave_copiers(life),
        });
    }

    /// One of our ends of its pipes is ready; says whether there is more than the budget allowed.
    pub(crate) fn on_pipe(self: &Arc<Cell>, kind: Kind, hung_up: bool) -> bool {
        self.with(|life| match kind {
            Kind::Stdin => self.pump_feed(life),
            Kind::Stdout => self.pump_capture(life, 0, hung_up),
            _ => self.pump_capture(life, 1, hung_up),
        })
    }

    fn pump_feed(&self, life: &mut Life) -> bool {
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

    fn pump_capture(self: &Arc<Cell>, life: &mut Life, which: usize, hung_up: bool) -> bool {
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

    fn end_capture(&self, life: &mut Life, which: usize, held: bool) {
        let Some(extra) = &mut life.extra else { return };
        let Some(capture) = extra.captures[which].take() else {
            return;
        };
        self.core.deregister(capture.as_fd());
        *extra.held_open.flag(which) |= held;
        extra.over_limit |= capture.is_over_limit();
        extra.results[which] = Some(capture.into_bytes());
    }

    fn check_streams(self: &Arc<Cell>, life: &mut Life) {
        if life.exit.is_some() && !life.has_streams() {
            self.feed(life, Event::StreamsDone);
        }
    }

    // ── the exit ──

    /// Reaps a child that the caller owns, if it is dead.
    fn try_reap(self: &Arc<Cell>, life: &mut Life) {
        if life.open_pidfd().is_none() {
            return;
        }
        // Deregistered before it is reaped: reaping raises one more edge, which an outer loop would hear.
        if !life.traced {
            self.core.deregister(life.pidfd());
        }
        if life.leaves_group_behind() {
            // While its leader is a zombie the group's number is nobody else's.
            let _ = self.send(life, Signal::SIGKILL);
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

    /// Readable but not waitable: a tracer has it. The registration stays from now on, and the next edge tells.
    fn not_yet(&self, life: &mut Life) {
        if life.traced {
            return;
        }
        match life.token.map(|token| self.core.register_readable(life.pidfd(), token)) {
            Some(Ok(())) => life.traced = true,
            _ => self.retry(life),
        }
    }

    /// The one place where a death becomes known.
    fn ended(self: &Arc<Cell>, life: &mut Life, reaped: Reaped, unreaped: bool) {
        if life.traced {
            self.core.deregister(life.pidfd());
        }
        let exited_at = Instant::now();
        // A zombie that somebody else reaped keeps no number.
        life.unreaped = unreaped && matches!(reaped, Reaped::Ended(..));
        let (status, usage, reaped_at) = match reaped {
            Reaped::Ended(status, usage) => (Some(status), Some(usage), (!unreaped).then_some(exited_at)),
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
    fn conclude(self: &Arc<Cell>, life: &mut Life) {
        life.call = Call::Over;
        life.take_back_cause();
        self.feed(life, Event::Exited);
    }

    // ── lifecycle ──

    /// Feeds an event to the table and does what it says.
    fn feed(self: &Arc<Cell>, life: &mut Life, event: Event) {
        let (phase, actions) = lifecycle::step(life.phase, event);
        life.phase = phase;
        for action in actions {
            self.act(life, *action);
        }
    }

    fn act(self: &Arc<Cell>, life: &mut Life, action: Action) {
        match action {
            Action::StartDelay => {
                let delay = life.extra.as_ref().and_then(|e| e.wait_delay);
                self.start_delay(life, delay);
            }
            Action::NextStep => self.next_step(life),
            Action::Kill => self.kill(life),
            Action::DisarmDeadline => {
                if let Some(token) = life.token {
                    self.core.disarm_deadline(token);
                }
            }
            Action::PublishExit => self.publish(life),
            Action::StopGroup => self.stop_group(life),
            Action::Drain => self.drain(life, false),
            Action::DrainStopped => self.drain(life, true),
            Action::CutStreams => self.cut(life),
            Action::Finish => self.finish(life),
        }
    }

    /// One clock: it is started once, and may be brought forward.
    fn start_delay(self: &Arc<Cell>, life: &mut Life, delay: Option<Duration>) {
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
    fn next_step(self: &Arc<Cell>, life: &mut Life) {
        let dead = life.ended.is_some();
        if dead && !life.is_stopping_group() {
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
        if dead && !process::group_is_alive(life.pidfd()) {
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

    fn take(self: &Arc<Cell>, life: &mut Life, rung: &Rung) {
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
    fn call(self: &Arc<Cell>, closure: &Closure) {
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
    fn called(self: &Arc<Cell>, life: &mut Life, failure: Option<Failure>) {
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
    fn stop_with(&self, life: &mut Life, signal: Signal) {
        life.record_cause();
        if signal == Signal::SIGKILL {
            life.sent.kill = true
        } else {
            life.sent.other = true
        }
        let result = self.send(life, signal);
        if signal == Signal::SIGTERM {
            // A stopped child would not see it before it is continued.
            let _ = self.send(life, Signal::SIGCONT);
        }
        if let Err(error) = result {
            life.others().after.push(After::Say(Level::Debug, format!("{signal}: {error}")));
        }
    }

    fn send(&self, life: &Life, signal: Signal) -> std::io::Result<()> {
        let Some(pidfd) = life.open_pidfd() else {
            return Ok(());
        };
        process::send(pidfd.as_fd(), self.pid(), life.scope, signal)
    }

    /// SIGKILL now: for a child that outlived its delay, or for what is left of a group that is being stopped.
    fn kill(self: &Arc<Cell>, life: &mut Life) {
        let dead = life.ended.is_some();
        if dead && !life.is_stopping_group() {
            return;
        }
        if dead || !life.has_exited() {
            self.stop_with(life, Signal::SIGKILL);
        }
        if dead {
            self.end_group_stop(life);
        }
    }

    fn publish(self: &Arc<Cell>, life: &mut Life) {
        life.exit = Some(self.make_exit(life));
        life.wake_all();
        self.wake_sleepers(life);
    }

    fn make_exit(&self, life: &Life) -> Exit {
        let death = life.ended.as_ref().expect("published when it is known");
        Exit::new(Ending {
            command: self.label.clone(),
            pid: self.pid(),
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

    /// The leader died in the middle of a stop: the remaining steps still go to the group.
    fn stop_group(self: &Arc<Cell>, life: &mut Life) {
        if !life.is_stopping_group() {
            return self.end_group_stop(life);
        }
        if life.sent.kill {
            // A member that was being forked when the first one was sent may have missed it.
            let _ = self.send(life, Signal::SIGKILL);
        }
        if !life.has_clock() || !process::group_is_alive(life.pidfd()) {
            self.end_group_stop(life);
        }
    }

    /// Nothing more will be sent: the pidfd (and the zombie, if it was kept) can go.
    fn end_group_stop(self: &Arc<Cell>, life: &mut Life) {
        if std::mem::take(&mut life.unreaped) {
            let _ = process::reap(life.pidfd(), WaitMode::Poll);
        }
        self.disarm_step(life);
        life.sent = Sent::default();
        self.release_pidfd(life);
        if life.done {
            self.give_back(life);
        }
    }

    fn disarm_step(&self, life: &mut Life) {
        let Some(token) = life.token else { return };
        let Some(extra) = &mut life.extra else { return };
        if let Some(at) = extra.ladder.due.take() {
            self.core.disarm(at, (token, Clock::Step));
        }
    }

    fn release_pidfd(&self, life: &mut Life) {
        life.pidfd = None;
        if let Some(others) = &mut life.others {
            others.lent = None;
        }
    }

    fn drain(self: &Arc<Cell>, life: &mut Life, stopped: bool) {
        if !life.is_stopping_group() {
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

    fn cut(self: &Arc<Cell>, life: &mut Life) {
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
    fn cut_copiers(&self, life: &mut Life) {
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
    fn leave_copiers(self: &Arc<Cell>, life: &mut Life) {
        if let Some(extra) = &mut life.extra {
            for which in 0..2 {
                *extra.held_open.flag(which) |= extra.copiers[which + 1].take().is_some();
            }
        }
        self.check_streams(life);
    }

    fn copier_failed(&self, which: usize, error: io::Error) {
        self.with(|life| {
            let Some(extra) = &mut life.extra else { return };
            // One that was left behind has nothing more to say.
            if extra.copiers[which].is_some() {
                extra.stream_failed.get_or_insert((Stream::ALL[which], Arc::new(error)));
            }
        });
    }

    fn copier_ended(self: &Arc<Cell>, which: usize) {
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

    fn finish(self: &Arc<Cell>, life: &mut Life) {
        // As long as its output was read, somebody whom it left behind may have read its input.
        if let Some(extra) = &mut life.extra {
            extra.close_stdin(&self.core);
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
        life.wake_all();
        self.wake_sleepers(life);
        if let Some(token) = life.token {
            self.core.report(token, self);
        }
        if !life.is_stopping_group() {
            self.give_back(life);
        }
    }

    fn give_back(&self, life: &mut Life) {
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
            life.wake_all();
            self.wake_sleepers(life);
        });
    }

    // ── waiting ──

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

    fn sleep<'a>(&self, mut life: MutexGuard<'a, Life>, until: Option<Instant>) -> Option<MutexGuard<'a, Life>> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return None;
        }
        life.sleepers += 1;
        let mut life = match left {
            Some(left) => self.changed.wait_timeout(life, left).unwrap_or_else(PoisonError::into_inner).0,
            None => self.changed.wait(life).unwrap_or_else(PoisonError::into_inner),
        };
        life.sleepers -= 1;
        Some(life)
    }

    /// To signal a condition nobody waits for is a system call all the same.
    fn wake_sleepers(&self, life: &Life) {
        if life.sleepers > 0 {
            self.changed.notify_all();
        }
    }

    /// The caller owns the child, which is not in the epoll set: wait, reap, publish; or give it back when the time is over.
    pub(crate) fn wait_as_owner(self: &Arc<Cell>, until: Option<Instant>) -> Result<Option<Exit>> {
        let (pidfd, grouped) = {
            let mut life = self.lock();
            (life.lend_pidfd(), life.scope == Scope::Group)
        };
        let outcome = match until {
            // A group's leader is looked at first: what becomes of the group is decided before it is reaped.
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

    fn reap_or_return(self: &Arc<Cell>, life: &mut Life) {
        if life.has_exited() {
            life.owner = Owner::Reactor;
            self.try_reap(life);
        } else {
            self.return_to_loop(life);
        }
    }

    /// Adding a descriptor that is readable already reports at once: nothing is missed.
    fn return_to_loop(&self, life: &mut Life) {
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

    // ── streams ──

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
    fn reopen(self: &Arc<Cell>, life: &mut Life, reasons: Option<&Reasons>) {
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

    fn add_capture(&self, life: &mut Life, which: usize, fd: Option<OwnedFd>) -> Result<()> {
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

    /// A duplicate of the pidfd.
    pub(crate) fn pidfd(&self) -> Result<OwnedFd> {
        self.core.check_ours()?;
        let life = self.lock();
        let Some(pidfd) = life.open_pidfd() else {
            return Err(self.error(ErrorKind::NoSuchChild).saying("it has been reaped"));
        };
        pidfd.try_clone().map_err(|e| Error::os(Stage::Streams, e).of(&*self.label))
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    /// Has `waker` woken when it is dead, or (`streams`) when its streams are done; false if it is already. Again with the same key: in
    /// place of the former waker.
    pub(crate) fn wake_when(&self, streams: bool, key: &mut Option<WakeKey>, waker: &Waker) -> bool {
        // Cloned and dropped outside the lock: a waker is somebody else's code.
        let waker = waker.clone();
        let mut life = self.lock();
        let is_there = if streams { life.done } else { life.exit.is_some() };
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
}

impl Drop for Cell {
    /// The last reference may be the loop's, and what a closure holds is the caller's: its destructors may block.
    fn drop(&mut self) {
        let life = self.life.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Some(extra), true) = (&mut life.extra, self.core.is_ours()) {
            std::mem::replace(&mut extra.ladder, Ladder::new(Vec::new())).retire();
        }
    }
}

impl Signals for Arc<Cell> {
    fn pid(&self) -> u32 {
        Cell::pid(self)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Cell::signal(self, signal)
    }
}

impl Life {
    fn others(&mut self) -> &mut Others {
        self.others.get_or_insert_default()
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Whoever waits is told when the lock is gone.
    fn wake_all(&mut self) {
        if let Some(others) = &mut self.others {
            others.after.extend(others.wakers.drain(..).map(|(_, waker)| After::Wake(waker)));
        }
    }

    /// Until it is closed.
    fn open_pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref().or_else(|| self.others.as_ref()?.lent.as_deref())
    }

    /// For who owns the child and will sleep on it without the lock.
    fn lend_pidfd(&mut self) -> Arc<OwnedFd> {
        let own = self.pidfd.take();
        let lent = &mut self.others().lent;
        lent.get_or_insert_with(|| Arc::new(own.expect("a child that is not reaped has its pidfd"))).clone()
    }

    /// Only where the child is known not to be reaped, or to be stopped as a group.
    fn pidfd(&self) -> BorrowedFd<'_> {
        self.open_pidfd().expect("held until the child is reaped and its stop is over").as_fd()
    }

    fn has_exited(&self) -> bool {
        self.open_pidfd().is_none_or(|fd| process::has_exited(fd.as_fd()))
    }

    fn has_streams(&self) -> bool {
        let stream = |e: &Extra| e.captures.iter().any(Option::is_some) || e.copiers[1..].iter().any(Option::is_some);
        self.extra.as_deref().is_some_and(stream)
    }

    /// Whether its stop has steps that are still to come: the last one, and one that is given for ever, have none after them.
    fn has_clock(&self) -> bool {
        self.extra.as_ref().is_some_and(|e| e.ladder.due.is_some() || matches!(e.delay, Delay::At(_)))
    }

    /// Of a dead child: whether a loop is there to read them, and nobody has said that they want no more.
    fn waits_for_streams(&self) -> bool {
        let awaited = |e: &Extra| e.delay != Delay::Over && (self.cause.is_none() || e.wait_delay.is_some());
        self.token.is_some() && self.extra.as_deref().is_some_and(awaited)
    }

    /// A stop of a group that has sent something goes on without its leader.
    fn is_stopping_group(&self) -> bool {
        self.scope == Scope::Group && (self.sent.kill || self.sent.other) && self.open_pidfd().is_some()
    }

    fn leaves_group_behind(&self) -> bool {
        let kills = self.extra.as_ref().is_some_and(|e| e.leftovers == Leftovers::Kill);
        self.scope == Scope::Group && kills && self.has_exited()
    }

    /// Where a pidfd cannot signal a group, the leader's zombie is what keeps the group's number from being anybody else's.
    fn keeps_zombie(&self) -> bool {
        self.is_stopping_group() && !process::group_flag_works()
    }

    /// Of what its group is sent after its end it is not said to have died.
    fn record_cause(&mut self) {
        if self.cause.is_none() && self.ended.is_none() {
            self.cause = self.pending.take();
        }
    }

    fn was_killed(&self) -> bool {
        let status = self.ended.as_ref().and_then(|death| death.status);
        status.is_some_and(|status| status.signal() == Some(libc::SIGKILL))
    }

    /// Then it was stopped, whatever else was tried.
    fn was_killed_by_us(&self) -> bool {
        self.sent.kill && self.was_killed()
    }

    /// If SIGKILL was all that was sent and it did not die of that, it was not stopped: it had ended by itself in between.
    fn take_back_cause(&mut self) {
        let only_kill = self.sent.kill && !self.sent.other;
        let is_known = self.ended.as_ref().is_some_and(|death| death.status.is_some());
        if only_kill && is_known && !self.was_killed() {
            self.pending = self.cause.take();
        }
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
