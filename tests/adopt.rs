//! The promises, kept for processes that other code has started: watched, stopped, reaped once, their status told where the kernel tells it.
//! Knows the public API, and std's children.
#![allow(clippy::zombie_processes, reason = "the library waits for what it adopts")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child as StdChild, Command as StdCommand, Stdio as StdStdio};
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, eventually, exists, in_own_process, open_descriptors, state};
use pidloop::{Adopt, Cancel, Cause, Child, Command, Context, Driver, ErrorKind, Reactor, Scope, Signal, Step};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

fn std_sh(script: &str) -> StdChild {
    StdCommand::new("/bin/sh").args(["-c", script]).stdin(StdStdio::piped()).stdout(StdStdio::piped()).spawn().unwrap()
}

/// What a shell says first: a number.
fn number_from(child: &mut StdChild) -> u32 {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}

fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn a_child_of_std_is_watched_and_reaped() {
    let mut theirs = std_sh("exit 9");
    let child = Child::adopt(&Adopt::child(&theirs).unwrap()).unwrap();
    assert_eq!(child.id(), theirs.id());
    let exit = child.wait().unwrap();
    assert_eq!((exit.code(), exit.cause(), exit.scope(), exit.pid()), (Some(9), None, Scope::Child, theirs.id()));
    assert!(exit.usage().is_some() && exit.reaped_at().is_some());
    // And its name, which in the midst of an exec may still be that of the thread that has started it.
    let error = exit.check().unwrap_err();
    assert!(error.command().unwrap().starts_with(&format!("[{} ", theirs.id())), "{error}");
    assert!(!exists(theirs.id()) && theirs.wait().is_err(), "it was not reaped here");
}

#[test]
fn contexts_deadlines_and_ladders_stop_it() {
    let ctx = Context::new();
    let adopted = |theirs: &StdChild, change: &dyn Fn(&mut Adopt)| {
        let mut adopt = Adopt::child(theirs).unwrap();
        change(&mut adopt);
        Child::adopt(&adopt).unwrap()
    };
    let theirs = std_sh("exec sleep 600");
    let child = adopted(&theirs, &|adopt| {
        adopt.context(&ctx);
    });
    assert_eq!(child.wait_timeout(Duration::from_millis(10)).unwrap().map(|exit| exit.pid()), None);
    ctx.cancel();
    let exit = child.wait().unwrap();
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), Some(&Cause::Cancelled)));
    // One that has ended already: it runs, so it is stopped.
    let theirs = std_sh("exec sleep 600");
    let child = adopted(&theirs, &|adopt| {
        adopt.context(&ctx);
    });
    assert_eq!(child.wait().unwrap().cause(), Some(&Cause::Cancelled));
    let theirs = std_sh("exec sleep 600");
    let child = adopted(&theirs, &|adopt| {
        adopt.timeout(Duration::ZERO);
    });
    assert_eq!(child.wait().unwrap().cause(), Some(&Cause::DeadlineExceeded));
    let theirs = std_sh("trap '' TERM; echo 1; while :; do sleep 0.01; done");
    let mut theirs = theirs;
    number_from(&mut theirs);
    let ask = vec![(Step::Signal(Signal::SIGTERM), Duration::from_millis(30))];
    let child = adopted(&theirs, &|adopt| {
        adopt.timeout(Duration::from_millis(10)).cancel(Cancel::Steps(ask.clone()));
    });
    let exit = child.wait().unwrap();
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), Some(&Cause::DeadlineExceeded)));
    assert!(exit.elapsed() >= Duration::from_millis(40));
    let theirs = std_sh("exec sleep 600");
    drop(adopted(&theirs, &|adopt| {
        adopt.kill_on_drop(true);
    }));
    eventually("the dropped one is gone", || !exists(theirs.id()));
}

#[test]
fn of_somebody_elses_child_the_kernel_tells_what_it_can() {
    let exit_of_a_grandchild = || {
        let mut parent = std_sh("exec 3<&0; sh -c 'echo $$; read line <&3; exit 7' & wait");
        let child = Child::adopt(&Adopt::pid(number_from(&mut parent)).unwrap()).unwrap();
        drop(parent.stdin.take());
        let exit = child.wait().unwrap();
        parent.wait().unwrap();
        exit
    };
    let exits: Vec<_> = (0..5).map(|_| exit_of_a_grandchild()).collect();
    assert!(exits.iter().all(|exit| exit.usage().is_none() && exit.cause().is_none()));
    // On a busy machine a parent may take longer than it is waited for.
    let known = exits.iter().find_map(|exit| exit.code());
    assert_eq!(known, (kernel() >= (6, 15)).then_some(7));

    let mut parent = std_sh("sh -c 'echo $$; exec sleep 600' & wait");
    let ctx = Context::new();
    let child = Child::adopt(Adopt::pid(number_from(&mut parent)).unwrap().context(&ctx)).unwrap();
    ctx.cancel();
    let exit = child.wait().unwrap();
    assert_eq!(exit.cause(), Some(&Cause::Cancelled));
    assert!([None, Some(Signal::SIGKILL)].contains(&exit.signal()));
    parent.wait().unwrap();
}

/// A parent that does not wait holds nobody up.
#[test]
fn a_status_that_nobody_takes_is_lost_in_time() {
    let mut parent = std_sh("sh -c 'echo $$; exec sleep 600' & exec sleep 600");
    let pid = number_from(&mut parent);
    let child = Child::adopt(&Adopt::pid(pid).unwrap()).unwrap();
    child.kill().unwrap();
    let begun = Instant::now();
    let exit = child.wait().unwrap();
    assert_eq!((exit.status(), exit.check().unwrap_err().kind()), (None, ErrorKind::StatusLost));
    assert!(begun.elapsed() < SOON && state(pid) == Some('Z'));
    parent.kill().unwrap();
    parent.wait().unwrap();
}

#[test]
fn a_pidfd_that_does_not_block_is_as_good() {
    let mut theirs = std_sh("read line; exit 4");
    let pidfd = pidfd_open(Pid::from_child(&theirs), PidfdFlags::NONBLOCK).unwrap();
    let child = Child::adopt(&Adopt::new(pidfd)).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(theirs.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn one_that_is_dead_is_told_of() {
    let theirs = std_sh("exit 5");
    eventually("it is a zombie", || state(theirs.id()) == Some('Z'));
    let adopt = Adopt::child(&theirs).unwrap();
    assert_eq!(Child::adopt(&adopt).unwrap().wait().unwrap().code(), Some(5));
    // Reaped, and asked for again by the same descriptor.
    let exit = Child::adopt(&adopt).unwrap().wait().unwrap();
    assert_eq!(exit.code(), (kernel() >= (6, 15)).then_some(5));
    assert!(Adopt::pid(theirs.id()).is_err() && Adopt::child(&theirs).is_err());
}

#[test]
fn a_group_that_it_leads_is_stopped_with_it() {
    use std::os::unix::process::CommandExt;
    let mut theirs = StdCommand::new("/bin/sh")
        .args(["-c", "sleep 600 & echo 1; wait"])
        .process_group(0)
        .stdout(StdStdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = theirs.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    let child = Child::adopt(Adopt::child(&theirs).unwrap().group()).unwrap();
    child.kill().unwrap();
    assert_eq!((child.wait().unwrap().scope(), child.wait().unwrap().signal()), (Scope::Group, Some(Signal::SIGKILL)));
    common::all_writers_end(&mut stdout);

    let theirs = std_sh("exec sleep 600");
    let error = Child::adopt(Adopt::child(&theirs).unwrap().group()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(exists(theirs.id()), "it was not ours to stop");
    Child::adopt(Adopt::child(&theirs).unwrap().timeout(Duration::ZERO)).unwrap().wait().unwrap();
}

#[test]
fn what_is_no_process_is_refused() {
    let kind = |fd: OwnedFd| Child::adopt(&Adopt::new(fd)).unwrap_err().kind();
    assert_eq!(kind(std::fs::File::open("/dev/null").unwrap().into()), ErrorKind::InvalidInput);
    let ourselves = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    assert_eq!(kind(ourselves), ErrorKind::InvalidInput);
    // `PIDFD_THREAD`.
    if let Ok(thread) = pidfd_open(rustix::thread::gettid(), PidfdFlags::from_bits_retain(libc::O_EXCL as u32)) {
        assert_eq!(kind(thread), ErrorKind::InvalidInput);
    }
    for pid in [0, u32::MAX, 1 << 30] {
        assert_eq!(Adopt::pid(pid).unwrap_err().kind(), ErrorKind::NoSuchChild);
    }
}

#[test]
fn loops_and_futures_have_them_too() {
    let mut jobs = Reactor::new().unwrap();
    let (first, second) = (std_sh("exit 1"), std_sh("exec sleep 600"));
    let first = jobs.adopt(&Adopt::child(&first).unwrap()).unwrap();
    let remote = jobs.remote();
    let second = remote.adopt(&Adopt::child(&second).unwrap()).unwrap();
    remote.kill(second).unwrap();
    let mut seen = Vec::new();
    while !jobs.is_empty() {
        jobs.turn(Some(SOON)).unwrap();
        seen.extend(std::iter::from_fn(|| jobs.next_exit()).map(|ended| (ended.id(), ended.exit().code())));
    }
    seen.sort();
    assert_eq!(seen, [(first, Some(1)), (second, None)]);

    let driver = Driver::new().unwrap();
    let theirs = std_sh("sleep 0.05; exit 6");
    let child = driver.adopt(&Adopt::child(&theirs).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(child.wait_async()).unwrap().code(), Some(6));
}

#[test]
fn nothing_is_left_of_them() {
    in_own_process("nothing_is_left_of_them", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        let before = open_descriptors();
        for round in 0..50 {
            let theirs = std_sh(if round % 2 == 0 { "exit 1" } else { "sleep 0.05" });
            let adopt = Adopt::child(&theirs).unwrap();
            let duplicate = adopt.as_fd().try_clone_to_owned().unwrap();
            drop(Child::adopt(&adopt).unwrap());
            drop((adopt, duplicate));
        }
        let mut parent = std_sh("sh -c 'echo $$; exec sleep 600' & wait");
        drop(Child::adopt(Adopt::pid(number_from(&mut parent)).unwrap().kill_on_drop(true)).unwrap());
        parent.wait().unwrap();
        eventually("all are reaped", || children_of_ours().is_empty());
        eventually("their descriptors are closed", || open_descriptors() == before);
    });
}

/// One reaper at a time.
#[test]
fn what_is_watched_already_is_refused() {
    let theirs = std_sh("exec sleep 600");
    let mut adopt = Adopt::child(&theirs).unwrap();
    let child = Child::adopt(adopt.kill_on_drop(true)).unwrap();
    let refused = |adopt: &Adopt| {
        let error = Child::adopt(adopt).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("watched already"), "{error}");
    };
    refused(&adopt);
    let mut jobs = Reactor::new().unwrap();
    assert_eq!(jobs.adopt(&Adopt::pid(theirs.id()).unwrap()).unwrap_err().kind(), ErrorKind::InvalidInput);
    child.kill().unwrap();
    let exit = child.wait().unwrap();
    assert!(exit.signal() == Some(Signal::SIGKILL) && exit.usage().is_some());

    let own = Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
    refused(&Adopt::pid(own.id()).unwrap());
    own.kill().unwrap();
    let exit = own.wait().unwrap();
    assert!(exit.signal() == Some(Signal::SIGKILL) && exit.usage().is_some());
}
