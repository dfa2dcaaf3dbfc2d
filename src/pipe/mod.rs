//! Our ends of a child's pipes: what they are, how they end, feeding stdin. Knows descriptors and buffers; knows no child and no epoll.

pub(crate) mod capture;
pub(crate) mod copier;
pub(crate) mod spool;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::sys::process::write_without_sigpipe;

/// How much is moved through one pipe before others have their turn. A child that is killed cannot end, either, while its pipe is read.
pub(crate) const PIPE_TURN_BYTES: usize = 64 << 10;
/// How much is written to one child's stdin in a turn.
const FEED_TURN_BYTES: usize = 256 << 10;
/// What a busy pipe is enlarged to.
const PIPE_MAX_BYTES: usize = 256 << 10;
/// A read of this much found the pipe full: the writer is faster than we come round.
const PIPE_FULL_BYTES: usize = 64 << 10;
/// Found full so often in all it is busy.
const FULL_TIMES: u8 = 3;

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
    /// Something came that nobody takes any more: [`Capture::complaint`](capture::Capture::complaint) says why.
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
    /// How often it was found full; no more than what makes it busy.
    full_times: u8,
    /// Read, and not counted yet.
    uncounted_bytes: u64,
}

impl<F: AsFd> Source<F> {
    fn new(fd: F) -> Source<F> {
        Source { fd, owed_bytes: None, terminal: false, full_times: 0, uncounted_bytes: 0 }
    }

    /// `read` reads from the descriptor once, and says how much.
    fn read(&mut self, read: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
        let n = read(self.fd.as_fd())?;
        self.uncounted_bytes += n as u64;
        if let Some(owed) = &mut self.owed_bytes {
            *owed = owed.saturating_sub(n);
        }
        Ok(n)
    }

    /// To be called after a read of `n` bytes into memory that has not been used yet, each page of which has to be found first: then a pipe that
    /// holds more lets the writer go on meanwhile. One that is emptied into the same memory again and again is best as it is: what it holds
    /// stays in the processor's cache.
    fn enlarge_if_busy(&mut self, n: usize) {
        if n < PIPE_FULL_BYTES || self.full_times >= FULL_TIMES {
            return;
        }
        self.full_times += 1;
        if self.full_times == FULL_TIMES {
            // Refused where the user's share of pipe memory is used up; then it stays as it is.
            let _ = fcntl_setpipe_size(&self.fd, PIPE_MAX_BYTES);
        }
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
            if self.written_bytes - start >= FEED_TURN_BYTES {
                return Pumped::More;
            }
            let end = self.bytes.len().min(self.written_bytes + FEED_TURN_BYTES);
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
    use super::*;

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
