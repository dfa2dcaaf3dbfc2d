//! Exhaustion and bad luck (promises 4, 8, 11): each gives a typed error, leaks nothing, and the next spawn works. Knows the public API
//! and the limits.

mod common;

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    SOON, cgroup2, children_of_ours, eventually, in_own_process, is_stopped, open_descriptors, sh, skip, spawn_ready,
    state,
};
use pidloop::{Cancel, Cause, Child, Command, Context, Driver, ErrorKind, Limit, Reactor, Signal, Stage, Stdio};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn all_captured() -> Command {
    let mut command = sh("exit 0");
    command.stdin(Stdio::piped()).stdout(Stdio::captured()).stderr(Stdio::captured());
    command
}

#[test]
fn no_descriptors_left() {
    in_own_process("no_descriptors_left", || {
        let inherited = open_descriptors();
        all_captured().output().unwrap();
        let of_a_child = |(_, what): &(i32, String)| what.contains("pidfd") || what.starts_with("pipe:");
        let of_children =
            || open_descriptors().into_iter().filter(|fd| of_a_child(fd) && !inherited.contains(fd)).count();
        // Our ends of its pipes are closed by the loop, in its own time.
        eventually("the first is given back", || of_children() == 0);
        let before = open_descriptors();
        let limit = getrlimit(Resource::Nofile);
        let highest = before.iter().map(|(number, _)| *number).filter(|n| *n < 200).max().unwrap() as u64;
        let (mut failures, mut successes) = (0, 0);
        // From none to enough: each point at which they may run out.
        for room in 0..16 {
            eventually("nothing is open but what was", || of_children() == 0);
            let fill: Vec<_> = std::iter::from_fn(|| File::open("/dev/zero").ok())
                .take_while(|file| file.as_raw_fd() <= highest as i32)
                .collect();
            setrlimit(Resource::Nofile, Rlimit { current: Some(highest + 1 + room), maximum: limit.maximum }).unwrap();
            let filled = open_descriptors_by_number(highest + 64);
            match all_captured().spawn() {
                Ok(child) => {
                    successes += 1;
                    drop(child.wait_with_output().unwrap());
                }
                Err(error) => {
                    failures += 1;
                    assert_eq!(error.kind(), ErrorKind::NoDescriptors, "{error}");
                    assert!(error.is_transient());
                    assert_eq!(open_descriptors_by_number(highest + 64), filled, "{error}");
                }
            }
            setrlimit(Resource::Nofile, limit).unwrap();
            drop(fill);
        }
        assert!(failures > 3 && successes > 0, "{failures} {successes}");
        all_captured().output().unwrap();
        eventually("all is given back", || open_descriptors() == before);
        assert_eq!(children_of_ours(), []);
    });
}

/// Without opening anything.
fn open_descriptors_by_number(end: u64) -> Vec<i32> {
    // SAFETY: fcntl(2) with any number: EBADF if it is not open.
    (0..end as i32).filter(|n| unsafe { libc::fcntl(*n, libc::F_GETFD) } >= 0).collect()
}

#[test]
fn no_process_slots_left() {
    in_own_process("no_process_slots_left", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        if rustix::process::geteuid().is_root() {
            // SAFETY: this process is the test's own. Root has slots without end.
            assert_eq!(unsafe { libc::setresuid(64_999, 64_999, 64_999) }, 0);
        }
        let limit = getrlimit(Resource::Nproc);
        let before = open_descriptors();
        setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: limit.maximum }).unwrap();
        for _ in 0..100 {
            let error = all_captured().spawn().unwrap_err();
            assert_eq!((error.kind(), error.is_transient()), (ErrorKind::NoProcessSlots, true), "{error}");
        }
        assert_eq!(open_descriptors(), before);
        setrlimit(Resource::Nproc, limit).unwrap();
        Command::new("true").run().unwrap();
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn enormous_and_zero_times() {
    let mut command = Command::new("true");
    command.timeout(Duration::MAX).wait_delay(Duration::MAX).context(&Context::new().with_timeout(Duration::MAX));
    command.run().unwrap();
    let child = command.spawn().unwrap();
    assert!(child.wait_timeout(Duration::MAX).unwrap().unwrap().success());
    assert!(child.terminate(Duration::MAX).unwrap().success());
    let error = command.timeout(Duration::ZERO).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let mut killed = sh("exec sleep 60");
    let child =
        killed.wait_delay(Duration::ZERO).cancel(Cancel::Nothing).timeout(Duration::from_millis(20)).spawn().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
}

#[test]
fn a_child_that_ignores_every_signal() {
    let all = (1..32).filter(|n| ![9, 19, 32].contains(n)).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let (child, _stdout) = spawn_ready(&mut sh(&format!("trap '' {all}; echo ready; while :; do sleep 0.05; done")));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        child.signal(signal).unwrap();
    }
    assert!(child.wait_timeout(Duration::from_millis(30)).unwrap().is_none());
    assert_eq!(child.terminate(Duration::from_millis(10)).unwrap().signal(), Some(Signal::SIGKILL));
}

/// A tracer that is not its parent hides the zombie for as long as it does not wait for it.
#[test]
fn a_child_that_is_traced() {
    const NAME: &str = "a_child_that_is_traced";
    if is_tracer() {
        return;
    }
    let child = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
    let Some(tracer) = traced(NAME, child.id()) else { return skip(NAME, "it may not be traced") };
    child.kill().unwrap();
    eventually("it is dead", || state(child.id()) == Some('Z'));
    let (begun, limit) = (Instant::now(), Duration::from_millis(50));
    assert!(child.wait_timeout(limit).unwrap().is_none());
    assert!(begun.elapsed() >= limit, "the time was not over");
    assert!(child.try_wait().unwrap().is_none());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| child.wait_timeout(SOON).unwrap().expect("no hang").signal());
        drop(tracer.take_stdin());
        assert_eq!(waiter.join().unwrap(), Some(Signal::SIGKILL));
    });
}

/// One that cannot be ended is told, and is waited for no longer.
#[test]
fn a_shutdown_names_its_survivors() {
    const NAME: &str = "a_shutdown_names_its_survivors";
    if is_tracer() {
        return;
    }
    let driver = Driver::new().unwrap();
    let mut reactor = Reactor::new().unwrap();
    let child = driver.spawn(Command::new("sleep").arg("60").secret_arg("0")).unwrap();
    let id = reactor.spawn(Command::new("sleep").arg("60").secret_arg("0")).unwrap();
    let pids = [child.id(), reactor.pid(id).unwrap()];
    let [Some(first), Some(second)] = pids.map(|pid| traced(NAME, pid)) else {
        return skip(NAME, "it may not be traced");
    };
    let ends = driver.spawn(Command::new("sleep").arg("60")).unwrap();
    for (survivors, pid) in [
        (driver.shutdown(Duration::ZERO, Duration::ZERO), pids[0]),
        (reactor.shutdown(Duration::ZERO, Duration::ZERO), pids[1]),
    ] {
        let [survivor] = &survivors[..] else { panic!("{survivors:?}") };
        assert_eq!((survivor.pid(), survivor.command()), (pid, "sleep 60 ***"));
    }
    assert_eq!(ends.wait().unwrap().cause(), Some(&Cause::ShutDown));
    // They are still ours, and end when they may.
    assert!(child.try_wait().unwrap().is_none());
    drop((first.take_stdin(), second.take_stdin()));
    assert_eq!(child.wait_timeout(SOON).unwrap().expect("no hang").cause(), Some(&Cause::ShutDown));
    let ended = loop {
        reactor.turn(Some(SOON)).unwrap();
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
    };
    assert_eq!((ended.id(), ended.exit().cause()), (id, Some(&Cause::ShutDown)));
}

const TRACE: &str = "PIDLOOP_TEST_TRACE";

/// Somebody who traces the process until its stdin ends: the test of that name, which asks [`is_tracer`] first.
fn traced(name: &str, pid: u32) -> Option<Child> {
    let mut tracer = Command::new(std::env::current_exe().unwrap());
    tracer.args([name, "--nocapture"]).env(TRACE, pid.to_string()).stdin(Stdio::piped()).stderr(Stdio::null());
    let tracer = tracer.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut told = BufReader::new(tracer.take_stdout().unwrap()).lines();
    told.by_ref().map(Result::unwrap).any(|line| line.ends_with("it is traced")).then_some(tracer)
}

/// Whether this process is to trace another one; then it has.
fn is_tracer() -> bool {
    let pid = std::env::var(TRACE);
    if let Ok(pid) = &pid {
        trace(pid.parse().unwrap());
    }
    pid.is_ok()
}

/// Until the end of stdin. ptrace(2).
fn trace(pid: i32) {
    // SAFETY: integers.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, 0usize) } == 0 {
        println!("it is traced");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn output_limits() {
    let flood = |limit| {
        let mut command = Command::new("head");
        command.args(["-c", "3000000", "/dev/zero"]).stdout(Stdio::captured_limited(limit)).stderr(Stdio::null());
        command
    };
    let output = flood(Limit::head_tail(10, 20)).output().unwrap();
    assert_eq!((output.stdout.len(), output.stdout_omitted_bytes), (30, 2_999_970));
    let error = flood(Limit::stop_at(1000)).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutputLimit);
    assert_eq!(error.output().unwrap().stdout.len(), 1000);
    let output = flood(Limit::stop_at(3_000_000)).output().unwrap();
    assert_eq!(output.stdout.len(), 3_000_000);
}

#[test]
fn a_flood_on_one_pipe_delays_nobody() {
    let flood = Command::new("yes").stdout(Stdio::captured_limited(Limit::head_tail(1, 1))).spawn().unwrap();
    let ctx = Context::new();
    for _ in 0..20 {
        let child = Command::new("sleep").arg("60").context(&ctx.child_context()).spawn().unwrap();
        let one = Command::new("true").stdout(Stdio::captured()).output().unwrap();
        assert!(one.status.success());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let child = Command::new("sleep").arg("60").context(&ctx).spawn().unwrap();
    ctx.cancel();
    assert!(child.wait_timeout(SOON).unwrap().is_some());
    flood.kill().unwrap();
    assert_eq!(flood.wait_with_output().unwrap().stdout.len(), 2);
}

#[test]
fn a_frozen_child_is_killed_all_the_same() {
    let ctx = Context::new();
    let (child, _stdout) = spawn_ready(sh("echo ready; exec sleep 60").context(&ctx));
    child.signal(Signal::SIGSTOP).unwrap();
    eventually("it is stopped", || is_stopped(child.id()));
    ctx.cancel();
    assert_eq!(child.wait_timeout(SOON).unwrap().unwrap().signal(), Some(Signal::SIGKILL));
}

/// It is born frozen: its creator hangs in the clone, and the deadline or the context ends it there.
#[test]
fn a_spawn_that_hangs_before_the_exec_is_ended() {
    const NAME: &str = "a_spawn_that_hangs_before_the_exec_is_ended";
    let Some(base) = cgroup2() else { return skip(NAME, "no cgroup v2") };
    let dir = base.join(format!("pidloop-frozen-{}", std::process::id()));
    if std::fs::create_dir(&dir).is_err() {
        return skip(NAME, "cgroups are not delegated");
    }
    if std::fs::write(dir.join("cgroup.freeze"), "1").is_err() {
        std::fs::remove_dir(&dir).unwrap();
        return skip(NAME, "cgroups cannot be frozen");
    }
    let members = || std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    let mut command = Command::new("true");
    command.cgroup(OwnedFd::from(File::open(&dir).unwrap()));
    hangs(&command, || !members().is_empty());
    eventually("the cgroup is empty", || std::fs::remove_dir(&dir).is_ok());
}

/// A filesystem that does not answer: here the kernel asks us whether the file may be executed, and we let it wait.
#[test]
fn a_spawn_that_hangs_in_the_exec_is_ended() {
    const NAME: &str = "a_spawn_that_hangs_in_the_exec_is_ended";
    let program = std::env::temp_dir().join(format!("pidloop-hanging-{}", std::process::id()));
    std::fs::copy("/bin/true", &program).unwrap();
    let Some(questions) = ask_before_exec(&program) else {
        std::fs::remove_file(&program).unwrap();
        return skip(NAME, "fanotify may not ask for permission");
    };
    hangs(&Command::new(&program), || {
        let mut question = [PollFd::new(&questions, PollFlags::IN)];
        poll(&mut question, Some(&Timespec::default())).unwrap() > 0
    });
    // Unanswered questions are answered with yes.
    drop(questions);
    Command::new(&program).run().unwrap();
    std::fs::remove_file(&program).unwrap();
}

/// One that hangs there with other ids holds up no other one, and keeps our dumpable flag cleared for as long as its new user could read our
/// memory.
#[test]
fn a_hanging_change_of_ids_holds_up_no_other_one() {
    const NAME: &str = "a_hanging_change_of_ids_holds_up_no_other_one";
    in_own_process(NAME, || {
        if !rustix::process::geteuid().is_root() {
            return skip(NAME, "not root");
        }
        let program = std::env::temp_dir().join(format!("pidloop-hanging-ids-{}", std::process::id()));
        std::fs::copy("/bin/true", &program).unwrap();
        let Some(questions) = ask_before_exec(&program) else {
            std::fs::remove_file(&program).unwrap();
            return skip(NAME, "fanotify may not ask for permission");
        };
        // SAFETY: prctl(2) with integers.
        let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
        assert_eq!(dumpable(), 1);
        let ctx = Context::new();
        std::thread::scope(|scope| {
            let hanging = scope.spawn(|| Command::new(&program).uid(65534).context(&ctx).spawn().unwrap_err().kind());
            eventually("it is half born", || {
                poll(&mut [PollFd::new(&questions, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
            });
            assert!(Command::new("true").uid(65534).timeout(SOON).status().unwrap().success());
            assert_eq!(dumpable(), 0);
            ctx.cancel();
            assert_eq!(hanging.join().unwrap(), ErrorKind::Cancelled);
        });
        assert_eq!(dumpable(), 1);
        std::fs::remove_file(&program).unwrap();
    });
}

/// The same of one that is started by a thread of ours.
#[test]
fn a_hanging_spawn_with_a_parent_death_signal_holds_up_no_other_one() {
    const NAME: &str = "a_hanging_spawn_with_a_parent_death_signal_holds_up_no_other_one";
    let program = std::env::temp_dir().join(format!("pidloop-hanging-death-{}", std::process::id()));
    std::fs::copy("/bin/true", &program).unwrap();
    let Some(questions) = ask_before_exec(&program) else {
        std::fs::remove_file(&program).unwrap();
        return skip(NAME, "fanotify may not ask for permission");
    };
    let ctx = Context::new();
    std::thread::scope(|scope| {
        let spawn = || {
            let mut command = Command::new(&program);
            command.parent_death_signal(Signal::SIGKILL).context(&ctx).spawn().unwrap_err().kind()
        };
        let hanging = scope.spawn(spawn);
        eventually("it is half born", || {
            poll(&mut [PollFd::new(&questions, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
        });
        for _ in 0..3 {
            Command::new("true").parent_death_signal(Signal::SIGKILL).run().unwrap();
        }
        ctx.cancel();
        assert_eq!(hanging.join().unwrap(), ErrorKind::Cancelled);
    });
    std::fs::remove_file(&program).unwrap();
}

/// Ends the noise, also for a test that fails.
struct Quiet<'a>(&'a AtomicBool);

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// On a busy machine the program may run before its creator does: what has begun is not said to have been refused (promise 3).
#[test]
fn an_error_of_spawn_says_that_nothing_has_begun() {
    in_own_process("an_error_of_spawn_says_that_nothing_has_begun", || {
        let path = std::env::temp_dir().join(format!("pidloop-begun-{}", std::process::id()));
        let busy = AtomicBool::new(true);
        let mut begun = 0;
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while busy.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let _quiet = Quiet(&busy);
            for micros in (0..common::rounds(40) as u64).map(|i| 200 + i * 200 % 8000) {
                let mut command = sh(": > \"$0\"; exec sleep 60");
                let spawned = command.arg(&path).timeout(Duration::from_micros(micros)).spawn();
                match spawned {
                    Ok(child) => {
                        let exit = child.wait().unwrap();
                        assert_eq!(
                            (exit.signal(), exit.cause()),
                            (Some(Signal::SIGKILL), Some(&Cause::DeadlineExceeded))
                        );
                        begun += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
                        assert!(!path.exists(), "after {micros} us: {error}");
                    }
                }
                let _ = std::fs::remove_file(&path);
            }
        });
        assert!(begun > 0);
        assert_eq!(children_of_ours(), []);
    });
}

/// `fanotify_init(2)`, `fanotify_mark(2)`.
fn ask_before_exec(program: &Path) -> Option<OwnedFd> {
    let path = CString::new(program.as_os_str().as_bytes()).unwrap();
    // SAFETY: integers and a string; the descriptor is ours alone.
    unsafe {
        let fd = libc::fanotify_init(libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC, libc::O_RDONLY as u32);
        let fd = (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))?;
        let raw = fd.as_raw_fd();
        let marked =
            libc::fanotify_mark(raw, libc::FAN_MARK_ADD, libc::FAN_OPEN_EXEC_PERM, libc::AT_FDCWD, path.as_ptr());
        (marked == 0).then_some(fd)
    }
}

/// That a spawn of `command` hangs until its deadline, a context or both end it, and leaves nothing behind.
fn hangs(command: &Command, half_born: impl Fn() -> bool + Sync) {
    let error = command.clone().timeout(Duration::from_millis(100)).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    let ctx = Context::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            eventually("it is half born", &half_born);
            ctx.cancel();
        });
        let error = command.clone().context(&ctx).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert!(error.exit().is_none());
    });
}

/// A directory of programs that are none.
#[test]
fn what_cannot_be_run_says_why() {
    let dir = std::env::temp_dir().join(format!("pidloop-programs-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let write = |name: &str, content: &[u8], mode| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    write("orphan", b"#!/no/such/interpreter\n", 0o755);
    write("closed", b"#!/bin/sh\n", 0o644);
    write("garbage", b"\x01\x02 no program\n", 0o755);
    write("empty", b"", 0o755);
    let fails = |command: &mut Command| command.spawn().unwrap_err();
    for (name, kind, errno, says) in [
        ("missing", ErrorKind::NotFound, libc::ENOENT, "No such file"),
        ("orphan", ErrorKind::NotFound, libc::ENOENT, "the file is there, but not the interpreter"),
        ("closed", ErrorKind::PermissionDenied, libc::EACCES, "Permission denied"),
        ("garbage", ErrorKind::Exec, libc::ENOEXEC, "Exec format error"),
        ("empty", ErrorKind::Exec, libc::ENOEXEC, "Exec format error"),
        ("", ErrorKind::PermissionDenied, libc::EACCES, "it is a directory"),
        ("closed/deeper", ErrorKind::NotFound, libc::ENOTDIR, "Not a directory"),
    ] {
        let error = fails(&mut Command::new(dir.join(name)));
        let seen = (error.kind(), error.stage(), error.raw_os_error(), error.path());
        assert_eq!(seen, (kind, Some(Stage::Exec), Some(errno), Some(&*dir.join(name))), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    // As seen from its own directory.
    let error = fails(Command::new("./orphan").current_dir(&dir));
    assert!(error.to_string().contains("./orphan: the file is there"), "{error}");
    for (name, errno) in [("missing", libc::ENOENT), ("closed", libc::ENOTDIR)] {
        let error = fails(Command::new("true").current_dir(dir.join(name)));
        let seen = (error.kind(), error.stage(), error.raw_os_error(), error.path());
        assert_eq!(seen, (ErrorKind::Setup, Some(Stage::Directory), Some(errno), Some(&*dir.join(name))));
    }
    for mut command in [Command::new("a\0b"), Command::new("")] {
        assert_eq!(fails(&mut command).kind(), ErrorKind::InvalidInput);
    }
    for (command, says) in [
        (Command::new("true").arg("a\0b"), "an argument"),
        (Command::new("true").env("A", "a\0b"), "an environment variable"),
        (Command::new("true").env("A\0", "b"), "an environment variable"),
        (Command::new("true").current_dir("a\0b"), "directory"),
        (Command::new("true").chroot("a\0b"), "a path"),
    ] {
        let error = fails(command);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(says), "{error}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn arguments_of_any_size_are_passed_or_refused() {
    const LONGEST_BYTES: usize = (128 << 10) - 1;
    let count = |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert_eq!(count(sh("echo ${#1}").args(["sh", &"x".repeat(LONGEST_BYTES)])), format!("{LONGEST_BYTES}\n"));
    assert_eq!(count(sh("echo $#").arg("sh").args((0..100_000).map(|_| "x"))), "100000\n");
    let is_too_big = |command: &mut Command| {
        let error = command.spawn().unwrap_err();
        let seen = (error.kind(), error.stage(), error.raw_os_error());
        assert_eq!(seen, (ErrorKind::Exec, Some(Stage::Exec), Some(libc::E2BIG)));
        assert!(error.path().is_some_and(|path| path.is_absolute() && path.ends_with("true")));
    };
    is_too_big(Command::new("true").arg("x".repeat(LONGEST_BYTES + 1)));
    is_too_big(Command::new("true").env("X", "x".repeat(LONGEST_BYTES)));
    is_too_big(Command::new("true").args((0..100).map(|_| "x".repeat(LONGEST_BYTES))));
    Command::new("true").run().unwrap();
}

#[test]
fn an_error_on_every_way_names_the_command_and_hides_secrets() {
    let mut command = Command::new("/no/such/program");
    command.arg("visible").secret_arg("s3cret").env("KEY", "hidden-value").stdin(Stdio::bytes("stdin-bytes"));
    let error = command.spawn().unwrap_err();
    for text in [error.to_string(), format!("{error:?}"), format!("{command:?}")] {
        assert!(text.contains("/no/such/program") && text.contains("visible") && text.contains("***"), "{text}");
        assert!(!["s3cret", "hidden-value", "stdin-bytes"].iter().any(|secret| text.contains(secret)), "{text}");
    }
    let mut reactor = Reactor::new().unwrap();
    assert_eq!(reactor.spawn(&command).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(reactor.is_empty());
}

/// A reason to stop ends the tries at a busy program file. Without it they take 50 ms; on a busy machine a try may last that long itself.
#[test]
fn a_deadline_does_not_wait_for_a_busy_file() {
    let dir = std::env::temp_dir().join(format!("pidloop-{}-busy-late", std::process::id()));
    std::fs::copy("/bin/true", &dir).unwrap();
    let writer = std::fs::File::options().append(true).open(&dir).unwrap();
    let in_time = (0..10).any(|_| {
        let start = std::time::Instant::now();
        let error = Command::new(&dir).timeout(Duration::from_millis(5)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
        start.elapsed() < Duration::from_millis(50)
    });
    assert!(in_time);
    drop(writer);
    std::fs::remove_file(dir).unwrap();
}
