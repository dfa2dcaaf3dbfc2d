//! The loop that a caller turns: children by id, one descriptor for an outer loop. Knows no thread; the folder is the only place
//! that names mio.

pub(crate) mod admit;
mod adopt;
pub(crate) mod cell;
pub(crate) mod core;
pub(crate) mod port;
pub(crate) mod start;
mod stop;
mod turn;

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use self::adopt::adopt;
use self::cell::Cell;
use self::core::Core;
pub(crate) use self::core::known_pids;
use self::start::{Defaults, Manner, start};
pub(crate) use self::turn::{Inbox, Loop};
use crate::admission::{self, Load, Setting};
use crate::adopt::Adopt;
use crate::cause::Cause;
use crate::command::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Events;
use crate::exit::{Captured, Exit};
use crate::scope::TreeUsage;
use crate::signal::Signal;
use crate::spawn::Busy;
use crate::stats::Stats;
use crate::stdio::{ChildStderr, ChildStdin, ChildStdout};
use crate::terminal::ChildTerminal;
pub use crate::token::ChildId;

/// How often a busy program file is tried again without sleeping.
pub(crate) const BUSY_WITHOUT_SLEEP: Busy = Busy::Spin { tries: 3 };
/// After its SIGKILLs, `shutdown` gives up when no child has ended for this long.
const STUCK: Duration = Duration::from_secs(1);

/// An event loop that watches children, turned by its caller: no thread, no callback.
///
/// Its descriptor ([`AsFd`]) is an epoll set that becomes readable when [`turn`](Reactor::turn) has something to do (deadlines
/// included), so that it nests in any other loop, level- or edge-triggered.
///
/// ```
/// use std::time::Duration;
/// use pidloop::{Command, Reactor};
///
/// # fn main() -> pidloop::Result<()> {
/// let mut jobs = Reactor::new()?;
/// let id = jobs.spawn(Command::new("sh").args(["-c", "exit 3"]).timeout(Duration::from_secs(10)))?;
/// let ended = loop {
///     jobs.turn(None)?;
///     if let Some(ended) = jobs.next_exit() {
///         break ended;
///     }
/// };
/// assert_eq!((ended.id(), ended.exit().code()), (id, Some(3)));
/// # Ok(())
/// # }
/// ```
///
/// Dropping it never blocks: children with [`Command::kill_on_drop`] get SIGKILL, all others go on under the default driver. Take its
/// descriptor out of an outer loop before: while it has children it stays open, in the default driver's hands.
#[derive(Debug)]
pub struct Reactor {
    /// `None` only while it is dropped: who goes on with it is the driver's business.
    pub(crate) turning: Option<Loop>,
    core: Arc<Core>,
}

/// A child that is done: dead, and its captured streams complete or cut.
#[derive(Debug)]
pub struct Ended {
    id: ChildId,
    exit: Exit,
    captured: Captured,
}

impl Ended {
    /// Which child.
    pub fn id(&self) -> ChildId {
        self.id
    }

    /// How it ended.
    pub fn exit(&self) -> &Exit {
        &self.exit
    }

    /// What was captured; empty for streams that were not.
    pub fn into_output(self) -> Captured {
        self.captured
    }
}

/// A child that outlived a shutdown: in an uninterruptible sleep, or traced.
#[derive(Clone, Debug)]
pub struct Survivor {
    pid: u32,
    command: Arc<str>,
}

impl Survivor {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its command as a shell line, secrets hidden.
    pub fn command(&self) -> &str {
        &self.command
    }
}

impl Reactor {
    /// A reactor without children.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoDescriptors`], [`ErrorKind::NoMemory`]: it needs four descriptors.
    pub fn new() -> Result<Reactor> {
        let turning = Loop::new(true)?;
        Ok(Reactor { core: turning.core().clone(), turning: Some(turning) })
    }

    /// Starts a child. Returns when its program runs, or says why it does not. While that takes nobody turns the loop: where a program
    /// file may hang (a filesystem that does not answer) and a context or deadline is to end that, [`Remote::spawn`] on another thread.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`]; a program file that is being written (`ETXTBSY`) is tried three times without sleeping.
    /// [`ErrorKind::NoRoom`] beyond a limit: [`set_max_running`](Reactor::set_max_running).
    pub fn spawn(&mut self, command: &Command) -> Result<ChildId> {
        spawn(&self.core, command)
    }

    /// Watches a process that other code has started, as [`Child::adopt`](crate::Child::adopt).
    ///
    /// # Errors
    ///
    /// As [`Child::adopt`](crate::Child::adopt).
    pub fn adopt(&mut self, process: &Adopt) -> Result<ChildId> {
        adopt(&self.core, process).map(|(_, token)| ChildId(token))
    }

    /// Waits at most `timeout` (`None`: for ever) until something happens, and deals with it: exits, contexts, deadlines,
    /// pipes. Bounded: what is left after a thousand events waits for the next turn, and the descriptor stays readable.
    ///
    /// Returns early when a signal handler ran; else a `timeout` is rounded up to milliseconds. `epoll_wait(2)`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Forked`] in a forked copy of the process; [`ErrorKind::Io`] if somebody closed the epoll descriptor.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<()> {
        match &mut self.turning {
            Some(turning) => turning.turn(timeout),
            None => Ok(()),
        }
    }

    /// The next child that is done; each is reported once.
    pub fn next_exit(&mut self) -> Option<Ended> {
        let (token, cell) = self.core.next_ended()?;
        let exit = cell.exit()?;
        Some(Ended { id: ChildId(token), exit, captured: cell.take_captured() })
    }

    /// The next child whose cgroup ([`Command::cgroup_scope`]) nobody is left in, and what all of them used; after [`next_exit`](Reactor::next_exit)
    /// had, or could have had, the child itself. Each is kept until it is asked for.
    pub fn next_tree(&mut self) -> Option<(ChildId, TreeUsage)> {
        self.core.next_tree().map(|(token, usage)| (ChildId(token), usage))
    }

    /// What the child and everything it has started used up to now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if it has no cgroup of its own; [`ErrorKind::NoSuchChild`] when all of it is gone and was reported.
    pub fn tree_usage(&self, id: ChildId) -> Result<TreeUsage> {
        find(&self.core, id)?.tree_usage()
    }

    /// How many children are not reported yet.
    pub fn len(&self) -> usize {
        self.core.unreported()
    }

    /// Whether all children are reported.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How long a loop may sleep that does not watch the descriptor: until the next deadline. `None`: there is none.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.core.next_deadline().map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// How many children may live at a time; `None`: as many as there is room for. Beside them those count that are being started. Unlike a
    /// driver it keeps nobody waiting, since nobody else turns it: a [`spawn`](Reactor::spawn) beyond the limit, its own or that of a context,
    /// is refused ([`ErrorKind::NoRoom`]). Try again when a child has been reported.
    pub fn set_max_running(&self, limit: impl Into<Option<usize>>) {
        self.core.limit(Setting::MaxRunning(limit.into()));
    }

    /// Waits until there is room for `command` under its limits; for any runtime. Nothing is reserved by that: it takes a turn in the queue, and
    /// who spawns then may be too late all the same.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::QueueFull`]; [`ErrorKind::ShutDown`] as soon as the reactor takes no more; [`ErrorKind::Forked`]. A cancelled context does not
    /// end it: select it with [`Context::cancelled`](crate::Context::cancelled).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue.
    pub fn room_async(&self, command: &Command) -> impl Future<Output = Result<()>> + Send + use<> {
        admit::Room::new(&self.core, command)
    }

    /// How many of its children live, and how many may.
    pub fn load(&self) -> Load {
        admission::load(self.core.key)
    }

    /// What it has counted and timed since it was made.
    pub fn stats(&self) -> Stats {
        self.core.recorder.snapshot()
    }

    /// A queue of at most `capacity` events: what happens to its children from now on. Any number of them may be asked for.
    ///
    /// In a forked copy of the process it has ended.
    pub fn events(&self, capacity: usize) -> Events {
        self.core.subscribe(capacity)
    }

    /// Sends a signal, through the pidfd. After the exit Ok and without effect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchChild`] if it was reported already; what `pidfd_send_signal(2)` says.
    pub fn signal(&self, id: ChildId, signal: Signal) -> Result<()> {
        find(&self.core, id)?.signal(signal)
    }

    /// SIGKILL; no cause is recorded.
    ///
    /// # Errors
    ///
    /// As [`Reactor::signal`].
    pub fn kill(&self, id: ChildId) -> Result<()> {
        self.signal(id, Signal::SIGKILL)
    }

    /// SIGTERM, and after `grace` SIGKILL, with [`Cause::Terminated`]. Does not wait. A stop that is under way is hurried.
    ///
    /// # Errors
    ///
    /// As [`Reactor::signal`].
    pub fn terminate(&self, id: ChildId, grace: Duration) -> Result<()> {
        find(&self.core, id).map(|cell| cell.terminate(grace))
    }

    /// The write end of its piped stdin; once.
    pub fn take_stdin(&mut self, id: ChildId) -> Option<ChildStdin> {
        find(&self.core, id).ok()?.take_piped(0).map(ChildStdin::from)
    }

    /// The read end of its piped stdout; once.
    pub fn take_stdout(&mut self, id: ChildId) -> Option<ChildStdout> {
        find(&self.core, id).ok()?.take_piped(1).map(ChildStdout::from)
    }

    /// The read end of its piped stderr; once.
    pub fn take_stderr(&mut self, id: ChildId) -> Option<ChildStderr> {
        find(&self.core, id).ok()?.take_piped(2).map(ChildStderr::from)
    }

    /// Our end of its terminal, as [`Child::take_terminal`](crate::Child::take_terminal); once.
    pub fn take_terminal(&mut self, id: ChildId) -> Option<ChildTerminal> {
        find(&self.core, id).ok()?.take_terminal().map(ChildTerminal::from)
    }

    /// As [`Child::resize_terminal`](crate::Child::resize_terminal).
    ///
    /// # Errors
    ///
    /// As [`Child::resize_terminal`](crate::Child::resize_terminal); [`ErrorKind::NoSuchChild`] if it was reported already.
    pub fn resize_terminal(&self, id: ChildId, rows: u16, columns: u16) -> Result<()> {
        find(&self.core, id)?.resize_terminal(rows, columns)
    }

    /// Its process id, until it is reported.
    pub fn pid(&self, id: ChildId) -> Option<u32> {
        find(&self.core, id).ok().map(|cell| cell.pid())
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// For other threads: spawns into this reactor, and signals its children.
    pub fn remote(&self) -> Remote {
        Remote { core: self.core.clone() }
    }

    /// Ends all children: no more spawns; they may end by themselves for `grace`; then each is stopped as its
    /// [`Cancel`](crate::Cancel) says, with [`Cause::ShutDown`]; after `kill_after` more SIGKILL. Says who is left, when for a second
    /// nobody has ended; a reactor that cannot be turned says all of them. The ended ones are still reported by
    /// [`next_exit`](Reactor::next_exit).
    pub fn shutdown(&mut self, grace: Duration, kill_after: Duration) -> Vec<Survivor> {
        let Some(turning) = &mut self.turning else {
            return Vec::new();
        };
        shut_down(&self.core, grace, kill_after, |until| {
            while self.core.live() > 0 {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() || turning.turn(Some(left)).is_err() {
                    return false;
                }
            }
            true
        })
    }
}

impl AsFd for Reactor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.epoll()
    }
}

impl AsRawFd for Reactor {
    /// For loops that take a number; tokio's `AsyncFd` takes the whole reactor.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A handle to a [`Reactor`] for other threads.
#[derive(Clone, Debug)]
pub struct Remote {
    core: Arc<Core>,
}

impl Remote {
    /// As [`Reactor::spawn`]; the reactor reports it.
    ///
    /// # Errors
    ///
    /// As [`Reactor::spawn`]; [`ErrorKind::ShutDown`] if the reactor is gone.
    pub fn spawn(&self, command: &Command) -> Result<ChildId> {
        spawn(&self.core, command)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// As [`Reactor::adopt`].
    ///
    /// # Errors
    ///
    /// As [`Reactor::adopt`].
    pub fn adopt(&self, process: &Adopt) -> Result<ChildId> {
        adopt(&self.core, process).map(|(_, token)| ChildId(token))
    }

    /// As [`Reactor::signal`].
    ///
    /// # Errors
    ///
    /// As [`Reactor::signal`].
    pub fn signal(&self, id: ChildId, signal: Signal) -> Result<()> {
        find(&self.core, id)?.signal(signal)
    }

    /// As [`Reactor::kill`].
    ///
    /// # Errors
    ///
    /// As [`Reactor::signal`].
    pub fn kill(&self, id: ChildId) -> Result<()> {
        self.signal(id, Signal::SIGKILL)
    }

    /// As [`Reactor::terminate`].
    ///
    /// # Errors
    ///
    /// As [`Reactor::signal`].
    pub fn terminate(&self, id: ChildId, grace: Duration) -> Result<()> {
        find(&self.core, id).map(|cell| cell.terminate(grace))
    }
}

fn spawn(core: &Arc<Core>, command: &Command) -> Result<ChildId> {
    let busy = BUSY_WITHOUT_SLEEP;
    start(core, command, Manner { defaults: Defaults::Inherit, busy, watched: true }).map(|(_, token)| ChildId(token))
}

fn find(core: &Core, id: ChildId) -> Result<Arc<Cell>> {
    core.check_ours()?;
    core.child(id.0).or_else(|| core.ended(id.0)).ok_or_else(|| Error::new(ErrorKind::NoSuchChild))
}

/// A shutdown; `wait` sleeps until no child is left or the time has come, and says whether none is left.
pub(crate) fn shut_down(
    core: &Core,
    grace: Duration,
    kill_after: Duration,
    mut wait: impl FnMut(Instant) -> bool,
) -> Vec<Survivor> {
    let mut ending = ShuttingDown::new(core);
    let mut is_empty = false;
    while let Some(span) = ending.next([grace, kill_after], is_empty) {
        is_empty = wait(in_time(span));
    }
    ending.survivors()
}

/// How far a shutdown has got.
pub(crate) struct ShuttingDown<'a> {
    core: &'a Core,
    next: Option<Step>,
    left: usize,
}

#[derive(Clone, Copy)]
enum Step {
    Closing,
    Stopping,
    Killing,
    Looking,
}

impl<'a> ShuttingDown<'a> {
    pub(crate) fn new(core: &'a Core) -> ShuttingDown<'a> {
        ShuttingDown { core, next: core.is_ours().then_some(Step::Closing), left: usize::MAX }
    }

    /// Takes the next step, and says how long its children are waited for; `None`: it is over. `is_empty`: none is left.
    pub(crate) fn next(&mut self, [grace, kill_after]: [Duration; 2], is_empty: bool) -> Option<Duration> {
        let (next, span) = match self.next.filter(|_| !is_empty)? {
            Step::Closing => {
                self.core.close();
                (Step::Stopping, grace)
            }
            Step::Stopping => {
                self.core.all_children().iter().for_each(|cell| cell.stop(Cause::ShutDown));
                (Step::Killing, kill_after)
            }
            Step::Killing => {
                let left = self.core.all_children();
                self.left = left.len();
                left.iter().for_each(|cell| cell.kill_stopping(Cause::ShutDown));
                (Step::Looking, STUCK)
            }
            Step::Looking => {
                let left = self.core.all_children().len();
                if std::mem::replace(&mut self.left, left) == left {
                    return None;
                }
                (Step::Looking, STUCK)
            }
        };
        self.next = Some(next);
        Some(span)
    }

    /// Who is left at the end.
    pub(crate) fn survivors(&self) -> Vec<Survivor> {
        if !self.core.is_ours() {
            return Vec::new();
        }
        let survivor = |cell: &Arc<Cell>| Survivor { pid: cell.pid(), command: cell.label.clone() };
        self.core.all_children().iter().map(survivor).collect()
    }
}

fn in_time(span: Duration) -> Instant {
    /// "For ever" to a clock.
    const AGE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(span).unwrap_or(now + AGE)
}
