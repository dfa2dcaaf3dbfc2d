//! What happens to children, told to whoever asked, in a queue of a fixed length. Knows no loop; calls nobody: wakers are handed back
//! to be called when no lock is held.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use crate::cause::Cause;
use crate::error::{ErrorKind, Stage};
use crate::exit::{Exit, HeldOpen, Stream};
use crate::sys::process::generation;
use crate::token::ChildId;

/// Something happened to a child, or to what was to become one.
///
/// Never holds a value of the environment, a byte of a stream or a [`secret_arg`](crate::Command::secret_arg).
#[derive(Clone, Debug)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Event {
    /// When; by the clock on the wall, which may be set. Events of a child are told in their order whatever it says.
    #[cfg_attr(feature = "serde", serde(serialize_with = "seconds"))]
    pub at: SystemTime,
    /// Which child of its driver or reactor; `None` before it has a place there.
    pub child: Option<ChildId>,
    /// The child's process id, once it has one.
    pub pid: Option<u32>,
    /// The command as a shell line, secrets hidden.
    #[cfg_attr(feature = "serde", serde(serialize_with = "text"))]
    pub command: Arc<str>,
    /// What happened.
    pub kind: EventKind,
    /// How many events before this one found the queue full, and were not kept.
    pub lost_before: u64,
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum EventKind {
    /// A spawn waits to be admitted.
    Queued,
    /// The program runs.
    Spawned,
    /// The spawn failed; or it was given up while it waited.
    Failed {
        /// What kind of failure.
        kind: ErrorKind,
        /// The step that failed.
        stage: Option<Stage>,
    },
    /// There is a reason to stop it, and its stop begins.
    Stopping {
        /// The reason.
        cause: Cause,
    },
    /// Its end was seen.
    Exited {
        /// How it ended.
        exit: Exit,
    },
    /// A stream that the loop reads has come to its end.
    OutputClosed {
        /// Its stdout or its stderr.
        stream: Stream,
    },
    /// The reading was ended while somebody still held these streams.
    HeldOpen {
        /// Which.
        streams: HeldOpen,
    },
}

#[cfg(feature = "serde")]
fn seconds<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_f64(since.as_secs_f64())
}

#[cfg(feature = "serde")]
fn text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl fmt::Display for Event {
    /// One line: `sleep 60 (4711): exited: signal: killed`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.command)?;
        if let Some(pid) = self.pid {
            write!(f, " ({pid})")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::Queued => f.write_str("queued"),
            EventKind::Spawned => f.write_str("spawned"),
            EventKind::Failed { kind, stage: Some(stage) } => write!(f, "failed: could not {stage} ({kind:?})"),
            EventKind::Failed { kind, stage: None } => write!(f, "failed: {kind:?}"),
            EventKind::Stopping { cause } => write!(f, "stopping: {cause}"),
            EventKind::Exited { exit } => match exit.cause() {
                Some(cause) => write!(f, "exited: {exit} ({cause})"),
                None => write!(f, "exited: {exit}"),
            },
            EventKind::OutputClosed { stream } => write!(f, "closed its {stream}"),
            EventKind::HeldOpen { streams } => {
                let which = match (streams.stdout, streams.stderr) {
                    (true, true) => "stdout and stderr",
                    (true, false) => "stdout",
                    _ => "stderr",
                };
                write!(f, "somebody still held its {which}")
            }
        }
    }
}

/// The reading end of a queue of [`Event`]s: [`Driver::events`](crate::Driver::events), [`Reactor::events`](crate::Reactor::events),
/// [`events`](crate::events()) for the default driver.
///
/// The loop never waits for it. What comes while the queue is full is not kept: the next event that is says how many there were
/// ([`Event::lost_before`]).
///
/// As an iterator it blocks until something happens; it ends when its driver or reactor is gone, with all handles of its children.
///
/// ```
/// use pidloop::{Command, Driver, EventKind};
///
/// let driver = Driver::new()?;
/// let mut events = driver.events(1000);
/// driver.spawn(Command::new("sh").args(["-c", "exit 3"]))?.wait()?;
/// assert!(matches!(events.next().unwrap().kind, EventKind::Spawned));
/// assert_eq!(events.next().unwrap().kind.to_string(), "exited: exit status 3");
/// assert!(events.try_next().is_none());
/// # Ok::<(), pidloop::Error>(())
/// ```
#[derive(Debug)]
pub struct Events(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// Signalled at each event, if anybody waits, and at the end.
    arrived: Condvar,
    /// Which process made it: in a forked copy the lock may be held for ever.
    generation: u64,
}

#[derive(Debug)]
struct State {
    events: VecDeque<Event>,
    capacity: usize,
    lost: u64,
    lost_in_all: u64,
    waker: Option<Waker>,
    sleeping: bool,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest is what is left out: who sent it still has all that it refers to, so that nothing of a caller's is dropped here.
    fn push(&self, event: &Event) -> Option<Waker> {
        let mut state = self.state();
        if state.events.len() >= state.capacity {
            state.lost += 1;
            state.lost_in_all += 1;
            return None;
        }
        let lost_before = std::mem::take(&mut state.lost);
        state.events.push_back(Event { lost_before, ..event.clone() });
        if state.sleeping {
            self.arrived.notify_one();
        }
        state.waker.take()
    }

    fn close(&self) -> Option<Waker> {
        let mut state = self.state();
        state.closed = true;
        self.arrived.notify_one();
        state.waker.take()
    }
}

impl Events {
    fn is_ours(&self) -> bool {
        self.0.generation == generation()
    }

    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        if self.is_ours() { self.0.state().events.pop_front() } else { None }
    }

    /// As the iterator's `next`, for at most `limit`; `None` also if the time is up.
    pub fn next_timeout(&mut self, limit: Duration) -> Option<Event> {
        self.next_until(Instant::now().checked_add(limit))
    }

    fn next_until(&mut self, until: Option<Instant>) -> Option<Event> {
        if !self.is_ours() {
            return None;
        }
        let mut state = self.0.state();
        loop {
            if let Some(event) = state.events.pop_front() {
                return Some(event);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if state.closed || left == Some(Duration::ZERO) {
                return None;
            }
            state.sleeping = true;
            state = match left {
                Some(left) => self.0.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.sleeping = false;
        }
    }

    /// As the iterator's `next`, for a task: has it woken when something happens. `Ready(None)` at the end.
    pub fn poll_next_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if !self.is_ours() {
            return Poll::Ready(None);
        }
        // Cloned and dropped outside the lock: a waker is somebody else's code.
        let waker = cx.waker().clone();
        let mut state = self.0.state();
        if let Some(event) = state.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        let former = state.waker.replace(waker);
        drop(state);
        drop(former);
        Poll::Pending
    }

    /// As the iterator's `next`, without blocking; for any runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no event.
    pub fn next_async(&mut self) -> impl Future<Output = Option<Event>> + Send + '_ {
        Next(self)
    }

    /// How many events found the queue full.
    pub fn lost(&self) -> u64 {
        if self.is_ours() { self.0.state().lost_in_all } else { 0 }
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.next_until(None)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.is_ours() {
            let mut state = self.0.state();
            // Whoever is just putting something in may be the last to let go of it, with a child's lock held.
            state.capacity = 0;
            let left = (state.waker.take(), std::mem::take(&mut state.events));
            drop(state);
            drop(left);
        }
    }
}

struct Next<'a>(&'a mut Events);

impl Future for Next<'_> {
    type Output = Option<Event>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_next_event(cx)
    }
}

/// The writing ends, one for each who asked.
#[derive(Debug, Default)]
pub(crate) struct Outlets {
    /// Somebody has asked. Relaxed: who does not see it yet was earlier.
    any: AtomicBool,
    queues: Mutex<Vec<Weak<Queue>>>,
}

impl Outlets {
    pub(crate) fn is_on(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Weak<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self, capacity: usize) -> Events {
        let queue = Queue::new(capacity, false);
        let mut queues = self.queues();
        queues.push(Arc::downgrade(&queue));
        self.any.store(true, Ordering::Relaxed);
        Events(queue)
    }

    /// One that has ended: for a forked copy.
    pub(crate) fn closed() -> Events {
        Events(Queue::new(0, true))
    }

    /// Puts it into every queue; whom to wake, when no lock is held any more.
    pub(crate) fn push(&self, event: &Event) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut queues = self.queues();
        queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            wakers.extend(queue.push(event));
            true
        });
        if queues.is_empty() {
            self.any.store(false, Ordering::Relaxed);
        }
        wakers
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) -> Vec<Waker> {
        let queues: Vec<Arc<Queue>> = self.queues().iter().filter_map(Weak::upgrade).collect();
        queues.iter().filter_map(|queue| queue.close()).collect()
    }
}

impl Queue {
    fn new(capacity: usize, closed: bool) -> Arc<Queue> {
        Arc::new(Queue {
            state: Mutex::new(State {
                events: VecDeque::new(),
                capacity,
                lost: 0,
                lost_in_all: 0,
                waker: None,
                sleeping: false,
                closed,
            }),
            arrived: Condvar::new(),
            generation: generation(),
        })
    }
}
