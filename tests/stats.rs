//! Promises 1 and 12 in numbers: what a driver or reactor says it has counted is what happened. Knows the public API.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use common::{SOON, eventually, in_own_process, sh, spawn_ready, thread_sleeps};
use pidloop::{Cancel, Command, Context, Driver, Reactor, Signal, Stats, Stdio};

struct Unparker(Thread);

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unparker(thread::current())));
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut task::Context::from_waker(&waker)) {
            return result;
        }
        thread::park_timeout(SOON);
    }
}

/// (running, spawned, failed, exited, cancelled, killed).
fn lives(stats: &Stats) -> [u64; 6] {
    [stats.running, stats.spawned, stats.failed, stats.exited, stats.cancelled, stats.killed]
}

#[test]
fn output_and_end_in_one_batch_are_no_stale_events() {
    let mut reactor = Reactor::new().unwrap();
    for _ in 0..30 {
        let mut command = sh("echo out; echo err >&2");
        reactor.spawn(command.stdout(Stdio::captured()).stderr(Stdio::captured())).unwrap();
    }
    let mut reported = 0;
    while reported < 30 {
        reactor.turn(Some(SOON)).unwrap();
        reported += std::iter::from_fn(|| reactor.next_exit()).count();
    }
    assert_eq!((reactor.stats().exited, reactor.stats().stale_events), (30, 0));
}

#[test]
fn every_child_and_every_failure_is_counted_once() {
    let driver = Driver::new().unwrap();
    assert_eq!(lives(&driver.stats()), [0; 6]);
    let ctx = Context::new();
    for _ in 0..3 {
        driver.spawn(&Command::new("true")).unwrap().wait().unwrap();
    }
    driver.spawn(&Command::new("/does/not/exist")).unwrap_err();
    driver.spawn(&Command::new("")).unwrap_err();
    let killed = driver.spawn(Command::new("sleep").arg("60").context(&ctx)).unwrap();
    let mut gentle = Command::new("sleep");
    gentle.arg("60").context(&ctx).cancel(Cancel::Signal(Signal::SIGTERM));
    let asked = driver.spawn(&gentle).unwrap();
    let by_hand = driver.spawn(Command::new("sleep").arg("60")).unwrap();
    assert_eq!(lives(&driver.stats()), [3, 6, 2, 3, 0, 0]);
    ctx.cancel();
    killed.wait().unwrap();
    asked.wait().unwrap();
    driver.spawn(Command::new("true").context(&ctx)).unwrap_err();
    // No stop: nobody but its caller wanted that.
    by_hand.kill().unwrap();
    by_hand.wait().unwrap();
    let stats = driver.stats();
    assert_eq!(lives(&stats), [0, 6, 3, 6, 2, 1]);
    assert_eq!((stats.spawn.count(), stats.cancel_to_exit.count(), stats.queued), (6, 2, 0));
    assert!(stats.spawn.max() > Duration::ZERO && stats.spawn.quantile(1.0) == Some(stats.spawn.max()));
    assert!(stats.batch.count() > 0 && stats.batch.max() >= 1);
}

#[test]
fn a_reactor_counts_for_itself() {
    let mut reactor = Reactor::new().unwrap();
    let mut other = Reactor::new().unwrap();
    for _ in 0..4 {
        reactor.spawn(&Command::new("true")).unwrap();
    }
    other.spawn(&Command::new("true")).unwrap();
    for reactor in [&mut reactor, &mut other] {
        while !reactor.is_empty() {
            reactor.turn(Some(SOON)).unwrap();
            while reactor.next_exit().is_some() {}
        }
    }
    let stats = reactor.stats();
    assert_eq!((lives(&stats), lives(&other.stats())), ([0, 4, 0, 4, 0, 0], [0, 1, 0, 1, 0, 0]));
    // Each turn that came back, with what it took.
    let taken: u64 = stats.batch.iter().map(|(size, turns)| size * turns).sum();
    assert!(taken >= 4, "{taken} events for four children");
}

#[test]
fn what_the_loop_reads_is_counted() {
    let driver = Driver::new().unwrap();
    let read = |command: &mut Command| {
        let before = driver.stats();
        driver.spawn(command).unwrap().wait_with_output().unwrap();
        driver.stats().since(&before).read_bytes
    };
    let mut zeros = Command::new("head");
    zeros.args(["-c", "300000", "/dev/zero"]).stdout(Stdio::captured());
    assert_eq!(read(&mut zeros), 300_000);
    assert_eq!(read(sh("printf abc; printf defg >&2").stdout(Stdio::captured()).stderr(Stdio::captured())), 7);
    // Cut: what the child left is read, and counted, too.
    let mut left = sh("sleep 60 & printf abc");
    let ctx = Context::new();
    left.group().group_leftovers(pidloop::Leftovers::Kill).context(&ctx).stdout(Stdio::captured());
    assert_eq!(read(&mut left), 3);
}

#[test]
fn who_slept_for_an_exit_or_was_woken_for_it_is_timed() {
    let driver = Driver::new().unwrap();
    let (child, _stdout) = {
        let mut command = sh("echo ready; read line");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = driver.spawn(&command).unwrap();
        let stdout = child.take_stdout().unwrap();
        (child, stdout)
    };
    let stdin = child.take_stdin().unwrap();
    common::beside(
        "sleeper",
        || child.wait_timeout(SOON).unwrap(),
        || {
            eventually("it owns the child", || thread_sleeps("sleeper"));
            // This one finds an owner and waits for what that publishes.
            common::beside(
                "second",
                || child.wait().unwrap(),
                || {
                    eventually("it sleeps", || thread_sleeps("second"));
                    drop(stdin);
                },
            );
        },
    );
    assert_eq!(driver.stats().exit_to_wake.count(), 1);
    let child = driver.spawn(&sh("exit 0")).unwrap();
    block_on(child.wait_async()).unwrap();
    let before = driver.stats().exit_to_wake.count();
    assert!(before <= 2);
    // Too late to be woken: it is no latency of ours.
    block_on(child.wait_async()).unwrap();
    child.wait().unwrap();
    assert_eq!(driver.stats().exit_to_wake.count(), before);
}

#[test]
fn the_default_driver_counts_what_commands_do_by_themselves() {
    in_own_process("the_default_driver_counts_what_commands_do_by_themselves", || {
        Command::new("true").status().unwrap();
        Command::new("true").output().unwrap();
        block_on(Command::new("true").run_async()).unwrap();
        let (child, _stdout) = spawn_ready(&mut sh("echo ready; exec sleep 60"));
        let stats = pidloop::stats().unwrap();
        assert_eq!(lives(&stats), [1, 4, 0, 3, 0, 0]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(lives(&pidloop::stats().unwrap().since(&stats)), [0, 0, 0, 1, 0, 0]);
        assert_eq!(stats.ways, pidloop::capabilities());
    });
}

#[test]
fn stats_are_told_in_lines() {
    let driver = Driver::new().unwrap();
    driver.spawn(&Command::new("true")).unwrap().wait().unwrap();
    let text = driver.stats().to_string();
    for line in ["running        0", "spawned        1", "exited         1", "shared_table"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(text.lines().any(|line| line.starts_with("spawn          1 of them: p50 ")), "{text}");
}

#[cfg(feature = "serde")]
#[test]
fn stats_survive_being_written_and_read() {
    let driver = Driver::new().unwrap();
    driver.spawn(&Command::new("true")).unwrap().wait().unwrap();
    let stats = driver.stats();
    let text = serde_json::to_string(&stats).unwrap();
    let read: Stats = serde_json::from_str(&text).unwrap();
    assert_eq!((lives(&read), &read.spawn, &read.batch), (lives(&stats), &stats.spawn, &stats.batch));
    assert_eq!((read.spawn.quantile(0.5), read.ways), (stats.spawn.quantile(0.5), stats.ways));
    assert!(text.len() < 8000, "{} bytes", text.len());
}
