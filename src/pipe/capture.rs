//! Our end of a stream that the loop reads: into memory, within a limit or without, into a queue, or into memory and a queue at once. Knows
//! descriptors and buffers; knows no child and no epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use rustix::io::Errno;

use super::{PIPE_FULL_BYTES, PIPE_TURN_BYTES, Pumped, Source};
use crate::queue::{Filled, QueueEnd, Tap, Upstream};
use crate::stdio::{Claim, Limit};
use crate::sys::read_behind;

/// The smallest room that is made for a read.
const READ_MIN_BYTES: usize = 4 << 10;

/// Our end of a captured stream.
#[derive(Debug)]
pub(crate) struct Capture {
    source: Source<OwnedFd>,
    sink: Sink,
    /// Who gets a copy of what comes.
    tee: Option<Tap>,
}

impl Capture {
    pub(crate) fn new(fd: OwnedFd, limit: Option<Limit>) -> Capture {
        Capture { source: Source::new(fd), sink: Sink::new(limit), tee: None }
    }

    pub(crate) fn is_of_terminal(&mut self) {
        self.source.terminal = true;
    }

    /// For a consumer, as it comes.
    pub(crate) fn queued(fd: OwnedFd, tap: Claim<Tap>) -> Capture {
        Capture { source: Source::new(fd), sink: Sink::Queue(tap), tee: None }
    }

    /// As [`Capture::new`], and what comes goes to `tee`, too.
    pub(crate) fn with_tee(fd: OwnedFd, limit: Option<Limit>, tee: Tap) -> Capture {
        Capture { tee: Some(tee), ..Capture::new(fd, limit) }
    }

    /// Nobody will ask for the result any more: what comes is read, so that the child can go on, and forgotten. A consumer has what comes
    /// in hand already.
    pub(crate) fn discard(&mut self) {
        if !matches!(self.sink, Sink::Queue(_)) {
            self.sink = Sink::Discard;
        }
    }

    /// Where what comes has a consumer.
    fn tap(&mut self) -> Option<&mut Tap> {
        if let Sink::Queue(tap) = &mut self.sink { Some(tap) } else { self.tee.as_mut() }
    }

    /// Whom the consumer asks to go on.
    pub(crate) fn attach(&mut self, upstream: Arc<dyn Upstream>) {
        if let Some(tap) = self.tap() {
            tap.attach(upstream);
        }
    }

    /// The child runs: what serves one spawn has served it.
    pub(crate) fn keep(&mut self) {
        if let Sink::Queue(tap) = &mut self.sink {
            tap.keep();
        }
    }

    /// Whether somebody else takes what comes, in his own time.
    pub(crate) fn has_consumer(&mut self) -> bool {
        self.tap().is_some()
    }

    /// Whether the next byte that comes will be refused.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(&self.sink, Sink::Queue(tap) if tap.is_unwanted() && !tap.is_drained())
    }

    /// Why what came was refused, or (not `came`) will be whatever comes.
    pub(crate) fn complaint(&self, came: bool) -> Option<io::Error> {
        if let Sink::Queue(tap) = &self.sink { tap.complaint(came) } else { None }
    }

    /// Tells the consumer that nothing more comes.
    pub(crate) fn end(&mut self, end: QueueEnd) {
        if let Some(tap) = self.tap() {
            tap.end(end);
        }
    }

    /// Whom to wake when no lock is held.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        self.tap().map(Tap::take_woken).unwrap_or_default()
    }

    /// Reads until there is nothing, the budget is used, the consumer has no room, or the stream ended. `hung_up`: the kernel said that no
    /// writer is left, so a short read is followed by another one instead of waiting for an edge that has been.
    ///
    /// A consumer that makes room has it called again.
    pub(crate) fn pump(&mut self, hung_up: bool) -> Pumped {
        let mut moved_bytes = 0;
        while moved_bytes < PIPE_TURN_BYTES {
            match self.read_once(None) {
                Filled::Came(0, _) => return Pumped::Ended,
                Filled::Came(n, room) => {
                    moved_bytes += n;
                    if self.sink.exceeded() {
                        return Pumped::Exceeded;
                    }
                    // A short read emptied the pipe: what comes later raises an edge of its own.
                    if n < room && !hung_up {
                        return Pumped::Blocked;
                    }
                }
                // The end needs no room, and is not told of again.
                Filled::Full if hung_up && self.source.is_at_end() => return Pumped::Ended,
                Filled::Full | Filled::Failed(Errno::AGAIN) => return Pumped::Blocked,
                Filled::Unwanted if self.goes_on_without() => {}
                Filled::Unwanted => return self.refuse(),
                Filled::Failed(Errno::INTR) => {}
                // Nothing else can be read from it (EIO: the terminal behind it is gone).
                Filled::Failed(_) => return Pumped::Ended,
            }
        }
        Pumped::More
    }

    /// `at_most`: so much, whether its consumer has room or not.
    fn read_once(&mut self, at_most: Option<usize>) -> Filled<Errno> {
        let Capture { source, sink, tee } = self;
        let owed = at_most.or(source.owed_bytes).unwrap_or(0);
        match (sink, tee) {
            (Sink::Queue(tap), _) => tap.fill(owed, |bytes, room| source.read(|fd| read_behind(fd, bytes, room))),
            (sink, Some(tee)) => tee.fill(owed, |bytes, room| {
                let before = bytes.len();
                let n = source.read(|fd| read_behind(fd, bytes, room))?;
                sink.append(&bytes[before..]);
                Ok(n)
            }),
            (sink, None) => {
                let room = sink.make_room(at_most.unwrap_or(PIPE_TURN_BYTES));
                match source.read(|fd| sink.read_from(fd, room)) {
                    Ok(n) => {
                        if sink.buffer().is_some() {
                            source.enlarge_if_busy(n);
                        }
                        Filled::Came(n, room)
                    }
                    Err(error) => Filled::Failed(error),
                }
            }
        }
    }

    /// The consumer is gone: whether what comes is read all the same.
    fn goes_on_without(&mut self) -> bool {
        if self.tee.take().is_some() {
            return true;
        }
        let drained = matches!(&self.sink, Sink::Queue(tap) if tap.is_drained());
        if drained {
            self.sink = Sink::Discard;
        }
        drained
    }

    /// Of what nobody takes it matters only whether there is any.
    fn refuse(&self) -> Pumped {
        match rustix::io::read(&self.source.fd, &mut [0]) {
            Ok(1..) => Pumped::Refused,
            Err(Errno::AGAIN | Errno::INTR) => Pumped::Blocked,
            Ok(0) | Err(_) => Pumped::Ended,
        }
    }

    /// The exit was seen.
    pub(crate) fn note_owed(&mut self) {
        self.source.note_owed();
    }

    /// The exit was seen: how much the child itself left. Counted once; of what comes later none is its own.
    pub(crate) fn owed(&mut self) -> usize {
        self.source.owed()
    }

    /// The exit was seen, and after it nothing was left in the pipe: what comes from now on is not the child's. What is still on its way
    /// through a terminal is.
    pub(crate) fn owe_nothing(&mut self) {
        if self.source.terminal {
            return self.note_owed();
        }
        self.source.owed_bytes = Some(0);
    }

    /// Reads what the child itself left and no more, whoever goes on writing; says whether somebody still held the pipe. A slow consumer
    /// may take those bytes later.
    pub(crate) fn cut(&mut self) -> bool {
        while let owed @ 1.. = self.source.owed() {
            match self.read_once(Some(owed)) {
                Filled::Came(0, _) => return false,
                Filled::Came(..) | Filled::Failed(Errno::INTR) => {}
                Filled::Unwanted if self.goes_on_without() => {}
                Filled::Full | Filled::Unwanted | Filled::Failed(_) => break,
            }
        }
        !self.source.is_hung_up()
    }

    /// Whether there was more than its [`Limit::StopAt`] allows.
    pub(crate) fn is_over_limit(&self) -> bool {
        matches!(self.sink, Sink::UpTo { omitted_bytes: 1.., .. })
    }

    /// How much was read since this was last asked.
    pub(crate) fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.source.uncounted_bytes)
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
    Ends(Ends),
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
            Some(Limit::HeadTail { head_bytes, tail_bytes }) => Sink::Ends(Ends::new(head_bytes, tail_bytes)),
            Some(Limit::StopAt { bytes }) => {
                Sink::UpTo { bytes: Vec::new(), max: bytes, omitted_bytes: 0, exceeded: false }
            }
        }
    }

    /// The buffer that the next read goes into as it is, if there is one, and how large it may become.
    fn buffer(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        let (bytes, max) = match self {
            Sink::Whole(bytes) => (bytes, usize::MAX),
            Sink::Ends(ends) => {
                let max = ends.max();
                (&mut ends.bytes, max)
            }
            Sink::UpTo { bytes, max, .. } => (bytes, *max),
            Sink::Discard | Sink::Queue(_) => return None,
        };
        (bytes.len() < max).then_some((bytes, max))
    }

    /// How much the next read may take: what the buffer has spare, after making room that grows with what is there already.
    fn make_room(&mut self, at_most: usize) -> usize {
        let Some((bytes, max)) = self.buffer() else {
            return PIPE_FULL_BYTES.min(at_most);
        };
        if bytes.len() == bytes.capacity() {
            let more = bytes.len().max(READ_MIN_BYTES).min(max - bytes.len());
            // Exactly: a limit is a limit of memory, too.
            bytes.reserve_exact(more);
        }
        (bytes.capacity().min(max) - bytes.len()).min(at_most)
    }

    /// At most `room` bytes, as [`Sink::make_room`] said.
    fn read_from(&mut self, fd: BorrowedFd<'_>, room: usize) -> rustix::io::Result<usize> {
        if let Some((bytes, _)) = self.buffer() {
            return read_behind(fd, bytes, room);
        }
        // Not kept: a child that is idle costs no buffer.
        let mut chunk = Vec::with_capacity(room);
        let n = read_behind(fd, &mut chunk, room)?;
        self.append(&chunk);
        Ok(n)
    }

    fn append(&mut self, new: &[u8]) {
        match self {
            Sink::Whole(bytes) => bytes.extend_from_slice(new),
            Sink::Ends(ends) => ends.append(new),
            Sink::UpTo { bytes, max, omitted_bytes, exceeded } => {
                let (within, over) = new.split_at(new.len().min(*max - bytes.len()));
                bytes.extend_from_slice(within);
                *exceeded = !over.is_empty() && *omitted_bytes == 0;
                *omitted_bytes += over.len() as u64;
            }
            Sink::Discard | Sink::Queue(_) => {}
        }
    }

    /// Whether the last read was the one that went over the limit.
    fn exceeded(&self) -> bool {
        matches!(self, Sink::UpTo { exceeded: true, .. })
    }

    fn into_bytes(self) -> (Vec<u8>, u64) {
        match self {
            Sink::Whole(bytes) => (bytes, 0),
            Sink::Ends(ends) => ends.into_bytes(),
            Sink::UpTo { bytes, omitted_bytes, .. } => (bytes, omitted_bytes),
            Sink::Discard | Sink::Queue(_) => (Vec::new(), 0),
        }
    }
}

/// The first bytes and the last ones, in one buffer: what comes when it is full goes round in the part behind the head.
#[derive(Debug)]
struct Ends {
    bytes: Vec<u8>,
    head_max: usize,
    tail_max: usize,
    /// Where in the tail the oldest byte is.
    oldest: usize,
    omitted_bytes: u64,
}

impl Ends {
    fn new(head_max: usize, tail_max: usize) -> Ends {
        Ends { bytes: Vec::new(), head_max, tail_max, oldest: 0, omitted_bytes: 0 }
    }

    fn max(&self) -> usize {
        self.head_max.saturating_add(self.tail_max)
    }

    fn append(&mut self, new: &[u8]) {
        let (first, rest) = new.split_at(new.len().min(self.max() - self.bytes.len()));
        self.bytes.extend_from_slice(first);
        self.omitted_bytes += rest.len() as u64;
        let tail = self.bytes.get_mut(self.head_max..).unwrap_or_default();
        if rest.is_empty() || tail.is_empty() {
            return;
        }
        let last = &rest[rest.len().saturating_sub(tail.len())..];
        let (until_end, from_start) = last.split_at(last.len().min(tail.len() - self.oldest));
        tail[self.oldest..][..until_end.len()].copy_from_slice(until_end);
        tail[..from_start.len()].copy_from_slice(from_start);
        self.oldest = (self.oldest + last.len()) % tail.len();
    }

    fn into_bytes(mut self) -> (Vec<u8>, u64) {
        if let Some(tail) = self.bytes.get_mut(self.head_max..) {
            tail.rotate_left(self.oldest);
        }
        (self.bytes, self.omitted_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{pipe, set_nonblocking};
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
    fn one_turn_takes_its_share_of_a_pipe_and_no_more() {
        let (mut capture, mut writer) = capture(None);
        rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
        capture.sink.buffer().unwrap().0.reserve(1 << 20);
        writer.write_all(&[7; 300_000]).unwrap();
        assert_eq!(capture.pump(false), Pumped::More);
        assert_eq!(capture.take_count(), PIPE_TURN_BYTES as u64);
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
                    sink.append(part);
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
}
