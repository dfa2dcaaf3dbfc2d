//! The options of docs/CLI.md, each doing what it promises there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{marker, none_sleeps, run, run_with, start};

/// A directory of a test's own, removed with this.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("pidloop-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn parts_of_arguments_numbers_and_slots() {
    let ran = run(&["-k", "-j1", "echo", "{.} {/} {//} {/.} {#} {%}", ":::", "a/b.c", "d"]);
    assert_eq!(ran.stdout, "a/b b.c a b 1 1\nd d . d 2 1\n");
}

#[test]
fn something_else_is_written_for_the_argument() {
    assert_eq!(run(&["-I", "%", "echo", "<%%>", "{}", "{.}", "%", ":::", "a.b"]).stdout, "<a.ba.b> {} a a.b\n");
    assert_eq!(run(&["-I{}", "echo", "<{}>", ":::", "a"]).stdout, "<a>\n");
    assert_eq!(run(&["-I", "", "echo", ":::", "a"]).code(), 255);
}

#[test]
fn several_arguments_for_each_job() {
    let ran = run(&["-k", "-n2", "echo", "a{}b", "{}", "{2}", ":::", "1", "2", "3"]);
    assert_eq!(ran.stdout, "a1 2b 1 2 2\na3b 3 \n");
    assert_eq!(run_with(b"1\n2\n3\n", &["-k", "-n", "2", "echo"]).stdout, "1 2\n3\n");
    assert_eq!(run(&["-n0", "echo", "x", ":::", "1", "2"]).stdout, "x\nx\n");
}

#[test]
fn items_end_with_nul_and_blank_ones_are_skipped() {
    assert_eq!(run_with(b"a\nb\0c\0", &["-k", "-0", "echo"]).stdout, "a\nb\nc\n");
    assert_eq!(run_with(b"a\n\n \t\nb", &["-k", "-r", "echo"]).stdout, "a\nb\n");
    assert_eq!(run_with(b"a\n\nb", &["-k", "echo", "<{}>"]).stdout, "<a>\n<>\n<b>\n");
}

#[test]
fn arguments_from_files() {
    let dir = Dir::new("files");
    std::fs::write(dir.path("one"), "a\nb\n").unwrap();
    std::fs::write(dir.path("two"), "1\n2\n3\n").unwrap();
    let (one, two) = (dir.path("one"), dir.path("two"));
    assert_eq!(run(&["-k", "-a", &one, "echo"]).stdout, "a\nb\n");
    assert_eq!(run(&["-k", "-a", &one, "-a", &two, "echo"]).stdout, "a 1\na 2\na 3\nb 1\nb 2\nb 3\n");
    assert_eq!(run(&["-k", "echo", "::::", &one, "::::+", &two, ":::", "x"]).stdout, "a 1 x\nb 2 x\n");
    assert_eq!(run_with(b"c\n", &["-k", "echo", "::::", &one, "-"]).stdout, "a c\nb c\n");
}

#[test]
fn dry_run_runs_nothing() {
    let dir = Dir::new("dry");
    let made = dir.path("made");
    let ran = run(&["-k", "--dry-run", "--joblog", &dir.path("log"), "touch", &made, ":::", "a b", "it's"]);
    assert_eq!(ran.stdout, format!("touch {made} 'a b'\ntouch {made} \"it's\"\n"));
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
}

#[test]
fn commands_are_shown_when_they_start() {
    let ran = run(&["-t", "-j1", "echo", ":::", "a b", "c"]);
    assert_eq!((&*ran.stdout, &*ran.stderr), ("a b\nc\n", "echo 'a b'\necho c\n"));
}

#[test]
fn tags_begin_each_line_of_both_streams() {
    let ran = run(&["--tag", "-k", "sh", "-c", "echo 1; echo 2; echo e >&2; printf 3", ":::", "a", "b c"]);
    assert_eq!(ran.stdout, "a\t1\na\t2\na\t3b c\t1\nb c\t2\nb c\t3");
    assert_eq!(ran.stderr, "a\te\nb c\te\n");
    let ran = run(&["--tag", "--color", "echo", ":::", "a"]);
    assert_eq!(ran.stdout, "\x1b[35ma\x1b[0m\ta\n");
}

#[test]
fn lines_come_as_they_are_written() {
    let marker = marker();
    let script = r#"printf 'half '; printf 'whole\nbegun'; exec sleep "$0""#;
    let mut live = start(&["--line-buffer", "--tag", "--timeout", "2", "sh", "-c", script, ":::", &marker]);
    assert_eq!(live.line(), format!("{marker}\thalf whole"));
    // The rest when it has ended.
    let ran = live.end();
    assert_eq!((ran.code(), ran.stdout), (1, format!("{marker}\tbegun")));
    none_sleeps(&marker);
}

#[test]
fn much_that_is_held_back_does_not_stop_the_first_job() {
    // Each writes more than a pipe holds; the second, which is first to write, more than is ever held back. Few lines are soon compared.
    let script =
        r#"case $0 in 1) sleep 1; count=1000;; *) count=70000;; esac; yes "$0$(printf %01000d 0)" | head -n $count"#;
    let ran = run(&["-k", "--line-buffer", "-j2", "--timeout", "20", "sh", "-c", script, ":::", "1", "2"]);
    assert_eq!((ran.code(), &*ran.stderr), (0, ""));
    let firsts: Vec<u8> = ran.stdout.lines().map(|line| line.as_bytes()[0]).collect();
    assert!(firsts == [vec![b'1'; 1000], vec![b'2'; 70_000]].concat() && ran.stdout.len() == 71_000 * 1002);
}

#[test]
fn lines_of_the_first_job_come_first_if_asked() {
    let script = "sleep 0.$((3 - $0)); echo $0; sleep 0.1; echo $0";
    let ran = run(&["-k", "--line-buffer", "-j3", "sh", "-c", script, ":::", "0", "1", "2"]);
    assert_eq!(ran.stdout, "0\n0\n1\n1\n2\n2\n");
}

#[test]
fn much_output_is_neither_lost_nor_mixed() {
    for mode in ["--keep-order", "--line-buffer"] {
        let ran = run(&[mode, "-j4", "sh", "-c", "seq -f \"$0 %.0f\" 100000", ":::", "a", "b", "c", "d"]);
        assert_eq!((ran.code(), ran.stdout.lines().count()), (0, 400_000));
        for job in ["a", "b", "c", "d"] {
            let lines = ran.stdout.lines().filter_map(|line| line.strip_prefix(job)?.trim_start().parse::<u32>().ok());
            assert!(lines.eq(1..=100_000), "{mode} {job}");
        }
    }
}

#[test]
fn output_beyond_the_limit_is_counted() {
    let ran = run(&["--max-output", "10", "seq", ":::", "100"]);
    assert_eq!(ran.stdout, "1\n2\n3\n[pidloop: 282 bytes left out]\n\n100\n");
    assert_eq!(run(&["--max-output", "1k", "seq", ":::", "3"]).stdout, "1\n2\n3\n");
}

#[test]
fn results_are_kept_in_files() {
    let dir = Dir::new("results");
    let script = "printf \"out $0\"; printf err >&2";
    let ran = run(&["--results", &dir.path("r"), "sh", "-c", script, ":::", "a/b", ":::", "x y"]);
    assert_eq!((ran.code(), &*ran.stdout, &*ran.stderr), (0, "out a/b", "err"));
    let read = |name: &str| dir.read(&format!(r"r/1/a\_b/2/x y/{name}"));
    assert_eq!([read("stdout"), read("stderr"), read("seq")], ["out a/b", "err", "1"]);
    // Where they cannot be kept nothing more is started.
    let ran = run(&["-j1", "--results", "/dev/null/r", "echo", ":::", "a", "b"]);
    assert_eq!((ran.code(), ran.stderr.contains("results /dev/null/r/1/a/stdout: Not a directory")), (255, true));
}

#[test]
fn json_tells_everything_on_one_line() {
    let script = "echo out; echo err >&2; exit $0";
    let ran = run(&["-k", "--json", "--timeout", "20", "sh", "-c", script, ":::", "0", "3"]);
    let lines: Vec<serde_json::Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((ran.code(), lines.len(), &*ran.stderr), (1, 2, ""));
    let second = &lines[1];
    assert_eq!((&second["seq"], &second["exit"], &second["reason"]), (&2.into(), &3.into(), &"exited".into()));
    assert_eq!((&second["stdout"], &second["stderr"]), (&"out\n".into(), &"err\n".into()));
    assert_eq!(second["arguments"], serde_json::json!(["3"]));
    assert!(second["usage"]["max_rss_bytes"].as_u64().unwrap() > 0 && second["runtime"].as_f64().unwrap() > 0.0);

    let script = r#"case $0 in kill) kill -9 $$;; late) exec sleep 60;; esac"#;
    let ran = run(&["-k", "--json", "--timeout", "1", "sh", "-c", script, ":::", "kill", "late"]);
    let lines: Vec<serde_json::Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["reason"], &lines[0]["signal"], &lines[0]["exit"]),
        (&"killed".into(), &"SIGKILL".into(), &().into())
    );
    assert_eq!((&lines[1]["reason"], &lines[1]["signal"]), (&"timed out".into(), &"SIGTERM".into()));
    let ran = run(&["--json", "no-such-program", ":::", "a"]);
    let line: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&line["reason"], &line["pid"]), (&"not started".into(), &().into()));
    assert!(line["error"].as_str().unwrap().contains("no-such-program"));
}

#[test]
fn a_failing_job_is_tried_again() {
    let dir = Dir::new("retries");
    let tries = dir.path("tries");
    let script = "echo $0 >> $1; echo out $0; [ $(grep -c $0 $1) = 3 ]";
    let ran = run(&["-k", "-j1", "--retries", "3", "sh", "-c", script, "{}", &tries, ":::", "a", "b"]);
    assert_eq!((ran.code(), &*ran.stdout), (0, "out a\nout b\n"));
    let mut tried: Vec<String> = dir.read("tries").lines().map(str::to_owned).collect();
    tried.sort();
    assert_eq!(tried, ["a", "a", "a", "b", "b", "b"]);

    std::fs::remove_file(&tries).unwrap();
    let begun = Instant::now();
    let ran =
        run(&["--retries", "3", "--retry-delay", "0.2", "sh", "-c", "echo $0 >> $1; false", "{}", &tries, ":::", "a"]);
    assert_eq!((ran.code(), dir.read("tries").lines().count()), (1, 3));
    assert!(begun.elapsed() >= Duration::from_millis(400));
    assert_eq!(run(&["--timeout", "0", "sleep", ":::", "0.1"]).code(), 0);
}

#[test]
fn starts_keep_their_distance() {
    let begun = Instant::now();
    let ran = run(&["-j0", "--delay", "0.1", "true", ":::", "1", "2", "3", "4"]);
    assert_eq!(ran.code(), 0);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn it_ends_early_if_asked() {
    let marker = marker();
    let script = r#"case $0 in [0-9]) exit $0;; *) sleep "$0";; esac"#;
    // Now: what runs is stopped.
    let ran = run(&["-j2", "--halt", "now,fail=1", "sh", "-c", script, ":::", &marker, "7", "0", "1"]);
    assert_eq!(ran.code(), 7);
    assert!(ran.stderr.contains("job 2: sh -c") && ran.stderr.contains("exit status 7: stopping"), "{}", ran.stderr);
    none_sleeps(&marker);
    // Soon: what runs may end. The first ends when the second is known to have failed.
    let dir = Dir::new("halt");
    let log = dir.path("log");
    let script = r#"[ $0 != 3 ] || until grep -q ^2 "$1"; do sleep 0.01; done; echo $0; exit $0"#;
    let arguments = ["-j2", "--halt", "soon,fail=1", "--joblog", &log, "sh", "-c", script, "{}", &log];
    let ran = run(&[&arguments[..], &[":::", "3", "1", "2", "4"]].concat());
    assert_eq!((ran.code(), &*ran.stdout), (1, "1\n3\n"));
    let ran = run(&["-j1", "--halt", "now,success=2", "sh", "-c", "echo $0; exit $0", ":::", "0", "5", "0", "0"]);
    assert_eq!((ran.code(), &*ran.stdout), (0, "0\n5\n0\n"));
    // A percentage is one of all jobs, which are counted first.
    let ran = run_with(b"3\n0\n5\n0\n", &["-j1", "--halt", "now,fail=50%", "sh", "-c", "echo $0; exit $0"]);
    assert_eq!((ran.code(), &*ran.stdout), (50, "3\n0\n5\n"));
}

#[test]
fn a_summary_if_asked() {
    let ran = run(&["-k", "--summary", "--timeout", "1", "sh", "-c", "exit $(sleep $0)", ":::", "0", "60"]);
    assert!(ran.stderr.contains("pidloop: 1 succeeded, 1 failed (1 timed out) in "), "{}", ran.stderr);
    assert!(ran.stderr.contains("\n  job 2: sh -c 'exit $(sleep $0)' 60: timed out after 1."), "{}", ran.stderr);
}

#[test]
fn as_many_as_possible_is_as_many_as_the_system_has_room_for() {
    // Room for a few dozen: the rest wait for their end.
    let script = r#"ulimit -n 100; seq 300 | "$0" -j0 sh -c 'sleep 0.05; echo $0; ulimit -n'"#;
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_pidloop")]);
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ran = super::run_command(&mut shell, b"");
    assert_eq!((ran.code(), &*ran.stderr), (0, ""));
    assert_eq!(ran.stdout.lines().count(), 600);
}

#[test]
fn a_soft_limit_is_raised_for_us_and_not_for_the_jobs() {
    let script = r#"ulimit -Sn 64; seq 100 | "$0" -j100 sh -c 'sleep 0.2; ulimit -Sn' | sort -u"#;
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_pidloop")]);
    shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ran = super::run_command(&mut shell, b"");
    assert_eq!((&*ran.stdout, &*ran.stderr), ("64\n", ""));
}

#[test]
fn completions_and_a_manual_page() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["--completions", shell]).stdout.contains("kill-after"), "{shell}");
    }
    let page = run(&["--man"]).stdout;
    assert!(page.contains(".TH pidloop 1") && page.contains("line\\-buffer"));
}
