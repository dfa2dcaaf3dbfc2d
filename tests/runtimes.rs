//! The futures in any runtime, and dropped at every point where they can be pending (promises 7, 10 and 14). Knows the public API, tokio,
//! smol, `futures::executor`, and executors of its own that poll when nobody has asked, from another thread each time, with a waker that
//! panics.

mod common;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{self, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, eventually, in_own_process, open_descriptors, rounds, sh};
use pidloop::{AsyncReader, Cause, Command, Context, Driver, ErrorKind, QueueOptions, Signal, Stdio};

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;
type Maker = Box<dyn FnMut() -> Boxed>;

/// How a future is polled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// When it was woken, and never else.
    Woken,
    /// Again and again, woken or not.
    Spurious,
    /// When it was woken, by a thread of its own each time.
    OtherThreads,
    /// Its waker panics; so it is polled again and again.
    Panicking,
}

const MANNERS: [Manner; 4] = [Manner::Woken, Manner::Spurious, Manner::OtherThreads, Manner::Panicking];

struct Bell {
    woken: mpsc::Sender<()>,
    panics: bool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.woken.send(());
        assert!(!self.panics, "a waker that panics");
    }
}

/// Polls it `polls` times at most; says whether it has come to its end.
fn poll_up_to(polls: usize, mut future: Boxed, manner: Manner) -> bool {
    let (woken, wakes) = mpsc::channel();
    let waker = Waker::from(Arc::new(Bell { woken, panics: manner == Manner::Panicking }));
    for _ in 0..polls {
        let mut poll = || future.as_mut().poll(&mut task::Context::from_waker(&waker)).is_ready();
        let ready = match manner {
            Manner::OtherThreads => thread::scope(|scope| scope.spawn(poll).join().unwrap()),
            _ => poll(),
        };
        if ready {
            return true;
        }
        match manner {
            Manner::Woken | Manner::OtherThreads => wakes.recv_timeout(SOON).expect("nobody wakes it"),
            Manner::Spurious | Manner::Panicking => thread::yield_now(),
        }
    }
    false
}

/// Drops it before its first poll, after the first, and so on, until it ends before that. Those that are polled as often as one likes are
/// given a few hundred polls at most, and then as many as they need.
fn drop_everywhere(mut make: impl FnMut() -> Boxed, manner: Manner) {
    let mut polls = 0;
    while !poll_up_to(polls, make(), manner) {
        polls += if polls < 8 { 1 } else { polls };
        assert!(polls < 1 << 30, "it has no end");
    }
}

/// Each future there is, by its name; of a child that soon ends.
fn futures() -> Vec<(&'static str, Maker)> {
    fn boxed(future: impl Future + Send + 'static) -> Boxed {
        Box::pin(async { drop(future.await) })
    }
    fn child() -> pidloop::Child {
        sh("echo x").stdout(Stdio::captured()).kill_on_drop(true).spawn().unwrap()
    }
    vec![
        ("spawn_async", Box::new(|| boxed(sh("echo x >/dev/null").kill_on_drop(true).spawn_async()))),
        ("status_async", Box::new(|| boxed(sh("exit 3").status_async()))),
        ("run_async", Box::new(|| boxed(sh("exit 0").run_async()))),
        ("output_async", Box::new(|| boxed(sh("echo x; echo y >&2").output_async()))),
        ("combined_output_async", Box::new(|| boxed(sh("echo x; echo y >&2").combined_output_async()))),
        (
            "wait_async",
            Box::new(|| {
                let child = child();
                boxed(async move { child.wait_async().await.map(drop) })
            }),
        ),
        ("wait_with_output_async", Box::new(|| boxed(child().wait_with_output_async()))),
        (
            "terminate_async",
            Box::new(|| {
                let child = child();
                boxed(async move { child.terminate_async(SOON).await.map(drop) })
            }),
        ),
        ("cancelled", Box::new(|| boxed(Context::new().with_timeout(Duration::from_millis(2)).cancelled()))),
        (
            "shutdown_async",
            Box::new(|| {
                let driver = Driver::new().unwrap();
                driver.spawn(sh("exec sleep 60").kill_on_drop(true)).unwrap();
                boxed(async move { driver.shutdown_async(Duration::from_millis(1), Duration::from_millis(1)).await })
            }),
        ),
        (
            "AsyncReader::read_to_end",
            Box::new(|| {
                let child = sh("echo x; echo y").stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
                let mut reader = child.take_stdout().unwrap().into_async().unwrap();
                boxed(async move { reader.read_to_end(&mut Vec::new()).await.map(|_| child) })
            }),
        ),
        (
            "AsyncWriter::write_all",
            Box::new(|| {
                let child =
                    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
                let mut writer = child.take_stdin().unwrap().into_async().unwrap();
                boxed(async move { writer.write_all(&[7; 300_000]).await.map(|()| child) })
            }),
        ),
        (
            "Queue::next_async",
            Box::new(|| {
                let (stdout, mut lines) = QueueOptions::lines().one();
                let child = sh("echo x; echo y").stdout(stdout).kill_on_drop(true).spawn().unwrap();
                boxed(async move {
                    while lines.next_async().await.is_some() {}
                    drop(child);
                })
            }),
        ),
    ]
}

#[test]
fn dropped_at_every_point() {
    in_own_process("dropped_at_every_point", || {
        std::panic::set_hook(Box::new(|info| {
            // Of those that are asked for nothing is printed.
            if !info.to_string().contains("a waker that panics") {
                eprintln!("{info}");
            }
        }));
        // What is there for good: the default driver, its spawner threads, the helpers.
        futures().into_iter().for_each(|(_, mut make)| assert!(poll_up_to(usize::MAX, make(), Manner::Woken)));
        eventually("nobody is left", || children_of_ours().is_empty());
        let before = open_descriptors();
        for manner in MANNERS {
            for (name, make) in futures() {
                drop_everywhere(make, manner);
                eventually("no child is left", || children_of_ours().is_empty());
                eventually("no descriptor is left", || open_descriptors() == before);
                eprintln!("{manner:?}: {name}");
            }
        }
    });
}

/// As std's own: a future made of an `async` block panics, one that asks answers again.
#[test]
fn polled_after_its_end() {
    fn again<T>(future: impl Future<Output = T>) -> thread::Result<Poll<T>> {
        let mut future = Box::pin(future);
        let start = Instant::now();
        let mut context = task::Context::from_waker(Waker::noop());
        while future.as_mut().poll(&mut context).is_pending() {
            assert!(start.elapsed() < SOON);
            thread::yield_now();
        }
        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)))
    }
    let child = sh("exit 3").spawn().unwrap();
    assert!(matches!(again(child.wait_async()), Ok(Poll::Ready(Ok(exit))) if exit.code() == Some(3)));
    let ended = Context::new();
    ended.cancel();
    assert!(matches!(again(ended.cancelled()), Ok(Poll::Ready(()))));
    for panics in [
        again(sh("exit 0").status_async()).is_err(),
        again(sh("exit 0").output_async()).is_err(),
        again(sh("exit 0").spawn_async()).is_err(),
        again(Command::new("/no/such/program").run_async()).is_err(),
        again(child.terminate_async(SOON)).is_err(),
        again(child.wait_with_output_async()).is_err(),
    ] {
        assert!(panics);
    }
    // None of that harmed anybody.
    Command::new("true").run().unwrap();
}

/// A day in the life of a task.
async fn a_day(request: Context) {
    let child =
        sh("read line; echo \"$line\"").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn_async().await.unwrap();
    let mut stdin = child.take_stdin().unwrap().into_async().unwrap();
    let mut stdout = child.take_stdout().unwrap().into_async().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    let mut text = Vec::new();
    stdout.read_to_end(&mut text).await.unwrap();
    assert_eq!(text, b"hello\n");
    assert!(child.wait_async().await.unwrap().success());
    assert_eq!(sh("exit 3").status_async().await.unwrap().code(), Some(3));
    assert_eq!(sh("exit 3").run_async().await.unwrap_err().kind(), ErrorKind::Unsuccessful);
    assert_eq!(sh("echo out").output_async().await.unwrap().stdout, b"out\n");
    assert_eq!(sh("echo out; echo err >&2").combined_output_async().await.unwrap().stdout, b"out\nerr\n");
    let (stdout, mut lines) = QueueOptions::lines().one();
    let child = sh("echo 1; echo 2; exec sleep 60").stdout(stdout).spawn_async().await.unwrap();
    assert_eq!(lines.next_async().await.as_deref(), Some(&b"1\n"[..]));
    assert_eq!(lines.next_async().await.as_deref(), Some(&b"2\n"[..]));
    assert_eq!(child.terminate_async(SOON).await.unwrap().cause(), Some(&Cause::Terminated));
    let stopped = sh("exec sleep 60").context(&request).stdout(Stdio::captured()).spawn_async().await.unwrap();
    request.cancel();
    request.cancelled().await;
    assert_eq!(stopped.wait_with_output_async().await.unwrap().exit().cause(), Some(&Cause::Cancelled));
    let driver = Driver::new().unwrap();
    let child = driver.spawn_async(&sh("exec sleep 60")).await.unwrap();
    assert!(driver.shutdown_async(Duration::ZERO, SOON).await.is_empty());
    assert_eq!(child.wait_async().await.unwrap().cause(), Some(&Cause::ShutDown));
}

fn days() -> Vec<Boxed> {
    (0..8).map(|_| Box::pin(a_day(Context::new())) as Boxed).collect()
}

#[test]
fn under_tokio_with_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = days().into_iter().map(tokio::spawn).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn under_tokio_with_many_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let tasks: Vec<_> = days().into_iter().map(|day| runtime.spawn(day)).collect();
    tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
}

#[test]
fn under_smol() {
    let executor = smol::Executor::new();
    let tasks: Vec<_> = days().into_iter().map(|day| executor.spawn(day)).collect();
    smol::block_on(executor.run(async {
        for task in tasks {
            task.await;
        }
    }));
}

#[test]
fn under_futures_executor() {
    futures::executor::block_on(futures::future::join_all(days()));
}

#[test]
fn under_executors_of_its_own() {
    for manner in MANNERS {
        assert!(poll_up_to(usize::MAX, Box::pin(a_day(Context::new())), manner), "{manner:?}");
    }
}

/// What was awaited goes with it; what is in somebody's hands runs on and is reaped, with no runtime left.
#[test]
fn a_runtime_that_shuts_down_with_children_running() {
    in_own_process("a_runtime_that_shuts_down_with_children_running", || {
        for threads in [0, 2] {
            let mut builder = match threads {
                0 => tokio::runtime::Builder::new_current_thread(),
                _ => tokio::runtime::Builder::new_multi_thread(),
            };
            let runtime = builder.build().unwrap();
            let kept = runtime.block_on(async {
                for _ in 0..20 {
                    tokio::spawn(sh("exec sleep 60").output_async());
                    tokio::spawn(sh("exec sleep 60").status_async());
                }
                let kept = sh("exec sleep 60").spawn_async().await.unwrap();
                // All have been begun; some are half born.
                tokio::task::yield_now().await;
                kept
            });
            drop(runtime);
            eventually("those that were awaited are killed and reaped", || children_of_ours() == [kept.id()]);
            assert!(kept.try_wait().unwrap().is_none());
            kept.kill().unwrap();
            assert_eq!(kept.wait().unwrap().signal(), Some(Signal::SIGKILL));
        }
    });
}

/// Drops a driver on the driver's own thread, in the midst of a turn.
struct Dropper(Mutex<Option<Driver>>, mpsc::Sender<String>);

impl Wake for Dropper {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
        self.1.send(thread::current().name().unwrap_or_default().into()).unwrap();
    }
}

#[test]
fn a_driver_that_is_dropped_in_one_of_its_wakers() {
    in_own_process("a_driver_that_is_dropped_in_one_of_its_wakers", || {
        let driver = Driver::new().unwrap();
        let first = driver.spawn(&sh("exec sleep 60")).unwrap();
        let killed = driver.spawn(sh("exec sleep 60").kill_on_drop(true)).unwrap();
        let other = driver.spawn(sh("exec sleep 60").timeout(Duration::from_millis(300))).unwrap();
        let (told, tells) = mpsc::channel();
        let waker = Waker::from(Arc::new(Dropper(Mutex::new(Some(driver)), told)));
        let mut waiting = Box::pin(first.wait_async());
        assert!(waiting.as_mut().poll(&mut task::Context::from_waker(&waker)).is_pending());
        first.kill().unwrap();
        assert_eq!(tells.recv_timeout(SOON).unwrap(), "pidloop");
        assert_eq!(killed.wait_timeout(SOON).unwrap().unwrap().signal(), Some(Signal::SIGKILL));
        // Its deadline is kept by the default driver.
        assert_eq!(other.wait_timeout(SOON).unwrap().unwrap().cause(), Some(&Cause::DeadlineExceeded));
        eventually("all are reaped", || children_of_ours().is_empty());
    });
}

static CANCEL_FD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(_: libc::c_int) {
    let one = 1u64;
    // SAFETY: write(2) is async-signal-safe; eight bytes on the stack.
    unsafe { libc::write(CANCEL_FD.load(Ordering::SeqCst), (&raw const one).cast(), 8) };
}

#[test]
fn a_context_that_a_signal_handler_ends() {
    in_own_process("a_context_that_a_signal_handler_ends", || {
        let ctx = Context::new();
        CANCEL_FD.store(std::os::fd::AsRawFd::as_raw_fd(&ctx.cancel_fd().unwrap()), Ordering::SeqCst);
        let handler = on_signal as extern "C" fn(libc::c_int);
        // SAFETY: a handler that makes one system call.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        let mut command = sh("exec sleep 60");
        command.context(&ctx);
        let (output, status) = (command.output_async(), command.status_async());
        let raise = async {
            // SAFETY: raise(3) with the handler in place.
            unsafe { libc::raise(libc::SIGUSR1) };
        };
        let (output, status, (), ()) =
            futures::executor::block_on(async { futures::join!(output, status, ctx.cancelled(), raise) });
        assert_eq!(output.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(status.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(children_of_ours(), []);
    });
}

struct Counted(AtomicUsize);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Thirty-two at a time, each after some polls: no child, no descriptor, no waker, no memory is left.
/// `PIDLOOP_SOAK=334` makes it a hundred thousand.
#[test]
fn dropped_at_random_points() {
    in_own_process("dropped_at_random_points", || {
        let wakes = Arc::new(Counted(AtomicUsize::new(0)));
        let waker = Waker::from(wakes.clone());
        let mut random = 1u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut throw = |n: usize| {
            let mut open: Vec<Boxed> = Vec::new();
            for _ in 0..n {
                let word = ["true", "echo"][next(2) as usize];
                let command = Command::new(word);
                open.push(match next(5) {
                    0 => Box::pin(async move { drop(command.spawn_async().await) }),
                    1 => Box::pin(async move { drop(command.status_async().await) }),
                    2 => Box::pin(async move { drop(command.output_async().await) }),
                    3 => Box::pin(async move { drop({ command }.stdout(Stdio::captured()).run_async().await) }),
                    _ => Box::pin(async move {
                        let mut command = command;
                        let child = command.stdout(Stdio::piped()).spawn_async().await.unwrap();
                        let mut reader: AsyncReader = child.take_stdout().unwrap().into_async().unwrap();
                        let _ = reader.read_to_end(&mut Vec::new()).await;
                        drop(child.wait_async().await);
                    }),
                });
                for _ in 0..next(8) {
                    let which = next(open.len() as u64) as usize;
                    if open[which].as_mut().poll(&mut task::Context::from_waker(&waker)).is_ready() {
                        drop(open.swap_remove(which));
                        break;
                    }
                    if next(4) == 0 {
                        thread::yield_now();
                    }
                }
                if open.len() > 32 {
                    // Some come to their child, and some to its end, before they are dropped.
                    let mut victim = open.swap_remove(next(32) as usize);
                    for _ in 0..[0, 20, 400][next(3) as usize] {
                        if victim.as_mut().poll(&mut task::Context::from_waker(&waker)).is_ready() {
                            break;
                        }
                        thread::yield_now();
                    }
                }
            }
        };
        throw(200);
        eventually("no child is left", || children_of_ours().is_empty());
        let (descriptors, memory) = (open_descriptors(), resident_kib());
        throw(rounds(300));
        eventually("no child is left", || children_of_ours().is_empty());
        eventually("no descriptor is left", || open_descriptors() == descriptors);
        eventually("no waker is left", || Arc::strong_count(&wakes) == 2);
        let grown = resident_kib().saturating_sub(memory);
        let spawned = pidloop::stats().unwrap().spawned;
        println!("{spawned} children, {grown} KiB more, woken {} times", wakes.0.load(Ordering::Relaxed));
        assert!(spawned > 0);
        assert!(grown < 4096, "{grown} KiB");
    });
}

#[cfg(feature = "futures")]
#[test]
fn queues_are_streams() {
    use futures::StreamExt;
    futures::executor::block_on(async {
        let (stdout, lines) = QueueOptions::lines().one();
        let child = sh("echo 1; echo 2").stdout(stdout).spawn_async().await.unwrap();
        assert_eq!(lines.into_stream().collect::<Vec<_>>().await, [b"1\n", b"2\n"]);
        assert!(child.wait_async().await.unwrap().success());
        let driver = Driver::new().unwrap();
        let mut events = driver.events(100).into_stream();
        driver.spawn(&sh("exit 0")).unwrap().wait().unwrap();
        assert!(events.next().await.is_some());
    });
}

#[cfg(feature = "tokio")]
mod tokens {
    use super::*;
    use tokio_util::sync::CancellationToken;

    #[test]
    fn a_token_ends_its_context_at_once_and_not_the_other_way_round() {
        let token = CancellationToken::new();
        let ctx = Context::from_token(&token.child_token());
        let below = ctx.child_context();
        let child = sh("exec sleep 60").context(&below).spawn().unwrap();
        assert!(!below.is_cancelled());
        token.cancel();
        assert_eq!(below.cause(), Some(Cause::Cancelled));
        assert_eq!(child.wait().unwrap().cause(), Some(&Cause::Cancelled));
        assert!(Context::from_token(&token).is_cancelled());

        let token = CancellationToken::new();
        let ctx = Context::from_token(&token);
        ctx.cancel();
        assert!(!token.is_cancelled());
        token.cancel();
        // Gone before its token is cancelled: nobody is there to be told.
        let token = CancellationToken::new();
        drop(Context::from_token(&token));
        token.cancel();
    }

    #[test]
    fn a_context_cancels_its_tokens_and_not_the_other_way_round() {
        let ctx = Context::new();
        let (one, other) = (ctx.to_token(), ctx.to_token());
        one.cancel();
        assert!(!ctx.is_cancelled() && !other.is_cancelled());
        ctx.cancel();
        assert!(other.is_cancelled() && ctx.to_token().is_cancelled());

        let token = CancellationToken::new();
        let there_and_back = Context::from_token(&token).to_token();
        token.cancel();
        assert!(there_and_back.is_cancelled());
        let ctx = Context::from_token(&CancellationToken::new());
        ctx.cancel();
        assert!(ctx.to_token().is_cancelled());
    }

    #[test]
    fn a_token_outlives_its_context_and_hears_of_the_parent_and_of_the_clock() {
        let parent = Context::new();
        let token = parent.child_context().to_token();
        assert!(!token.is_cancelled());
        parent.cancel();
        assert!(token.is_cancelled());
        let start = Instant::now();
        let token = Context::new().with_timeout(Duration::from_millis(30)).to_token();
        futures::executor::block_on(token.cancelled());
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn in_a_tokio_task() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let token = CancellationToken::new();
        runtime.block_on(async {
            let ctx = Context::from_token(&token);
            let mut command = sh("exec sleep 60");
            let task = tokio::spawn(command.context(&ctx).output_async());
            tokio::task::yield_now().await;
            token.cancel();
            assert_eq!(task.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        });
    }
}
