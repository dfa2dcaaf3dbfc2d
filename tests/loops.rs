//! The caller-turned reactor in other people's loops (promises 11 and 12): raw epoll, mio, calloop, polling, tokio's `AsyncFd`. Knows the
//! public API and those loops; no thread of ours is there.
//!
//! A *host iteration* is one return of the host's own wait, whatever it returned for, and the turn that follows it. An *event* is what
//! the kernel has to say to the reactor: an exit, a deadline, the eventfd of a context that ended. Two things are counted and held:
//!
//! - **Never late.** Whose pidfd was readable before the host began to wait (asked of the kernel, through a pidfd of the test's own) has
//!   been reported when that wait has returned and the turn is over. A wait that does not return is the same failure: an edge was lost.
//! - **Never idle.** The host came round no more often than there were events, and one percent.

mod common;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use common::{SOON, children_of_ours, in_own_process, open_descriptors, threads};
use pidloop::{Cause, ChildId, Command, Context, Ended, Reactor, Signal, Stdio};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Of a thousand: those that end by themselves; those whose time is up, each at a moment of its own; those that a context ends.
const FREE: usize = 700;
const TIMED: usize = 200;
const CANCELLED: usize = 100;
const CHILDREN: usize = FREE + TIMED + CANCELLED;
const EVENTS: usize = CHILDREN + TIMED + 1;

/// A thousand children of a reactor, and what its host has made of them.
struct Crowd {
    pidfds: HashMap<ChildId, OwnedFd>,
    request: Context,
    threads: usize,
    due: Vec<ChildId>,
    iterations: usize,
    ended: [usize; 3],
}

impl Crowd {
    fn start(reactor: &mut Reactor) -> Crowd {
        let threads = threads();
        let (gate, opener) = common::pipe();
        let request = Context::new();
        let mut pidfds = HashMap::new();
        for i in 0..CHILDREN {
            let mut command = Command::new(if i < FREE { "cat" } else { "sleep" });
            // What a failed test leaves behind would hold its stderr.
            command.stdin(gate.try_clone().unwrap()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            if i >= FREE {
                command.arg("3600");
            }
            if i >= CHILDREN - CANCELLED {
                command.context(&request);
            } else if i >= FREE {
                command.timeout(Duration::from_millis(100 + i as u64 % 200));
            }
            let id = reactor.spawn(&command).unwrap();
            // Nobody reaps before the first turn: the number is still its own.
            let pid = Pid::from_raw(reactor.pid(id).unwrap() as i32).unwrap();
            pidfds.insert(id, pidfd_open(pid, PidfdFlags::empty()).unwrap());
        }
        drop(opener);
        Crowd { pidfds, request, threads, due: Vec::new(), iterations: 0, ended: [0; 3] }
    }

    fn is_left(&self) -> bool {
        !self.pidfds.is_empty()
    }

    /// The host is about to wait: who is dead by now must be reported when it comes round.
    fn before_the_wait(&mut self) {
        let (ids, fds): (Vec<ChildId>, Vec<&OwnedFd>) = self.pidfds.iter().map(|(id, fd)| (*id, fd)).unzip();
        let mut asked: Vec<PollFd<'_>> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        retry_on_intr(|| poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))).unwrap();
        self.due = ids.into_iter().zip(&asked).filter(|(_, fd)| !fd.revents().is_empty()).map(|(id, _)| id).collect();
    }

    /// The host's wait has returned. `heard`: it said that the reactor's descriptor is readable.
    fn came_round(&mut self, heard: bool, reactor: &mut Reactor) {
        self.iterations += 1;
        if heard {
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        while let Some(ended) = reactor.next_exit() {
            assert!(self.pidfds.remove(&ended.id()).is_some(), "reported twice");
            self.count(&ended);
        }
        let late = self.due.iter().filter(|id| self.pidfds.contains_key(id)).count();
        assert_eq!(
            late,
            0,
            "not reported, of {} that were readable before iteration {}",
            self.due.len(),
            self.iterations
        );
        assert_eq!(threads(), self.threads, "a thread was started");
        if self.ended[0] >= FREE / 2 {
            self.request.cancel();
        }
    }

    fn count(&mut self, ended: &Ended) {
        let exit = ended.exit();
        let killed = exit.signal() == Some(Signal::SIGKILL);
        let which = match exit.cause() {
            None if exit.success() => 0,
            Some(Cause::DeadlineExceeded) if killed => 1,
            Some(Cause::Cancelled) if killed => 2,
            _ => panic!("{exit:?}"),
        };
        self.ended[which] += 1;
    }

    fn judge(self, reactor: &Reactor) {
        assert_eq!(self.ended, [FREE, TIMED, CANCELLED]);
        assert!(self.iterations <= EVENTS * 101 / 100, "{} iterations for {EVENTS} events", self.iterations);
        assert!(reactor.is_empty());
        assert_eq!(children_of_ours(), []);
    }
}

/// In a process of its own, which has as many descriptors at the end as at the beginning.
fn alone(name: &str, body: impl Fn()) {
    in_own_process(name, || {
        pidloop::init().unwrap();
        let _ = pidloop::raise_nofile();
        let before = open_descriptors();
        body();
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn raw_epoll() {
    alone("raw_epoll", || {
        for mode in [epoll::EventFlags::empty(), epoll::EventFlags::ET] {
            let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let mut reactor = Reactor::new().unwrap();
            epoll::add(&outer, &reactor, epoll::EventData::new_u64(1), epoll::EventFlags::IN | mode).unwrap();
            let mut crowd = Crowd::start(&mut reactor);
            let mut events = [epoll::Event { flags: mode, data: epoll::EventData::new_u64(0) }; 4];
            while crowd.is_left() {
                crowd.before_the_wait();
                let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
                let n = retry_on_intr(|| epoll::wait(&outer, &mut events[..], Some(&limit))).unwrap();
                assert!(n > 0, "nothing is heard");
                crowd.came_round(true, &mut reactor);
            }
            crowd.judge(&reactor);
        }
    });
}

#[test]
fn in_mio() {
    alone("in_mio", || {
        let mut host = mio::Poll::new().unwrap();
        let mut reactor = Reactor::new().unwrap();
        let fd = reactor.as_raw_fd();
        let mut source = mio::unix::SourceFd(&fd);
        host.registry().register(&mut source, mio::Token(7), mio::Interest::READABLE).unwrap();
        let mut crowd = Crowd::start(&mut reactor);
        let mut events = mio::Events::with_capacity(8);
        while crowd.is_left() {
            crowd.before_the_wait();
            match host.poll(&mut events, Some(SOON)) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                result => result.unwrap(),
            }
            assert!(!events.is_empty(), "nothing is heard");
            crowd.came_round(events.iter().any(|event| event.token() == mio::Token(7)), &mut reactor);
        }
        host.registry().deregister(&mut source).unwrap();
        crowd.judge(&reactor);
    });
}

#[test]
fn in_calloop() {
    use calloop::generic::Generic;
    use calloop::{EventLoop, Interest, Mode, PostAction};
    alone("in_calloop", || {
        for mode in [Mode::Level, Mode::Edge] {
            let mut host: EventLoop<'_, bool> = EventLoop::try_new().unwrap();
            let mut reactor = Reactor::new().unwrap();
            let source = Generic::new(reactor.as_fd().try_clone_to_owned().unwrap(), Interest::READ, mode);
            let heard = |_: calloop::Readiness, _: &mut _, heard: &mut bool| {
                *heard = true;
                Ok(PostAction::Continue)
            };
            host.handle().insert_source(source, heard).unwrap();
            let mut crowd = Crowd::start(&mut reactor);
            while crowd.is_left() {
                crowd.before_the_wait();
                let mut heard = false;
                host.dispatch(SOON, &mut heard).unwrap();
                assert!(heard, "nothing is heard");
                crowd.came_round(heard, &mut reactor);
            }
            crowd.judge(&reactor);
        }
    });
}

#[test]
fn in_polling() {
    use polling::{Event, Events, PollMode, Poller};
    alone("in_polling", || {
        for mode in [PollMode::Oneshot, PollMode::Edge] {
            let host = Poller::new().unwrap();
            let mut reactor = Reactor::new().unwrap();
            // SAFETY: it is deleted from the poller before it is dropped.
            unsafe { host.add_with_mode(reactor.as_raw_fd(), Event::readable(7), mode) }.unwrap();
            let mut crowd = Crowd::start(&mut reactor);
            let mut events = Events::new();
            while crowd.is_left() {
                crowd.before_the_wait();
                events.clear();
                host.wait(&mut events, Some(SOON)).unwrap();
                assert!(!events.is_empty(), "nothing is heard");
                crowd.came_round(events.iter().any(|event| event.key == 7 && event.readable), &mut reactor);
                if mode == PollMode::Oneshot {
                    host.modify(&reactor, Event::readable(7)).unwrap();
                }
            }
            host.delete(&reactor).unwrap();
            crowd.judge(&reactor);
        }
    });
}

#[test]
fn in_tokio() {
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;
    alone("in_tokio", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            #[allow(deprecated, reason = "its successor, of tokio 1.54, is unsafe")]
            let mut host = AsyncFd::with_interest(Reactor::new().unwrap(), Interest::READABLE).unwrap();
            let mut crowd = Crowd::start(host.get_mut());
            while crowd.is_left() {
                crowd.before_the_wait();
                let mut guard =
                    tokio::time::timeout(SOON, host.readable_mut()).await.expect("nothing is heard").unwrap();
                // Cleared first: what comes during the turn is not lost.
                guard.clear_ready();
                crowd.came_round(true, guard.get_inner_mut());
            }
            crowd.judge(host.get_ref());
        });
    });
}
