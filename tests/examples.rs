//! The examples keep the promises that they show: each is run as its first lines say. Knows them as programs.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use common::{eventually, skip};
use pidloop::{Child, Command, Signal, Stdio};

/// The example's program, which `cargo test` builds beside this one; without it the test is skipped.
fn example(test: &str, name: &str) -> Option<Command> {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", name]);
    if !path.exists() {
        skip(test, "the examples are not built: `cargo test` without `--test` builds them");
        return None;
    }
    let mut command = Command::new(path);
    command.timeout(Duration::from_secs(60)).kill_on_drop(true).stdout(Stdio::captured()).stderr(Stdio::captured());
    Some(command)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_pool_does_all_jobs_and_says_which_failed() {
    let Some(pool) = example("the_pool_does_all_jobs_and_says_which_failed", "pool") else { return };
    let output = pool.output().unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
    assert_eq!(stdout.lines().filter(|line| line.contains(": ") && !line.starts_with("sh ")).count(), 16, "{stdout}");
    assert_eq!(stdout.matches("exit status 3: no luck").count(), 2, "{stdout}");
    assert_eq!(stdout.matches("stopped (deadline exceeded), signal: killed").count(), 2, "{stdout}");
}

#[test]
fn the_loops_run_three_jobs_each() {
    for name in ["in_epoll", "in_mio", "in_calloop", "in_polling", "in_tokio"] {
        let Some(host) = example("the_loops_run_three_jobs_each", name) else { return };
        let output = host.output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        let stdout = text(&output.stdout);
        let mut lines: Vec<&str> = stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["one", "three", "two"], "{name}");
    }
}

#[test]
fn the_tenants_share_and_one_that_leaves_is_not_waited_for() {
    let name = "the_tenants_share_and_one_that_leaves_is_not_waited_for";
    let Some(tenants) = example(name, "tenants") else { return };
    let output = tenants.output().unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
    assert_eq!(stdout.matches("sh -c 'exit 1': failed: Cancelled").count(), 5, "{stdout}");
    for line in
        ["5 jobs were not started", "running        0", "queued         0", "exited         21", "0 events lost"]
    {
        assert!(stdout.lines().any(|other| other == line), "no {line:?} in\n{stdout}");
    }
}

#[test]
fn the_request_ends_with_all_it_started() {
    let Some(request) = example("the_request_ends_with_all_it_started", "request") else { return };
    let output = request.output().unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
    let lines: Vec<&str> = stdout.lines().collect();
    let [_, "fast: the watcher ended: signal: killed", "fast: the answer to fast", .., late] = lines[..] else {
        panic!("{stdout}")
    };
    assert!(late.ends_with("not started: context cancelled"), "{stdout}");
}

#[test]
fn the_supervisor_starts_again_and_ends_when_asked() {
    let Some(supervisor) = example("the_supervisor_starts_again_and_ends_when_asked", "supervisor") else { return };
    let dir = std::env::temp_dir().join(format!("pidloop-supervisor-{}", std::process::id()));
    let script = "test -e $0 && exec sleep 60; touch $0; exit 7";
    let child = { supervisor }.args(["sh", "-c", script]).arg(&dir).spawn().unwrap();
    eventually("it is started for the second time", || dir.exists() && grandchild_sleeps(&child));
    child.signal(Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    std::fs::remove_file(&dir).unwrap();
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.lines().next(), Some("failed: exit status 7; again in 200ms"));
    assert_eq!(stderr.lines().last(), Some("ended: signal: terminated (received SIGTERM)"));
}

/// Whether the supervisor's child has become `sleep`.
fn grandchild_sleeps(child: &Child) -> bool {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten();
    let children = tasks.map(|task| read(format!("{}/children", task.unwrap().path().display())));
    let pids: Vec<String> =
        children.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    pids.iter().any(|pid| read(format!("/proc/{pid}/comm")) == "sleep\n")
}

#[test]
fn inetd_serves_a_connection_and_a_client_that_hangs_up_ends_its_process() {
    let name = "inetd_serves_a_connection_and_a_client_that_hangs_up_ends_its_process";
    let Some(inetd) = example(name, "inetd") else { return };
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut inetd = { inetd };
    inetd.arg(address.to_string()).args(["sh", "-c", "echo hello; exec cat"]).stderr(Stdio::piped());
    let child = inetd.spawn().unwrap();
    let mut client = None;
    eventually("it listens", || {
        client = TcpStream::connect(address).ok();
        client.is_some()
    });
    let mut client = client.unwrap();
    client.write_all(b"again\n").unwrap();
    let mut echoed = [0; 12];
    client.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello\nagain\n");
    client.shutdown(Shutdown::Write).unwrap();
    // The end of the stream: nobody else has the socket any more.
    assert_eq!(client.read(&mut echoed).unwrap(), 0);
    let mut line = String::new();
    BufReader::new(child.take_stderr().unwrap()).read_line(&mut line).unwrap();
    // `cat` may have seen the end of its input before the hang-up was noticed.
    assert!(line.ends_with("(peer closed the connection)\n") || line.ends_with("exit status 0\n"), "{line}");
    child.terminate(Duration::from_secs(20)).unwrap();
}

#[test]
fn the_pipeline_tells_of_each_command_and_who_is_to_blame() {
    let Some(mut pipeline) = example("the_pipeline_tells_of_each_command_and_who_is_to_blame", "pipeline") else {
        return;
    };
    let output = pipeline.arg("/proc/self/status").output().unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", text(&output.stderr));
    assert_eq!(stdout.matches(": exit status 0 after ").count(), 5, "{stdout}");
    assert!(stdout.contains("yes (command 1 of 2): stopped (deadline exceeded), signal: killed\n"), "{stdout}");
    assert!(
        stdout.ends_with("no-such-program (command 2 of 2): no directory of PATH has the program no-such-program\n")
    );
}

#[test]
fn the_recorder_records_all_that_is_shown() {
    let Some(mut record) = example("the_recorder_records_all_that_is_shown", "record") else { return };
    let script = "stty size; seq 1000; cat; printf 'last words'";
    let output = record.args(["sh", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let mut lines = stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert_eq!(lines.next().unwrap()["version"], 2);
    let shown: String = lines.map(|event| event[2].as_str().unwrap().to_owned()).collect();
    assert!(shown.contains("24 80\r\n1\r\n2\r\n") && shown.ends_with("1000\r\nlast words"), "{shown}");
}
