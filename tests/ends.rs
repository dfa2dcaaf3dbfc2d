//! Promises 13 and 14: a forked copy is inert; drops, shutdowns and several loops at once. Knows the public API and fork(2).

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Waker};
use std::thread;
use std::time::Duration;

use common::{
    SOON, beside, children_of_ours, eventually, exists, in_own_process, open_descriptors, rounds, sh, spawn_ready,
    thread_sleeps, threads,
};
use pidloop::{Cancel, Cause, Command, Context, Driver, ErrorKind, Reactor, Signal, Stdio};

/// Forks, runs `f` in the copy, and says whether that came through.
fn in_forked_copy(f: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    // SAFETY: the copy has one thread, touches what `f` does and ends by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let ok = std::panic::catch_unwind(f).is_ok();
        // SAFETY: as above.
        unsafe { libc::_exit(if ok { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waitpid(2) for that child alone.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    status == 0
}

#[test]
fn a_forked_copy_is_inert_and_can_start_afresh() {
    in_own_process("a_forked_copy_is_inert_and_can_start_afresh", || {
        let ctx = Context::new();
        let child = sh("exec sleep 60").context(&ctx).stdout(Stdio::captured()).kill_on_drop(true).spawn().unwrap();
        let driver = Driver::new().unwrap();
        let other = driver.spawn(sh("exec sleep 60").kill_on_drop(true)).unwrap();
        let mut reactor = Reactor::new().unwrap();
        let third = reactor.spawn(sh("exec sleep 60").kill_on_drop(true)).unwrap();
        let pids = [child.id(), other.id(), reactor.pid(third).unwrap()];

        let handles = std::cell::Cell::new(Some((child, other, driver, reactor)));
        let forked = std::panic::AssertUnwindSafe(|| {
            let (child, other, driver, mut reactor) = handles.take().unwrap();
            for error in [
                child.wait().unwrap_err(),
                child.try_wait().unwrap_err(),
                child.kill().unwrap_err(),
                child.pidfd().unwrap_err(),
                child.terminate(SOON).unwrap_err(),
                driver.spawn(&Command::new("true")).unwrap_err(),
                reactor.turn(Some(Duration::ZERO)).unwrap_err(),
                reactor.kill(third).unwrap_err(),
                reactor.spawn(&Command::new("true")).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Forked, "{error}");
            }
            let mut polled = std::task::Context::from_waker(std::task::Waker::noop());
            let waited = std::pin::pin!(child.wait_async()).poll(&mut polled);
            assert!(matches!(waited, std::task::Poll::Ready(Err(e)) if e.kind() == ErrorKind::Forked));
            assert!(driver.shutdown(Duration::ZERO, Duration::ZERO).is_empty());
            ctx.cancel();
            assert!(ctx.is_cancelled());
            drop((child, other, driver, reactor));
            // A new start.
            assert_eq!(Command::new("echo").arg("x").output().unwrap().stdout, b"x\n");
            let ctx = Context::new();
            let child = Command::new("sleep").arg("60").context(&ctx).spawn().unwrap();
            ctx.cancel();
            assert_eq!(child.wait().unwrap().cause(), Some(&Cause::Cancelled));
        });
        assert!(in_forked_copy(forked));

        // Here nothing has happened.
        let (child, other, driver, mut reactor) = handles.take().unwrap();
        assert!(!ctx.is_cancelled());
        assert!(pids.into_iter().all(exists));
        ctx.cancel();
        assert_eq!(child.wait_with_output().unwrap().exit().cause(), Some(&Cause::Cancelled));
        other.kill().unwrap();
        assert_eq!(other.wait().unwrap().signal(), Some(Signal::SIGKILL));
        reactor.kill(third).unwrap();
        while reactor.next_exit().is_none() {
            reactor.turn(Some(SOON)).unwrap();
        }
        drop((driver, reactor));
        assert_eq!(children_of_ours(), []);
    });
}

/// The locks that other threads hold are held in the copy for ever.
#[test]
fn a_copy_forked_at_any_moment_never_hangs() {
    in_own_process("a_copy_forked_at_any_moment_never_hangs", || {
        let child = sh("exec sleep 60").stdin(Stdio::piped()).stdout(Stdio::captured()).spawn().unwrap();
        let mut reactor = Reactor::new().unwrap();
        let id = reactor.spawn(&sh("exec sleep 60")).unwrap();
        let remote = reactor.remote();
        let over = AtomicBool::new(false);
        let busy = |f: &(dyn Fn() + Sync)| {
            while !over.load(Ordering::SeqCst) {
                f();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| busy(&|| assert!(child.try_wait().unwrap().is_none())));
            scope.spawn(|| busy(&|| remote.signal(id, Signal::SIGCONT).unwrap()));
            let all = (0..rounds(200)).all(|_| {
                in_forked_copy(std::panic::AssertUnwindSafe(|| {
                    // SAFETY: alarm(2): ends the copy if it hangs.
                    unsafe { libc::alarm(10) };
                    assert_ne!(child.id(), 0);
                    assert!(child.take_stdin().is_none() && child.take_stdout().is_none());
                    assert!(poll_once(child.wait_async()).is_ready());
                    assert_eq!((reactor.len(), reactor.is_empty(), reactor.next_timeout()), (0, true, None));
                    assert!(reactor.next_exit().is_none());
                    assert_eq!(remote.kill(id).unwrap_err().kind(), ErrorKind::Forked);
                    assert!(!format!("{child:?} {reactor:?}").is_empty());
                }))
            });
            over.store(true, Ordering::SeqCst);
            assert!(all);
        });
        child.kill().unwrap();
        reactor.kill(id).unwrap();
        child.wait().unwrap();
    });
}

fn poll_once<T>(future: impl Future<Output = T>) -> task::Poll<T> {
    pin!(future).poll(&mut task::Context::from_waker(Waker::noop()))
}

#[test]
fn a_dropped_driver_kills_what_asked_for_it_and_hands_on_the_rest() {
    in_own_process("a_dropped_driver_kills_what_asked_for_it_and_hands_on_the_rest", || {
        let driver = Driver::new().unwrap();
        let killed = driver.spawn(sh("exec sleep 60").kill_on_drop(true)).unwrap();
        let ctx = Context::new();
        let kept = driver.spawn(sh("exec sleep 60").context(&ctx).stdout(Stdio::captured())).unwrap();
        drop(driver);
        assert_eq!(killed.wait().unwrap().cause(), Some(&Cause::Dropped));
        assert!(kept.try_wait().unwrap().is_none());
        ctx.cancel();
        assert_eq!(kept.wait_with_output().unwrap().exit().cause(), Some(&Cause::Cancelled));
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn an_idle_driver_that_is_dropped_starts_no_other() {
    in_own_process("an_idle_driver_that_is_dropped_starts_no_other", || {
        pidloop::init().unwrap();
        let (threads_before, before) = (threads(), open_descriptors());
        let driver = Driver::new().unwrap();
        let child = driver.spawn(&Command::new("true")).unwrap();
        child.wait().unwrap();
        drop((child, driver));
        eventually("its thread and its descriptors are gone", || threads() == threads_before);
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn drivers_come_and_go() {
    in_own_process("drivers_come_and_go", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        let before = open_descriptors();
        let threads_before = threads();
        for _ in 0..50 {
            let driver = Driver::new().unwrap();
            assert!(driver.spawn(&Command::new("true")).unwrap().wait().unwrap().success());
            let other = Driver::new().unwrap();
            let child = other.spawn(Command::new("sleep").arg("60").kill_on_drop(true)).unwrap();
            drop(child);
        }
        eventually("all is given back", || {
            threads() == threads_before && open_descriptors() == before && children_of_ours().is_empty()
        });
    });
}

/// And none of them anybody else's children.
#[test]
fn a_driver_for_each_thread() {
    in_own_process("a_driver_for_each_thread", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        let (before, threads_before) = (open_descriptors(), threads());
        let all = Context::new();
        let started = std::sync::Barrier::new(17);
        thread::scope(|scope| {
            for lane in 0..16 {
                let (all, started) = (&all, &started);
                scope.spawn(move || {
                    let driver = Driver::new().unwrap();
                    let own = all.child_context();
                    let children: Vec<_> =
                        (0..10).map(|_| driver.spawn(Command::new("sleep").arg("60").context(&own)).unwrap()).collect();
                    for code in 0..10 {
                        let exits = driver.spawn(&sh(&format!("exit {code}"))).unwrap();
                        assert_eq!(exits.wait().unwrap().code(), Some(code));
                    }
                    started.wait();
                    // Half of them are ended from without.
                    if lane % 2 == 0 {
                        own.cancel_with("own");
                    }
                    let expected = if lane % 2 == 0 { "own" } else { "all" };
                    started.wait();
                    for child in &children {
                        let exit = child.wait_timeout(SOON).unwrap().expect("in time");
                        assert_eq!(exit.cause().unwrap().to_string(), expected);
                    }
                    assert!(driver.shutdown(SOON, SOON).is_empty());
                });
            }
            started.wait();
            started.wait();
            all.cancel_with("all");
        });
        eventually("all is given back", || {
            threads() == threads_before && open_descriptors() == before && children_of_ours().is_empty()
        });
    });
}

#[test]
fn two_drivers_and_two_reactors_share_a_context() {
    let ctx = Context::new();
    let drivers = [Driver::new().unwrap(), Driver::new().unwrap()];
    let mut reactors = [Reactor::new().unwrap(), Reactor::new().unwrap()];
    let mut command = Command::new("sleep");
    command.arg("60").context(&ctx);
    let children: Vec<_> = drivers.iter().map(|driver| driver.spawn(&command).unwrap()).collect();
    for reactor in &mut reactors {
        reactor.spawn(&command).unwrap();
    }
    ctx.cancel_with("all of you");
    for child in children {
        assert_eq!(child.wait().unwrap().cause().unwrap().to_string(), "all of you");
    }
    for reactor in &mut reactors {
        let ended = loop {
            reactor.turn(Some(SOON)).unwrap();
            if let Some(ended) = reactor.next_exit() {
                break ended;
            }
        };
        assert_eq!(ended.exit().cause().unwrap().to_string(), "all of you");
    }
}

#[test]
fn shutdown_of_the_default_driver() {
    in_own_process("shutdown_of_the_default_driver", || {
        assert!(pidloop::shutdown(Duration::ZERO, Duration::ZERO).is_empty());
        assert_eq!(Command::new("true").spawn().unwrap_err().kind(), ErrorKind::ShutDown);
    });
}

#[test]
fn shutdown_stops_as_each_command_says() {
    let driver = Driver::new().unwrap();
    let ends = driver.spawn(&sh("exec sleep 0.05")).unwrap();
    let mut asked = sh("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    asked.cancel(Cancel::Signal(Signal::SIGTERM)).stdout(Stdio::piped());
    let asked = driver.spawn(&asked).unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(&mut asked.take_stdout().unwrap(), &mut ready).unwrap();
    assert!(driver.shutdown(Duration::from_millis(400), SOON).is_empty());
    assert_eq!((ends.wait().unwrap().code(), ends.wait().unwrap().cause()), (Some(0), None));
    let exit = asked.wait().unwrap();
    assert_eq!((exit.code(), exit.cause()), (Some(7), Some(&Cause::ShutDown)));
    assert_eq!(driver.spawn(&sh("true")).unwrap_err().kind(), ErrorKind::ShutDown);
}

#[test]
fn shutdown_reaches_children_that_somebody_waits_for_directly() {
    in_own_process("shutdown_reaches_children_that_somebody_waits_for_directly", || {
        let waiter = std::thread::spawn(|| Command::new("sleep").arg("60").status());
        eventually("it runs", || !children_of_ours().is_empty());
        let pid = children_of_ours()[0];
        eventually("it is past the exec", || {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        assert!(pidloop::shutdown(Duration::ZERO, SOON).is_empty());
        assert_eq!(waiter.join().unwrap().unwrap_err().kind(), ErrorKind::Stopped);
    });
}

#[test]
fn contexts_come_and_go_by_the_thousand() {
    in_own_process("contexts_come_and_go_by_the_thousand", || {
        let root = Context::new();
        Command::new("true").context(&root.child_context()).spawn().unwrap().wait().unwrap();
        let before = open_descriptors().len();
        for _ in 0..1000 {
            let ctx = root.child_context().with_timeout(SOON);
            Command::new("true").context(&ctx).run().unwrap();
        }
        eventually("their eventfds are closed", || open_descriptors().len() <= before);
    });
}

#[test]
fn dropping_handles_in_any_order_leaves_no_zombie() {
    in_own_process("dropping_handles_in_any_order_leaves_no_zombie", || {
        let ctx = Context::new();
        let (first, _stdout) = spawn_ready(sh("echo ready; exec sleep 60").context(&ctx));
        let mut command = sh("echo out; exec sleep 60");
        command.context(&ctx).stdout(Stdio::captured()).stdin(Stdio::piped());
        let second = command.spawn().unwrap();
        drop(command);
        drop(second);
        ctx.cancel();
        drop(ctx);
        drop(first);
        eventually("both are reaped", || children_of_ours().is_empty());
    });
}

/// Its last child is not reaped by any loop.
#[test]
fn a_loop_that_was_taken_over_is_given_back_with_its_last_child() {
    in_own_process("a_loop_that_was_taken_over_is_given_back_with_its_last_child", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        let (before, threads_before) = (open_descriptors(), threads());
        let driver = Driver::new().unwrap();
        let child = driver.spawn(&sh("exec sleep 60")).unwrap();
        drop(driver);
        eventually("its thread ends", || threads() == threads_before);
        let exit = beside(
            "waiter",
            || child.wait(),
            || {
                eventually("somebody waits", || thread_sleeps("waiter"));
                child.kill().unwrap();
            },
        );
        assert_eq!(exit.unwrap().signal(), Some(Signal::SIGKILL));
        drop(child);
        eventually("its descriptors are closed", || open_descriptors() == before);
    });
}

#[test]
fn the_default_shutdown_ends_what_was_taken_over() {
    in_own_process("the_default_shutdown_ends_what_was_taken_over", || {
        let driver = Driver::new().unwrap();
        let child = driver.spawn(&sh("exec sleep 60")).unwrap();
        let mut reactor = Reactor::new().unwrap();
        reactor.spawn(&sh("exec sleep 60")).unwrap();
        drop(driver);
        drop(reactor);
        assert!(pidloop::shutdown(Duration::ZERO, SOON).is_empty());
        assert_eq!(children_of_ours(), []);
        assert_eq!(child.wait().unwrap().cause(), Some(&Cause::ShutDown));
    });
}

#[test]
fn shutdowns_from_many_threads_while_others_spawn() {
    in_own_process("shutdowns_from_many_threads_while_others_spawn", || {
        let driver = Driver::new().unwrap();
        let children = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        match driver.spawn(Command::new("sleep").arg("3600")) {
                            Ok(child) => children.lock().unwrap().push(child),
                            Err(error) if error.kind() == ErrorKind::ShutDown => return,
                            // It was between clone and exec.
                            Err(error) => assert_eq!(error.cause(), Some(&Cause::ShutDown), "{error}"),
                        }
                    }
                });
            }
            eventually("they spawn", || children.lock().unwrap().len() >= 30);
            for _ in 0..3 {
                scope.spawn(|| assert!(driver.shutdown(Duration::from_millis(1), SOON).is_empty()));
            }
        });
        assert!(driver.shutdown(SOON, SOON).is_empty());
        assert_eq!(children_of_ours(), []);
        for child in children.into_inner().unwrap() {
            assert_eq!(child.wait().unwrap().cause(), Some(&Cause::ShutDown));
        }
    });
}

/// A reactor is dropped while others spawn into it and its context is cancelled: none of its children is lost.
#[test]
fn spawns_that_race_the_drop_of_a_reactor_lose_nothing() {
    in_own_process("spawns_that_race_the_drop_of_a_reactor_lose_nothing", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        let before = open_descriptors().len();
        for round in 0..rounds(40) {
            let reactor = Reactor::new().unwrap();
            let ctx = Context::new();
            let mut command = Command::new("sleep");
            command.arg("3600").context(&ctx).stdout(Stdio::captured());
            thread::scope(|scope| {
                for _ in 0..2 {
                    let (remote, command) = (reactor.remote(), &command);
                    scope.spawn(move || while remote.spawn(command).is_ok() {});
                }
                eventually("some run", || children_of_ours().len() > round / 4);
                if round % 2 == 0 {
                    scope.spawn(|| ctx.cancel());
                }
                drop(reactor);
            });
            ctx.cancel();
        }
        eventually("all are stopped, reaped and forgotten", || {
            children_of_ours().is_empty() && open_descriptors().len() == before
        });
    });
}

#[test]
fn a_default_driver_that_cannot_start_leaks_nothing() {
    in_own_process("a_default_driver_that_cannot_start_leaks_nothing", || {
        // SAFETY: setresuid(2): limits do not hold for root; this process is the test's own.
        unsafe { libc::setresuid(65534, 65534, 65534) };
        pidloop::init().unwrap();
        let before = open_descriptors();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nproc);
        let none = rustix::process::Rlimit { current: Some(0), maximum: limit.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Nproc, none).unwrap();
        for _ in 0..10 {
            let error = Command::new("true").spawn().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoProcessSlots, "{error}");
            assert_eq!(Driver::new().unwrap_err().kind(), ErrorKind::NoProcessSlots);
        }
        assert_eq!(open_descriptors(), before);
        rustix::process::setrlimit(rustix::process::Resource::Nproc, limit).unwrap();
        Command::new("true").run().unwrap();
    });
}
