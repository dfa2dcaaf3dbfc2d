//! Group A of the scenarios, promises 1 to 5 and 10: what a cancel, a deadline and a delay do to a child, each by its number. Knows the public API alone.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, eventually, exists, in_own_process, open_descriptors, sh, spawn_ready};
use pidloop::{Cancel, Cause, Child, Command, Context, ErrorKind, Reactor, Signal, Stdio, Step};

const MOMENT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a04_a_cancel_from_another_thread_ends_a_wait() {
    let ctx = Context::new();
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).context(&ctx).spawn().unwrap();
    let mut stdin = child.take_stdin().unwrap();
    let mut stdout = child.take_stdout().unwrap();
    stdin.write_all(b"line\n").unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| ctx.cancel());
        assert_eq!(child.wait().unwrap().check().unwrap_err().kind(), ErrorKind::Cancelled);
    });
}

#[test]
fn a05_a_cancelled_context_starts_nothing_and_keeps_nothing_open() {
    in_own_process("a05_a_cancelled_context_starts_nothing_and_keeps_nothing_open", || {
        Command::new("true").status().unwrap();
        let ctx = Context::new();
        ctx.cancel();
        let before = open_descriptors();
        // It would leave this behind.
        let path = std::env::temp_dir().join(format!("pidloop-{}-a05", std::process::id()));
        let mut command = Command::new("touch");
        command.arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::captured()).context(&ctx);
        let error = command.spawn().unwrap_err();
        assert_eq!((error.kind(), error.cause()), (ErrorKind::Cancelled, Some(&Cause::Cancelled)));
        assert!(error.exit().is_none());
        assert_eq!(open_descriptors(), before);
        assert_eq!(children_of_ours(), []);
        assert!(!path.exists());
    });
}

#[test]
fn a06_a_deadline_in_the_past_starts_nothing() {
    let ctx = Context::new().with_deadline(Instant::now() - MOMENT);
    let error = Command::new("true").context(&ctx).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let error = Command::new("true").timeout(Duration::ZERO).status().unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::DeadlineExceeded, Some(&Cause::DeadlineExceeded)));
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn a07_a_timeout_kills_and_is_never_early() {
    let limit = Duration::from_millis(100);
    let ctx = std::cell::OnceCell::new();
    let by_context: &dyn Fn(&mut Command) = &|command| {
        command.context(ctx.get_or_init(|| Context::new().with_timeout(limit)));
    };
    let by_command: &dyn Fn(&mut Command) = &|command| {
        command.timeout(limit);
    };
    for limited in [by_context, by_command] {
        let set_at = Instant::now();
        let mut command = Command::new("sleep");
        limited(command.arg("5"));
        let error = command.run().unwrap_err();
        let exit = error.exit().unwrap();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(exit.to_string(), "signal: killed");
        assert!(exit.elapsed() < Duration::from_secs(4));
        assert!(set_at.elapsed() >= limit);
    }
    assert_eq!(ctx.get().unwrap().cause(), Some(Cause::DeadlineExceeded));
}

#[test]
fn a08_a_cancel_after_the_wait_changes_nothing() {
    let ctx = Context::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let mut called = Command::new("true");
    called.context(&ctx).cancel(Cancel::call(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }));
    let called = called.spawn().unwrap();
    // Whoever is left of its group would hear a signal.
    let (mut command, mut to_left, mut from_left) = leaving_an_echo("exit 0");
    let leader = command.group().context(&ctx).spawn().unwrap();
    drop(command);
    let stopped = Command::new("sleep").arg("60").context(&ctx).spawn().unwrap();
    for child in [&called, &leader] {
        assert!(child.wait().unwrap().success());
    }
    ctx.cancel();
    assert_eq!(stopped.wait().unwrap().cause(), Some(&Cause::Cancelled));
    echoes(&mut to_left, &mut from_left);
    for child in [&called, &leader] {
        let again = child.wait().unwrap();
        assert!(again.success() && again.cause().is_none());
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[test]
fn a09_a_child_without_a_context_takes_no_eventfd() {
    in_own_process("a09_a_child_without_a_context_takes_no_eventfd", || {
        let eventfds = || open_descriptors().iter().filter(|(_, what)| what.contains("eventfd")).count();
        Command::new("true").spawn().unwrap().wait().unwrap();
        let before = eventfds();
        let (child, _stdout) = spawn_ready(&mut sh("echo ready; exec sleep 60"));
        assert_eq!(eventfds(), before);
        let ctx = Context::new();
        let (other, _stdout) = spawn_ready(sh("echo ready; exec sleep 60").context(&ctx));
        assert_eq!(eventfds(), before + 1);
        child.kill().unwrap();
        ctx.cancel();
        child.wait().unwrap();
        other.wait().unwrap();
    });
}

#[test]
fn a10_the_default_cancel_kills_the_child_alone() {
    let ctx = Context::new();
    let (mut command, mut to_grandchild, mut from_grandchild) = leaving_an_echo("wait");
    let child = command.context(&ctx).spawn().unwrap();
    drop(command);
    echoes(&mut to_grandchild, &mut from_grandchild);
    ctx.cancel();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
    echoes(&mut to_grandchild, &mut from_grandchild);
}

#[test]
fn a11_a_child_that_handles_the_signal_keeps_its_status_and_its_cause() {
    let ctx = Context::new();
    let script = "trap 'exit 0' INT; echo ready; while :; do sleep 0.01; done";
    let (child, _stdout) = spawn_ready(sh(script).context(&ctx).cancel(Cancel::Signal(Signal::SIGINT)));
    ctx.cancel();
    let exit = child.wait().unwrap();
    assert_eq!((exit.code(), exit.cause()), (Some(0), Some(&Cause::Cancelled)));
    assert_eq!(exit.check().unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a12_a_child_that_ignores_the_signal_is_killed_after_the_delay() {
    let ctx = Context::new();
    let mut command = sh("trap '' INT; echo ready; exec sleep 60");
    command.context(&ctx).cancel(Cancel::Signal(Signal::SIGINT)).wait_delay(Duration::from_millis(10));
    let (child, _stdout) = spawn_ready(&mut command);
    ctx.cancel();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
}

#[test]
fn a14_nothing_is_sent_and_the_childs_own_end_counts() {
    let ctx = Context::new();
    let mut command = sh("trap 'exit 0' INT; echo ready; while :; do sleep 0.01; done");
    let (child, _stdout) = spawn_ready(command.context(&ctx).cancel(Cancel::Nothing).wait_delay(LONG));
    ctx.cancel();
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    child.signal(Signal::SIGINT).unwrap();
    let exit = child.wait().unwrap();
    assert!(exit.success() && exit.cause().is_none(), "{exit:?}");
}

#[test]
fn a15_without_a_cancel_there_is_nothing_to_tell() {
    let exit = Command::new("true").context(&Context::new()).run().unwrap();
    assert_eq!((exit.code(), exit.cause(), exit.output_held_open()), (Some(0), None, false));
}

#[test]
fn a17_a_stream_held_after_a_clean_exit_is_an_error() {
    let error = holding("exit 0").wait_delay(MOMENT * 4).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutputCut);
    let exit = error.exit().unwrap();
    assert!(exit.success() && exit.held_open().stderr && !exit.held_open().stdout);
    kill_holder(&error.output().unwrap().stdout);
}

#[test]
fn a18_a_non_success_is_blamed_before_the_held_stream() {
    let mut command = holding("exit 3");
    let error = command.stdout(Stdio::captured()).stderr(Stdio::captured()).wait_delay(MOMENT * 4).run().unwrap_err();
    assert_eq!((error.kind(), error.exit().unwrap().code()), (ErrorKind::Unsuccessful, Some(3)));
    assert!(error.exit().unwrap().output_held_open());
    kill_holder(&error.output().unwrap().stdout);
}

#[test]
fn a19_without_a_delay_the_output_of_a_grandchild_is_awaited() {
    let start = Instant::now();
    let output = sh("(sleep 0.3; echo late) & echo early").output().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(output.stdout, b"early\nlate\n");
    assert!(!output.exit().output_held_open());
}

#[test]
fn a20_the_delay_alone_kills_and_is_never_early() {
    let ctx = Context::new();
    let (child, _stdout) =
        spawn_ready(sh("echo ready; exec sleep 60").context(&ctx).cancel(Cancel::Nothing).wait_delay(MOMENT));
    let start = Instant::now();
    ctx.cancel();
    let exit = child.wait().unwrap();
    assert!(start.elapsed() >= MOMENT);
    assert_eq!((exit.to_string().as_str(), exit.cause()), ("signal: killed", Some(&Cause::Cancelled)));
}

/// A shell that ends by `end` at SIGINT, stopped by a closure that sends that and then returns what `result` makes.
fn stopped_by_a_closure(end: &str, result: fn() -> std::io::Result<()>) -> pidloop::Exit {
    let ctx = Context::new();
    let mut command = sh(&format!("trap '{end}' INT; echo ready; while :; do sleep 0.01; done"));
    command.context(&ctx).cancel(Cancel::call(move |target| {
        target.signal(Signal::SIGINT)?;
        result()
    }));
    let (child, _stdout) = spawn_ready(&mut command);
    ctx.cancel();
    child.wait().unwrap()
}

#[test]
fn a21_a_closure_that_fails_stopped_nothing_and_is_told_after_a_success() {
    #[derive(Debug)]
    struct Arbitrary;
    impl std::fmt::Display for Arbitrary {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("arbitrary")
        }
    }
    impl std::error::Error for Arbitrary {}

    let exit = stopped_by_a_closure("exit 0", || Err(std::io::Error::other(Arbitrary)));
    assert_eq!((exit.code(), exit.cause()), (Some(0), None));
    let error = exit.check().unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::CancelFailed, None));
    assert!(error.to_string().contains("canceling the command failed: arbitrary"), "{error}");
    // The caller finds its own error.
    assert!(std::error::Error::source(&error).unwrap().source().unwrap().is::<Arbitrary>());

    // Without the hook, which prints: that may take longer than the closure is waited for.
    let exit = stopped_by_a_closure("exit 0", || std::panic::resume_unwind(Box::new("as asked")));
    let error = exit.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CancelFailed);
    assert!(error.to_string().contains("canceling the command failed: the closure panicked: as asked"), "{error}");
}

#[test]
fn a22_a_closure_that_comes_too_late_stopped_nothing() {
    for gone in [
        || Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
        || Err(std::io::Error::other(std::io::Error::from_raw_os_error(libc::ESRCH))),
    ] {
        let exit = stopped_by_a_closure("exit 0", gone);
        assert_eq!((exit.code(), exit.cause()), (Some(0), None));
        exit.check().unwrap();
    }
}

#[test]
fn a23_a_failing_closure_is_followed_by_the_delays_kill_which_is_a_stop() {
    let ctx = Context::new();
    let mut command = sh("echo ready; exec sleep 60");
    command.context(&ctx).wait_delay(MOMENT).cancel(Cancel::call(|_| Err(std::io::Error::other("no"))));
    let (child, _stdout) = spawn_ready(&mut command);
    ctx.cancel_with("enough");
    let exit = child.wait().unwrap();
    assert_eq!(exit.to_string(), "signal: killed");
    assert_eq!(exit.cause().unwrap().to_string(), "enough");
    assert_eq!(exit.check().unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a25_after_a_closure_that_fails_a_non_success_is_blamed() {
    let exit = stopped_by_a_closure("exit 1", || Err(std::io::Error::other("arbitrary")));
    assert_eq!((exit.code(), exit.cause()), (Some(1), None));
    assert_eq!(exit.check().unwrap_err().kind(), ErrorKind::Unsuccessful);
}

#[test]
fn a_group_whose_closure_failed_is_not_being_stopped_and_its_leader_is_reaped() {
    let ctx = Context::new();
    let mut command = sh("sleep 0.5 & echo ready; wait");
    command.group().context(&ctx).cancel(Cancel::call(|target| {
        // SAFETY: kill(2) of our own child, which is not reaped while this runs.
        unsafe { libc::kill(target.id() as i32, libc::SIGTERM) };
        // It is dead before this returns.
        let (_never, told) = std::sync::mpsc::channel::<()>();
        let _ = told.recv_timeout(MOMENT / 2);
        Err(std::io::Error::other("no"))
    }));
    let (child, mut stdout) = spawn_ready(&mut command);
    let start = Instant::now();
    ctx.cancel();
    let exit = child.wait_timeout(SOON).unwrap().expect("in time");
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGTERM), None));
    eventually("it is reaped", || !exists(child.id()));
    // Its member ends by itself.
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_closure_that_succeeds_is_a_stop_whatever_the_status() {
    for (end, code) in [("exit 0", 0), ("exit 1", 1)] {
        let exit = stopped_by_a_closure(end, || Ok(()));
        assert_eq!((exit.code(), exit.cause()), (Some(code), Some(&Cause::Cancelled)));
        assert_eq!(exit.check().unwrap_err().kind(), ErrorKind::Cancelled);
    }
}

#[test]
fn a27_two_reasons_call_the_closure_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let ctx = Context::new().with_timeout(MOMENT);
    let other = Context::new();
    let mut command = sh("echo ready; exec sleep 60");
    let counter = calls.clone();
    command.context(&ctx).context(&other).timeout(MOMENT).wait_delay(MOMENT * 4).cancel(Cancel::call(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }));
    let (child, _stdout) = spawn_ready(&mut command);
    other.cancel();
    ctx.cancel();
    child.wait().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a28_a_failed_start_never_calls_the_closure() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let ctx = Context::new();
    let mut command = Command::new("/no/such/program");
    command.context(&ctx).cancel(Cancel::call(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }));
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
    ctx.cancel();
    Command::new("true").spawn().unwrap().wait().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[test]
fn a30_a_closure_that_blocks_does_not_hold_up_the_delay() {
    let ctx = Context::new();
    let (block, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let mut command = sh("echo ready; exec sleep 60");
    command.context(&ctx).wait_delay(MOMENT).cancel(Cancel::call(move |_| {
        let _ = blocked.lock().unwrap().recv_timeout(SOON);
        Ok(())
    }));
    let (child, _stdout) = spawn_ready(&mut command);
    let start = Instant::now();
    ctx.cancel();
    assert_eq!(child.wait_timeout(SOON / 2).unwrap().unwrap().signal(), Some(Signal::SIGKILL));
    assert!(start.elapsed() >= MOMENT);
    drop(block);
}

#[test]
fn a31_a32_a_cancel_after_the_exit_is_too_late() {
    let calls = Arc::new(AtomicUsize::new(0));
    let stopped_by = |ctx: &Context| {
        let counter = calls.clone();
        let mut command = Command::new("true");
        command.context(ctx).cancel(Cancel::call(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        command
    };
    let ctx = Context::new();
    let child = stopped_by(&ctx).spawn().unwrap();
    eventually("it is dead", || matches!(common::state(child.id()), None | Some('Z')));
    ctx.cancel();
    let exit = child.wait().unwrap();
    assert!(exit.success() && exit.cause().is_none());

    // A loop that nobody has turned since hears of both at once.
    let ctx = Context::new();
    let mut reactor = Reactor::new().unwrap();
    let id = reactor.spawn(&stopped_by(&ctx)).unwrap();
    let pid = reactor.pid(id).unwrap();
    ctx.cancel();
    eventually("it is dead", || common::state(pid) == Some('Z'));
    let ended = loop {
        reactor.turn(Some(SOON)).unwrap();
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
    };
    assert!(ended.exit().success() && ended.exit().cause().is_none());
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[test]
fn a33_a_cancel_while_draining_ends_the_capture_and_keeps_the_status() {
    let ctx = Context::new();
    let child = holding("exit 0").stdout(Stdio::captured()).stderr(Stdio::captured()).context(&ctx).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    ctx.cancel();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.exit().cause().is_none() && output.exit().output_held_open());
    kill_holder(&output.stdout);
}

#[test]
fn a34_a_taken_pipe_is_never_cut() {
    let ctx = Context::new();
    let mut command = sh("(sleep 0.5; echo late) & echo ready; wait");
    let (child, mut stdout) = spawn_ready(command.context(&ctx).wait_delay(MOMENT));
    ctx.cancel();
    child.wait().unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "late\n");
}

#[test]
fn a36_a_long_delay_holds_nothing_up() {
    let start = Instant::now();
    let output = Command::new("echo").arg("x").wait_delay(LONG).output().unwrap();
    assert!(output.stdout == b"x\n" && start.elapsed() < SOON);
    // No timer survives.
    let mut reactor = Reactor::new().unwrap();
    reactor.spawn(Command::new("echo").stdout(Stdio::captured()).wait_delay(LONG)).unwrap();
    while reactor.next_exit().is_none() {
        reactor.turn(Some(SOON)).unwrap();
    }
    assert_eq!(reactor.next_timeout(), None);
}

#[test]
fn a38_hanging_and_exiting_children_side_by_side() {
    let ctx = Context::new();
    let mut hanging = Command::new("cat");
    hanging.stdin(Stdio::piped()).stdout(Stdio::null()).context(&ctx).cancel(Cancel::CloseStdin);
    let hangers: Vec<_> = (0..20).map(|_| hanging.spawn().unwrap()).collect();
    let exiters: Vec<_> = (0..20).map(|_| Command::new("true").context(&ctx).spawn().unwrap()).collect();
    for child in exiters {
        child.wait().unwrap().check().unwrap();
    }
    ctx.cancel();
    for child in hangers {
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a39_one_cancel_ends_a_thousand() {
    let ctx = Context::new();
    let mut command = Command::new("sleep");
    command.arg("60").context(&ctx);
    let children: Vec<_> = (0..1000).map(|_| command.spawn().unwrap()).collect();
    ctx.cancel();
    for child in &children {
        let exit = child.wait_timeout(SOON).unwrap().expect("in time");
        assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), Some(&Cause::Cancelled)));
    }
}

#[test]
fn a41_closing_stdin_is_a_stop_too() {
    let ctx = Context::new();
    let child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .context(&ctx)
        .cancel(Cancel::CloseStdin)
        .spawn()
        .unwrap();
    ctx.cancel();
    eventually("it is dead", || child.try_wait().unwrap().is_some());
    let exit = child.wait().unwrap();
    assert_eq!((exit.code(), exit.cause()), (Some(0), Some(&Cause::Cancelled)));
}

#[test]
fn a42_the_cause_is_in_the_exit() {
    let ctx = Context::new();
    let child = Command::new("sleep").arg("60").context(&ctx.child_context()).spawn().unwrap();
    ctx.cancel_with("client went away");
    let exit = child.wait().unwrap();
    assert_eq!(exit.cause().unwrap().to_string(), "client went away");
    assert_eq!(exit.check().unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn h175_a_ladder_is_climbed_step_by_step_and_ends_in_sigkill() {
    let ctx = Context::new();
    let script = "trap 'echo int' INT; trap 'echo term' TERM; echo ready; while :; do read line; done";
    let (input, _kept) = common::pipe();
    let mut command = sh(script);
    command.stdin(input);
    let steps = vec![(Step::Signal(Signal::SIGINT), MOMENT * 10), (Step::Signal(Signal::SIGTERM), MOMENT * 10)];
    let (child, mut stdout) = spawn_ready(command.context(&ctx).cancel(Cancel::Steps(steps)));
    let start = Instant::now();
    ctx.cancel();
    let exit = child.wait().unwrap();
    assert!(start.elapsed() >= MOMENT * 20);
    assert_eq!(exit.signal(), Some(Signal::SIGKILL));
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "int\nterm\n");
}

/// The second SIGTERM ends it: nothing is sent after that, and nobody waits for what is left of the ladder.
#[test]
fn h175_a_ladder_ends_with_the_child() {
    let ctx = Context::new();
    let script = "n=0; trap 'n=$((n+1)); [ $n = 2 ] && exit 5' TERM; echo ready; while :; do read line; done";
    let (input, _kept) = common::pipe();
    let mut command = sh(script);
    command.stdin(input);
    let steps = vec![(Step::Signal(Signal::SIGTERM), MOMENT), (Step::Signal(Signal::SIGTERM), LONG)];
    let (child, _stdout) = spawn_ready(command.context(&ctx).cancel(Cancel::Steps(steps)));
    let start = Instant::now();
    ctx.cancel();
    let exit = child.wait_timeout(SOON).unwrap().expect("in time");
    assert!(start.elapsed() >= MOMENT);
    assert_eq!((exit.code(), exit.cause()), (Some(5), Some(&Cause::Cancelled)));
}

#[test]
fn sigterm_reaches_a_stopped_child() {
    let ctx = Context::new();
    let (child, _stdout) = spawn_ready(
        sh("echo ready; kill -STOP $$; exec sleep 60").context(&ctx).cancel(Cancel::Signal(Signal::SIGTERM)),
    );
    eventually("it is stopped", || common::is_stopped(child.id()));
    ctx.cancel();
    assert_eq!(child.wait_timeout(SOON).unwrap().unwrap().signal(), Some(Signal::SIGTERM));
}

#[test]
fn several_contexts_and_the_first_to_fire_wins() {
    let contexts = [Context::new(), Context::new(), Context::new()];
    let mut command = Command::new("sleep");
    command.arg("60");
    contexts.iter().for_each(|ctx| {
        command.context(ctx);
    });
    let child = command.spawn().unwrap();
    contexts[1].cancel_with("second");
    let exit = child.wait().unwrap();
    contexts[0].cancel_with("first");
    assert_eq!(exit.cause().unwrap().to_string(), "second");
}

#[test]
fn writing_the_cancel_fd_cancels() {
    let ctx = Context::new();
    let child = Command::new("sleep").arg("60").context(&ctx.child_context()).spawn().unwrap();
    rustix::io::write(ctx.cancel_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
    let exit = child.wait_timeout(SOON).unwrap().unwrap();
    assert_eq!((exit.cause(), ctx.is_cancelled()), (Some(&Cause::Cancelled), true));
}

/// A shell that leaves a grandchild on its stderr and prints the grandchild's pid.
fn holding(end: &str) -> Command {
    sh(&format!("sleep 60 >/dev/null & echo $!; {end}"))
}

/// A shell that leaves a grandchild which has no file of ours but two pipes, and sends back through the second what comes through the first;
/// then does as `end` says.
fn leaving_an_echo(end: &str) -> (Command, File, File) {
    let ((read, ours), (theirs, write)) = (common::pipe(), common::pipe());
    let mut command = sh(&format!("cat <&3 >&4 2>/dev/null & exec 3<&- 4>&-; {end}"));
    command.fd(3, read).fd(4, write).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (command, ours, theirs)
}

/// That somebody is there, and answers.
fn echoes(to: &mut File, from: &mut File) {
    to.write_all(b"x").unwrap();
    assert_eq!(from.read(&mut [0]).unwrap(), 1, "it is gone");
}

fn kill_holder(stdout: &[u8]) {
    kill(String::from_utf8_lossy(stdout).trim().parse().unwrap());
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// An error that says which thread dropped it, and takes its time.
#[derive(Debug)]
struct Noted(std::sync::mpsc::Sender<String>, Child);

impl std::fmt::Display for Noted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("noted")
    }
}

impl std::error::Error for Noted {}

impl Drop for Noted {
    fn drop(&mut self) {
        // Which needs the locks of its loop.
        self.1.kill().unwrap();
        self.1.wait().unwrap();
        let _ = self.0.send(std::thread::current().name().unwrap_or_default().to_owned());
    }
}

/// Promise 10: whoever lets a caller's error go last, its destructor runs on no loop's thread, and under no lock.
#[test]
fn an_error_that_was_given_as_a_cause_is_dropped_by_no_loop() {
    let (sender, names) = std::sync::mpsc::channel();
    let sleep = || {
        let mut command = Command::new("sleep");
        command.arg("60");
        command
    };
    for round in 0..60 {
        let ctx = Context::new();
        let below = if round % 2 == 0 { ctx.clone() } else { ctx.with_timeout(SOON) };
        let child = sleep().context(&below).stdout(Stdio::captured()).spawn().unwrap();
        let noted = Noted(sender.clone(), sleep().spawn().unwrap());
        drop(below);
        ctx.cancel_with(Box::<dyn std::error::Error + Send + Sync>::from(noted));
        match round % 3 {
            0 => drop((ctx, child)),
            1 => drop((child, ctx)),
            _ => {
                drop(ctx);
                let exit = child.wait().unwrap();
                assert_eq!(exit.cause().unwrap().to_string(), "noted");
                drop(child);
                drop(exit);
            }
        }
    }
    for _ in 0..60 {
        let name = names.recv_timeout(SOON).expect("it is dropped");
        assert_ne!(name, "pidloop");
    }
}
