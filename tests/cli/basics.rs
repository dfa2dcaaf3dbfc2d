//! The main job as promised: many commands in parallel, whole output, order, exit status.

use std::io::Write;
use std::process::{Command, Stdio};

use super::choices::Dir;
use super::{run, run_command, run_with, start};

fn numbers(count: usize) -> Vec<u8> {
    (1..=count).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

#[test]
fn the_command_of_the_readme_prints_what_the_readme_says() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```sh\n# The main job").unwrap();
    let command = rest.lines().nth(1).unwrap();
    let (_, printed) = rest.split_once("```text\n").unwrap();
    let built = command.replace("cargo run --release --features cli --", r#""$0""#);
    assert_ne!(built, command);
    let mut shell = Command::new("sh");
    shell.args(["-c", &built, env!("CARGO_BIN_EXE_pidloop")]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = run_command(&mut shell, b"");
    assert_eq!(ran.stdout, printed.split_once("```").unwrap().0);
    assert_eq!((ran.code(), &*ran.stderr), (0, ""));
}

#[test]
fn the_examples_of_the_manual_print_what_it_says() {
    let manual = include_str!("../../docs/CLI.md");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_pidloop"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut examples = 0;
    for block in manual.split("```sh\n").skip(1) {
        let (code, rest) = block.split_once("```\n").unwrap();
        // Others print nothing, or what depends on where they are run.
        let Some(printed) = rest.strip_prefix("\n```text\n") else { continue };
        let dir = Dir::new(&format!("example-{examples}"));
        let mut shell = Command::new("sh");
        shell.args(["-c", code]).current_dir(&dir.0).env("PATH", &path);
        let ran = run_command(shell.stdout(Stdio::piped()).stderr(Stdio::piped()), b"");
        assert_eq!((&*ran.stdout, &*ran.stderr), (printed.split_once("```").unwrap().0, ""), "{code}");
        examples += 1;
    }
    assert!(examples >= 3, "{examples}");
}

#[test]
fn a_thousand_jobs_all_run_once() {
    let ran = run_with(&numbers(1000), &["-j", "64", "echo", "{}"]);
    let mut seen: Vec<usize> = ran.stdout.lines().map(|line| line.parse().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (1..=1000).collect::<Vec<_>>());
    assert_eq!((ran.code(), &*ran.stderr), (0, ""));
}

#[test]
fn output_is_whole_and_in_the_order_of_the_input_if_asked() {
    // The later a job, the sooner it ends; each writes in two parts.
    let script = "echo begin $0; sleep 0.$((4 - $0)); echo end $0";
    let ran = run(&["-k", "-j", "3", "sh", "-c", script, ":::", "1", "2", "3"]);
    assert_eq!(ran.stdout, "begin 1\nend 1\nbegin 2\nend 2\nbegin 3\nend 3\n");
    let ran = run(&["-j", "3", "sh", "-c", script, ":::", "1", "2", "3"]);
    for job in 1..=3 {
        assert!(ran.stdout.contains(&format!("begin {job}\nend {job}\n")), "{}", ran.stdout);
    }
}

#[test]
fn each_stream_goes_where_it_belongs() {
    let ran = run(&["sh", "-c", "echo out; echo err >&2", ":::", "1"]);
    assert_eq!((&*ran.stdout, &*ran.stderr), ("out\n", "err\n"));
}

#[test]
fn the_exit_status_is_the_number_of_failed_jobs() {
    assert_eq!(run(&["true", ":::", "1", "2"]).code(), 0);
    assert_eq!(run(&["sh", "-c", "exit $0", ":::", "1", "0", "7"]).code(), 2);
    assert_eq!(run(&["sh", "-c", "kill -9 $$", ":::", "1"]).code(), 1);
    assert_eq!(run_with(&numbers(100), &["false"]).code(), 100);
    assert_eq!(run_with(&numbers(102), &["false"]).code(), 101);
}

#[test]
fn arguments_come_from_several_sources() {
    let ran = run(&["-k", "echo", "{2}{1}", ":::", "a", "b", ":::", "1", "2"]);
    assert_eq!(ran.stdout, "1a\n2a\n1b\n2b\n");
    let ran = run(&["-k", "echo", ":::", "a", "b", ":::+", "1", "2", "3"]);
    assert_eq!(ran.stdout, "a 1\nb 2\n");
}

#[test]
fn there_is_no_shell_unless_asked() {
    let ran = run(&["-k", "echo", "$HOME;", ":::", "`x` 'y'", "*"]);
    assert_eq!(ran.stdout, "$HOME; `x` 'y'\n$HOME; *\n");
    let ran = run(&["-k", "--shell", "x=1; echo $x", ":::", "`x` 'y'", "*"]);
    assert_eq!(ran.stdout, "1 `x` 'y'\n1 *\n");
}

#[test]
fn without_a_command_the_arguments_are_commands() {
    let ran = run_with(b"echo 'a  b'\nprintf '%s\\n' x '*'\n", &["-k"]);
    assert_eq!(ran.stdout, "a  b\nx\n*\n");
    let ran = run_with(b"echo $((1 + 1)) | cat\n", &["--shell"]);
    assert_eq!(ran.stdout, "2\n");
}

#[test]
fn options_end_where_the_command_begins() {
    assert_eq!(run(&["echo", "-k", "--jobs", ":::", "x"]).stdout, "-k --jobs x\n");
    assert_eq!(run(&["-k", "--", "echo", "--", ":::", "x"]).stdout, "-- x\n");
}

#[test]
fn input_is_served_as_it_comes() {
    let mut live = start(&["echo"]);
    for number in 1..=3 {
        writeln!(live.stdin.as_mut().unwrap(), "{number}").unwrap();
        assert_eq!(live.line(), number.to_string());
    }
    assert_eq!(live.end().code(), 0);
}

#[test]
fn no_more_jobs_run_at_once_than_asked() {
    let dir = std::env::temp_dir().join(format!("pidloop-{}-slots", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    // A directory for each running job: more than three at once and the fourth finds its name taken.
    let script = format!("mkdir {0}/$1 && sleep 0.02 && rmdir {0}/$1", dir.display());
    let ran = run_with(&numbers(30), &["-j", "3", "sh", "-c", &script, "{}", "{%}"]);
    std::fs::remove_dir(&dir).unwrap();
    assert_eq!((ran.code(), &*ran.stderr), (0, ""));
}

#[test]
fn jobs_have_no_standard_input_and_get_what_the_program_was_given() {
    let ran = run_with(b"a\nb\n", &["-j1", "sh", "-c", "cat; echo $0"]);
    assert_eq!(ran.stdout, "a\nb\n");
    // As without us: what this test was itself started with, 7 and 9, and the one by which ls reads the directory.
    let list = |run: &str| {
        let script = format!(r#"exec 7</dev/null 9>/dev/null; exec {run} ls /proc/self/fd"#);
        let mut shell = Command::new("bash");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_pidloop")]).stdout(Stdio::piped()).stderr(Stdio::piped());
        run_command(&mut shell, b"x\n").stdout
    };
    let (direct, ours) = (list(""), list(r#""$0" -n0"#));
    assert_eq!(direct, ours);
    assert!(ours.contains("7\n9\n"), "{ours}");
}

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    for arguments in [&["--bogus"][..], &["-j", "x", "true"], &["--timeout", "x", "true"], &["--resume", "true"]] {
        let ran = run(arguments);
        assert_eq!((ran.code(), ran.stdout.is_empty(), ran.stderr.is_empty()), (255, true, false), "{arguments:?}");
    }
    // As in an alias that has it already.
    assert_eq!(run(&["-j4", "-k", "-j1", "-k", "echo", "{%}", ":::", "x", "y"]).stdout, "1\n1\n");
    assert_eq!(run(&["--version"]).stdout, format!("pidloop {}\n", env!("CARGO_PKG_VERSION")));
}
