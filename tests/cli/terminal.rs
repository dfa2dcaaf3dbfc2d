//! At a terminal: the promises about Ctrl-Z, SIGUSR1, the progress bar.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use super::common::{eventually, state};
use super::{pidloop, start};

#[test]
fn jobs_are_stopped_and_continued_with_us_and_their_time_stands_still() {
    // It waits when it speaks: a shell whose vfork child is stopped before its exec cannot be stopped itself.
    let script = "sleep 0.5 & echo $$; wait; echo woke; sleep 60";
    let mut live = start(&["-u", "--timeout", "2", "sh", "-c", script, ":::", "1"]);
    let job: u32 = live.line().parse().unwrap();
    let begun = Instant::now();
    live.signal(Signal::TSTP);
    let ours = live.child.id();
    eventually("both are stopped", || state(ours) == Some('T') && state(job) == Some('T'));
    // Longer than the timeout: nothing happens, and it must not have passed.
    let mut stdout = [PollFd::new(live.stdout.get_ref(), PollFlags::IN)];
    assert_eq!(poll(&mut stdout, Some(&Timespec { tv_sec: 2, tv_nsec: 200_000_000 })).unwrap(), 0);
    assert_eq!((state(ours), state(job)), (Some('T'), Some('T')));
    live.signal(Signal::CONT);
    assert_eq!(live.line(), "woke");
    let ran = live.end();
    assert_eq!(ran.code(), 1);
    assert!(ran.stderr.contains("timed out"), "{}", ran.stderr);
    assert!(begun.elapsed() >= Duration::from_millis(3000));
}

#[test]
fn sigusr1_shows_what_runs() {
    let mut live = start(&["-u", "-j2", "sh", "-c", "echo $$; sleep 60", ":::", "1", "2"]);
    let mut pids = [live.line(), live.line()];
    pids.sort();
    live.signal(Signal::USR1);
    let mut stderr = BufReader::new(live.child.stderr.take().unwrap());
    let mut lines = [String::new(), String::new(), String::new()];
    for line in &mut lines {
        stderr.read_line(line).unwrap();
    }
    assert_eq!(lines[0], "pidloop: 2 jobs running, 0 succeeded, 0 failed\n");
    for (number, line) in lines[1..].iter().enumerate() {
        assert!(line.starts_with(&format!("  job {}, pid ", number + 1)), "{line}");
        assert!(pids.iter().any(|pid| line.contains(&format!("pid {pid},"))), "{line}");
        assert!(line.ends_with(&format!(" s: sh -c 'echo $$; sleep 60' {}\n", number + 1)), "{line}");
    }
    live.signal(Signal::TERM);
    assert_eq!(live.end().code(), 143);
}

/// A terminal: our end and that of what runs in it.
pub(super) fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    (ours.into(), theirs)
}

/// What is written there until everybody is gone (EIO).
fn read(mut terminal: File) -> String {
    let mut seen = Vec::new();
    let _ = terminal.read_to_end(&mut seen);
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn who_waits_for_a_terminal_says_so() {
    let (mut ours, theirs) = terminal();
    let mut command = pidloop();
    command.arg("echo").env("TERM", "xterm").stdin(theirs.try_clone().unwrap()).stderr(theirs);
    let child = command.spawn().unwrap();
    drop(command);
    // A line and the end.
    ours.write_all(b"one\n\x04").unwrap();
    let text = read(ours);
    assert_eq!(child.wait_with_output().unwrap().stdout, b"one\n");
    assert!(text.contains("arguments are read from the terminal, one a line; Ctrl-D ends them"), "{text}");
    assert!(text.contains("0 done, 0 running") && !text.contains("0/0"), "{text}");
}

#[test]
fn a_terminal_shows_progress_and_a_summary() {
    for (option, shown) in [("--color", true), ("--no-bar", false)] {
        let (ours, stderr) = terminal();
        let mut command = pidloop();
        command.args([option, "-j1", "sh", "-c", "sleep 0.2; exit $0", ":::", "0", "7"]);
        let mut child = command.env("TERM", "xterm").stderr(Stdio::from(stderr)).spawn().unwrap();
        // It holds the terminal, too.
        drop(command);
        let text = read(ours);
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(text.contains("1/2 1 running"), shown, "{text}");
        assert_eq!(text.contains("pidloop: 1 succeeded, \x1b[31m1 failed\x1b[0m in 0."), shown, "{text}");
    }
}
