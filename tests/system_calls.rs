//! What a child costs, promised in a currency without noise: system calls, of parent and child together, as strace counts them. A
//! change of these numbers is a change of speed, and meant. Knows the public API, and the floor of the benchmarks.

#[path = "../benches/support/cc.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the benchmarks")]
mod cc;
mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio as StdStdio;

use common::skip;
use pidloop::{Command, Context, Reactor, Stdio};

const VARIABLE: &str = "PIDLOOP_TEST_CALLS";
/// The difference between two runs is what the children cost: the rest is the same.
const FEW: u64 = 10;
const MANY: u64 = 110;
/// Every child with its streams on the null device, whoever waits for it.
const EVERY: &str = "clone3 1 close_range 1 dup3 3 execve 1 fcntl 1 rt_sigaction 4 rt_sigprocmask 3 waitid 1 close 1";
/// How often depends on who runs when.
const BY_CHANCE: [&str; 4] = ["futex", "epoll_wait", "read", "sched_yield"];

type Calls = BTreeMap<String, u64>;

/// `name count …`; a name that comes twice is added up.
fn calls(list: &str) -> Calls {
    let words: Vec<&str> = list.split_whitespace().collect();
    let mut calls = Calls::new();
    for pair in words.chunks(2).filter(|pair| !BY_CHANCE.contains(&pair[0])) {
        *calls.entry(pair[0].to_owned()).or_default() += pair[1].parse::<u64>().unwrap();
    }
    calls
}

/// By name, of a command under `strace -f -c`; those that do not return are not counted.
fn count(command: &mut std::process::Command, name: &str) -> Option<Calls> {
    let table = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("calls-{name}-{}", std::process::id()));
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-qq", "-c", "-o"]).arg(&table).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        strace.env(key, value.unwrap_or_default());
    }
    let output = strace.stdin(StdStdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("ptrace") || said.contains("PTRACE") {
        return None;
    }
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    let text = std::fs::read_to_string(&table).unwrap();
    std::fs::remove_file(&table).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let count = words.get(3)?.parse().ok()?;
        (words[0].parse::<f64>().is_ok() && words.last() != Some(&"total"))
            .then(|| (words[words.len() - 1].to_owned(), count))
    };
    Some(text.lines().filter_map(line).collect())
}

/// The calls of each child, from a run with a few and one with many of them.
fn per_child(name: &str, mut run: impl FnMut(u64) -> Option<Calls>) -> Option<Calls> {
    let (few, many) = (run(FEW)?, run(MANY)?);
    let each = many.into_iter().map(|(call, n)| {
        let more = n.saturating_sub(few.get(&call).copied().unwrap_or(0)) as f64;
        (call, (more / (MANY - FEW) as f64).round() as u64)
    });
    let mut each: Calls = each.filter(|(call, _)| !BY_CHANCE.contains(&call.as_str())).collect();
    if cfg!(debug_assertions) {
        // std asks about each descriptor before it closes it.
        let asked = each.get("close").copied().unwrap_or(0);
        each.entry("fcntl".into()).and_modify(|n| *n = n.saturating_sub(asked));
    }
    each.retain(|_, n| *n > 0);
    println!("{name}: {} calls a child: {each:?}", each.values().sum::<u64>());
    Some(each)
}

/// This test binary again, as the subject of that name.
fn subject(name: &str) -> Option<Calls> {
    let run = |n: u64| {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["subjects", "--exact", "--nocapture", "--test-threads=1"]).env(VARIABLE, format!("{name} {n}"));
        count(&mut again, name)
    };
    per_child(name, run)
}

/// The subjects: does nothing unless it is asked to be one.
#[test]
fn subjects() {
    let Ok(order) = std::env::var(VARIABLE) else { return };
    let (name, n) = order.split_once(' ').unwrap();
    let n: u64 = n.parse().unwrap();
    let tiny = cc::tiny_path();
    let mut command = Command::new(&tiny);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match name {
        "status" => (0..n).for_each(|_| assert!(command.status().unwrap().success())),
        "wait" => (0..n).for_each(|_| assert!(command.spawn().unwrap().wait().unwrap().success())),
        "reactor" => {
            let mut reactor = Reactor::new().unwrap();
            for _ in 0..n {
                reactor.spawn(&command).unwrap();
                while reactor.next_exit().is_none() {
                    reactor.turn(None).unwrap();
                }
            }
        }
        "output" => {
            let mut command = Command::new(&tiny);
            command.arg("c");
            (0..n).for_each(|_| assert_eq!(command.output().unwrap().stdout.len(), 64));
        }
        "uid" => {
            command.uid(65534);
            (0..n).for_each(|_| assert!(command.status().unwrap().success()));
        }
        "cancel" => {
            let mut command = Command::new("/bin/sleep");
            command.arg("60");
            for _ in 0..n {
                let ctx = Context::new();
                let child = command.clone().context(&ctx).spawn().unwrap();
                ctx.cancel();
                assert!(child.wait().unwrap().cause().is_some());
            }
        }
        other => panic!("no such subject: {other}"),
    }
}

/// Compares what was counted with what is pinned.
fn check(test: &str, counted: Option<Calls>, pinned: &str) {
    match counted {
        Some(counted) => assert_eq!(counted, calls(pinned), "counted, then pinned: if it is meant, pin it anew"),
        None => skip(test, "strace is not here, or may not trace"),
    }
}

/// Whether the path that is pinned is the one this kernel allows, and there is a child to start.
fn can_run(test: &str) -> bool {
    let can = pidloop::capabilities();
    if !(can.clone3 && can.clear_handlers && can.shared_table && can.close_range) {
        skip(test, "an older kernel: it takes other calls");
        return false;
    }
    match cc::tiny() {
        Ok(_) => true,
        Err(why) => {
            skip(test, &why);
            false
        }
    }
}

#[test]
fn status() {
    if can_run("status") {
        check("status", subject("status"), EVERY);
    }
}

#[test]
fn spawn_and_a_blocking_wait() {
    if can_run("spawn_and_a_blocking_wait") {
        check("spawn_and_a_blocking_wait", subject("wait"), &format!("{EVERY} epoll_ctl 2"));
    }
}

#[test]
fn through_a_reactor() {
    if can_run("through_a_reactor") {
        check("through_a_reactor", subject("reactor"), &format!("{EVERY} epoll_ctl 2"));
    }
}

#[test]
fn captured_output() {
    if can_run("captured_output") {
        check(
            "captured_output",
            subject("output"),
            &format!("{EVERY} close 4 close_range 1 epoll_ctl 6 fcntl 2 pipe2 2 write 2"),
        );
    }
}

#[test]
fn with_a_user_id() {
    if !rustix::process::geteuid().is_root() {
        return skip("with_a_user_id", "not root");
    }
    if can_run("with_a_user_id") {
        check(
            "with_a_user_id",
            subject("uid"),
            &format!("{EVERY} prctl 2 setgroups 1 setresuid 1 getpgid 1 setpgid 1"),
        );
    }
}

/// Whatever else it takes: one signal, by the pidfd.
#[test]
fn a03_a_cancel_sends_one_signal() {
    const NAME: &str = "a03_a_cancel_sends_one_signal";
    if can_run(NAME) {
        let Some(counted) = subject("cancel") else { return check(NAME, None, "") };
        let signals = ["pidfd_send_signal", "kill", "tkill", "tgkill"].map(|call| counted.get(call).copied());
        assert_eq!(signals, [Some(1), None, None, None]);
    }
}

/// The list in the floor's own head is what it does.
#[test]
fn the_floor() {
    if !can_run("the_floor") {
        return;
    }
    let Ok(floor) = cc::floor() else {
        return skip("the_floor", "it was not compiled");
    };
    let tiny = cc::tiny_path();
    let source = std::fs::read_to_string(Path::new(cc::SOURCES).join("floor/floor.c")).unwrap();
    for (path, job) in [("null", "k=1"), ("epoll", "k=64"), ("capture", "k=1 stdio=capture args=c")] {
        let listed = source.lines().find_map(|line| line.strip_prefix(&format!(" *   {path} "))).unwrap();
        let run = |n: u64| {
            let mut command = std::process::Command::new("sh");
            let job = format!("echo spawn n={n} {job} child={} | {}", tiny.display(), floor.display());
            count(command.arg("-c").arg(job), path)
        };
        check("the_floor", per_child(path, run), listed);
    }
}
