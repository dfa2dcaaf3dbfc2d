//! The promise that every error says what, which command and why: each kind of error is made, and their messages are printed, so that they
//! are read as a set. Knows the public API alone.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::{SOON, Scratch, children_of_ours, eventually, in_own_process, sh, skip, spawn_ready};
use pidloop::{
    Cancel, Command, Context, Driver, Error, ErrorKind, Exit, IoPriority, Limit, Namespace, Reactor, Resource,
    Scheduler, Signal, Stage, Stdio, Terminal,
};

const MOMENT: Duration = Duration::from_millis(30);
const NOBODY: u32 = 65534;
/// What no message may hold.
const SECRET: &str = "hunter2";

/// An error, under a name of its own.
struct Case {
    name: String,
    kind: ErrorKind,
    stage: Option<Stage>,
    command: Option<String>,
    says: String,
    debug: String,
}

#[derive(Default)]
struct Made(Vec<Case>);

impl Made {
    fn add(&mut self, name: &str, error: Error) {
        self.0.push(Case {
            name: name.to_owned(),
            kind: error.kind(),
            stage: error.stage(),
            command: error.command().map(str::to_owned),
            says: error.to_string(),
            debug: format!("{error:?}"),
        });
    }

    /// What a command that has secrets everywhere says when it is started.
    fn spawned(&mut self, name: &str, command: &mut Command) {
        command.secret_arg(SECRET).env("PASSWORD", SECRET);
        match command.spawn() {
            Err(error) => self.add(name, error),
            Ok(child) => panic!("{name}: it started: {:?}", child.wait()),
        }
    }

    fn ran(&mut self, name: &str, command: &mut Command) {
        command.secret_arg(SECRET).env("PASSWORD", SECRET);
        self.add(name, command.run().expect_err(name));
    }
}

fn sleeper() -> Command {
    sh("exec sleep 60")
}

fn program() -> Command {
    Command::new("true")
}

// ── what may be wrong with a command ──

fn of_the_command(made: &mut Made, dir: &Scratch) {
    made.spawned("no name", &mut Command::new(""));
    made.spawned("NUL in the name", &mut Command::new("a\0b"));
    made.spawned("NUL in an argument", program().arg("a\0b"));
    made.spawned("NUL in a variable", program().env("PASSPHRASE", format!("{SECRET}\0")));
    made.spawned("NUL in the directory", program().current_dir("a\0b"));
    made.spawned("captured stdin", program().stdin(Stdio::captured()));
    made.spawned("low descriptor", program().fd(1, File::open("/dev/null").unwrap()));
    made.spawned("missing name", &mut Command::new("no-such-program"));
    made.spawned("missing path", &mut Command::new("/no/such/program"));
    made.spawned("missing interpreter", &mut Command::new(dir.file("script", "#!/no/such/sh\n", 0o755)));
    dir.file("here", "#!/bin/sh\n", 0o755);
    made.spawned("relative hit", Command::new("here").env("PATH", "."));
    made.spawned("not executable", &mut Command::new(dir.file("plain", "", 0o644)));
    made.spawned("not executable, by name", Command::new("plain").env("PATH", &dir.0));
    made.spawned("a directory", &mut Command::new(&dir.0));
    made.spawned("garbage", &mut Command::new(dir.file("garbage", "\u{1}\u{2}", 0o755)));
    made.spawned("busy", &mut {
        let path = dir.file("busy", "#!/bin/sh\n", 0o755);
        std::mem::forget(File::options().append(true).open(&path).unwrap());
        Command::new(path)
    });
    made.spawned("too long", program().arg("x".repeat(1 << 20)));
    made.spawned("cancelled before", program().context(&cancelled()));
    made.spawned("too late", program().timeout(Duration::ZERO));
    made.spawned(
        "too late, in words",
        program().context(&Context::new().with_timeout_cause(Duration::ZERO, "the boss is waiting")),
    );
    let mut once = sh("cat");
    once.stdin(Stdio::reader(&b"x"[..])).stdout(Stdio::null()).spawn().unwrap().wait().unwrap();
    made.spawned("stream used", &mut once);
}

fn cancelled() -> Context {
    let ctx = Context::new();
    ctx.cancel_with("the client hung up");
    ctx
}

// ── the steps before the program ──

fn of_the_steps(made: &mut Made, dir: &Scratch) {
    let file = File::open(dir.file("file", "", 0o644)).unwrap();
    made.spawned("missing directory", program().current_dir("/no/such/directory"));
    made.spawned("missing root", program().chroot("/no/such/root"));
    made.spawned("no terminal", program().setsid().stdin(Stdio::null()).controlling_terminal(0));
    made.spawned("no terminal to drop", program().setsid().stdin(Stdio::null()).drop_terminal(0));
    made.spawned("no foreground", program().stdin(Stdio::null()).group().foreground(0));
    made.spawned("no such group", program().process_group(1));
    made.spawned("soft above hard", program().rlimit(Resource::OpenFiles, 10, 5));
    made.spawned("no processor", program().cpu_affinity(&[1 << 12]));
    made.spawned("no such score", program().oom_score_adj(5000));
    made.spawned("no such priority", program().scheduler(Scheduler::Fifo(1000)));
    made.spawned("no such capability", program().drop_capabilities(&[63]));
    made.spawned("no such ambient", program().ambient_capabilities(&[63]));
    made.spawned("not a cgroup", program().cgroup(File::open(&dir.0).unwrap()));
    made.spawned("no id map", program().unshare(&[Namespace::User]).uid_map(0, u32::MAX));
    made.spawned("unmapped uid", program().unshare(&[Namespace::User]).uid_map(0, 0).uid(5));
    made.spawned("no such uid", program().uid(u32::MAX));
    made.spawned("no such gid", program().gid(u32::MAX));
    made.spawned("too many groups", program().groups(&vec![1; 1 << 17]));
    let mut command = program();
    // SAFETY: it makes an error.
    unsafe { command.pre_exec(|| Err(std::io::Error::from_raw_os_error(libc::EDQUOT))) };
    made.spawned("failing closure", &mut command);
    made.spawned("closed descriptor", program().inherit_fd(9999));
    let neighbour = Command::new("/bin/sleep").arg("60").uid(NOBODY).kill_on_drop(true).spawn().unwrap();
    made.spawned("no processes", Command::new("/bin/true").uid(NOBODY).rlimit(Resource::Processes, 0, 0));
    drop((neighbour, file));
}

/// As somebody who may do nothing.
fn of_the_unprivileged(made: &mut Made) {
    let victim = sleeper().spawn().unwrap();
    set_user(NOBODY);
    made.spawned("forbidden uid", program().uid(0));
    made.spawned("forbidden gid", program().gid(7));
    made.spawned("forbidden groups", program().groups(&[0]));
    made.spawned("forbidden priority", program().nice(-5));
    made.spawned("forbidden level", program().io_priority(IoPriority::Realtime(0)));
    made.spawned("forbidden namespace", program().unshare(&[Namespace::Network]));
    made.add("forbidden signal", victim.kill().unwrap_err());
    set_user(0);
    victim.kill().unwrap();
    victim.wait().unwrap();
}

fn set_user(id: u32) {
    // SAFETY: setresuid(2) in a process of the test's own.
    assert_eq!(unsafe { libc::setresuid(id, id, 0) }, 0);
}

// ── how a child may end ──

fn of_the_end(made: &mut Made) {
    made.ran("not 0", &mut sh("exit 3"));
    made.ran("not 0, with words", sh("echo one >&2; echo two >&2; exit 3").stderr(Stdio::captured()));
    made.ran("not 0, with many words", sh("seq 1000 >&2; exit 3").stderr(Stdio::captured()));
    made.ran("a signal", &mut sh("kill -TERM $$"));
    made.ran("a core dump", &mut sh("ulimit -c 0; kill -ABRT $$"));
    made.ran("stopped by its timeout", sleeper().timeout(MOMENT));
    made.ran("stopped by its deadline", sleeper().context(&Context::new().with_timeout(MOMENT)));
    let output = Stdio::captured_limited(Limit::stop_at(100));
    made.ran("too much output", Command::new("yes").stdout(output));
    made.ran("held output", sh("sleep 1 &").stdout(Stdio::captured()).wait_delay(MOMENT));

    let ctx = Context::new();
    let child = sleeper().secret_arg(SECRET).context(&ctx).spawn().unwrap();
    ctx.cancel();
    made.add("cancelled", child.wait().unwrap().check().unwrap_err());

    let (child, _stdout) =
        spawn_ready(sh("trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done").secret_arg(SECRET));
    made.add("terminated", child.terminate(SOON).unwrap().check().unwrap_err());
    made.add("no pidfd any more", child.pidfd().unwrap_err());

    let ctx = Context::new();
    let mut command = sh("trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done");
    command.context(&ctx).cancel(Cancel::call(|target| {
        target.signal(Signal::SIGTERM)?;
        Err(std::io::Error::other("the pager is broken"))
    }));
    let (child, _stdout) = spawn_ready(command.secret_arg(SECRET));
    ctx.cancel();
    made.add("failing closure", child.wait().unwrap().check().unwrap_err());

    made.ran("failing reader", sh("cat").stdin(Stdio::reader(Broken)).stdout(Stdio::null()));
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the disk is on fire"))
    }
}

// ── loops and limits ──

fn of_the_loop(made: &mut Made) {
    let mut reactor = Reactor::new().unwrap();
    let id = reactor.spawn(&program()).unwrap();
    while reactor.next_exit().is_none() {
        reactor.turn(Some(SOON)).unwrap();
    }
    made.add("no such child", reactor.kill(id).unwrap_err());
    let driver = Driver::new().unwrap();
    driver.shutdown(Duration::ZERO, Duration::ZERO);
    made.add("shut down", driver.spawn(program().secret_arg(SECRET)).unwrap_err());
    made.0.push(in_forked_copy(|| driver.spawn(program().secret_arg(SECRET)).unwrap_err()));
    made.add("no signals", Context::on_signal(&[]).unwrap_err());
    made.add("such a signal", Context::on_signal(&[Signal::SIGKILL]).unwrap_err());
    let all: Vec<Context> = (0..64).map(|_| Context::on_signal(&[Signal::SIGUSR2]).unwrap()).collect();
    made.add("too many signals", Context::on_signal(&[Signal::SIGUSR2]).unwrap_err());
    drop(all);
    let regular = File::open("/proc/self/exe").unwrap();
    made.add("a regular file", Context::from_fd(regular.into(), pidloop::When::Readable).unwrap_err());
}

/// The error that `f` makes in a forked copy.
fn in_forked_copy(f: impl Fn() -> Error) -> Case {
    let (mut read, mut write) = common::pipe();
    // SAFETY: the copy has one thread, does what `f` does, and ends by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let error = f();
        write!(write, "{error}\0{error:?}\0{}", error.command().unwrap_or_default()).unwrap();
        // SAFETY: as above.
        unsafe { libc::_exit((error.kind() != ErrorKind::Forked).into()) };
    }
    drop(write);
    let mut words = String::new();
    read.read_to_string(&mut words).unwrap();
    let mut status = 0;
    // SAFETY: waitpid(2) for that child alone.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0);
    let mut parts = words.split('\0').map(str::to_owned);
    let [says, debug, command] = std::array::from_fn(|_| parts.next().unwrap());
    Case { name: "forked".into(), kind: ErrorKind::Forked, stage: None, command: Some(command), says, debug }
}

fn of_the_limits(made: &mut Made) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let set = |current| {
        let limit = rustix::process::Rlimit { current, ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    };
    let mut fill = Vec::new();
    set(Some(80));
    while let Ok(file) = File::open("/dev/null") {
        fill.push(file);
    }
    made.spawned("no descriptors", program().stdout(Stdio::captured()));
    made.spawned("no descriptors for a context", program().context(&Context::new()));
    made.spawned("no descriptors for a child", &mut program());
    drop(fill);
    set(limit.current);
}

/// Where as many children live as may.
fn of_the_queues(made: &mut Made) {
    let mut reactor = Reactor::new().unwrap();
    reactor.set_max_running(0);
    made.add("no room", reactor.spawn(program().secret_arg(SECRET)).unwrap_err());
    let driver = Driver::new().unwrap();
    driver.set_max_running(0);
    driver.set_max_queued(0);
    made.add("queue full", driver.spawn(program().secret_arg(SECRET)).unwrap_err());
}

/// Where a sandbox refuses memory and the kernel's help.
fn of_the_sandbox(made: &mut Made) {
    // SAFETY: this process is the test's own, and SIG_IGN is no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    refuse(libc::SYS_ioctl, libc::EPERM);
    made.ran("status lost", &mut sh("exit 3"));
    made.spawned("no pseudo-terminal", program().terminal(&Terminal::new()));
    refuse(libc::SYS_clone3, libc::ENOMEM);
    made.spawned("no memory", &mut program());
}

/// Has this thread's calls of `number` refused. seccomp(2).
fn refuse(number: libc::c_long, errno: i32) {
    let filter = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let program = [
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number as u32),
        filter(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        filter(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lives through the call, which copies it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

#[test]
fn a_command_whose_output_cannot_be_read_leaves_no_child() {
    in_own_process("a_command_whose_output_cannot_be_read_leaves_no_child", || {
        // The driver's thread is there, and not in the sandbox.
        Command::new("true").run().unwrap();
        refuse(libc::SYS_fcntl, libc::EPERM);
        let error = sleeper().stdout(Stdio::piped()).status().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Streams)), "{error}");
        eventually("it is killed and reaped", || children_of_ours().is_empty());
    });
}

// ── all of them ──

/// The variants of a public enum of `src/error.rs`.
fn variants(name: &str) -> Vec<String> {
    let source = include_str!("../src/error.rs");
    let body = source.split(&format!("pub enum {name} {{")).nth(1).unwrap().split("\n}").next().unwrap();
    let names = body.lines().map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
    names.map(|line| line.trim_end_matches(',').to_owned()).collect()
}

/// Those of a public enum of `src/error.rs` that nothing in `seen` is.
fn unseen(name: &str, seen: impl Iterator<Item = String>) -> Vec<String> {
    let seen: Vec<String> = seen.collect();
    variants(name).into_iter().filter(|variant| !seen.contains(variant)).collect()
}

fn read(case: &Case) {
    let Case { name, says, debug, command, .. } = case;
    println!("{name:28} {:17} {says}", format!("{:?}", case.kind));
    assert!(!says.contains(SECRET) && !debug.contains(SECRET), "{name}: {debug}");
    match command {
        Some(command) => assert!(says.starts_with(&format!("{command}: ")), "{name}: {says}"),
        None => assert!(!says.contains("***"), "{name}: {says}"),
    }
    assert!(command.as_ref().is_none_or(|command| command.len() < 1100), "{name}");
    let (line, shown) = says.split_once("\nstderr: ").unwrap_or((says, ""));
    assert!(!line.contains(char::is_control), "{name}: {says:?}");
    assert!(shown.len() <= 1024 + '…'.len_utf8(), "{name}: {} bytes", shown.len());
    let what = line.strip_prefix(command.as_deref().unwrap_or_default()).unwrap().trim_start_matches(": ");
    assert!(!what.is_empty() && !what.ends_with([':', '.', ' ']) && !what.contains("::"), "{name}: {says}");
    for doubled in ["could not", "invalid", "signal", "not started", "no such"] {
        assert!(what.to_lowercase().matches(doubled).count() <= 1, "{name}: {doubled} twice: {says}");
    }
    let words: Vec<&str> = what.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    assert!(words.windows(2).all(|pair| !pair[0].eq_ignore_ascii_case(pair[1])), "{name}: {says}");
}

#[test]
fn every_error_is_made_and_read() {
    const NAME: &str = "every_error_is_made_and_read";
    if !rustix::process::geteuid().is_root() {
        return skip(NAME, "needs root");
    }
    in_own_process(NAME, || {
        let dir = Scratch::new("errors");
        std::env::set_current_dir(&dir.0).unwrap();
        let mut made = Made::default();
        of_the_command(&mut made, &dir);
        of_the_steps(&mut made, &dir);
        of_the_end(&mut made);
        of_the_loop(&mut made);
        of_the_unprivileged(&mut made);
        of_the_limits(&mut made);
        of_the_queues(&mut made);
        of_the_sandbox(&mut made);
        made.0.iter().for_each(read);
        // That takes a thread that panics twice: the driver's own tests do it.
        let kinds = made.0.iter().map(|case| format!("{:?}", case.kind));
        assert_eq!(unseen("ErrorKind", kinds), ["ReactorDied"]);
        // The kernel has no reason to refuse these, or the next way is taken.
        let stages = made.0.iter().filter_map(|case| case.stage).map(|stage| format!("{stage:?}"));
        let never = ["DescriptorTable", "Session", "Umask", "NoNewPrivileges", "ParentDeathSignal", "Signals", "Trace"];
        assert_eq!(unseen("Stage", stages), never);
    });
}

#[test]
fn a_message_is_for_people_and_the_rest_for_programs() {
    let error = Command::new("/no/such").args(["a\nb", "\x1b[31m"]).spawn().unwrap_err();
    assert_eq!(error.command(), Some(r"/no/such $'a\nb' $'\x1b[31m'"));
    assert_eq!(
        (error.kind(), error.stage(), error.raw_os_error()),
        (ErrorKind::NotFound, Some(Stage::Exec), Some(libc::ENOENT))
    );
    assert_eq!(error.path().unwrap().to_str(), Some("/no/such"));
    assert!(!error.is_transient() && error.exit().is_none() && error.output().is_none() && error.cause().is_none());
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(source.raw_os_error(), Some(libc::ENOENT));
    // There and back.
    let words = error.to_string();
    let io = std::io::Error::from(error);
    assert_eq!((io.kind(), io.to_string()), (std::io::ErrorKind::NotFound, words));
    assert_eq!(io.downcast::<Error>().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn what_there_is_of_a_result_is_in_the_error() {
    let mut command = sh("echo out; echo grüße >&2; seq 300 | sed 's/.*/ü&/' >&2; exit 3");
    let error = command.stdout(Stdio::captured()).stderr(Stdio::captured()).run().unwrap_err();
    assert_eq!(error.exit().unwrap().code(), Some(3));
    assert_eq!(error.output().unwrap().stdout, b"out\n");
    assert!(error.to_string().ends_with("ü299\nü300") && !error.to_string().contains('\u{fffd}'), "{error}");
    assert!(error.into_output().unwrap().stderr.starts_with("grüße\n".as_bytes()));
}

// ── who is blamed ──

/// A command of which everything goes wrong that `faults` has: "stop", "status", "held", "closure", "reader".
fn faulty(faults: &[&str]) -> Exit {
    let has = |fault| faults.contains(&fault);
    let [held, code] = [if has("held") { "sleep 4 &" } else { "" }, if has("status") { "3" } else { "0" }];
    let ctx = Context::new();
    let mut command =
        sh(&format!("trap '{held} exit {code}' TERM; cat >/dev/null; echo ready >&2; while :; do sleep 0.01; done"));
    command.stdout(Stdio::captured()).stderr(Stdio::piped()).context(&ctx);
    // Long enough for the shell to end by itself, not for who holds its output.
    command.wait_delay(Duration::from_secs(2));
    // It is ready when its stdin has come to an end.
    command.stdin(if has("reader") { Stdio::reader(Broken) } else { Stdio::null() });
    if has("closure") {
        command.cancel(Cancel::call(|target| {
            target.signal(Signal::SIGTERM)?;
            Err(std::io::Error::other("no"))
        }));
    } else {
        command.cancel(Cancel::Signal(Signal::SIGTERM));
    }
    let child = command.spawn().unwrap();
    let mut stderr = child.take_stderr().unwrap();
    stderr.read_exact(&mut [0; 6]).unwrap();
    if has("stop") || has("closure") {
        ctx.cancel();
    } else {
        child.signal(Signal::SIGTERM).unwrap();
    }
    match child.wait_with_output() {
        Ok(output) => output.exit().clone(),
        Err(error) => error.exit().unwrap().clone(),
    }
}

#[test]
fn blame_is_in_this_order() {
    use ErrorKind::{CancelFailed, Cancelled, Io, OutputCut, Unsuccessful};
    for (faults, blamed) in [
        (&["stop", "status", "held", "reader"][..], Some(Cancelled)),
        (&["stop"], Some(Cancelled)),
        (&["status", "held", "closure", "reader"], Some(Unsuccessful)),
        (&["held", "closure", "reader"], Some(OutputCut)),
        (&["closure", "reader"], Some(CancelFailed)),
        (&["reader"], Some(Io)),
        (&[], None),
    ] {
        let exit = faulty(faults);
        assert_eq!(exit.check().err().map(|error| error.kind()), blamed, "{faults:?}: {exit:?}");
        assert_eq!(exit.output_held_open(), faults.contains(&"held"), "{faults:?}");
        assert_eq!(exit.held_open().stdout, faults.contains(&"held"), "{faults:?}");
        assert_eq!(exit.cause().is_some(), faults.contains(&"stop"), "{faults:?}");
        assert_eq!(exit.success(), !faults.contains(&"status"), "{faults:?}");
    }
}

#[test]
fn a_lost_status_is_blamed_after_a_stop_and_before_cut_output() {
    const NAME: &str = "a_lost_status_is_blamed_after_a_stop_and_before_cut_output";
    in_own_process(NAME, || {
        // SAFETY: this process is the test's own, and SIG_IGN is no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        refuse(libc::SYS_ioctl, libc::EPERM);
        for (faults, blamed) in
            [(&["stop", "status", "held"][..], ErrorKind::Cancelled), (&["status", "held"], ErrorKind::StatusLost)]
        {
            let exit = faulty(faults);
            assert_eq!(exit.check().unwrap_err().kind(), blamed, "{exit:?}");
            assert!(exit.status().is_none() && exit.usage().is_none() && exit.reaped_at().is_none());
            assert_eq!((exit.code(), exit.signal(), exit.success()), (None, None, false));
            assert_eq!(exit.to_string(), "exit status lost");
        }
    });
}

#[test]
fn times_are_in_order_and_none_is_early() {
    let before = Instant::now();
    for watched in [false, true] {
        let mut command = Command::new("sleep");
        command.arg("0.1");
        if watched {
            command.stdout(Stdio::captured());
        }
        let child = command.spawn().unwrap();
        let exit = if watched { child.wait_with_output().unwrap().exit().clone() } else { child.wait().unwrap() };
        assert!(exit.spawned_at() >= before && exit.elapsed() >= Duration::from_millis(100));
        assert!(exit.reaped_at().unwrap() >= exit.exited_at() && exit.exited_at() <= Instant::now());
    }
}

/// What a child wrote to stderr is shown, and cannot steer the terminal that shows it.
#[test]
fn a_message_with_a_childs_stderr_has_no_control_characters() {
    let error = sh(r"printf 'a\033[31mb\0c\n\td' >&2; exit 1").stderr(Stdio::captured()).run().unwrap_err();
    let (first, shown) = error.to_string().split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(first.ends_with("exit status 1"), "{first}");
    assert_eq!(shown, "stderr: a\\u{1b}[31mb\\u{0}c\n\td");
    assert_eq!(error.output().unwrap().stderr, b"a\x1b[31mb\0c\n\td");
}
