//! Promise 7 for futures: the same as the verbs that block, and what dropping each of them does. Knows the public API; its runtime is one
//! thread that parks.

mod common;

use std::fs::File;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{self, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use common::{
    SOON, Scratch, children_of_ours, eventually, exists, in_own_process, open_descriptors, sh, spawn_ready,
    suspend_exec, threads,
};
use pidloop::{Cause, Command, Context, Driver, ErrorKind, Signal, Stdio};

/// How many spawner threads there are at most.
const SPAWNERS_MAX: usize = 16;

struct Unparker(Thread);

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unparker(thread::current())));
    let start = Instant::now();
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut task::Context::from_waker(&waker)) {
            return result;
        }
        assert!(start.elapsed() < SOON, "nobody wakes it");
        thread::park_timeout(SOON);
    }
}

fn poll_once<T>(future: &mut Pin<Box<impl Future<Output = T> + ?Sized>>) -> Poll<T> {
    future.as_mut().poll(&mut task::Context::from_waker(Waker::noop()))
}

#[test]
fn each_twin_says_what_its_blocking_one_says() {
    let child = block_on(sh("exit 3").spawn_async()).unwrap();
    assert_eq!(block_on(child.wait_async()).unwrap().code(), Some(3));
    assert_eq!(block_on(child.wait_async()).unwrap().code(), Some(3));
    assert_eq!(block_on(sh("exit 3").status_async()).unwrap().code(), Some(3));
    assert!(block_on(sh("exit 0").run_async()).unwrap().success());
    let error = block_on(sh("echo why >&2; exit 3").stderr(Stdio::captured()).run_async()).unwrap_err();
    assert_eq!((error.kind(), error.output().unwrap().stderr.as_slice()), (ErrorKind::Unsuccessful, &b"why\n"[..]));
    let output = block_on(sh("echo out; echo err >&2; exit 4").output_async()).unwrap();
    assert_eq!((output.status.code(), output.stdout, output.stderr), (Some(4), b"out\n".into(), b"err\n".into()));
    let output = block_on(sh("echo out; echo err >&2").combined_output_async()).unwrap();
    assert_eq!(output.stdout, b"out\nerr\n");
    let child = sh("echo out").stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(block_on(child.wait_with_output_async()).unwrap().stdout, b"out\n");
    let (child, _stdout) = spawn_ready(&mut sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"));
    let exit = block_on(child.terminate_async(SOON)).unwrap();
    assert_eq!((exit.code(), exit.cause()), (Some(5), Some(&Cause::Terminated)));
}

#[test]
fn errors_are_the_same() {
    let missing = Command::new("/no/such/program");
    for error in [
        block_on(missing.spawn_async()).unwrap_err(),
        block_on(missing.status_async()).unwrap_err(),
        block_on(missing.run_async()).unwrap_err(),
        block_on(missing.output_async()).unwrap_err(),
        block_on(missing.combined_output_async()).unwrap_err(),
        block_on(Driver::new().unwrap().spawn_async(&missing)).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.command()), (ErrorKind::NotFound, Some("/no/such/program")), "{error}");
    }
    let error = block_on(Command::new("sleep").arg("60").timeout(Duration::from_millis(50)).status_async());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    let driver = Driver::new().unwrap();
    driver.shutdown(Duration::ZERO, Duration::ZERO);
    assert_eq!(block_on(driver.spawn_async(&Command::new("true"))).unwrap_err().kind(), ErrorKind::ShutDown);
}

/// Before the first poll, after it, and when the child runs.
#[test]
fn what_is_dropped_half_way_leaves_no_child() {
    in_own_process("what_is_dropped_half_way_leaves_no_child", || {
        Command::new("true").output().unwrap();
        block_on(Command::new("true").status_async()).unwrap();
        let before = open_descriptors();
        let mut command = Command::new("sleep");
        command.arg("3600").stdin(Stdio::piped());
        let futures = || -> Vec<Pin<Box<dyn Future<Output = ()> + Send>>> {
            let (spawn, status, run) = (command.spawn_async(), command.status_async(), command.run_async());
            let (output, combined) = (command.output_async(), command.combined_output_async());
            vec![
                Box::pin(async { drop(spawn.await) }),
                Box::pin(async { drop(status.await) }),
                Box::pin(async { drop(run.await) }),
                Box::pin(async { drop(output.await) }),
                Box::pin(async { drop(combined.await) }),
            ]
        };
        drop(futures());
        assert_eq!(children_of_ours(), []);
        for _ in 0..20 {
            for mut future in futures() {
                assert!(poll_once(&mut future).is_pending());
            }
        }
        for (which, mut future) in futures().into_iter().enumerate() {
            assert!(poll_once(&mut future).is_pending());
            eventually("it runs", || !children_of_ours().is_empty());
            // By now it may wait for the child's end; a spawn that has come to its end would have handed the child over.
            if which > 0 {
                let _ = poll_once(&mut future);
            }
            drop(future);
            eventually("it is killed and reaped", || children_of_ours().is_empty());
        }
        eventually("all is given back", || children_of_ours().is_empty() && open_descriptors() == before);
    });
}

/// Its creator is suspended between clone and exec: also there it is killed.
#[test]
fn a_spawn_that_hangs_is_ended_by_dropping_it_and_holds_up_no_other() {
    in_own_process("a_spawn_that_hangs_is_ended_by_dropping_it_and_holds_up_no_other", || {
        let program = std::env::temp_dir().join(format!("pidloop-{}-leased", std::process::id()));
        std::fs::copy("/bin/true", &program).unwrap();
        let suspended = suspend_exec(&program);
        let mut hanging = Box::pin(Command::new(&program).spawn_async());
        assert!(poll_once(&mut hanging).is_pending());
        eventually("it is half born", || !children_of_ours().is_empty());
        for _ in 0..20 {
            assert!(block_on(Command::new("true").status_async()).unwrap().success());
        }
        assert!(poll_once(&mut hanging).is_pending());
        drop(hanging);
        eventually("it is killed and reaped", || children_of_ours().is_empty());
        drop(suspended);
        assert!(block_on(Command::new(&program).status_async()).unwrap().success());
        std::fs::remove_file(program).unwrap();
    });
}

/// However many hang: who waits behind them is stopped like everybody else, and told why.
#[test]
fn a_spawn_that_waits_for_its_turn_leaves_by_its_context_its_deadline_its_drop_and_a_shutdown() {
    in_own_process(
        "a_spawn_that_waits_for_its_turn_leaves_by_its_context_its_deadline_its_drop_and_a_shutdown",
        || {
            let scratch = Scratch::new("queued");
            let program = scratch.0.join("leased");
            std::fs::copy("/bin/true", &program).unwrap();
            let suspended = suspend_exec(&program);
            Command::new("true").output().unwrap();
            let (ctx, before) = (Context::new(), open_descriptors());
            let mut hanging: Vec<_> =
                (0..SPAWNERS_MAX).map(|_| Box::pin(Command::new(&program).context(&ctx).spawn_async())).collect();
            hanging.iter_mut().for_each(|future| assert!(poll_once(future).is_pending()));
            // Each that got stuck was replaced, up to the last one.
            eventually("all spawners hang", || children_of_ours().len() == SPAWNERS_MAX);

            let marked = scratch.0.join("marked");
            let mut touch = Command::new("touch");
            touch.arg(&marked);
            let mut dropped = Box::pin(touch.spawn_async());
            assert!(poll_once(&mut dropped).is_pending());
            drop(dropped);
            let own = ctx.child_context();
            let mut cancelled = Box::pin(touch.clone().context(&own).output_async());
            assert!(poll_once(&mut cancelled).is_pending());
            own.cancel_with("not any more");
            let error = block_on(cancelled).unwrap_err();
            assert_eq!(
                (error.kind(), error.cause()),
                (ErrorKind::Cancelled, Some(&Cause::from("not any more"))),
                "{error}"
            );
            assert!(error.command().unwrap().starts_with("touch ") && error.exit().is_none());
            let error = block_on(touch.clone().timeout(Duration::from_millis(20)).status_async()).unwrap_err();
            assert_eq!((error.kind(), error.exit().is_none()), (ErrorKind::DeadlineExceeded, true), "{error}");
            // A blocking one that needs a thread that lives as long as the process.
            let mut tied = touch.clone();
            tied.parent_death_signal(Signal::SIGKILL).timeout(Duration::from_millis(20));
            assert_eq!(tied.spawn().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
            let driver = Driver::new().unwrap();
            let mut refused = Box::pin(driver.spawn_async(&touch));
            assert!(poll_once(&mut refused).is_pending());
            assert!(driver.shutdown(Duration::from_secs(60), Duration::ZERO).is_empty());
            assert_eq!(block_on(refused).unwrap_err().kind(), ErrorKind::ShutDown);
            drop(driver);

            let mut waiting = Box::pin(Command::new("true").status_async());
            assert!(poll_once(&mut waiting).is_pending());
            ctx.cancel();
            for future in hanging {
                assert_eq!(block_on(future).unwrap_err().kind(), ErrorKind::Cancelled);
            }
            assert!(block_on(waiting).unwrap().success());
            assert!(!marked.exists());
            drop(suspended);
            let own_thread_may_still_close = || open_descriptors().len() <= before.len() + 1;
            eventually("all is given back", || children_of_ours().is_empty() && own_thread_may_still_close());
        },
    );
}

/// Two work at a time: one that hangs takes the place of nobody for long.
#[test]
fn one_spawn_that_hangs_costs_the_others_nothing() {
    in_own_process("one_spawn_that_hangs_costs_the_others_nothing", || {
        let scratch = Scratch::new("stuck");
        let program = scratch.0.join("leased");
        std::fs::copy("/bin/true", &program).unwrap();
        let suspended = suspend_exec(&program);
        let mut hanging: Vec<_> = (0..4).map(|_| Box::pin(Command::new(&program).spawn_async())).collect();
        hanging.iter_mut().for_each(|future| assert!(poll_once(future).is_pending()));
        let mut others: Vec<_> = (0..50).map(|_| Box::pin(Command::new("true").status_async())).collect();
        others.iter_mut().for_each(|future| assert!(poll_once(future).is_pending()));
        others.into_iter().for_each(|future| assert!(block_on(future).unwrap().success()));
        assert_eq!(children_of_ours().len(), 4);
        drop(suspended);
        hanging.into_iter().for_each(|future| assert!(block_on(future).unwrap().wait().unwrap().success()));
    });
}

#[test]
fn dropping_a_wait_or_a_terminate_leaves_the_child_to_itself() {
    let (child, _stdout) = spawn_ready(&mut sh("trap '' TERM; echo ready; while :; do sleep 0.01; done"));
    let mut wait = Box::pin(child.wait_async());
    assert!(poll_once(&mut wait).is_pending());
    drop(wait);
    drop(child.terminate_async(Duration::ZERO));
    assert!(child.wait_timeout(Duration::from_millis(20)).unwrap().is_none());
    let mut terminate = Box::pin(child.terminate_async(Duration::from_millis(50)));
    assert!(poll_once(&mut terminate).is_pending());
    drop(terminate);
    let exit = child.wait_timeout(SOON).unwrap().expect("SIGKILL follows");
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), Some(&Cause::Terminated)));
}

#[test]
fn a_dropped_wait_with_output_drops_the_child() {
    let mut command = sh("echo out; exec sleep 60");
    let child = command.stdout(Stdio::captured()).kill_on_drop(true).spawn().unwrap();
    let pid = child.id();
    let mut waiting = Box::pin(child.wait_with_output_async());
    assert!(poll_once(&mut waiting).is_pending());
    assert!(exists(pid));
    drop(waiting);
    eventually("it is killed and reaped", || !exists(pid));
}

#[test]
fn hundreds_at_once_take_a_few_threads() {
    in_own_process("hundreds_at_once_take_a_few_threads", || {
        Command::new("true").status().unwrap();
        let before = threads();
        let ctx = Context::new();
        let mut command = Command::new("sleep");
        command.arg("3600").context(&ctx);
        let mut spawning: Vec<_> = (0..300).map(|_| Box::pin(command.spawn_async())).collect();
        for future in &mut spawning {
            let _ = poll_once(future);
        }
        assert!(threads() <= before + SPAWNERS_MAX, "{} threads", threads() - before);
        let children: Vec<_> = spawning.into_iter().map(|future| block_on(future).unwrap()).collect();
        assert!(threads() <= before + SPAWNERS_MAX, "{} threads", threads() - before);
        ctx.cancel();
        for child in children {
            assert_eq!(block_on(child.wait_async()).unwrap().cause(), Some(&Cause::Cancelled));
        }
    });
}

#[test]
fn a_program_file_that_is_being_written_is_tried_again() {
    in_own_process("a_program_file_that_is_being_written_is_tried_again", || {
        let program = std::env::temp_dir().join(format!("pidloop-{}-busy", std::process::id()));
        std::fs::copy("/bin/cat", &program).unwrap();
        let writer = File::options().append(true).open(&program).unwrap();
        let start = Instant::now();
        let error = block_on(Command::new(&program).spawn_async()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY));
        assert!(start.elapsed() >= Duration::from_millis(50));
        let mut trying = Box::pin(Command::new(&program).stdin(Stdio::bytes("kept")).output_async());
        assert!(poll_once(&mut trying).is_pending());
        drop(writer);
        assert_eq!(block_on(trying).unwrap().stdout, b"kept");
        std::fs::remove_file(program).unwrap();
    });
}

#[test]
fn its_parents_death_is_the_processs() {
    let mut command = sh("exec sleep 60");
    command.parent_death_signal(Signal::SIGKILL);
    let child = thread::spawn(move || block_on(command.spawn_async())).join().unwrap().unwrap();
    assert!(child.wait_timeout(Duration::from_millis(50)).unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// As an executor that polls at once whatever is woken: it starts another child.
struct Eager(Command);

impl Wake for Eager {
    fn wake(self: Arc<Self>) {
        let _ = poll_once(&mut Box::pin(self.0.spawn_async()));
    }
}

#[test]
fn a_waker_may_spawn_where_no_spawner_thread_is_to_be_had() {
    in_own_process("a_waker_may_spawn_where_no_spawner_thread_is_to_be_had", || {
        // The default driver has its thread.
        Command::new("true").spawn().unwrap().wait().unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        thread::spawn(move || ended.recv_timeout(SOON).is_err().then(|| std::process::abort()));
        // SAFETY: setresuid(2): limits do not hold for root; this process is the test's own.
        unsafe { libc::setresuid(65534, 65534, 65534) };
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Nproc, none).unwrap();
        let waker = Waker::from(Arc::new(Eager(Command::new("true"))));
        let spawning = pin!(Command::new("true").spawn_async());
        let Poll::Ready(Err(error)) = spawning.poll(&mut task::Context::from_waker(&waker)) else {
            panic!("a spawner thread was started");
        };
        assert_eq!(error.kind(), ErrorKind::NoProcessSlots, "{error}");
        done.send(()).unwrap();
    });
}
