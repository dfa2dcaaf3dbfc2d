//! What is promised when things go wrong outside: odd input, missing programs, output that somebody holds or nobody reads.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::common::{SOON, skip};
use super::{marker, none_sleeps, pidloop, run, run_command, run_with, start};

#[test]
fn no_lines_are_no_jobs() {
    let ran = run_with(b"", &["echo", "never"]);
    assert_eq!((ran.code(), &*ran.stdout, &*ran.stderr), (0, "", ""));
    assert_eq!(run(&["echo", ":::"]).stdout, "");
}

#[test]
fn a_line_of_a_mebibyte_fails_alone_and_says_why() {
    let mut input = vec![b'x'; 1 << 20];
    input.extend(b"\nshort\n");
    let ran = run_with(&input, &["echo"]);
    assert_eq!((ran.code(), &*ran.stdout), (1, "short\n"));
    assert!(ran.stderr.contains("job 1: echo xxx"), "{}", ran.stderr);
    assert!(ran.stderr.contains("an argument has 1048576 bytes, and Linux takes 131071"), "{}", ran.stderr);
    assert!(ran.stderr.len() < 1000, "the message has {} bytes", ran.stderr.len());
}

#[test]
fn a_line_without_end_is_not_kept() {
    let mut input = vec![b'x'; 10 << 20];
    input.extend(b"\nshort\n");
    let ran = run_with(&input, &["echo"]);
    assert_eq!((ran.code(), &*ran.stdout), (1, "short\n"));
    assert!(ran.stderr.contains("the input line has 10485760 bytes"), "{}", ran.stderr);
}

#[test]
fn a_missing_program_is_named() {
    for (program, why) in [
        ("no-such-program", "the program no-such-program"),
        ("/no/such/program", "No such file or directory"),
        ("/", "Permission denied"),
        ("/etc/passwd", "Permission denied"),
    ] {
        let ran = run(&["-k", program, ":::", "a"]);
        assert_eq!((ran.code(), &*ran.stdout), (1, ""));
        assert!(ran.stderr.contains(&format!("job 1: {program} a: ")) && ran.stderr.contains(why), "{}", ran.stderr);
    }
}

#[test]
fn a_command_that_needs_a_shell_is_told_so() {
    for words in [&["echo {} | wc -c", ":::", "a"][..], &[":::", "A=1 env"]] {
        let ran = run(words);
        assert_eq!((ran.code(), &*ran.stdout), (1, ""));
        assert!(ran.stderr.contains("(no shell reads the command unless you say --shell)"), "{}", ran.stderr);
    }
    assert!(!run(&["no-such-program", ":::", "a b"]).stderr.contains("--shell"));
}

#[test]
fn arguments_need_not_be_utf8() {
    let ran = run_command(pidloop().arg("printf").arg(r"%s\n").args([":::"]).arg(OsStr::from_bytes(b"a\xffb")), b"");
    assert_eq!((ran.code(), &*ran.stdout), (0, "a\u{fffd}b\n"));
    let ran = run_with(b"\xff\xfe\n", &["sh", "-c", "printf %s $0 | wc -c"]);
    assert_eq!(ran.stdout.trim(), "2");
}

#[test]
fn an_argument_with_a_nul_byte_is_refused() {
    let ran = run_with(b"a\0b\nc\n", &["-k", "echo"]);
    assert_eq!((ran.code(), &*ran.stdout), (1, "c\n"));
    assert!(ran.stderr.contains("NUL byte"), "{}", ran.stderr);
}

#[test]
fn output_that_a_grandchild_holds_is_not_awaited_for_long() {
    let marker = marker();
    let begun = Instant::now();
    let script = r#"sleep "$0" & echo here; echo $! >&2"#;
    for mode in [&["-k"][..], &["--line-buffer"]] {
        let mut arguments = [mode, &["--kill-after", "0.2", "sh", "-c", script, ":::", &marker]].concat();
        let ran = run(&std::mem::take(&mut arguments));
        assert_eq!((ran.code(), &*ran.stdout), (0, "here\n"));
        assert!(ran.stderr.contains("still held its output open"), "{}", ran.stderr);
        let pid = ran.stderr.lines().find_map(|line| line.parse().ok()).unwrap();
        // It was left alone: it is not the job, which ended by itself.
        let sleeper = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).unwrap();
    }
    assert!(begun.elapsed() < SOON);
    none_sleeps(&marker);
}

#[test]
fn when_nobody_reads_it_ends_as_by_sigpipe_and_leaves_nothing() {
    let marker = marker();
    // An endless input, and jobs that would sleep.
    let script = format!(
        r#"yes | "$0" -j4 --line-buffer sh -c 'echo line; sleep {marker}' | head -n 1; echo ${{PIPESTATUS[1]}}"#
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_pidloop")]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run_command(&mut shell, b"");
    assert_eq!((&*ran.stdout, &*ran.stderr), ("line\n141\n", ""));
    none_sleeps(&marker);

    let mut child =
        pidloop().args(["--line-buffer", "sh", "-c", r#"echo line; sleep "$0""#, ":::", &marker]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "line\n");
    // The reader is gone, and the job will not write again.
    let output = child.wait_with_output().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(13));
    assert_eq!(output.stderr, b"");
    none_sleeps(&marker);
}

#[test]
fn an_input_that_cannot_be_read_is_named() {
    let ran = run(&["-a", "/no/such/file", "echo"]);
    assert_eq!((ran.code(), ran.stderr.contains("/no/such/file: No such file or directory")), (255, true));
    let ran = run(&["-a", "/", "echo"]);
    assert_eq!((ran.code(), ran.stderr.contains("Is a directory")), (255, true), "{}", ran.stderr);
}

#[test]
fn durations_that_no_clock_can_say_are_a_long_time() {
    let ever = "10000000000000000000";
    let ran = run(&["--kill-after", ever, "--timeout", ever, "--retry-delay", ever, "echo", ":::", "a"]);
    assert_eq!((ran.code(), &*ran.stdout, &*ran.stderr), (0, "a\n", ""));

    // A job that waits for its next try is not forgotten.
    let mut live = start(&["--retries", "2", "--retry-delay", ever, "-u", "sh", "-c", "echo $0; false", ":::", "a"]);
    assert_eq!(live.line(), "a");
    live.signal(rustix::process::Signal::INT);
    assert_eq!(live.end().code(), 130);
}

#[test]
fn no_thread_to_be_had_is_told() {
    if !rustix::process::geteuid().is_root() {
        return skip("no_thread_to_be_had_is_told", "needs root");
    }
    // Somebody who may neither read the directory that the program is in, nor have a second thread.
    let path = std::env::temp_dir().join(format!("pidloop-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_pidloop"), &path).unwrap();
    for arguments in [&["true"][..], &["true", ":::", "a"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups", "prlimit", "--nproc=0:0"]).arg(&path).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = run_command(&mut command, b"a\n");
        assert_eq!((ran.code(), ran.stderr.contains("no thread to ")), (255, true), "{}", ran.stderr);
    }
    std::fs::remove_file(path).unwrap();
}
