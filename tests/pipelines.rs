//! Promises 1, 2, 3, 5, 8, 9 and 13 for `a | b | c`: started, stopped, judged and waited for as one; no end of a pipe stays with us; nothing is
//! left of one that fails. Knows the public API.

mod common;

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use common::{
    SOON, all_writers_end, children_of_ours, eventually, exists, in_own_process, open_descriptors, pipe, rounds, sh,
    state,
};
use pidloop::{
    Cancel, Cause, Children, Command, Context, Driver, Error, ErrorKind, Pipefail, Pipeline, PipelineExit, Reactor,
    Signal, Stage, Stdio,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn shells(scripts: &[&str]) -> Pipeline {
    Pipeline::new(scripts.iter().map(|script| sh(script)))
}

fn codes(exit: &PipelineExit) -> Vec<Option<i32>> {
    exit.exits().iter().map(pidloop::Exit::code).collect()
}

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

// ── what it is ──

#[test]
fn it_is_what_a_shell_makes_of_it() {
    let output = shells(&["printf 'b\\na\\nb\\n'", "sort -u", "tr a-z A-Z; exit 3"]).output().unwrap();
    assert_eq!((output.stdout(), output.status().code()), (&b"A\nB\n"[..], Some(3)));
    assert_eq!(codes(output.exit()), [Some(0), Some(0), Some(3)]);
    assert!(output.outputs()[..2].iter().all(|output| output.stdout.is_empty()));
    let pids: Vec<u32> = output.exit().exits().iter().map(pidloop::Exit::pid).collect();
    assert!(pids[0] != pids[1] && pids[1] != pids[2]);
    assert_eq!(shells(&["echo x", "cat; exit 4"]).stdout(Stdio::null()).status().unwrap().code(), Some(4));
    assert!(shells(&["exit 3", "exit 0"]).run().unwrap().success());
}

#[test]
fn much_goes_through_whole() {
    let bytes: u64 = 32 << 20;
    let mut pipeline = Command::new("head").args(["-c", &bytes.to_string(), "/dev/zero"]).pipe_to(&Command::new("cat"));
    let output = pipeline.pipe_to(&Command::new("cat")).output().unwrap();
    assert_eq!(output.stdout().len() as u64, bytes);
    assert!(output.into_stdout().iter().all(|byte| *byte == 0));
}

#[test]
fn both_ends_may_be_anything() {
    let mut pipeline = Pipeline::new([Command::new("cat"), Command::new("tr").args(["a-z", "A-Z"]).clone()]);
    assert_eq!(pipeline.stdin(Stdio::bytes("fed")).output().unwrap().stdout(), b"FED");
    let children = pipeline.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (children.take_stdin().unwrap(), children.take_stdout().unwrap());
    stdin.write_all(b"written").unwrap();
    drop(stdin);
    assert_eq!(all_writers_end(&mut stdout), b"WRITTEN");
    assert!(children.wait().unwrap().success());
    // An untaken stdin is closed, as std does for a child.
    let children = pipeline.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(codes(&children.wait().unwrap()), [Some(0), Some(0)]);
    let (mut ours, theirs) = pipe();
    pipeline.stdin(Stdio::bytes("into a file")).stdout(theirs).run().unwrap();
    drop(pipeline);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "INTO A FILE");
    // A command's own setting counts where the pipeline says nothing.
    let mut fed = Command::new("cat");
    fed.stdin(Stdio::bytes("own"));
    assert_eq!(fed.pipe_to(&Command::new("cat")).output().unwrap().stdout(), b"own");
}

#[test]
fn each_stderr_goes_its_own_way() {
    let says = |what: &str| sh(&format!("cat; echo {what} >&2"));
    let output = Pipeline::new([says("one"), says("two")]).output().unwrap();
    let seen: Vec<&[u8]> = output.outputs().iter().map(|output| &output.stderr[..]).collect();
    assert_eq!(seen, [b"one\n", b"two\n"]);
    // Into the pipe; to nobody; and one for those that say nothing.
    let mut pipeline =
        Pipeline::new([says("one").stderr(Stdio::stdout()), says("two").stderr(Stdio::null()), &mut says("three")]);
    let output = pipeline.stderr(Stdio::captured()).output().unwrap();
    let seen: Vec<&[u8]> = output.outputs().iter().map(|output| &output.stderr[..]).collect();
    assert_eq!((output.stdout(), seen), (&b"one\n"[..], vec![&b""[..], b"", b"three\n"]));
    let children =
        Pipeline::new([says("one"), says("two")]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(all_writers_end(&mut children.take_stderr(1).unwrap()), b"two\n");
    assert_eq!(children.wait_with_output().unwrap().outputs()[0].stderr, b"one\n");
}

#[test]
fn who_decides_is_the_callers_choice() {
    let by_sigpipe = "kill -PIPE $$";
    for (scripts, off, on, except) in [
        (["exit 0", "exit 0", "exit 0"], 0, 0, 0),
        (["exit 1", "exit 0", "exit 0"], 0, 1, 1),
        (["exit 1", "exit 2", "exit 0"], 0, 2, 2),
        (["exit 1", "exit 2", "exit 3"], 3, 3, 3),
        (["exit 1", by_sigpipe, "exit 0"], 0, -13, 1),
        (["exit 141", "exit 0", "exit 0"], 0, 141, 0),
        ([by_sigpipe, "exit 0", by_sigpipe], -13, -13, -13),
        (["exit 0", "exit 0", "exit 141"], 141, 141, 141),
    ] {
        for (pipefail, expected) in [(Pipefail::Off, off), (Pipefail::On, on), (Pipefail::ExceptSigpipe, except)] {
            let exit = shells(&scripts).pipefail(pipefail).spawn().unwrap().wait().unwrap();
            let status = exit.exit().signal().map_or_else(|| exit.code().unwrap(), |signal| -signal.as_raw());
            assert_eq!(status, expected, "{scripts:?} {pipefail:?}");
            assert_eq!((exit.check().is_ok(), exit.success()), (expected == 0, expected == 0));
        }
    }
    let error = shells(&["echo bad >&2; exit 5", "cat"]).pipefail(Pipefail::On).stderr(Stdio::captured()).run();
    let error = error.unwrap_err();
    assert_eq!((error.kind(), error.pipeline_index()), (ErrorKind::Unsuccessful, Some(0)));
    assert_eq!(error.to_string(), "/bin/sh -c 'echo bad >&2; exit 5' (command 1 of 2): exit status 5\nstderr: bad");
}

#[test]
fn children_of_a_reactor_are_reported_one_by_one_and_joined() {
    let mut reactor = Reactor::new().unwrap();
    let ids = reactor.spawn_pipeline(shells(&["echo x; exit 1", "cat; exit 2"]).stdout(Stdio::captured())).unwrap();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        reactor.turn(Some(SOON)).unwrap();
        ended.extend(std::iter::from_fn(|| reactor.next_exit()));
    }
    ended.sort_by_key(|ended| ids.iter().position(|id| *id == ended.id()));
    let exit = PipelineExit::new(ended.iter().map(|ended| ended.exit().clone()), Pipefail::On);
    assert_eq!(codes(&exit), [Some(1), Some(2)]);
    assert_eq!(ended.pop().unwrap().into_output().stdout, b"x\n");
    let ids = reactor.remote().spawn_pipeline(&shells(&["exit 0", "exit 0"])).unwrap();
    assert_eq!((ids.len(), reactor.len()), (2, 2));
}

// ── early ends ──

#[test]
fn who_writes_to_nobody_gets_sigpipe_as_in_a_shell() {
    let output = Pipeline::new([&Command::new("yes"), &Command::new("cat"), Command::new("head").args(["-n", "1"])]);
    let output = output.output().unwrap();
    assert_eq!(output.stdout(), b"y\n");
    let exits = output.exit().exits();
    assert_eq!((exits[0].signal(), exits[1].signal()), (Some(Signal::SIGPIPE), Some(Signal::SIGPIPE)));
    assert!(output.exit().success());
    // One in the middle that dies; and one that ignores the signal is told by EPIPE.
    let exit = shells(&["exec yes", "kill -KILL $$", "cat"]).stdout(Stdio::null()).spawn().unwrap().wait().unwrap();
    assert_eq!(
        exit.exits().iter().map(pidloop::Exit::signal).collect::<Vec<_>>(),
        [Some(Signal::SIGPIPE), Some(Signal::SIGKILL), None]
    );
    let ignores = "trap '' PIPE; while echo y; do :; done 2>/dev/null; exit 5";
    let output = shells(&[ignores, "head -n 1"]).output().unwrap();
    assert_eq!((output.stdout(), codes(output.exit())), (&b"y\n"[..], vec![Some(5), Some(0)]));
}

#[test]
fn idle_ones_in_the_middle_and_readers_that_never_read_hang_nothing_but_themselves() {
    let begun = Instant::now();
    for scripts in [["exec yes", "exec sleep 60", "exec cat"], ["exec yes", "exec cat", "exec sleep 60"]] {
        let error = shells(&scripts).timeout(Duration::from_millis(100)).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        assert_eq!(error.cause(), Some(&Cause::DeadlineExceeded));
        let context = Context::new();
        let children = shells(&scripts).context(&context).stdout(Stdio::captured()).spawn().unwrap();
        assert!(children.wait_timeout(Duration::from_millis(10)).unwrap().is_none());
        assert!(children.try_wait().unwrap().is_none());
        context.cancel();
        let output = children.wait_with_output().unwrap();
        assert!(output.exit().exits().iter().all(|exit| !exit.success()));
        assert_eq!(output.exit().cause(), Some(&Cause::Cancelled));
        assert_eq!(output.exit().check().unwrap_err().kind(), ErrorKind::Cancelled);
    }
    assert!(begun.elapsed() < SOON);
}

#[test]
fn a_deadline_keeps_what_the_last_one_wrote() {
    let error = shells(&["echo first; exec sleep 60", "head -n 1; echo then >&2; exec cat"])
        .timeout(Duration::from_secs(1))
        .output()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(error.output().unwrap().stdout, b"first\n");
}

#[test]
fn all_are_terminated_at_once_and_killed_after_the_grace() {
    let ready = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let stubborn = "trap '' TERM; cat; while :; do sleep 0.01; done";
    let children = shells(&[ready, stubborn]).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = [0; 6];
    children.take_stdout().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"ready\n");
    let exit = children.terminate(Duration::from_millis(200)).unwrap();
    assert_eq!((exit.exits()[0].code(), exit.exits()[1].signal()), (Some(7), Some(Signal::SIGKILL)));
    assert!(exit.exits().iter().all(|exit| exit.cause() == Some(&Cause::Terminated)));
    assert_eq!(exit.check().unwrap_err().kind(), ErrorKind::Stopped);
}

#[test]
fn signals_reach_each() {
    let children = shells(&["exec sleep 60", "exec sleep 60"]).spawn().unwrap();
    children.signal(Signal::SIGSTOP).unwrap();
    let pids: Vec<u32> = children.children().iter().map(pidloop::Child::id).collect();
    eventually("both stand still", || pids.iter().all(|pid| common::is_stopped(*pid)));
    children.kill().unwrap();
    let exit = children.wait().unwrap();
    assert!(exit.exits().iter().all(|exit| exit.signal() == Some(Signal::SIGKILL) && exit.cause().is_none()));
    children.kill().unwrap();
}

#[test]
fn how_each_is_stopped_can_be_said_for_all() {
    let gentle = "trap 'exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done";
    let context = Context::new();
    let (mut ours, theirs) = pipe();
    let mut pipeline = shells(&[gentle, gentle]);
    pipeline.context(&context).cancel(Cancel::Signal(Signal::SIGTERM)).wait_delay(SOON).stderr(theirs);
    let children = pipeline.spawn().unwrap();
    drop(pipeline);
    let mut seen = [0; 12];
    ours.read_exact(&mut seen).unwrap();
    context.cancel_with("enough");
    let exit = children.wait().unwrap();
    assert_eq!(codes(&exit), [Some(7), Some(7)]);
    assert_eq!(exit.check().unwrap_err().cause().unwrap().to_string(), "enough");
}

#[test]
fn a_limit_on_children_counts_it_as_one() {
    let driver = Driver::new().unwrap();
    driver.set_max_running(1);
    let pipeline = shells(&["echo x", "cat", "cat"]).stdout(Stdio::captured()).timeout(SOON).clone();
    for _ in 0..rounds(5) {
        assert_eq!(driver.spawn_pipeline(&pipeline).unwrap().wait_with_output().unwrap().stdout(), b"x\n");
        let children = block_on(driver.spawn_pipeline_async(&pipeline)).unwrap();
        assert_eq!(children.wait_with_output().unwrap().stdout(), b"x\n");
    }
    // A second one waits for the first command of the first one.
    let (ours, theirs) = pipe();
    let first = driver.spawn_pipeline(shells(&["cat", "cat"]).stdin(ours).stdout(Stdio::null())).unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| driver.spawn_pipeline(&pipeline).unwrap().wait().unwrap());
        eventually("it waits", || driver.load().queued == 1);
        drop(theirs);
        assert!(second.join().unwrap().success());
    });
    first.wait().unwrap().check().unwrap();
}

// ── what fails leaves nothing ──

/// That nothing is left of what `spawn` began; the commands before the one that failed have the time of their lives before them.
fn leaves_nothing(spawn: impl Fn(&Pipeline) -> Error) {
    let missing = Command::new("/no/such/program");
    let mut idle = sh("exec sleep 60");
    let pipeline = Pipeline::new([&idle, &idle, &missing, &idle]);
    let before = open_descriptors();
    let error = spawn(&pipeline);
    assert_eq!(
        (error.kind(), error.stage(), error.command(), error.pipeline_index()),
        (ErrorKind::NotFound, Some(Stage::Exec), Some("/no/such/program"), Some(2)),
    );
    assert!(error.to_string().starts_with("/no/such/program (command 3 of 4): could not execute"), "{error}");
    assert_eq!(children_of_ours(), []);
    assert_eq!(open_descriptors(), before);
    // The very next one works.
    idle = Command::new("true");
    Pipeline::new([&idle, &idle]).run().unwrap();
}

#[test]
fn one_that_cannot_start_takes_those_before_it_along() {
    in_own_process("one_that_cannot_start_takes_those_before_it_along", || {
        let driver = Driver::new().unwrap();
        Pipeline::new([Command::new("true")]).stdout(Stdio::captured()).run().unwrap();
        leaves_nothing(|pipeline| pipeline.spawn().unwrap_err());
        leaves_nothing(|pipeline| pipeline.output().unwrap_err());
        leaves_nothing(|pipeline| pipeline.clone().group().spawn().unwrap_err());
        leaves_nothing(|pipeline| pipeline.clone().stderr(Stdio::captured()).spawn().unwrap_err());
        leaves_nothing(|pipeline| driver.spawn_pipeline(pipeline).unwrap_err());
        let mut reactor = Reactor::new().unwrap();
        leaves_nothing(|pipeline| reactor.remote().spawn_pipeline(pipeline).unwrap_err());
        assert!(reactor.is_empty());
        reactor.turn(Some(Duration::ZERO)).unwrap();
        assert!(reactor.next_exit().is_none());
        // By a future the loop reaps them.
        for pipeline in [Pipeline::new([&sh("exec sleep 60"), &Command::new("/no")]), shells(&["exec sleep 60", "\0"])]
        {
            for pipeline in [pipeline.clone(), pipeline.clone().group().clone()] {
                assert_eq!(block_on(pipeline.spawn_async()).unwrap_err().pipeline_index(), Some(1));
                assert_eq!(block_on(pipeline.output_async()).unwrap_err().pipeline_index(), Some(1));
                eventually("all are reaped", || children_of_ours().is_empty());
            }
        }
    });
}

#[test]
fn none_and_what_contradicts_itself_are_refused() {
    let none: [&Command; 0] = [];
    let error = Pipeline::new(none).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("a pipeline of no commands"), "{error}");
    assert_eq!(block_on(Pipeline::new(none).output_async()).unwrap_err().kind(), ErrorKind::InvalidInput);
    let cat = Command::new("cat");
    let fed = cat.clone().stdin(Stdio::null()).clone();
    let taken = cat.clone().stdout(Stdio::null()).clone();
    let grouped = cat.clone().group().clone();
    for (mut pipeline, index, says) in [
        (Pipeline::new([&cat, &fed]), 1, "its stdin is the pipe from the command before it"),
        (Pipeline::new([&cat, &taken, &cat]), 1, "its stdout is the pipe to the command after it"),
        (Pipeline::new([&taken, &cat]), 0, "its stdout is the pipe to the command after it"),
        (Pipeline::new([&cat, &grouped]).group().clone(), 1, "its scope is the pipeline's group"),
    ] {
        let error = pipeline.stdin(Stdio::null()).spawn().unwrap_err();
        assert_eq!((error.kind(), error.pipeline_index()), (ErrorKind::InvalidInput, Some(index)), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn one_is_itself_and_a_hundred_are_a_hundred() {
    let output = Pipeline::new([Command::new("echo").arg("x")]).output().unwrap();
    assert_eq!((output.stdout(), output.exit().exits().len()), (&b"x\n"[..], 1));
    let error = Pipeline::new([Command::new("false")]).run().unwrap_err();
    assert_eq!((error.to_string().as_str(), error.pipeline_index()), ("false: exit status 1", None));
    let mut pipeline = Pipeline::new(std::iter::repeat_n(Command::new("cat"), 100));
    let output = pipeline.stdin(Stdio::bytes("through all")).output().unwrap();
    assert_eq!((output.stdout(), output.exit().exits().len()), (&b"through all"[..], 100));
}

#[test]
fn no_end_of_a_pipe_is_anybody_elses() {
    in_own_process("no_end_of_a_pipe_is_anybody_elses", || {
        let lists = "cat >/dev/null; echo /proc/$$/fd/*";
        Pipeline::new([sh("true"), sh("true")]).stdout(Stdio::captured()).run().unwrap();
        let before = open_descriptors();
        let output = shells(&[":", "cat; echo /proc/$$/fd/* >&2", lists]).output().unwrap();
        for listed in [&output.outputs()[1].stderr[..], output.stdout()] {
            let listed = String::from_utf8_lossy(listed).into_owned();
            let names: Vec<&str> = listed.split_whitespace().map(|path| path.rsplit('/').next().unwrap()).collect();
            // The shell opens the directory that it lists.
            assert!(names[..3] == ["0", "1", "2"] && names.len() <= 4, "{listed}");
        }
        assert_eq!(open_descriptors(), before);
        // While it runs: the ends that we were given, the pidfds, and nothing of what is between them.
        let children = shells(&["cat", "cat", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pipes = open_descriptors().iter().filter(|(_, what)| what.starts_with("pipe:")).count();
        let pipes_before = before.iter().filter(|(_, what)| what.starts_with("pipe:")).count();
        assert_eq!(pipes, pipes_before + 1);
        children.wait().unwrap();
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn no_descriptor_left_fails_at_any_point_and_leaves_nothing() {
    in_own_process("no_descriptor_left_fails_at_any_point_and_leaves_nothing", || {
        let pipeline = || {
            let mut pipeline = Pipeline::new(std::iter::repeat_n(Command::new("cat"), 4));
            pipeline.stdin(Stdio::bytes("x"));
            pipeline
        };
        pipeline().output().unwrap();
        let before = open_descriptors();
        let limit = getrlimit(Resource::Nofile);
        let highest = before.iter().map(|(number, _)| *number).filter(|number| *number < 200).max().unwrap();
        let (mut failed, mut worked) = (0, 0);
        // From none to enough: each point at which they may run out.
        for room in 0..24 {
            for group in [false, true] {
                let fill: Vec<_> = std::iter::from_fn(|| File::open("/dev/zero").ok())
                    .take_while(|file| file.as_raw_fd() <= highest)
                    .collect();
                let current = Some(highest as u64 + 1 + room);
                setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum }).unwrap();
                let result = if group { pipeline().group().output() } else { pipeline().output() };
                setrlimit(Resource::Nofile, limit).unwrap();
                drop(fill);
                match result {
                    Ok(output) => {
                        worked += 1;
                        assert_eq!(output.stdout(), b"x");
                    }
                    Err(error) => {
                        failed += 1;
                        assert_eq!(error.kind(), ErrorKind::NoDescriptors, "{error}");
                        assert!(error.pipeline_index().is_some() && error.command() == Some("cat"), "{error}");
                    }
                }
                assert_eq!(children_of_ours(), [], "room for {room}");
                // The loop may still be about to let go of a child.
                eventually("all is given back", || open_descriptors() == before);
            }
        }
        assert!(failed > 5 && worked > 0, "{failed} {worked}");
        pipeline().output().unwrap();
    });
}

#[test]
fn a_cancelled_context_starts_nothing() {
    in_own_process("a_cancelled_context_starts_nothing", || {
        let context = Context::new();
        context.cancel();
        let pipeline = shells(&["exec sleep 60", "exec sleep 60"]).context(&context).clone();
        let in_no_time = shells(&["exec sleep 60", "exec sleep 60"]).timeout(Duration::ZERO).clone();
        for (pipeline, kind) in [(pipeline, ErrorKind::Cancelled), (in_no_time, ErrorKind::DeadlineExceeded)] {
            assert_eq!(pipeline.spawn().unwrap_err().kind(), kind);
            assert_eq!(pipeline.output().unwrap_err().kind(), kind);
            assert_eq!(block_on(pipeline.run_async()).unwrap_err().kind(), kind);
        }
        assert_eq!(children_of_ours(), []);
        // One command's own context: those before it go with the failure.
        let pipeline = Pipeline::new([&sh("exec sleep 60"), sh("exec sleep 60").context(&context)]);
        let error = pipeline.spawn().unwrap_err();
        assert_eq!((error.kind(), error.pipeline_index()), (ErrorKind::Cancelled, Some(1)));
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn a_cancel_at_any_moment_ends_all_of_it() {
    in_own_process("a_cancel_at_any_moment_ends_all_of_it", || {
        let (mut before, mut after) = (0, 0);
        for round in 0..rounds(60) as u64 {
            let context = Context::new();
            let mut pipeline = shells(&["exec sleep 60", "exec sleep 60", "exec sleep 60"]);
            pipeline.context(&context);
            if round % 2 == 1 {
                pipeline.group();
            }
            thread::scope(|scope| {
                scope.spawn(|| {
                    let moment = Instant::now() + Duration::from_micros(round * 37 % 2000);
                    while Instant::now() < moment {
                        thread::yield_now();
                    }
                    context.cancel();
                });
                match pipeline.spawn() {
                    Ok(children) => {
                        let exit = children.wait().unwrap();
                        assert_eq!(exit.cause(), Some(&Cause::Cancelled));
                        after += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
                        before += 1;
                    }
                }
            });
            assert_eq!(children_of_ours(), [], "{before} before, {after} after");
        }
    });
}

// ── handles ──

#[test]
fn a_dropped_handle_lets_them_run_on_or_kills_them() {
    in_own_process("a_dropped_handle_lets_them_run_on_or_kills_them", || {
        let pids = |children: &Children| children.children().iter().map(pidloop::Child::id).collect::<Vec<_>>();
        let (ours, theirs) = pipe();
        let mut pipeline = shells(&["cat", "cat"]);
        pipeline.stdout(Stdio::null());
        let children = pipeline.clone().stdin(ours).spawn().unwrap();
        let ids = pids(&children);
        drop(children);
        assert!(ids.iter().all(|pid| exists(*pid) && state(*pid) != Some('Z')));
        drop(theirs);
        eventually("they end by themselves and are reaped", || !ids.iter().any(|pid| exists(*pid)));
        for group in [false, true] {
            let mut pipeline = shells(&["exec sleep 60", "exec sleep 60"]);
            if group {
                pipeline.group();
            }
            drop(pipeline.kill_on_drop(true).spawn().unwrap());
            eventually("they are killed and reaped", || children_of_ours().is_empty());
        }
    });
}

#[test]
fn twins_say_what_the_blocking_ones_say() {
    let pipeline = shells(&["echo x; exit 1", "cat; exit 3"]);
    let output = block_on(pipeline.output_async()).unwrap();
    assert_eq!((output.stdout(), codes(output.exit())), (&b"x\n"[..], vec![Some(1), Some(3)]));
    let quiet = pipeline.clone().stdout(Stdio::null()).clone();
    assert_eq!(block_on(quiet.status_async()).unwrap().code(), Some(3));
    assert_eq!(block_on(quiet.run_async()).unwrap_err().kind(), ErrorKind::Unsuccessful);
    let children = block_on(quiet.spawn_async()).unwrap();
    assert_eq!(codes(&block_on(children.wait_async()).unwrap()), [Some(1), Some(3)]);
    let captured = pipeline.clone().stdout(Stdio::captured()).group().clone();
    let children = block_on(Driver::new().unwrap().spawn_pipeline_async(&captured)).unwrap();
    assert_eq!(block_on(children.wait_with_output_async()).unwrap().stdout(), b"x\n");
    // Of the first of a group, which is watched last.
    let (stderr, lines) = Stdio::lines(10);
    let children =
        Pipeline::new([sh("echo one >&2; echo two >&2").stderr(stderr), &mut sh("cat")]).group().spawn().unwrap();
    assert_eq!(lines.into_iter().count(), 2);
    children.wait().unwrap().check().unwrap();
    let children = block_on(shells(&["exec sleep 60", "exec sleep 60"]).spawn_async()).unwrap();
    let exit = block_on(children.terminate_async(SOON)).unwrap();
    assert!(exit.exits().iter().all(|exit| exit.cause() == Some(&Cause::Terminated)));
}

#[test]
fn a_future_dropped_at_any_point_leaves_nothing() {
    in_own_process("a_future_dropped_at_any_point_leaves_nothing", || {
        let waker = Waker::from(Arc::new(Unparker(thread::current())));
        let mut context = task::Context::from_waker(&waker);
        for polls in (0..5).cycle().take(rounds(40)) {
            for group in [false, true] {
                let mut pipeline = shells(&["exec sleep 60", "exec cat", "exec cat"]);
                if group {
                    pipeline.group();
                }
                let mut spawning = Box::pin(pipeline.spawn_async());
                let mut finishing = Box::pin(pipeline.output_async());
                for _ in 0..polls {
                    if let Poll::Ready(children) = spawning.as_mut().poll(&mut context) {
                        children.unwrap().kill().unwrap();
                        break;
                    }
                    assert!(finishing.as_mut().poll(&mut context).is_pending());
                    thread::park_timeout(Duration::from_micros(300));
                }
            }
        }
        eventually("all are gone", || children_of_ours().is_empty());
    });
}

#[test]
fn a_forked_copy_touches_none_of_them() {
    in_own_process("a_forked_copy_touches_none_of_them", || {
        let driver = Driver::new().unwrap();
        let pipeline = shells(&["exec sleep 60", "exec sleep 60"]).group().kill_on_drop(true).clone();
        let children = driver.spawn_pipeline(&pipeline).unwrap();
        let children = std::cell::Cell::new(Some(children));
        // SAFETY: the copy has one thread, touches what is below and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let children = children.take().unwrap();
                for error in [
                    children.wait().unwrap_err(),
                    children.try_wait().unwrap_err(),
                    children.kill().unwrap_err(),
                    children.terminate(SOON).unwrap_err(),
                    driver.spawn_pipeline(&pipeline).unwrap_err(),
                ] {
                    assert_eq!(error.kind(), ErrorKind::Forked, "{error}");
                }
                drop(children);
                assert_eq!(shells(&["echo x", "cat"]).output().unwrap().stdout(), b"x\n");
            }));
            // SAFETY: as above.
            unsafe { libc::_exit(if ok.is_ok() { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waitpid(2) for that child alone.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0);
        let children = children.take().unwrap();
        assert!(children.try_wait().unwrap().is_none());
        assert!(children.terminate(SOON).unwrap().exits().iter().all(|exit| exit.signal() == Some(Signal::SIGTERM)));
        assert_eq!(children_of_ours(), []);
    });
}

// ── one group ──

#[test]
fn one_group_is_joined_by_all_however_soon_the_first_ends() {
    let group = "cut -d ' ' -f 5 /proc/self/stat";
    for _ in 0..rounds(10) {
        let output = shells(&[group, &format!("cat; {group}"), &format!("cat; {group}")]).group().output().unwrap();
        let leader = output.exit().exits()[0].pid();
        assert_eq!(String::from_utf8_lossy(output.stdout()), format!("{leader}\n").repeat(3));
        let output = shells(&["exit 0", &format!("cat; {group}")]).group().output().unwrap();
        assert_eq!(output.stdout(), format!("{}\n", output.exit().exits()[0].pid()).as_bytes());
    }
}

#[test]
fn a_stop_reaches_the_whole_group_also_when_the_first_is_gone() {
    if !pidloop::capabilities().group_signals {
        return common::skip(
            "a_stop_reaches_the_whole_group_also_when_the_first_is_gone",
            "no PIDFD_SIGNAL_PROCESS_GROUP",
        );
    }
    type Stop = fn(&Children, &Context);
    let stops: [Stop; 4] = [
        |_, context| context.cancel(),
        |children, _| drop(children.terminate(SOON).unwrap()),
        |children, _| children.kill().unwrap(),
        |children, _| children.signal(Signal::SIGTERM).unwrap(),
    ];
    for stop in stops {
        let (mut ours, theirs) = pipe();
        let context = Context::new();
        let mut pipeline = shells(&["sleep 60 >/dev/null & exit 0", "echo ready >&2; exec sleep 60"]);
        pipeline.group().context(&context).stdin(Stdio::null()).stderr(theirs);
        let children = pipeline.spawn().unwrap();
        drop(pipeline);
        assert!(children.children()[0].wait().unwrap().success());
        ours.read_exact(&mut [0; 6]).unwrap();
        stop(&children, &context);
        // Both hold it: the second command, and what the first one has left behind.
        all_writers_end(&mut ours);
        children.wait().unwrap();
    }
}

#[test]
fn a_gentle_stop_comes_once_to_each_member_of_the_group() {
    let counts = "n=0; trap 'n=$((n+1)); echo $n >&2' TERM; echo ready >&2; while :; do sleep 0.01; done";
    let (mut ours, theirs) = pipe();
    let context = Context::new();
    let mut pipeline = shells(&[counts, counts, counts]);
    pipeline.group().context(&context).stderr(theirs).cancel(Cancel::Signal(Signal::SIGTERM));
    pipeline.wait_delay(Duration::from_millis(300));
    let children = pipeline.spawn().unwrap();
    drop(pipeline);
    ours.read_exact(&mut [0; 18]).unwrap();
    context.cancel();
    let exit = children.wait().unwrap();
    assert!(exit.exits().iter().all(|exit| exit.cause() == Some(&Cause::Cancelled)));
    let said = String::from_utf8(all_writers_end(&mut ours)).unwrap();
    // The shells tell of their own commands, too, which are of the same group.
    assert_eq!(said.lines().filter(|line| line.parse::<u32>().is_ok()).collect::<Vec<_>>(), ["1", "1", "1"]);
}

#[test]
fn what_the_commands_left_behind_is_left_alone() {
    let (mut ours, theirs) = pipe();
    let mut pipeline = shells(&["sleep 0.2 >/dev/null & exit 0", "exit 0"]);
    let children = pipeline.group().stderr(theirs).spawn().unwrap();
    drop(pipeline);
    children.wait().unwrap().check().unwrap();
    let begun = Instant::now();
    children.kill().unwrap();
    children.terminate(SOON).unwrap();
    all_writers_end(&mut ours);
    assert!(begun.elapsed() >= Duration::from_millis(50), "it was killed");
}

#[test]
fn secrets_stay_secret() {
    let pipeline = Command::new("echo").secret_arg("password").pipe_to(&Command::new("cat"));
    assert_eq!(format!("{pipeline} {pipeline:?}"), "echo '***' | cat echo '***' | cat".replace("'***'", "***"));
    assert_eq!(pipeline.commands().len(), 2);
}
