//! Group G of the scenarios, each by its number, and what else is promised of contexts: a tree of reasons to stop, without children and with
//! them. Knows the public API alone.

mod common;

use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, eventually, in_own_process, open_descriptors, threads};
use pidloop::{Cause, Command, Context, ErrorKind, Signal};

const MOMENT: Duration = Duration::from_millis(50);

/// The smallest executor there is.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            return value;
        }
        thread::park_timeout(SOON);
    }
}

/// Counts how often it was called, and says when.
fn counter() -> (impl Fn() + Clone + Send + 'static, mpsc::Receiver<()>, Arc<AtomicUsize>) {
    let (sender, receiver) = mpsc::channel();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let call = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = sender.send(());
    };
    (call, receiver, calls)
}

fn text(cause: Option<Cause>) -> Option<String> {
    cause.map(|cause| cause.to_string())
}

/// The memory this process has in use.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

// ── group G ──

#[test]
fn g161_a_cancel_reaches_all_below_before_it_returns() {
    let root = Context::new();
    assert!(!root.is_cancelled() && root.cause().is_none() && root.deadline().is_none());
    let children: Vec<Context> = (0..10).map(|_| root.child_context()).collect();
    let grandchildren: Vec<Context> = children.iter().map(|child| child.with_timeout(SOON)).collect();
    root.cancel();
    for context in children.iter().chain(&grandchildren).chain([&root]) {
        assert!(context.is_cancelled());
        assert_eq!(context.cause(), Some(Cause::Cancelled));
    }
    // Born cancelled, with the parent's cause.
    assert_eq!(grandchildren[0].child_context().with_deadline(Instant::now()).cause(), Some(Cause::Cancelled));
    assert!(!Context::default().is_cancelled());
}

#[test]
fn g162_an_end_flows_down_and_never_up() {
    let root = Context::new();
    let [first, second] = [root.child_context(), root.with_timeout(SOON)];
    first.cancel_with("first");
    assert!(!root.is_cancelled() && !second.is_cancelled());
    drop(first);
    root.cancel_with("root");
    assert_eq!(text(second.cause()).as_deref(), Some("root"));
}

#[test]
fn g162_finished_children_are_unlinked() {
    in_own_process("g162_finished_children_are_unlinked", || {
        let root = Context::new();
        let round = || {
            for _ in 0..100_000 {
                let ctx = root.child_context().with_timeout(SOON);
                ctx.child_context().cancel();
            }
        };
        round();
        let before = resident_bytes();
        (0..5).for_each(|_| round());
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 4 << 20, "{grown} bytes for nothing");
        assert!(!root.is_cancelled());
    });
}

#[test]
fn g163_the_earliest_deadline_counts_and_the_clock_decides() {
    let start = Instant::now();
    let early = Context::new().with_timeout(MOMENT);
    let late = early.with_timeout(SOON);
    assert_eq!(late.deadline(), early.deadline());
    let earlier = late.with_deadline(start + MOMENT / 2);
    assert_eq!(earlier.deadline(), Some(start + MOMENT / 2));
    eventually("the deadline passes", || late.is_cancelled());
    assert!(start.elapsed() >= MOMENT, "early");
    assert_eq!((late.cause(), earlier.cause()), (Some(Cause::DeadlineExceeded), Some(Cause::DeadlineExceeded)));

    for past in [Instant::now(), Instant::now() - MOMENT] {
        assert_eq!(Context::new().with_deadline(past).cause(), Some(Cause::DeadlineExceeded));
    }
    assert_eq!(Context::new().with_timeout(Duration::ZERO).cause(), Some(Cause::DeadlineExceeded));
    assert_eq!(Context::new().with_timeout(Duration::MAX).deadline(), None);

    let cancelled = Context::new().with_timeout(SOON);
    cancelled.cancel();
    assert_eq!(cancelled.cause(), Some(Cause::Cancelled));
}

#[test]
fn g163_a_deadline_that_has_passed_is_first_although_nobody_has_looked() {
    let parent = Context::new();
    let ctx = parent.with_deadline_cause(Instant::now() + MOMENT, "too slow");
    let below = ctx.child_context();
    while Instant::now() < ctx.deadline().unwrap() {
        thread::yield_now();
    }
    below.cancel_with("later");
    assert_eq!(text(below.cause()).as_deref(), Some("too slow"));
    parent.cancel_with("even later");
    assert_eq!(text(ctx.cause()).as_deref(), Some("too slow"));
}

#[test]
fn g164_a_deadline_says_that_it_is_a_timeout() {
    let cause = Context::new().with_timeout(Duration::ZERO).cause().unwrap();
    assert!(cause.is_timeout() && !Cause::Cancelled.is_timeout());
    let error = Command::new("true").context(&Context::new().with_timeout(Duration::ZERO)).spawn().unwrap_err();
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::TimedOut);

    let slow = Context::new().with_timeout_cause(Duration::ZERO, "too slow");
    assert!(slow.cause().unwrap().is_timeout());
    let error = Command::new("true").context(&slow).spawn().unwrap_err();
    assert_eq!(
        (error.kind(), text(error.cause().cloned()).as_deref()),
        (ErrorKind::DeadlineExceeded, Some("too slow"))
    );
}

#[test]
fn g166_causes_are_those_of_gos_table() {
    /// Whether it is a timeout, and the cause's words.
    type Expected = (Option<bool>, Option<&'static str>);
    let none = || -> Expected { (None, None) };
    let cancelled = |cause| -> Expected { (Some(false), Some(cause)) };
    let exceeded = |cause| -> Expected { (Some(true), Some(cause)) };
    const PLAIN: &str = "context cancelled";
    const DEADLINE: &str = "deadline exceeded";
    /// A parent and its child, both to be cancelled.
    fn pair(f: impl FnOnce(&Context, &Context)) -> Context {
        let parent = Context::new();
        let child = parent.child_context();
        f(&parent, &child);
        child
    }
    fn single(ctx: Context, f: impl FnOnce(&Context)) -> Context {
        f(&ctx);
        ctx
    }
    let zero = Duration::ZERO;
    let slow = || Context::new().with_timeout_cause(SOON, "too slow");
    let rows = [
        ("new", Context::new(), none()),
        ("default", Context::default(), none()),
        ("cancel", single(Context::new(), Context::cancel), cancelled(PLAIN)),
        ("cancel with a cause", single(Context::new(), |c| c.cancel_with("parent")), cancelled("parent")),
        ("cancel without one", single(Context::new(), |c| c.cancel_with(Cause::Cancelled)), cancelled(PLAIN)),
        ("parent before child", pair(|p, c| (p.cancel_with("parent"), c.cancel_with("child")).0), cancelled("parent")),
        ("parent after child", pair(|p, c| (c.cancel_with("child"), p.cancel_with("parent")).0), cancelled("child")),
        ("parent's cause before none", pair(|p, c| (p.cancel_with("parent"), c.cancel()).0), cancelled("parent")),
        ("parent's cause after none", pair(|p, c| (c.cancel(), p.cancel_with("parent")).0), cancelled(PLAIN)),
        ("child's cause after none", pair(|p, c| (p.cancel(), c.cancel_with("child")).0), cancelled(PLAIN)),
        ("child's cause before none", pair(|p, c| (c.cancel_with("child"), p.cancel()).0), cancelled("child")),
        ("timeout", Context::new().with_timeout(zero), exceeded(DEADLINE)),
        ("timeout, cancelled", single(Context::new().with_timeout(SOON), Context::cancel), cancelled(PLAIN)),
        ("timeout with a cause", Context::new().with_timeout_cause(zero, "too slow"), exceeded("too slow")),
        ("timeout with a cause, cancelled", single(slow(), Context::cancel), cancelled(PLAIN)),
        ("timeout stacked", Context::new().child_context().with_timeout_cause(zero, "too slow"), exceeded("too slow")),
        ("timeout stacked, cancelled", single(slow().child_context(), Context::cancel), cancelled(PLAIN)),
        (
            "timeout stacked, cancelled by the parent",
            {
                let parent = Context::new();
                let child = parent.with_timeout_cause(SOON, "too slow");
                parent.cancel_with("parent");
                child
            },
            cancelled("parent"),
        ),
        (
            "the earlier deadline's cause",
            Context::new().with_timeout_cause(zero, "outer").with_timeout_cause(zero, "inner"),
            exceeded("outer"),
        ),
        (
            "timeout without a cause",
            Context::new().with_timeout_cause(zero, Cause::DeadlineExceeded),
            exceeded(DEADLINE),
        ),
        ("without cancel", Context::new().without_cancel(), none()),
        ("without cancel, cancelled", single(Context::new(), |c| c.cancel_with("parent")).without_cancel(), none()),
        ("without cancel, timeout", Context::new().with_timeout_cause(zero, "too slow").without_cancel(), none()),
    ];
    assert_eq!(rows.len(), 23);
    for (name, ctx, (timeout, cause)) in rows {
        assert_eq!(ctx.is_cancelled(), timeout.is_some(), "{name}");
        assert_eq!(ctx.cause().map(|cause| cause.is_timeout()), timeout, "{name}");
        assert_eq!(text(ctx.cause()).as_deref(), cause, "{name}");
        // Those below see the same.
        assert_eq!(ctx.child_context().cause(), ctx.cause(), "{name}");
    }
}

#[test]
fn g168_a_detached_context_does_not_end() {
    let parent = Context::new().with_timeout(Duration::ZERO);
    let detached = parent.without_cancel();
    assert!(parent.is_cancelled());
    assert!(!detached.is_cancelled() && detached.deadline().is_none() && detached.cause().is_none());
    detached.cancel();
    assert!(detached.is_cancelled());
}

#[test]
fn g169_after_a_cancel_a_timeout_or_at_once() {
    let cancelled = Context::new();
    let (call, called, calls) = counter();
    cancelled.after_cancel(call.clone());
    cancelled.child_context().after_cancel(call.clone());
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    cancelled.cancel();
    for _ in 0..2 {
        called.recv_timeout(SOON).unwrap();
    }

    let start = Instant::now();
    let (call, called, _) = counter();
    Context::new().with_timeout(MOMENT).child_context().after_cancel(call);
    called.recv_timeout(SOON).unwrap();
    assert!(start.elapsed() >= MOMENT);

    let (call, called, calls) = counter();
    let mut late = cancelled.after_cancel(call);
    called.recv_timeout(SOON).unwrap();
    assert!(!late.stop());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn g169_what_was_called_off_is_not_called() {
    let ctx = Context::new();
    let (call, called, calls) = counter();
    let mut first = ctx.after_cancel(call.clone());
    let mut second = ctx.after_cancel(call.clone());
    ctx.after_cancel(call);
    assert!(first.stop() && !first.stop());
    drop(first);
    ctx.cancel();
    assert!(!second.stop());
    (0..2).for_each(|_| called.recv_timeout(SOON).unwrap());
    assert!(called.try_recv().is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn g169_the_closure_runs_beside_the_one_who_cancels() {
    let ctx = Context::new();
    let (release, gate) = mpsc::channel::<()>();
    let (done, ended) = mpsc::channel();
    let canceller = thread::current().id();
    ctx.after_cancel(move || {
        gate.recv_timeout(SOON).unwrap();
        done.send(thread::current().id()).unwrap();
    });
    ctx.cancel();
    // Not held up by it.
    release.send(()).unwrap();
    assert_ne!(ended.recv_timeout(SOON).unwrap(), canceller);
}

#[test]
fn g169_stop_and_cancel_at_once_agree() {
    for _ in 0..200 {
        let ctx = Context::new();
        let (call, called, calls) = counter();
        let mut after = ctx.after_cancel(call);
        let barrier = Barrier::new(2);
        let stopped = thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                ctx.cancel();
            });
            barrier.wait();
            after.stop()
        });
        if !stopped {
            called.recv_timeout(SOON).unwrap();
        }
        assert_eq!(calls.load(Ordering::SeqCst), usize::from(!stopped));
    }
}

#[test]
fn g172_a_signal_is_the_cause_and_the_handler_goes_with_the_context() {
    in_own_process("g172_a_signal_is_the_cause_and_the_handler_goes_with_the_context", || {
        let ctx = Context::on_signal(&[Signal::SIGUSR1, Signal::SIGTERM]).unwrap();
        let child = Command::new("sleep").arg("60").context(&ctx.child_context()).spawn().unwrap();
        // SAFETY: a signal to this process, which handles it.
        unsafe { libc::raise(libc::SIGTERM) };
        let exit = child.wait_timeout(SOON).unwrap().expect("in time");
        assert_eq!(exit.cause(), Some(&Cause::Signal(Signal::SIGTERM)));
        assert_eq!(text(ctx.cause()).as_deref(), Some("received SIGTERM"));
        drop(ctx);
        eventually("the handler is gone", || !handles(libc::SIGTERM));
    });
}

fn handles(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
    u64::from_str_radix(&caught, 16).unwrap() & (1 << (signal - 1)) != 0
}

// ── handles ──

#[test]
fn clones_are_one_context_and_dropping_cancels_nothing() {
    let ctx = Context::new();
    let below = ctx.child_context();
    let clone = ctx.clone();
    drop(ctx);
    assert!(!clone.is_cancelled() && !below.is_cancelled());
    clone.clone().cancel_with("once");
    assert_eq!(text(below.cause()).as_deref(), Some("once"));
    clone.cancel_with("twice");
    assert_eq!(text(clone.cause()).as_deref(), Some("once"));

    let child = Command::new("sleep").arg("60").context(&Context::new()).spawn().unwrap();
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_guard_cancels_when_it_is_dropped_unless_it_is_disarmed() {
    let ctx = Context::new();
    let disarmed = ctx.drop_guard().disarm();
    assert!(!ctx.is_cancelled());
    let guard = disarmed.drop_guard();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = guard;
        panic!("as asked");
    }));
    assert!(panicked.is_err());
    assert_eq!(ctx.cause(), Some(Cause::Cancelled));
}

#[test]
fn a_cause_is_the_callers_own_error() {
    let ctx = Context::new();
    let error: Box<dyn std::error::Error + Send + Sync> = Box::new(std::io::Error::from_raw_os_error(libc::EPIPE));
    ctx.cancel_with(error);
    let cause = ctx.cause().unwrap();
    let source = cause.source().unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(source.raw_os_error(), Some(libc::EPIPE));
    let error = Command::new("true").context(&ctx).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().is_some());
}

// ── the descriptor that cancels ──

#[test]
fn another_process_cancels_through_an_inherited_descriptor() {
    let ctx = Context::new();
    let below = ctx.child_context();
    let child = Command::new("sleep").arg("60").context(&below).spawn().unwrap();
    let mut writer = common::sh(r"printf '\1\0\0\0\0\0\0\0' >&3");
    writer.fd(3, ctx.cancel_fd().unwrap().try_clone_to_owned().unwrap());
    writer.run().unwrap();
    assert!(below.is_cancelled());
    assert_eq!(child.wait_timeout(SOON).unwrap().expect("in time").cause(), Some(&Cause::Cancelled));
    assert_eq!(ctx.cause(), Some(Cause::Cancelled));
}

#[test]
fn a_signal_handler_cancels_through_the_descriptor() {
    static FD: AtomicI32 = AtomicI32::new(-1);
    extern "C" fn cancel(_: libc::c_int) {
        // SAFETY: write(2) of eight bytes is async-signal-safe; the descriptor lives as long as the test.
        unsafe { libc::write(FD.load(Ordering::SeqCst), std::ptr::from_ref(&1u64).cast(), 8) };
    }
    in_own_process("a_signal_handler_cancels_through_the_descriptor", || {
        let ctx = Context::new();
        let (call, called, _) = counter();
        let child = Command::new("sleep").arg("60").context(&ctx).spawn().unwrap();
        FD.store(ctx.cancel_fd().unwrap().as_raw_fd(), Ordering::SeqCst);
        ctx.after_cancel(call);
        // SAFETY: this process is the test's own; the handler is async-signal-safe.
        unsafe {
            libc::signal(libc::SIGUSR2, cancel as extern "C" fn(libc::c_int) as libc::sighandler_t);
            libc::raise(libc::SIGUSR2);
        }
        assert!(ctx.is_cancelled());
        assert!(child.wait_timeout(SOON).unwrap().is_some());
        called.recv_timeout(SOON).unwrap();
    });
}

/// Nobody else looks at the context meanwhile: a look would find what was written, and tell all.
fn noticed_late(what: &str, waits: impl Fn(&Context) -> Box<dyn FnOnce()>) {
    for depth in [0, 1, 3] {
        for deadline in [false, true] {
            let root = if deadline { Context::new().with_timeout(SOON * 10) } else { Context::new() };
            let ctx = (0..depth).fold(root.clone(), |ctx, _| ctx.child_context());
            let is_told = waits(&ctx);
            rustix::io::write(root.cancel_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
            is_told();
            assert_eq!(ctx.cause(), Some(Cause::Cancelled), "{what}, {depth} below");
        }
    }
}

#[test]
fn a_descriptor_that_is_asked_for_late_is_noticed_by_all_below() {
    struct Tells(mpsc::Sender<()>);
    impl Wake for Tells {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }
    noticed_late("a closure", |ctx| {
        let (call, called, _) = counter();
        ctx.after_cancel(call);
        Box::new(move || called.recv_timeout(SOON).unwrap())
    });
    noticed_late("a child", |ctx| {
        let child = Command::new("sleep").arg("60").context(ctx).spawn().unwrap();
        Box::new(move || assert!(child.wait_timeout(SOON).unwrap().is_some()))
    });
    noticed_late("a future", |ctx| {
        let (tells, told) = mpsc::channel();
        let waker = Waker::from(Arc::new(Tells(tells)));
        let mut future = ctx.cancelled();
        assert!(Pin::new(&mut future).poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        Box::new(move || {
            told.recv_timeout(SOON).unwrap();
            assert!(Pin::new(&mut future).poll(&mut std::task::Context::from_waker(&waker)).is_ready());
        })
    });
}

// ── waiting ──

#[test]
fn a_future_ends_with_the_context() {
    let ctx = Context::new();
    let waiters: Vec<_> = (0..8)
        .map(|i| {
            let ctx = if i % 2 == 0 { ctx.clone() } else { ctx.child_context() };
            thread::spawn(move || block_on(ctx.cancelled()))
        })
        .collect();
    ctx.cancel();
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    block_on(ctx.cancelled());

    let start = Instant::now();
    block_on(Context::new().with_timeout(MOMENT).child_context().cancelled());
    assert!(start.elapsed() >= MOMENT);
}

#[test]
fn a_future_moves_between_executors_and_is_dropped_at_will() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let count = || Arc::new(Count(AtomicUsize::new(0)));
    let poll = |future: &mut pidloop::Cancelled, count: &Arc<Count>| {
        let waker = Waker::from(count.clone());
        Pin::new(future).poll(&mut std::task::Context::from_waker(&waker)).is_ready()
    };
    let ctx = Context::new().with_timeout(SOON * 10);
    let [first, second, third] = [count(), count(), count()];
    let [mut moved, mut dropped] = [ctx.cancelled(), ctx.cancelled()];
    assert!(!poll(&mut moved, &first) && !poll(&mut moved, &second) && !poll(&mut moved, &second));
    assert!(!poll(&mut dropped, &third));
    drop(dropped);
    ctx.cancel();
    assert!(poll(&mut moved, &second));
    let woken = |count: &Arc<Count>| count.0.load(Ordering::SeqCst);
    assert_eq!((woken(&first), woken(&second), woken(&third)), (0, 1, 0));
}

#[test]
fn a_waker_or_closure_that_panics_harms_nobody() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("as asked");
        }
    }
    let ctx = Context::new();
    let (call, called, _) = counter();
    let mut future = ctx.cancelled();
    let waker = Waker::from(Arc::new(Bomb));
    assert!(Pin::new(&mut future).poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    ctx.after_cancel(|| panic!("as asked"));
    ctx.after_cancel(call);
    ctx.cancel();
    called.recv_timeout(SOON).unwrap();
}

#[test]
fn what_waits_for_a_dropped_context_waits_for_those_above() {
    let root = Context::new();
    let (call, called, _) = counter();
    root.child_context().child_context().after_cancel(call);
    assert!(called.try_recv().is_err());
    root.cancel();
    called.recv_timeout(SOON).unwrap();
}

#[test]
fn a_context_that_only_a_call_ends_costs_its_waiters_nothing() {
    in_own_process("a_context_that_only_a_call_ends_costs_its_waiters_nothing", || {
        // malloc looks at the processors, in a file, when a second thread first asks it for memory.
        std::thread::spawn(|| drop(std::hint::black_box(vec![0u8; 100]))).join().unwrap();
        let dropped = Arc::new(());
        let before = open_descriptors();
        for _ in 0..1000 {
            let ctx = Context::new();
            let kept = dropped.clone();
            ctx.after_cancel(move || drop(kept));
            let mut future = ctx.cancelled();
            let mut polled = std::task::Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut future).poll(&mut polled).is_pending());
            assert_eq!(open_descriptors(), before);
        }
        // Nothing can end these any more.
        eventually("the closures are dropped", || Arc::strong_count(&dropped) == 1);
        // These may still end by themselves, and are watched until they are called off: by the loop's own timer.
        assert!(Context::new().with_timeout(SOON * 10).after_cancel(|| ()).stop());
        let idle = open_descriptors();
        let contexts: Vec<Context> = (0..1000).map(|_| Context::new().with_timeout(SOON * 10)).collect();
        let mut after: Vec<_> = contexts.iter().map(|ctx| ctx.child_context().after_cancel(|| ())).collect();
        assert_eq!(open_descriptors(), idle);
        // With a child one of them has an eventfd.
        Command::new("true").context(&contexts[0]).run().unwrap();
        assert_eq!(open_descriptors().len(), idle.len() + 1);
        assert!(after.iter_mut().all(pidloop::AfterCancel::stop));
        drop((after, contexts));
        assert_eq!(open_descriptors(), idle);
    });
}

#[test]
fn a_closure_that_is_never_called_is_dropped_by_a_helper() {
    struct Says(mpsc::Sender<thread::ThreadId>);
    impl Drop for Says {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }
    let (sender, receiver) = mpsc::channel();
    let says = Says(sender);
    Context::new().after_cancel(move || drop(says));
    assert_ne!(receiver.recv_timeout(SOON).unwrap(), thread::current().id());
}

// ── in a forked copy ──

#[test]
fn a_forked_copy_waits_for_no_context_it_inherited() {
    in_own_process("a_forked_copy_waits_for_no_context_it_inherited", || {
        let ctx = Context::new();
        let ended = ctx.child_context();
        ended.cancel_with("before");
        let calls = Arc::new(AtomicUsize::new(0));
        let call = || {
            let calls = calls.clone();
            move || assert!(calls.fetch_add(1, Ordering::SeqCst) < 2)
        };
        let after = std::cell::Cell::new(Some((ctx.child_context().after_cancel(call()), ctx.after_cancel(call()))));
        let copied = std::panic::AssertUnwindSafe(|| {
            let below = ctx.child_context();
            ctx.after_cancel(call());
            let mut future = ctx.cancelled();
            let mut polled = std::task::Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut future).poll(&mut polled).is_pending());
            assert_eq!(text(ended.cause()).as_deref(), Some("before"));
            for context in [&ctx, &below] {
                let error = Command::new("true").context(context).spawn().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Forked, "{error}");
            }
            drop(after.take());
            ctx.cancel();
            assert!(below.is_cancelled());
            assert!(Pin::new(&mut future).poll(&mut polled).is_ready());
            let own = Context::new();
            let child = Command::new("sleep").arg("60").context(&own).spawn().unwrap();
            own.cancel();
            assert!(child.wait().unwrap().cause().is_some());
            assert_eq!(calls.load(Ordering::SeqCst), 0);
        });
        // SAFETY: the copy has one thread and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let ok = std::panic::catch_unwind(copied).is_ok();
            // SAFETY: as above.
            unsafe { libc::_exit((!ok).into()) };
        }
        let mut status = 0;
        // SAFETY: waitpid(2) for that child alone.
        unsafe { libc::waitpid(pid, &mut status, 0) };
        assert_eq!(status, 0);
        assert!(!ctx.is_cancelled());
        ctx.cancel();
        eventually("both are called here", || calls.load(Ordering::SeqCst) == 2);
        drop(after.take());
    });
}

// ── great numbers ──

#[test]
fn a_line_of_a_hundred_thousand() {
    in_own_process("a_line_of_a_hundred_thousand", || {
        let build = || {
            let root = Context::new();
            let leaf = (0..100_000).fold(root.clone(), |ctx, _| ctx.child_context());
            (root, leaf)
        };
        let (root, leaf) = build();
        let child = Command::new("sleep").arg("60").context(&leaf).spawn().unwrap();
        let (call, called, _) = counter();
        leaf.after_cancel(call.clone());
        root.cancel_with("from the top");
        assert_eq!(text(leaf.cause()).as_deref(), Some("from the top"));
        assert_eq!(child.wait().unwrap().cause(), leaf.cause().as_ref());
        called.recv_timeout(SOON).unwrap();
        drop((root, leaf));

        // Dropped from below, with all above kept alive by it alone; and a closure that rises to the top.
        let (root, leaf) = build();
        leaf.after_cancel(call);
        drop(leaf);
        root.cancel();
        called.recv_timeout(SOON).unwrap();
        let (root, leaf) = build();
        drop(root);
        drop(leaf);
    });
}

#[test]
fn a_tree_two_hundred_thousand_wide() {
    let root = Context::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let wide: Vec<Context> = (0..200_000).map(|_| root.child_context()).collect();
    for ctx in wide.iter().step_by(1000) {
        let calls = calls.clone();
        ctx.after_cancel(move || {
            calls.fetch_add(1, Ordering::SeqCst);
        });
    }
    let children: Vec<_> =
        wide.iter().step_by(2000).map(|ctx| Command::new("sleep").arg("60").context(ctx).spawn().unwrap()).collect();
    root.cancel();
    assert!(wide.iter().all(Context::is_cancelled));
    for child in children {
        assert_eq!(child.wait().unwrap().cause(), Some(&Cause::Cancelled));
    }
    eventually("all are called", || calls.load(Ordering::SeqCst) == 200);
}

#[test]
fn sixteen_threads_cancel_and_one_cause_is_first() {
    for _ in 0..50 {
        let root = Context::new();
        let below: Vec<Context> = (0..16).map(|_| root.child_context()).collect();
        let (call, called, calls) = counter();
        root.after_cancel(call);
        let barrier = Barrier::new(16);
        thread::scope(|scope| {
            for i in 0..16 {
                let (root, barrier) = (&root, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    root.cancel_with(format!("thread {i}"));
                    assert!(root.is_cancelled());
                });
            }
        });
        let cause = root.cause().unwrap();
        assert!(cause.to_string().starts_with("thread "));
        assert!(below.iter().all(|ctx| ctx.cause() == Some(cause.clone())));
        called.recv_timeout(SOON).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn contexts_are_built_cancelled_and_dropped_from_many_threads() {
    in_own_process("contexts_are_built_cancelled_and_dropped_from_many_threads", || {
        Command::new("true").context(&Context::new()).run().unwrap();
        let before = open_descriptors();
        let root = Context::new();
        thread::scope(|scope| {
            for i in 0..8 {
                let root = &root;
                scope.spawn(move || {
                    for round in 0..500 {
                        let ctx = root.child_context();
                        let below = ctx.with_timeout(Duration::from_micros((round * i) % 300));
                        let mut after = below.after_cancel(|| ());
                        let mut future = below.cancelled();
                        let mut polled = std::task::Context::from_waker(Waker::noop());
                        let _ = Pin::new(&mut future).poll(&mut polled);
                        match (round + i) % 4 {
                            0 => ctx.cancel(),
                            1 => assert!(after.stop() || below.is_cancelled()),
                            2 => assert!(ctx.cancel_fd().is_ok()),
                            _ => below.cancel_with("below"),
                        }
                    }
                });
            }
        });
        assert!(!root.is_cancelled());
        eventually("all are closed", || open_descriptors() == before);
        eventually("the helpers have gone", || threads() <= 4);
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn children_start_while_their_contexts_end_in_every_way() {
    in_own_process("children_start_while_their_contexts_end_in_every_way", || {
        Command::new("true").context(&Context::new()).run().unwrap();
        let before = open_descriptors();
        let root = Context::new();
        thread::scope(|scope| {
            for i in 0..6 {
                let root = &root;
                scope.spawn(move || {
                    for round in 0..60 {
                        let above = root.child_context();
                        let below = above.child_context().child_context();
                        let (call, called, calls) = counter();
                        below.after_cancel(call);
                        let ender = scope.spawn(move || match (round + i) % 5 {
                            0 => above.cancel_with("ended"),
                            1 => drop(above.drop_guard()),
                            2 => drop(rustix::io::write(above.cancel_fd().unwrap(), &1u64.to_ne_bytes())),
                            3 => block_on(above.with_timeout(Duration::from_micros(500)).cancelled()),
                            _ => drop(above),
                        });
                        let mut command = Command::new("sleep");
                        let ends = (round + i) % 5 < 3;
                        command.arg(if ends { "60" } else { "0.005" }).context(&below);
                        match command.spawn() {
                            Ok(child) => {
                                let exit = child.wait_timeout(SOON).unwrap().expect("in time");
                                assert_eq!(exit.cause().is_some(), ends, "{exit:?}");
                            }
                            Err(error) => assert!(ends && error.kind() == ErrorKind::Cancelled, "{error}"),
                        }
                        ender.join().unwrap();
                        if ends {
                            called.recv_timeout(SOON).unwrap();
                        }
                        assert_eq!(calls.load(Ordering::SeqCst), usize::from(ends));
                    }
                });
            }
        });
        assert!(!root.is_cancelled());
        drop(root);
        eventually("all are closed", || open_descriptors() == before && children_of_ours().is_empty());
    });
}
