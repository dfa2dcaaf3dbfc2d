//! Output on its way to a consumer: a bounded queue that the loop fills and the caller empties, by lines or by chunks. Knows no descriptor,
//! no child and no loop; asks whoever fills it to come back when there is room again.
//!
//! The loop puts in what it read, as it came; the consumer cuts lines out of it. So a reader of millions of lines costs the loop no more than
//! one of bytes, and what waits is bounded to the byte.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll, Waker};
use std::time::{Duration, Instant};

use crate::exit::Stream;
use crate::stdio::Stdio;
use crate::sys::process::generation;

/// How many bytes wait in a queue at most, unless set.
const BYTES_MAX: usize = 8 << 20;
/// How many items wait in a queue at most, unless set.
const ITEMS_MAX: usize = 1024;
/// How long a line is at most, unless set.
const LINE_MAX_BYTES: usize = 1 << 20;
/// How much may wait for a writer that gets a copy.
const TEE_BYTES_MAX: usize = 1 << 20;
/// The smallest piece that is read at once, and the largest.
const PIECE_MIN_BYTES: usize = 4 << 10;
const PIECE_MAX_BYTES: usize = 64 << 10;
/// What a piece costs beside its bytes: two streams that are written to in turn by single bytes must not take more than they are allowed.
const PIECE_COST_BYTES: usize = 64;

/// How a [`Queue`] of a child's output is to be: its bounds, and what happens at them.
///
/// ```
/// use pidloop::{Command, LongLine, QueueOptions, Stream};
///
/// # fn main() -> pidloop::Result<()> {
/// let (stdout, stderr, lines) = QueueOptions::lines().items_max(100).line_max(4096, LongLine::Truncate).both();
/// let child = Command::new("sh").args(["-c", "echo out; echo err >&2"]).stdout(stdout).stderr(stderr).spawn()?;
/// let mut seen: Vec<(Stream, Vec<u8>)> = lines.collect();
/// seen.sort();
/// assert_eq!(seen, [(Stream::Stdout, b"out\n".to_vec()), (Stream::Stderr, b"err\n".to_vec())]);
/// child.wait()?.check()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct QueueOptions {
    by_line: bool,
    items_max: usize,
    bytes_max: usize,
    line_max_bytes: usize,
    long_line: LongLine,
    when_dropped: WhenDropped,
}

/// What becomes of a line that is longer than a queue's [`line_max`](QueueOptions::line_max).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LongLine {
    /// It arrives in pieces of that size; only the last one has its `\n`.
    #[default]
    Split,
    /// Its beginning arrives, without a `\n`; the rest is read and forgotten.
    Truncate,
    /// The queue ends with [`QueueEnd::LineTooLong`], the pipe is closed with the next bytes that come (the child gets `SIGPIPE` or
    /// `EPIPE`), and [`Exit::check`](crate::Exit::check) says so of a child that otherwise did well.
    Fail,
}

/// What becomes of a stream whose [`Queue`] was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenDropped {
    /// The next bytes that come close the pipe, so that the child gets `SIGPIPE` or `EPIPE` for all that it writes after them;
    /// [`Exit::check`](crate::Exit::check) says so of a child that otherwise did well. Nothing comes: nothing happens.
    #[default]
    Close,
    /// What comes is read and forgotten: the child notices nothing.
    Drain,
}

/// Why a [`Queue`] has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueEnd {
    /// All who could write have closed the stream: there was no more than this.
    Complete,
    /// Somebody still held the stream when reading was ended (a cancel, a deadline, `wait_delay`): all that the child itself wrote is there.
    HeldOpen,
    /// There was a line longer than [`LongLine::Fail`] allows.
    LineTooLong,
    /// Nobody will write into it: the command was dropped, or the loop is gone.
    Abandoned,
    /// This process is a forked copy of the one that has the child.
    Forked,
}

impl QueueOptions {
    fn new(by_line: bool) -> QueueOptions {
        QueueOptions {
            by_line,
            items_max: ITEMS_MAX,
            bytes_max: BYTES_MAX,
            line_max_bytes: LINE_MAX_BYTES,
            long_line: LongLine::Split,
            when_dropped: WhenDropped::Close,
        }
    }

    /// A queue of lines: of bytes up to a `\n`, which is part of them. The last one may have none.
    pub fn lines() -> QueueOptions {
        QueueOptions::new(true)
    }

    /// A queue of what was read, as it came: where one chunk ends and the next begins means nothing. At most 64 KiB each.
    pub fn chunks() -> QueueOptions {
        QueueOptions::new(false)
    }

    /// While so many lines or chunks wait the child's pipe is not read. 1,024 unless set; at least 1.
    ///
    /// One reading may bring more lines than that, within [`bytes_max`](QueueOptions::bytes_max).
    pub fn items_max(&mut self, items: usize) -> &mut QueueOptions {
        self.items_max = items.max(1);
        self
    }

    /// While so many bytes wait the child's pipe is not read. 8 MiB unless set; at least 1. Whatever was read at once counts 64 bytes more.
    ///
    /// A line that has begun is kept besides, up to [`line_max`](QueueOptions::line_max). When the child has ended, what it left in its
    /// pipe (at most 64 KiB) is taken whatever the bound, so that nobody who waits for the end of the child depends on the consumer.
    pub fn bytes_max(&mut self, bytes: usize) -> &mut QueueOptions {
        self.bytes_max = bytes.max(1);
        self
    }

    /// Neither of the two bounds: the child is never held up, and what it writes is in memory until it is taken.
    pub fn unbounded(&mut self) -> &mut QueueOptions {
        (self.items_max, self.bytes_max) = (usize::MAX, usize::MAX);
        self
    }

    /// How many bytes a line may have, its `\n` counted, and what becomes of a longer one. 1 MiB and [`LongLine::Split`] unless set; at
    /// least 1.
    pub fn line_max(&mut self, bytes: usize, longer: LongLine) -> &mut QueueOptions {
        self.line_max_bytes = bytes.max(1);
        self.long_line = longer;
        self
    }

    /// What becomes of the stream when the queue is dropped before its end.
    pub fn when_dropped(&mut self, then: WhenDropped) -> &mut QueueOptions {
        self.when_dropped = then;
        self
    }

    /// A queue of one stream.
    pub fn one(&self) -> (Stdio, Queue<Vec<u8>>) {
        let [tap, _] = Tap::pair(self.clone(), 1);
        let queue = Queue::new(&tap);
        (Stdio::queue(tap), queue)
    }

    /// One queue of two streams, each item marked: the first is for stdout, the second for stderr.
    ///
    /// Lines of one stream keep their order. What the child wrote to the other one in between is where it was read, which is about
    /// when it was written: two pipes have no common order. Where that matters give stderr [`Stdio::stdout`].
    pub fn both(&self) -> (Stdio, Stdio, Queue<(Stream, Vec<u8>)>) {
        let [stdout, stderr] = Tap::pair(self.clone(), 2);
        let queue = Queue::new(&stdout);
        (Stdio::queue(stdout), Stdio::queue(stderr), queue)
    }
}

/// An item of a [`Queue`]: bytes, or bytes marked with their stream.
pub trait QueueItem: sealed::Sealed + Send {
    #[doc(hidden)]
    fn of(stream: Stream, bytes: Vec<u8>) -> Self;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for Vec<u8> {}
    impl Sealed for (super::Stream, Vec<u8>) {}
}

impl QueueItem for Vec<u8> {
    fn of(_: Stream, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }
}

impl QueueItem for (Stream, Vec<u8>) {
    fn of(stream: Stream, bytes: Vec<u8>) -> (Stream, Vec<u8>) {
        (stream, bytes)
    }
}

/// What a child writes, as it comes: an iterator that blocks until there is more, and ends when the stream has.
///
/// Made by [`Stdio::lines`], [`Stdio::chunks`] or [`QueueOptions`]. The loop that watches the child fills it, without a thread; while it is
/// full the loop leaves the child's pipe alone, and the child waits for the consumer, as it would for a slow reader of a pipe. Nothing is lost,
/// and no other child notices. Bytes are bytes: nothing is made of what is not UTF-8.
///
/// It ends with the stream, which is when the last process that can write to it has closed it, or with a cut: [`Queue::end`] says which. What
/// waits for the child's output (`status`, `run`, `wait_with_output`, [`next_exit`](crate::Reactor::next_exit)) waits for the end of the
/// stream, not for the consumer: what was read is still here afterwards. But a child that is held up by a full queue does not end: whoever waits for
/// that on the thread that should consume waits for ever.
///
/// For the same reason the thread that turns a [`Reactor`](crate::Reactor) must not block here: it is itself what fills the queue. It calls
/// [`try_next`](Queue::try_next) after each turn.
///
/// ```
/// use pidloop::{Command, Stdio};
///
/// # fn main() -> pidloop::Result<()> {
/// let (stdout, lines) = Stdio::lines(100);
/// let child = Command::new("seq").arg("3").stdout(stdout).spawn()?;
/// for (line, number) in lines.zip(1..) {
///     assert_eq!(line, format!("{number}\n").into_bytes());
/// }
/// child.wait()?.check()?;
/// # Ok(())
/// # }
/// ```
pub struct Queue<T: QueueItem = Vec<u8>> {
    shared: Arc<Shared>,
    _items: std::marker::PhantomData<fn() -> T>,
}

impl<T: QueueItem> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// What both ends of a queue share. Leaf lock: nothing is locked, and nobody else's code is run, under it.
#[derive(Debug)]
struct Shared {
    options: QueueOptions,
    state: Mutex<State>,
    /// Signalled when there is something new, if somebody sleeps.
    changed: Condvar,
    /// The process that made it (promise 13).
    generation: u64,
}

#[derive(Debug, Default)]
struct State {
    /// What was read and not handed out, in the order in which it was read.
    waiting: VecDeque<Piece>,
    waiting_bytes: usize,
    /// Chunks, or ends of lines.
    waiting_items: usize,
    /// The consumer's side of the two streams.
    begun: [Begun; 2],
    /// The loop's side of them.
    streams: [Filling; 2],
    /// The consumer is gone.
    dropped: bool,
    line_too_long: bool,
    sleeping: bool,
    waker: Option<Waker>,
}

/// Something that was read, of stdout (0) or stderr (1).
#[derive(Debug)]
struct Piece {
    which: usize,
    bytes: Vec<u8>,
    /// How much of it has been handed out.
    taken_bytes: usize,
    /// After this nothing comes of its stream.
    last: bool,
}

/// A line whose end has not been read yet.
#[derive(Debug, Default)]
struct Begun {
    line: Vec<u8>,
    /// What comes up to the next end of a line is not wanted.
    skipping: bool,
}

#[derive(Default)]
struct Filling {
    end: Option<QueueEnd>,
    /// Found no room: whoever makes some says so.
    stalled: bool,
    upstream: Option<Arc<dyn Upstream>>,
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, stalled: {}", self.end, self.stalled)
    }
}

/// Who fills a queue, as its consumer sees him.
pub(crate) trait Upstream: Send + Sync {
    /// There is room again, or nobody wants any more.
    fn resume(&self);
}

impl<T: QueueItem> Queue<T> {
    fn new(tap: &Tap) -> Queue<T> {
        Queue { shared: tap.shared.clone(), _items: std::marker::PhantomData }
    }

    /// The next item if there is one. `None`: not now, or never again, which [`Queue::end`] tells apart.
    pub fn try_next(&mut self) -> Option<T> {
        if !self.shared.is_ours() {
            return None;
        }
        self.pull(self.shared.lock()).0
    }

    /// As the iterator's `next`, for at most `limit`; `None` also if the time is over.
    pub fn next_timeout(&mut self, limit: Duration) -> Option<T> {
        self.next_until(Some(Instant::now().checked_add(limit)?))
    }

    /// The next item, or `None` at the end; needs no runtime in particular.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub fn next_async(&mut self) -> impl Future<Output = Option<T>> + Send + '_ {
        poll_fn(|context| self.poll_item(context))
    }

    /// Why it has ended, as soon as everything has been taken; `None` before. Of two streams that ended differently: the first, in the order of
    /// [`QueueEnd`], that is not complete.
    pub fn end(&self) -> Option<QueueEnd> {
        if !self.shared.is_ours() {
            return Some(QueueEnd::Forked);
        }
        self.shared.lock().end()
    }

    /// The next item; or the waker is woken when there may be one.
    pub(crate) fn poll_item(&mut self, context: &mut task::Context<'_>) -> Poll<Option<T>> {
        if !self.shared.is_ours() {
            return Poll::Ready(None);
        }
        // Cloned and dropped outside the lock: a waker is somebody else's code.
        let waker = context.waker().clone();
        let (item, mut state) = self.pull(self.shared.lock());
        if item.is_some() || state.end().is_some() {
            drop(state);
            return Poll::Ready(item);
        }
        let former = state.waker.replace(waker);
        drop(state);
        drop(former);
        Poll::Pending
    }

    fn next_until(&mut self, until: Option<Instant>) -> Option<T> {
        if !self.shared.is_ours() {
            return None;
        }
        let mut state = self.shared.lock();
        loop {
            let item;
            (item, state) = self.pull(state);
            if item.is_some() || state.end().is_some() {
                return item;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            state.sleeping = true;
            state = match left {
                Some(left) => self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.sleeping = false;
        }
    }

    /// The next item; tells those who found no room, without the lock, that there is some.
    fn pull<'a>(&'a self, mut state: MutexGuard<'a, State>) -> (Option<T>, MutexGuard<'a, State>) {
        let options = &self.shared.options;
        loop {
            let item = if options.by_line { state.next_line(options) } else { state.next_chunk() };
            let item = item.map(|(which, bytes)| T::of([Stream::Stdout, Stream::Stderr][which], bytes));
            let resumed = if state.has_room_again(options) { state.unstall() } else { [None, None] };
            if resumed.iter().all(Option::is_none) {
                return (item, state);
            }
            drop(state);
            resumed.iter().flatten().for_each(|upstream| upstream.resume());
            state = self.shared.lock();
            if item.is_some() {
                return (item, state);
            }
            // While the lock was gone something may have come, and it told nobody.
        }
    }
}

impl<T: QueueItem> Iterator for Queue<T> {
    type Item = T;

    /// Waits for the next item; `None` at the end.
    fn next(&mut self) -> Option<T> {
        self.next_until(None)
    }
}

impl<T: QueueItem> Drop for Queue<T> {
    fn drop(&mut self) {
        // A forked copy: its lock may have been held when it was made.
        if !self.shared.is_ours() {
            return;
        }
        let (rest, waker, resumed) = {
            let mut state = self.shared.lock();
            state.dropped = true;
            let rest = std::mem::take(&mut state.waiting);
            (rest, state.waker.take(), state.streams.each_ref().map(|stream| stream.upstream.clone()))
        };
        drop((rest, waker));
        resumed.iter().flatten().for_each(|upstream| upstream.resume());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To signal a condition nobody waits for is a system call all the same.
    fn wake_sleeper(&self, state: &State) {
        if state.sleeping {
            self.changed.notify_one();
        }
    }

    /// Asked before the lock is taken: it may have been held when the process was forked.
    fn is_ours(&self) -> bool {
        self.generation == generation()
    }
}

impl State {
    fn next_chunk(&mut self) -> Option<(usize, Vec<u8>)> {
        while let Some(mut piece) = self.waiting.pop_front() {
            if !piece.last {
                self.waiting_items -= 1;
                self.waiting_bytes -= piece.bytes.len();
                piece.bytes.shrink_to_fit();
                return Some((piece.which, piece.bytes));
            }
        }
        None
    }

    /// Cuts the next line out of what waits; what belongs to one whose end is not there is kept apart.
    fn next_line(&mut self, options: &QueueOptions) -> Option<(usize, Vec<u8>)> {
        while let Some(piece) = self.waiting.front_mut() {
            let which = piece.which;
            let begun = &mut self.begun[which];
            if piece.last {
                self.waiting.pop_front();
                if !begun.line.is_empty() {
                    return Some((which, std::mem::take(&mut begun.line)));
                }
                continue;
            }
            let rest = &piece.bytes[piece.taken_bytes..];
            let room = options.line_max_bytes - begun.line.len();
            if room == 0 && !begun.skipping {
                match options.long_line {
                    LongLine::Split => {}
                    LongLine::Truncate => begun.skipping = true,
                    LongLine::Fail => {
                        self.line_too_long = true;
                        self.discard();
                        // Nobody will take any more: as if it had found no room.
                        self.streams.iter_mut().for_each(|stream| stream.stalled = true);
                        return None;
                    }
                }
                return Some((which, std::mem::take(&mut begun.line)));
            }
            let n = begun.take(rest, room);
            let ended = rest[n - 1] == b'\n';
            piece.taken_bytes += n;
            if n == rest.len() {
                self.waiting.pop_front();
            }
            self.waiting_bytes -= n;
            self.waiting_items -= usize::from(ended);
            if ended && !std::mem::take(&mut begun.skipping) {
                return Some((which, std::mem::take(&mut begun.line)));
            }
        }
        None
    }

    /// Nobody will ask for it.
    fn discard(&mut self) {
        self.waiting.clear();
        self.begun = Default::default();
        (self.waiting_bytes, self.waiting_items) = (0, 0);
    }

    fn end(&self) -> Option<QueueEnd> {
        if self.line_too_long {
            return Some(QueueEnd::LineTooLong);
        }
        let [stdout, stderr] = self.streams.each_ref().map(|stream| stream.end);
        let is_more =
            self.waiting.iter().any(|piece| !piece.last) || self.begun.iter().any(|begun| !begun.line.is_empty());
        match (stdout?, stderr?) {
            _ if is_more => None,
            (QueueEnd::Complete, end) | (end, _) => Some(end),
        }
    }

    fn cost_bytes(&self) -> usize {
        self.waiting_bytes + self.waiting.len() * PIECE_COST_BYTES
    }

    fn room(&self, options: &QueueOptions) -> usize {
        if self.waiting_items >= options.items_max { 0 } else { options.bytes_max.saturating_sub(self.cost_bytes()) }
    }

    /// Half of it: whoever found none is not called for every item.
    fn has_room_again(&self, options: &QueueOptions) -> bool {
        self.waiting_items <= options.items_max / 2 && self.cost_bytes() <= options.bytes_max / 2
    }

    /// Who is to be told.
    fn unstall(&mut self) -> [Option<Arc<dyn Upstream>>; 2] {
        self.streams.each_mut().map(|stream| {
            let stalled = std::mem::take(&mut stream.stalled);
            if stalled { stream.upstream.clone() } else { None }
        })
    }
}

impl Begun {
    /// Takes from `rest` what belongs to the line, at most `room`; says how much.
    fn take(&mut self, mut rest: &[u8], room: usize) -> usize {
        let there = rest.len();
        let taken = if self.skipping {
            rest.skip_until(b'\n')
        } else {
            rest = &rest[..there.min(room)];
            rest.read_until(b'\n', &mut self.line)
        };
        // From memory: it cannot fail, and takes at least a byte where there is one.
        taken.unwrap_or(there)
    }
}

/// The end of a queue that is filled, for one stream. Dropped without a word: nothing comes any more.
#[derive(Debug)]
pub(crate) struct Tap {
    shared: Arc<Shared>,
    which: usize,
    /// How large the next piece is made.
    piece_bytes: usize,
    /// Whom to wake when the child's lock is gone.
    woken: Vec<Waker>,
}

/// What filling came to.
#[derive(Debug)]
pub(crate) enum Filled<E> {
    /// So much came, of so much that was asked for.
    Came(usize, usize),
    /// There is no room: whoever makes some resumes the filler.
    Full,
    /// The consumer is gone, or wants no more.
    Unwanted,
    Failed(E),
}

impl Tap {
    fn pair(options: QueueOptions, streams: usize) -> [Tap; 2] {
        let mut state = State::default();
        if streams == 1 {
            state.streams[1].end = Some(QueueEnd::Complete);
        }
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { options, state, changed: Condvar::new(), generation: generation() });
        [0, 1].map(|which| Tap { shared: shared.clone(), which, piece_bytes: PIECE_MIN_BYTES, woken: Vec::new() })
    }

    /// Whom the consumer asks to go on.
    pub(crate) fn attach(&self, upstream: Arc<dyn Upstream>) {
        self.shared.lock().streams[self.which].upstream = Some(upstream);
    }

    /// Whether what comes is read although nobody takes it.
    pub(crate) fn is_drained(&self) -> bool {
        !self.shared.lock().line_too_long && self.shared.options.when_dropped == WhenDropped::Drain
    }

    /// Whether the consumer is gone, or wants no more.
    pub(crate) fn is_unwanted(&self) -> bool {
        let state = self.shared.lock();
        state.dropped || state.line_too_long
    }

    /// What the error says of a stream that the consumer did not take to its end, though more `came`.
    pub(crate) fn complaint(&self, came: bool) -> Option<io::Error> {
        let options = &self.shared.options;
        if self.shared.lock().line_too_long {
            let what = format!("a line of more than {} bytes", options.line_max_bytes);
            return Some(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let what = if options.by_line { "lines" } else { "chunks" };
        came.then(|| io::Error::new(io::ErrorKind::BrokenPipe, format!("nobody receives the {what} any more")))
    }

    /// Has `read` read once, into a piece that waits: it is given the bytes and how many may come. `owed`: so much is taken, room or not.
    pub(crate) fn fill<E>(
        &mut self,
        owed: usize,
        read: impl FnOnce(&mut Vec<u8>, usize) -> Result<usize, E>,
    ) -> Filled<E> {
        let options = &self.shared.options;
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        if state.dropped || state.line_too_long {
            return Filled::Unwanted;
        }
        let room = if owed > 0 { owed } else { state.room(options) };
        if room == 0 {
            state.streams[self.which].stalled = true;
            return Filled::Full;
        }
        state.streams[self.which].stalled = false;
        let which = self.which;
        let has_spare =
            |piece: &Piece| piece.which == which && !piece.last && piece.bytes.capacity() > piece.bytes.len();
        if !state.waiting.back().is_some_and(has_spare) {
            // Nothing more goes there.
            state.waiting.back_mut().into_iter().for_each(|piece| piece.bytes.shrink_to_fit());
            let bytes = Vec::with_capacity(self.piece_bytes.min(room));
            state.waiting.push_back(Piece { which, bytes, taken_bytes: 0, last: false });
        }
        let piece = state.waiting.back_mut().expect("one with room is there");
        let before = piece.bytes.len();
        let room = room.min(piece.bytes.capacity() - before);
        let result = read(&mut piece.bytes, room);
        let new = &piece.bytes[before..];
        let n = new.len();
        state.waiting_bytes += n;
        state.waiting_items += match options.by_line {
            true => new.iter().filter(|byte| **byte == b'\n').count(),
            false => usize::from(before == 0 && n > 0),
        };
        if before + n == 0 {
            state.waiting.pop_back();
        }
        self.piece_bytes = if n == room { (room * 2).clamp(PIECE_MIN_BYTES, PIECE_MAX_BYTES) } else { PIECE_MIN_BYTES };
        if n > 0 {
            self.woken.extend(state.waker.take());
            self.shared.wake_sleeper(state);
        }
        match result {
            Ok(_) => Filled::Came(n, room),
            Err(error) => Filled::Failed(error),
        }
    }

    /// Nothing comes any more.
    pub(crate) fn end(&mut self, end: QueueEnd) {
        let mut state = self.shared.lock();
        let stream = &mut state.streams[self.which];
        if stream.end.is_some() {
            return;
        }
        stream.end = Some(end);
        let upstream = stream.upstream.take();
        if !state.dropped {
            state.waiting.push_back(Piece { which: self.which, bytes: Vec::new(), taken_bytes: 0, last: true });
        }
        self.woken.extend(state.waker.take());
        self.shared.wake_sleeper(&state);
        drop(state);
        drop(upstream);
    }

    /// Whom to wake when no lock is held.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.woken)
    }
}

/// Between the loop and a thread that writes down what comes.
pub(crate) fn of_tee() -> (Tap, Queue) {
    let mut options = QueueOptions::chunks();
    options.items_max(usize::MAX).bytes_max(TEE_BYTES_MAX);
    let [tap, _] = Tap::pair(options, 1);
    let queue = Queue::new(&tap);
    (tap, queue)
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.shared.is_ours() {
            self.end(QueueEnd::Abandoned);
            for waker in self.take_woken() {
                // A waker is somebody else's code.
                let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_of_two_streams_in_turn_take_no_more_than_is_allowed() {
        let mut options = QueueOptions::lines();
        options.bytes_max(64 << 10);
        let mut taps = Tap::pair(options, 2);
        let mut queue: Queue = Queue::new(&taps[0]);
        let one = |bytes: &mut Vec<u8>, _| {
            bytes.push(b'x');
            Ok::<_, ()>(1)
        };
        let mut put = 0;
        while let Filled::Came(1, _) = taps[put % 2].fill(0, one) {
            put += 1;
        }
        let capacity: usize = queue.shared.lock().waiting.iter().map(|piece| piece.bytes.capacity()).sum();
        assert!((900..1100).contains(&put) && capacity < 16 << 10, "{put} bytes in {capacity}");
        taps.iter_mut().for_each(|tap| tap.end(QueueEnd::Complete));
        assert_eq!(queue.by_ref().map(|line| line.len()).sum::<usize>(), put);
        assert_eq!(queue.end(), Some(QueueEnd::Complete));
    }
}
