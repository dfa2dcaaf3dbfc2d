//! Our ends of a child's pipes: reading into a capture, feeding stdin. Knows descriptors and buffers; knows no child and no epoll.

pub(crate) mod copier;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::queue::{Filled, QueueEnd, Tap, Upstream};
use crate::stdio::{Claim, Limit};
use crate::sys::process::write_without_sigpipe;
use crate::sys::read_behind;

/// How much is moved through one pipe before others have their turn.
pub(crate) const PIPE_TURN_BYTES: usize = 1 << 20;
/// The smallest room that is made for a read.
const READ_MIN_BYTES: usize = 4 << 10;
/// The largest room that is made ahead of a read; also what a busy pipe is enlarged to.
const READ_MAX_BYTES: usize = 1 << 20;
/// A read of this much found the pipe full: the writer is faster than we come round.
const PIPE_FULL_BYTES: usize = 64 << 10;

/// More than the buffers of a terminal hold.
const TERMINAL_MAX_BYTES: usize = 64 << 10;

/// What moving bytes through a pipe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Nothing more for now; the kernel will tell.
    Blocked,
    /// The budget was used up; there is more, and the kernel will not tell again.
    More,
    /// It has ended.
    Ended,
    /// The capture's limit was exceeded in this call.
    Exceeded,
    /// Something came that nobody takes any more: [`Capture::complaint`] says why.
    Refused,
}

/// A pipe, close-on-exec at both ends: (read end, write end).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// Makes an end of ours non-blocking; the other end is another file description and stays blocking.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Our ends are fresh from pipe2 or were never given out: no other flag is set, none has to be read first.
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::NONBLOCK)?)
}

/// A read end of ours, and what is left to be read of the child's own.
#[derive(Debug)]
struct Source<F> {
    fd: F,
    /// Since the exit was seen: how many bytes in the pipe the child itself may have written.
    owed_bytes: Option<usize>,
    /// Our end of a terminal.
    terminal: bool,
    /// It is as large as it may get.
    enlarged: bool,
    /// Read, and not counted yet.
    uncounted_bytes: u64,
}

impl<F: AsFd> Source<F> {
    fn new(fd: F) -> Source<F> {
        Source { fd, owed_bytes: None, terminal: false, enlarged: false, uncounted_bytes: 0 }
    }

    /// `read` reads from the descriptor once, and says how much.
    fn read(&mut self, read: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
        let n = read(self.fd.as_fd())?;
        self.uncounted_bytes += n as u64;
        if let Some(owed) = &mut self.owed_bytes {
            *owed = owed.saturating_sub(n);
        }
        if n >= PIPE_FULL_BYTES && !self.enlarged {
            self.enlarged = true;
            // Refused where the user's share of pipe memory is used up; then it stays as it is.
            let _ = fcntl_setpipe_size(&self.fd, READ_MAX_BYTES);
        }
        Ok(n)
    }

    /// The exit was seen: everything the child wrote is in the pipe by now.
    fn note_owed(&mut self) {
        if self.terminal {
            // The kernel counts only what has got through to our side: all is what can be read before it says that there is no more.
            self.owed_bytes = Some(TERMINAL_MAX_BYTES);
            return;
        }
        let bytes = rustix::io::ioctl_fionread(&self.fd).unwrap_or(0);
        self.owed_bytes = Some(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// What the child itself left, if that is known; else what there is now.
    fn owed(&mut self) -> usize {
        if self.owed_bytes.is_none() {
            self.note_owed();
        }
        self.owed_bytes.unwrap_or(0)
    }

    /// Whether no writer is left and nothing to be read.
    fn is_at_end(&self) -> bool {
        rustix::io::ioctl_fionread(&self.fd).is_ok_and(|bytes| bytes == 0) && self.is_hung_up()
    }

    /// Whether no writer is left, of a pipe in which nothing is to be read.
    fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = poll(&mut fds, Some(&now));
        fds[0].revents().contains(PollFlags::HUP)
    }
}

/// Our end of a captured stream.
#[derive(Debug)]
pub(crate) struct Capture {
    source: Source<OwnedFd>,
    sink: Sink,
}

impl Capture {
    pub(crate) fn new(fd: OwnedFd, limit: Option<Limit>) -> Capture {
        Capture { source: Source::new(fd), sink: Sink::new(limit) }
    }

    pub(crate) fn is_of_terminal(&mut self) {
        self.source.terminal = true;
    }

    /// For a consumer, as it comes.
    pub(crate) fn queued(fd: OwnedFd, tap: Claim<Tap>) -> Capture {
        // What is owed at the exit is taken at once: no more than the consumer allows to wait anyway.
        let enlarged = !tap.takes_at_once(READ_MAX_BYTES);
        Capture { source: Source { enlarged, ..Source::new(fd) }, sink: Sink::Queue(tap) }
    }

    /// Nobody will ask for the result any more: what comes is read, so that the child can go on, and forgotten. A consumer has what comes
    /// in hand already.
    pub(crate) fn discard(&mut self) {
        if self.tap().is_none() {
            self.sink = Sink::Discard;
        }
    }

    fn tap(&mut self) -> Option<&mut Claim<Tap>> {
        if let Sink::Queue(tap) = &mut self.sink { Some(tap) } else { None }
    }

    /// Whom the consumer asks to go on.
    pub(crate) fn attach(&mut self, upstream: Arc<dyn Upstream>) {
        if let Some(tap) = self.tap() {
            tap.attach(upstream);
        }
    }

    /// The child runs: what serves one spawn has served it.
    pub(crate) fn keep(&mut self) {
        if let Some(tap) = self.tap() {
            tap.keep();
        }
    }

    /// The exit was seen: whether it waits for a consumer to take what is there, or to be told that nobody does.
    pub(crate) fn is_held_up(&mut self) -> bool {
        self.tap().is_some_and(|tap| tap.is_stalled() || tap.is_unwanted())
    }

    /// Whether the next byte that comes will be refused.
    pub(crate) fn is_refused(&mut self) -> bool {
        self.tap().is_some_and(|tap| tap.is_unwanted() && !tap.is_drained())
    }

    /// Why what came was refused, or (not `came`) will be whatever comes.
    pub(crate) fn complaint(&mut self, came: bool) -> Option<io::Error> {
        self.tap().and_then(|tap| tap.complaint(came))
    }

    /// Tells the consumer that nothing more comes.
    pub(crate) fn end(&mut self, end: QueueEnd) {
        if let Some(tap) = self.tap() {
            tap.end(end);
        }
    }

    /// Whom to wake when no lock is held.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        self.tap().map(|tap| tap.take_woken()).unwrap_or_default()
    }

    /// Reads until there is nothing, the budget is used, or the stream ended. `hung_up`: the kernel said that no writer is
    /// left, so a short read is followed by another one instead of waiting for an edge that has been.
    pub(crate) fn pump(&mut self, hung_up: bool) -> Pumped {
        if self.tap().is_some() {
            return self.pump_queue(hung_up);
        }
        let mut moved_bytes = 0;
        while moved_bytes < PIPE_TURN_BYTES {
            // One read never takes more than the pipe holds, READ_MAX_BYTES.
            let room = self.sink.make_room(usize::MAX);
            match self.read_once(room) {
                Ok(0) => return Pumped::Ended,
                Ok(n) => {
                    moved_bytes += n;
                    if self.sink.exceeded() {
                        return Pumped::Exceeded;
                    }
                    // A short read emptied the pipe: what comes later raises an edge of its own.
                    if n < room && !hung_up {
                        return Pumped::Blocked;
                    }
                }
                Err(Errno::AGAIN) => return Pumped::Blocked,
                Err(Errno::INTR) => {}
                // Nothing else can be read from it (EIO: the terminal behind it is gone).
                Err(_) => return Pumped::Ended,
            }
        }
        Pumped::More
    }

    /// The same, as far as the consumer has room. Without any it says [`Pumped::Blocked`]: the consumer has it called again.
    fn pump_queue(&mut self, hung_up: bool) -> Pumped {
        let mut moved_bytes = 0;
        while moved_bytes < PIPE_TURN_BYTES {
            match self.fill_once() {
                Filled::Came(0, _) => return Pumped::Ended,
                Filled::Came(n, room) => {
                    moved_bytes += n;
                    if n < room && !hung_up {
                        return Pumped::Blocked;
                    }
                }
                // Its end needs no room, and is not awaited again.
                Filled::Full if hung_up && self.source.is_at_end() => return Pumped::Ended,
                Filled::Full | Filled::Failed(Errno::AGAIN) => return Pumped::Blocked,
                Filled::Unwanted => return self.pump_unwanted(hung_up),
                Filled::Failed(Errno::INTR) => {}
                Filled::Failed(_) => return Pumped::Ended,
            }
        }
        Pumped::More
    }

    fn fill_once(&mut self) -> Filled<Errno> {
        let Capture { source, sink: Sink::Queue(tap) } = self else {
            return Filled::Unwanted;
        };
        let owed = source.owed_bytes.unwrap_or(0);
        tap.fill(owed, |bytes, room| source.read(|fd| read_behind(fd, bytes, room)))
    }

    /// Nobody takes it any more.
    fn pump_unwanted(&mut self, hung_up: bool) -> Pumped {
        if self.tap().is_some_and(|tap| tap.is_drained()) {
            self.sink = Sink::Discard;
            return self.pump(hung_up);
        }
        match rustix::io::read(&self.source.fd, &mut [0]) {
            Ok(1..) => Pumped::Refused,
            Err(Errno::AGAIN | Errno::INTR) => Pumped::Blocked,
            Ok(0) | Err(_) => Pumped::Ended,
        }
    }

    fn read_once(&mut self, room: usize) -> rustix::io::Result<usize> {
        self.source.read(|fd| self.sink.read_from(fd, room))
    }

    /// The exit was seen.
    pub(crate) fn note_owed(&mut self) {
        self.source.note_owed();
    }

    /// Reads what the child itself left and no more, whoever goes on writing; says whether somebody still held the pipe.
    pub(crate) fn cut(&mut self) -> bool {
        if self.tap().is_some() {
            return self.cut_queue();
        }
        while let owed @ 1.. = self.source.owed() {
            let room = self.sink.make_room(owed);
            match self.read_once(room) {
                Ok(0) => return false,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        !self.source.is_hung_up()
    }

    /// A slow consumer may take those bytes later.
    fn cut_queue(&mut self) -> bool {
        while self.source.owed() > 0 {
            match self.fill_once() {
                Filled::Came(1.., _) | Filled::Failed(Errno::INTR) => {}
                Filled::Came(0, _) => return false,
                Filled::Full | Filled::Unwanted | Filled::Failed(_) => break,
            }
        }
        !self.source.is_hung_up()
    }

    /// How much was read since this was last asked.
    pub(crate) fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.source.uncounted_bytes)
    }

    /// Whether there was more than its [`Limit::StopAt`] allows.
    pub(crate) fn is_over_limit(&self) -> bool {
        matches!(self.sink, Sink::UpTo { omitted_bytes: 1.., .. })
    }

    /// What was captured, and how many bytes were left out.
    pub(crate) fn into_bytes(self) -> (Vec<u8>, u64) {
        self.sink.into_bytes()
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.fd.as_fd()
    }
}

/// Where captured bytes go.
#[derive(Debug)]
enum Sink {
    Whole(Vec<u8>),
    Ends {
        head: Vec<u8>,
        head_max: usize,
        tail: VecDeque<u8>,
        tail_max: usize,
        omitted_bytes: u64,
        chunk: Vec<u8>,
    },
    UpTo {
        bytes: Vec<u8>,
        max: usize,
        omitted_bytes: u64,
        exceeded: bool,
    },
    Discard,
    /// Never read into here: [`Tap::fill`] does it.
    Queue(Claim<Tap>),
}

impl Sink {
    fn new(limit: Option<Limit>) -> Sink {
        match limit {
            None => Sink::Whole(Vec::new()),
            Some(Limit::HeadTail { head_bytes, tail_bytes }) => Sink::Ends {
                head: Vec::new(),
                head_max: head_bytes,
                tail: VecDeque::new(),
                tail_max: tail_bytes,
                omitted_bytes: 0,
                chunk: Vec::new(),
            },
            Some(Limit::StopAt { bytes }) => {
                Sink::UpTo { bytes: Vec::new(), max: bytes, omitted_bytes: 0, exceeded: false }
            }
        }
    }

    /// How much the next read may take: what the buffer has spare, after making room that grows with what is there already.
    fn make_room(&mut self, at_most: usize) -> usize {
        let Sink::Whole(bytes) = self else {
            return PIPE_FULL_BYTES.min(at_most);
        };
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len().clamp(READ_MIN_BYTES, READ_MAX_BYTES));
        }
        (bytes.capacity() - bytes.len()).min(at_most)
    }

    fn read_from(&mut self, fd: BorrowedFd<'_>, room: usize) -> rustix::io::Result<usize> {
        match self {
            Sink::Whole(bytes) => read_into(fd, bytes, room),
            Sink::Ends { chunk, .. } => {
                let mut taken = std::mem::take(chunk);
                taken.clear();
                taken.reserve_exact(room);
                let n = read_into(fd, &mut taken, room)?;
                self.keep_ends(&taken);
                if let Sink::Ends { chunk, .. } = self {
                    *chunk = taken;
                }
                Ok(n)
            }
            Sink::UpTo { bytes, max, omitted_bytes, exceeded } => {
                let n = read_into(fd, bytes, room)?;
                let over = bytes.len().saturating_sub(*max);
                bytes.truncate(*max);
                *exceeded = over > 0 && *omitted_bytes == 0;
                *omitted_bytes += over as u64;
                Ok(n)
            }
            Sink::Discard | Sink::Queue(_) => read_into(fd, &mut Vec::new(), room),
        }
    }

    fn keep_ends(&mut self, mut new: &[u8]) {
        let Sink::Ends { head, head_max, tail, tail_max, omitted_bytes, .. } = self else {
            return;
        };
        let (first, rest) = new.split_at(new.len().min(*head_max - head.len()));
        head.extend_from_slice(first);
        new = rest;
        let surplus = (tail.len() + new.len()).saturating_sub(*tail_max);
        *omitted_bytes += surplus as u64;
        let from_tail = surplus.min(tail.len());
        tail.drain(..from_tail);
        tail.extend(&new[surplus - from_tail..]);
    }

    /// Whether the last read was the one that went over the limit.
    fn exceeded(&self) -> bool {
        matches!(self, Sink::UpTo { exceeded: true, .. })
    }

    fn into_bytes(self) -> (Vec<u8>, u64) {
        match self {
            Sink::Whole(bytes) => (bytes, 0),
            Sink::Ends { mut head, tail, omitted_bytes, .. } => {
                head.extend(tail);
                (head, omitted_bytes)
            }
            Sink::UpTo { bytes, omitted_bytes, .. } => (bytes, omitted_bytes),
            Sink::Discard | Sink::Queue(_) => (Vec::new(), 0),
        }
    }
}

/// Reads at most `room` bytes behind what `bytes` holds, which makes room for them.
fn read_into(fd: BorrowedFd<'_>, bytes: &mut Vec<u8>, room: usize) -> rustix::io::Result<usize> {
    if bytes.capacity() - bytes.len() < room {
        bytes.reserve(room);
    }
    read_behind(fd, bytes, room)
}

/// Our end of a stdin that is fed from memory.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) fd: OwnedFd,
    bytes: Arc<Vec<u8>>,
    written_bytes: usize,
}

impl Feed {
    pub(crate) fn new(fd: OwnedFd, bytes: Arc<Vec<u8>>) -> Feed {
        Feed { fd, bytes, written_bytes: 0 }
    }

    /// Writes until everything is written, the pipe is full, the budget is used, or the child no longer reads, which is not an error.
    pub(crate) fn pump(&mut self) -> Pumped {
        let start = self.written_bytes;
        while self.written_bytes < self.bytes.len() {
            if self.written_bytes - start >= PIPE_TURN_BYTES {
                return Pumped::More;
            }
            let end = self.bytes.len().min(self.written_bytes + PIPE_TURN_BYTES);
            match write_without_sigpipe(self.fd.as_fd(), &self.bytes[self.written_bytes..end]) {
                Ok(n) => self.written_bytes += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Pumped::Blocked,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Pumped::Ended,
            }
        }
        Pumped::Ended
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn capture(limit: Option<Limit>) -> (Capture, std::fs::File) {
        let (ours, theirs) = pipe().unwrap();
        set_nonblocking(ours.as_fd()).unwrap();
        (Capture::new(ours, limit), theirs.into())
    }

    #[test]
    fn a_capture_keeps_everything_in_order() {
        let (mut capture, mut writer) = capture(None);
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        for chunk in sent.chunks(60_000) {
            writer.write_all(chunk).unwrap();
            assert_eq!(capture.pump(false), Pumped::Blocked);
        }
        drop(writer);
        assert_eq!(capture.pump(true), Pumped::Ended);
        assert_eq!(capture.into_bytes(), (sent, 0));
    }

    #[test]
    fn the_ends_are_kept_and_the_middle_is_counted() {
        for (head, tail, text, expected, omitted) in [
            (2, 2, "", "", 0),
            (2, 2, "a", "a", 0),
            (2, 2, "abcd", "abcd", 0),
            (2, 2, "abcde", "abde", 1),
            (2, 2, "abcdefghijklmnopqrstuvwxyz", "abyz", 22),
            (0, 3, "abcdef", "def", 3),
            (3, 0, "abcdef", "abc", 3),
            (0, 0, "abcdef", "", 6),
        ] {
            for chunk in 1..=text.len().max(1) {
                let mut sink = Sink::new(Some(Limit::head_tail(head, tail)));
                for part in text.as_bytes().chunks(chunk) {
                    sink.keep_ends(part);
                }
                assert_eq!(sink.into_bytes(), (expected.into(), omitted), "{text} by {chunk}");
            }
        }
    }

    #[test]
    fn a_limit_is_exceeded_once_and_what_came_before_is_kept() {
        let (mut capture, mut writer) = capture(Some(Limit::stop_at(3)));
        writer.write_all(b"abc").unwrap();
        assert_eq!(capture.pump(false), Pumped::Blocked);
        writer.write_all(b"de").unwrap();
        assert_eq!(capture.pump(false), Pumped::Exceeded);
        writer.write_all(b"fg").unwrap();
        assert_eq!(capture.pump(false), Pumped::Blocked);
        assert_eq!(capture.into_bytes(), (b"abc".to_vec(), 4));
    }

    #[test]
    fn a_cut_takes_what_was_owed_and_says_who_holds_on() {
        let (mut capture, mut writer) = capture(None);
        writer.write_all(b"the child's own").unwrap();
        capture.note_owed();
        writer.write_all(b" and somebody else's").unwrap();
        assert!(capture.cut());
        assert_eq!(capture.into_bytes(), (b"the child's own".to_vec(), 0));
    }

    #[test]
    fn a_cut_of_a_closed_pipe_says_that_nobody_holds_it() {
        let (mut capture, mut writer) = capture(None);
        writer.write_all(b"all").unwrap();
        drop(writer);
        capture.note_owed();
        assert!(!capture.cut());
        assert_eq!(capture.into_bytes(), (b"all".to_vec(), 0));
    }

    #[test]
    fn feeding_somebody_who_is_gone_just_ends() {
        let (theirs, ours) = pipe().unwrap();
        set_nonblocking(ours.as_fd()).unwrap();
        let mut feed = Feed::new(ours, vec![7; 200_000].into());
        assert_eq!(feed.pump(), Pumped::Blocked);
        drop(theirs);
        assert_eq!(feed.pump(), Pumped::Ended);
    }
}
