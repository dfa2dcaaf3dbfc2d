//! Group E of the scenarios, promises 2, 6 and 9: statuses, signals, handles, each by its number. Knows the public API alone.

mod common;

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use common::{SOON, all_writers_end, eventually, in_own_process, is_stopped, pipe, sh, skip, spawn_ready, state};
use pidloop::{Cause, Command, ErrorKind, Reactor, Signal, Stdio};

#[test]
fn e123_exit_codes_are_told_as_they_are() {
    for (code, words) in [(42, "exit status 42"), (255, "exit status 255"), (0, "exit status 0")] {
        let exit = sh(&format!("exit {code}")).spawn().unwrap().wait().unwrap();
        assert_eq!((exit.code(), exit.to_string().as_str()), (Some(code), words));
        assert_eq!((exit.signal(), exit.success()), (None, code == 0));
    }
}

#[test]
fn e124_deaths_by_signal_are_told_as_they_are() {
    for (signal, words) in [(15, "signal: terminated"), (34, "signal: signal 34")] {
        let exit = sh(&format!("ulimit -c 0; kill -{signal} $$")).spawn().unwrap().wait().unwrap();
        assert_eq!((exit.code(), exit.signal(), exit.to_string().as_str()), (None, Signal::from_raw(signal), words));
    }
}

#[test]
fn e125_a_core_dump_is_told() {
    let dir = std::env::temp_dir().join(format!("pidloop-{}-e125", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let end = |limit: &str| {
        let mut command = sh(&format!("ulimit -c {limit} && kill -QUIT $$"));
        command.current_dir(&dir).spawn().unwrap().wait().unwrap()
    };
    let (without, with) = (end("0"), end("unlimited"));
    std::fs::remove_dir_all(&dir).unwrap();
    // What the kernel says of it is std's to know; a handler of cores, or a limit, may have it otherwise.
    for exit in [&without, &with] {
        let words = if exit.status().unwrap().core_dumped() { "signal: quit (core dumped)" } else { "signal: quit" };
        assert_eq!((exit.signal(), exit.to_string().as_str()), (Some(Signal::SIGQUIT), words));
        assert_eq!(exit.core_dumped(), exit.status().unwrap().core_dumped());
    }
    if !with.core_dumped() {
        skip("e125_a_core_dump_is_told", "no cores are dumped here");
    }
}

#[test]
fn e127_a_signal_after_the_end_is_ok_and_without_effect() {
    let child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.signal(Signal::SIGTERM).unwrap();
    child.kill().unwrap();
    let exit = child.terminate(Duration::ZERO).unwrap();
    assert!(exit.success() && exit.cause().is_none());
}

#[test]
fn e129_e133_signals_reach_a_live_child() {
    let (child, _stdout) = spawn_ready(&mut sh("trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"));
    child.signal(Signal::SIGUSR1).unwrap();
    let exit = child.wait().unwrap();
    assert_eq!((exit.code(), exit.cause()), (Some(9), None));

    let child = Command::new("sleep").arg("60").spawn().unwrap();
    child.kill().unwrap();
    let exit = child.wait().unwrap();
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), None));
    // Whether it lives is asked by `try_wait`: 0 is no signal.
    assert_eq!([0, -1, 65].map(Signal::from_raw), [None; 3]);
}

#[test]
fn e130_the_pidfd_is_given_as_a_duplicate() {
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    let pidfd = child.pidfd().unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
    assert_eq!(child.pidfd().unwrap_err().kind(), ErrorKind::NoSuchChild);
}

#[test]
fn e135_an_ignored_sigchld_loses_no_hang_and_invents_no_status() {
    in_own_process("e135_an_ignored_sigchld_loses_no_hang_and_invents_no_status", || {
        // SAFETY: this process is the test's own, and SIG_IGN is no handler.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let child = sh("exit 3").spawn().unwrap();
        let exit = child.wait_timeout(SOON).unwrap().expect("no hang");
        assert!(matches!(exit.code(), None | Some(3)), "{exit:?}");
        match sh("exit 3").status() {
            Ok(status) => assert_eq!(status.code(), Some(3)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::StatusLost),
        }
    });
}

#[test]
fn a_status_stolen_by_a_foreign_waitpid_is_recovered_or_said_to_be_lost() {
    in_own_process("a_status_stolen_by_a_foreign_waitpid_is_recovered_or_said_to_be_lost", || {
        for _ in 0..50 {
            let child = sh("exec sleep 0.02").spawn().unwrap();
            // SAFETY: waitpid(2) without a status to write to.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } == 0 {
                std::thread::yield_now();
            }
            let exit = child.wait_timeout(SOON).unwrap().expect("no hang");
            assert!(matches!(exit.code(), None | Some(0)), "{exit:?}");
            assert_eq!(exit.status().is_none(), exit.check().is_err_and(|e| e.kind() == ErrorKind::StatusLost));
        }
    });
}

#[test]
fn e137_usage_is_measured() {
    // Until its own account of it, in hundredths of a second, says so.
    let script = "while read -r line </proc/$$/stat; set -- ${line##*)}; [ $((${12} + ${13})) -lt 10 ]; do :; done";
    let exit = sh(script).spawn().unwrap().wait().unwrap();
    let usage = exit.usage().unwrap();
    assert!(usage.max_rss_bytes > 100_000, "{usage:?}");
    assert!(usage.user_time + usage.system_time >= Duration::from_millis(100), "{usage:?}");
    assert!(exit.elapsed() >= usage.user_time);
}

#[test]
fn e138_signals_are_as_a_program_expects_them() {
    in_own_process("e138_signals_are_as_a_program_expects_them", || {
        // SAFETY: this process is the test's own; SIG_IGN is no handler, and the handler does nothing.
        unsafe {
            extern "C" fn nothing(_: libc::c_int) {}
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            libc::signal(libc::SIGUSR1, nothing as extern "C" fn(libc::c_int) as libc::sighandler_t);
            // What this thread blocks is not for the child.
            let mut blocked: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut blocked, libc::SIGUSR2);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, std::ptr::null_mut()), 0);
        }
        let output = Command::new("grep").args(["^Sig", "/proc/self/status"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        assert_eq!(field("SigBlk"), 0, "{text}");
        assert_eq!(field("SigCgt") & (1 << (libc::SIGUSR1 - 1)), 0, "{text}");
        let ignored = field("SigIgn");
        assert_ne!(ignored & (1 << (libc::SIGHUP - 1)), 0, "{text}");
        assert_eq!(ignored & (1 << (libc::SIGPIPE - 1)), 0, "{text}");
    });
}

#[test]
fn e140_the_status_is_there_beside_the_cause() {
    let ctx = pidloop::Context::new();
    let mut command = sh("trap '' TERM; echo ready; exec sleep 60");
    command.context(&ctx).cancel(pidloop::Cancel::Signal(Signal::SIGTERM)).wait_delay(Duration::from_millis(50));
    let (child, _stdout) = spawn_ready(&mut command);
    ctx.cancel();
    let error = child.wait().unwrap().check().unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::Cancelled, Some(&Cause::Cancelled)));
    assert_eq!(error.exit().unwrap().signal(), Some(Signal::SIGKILL));
}

#[test]
fn terminate_asks_first_and_then_kills() {
    let (child, _stdout) = spawn_ready(&mut sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"));
    let exit = child.terminate(SOON).unwrap();
    assert_eq!((exit.code(), exit.cause()), (Some(5), Some(&Cause::Terminated)));

    let (child, _stdout) = spawn_ready(&mut sh("trap '' TERM; echo ready; exec sleep 60"));
    let exit = child.terminate(Duration::from_millis(30)).unwrap();
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), Some(&Cause::Terminated)));
    assert_eq!(exit.check().unwrap_err().kind(), ErrorKind::Stopped);
}

#[test]
fn a_stopped_child_has_not_ended() {
    let (child, _stdout) = spawn_ready(&mut sh("echo ready; exec sleep 60"));
    child.signal(Signal::SIGSTOP).unwrap();
    eventually("it is stopped", || is_stopped(child.id()));
    assert!(child.try_wait().unwrap().is_none());
    assert!(child.wait_timeout(Duration::from_millis(20)).unwrap().is_none());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
}

#[test]
fn a_group_is_stopped_as_a_whole() {
    let ctx = pidloop::Context::new();
    let mut command = sh("sleep 60 & sleep 60 & echo ready; wait");
    let (child, mut stdout) = spawn_ready(command.group().context(&ctx));
    ctx.cancel();
    child.wait().unwrap();
    all_writers_end(&mut stdout);
}

#[test]
fn a_groups_ladder_goes_on_when_the_leader_is_dead() {
    let ctx = pidloop::Context::new();
    let steps = vec![(pidloop::Step::Signal(Signal::SIGTERM), Duration::from_millis(50))];
    let script = "(trap '' TERM; echo ready; exec sleep 60) & wait";
    let mut command = sh(script);
    let (child, mut stdout) = spawn_ready(command.group().context(&ctx).cancel(pidloop::Cancel::Steps(steps)));
    ctx.cancel();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM));
    all_writers_end(&mut stdout);
}

#[test]
fn what_a_group_leaves_behind_is_left_or_killed_as_asked() {
    for (leftovers, lives) in [(pidloop::Leftovers::Leave, true), (pidloop::Leftovers::Kill, false)] {
        let mut command = sh("sleep 60 >/dev/null 2>&1 & echo $!");
        let output = command.group().group_leftovers(leftovers).stdout(Stdio::captured()).output().unwrap();
        let pid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        if lives {
            assert!(matches!(state(pid), Some('S' | 'R' | 'D')));
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        } else {
            eventually("it is gone", || matches!(state(pid), None | Some('Z')));
        }
    }
}

/// Real-time signals have no names, and reach a group all the same.
/// "After the exit Ok and without effect", although its group still has members: the loop has not seen the exit yet.
#[test]
fn a_signal_after_an_unseen_exit_leaves_the_group_alone() {
    let mut reactor = Reactor::new().unwrap();
    let ((ask_read, mut ask), (mut answer, answer_write)) = (pipe(), pipe());
    let mut command = sh("(read go <&3; echo alive >&4) & exit 0");
    command.fd(3, ask_read).fd(4, answer_write).group();
    let id = reactor.spawn(&command).unwrap();
    drop(command);
    let pid = reactor.pid(id).unwrap();
    eventually("the leader is dead", || state(pid) == Some('Z'));
    reactor.kill(id).unwrap();
    reactor.remote().signal(id, Signal::SIGTERM).unwrap();
    ask.write_all(b"go\n").unwrap();
    let mut text = String::new();
    answer.read_to_string(&mut text).unwrap();
    assert_eq!(text, "alive\n");
    let ended = std::iter::from_fn(|| Some(reactor.turn(None).map(|()| reactor.next_exit())))
        .find_map(|turned| turned.unwrap());
    assert_eq!(ended.map(|ended| (ended.exit().code(), ended.exit().cause().cloned())), Some((Some(0), None)));
}

#[test]
fn a_group_is_sent_real_time_signals() {
    let rt = Signal::from_raw(40).unwrap();
    let mut command = sh("echo ready; exec sleep 60");
    let (child, _stdout) = spawn_ready(command.group());
    child.signal(rt).unwrap();
    assert_eq!(child.wait_timeout(SOON).unwrap().expect("it is reached").signal(), Some(rt));
}

/// `exec setsid` would fork: perl calls `setpgrp(0, parent's group)` itself.
#[test]
fn a_leader_that_left_its_group_is_still_stopped() {
    let ctx = pidloop::Context::new();
    let script = r"$| = 1; setpgrp(0, getpgrp(getppid())) or die; print qq(ready\n); sleep 60";
    let mut command = Command::new("perl");
    command.args(["-e", script]).group().context(&ctx);
    if Command::new("perl").args(["-e", "1"]).status().is_err() {
        return skip("a_leader_that_left_its_group_is_still_stopped", "no perl");
    }
    let (child, _stdout) = spawn_ready(&mut command);
    ctx.cancel();
    assert_eq!(child.wait_timeout(SOON).unwrap().expect("it is reached").cause(), Some(&Cause::Cancelled));
}

/// The zombie that keeps a group's number may be reaped by somebody else at any time.
#[test]
fn a_group_survives_a_thief() {
    in_own_process("a_group_survives_a_thief", || {
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    // SAFETY: waitpid(2) without a status to write to.
                    unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
                }
            });
            for round in 0..50 {
                let ctx = pidloop::Context::new();
                let steps = vec![(pidloop::Step::Signal(Signal::SIGTERM), Duration::from_millis(2))];
                let mut command = sh("sleep 60 & wait");
                command.group().context(&ctx).cancel(pidloop::Cancel::Steps(steps));
                match command.spawn() {
                    Ok(child) => {
                        if round % 2 == 0 {
                            child.signal(Signal::SIGTERM).unwrap();
                        }
                        ctx.cancel();
                        child.wait_timeout(SOON).unwrap().expect("no hang");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            over.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        // Nothing of ours waits for a group that is gone.
        assert!(pidloop::shutdown(SOON, SOON).is_empty());
    });
}

#[test]
fn a_step_that_is_given_for_ever_does_not_keep_a_dead_group() {
    in_own_process("a_step_that_is_given_for_ever_does_not_keep_a_dead_group", || {
        Command::new("true").spawn().unwrap().wait().unwrap();
        let before = common::open_descriptors();
        let ctx = pidloop::Context::new();
        let steps = vec![(pidloop::Step::Signal(Signal::SIGTERM), Duration::MAX)];
        let mut command = sh("(trap '' TERM; echo ready; exec sleep 2) & wait");
        command.group().context(&ctx).cancel(pidloop::Cancel::Steps(steps));
        let (child, stdout) = spawn_ready(&mut command);
        ctx.cancel();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM));
        drop((child, stdout, command, ctx));
        eventually("it is forgotten", || common::open_descriptors() == before);
    });
}
