//! What a job writes, taken line by line as it comes (`--line-buffer`). Knows pipes, not jobs.

use std::os::fd::AsFd;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::termios::isatty;

/// How much is read of one stream before others have their turn.
const READ_MAX_BYTES: usize = 64 << 10;
/// So many reads empty a terminal.
const TERMINAL_READS_MAX: u64 = 32;
/// A line that is longer is printed in parts.
const LINE_HELD_MAX_BYTES: usize = 1 << 20;

/// Our ends of a job's stdout and stderr.
#[derive(Debug)]
pub(crate) struct Streams {
    ends: Ends,
    /// The begun line of each.
    begun: [Vec<u8>; 2],
    /// The number by which the hub knows the first of them.
    pub(crate) number: u64,
    /// How much came from stdout.
    pub(crate) bytes: u64,
    /// Somebody still held one of them when it was cut.
    pub(crate) held_open: bool,
}

/// Of stdout and stderr; a terminal has both in one.
pub(crate) type Ends = [Option<OwnedFd>; 2];

/// What reading came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Whole lines; perhaps none.
    Lines(Vec<u8>),
    /// It has ended, with these.
    End(Vec<u8>),
}

impl Streams {
    pub(crate) fn new(ends: Ends, number: u64) -> std::io::Result<Streams> {
        for end in ends.iter().flatten() {
            // The job's end is another file description and stays blocking.
            fcntl_setfl(end, OFlags::NONBLOCK)?;
        }
        Ok(Streams { ends, begun: [Vec::new(), Vec::new()], number, bytes: 0, held_open: false })
    }

    pub(crate) fn end(&self, which: usize) -> Option<BorrowedFd<'_>> {
        self.ends[which].as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn are_done(&self) -> bool {
        self.ends.iter().all(Option::is_none)
    }

    pub(crate) fn read(&mut self, which: usize) -> Read {
        let Some(end) = &self.ends[which] else {
            return Read::Lines(Vec::new());
        };
        let mut chunk = vec![0; READ_MAX_BYTES];
        match rustix::io::read(end, &mut chunk) {
            Ok(0) => self.close(which),
            Ok(length) => {
                self.bytes += if which == 0 { length as u64 } else { 0 };
                Read::Lines(self.whole_lines(which, &chunk[..length]))
            }
            Err(Errno::AGAIN | Errno::INTR) => Read::Lines(Vec::new()),
            Err(_) => self.close(which),
        }
    }

    /// Reads what is there and no more: somebody else holds it open.
    pub(crate) fn cut(&mut self, which: usize) -> Vec<u8> {
        let mut lines = Vec::new();
        for _ in 0..self.reads_left(which) {
            if let Read::Lines(some) = self.read(which) {
                lines.extend(some);
            }
        }
        self.held_open |= self.is_held(which);
        if let Read::End(rest) = self.close(which) {
            lines.extend(rest);
        }
        lines
    }

    /// How many reads take what is there.
    fn reads_left(&self, which: usize) -> u64 {
        match &self.ends[which] {
            // It does not tell how much it holds.
            Some(end) if isatty(end) => TERMINAL_READS_MAX,
            Some(end) => rustix::io::ioctl_fionread(end).unwrap_or(0).div_ceil(READ_MAX_BYTES as u64),
            None => 0,
        }
    }

    /// Whether a writer is left.
    fn is_held(&self, which: usize) -> bool {
        self.ends[which].as_ref().is_some_and(|end| {
            let mut fds = [PollFd::new(end, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let _ = poll(&mut fds, Some(&now));
            !fds[0].revents().contains(PollFlags::HUP)
        })
    }

    fn close(&mut self, which: usize) -> Read {
        self.ends[which] = None;
        Read::End(std::mem::take(&mut self.begun[which]))
    }

    /// The lines that `chunk` completes; what was begun before has no newline.
    fn whole_lines(&mut self, which: usize, chunk: &[u8]) -> Vec<u8> {
        let begun = &mut self.begun[which];
        let before = begun.len();
        begun.extend_from_slice(chunk);
        let end = match chunk.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => before + newline + 1,
            None if begun.len() > LINE_HELD_MAX_BYTES => begun.len(),
            None => 0,
        };
        let rest = begun.split_off(end);
        std::mem::replace(begun, rest)
    }
}
