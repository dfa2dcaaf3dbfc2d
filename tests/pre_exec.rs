//! The promise that every option is on the one path, where it ends: code of the caller's in the child, id maps that the parent writes, and
//! this process becoming the program. Knows the public API and `/proc`.

mod common;

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use common::{children_of_ours, eventually, in_own_process, open_descriptors, sh, skip};
use pidloop::{Cause, Command, Context, ErrorKind, Namespace, Resource, Signal, Stage, Stdio};

fn text(command: &Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim_end().to_owned()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn no_more() -> io::Result<()> {
    Ok(())
}

// ── pre_exec ──

#[test]
fn a_closure_runs_in_the_child_after_everything_else() {
    let here = std::process::id();
    let mut command = sh("umask; pwd; echo $X; kill -l $$ 2>/dev/null; ulimit -Sn");
    command.env("X", "y").current_dir("/usr").umask(0).rlimit(Resource::OpenFiles, 100, 200);
    // SAFETY: system calls alone.
    unsafe {
        command.pre_exec(move || {
            assert_ne!(libc::getpid() as u32, here);
            libc::umask(libc::umask(0) | 0o22);
            Ok(())
        });
        // In the order given.
        command.pre_exec(|| {
            libc::umask(libc::umask(0) | 0o5);
            Ok(())
        });
    }
    let said = text(&command);
    assert!(said.starts_with("0027\n/usr\ny\n") && said.ends_with("100"), "{said}");
    // Again, and from a clone: what a closure changed was the child's.
    assert_eq!(text(&command.clone()), said);
}

#[test]
fn a_closure_sees_the_ids_the_child_will_have() {
    const NAME: &str = "a_closure_sees_the_ids_the_child_will_have";
    if !is_root() {
        return skip(NAME, "not root");
    }
    let mut command = Command::new("true");
    command.uid(65534).gid(65534);
    // SAFETY: a system call.
    unsafe {
        command.pre_exec(|| if libc::geteuid() == 65534 { Ok(()) } else { Err(io::Error::from_raw_os_error(1)) });
    }
    command.run().unwrap();
}

#[test]
fn the_error_of_a_closure_is_the_errno_of_the_spawn() {
    let before = children_of_ours().len();
    let fails = |f: fn() -> io::Result<()>| {
        let mut command = Command::new("true");
        // SAFETY: no more than an error is made.
        unsafe { command.pre_exec(f) };
        command.spawn().unwrap_err()
    };
    let error = fails(|| Err(io::Error::from_raw_os_error(libc::EDQUOT)));
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::PreExec)));
    assert_eq!(error.raw_os_error(), Some(libc::EDQUOT));
    assert!(error.to_string().starts_with("true: could not run a pre_exec closure: "), "{error}");
    // As in std.
    assert_eq!(fails(|| Err(io::ErrorKind::Other.into())).raw_os_error(), Some(libc::EINVAL));
    let error = fails(|| std::panic::resume_unwind(Box::new(())));
    assert!(error.to_string().ends_with("could not run a pre_exec closure: it panicked"), "{error}");
    let mut command = Command::new("/no/such/program");
    // SAFETY: it does nothing.
    unsafe { command.pre_exec(no_more) };
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
    eventually("nothing is left of them", || children_of_ours().len() <= before);
}

/// Std's order of things: what a closure does to mask and dispositions stays.
#[test]
fn a_closure_has_the_last_word_on_signals_and_descriptors() {
    let file = fs::File::open("/dev/zero").unwrap();
    let number = file.as_raw_fd();
    let mut command = Command::new("grep");
    command.args(["-E", "SigBlk|SigIgn", "/proc/self/status"]);
    command.signal_mask(&[Signal::SIGUSR2]).reset_signals();
    // SAFETY: system calls on values of its own.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signal(libc::SIGTSTP, libc::SIG_IGN);
            Ok(())
        });
    }
    let said = text(&command);
    let bits = |field: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let bit = |signal: i32| 1 << (signal - 1);
    assert_eq!(bits("SigBlk:"), bit(libc::SIGUSR1) | bit(libc::SIGUSR2), "{said}");
    assert_eq!(bits("SigIgn:"), bit(libc::SIGTSTP), "{said}");
    let mut list = Command::new("readlink");
    // SAFETY: as above.
    unsafe {
        list.arg(format!("/proc/self/fd/{number}")).pre_exec(move || {
            if libc::fcntl(number, libc::F_SETFD, 0) == 0 { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
        });
    }
    assert_eq!(text(&list), "/dev/zero");
}

/// It may fork once more and let the middle one go: a daemon.
#[test]
fn a_closure_may_fork() {
    let (mut read, write) = common::pipe();
    let mut command = sh("echo from the daemon");
    command.stdout(std::os::fd::OwnedFd::from(write));
    // SAFETY: the copy has one thread, and allocates nothing.
    unsafe {
        command.pre_exec(|| match libc::fork() {
            0 => Ok(()),
            _ => libc::_exit(7),
        });
    }
    let exit = command.spawn().unwrap().wait().unwrap();
    assert_eq!(exit.code(), Some(7));
    drop(command);
    assert_eq!(common::all_writers_end(&mut read), b"from the daemon\n");
}

/// Promise 4 holds there, too.
#[test]
fn a_closure_that_hangs_is_cancelled() {
    let context = Context::new();
    let mut command = Command::new("true");
    // SAFETY: a system call.
    unsafe {
        command.context(&context).pre_exec(|| {
            loop {
                libc::pause();
            }
        });
    }
    let before = children_of_ours();
    let error = common::beside(
        "spawns",
        || command.spawn().unwrap_err(),
        || {
            let hangs =
                || children_of_ours().iter().any(|pid| !before.contains(pid) && common::state(*pid) == Some('S'));
            eventually("it hangs", hangs);
            context.cancel();
        },
    );
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Cancelled, Some(&Cause::Cancelled)));
    let error = command.context(&Context::new().with_timeout(Duration::from_millis(20))).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

/// Nothing of a copy's is ours: a counter it counts up, a handle it drops.
#[test]
fn what_a_closure_changes_in_memory_is_the_childs() {
    let counter = Arc::new(AtomicI32::new(0));
    let mut local = 0;
    let mut command = Command::new("true");
    let theirs = counter.clone();
    // SAFETY: memory of the copy.
    unsafe {
        command.pre_exec(move || {
            local += 1;
            theirs.fetch_add(local, Ordering::SeqCst);
            if (local, theirs.load(Ordering::SeqCst)) == (1, 1) { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
        });
    }
    for _ in 0..3 {
        command.run().unwrap();
    }
    assert_eq!(counter.load(Ordering::SeqCst), 0);
    assert_eq!(Arc::strong_count(&counter), 2);
    drop(command);
    assert_eq!(Arc::strong_count(&counter), 1);
}

#[test]
fn a_copy_has_what_it_was_given_and_nothing_else() {
    const NAME: &str = "a_copy_has_what_it_was_given_and_nothing_else";
    in_own_process(NAME, || {
        let _stray = rustix::io::dup(fs::File::open("/dev/zero").unwrap()).unwrap();
        let far = rustix::io::fcntl_dupfd_cloexec(fs::File::open("/dev/null").unwrap(), 300).unwrap();
        // The directory that it reads is its 3.
        let mut command = Command::new("ls");
        command.arg("/proc/self/fd").fd(7, far);
        // SAFETY: it does nothing.
        unsafe { command.pre_exec(no_more) };
        Command::new("true").run().unwrap();
        let before = open_descriptors();
        assert_eq!(text(&command), "0\n1\n2\n3\n7");
        assert_eq!(open_descriptors(), before);
    });
}

// ── ranges of ids ──

fn user_namespaces_are_allowed() -> bool {
    Command::new("true").unshare(&[Namespace::User]).status().is_ok()
}

#[test]
fn a_user_namespace_has_ranges_of_ids() {
    const NAME: &str = "a_user_namespace_has_ranges_of_ids";
    if !is_root() || !user_namespaces_are_allowed() {
        return skip(NAME, "not root, or no user namespaces");
    }
    let mut command = sh("cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u; id -g; id -G");
    command.unshare(&[Namespace::User, Namespace::Mount, Namespace::Pid]);
    command.uid_maps(&[(0, 100_000, 1000), (1000, 0, 1)]).gid_maps(&[(0, 200_000, 500)]).uid(0).gid(5).groups(&[5, 7]);
    let words = text(&command).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words, "0 100000 1000 1000 0 1 0 200000 500 allow 0 5 5 7");
    // The kernel's own view, from outside.
    let mut command = common::sh("echo ready; exec sleep 60");
    command.unshare(&[Namespace::User]).uid_maps(&[(0, 100_000, 10)]).gid_maps(&[(0, 200_000, 10)]).uid(3).gid(4);
    let (child, _stdout) = common::spawn_ready(&mut command);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    assert!(status.contains("Uid:\t100003\t100003\t100003\t100003"), "{status}");
    assert!(status.contains("Gid:\t200004\t200004\t200004\t200004"), "{status}");
    child.kill().unwrap();
    // One id, that is not our own.
    let mut command = Command::new("id");
    command.arg("-u").unshare(&[Namespace::User]).uid_map(9, 65534).gid_map(0, 0).uid(9);
    assert_eq!(text(&command), "9");
}

#[test]
fn a_map_that_is_refused_fails_the_spawn_and_leaves_nothing() {
    const NAME: &str = "a_map_that_is_refused_fails_the_spawn_and_leaves_nothing";
    in_own_process(NAME, || {
        if !is_root() || !user_namespaces_are_allowed() {
            return skip(NAME, "not root, or no user namespaces");
        }
        let mut command = Command::new("true");
        command.unshare(&[Namespace::User]).uid_maps(&[(0, 100_000, 10), (5, 200_000, 10)]);
        let before = open_descriptors();
        for _ in 0..3 {
            let error = command.spawn().unwrap_err();
            assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::IdMaps)), "{error}");
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        assert_eq!(open_descriptors(), before);
        assert_eq!(children_of_ours(), []);
        let error = command.clone().uid_maps(&[(0, 100_000, 10)]).arg("x").uid(11).spawn().unwrap_err();
        assert_eq!(error.stage(), Some(Stage::Uid), "{error}");
        Command::new("true").run().unwrap();
        // Who may not write the map.
        // SAFETY: this process is the test's own; a raw call is for this thread alone, which is all that spawns here.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534), 0);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        let error = command.uid_maps(&[(0, 100_000, 10)]).spawn().unwrap_err();
        assert_eq!((error.stage(), error.raw_os_error()), (Some(Stage::IdMaps), Some(libc::EPERM)), "{error}");
    });
}

/// Not root: the two rights that the maps take, and no more.
#[test]
fn who_may_set_ids_may_map_them() {
    const NAME: &str = "who_may_set_ids_may_map_them";
    const SETGID_AND_SETUID: u32 = 1 << 6 | 1 << 7;
    in_own_process(NAME, || {
        if !is_root() || !user_namespaces_are_allowed() {
            return skip(NAME, "not root, or no user namespaces");
        }
        // SAFETY: this process is the test's own; raw calls are for this thread, which is all that spawns here.
        unsafe {
            libc::prctl(libc::PR_SET_KEEPCAPS, 1);
            assert_eq!(libc::syscall(libc::SYS_setresgid, 1000, 1000, 1000), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000), 0);
            let (header, sets) = ([0x2008_0522u32, 0], [SETGID_AND_SETUID, SETGID_AND_SETUID, 0, 0, 0, 0]);
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        let mut command = Command::new("id");
        command.unshare(&[Namespace::User]).uid_maps(&[(0, 100_000, 10)]).gid_maps(&[(0, 200_000, 10)]);
        command.uid(3).gid(4).arg("-u");
        assert_eq!(text(&command), "3");
    });
}

/// Promise 4 without a suspended parent: stuck in its exec, and cancelled there.
#[test]
fn a_child_with_ranges_of_ids_that_hangs_is_cancelled() {
    const NAME: &str = "a_child_with_ranges_of_ids_that_hangs_is_cancelled";
    in_own_process(NAME, || {
        if !is_root() || !user_namespaces_are_allowed() {
            return skip(NAME, "not root, or no user namespaces");
        }
        let scratch = common::Scratch::new("ranges");
        let program = scratch.script("program", "never", 0o755);
        let lease = common::suspend_exec(&program);
        let context = Context::new();
        let mut command = Command::new(&program);
        command.unshare(&[Namespace::User]).uid_maps(&[(0, 0, 10)]).gid_maps(&[(0, 0, 10)]).context(&context);
        let spawn = || command.spawn().map(drop).unwrap_err();
        let hangs = || children_of_ours().iter().any(|pid| matches!(common::state(*pid), Some('S' | 'D')));
        let error = common::beside("spawns", spawn, || {
            eventually("it hangs", hangs);
            context.cancel();
        });
        assert_eq!((error.kind(), error.cause()), (ErrorKind::Cancelled, Some(&Cause::Cancelled)));
        assert_eq!(children_of_ours(), []);
        drop(lease);
        Command::new("true").run().unwrap();
    });
}

/// Whoever calls this from now on dies of it: this thread, and what it starts. seccomp(2).
fn die_of(call: libc::c_long) {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        statement(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        statement(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program lives through the call, which copies it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

/// Its parent dies between the clone and the map: nobody will ever write it.
#[test]
fn a_child_that_waits_for_its_map_dies_with_its_parent() {
    const NAME: &str = "a_child_that_waits_for_its_map_dies_with_its_parent";
    const VARIABLE: &str = "PIDLOOP_TEST_DIES";
    if std::env::var(VARIABLE).is_ok() {
        // With it a parent makes sure whose /proc it writes to.
        die_of(libc::SYS_readlink);
        let _ = Command::new("sleep").arg("60").unshare(&[Namespace::User]).uid_maps(&[(0, 100_000, 10)]).spawn();
        unreachable!();
    }
    in_own_process(NAME, || {
        if !is_root() || !user_namespaces_are_allowed() {
            return skip(NAME, "not root, or no user namespaces");
        }
        // SAFETY: this process is the test's own, and what it inherits it reaps.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        for _ in 0..10 {
            let mut parent = std::process::Command::new(std::env::current_exe().unwrap());
            let parent = parent.args([NAME, "--nocapture"]).env(VARIABLE, "1").stdout(std::process::Stdio::null());
            let status = parent.stderr(std::process::Stdio::null()).status().unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSYS));
            eventually("the child is gone, too", || {
                // SAFETY: it waits for a child of this process, if there is one.
                unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
                children_of_ours().is_empty()
            });
        }
    });
}

// ── exec ──

/// Runs `become_it` in a process of its own that it replaces; what the program prints.
fn replaced(name: &str, become_it: impl FnOnce()) -> Option<std::process::Output> {
    const VARIABLE: &str = "PIDLOOP_TEST_REPLACED";
    if std::env::var(VARIABLE).as_deref() == Ok(name) {
        become_it();
        return None;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args([name, "--nocapture", "--test-threads=1"]).env(VARIABLE, name);
    // Nothing of the harness's: its thread's mask, its group.
    let output = again.process_group(0).output().unwrap();
    Some(output)
}

#[test]
fn this_process_becomes_the_program() {
    let output = replaced("this_process_becomes_the_program", || {
        println!("\nbefore {}", std::process::id());
        // Other threads end with it.
        std::thread::spawn(std::thread::park);
        let mut command = sh("echo \"after $$ $X $0 $(umask) $(pwd) $(ulimit -Sn)\"; ls /proc/self/fd; exit 5");
        command.arg("name").env("X", "y").umask(0o27).current_dir("/usr").rlimit(Resource::OpenFiles, 50, 60);
        let _stray = rustix::io::dup(fs::File::open("/dev/zero").unwrap()).unwrap();
        let far = rustix::io::fcntl_dupfd_cloexec(fs::File::open("/dev/null").unwrap(), 300).unwrap();
        command.fd(7, far).stdin(Stdio::null()).stderr(Stdio::stdout());
        panic!("{}", command.exec());
    });
    let Some(output) = output else { return };
    let said = String::from_utf8(output.stdout).unwrap();
    let pid = said.lines().find_map(|line| line.strip_prefix("before ")).expect("it began").to_owned();
    // The directory that `ls` reads is its 3.
    assert!(said.ends_with(&format!("after {pid} y name 0027 /usr 50\n0\n1\n2\n3\n7\n")), "{said}");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn this_process_becomes_the_program_of_another_user() {
    const NAME: &str = "this_process_becomes_the_program_of_another_user";
    if !is_root() {
        return skip(NAME, "not root");
    }
    let output = replaced(NAME, || {
        let mut command = Command::new("grep");
        command.args(["-E", "^(Uid|Gid|Groups|SigBlk|SigIgn|NoNewPrivs|Threads)", "/proc/self/status"]);
        command.uid(65534).gid(65533).no_new_privs().signal_mask(&[Signal::SIGHUP]).ignore_signals(&[Signal::SIGINT]);
        command.reset_signals();
        panic!("{}", command.exec());
    });
    let Some(output) = output else { return };
    let said = String::from_utf8(output.stdout).unwrap();
    let tail = said.split_once("Uid:").map(|(_, tail)| format!("Uid:{tail}")).unwrap_or(said);
    let words = tail.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = "Uid: 65534 65534 65534 65534 Gid: 65533 65533 65533 65533 Groups: Threads: 1 \
        SigBlk: 0000000000000001 SigIgn: 0000000000000002 NoNewPrivs: 1";
    let sort = |text: &str| {
        let mut words: Vec<_> = text.split(' ').map(String::from).collect();
        words.sort();
        words
    };
    assert_eq!(sort(&words), sort(expected), "{words}");
}

/// All that a process is told by.
fn picture() -> Vec<String> {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let wanted = ["Umask", "Uid", "Gid", "Groups", "Sig", "Shd", "Cap", "NoNewPrivs", "Cpus_allowed:"];
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let is_wanted = |line: &&str| wanted.iter().any(|w| line.starts_with(w)) && !line.starts_with("SigQ");
    let mut lines: Vec<String> = status.lines().filter(is_wanted).map(String::from).collect();
    lines.extend(open_descriptors().into_iter().map(|(number, what)| format!("{number} {what}")));
    lines.extend([read("limits"), read("oom_score_adj"), std::env::current_dir().unwrap().display().to_string()]);
    // SAFETY: questions.
    unsafe {
        lines.push(format!("dumpable {}", libc::prctl(libc::PR_GET_DUMPABLE)));
        lines.push(format!("nice {} group {}", libc::getpriority(libc::PRIO_PROCESS, 0), libc::getpgrp()));
    }
    lines
}

#[test]
fn an_exec_that_fails_leaves_this_process_as_it_was() {
    const NAME: &str = "an_exec_that_fails_leaves_this_process_as_it_was";
    in_own_process(NAME, || {
        Command::new("true").run().unwrap();
        // SAFETY: this process is the test's own.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        let file = fs::File::open("/dev/null").unwrap();
        let before = picture();
        let mut command = Command::new("/no/such/program");
        command.umask(0o777).nice(1).current_dir("/usr").no_new_privs().signal_mask(&[Signal::SIGHUP]).process_group(0);
        command.rlimit(Resource::OpenFiles, 30, 20_000_000).ignore_signals(&[Signal::SIGINT]).reset_signals();
        command.rlimit(
            Resource::OpenFiles,
            30,
            rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap(),
        );
        command.cpu_affinity(&[0]).oom_score_adj(700).stdin(Stdio::null()).stdout(Stdio::null()).fd(9, file);
        command.unshare(&[Namespace::Uts]);
        if is_root() {
            command.uid(65534).gid(65534).groups(&[1]).chroot("/").drop_capabilities(&[0]);
        }
        for _ in 0..3 {
            let error = command.exec();
            assert!(matches!(error.stage(), Some(Stage::Exec | Stage::ResourceLimit | Stage::Namespaces)), "{error}");
            assert_eq!(picture(), before, "{error}");
        }
        let mut command = command.clone();
        let error = command.uid(65534).groups(&vec![1; 100_000]).exec();
        assert!(error.stage() != Some(Stage::Exec), "{error}");
        assert_eq!(picture(), before, "{error}");
        Command::new("true").run().unwrap();
    });
}

#[test]
fn what_needs_a_watcher_is_refused_by_exec() {
    let refused = |change: fn(&mut Command) -> &mut Command| {
        let mut command = Command::new("true");
        change(&mut command);
        let error = command.exec();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    };
    refused(|command| command.stdout(Stdio::piped()));
    refused(|command| command.stdin(Stdio::bytes("x")));
    refused(|command| command.timeout(Duration::from_secs(1)));
    refused(|command| command.context(&Context::new()));
    refused(|command| command.unshare(&[Namespace::Pid]));
    refused(|command| command.unshare(&[Namespace::User]));
    refused(|command| command.arg("a\0b"));
    let error = Command::new("no-such-program-anywhere").exec();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::NotFound, Some(Stage::Lookup)));
}

#[test]
fn a_closure_runs_before_this_process_is_replaced() {
    let output = replaced("a_closure_runs_before_this_process_is_replaced", || {
        let mut command = sh("echo $$; umask");
        // SAFETY: system calls.
        unsafe {
            command.pre_exec(|| {
                libc::umask(0o31);
                Ok(())
            });
        }
        println!("\nbefore {}", std::process::id());
        panic!("{}", command.exec());
    });
    let Some(output) = output else { return };
    let said = String::from_utf8(output.stdout).unwrap();
    let pid = said.lines().find_map(|line| line.strip_prefix("before ")).expect("it began").to_owned();
    assert!(said.ends_with(&format!("before {pid}\n{pid}\n0031\n")), "{said}");
}
