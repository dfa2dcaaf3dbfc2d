//! Promises 1, 3, 4, 7 and 12 by the thousand: exits that race cancels, one thread for ten thousand children. Knows the public API
//! alone. `PIDLOOP_SOAK=n` makes it n times as long.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{self, Poll, Wake, Waker};
use std::thread;

use common::{SOON, children_of_ours, eventually, in_own_process, open_descriptors, rounds, threads};
use pidloop::{Cause, Child, Command, Context, Exit, Resource, Signal, Stage, Stdio};

/// (exited 0, no cause) or (killed by SIGKILL, cancelled); (exited 0, cancelled) never.
fn judge(exit: &Exit) -> bool {
    match (exit.code(), exit.signal(), exit.cause()) {
        (Some(0), None, None) => false,
        (None, Some(Signal::SIGKILL), Some(Cause::Cancelled)) => true,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ten_thousand_children_race_their_own_exit_against_a_cancel() {
    in_own_process("ten_thousand_children_race_their_own_exit_against_a_cancel", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        let before = open_descriptors();
        let (mut ended, mut killed) = (0, 0);
        for round in 0..rounds(100) {
            let ctx = Context::new();
            // They end at their own pace when the gate closes; the cancel comes in the midst of that.
            let (gate, opener) = common::pipe();
            let mut command = Command::new("cat");
            command.stdin(gate).stdout(Stdio::null()).context(&ctx);
            let children: Vec<_> = (0..100).map(|_| command.spawn().unwrap()).collect();
            let start = Barrier::new(2);
            thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..round * 40 {
                        std::hint::spin_loop();
                    }
                    ctx.cancel();
                });
                start.wait();
                drop(opener);
                for child in &children {
                    let exit = child.wait_timeout(SOON).unwrap().expect("no hang");
                    if judge(&exit) { killed += 1 } else { ended += 1 }
                }
            });
        }
        println!("ended {ended}, killed {killed}");
        assert!(ended > 0 && killed > 0);
        assert_eq!(open_descriptors(), before);
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn ten_thousand_sleeping_children_take_one_thread_and_one_cancel() {
    in_own_process("ten_thousand_sleeping_children_take_one_thread_and_one_cancel", || {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let wanted = 10_000;
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
        let room = limit.maximum.map_or(wanted, |max| (max as usize).saturating_sub(100));
        if room < wanted {
            return common::skip("ten_thousand_sleeping_children", "RLIMIT_NOFILE is too low");
        }
        let ctx = Context::new();
        let mut command = Command::new("sleep");
        command.arg("3600").stdin(Stdio::null()).context(&ctx);
        let mut children: Vec<_> = (0..10).map(|_| command.spawn().unwrap()).collect();
        let with_ten = threads();
        while children.len() < wanted {
            match command.spawn() {
                Ok(child) => children.push(child),
                Err(error) if error.kind() == pidloop::ErrorKind::NoProcessSlots => {
                    ctx.cancel();
                    return common::skip("ten_thousand_sleeping_children", "too few process slots");
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(threads(), with_ten);
        ctx.cancel();
        for child in &children {
            assert!(judge(&child.wait_timeout(SOON).unwrap().expect("no hang")));
        }
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn a_cancel_in_the_moment_of_a_spawn_is_not_lost() {
    for round in 0..rounds(300) {
        let ctx = Context::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..round * 20 {
                    std::hint::spin_loop();
                }
                ctx.cancel();
            });
            match Command::new("sleep").arg("3600").context(&ctx).spawn() {
                Ok(child) => assert!(judge(&child.wait_timeout(SOON).unwrap().expect("no hang"))),
                Err(error) => assert_eq!(error.cause(), Some(&Cause::Cancelled), "{error}"),
            }
        });
    }
}

#[test]
fn waiters_that_time_out_hand_the_child_back() {
    for _ in 0..rounds(100) {
        let child = Command::new("sleep").arg("0.005").spawn().unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| while child.wait_timeout(std::time::Duration::from_millis(1)).unwrap().is_none() {});
            }
        });
        assert!(child.wait().unwrap().success());
    }
}

/// Starts what fails in the step it is paired with.
fn failing() -> Vec<(Stage, Command)> {
    let with = |program: &str, change: &dyn for<'a> Fn(&'a mut Command) -> &'a mut Command| {
        let mut command = Command::new(program);
        change(command.stdin(Stdio::null()));
        command
    };
    let mut used = Command::new("true");
    used.stdin(Stdio::reader(std::io::empty())).spawn().unwrap().wait().unwrap();
    let file = || std::fs::File::open("/dev/null").unwrap();
    vec![
        (Stage::Lookup, with("no-such-program-of-ours", &|c| c)),
        (Stage::Streams, used),
        (Stage::Descriptors, with("true", &|c| c.fd(1 << 24, file()))),
        (Stage::ProcessGroup, with("true", &|c| c.process_group(1))),
        (Stage::Terminal, with("true", &|c| c.setsid().controlling_terminal(0))),
        (Stage::Foreground, with("true", &|c| c.foreground(0))),
        (Stage::Cgroup, with("true", &|c| c.cgroup(file()))),
        (Stage::Chroot, with("/bin/true", &|c| c.chroot("/no/such/root"))),
        (Stage::Directory, with("true", &|c| c.current_dir("/no/such/directory"))),
        (Stage::Affinity, with("true", &|c| c.cpu_affinity(&[8000]))),
        (Stage::ResourceLimit, with("true", &|c| c.rlimit(Resource::OpenFiles, 9, 8))),
        (Stage::Capabilities, with("true", &|c| c.drop_capabilities(&[63]))),
        (Stage::Exec, with("/no/such/program", &|c| c)),
        (Stage::Exec, with("/etc/passwd", &|c| c)),
    ]
}

/// That the child has what it was given and nothing else. What its loader has open goes away by itself.
fn has_only_its_own(child: &Child) {
    let dir = format!("/proc/{}/fd", child.id());
    let entries = || std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
    let target = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path()).unwrap_or_default();
    let mut strays = Vec::new();
    eventually("it has three descriptors", || {
        strays = entries().map(|entry| (entry.file_name(), target(&entry))).collect();
        strays.sort();
        let [stdin, stdout, stderr] = &strays[..] else { return false };
        let is_null = |(_, target): &(std::ffi::OsString, std::path::PathBuf)| target.as_os_str() == "/dev/null";
        stdin.1.to_string_lossy().starts_with("pipe:") && is_null(stdout) && is_null(stderr)
    });
}

/// Started by a spawner thread for every second one.
fn start(command: &Command, round: usize) -> pidloop::Result<Child> {
    if round % 2 == 0 {
        return command.spawn();
    }
    struct Unparker(thread::Thread);
    impl Wake for Unparker {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut starting = pin!(command.spawn_async());
    let waker = Waker::from(Arc::new(Unparker(thread::current())));
    loop {
        if let Poll::Ready(result) = starting.as_mut().poll(&mut task::Context::from_waker(&waker)) {
            return result;
        }
        thread::park();
    }
}

/// What does not fail is started as well as ever beside what does.
fn start_by_turns(seed: u64, times: usize) {
    let failing = failing();
    let mut cat = Command::new("cat");
    cat.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut random = seed;
    for round in 0..times {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if random % 2 == 0 {
            let child = start(&cat, round).unwrap();
            has_only_its_own(&child);
            assert!(child.wait().unwrap().success());
            continue;
        }
        let (stage, command) = &failing[(random >> 8) as usize % failing.len()];
        let error = start(command, round / 2).unwrap_err();
        assert_eq!(error.stage(), Some(*stage), "{error}");
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// In pages.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn half_of_all_spawns_fail_at_any_step_while_descriptors_come_and_go() {
    in_own_process("half_of_all_spawns_fail_at_any_step_while_descriptors_come_and_go", || {
        start_by_turns(1, 50);
        let before = open_descriptors();
        let mut pages: isize = 0;
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let meddler = scope.spawn(|| {
                let file = std::fs::File::open("/dev/null").unwrap();
                let mut held = std::collections::VecDeque::new();
                while !is_over.load(Ordering::Relaxed) {
                    // dup(2): not close-on-exec.
                    held.push_back(rustix::io::dup(&file).unwrap());
                    held.truncate(40);
                    held.pop_front();
                    if held.len() == 30 {
                        held.clear();
                    }
                    held.extend((0..3).map(|_| rustix::io::dup(&file).unwrap()));
                }
            });
            // Also where a thread panics.
            let over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
            // The second half finds the memory that the first one took.
            for _ in 0..2 {
                thread::scope(|scope| {
                    for seed in 2..6 {
                        scope.spawn(move || start_by_turns(seed, rounds(125)));
                    }
                });
                pages = resident() as isize - pages;
            }
            drop(over);
            meddler.join().unwrap();
        });
        // `pages` is what the second half added.
        assert!(pages < 256, "{pages} pages more");
        eventually("nothing is left", || children_of_ours().is_empty() && open_descriptors() == before);
    });
}
