//! Promises 3, 4, 11 and 12 for spawns that wait: for a driver's limit, a tenant's, in order; and no slot is ever lost. Knows the public API
//! and fork(2).

mod common;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, eventually, in_own_process, open_descriptors, rounds, sh, thread_sleeps};
use pidloop::{Cause, Child, Command, Context, Driver, ErrorKind, EventKind, Pipeline, Reactor, Result, Stdio};

struct Unparker(Thread);

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unparker(thread::current())));
    let start = Instant::now();
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut task::Context::from_waker(&waker)) {
            return result;
        }
        assert!(start.elapsed() < SOON, "nobody wakes it");
        thread::park_timeout(SOON);
    }
}

type Spawning = Pin<Box<dyn Future<Output = Result<Child>> + Send>>;

/// Begun, and not polled again.
fn begin(driver: &Driver, command: &Command) -> Spawning {
    let mut spawning: Spawning = Box::pin(driver.spawn_async(command));
    assert!(spawning.as_mut().poll(&mut task::Context::from_waker(Waker::noop())).is_pending());
    spawning
}

/// A child that lives until it is killed.
fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("3600").kill_on_drop(true);
    command
}

fn with(context: &Context) -> Command {
    let mut command = sleeper();
    command.context(context);
    command
}

fn driver(limit: usize) -> Driver {
    let driver = Driver::new().unwrap();
    driver.set_max_running(limit);
    driver
}

/// (running, queued).
fn stands(driver: &Driver) -> (usize, usize) {
    let load = driver.load();
    (load.running, load.queued)
}

#[test]
fn a_call_beyond_the_limit_waits_for_an_exit() {
    let driver = driver(1);
    let mut events = driver.events(10);
    let first = driver.spawn(&sleeper()).unwrap();
    let second = common::beside(
        "asker",
        || driver.spawn(&sh("exit 5")).unwrap(),
        || {
            eventually("it waits", || stands(&driver) == (1, 1) && thread_sleeps("asker"));
            first.kill().unwrap();
        },
    );
    assert_eq!(second.wait().unwrap().code(), Some(5));
    assert_eq!((stands(&driver), driver.load().room()), ((0, 0), 1));
    let kinds: Vec<String> = std::iter::from_fn(|| events.try_next()).map(|event| event.kind.to_string()).collect();
    assert_eq!(kinds[..3], ["spawned", "queued", "exited: signal: killed"]);
    assert_eq!(kinds[3..], ["spawned", "exited: exit status 5"]);
}

#[test]
fn one_exit_admits_one() {
    let driver = driver(3);
    let running: Vec<Child> = (0..3).map(|_| driver.spawn(&sleeper()).unwrap()).collect();
    let mut waiting: Vec<Spawning> = (0..5).map(|_| begin(&driver, &sleeper())).collect();
    assert_eq!((stands(&driver), driver.stats().queued), ((3, 5), 5));
    for (child, left) in running.iter().zip((0..5).rev()) {
        child.kill().unwrap();
        child.wait().unwrap();
        // Whoever came first.
        let next = block_on(waiting.remove(0)).unwrap();
        assert_eq!((stands(&driver), next.try_wait().unwrap().is_none()), ((3, left), true));
        std::mem::forget(next);
    }
    drop(waiting);
    assert_eq!(stands(&driver), (3, 0));
}

#[test]
fn many_outputs_never_exceed_the_limit() {
    let driver = Arc::new(driver(8));
    let ctx = Context::new();
    ctx.set_max_running(4);
    let most = AtomicUsize::new(0);
    thread::scope(|scope| {
        for n in 0..16 {
            let (driver, most, ctx) = (driver.clone(), &most, &ctx);
            scope.spawn(move || {
                for _ in 0..rounds(4) {
                    let mut command = sh("echo here");
                    command.stdout(Stdio::captured());
                    if n % 2 == 0 {
                        command.context(ctx);
                    }
                    let child = match n % 4 {
                        0 | 1 => driver.spawn(&command).unwrap(),
                        _ => block_on(driver.spawn_async(&command)).unwrap(),
                    };
                    most.fetch_max(driver.stats().running as usize, Ordering::Relaxed);
                    assert!(ctx.load().running <= 4 && driver.load().running <= 8);
                    assert_eq!(child.wait_with_output().unwrap().stdout, b"here\n");
                }
            });
        }
    });
    assert!(most.load(Ordering::Relaxed) <= 8);
    assert_eq!((stands(&driver), ctx.load().running), ((0, 0), 0));
}

#[test]
fn a_context_that_is_cancelled_empties_its_queue() {
    in_own_process("a_context_that_is_cancelled_empties_its_queue", || {
        let driver = driver(1);
        let (ctx, other) = (Context::new(), Context::new());
        let _first = driver.spawn(&sleeper()).unwrap();
        let mut waiting: Vec<Spawning> = (0..3000).map(|_| begin(&driver, &with(&ctx))).collect();
        let mut stays = begin(&driver, &with(&other));
        assert_eq!(stands(&driver), (1, 3001));
        let ended = common::beside(
            "caller",
            || driver.spawn(&with(&ctx)).map(drop),
            || {
                eventually("it waits", || stands(&driver) == (1, 3002));
                ctx.cancel_with("enough");
            },
        );
        let told = |error: pidloop::Error| {
            assert_eq!((error.kind(), error.cause()), (ErrorKind::Cancelled, Some(&Cause::from("enough"))));
            assert_eq!(error.to_string(), "sleep 3600: not started: enough");
        };
        told(ended.unwrap_err());
        // Each once: a future that is polled after its end panics.
        waiting.drain(..).for_each(|spawning| told(block_on(spawning).unwrap_err()));
        assert_eq!(stands(&driver), (1, 1));
        assert!(stays.as_mut().poll(&mut task::Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(driver.spawn(&with(&ctx)).unwrap_err().kind(), ErrorKind::Cancelled);
        drop(stays);
        assert_eq!(stands(&driver), (1, 0));
        assert_eq!(children_of_ours().len(), 1);
    });
}

#[test]
fn who_waits_too_long_is_told() {
    let driver = driver(0);
    let limit = Duration::from_millis(30);
    let start = Instant::now();
    let error = driver.spawn(sleeper().timeout(limit)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let error = block_on(driver.spawn_async(&with(&Context::new().with_timeout(limit)))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(start.elapsed() >= limit * 2);
    assert_eq!(stands(&driver), (0, 0));
}

#[test]
fn a_limit_of_zero_holds_back_and_none_lets_go() {
    let tenant = Context::new();
    tenant.set_max_running(0);
    let driver = Driver::new().unwrap();
    let waiting: Vec<Spawning> = (0..4).map(|_| begin(&driver, &with(&tenant))).collect();
    // Others are not concerned.
    driver.spawn(&sh("exit 0")).unwrap().wait().unwrap();
    assert_eq!((tenant.load().running, tenant.load().queued), (0, 4));
    tenant.set_max_running(1);
    assert_eq!((tenant.load().running, tenant.load().queued), (1, 3));
    tenant.set_max_running(None);
    let children: Vec<Child> = waiting.into_iter().map(|spawning| block_on(spawning).unwrap()).collect();
    assert_eq!((tenant.load().running, tenant.load().queued, tenant.load().room()), (4, 0, usize::MAX));
    drop(children);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let driver = driver(0);
    driver.set_max_queued(2);
    let waiting = [begin(&driver, &sleeper()), begin(&driver, &sleeper())];
    for refused in [driver.spawn(&sleeper()), block_on(driver.spawn_async(&sleeper()))] {
        let error = refused.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (ErrorKind::QueueFull, true));
        assert_eq!(error.to_string(), "sleep 3600: the queue is full: 2 spawns are waiting");
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::WouldBlock);
    }
    assert_eq!(stands(&driver), (0, 2));
    drop(waiting);
    assert_eq!((stands(&driver), driver.stats().failed), ((0, 0), 4));
}

#[test]
fn every_limit_in_the_line_counts() {
    let server = Context::new();
    let (one, two) = (server.child_context(), server.child_context());
    server.set_max_running(3);
    one.set_max_running(2);
    let driver = Driver::new().unwrap();
    let of_one: Vec<Spawning> = (0..4).map(|_| begin(&driver, &with(&one.child_context()))).collect();
    let of_two: Vec<Spawning> = (0..4).map(|_| begin(&driver, &with(&two))).collect();
    let load = |context: &Context| (context.load().running, context.load().queued);
    // Each waits where the nearest limit is.
    assert_eq!((load(&server), load(&one)), ((3, 3), (2, 2)));
    drop(of_one);
    eventually("the slots go to those who wait", || load(&server) == (3, 1) && load(&one) == (0, 0));
    drop(of_two);
    eventually("all are given back", || load(&server) == (0, 0));
    // Another driver's children count as well, and who has two reasons to stop has two limits.
    let other = Driver::new().unwrap();
    let both = Context::new();
    both.set_max_running(1);
    let child = other.spawn(with(&one).context(&both)).unwrap();
    let waits = begin(&driver, with(&two).context(&both));
    assert_eq!((load(&server), load(&both), load(&one)), ((1, 0), (1, 1), (1, 0)));
    child.kill().unwrap();
    block_on(waits).unwrap().kill().unwrap();
    assert_eq!(load(&one), (0, 0));
}

/// Kills one of those who run, and says whose the next one is.
fn turn(running: &mut Vec<(Child, usize)>, waiting: &mut Vec<(Spawning, usize)>) -> usize {
    let (child, _) = running.remove(0);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut admitted = None;
    eventually("one is admitted", || {
        admitted = waiting.iter_mut().enumerate().find_map(|(at, (spawning, whose))| {
            match spawning.as_mut().poll(&mut task::Context::from_waker(Waker::noop())) {
                Poll::Ready(child) => Some((at, child.unwrap(), *whose)),
                Poll::Pending => None,
            }
        });
        admitted.is_some()
    });
    let (at, child, whose) = admitted.unwrap();
    drop(waiting.remove(at));
    running.push((child, whose));
    whose
}

#[test]
fn tenants_share_by_their_weights() {
    let driver = driver(6);
    let tenants = [Context::new(), Context::new()];
    tenants[0].set_weight(2);
    tenants[1].set_weight(1);
    let mut running: Vec<(Child, usize)> = (0..6).map(|_| (driver.spawn(&with(&tenants[0])).unwrap(), 0)).collect();
    // Whose contexts a child has below the tenant is nothing to the share.
    let mut waiting: Vec<(Spawning, usize)> =
        (0..30).map(|n| (begin(&driver, &with(&tenants[n % 2].child_context())), n % 2)).collect();
    for _ in 0..6 {
        turn(&mut running, &mut waiting);
    }
    for _ in 0..6 {
        let of_first = running.iter().filter(|(_, whose)| *whose == 0).count();
        assert_eq!(of_first, 4, "of six slots, two to one");
        turn(&mut running, &mut waiting);
    }
}

#[test]
fn a_high_priority_goes_first_and_a_low_one_goes_some_time() {
    let driver = driver(1);
    let mut running = vec![(driver.spawn(&sleeper()).unwrap(), 0)];
    let begin = |priority: i32, name| (begin(&driver, sleeper().priority(priority)), name);
    let mut waiting = vec![begin(-1, 0), begin(0, 1), begin(5, 2), begin(0, 3)];
    let order: Vec<usize> = (0..4).map(|_| turn(&mut running, &mut waiting)).collect();
    assert_eq!(order, [2, 1, 3, 0]);
    // Somebody always comes that goes before it.
    waiting.push(begin(-1, 100));
    for n in 1..=8 {
        waiting.push(begin(5, n));
        waiting.push(begin(5, n));
        if turn(&mut running, &mut waiting) == 100 {
            return;
        }
    }
    panic!("it starves");
}

#[test]
fn a_spawn_that_fails_gives_its_slot_back() {
    let driver = driver(1);
    for _ in 0..3 {
        assert_eq!(driver.spawn(&Command::new("/does/not/exist")).unwrap_err().kind(), ErrorKind::NotFound);
        let spawning = driver.spawn_async(&Command::new("/does/not/exist"));
        assert_eq!(block_on(spawning).unwrap_err().kind(), ErrorKind::NotFound);
    }
    let first = driver.spawn(&sleeper()).unwrap();
    let waiting: Vec<Spawning> = (0..500).map(|_| begin(&driver, &Command::new("/does/not/exist"))).collect();
    let last = begin(&driver, &sh("exit 0"));
    first.kill().unwrap();
    for spawning in waiting {
        assert_eq!(block_on(spawning).unwrap_err().kind(), ErrorKind::NotFound);
    }
    block_on(last).unwrap().wait().unwrap();
    assert_eq!(stands(&driver), (0, 0));
}

#[test]
fn a_driver_that_is_dropped_or_shut_down_starts_nothing_that_waits() {
    let server = Context::new();
    server.set_max_running(1);
    let dropped = Driver::new().unwrap();
    let _first = dropped.spawn(&with(&server)).unwrap();
    let waiting: Vec<Spawning> = (0..100).map(|_| begin(&dropped, &with(&server))).collect();
    assert_eq!(server.load().queued, 100);
    drop(dropped);
    for spawning in waiting {
        assert_eq!(block_on(spawning).unwrap_err().kind(), ErrorKind::ShutDown);
    }
    let shut = Driver::new().unwrap();
    shut.set_max_running(0);
    let ended = common::beside(
        "caller",
        || shut.spawn(&sleeper()).map(drop),
        || {
            eventually("it waits", || stands(&shut) == (0, 1));
            shut.shutdown(Duration::ZERO, SOON);
        },
    );
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ShutDown);
    eventually("the slot is given back", || {
        server.load() == {
            let mut empty = pidloop::Load::default();
            empty.max_running = Some(1);
            empty
        }
    });
}

#[test]
fn a_loop_that_its_caller_turns_keeps_nobody_waiting() {
    let mut reactor = Reactor::new().unwrap();
    reactor.set_max_running(2);
    let first = reactor.spawn(&sleeper()).unwrap();
    reactor.spawn(&sleeper()).unwrap();
    for refused in [reactor.spawn(&sleeper()), reactor.remote().spawn(&sleeper())] {
        let error = refused.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (ErrorKind::NoRoom, true));
        assert_eq!(error.to_string(), "sleep 3600: no room: its driver has as many children as it may have");
    }
    reactor.kill(first).unwrap();
    while reactor.next_exit().is_none() {
        reactor.turn(Some(SOON)).unwrap();
    }
    assert_eq!((reactor.load().running, reactor.load().room()), (1, 1));
    reactor.spawn(&sleeper()).unwrap();
}

#[test]
fn commands_by_themselves_have_the_default_drivers_limit() {
    in_own_process("commands_by_themselves_have_the_default_drivers_limit", || {
        pidloop::set_max_running(2);
        assert_eq!((pidloop::load().room(), pidloop::load().max_running), (2, Some(2)));
        let most = AtomicUsize::new(0);
        thread::scope(|scope| {
            for n in 0..12 {
                let most = &most;
                scope.spawn(move || {
                    let command = sh("echo here; exit 1");
                    match n % 4 {
                        0 => assert_eq!(command.output().unwrap().stdout, b"here\n"),
                        1 => assert_eq!(command.status().unwrap().code(), Some(1)),
                        2 => assert_eq!(block_on(command.output_async()).unwrap().stdout, b"here\n"),
                        _ => assert_eq!(block_on(command.run_async()).unwrap_err().kind(), ErrorKind::Unsuccessful),
                    }
                    most.fetch_max(pidloop::load().running, Ordering::Relaxed);
                });
            }
        });
        assert!(most.load(Ordering::Relaxed) <= 2);
        assert_eq!((pidloop::load().running, pidloop::load().queued), (0, 0));
    });
}

#[test]
fn a_forked_copy_has_no_limits_and_gives_nothing_back() {
    in_own_process("a_forked_copy_has_no_limits_and_gives_nothing_back", || {
        let driver = driver(1);
        let first = driver.spawn(&sleeper()).unwrap();
        let waits = begin(&driver, &sh("exit 0"));
        // SAFETY: fork(2): the copy asks, drops and leaves.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let apart = driver.load() == pidloop::Load::default() && pidloop::load() == pidloop::Load::default();
            let forked = block_on(waits).is_err_and(|error| error.kind() == ErrorKind::Forked);
            drop((first, driver));
            let works = Command::new("true").status().is_ok_and(|status| status.success());
            // SAFETY: _exit(2).
            unsafe { libc::_exit(if apart && forked && works { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waitpid(2) for that child alone.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!((status, stands(&driver)), (0, (1, 1)));
        first.kill().unwrap();
        block_on(waits).unwrap().wait().unwrap();
    });
}

fn limit_descriptors(most: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }).unwrap();
}

/// Takes all descriptors but so many.
fn take_all_but(left: usize) -> Vec<std::fs::File> {
    let mut taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len() - left);
    taken
}

#[test]
fn the_budget_of_descriptors_is_the_kernels() {
    in_own_process("the_budget_of_descriptors_is_the_kernels", || {
        limit_descriptors(200);
        let before = pidloop::fd_budget();
        assert_eq!((before.limit, before.reserve, before.left()), (200, 0, 200 - before.used));
        assert_eq!(before.used, open_descriptors().len() as u64);
        // What this process was itself started with may stand above the limit.
        let above = open_descriptors().iter().filter(|(number, _)| *number >= 200).count() as u64;
        let taken = take_all_but(7);
        assert_eq!(pidloop::fd_budget().left() + above, 7);
        drop(taken);
        assert_eq!(pidloop::fd_budget(), before);
    });
}

#[test]
fn a_patient_command_waits_for_what_has_run_out() {
    in_own_process("a_patient_command_waits_for_what_has_run_out", || {
        let driver = Arc::new(Driver::new().unwrap());
        driver.spawn(&sh("exit 0")).unwrap().wait().unwrap();
        limit_descriptors(80);
        // More than there are descriptors for: two each, and more while it is started.
        let tasks: Vec<_> = (0..120)
            .map(|n| {
                let mut command = sh("read line; echo here");
                command.stdin(Stdio::bytes("go\n")).stdout(Stdio::captured()).stderr(Stdio::captured()).patient(true);
                (begin(&driver, &command), n)
            })
            .collect();
        let children = thread::scope(|scope| {
            let run = |(spawning, n): (Spawning, usize)| {
                scope.spawn(move || {
                    let child: Child = block_on(spawning).unwrap();
                    assert_eq!(child.wait_with_output().unwrap().stdout, b"here\n", "{n}");
                })
            };
            tasks.into_iter().map(run).collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).count()
        });
        assert_eq!((children, driver.stats().queued), (120, 0));

        // Somebody else has them all: who is not patient is told, who is waits until they are given back.
        let taken = take_all_but(0);
        assert_eq!(driver.spawn(&sh("exit 0")).unwrap_err().kind(), ErrorKind::NoDescriptors);
        let error = driver.spawn(sh("exit 0").patient(true).timeout(Duration::from_millis(120))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        let child = common::beside(
            "patient",
            || driver.spawn(sh("exit 0").patient(true)).unwrap(),
            || {
                eventually("it waits", || driver.stats().queued == 1);
                drop(taken);
            },
        );
        child.wait().unwrap();
        assert_eq!(driver.stats().queued, 0);
    });
}

#[test]
fn a_reserve_of_descriptors_is_left_alone() {
    in_own_process("a_reserve_of_descriptors_is_left_alone", || {
        limit_descriptors(200);
        let driver = Driver::new().unwrap();
        let mut reactor = Reactor::new().unwrap();
        driver.spawn(&sh("exit 0")).unwrap().wait().unwrap();
        let taken = take_all_but(40);
        pidloop::set_fd_reserve(40);
        let error = reactor.spawn(&sh("exit 0")).unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh -c 'exit 0': no room: no descriptors are left but the reserve");
        let waits = begin(&driver, &sh("exit 0"));
        assert_eq!(driver.stats().queued, 1);
        // Nobody of ours ends: it is looked at all the same.
        drop(taken);
        block_on(waits).unwrap().wait().unwrap();
        let taken = take_all_but(40);
        let waits = begin(&driver, &sh("exit 0"));
        pidloop::set_fd_reserve(0);
        block_on(waits).unwrap().wait().unwrap();
        drop(taken);
    });
}

#[test]
fn a_pipeline_is_admitted_as_one() {
    let driver = driver(1);
    // More than a pipe holds: a command that waited in the midst would never be admitted.
    let pipeline = Pipeline::new([
        Command::new("head").args(["-c", "1000000", "/dev/zero"]),
        &mut Command::new("cat"),
        Command::new("wc").arg("-c").stdout(Stdio::captured()),
    ]);
    let child = driver.spawn(&sleeper()).unwrap();
    let waiting = common::beside(
        "pipeline",
        || driver.spawn_pipeline(&pipeline).unwrap(),
        || {
            eventually("it waits", || stands(&driver) == (1, 1));
            child.kill().unwrap();
        },
    );
    assert_eq!(waiting.wait_with_output().unwrap().stdout(), b"1000000\n");
    assert_eq!(stands(&driver), (0, 0));
}

#[test]
fn who_waits_for_room_is_woken_when_there_is_some() {
    let mut reactor = Reactor::new().unwrap();
    block_on(reactor.room_async(&sleeper())).unwrap();
    reactor.set_max_running(1);
    let first = reactor.spawn(&sleeper()).unwrap();
    let mut waiting = [Box::pin(reactor.room_async(&sleeper())), Box::pin(reactor.room_async(&sleeper()))];
    let mut dropped = Box::pin(reactor.room_async(&sleeper()));
    let noop = &mut task::Context::from_waker(Waker::noop());
    assert!(waiting.iter_mut().chain([&mut dropped]).all(|room| room.as_mut().poll(noop).is_pending()));
    assert_eq!(reactor.load().queued, 3);
    drop(dropped);
    reactor.kill(first).unwrap();
    while reactor.next_exit().is_none() {
        reactor.turn(Some(SOON)).unwrap();
    }
    // Each passes its turn on.
    waiting.into_iter().for_each(|room| block_on(room).unwrap());
    assert_eq!((reactor.load().queued, reactor.load().room()), (0, 1));
    reactor.spawn(&sleeper()).unwrap();
    let driver = driver(0);
    driver.set_max_queued(0);
    assert_eq!(block_on(driver.room_async(&sleeper())).unwrap_err().kind(), ErrorKind::QueueFull);
}

/// Spawns beyond the limit when it is woken: on the driver's thread.
struct Spawner {
    driver: Arc<Driver>,
    told: std::sync::mpsc::Sender<Result<Child>>,
}

impl Wake for Spawner {
    fn wake(self: Arc<Self>) {
        for _ in 0..2 {
            let _ = self.told.send(self.driver.spawn(&sleeper()));
        }
    }
}

#[test]
fn a_call_beyond_the_limit_in_a_waker_does_not_wait_for_itself() {
    let driver = Arc::new(driver(1));
    let (told, results) = std::sync::mpsc::channel();
    let child = driver.spawn(&sleeper()).unwrap();
    let waker = Waker::from(Arc::new(Spawner { driver: driver.clone(), told }));
    let mut waiting = Box::pin(child.wait_async());
    assert!(waiting.as_mut().poll(&mut task::Context::from_waker(&waker)).is_pending());
    child.kill().unwrap();
    let first = results.recv_timeout(SOON).unwrap();
    assert!(first.is_ok(), "{first:?}");
    assert_eq!(results.recv_timeout(SOON).unwrap().unwrap_err().kind(), ErrorKind::NoRoom);
}

#[test]
fn who_waits_for_room_is_told_when_there_will_be_none() {
    let begin_waiting = |driver: &Driver| {
        let mut room = Box::pin(driver.room_async(&sleeper()));
        assert!(room.as_mut().poll(&mut task::Context::from_waker(Waker::noop())).is_pending());
        room
    };
    let shut = driver(0);
    let room = begin_waiting(&shut);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| block_on(room));
        shut.shutdown(Duration::ZERO, Duration::ZERO);
        assert_eq!(waiter.join().unwrap().unwrap_err().kind(), ErrorKind::ShutDown);
    });
    // Who comes later does not wait at all.
    assert_eq!(block_on(shut.room_async(&sleeper())).unwrap_err().kind(), ErrorKind::ShutDown);
    let dropped = driver(0);
    let room = begin_waiting(&dropped);
    drop(dropped);
    assert_eq!(block_on(room).unwrap_err().kind(), ErrorKind::ShutDown);
}

/// Whatever happens to whoever, in the end nobody waits, nobody runs, and every slot is back.
#[test]
fn no_slot_is_lost_whatever_happens() {
    in_own_process("no_slot_is_lost_whatever_happens", || {
        pidloop::init().unwrap();
        let driver = driver(3);
        let tenants: Vec<Context> = (0..4).map(|_| Context::new()).collect();
        tenants.iter().take(2).for_each(|tenant| tenant.set_max_running(2));
        tenants[2].set_weight(3);
        let before = open_descriptors().len();
        thread::scope(|scope| {
            for seed in 0..4u64 {
                let (driver, tenants) = (&driver, &tenants);
                scope.spawn(move || {
                    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                    for _ in 0..rounds(60) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        misuse(driver, &tenants[(random >> 8) as usize % 4], random);
                    }
                });
            }
        });
        eventually("all is given back", || {
            let empty = |context: &Context| (context.load().running, context.load().queued) == (0, 0);
            stands(&driver) == (0, 0) && tenants.iter().all(empty) && children_of_ours().is_empty()
        });
        let stats = driver.stats();
        assert_eq!((stats.running, stats.queued, stats.exited), (0, 0, stats.spawned));
        // An eventfd for each tenant that had a child.
        eventually("descriptors", || open_descriptors().len() <= before + 4);
    });
}

fn misuse(driver: &Driver, tenant: &Context, random: u64) {
    let ctx = tenant.child_context();
    let mut command = if random % 5 == 0 { Command::new("/does/not/exist") } else { sh("exit 0") };
    command.context(&ctx).priority((random % 3) as i32);
    match (random >> 16) % 6 {
        0 => drop(driver.spawn(&command)),
        1 => drop(driver.spawn(command.timeout(Duration::from_micros(random % 2000)))),
        2 => drop(block_on(driver.spawn_async(&command))),
        // Dropped wherever it is by then.
        3 => {
            let mut spawning = Box::pin(driver.spawn_async(&command));
            let _ = spawning.as_mut().poll(&mut task::Context::from_waker(Waker::noop()));
            (0..random % 3000).for_each(|_| std::hint::spin_loop());
        }
        4 => {
            thread::scope(|scope| {
                scope.spawn(|| driver.spawn(&command).map(|child| child.wait()).is_ok());
                (0..random % 3000).for_each(|_| std::hint::spin_loop());
                ctx.cancel();
            });
        }
        _ => {
            let _ = driver.spawn(command.kill_on_drop(true)).map(|child| child.wait_timeout(SOON));
        }
    }
}

#[test]
fn what_waits_and_comes_to_nothing_is_told_as_an_event() {
    let driver = driver(0);
    let mut events = driver.events(10);
    drop(begin(&driver, &sleeper()));
    let kinds: Vec<EventKind> = std::iter::from_fn(|| events.try_next()).map(|event| event.kind).collect();
    assert!(matches!(kinds[..], [EventKind::Queued, EventKind::Failed { kind: ErrorKind::Stopped, .. }]), "{kinds:?}");
}
