//! The promises once more where newer system calls are refused, by a kernel that does not know them and by a sandbox: the core tests under
//! a filter. Knows which calls those are.
#![allow(clippy::duplicate_mod, reason = "each of these files has its own `mod common`")]

mod common;

#[path = "cancel.rs"]
mod cancel;
#[path = "descriptors.rs"]
mod descriptors;
#[path = "founding.rs"]
mod founding;
#[path = "options.rs"]
mod options;
#[path = "pre_exec.rs"]
mod pre_exec;
#[path = "scopes.rs"]
mod scopes;
#[path = "start_wait.rs"]
mod start_wait;
#[path = "status_signals.rs"]
mod status_signals;

use std::future::Future;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::Duration;

use pidloop::{Command, Context, ErrorKind, Reactor, Signal, Stage, Stdio};

/// Set in the processes that run under a filter.
const VARIABLE: &str = "PIDLOOP_TEST_RESTRICTED";

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// What a filter answers `errno` to.
#[derive(Clone, Copy)]
struct Rule {
    call: libc::c_long,
    /// (argument, mask, value): only if these bits of it are that.
    only_if: Option<(u32, u32, u32)>,
    errno: i32,
}

fn refuse(call: libc::c_long, errno: i32) -> Rule {
    Rule { call, only_if: None, errno }
}

fn refuse_if(call: libc::c_long, only_if: (u32, u32, u32), errno: i32) -> Rule {
    Rule { call, only_if: Some(only_if), errno }
}

/// seccomp(2).
fn filter(rules: &[Rule]) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let equals = |k: u32, otherwise_skip: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: otherwise_skip,
        k,
    };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let allow = statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW);
    let (number, arch, args) = (0, 4, 16);
    // Another architecture's numbers are not ours.
    let mut program = vec![load(arch), libc::sock_filter { jt: 1, ..equals(ARCH, 0) }, allow];
    for rule in rules {
        let answer = statement(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | rule.errno as u32);
        program.push(load(number));
        if let Some((arg, mask, value)) = rule.only_if {
            let mask = statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask);
            program.extend([equals(rule.call as u32, 4), load(args + arg * 8), mask, equals(value, 1), answer]);
        } else {
            program.extend([equals(rule.call as u32, 1), answer]);
        }
    }
    program.push(allow);
    program
}

/// The newer calls: `errno` for close_range, pidfd_send_signal with flags, the ioctl of pidfds and faccessat2, and an errno of its own for
/// clone3: libc itself starts threads by that, and gets over ENOSYS alone.
fn newer_calls(errno: i32, clone3_errno: i32) -> Vec<Rule> {
    const PIDFD_SIGNAL_PROCESS_GROUP: u32 = 4;
    vec![
        refuse(libc::SYS_clone3, clone3_errno),
        refuse(libc::SYS_close_range, errno),
        refuse(libc::SYS_faccessat2, errno),
        refuse_if(libc::SYS_pidfd_send_signal, (3, PIDFD_SIGNAL_PROCESS_GROUP, PIDFD_SIGNAL_PROCESS_GROUP), errno),
        // The type of the ioctl's number: its second byte.
        refuse_if(libc::SYS_ioctl, (1, 0xFF00, 0xFF00), errno),
    ]
}

/// For this thread, and what it starts. seccomp(2).
fn install(filter: &[libc::sock_filter]) -> std::io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program lives through the call, which copies it.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn run_all_under(errno: i32) {
    if std::env::var(VARIABLE).is_ok() {
        return;
    }
    let filter = filter(&newer_calls(errno, libc::ENOSYS));
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["::", "--test-threads=2"]).env(VARIABLE, "1");
    // SAFETY: two system calls, between fork and exec.
    unsafe {
        command.pre_exec(move || install(&filter));
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return common::skip("restricted", &format!("no seccomp here: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" passed"), "{text}");
}

#[test]
fn under_a_kernel_that_does_not_know_the_newer_calls() {
    run_all_under(libc::ENOSYS);
}

#[test]
fn under_a_sandbox_that_forbids_the_newer_calls() {
    run_all_under(libc::EPERM);
}

/// By a thread that alone is filtered: the others were started before.
#[test]
fn a_thread_that_may_not_use_clone3() {
    common::in_own_process("a_thread_that_may_not_use_clone3", || {
        Command::new("true").group().spawn().unwrap().wait().unwrap();
        let before = common::open_descriptors();
        if let Err(error) = install(&filter(&newer_calls(libc::EPERM, libc::EPERM))) {
            return common::skip("a_thread_that_may_not_use_clone3", &error.to_string());
        }
        for _ in 0..3 {
            assert_eq!(Command::new("echo").arg("x").output().unwrap().stdout, b"x\n");
            assert!(Command::new("true").status().unwrap().success());
            assert_eq!(Command::new("/no/such").spawn().unwrap_err().kind(), ErrorKind::NotFound);
            let ctx = Context::new();
            let child = Command::new("sleep").arg("60").group().context(&ctx).spawn().unwrap();
            ctx.cancel();
            assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
        }
        assert!(!pidloop::capabilities().clone3);
        assert_eq!(common::open_descriptors(), before);
        assert_eq!(common::children_of_ours(), []);
    });
}

/// Runs `body`, one of a test's cases, in a process of its own, on a thread of its own, which alone is filtered; what others it starts
/// are, too.
fn restricted(name: &str, case: usize, rules: &[Rule], body: impl FnOnce() + Send) {
    const VARIABLE: &str = "PIDLOOP_TEST_CASE";
    match std::env::var(VARIABLE) {
        Ok(wanted) if wanted == case.to_string() => {}
        Ok(_) => return,
        Err(_) => {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args([name, "--nocapture", "--test-threads=1"]).env(VARIABLE, case.to_string());
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
    }
    let filter = filter(rules);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || match install(&filter) {
            Ok(()) => body(),
            Err(error) => common::skip(name, &format!("no seccomp here: {error}")),
        });
        thread.join().unwrap();
    });
}

/// All that makes a table private, and all that sweeps it: none of it is needed.
#[test]
fn without_any_way_to_a_private_table() {
    for (case, errno) in [libc::EPERM, libc::ENOSYS].into_iter().enumerate() {
        let rules = [refuse(libc::SYS_close_range, errno), refuse(libc::SYS_unshare, errno)];
        restricted("without_any_way_to_a_private_table", case, &rules, || {
            let stray = rustix::io::dup(std::fs::File::open("/dev/zero").unwrap()).unwrap();
            for _ in 0..3 {
                let mut command = Command::new("ls");
                let output = command.arg("/proc/self/fd").output().unwrap();
                assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\n1\n2\n3\n");
            }
            drop(stray);
            let capabilities = pidloop::capabilities();
            assert!(capabilities.clone3 && !capabilities.shared_table && !capabilities.close_range, "{capabilities}");
        });
    }
}

/// What cannot be fetched from far up in the table is copied with all that is below.
#[test]
fn a_crowded_process_that_may_not_fetch_descriptors() {
    let cases = [refuse(libc::SYS_pidfd_getfd, libc::EPERM), refuse(libc::SYS_pidfd_open, libc::EINVAL)];
    for (case, rule) in cases.into_iter().enumerate() {
        restricted("a_crowded_process_that_may_not_fetch_descriptors", case, &[rule], || {
            let _many: Vec<_> = (0..300).map(|_| std::fs::File::open("/dev/zero").unwrap()).collect();
            for _ in 0..2 {
                let mut command = Command::new("cat");
                assert_eq!(command.stdin(Stdio::bytes("far up")).output().unwrap().stdout, b"far up");
            }
            assert_eq!(common::children_of_ours(), []);
        });
    }
}

/// In a sandbox that refuses clone3 by EPERM libc starts no threads: a caller's own loop needs none.
#[test]
fn a_process_that_may_not_use_clone3_or_pidfd_open() {
    let rules = [refuse(libc::SYS_clone3, libc::EPERM), refuse(libc::SYS_pidfd_open, libc::ENOSYS)];
    restricted("a_process_that_may_not_use_clone3_or_pidfd_open", 0, &rules, || {
        let mut reactor = Reactor::new().unwrap();
        let id = reactor.spawn(Command::new("echo").arg("x").stdout(Stdio::captured())).unwrap();
        let ended = loop {
            match reactor.next_exit() {
                Some(ended) => break ended,
                None => reactor.turn(None).unwrap(),
            }
        };
        assert_eq!((ended.id(), ended.into_output().stdout), (id, b"x\n".to_vec()));
    });
}

/// Emulators make a fork of a vfork: here strace does, which rewrites the clone's flags. What a child writes into its copy of our memory
/// nobody sees.
#[test]
fn in_an_emulator_that_makes_a_fork_of_a_vfork() {
    const NAME: &str = "in_an_emulator_that_makes_a_fork_of_a_vfork";
    const VARIABLE: &str = "PIDLOOP_TEST_EMULATED";
    if std::env::var(VARIABLE).is_ok() {
        // Asks by a clone3 that does nothing: each thread's first one is left alone.
        assert!(pidloop::capabilities().shared_memory);
        return run_in_copied_memory();
    }
    if !pidloop::capabilities().clone3 || cfg!(not(target_endian = "little")) {
        return common::skip(NAME, "there is no clone3 to be rewritten");
    }
    // CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CLEAR_SIGHAND; a first clone3 starts the thread of the test.
    let flags = "inject=clone3:poke_enter=@arg1=0010000101000000:when=2+";
    let mut command = std::process::Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=clone3", "-e", flags]);
    command.arg(std::env::current_exe().unwrap()).args([NAME, "--exact", "--nocapture", "--test-threads=1"]);
    let Ok(output) = command.env(VARIABLE, "1").output() else {
        return common::skip(NAME, "strace is not here");
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if text.contains("PTRACE") || text.contains("ptrace") || text.contains("invalid argument") {
        return common::skip(NAME, "strace may not trace, or does not know how to rewrite");
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Without a thread: it would be started by a clone3, too.
fn run_in_copied_memory() {
    let mut reactor = Reactor::new().unwrap();
    let mut run = |command: &mut Command| -> pidloop::Result<pidloop::Ended> {
        reactor.spawn(command)?;
        Ok(loop {
            match reactor.next_exit() {
                Some(ended) => break ended,
                None => reactor.turn(None).unwrap(),
            }
        })
    };
    // The very first one, whose error is not seen where it is written.
    let error = run(&mut Command::new("/no/such/program")).unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::NotFound, Some(Stage::Exec)), "{error}");
    assert!(!pidloop::capabilities().shared_memory);
    let before = common::open_descriptors();
    for _ in 0..3 {
        let ended = run(Command::new("cat").stdin(Stdio::bytes("x")).stdout(Stdio::captured())).unwrap();
        assert!(ended.exit().success());
        assert_eq!(ended.into_output().stdout, b"x");
        let error = run(Command::new("true").current_dir("/no/such")).unwrap_err();
        assert_eq!(error.stage(), Some(Stage::Directory), "{error}");
        let error = run(Command::new("true").fd(999_999, std::fs::File::open("/").unwrap())).unwrap_err();
        assert_eq!(error.stage(), Some(Stage::Descriptors), "{error}");
        let ctx = Context::new();
        let file = std::fs::File::open("/etc/passwd").unwrap();
        let killed = run(Command::new("sh").args(["-c", "kill -KILL $$"]).context(&ctx).fd(9, file)).unwrap();
        assert_eq!(killed.exit().signal(), Some(Signal::SIGKILL));
    }
    assert!(pidloop::capabilities().to_string().contains("shared_memory  no"), "{}", pidloop::capabilities());
    assert_eq!(common::open_descriptors(), before);
    assert_eq!(common::children_of_ours(), []);
}

/// What nothing works without.
#[test]
fn e142_what_is_missing_is_named() {
    const NAME: &str = "e142_what_is_missing_is_named";
    const P_PIDFD: u32 = 3;
    let pidfd = libc::CLONE_PIDFD as u32;
    for (i, errno) in [libc::EPERM, libc::ENOSYS, libc::EINVAL].into_iter().enumerate() {
        let cases = [
            (vec![refuse_if(libc::SYS_waitid, (0, u32::MAX, P_PIDFD), errno)], "waitid with P_PIDFD"),
            (vec![refuse(libc::SYS_pidfd_send_signal, errno)], "pidfd_send_signal"),
            (
                vec![refuse(libc::SYS_clone3, libc::ENOSYS), refuse_if(libc::SYS_clone, (0, pidfd, pidfd), errno)],
                "clone with CLONE_PIDFD",
            ),
        ];
        for (j, (rules, what)) in cases.into_iter().enumerate() {
            restricted(NAME, 3 * i + j, &rules, || {
                for _ in 0..2 {
                    let error = Command::new("true").spawn().unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                    assert!(error.to_string().contains(what), "{error}");
                    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::Unsupported);
                }
                assert_eq!(common::children_of_ours(), []);
            });
        }
    }
}

/// That a number or a file was lacking once says nothing of the next spawn.
#[test]
fn a_lack_of_descriptors_while_one_is_fetched_is_forgotten() {
    const NAME: &str = "a_lack_of_descriptors_while_one_is_fetched_is_forgotten";
    common::in_own_process(NAME, || {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        let far = rustix::io::fcntl_dupfd_cloexec(&null, 500).unwrap();
        let mut command = Command::new("true");
        command.stdin(far);
        let run_under = |filter: Vec<libc::sock_filter>| {
            let run = || install(&filter).is_ok().then(|| command.status().unwrap());
            std::thread::scope(|scope| scope.spawn(run).join().unwrap())
        };
        let lack = libc::ENFILE;
        let mut deadly = filter(&[refuse(libc::SYS_pidfd_open, lack)]);
        let Some(status) = run_under(deadly.clone()) else { return common::skip(NAME, "no seccomp here") };
        assert!(status.success(), "{status}");
        for step in &mut deadly {
            if step.k == libc::SECCOMP_RET_ERRNO | lack as u32 {
                step.k = libc::SECCOMP_RET_KILL_PROCESS;
            }
        }
        // It is tried again, to tell by what the child dies of.
        assert_eq!(run_under(deadly).unwrap().signal(), Some(libc::SIGSYS));
    });
}

/// A child whose caller waits for it itself needs no loop; a shutdown that can have no thread for one ends it all the same, or says who is
/// left.
#[test]
fn a_shutdown_without_a_thread_reaches_those_who_wait_themselves() {
    const NAME: &str = "a_shutdown_without_a_thread_reaches_those_who_wait_themselves";
    let thread = libc::CLONE_THREAD as u32;
    let rules = [refuse(libc::SYS_clone3, libc::ENOSYS), refuse_if(libc::SYS_clone, (0, thread, thread), libc::EAGAIN)];
    for case in 0..2 {
        let (go, gone) = mpsc::channel();
        // Before there is a filter.
        let waiter = std::thread::spawn(move || gone.recv().map(|()| Command::new("sleep").arg("60").status()));
        restricted(NAME, case, &rules, || {
            go.send(()).unwrap();
            common::eventually("it runs", || common::children_of_ours().len() == 1);
            let pid = common::children_of_ours()[0];
            common::eventually("it is past the exec", || {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
            });
            let error = Command::new("true").spawn().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoProcessSlots, "{error}");
            if case == 0 {
                assert!(pidloop::shutdown(Duration::ZERO, Duration::from_secs(20)).is_empty());
            } else {
                common::eventually("its caller knows its number, and nobody stops it", || {
                    let mut ending = pin!(pidloop::shutdown_async(Duration::ZERO, Duration::from_secs(20)));
                    match ending.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())) {
                        Poll::Ready(left) => left.iter().map(pidloop::Survivor::pid).eq([pid]),
                        Poll::Pending => panic!("nobody would wake it"),
                    }
                });
                // SAFETY: kill(2): integers.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
            let refused = Command::new("true").status().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ShutDown, "{refused}");
        });
        drop(go);
        match waiter.join().unwrap() {
            Ok(Err(error)) => assert_eq!((case, error.kind()), (0, ErrorKind::Stopped), "{error}"),
            Ok(Ok(status)) => assert_eq!((case, status.signal()), (1, Some(libc::SIGKILL))),
            // It is not this case's process.
            Err(_) => {}
        }
    }
}

/// A lack is no refusal: it is reported, and forgotten.
#[test]
fn a_lack_of_memory_or_processes_says_so() {
    const NAME: &str = "a_lack_of_memory_or_processes_says_so";
    let stack_bytes = 256 << 10;
    let cases = [
        (vec![refuse_if(libc::SYS_mmap, (1, u32::MAX, stack_bytes), libc::ENOMEM)], ErrorKind::NoMemory, Stage::Clone),
        (vec![refuse(libc::SYS_clone3, libc::ENOMEM)], ErrorKind::NoMemory, Stage::Clone),
        (vec![refuse(libc::SYS_clone3, libc::EAGAIN)], ErrorKind::NoProcessSlots, Stage::Clone),
        (
            vec![refuse(libc::SYS_close_range, libc::ENOMEM), refuse(libc::SYS_unshare, libc::ENOMEM)],
            ErrorKind::NoMemory,
            Stage::DescriptorTable,
        ),
    ];
    for (case, (rules, kind, stage)) in cases.into_iter().enumerate() {
        restricted(NAME, case, &rules, || {
            let before = (pidloop::capabilities().clone3, pidloop::capabilities().shared_table);
            let mut reactor = Reactor::new().unwrap();
            let error = reactor.spawn(&Command::new("true")).unwrap_err();
            assert_eq!((error.kind(), error.stage(), error.is_transient()), (kind, Some(stage), true), "{error}");
            assert_eq!((pidloop::capabilities().clone3, pidloop::capabilities().shared_table), before);
            assert_eq!(common::children_of_ours(), []);
        });
    }
}

mod inside {
    /// The filter is what it says.
    #[test]
    fn the_newer_calls_are_refused() {
        if std::env::var(super::VARIABLE).is_err() {
            return;
        }
        pidloop::Command::new("true").group().run().unwrap();
        let capabilities = pidloop::capabilities();
        assert!(!capabilities.clone3 && !capabilities.close_range && !capabilities.group_signals, "{capabilities}");
    }
}
