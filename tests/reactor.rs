//! Promises 11, 12 and 14 in the loop that a caller turns: ids, descriptors, nesting in a bare epoll loop. Knows the public API and epoll.

mod common;

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{
    SOON, beside, children_of_ours, eventually, exists, in_own_process, sh, suspend_exec, thread_sleeps, threads,
};
use pidloop::{Cause, Command, Context, Ended, ErrorKind, Reactor, Signal, Stdio};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::retry_on_intr;

fn next(reactor: &mut Reactor) -> Ended {
    let start = Instant::now();
    loop {
        if let Some(ended) = reactor.next_exit() {
            return ended;
        }
        assert!(start.elapsed() < SOON, "nothing ends");
        reactor.turn(Some(SOON)).unwrap();
    }
}

fn is_readable(reactor: &Reactor) -> bool {
    let mut fds = [PollFd::new(reactor, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

#[test]
fn each_child_is_reported_once() {
    let mut reactor = Reactor::new().unwrap();
    let ids: HashSet<_> = (0..50).map(|i| reactor.spawn(&sh(&format!("exit {i}"))).unwrap()).collect();
    assert_eq!((ids.len(), reactor.len()), (50, 50));
    let mut codes = HashSet::new();
    while !reactor.is_empty() {
        let ended = next(&mut reactor);
        assert!(ids.contains(&ended.id()));
        assert!(codes.insert(ended.exit().code().unwrap()));
    }
    assert_eq!(codes.len(), 50);
    assert!(reactor.next_exit().is_none());
}

#[test]
fn it_takes_no_thread() {
    in_own_process("it_takes_no_thread", || {
        let before = threads();
        let mut reactor = Reactor::new().unwrap();
        let ctx = Context::new();
        for _ in 0..10 {
            reactor.spawn(Command::new("sleep").arg("60").context(&ctx).stdout(Stdio::captured())).unwrap();
        }
        assert_eq!(threads(), before);
        ctx.cancel();
        while !reactor.is_empty() {
            assert_eq!(next(&mut reactor).exit().cause(), Some(&Cause::Cancelled));
        }
        assert_eq!(threads(), before);
    });
}

#[test]
fn a_child_is_reached_by_its_id_until_it_is_reported() {
    let mut reactor = Reactor::new().unwrap();
    let id = reactor.spawn(&sh("exec sleep 60")).unwrap();
    assert!(reactor.pid(id).is_some_and(exists));
    reactor.signal(id, Signal::SIGTERM).unwrap();
    reactor.turn(Some(SOON)).unwrap();
    // Dead, not reported: too late, and no error.
    eventually("it is seen", || {
        reactor.turn(Some(Duration::ZERO)).unwrap();
        reactor.signal(id, Signal::SIGTERM).is_ok() && reactor.next_exit().is_some_and(|ended| ended.id() == id)
    });
    assert_eq!(reactor.kill(id).unwrap_err().kind(), ErrorKind::NoSuchChild);
    assert_eq!(reactor.terminate(id, SOON).unwrap_err().kind(), ErrorKind::NoSuchChild);
    assert_eq!(reactor.pid(id), None);
    assert!(reactor.take_stdin(id).is_none());
}

#[test]
fn an_id_of_another_reactor_names_nobody() {
    let mut one = Reactor::new().unwrap();
    let mut other = Reactor::new().unwrap();
    let id = one.spawn(&sh("exec sleep 60")).unwrap();
    let stranger = other.spawn(&sh("exec sleep 60")).unwrap();
    assert_eq!(one.kill(stranger).unwrap_err().kind(), ErrorKind::NoSuchChild);
    one.kill(id).unwrap();
    other.kill(stranger).unwrap();
    next(&mut one);
    next(&mut other);
}

#[test]
fn captured_streams_and_taken_streams() {
    let mut reactor = Reactor::new().unwrap();
    let id =
        reactor.spawn(Command::new("cat").stdin(Stdio::bytes(vec![b'x'; 1 << 20])).stdout(Stdio::captured())).unwrap();
    let ended = next(&mut reactor);
    assert_eq!((ended.id(), ended.into_output().stdout.len()), (id, 1 << 20));

    let id = reactor.spawn(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    let mut stdin = reactor.take_stdin(id).unwrap();
    let mut stdout = reactor.take_stdout(id).unwrap();
    std::io::Write::write_all(&mut stdin, b"taken").unwrap();
    drop(stdin);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    assert_eq!(text, "taken");
    assert!(next(&mut reactor).exit().success());
}

#[test]
fn the_descriptor_alone_is_enough_for_deadlines() {
    let mut reactor = Reactor::new().unwrap();
    let limit = Duration::from_millis(60);
    let start = Instant::now();
    reactor.spawn(Command::new("sleep").arg("60").timeout(limit)).unwrap();
    assert!(reactor.next_timeout().is_some_and(|left| left <= limit));
    let mut turns = 0;
    let ended = loop {
        // Only the kernel wakes us: no timeout of our own.
        retry_on_intr(|| poll(&mut [PollFd::new(&reactor, PollFlags::IN)], None)).unwrap();
        reactor.turn(Some(Duration::ZERO)).unwrap();
        turns += 1;
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
    };
    assert!(start.elapsed() >= limit);
    assert!(turns <= 4, "{turns}");
    assert_eq!(ended.exit().cause(), Some(&Cause::DeadlineExceeded));
    assert!(!is_readable(&reactor));
}

#[test]
fn a_remote_spawns_and_signals_from_other_threads() {
    let mut reactor = Reactor::new().unwrap();
    let remote = reactor.remote();
    let thread = std::thread::spawn(move || {
        let id = remote.spawn(&sh("exec sleep 60")).unwrap();
        remote.terminate(id, SOON).unwrap();
        id
    });
    let ended = next(&mut reactor);
    assert_eq!(ended.id(), thread.join().unwrap());
    assert_eq!((ended.exit().signal(), ended.exit().cause()), (Some(Signal::SIGTERM), Some(&Cause::Terminated)));
}

#[test]
fn a_remote_of_a_reactor_that_is_gone_says_so() {
    let reactor = Reactor::new().unwrap();
    let remote = reactor.remote();
    drop(reactor);
    assert_eq!(remote.spawn(&sh("true")).unwrap_err().kind(), ErrorKind::ShutDown);
}

#[test]
fn a_turn_is_bounded_and_an_edge_triggered_outer_loop_hears_of_the_rest() {
    let mut reactor = Reactor::new().unwrap();
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&outer, &reactor, epoll::EventData::new_u64(1), epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
    // More than a turn's budget of one pipe.
    let mut command = Command::new("head");
    command.args(["-c", "8000000", "/dev/zero"]).stdout(Stdio::captured());
    reactor.spawn(&command).unwrap();
    let mut events = [epoll::Event { flags: epoll::EventFlags::IN, data: epoll::EventData::new_u64(0) }; 4];
    let ended = loop {
        let n =
            retry_on_intr(|| epoll::wait(&outer, &mut events[..], Some(&Timespec { tv_sec: 20, tv_nsec: 0 }))).unwrap();
        assert!(n > 0, "the outer loop hears nothing");
        reactor.turn(Some(Duration::ZERO)).unwrap();
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
    };
    assert_eq!(ended.into_output().stdout.len(), 8_000_000);
}

/// More of them than one turn stops.
#[test]
fn a_cancel_in_slices_is_heard_by_an_edge_triggered_outer_loop() {
    const CHILDREN: usize = 2500;
    let mut reactor = Reactor::new().unwrap();
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    epoll::add(&outer, &reactor, epoll::EventData::new_u64(1), epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
    let ctx = Context::new();
    let mut command = Command::new("sleep");
    command.arg("3600").context(&ctx).stdin(Stdio::null());
    for _ in 0..CHILDREN {
        reactor.spawn(&command).unwrap();
    }
    ctx.cancel();
    let mut events = [epoll::Event { flags: epoll::EventFlags::IN, data: epoll::EventData::new_u64(0) }; 4];
    let mut ended = 0;
    while ended < CHILDREN {
        let n =
            retry_on_intr(|| epoll::wait(&outer, &mut events[..], Some(&Timespec { tv_sec: 20, tv_nsec: 0 }))).unwrap();
        assert!(n > 0, "the outer loop hears nothing of {} children", CHILDREN - ended);
        reactor.turn(Some(Duration::ZERO)).unwrap();
        while let Some(child) = reactor.next_exit() {
            assert_eq!(child.exit().cause(), Some(&Cause::Cancelled));
            ended += 1;
        }
    }
}

/// A child that is being started counts as not reported; if it comes to nothing the loop comes round.
#[test]
fn a_spawn_that_fails_elsewhere_ends_a_turn() {
    in_own_process("a_spawn_that_fails_elsewhere_ends_a_turn", || {
        let garbage = std::env::temp_dir().join(format!("pidloop-{}-garbage", std::process::id()));
        std::fs::write(&garbage, "\u{1}\u{2}garbage").unwrap();
        std::fs::set_permissions(&garbage, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let suspended = suspend_exec(&garbage);
        let mut reactor = Reactor::new().unwrap();
        let remote = reactor.remote();
        std::thread::scope(|scope| {
            let spawning = scope.spawn(|| remote.spawn(&Command::new(&garbage)));
            eventually("it is being started", || reactor.len() == 1);
            beside(
                "turner",
                || {
                    while !reactor.is_empty() {
                        reactor.turn(None).unwrap();
                    }
                },
                || {
                    eventually("the loop sleeps", || thread_sleeps("turner"));
                    drop(suspended);
                },
            );
            assert_eq!(spawning.join().unwrap().unwrap_err().kind(), ErrorKind::Exec);
        });
        std::fs::remove_file(garbage).unwrap();
    });
}

#[test]
fn dropping_it_kills_what_asked_for_it_and_leaves_the_rest_to_the_default_driver() {
    in_own_process("dropping_it_kills_what_asked_for_it_and_leaves_the_rest_to_the_default_driver", || {
        let mut reactor = Reactor::new().unwrap();
        let killed = reactor.spawn(Command::new("sleep").arg("60").kill_on_drop(true)).unwrap();
        let timed = reactor.spawn(Command::new("sleep").arg("60").timeout(Duration::from_millis(300))).unwrap();
        let (killed, timed) = (reactor.pid(killed).unwrap(), reactor.pid(timed).unwrap());
        drop(reactor);
        eventually("it is killed and reaped", || !exists(killed));
        assert!(exists(timed));
        // Its deadline is kept, and it is reaped.
        eventually("it is stopped and reaped", || !exists(timed));
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn shutdown_lets_end_then_stops_then_kills() {
    let mut reactor = Reactor::new().unwrap();
    reactor.spawn(&sh("exit 0")).unwrap();
    reactor.spawn(&sh("exec sleep 60")).unwrap();
    let mut stubborn = sh("trap '' TERM; echo ready; while :; do sleep 0.01; done");
    let id = reactor.spawn(stubborn.stdout(Stdio::piped()).cancel(pidloop::Cancel::Signal(Signal::SIGTERM))).unwrap();
    let mut stdout = reactor.take_stdout(id).unwrap();
    std::io::Read::read_exact(&mut stdout, &mut [0; 6]).unwrap();
    let survivors = reactor.shutdown(Duration::from_millis(100), Duration::from_millis(100));
    assert!(survivors.is_empty(), "{survivors:?}");
    assert_eq!(reactor.spawn(&sh("true")).unwrap_err().kind(), ErrorKind::ShutDown);
    let mut ended = Vec::new();
    while let Some(child) = reactor.next_exit() {
        ended.push((child.exit().signal(), child.exit().cause().cloned()));
    }
    ended.sort_by_key(|(signal, cause)| (signal.map(Signal::as_raw), cause.is_some()));
    let stopped = (Some(Signal::SIGKILL), Some(Cause::ShutDown));
    assert_eq!(ended, [(None, None), stopped.clone(), stopped]);
}

#[test]
fn its_descriptor_can_be_borrowed() {
    let reactor = Reactor::new().unwrap();
    let _ = reactor.as_fd();
    assert!(!is_readable(&reactor));
}

/// Its pidfd is readable all the time, and nobody can wait for it: the loop hears of that once, and of its end.
#[test]
fn a_traced_child_costs_no_turns_until_its_tracer_lets_go() {
    const NAME: &str = "a_traced_child_costs_no_turns_until_its_tracer_lets_go";
    in_own_process(NAME, || {
        let mut reactor = Reactor::new().unwrap();
        let id = reactor.spawn(Command::new("sleep").arg("60")).unwrap();
        let pid = reactor.pid(id).unwrap();
        let (mut told, tell) = common::pipe();
        let (listen, let_go) = common::pipe();
        // SAFETY: the copy makes system calls alone.
        let tracer = unsafe { libc::fork() };
        if tracer == 0 {
            trace(pid as i32, &tell, &listen, &let_go);
        }
        drop((tell, listen));
        let mut seized = [0];
        std::io::Read::read_exact(&mut told, &mut seized).unwrap();
        if seized == [0] {
            reactor.kill(id).unwrap();
            return common::skip(NAME, "it may not be traced");
        }
        reactor.kill(id).unwrap();
        eventually("it is dead", || common::state(pid) == Some('Z'));
        let mut turns = 0;
        while is_readable(&reactor) {
            reactor.turn(Some(Duration::ZERO)).unwrap();
            turns += 1;
            assert!(turns <= 4, "it spins");
        }
        assert!(reactor.next_exit().is_none());
        reactor.terminate(id, Duration::ZERO).unwrap();
        drop(let_go);
        let ended = next(&mut reactor);
        assert_eq!((ended.exit().signal(), ended.exit().cause()), (Some(Signal::SIGKILL), None));
        // SAFETY: waitpid(2) for that child alone.
        unsafe { libc::waitpid(tracer, std::ptr::null_mut(), 0) };
    });
}

/// Says whether it could seize it, and holds it until nobody has the other end of `listen` any more. ptrace(2).
fn trace(pid: i32, tell: &std::fs::File, listen: &std::fs::File, let_go: &std::fs::File) -> ! {
    use std::os::fd::AsRawFd;
    // SAFETY: integers, and one byte on the stack.
    unsafe {
        libc::close(let_go.as_raw_fd());
        let seized = u8::from(libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, 0usize) == 0);
        libc::write(tell.as_raw_fd(), std::ptr::from_ref(&seized).cast(), 1);
        let mut byte = 0u8;
        libc::read(listen.as_raw_fd(), std::ptr::from_mut(&mut byte).cast(), 1);
        libc::_exit(0);
    }
}
