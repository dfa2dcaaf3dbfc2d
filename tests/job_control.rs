//! Scenarios of job control, under the promises: contexts that are paused with the clocks of their children, stops that are told of, a
//! look at the dead before they are reaped. Knows the public API, and /proc.
#![allow(clippy::zombie_processes, reason = "the library waits for what it adopts")]

mod common;

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, eventually, exists, in_own_process, is_stopped, sh, spawn_ready, state, threads};
use pidloop::{Adopt, Cancel, Cause, Child, Command, Context, Dead, JobState, Reactor, Signal, Step};

fn sleeper(context: &Context) -> Command {
    let mut command = Command::new("sleep");
    command.arg("600").context(context).kill_on_drop(true);
    command
}

fn runs(pid: u32) -> bool {
    matches!(state(pid), Some('S' | 'R' | 'D'))
}

#[test]
fn a_pause_stops_whom_a_stop_would_reach_and_a_resume_continues_them() {
    let (above, other) = (Context::new(), Context::new());
    let below = above.child_context();
    let child = sleeper(&below).spawn().unwrap();
    let (leader, mut stdout) =
        spawn_ready(sh("sleep 600 & echo $!; echo ready; wait").group().context(&below).kill_on_drop(true));
    let (pid, list) = (leader.id(), format!("/proc/{0}/task/{0}/children", leader.id()));
    let member: u32 = std::fs::read_to_string(list).unwrap().trim().parse().unwrap();
    let stranger = sleeper(&other).spawn().unwrap();
    let all = [child.id(), pid, member];

    above.pause();
    above.pause();
    assert!(above.is_paused() && below.is_paused() && !other.is_paused());
    eventually("all are stopped", || all.iter().all(|pid| is_stopped(*pid)));
    assert!(runs(stranger.id()));
    // Who is paused twice is resumed by both.
    below.pause();
    above.resume();
    assert!(below.is_paused() && all.iter().all(|pid| is_stopped(*pid)));
    below.resume();
    eventually("all go on", || all.iter().all(|pid| runs(*pid)));
    above.pause();
    above.cancel();
    for stopped in [&child, &leader] {
        let exit = stopped.wait().unwrap();
        assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), Some(&Cause::Cancelled)));
    }
    common::all_writers_end(&mut stdout);
}

/// On a busy machine a clock may have run out before the pause, which is another story: then with more time.
fn with_enough_time(tells: impl Fn(Duration) -> bool) {
    let times = [200, 1_000, 5_000].map(Duration::from_millis);
    assert!(times.into_iter().any(tells), "it was never in time");
}

#[test]
fn clocks_stand_still_meanwhile() {
    with_enough_time(|time| {
        let ctx = Context::new();
        let begun = Instant::now();
        let timed = ctx.with_timeout(time);
        let before = timed.deadline().unwrap();
        let by_command = sleeper(&ctx).timeout(time).spawn().unwrap();
        let by_context = sleeper(&timed).spawn().unwrap();
        ctx.pause();
        if begun.elapsed() >= time {
            return false;
        }
        // Longer than all of it.
        let paused = Instant::now();
        assert!(by_command.wait_timeout(2 * time).unwrap().is_none() && by_context.try_wait().unwrap().is_none());
        assert!(timed.deadline().unwrap() >= before + 2 * time && !timed.is_cancelled());
        let at_least = paused.elapsed() + time;
        ctx.resume();
        for child in [by_command, by_context] {
            assert_eq!(child.wait().unwrap().cause(), Some(&Cause::DeadlineExceeded));
            assert!(begun.elapsed() >= at_least, "{:?}", begun.elapsed());
        }
        assert!(timed.is_cancelled() && !ctx.is_cancelled());
        true
    });
}

#[test]
fn a_ladder_that_has_begun_stands_still_too() {
    with_enough_time(|time| {
        let (ctx, stop) = (Context::new(), Context::new());
        let ask = (Step::Signal(Signal::SIGTERM), time);
        let mut command = sh("trap 'echo got' TERM; echo ready; while :; do sleep 0.01; done");
        let (child, mut stdout) =
            spawn_ready(command.context(&ctx).context(&stop).cancel(Cancel::Steps(vec![ask])).kill_on_drop(true));
        let begun = Instant::now();
        stop.cancel();
        // From here on it is a stop that is paused, and no pause that a stop ends.
        if stdout.read_exact(&mut [0; 4]).is_err() {
            return false;
        }
        ctx.pause();
        if begun.elapsed() >= time {
            return false;
        }
        let paused = Instant::now();
        assert!(child.wait_timeout(2 * time).unwrap().is_none());
        let at_least = paused.elapsed() + time;
        ctx.resume();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
        assert!(begun.elapsed() >= at_least);
        true
    });
}

/// A stopped child could not heed its stop.
#[test]
fn a_stop_ends_the_pause() {
    let (ctx, stop) = (Context::new(), Context::new());
    let ask = (Step::Signal(Signal::SIGINT), SOON);
    let mut command = sh("trap 'exit 5' INT; echo ready; while :; do sleep 0.01; done");
    let (child, _stdout) = spawn_ready(command.context(&ctx).context(&stop).cancel(Cancel::Steps(vec![ask])));
    ctx.pause();
    eventually("it is stopped", || is_stopped(child.id()));
    stop.cancel();
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn what_starts_under_a_pause_is_stopped_when_it_begins() {
    let ctx = Context::new();
    ctx.pause();
    let below = ctx.child_context();
    assert!(below.is_paused());
    let child = sleeper(&below).spawn().unwrap();
    let theirs = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let adopted = Child::adopt(Adopt::child(&theirs).unwrap().context(&ctx)).unwrap();
    let mut jobs = Reactor::new().unwrap();
    let id = jobs.spawn(&sleeper(&below)).unwrap();
    for pid in [child.id(), adopted.id(), jobs.pid(id).unwrap()] {
        eventually("it is stopped", || is_stopped(pid));
    }
    ctx.resume();
    eventually("all go on", || runs(child.id()) && runs(adopted.id()) && jobs.pid(id).is_some_and(runs));
    ctx.cancel();
    assert_eq!(child.wait().unwrap().cause(), Some(&Cause::Cancelled));
    assert_eq!(adopted.wait().unwrap().cause(), Some(&Cause::Cancelled));
}

#[test]
fn pauses_from_many_threads_leave_what_the_contexts_say() {
    let ctx = Context::new();
    let children: Vec<Child> = (0..8).map(|_| sleeper(&ctx).spawn().unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    ctx.pause();
                    ctx.resume();
                }
            });
        }
    });
    ctx.resume();
    eventually("all go on", || children.iter().all(|child| runs(child.id())));
}

#[test]
fn the_dead_are_looked_at_before_they_are_reaped() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut command = sh("exit 4");
    let noted = seen.clone();
    command.inspect(move |dead: &Dead| {
        let stat = String::from_utf8(dead.read("stat").unwrap()).unwrap();
        noted.lock().unwrap().push((dead.id(), stat.contains(") Z ")));
    });
    // Each way to wait: as owner, by the loop, and whoever asks in between.
    let child = command.spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert_eq!(*seen.lock().unwrap(), [(child.id(), true)]);
    assert!(!exists(child.id()));
    assert_eq!(command.status().unwrap().code(), Some(4));
    command.output().unwrap();
    let polled = command.spawn().unwrap();
    eventually("it is reaped", || polled.try_wait().unwrap().is_some());
    let mut jobs = Reactor::new().unwrap();
    jobs.spawn(&command).unwrap();
    while jobs.next_exit().is_none() {
        jobs.turn(Some(SOON)).unwrap();
    }
    drop(command.spawn().unwrap());
    eventually("all were looked at", || seen.lock().unwrap().len() == 6);
    assert!(seen.lock().unwrap().iter().all(|(_, zombie)| *zombie));
}

#[test]
fn a_look_that_panics_or_takes_long_holds_nobody_up() {
    let child = sh("exit 4").inspect(|_| panic!("as asked")).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let mut command = sh("exit 4");
    let child = command.inspect(move |_| blocked.lock().unwrap().recv().unwrap_or(())).spawn().unwrap();
    let exit = child.wait_timeout(SOON).unwrap().expect("it is held up");
    assert!(exit.code() == Some(4) && exit.reaped_at().unwrap() >= exit.exited_at() + Duration::from_millis(900));
    drop(release);
}

#[test]
fn stops_and_continuations_are_told() {
    in_own_process("stops_and_continuations_are_told", || {
        let before = threads();
        let (sender, told) = mpsc::channel();
        let mut command = Command::new("sleep");
        let child = command.arg("600").on_stopped(move |state| sender.send(state).unwrap()).spawn().unwrap();
        for signal in [Signal::SIGSTOP, Signal::SIGTSTP] {
            child.signal(signal).unwrap();
            assert_eq!(told.recv_timeout(SOON).unwrap(), JobState::Stopped(signal));
            child.signal(Signal::SIGCONT).unwrap();
            assert_eq!(told.recv_timeout(SOON).unwrap(), JobState::Continued);
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
        // The thread ends with the child, also where the loop reaps it, and where there never was one.
        drop(command.spawn().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let count_stops = move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        Command::new("/no/such/program").on_stopped(count_stops).spawn().unwrap_err();
        for child in children_of_ours() {
            let pid = rustix::process::Pid::from_raw(child as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        eventually("all are reaped", || children_of_ours().is_empty());
        eventually("their threads are gone", || threads() <= before + 2);
        assert_eq!(count.load(Ordering::SeqCst), 0);
    });
}

/// A stop ends the pause of its child, also one that comes when another is under way and is paused.
#[test]
fn a_terminate_reaches_a_child_whose_ladder_is_paused() {
    let (ctx, stop) = (Context::new(), Context::new());
    let ask = (Step::Signal(Signal::SIGTERM), Duration::from_secs(600));
    let mut command = sh("trap 'echo got' TERM; echo ready; while :; do sleep 0.01; done");
    let command = command.context(&ctx).context(&stop).cancel(Cancel::Steps(vec![ask])).kill_on_drop(true);
    let (child, mut stdout) = spawn_ready(command);
    stop.cancel();
    stdout.read_exact(&mut [0; 4]).unwrap();
    ctx.pause();
    eventually("it is stopped", || is_stopped(child.id()));
    std::thread::scope(|scope| {
        let terminated = scope.spawn(|| child.terminate(Duration::from_millis(20)).unwrap());
        let ended = child.wait_timeout(SOON).unwrap();
        ctx.resume();
        assert!(ended.is_some(), "its grace stood still");
        assert_eq!(terminated.join().unwrap().signal(), Some(Signal::SIGKILL));
    });
}

/// Each pause is undone by its resume, whoever of two threads comes first to whatever is below.
#[test]
fn pauses_and_resumes_that_meet_leave_nothing_behind() {
    let above = Context::new();
    let below = above.child_context();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..common::rounds(20_000) {
                    above.pause();
                    above.resume();
                }
            });
        }
    });
    above.pause();
    assert!(above.is_paused() && below.is_paused());
    above.resume();
    assert!(!above.is_paused() && !below.is_paused());
}

/// Its number may be anybody's by then.
#[test]
fn nobody_looks_at_a_child_that_is_reaped() {
    in_own_process("nobody_looks_at_a_child_that_is_reaped", || {
        const HELPERS: usize = 16;
        let gate = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
        let (begun, told) = mpsc::channel();
        let mut blocking = Command::new("true");
        let held = gate.clone();
        blocking.inspect(move |_| {
            begun.send(()).unwrap();
            drop(held.1.wait_while(held.0.lock().unwrap(), |open| !*open).unwrap());
        });
        let blocked: Vec<Child> = (0..HELPERS).map(|_| blocking.spawn().unwrap()).collect();
        (0..HELPERS).for_each(|_| told.recv_timeout(SOON).unwrap());
        let looks = Arc::new(AtomicUsize::new(0));
        let mut command = Command::new("true");
        let counted = looks.clone();
        let count = move |_: &Dead| {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        let child = command.inspect(count).spawn().unwrap();
        assert!(child.wait_timeout(SOON).unwrap().expect("it is held up").success());
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        blocked.iter().for_each(|child| assert!(child.wait().unwrap().success()));
        // What is run after it on the same threads has been run.
        let after = blocking.spawn().unwrap();
        after.wait().unwrap();
        assert_eq!(looks.load(Ordering::SeqCst), 0, "it was looked at when it had been reaped");
    });
}

/// A loop that takes over takes the pauses, too.
#[test]
fn a_child_is_resumed_by_the_loop_that_took_it_over() {
    let ctx = Context::new();
    let mut jobs = Reactor::new().unwrap();
    let mut command = Command::new("sleep");
    let id = jobs.spawn(command.arg("600").context(&ctx)).unwrap();
    let pid = jobs.pid(id).unwrap();
    ctx.pause();
    eventually("it is stopped", || is_stopped(pid));
    drop(jobs);
    assert!(is_stopped(pid));
    ctx.resume();
    eventually("it goes on", || runs(pid));
    ctx.pause();
    eventually("it is stopped again", || is_stopped(pid));
    ctx.cancel();
    eventually("it is gone", || !exists(pid));
}
