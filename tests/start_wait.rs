//! Group B of the scenarios, promises 7 and 8: starting, waiting, and what is left when either fails, each by its number. Knows the public API alone.

mod common;

use std::fs;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{self, Poll, Wake, Waker};
use std::time::Duration;

use common::{Scratch, children_of_ours, eventually, exists, in_own_process, open_descriptors, sh, threads};
use pidloop::{Command, ErrorKind, Stage, Stdio};

fn text(command: &Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim_end().to_owned()
}

#[test]
fn b46_an_empty_command_is_refused() {
    let error = Command::new("").spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("empty"), "{error}");
}

#[test]
fn b48_waiting_twice_gives_the_same_answer() {
    let child = sh("exit 7").spawn().unwrap();
    for _ in 0..2 {
        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(7));
    }
}

#[test]
fn b49_a_missing_program_is_named() {
    for (program, stage) in [("/no/such/program", Stage::Exec), ("no-such-program-anywhere", Stage::Lookup)] {
        let error = Command::new(program).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::NotFound, Some(stage)), "{error}");
        assert!(error.to_string().contains(program), "{error}");
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotFound);
    }
}

#[test]
fn b50_a_thousand_failed_starts_leave_nothing() {
    in_own_process("b50_a_thousand_failed_starts_leave_nothing", || {
        Command::new("true").status().unwrap();
        let before = open_descriptors();
        for i in 0..1000 {
            let mut command = Command::new(if i % 2 == 0 { "/no/such/program" } else { "/dev/null" });
            command.stdin(Stdio::piped()).stdout(Stdio::captured()).stderr(Stdio::piped());
            assert!(command.spawn().is_err());
        }
        assert_eq!(open_descriptors(), before);
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn b51_what_cannot_be_executed_is_refused_by_its_kind() {
    let dir = Scratch::new("b51");
    let plain = dir.file("plain", "#!/bin/sh\n", 0o644);
    let garbage = dir.file("garbage", "\u{1}\u{2}garbage", 0o755);
    let no_interpreter = dir.file("script", "#!/no/such/interpreter\n", 0o755);
    for (program, kind) in [
        (plain, ErrorKind::PermissionDenied),
        (garbage, ErrorKind::Exec),
        (no_interpreter, ErrorKind::NotFound),
        (dir.0.clone(), ErrorKind::PermissionDenied),
    ] {
        let error = Command::new(&program).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (kind, Some(Stage::Exec)), "{error}");
        assert!(error.to_string().contains(program.to_str().unwrap()), "{error}");
    }
}

#[test]
fn b52_b53_b54_a_bad_directory_is_blamed_itself() {
    let dir = Scratch::new("b52");
    let file = dir.file("file", "", 0o644);
    for (bad, errno) in [(dir.0.join("missing"), libc::ENOENT), (file, libc::ENOTDIR)] {
        let mut plain = Command::new("true");
        let mut with_group = Command::new("true");
        with_group.group();
        for command in [&mut plain, &mut with_group] {
            let error = command.current_dir(&bad).spawn().unwrap_err();
            assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Directory)), "{error}");
            assert_eq!((error.path(), error.raw_os_error()), (Some(bad.as_path()), Some(errno)));
        }
    }
}

#[test]
fn b55_a_relative_program_is_relative_to_the_directory() {
    let dir = Scratch::new("b55");
    dir.file("here", "#!/bin/sh\necho found\n", 0o755);
    assert_eq!(text(Command::new("./here").current_dir(&dir.0)), "found");
}

/// A name without a slash is never the file of that name in the directory; what it means is asked at the spawn.
#[test]
fn b56_b57_a_bare_name_is_looked_up_at_the_spawn_alone() {
    let dir = Scratch::new("b56");
    dir.file("bare-name", "#!/bin/sh\necho first\n", 0o755);
    let mut command = Command::new("bare-name");
    let error = command.current_dir(&dir.0).spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::NotFound, Some(Stage::Lookup)), "{error}");
    command.env("PATH", &dir.0);
    assert_eq!(text(&command), "first");
    fs::remove_file(dir.0.join("bare-name")).unwrap();
    dir.file("bare-name", "#!/bin/sh\necho second\n", 0o755);
    assert_eq!(text(&command), "second");
}

#[test]
fn b58_b59_argv_is_what_was_given() {
    let shown = |command: &mut Command| text(command.arg("/proc/self/cmdline"));
    assert_eq!(shown(&mut Command::new("cat")), "cat\0/proc/self/cmdline\0");
    assert_eq!(shown(Command::new("cat").arg0("other")), "other\0/proc/self/cmdline\0");
    assert_eq!(shown(&mut Command::new("/bin/cat")), "/bin/cat\0/proc/self/cmdline\0");
    // Without arguments that is all.
    let child = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let cmdline = || fs::read_to_string(format!("/proc/{}/cmdline", child.id())).unwrap();
    eventually("the exec is over", || cmdline() == "/bin/cat\0");
    child.wait().unwrap();
}

/// There is no way to give a program no name at all: an empty one is one.
#[test]
fn b67_the_shortest_argv_is_an_empty_name() {
    let child = Command::new("/bin/cat").arg0("").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let cmdline = || fs::read_to_string(format!("/proc/{}/cmdline", child.id())).unwrap();
    eventually("the exec is over", || cmdline() == "\0");
    assert!(child.wait().unwrap().success());
}

#[test]
fn b60_a_nul_byte_is_refused_before_anything_is_made() {
    let bad = std::ffi::OsStr::from_bytes(b"a\0b");
    let mut cases = [
        Command::new(bad),
        Command::new("true"),
        Command::new("true"),
        Command::new("true"),
        Command::new("true"),
        Command::new("true"),
    ];
    cases[1].arg(bad);
    cases[2].env("X", bad);
    cases[3].env(bad, "x");
    cases[4].current_dir(bad);
    cases[5].arg0(bad);
    for command in &cases {
        assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::InvalidInput, "{command:?}");
    }
}

#[test]
fn b63_we_are_the_parent() {
    assert_eq!(text(&sh("echo $PPID")), std::process::id().to_string());
}

#[test]
fn b64_a_command_reads_as_a_shell_line() {
    let mut command = Command::new("prog");
    command.args(["plain", "two words", "it's", ""]).secret_arg("token");
    assert_eq!(format!("{command:?}"), r"prog plain 'two words' 'it'\''s' '' ***");
    assert_eq!(format!("{:?}", Command::new("")), "''");
}

#[test]
fn b66_a_dropped_child_runs_on_and_is_reaped() {
    let child = sh("exec sleep 0.2").spawn().unwrap();
    let pid = child.id();
    drop(child);
    assert!(exists(pid));
    eventually("it is reaped", || !exists(pid));
}

#[test]
fn a_child_dropped_with_kill_on_drop_is_killed_and_reaped() {
    let child = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
    let pid = child.id();
    drop(child);
    eventually("it is reaped", || !exists(pid));
}

#[test]
fn a_command_can_be_spawned_again() {
    let mut command = Command::new("cat");
    command.stdin(Stdio::bytes("again")).stdout(Stdio::captured());
    for _ in 0..3 {
        assert_eq!(command.clone().output().unwrap().stdout, b"again");
        assert_eq!(command.output().unwrap().stdout, b"again");
    }
}

#[test]
fn any_number_of_threads_may_wait() {
    let child = sh("exec sleep 0.2; exit 1").spawn().unwrap();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let child = &child;
            scope.spawn(move || match i % 3 {
                0 => assert!(child.wait().unwrap().success()),
                1 => assert!(child.wait_timeout(common::SOON).unwrap().unwrap().success()),
                _ => eventually("it is dead", || child.try_wait().unwrap().is_some_and(|exit| exit.success())),
            });
        }
    });
}

#[test]
fn a_wait_that_times_out_changes_nothing() {
    let child = sh("read line; exit 4").stdin(Stdio::piped()).spawn().unwrap();
    let _stdin = child.take_stdin();
    for limit in [Duration::ZERO, Duration::from_millis(10)] {
        assert!(child.wait_timeout(limit).unwrap().is_none());
    }
    assert!(child.try_wait().unwrap().is_none());
    drop(_stdin);
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn wait_closes_an_untaken_stdin() {
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_hundred_threads_wait_and_all_are_told_the_same() {
    let child = sh("read line; exit 9").stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.take_stdin();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..100).map(|_| scope.spawn(|| child.wait().unwrap())).collect();
        drop(stdin);
        for waiter in waiters {
            let exit = waiter.join().unwrap();
            assert_eq!((exit.code(), exit.exited_at()), (Some(9), child.wait().unwrap().exited_at()));
        }
    });
}

/// A waker that does as it is told and counts how often it was asked.
struct Rouser {
    calls: AtomicUsize,
    act: Box<dyn Fn() + Send + Sync>,
}

impl Rouser {
    fn new(act: impl Fn() + Send + Sync + 'static) -> Arc<Rouser> {
        Arc::new(Rouser { calls: AtomicUsize::new(0), act: Box::new(act) })
    }
}

impl Wake for Rouser {
    fn wake(self: Arc<Self>) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        (self.act)();
    }
}

fn poll_with<T>(future: impl Future<Output = T>, rouser: &Arc<Rouser>) -> Poll<T> {
    pin!(future).poll(&mut task::Context::from_waker(&Waker::from(rouser.clone())))
}

#[test]
fn wakers_may_panic_and_may_drop_the_child() {
    let child = Arc::new(Mutex::new(None));
    let held = child.clone();
    let panics = Rouser::new(|| std::panic::resume_unwind(Box::new("as asked")));
    let drops = Rouser::new(move || drop(held.lock().unwrap().take()));
    let spawned = sh("exec sleep 60").stdout(Stdio::captured()).spawn().unwrap();
    let pid = spawned.id();
    let mut first = pin!(spawned.wait_async());
    let mut second = pin!(spawned.wait_async());
    for (future, rouser) in [(first.as_mut(), &panics), (second.as_mut(), &drops)] {
        assert!(future.poll(&mut task::Context::from_waker(&Waker::from(rouser.clone()))).is_pending());
    }
    // A future borrows its own child: the one that is dropped inside is another.
    *child.lock().unwrap() = Some(sh("exec sleep 60").kill_on_drop(true).spawn().unwrap());
    spawned.kill().unwrap();
    eventually("both are woken", || panics.calls.load(Ordering::SeqCst) + drops.calls.load(Ordering::SeqCst) == 2);
    assert_eq!(spawned.wait().unwrap().signal(), Some(pidloop::Signal::SIGKILL));
    eventually("it is dropped", || child.lock().unwrap().is_none());
    eventually("it is reaped", || !exists(pid));
}

/// A long-lived child that is awaited for a moment again and again.
#[test]
fn a_dropped_wait_takes_its_waker_with_it() {
    let child = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
    let rousers: Vec<_> = (0..100).map(|_| Rouser::new(|| {})).collect();
    for rouser in &rousers {
        assert!(poll_with(child.wait_async(), rouser).is_pending());
    }
    assert!(rousers.iter().all(|rouser| Arc::strong_count(rouser) == 1));
    // One future that is polled with another waker each time wakes the last alone.
    {
        let mut future = pin!(child.wait_async());
        for rouser in &rousers {
            let waker = Waker::from(rouser.clone());
            assert!(future.as_mut().poll(&mut task::Context::from_waker(&waker)).is_pending());
        }
        child.kill().unwrap();
        eventually("the last is woken", || rousers[99].calls.load(Ordering::SeqCst) == 1);
    }
    assert!(rousers[..99].iter().all(|rouser| rouser.calls.load(Ordering::SeqCst) == 0));
}

/// The logger is somebody else's code: it panics, and asks us things.
#[test]
fn a_logger_that_panics_and_comes_back_harms_nobody() {
    struct Logger(Mutex<Option<Arc<pidloop::Child>>>, AtomicUsize);
    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, _: &log::Record<'_>) {
            self.1.fetch_add(1, Ordering::SeqCst);
            if let Some(child) = self.0.lock().unwrap().take() {
                let _ = (child.try_wait(), child.kill(), child.pidfd());
            }
            std::panic::resume_unwind(Box::new("as asked"));
        }
        fn flush(&self) {}
    }
    static LOGGER: Logger = Logger(Mutex::new(None), AtomicUsize::new(0));

    in_own_process("a_logger_that_panics_and_comes_back_harms_nobody", || {
        log::set_logger(&LOGGER).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        for round in 1..=5 {
            let child = Arc::new(sh("exec sleep 60").stdout(Stdio::captured()).spawn().unwrap());
            let panics = Rouser::new(|| std::panic::resume_unwind(Box::new("as asked")));
            let mut future = pin!(child.wait_async());
            let waker = Waker::from(panics.clone());
            assert!(future.as_mut().poll(&mut task::Context::from_waker(&waker)).is_pending());
            *LOGGER.0.lock().unwrap() = Some(child.clone());
            child.kill().unwrap();
            eventually("it is logged", || LOGGER.1.load(Ordering::SeqCst) >= round);
            assert_eq!(child.wait().unwrap().signal(), Some(pidloop::Signal::SIGKILL));
        }
        Command::new("true").output().unwrap();
    });
}

/// Whoever waits on the spot reaps by himself: there is nobody a thread would be needed for.
#[test]
fn a_status_starts_no_thread() {
    in_own_process("a_status_starts_no_thread", || {
        let before = threads();
        assert!(Command::new("true").status().unwrap().success());
        Command::new("true").run().unwrap();
        assert_eq!(Command::new("sh").args(["-c", "exit 3"]).status().unwrap().code(), Some(3));
        assert_eq!(threads(), before);
        let child = Command::new("true").spawn().unwrap();
        assert_eq!(threads(), before + 1);
        child.wait().unwrap();
        assert!(Command::new("true").status().unwrap().success());
        assert_eq!(threads(), before + 1);
        assert_eq!(children_of_ours(), []);
    });
}
