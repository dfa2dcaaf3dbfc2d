//! Two promises about every option that a child can be given, from one list: this process is as before when it was used, and it costs the
//! system calls that `docs/ARCHITECTURE.md` says, on the one path. Knows the public API, `/proc` and strace.

#[path = "../benches/support/cc.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the benchmarks")]
mod cc;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{in_own_process, open_descriptors, skip};
use pidloop::{Command, ErrorKind, IoPriority, Namespace, Resource, Scheduler, Signal, Stage, Stdio};

const NOBODY: u32 = 65534;

struct Case {
    /// As in the table.
    name: &'static str,
    set: Set,
}

type Set = for<'a> fn(&'a mut Command) -> &'a mut Command;

const fn case(name: &'static str, set: Set) -> Case {
    Case { name, set }
}

/// Every option, with what it needs beside it.
const CASES: &[Case] = &[
    case("arg0", |command| command.arg0("x")),
    case("env", |command| command.env_clear().env("X", "y")),
    case("current_dir", |command| command.current_dir("/usr")),
    case("current_dir_fd", |command| command.current_dir_fd(file("/usr"))),
    case("uid", |command| command.uid(NOBODY)),
    case("gid", |command| command.gid(NOBODY)),
    case("groups", |command| command.groups(&[7])),
    case("chroot", |command| command.chroot("/")),
    case("umask", |command| command.umask(0o777)),
    case("nice", |command| command.nice(1)),
    case("rlimit", |command| command.rlimit(Resource::Core, 0, 0)),
    case("cpu_affinity", |command| command.cpu_affinity(&[0])),
    case("io_priority", |command| command.io_priority(IoPriority::BestEffort(7))),
    case("oom_score_adj", |command| command.oom_score_adj(7)),
    case("scheduler", |command| command.scheduler(Scheduler::Batch)),
    case("setsid", |command| command.setsid()),
    case("process_group(0)", |command| command.process_group(0)),
    case("controlling_terminal", |command| command.stdin(slave()).setsid().controlling_terminal(0)),
    case("drop_terminal", |command| command.stdin(our_terminal()).drop_terminal(0)),
    case("foreground", |command| command.stdin(our_terminal()).process_group(0).foreground(0)),
    case("parent_death_signal", |command| command.on_this_thread().parent_death_signal(Signal::SIGKILL)),
    case("no_new_privs", |command| command.no_new_privs()),
    case("drop_capabilities", |command| command.drop_capabilities(&[0])),
    case("ambient_capabilities", |command| command.ambient_capabilities(&[0])),
    case("inheritable_capabilities", |command| command.inheritable_capabilities(&[0])),
    case("signal_mask", |command| command.signal_mask(&[Signal::SIGHUP])),
    case("ignore_signals", |command| command.ignore_signals(&[Signal::SIGINT])),
    case("reset_signals", |command| command.reset_signals()),
    case("trace_me", |command| command.trace_me()),
    case("unshare(Mount)", |command| command.unshare(&[Namespace::Mount])),
    case("unshare(Network)", |command| command.unshare(&[Namespace::Network])),
    case("unshare(Pid)", |command| command.unshare(&[Namespace::Pid])),
    case("unshare(Time)", |command| command.unshare(&[Namespace::Time])),
    case("time_offsets", |command| command.unshare(&[Namespace::Time]).time_offsets(5, 5)),
    case("join_namespace", |command| command.join_namespace(file("/proc/self/ns/uts"))),
    case("unshare(User)", |command| command.unshare(&[Namespace::User])),
    case("uid_map, gid_map", |command| command.unshare(&[Namespace::User]).uid_map(0, 0).gid_map(0, 0)),
    case("uid_maps, gid_maps", |command| {
        command.unshare(&[Namespace::User]).uid_maps(&[(0, 0, 9)]).gid_maps(&[(0, 0, 9)])
    }),
    case("cgroup", |command| command.cgroup(file(cgroup().to_str().unwrap()))),
    // SAFETY: it does nothing.
    case("pre_exec", |command| unsafe { command.pre_exec(|| Ok(())) }),
];

/// Those that are not on the one path.
const OFF_THE_PATH: [&str; 2] = ["uid_maps, gid_maps", "pre_exec"];

fn file(path: &str) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// A terminal that is nobody's.
fn slave() -> OwnedFd {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    // Where its other end is closed it is no terminal any more.
    std::mem::forget(master);
    slave
}

/// This process's own, which it is given at the first call.
fn our_terminal() -> OwnedFd {
    static OURS: OnceLock<OwnedFd> = OnceLock::new();
    let ours = OURS.get_or_init(|| {
        let slave = slave();
        // SAFETY: this process is the test's own.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            libc::setsid();
            assert_eq!(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0), 0);
        }
        slave
    });
    ours.try_clone().unwrap()
}

/// A cgroup for the child.
fn cgroup() -> PathBuf {
    common::cgroup2().unwrap_or_default().join(format!("pidloop-every-{}", std::process::id()))
}

/// Runs `body` as root with a cgroup to use.
fn prepared(name: &str, body: impl FnOnce()) {
    if !rustix::process::geteuid().is_root() {
        return skip(name, "not root");
    }
    if common::cgroup2().is_none() || fs::create_dir(cgroup()).is_err() {
        return skip(name, "no cgroup v2 that is ours");
    }
    our_terminal();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    common::eventually("the cgroup is empty", || fs::remove_dir(cgroup()).is_ok());
    result.unwrap();
}

fn command(case: &Case, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (case.set)(&mut command);
    command
}

/// Not an option's fault: a sandbox, an older kernel, a tracer.
fn is_refused(error: &pidloop::Error) -> bool {
    let refusals =
        [Stage::Namespaces, Stage::IdMaps, Stage::Cgroup, Stage::Capabilities, Stage::Trace, Stage::Scheduler];
    error.kind() == ErrorKind::Setup && error.stage().is_some_and(|stage| refusals.contains(&stage))
}

// ── this process is as before ──

/// All that this process, and this thread of it, are told by.
fn picture() -> Vec<String> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
    // How often it was switched, what it uses of memory, which of its threads have come and gone, is nobody's option.
    let unwanted = ["Threads", "Mems", "Vm", "Rss", "Hugetlb", "voluntary", "nonvoluntary", "SigQ", "State", "x86"];
    let status = read("thread-self/status");
    let mut lines: Vec<String> =
        status.lines().filter(|line| !unwanted.iter().any(|word| line.starts_with(word))).map(String::from).collect();
    lines.extend(open_descriptors().into_iter().map(|(number, what)| format!("{number} {what}")));
    lines.extend(["self/limits", "self/oom_score_adj", "self/cgroup", "self/setgroups", "self/uid_map"].map(read));
    for link in ["cwd", "root", "ns/mnt", "ns/user", "ns/net", "ns/pid_for_children", "ns/time_for_children", "ns/uts"]
    {
        lines.push(format!("{link} {}", fs::read_link(format!("/proc/thread-self/{link}")).unwrap().display()));
    }
    // SAFETY: questions.
    unsafe {
        let mut death = 0;
        libc::prctl(libc::PR_GET_PDEATHSIG, &mut death);
        lines.push(format!("dumpable {} death {death}", libc::prctl(libc::PR_GET_DUMPABLE)));
        lines.push(format!(
            "keeps {} secure {}",
            libc::prctl(libc::PR_GET_KEEPCAPS),
            libc::prctl(libc::PR_GET_SECUREBITS)
        ));
        lines.push(format!("group {} session {}", libc::getpgrp(), libc::getsid(0)));
        lines.push(format!("nice {} policy {}", libc::getpriority(libc::PRIO_PROCESS, 0), libc::sched_getscheduler(0)));
        lines.push(format!("io {}", libc::syscall(libc::SYS_ioprio_get, 1, 0)));
        for signal in 1..=64 {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action);
            lines.push(format!("{signal} {:x} {:x}", action.sa_sigaction, action.sa_flags));
        }
    }
    lines
}

fn is_as_before(before: &[String], option: &str) {
    let now = picture();
    let differs = before.iter().zip(&now).find(|(before, now)| before != now);
    assert!(differs.is_none() && before.len() == now.len(), "{option}: {differs:?}, {} lines", now.len());
}

#[test]
fn this_process_is_as_before_whatever_a_child_was_given() {
    const NAME: &str = "this_process_is_as_before_whatever_a_child_was_given";
    in_own_process(NAME, || {
        prepared(NAME, || {
            Command::new("true").run().unwrap();
            for case in CASES {
                let (good, bad) = (command(case, "/bin/true"), command(case, "/no/such/program"));
                let before = picture();
                match good.spawn() {
                    Ok(child) if case.name == "trace_me" => {
                        // It is stopped at its exec.
                        child.kill().unwrap();
                        child.wait().unwrap();
                    }
                    Ok(child) => assert!(child.wait().unwrap().success(), "{}", case.name),
                    Err(error) if is_refused(&error) => println!("refused here: {error}"),
                    Err(error) => panic!("{}: {error}", case.name),
                }
                is_as_before(&before, case.name);
                let error = bad.spawn().unwrap_err();
                assert!(error.kind() == ErrorKind::NotFound || is_refused(&error), "{}: {error}", case.name);
                is_as_before(&before, case.name);
                assert_eq!(common::children_of_ours(), [], "{}", case.name);
            }
        });
    });
}

// ── what it costs ──

const VARIABLE: &str = "PIDLOOP_TEST_EVERY";
/// How often depends on who runs when; the last two are the program's.
const BY_CHANCE: [&str; 5] = ["futex", "sched_yield", "restart_syscall", "exit", "exit_group"];
const MARK: &str = "/pidloop-mark/";

type Calls = BTreeMap<String, i64>;

/// What strace will see: for each case one child, between two marks.
#[test]
fn subjects() {
    let Ok(_) = std::env::var(VARIABLE) else { return };
    let mark = |name: &str| {
        let _ = rustix::fs::access(format!("{MARK}{name}"), rustix::fs::Access::EXISTS);
    };
    prepared("subjects", || {
        let plain = case("plain", |command| command);
        for case in std::iter::once(&plain).chain(CASES) {
            let command = command(case, cc::tiny_path());
            // What is made once is made.
            let works = command.status();
            mark(case.name);
            match works {
                Ok(_) => {
                    command.status().unwrap();
                    mark("end");
                }
                Err(error) => mark(&format!("refused {error}")),
            }
        }
    });
}

/// By case: the calls of one child and of its parent, and the flags of the clone.
fn traced() -> Option<Vec<(String, Calls, String)>> {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("every-option-{}", std::process::id()));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-s", "200", "-o"]).arg(&log).arg(std::env::current_exe().unwrap());
    strace.args(["subjects", "--exact", "--nocapture", "--test-threads=1"]).env(VARIABLE, "1");
    // A signal that whoever started us ignores would be one more to be reset.
    let output = strace.reset_signals().output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if said.contains("ptrace(") || said.contains("PTRACE_") {
        return None;
    }
    assert!(output.status.success(), "{said}");
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    let (mut cases, mut now): (Vec<_>, Option<(String, Calls, String)>) = (Vec::new(), None);
    // Threads that were there before, but for the one that spawns, are busy with something else.
    let mut strangers = BTreeSet::new();
    for line in text.lines() {
        let (pid, call) = line.split_once(' ').map_or(("", ""), |(pid, call)| (pid, call.trim_start()));
        if now.is_none() {
            strangers.insert(pid);
        }
        if let Some(name) = call.split_once(MARK).and_then(|(_, rest)| rest.split_once('"')).map(|(name, _)| name) {
            match now.take() {
                Some(ended) if name == "end" => cases.push(ended),
                _ if name.starts_with("refused") => println!("{name}"),
                _ => now = Some((name.to_owned(), Calls::new(), String::new())),
            }
            strangers.remove(pid);
        } else if strangers.contains(pid) {
            continue;
        } else if let (Some((_, calls, flags)), Some((name, args))) = (&mut now, call.split_once('(')) {
            if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                *calls.entry(name.to_owned()).or_default() += 1;
                if name.starts_with("clone") {
                    *flags = args
                        .split_once("flags=")
                        .map_or(args, |(_, flags)| flags)
                        .split(',')
                        .next()
                        .unwrap()
                        .to_owned();
                }
            }
        }
    }
    Some(cases)
}

/// What `b` has more or less than `a`, as in the table.
fn difference(a: &Calls, b: &Calls) -> String {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let of = |calls: &Calls, name: &String| calls.get(name).copied().unwrap_or(0);
    let more = names.into_iter().filter(|name| !BY_CHANCE.contains(&name.as_str())).filter_map(|name| {
        let n = of(b, name) - of(a, name);
        (n != 0).then(|| format!("{name} {n}"))
    });
    let list: Vec<String> = more.collect();
    if list.is_empty() { "none".into() } else { list.join(", ") }
}

/// The rows of the table: option, calls.
fn table() -> BTreeMap<String, String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md")).unwrap();
    let part = text.split_once("## What an option costs").expect("no table").1;
    let part = part.split("\n## ").next().unwrap();
    part.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            let (name, calls) = row.split_once("` | ").unwrap();
            (name.to_owned(), calls.split(" | ").next().unwrap().trim_end_matches(" |").to_owned())
        })
        .collect()
}

#[test]
fn each_option_costs_what_the_table_says_on_the_one_path() {
    const NAME: &str = "each_option_costs_what_the_table_says_on_the_one_path";
    let can = pidloop::capabilities();
    if !(can.clone3 && can.clear_handlers && can.shared_table && can.close_range) {
        return skip(NAME, "an older kernel: it takes other calls");
    }
    if !rustix::process::geteuid().is_root() || cc::tiny().is_err() {
        return skip(NAME, "not root, or no C compiler");
    }
    let Some(cases) = traced().filter(|cases| cases.len() > 1) else {
        return skip(NAME, "strace is not here, or may not trace");
    };
    let table = table();
    let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
    assert!(table.keys().all(|name| names.contains(&name.as_str())), "{table:?} has what is no option");
    let (_, plain, plain_flags) = &cases[0];
    for (name, calls, flags) in &cases[1..] {
        let cost = difference(plain, calls);
        println!("| `{name}` | {cost} |");
        assert!(!calls.keys().any(|call| ["fork", "vfork", "clone"].contains(&call.as_str())), "{name}: {calls:?}");
        let base: Vec<&str> =
            flags.split('|').filter(|flag| !flag.starts_with("CLONE_NEW") && *flag != "CLONE_INTO_CGROUP").collect();
        let same = base.join("|") == *plain_flags;
        assert!(same || OFF_THE_PATH.contains(&name.as_str()), "{name}: {flags}, and without it {plain_flags}");
    }
    for (name, calls, _) in &cases[1..] {
        let cost = difference(plain, calls);
        assert_eq!(Some(&cost), table.get(name), "{name}: counted, then written down");
    }
}
