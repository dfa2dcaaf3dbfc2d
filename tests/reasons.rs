//! The promise that anything can be a reason to stop, and that whoever says so harms nobody else: closures of the caller's on helper threads,
//! signals, descriptors. Knows the public API alone.

mod common;

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use common::{SOON, all_writers_end, children_of_ours, eventually, in_own_process, open_descriptors, sh, spawn_ready};
use pidloop::{Cancel, Cause, Child, Command, Context, Driver, ErrorKind, Exit, Reactor, Signal, Stdio, When};

const MOMENT: Duration = Duration::from_millis(50);
/// The helper threads there are.
const HELPERS: usize = 16;

/// A shell that exits with 0 at SIGINT.
fn polite() -> Command {
    sh("trap 'exit 0' INT; echo ready; while :; do sleep 0.01; done")
}

fn sleeper(ctx: &Context) -> Child {
    Command::new("sleep").arg("60").context(ctx).spawn().unwrap()
}

fn stopped_because(child: &Child) -> Option<Cause> {
    let exit = child.wait_timeout(SOON).unwrap().expect("in time");
    assert_eq!(exit.signal(), Some(Signal::SIGKILL));
    exit.cause().cloned()
}

/// Blocks all helper threads until the sender is dropped.
fn block_helpers() -> mpsc::Sender<()> {
    let (release, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let blocked = Arc::new(AtomicUsize::new(0));
    let ctx = Context::new();
    for _ in 0..HELPERS {
        let (gate, blocked) = (gate.clone(), blocked.clone());
        ctx.after_cancel(move || {
            blocked.fetch_add(1, Ordering::SeqCst);
            let _ = gate.lock().unwrap().recv();
        });
    }
    ctx.cancel();
    eventually("all are blocked", || blocked.load(Ordering::SeqCst) == HELPERS);
    release
}

// ── closures that stop a child ──

#[test]
fn every_way_of_waiting_waits_for_what_the_closure_returns() {
    let ways: [fn(Child) -> Exit; 5] = [
        |child| child.wait().unwrap(),
        |child| child.wait_timeout(SOON).unwrap().expect("in time"),
        |child| loop {
            if let Some(exit) = child.try_wait().unwrap() {
                return exit;
            }
            thread::yield_now();
        },
        |child| {
            let mut wait = pin!(child.wait_async());
            let mut polled = std::task::Context::from_waker(Waker::noop());
            loop {
                if let Poll::Ready(exit) = wait.as_mut().poll(&mut polled) {
                    return exit.unwrap();
                }
                thread::yield_now();
            }
        },
        |child| child.wait_with_output().unwrap().exit().clone(),
    ];
    for way in ways {
        let ctx = Context::new();
        let mut command = polite();
        command.context(&ctx).cancel(Cancel::call(|target| {
            target.signal(Signal::SIGINT)?;
            // It is dead long before this returns.
            let (_never, told) = mpsc::channel::<()>();
            let _ = told.recv_timeout(MOMENT / 2);
            Err(std::io::Error::other("late"))
        }));
        let (child, _stdout) = spawn_ready(&mut command);
        ctx.cancel();
        let error = way(child).check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CancelFailed);
        assert!(error.to_string().contains("late"), "{error}");
    }
}

#[test]
fn a_reactor_waits_for_what_the_closure_returns() {
    let ctx = Context::new();
    let mut jobs = Reactor::new().unwrap();
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).context(&ctx).cancel(Cancel::call(|target| {
        target.signal(Signal::SIGKILL)?;
        let (_never, told) = mpsc::channel::<()>();
        let _ = told.recv_timeout(MOMENT);
        Err(std::io::Error::from_raw_os_error(libc::ESRCH))
    }));
    let id = jobs.spawn(&command).unwrap();
    ctx.cancel();
    // The descriptor alone tells when there is something to do, also when it is a helper thread that has done it.
    let ended = loop {
        let mut fds = [PollFd::new(&jobs, PollFlags::IN)];
        let timeout = Timespec { tv_sec: SOON.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1);
        jobs.turn(Some(Duration::ZERO)).unwrap();
        if let Some(ended) = jobs.next_exit() {
            break ended;
        }
    };
    assert_eq!((ended.id(), ended.exit().cause()), (id, None));
    assert_eq!(ended.exit().check().unwrap_err().kind(), ErrorKind::Unsuccessful);
}

#[test]
fn a_closure_that_never_returns_holds_up_nothing_but_its_own_thread() {
    in_own_process("a_closure_that_never_returns_holds_up_nothing_but_its_own_thread", || {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let ctx = Context::new();
        let mut command = polite();
        command.context(&ctx).cancel(Cancel::call(move |target| {
            target.signal(Signal::SIGINT)?;
            let _ = gate.lock().unwrap().recv();
            Err(std::io::Error::other("too late to count"))
        }));
        let (child, _stdout) = spawn_ready(&mut command);
        ctx.cancel();
        let exit = child.wait_timeout(SOON).unwrap().expect("in time");
        assert_eq!((exit.code(), exit.cause()), (Some(0), Some(&Cause::Cancelled)));
        drop(release);
        drop(command);
        assert_eq!(child.wait().unwrap().cause(), Some(&Cause::Cancelled));
    });
}

#[test]
fn a_hundred_closures_that_block_do_not_hold_up_the_delays_of_others() {
    in_own_process("a_hundred_closures_that_block_do_not_hold_up_the_delays_of_others", || {
        let release = block_helpers();
        let ctx = Context::new();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let mut command = Command::new("sleep");
        command.arg("60").context(&ctx).wait_delay(MOMENT).cancel(Cancel::call(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        let children: Vec<_> = (0..100).map(|_| command.spawn().unwrap()).collect();
        let start = Instant::now();
        ctx.cancel_with("all");
        for child in &children {
            assert_eq!(stopped_because(child).unwrap().to_string(), "all");
        }
        assert!(start.elapsed() >= MOMENT);
        // What has not begun when the exit is seen never does.
        drop(release);
        let (done, told) = mpsc::channel();
        let last = Context::new();
        for _ in 0..HELPERS * 2 {
            let done = done.clone();
            last.after_cancel(move || done.send(()).unwrap());
        }
        last.cancel();
        (0..HELPERS * 2).for_each(|_| told.recv_timeout(SOON).unwrap());
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_closure_that_has_not_begun_when_the_exit_is_seen_never_does() {
    in_own_process("a_closure_that_has_not_begun_when_the_exit_is_seen_never_does", || {
        let release = block_helpers();
        let ctx = Context::new();
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::captured()).context(&ctx);
        let command = command.cancel(Cancel::call(|_| panic!("called after all")));
        let child = command.spawn().unwrap();
        let mut stdin = child.take_stdin().unwrap();
        stdin.write_all(b"its own end").unwrap();
        ctx.cancel();
        let mut wait = pin!(ctx.cancelled());
        assert!(wait.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())).is_ready());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        output.exit().check().unwrap();
        assert_eq!(output.stdout, b"its own end");
        drop(release);
    });
}

#[test]
fn a_closure_may_do_what_it_likes() {
    in_own_process("a_closure_may_do_what_it_likes", || {
        type Deed = fn(&Context, &Mutex<Option<Child>>);
        let deeds: [Deed; 4] = [
            // It cancels its own context, and one above.
            |ctx, _| ctx.cancel_with("again"),
            // It drops the last handle.
            |_, child| drop(child.lock().unwrap().take()),
            // It spawns, with the very context that fired and with another one.
            |ctx, _| {
                assert_eq!(Command::new("true").context(ctx).spawn().unwrap_err().kind(), ErrorKind::Cancelled);
                Command::new("true").context(&Context::new()).run().unwrap();
            },
            // It asks for more of the same.
            |ctx, _| {
                ctx.after_cancel(|| ());
                panic!("as asked");
            },
        ];
        for deed in deeds {
            let ctx = Context::new();
            let handle = Arc::new(Mutex::new(None));
            let (done, told) = mpsc::channel::<()>();
            let (context, shared, done) = (ctx.clone(), handle.clone(), Mutex::new(Some(done)));
            let mut command = Command::new("sleep");
            command.arg("60").context(&ctx).wait_delay(MOMENT).cancel(Cancel::call(move |_| {
                let _done = done.lock().unwrap().take();
                deed(&context, &shared);
                Ok(())
            }));
            *handle.lock().unwrap() = Some(command.spawn().unwrap());
            ctx.cancel_with("first");
            assert_eq!(told.recv_timeout(SOON), Err(mpsc::RecvTimeoutError::Disconnected));
            if let Some(child) = handle.lock().unwrap().take() {
                assert_eq!(stopped_because(&child).unwrap().to_string(), "first");
            }
            eventually("it is dead and reaped", || children_of_ours().is_empty());
        }
    });
}

/// Says which thread drops it.
struct Says(mpsc::Sender<Option<String>>);

impl Drop for Says {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().name().map(str::to_owned));
    }
}

/// A command that would be stopped by a closure, and who is told where that is dropped.
fn with_a_closure(program: &str, arg: &str) -> (Command, mpsc::Receiver<Option<String>>) {
    let (sender, receiver) = mpsc::channel();
    let says = Says(sender);
    let mut command = Command::new(program);
    command.arg(arg).cancel(Cancel::call(move |_| {
        let _ = &says;
        Ok(())
    }));
    (command, receiver)
}

#[test]
fn what_a_closure_holds_is_dropped_by_a_helper() {
    let helper = Some("pidloop-helper");
    // The loop has the last reference to it.
    let (command, dropped) = with_a_closure("sleep", "0.05");
    let child = command.spawn().unwrap();
    drop(command);
    drop(child);
    assert_eq!(dropped.recv_timeout(SOON).unwrap().as_deref(), helper);

    // Another way to stop takes its place, in the midst of a critical section.
    let (command, dropped) = with_a_closure("sleep", "60");
    let child = command.spawn().unwrap();
    drop(command);
    let exit = child.terminate(SOON).unwrap();
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGTERM), Some(&Cause::Terminated)));
    assert_eq!(dropped.recv_timeout(SOON).unwrap().as_deref(), helper);

    // A command that is not running is its owner's alone.
    let (command, dropped) = with_a_closure("true", "");
    drop(command);
    assert_eq!(dropped.try_recv().unwrap(), thread::current().name().map(str::to_owned));
}

/// An error of the caller's own.
struct Complaint(Says);

impl std::fmt::Debug for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = &self.0;
        f.write_str("complaint")
    }
}

impl std::error::Error for Complaint {}

#[test]
fn the_error_of_a_closure_is_dropped_by_a_helper() {
    let (sender, dropped) = mpsc::channel();
    let (returns, returned) = mpsc::channel();
    let ctx = Context::new();
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).context(&ctx).cancel(Cancel::call(move |_| {
        let _ = returns.send(());
        Err(std::io::Error::other(Complaint(Says(sender.clone()))))
    }));
    let child = command.spawn().unwrap();
    let stdin = child.take_stdin();
    ctx.cancel();
    returned.recv_timeout(SOON).unwrap();
    drop((child, command));
    assert!(dropped.recv_timeout(MOMENT).is_err(), "it is kept for the exit");
    // The loop has the last reference to it.
    drop(stdin);
    assert_eq!(dropped.recv_timeout(SOON).unwrap().as_deref(), Some("pidloop-helper"));
}

#[test]
fn a_dropped_child_that_was_stopped_gently_is_killed_if_it_was_to_be() {
    let ctx = Context::new();
    let mut command = sh("trap '' TERM; echo ready; exec sleep 60");
    command.context(&ctx).kill_on_drop(true).cancel(Cancel::Signal(Signal::SIGTERM));
    let (child, mut stdout) = spawn_ready(&mut command);
    ctx.cancel();
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    drop(child);
    assert_eq!(all_writers_end(&mut stdout), b"");
}

#[test]
fn a_closure_and_the_childs_own_end_at_once_agree() {
    let mut stopped = 0;
    for round in 0..300 {
        let ctx = Context::new();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let mut command = Command::new("true");
        command.context(&ctx).cancel(Cancel::call(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        let child = command.spawn().unwrap();
        let exit = thread::scope(|scope| {
            scope.spawn(|| {
                (0..round * 100).for_each(|_| std::hint::spin_loop());
                ctx.cancel();
            });
            child.wait().unwrap()
        });
        // A stop that is told has been begun, and one that was begun is told.
        let told = usize::from(exit.cause().is_some());
        eventually("the closure has counted", || calls.load(Ordering::SeqCst) >= told);
        assert_eq!(calls.load(Ordering::SeqCst), told, "round {round}: {exit:?}");
        stopped += told;
    }
    println!("{stopped} of 300 were stopped");
}

#[test]
fn a_group_is_stopped_by_the_closure_and_the_delay() {
    let ctx = Context::new();
    let mut command = sh("(trap '' INT TERM; echo ready; exec sleep 60) & wait");
    command.group().context(&ctx).wait_delay(MOMENT * 20).cancel(Cancel::call(|target| target.signal(Signal::SIGTERM)));
    let (child, mut stdout) = spawn_ready(&mut command);
    ctx.cancel();
    let exit = child.wait_timeout(SOON).unwrap().expect("in time");
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGTERM), Some(&Cause::Cancelled)));
    // Its member, too, is gone.
    assert_eq!(all_writers_end(&mut stdout), b"");
}

// ── signals ──

fn raise(signal: i32) {
    // SAFETY: a signal to this process, whose tests handle it.
    assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
}

fn handler_of(signal: i32) -> usize {
    // SAFETY: sigaction is plain data; a question.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action);
        action.sa_sigaction
    }
}

#[test]
fn signals_that_cannot_be_waited_for_are_refused() {
    let cases: [&[Signal]; 5] =
        [&[], &[Signal::SIGKILL], &[Signal::SIGTERM, Signal::SIGSTOP], &[Signal::SIGSEGV], &[Signal::SIGFPE]];
    for signals in cases {
        assert_eq!(Context::on_signal(signals).unwrap_err().kind(), ErrorKind::InvalidInput, "{signals:?}");
    }
    let internal = Signal::from_raw(32).unwrap();
    assert_eq!(Context::on_signal(&[internal]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_signal_reaches_all_its_contexts_wherever_their_children_are() {
    in_own_process("a_signal_reaches_all_its_contexts_wherever_their_children_are", || {
        let ctx = Context::on_signal(&[Signal::SIGTERM]).unwrap();
        let other = Context::on_signal(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGTERM]).unwrap();
        let untouched = Context::on_signal(&[Signal::SIGINT]).unwrap();
        let drivers = [Driver::new().unwrap(), Driver::new().unwrap()];
        let mut reactors = [Reactor::new().unwrap(), Reactor::new().unwrap()];
        let mut command = Command::new("sleep");
        command.arg("60").context(&ctx);
        let children: Vec<Child> = drivers.iter().map(|driver| driver.spawn(&command).unwrap()).collect();
        for reactor in &mut reactors {
            reactor.spawn(&command).unwrap();
        }
        let third = sleeper(&other.child_context());
        let (told, done) = mpsc::channel();
        other.after_cancel(move || told.send(()).unwrap());

        // Its default action would end us.
        raise(libc::SIGTERM);
        let expected = Some(Cause::Signal(Signal::SIGTERM));
        for child in children.iter().chain([&third]) {
            assert_eq!(stopped_because(child), expected);
        }
        for reactor in &mut reactors {
            let ended = loop {
                reactor.turn(Some(SOON)).unwrap();
                if let Some(ended) = reactor.next_exit() {
                    break ended;
                }
            };
            assert_eq!(ended.exit().cause().cloned(), expected);
        }
        done.recv_timeout(SOON).unwrap();
        assert_eq!((ctx.cause(), other.cause()), (expected.clone(), expected));
        assert!(!untouched.is_cancelled());
        // Who is watched no more does not take the others' handler along.
        drop((ctx, other, third, children, drivers, reactors, command));
        raise(libc::SIGINT);
        eventually("it has come", || untouched.cause() == Some(Cause::Signal(Signal::SIGINT)));
    });
}

static CHAINED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn chained(_: libc::c_int) {
    CHAINED.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn chained_with_info(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo of this signal.
    if unsafe { (*info).si_signo } == signal {
        CHAINED.fetch_add(1, Ordering::SeqCst);
    }
}

fn install(signal: i32, handler: usize, flags: i32) {
    // SAFETY: this process is the test's own; the handlers are async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

#[test]
fn the_handler_before_is_called_and_put_back() {
    in_own_process("the_handler_before_is_called_and_put_back", || {
        for (handler, flags) in
            [(chained as *const () as usize, 0), (chained_with_info as *const () as usize, libc::SA_SIGINFO)]
        {
            install(libc::SIGUSR1, handler, flags);
            let before = CHAINED.load(Ordering::SeqCst);
            let ctx = Context::on_signal(&[Signal::SIGUSR1]).unwrap();
            let second = Context::on_signal(&[Signal::SIGUSR1]).unwrap();
            raise(libc::SIGUSR1);
            eventually("it is called", || CHAINED.load(Ordering::SeqCst) == before + 1);
            eventually("both have it", || ctx.is_cancelled() && second.is_cancelled());
            drop(ctx);
            assert_ne!(handler_of(libc::SIGUSR1), handler);
            drop(second);
            assert_eq!(handler_of(libc::SIGUSR1), handler);
        }
        // Ignored before, and again afterwards.
        install(libc::SIGUSR1, libc::SIG_IGN, 0);
        let ctx = Context::on_signal(&[Signal::SIGUSR1]).unwrap();
        raise(libc::SIGUSR1);
        eventually("it is seen", || ctx.is_cancelled());
        drop(ctx);
        assert_eq!(handler_of(libc::SIGUSR1), libc::SIG_IGN);
        // Ignored children go on being reaped by the kernel.
        install(libc::SIGCHLD, libc::SIG_IGN, 0);
        let ctx = Context::on_signal(&[Signal::SIGCHLD]).unwrap();
        drop(std::process::Command::new("true").spawn().unwrap());
        eventually("it is reaped", || ctx.is_cancelled() && children_of_ours().is_empty());
        drop(ctx);
        assert_eq!(handler_of(libc::SIGCHLD), libc::SIG_IGN);
        // Somebody else's handler over ours is left alone.
        let ctx = Context::on_signal(&[Signal::SIGUSR1]).unwrap();
        install(libc::SIGUSR1, chained as *const () as usize, 0);
        drop(ctx);
        assert_eq!(handler_of(libc::SIGUSR1), chained as *const () as usize);
    });
}

#[test]
fn contexts_come_and_go_while_the_signal_comes() {
    in_own_process("contexts_come_and_go_while_the_signal_comes", || {
        install(libc::SIGUSR1, chained as *const () as usize, 0);
        let before = {
            drop(Context::on_signal(&[Signal::SIGUSR1]).unwrap());
            open_descriptors()
        };
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let raiser = scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    raise(libc::SIGUSR1);
                }
            });
            let users: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        for round in 0..2000 {
                            let ctx = Context::on_signal(&[Signal::SIGUSR1]).unwrap();
                            if round % 100 == 0 {
                                eventually("it has come", || ctx.is_cancelled());
                            }
                        }
                    })
                })
                .collect();
            users.into_iter().for_each(|user| user.join().unwrap());
            over.store(true, Ordering::SeqCst);
            raiser.join().unwrap();
        });
        assert!(CHAINED.load(Ordering::SeqCst) > 0);
        assert_eq!(handler_of(libc::SIGUSR1), chained as *const () as usize);
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn there_may_be_sixty_four_of_them() {
    in_own_process("there_may_be_sixty_four_of_them", || {
        let mut contexts: Vec<Context> = (0..64).map(|_| Context::on_signal(&[Signal::SIGUSR2]).unwrap()).collect();
        assert_eq!(Context::on_signal(&[Signal::SIGUSR2]).unwrap_err().kind(), ErrorKind::Unsupported);
        contexts.pop();
        contexts.push(Context::on_signal(&[Signal::SIGUSR2]).unwrap());
        raise(libc::SIGUSR2);
        eventually("all have it", || contexts.iter().all(Context::is_cancelled));
    });
}

/// Forks; the copy runs `f` and exits with 0. Returns its wait status.
fn in_forked_copy(f: impl FnOnce()) -> i32 {
    // SAFETY: the copy has one thread, does what `f` does, and ends by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_ok();
        // SAFETY: as above.
        unsafe { libc::_exit(if ok { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waitpid(2) for that child alone.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    status
}

#[test]
fn in_a_forked_copy_a_signal_does_what_it_did_before() {
    in_own_process("in_a_forked_copy_a_signal_does_what_it_did_before", || {
        install(libc::SIGUSR1, chained as *const () as usize, 0);
        let term = Context::on_signal(&[Signal::SIGTERM, Signal::SIGWINCH]).unwrap();
        let user = Context::on_signal(&[Signal::SIGUSR1]).unwrap();
        // What is ignored by default, or had a handler, harms nobody; and the parent does not hear of it.
        let before = CHAINED.load(Ordering::SeqCst);
        assert_eq!(
            in_forked_copy(|| {
                raise(libc::SIGWINCH);
                raise(libc::SIGUSR1);
                assert_eq!(CHAINED.load(Ordering::SeqCst), before + 1);
                assert!(!term.is_cancelled() && !user.is_cancelled());
            }),
            0
        );
        // What ends a process ends it.
        assert_eq!(in_forked_copy(|| raise(libc::SIGTERM)), libc::SIGTERM);
        // The copy may wait for signals of its own; what it inherited goes.
        assert_eq!(
            in_forked_copy(|| {
                let own = Context::on_signal(&[Signal::SIGTERM]).unwrap();
                drop(term.clone());
                raise(libc::SIGTERM);
                assert_eq!(own.cause(), Some(Cause::Signal(Signal::SIGTERM)));
                assert!(!term.is_cancelled());
                drop(own);
                assert_eq!(handler_of(libc::SIGTERM), libc::SIG_DFL);
            }),
            0
        );
        assert!(!term.is_cancelled() && !user.is_cancelled());
        raise(libc::SIGTERM);
        eventually("it has come", || term.cause() == Some(Cause::Signal(Signal::SIGTERM)));
    });
}

#[test]
fn our_threads_take_no_signal_from_the_host() {
    in_own_process("our_threads_take_no_signal_from_the_host", || {
        let ctx = Context::on_signal(&[Signal::SIGTERM]).unwrap();
        let _driver = Driver::new().unwrap();
        let _child = Command::new("true").context(&ctx).spawn().unwrap();
        let release = block_helpers();
        let ours = || -> Vec<std::path::PathBuf> {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
            tasks.filter(|path| std::fs::read_to_string(path.join("comm")).unwrap().starts_with("pidloop")).collect()
        };
        eventually("all have their names", || ours().len() == 2 + HELPERS);
        for path in ours() {
            let status = std::fs::read_to_string(path.join("status")).unwrap();
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
            let blocked = u64::from_str_radix(blocked, 16).unwrap();
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD, libc::SIGUSR1, libc::SIGALRM] {
                assert_ne!(blocked & (1 << (signal - 1)), 0, "{}", path.display());
            }
            for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
                assert_eq!(blocked & (1 << (fault - 1)), 0, "{}", path.display());
            }
        }
        drop(release);
    });
}

// ── descriptors ──

#[test]
fn what_cannot_be_polled_is_refused_and_closed() {
    in_own_process("what_cannot_be_polled_is_refused_and_closed", || {
        let before = open_descriptors();
        for path in ["/proc/self/exe", "/", "/dev/null", "/dev/zero"] {
            for when in [When::Readable, When::PeerClosed] {
                let error = Context::from_fd(File::open(path).unwrap().into(), when).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}");
                assert!(error.to_string().contains("polled"), "{error}");
            }
        }
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn a_client_that_hangs_up_is_a_reason_and_its_data_is_not() {
    let (ours, mut client) = UnixStream::pair().unwrap();
    let mut duplicate = ours.try_clone().unwrap();
    let ctx = Context::from_fd(ours.into(), When::PeerClosed).unwrap();
    let child = sleeper(&ctx);
    client.write_all(b"data is no reason").unwrap();
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    assert!(!ctx.is_cancelled());
    // It was never read; the owner of the duplicate may.
    let mut data = [0; 17];
    duplicate.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"data is no reason");
    client.write_all(b"unread").unwrap();
    drop(client);
    assert_eq!(stopped_because(&child), Some(Cause::PeerClosed));
    assert_eq!(ctx.cause(), Some(Cause::PeerClosed));
}

#[test]
fn half_a_hangup_over_tcp_is_one() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let ctx = Context::from_fd(server.into(), When::PeerClosed).unwrap();
    let child = sleeper(&ctx);
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stopped_because(&child), Some(Cause::PeerClosed));
}

#[test]
fn a_peer_is_closed_when_nobody_holds_it_any_more() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let kept = theirs.try_clone().unwrap();
    let ctx = Context::from_fd(ours.into(), When::PeerClosed).unwrap();
    let child = sleeper(&ctx);
    drop(theirs);
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    drop(kept);
    assert_eq!(stopped_because(&child), Some(Cause::PeerClosed));
}

#[test]
fn a_reason_that_has_come_true_starts_nothing() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, mut write) = common::pipe();
    drop(theirs);
    write.write_all(b"x").unwrap();
    for (fd, when, cause) in [
        (OwnedFd::from(ours), When::PeerClosed, Cause::PeerClosed),
        (OwnedFd::from(read), When::Readable, Cause::Readable),
    ] {
        let ctx = Context::from_fd(fd, when).unwrap();
        let error = Command::new("true").context(&ctx.child_context()).spawn().unwrap_err();
        assert_eq!((error.kind(), error.cause()), (ErrorKind::Cancelled, Some(&cause)));
        assert!(ctx.is_cancelled());
    }
}

#[test]
fn pipes_say_when_their_other_end_is_closed() {
    let (read, write) = common::pipe();
    let (other_read, other_write) = common::pipe();
    let reads = Context::from_fd(read.into(), When::PeerClosed).unwrap();
    let writes = Context::from_fd(other_write.into(), When::PeerClosed).unwrap();
    let [reader, writer] = [sleeper(&reads), sleeper(&writes)];
    assert!(!reads.is_cancelled() && !writes.is_cancelled());
    drop((write, other_read));
    assert_eq!(stopped_because(&reader), Some(Cause::PeerClosed));
    assert_eq!(stopped_because(&writer), Some(Cause::PeerClosed));
}

#[test]
fn another_processs_end_is_a_reason() {
    let mut other = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(other.id() as i32).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let ctx = Context::from_fd(pidfd, When::Readable).unwrap();
    let child = sleeper(&ctx);
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    drop(other.stdin.take());
    assert_eq!(stopped_because(&child), Some(Cause::Readable));
    // Its status is its parent's.
    assert!(other.wait().unwrap().success());
}

#[test]
fn a_terminal_and_a_listener_are_polled_as_any_other() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    use std::os::unix::fs::OpenOptionsExt;
    let slave = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
    let gone = Context::from_fd(slave.try_clone().unwrap().into(), When::PeerClosed).unwrap();
    let typed = Context::from_fd(slave.into(), When::Readable).unwrap();
    let [waits, reads] = [sleeper(&gone), sleeper(&typed)];
    rustix::io::write(&master, b"line\n").unwrap();
    assert_eq!(stopped_because(&reads), Some(Cause::Readable));
    assert!(!gone.is_cancelled());
    drop(master);
    assert_eq!(stopped_because(&waits), Some(Cause::PeerClosed));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ctx = Context::from_fd(listener.try_clone().unwrap().into(), When::Readable).unwrap();
    let child = sleeper(&ctx);
    assert!(!ctx.is_cancelled());
    let _client = TcpStream::connect(address).unwrap();
    assert_eq!(stopped_because(&child), Some(Cause::Readable));
    assert!(listener.accept().is_ok());
}

#[test]
fn the_descriptors_flags_are_left_alone_and_it_is_closed_at_the_end() {
    in_own_process("the_descriptors_flags_are_left_alone_and_it_is_closed_at_the_end", || {
        Command::new("true").context(&Context::new()).run().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let kept = ours.try_clone().unwrap();
        let flags = || rustix::fs::fcntl_getfl(&kept).unwrap();
        let before = flags();
        let count = || open_descriptors().iter().filter(|(_, what)| what.starts_with("socket:")).count();
        assert_eq!(count(), 3);
        let ctx = Context::from_fd(ours.into(), When::PeerClosed).unwrap();
        let child = sleeper(&ctx.child_context());
        assert_eq!(flags(), before);
        child.kill().unwrap();
        child.wait().unwrap();
        drop(child);
        drop(ctx);
        eventually("it is closed", || count() == 2);
        assert_eq!(flags(), before);
        // The duplicate that is still open reports to nobody any more.
        drop(theirs);
        Command::new("true").spawn().unwrap().wait().unwrap();
    });
}

#[test]
fn one_descriptor_may_be_a_reason_for_many() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let contexts: Vec<Context> =
        (0..10).map(|_| Context::from_fd(ours.try_clone().unwrap().into(), When::PeerClosed).unwrap()).collect();
    let driver = Driver::new().unwrap();
    let children: Vec<Child> = contexts.iter().map(sleeper).collect();
    let mut elsewhere = Command::new("sleep");
    elsewhere.arg("60").context(&contexts[0]);
    let elsewhere = driver.spawn(&elsewhere).unwrap();
    drop(theirs);
    for child in children.iter().chain([&elsewhere]) {
        assert_eq!(stopped_because(child), Some(Cause::PeerClosed));
    }
}

#[test]
fn a_busy_client_costs_little_and_still_hangs_up() {
    let (ours, mut client) = UnixStream::pair().unwrap();
    let mut reader = ours.try_clone().unwrap();
    let ctx = Context::from_fd(ours.into(), When::PeerClosed).unwrap();
    let child = sleeper(&ctx);
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..2000 {
                client.write_all(&[0; 512]).unwrap();
            }
        });
        let mut total = 0;
        let mut buffer = [0; 4096];
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                n => total += n,
            }
        }
        assert_eq!(total, 2000 * 512);
    });
    assert_eq!(stopped_because(&child), Some(Cause::PeerClosed));
}
