//! A reason to stop: a flag with a cause, a parent, a deadline, an eventfd. Knows nothing of children, reactors or threads that wait.
//!
//! Cancelling sets the flag first and writes the eventfd second, without a lock. Attaching registers the eventfd first and reads the
//! flag second. So one of the two always sees the other.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;
use slab::Slab;

use crate::admission::{self, Key, Load, Setting};
use crate::cause::Cause;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::helpers;
use crate::signal::Signal;
use crate::sys::process::generation;
use crate::sys::sigwatch::Watch;
use crate::tell::wake;

/// No handler may have the first two; after the others the faulty instruction would come again.
const NOT_WATCHED: [Signal; 6] =
    [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL];

/// Which event of a descriptor counts, for [`Context::from_fd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// There is something to read, or the end was reached. A pidfd is readable when its process has ended.
    Readable,
    /// The other end was closed (by all who held it) or shut down for writing, or there was an error; incoming data does not count.
    PeerClosed,
}

impl When {
    fn flags(self) -> PollFlags {
        match self {
            When::Readable => PollFlags::IN,
            When::PeerClosed => PollFlags::RDHUP,
        }
    }
}

/// A reason to stop children, which may become true: at a call, a deadline, a signal, an event of a descriptor. Go's `context.Context`,
/// without values.
///
/// Clones are the same context. Dropping the last one cancels nothing. A context made from another one ends with it, and not the other
/// way round. It takes no descriptor before it first has a child.
///
/// In a forked copy of this process a context made before the fork says whether it was cancelled before, or there; nothing waits for
/// it, and a command that has it is refused ([`ErrorKind::Forked`]).
///
/// ```
/// use std::time::Duration;
/// use pidloop::{Cause, Command, Context, ErrorKind};
///
/// let server = Context::new();
/// let request = server.with_timeout(Duration::from_secs(10));
/// let child = Command::new("sleep").arg("60").context(&request).spawn()?;
///
/// server.cancel_with("shutting down");             // reaches what was made from it
/// assert_eq!(request.cause(), Some(Cause::from("shutting down")));
/// assert_eq!(child.wait()?.cause(), request.cause().as_ref());
///
/// // From now on nothing is started for it.
/// let error = Command::new("true").context(&request).spawn().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Cancelled);
/// # Ok::<(), pidloop::Error>(())
/// ```
#[derive(Clone)]
pub struct Context(Arc<Node>);

struct Node {
    id: u64,
    /// Which process made it (promise 13).
    generation: u64,
    parent: Option<Context>,
    /// Its place in its parent's list. Set while it is made and read when nobody has it any more: an atomic for the sharing in between.
    place: AtomicUsize,
    /// Its own, and why it is cancelled then; later by the time that it was paused.
    deadline: Option<Box<(Instant, Cause)>>,
    /// The flag: set once.
    fired: OnceLock<Cause>,
    links: Mutex<Links>,
    event: OnceLock<OwnedFd>,
    /// Somebody may write to `event` without setting the flag.
    handed_out: AtomicBool,
    /// It has, or had, a limit or a weight.
    is_tenant: AtomicBool,
    source: Option<Box<Source>>,
    /// The token that it was made from, or that is cancelled with it.
    #[cfg(feature = "tokio")]
    bond: OnceLock<Box<dyn std::any::Any + Send + Sync>>,
}

#[derive(Default)]
struct Links {
    /// Set under the lock: who links himself afterwards is cancelled by himself.
    closed: bool,
    /// Most have none.
    pauses: Option<Box<Pauses>>,
    children: Slab<Weak<Node>>,
    listeners: Slab<Listener>,
}

impl Links {
    fn pauses(&mut self) -> &mut Pauses {
        self.pauses.get_or_insert_default()
    }
}

/// How often and how long it was paused, by itself and by those above.
#[derive(Clone, Copy, Default)]
struct Pauses {
    by_itself: bool,
    /// How many of it and those above are paused by themselves. Where a pause and its resume meet the latter may come here first: below zero
    /// until the other one comes.
    depth: isize,
    since: Option<Instant>,
    /// Of the pauses that are over.
    total: Duration,
}

impl Pauses {
    fn change(&mut self, paused: bool, now: Instant) {
        self.depth += if paused { 1 } else { -1 };
        if self.depth > 0 {
            self.since.get_or_insert(now);
        } else {
            self.total += self.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        }
    }

    /// How much later than it was set a deadline is.
    fn until(&self, now: Instant) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

enum Source {
    Fd(OwnedFd, When),
    Signals(Watch),
}

/// Who wants to be told of a context's end, and that one in its line may now end by what only the kernel sees.
pub(crate) struct Listener {
    pub(crate) tell: Tell,
    pub(crate) watcher: Watcher,
}

/// Who watches a context; called with no lock held.
#[derive(Clone)]
pub(crate) enum Watcher {
    /// A loop, and what the context is called there.
    Loop(Weak<dyn Watching>, u64),
    /// Called with the context whose [`cancel_fd`](Context::cancel_fd) was asked for.
    Call(Arc<dyn Fn(&Context) + Send + Sync>),
}

/// A loop, as its contexts see it.
pub(crate) trait Watching: Send + Sync {
    /// The descriptor of the context of this name, or of one above it, was asked for.
    fn handed_out(&self, name: u64);

    /// It, or one above it, was paused or resumed.
    fn paused(&self, name: u64);
}

impl Watcher {
    fn tell_handed_out(&self, context: &Context) {
        match self {
            Watcher::Loop(this, name) => this.upgrade().into_iter().for_each(|this| this.handed_out(*name)),
            Watcher::Call(call) => call(context),
        }
    }

    fn tell_paused(&self) {
        if let Watcher::Loop(this, name) = self {
            this.upgrade().into_iter().for_each(|this| this.paused(*name));
        }
    }
}

/// What is done at the end.
pub(crate) enum Tell {
    /// A loop hears of it through the eventfd.
    Nothing,
    Wake(Waker),
    /// Run on a helper thread.
    Call(Box<dyn FnOnce() + Send>),
}

impl Tell {
    pub(crate) fn tell(self) {
        match self {
            Tell::Nothing => {}
            Tell::Wake(waker) => wake(waker),
            Tell::Call(call) => helpers::run(call),
        }
    }
}

/// Names a [`Listener`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenKey(usize);

impl Context {
    /// A context that only [`cancel`](Context::cancel) ends; Go's `WithCancel(Background())`. Takes no descriptor and cannot fail.
    pub fn new() -> Context {
        Context::build(None, None, None)
    }

    /// A context that also ends with this one; Go's `WithCancel`.
    pub fn child_context(&self) -> Context {
        Context::build(Some(self), None, None)
    }

    /// As [`child_context`](Context::child_context), with a deadline `limit` from now; Go's `WithTimeout`. Zero: it has ended.
    pub fn with_timeout(&self, limit: Duration) -> Context {
        self.with_timeout_cause(limit, Cause::DeadlineExceeded)
    }

    /// As [`with_timeout`](Context::with_timeout), with a cause of the caller's own; Go's `WithTimeoutCause`. What it stops was still
    /// stopped by a deadline: [`Cause::is_timeout`], [`ErrorKind::DeadlineExceeded`].
    pub fn with_timeout_cause(&self, limit: Duration, cause: impl Into<Cause>) -> Context {
        match Instant::now().checked_add(limit) {
            Some(deadline) => self.with_deadline_cause(deadline, cause),
            // Beyond what the clock can say.
            None => self.child_context(),
        }
    }

    /// As [`child_context`](Context::child_context), with a deadline; Go's `WithDeadline`. The earliest deadline of a line counts; one
    /// that has passed has ended it.
    pub fn with_deadline(&self, deadline: Instant) -> Context {
        self.with_deadline_cause(deadline, Cause::DeadlineExceeded)
    }

    /// As [`with_deadline`](Context::with_deadline), with a cause of the caller's own; Go's `WithDeadlineCause`.
    pub fn with_deadline_cause(&self, deadline: Instant, cause: impl Into<Cause>) -> Context {
        if self.deadline().is_some_and(|earlier| earlier <= deadline) {
            return self.child_context();
        }
        Context::build(Some(self), Some((deadline, cause.into().at_deadline())), None)
    }

    /// A context that does not end with this one, and has no deadline; Go's `WithoutCancel`.
    pub fn without_cancel(&self) -> Context {
        Context::new()
    }

    /// A context that ends when one of `signals` reaches this process, with [`Cause::Signal`]; Go's `signal.NotifyContext`.
    ///
    /// Installs a handler that writes to an eventfd and calls the handler that was there before; what the signal would do by default
    /// no longer happens (in a forked copy of this process it does). When the last clone is gone what was there before is put back,
    /// unless somebody else has installed a handler since: then that one is left alone. Threads that block the signal do not take it;
    /// if all do, it is not seen.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for no signal at all, for SIGKILL and SIGSTOP, for those that a fault of the program raises
    /// (SIGSEGV, SIGBUS, SIGFPE, SIGILL), and for those that the C library keeps for itself; [`ErrorKind::NoDescriptors`];
    /// [`ErrorKind::Unsupported`] if 64 such contexts exist.
    pub fn on_signal(signals: &[Signal]) -> Result<Context> {
        let refused = |why: String| Err(Error::new(ErrorKind::InvalidInput).saying(why));
        if signals.is_empty() {
            return refused("no signal to wait for".into());
        }
        if let Some(signal) = signals.iter().find(|signal| NOT_WATCHED.contains(signal)) {
            return refused(format!("{signal} cannot be waited for"));
        }
        let numbers: Vec<i32> = signals.iter().map(|signal| signal.as_raw()).collect();
        let watch = match Watch::new(new_eventfd()?, &numbers) {
            Ok(watch) => watch,
            Err(error) => match error.raw_os_error() {
                None => return Err(Error::new(ErrorKind::Unsupported).saying("64 contexts wait for signals already")),
                Some(libc::EINVAL) => return refused("one of the signals is the C library's own".into()),
                Some(_) => return Err(Error::os(Stage::Signals, error)),
            },
        };
        Ok(Context::build(None, None, Some(Source::Signals(watch))))
    }

    /// A context that ends when something happens to `fd`, with [`Cause::Readable`] or [`Cause::PeerClosed`]: a client that hangs up,
    /// another process's pidfd. The descriptor is never read, its flags are never changed, and it is closed with the last clone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if it cannot be polled, as regular files and `/dev/null`; [`ErrorKind::NoDescriptors`] if none is left to
    /// find that out.
    pub fn from_fd(fd: OwnedFd, when: When) -> Result<Context> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| Error::os(Stage::Register, e.into()))?;
        epoll::add(&epoll, &fd, epoll::EventData::new_u64(0), epoll::EventFlags::empty()).map_err(
            |errno| match errno {
                Errno::PERM => {
                    Error::new(ErrorKind::InvalidInput).saying("the descriptor cannot be polled").because(errno)
                }
                _ => Error::os(Stage::Register, errno.into()),
            },
        )?;
        Ok(Context::build(None, None, Some(Source::Fd(crate::spawn::raise(fd), when))))
    }

    fn build(parent: Option<&Context>, deadline: Option<(Instant, Cause)>, source: Option<Source>) -> Context {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let context = Context(Arc::new(Node {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            generation: generation(),
            parent: parent.cloned(),
            place: AtomicUsize::new(usize::MAX),
            deadline: deadline.map(Box::new),
            fired: OnceLock::new(),
            links: Mutex::default(),
            event: OnceLock::new(),
            handed_out: AtomicBool::new(false),
            is_tenant: AtomicBool::new(false),
            source: source.map(Box::new),
            #[cfg(feature = "tokio")]
            bond: OnceLock::new(),
        }));
        if let Some(parent) = parent {
            parent.link(&context);
        }
        context
    }

    fn link(&self, child: &Context) {
        // A forked copy: the lock may have been held when it was made. The child's looks upwards still find us.
        if !self.0.is_ours() {
            return;
        }
        let mut links = self.0.links();
        if !links.closed {
            let place = links.children.insert(Arc::downgrade(&child.0));
            // Under the parent's lock: who pauses it now finds the child in the list, or has been seen.
            if let Some(depth) = links.pauses.as_ref().map(|pauses| pauses.depth).filter(|depth| *depth != 0) {
                let since = (depth > 0).then(Instant::now);
                *child.0.links().pauses() = Pauses { depth, since, ..Pauses::default() };
            }
            child.0.place.store(place, Ordering::Relaxed);
            return;
        }
        drop(links);
        if let Some(cause) = self.0.fired.get() {
            child.fire(cause);
        }
    }

    /// Ends it, and everything made from it, with [`Cause::Cancelled`]. The first cause wins; cancelling again does nothing.
    ///
    /// Children attached to it are stopped by their reactors; this does not wait for that. Not async-signal-safe: see
    /// [`cancel_fd`](Context::cancel_fd).
    pub fn cancel(&self) {
        self.cancel_with(Cause::Cancelled);
    }

    /// As [`cancel`](Context::cancel), with another cause: words, an error, or a [`Cause`]; Go's `CancelCauseFunc`.
    pub fn cancel_with(&self, cause: impl Into<Cause>) {
        // Whether a deadline has passed is decided by the clock, not by who comes first.
        if self.look().is_none() {
            self.fire(&cause.into());
        }
    }

    /// Whether it has ended.
    pub fn is_cancelled(&self) -> bool {
        self.look().is_some()
    }

    /// Why it has ended, if it has; Go's `context.Cause`.
    pub fn cause(&self) -> Option<Cause> {
        self.look()
    }

    /// When it will end at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.line().filter_map(|context| context.0.own_deadline()).min()
    }

    /// Stops every child of this context, and of those made from it, until [`resume`](Context::resume), and their clocks with them: SIGSTOP, to
    /// whom their stops reach (a [group](crate::Command::group), too); a [cgroup](crate::Command::cgroup_scope) is frozen.
    ///
    /// What stands still meanwhile: the deadline of this context and of those made from it (not one that it has from above), the commands' timeouts, the steps of their stops,
    /// `wait_delay`. A child that is started meanwhile is stopped as soon as its program begins. A stop ends the pause for the child that it is
    /// for, which could not heed it otherwise. Pausing what is paused does nothing. Signals are sent by this call, to all of them.
    ///
    /// Who is stopped by somebody else, too, is continued by `resume` all the same.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pidloop::{Command, Context};
    ///
    /// let context = Context::new();
    /// let child = Command::new("sleep").arg("0.1").context(&context).timeout(Duration::from_secs(60)).spawn()?;
    /// context.pause();                                 // it gets no further, and has no less time
    /// context.resume();
    /// assert!(child.wait()?.success());
    /// # Ok::<(), pidloop::Error>(())
    /// ```
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Continues what [`pause`](Context::pause) has stopped, unless a context above is still paused.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    /// Whether it, or a context above, is paused.
    pub fn is_paused(&self) -> bool {
        self.0.is_ours() && self.0.links().pauses.as_ref().is_some_and(|pauses| pauses.depth > 0)
    }

    fn set_paused(&self, paused: bool) {
        if !self.0.is_ours() || std::mem::replace(&mut self.0.links().pauses().by_itself, paused) == paused {
            return;
        }
        let now = Instant::now();
        let mut told = Vec::new();
        let mut pending = vec![self.0.clone()];
        while let Some(node) = pending.pop() {
            let mut links = node.links();
            links.pauses().change(paused, now);
            pending.extend(links.children.iter().filter_map(|(_, child)| child.upgrade()));
            told.extend(links.listeners.iter().map(|(_, listener)| listener.watcher.clone()));
        }
        told.iter().for_each(Watcher::tell_paused);
    }

    /// A guard that cancels it when it is dropped; Go's `defer cancel()`.
    pub fn drop_guard(&self) -> DropGuard {
        DropGuard(Some(self.clone()))
    }

    /// How many children that have it, or a context made from it, may live at a time; `None`: as many as there is room for. With that it is a
    /// tenant. The limits of the contexts above count, too, and so does that of the driver; a spawn waits until there is room in all of them, as
    /// [`Driver::set_max_running`](crate::Driver::set_max_running) says. Drivers share it.
    ///
    /// Those count that are started from now on. A limit of zero holds everything back until it is raised.
    ///
    /// ```
    /// use pidloop::{Command, Context};
    ///
    /// let tenant = Context::new();
    /// tenant.set_max_running(1);
    /// let first = Command::new("sleep").arg("60").context(&tenant).spawn()?;
    /// std::thread::scope(|scope| {
    ///     // Waits for the first one's end.
    ///     let second = scope.spawn(|| Command::new("true").context(&tenant).run());
    ///     first.kill()?;
    ///     second.join().unwrap()
    /// })?;
    /// # Ok::<(), pidloop::Error>(())
    /// ```
    pub fn set_max_running(&self, limit: impl Into<Option<usize>>) {
        self.set(Setting::MaxRunning(limit.into()));
    }

    /// How many may wait for it at a time; 131,072 unless set. One more is refused: [`ErrorKind::QueueFull`].
    pub fn set_max_queued(&self, limit: usize) {
        self.set(Setting::MaxQueued(limit));
    }

    /// Its share, where tenants wait for the same limit: whose children are the fewest for their weight is served next. 1 unless set; 0 counts
    /// as 1.
    ///
    /// A child is charged to the nearest context above it that has a weight; if none has, to the nearest that has a limit.
    pub fn set_weight(&self, weight: u32) {
        self.set(Setting::Weight(weight));
    }

    /// How many of its children live, how many may, and how many spawns wait for that.
    pub fn load(&self) -> Load {
        admission::load(Key::Context(self.0.id))
    }

    fn set(&self, setting: Setting) {
        if self.0.is_ours() {
            self.0.is_tenant.store(true, Ordering::Release);
            admission::set(Key::Context(self.0.id), setting);
        }
    }

    /// It and those above that are tenants.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = Key> + '_ {
        let tenants = self.line().filter(|context| context.0.is_tenant.load(Ordering::Acquire));
        tenants.map(|context| Key::Context(context.0.id))
    }

    /// A descriptor that cancels it when 8 bytes (a `u64` of 1) are written to it: from a signal handler, or by another process that
    /// inherited it. Nobody may read it: what was written would be taken back.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoDescriptors`], [`ErrorKind::NoMemory`]: it is an eventfd, made now.
    pub fn cancel_fd(&self) -> Result<BorrowedFd<'_>> {
        let fd = self.eventfd()?;
        // Set first, told second: who listens later reads it.
        if !self.0.handed_out.swap(true, Ordering::AcqRel) {
            self.tell_handed_out();
        }
        Ok(fd)
    }

    /// Whoever listens here or below has to watch this context, too.
    fn tell_handed_out(&self) {
        let mut told = Vec::new();
        let mut pending = vec![self.0.clone()];
        while let Some(node) = pending.pop() {
            if !node.is_ours() {
                continue;
            }
            let links = node.links();
            pending.extend(links.children.iter().filter_map(|(_, child)| child.upgrade()));
            told.extend(links.listeners.iter().map(|(_, listener)| listener.watcher.clone()));
        }
        told.iter().for_each(|watcher| watcher.tell_handed_out(self));
    }

    // ── for the loop ──

    /// Drops it, where the last of its clones may be the loop's, or be dropped under a lock: an error of the caller's that goes with it, or
    /// with those above, is dropped by a helper thread.
    pub(crate) fn retire(self) {
        let Some(node) = Arc::into_inner(self.0) else { return };
        if node.holds_foreign() || node.parent.iter().flat_map(Context::line).any(|above| above.0.holds_foreign()) {
            helpers::run(Box::new(move || drop(node)));
        }
    }

    /// No other context of this process has it.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// The nearest context above it whose end only the kernel can tell: by a descriptor.
    pub(crate) fn watched_above(&self) -> Option<Context> {
        self.line().skip(1).find(|context| context.has_descriptor()).cloned()
    }

    /// The nearest context, from it upwards, that may end without anybody's call.
    pub(crate) fn may_end_by_itself(&self) -> Option<Context> {
        self.line().find(|context| context.has_descriptor() || context.0.deadline.is_some()).cloned()
    }

    /// Whether it, or one above it, was made before this process was forked: its end does not come through here.
    pub(crate) fn is_inherited(&self) -> bool {
        !self.line().all(|context| context.0.is_ours())
    }

    /// Somebody may write to its eventfd without setting the flag.
    pub(crate) fn is_handed_out(&self) -> bool {
        self.0.handed_out.load(Ordering::Acquire)
    }

    fn has_descriptor(&self) -> bool {
        self.0.source.is_some() || self.is_handed_out()
    }

    /// It and those above.
    fn line(&self) -> impl Iterator<Item = &Context> {
        std::iter::successors(Some(self), |context| context.0.parent.as_ref())
    }

    /// Readable once it has ended; made when it is first asked for.
    pub(crate) fn eventfd(&self) -> Result<BorrowedFd<'_>> {
        if let Some(event) = self.0.event.get() {
            return Ok(event.as_fd());
        }
        let new = new_eventfd()?;
        // If another thread was first ours is closed.
        let event = self.0.event.get_or_init(|| new);
        // Made first, read now: who cancels later finds it. Two variables, each written by one side and then read by the other: without
        // this fence and that of `fire` both sides might read what was there before.
        fence(Ordering::SeqCst);
        if self.0.fired.get().is_some() {
            self.0.write_event();
        }
        Ok(event.as_fd())
    }

    /// What else is to be watched for it.
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.0.source.as_deref().map(|source| match source {
            Source::Fd(fd, _) => fd.as_fd(),
            Source::Signals(watch) => watch.as_fd(),
        })
    }

    /// Why it has ended, if it has: by its flag, or by what the clock and the descriptors say, of itself and of those above.
    pub(crate) fn look(&self) -> Option<Cause> {
        let mut now = None;
        let (context, cause) = self.line().find_map(|context| Some((context, context.0.found(&mut now)?)))?;
        // From there down, so that all others see the same.
        context.fire(&cause);
        self.fire(&cause);
        self.0.fired.get().cloned()
    }

    pub(crate) fn listen(&self, listener: Listener) -> std::result::Result<ListenKey, Listener> {
        if self.look().is_some() { Err(listener) } else { self.listen_unseen(listener) }
    }

    /// As [`listen`](Context::listen), without a look, which may call others: for a caller that holds a lock.
    pub(crate) fn listen_unseen(&self, listener: Listener) -> std::result::Result<ListenKey, Listener> {
        if !self.0.is_ours() {
            return Err(listener);
        }
        let mut links = self.0.links();
        if links.closed {
            return Err(listener);
        }
        if links.listeners.is_empty() {
            // Most have one at a time.
            links.listeners.reserve_exact(1);
        }
        Ok(ListenKey(links.listeners.insert(listener)))
    }

    /// Whether the listener was still there: it will not be told.
    pub(crate) fn unlisten(&self, key: ListenKey) -> bool {
        if !self.0.is_ours() {
            return false;
        }
        let listener = self.0.links().listeners.try_remove(key.0);
        // Dropped outside the lock: it is the caller's.
        listener.is_some()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn downgrade(&self) -> WeakContext {
        WeakContext(Arc::downgrade(&self.0))
    }

    /// What is kept with it for as long as somebody has it; made when it is first asked for.
    #[cfg(feature = "tokio")]
    pub(crate) fn bind(
        &self,
        make: impl FnOnce() -> Box<dyn std::any::Any + Send + Sync>,
    ) -> &(dyn std::any::Any + Send + Sync) {
        &**self.0.bond.get_or_init(make)
    }

    /// Sets the flag, here and in everything below that has none, and tells whoever listens.
    fn fire(&self, cause: &Cause) {
        if self.0.fired.get().is_some() {
            return;
        }
        let mut listeners = Vec::new();
        let mut pending = vec![self.0.clone()];
        while let Some(node) = pending.pop() {
            // Whoever set it before us reaches those below, who until then find it by looking upwards.
            if node.fired.set(cause.clone()).is_err() || !node.is_ours() {
                continue;
            }
            // Set first, read now: who makes the eventfd later finds the flag. See `eventfd`.
            fence(Ordering::SeqCst);
            node.write_event();
            let mut links = node.links();
            links.closed = true;
            pending.extend(links.children.iter().filter_map(|(_, child)| child.upgrade()));
            listeners.extend(std::mem::take(&mut links.listeners).into_iter().map(|(_, listener)| listener));
        }
        listeners.into_iter().for_each(|listener| listener.tell.tell());
    }
}

/// A context that is not kept alive.
#[cfg(feature = "tokio")]
pub(crate) struct WeakContext(Weak<Node>);

#[cfg(feature = "tokio")]
impl WeakContext {
    pub(crate) fn upgrade(&self) -> Option<Context> {
        self.0.upgrade().map(Context)
    }
}

impl Default for Context {
    fn default() -> Context {
        Context::new()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Context");
        debug.field("id", &self.0.id).field("cause", &self.0.fired.get());
        debug.field("deadline", &self.0.deadline.as_ref().map(|deadline| deadline.0)).finish()
    }
}

/// As [`Context::retire`], for a clone of its cause.
pub(crate) fn retire_cause(cause: Cause) {
    if cause.is_foreign() {
        helpers::run(Box::new(move || drop(cause)));
    }
}

impl Node {
    /// Whether a value of the caller's goes with it.
    fn holds_foreign(&self) -> bool {
        let at_deadline = self.deadline.as_ref().map(|deadline| &deadline.1);
        self.fired.get().into_iter().chain(at_deadline).any(Cause::is_foreign)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ours(&self) -> bool {
        self.generation == generation()
    }

    fn own_deadline(&self) -> Option<Instant> {
        let at = self.deadline.as_ref()?.0;
        at.checked_add(self.paused_for(Instant::now()))
    }

    /// In a forked copy, where the lock may be held for ever: not at all.
    fn paused_for(&self, now: Instant) -> Duration {
        if !self.is_ours() {
            return Duration::ZERO;
        }
        self.links().pauses.as_ref().map_or(Duration::ZERO, |pauses| pauses.until(now))
    }

    fn write_event(&self) {
        // A forked copy shares the eventfd with the process that made it.
        if let (Some(event), true) = (self.event.get(), self.is_ours()) {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }

    /// Why this node by itself has ended.
    fn found(&self, now: &mut Option<Instant>) -> Option<Cause> {
        if let Some(cause) = self.fired.get() {
            return Some(cause.clone());
        }
        if let Some((at, cause)) = self.deadline.as_deref() {
            let now = *now.get_or_insert_with(Instant::now);
            // Most have not come near it, paused or not.
            if *at <= now && *at + self.paused_for(now) <= now {
                return Some(cause.clone());
            }
        }
        match self.source.as_deref() {
            Some(Source::Fd(fd, when)) if has_happened(fd.as_fd(), when.flags()) => {
                return Some(if *when == When::Readable { Cause::Readable } else { Cause::PeerClosed });
            }
            Some(Source::Signals(watch)) => {
                if let Some(signal) = watch.fired().and_then(Signal::from_raw) {
                    return Some(Cause::Signal(signal));
                }
            }
            _ => {}
        }
        let written = self.handed_out.load(Ordering::Acquire)
            && self.event.get().is_some_and(|event| has_happened(event.as_fd(), PollFlags::IN));
        written.then_some(Cause::Cancelled)
    }
}

impl Drop for Node {
    /// Takes it out of its parent's list; and the parents with it that nobody else holds, in a loop: a line of them may be long.
    fn drop(&mut self) {
        let mut parent = unlink(self);
        while let Some(mut node) = parent.and_then(|context| Arc::into_inner(context.0)) {
            parent = unlink(&mut node);
        }
    }
}

/// What is still to be called when a context ends that nobody holds any more is left to its parent, whose end would have been its own.
fn unlink(node: &mut Node) -> Option<Context> {
    let is_ours = node.is_ours();
    if is_ours && std::mem::take(node.is_tenant.get_mut()) {
        admission::forget(Key::Context(node.id));
    }
    let listeners = std::mem::take(&mut node.links.get_mut().unwrap_or_else(PoisonError::into_inner).listeners);
    // A waker here is a token's: a future that waits holds its context.
    let calls = listeners.into_iter().map(|(_, listener)| listener).filter(|l| !matches!(l.tell, Tell::Nothing));
    let Some(parent) = node.parent.take() else {
        // Nothing can end it any more. What the closures hold is the caller's.
        calls.filter(|_| is_ours).for_each(|listener| helpers::run(Box::new(move || drop(listener))));
        return None;
    };
    let place = std::mem::replace(node.place.get_mut(), usize::MAX);
    if place != usize::MAX && parent.0.is_ours() {
        parent.0.links().children.try_remove(place);
    }
    for listener in calls {
        match parent.listen_unseen(listener) {
            Err(listener) if is_ours && parent.0.is_ours() => listener.tell.tell(),
            _ => {}
        }
    }
    Some(parent)
}

fn new_eventfd() -> Result<OwnedFd> {
    let fd =
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| Error::os(Stage::Register, e.into()))?;
    Ok(crate::spawn::raise(fd))
}

/// Whether one of `flags` (or an error, or a hangup) is there now. poll(2).
fn has_happened(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
}

/// Cancels a context when it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once it cancels at once"]
pub struct DropGuard(Option<Context>);

impl DropGuard {
    /// Gives the context back, which then is not cancelled.
    pub fn disarm(mut self) -> Context {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for DropGuard {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.cancel();
        }
    }
}
