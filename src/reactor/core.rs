//! What the threads around one reactor share: the epoll set they register in, the slabs, the deadlines. Knows who is where, not
//! what becomes of them.
//!
//! Lock order: a child's cell, then the tables. Nobody locks a cell while holding the tables.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use slab::Slab;

use super::cell::Cell;
use super::port::Ports;
use crate::admission::{self, Key, Number, Setting};
use crate::cause::Cause;
use crate::context::{Context, ListenKey, Listener, Tell, Watcher, Watching, retire_cause};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::events::{Event, EventKind, Events, Outlets};
use crate::scope::TreeUsage;
use crate::stats::Recorder;
use crate::sys::process::generation;
use crate::tell::{Level, tell, wake};
use crate::timer::{Alarm, Clock, Timers};
use crate::token::{ChildId, Kind, SLOTS_MAX, Token};

/// Those of this process, and of the one that it was forked from.
static ALL: Mutex<Vec<Weak<Core>>> = Mutex::new(Vec::new());

/// The children of every loop in this process: also of those that are just being born.
pub(crate) fn known_pids() -> HashSet<u32> {
    let all: Vec<Arc<Core>> =
        ALL.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
    let ours = all.iter().filter(|core| core.is_ours());
    ours.flat_map(|core| core.children())
        .flat_map(|cell| [&cell.published.children()[..], &[cell.pid()]].concat())
        .collect()
}

/// Whether a loop in this process is to reap the process of this number.
pub(crate) fn is_awaited(pid: u32) -> bool {
    let all: Vec<Arc<Core>> =
        ALL.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
    let mut ours = all.iter().filter(|core| core.is_ours()).flat_map(|core| core.children());
    ours.any(|cell| cell.pid() == pid && cell.is_to_be_reaped())
}

/// How many of a context's children are gone through at a time.
const SLICE: usize = 1024;

/// Whether children may still be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    ShuttingDown,
    /// The loop is gone and nobody took over.
    Dead,
}

/// The shared part of a reactor.
#[derive(Debug)]
pub(crate) struct Core {
    this: Weak<Core>,
    registry: Registry,
    /// Written to make the loop come round; never read: each write is an edge of its own.
    wake: OwnedFd,
    /// Carries the earliest deadline, so that the epoll descriptor alone is enough for any outer loop.
    timer: OwnedFd,
    tables: Mutex<Tables>,
    /// Streams of futures; a lock of their own, under which nothing else is locked but the tables.
    ports: Mutex<Ports>,
    /// Signalled when the last child leaves the tables, if anybody waits for that.
    left: Condvar,
    /// The process that made it (promise 13).
    generation: u64,
    /// Whether ended children are kept for `next_exit`.
    collects: bool,
    /// What its limits are known by.
    pub(crate) key: Key,
    pub(crate) recorder: Recorder,
    pub(crate) outlets: Outlets,
}

#[derive(Debug)]
pub(crate) struct Tables {
    children: Slab<ChildSlot>,
    /// The commands' own deadlines, by their children's slots: most have none.
    deadlines: HashMap<u32, Instant>,
    contexts: Slab<ContextSlot>,
    /// A context is registered once per reactor, and an eventfd cannot be added to one epoll set twice.
    by_id: HashMap<u64, usize>,
    timers: Timers,
    /// What the timerfd is set to.
    armed: Option<Instant>,
    state: State,
    /// The owner of the loop is gone.
    orphaned: bool,
    /// Done and not asked for yet: in order, and by name.
    ended: VecDeque<Token>,
    ended_cells: HashMap<Token, Arc<Cell>>,
    unreported: usize,
    /// Whose trees are gone, not asked for yet.
    ended_trees: VecDeque<(Token, TreeUsage)>,
    /// How many threads sleep until no child is left: to signal a condition nobody waits for is a system call all the same.
    sleepers: u32,
    /// Futures that wait until no child is left, each by its key; woken by the loop.
    awaiting: Vec<(u64, Waker)>,
    /// Futures that wait for room, by their numbers in the queue.
    visitors: HashSet<Number>,
    next_key: u64,
    /// The tables of loops that were taken over from owners who are gone.
    taken_over: Vec<Arc<Core>>,
    /// Contexts that left, to be dropped when the lock is gone: the last reference to one may be ours, and what waits for it the
    /// caller's.
    left: Vec<ContextSlot>,
}

#[derive(Debug)]
struct ChildSlot {
    generation: u64,
    cell: Arc<Cell>,
    links: Links,
}

/// In which contexts' lists a child stands: (context slot, its place there).
#[derive(Debug)]
enum Links {
    None,
    One(u32, u32),
    /// By a thin pointer: most children stand in one list, and each pays for the widest of these.
    #[allow(clippy::box_collection, reason = "a boxed slice is twice as wide")]
    Many(Box<Vec<(u32, u32)>>),
}

#[derive(Debug)]
struct ContextSlot {
    generation: u64,
    context: Context,
    /// Slots of the children attached to it, in any order.
    members: Members,
    /// Its slot's other users: contexts below it, watchers.
    users: u32,
    /// The nearest one above it that is here.
    parent: Option<u32>,
    deadline: Option<Instant>,
    listening: Option<ListenKey>,
    /// Its eventfd is in the epoll set: it has had a child here, or the descriptor was handed out.
    by_eventfd: bool,
    /// It has ended and the loop goes through its children. Once: who enters from now on reads its flag.
    stopping: bool,
}

impl Watching for Core {
    fn handed_out(&self, name: u64) {
        Token::unpack(name).into_iter().for_each(|token| self.watch_above(token));
    }

    fn paused(&self, name: u64) {
        Token::unpack(name).into_iter().for_each(|token| self.pause_changed(token));
    }
}

impl Core {
    pub(crate) fn new(registry: Registry, collects: bool, key: Key) -> Result<Arc<Core>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(setup)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).map_err(setup)?;
        let core = Arc::new_cyclic(|this| Core {
            this: this.clone(),
            registry,
            wake: crate::spawn::raise(wake),
            timer: crate::spawn::raise(timer),
            tables: Mutex::new(Tables {
                children: Slab::new(),
                deadlines: HashMap::new(),
                contexts: Slab::new(),
                by_id: HashMap::new(),
                timers: Timers::default(),
                armed: None,
                state: State::Open,
                orphaned: false,
                ended: VecDeque::new(),
                ended_cells: HashMap::new(),
                unreported: 0,
                ended_trees: VecDeque::new(),
                sleepers: 0,
                awaiting: Vec::new(),
                visitors: HashSet::new(),
                next_key: 0,
                taken_over: Vec::new(),
                left: Vec::new(),
            }),
            ports: Mutex::default(),
            left: Condvar::new(),
            generation: generation(),
            collects,
            key,
            recorder: Recorder::default(),
            outlets: Outlets::default(),
        });
        core.register(core.wake.as_fd(), Token::new(Kind::Wake, 0, 0), Interest::READABLE)?;
        core.register(core.timer.as_fd(), Token::new(Kind::Wake, 0, 1), Interest::READABLE)?;
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|core| core.strong_count() > 0);
        all.push(core.this.clone());
        Ok(core)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // A panic under the lock is the loop's; its successor goes on with what is there.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` under the lock; drops the contexts that left when it is gone.
    fn with<T>(&self, f: impl FnOnce(&mut Tables) -> T) -> T {
        let mut tables = self.tables();
        let result = f(&mut tables);
        let left = std::mem::take(&mut tables.left);
        drop(tables);
        left.into_iter().for_each(|slot| slot.context.retire());
        result
    }

    /// Whether this process made it. Asked before any lock is taken: a lock may have been held when the process was forked.
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == generation()
    }

    /// Nothing is started any more, and what waits to be started is told.
    pub(crate) fn close(&self) {
        {
            let mut tables = self.tables();
            if tables.state != State::Open {
                return;
            }
            tables.state = State::ShuttingDown;
        }
        self.send_visitors_away();
        for cell in self.children() {
            cell.leave_queue();
        }
    }

    /// Somebody waits for room, as that number.
    pub(super) fn visits(&self, number: Number) {
        self.tables().visitors.insert(number);
    }

    pub(super) fn visits_no_more(&self, number: Number) {
        self.tables().visitors.remove(&number);
    }

    /// There will be no room. Said when the state is set: who comes later sees that.
    fn send_visitors_away(&self) {
        let visitors = std::mem::take(&mut self.tables().visitors);
        visitors.into_iter().filter_map(Number::leave).for_each(|visitor| visitor.left());
    }

    /// Whether children may still be started.
    pub(crate) fn check_open(&self) -> Result<()> {
        self.tables().check_open()
    }

    /// Why they may not.
    pub(crate) fn refusal(&self) -> Error {
        self.check_open().err().unwrap_or_else(|| Error::new(ErrorKind::ShutDown))
    }

    /// The loop is gone and nobody takes over: whoever waits is told.
    pub(crate) fn die(&self) {
        self.tables().state = State::Dead;
        self.send_visitors_away();
        for cell in self.children() {
            cell.leave_queue();
            cell.loop_died();
        }
        self.silence_ports();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.tables().state == State::Dead
    }

    /// Its owner is gone: nothing is started any more, nobody asks for the ended, and what its owner wanted killed is.
    pub(crate) fn orphan(&self) {
        let ended = {
            let mut tables = self.tables();
            tables.orphaned = true;
            tables.ended.clear();
            tables.ended_trees.clear();
            std::mem::take(&mut tables.ended_cells)
        };
        // Cells are dropped outside the lock: what a user gave them may be dropped with them.
        drop(ended);
        self.close();
        for cell in self.children() {
            cell.owner_gone();
        }
        self.wake();
    }

    pub(crate) fn is_orphaned(&self) -> bool {
        self.tables().orphaned
    }

    // ── the ended ──

    /// A child is done; its owner will ask for it.
    pub(crate) fn report(&self, token: Token, cell: &Arc<Cell>) {
        let mut tables = self.tables();
        if self.collects && !tables.orphaned {
            tables.ended.push_back(token);
            tables.ended_cells.insert(token, cell.clone());
        }
    }

    pub(crate) fn next_ended(&self) -> Option<(Token, Arc<Cell>)> {
        if !self.is_ours() {
            return None;
        }
        let mut tables = self.tables();
        let token = tables.ended.pop_front()?;
        tables.unreported -= 1;
        tables.ended_cells.remove(&token).map(|cell| (token, cell))
    }

    /// A child that is done has nobody left in its cgroup.
    pub(crate) fn report_tree(&self, token: Token, usage: TreeUsage) {
        let mut tables = self.tables();
        if self.collects && !tables.orphaned {
            tables.ended_trees.push_back((token, usage));
        }
    }

    pub(crate) fn next_tree(&self) -> Option<(Token, TreeUsage)> {
        if self.is_ours() { self.tables().ended_trees.pop_front() } else { None }
    }

    /// A child that is done and not asked for yet.
    pub(crate) fn ended(&self, token: Token) -> Option<Arc<Cell>> {
        self.tables().ended_cells.get(&token).cloned()
    }

    /// How many children were started and not asked for yet.
    pub(crate) fn unreported(&self) -> usize {
        if self.is_ours() { self.tables().unreported } else { 0 }
    }

    pub(crate) fn limit(&self, setting: Setting) {
        if self.is_ours() {
            admission::set(self.key, setting);
        }
    }

    /// Whoever waits on that thread would wait for himself.
    pub(crate) fn is_turned_by_its_caller(&self) -> bool {
        self.collects
    }

    // ── what is told of it ──

    pub(crate) fn subscribe(&self, capacity: usize) -> Events {
        if self.is_ours() { self.outlets.subscribe(capacity) } else { Outlets::closed() }
    }

    pub(crate) fn event(&self, label: &Arc<str>, token: Option<Token>, pid: u32, kind: EventKind) -> Event {
        Event {
            at: SystemTime::now(),
            child: token.map(ChildId),
            pid: (pid != 0).then_some(pid),
            command: label.clone(),
            kind,
            lost_before: 0,
        }
    }

    /// Of a spawn that has come to nothing, or to nothing yet; with no lock held.
    pub(crate) fn emit(&self, label: &Arc<str>, kind: impl FnOnce() -> EventKind) {
        if self.outlets.is_on() {
            let event = self.event(label, None, 0, kind());
            self.outlets.push(&event).into_iter().for_each(wake);
        }
    }

    pub(crate) fn check_ours(&self) -> Result<()> {
        if self.is_ours() { Ok(()) } else { Err(Error::new(ErrorKind::Forked)) }
    }

    /// The epoll set itself.
    pub(crate) fn epoll(&self) -> BorrowedFd<'_> {
        self.registry.as_fd()
    }

    // ── registering ──

    /// `epoll_ctl(EPOLL_CTL_ADD)`, from any thread: a readable descriptor reports at once.
    pub(crate) fn register(&self, fd: BorrowedFd<'_>, token: Token, interest: Interest) -> Result<()> {
        let token = mio::Token(token.pack() as usize);
        self.registry
            .register(&mut SourceFd(&fd.as_raw_fd()), token, interest)
            .map_err(|e| Error::os(Stage::Register, e))
    }

    /// Watches a pidfd or one of our read ends.
    pub(crate) fn register_readable(&self, fd: BorrowedFd<'_>, token: Token) -> Result<()> {
        self.register(fd, token, Interest::READABLE)
    }

    /// Watches our write end.
    pub(crate) fn register_writable(&self, fd: BorrowedFd<'_>, token: Token) -> Result<()> {
        self.register(fd, token, Interest::WRITABLE)
    }

    /// Watches the `cgroup.events` of a child's own cgroup.
    pub(crate) fn register_tree(&self, fd: BorrowedFd<'_>, token: Token) -> Result<()> {
        self.register(fd, token, Interest::PRIORITY)
    }

    /// `epoll_ctl(EPOLL_CTL_MOD)` of a read end that is registered, from any thread: if there is something in it, or it has ended, that is
    /// reported once more.
    pub(crate) fn report_again(&self, fd: BorrowedFd<'_>, token: Token) {
        let token = mio::Token(token.pack() as usize);
        // ENOENT: a loop that takes over has yet to enter it, and then it reports by itself.
        let _ = self.registry.reregister(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE);
    }

    /// `epoll_ctl(EPOLL_CTL_DEL)`; always before the descriptor is closed: a copy in a forked, not yet exec'd child would go on reporting.
    pub(crate) fn deregister(&self, fd: BorrowedFd<'_>) {
        // ENOENT: it was never registered, or another way out came first.
        let _ = self.registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
    }

    /// Makes the loop come round.
    pub(crate) fn wake(&self) {
        if self.is_ours() {
            // EAGAIN: 2^64 wakes are pending, one of them will do.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    // ── deadlines ──

    pub(crate) fn arm(&self, at: Instant, alarm: Alarm) {
        self.tables().arm(self, at, alarm);
    }

    pub(crate) fn disarm(&self, at: Instant, alarm: Alarm) {
        // The timerfd stays as it is: one early wake costs less than setting it twice.
        self.tables().timers.disarm(at, alarm);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.is_ours() { self.tables().timers.next() } else { None }
    }

    /// Takes at most so much of what is due; sets the timerfd for the rest, at once for what is due already.
    pub(crate) fn take_due(&self, due: &mut Vec<Alarm>, at_most: usize) {
        let mut tables = self.tables();
        if tables.armed.is_none() {
            return;
        }
        let now = Instant::now();
        if tables.armed.is_some_and(|at| at > now) {
            return;
        }
        due.extend(std::iter::from_fn(|| tables.timers.pop_due(now)).take(at_most));
        tables.armed = tables.timers.next();
        if let Some(at) = tables.armed {
            self.set_timer(at);
        }
    }

    /// Relative, from a clock read before: never early.
    fn set_timer(&self, at: Instant) {
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value =
            Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX / 4), tv_nsec: wait.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // A timerfd and a time that is in range: there is nothing it could refuse.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
    }

    // ── children ──

    /// Gives a child a slot and attaches it to its contexts, so that whatever fires from now on finds it.
    ///
    /// Attaching registers first; the caller reads the flags afterwards (cancelling sets the flag first): one of the two sees the other.
    pub(crate) fn enter(&self, cell: &Arc<Cell>, contexts: &[Context], deadline: Option<Instant>) -> Result<Token> {
        self.with(|tables| self.enter_locked(tables, cell, contexts, deadline))
    }

    fn enter_locked(
        &self,
        tables: &mut Tables,
        cell: &Arc<Cell>,
        contexts: &[Context],
        deadline: Option<Instant>,
    ) -> Result<Token> {
        tables.check_open()?;
        check_room(&tables.children)?;
        let generation = next_generation();
        let slot = tables.children.insert(ChildSlot { generation, cell: cell.clone(), links: Links::None }) as u32;
        let token = Token::new(Kind::Child, generation, slot);
        let mut links = Vec::with_capacity(contexts.len());
        for context in contexts {
            match tables.attach_child(self, context) {
                Ok(context_slot) => {
                    links.push((context_slot, tables.contexts[context_slot as usize].members.push(slot)));
                }
                Err(error) => {
                    tables.children[slot as usize].links = Links::from(links);
                    tables.leave(self, token);
                    return Err(error);
                }
            }
        }
        tables.children[slot as usize].links = Links::from(links);
        if let Some(at) = deadline {
            tables.deadlines.insert(slot, at);
            tables.arm(self, at, (token, Clock::Deadline));
        }
        tables.unreported += usize::from(self.collects);
        Ok(token)
    }

    /// Takes back what [`Core::enter`] did: it came to nothing.
    pub(crate) fn withdraw(&self, token: Token) {
        let reported = self.with(|tables| {
            tables.unreported -= usize::from(self.collects);
            // It may have ended meanwhile, if it is taken back for the sake of another.
            let cell = tables.ended_cells.remove(&token);
            if cell.is_some() {
                tables.ended.retain(|other| *other != token);
            }
            cell
        });
        drop(reported);
        self.leave(token);
        if self.collects {
            // Its owner may turn until all are reported, and this one never will be.
            self.wake();
        }
    }

    /// Takes a child out of the slabs and out of its contexts' lists.
    pub(crate) fn leave(&self, token: Token) {
        let (left, is_empty, is_closing, sleepers) = self.with(|tables| {
            let left = tables.leave(self, token);
            (left, tables.children.is_empty(), tables.state != State::Open, tables.sleepers)
        });
        if is_empty && sleepers > 0 {
            self.left.notify_all();
        }
        if is_empty && is_closing {
            // Whoever turns the loop until it is empty may sleep in it: not every child is reaped by the loop.
            self.wake();
        }
        // The last reference to a cell may be this one; what it holds is dropped outside the lock.
        drop(left);
    }

    pub(crate) fn disarm_deadline(&self, token: Token) {
        let mut tables = self.tables();
        if tables.child_slot(token).is_some() {
            tables.forget_deadline(token);
        }
    }

    pub(crate) fn child(&self, token: Token) -> Option<Arc<Cell>> {
        self.tables().child_slot(token).map(|slot| slot.cell.clone())
    }

    /// The children, as they are now.
    pub(crate) fn children(&self) -> Vec<Arc<Cell>> {
        self.tables().children.iter().map(|(_, slot)| slot.cell.clone()).collect()
    }

    pub(crate) fn live(&self) -> usize {
        self.tables().children.len()
    }

    /// Sleeps until no child is left or the time has come; says whether none is left. With those of the loops it has taken over.
    pub(crate) fn wait_until_empty(&self, until: Instant) -> bool {
        let mut tables = self.tables();
        while !tables.children.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            tables.sleepers += 1;
            tables = self.left.wait_timeout(tables, left).unwrap_or_else(PoisonError::into_inner).0;
            tables.sleepers -= 1;
        }
        let taken_over = tables.taken_over.clone();
        drop(tables);
        taken_over.iter().all(|core| core.wait_until_empty(until))
    }

    /// Has `waker` woken when no child is left, by the loop, which has to be closing; false if none is left now. Again with the same key: in
    /// place of the former waker.
    pub(crate) fn wake_when_empty(&self, key: &mut Option<u64>, waker: &Waker) -> bool {
        // Cloned and dropped outside the lock: a waker is somebody else's code.
        let waker = waker.clone();
        let mut tables = self.tables();
        if tables.children.is_empty() {
            return false;
        }
        let key = *key.get_or_insert_with(|| {
            tables.next_key += 1;
            tables.next_key
        });
        let former = tables.take_waker(key);
        tables.awaiting.push((key, waker));
        drop(tables);
        drop(former);
        true
    }

    pub(crate) fn forget_waker(&self, key: u64) {
        if self.is_ours() {
            let former = self.tables().take_waker(key);
            drop(former);
        }
    }

    /// By the loop at the end of a turn, and when it is dropped: whoever leaves last makes it come round.
    pub(super) fn tell_if_empty(&self) {
        if !self.is_ours() {
            return;
        }
        let mut tables = self.tables();
        if tables.awaiting.is_empty() || !tables.children.is_empty() {
            return;
        }
        let wakers = std::mem::take(&mut tables.awaiting);
        drop(tables);
        wakers.into_iter().for_each(|(_, waker)| wake(waker));
    }

    /// It and the loops it has taken over, and theirs.
    pub(crate) fn family(&self) -> Vec<Arc<Core>> {
        let mut found: Vec<Arc<Core>> = self.this.upgrade().into_iter().collect();
        let mut seen = 0;
        while let Some(core) = found.get(seen).cloned() {
            seen += 1;
            let taken_over = core.tables().taken_over.clone();
            found.extend(taken_over);
        }
        found
    }

    // ── loops that were taken over ──

    /// The owner of `core` is gone; its children are counted as ours from now on.
    pub(crate) fn take_over(&self, core: &Arc<Core>) {
        let mut tables = self.tables();
        if !tables.taken_over.iter().any(|other| Arc::ptr_eq(other, core)) {
            tables.taken_over.push(core.clone());
        }
    }

    /// Nothing is left of it.
    pub(crate) fn forget(&self, core: &Arc<Core>) {
        self.tables().taken_over.retain(|other| !Arc::ptr_eq(other, core));
    }

    /// The children, as they are now, with those of the loops it has taken over.
    pub(crate) fn all_children(&self) -> Vec<Arc<Cell>> {
        let taken_over = self.tables().taken_over.clone();
        let mut cells = self.children();
        cells.extend(taken_over.iter().flat_map(|core| core.all_children()));
        cells
    }

    // ── contexts ──

    /// Why a context has ended, if it has.
    pub(crate) fn look(&self, token: Token) -> Option<Cause> {
        // Cloned for a look without the lock, which tells whoever listens. By then it may be the last one.
        let context = self.tables().context_slot(token).map(|slot| slot.context.clone())?;
        let cause = context.look();
        context.retire();
        cause
    }

    /// A deadline of a context is due.
    pub(crate) fn on_context_due(&self, token: Token) {
        let Some(context) = self.tables().context_slot(token).map(|slot| slot.context.clone()) else {
            return;
        };
        let (cause, is_paused) = (context.look(), context.is_paused());
        context.retire();
        match cause {
            // The look has cancelled it, and that is an event of its own.
            Some(cause) => retire_cause(cause),
            // One that has not passed was paused since it was armed; of one that is paused now we are told.
            None if !is_paused => self.arm_context(token),
            None => {}
        }
    }

    /// Keeps a context registered although no child of it is here, so that its deadline and its descriptors are noticed.
    pub(crate) fn watch(&self, context: &Context) -> Result<Token> {
        self.with(|tables| {
            let slot = tables.attach(self, context)?;
            let entry = &mut tables.contexts[slot as usize];
            entry.users += 1;
            Ok(Token::new(Kind::Context, entry.generation, slot))
        })
    }

    pub(crate) fn unwatch(&self, token: Token) {
        self.with(|tables| {
            if let Some(entry) = tables.context_slot(token) {
                entry.users -= 1;
                tables.release_context(self, token.slot());
            }
        });
    }

    /// A context above this one, or it, has a descriptor now: it is registered, too.
    fn watch_above(&self, token: Token) {
        let watched = self.with(|tables| {
            let Some(context) = tables.context_slot(token).map(|entry| entry.context.clone()) else {
                return Ok(());
            };
            if context.is_handed_out() {
                tables.register_eventfd(self, token.slot())?;
            }
            tables.attach_above(self, &context).map(|parent| tables.put_below(self, token.slot(), parent))
        });
        if let Err(error) = watched {
            tell(Level::Error, format_args!("a cancel_fd is not watched: {error}"));
        }
    }

    /// A context was paused or resumed: its deadline is another one, and its children follow.
    fn pause_changed(&self, token: Token) {
        if !self.is_ours() {
            return;
        }
        self.arm_context(token);
        let (mut cells, mut end) = (Vec::new(), usize::MAX);
        while end > 0 {
            end = self.members(token, end, SLICE, &mut cells);
            cells.drain(..).for_each(|cell| cell.follow_pause());
        }
    }

    /// Arms the deadline of a context as it is now; of one that is paused it is when that is over.
    pub(crate) fn arm_context(&self, token: Token) {
        let mut tables = self.tables();
        let Some(entry) = tables.context_slot(token) else { return };
        let deadline = entry.context.deadline();
        let before = std::mem::replace(&mut entry.deadline, deadline);
        if let Some(at) = before {
            tables.timers.disarm(at, (token, Clock::Deadline));
        }
        if let Some(at) = deadline {
            tables.arm(self, at, (token, Clock::Deadline));
        }
    }

    /// Whether one of the child's contexts is paused.
    pub(crate) fn is_paused(&self, token: Token) -> bool {
        let mut tables = self.tables();
        let Some(slot) = tables.child_slot(token) else { return false };
        let links: Vec<(u32, u32)> = slot.links.iter().collect();
        links.iter().any(|(context, _)| tables.contexts[*context as usize].context.is_paused())
    }

    /// The command's own deadline comes so much later.
    pub(crate) fn shift_deadline(&self, token: Token, by: Duration) {
        let mut tables = self.tables();
        if tables.child_slot(token).is_none() {
            return;
        }
        if let Some(at) = tables.deadlines.get(&token.slot()).copied() {
            let later = at.checked_add(by).unwrap_or(at);
            tables.forget_deadline(token);
            tables.deadlines.insert(token.slot(), later);
            tables.arm(self, later, (token, Clock::Deadline));
        }
    }

    /// Leaves only the pipes of those who are there; returns how many others had not `ended` just now (sorted).
    pub(crate) fn forget_gone(&self, pipes: &mut Vec<(Token, bool)>, ended: &[Token]) -> u64 {
        if pipes.is_empty() {
            return 0;
        }
        let mut tables = self.tables();
        let mut stale = 0;
        pipes.retain(|(token, _)| {
            let token = token.of_kind(Kind::Child);
            let is_there = tables.child_slot(token).is_some();
            stale += u64::from(!is_there && ended.binary_search(&token).is_err());
            is_there
        });
        stale
    }

    /// A context has ended: if the loop has yet to go through its children, how many there are, for [`Core::members`].
    pub(crate) fn begin_stopping(&self, token: Token) -> Option<usize> {
        let mut tables = self.tables();
        let entry = tables.context_slot(token).filter(|entry| !entry.stopping)?;
        entry.stopping = true;
        Some(entry.members.len())
    }

    /// The next `at_most` children of a context, from those below `end` downwards; returns the new end: 0, when all were seen.
    ///
    /// The place of a child that leaves is taken by the last one: whoever had not been seen stays below the end. A child that enters
    /// meanwhile is not missed: it reads the context's flag after entering, and the flag is set.
    pub(crate) fn members(&self, token: Token, end: usize, at_most: usize, cells: &mut Vec<Arc<Cell>>) -> usize {
        let tables = self.tables();
        let entry = tables.contexts.get(token.slot() as usize).filter(|c| c.generation == token.generation());
        let Some(entry) = entry else { return 0 };
        let end = entry.members.len().min(end);
        let begin = end.saturating_sub(at_most);
        let slots = (begin..end).rev().filter_map(|place| entry.members.get(place));
        cells.extend(slots.map(|slot| tables.children[slot as usize].cell.clone()));
        begin
    }

    /// Puts everything into the epoll set and the timers anew, so that every edge and every deadline the former loop may have
    /// swallowed comes again. To those that had come through it changes nothing.
    pub(crate) fn register_all_again(&self) {
        for cell in self.children() {
            cell.register_again();
        }
        self.watch_ports_again();
        let mut tables = self.tables();
        let Tables { children, deadlines, contexts, timers, .. } = &mut *tables;
        for (slot, at) in deadlines.iter() {
            let generation = children[*slot as usize].generation;
            timers.arm(*at, (Token::new(Kind::Child, generation, *slot), Clock::Deadline));
        }
        for (slot, entry) in contexts.iter_mut() {
            let token = Token::new(Kind::Context, entry.generation, slot as u32);
            entry.stopping = false;
            let eventfd = entry.by_eventfd.then(|| entry.context.eventfd().ok()).flatten();
            for (fd, kind) in [(eventfd, Kind::Context), (entry.context.source(), Kind::Source)] {
                let Some(fd) = fd else { continue };
                self.deregister(fd);
                // It was there a moment ago: its place in the kernel's memory is free again.
                let _ = self.register_readable(fd, token.of_kind(kind));
            }
            if let Some(at) = entry.deadline {
                timers.arm(at, (token, Clock::Deadline));
            }
        }
        tables.armed = tables.timers.next();
        if let Some(at) = tables.armed {
            self.set_timer(at);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.is_ours() {
            if self.key != Key::DEFAULT_DRIVER {
                admission::forget(self.key);
            }
            self.outlets.close().into_iter().for_each(wake);
        }
    }
}

impl Tables {
    fn take_waker(&mut self, key: u64) -> Option<Waker> {
        let place = self.awaiting.iter().position(|(other, _)| *other == key)?;
        Some(self.awaiting.swap_remove(place).1)
    }

    fn check_open(&self) -> Result<()> {
        match self.state {
            State::Open => Ok(()),
            State::ShuttingDown => Err(Error::new(ErrorKind::ShutDown)),
            State::Dead => Err(Error::new(ErrorKind::ReactorDied)),
        }
    }

    fn child_slot(&mut self, token: Token) -> Option<&mut ChildSlot> {
        self.children.get_mut(token.slot() as usize).filter(|slot| slot.generation == token.generation())
    }

    fn context_slot(&mut self, token: Token) -> Option<&mut ContextSlot> {
        self.contexts.get_mut(token.slot() as usize).filter(|slot| slot.generation == token.generation())
    }

    fn arm(&mut self, core: &Core, at: Instant, alarm: Alarm) {
        self.timers.arm(at, alarm);
        if self.armed.is_none_or(|armed| at < armed) {
            self.armed = Some(at);
            core.set_timer(at);
        }
    }

    /// Of a child that is in its slot, or was until now.
    fn forget_deadline(&mut self, token: Token) {
        if let Some(at) = self.deadlines.remove(&token.slot()) {
            self.timers.disarm(at, (token, Clock::Deadline));
        }
    }

    fn leave(&mut self, core: &Core, token: Token) -> Option<Arc<Cell>> {
        self.child_slot(token)?;
        self.forget_deadline(token);
        // It stays in its slot meanwhile: it may stand in one list twice.
        while let Some((context, place)) = self.children[token.slot() as usize].links.pop() {
            self.remove_member(context, place);
            self.release_context(core, context);
        }
        Some(self.children.remove(token.slot() as usize).cell)
    }

    /// The last one takes its place.
    fn remove_member(&mut self, context: u32, place: u32) {
        let members = &mut self.contexts[context as usize].members;
        if let Some(moved) = members.swap_remove(place as usize) {
            let last = members.len() as u32;
            self.children[moved as usize].links.move_place(context, last, place);
        }
    }

    /// The slot of a context that gets a child: who cancels it writes to its eventfd.
    fn attach_child(&mut self, core: &Core, context: &Context) -> Result<u32> {
        let slot = self.attach(core, context)?;
        self.register_eventfd(core, slot).inspect_err(|_| self.release_context(core, slot))?;
        Ok(slot)
    }

    fn register_eventfd(&mut self, core: &Core, slot: u32) -> Result<()> {
        let entry = &mut self.contexts[slot as usize];
        if !entry.by_eventfd {
            let token = Token::new(Kind::Context, entry.generation, slot);
            core.register(entry.context.eventfd()?, token, Interest::READABLE)?;
            entry.by_eventfd = true;
        }
        Ok(())
    }

    /// The slot of a context; enters it, and what has to be watched above it, where they are not.
    fn attach(&mut self, core: &Core, context: &Context) -> Result<u32> {
        if let Some(slot) = self.by_id.get(&context.id()) {
            return Ok(*slot as u32);
        }
        let slot = self.register_context(core, context.clone())?;
        match self.attach_above(core, context) {
            Ok(parent) => {
                self.put_below(core, slot, parent);
                Ok(slot)
            }
            Err(error) => {
                self.release_context(core, slot);
                Err(error)
            }
        }
    }

    /// The slot of the nearest context above whose end only the kernel can tell, and so on upwards. All others need none: who cancels
    /// them writes to the eventfds below.
    fn attach_above(&mut self, core: &Core, context: &Context) -> Result<Option<u32>> {
        let mut first = None;
        let mut below = None;
        let mut next = context.watched_above();
        while let Some(context) = next {
            let known = self.by_id.get(&context.id()).map(|slot| *slot as u32);
            let slot = match known.map_or_else(|| self.register_context(core, context.clone()), Ok) {
                Ok(slot) => slot,
                Err(error) => {
                    first.into_iter().for_each(|first| self.release_context(core, first));
                    return Err(error);
                }
            };
            first.get_or_insert(slot);
            below.into_iter().for_each(|below| self.put_below(core, below, Some(slot)));
            if known.is_some() {
                break;
            }
            below = Some(slot);
            next = context.watched_above();
        }
        Ok(first)
    }

    /// Makes `parent` what `slot` stands below.
    fn put_below(&mut self, core: &Core, slot: u32, parent: Option<u32>) {
        if let Some(parent) = parent {
            self.contexts[parent as usize].users += 1;
        }
        let before = std::mem::replace(&mut self.contexts[slot as usize].parent, parent);
        if let Some(before) = before {
            self.contexts[before as usize].users -= 1;
            self.release_context(core, before);
        }
    }

    fn register_context(&mut self, core: &Core, context: Context) -> Result<u32> {
        check_room(&self.contexts)?;
        let generation = next_generation();
        let deadline = context.deadline();
        let entry = self.contexts.vacant_entry();
        let slot = entry.key() as u32;
        let token = Token::new(Kind::Context, generation, slot);
        if let Some(fd) = context.source() {
            // READABLE brings RDHUP, HUP and ERR as well: which of them counts is the context's to say.
            core.register(fd, token.of_kind(Kind::Source), Interest::READABLE)?;
        }
        self.by_id.insert(context.id(), slot as usize);
        // Listens first; what has been handed out, here or above, is read afterwards: a cancel_fd that is asked for meanwhile is seen by
        // one of the two.
        let watcher = Watcher::Loop(core.this.clone(), token.pack());
        let listener = Listener { tell: Tell::Nothing, watcher };
        let listening = context.listen_unseen(listener).ok();
        let is_handed_out = context.is_handed_out();
        entry.insert(ContextSlot {
            generation,
            context,
            members: Members::default(),
            users: 0,
            parent: None,
            deadline,
            listening,
            by_eventfd: false,
            stopping: false,
        });
        if let Some(at) = deadline {
            self.arm(core, at, (token, Clock::Deadline));
        }
        if is_handed_out {
            self.register_eventfd(core, slot).inspect_err(|_| self.release_context(core, slot))?;
        }
        Ok(slot)
    }

    /// Gives up the slots of contexts that nobody uses any more, from this one upwards.
    fn release_context(&mut self, core: &Core, slot: u32) {
        let mut next = Some(slot);
        while let Some(slot) = next {
            let entry = &self.contexts[slot as usize];
            if entry.members.len() > 0 || entry.users > 0 {
                return;
            }
            let entry = self.contexts.remove(slot as usize);
            self.by_id.remove(&entry.context.id());
            if let (true, Ok(fd)) = (entry.by_eventfd, entry.context.eventfd()) {
                core.deregister(fd);
            }
            if let Some(fd) = entry.context.source() {
                core.deregister(fd);
            }
            if let Some(at) = entry.deadline {
                self.timers.disarm(at, (Token::new(Kind::Context, entry.generation, slot), Clock::Deadline));
            }
            if let Some(key) = entry.listening {
                entry.context.unlisten(key);
            }
            next = entry.parent;
            if let Some(parent) = next {
                self.contexts[parent as usize].users -= 1;
            }
            self.left.push(entry);
        }
    }
}

/// A list without holes. Without an allocation for the one that a context of a child's own has.
#[derive(Debug, Default)]
struct Members {
    first: Option<u32>,
    others: Vec<u32>,
}

impl Members {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    fn get(&self, place: usize) -> Option<u32> {
        if place == 0 { self.first } else { self.others.get(place - 1).copied() }
    }

    /// Says at which place.
    fn push(&mut self, child: u32) -> u32 {
        match &mut self.first {
            first @ None => *first = Some(child),
            Some(_) => self.others.push(child),
        }
        self.len() as u32 - 1
    }

    /// The last one takes the place of that which goes; returns whom that moved.
    fn swap_remove(&mut self, place: usize) -> Option<u32> {
        let last = self.others.pop().or_else(|| self.first.take())?;
        if place == self.len() {
            return None;
        }
        match place {
            0 => self.first = Some(last),
            _ => self.others[place - 1] = last,
        }
        Some(last)
    }
}

impl Links {
    fn from(links: Vec<(u32, u32)>) -> Links {
        match links[..] {
            [] => Links::None,
            [(context, place)] => Links::One(context, place),
            _ => Links::Many(Box::new(links)),
        }
    }

    fn move_place(&mut self, context: u32, from: u32, to: u32) {
        match self {
            Links::None => {}
            Links::One(_, place) => *place = to,
            Links::Many(links) => {
                links.iter_mut().filter(|link| **link == (context, from)).for_each(|(_, place)| *place = to);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        let (one, many) = match self {
            Links::None => (None, &[][..]),
            Links::One(context, place) => (Some((*context, *place)), &[][..]),
            Links::Many(links) => (None, &links[..]),
        };
        one.into_iter().chain(many.iter().copied())
    }

    fn pop(&mut self) -> Option<(u32, u32)> {
        match self {
            Links::None => None,
            Links::One(context, place) => {
                let link = (*context, *place);
                *self = Links::None;
                Some(link)
            }
            Links::Many(links) => links.pop(),
        }
    }
}

fn setup(error: rustix::io::Errno) -> Error {
    Error::os(Stage::Register, io::Error::from(error))
}

/// One sequence for all reactors, so that a token of one never names a tenant of another.
pub(super) fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Token::new(Kind::Child, NEXT.fetch_add(1, Ordering::Relaxed), 0).generation()
}

/// Slots are as wide as a token has room for.
pub(super) fn check_room<T>(slab: &Slab<T>) -> Result<()> {
    if slab.vacant_key() < SLOTS_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NoMemory).at(Stage::Register).saying(format!("a reactor has room for {SLOTS_MAX}")))
}

/// Why the first of these contexts that has fired did.
pub(crate) fn fired(contexts: &[Context]) -> Option<Cause> {
    contexts.iter().find_map(Context::look)
}
