//! What everybody who deals with one child shares: its pidfd, who may reap it, how far its life has got, how it ended.
//! Does what `lifecycle` decides. Knows its reactor only as the place to register, arm and leave.

mod birth;
mod ending;
mod pausing;
mod queued;
mod stopping;
mod streams;
mod tree;
mod waiting;

pub(crate) use self::pausing::Paused;
use self::queued::Left;
pub(crate) use self::queued::Turn;
pub(crate) use self::tree::Tree;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::core::Core;
use super::stop::{Delay, Ladder};
use crate::admission::Permit;
use crate::cause::Cause;
use crate::command::{Inspect, Leftovers, Signals};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::events::EventKind;
use crate::exit::{Exit, HeldOpen, Spool, Unserved, Usage};
use crate::lifecycle::{self, Action, Event, Phase};
use crate::pipe::Feed;
use crate::pipe::capture::Capture;
use crate::pipe::copier::{Copier, Told};
use crate::pipe::spool::Spooling;
use crate::process::{self, Membership};
use crate::queue::Upstream;
use crate::scope::Scope;
use crate::signal::Signal;
use crate::sys::process::Published;
use crate::tell::{Level, tell, wake};
use crate::timer::Clock;
use crate::token::{Kind, Token};
use crate::trace::Span;

/// How long the end of a child stays unpublished at most while its `Cancel::call` closure runs: what the closure returns decides whether
/// the child was stopped.
const CALL_GRACE: Duration = Duration::from_millis(500);

/// A child, as its reactor, its handle and its waiters share it.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) core: Arc<Core>,
    /// The command as a shell line.
    pub(crate) label: Arc<str>,
    /// The pidfd's number, written by the kernel before the child runs: its creator is suspended until the exec.
    pub(crate) published: Published,
    /// 0 before it is born. Not under the lock, which may be held for ever in a forked copy. Relaxed: whoever must not see the 0 has the
    /// child from its creator, or its pidfd from under the lock, both after this was set.
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
    /// A helper thread that looks at the zombie, for as long as it may.
    Inspector,
    /// A caller of `wait`, by `waitid`; the pidfd is not in the epoll set.
    Waiter,
    /// It is reaped (or lost).
    Nobody,
}

/// Whose child it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kin {
    /// We have started it.
    Born,
    /// Other code of this process has, and we are its reaper now.
    Adopted,
    /// It is no child of this process.
    Foreign,
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
    kin: Kin,
    spawned_at: Instant,
    ended: Option<Box<Death>>,
    exit: Option<Exit>,
    /// The streams are done: `exit` says everything there is to say.
    done: bool,
    /// A tracer hides its death, or its own parent has yet to reap it: the registration stays and the next edge is awaited.
    traced: bool,
    /// Its zombie is kept, so that its pid goes on naming its group.
    unreaped: bool,
    /// What the child has left in its cgroup is being stopped, after an end of its own.
    stopping_tree: bool,
    kill_on_drop: bool,
    died: bool,
    /// How many threads sleep until `changed`.
    sleepers: u32,
    others: Option<Box<Others>>,
    extra: Option<Box<Extra>>,
    span: Span,
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
    /// Where it waits, until its turn comes.
    turn: Option<Turn>,
    /// Its slots in what has a limit, as long as it lives.
    permit: Option<Box<Permit>>,
}

/// What a future waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    Death,
    /// And its streams are done.
    Streams,
    /// And nobody is left in its cgroup.
    Tree,
}

/// Names a future that waits for a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WakeKey(u64);

/// Other people's code, to be run when the lock is gone.
#[derive(Debug)]
enum After {
    Wake(Waker),
    Say(Level, String),
    /// It was taken out of the queue of spawns.
    Left(Left),
    /// Others are admitted by that.
    Release(Box<Permit>),
    Close(Span, Exit),
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
    /// When its stop began.
    pub(crate) stopped_at: Option<Instant>,
    pub(crate) leftovers: Leftovers,
    pub(crate) paused: Paused,
    /// To be called when it is dead, before it is reaped.
    pub(crate) inspect: Option<Inspect>,
    pub(crate) tree: Option<Box<Tree>>,
    pub(crate) membership: Option<Membership>,
    /// The ends of pipes that the caller may still take: stdin, stdout, stderr.
    pub(crate) piped: [Option<OwnedFd>; 3],
    /// Our end of its terminal, that the caller may still take.
    pub(crate) untaken_terminal: Option<OwnedFd>,
    /// The same, if it is ours: kept while its output is read, for its size, and since closing the last one hangs up.
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) feed: Option<Feed>,
    /// Why the reading of those may be ended, should it begin only after the death.
    pub(crate) reasons: Option<Reasons>,
    /// stdout and stderr, while they are read.
    pub(crate) captures: [Option<Capture>; 2],
    /// stdout and stderr, when they are complete or cut: the bytes and how many were left out.
    pub(crate) results: [Option<(Vec<u8>, u64)>; 2],
    /// stdout and stderr, while the child writes them into files by itself.
    pub(crate) spoolings: [Option<Spooling>; 2],
    /// Those files, when it is dead.
    pub(crate) spools: [Option<Spool>; 2],
    /// stdin, stdout, stderr, while they are served by the caller's own code and somebody waits for that.
    pub(crate) copiers: [Option<Copier>; 3],
    /// Which of those failed first, and why.
    pub(crate) stream_failed: Option<Unserved>,
    pub(crate) held_open: HeldOpen,
    pub(crate) over_limit: bool,
    pub(crate) cancel_failed: Option<Arc<io::Error>>,
    /// When its death was seen that is told later.
    pub(crate) seen_at: Option<Instant>,
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

/// How a copier's thread, or a queue's consumer, reaches the child. It keeps nothing alive: one that is left behind would keep the reactor's descriptors open.
pub(crate) struct Teller {
    cell: Weak<Cell>,
    which: usize,
}

impl Teller {
    pub(crate) fn new(cell: &Arc<Cell>, which: usize) -> Teller {
        Teller { cell: Arc::downgrade(cell), which }
    }
}

impl Upstream for Teller {
    fn resume(&self) {
        if let Some(cell) = self.cell.upgrade() {
            cell.resume(self.which - 1);
        }
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
    pub(crate) kill_on_drop: bool,
    pub(crate) span: Span,
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
                scope: Scope::Child,
                kin: Kin::Born,
                spawned_at: birth.spawned_at,
                ended: None,
                exit: None,
                done: false,
                traced: false,
                unreaped: false,
                stopping_tree: false,
                kill_on_drop: birth.kill_on_drop,
                died: false,
                sleepers: 0,
                others: None,
                extra: None,
                span: birth.span,
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
                After::Wake(waker) => wake(waker),
                After::Close(span, exit) => span.close(exit),
                After::Say(level, what) => tell(level, format_args!("{}: {what}", self.label)),
                After::Left(left) => left.tell(),
                After::Release(permit) => drop(permit),
            }
        }
        result
    }

    /// Tells those who asked for events; of a child that has a place in the tables.
    fn emit(&self, life: &mut Life, kind: impl FnOnce() -> EventKind) {
        if !self.core.outlets.is_on() {
            return;
        }
        let event = self.core.event(&self.label, life.token, self.pid(), kind());
        let wakers = self.core.outlets.push(&event);
        if !wakers.is_empty() {
            life.others().after.extend(wakers.into_iter().map(After::Wake));
        }
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
            // Armed before the pause: it comes again when that is over.
            Clock::Deadline | Clock::Step | Clock::Delay if life.is_paused() => {}
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
                Owner::Inspector => self.end_inspection(life),
                Owner::Reactor => self.try_reap(life),
                Owner::Waiter | Owner::Nobody => {}
            },
            Clock::Call if life.call == Call::Running && life.ended.is_some() => self.conclude(life),
            Clock::Call => {}
            Clock::Copy => self.leave_copiers(life),
            Clock::Cut => self.cut(life),
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

    /// Feeds an event to the table and does what it says.
    fn feed(self: &Arc<Cell>, life: &mut Life, event: Event) {
        if (life.phase, event) == (Phase::Running, Event::Stop) {
            self.note_stop(life);
        }
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
            // It is also that of what the child has left in its cgroup.
            Action::DisarmDeadline if life.phase == Phase::Done && life.cgroup().is_some() => {}
            Action::DisarmDeadline => {
                if let Some(token) = life.token {
                    self.core.disarm_deadline(token);
                }
            }
            Action::PublishExit => self.publish(life),
            Action::StopGroup => self.stop_group(life),
            Action::StopTree => self.stop_tree(life),
            Action::Drain => self.drain(life, false),
            Action::DrainStopped => self.drain(life, true),
            Action::CutStreams => self.cut(life),
            Action::Finish => self.finish(life),
        }
    }
}

impl Drop for Cell {
    /// The last reference may be the loop's, and what a closure holds, or failed with, and an error that is the cause, are the caller's: their
    /// destructors may block.
    fn drop(&mut self) {
        if !self.core.is_ours() {
            return;
        }
        let life = self.life.get_mut().unwrap_or_else(PoisonError::into_inner);
        let causes = [life.pending.take(), life.cause.take()];
        let mut foreign = causes.iter().flatten().any(|cause| cause.is_foreign());
        let mut failures = (None, None);
        if let Some(extra) = &mut life.extra {
            std::mem::replace(&mut extra.ladder, Ladder::new(Vec::new())).retire();
            extra.inspect.take().into_iter().for_each(Inspect::retire);
            let contexts = extra.reasons.take().map(|reasons| reasons.contexts);
            contexts.into_iter().flatten().for_each(Context::retire);
            failures = (extra.cancel_failed.take(), extra.stream_failed.take());
            foreign |= failures.0.is_some() || failures.1.is_some();
        }
        if foreign {
            let exit = life.exit.take();
            crate::helpers::run(Box::new(move || drop((exit, causes, failures))));
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

    fn seen_at(&self) -> Option<Instant> {
        self.extra.as_ref()?.seen_at
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

    /// A stop of a group or cgroup that has sent something goes on without its leader.
    fn is_stopping_rest(&self) -> bool {
        let has_begun = self.sent.kill || self.sent.other;
        match self.scope {
            Scope::Child => false,
            Scope::Group => has_begun && self.open_pidfd().is_some(),
            Scope::Cgroup => (has_begun || self.stopping_tree) && self.cgroup().is_some(),
        }
    }

    fn is_inspected(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.inspect.is_some())
    }

    fn leaves_group_behind(&self) -> bool {
        let kills = self.extra.as_ref().is_some_and(|e| e.leftovers == Leftovers::Kill);
        self.scope != Scope::Child && kills && self.has_exited()
    }

    /// Where a pidfd cannot signal a group, the leader's zombie is what keeps the group's number from being anybody else's.
    fn keeps_zombie(&self) -> bool {
        self.scope == Scope::Group && self.is_stopping_rest() && !process::group_flag_works()
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
