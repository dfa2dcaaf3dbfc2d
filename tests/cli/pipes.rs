//! `--pipe-to` and `--tty`: the promises about jobs of several commands, and about jobs on terminals of their own.

use std::process::Stdio;

use rustix::process::Signal;
use rustix::termios::{Winsize, tcsetwinsize};

use super::common::{Scratch, eventually, state};
use super::terminal::terminal;
use super::{marker, none_sleeps, pidloop, run, sleepers, start};

// ── one command into the next ──

#[test]
fn a_jobs_output_goes_through_each_command() {
    let ran = run(&["-k", "--pipe-to", "tr a-z A-Z", "--pipe-to", "sed 's/^/{#} {}: /'", "echo", ":::", "a", "b c"]);
    assert_eq!((ran.code(), ran.stdout.as_str(), ran.stderr.as_str()), (0, "1 a: A\n2 b c: B C\n", ""));
    let ran = run(&["--shell", "--pipe-to", "cat; echo {}", "echo $((1 + {}))", ":::", "1"]);
    assert_eq!((ran.code(), ran.stdout.as_str()), (0, "2\n1\n"));
    // Each stderr is the job's, whole or as it comes.
    for how in [&["-k"][..], &["--line-buffer", "-k"]] {
        let arguments = [
            how,
            &["--tag", "--pipe-to", "sh -c 'cat; echo two >&2'", "sh", "-c", "echo one >&2; echo out", ":::", "x"],
        ];
        let ran = run(&arguments.concat());
        let mut errors: Vec<&str> = ran.stderr.lines().collect();
        errors.sort();
        assert_eq!((ran.code(), ran.stdout.as_str(), errors), (0, "x\tout\n", vec!["x\tone", "x\ttwo"]), "{how:?}");
    }
    let ran = run(&["-u", "--pipe-to", "cat", "echo", ":::", "x"]);
    assert_eq!(ran.stdout, "x\n");
    let ran = run(&["--dry-run", "--pipe-to", "gzip -c", "cat", ":::", "a b"]);
    assert_eq!(ran.stdout, "cat 'a b' | gzip -c\n");
    let ran = run(&["--max-output", "4", "--pipe-to", "sh -c 'cat; echo 123456789 >&2'", "printf", ":::", "abcdefghi"]);
    assert_eq!(ran.stdout, "ab\n[pidloop: 5 bytes left out]\nhi");
    assert!(ran.stderr.contains("12\n[pidloop: 6 bytes left out]\n9\n"), "{}", ran.stderr);
}

#[test]
fn a_job_fails_if_any_command_does_but_for_readers_that_had_enough() {
    let status = |first: &str, then: &str| run(&["--pipe-to", then, "sh", "-c", first, ":::", "x"]);
    assert_eq!(status("exit 0", "cat").code(), 0);
    assert_eq!(status("exit 3", "cat").code(), 1);
    assert_eq!(status("exit 0", "sh -c 'exit 3'").code(), 1);
    assert_eq!(status("yes", "head -n 1").code(), 0);
    let ran = run(&["--joblog", "-", "--pipe-to", "sh -c 'cat >/dev/null; exit 5'", "sh", "-c", "exit 3", ":::", "x"]);
    let line: Vec<&str> = ran.stdout.lines().nth(1).unwrap().split('\t').collect();
    assert_eq!((line[6], line[7], line[8]), ("5", "0", "sh -c 'exit 3' x | sh -c 'cat >/dev/null; exit 5'"));
    let ran = run(&["--json", "--pipe-to", "wc -c", "printf", ":::", "abc"]);
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&value["stdout"], &value["exit"]), (&"3\n".into(), &0.into()));
    assert_eq!(value["command"], "printf abc | wc -c");
}

#[test]
fn one_that_cannot_start_is_named_and_the_others_are_gone() {
    let sleep = marker();
    let ran = run(&["--pipe-to", "/no/such/program", "sleep", ":::", &sleep]);
    assert_eq!(ran.code(), 1);
    let says = format!("job 1: sleep {sleep} | /no/such/program: /no/such/program (command 2 of 2): could not execute");
    assert!(ran.stderr.contains(&says), "{}", ran.stderr);
    none_sleeps(&sleep);
    for (bad, why) in [("'", "has a quote that does not end"), (" ", "is empty")] {
        let ran = run(&["--pipe-to", bad, "echo", ":::", "x"]);
        assert!(ran.code() == 255 && ran.stderr.contains(why), "{}", ran.stderr);
    }
}

#[test]
fn a_stop_reaches_every_command_of_a_job() {
    let sleep = marker();
    let script = format!("sleep {sleep} & sleep {sleep}");
    let both = ["-u", "-j2", "--pipe-to"];
    let words = ["sh", "-c", &script, ":::", "1", "2"];
    let then = format!("sh -c 'echo here >&2; sleep {sleep}'");
    let live = start(&[&both[..], &[&then], &words].concat());
    eventually("all sleep", || sleepers(&sleep) == 6);
    live.signal(Signal::INT);
    assert_eq!(live.end().code(), 130);
    none_sleeps(&sleep);
    let ran = run(&[&["--timeout", "0.2", "--pipe-to", &then], &words[..]].concat());
    assert_eq!(ran.code(), 2);
    assert!(ran.stderr.contains("timed out"), "{}", ran.stderr);
    none_sleeps(&sleep);
}

#[test]
fn a_record_knows_the_whole_job() {
    let dir = Scratch::new("cli-pipes");
    let log = dir.0.join("log").into_os_string().into_string().unwrap();
    let resumed = |then: &str| run(&["--joblog", &log, "--resume", "-k", "--pipe-to", then, "echo", ":::", "a", "b"]);
    assert_eq!(resumed("cat").stdout, "a\nb\n");
    assert_eq!(resumed("cat").stdout, "");
    let other = resumed("tac");
    assert!(other.code() == 255 && other.stderr.contains("belongs to another run"), "{}", other.stderr);
}

// ── a terminal of its own ──

#[test]
fn each_job_has_a_terminal_and_its_output_is_as_any() {
    let script =
        "test -t 1 && test -t 2 && ! test -t 0 && echo on $0; echo err >&2; read word </dev/tty; echo end [$word]";
    for how in [&["-k"][..], &["-k", "--line-buffer"], &["-k", "--tag"]] {
        let ran = run(&[how, &["--tty", "-j2", "sh", "-c", script, ":::", "1", "2"]].concat());
        let tag = |job: &str| if how.contains(&"--tag") { format!("{job}\t") } else { String::new() };
        let lines = |job: &str| {
            let tag = tag(job);
            format!("{tag}on {job}\n{tag}err\n{tag}end []\n")
        };
        assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""), "{how:?}");
        assert_eq!(ran.stdout, format!("{}{}", lines("1"), lines("2")), "{how:?}");
    }
    let ran = run(&["--tty", "sh", "-c", "stty size </dev/tty; exit 3", ":::", "1"]);
    assert_eq!((ran.code(), ran.stdout.as_str()), (1, "24 80\n"));
    // All of it, and what a job leaves behind is awaited no longer than elsewhere.
    let ran = run(&["--tty", "--line-buffer", "seq", ":::", "100000"]);
    assert_eq!(ran.stdout.lines().count(), 100_000);
    let left = ["--tty", "--kill-after", "0.1", "sh", "-c", "trap '' HUP; sleep 1 & echo left", ":::", "1"];
    for how in [&[][..], &["--line-buffer"]] {
        let ran = run(&[how, &left].concat());
        assert_eq!(ran.stdout, "left\n", "{how:?}");
        assert!(ran.stderr.contains("somebody still held its output open"), "{}", ran.stderr);
    }
    for other in ["-u", "--pipe-to=cat"] {
        assert_eq!(run(&["--tty", other, "echo", ":::", "x"]).code(), 255);
    }
}

#[test]
fn jobs_terminals_are_as_large_as_ours_and_follow_it() {
    for how in [&[][..], &["--line-buffer"]] {
        let (ours, theirs) = terminal();
        let size = |rows, columns| Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size(33, 44)).unwrap();
        let dir = Scratch::new(&format!("cli-size-{}", how.len()));
        let ready = dir.0.join("ready");
        let script = "trap 'stty size </dev/tty; exit' WINCH; stty size </dev/tty; : >$0; while :; do sleep 0.01; done";
        let mut command = pidloop();
        command
            .args(how)
            .args(["--no-bar", "--tty", "sh", "-c", script, ":::"])
            .arg(&ready)
            .stderr(Stdio::from(theirs));
        let child = command.spawn().unwrap();
        drop(command);
        eventually("the job is ready", || ready.exists());
        tcsetwinsize(&ours, size(55, 66)).unwrap();
        // The kernel tells those in its foreground; this one has no session of its own there.
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::WINCH).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "33 44\n55 66\n", "{how:?}");
    }
}

#[test]
fn jobs_on_terminals_are_stopped_continued_and_ended_with_us() {
    let sleep = marker();
    let script = format!("echo $$ >&2; sleep {sleep} & wait");
    let mut live = start(&["--tty", "--line-buffer", "sh", "-c", &script, ":::", "1"]);
    let job: u32 = live.line().parse().unwrap();
    live.signal(Signal::TSTP);
    let ours = live.child.id();
    eventually("both are stopped", || state(ours) == Some('T') && state(job) == Some('T'));
    live.signal(Signal::CONT);
    eventually("both go on", || state(ours) != Some('T') && state(job) != Some('T'));
    live.signal(Signal::INT);
    assert_eq!(live.end().code(), 130);
    none_sleeps(&sleep);
}
