//! Processes that are hard to live in: few descriptors or thousands, other threads that fork and open, storms of signals, threads that end,
//! an engine that was cut off from what it had (promises 4, 6, 8). Knows the public API and what such hosts do.

mod common;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, in_own_process, open_descriptors, rounds, sh, skip};
use pidloop::{Command, Context, ErrorKind, Reactor, Stage, Stdio};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A file of its own for each spawn, whose inode the child must find.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Files {
        let dir = std::env::temp_dir().join(format!("pidloop-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Files(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child that is given two files and a pipe, and says what it has: each number with its inode.
fn has_the_right_files(files: &Files, name: &str) {
    let made = ["in", "err"].map(|end| {
        let path = files.path(&format!("{name}-{end}"));
        File::options().read(true).write(true).create_new(true).open(path).unwrap()
    });
    let inodes = made.each_ref().map(|file| file.metadata().unwrap().ino());
    let [stdin, stderr] = made;
    let mut command = Command::new("ls");
    command.args(["-L", "-i", "/proc/self/fd"]).stdin(OwnedFd::from(stdin)).stderr(OwnedFd::from(stderr));
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let mut seen: Vec<(u32, Option<u64>)> = text
        .lines()
        .map(|line| line.split_whitespace())
        .map(|mut words| (words.next().and_then(|inode| inode.parse().ok()), words.next().unwrap().parse().unwrap()))
        .map(|(inode, number)| (number, inode))
        .collect();
    seen.sort_unstable();
    // The last one is the directory that is being read.
    assert_eq!(seen.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2, 3], "{text}");
    assert_eq!([seen[0].1, seen[2].1], inodes.map(Some), "{text}");
}

/// Opens, duplicates and closes descriptors of its own, and forks, until it is told to stop.
fn churn(stop: &AtomicBool, forks: bool) {
    let mut open: Vec<OwnedFd> = Vec::new();
    let mut random = 1u32;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match random >> 29 {
            0 | 1 => open.push(File::open("/dev/zero").unwrap().into()),
            2 => open.extend(open.last().map(|fd| fd.try_clone().unwrap())),
            3 => open.extend(open.last().map(|fd| rustix::io::dup(fd).unwrap())),
            4 if open.len() > 1 => {
                let mut target = open.pop().unwrap();
                rustix::io::dup2(&open[0], &mut target).unwrap();
                open.push(target);
            }
            _ if open.len() > 8 => open.clear(),
            _ => {}
        }
        if forks && random >> 24 == 0 {
            let mut command = std::process::Command::new("true");
            // SAFETY: nothing is done: it makes std fork.
            unsafe { command.pre_exec(|| Ok(())) };
            command.status().unwrap();
        }
    }
}

#[test]
fn others_fork_and_open_while_eight_threads_spawn() {
    in_own_process("others_fork_and_open_while_eight_threads_spawn", || {
        let files = Files::new("churn");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for forks in [true, false, true] {
                let stop = &stop;
                scope.spawn(move || churn(stop, forks));
            }
            let files = &files;
            let spawners: Vec<_> = (0..8)
                .map(|thread| {
                    scope.spawn(move || {
                        (0..rounds(25)).for_each(|i| has_the_right_files(files, &format!("{thread}-{i}")));
                    })
                })
                .collect();
            let results: Vec<_> = spawners.into_iter().map(|spawner| spawner.join()).collect();
            stop.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn thousands_are_open_before_the_first_spawn() {
    in_own_process("thousands_are_open_before_the_first_spawn", || {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
        let first = File::open("/dev/zero").unwrap();
        let many: Vec<_> = (0..15_000).map_while(|_| first.try_clone().ok()).collect();
        let files = Files::new("many");
        has_the_right_files(&files, "first");
        drop(many);
        has_the_right_files(&files, "second");
    });
}

/// A thread may have a table of its own: under the same numbers the other threads have other files.
#[test]
fn a_thread_with_descriptors_of_its_own() {
    in_own_process("a_thread_with_descriptors_of_its_own", || {
        Command::new("true").run().unwrap();
        let others: Vec<_> = (0..300).map(|_| File::open("/dev/zero").unwrap()).collect();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: what this thread has open it opens after this.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }.unwrap();
                let files = Files::new("own");
                let mine: Vec<_> = (0..300).map(|_| File::open("/dev/full").unwrap()).collect();
                // SAFETY: the numbers are open here, too: they were copied.
                others.iter().for_each(|file| assert_eq!(unsafe { libc::close(file.as_raw_fd()) }, 0));
                let file = files.path("content");
                fs::write(&file, "content").unwrap();
                let low = File::open(&file).unwrap();
                let high = rustix::io::fcntl_dupfd_cloexec(&low, others[250].as_raw_fd()).unwrap();
                // Its children are for a loop that it turns itself.
                let mut reactor = Reactor::new().unwrap();
                reactor.spawn(Command::new("head").args(["-c", "7"]).stdin(high).stdout(Stdio::captured())).unwrap();
                let ended = loop {
                    match reactor.next_exit() {
                        Some(ended) => break ended,
                        None => reactor.turn(None).unwrap(),
                    }
                };
                drop(mine);
                ended.into_output().stdout
            });
            assert_eq!(thread.join().unwrap(), b"content");
        });
    });
}

/// A host that closes a number it did not open, and gets it for a file of its own.
#[test]
fn our_null_device_is_taken_away() {
    in_own_process("our_null_device_is_taken_away", || {
        let inherited = open_descriptors();
        Command::new("cat").stdin(Stdio::null()).run().unwrap();
        let is_ours = |fd: &&(i32, String)| fd.1 == "/dev/null" && !inherited.contains(fd);
        let now = open_descriptors();
        let number = now.iter().find(is_ours).expect("it is kept").0;
        let files = Files::new("null");
        let path = files.path("file");
        fs::write(&path, "content").unwrap();
        let works = |what: &str| {
            let mut command = sh("cat; echo out; echo err >&2");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::captured());
            let output = command.output().unwrap();
            assert_eq!(output.stderr, b"err\n", "{what}");
        };
        for (what, open) in [
            ("a file", Some(File::options().read(true).append(true).open(&path).unwrap())),
            ("for reading alone", Some(File::open("/dev/null").unwrap())),
            ("nothing", None),
        ] {
            // SAFETY: what a host may do by mistake; nobody else uses the number in this process.
            unsafe {
                match &open {
                    Some(file) => assert_eq!(libc::dup2(file.as_raw_fd(), number), number),
                    None => assert_eq!(libc::close(number), 0),
                }
            }
            works(what);
        }
        assert_eq!(fs::read(&path).unwrap(), b"content");
    });
}

#[test]
fn the_limit_sinks_below_what_we_have_open() {
    in_own_process("the_limit_sinks_below_what_we_have_open", || {
        sh("exit 0").output().unwrap();
        let limit = getrlimit(Resource::Nofile);
        let has_room = open_descriptors().iter().filter(|(number, _)| *number < 40).count() < 20;
        assert!(has_room);
        setrlimit(Resource::Nofile, Rlimit { current: Some(40), maximum: limit.maximum }).unwrap();
        let output = sh("cat; echo out").output().unwrap();
        assert_eq!(output.stdout, b"out\n");
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: limit.maximum }).unwrap();
        let error = sh("exit 0").output().unwrap_err();
        setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(error.kind(), ErrorKind::NoDescriptors, "{error}");
        assert!(sh("echo out").output().is_ok());
    });
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);
static HANDLED_ELSEWHERE: AtomicUsize = AtomicUsize::new(0);
static OURSELVES: AtomicU32 = AtomicU32::new(0);

extern "C" fn handler(_: i32) {
    // SAFETY: getpid(2). A half-born child that ran this would do it in our memory.
    let pid = unsafe { libc::syscall(libc::SYS_getpid) } as u32;
    let counter = if pid == OURSELVES.load(Ordering::Relaxed) { &HANDLED } else { &HANDLED_ELSEWHERE };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn handle(signals: &[i32]) {
    OURSELVES.store(std::process::id(), Ordering::Relaxed);
    for signal in signals {
        // SAFETY: the handler asks for a number and counts; no SA_RESTART, so that calls are interrupted.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            assert_eq!(libc::sigaction(*signal, &action, std::ptr::null_mut()), 0);
        }
    }
}

#[test]
fn a_storm_of_alarms_interrupts_everything() {
    in_own_process("a_storm_of_alarms_interrupts_everything", || {
        handle(&[libc::SIGALRM, libc::SIGCHLD, libc::SIGPIPE, libc::SIGTSTP, libc::SIGUSR1]);
        let every = libc::timeval { tv_sec: 0, tv_usec: 500 };
        let timer = libc::itimerval { it_interval: every, it_value: every };
        // SAFETY: setitimer(2).
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
        for _ in 0..rounds(100) {
            let output = Command::new("cat").arg("/proc/self/status").output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let set = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            assert_eq!((set("SigBlk:"), set("SigCgt:")), ("0".repeat(16), "0".repeat(16)));
            assert_eq!(u64::from_str_radix(&set("SigIgn:"), 16).unwrap() & 1 << (libc::SIGPIPE - 1), 0);
        }
        assert!(HANDLED.load(Ordering::Relaxed) > 0);
        assert_eq!(HANDLED_ELSEWHERE.load(Ordering::Relaxed), 0);
    });
}

/// ^Z at the worst of all times: the half-born child would be stopped, and its creator with it until somebody continues them.
#[test]
fn stop_signals_while_children_are_born() {
    in_own_process("stop_signals_while_children_are_born", || {
        handle(&[libc::SIGTSTP]);
        // A group of our own, whose leader's parent is in another one: not orphaned, so that the stops are meant.
        // SAFETY: setpgid(2).
        assert_eq!(unsafe { libc::setpgid(0, 0) }, 0);
        let (done, is_done) = mpsc::channel();
        let stop = AtomicBool::new(false);
        let until = Instant::now() + Duration::from_millis(rounds(1500) as u64);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: kill(2) of our own group.
                    unsafe { libc::kill(0, libc::SIGTSTP) };
                    std::thread::yield_now();
                }
            });
            scope.spawn(move || {
                let mut spawned = 0;
                while Instant::now() < until {
                    let child = Command::new("true").spawn().unwrap();
                    child.kill().unwrap();
                    child.wait().unwrap();
                    spawned += 1;
                }
                done.send(spawned).unwrap();
            });
            let spawned = is_done.recv_timeout(SOON);
            stop.store(true, Ordering::Relaxed);
            if spawned.is_err() {
                // The creator hangs: only this ends it.
                // SAFETY: kill(2) of our own group.
                unsafe { libc::kill(0, libc::SIGKILL) };
            }
            assert!(spawned.unwrap() > 20);
        });
        assert_eq!(HANDLED_ELSEWHERE.load(Ordering::Relaxed), 0);
    });
}

/// What the half-born child takes in its program's place is sent on: the program stops, as it should.
#[test]
fn a_stop_that_comes_early_stops_the_program() {
    const NAME: &str = "a_stop_that_comes_early_stops_the_program";
    let Some(frozen) = Frozen::new(NAME) else { return };
    let mut command = Command::new("sleep");
    // In a group of its own: that of a session's first process is orphaned, and there the kernel drops a stop.
    command.arg("60").group().cgroup(File::open(&frozen.0).unwrap());
    let child = std::thread::scope(|scope| {
        let spawner = scope.spawn(|| command.spawn().unwrap());
        frozen.signal_half_born(rustix::process::Signal::TSTP);
        frozen.thaw();
        spawner.join().unwrap()
    });
    common::eventually("it is stopped", || common::is_stopped(child.id()));
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap(), "sleep\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// SIGSTOP cannot be taken in the program's place: the half-born child stops, and its creator waits until somebody continues it, or ends
/// it.
#[test]
fn a_half_born_child_that_is_stopped_is_continued_or_ended() {
    const NAME: &str = "a_half_born_child_that_is_stopped_is_continued_or_ended";
    for cancels in [false, true] {
        let Some(frozen) = Frozen::new(NAME) else { return };
        let ctx = Context::new();
        let mut command = Command::new("sleep");
        command.arg("60").cgroup(File::open(&frozen.0).unwrap()).context(&ctx);
        std::thread::scope(|scope| {
            let spawner = scope.spawn(|| command.spawn());
            let pid = frozen.signal_half_born(rustix::process::Signal::STOP);
            frozen.thaw();
            common::eventually("it is stopped", || common::is_stopped(pid.as_raw_nonzero().get() as u32));
            assert!(!spawner.is_finished());
            if cancels {
                ctx.cancel();
                assert_eq!(spawner.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
            } else {
                rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
                let child = spawner.join().unwrap().unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
            }
        });
    }
}

/// A cgroup whose processes do not run: a child that is born there comes to nothing until it is thawed.
struct Frozen(PathBuf);

impl Frozen {
    fn new(test: &str) -> Option<Frozen> {
        let Some(base) = common::cgroup2() else {
            skip(test, "no cgroup v2");
            return None;
        };
        let dir = base.join(format!("pidloop-{}-{}", test.len(), std::process::id()));
        if fs::create_dir(&dir).is_err() {
            skip(test, "cgroups are not delegated");
            return None;
        }
        let frozen = Frozen(dir);
        if fs::write(frozen.0.join("cgroup.freeze"), "1").is_err() {
            skip(test, "cgroups cannot be frozen");
            return None;
        }
        Some(frozen)
    }

    fn signal_half_born(&self, signal: rustix::process::Signal) -> rustix::process::Pid {
        let half_born = || fs::read_to_string(self.0.join("cgroup.procs")).unwrap().trim().parse::<i32>().ok();
        common::eventually("it is half born", || half_born().is_some());
        let pid = rustix::process::Pid::from_raw(half_born().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        pid
    }

    fn thaw(&self) {
        fs::write(self.0.join("cgroup.freeze"), "0").unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = fs::remove_dir(&self.0);
        } else {
            common::eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
        }
    }
}

/// libc's `setuid` sends a signal to each thread and waits for all; one that is in the midst of a spawn answers when that is over.
#[test]
fn others_change_directory_and_ids_while_children_are_born() {
    in_own_process("others_change_directory_and_ids_while_children_are_born", || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::env::set_current_dir("/").unwrap();
                    // SAFETY: setresuid(3), setresgid(3): to what they are.
                    unsafe {
                        assert_eq!(libc::setresgid(libc::getgid(), libc::getegid(), u32::MAX), 0);
                        assert_eq!(libc::setresuid(libc::getuid(), libc::geteuid(), u32::MAX), 0);
                    }
                    std::env::set_current_dir("/usr").unwrap();
                }
            });
            let spawners: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..rounds(40) {
                            let output = sh("pwd -P; pwd -P >&2").output().unwrap();
                            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                            let (out, err) = (text(output.stdout), text(output.stderr));
                            // One or the other, and the child's for good.
                            assert!(["/\n", "/usr\n"].contains(&out.as_str()) && out == err, "{out} {err}");
                            let mut there = sh("pwd -P");
                            assert_eq!(there.current_dir("/etc").output().unwrap().stdout, b"/etc\n");
                        }
                    })
                })
                .collect();
            let results: Vec<_> = spawners.into_iter().map(|spawner| spawner.join()).collect();
            stop.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
    });
}

/// Sixteen descriptors from the first spawn on: enough for one child with all its streams, and an error for one too many.
#[test]
fn sixteen_descriptors_are_enough_for_one_child() {
    in_own_process("sixteen_descriptors_are_enough_for_one_child", || {
        // Another test of this file may have had some open that are not close-on-exec when this process was started.
        // SAFETY: close_range(2) of what was inherited; nothing here has any yet.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(16), maximum: limit.maximum }).unwrap();
        assert!(sh("exit 0").status().unwrap().success());
        let before = open_descriptors();
        let mut command = sh("cat; echo err >&2");
        command.stdin(Stdio::bytes("in"));
        assert_eq!(command.output().unwrap().stdout, b"in");
        let sleepers: Vec<_> = std::iter::from_fn(|| Some(Command::new("sleep").arg("60").spawn())).take(17).collect();
        let error = sleepers.iter().find_map(|child| child.as_ref().err()).expect("there is a limit");
        assert_eq!(error.kind(), ErrorKind::NoDescriptors, "{error}");
        for child in sleepers.into_iter().flatten() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(command.output().unwrap().stdout, b"in");
        assert_eq!(open_descriptors(), before);
        assert_eq!(children_of_ours(), []);
    });
}

/// No address is left for another mapping: a thread that has spawned needs none.
#[test]
fn address_space_that_is_used_up_is_an_error_or_not_needed() {
    in_own_process("address_space_that_is_used_up_is_an_error_or_not_needed", || {
        assert!(sh("exit 0").status().unwrap().success());
        assert_eq!(sh("echo x").output().unwrap().stdout, b"x\n");
        let before = open_descriptors();
        let limit = getrlimit(Resource::As);
        std::thread::scope(|scope| {
            let (go, wait) = mpsc::channel::<()>();
            let (ready, is_ready) = mpsc::channel();
            // It has no stack for children yet.
            let fresh = scope.spawn(move || {
                // But memory of its own for small things.
                drop(Command::new("true").clone().to_string());
                ready.send(()).unwrap();
                wait.recv().unwrap();
                Command::new("true").spawn().map(|child| child.wait().unwrap())
            });
            is_ready.recv().unwrap();
            let used = fs::read_to_string("/proc/self/statm").unwrap();
            let pages: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
            let bytes = pages * rustix::param::page_size() as u64;
            // What malloc may still want is less than a stack.
            setrlimit(Resource::As, Rlimit { current: Some(bytes + (200 << 10)), maximum: limit.maximum }).unwrap();
            // The child has the limit, too, and no room for a loader: it may say so, and we that it ended.
            let here = Command::new("true").spawn().map(|child| child.wait().unwrap());
            go.send(()).unwrap();
            let there = fresh.join().unwrap();
            setrlimit(Resource::As, limit).unwrap();
            assert!(here.is_ok(), "{here:?}");
            let error = there.unwrap_err();
            assert_eq!((error.kind(), error.is_transient()), (ErrorKind::NoMemory, true), "{error}");
        });
        assert_eq!(sh("echo x").output().unwrap().stdout, b"x\n");
        assert_eq!(open_descriptors(), before);
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn a_thread_with_a_small_stack_can_spawn() {
    let small = std::thread::Builder::new().stack_size(64 << 10);
    let thread = small.spawn(|| sh("echo out").stdin(Stdio::bytes("in")).output().unwrap().stdout).unwrap();
    assert_eq!(thread.join().unwrap(), b"out\n");
}

struct AtTheEnd(mpsc::Sender<Vec<u8>>);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        for _ in 0..2 {
            let _ = self.0.send(sh("echo late").output().map(|output| output.stdout).unwrap_or_default());
        }
    }
}

thread_local! {
    static AT_THE_END: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) };
}

/// Our own thread-local storage may be gone by then, or not: it is made before and after the other one.
#[test]
fn a_thread_can_spawn_while_it_ends() {
    for spawns_before in [false, true] {
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            if spawns_before {
                Command::new("true").run().unwrap();
            }
            AT_THE_END.set(Some(AtTheEnd(sender)));
            Command::new("true").run().unwrap();
        });
        thread.join().unwrap();
        assert_eq!(receiver.into_iter().collect::<Vec<_>>(), [b"late\n", b"late\n"]);
    }
}

#[test]
fn a_process_can_spawn_while_it_exits() {
    const VARIABLE: &str = "PIDLOOP_TEST_ATEXIT";
    extern "C" fn at_exit() {
        let output = sh("echo at exit").output().map(|output| output.stdout).unwrap_or_default();
        let _ = std::io::stdout().write_all(&output);
        let _ = Command::new("true").status();
    }
    if std::env::var(VARIABLE).is_ok() {
        Command::new("true").run().unwrap();
        // SAFETY: a function of ours.
        unsafe { libc::atexit(at_exit) };
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_process_can_spawn_while_it_exits", "--nocapture"]).env(VARIABLE, "1");
    let output = command.timeout(SOON).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("at exit\n"), "{text}");
}

/// A program that was written a moment ago is busy for as long as anybody's half-born child has the descriptor: not ours, and theirs not for
/// long.
#[test]
fn programs_are_run_as_soon_as_they_are_written() {
    let files = Files::new("busy");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (files, stop) = (&files, &stop);
        for forks in [true, true] {
            scope.spawn(move || churn(stop, forks));
        }
        let writers: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || {
                    for i in 0..rounds(60) {
                        let path = files.path(&format!("{thread}-{i}"));
                        let mut file = File::options().write(true).create_new(true).mode(0o755).open(&path).unwrap();
                        file.write_all(&fs::read("/bin/true").unwrap()).unwrap();
                        drop(file);
                        Command::new(&path).run().unwrap();
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        stop.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
}

#[test]
fn a_program_that_stays_busy_is_an_error_that_may_be_tried_again() {
    let files = Files::new("held");
    let path = files.path("program");
    fs::copy("/bin/true", &path).unwrap();
    let held = File::options().append(true).open(&path).unwrap();
    let begun = Instant::now();
    let error = Command::new(&path).spawn().unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(50), "{:?}", begun.elapsed());
    assert_eq!((error.raw_os_error(), error.is_transient()), (Some(libc::ETXTBSY), true), "{error}");
    assert_eq!((error.stage(), error.path()), (Some(Stage::Exec), Some(Path::new(&path))));
    drop(held);
    Command::new(&path).run().unwrap();
}

/// Whose number a failed clone leaves behind is told by the child, which is not there.
#[test]
fn a_clone_that_fails_late_kills_no_stranger() {
    const NAME: &str = "a_clone_that_fails_late_kills_no_stranger";
    in_own_process(NAME, || {
        Command::new("true").run().unwrap();
        let Some(cage) = Cage::enter() else { return skip(NAME, "no cgroup whose processes can be limited") };
        let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&stranger);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap());
                }
            });
            let (sender, receiver) = mpsc::channel::<pidloop::Context>();
            scope.spawn(move || receiver.into_iter().for_each(|ctx| ctx.cancel()));
            cage.close();
            for _ in 0..rounds(3000) {
                let ctx = pidloop::Context::new();
                sender.send(ctx.clone()).unwrap();
                let error = Command::new("true").context(&ctx).spawn().unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::NoProcessSlots | ErrorKind::Cancelled), "{error}");
            }
            cage.open();
            stop.store(true, Ordering::Relaxed);
        });
        assert!(stranger.try_wait().unwrap().is_none(), "somebody killed it");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        Command::new("true").run().unwrap();
    });
}

/// A cgroup that this process is in, and that can be closed to new processes.
struct Cage(PathBuf);

impl Cage {
    fn enter() -> Option<Cage> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let with_pids = |line: &str| {
            let (mount, kind) = line.split_once(" - ")?;
            let is_it = kind.starts_with("cgroup2 ") || kind.starts_with("cgroup ") && kind.ends_with(",pids");
            is_it.then(|| PathBuf::from(mount.split(' ').nth(4).unwrap()))
        };
        mounts.lines().filter_map(with_pids).find_map(|base| {
            let dir = base.join(format!("pidloop-cage-{}", std::process::id()));
            fs::create_dir(&dir).ok()?;
            let cage = Cage(dir);
            let entered = cage.0.join("pids.max").exists() && fs::write(cage.0.join("cgroup.procs"), "0").is_ok();
            entered.then_some(cage)
        })
    }

    fn close(&self) {
        fs::write(self.0.join("pids.max"), "1").unwrap();
    }

    fn open(&self) {
        fs::write(self.0.join("pids.max"), "max").unwrap();
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        let _ = fs::write(self.0.parent().unwrap().join("cgroup.procs"), "0");
        common::eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}
