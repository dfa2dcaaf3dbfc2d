//! The scenarios of a child on a terminal of its own, and promises 5, 8 and 13 there: what it wrote before its end is all there, the end is an
//! end of file, what cannot be had is named. Knows the public API and termios.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use common::{SOON, children_of_ours, eventually, exists, in_own_process, open_descriptors, pipe, rounds, sh, skip};
use pidloop::{Cause, ChildTerminal, Command, Driver, ErrorKind, Limit, Reactor, Signal, Stage, Stdio, Terminal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A shell with such a terminal.
fn on(terminal: &Terminal, script: &str) -> Command {
    let mut command = sh(script);
    command.terminal(terminal);
    command
}

/// Neither echoes nor adds carriage returns.
fn plain() -> Terminal {
    Terminal::new().echo(false).carriage_returns(false).clone()
}

/// All that the child writes, without what is only for people.
fn says(terminal: &Terminal, script: &str) -> String {
    let output = on(terminal.clone().carriage_returns(false), script).output().unwrap();
    assert!(!output.exit().output_held_open() && output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

fn read_line(terminal: &mut ChildTerminal) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        assert_eq!(terminal.read(&mut byte).unwrap(), 1, "it ended after {line:?}");
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn terminals_open() -> usize {
    open_descriptors().iter().filter(|(_, what)| what.contains("ptmx") || what.contains("/pts/")).count()
}

// ── what the child has ──

#[test]
fn it_leads_a_session_of_its_own_in_the_foreground_of_its_terminal() {
    let script = "read pid name state parent group session terminal foreground rest </proc/self/stat
        test -t 0 && test -t 1 && test -t 2 && echo $$ $group $session $foreground; : </dev/tty && echo open";
    let child = on(&plain(), script).spawn().unwrap();
    let mut terminal = child.take_terminal().unwrap();
    assert!(child.take_terminal().is_none() && child.take_stdout().is_none());
    let pid = child.id();
    assert_eq!(read_line(&mut terminal), format!("{pid} {pid} {pid} {pid}\n"));
    assert_eq!(read_line(&mut terminal), "open\n");
    assert!(child.wait().unwrap().success());
    // It goes with the options that mean the same.
    let output = on(plain().typed(""), script).group().setsid().output().unwrap();
    let pid = output.exit().pid();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{pid} {pid} {pid} {pid}\nopen\n"));
}

#[test]
fn streams_that_are_set_are_as_they_are_set() {
    let script = "for n in 0 1 2; do test -t $n && echo $n >/dev/tty; done; echo to stdout; echo to stderr >&2";
    let terminal = plain();
    let child = on(&terminal, script).stderr(Stdio::captured()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stdout, output.stderr), (b"0\n1\nto stdout\n".into(), b"to stderr\n".into()));
    // Nobody types where the library reads: then stdin is null.
    let output = on(&terminal, script).output().unwrap();
    assert_eq!(output.stdout, b"1\n2\nto stdout\nto stderr\n");
    let child = on(&terminal, script).stdin(Stdio::null()).stdout(Stdio::captured()).spawn().unwrap();
    let mut text = String::new();
    child.take_terminal().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "2\nto stderr\n");
    assert_eq!(child.wait_with_output().unwrap().stdout, b"to stdout\n");
    let output = on(&terminal, "cat; tty").stdin(Stdio::bytes("fed")).output().unwrap();
    assert_eq!(output.stdout, b"fednot a tty\n");
}

#[test]
fn its_size_is_as_asked_and_follows() {
    assert_eq!(says(Terminal::new().typed(""), "stty size"), "24 80\n");
    assert_eq!(says(Terminal::new().size(7, 11).typed(""), "stty size"), "7 11\n");
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done";
    let child = on(plain().size(10, 20), script).spawn().unwrap();
    child.resize_terminal(11, 21).unwrap();
    let mut terminal = child.take_terminal().unwrap();
    while read_line(&mut terminal) != "ready\n" {}
    assert_eq!(terminal.size().unwrap(), (11, 21));
    terminal.resize(30, 40).unwrap();
    assert_eq!(read_line(&mut terminal), "30 40\n");
    let error = child.resize_terminal(1, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    // One that the library reads.
    let (writer, lines) = Stdio::lines(100);
    let script = "trap 'stty size </dev/tty; exit' WINCH; echo ready; while :; do sleep 0.01; done";
    let child = on(plain().output(writer), script).spawn().unwrap();
    let mut lines = lines.into_iter();
    assert_eq!(lines.next().unwrap(), b"ready\n");
    child.resize_terminal(50, 60).unwrap();
    assert_eq!(lines.next().unwrap(), b"50 60\n");
    child.wait_with_output().unwrap();
}

#[test]
fn echo_and_carriage_returns_are_the_callers_choice() {
    let cat = |terminal: &mut Terminal| on(terminal.typed("typed\n"), "cat").output().unwrap().stdout;
    assert_eq!(cat(Terminal::new().echo(false)), b"typed\r\n");
    assert_eq!(cat(Terminal::new().echo(false).carriage_returns(false)), b"typed\n");
    let echoed = cat(&mut Terminal::new());
    assert!(echoed.starts_with(b"typed\r\n") && echoed.ends_with(b"typed\r\n") && echoed.len() >= 14, "{echoed:?}");
}

// ── typing ──

#[test]
fn what_is_typed_is_read_and_then_ends() {
    for typed in ["", "\n", "line\n", "no newline", "two\nlines", "a\n\nb\n"] {
        assert_eq!(says(plain().typed(typed), "cat"), typed, "{typed:?}");
        // Who reads twice is told of the end once.
        assert_eq!(says(plain().typed(typed), "cat >/dev/null; echo then"), "then\n");
    }
    // More than any buffer holds.
    let lines: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(says(plain().typed(lines.clone()), "cat"), lines);
    // A child that reads nothing is no error, and hangs nobody.
    assert_eq!(says(plain().typed(lines), "echo done"), "done\n");
}

#[test]
fn keys_are_keys() {
    let output =
        on(plain().typed("\x03"), "trap 'echo interrupted; exit 9' INT; while :; do sleep 0.01; done").output();
    let output = output.unwrap();
    // A shell that was not ready died of it.
    assert!(output.status.code() == Some(9) || output.exit().signal() == Some(Signal::SIGINT), "{output:?}");
    let child = on(&plain(), "stty -icanon; echo ready; cat").spawn().unwrap();
    let mut terminal = child.take_terminal().unwrap();
    assert_eq!(read_line(&mut terminal), "ready\n");
    terminal.write_all(b"\x1c").unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGQUIT));
    let child = on(&plain(), "cat").spawn().unwrap();
    let terminal = child.take_terminal().unwrap();
    (&terminal).write_all(b"by the caller\n").unwrap();
    assert_eq!(read_line(&mut terminal.try_clone().unwrap()), "by the caller\n");
    terminal.type_end().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn who_asks_for_the_terminal_itself_is_answered() {
    assert_eq!(says(plain().typed("secret\n"), "exec </dev/null; read word </dev/tty; echo got $word"), "got secret\n");
}

// ── the end ──

#[test]
fn nothing_that_was_written_before_the_end_is_lost() {
    for bytes in [1, 4095, 4096, 5000, 100_000] {
        let script = format!("head -c {bytes} /dev/zero | tr '\\0' x");
        for _ in 0..rounds(5) {
            let whole =
                |text: &[u8]| assert!(text.len() == bytes && text.iter().all(|byte| *byte == b'x'), "{}", text.len());
            whole(&on(&plain(), &script).output().unwrap().stdout);
            whole(&on(&plain(), &script).spawn().unwrap().wait_with_output().unwrap().stdout);
            let child = on(&plain(), &script).spawn().unwrap();
            let mut terminal = child.take_terminal().unwrap();
            let mut text = Vec::new();
            terminal.read_to_end(&mut text).unwrap();
            whole(&text);
            child.wait().unwrap();
        }
    }
}

#[test]
fn what_the_buffers_hold_can_be_read_after_the_death() {
    for _ in 0..rounds(20) {
        let child = on(&plain(), "printf 'last words'").spawn().unwrap();
        child.wait().unwrap();
        let mut text = String::new();
        let mut terminal = child.take_terminal().unwrap();
        terminal.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), terminal.read(&mut [0]).unwrap()), ("last words", 0));
        let child = on(&plain(), "printf 'last words'").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, b"last words");
    }
}

#[test]
fn a_terminal_that_somebody_still_holds_is_cut_as_a_pipe_is() {
    // Killed in the end by what it was left on: its session's foreground hears of a closed terminal, and so it ignores that.
    let script = "trap '' HUP; sleep 60 & echo $!; head -c 3000 /dev/zero | tr '\\0' x; exit 3";
    for _ in 0..rounds(3) {
        let output =
            on(&plain(), script).wait_delay(Duration::from_millis(50)).spawn().unwrap().wait_with_output().unwrap();
        assert!(output.exit().output_held_open() && output.exit().held_open().stdout);
        let text = String::from_utf8(output.stdout).unwrap();
        let (pid, rest) = text.split_once('\n').unwrap();
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        assert_eq!((rest.len(), output.status.code()), (3000, Some(3)));
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    // Somebody who floods it, too, for as long as it is there.
    let flood = "trap '' HUP; (while echo flood; do :; done) & echo $!; exit 0";
    let output = on(&plain(), flood).wait_delay(Duration::from_millis(50)).spawn().unwrap().wait_with_output().unwrap();
    assert!(output.exit().output_held_open());
}

#[test]
fn who_leaves_its_terminal_is_not_hung_up_by_that() {
    in_own_process("who_leaves_its_terminal_is_not_hung_up_by_that", || {
        let (mut ours, theirs) = pipe();
        let mut command =
            on(plain().output(Stdio::captured()), "echo here; exec >&2; echo left >&2; read word; exit 7");
        let child = command.stdin(Stdio::piped()).stderr(theirs).spawn().unwrap();
        drop(command);
        let mut stdin = child.take_stdin().unwrap();
        ours.read_exact(&mut [0; 5]).unwrap();
        // One of our two ends is closed at the end of the output, the other one keeps the line.
        eventually("the end is seen", || terminals_open() == 1);
        stdin.write_all(b"go on\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(7), b"here\n".into()));
        eventually("all is closed", || terminals_open() == 0);
    });
}

#[test]
fn closing_our_end_hangs_up() {
    let waits = "echo ready; while :; do sleep 0.01; done";
    // A sibling has no copy of it.
    let sibling = sh("exec sleep 60").kill_on_drop(true).spawn().unwrap();
    let child = on(&plain(), waits).spawn().unwrap();
    let other = on(&plain(), waits).kill_on_drop(true).spawn().unwrap();
    let mut terminal = child.take_terminal().unwrap();
    read_line(&mut terminal);
    drop(terminal);
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGHUP));
    assert!(other.try_wait().unwrap().is_none() && sibling.try_wait().unwrap().is_none());
    // Nobody took it, and nobody will.
    let child = on(&plain(), waits).spawn().unwrap();
    let pid = child.id();
    drop(child);
    eventually("it is hung up", || !exists(pid));
    // What the library reads it goes on reading.
    let child = on(plain().output(Stdio::captured()), "read word; exit 0").stdin(Stdio::piped()).spawn().unwrap();
    let (pid, stdin) = (child.id(), child.take_stdin());
    drop(child);
    assert!(exists(pid));
    drop(stdin);
    eventually("it ends by itself", || !exists(pid));
}

#[test]
fn deadlines_limits_and_writers_are_as_with_pipes() {
    let error = on(&plain(), "echo begun; while :; do sleep 0.01; done").timeout(Duration::from_millis(300)).output();
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(error.output().unwrap().stdout, b"begun\n");
    let limited = plain().output(Stdio::captured_limited(Limit::stop_at(10))).clone();
    let error = on(&limited, "while :; do echo more; done").output().unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::OutputLimit, Some(&Cause::OutputLimit)));
    assert_eq!(error.output().unwrap().stdout, b"more\nmore\n");
    let ends = plain().output(Stdio::captured_limited(Limit::head_tail(2, 2))).clone();
    let output = on(&ends, "printf abcdef").output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.stdout_omitted_bytes), (&b"abef"[..], 2));
    for _ in 0..rounds(5) {
        let (queue, lines) = Stdio::lines(10);
        let child = on(plain().output(queue), "seq 1000").spawn().unwrap();
        assert_eq!(lines.into_iter().count(), 1000);
        child.wait().unwrap().check().unwrap();
        let (mut ours, theirs) = pipe();
        let child = on(plain().output(Stdio::writer(theirs)), "seq 1000").spawn().unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 1000);
        child.wait_with_output().unwrap().exit().check().unwrap();
    }
}

#[test]
fn who_asks_only_for_the_status_has_its_output_read_and_forgotten() {
    for _ in 0..rounds(3) {
        let command = on(&plain(), "seq 30000; exit 3");
        assert_eq!(command.status().unwrap().code(), Some(3));
        assert_eq!(command.run().unwrap_err().kind(), ErrorKind::Unsuccessful);
        let (mut ours, theirs) = pipe();
        let mut quiet = on(plain().output(Stdio::captured()), "seq 30000 && echo done >&2");
        drop(quiet.stderr(theirs).spawn().unwrap());
        drop(quiet);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "done\n");
    }
}

#[test]
fn a_last_command_of_a_pipeline_may_have_one() {
    let mut last = sh("test -t 1 && cat");
    last.terminal(&plain());
    assert_eq!(Command::new("echo").arg("x").pipe_to(&last).output().unwrap().stdout(), b"x\n");
}

#[test]
fn reactors_and_drivers_have_them_too() {
    let mut reactor = Reactor::new().unwrap();
    let id = reactor.spawn(&on(plain().output(Stdio::captured()), "stty size </dev/tty; exit 3")).unwrap();
    let taken = reactor.spawn(&on(&plain(), "read word; echo got $word")).unwrap();
    reactor.resize_terminal(id, 1, 2).unwrap();
    let mut terminal = reactor.take_terminal(taken).unwrap();
    terminal.write_all(b"it\n").unwrap();
    let mut text = String::new();
    terminal.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got it\n");
    let mut ended = Vec::new();
    while ended.len() < 2 {
        reactor.turn(Some(SOON)).unwrap();
        ended.extend(std::iter::from_fn(|| reactor.next_exit()));
    }
    let captured = ended.into_iter().find(|ended| ended.id() == id).unwrap().into_output();
    assert!([&b"1 2\n"[..], b"24 80\n"].contains(&&captured.stdout[..]), "{captured:?}");
    assert!(reactor.take_terminal(id).is_none());
    assert_eq!(reactor.resize_terminal(id, 1, 2).unwrap_err().kind(), ErrorKind::NoSuchChild);
    let driver = Driver::new().unwrap();
    assert_eq!(driver.spawn(&on(&plain(), "echo x")).unwrap().wait_with_output().unwrap().stdout, b"x\n");
}

#[test]
fn an_end_becomes_a_descriptor_and_back() {
    let child = on(&plain(), "echo x").spawn().unwrap();
    let fd = OwnedFd::from(child.take_terminal().unwrap());
    let mut text = String::new();
    ChildTerminal::from(fd).read_to_string(&mut text).unwrap();
    assert_eq!(text, "x\n");
    child.wait().unwrap();
}

// ── what cannot be ──

#[test]
fn contradictions_are_refused() {
    let terminal = plain();
    for (command, says) in [
        (on(&terminal, "").controlling_terminal(0).setsid(), "it has a terminal of its own"),
        (on(&terminal, "").foreground(0), "in the foreground already"),
        (on(&terminal, "").process_group(1), "a terminal of its own needs a new session"),
        (on(&terminal, "").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()), "none of its streams"),
        (
            &mut on(terminal.clone().output(Stdio::null()), ""),
            "can be piped, captured, or given to a writer or a queue",
        ),
        (&mut on(terminal.clone().typed("x"), ""), "the keyboard of its terminal is the caller's"),
        (on(terminal.clone().output(Stdio::captured()), "").stdout(Stdio::piped()), "only one can be read here"),
        (
            on(terminal.clone().output(Stdio::captured()).typed("x"), "").stdin(Stdio::bytes("y")),
            "its stdin is fed as well",
        ),
        (
            on(terminal.clone().output(Stdio::captured()), "").stdout(Stdio::null()).stderr(Stdio::null()),
            "none of its streams",
        ),
    ] {
        let error = command.spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(Command::new("true").spawn().unwrap().take_terminal().is_none());
    assert_eq!(format!("{:?}", Terminal::new().typed("password")).matches("password").count(), 0);
}

#[test]
fn no_descriptor_left_is_named_and_leaves_nothing() {
    in_own_process("no_descriptor_left_is_named_and_leaves_nothing", || {
        let run = || on(plain().typed("x"), "cat").output();
        run().unwrap();
        let given_back = |before: &[(i32, String)]| eventually("all is given back", || open_descriptors() == before);
        let before = open_descriptors();
        let limit = getrlimit(Resource::Nofile);
        let highest = before.iter().map(|(number, _)| *number).filter(|number| *number < 200).max().unwrap();
        let (mut failed, mut worked, mut named) = (0, 0, 0);
        for room in 0..10 {
            let fill: Vec<_> = std::iter::from_fn(|| File::open("/dev/zero").ok())
                .take_while(|file| file.as_raw_fd() <= highest)
                .collect();
            let current = Some(highest as u64 + 1 + room);
            setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum }).unwrap();
            let result = run();
            setrlimit(Resource::Nofile, limit).unwrap();
            drop(fill);
            match result {
                Ok(output) => {
                    worked += 1;
                    assert_eq!(output.stdout, b"x");
                }
                Err(error) => {
                    failed += 1;
                    assert_eq!(error.kind(), ErrorKind::NoDescriptors, "{error}");
                    named += u32::from(error.stage() == Some(Stage::PseudoTerminal));
                }
            }
            given_back(&before);
            assert_eq!(children_of_ours(), []);
        }
        assert!(failed > 2 && worked > 0 && named == 2, "{failed} {worked} {named}");
    });
}

/// In a mount namespace of this thread's own.
#[test]
fn a_terminal_that_cannot_be_had_is_named() {
    const NAME: &str = "a_terminal_that_cannot_be_had_is_named";
    in_own_process(NAME, || {
        on(&plain(), "").output().unwrap();
        let mount = |kind: &std::ffi::CStr, target: &std::ffi::CStr, flags, data: &std::ffi::CStr| {
            // SAFETY: strings, flags; in a namespace of our own.
            unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) == 0 }
        };
        // SAFETY: flags. What this thread mounts is its own.
        let is_alone = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0
            && mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE, c"");
        if !is_alone || !mount(c"devpts", c"/dev/pts", 0, c"max=1,ptmxmode=0666") {
            return skip(NAME, "no mount namespace of its own");
        }
        let first = on(&plain(), "read word").spawn().unwrap();
        let error = on(&plain(), "").spawn().unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Setup, Some(libc::ENOSPC)));
        assert!(error.is_transient());
        assert_eq!(
            error.to_string(),
            "/bin/sh -c '': could not open a pseudo-terminal /dev/ptmx: all of them are in use (kernel.pty.max): No \
             space left on device (os error 28)"
        );
        drop(first.take_terminal());
        first.wait().unwrap();
        eventually("there is one again", || on(&plain(), "").spawn().is_ok_and(|child| child.wait().is_ok()));
        assert!(mount(c"tmpfs", c"/dev", 0, c""));
        let error = on(&plain(), "").stdin(Stdio::bytes("")).spawn().unwrap_err();
        assert_eq!((error.stage(), error.raw_os_error()), (Some(Stage::PseudoTerminal), Some(libc::ENOENT)));
        assert!(error.to_string().contains("could not open a pseudo-terminal /dev/ptmx: No such file"), "{error}");
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn a_forked_copy_has_none() {
    in_own_process("a_forked_copy_has_none", || {
        let child = on(&plain(), "read word; exit 5").spawn().unwrap();
        // SAFETY: the copy has one thread, touches what is below and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let forked = child.take_terminal().is_none()
                && child.resize_terminal(1, 1).is_err_and(|error| error.kind() == ErrorKind::Forked);
            // SAFETY: as above.
            unsafe { libc::_exit(if forked { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waitpid(2) for that child alone.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0);
        let mut terminal = child.take_terminal().unwrap();
        terminal.write_all(b"\n").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(5));
    });
}

#[test]
fn the_child_has_its_streams_and_nothing_else() {
    in_own_process("the_child_has_its_streams_and_nothing_else", || {
        let listed = says(plain().typed(""), "ls -l /proc/$$/fd | grep -c pts; ls -1 /proc/$$/fd");
        assert_eq!(listed, "3\n0\n1\n2\n");
        eventually("none is left open here", || terminals_open() == 0);
    });
}
