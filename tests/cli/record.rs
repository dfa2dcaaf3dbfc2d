//! The joblog: what it promises to whoever goes on with it, after failures, kills and full disks.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::choices::Dir;
use super::common::{eventually, skip};
use super::{run, run_command, run_with, start};

/// The records of a joblog by number: how often, and the last Exitval, Signal and Command.
fn records(text: &str) -> HashMap<u64, (usize, String)> {
    let mut found = HashMap::new();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"));
    for line in lines {
        let columns: Vec<&str> = line.split('\t').collect();
        let entry: &mut (usize, String) = found.entry(columns[0].parse().unwrap()).or_default();
        *entry = (entry.0 + 1, columns[6..].join(" "));
    }
    found
}

/// The numbers of the jobs whose records are whole.
fn whole_records(text: &str) -> Vec<u64> {
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    records(whole).into_keys().collect()
}

#[test]
fn each_ended_job_has_a_line() {
    let dir = Dir::new("lines");
    let log = dir.path("log");
    let script = "case $0 in kill) kill -9 $$;; late) exec sleep 60;; *) printf 12345; exit $0;; esac";
    run(&["-j1", "--timeout", "1", "--joblog", &log, "sh", "-c", script, ":::", "0", "3", "kill", "late"]);
    run(&["--joblog", &dir.path("other"), "no-such-program", ":::", "a\nb"]);
    let text = dir.read("log");
    let records = records(&text);
    let of = |seq| records[&seq].1.split(" sh").next().unwrap().to_owned();
    assert_eq!([of(1), of(2), of(3), of(4)], ["0 0", "3 0", "0 9", "-1 15"]);
    assert_eq!(text.lines().nth(1).unwrap().split('\t').nth(5), Some("5"), "what it wrote");
    assert!(dir.read("other").ends_with("\t127\t0\tno-such-program 'a\0b'\n"));
}

#[test]
fn a_record_on_standard_output_follows_what_it_speaks_of() {
    let ran = run(&["-k", "--joblog", "-", "echo", ":::", "a", "b"]);
    let lines: Vec<&str> = ran.stdout.lines().map(|line| line.rsplit('\t').next().unwrap()).collect();
    assert_eq!(lines, ["Command", "a", "echo a", "b", "echo b"]);
}

#[test]
fn resuming_leaves_out_what_has_ended() {
    let dir = Dir::new("resume");
    let (log, ran) = (dir.path("log"), dir.path("ran"));
    let script = "echo $0 >> $1; exit $0";
    let arguments = |option: &'static str| ["-j1", "--joblog", &log, option, "sh", "-c", script, "{}", &ran];
    assert_eq!(run_with(b"0\n3\n", &arguments("-k")).code(), 1);
    assert_eq!(run_with(b"0\n3\n0\n4\n", &arguments("--resume")).code(), 1);
    assert_eq!(dir.read("ran"), "0\n3\n0\n4\n");
    assert_eq!(run_with(b"0\n3\n0\n4\n", &arguments("--resume-failed")).code(), 2);
    assert_eq!(dir.read("ran"), "0\n3\n0\n4\n3\n4\n");
    // Without it a new record is begun.
    assert_eq!(run_with(b"0\n", &arguments("-k")).code(), 0);
    assert_eq!(records(&dir.read("log")).len(), 1);
}

#[test]
fn the_joblog_of_gnu_parallel_can_be_resumed() {
    let dir = Dir::new("gnu");
    let text = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n\
                1\t:\t1795616184.811\t     0.001\t0\t2\t0\t0\techo a\n";
    std::fs::write(dir.path("log"), text).unwrap();
    let ran = run(&["--joblog", &dir.path("log"), "--resume", "echo", ":::", "a", "b"]);
    assert_eq!((ran.code(), &*ran.stdout, &*ran.stderr), (0, "b\n", ""));
}

#[test]
fn what_was_interrupted_is_run_again() {
    let dir = Dir::new("interrupted");
    let log = dir.path("log");
    let mut live =
        start(&["-j2", "--line-buffer", "--joblog", &log, "sh", "-c", "echo ready; sleep $0", ":::", "0", "60"]);
    assert_eq!([live.line(), live.line()], ["ready", "ready"]);
    eventually("the first is recorded", || dir.read("log").lines().count() == 2);
    live.signal(Signal::INT);
    assert_eq!(live.end().code(), 130);
    assert_eq!(records(&dir.read("log")).keys().collect::<Vec<_>>(), [&1]);
}

#[test]
fn after_a_kill_nothing_is_lost_and_nothing_recorded_is_run_again() {
    const JOBS: u64 = 60;
    let dir = Dir::new("killed");
    let (log, begun, ended) = (dir.path("log"), dir.path("begun"), dir.path("ended"));
    let script = "echo $0 >> $1; sleep 0.02; echo $0 >> $2";
    let input: Vec<u8> = (1..=JOBS).flat_map(|number| format!("{number}\n").into_bytes()).collect();
    let arguments = ["-j4", "--joblog", &log, "--resume", "sh", "-c", script, "{}", &begun, &ended];
    let count = |name: &str, job: u64| dir.read(name).lines().filter(|line| *line == job.to_string()).count();
    // How often each job had begun when it was found recorded.
    let mut recorded: HashMap<u64, usize> = HashMap::new();
    for round in 1..=2 {
        let mut live = start(&arguments);
        std::io::Write::write_all(live.stdin.as_mut().unwrap(), &input).unwrap();
        eventually("some are recorded", || dir.read("log").lines().count() > 15 * round);
        live.signal(Signal::KILL);
        assert_eq!(live.end().code(), 137);
        for job in whole_records(&dir.read("log")) {
            recorded.entry(job).or_insert_with(|| count("begun", job));
        }
    }
    let ran = run_with(&input, &arguments);
    assert_eq!((ran.code(), &*ran.stderr), (0, ""));
    let all = records(&dir.read("log"));
    for job in 1..=JOBS {
        assert_eq!(all[&job].0, 1, "job {job} is recorded once");
        assert!(count("ended", job) >= 1, "job {job} ended");
        let begun = count("begun", job);
        assert!(recorded.get(&job).is_none_or(|then| *then == begun), "job {job} was recorded and ran again");
    }
    let again: usize = (1..=JOBS).map(|job| count("begun", job) - 1).sum();
    assert!(again <= 2 * 4, "{again} were run again, and no more than four ran at each kill");
}

#[test]
fn a_joblog_that_was_cut_short_is_mended() {
    let dir = Dir::new("cut");
    let log = dir.path("log");
    run(&["-j1", "--joblog", &log, "echo", ":::", "a", "b", "c"]);
    let whole = dir.read("log");
    for length in 0..whole.len() {
        std::fs::write(&log, &whole[..length]).unwrap();
        let complete = whole[..length].matches('\n').count().max(1) - 1;
        // The commands are looked up in the joblog; to run them would take a while.
        if length % 7 != 0 && !whole[..length].ends_with('\n') {
            continue;
        }
        let ran = run(&["-k", "-j1", "--joblog", &log, "--resume", "echo", ":::", "a", "b", "c"]);
        assert_eq!((ran.code(), &*ran.stderr), (0, ""), "{length}");
        assert_eq!(ran.stdout.lines().count(), 3 - complete, "{length}");
        assert_eq!(records(&dir.read("log")).len(), 3, "{length}");
    }
}

#[test]
fn a_joblog_that_is_none_or_another_runs_is_refused_and_kept() {
    let dir = Dir::new("refused");
    let log = dir.path("log");
    run(&["--joblog", &log, "echo", ":::", "a"]);
    let of_other = dir.read("log");
    let damaged = format!("{of_other}nonsense\n");
    for (text, why) in [
        ("a letter\nto a friend\n", "this is not a joblog"),
        (&*damaged, "line 3 is not a job's"),
        (&*of_other, "the joblog belongs to another run: its job 1 is not echo b"),
    ] {
        std::fs::write(&log, text).unwrap();
        let ran = run(&["--joblog", &log, "--resume", "echo", ":::", "b"]);
        assert_eq!((ran.code(), &*ran.stdout), (255, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
        assert_eq!(dir.read("log"), text);
    }
}

#[test]
fn a_joblog_that_is_written_to_or_cannot_be_is_refused() {
    let dir = Dir::new("busy");
    let log = dir.path("log");
    let mut live = start(&["--line-buffer", "--joblog", &log, "sh", "-c", "echo ready; sleep 60", ":::", "1"]);
    assert_eq!(live.line(), "ready");
    let ran = run(&["--joblog", &log, "echo", ":::", "a"]);
    assert_eq!((ran.code(), ran.stderr.contains("another run is writing to it"), &*ran.stdout), (255, true, ""));
    live.signal(Signal::TERM);
    assert_eq!(live.end().code(), 143);
    for (path, why) in [("/no/such/dir/log", "No such file"), ("/", "Is a directory"), ("/dev/full", "No space left")] {
        let ran = run(&["--joblog", path, "echo", ":::", "a"]);
        assert_eq!((ran.code(), &*ran.stdout), (255, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    }
}

#[test]
fn a_full_disk_ends_the_run_and_the_rest_is_run_later() {
    let dir = Dir::new("full");
    // A filesystem of one page, in a mount namespace of its own.
    let script = r#"
        mount -t tmpfs -o size=4k none "$1" 2>/dev/null || exit 77
        run() { seq 200 | "$0" -j4 --joblog "$1/log" --resume sh -c 'echo $1 >> "$0"; echo $1' "$2" {}; }
        run "$1" "$2"; echo "status $?"
        mount -o remount,size=1m "$1"
        run "$1" "$2"; echo "status $?"
        cp "$1/log" "$3"
    "#;
    std::fs::create_dir(dir.path("small")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_pidloop"), &dir.path("small"), &dir.path("ran")]);
    command.arg(dir.path("copy")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run_command(&mut command, b"");
    if ran.code() == 77 || ran.code() == 1 {
        return skip("a_full_disk_ends_the_run_and_the_rest_is_run_later", "no filesystem may be mounted");
    }
    let statuses: Vec<&str> = ran.stdout.lines().filter_map(|line| line.strip_prefix("status ")).collect();
    assert_eq!(statuses, ["255", "0"], "{}", ran.stderr);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    let records = records(&dir.read("copy"));
    assert!((1..=200).all(|job| records[&job].0 == 1));
    // The job whose record found no room, and those that ran beside it or ended behind it.
    let extra = dir.read("ran").lines().count() - 200;
    assert!(extra <= 64, "{extra} were run again");
}
