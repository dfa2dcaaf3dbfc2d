//! One turn of the loop: wait for the kernel, then exits, contexts, deadlines, pipes, in this order (promise 1). Knows which event is
//! whose; what becomes of a child is its cell's to say.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::{Events, Poll};
use slab::Slab;

use super::cell::Cell;
use super::core::Core;
use crate::admission::Key;
use crate::context::retire_cause;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::tell::{Level, tell};
use crate::timer::Alarm;
use crate::token::{Kind, Token};

/// How many events one turn takes from the kernel.
const EVENTS_TURN_MAX: usize = 1024;
/// How many children of cancelled contexts one turn stops.
const STOPS_TURN_MAX: usize = 1024;
/// How many deadlines one turn serves.
const ALARMS_TURN_MAX: usize = 1024;
/// How many pipes one turn serves; each has a budget of its own.
const PIPES_TURN_MAX: usize = 64;

thread_local! {
    /// Whose loop this thread is in, by address. A waker that it runs is somebody else's code, and may call us.
    static TURNED_HERE: std::cell::Cell<*const Core> = const { std::cell::Cell::new(std::ptr::null()) };
}

/// Whether this thread is in a turn of that loop: if it waited for the loop it would wait for itself.
pub(super) fn is_turned_here(core: &Core) -> bool {
    TURNED_HERE.with(|turned| std::ptr::eq(turned.get(), core))
}

/// For the length of a turn, also of one that panics: the loop that was turned here before.
struct Turning(*const Core);

impl Turning {
    fn begin(core: &Arc<Core>) -> Turning {
        Turning(TURNED_HERE.replace(Arc::as_ptr(core)))
    }
}

impl Drop for Turning {
    fn drop(&mut self) {
        TURNED_HERE.set(self.0);
    }
}

/// What is turned: by a driver's thread, or by a caller through a [`Reactor`](super::Reactor).
#[derive(Debug)]
pub(crate) struct Loop {
    poll: Poll,
    events: Events,
    core: Arc<Core>,
    batch: Batch,
    unread: Unread,
    /// Contexts whose children are being stopped, and how many of them are still to be.
    cancelling: VecDeque<(Token, usize)>,
    /// Loops whose owners are gone, nested in this one.
    adopted: Slab<Loop>,
    inbox: Inbox,
}

/// Where a loop is left to be adopted by another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox(Arc<Mutex<Left>>);

#[derive(Debug, Default)]
struct Left {
    loops: Vec<Loop>,
    /// Nobody will come for them any more.
    is_closed: bool,
}

impl Inbox {
    /// Gives it back if nobody will come for it.
    pub(crate) fn push(&self, orphan: Loop) -> std::result::Result<(), Box<Loop>> {
        let mut left = self.left();
        if left.is_closed {
            return Err(Box::new(orphan));
        }
        left.loops.push(orphan);
        Ok(())
    }

    fn take(&self) -> Vec<Loop> {
        std::mem::take(&mut self.left().loops)
    }

    fn close(&self) -> Vec<Loop> {
        let mut left = self.left();
        left.is_closed = true;
        std::mem::take(&mut left.loops)
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of one turn, by their order of service.
#[derive(Debug, Default)]
struct Batch {
    exits: Vec<Token>,
    trees: Vec<Token>,
    contexts: Vec<Token>,
    due: Vec<Alarm>,
    pipes: Vec<(Token, bool)>,
    nested: Vec<Token>,
    ports: Vec<Token>,
    cells: Vec<Arc<Cell>>,
}

/// Pipes to be served, each of them once however often it reported: new ones, and those that have more than their budget allowed,
/// of which the kernel does not tell again.
#[derive(Debug, Default)]
struct Unread {
    order: VecDeque<Token>,
    hung_up: HashMap<Token, bool>,
}

impl Unread {
    fn push(&mut self, token: Token, hung_up: bool) {
        match self.hung_up.entry(token) {
            Entry::Occupied(mut known) => *known.get_mut() |= hung_up,
            Entry::Vacant(new) => {
                new.insert(hung_up);
                self.order.push_back(token);
            }
        }
    }

    fn pop(&mut self) -> Option<(Token, bool)> {
        let token = self.order.pop_front()?;
        self.hung_up.remove(&token).map(|hung_up| (token, hung_up))
    }

    fn len(&self) -> usize {
        self.order.len()
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl Loop {
    /// `epoll_create1(2)` and the two descriptors of its own; `collects` keeps ended children for `next_exit`.
    pub(crate) fn new(collects: bool) -> Result<Loop> {
        Loop::with_key(collects, Key::next_driver())
    }

    /// The loop of the default driver.
    pub(crate) fn default_driver() -> Result<Loop> {
        Loop::with_key(false, Key::DEFAULT_DRIVER)
    }

    fn with_key(collects: bool, key: Key) -> Result<Loop> {
        // What spawns share is opened with the first loop, not in the midst of them.
        crate::spawn::init()?;
        let poll = poll_above_the_standard_streams().map_err(|e| Error::os(Stage::Register, e))?;
        let registry = poll.registry().try_clone().map_err(|e| Error::os(Stage::Register, e))?;
        Ok(Loop {
            poll,
            events: Events::with_capacity(EVENTS_TURN_MAX),
            core: Core::new(registry, collects, key)?,
            batch: Batch::default(),
            unread: Unread::default(),
            cancelling: VecDeque::new(),
            adopted: Slab::new(),
            inbox: Inbox::default(),
        })
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Whether nothing is left that this loop is needed for.
    pub(crate) fn is_idle(&self) -> bool {
        self.core.live() == 0 && self.adopted.is_empty()
    }

    /// Waits at most `timeout` for something to happen, and deals with it.
    pub(crate) fn turn(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.core.check_ours()?;
        let timeout = if self.has_leftovers() { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            // A signal: the caller may want to look.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => {
                return Err(Error::new(ErrorKind::Io).saying("epoll_wait").because(error));
            }
        }
        let turning = Turning::begin(&self.core);
        let is_full = self.serve();
        drop(turning);
        if is_full || self.has_leftovers() {
            // An outer loop does not hear again of what was left.
            self.core.wake();
        }
        Ok(())
    }

    /// Says whether the kernel may have more.
    fn serve(&mut self) -> bool {
        let count = self.sort_events();
        self.core.recorder.batch.record(count as u64);
        self.adopt();
        self.serve_exits();
        self.serve_contexts();
        self.serve_deadlines();
        self.serve_ports();
        self.serve_pipes();
        self.serve_nested();
        self.core.tell_if_empty();
        count == EVENTS_TURN_MAX
    }

    fn has_leftovers(&self) -> bool {
        !self.unread.is_empty() || !self.cancelling.is_empty()
    }

    fn sort_events(&mut self) -> usize {
        let batch = &mut self.batch;
        let mut count = 0;
        for event in &self.events {
            count += 1;
            let Some(token) = Token::unpack(event.token().0 as u64) else {
                continue;
            };
            match token.kind() {
                Kind::Child => batch.exits.push(token),
                Kind::Tree => batch.trees.push(token.of_kind(Kind::Child)),
                Kind::Stdin => batch.pipes.push((token, event.is_write_closed())),
                Kind::Stdout | Kind::Stderr => batch.pipes.push((token, event.is_read_closed())),
                Kind::Context | Kind::Source => batch.contexts.push(token.of_kind(Kind::Context)),
                Kind::Nested => batch.nested.push(token),
                Kind::Port => batch.ports.push(token),
                Kind::Wake => {}
            }
        }
        count
    }

    fn serve_exits(&mut self) {
        for token in &self.batch.exits {
            // A stale token is expected: a waiter reaped it meanwhile.
            match self.core.child(*token) {
                Some(cell) => cell.on_readable(),
                None => self.core.recorder.stale_events.increment(),
            }
        }
        for token in self.batch.trees.drain(..) {
            if let Some(cell) = self.core.child(token) {
                cell.on_tree();
            }
        }
    }

    fn serve_contexts(&mut self) {
        for token in self.batch.contexts.drain(..) {
            let Some(cause) = self.core.look(token) else { continue };
            retire_cause(cause);
            if let Some(cursor) = self.core.begin_stopping(token) {
                self.cancelling.push_back((token, cursor));
            }
        }
        self.stop_members();
    }

    /// Kills them all first, a slice a turn, and reaps in the ordinary course; never kill one, wait for one.
    fn stop_members(&mut self) {
        let mut left = STOPS_TURN_MAX;
        while left > 0 {
            let Some((token, end)) = self.cancelling.pop_front() else {
                return;
            };
            let end = self.core.members(token, end, left, &mut self.batch.cells);
            // A context without children is work, too.
            left = left.saturating_sub(self.batch.cells.len().max(1));
            if let Some(cause) = self.core.look(token) {
                for cell in self.batch.cells.drain(..) {
                    cell.stop(cause.clone());
                }
                retire_cause(cause);
            }
            self.batch.cells.clear();
            if end > 0 {
                self.cancelling.push_front((token, end));
                return;
            }
        }
    }

    fn serve_deadlines(&mut self) {
        self.core.take_due(&mut self.batch.due, ALARMS_TURN_MAX);
        for (token, clock) in self.batch.due.drain(..) {
            if token.kind() == Kind::Context {
                // The look finds the deadline passed, cancels, and that is an event of its own.
                self.core.on_context_due(token);
            } else if let Some(cell) = self.core.child(token) {
                cell.on_alarm(clock);
            }
        }
    }

    /// Wakes their futures, which read and write by themselves: before the pipes, whose bytes take longer.
    fn serve_ports(&mut self) {
        for token in self.batch.ports.drain(..) {
            self.core.ring(token);
        }
    }

    fn serve_pipes(&mut self) {
        // The end of a child empties its pipes: what they reported in the same batch is served by then.
        self.batch.exits.sort_unstable();
        let stale = self.core.forget_gone(&mut self.batch.pipes, &self.batch.exits);
        self.core.recorder.stale_events.add(stale);
        self.batch.exits.clear();
        for (token, hung_up) in self.batch.pipes.drain(..) {
            self.unread.push(token, hung_up);
        }
        for _ in 0..self.unread.len().min(PIPES_TURN_MAX) {
            let Some((token, hung_up)) = self.unread.pop() else {
                return;
            };
            let Some(cell) = self.core.child(token.of_kind(Kind::Child)) else { continue };
            if cell.on_pipe(token.kind(), hung_up) {
                self.unread.push(token, hung_up);
            }
        }
    }

    // ── loops within this one ──

    /// Takes in the loops whose owners are gone.
    fn adopt(&mut self) {
        for orphan in self.inbox.take() {
            let slot = self.adopted.vacant_key();
            let token = Token::new(Kind::Nested, 0, slot as u32);
            match self.core.register_readable(orphan.core.epoll(), token) {
                Ok(()) => {
                    self.adopted.insert(orphan);
                    // What happened before it was nested has raised its edge already.
                    self.batch.nested.push(token);
                }
                // No memory for one more epoll entry: it keeps its children, in a thread of its own.
                Err(_) => {
                    let heir = self.core.clone();
                    crate::helpers::run(Box::new(move || {
                        let core = orphan.core.clone();
                        orphan.turn_to_the_end();
                        heir.forget(&core);
                    }));
                }
            }
        }
    }

    fn serve_nested(&mut self) {
        for token in std::mem::take(&mut self.batch.nested) {
            let slot = token.slot() as usize;
            let Some(inner) = self.adopted.get_mut(slot) else {
                continue;
            };
            if let Err(error) = inner.turn(Some(Duration::ZERO)) {
                tell(Level::Error, format_args!("a reactor that was taken over failed: {error}"));
                inner.die();
            }
            if inner.is_idle() || inner.core.is_dead() {
                let inner = self.adopted.remove(slot);
                self.core.deregister(inner.core.epoll());
                self.core.forget(&inner.core);
            }
        }
    }

    /// On a thread of its own, for want of a loop that takes it in.
    pub(crate) fn turn_to_the_end(mut self) {
        while !self.is_idle() {
            if let Err(error) = self.turn(None) {
                tell(Level::Error, format_args!("a reactor that was taken over failed: {error}"));
                return self.die();
            }
        }
    }

    /// Nobody will turn it any more: whoever waits is told.
    pub(crate) fn die(&mut self) {
        self.core.die();
        // Whoever comes later finds another heir: the state of the tables is set.
        for mut inner in
            self.inbox.close().into_iter().chain(std::mem::take(&mut self.adopted).into_iter().map(|(_, inner)| inner))
        {
            inner.die();
        }
    }

    /// After a panic: forgets the turn that was under way, and has every edge it may have swallowed raised again.
    pub(crate) fn recover(&mut self) {
        self.batch = Batch::default();
        self.unread = Unread::default();
        self.cancelling.clear();
        self.core.register_all_again();
        for (_, inner) in &mut self.adopted {
            inner.recover();
        }
    }
}

/// In a host that closed 0, 1 or 2 the first descriptors made would take their places: they hold them until one is above.
fn poll_above_the_standard_streams() -> io::Result<Poll> {
    let mut low = Vec::new();
    loop {
        let poll = Poll::new()?;
        if poll.as_raw_fd() > 2 {
            return Ok(poll);
        }
        low.push(poll);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.core.tell_if_empty();
    }
}

impl AsFd for Loop {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.core.epoll()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;
    use std::time::Instant;

    use super::super::cell::Birth;
    use super::super::start::{Defaults, Manner, start};
    use super::*;
    use crate::cause::Cause;
    use crate::command::Command;
    use crate::context::Context;
    use crate::process::has_exited as is_readable;
    use crate::spawn::Busy;
    use crate::trace::Span;

    const SOON: Option<Duration> = Some(Duration::from_secs(20));

    fn start_sleep(core: &Arc<Core>, change: impl for<'a> FnOnce(&'a mut Command) -> &'a mut Command) -> Arc<Cell> {
        let mut command = Command::new("sleep");
        command.arg("60");
        change(&mut command);
        let manner = Manner { defaults: Defaults::Inherit, busy: Busy::Spin { tries: 1 }, watched: true };
        start(core, &command, manner).unwrap().0
    }

    #[test]
    fn what_a_panic_left_unserved_comes_again() {
        let mut turning = Loop::new(true).unwrap();
        let core = turning.core().clone();
        let ctx = Context::new();
        let (late, parent) = (Duration::from_millis(20), Context::new());
        let timed = start_sleep(&core, |command| command.timeout(late));
        let cancelled = start_sleep(&core, |command| command.context(&ctx));
        let expired = start_sleep(&core, |command| command.context(&parent.with_timeout(late)));
        ctx.cancel();
        // A turn that takes everything and serves nothing.
        while turning.batch.due.len() < 2 {
            turning.poll.poll(&mut turning.events, SOON).unwrap();
            turning.sort_events();
            core.take_due(&mut turning.batch.due, ALARMS_TURN_MAX);
        }
        let token = turning.batch.contexts[0];
        assert!(core.begin_stopping(token).is_some() && core.begin_stopping(token).is_none());
        turning.recover();
        while core.live() > 0 {
            turning.turn(SOON).unwrap();
        }
        let cause = |cell: &Cell| cell.exit().unwrap().cause().cloned();
        assert_eq!(cause(&timed), Some(Cause::DeadlineExceeded));
        assert_eq!(cause(&cancelled), Some(Cause::Cancelled));
        assert_eq!(cause(&expired), Some(Cause::DeadlineExceeded));
    }

    #[test]
    fn who_leaves_while_a_crowd_is_stopped_in_slices_hides_nobody() {
        let turning = Loop::new(true).unwrap();
        let core = turning.core();
        let ctx = Context::new();
        let enter = |_| {
            let (label, spawned_at, span) = ("nobody".into(), Instant::now(), Span::none());
            let birth = Birth { label, spawned_at, kill_on_drop: false, span };
            // Twice in the same list, for the sake of its places.
            core.enter(&Cell::new(core, birth), &[ctx.clone(), ctx.clone()], None).unwrap()
        };
        let tokens: Vec<Token> = (0..3000).map(enter).collect();
        let context = core.watch(&ctx).unwrap();
        let (mut end, mut slices, mut cells) = (core.begin_stopping(context).unwrap(), 0, Vec::new());
        assert_eq!(end, 6000);
        // Some leave after each slice, from everywhere.
        let mut leaving = tokens.iter().step_by(3);
        while end > 0 {
            end = core.members(context, end, 1000, &mut cells);
            slices += 1;
            leaving.by_ref().take(150).for_each(|token| core.withdraw(*token));
        }
        assert!(slices <= 6, "{slices}");
        for cell in tokens.iter().filter_map(|token| core.child(*token)) {
            assert!(cells.iter().any(|seen| Arc::ptr_eq(seen, &cell)));
        }
        tokens.iter().filter(|token| core.child(**token).is_some()).for_each(|token| core.withdraw(*token));
        assert_eq!(core.begin_stopping(context), None);
        core.unwatch(context);
        assert_eq!(core.live(), 0);
    }

    #[test]
    fn a_cancel_fd_that_is_asked_for_while_its_context_is_entered_is_watched() {
        let mut turning = Loop::new(true).unwrap();
        let core = turning.core().clone();
        for round in 0..2000 {
            let ctx = Context::new();
            let start = Barrier::new(2);
            let token = thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    (0..round % 500).for_each(|_| std::hint::spin_loop());
                    ctx.cancel_fd().unwrap();
                });
                start.wait();
                core.watch(&ctx).unwrap()
            });
            turning.turn(Some(Duration::ZERO)).unwrap();
            rustix::io::write(ctx.cancel_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
            assert!(is_readable(turning.as_fd()), "nobody hears of it (round {round})");
            core.unwatch(token);
        }
    }

    #[test]
    fn an_orphan_that_comes_too_late_is_given_back() {
        let mut dying = Loop::new(false).unwrap();
        let inbox = dying.inbox();
        assert!(inbox.push(Loop::new(true).unwrap()).is_ok());
        dying.die();
        assert!(inbox.push(Loop::new(true).unwrap()).is_err());
    }

    #[test]
    fn what_is_due_at_once_is_served_in_slices() {
        let turning = Loop::new(true).unwrap();
        let core = turning.core();
        let now = Instant::now();
        let mut due = Vec::new();
        for slot in 0..10 {
            core.arm(now, (Token::new(Kind::Child, 0, slot), crate::timer::Clock::Deadline));
        }
        for expected in [4, 8, 10, 10] {
            core.take_due(&mut due, 4);
            assert_eq!(due.len(), expected);
        }
        assert_eq!(core.next_deadline(), None);
    }
}
