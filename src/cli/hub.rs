//! The one place where the program waits: the reactor, signals, other threads, jobs' pipes, in one epoll set. Knows descriptors and tokens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// How many events are taken at once.
const EVENTS_MAX: usize = 256;

/// What something happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Reactor,
    Signals,
    Waker,
    /// Nobody reads our standard output any more.
    Stdout,
    /// A stream of a job, by a number of the caller's.
    Stream(u64),
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Token::Reactor => 0,
            Token::Signals => 1,
            Token::Waker => 2,
            Token::Stdout => 3,
            Token::Stream(number) => number + 4,
        }
    }

    fn unpack(bits: u64) -> Token {
        match bits {
            0 => Token::Reactor,
            1 => Token::Signals,
            2 => Token::Waker,
            3 => Token::Stdout,
            number => Token::Stream(number - 4),
        }
    }
}

/// An epoll set; level-triggered, so nothing is lost by serving only a part of it.
pub(crate) struct Hub {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Hub {
    pub(crate) fn new() -> io::Result<Hub> {
        Ok(Hub { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(EVENTS_MAX) })
    }

    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.pack()), epoll::EventFlags::IN)?)
    }

    /// Tells when the other end is gone; errors and hangups are reported without being asked for. A file has no other end.
    pub(crate) fn watch_for_hangup(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        match epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.pack()), epoll::EventFlags::empty()) {
            Err(Errno::PERM | Errno::BADF) => Ok(()),
            other => Ok(other?),
        }
    }

    pub(crate) fn forget(&self, fd: impl AsFd) {
        // It fails only for what is not in the set.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits at most `timeout` (`None`: for ever) and says what happened.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        let timeout = timeout.map(|span| Timespec {
            tv_sec: span.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: span.subsec_nanos().into(),
        });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => Ok(self.events.iter().map(|event| Token::unpack(event.data.u64())).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
