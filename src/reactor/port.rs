//! A descriptor that a future reads or writes and the loop only watches: when it is ready the future is woken. Knows no child; what is
//! read or written it does not see.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use mio::Interest;
use slab::Slab;

use super::core::{Core, check_room, next_generation};
use crate::error::{Error, ErrorKind, Result};
use crate::tell::wake;
use crate::token::{Kind, Token};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// A watched descriptor in its user's hands. Dropped, it leaves the epoll set before it is closed.
#[derive(Debug)]
pub(crate) struct Port {
    core: Arc<Core>,
    token: Token,
    bell: Arc<Bell>,
    /// `None` only while it is given back.
    fd: Option<Arc<OwnedFd>>,
}

/// What the loop and the future share.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// How often it has rung. Read before the descriptor is tried and compared under the lock before the waker is put there: an edge in
    /// between is seen by one of the two.
    rings: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    waker: Option<Waker>,
    /// The loop is gone and nobody will ring.
    died: bool,
}

/// All of a reactor's, by their slots.
pub(crate) type Ports = Slab<Entry>;

#[derive(Debug)]
pub(crate) struct Entry {
    generation: u64,
    way: Way,
    bell: Arc<Bell>,
    fd: Arc<OwnedFd>,
}

impl Port {
    /// Watches `fd`, which does not block, from now on.
    pub(crate) fn new(core: &Arc<Core>, fd: OwnedFd, way: Way) -> Result<Port> {
        core.check_ours()?;
        let (fd, bell) = (Arc::new(fd), Arc::new(Bell::default()));
        let entry = Entry { generation: next_generation(), way, bell: bell.clone(), fd: fd.clone() };
        let generation = entry.generation;
        let mut ports = core.ports();
        if core.is_dead() {
            return Err(Error::new(ErrorKind::ReactorDied));
        }
        check_room(&ports)?;
        let token = Token::new(Kind::Port, generation, ports.insert(entry) as u32);
        if let Err(error) = core.register(fd.as_fd(), token, way.interest()) {
            ports.remove(token.slot() as usize);
            return Err(error);
        }
        drop(ports);
        Ok(Port { core: core.clone(), token, bell, fd: Some(fd) })
    }

    pub(crate) fn check_ours(&self) -> Result<()> {
        self.core.check_ours()
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// No longer watched.
    pub(crate) fn into_fd(mut self) -> Result<OwnedFd> {
        self.check_ours()?;
        let fd = self.close();
        // The table's entry is gone, and nobody clones what is there: this is the last one.
        Ok(fd.and_then(Arc::into_inner).expect("held until it is given back, here alone"))
    }

    fn close(&mut self) -> Option<Arc<OwnedFd>> {
        let fd = self.fd.take()?;
        // A forked copy: an `EPOLL_CTL_DEL` would silence the parent, and a lock may be held for ever.
        if self.core.is_ours() {
            self.core.deregister(fd.as_fd());
            let mut ports = self.core.ports();
            let slot = self.token.slot() as usize;
            let entry = ports.contains(slot).then(|| ports.remove(slot));
            drop(ports);
            drop(entry);
            self.bell.forget();
        }
        Some(fd)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("held until it is given back").as_fd()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.close();
    }
}

impl Way {
    fn interest(self) -> Interest {
        match self {
            Way::Read => Interest::READABLE,
            Way::Write => Interest::WRITABLE,
        }
    }
}

impl Bell {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rings(&self) -> u64 {
        self.rings.load(Ordering::Acquire)
    }

    /// Has `waker` woken at the next ring; false if it has rung since `rings` was read.
    pub(crate) fn wait(&self, rings: u64, waker: &Waker) -> Result<bool> {
        let mut waiting = self.waiting();
        if waiting.died {
            return Err(Error::new(ErrorKind::ReactorDied));
        }
        if waiting.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            return Ok(self.rings() == rings);
        }
        drop(waiting);
        // Cloned and dropped outside the lock: a waker is somebody else's code.
        let mut waker = Some(waker.clone());
        waiting = self.waiting();
        std::mem::swap(&mut waiting.waker, &mut waker);
        let (died, unchanged) = (waiting.died, self.rings() == rings);
        drop(waiting);
        drop(waker);
        if died { Err(Error::new(ErrorKind::ReactorDied)) } else { Ok(unchanged) }
    }

    /// Nobody waits any more.
    pub(crate) fn forget(&self) {
        let waker = self.waiting().waker.take();
        drop(waker);
    }

    /// On the loop, with no lock held.
    pub(crate) fn ring(&self) {
        let mut waiting = self.waiting();
        self.rings.fetch_add(1, Ordering::AcqRel);
        let waker = waiting.waker.take();
        drop(waiting);
        waker.into_iter().for_each(wake);
    }

    fn die(&self) {
        self.waiting().died = true;
        self.ring();
    }
}

impl Core {
    pub(super) fn ring(&self, token: Token) {
        // A stale token is expected: it was dropped meanwhile.
        let bell = {
            let ports = self.ports();
            let entry = ports.get(token.slot() as usize).filter(|entry| entry.generation == token.generation());
            entry.map(|entry| entry.bell.clone())
        };
        bell.into_iter().for_each(|bell| bell.ring());
    }

    /// Nobody will ring any more.
    pub(super) fn silence_ports(&self) {
        let bells: Vec<Arc<Bell>> = self.ports().iter().map(|(_, entry)| entry.bell.clone()).collect();
        bells.iter().for_each(|bell| bell.die());
    }

    /// Every edge that a loop has swallowed comes again.
    pub(super) fn watch_ports_again(&self) {
        for (slot, entry) in self.ports().iter() {
            self.deregister(entry.fd.as_fd());
            let token = Token::new(Kind::Port, entry.generation, slot as u32);
            // It was there a moment ago: its place in the kernel's memory is free again.
            let _ = self.register(entry.fd.as_fd(), token, entry.way.interest());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between a `read` that found nothing and the waker that is left: then nobody would come a second time.
    #[test]
    fn a_ring_in_between_is_seen() {
        let bell = Bell::default();
        for _ in 0..2 {
            let rings = bell.rings();
            bell.ring();
            assert!(!bell.wait(rings, Waker::noop()).unwrap());
            // The second time the waker is known.
            assert!(bell.wait(bell.rings(), Waker::noop()).unwrap());
            let rings = bell.rings();
            bell.rings.fetch_add(1, Ordering::AcqRel);
            assert!(!bell.wait(rings, Waker::noop()).unwrap());
        }
        bell.die();
        assert_eq!(bell.wait(bell.rings(), Waker::noop()).unwrap_err().kind(), ErrorKind::ReactorDied);
    }
}
