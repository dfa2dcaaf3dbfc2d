//! Promises 1, 3, 4, 7 and 12 by the thousand: exits that race cancels, one thread for ten thousand children. Knows the public API
//! alone. `PIDLOOP_SOAK=n` makes it n times as long.

mod common;

use std::sync::Barrier;
use std::thread;

use common::{SOON, children_of_ours, in_own_process, open_descriptors, rounds, threads};
use pidloop::{Cause, Command, Context, Exit, Signal, Stdio};

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
