//! Timeouts, Ctrl-C, SIGTERM, and the promise that what runs is stopped with all it has started, and nothing is left behind.

use rustix::process::Signal;

use super::common::SOON;
use super::{marker, none_sleeps, run, run_with, start};
use std::time::Instant;

/// A job that starts a sleeper of its own, says that it is there, and waits.
const WITH_CHILD: &str = r#"sleep "$0" & echo ready; wait"#;
/// A job that SIGTERM does not end.
const STUBBORN: &str = r#"trap "" TERM; echo ready; sleep "$0"; sleep "$0""#;

#[test]
fn a_job_that_takes_too_long_is_stopped_with_its_children() {
    let marker = marker();
    let ran = run(&["--timeout", "1", "sh", "-c", WITH_CHILD, ":::", &marker]);
    assert_eq!((ran.code(), &*ran.stdout), (1, "ready\n"));
    assert!(ran.stderr.contains("job 1: sh -c") && ran.stderr.contains("timed out after 1."), "{}", ran.stderr);
    none_sleeps(&marker);
}

#[test]
fn a_timeout_is_each_jobs_own() {
    let ran = run(&["-k", "-j2", "--timeout", "20", "sh", "-c", "sleep $0; echo $0", ":::", "0.1", "0.2", "0.1"]);
    assert_eq!((ran.code(), &*ran.stdout), (0, "0.1\n0.2\n0.1\n"));
}

#[test]
fn what_ignores_sigterm_is_killed_after_the_grace() {
    let marker = marker();
    let ran = run(&["--timeout", "0.2", "--kill-after", "0.2", "sh", "-c", STUBBORN, ":::", &marker]);
    assert_eq!(ran.code(), 1);
    none_sleeps(&marker);
}

#[test]
fn children_that_outlive_their_stopped_leader_are_killed_after_the_grace() {
    let marker = marker();
    let script = r#"(trap "" TERM; sleep "$0" & wait; wait) & echo ready; wait"#;
    let ran = run(&["--timeout", "0.2", "--kill-after", "0.2", "sh", "-c", script, ":::", &marker]);
    assert_eq!(ran.code(), 1);
    none_sleeps(&marker);
}

#[test]
fn ctrl_c_stops_what_runs_and_starts_nothing_more() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let marker = marker();
        let mut live = start(&["-j2", "--line-buffer", "sh", "-c", WITH_CHILD, ":::", &marker, &marker, &marker]);
        assert_eq!([live.line(), live.line()], ["ready", "ready"]);
        live.signal(signal);
        let ran = live.end();
        assert_eq!((ran.code(), &*ran.stdout), (status, ""), "{}", ran.stderr);
        none_sleeps(&marker);
    }
}

#[test]
fn a_second_ctrl_c_kills_at_once() {
    let marker = marker();
    let mut live = start(&["-j2", "-u", "--kill-after", "1000", "sh", "-c", STUBBORN, ":::", &marker, &marker]);
    assert_eq!([live.line(), live.line()], ["ready", "ready"]);
    let begun = Instant::now();
    live.signal(Signal::INT);
    let mut first_word = String::new();
    let stderr = live.child.stderr.take().unwrap();
    let mut stderr = std::io::BufReader::new(stderr);
    std::io::BufRead::read_line(&mut stderr, &mut first_word).unwrap();
    assert!(first_word.contains("received SIGINT: stopping 2 jobs"), "{first_word}");
    live.signal(Signal::INT);
    assert_eq!(live.end().code(), 130);
    assert!(begun.elapsed() < SOON);
    none_sleeps(&marker);
}

#[test]
fn sigquit_kills_at_once() {
    let marker = marker();
    let mut live = start(&["-u", "--kill-after", "1000", "sh", "-c", STUBBORN, ":::", &marker]);
    assert_eq!(live.line(), "ready");
    live.signal(Signal::QUIT);
    assert_eq!(live.end().code(), 131);
    none_sleeps(&marker);
}

#[test]
fn a_list_with_failures_timeouts_and_a_ctrl_c_leaves_nothing() {
    let marker = marker();
    let script =
        r#"case $1 in fail) exit 1;; late) sleep "$0";; last) sleep "$0" & echo ready; wait;; *) echo "$1";; esac"#;
    let mut input: Vec<u8> = b"ok\nfail\nlate\n".repeat(20);
    input.extend(b"last\n".repeat(4));
    let mut live = start(&["-j4", "--timeout", "0.2", "--halt", "soon,done=70", "sh", "-c", script, &marker]);
    std::io::Write::write_all(live.stdin.as_mut().unwrap(), &input).unwrap();
    while live.line() != "ready" {}
    live.signal(Signal::INT);
    let code = live.end().code();
    assert_eq!(code, 130);
    none_sleeps(&marker);
}

#[test]
fn what_was_started_before_the_end_of_input_is_awaited() {
    let ran = run_with(b"0.2\n0.1", &["-k", "-j0", "sh", "-c", "sleep $0; echo $0"]);
    assert_eq!(ran.stdout, "0.2\n0.1\n");
}
