//! Group C of the scenarios: where streams come from and go to, and who waits for them; each by its number. Knows the public API alone.

mod common;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use common::{SOON, eventually, in_own_process, pipe, sh, state};
use pidloop::{Cancel, ChildId, Command, Context, Ended, Reactor, Stdio};

const MOMENT: Duration = Duration::from_millis(50);

// ── a stop and those who hold the output ──

#[test]
fn a_stop_that_comes_between_the_death_and_its_discovery_ends_the_capture() {
    let mut reactor = Reactor::new().unwrap();
    let id = reactor.spawn(holding("exit 7").stdout(Stdio::captured()).stderr(Stdio::captured())).unwrap();
    let pid = reactor.pid(id).unwrap();
    // Nobody turns the loop: it does not know of the death.
    eventually("it is dead", || state(pid) == Some('Z'));
    reactor.terminate(id, SOON).unwrap();
    let ended = next_ended(&mut reactor, id);
    assert_eq!((ended.exit().code(), ended.exit().cause()), (Some(7), None));
    assert!(ended.exit().held_open().stderr);
    kill_holder(&ended.into_output().stdout);
}

#[test]
fn a_context_that_is_noticed_before_the_exit_ends_the_capture() {
    in_own_process("a_context_that_is_noticed_before_the_exit_ends_the_capture", || {
        let mut reactor = Reactor::new().unwrap();
        let ctx = Context::new();
        let (stdin, gate) = pipe();
        let mut command = holding("read _; exit 7");
        command.stdin(OwnedFd::from(stdin)).context(&ctx);
        let id = reactor.spawn(command.stdout(Stdio::captured()).stderr(Stdio::captured())).unwrap();
        drop(command);
        // More than one turn takes from the kernel, and the context before the exit: a turn deals with exits first.
        let mut crowd = Command::new("sleep");
        crowd.arg("60").kill_on_drop(true);
        let others: Vec<Context> = (0..1100).map(|_| Context::new()).collect();
        others.iter().for_each(|other| {
            crowd.context(other);
        });
        reactor.spawn(&crowd).unwrap();
        reactor.turn(Some(Duration::ZERO)).unwrap();
        let pid = reactor.pid(id).unwrap();
        ctx.cancel();
        others.iter().for_each(Context::cancel);
        drop(gate);
        eventually("it is dead", || state(pid) == Some('Z'));
        let ended = next_ended(&mut reactor, id);
        assert_eq!((ended.exit().code(), ended.exit().cause()), (Some(7), None));
        assert!(ended.exit().held_open().stderr);
        kill_holder(&ended.into_output().stdout);
    });
}

#[test]
fn a_stop_that_sends_nothing_still_ends_the_capture_at_the_exit() {
    let ctx = Context::new();
    let mut command = holding("read _; exit 7");
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::captured())
        .stderr(Stdio::captured())
        .context(&ctx)
        .cancel(Cancel::Nothing)
        .spawn()
        .unwrap();
    let stdin = child.take_stdin();
    ctx.cancel();
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.exit().code(), output.exit().cause()), (Some(7), None));
    assert!(output.exit().held_open().stderr);
    kill_holder(&output.stdout);
}

// ── helpers ──

/// A shell that leaves a grandchild on its stderr and prints the grandchild's pid.
fn holding(end: &str) -> Command {
    sh(&format!("sleep 60 >/dev/null & echo $!; {end}"))
}

fn kill_holder(stdout: &[u8]) {
    let pid: i32 = String::from_utf8_lossy(stdout).trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Turns until this child is reported.
fn next_ended(reactor: &mut Reactor, id: ChildId) -> Ended {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < SOON, "not in time");
        reactor.turn(Some(MOMENT)).unwrap();
        while let Some(ended) = reactor.next_exit() {
            if ended.id() == id {
                return ended;
            }
        }
    }
}
