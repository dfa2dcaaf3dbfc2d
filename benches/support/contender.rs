//! pidloop as a contender: its public API with default options, as the documentation shows it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use pidloop::{Child, Command, Context, IoPriority, Limit, Namespace, Reactor, Resource, Scheduler, Signal, Stdio};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;

use super::flood;
use super::worker::{Bytes, Contender, How, Load, Streams, Tally, aside, in_threads, nanos, serve, unsupported};

const NOBODY: u32 = 65534;
const PIECE_BYTES: usize = 64 << 10;

/// Answers jobs as the contender of this name.
pub fn serve_as(name: &str) -> io::Result<()> {
    // For hosts that have thousands of descriptors open before their first spawn.
    pidloop::init()?;
    let shared = Mutex::new(None);
    match name {
        "pidloop" => serve(&Pidloop { way: Way::Status, shared }),
        "pidloop-wait" => serve(&Pidloop { way: Way::Wait, shared }),
        "pidloop-async" => serve(&Pidloop { way: Way::Async, shared }),
        "pidloop-context" => serve(&WithContext(Pidloop { way: Way::Wait, shared })),
        "pidloop-reactor" => serve(&InReactor),
        "pidloop-nested" => serve(&InTokio(tokio::runtime::Builder::new_current_thread().enable_io().build()?)),
        other => Err(io::Error::other(format!("no such contender: {other}"))),
    }
}

/// What a child is waited for with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `status`, where one child at a time is run; `wait` else.
    Status,
    /// `spawn` and `wait`.
    Wait,
    /// `spawn_async` and `wait_async`; `status_async` and `output_async`, a task for each, where many are in flight.
    Async,
}

struct Pidloop {
    way: Way,
    /// The context of the children that are held.
    shared: Mutex<Option<Context>>,
}

fn command(how: &How) -> io::Result<Command> {
    let mut command = match (how.option.as_str(), how.program.rsplit_once('/')) {
        ("path", Some((dir, name))) => {
            let mut command = Command::new(name);
            command.env("PATH", dir);
            command
        }
        _ => Command::new(&how.program),
    };
    command.args(&how.args);
    match how.streams {
        Streams::Null => command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()),
        Streams::Capture => command.stdin(Stdio::null()).stdout(Stdio::captured()).stderr(Stdio::captured()),
        Streams::Inherit => &mut command,
    };
    match how.option.as_str() {
        "" | "path" => &mut command,
        "uid" => command.uid(NOBODY),
        "gid" => command.gid(NOBODY),
        "groups" => command.groups(&[NOBODY]),
        "setsid" => command.setsid(),
        "process_group" => command.process_group(0),
        "cwd" => command.current_dir("/"),
        "chroot" => command.chroot("/"),
        "rlimit" => command.rlimit(Resource::OpenFiles, 1024, 1024),
        "umask" => command.umask(0o22),
        "nice" => command.nice(1),
        "cpu_affinity" => command.cpu_affinity(&[0, 1]),
        "io_priority" => command.io_priority(IoPriority::BestEffort(4)),
        "oom_score_adj" => command.oom_score_adj(1),
        "scheduler" => command.scheduler(Scheduler::Batch),
        "no_new_privs" => command.no_new_privs(),
        "capabilities" => command.drop_capabilities(&[0]).inheritable_capabilities(&[]),
        "signals" => command.reset_signals().signal_mask(&[Signal::SIGHUP]).ignore_signals(&[Signal::SIGINT]),
        "parent_death" => command.on_this_thread().parent_death_signal(Signal::SIGKILL),
        "unshare" => command.unshare(&[Namespace::Uts]),
        "uid_map" => command.unshare(&[Namespace::User]).uid_map(0, 0).gid_map(0, 0),
        "uid_maps" => command.unshare(&[Namespace::User]).uid_maps(&[(0, 0, 2)]).gid_maps(&[(0, 0, 2)]),
        other => return Err(unsupported(other)),
    };
    Ok(command)
}

/// Counts what it is given.
struct Count(Arc<AtomicU64>);

impl Write for Count {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A child whose stdout is read: kept whole, given to a writer, kept within a limit, written by the child into memory, or read by the caller.
enum Reading {
    Kept(Child),
    Written(Child, Arc<AtomicU64>),
    Limited(Child),
    Spooled(Child),
    Piped(Child),
}

impl Reading {
    fn start(how: &How, bytes: Bytes) -> io::Result<Reading> {
        let mut command = command(how)?;
        let total = Arc::new(AtomicU64::new(0));
        Ok(match (bytes, how.way.as_str()) {
            (Bytes::Keep, "") => Reading::Kept(command.stdout(Stdio::captured()).spawn()?),
            (_, "limited") => {
                let limit = Limit::head_tail(PIECE_BYTES, PIECE_BYTES);
                Reading::Limited(command.stdout(Stdio::captured_limited(limit)).spawn()?)
            }
            (_, "spooled") => Reading::Spooled(command.stdout(Stdio::spooled()).spawn()?),
            (_, "piped") => Reading::Piped(command.stdout(Stdio::piped()).spawn()?),
            _ => {
                let child = command.stdout(Stdio::writer(Count(total.clone()))).spawn()?;
                Reading::Written(child, total)
            }
        })
    }

    fn finish(self) -> io::Result<u64> {
        match self {
            Reading::Kept(child) => Ok(child.wait_with_output()?.stdout.len() as u64),
            Reading::Written(child, total) => {
                child.wait_with_output()?;
                Ok(total.load(Ordering::Relaxed))
            }
            Reading::Limited(child) => {
                let output = child.wait_with_output()?;
                Ok(output.stdout.len() as u64 + output.stdout_omitted_bytes)
            }
            Reading::Spooled(child) => {
                let output = child.wait_with_output()?;
                let bytes = output.stdout_spool.as_ref().map_or(0, |spool| spool.len_bytes());
                aside(|| drop(output));
                Ok(bytes)
            }
            Reading::Piped(child) => {
                let mut stdout = child.take_stdout().expect("piped");
                let mut piece = vec![0; PIECE_BYTES];
                let mut total = 0;
                loop {
                    match stdout.read(&mut piece)? {
                        0 => break,
                        got => total += got as u64,
                    }
                }
                child.wait()?;
                Ok(total)
            }
        }
    }
}

/// Spawns up to `in_flight` children, then waits for the oldest before each next one.
fn oldest_first(load: Load, how: &How) -> io::Result<Tally> {
    let begin = Instant::now();
    let mut flying: VecDeque<(Instant, Child)> = VecDeque::new();
    let mut each = Vec::new();
    let mut land = |(start, child): (Instant, Child)| -> io::Result<()> {
        if how.streams == Streams::Capture {
            child.wait_with_output()?;
        } else {
            child.wait()?;
        }
        each.push(nanos(start.elapsed()));
        Ok(())
    };
    for _ in 0..load.n {
        if begin.elapsed() >= load.limit {
            break;
        }
        if flying.len() as u64 >= load.in_flight {
            flying.pop_front().map_or(Ok(()), &mut land)?;
        }
        let start = Instant::now();
        flying.push_back((start, command(how)?.spawn()?));
    }
    flying.into_iter().try_for_each(land)?;
    Ok(Tally { wall: begin.elapsed(), each })
}

/// A task for each child in flight, all on the calling thread, by an executor that knows nothing of processes.
fn as_tasks(load: Load, how: &How) -> io::Result<Tally> {
    let begin = Instant::now();
    let left = Rc::new(Cell::new(load.n));
    let work = |how: How, left: Rc<Cell<u64>>| async move {
        let mut each = Vec::new();
        while begin.elapsed() < load.limit && left.get() > 0 {
            left.set(left.get() - 1);
            let start = Instant::now();
            if how.streams == Streams::Capture {
                command(&how)?.output_async().await?;
            } else {
                command(&how)?.status_async().await?;
            }
            each.push(nanos(start.elapsed()));
        }
        io::Result::Ok(each)
    };
    let tasks = LocalSet::new();
    let handles: Vec<_> = (0..load.in_flight).map(|_| tasks.spawn_local(work(how.clone(), left.clone()))).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let each = runtime.block_on(tasks.run_until(async {
        let mut all = Vec::new();
        for handle in handles {
            all.extend(handle.await.map_err(io::Error::other)??);
        }
        io::Result::Ok(all)
    }))?;
    Ok(Tally { wall: begin.elapsed(), each })
}

/// How often the runtime of one thread would like to come round.
const TICK: Duration = Duration::from_millis(1);

/// Ticks until it is told that all are done, and says how late each tick was.
async fn tick(done: Arc<AtomicBool>) -> Vec<u64> {
    let mut at = tokio::time::Instant::now();
    let mut each = Vec::new();
    while !done.load(Ordering::Relaxed) {
        at += TICK;
        tokio::time::sleep_until(at).await;
        each.push(nanos(at.elapsed()));
    }
    each
}

/// All at once, in a runtime of one thread.
fn while_ticking(load: Load, how: &How) -> io::Result<Vec<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        let done = Arc::new(AtomicBool::new(false));
        let ticking = tokio::spawn(tick(done.clone()));
        if load.n == 0 {
            tokio::time::sleep(load.limit).await;
        }
        pidloop::set_max_running(load.in_flight as usize);
        pidloop::set_max_queued(load.n as usize);
        let command = command(how)?;
        let tasks: Vec<_> = (0..load.n).map(|_| tokio::spawn(command.output_async())).collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        done.store(true, Ordering::Relaxed);
        ticking.await.map_err(io::Error::other)
    })
}

/// Each of the calling threads has its share of the load.
fn shared_out(load: Load, how: &How, one: fn(Load, &How) -> io::Result<Tally>) -> io::Result<Tally> {
    let share = Load { n: load.n / load.threads, in_flight: (load.in_flight / load.threads).max(1), ..load };
    if load.threads == 1 {
        return one(share, how);
    }
    let begin = Instant::now();
    let each = thread::scope(|scope| {
        let callers: Vec<_> = (0..load.threads).map(|_| scope.spawn(|| one(share, how))).collect();
        callers.into_iter().try_fold(Vec::new(), |mut all, caller| {
            all.extend(caller.join().expect("a caller panicked")?.each);
            io::Result::Ok(all)
        })
    })?;
    Ok(Tally { wall: begin.elapsed(), each })
}

impl Contender for Pidloop {
    type Child = Child;

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn start(&self, how: &How) -> io::Result<Child> {
        match self.way {
            Way::Async if how.way != "spawn" => Ok(block_on(command(how)?.spawn_async())?),
            _ => Ok(command(how)?.spawn()?),
        }
    }

    /// A future keeps its caller while it is polled, not while it is pending.
    fn start_timed(&self, how: &How) -> io::Result<(Child, u64)> {
        let begin = Instant::now();
        if self.way != Way::Async || how.way == "spawn" {
            let child = self.start(how)?;
            return Ok((child, nanos(begin.elapsed())));
        }
        let mut spawn = pin!(command(how)?.spawn_async());
        let mut kept = begin.elapsed();
        let child = block_on(std::future::poll_fn(|cx| {
            let begin = Instant::now();
            let polled = spawn.as_mut().poll(cx);
            kept += begin.elapsed();
            polled
        }))?;
        Ok((child, nanos(kept)))
    }

    fn wait(&self, child: &mut Child) -> io::Result<()> {
        match self.way {
            Way::Async => block_on(child.wait_async())?,
            _ => child.wait()?,
        };
        Ok(())
    }

    fn kill(&self, child: &mut Child) -> io::Result<()> {
        Ok(child.kill()?)
    }

    fn run(&self, how: &How) -> io::Result<()> {
        match self.way {
            _ if how.streams == Streams::Capture => command(how)?.output().map(drop)?,
            Way::Status => command(how)?.status().map(drop)?,
            _ => self.wait(&mut self.start(how)?)?,
        }
        Ok(())
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        Reading::start(how, bytes)?.finish()
    }

    fn flood(&self, kind: &str, n: u64, how: &How) -> io::Result<Vec<u64>> {
        if kind == "exits" { flood::exits(how, n) } else { flood::cancels(how, n) }
    }

    /// Only what the caller reads itself takes a thread for each.
    fn read_many(&self, children: u64, how: &How, bytes: Bytes) -> io::Result<u64> {
        if how.way == "piped" {
            return thread::scope(|scope| {
                let readers: Vec<_> = (0..children).map(|_| scope.spawn(|| self.read(how, bytes))).collect();
                readers.into_iter().map(|reader| reader.join().expect("a reader panicked")).sum()
            });
        }
        let all: Vec<_> = (0..children).map(|_| Reading::start(how, bytes)).collect::<io::Result<_>>()?;
        all.into_iter().map(Reading::finish).sum()
    }

    fn load(&self, load: Load, how: &How) -> io::Result<Tally> {
        if load.in_flight <= 1 {
            return in_threads(load, load.threads, || self.run(how));
        }
        shared_out(load, how, if self.way == Way::Async { as_tasks } else { oldest_first })
    }

    fn ticks(&self, load: Load, how: &How) -> io::Result<Vec<u64>> {
        while_ticking(load, how)
    }

    /// All under one context.
    fn hold(&self, n: u64, how: &How) -> io::Result<Vec<Child>> {
        let mut command = command(how)?;
        command.context(self.shared.lock().expect("one thread").get_or_insert_default());
        let mut held = Vec::with_capacity(n as usize);
        for _ in 0..n {
            held.push(command.spawn()?);
        }
        Ok(held)
    }

    fn end_all(&self, children: &mut [Child]) -> io::Result<()> {
        if let Some(context) = self.shared.lock().expect("one thread").take() {
            context.cancel();
        }
        children.iter_mut().try_for_each(|child| self.wait(child))
    }
}

/// Each child with a context of its own, by which it is killed.
struct WithContext(Pidloop);

impl Contender for WithContext {
    type Child = (Child, Context);

    fn version(&self) -> String {
        self.0.version()
    }

    fn start(&self, how: &How) -> io::Result<Self::Child> {
        let context = Context::new();
        Ok((command(how)?.context(&context).spawn()?, context))
    }

    fn wait(&self, (child, _): &mut Self::Child) -> io::Result<()> {
        self.0.wait(child)
    }

    fn kill(&self, (_, context): &mut Self::Child) -> io::Result<()> {
        context.cancel();
        Ok(())
    }

    fn run(&self, how: &How) -> io::Result<()> {
        self.wait(&mut self.start(how)?)
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        self.0.read(how, bytes)
    }
}

/// The loop turned by the caller.
struct InReactor;

fn turned(load: Load, how: &How) -> io::Result<Tally> {
    let begin = Instant::now();
    let mut reactor = Reactor::new()?;
    let mut started = 0;
    let mut each = Vec::new();
    let mut open = true;
    while open || !reactor.is_empty() {
        while open && (reactor.len() as u64) < load.in_flight {
            reactor.spawn(&command(how)?)?;
            started += 1;
            open = started < load.n && begin.elapsed() < load.limit;
        }
        reactor.turn(None)?;
        while let Some(ended) = reactor.next_exit() {
            each.push(nanos(ended.exit().spawned_at().elapsed()));
        }
    }
    Ok(Tally { wall: begin.elapsed(), each })
}

impl Contender for InReactor {
    type Child = Reactor;

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn start(&self, how: &How) -> io::Result<Reactor> {
        let mut reactor = Reactor::new()?;
        reactor.spawn(&command(how)?)?;
        Ok(reactor)
    }

    fn wait(&self, reactor: &mut Reactor) -> io::Result<()> {
        while reactor.next_exit().is_none() {
            reactor.turn(Some(Duration::from_secs(60)))?;
        }
        Ok(())
    }

    fn kill(&self, _reactor: &mut Reactor) -> io::Result<()> {
        Err(unsupported("handle on one child"))
    }

    fn run(&self, how: &How) -> io::Result<()> {
        turned(Load { n: 1, in_flight: 1, threads: 1, limit: Duration::MAX }, how).map(drop)
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        self.read_many(1, how, bytes)
    }

    fn load(&self, load: Load, how: &How) -> io::Result<Tally> {
        shared_out(load, how, turned)
    }

    fn read_many(&self, children: u64, how: &How, bytes: Bytes) -> io::Result<u64> {
        if bytes == Bytes::Stream {
            return Err(unsupported("streaming without a thread"));
        }
        let mut reactor = Reactor::new()?;
        let mut command = command(how)?;
        command.stdout(Stdio::captured());
        for _ in 0..children {
            reactor.spawn(&command)?;
        }
        let mut total = 0;
        while !reactor.is_empty() {
            reactor.turn(None)?;
            while let Some(ended) = reactor.next_exit() {
                total += ended.into_output().stdout.len() as u64;
            }
        }
        Ok(total)
    }
}

/// The loop turned by tokio's, in a runtime of one thread.
struct InTokio(tokio::runtime::Runtime);

impl Contender for InTokio {
    type Child = AsyncFd<Reactor>;

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn start(&self, how: &How) -> io::Result<Self::Child> {
        let _inside = self.0.enter();
        #[allow(deprecated, reason = "its successor, of tokio 1.54, is unsafe")]
        AsyncFd::with_interest(InReactor.start(how)?, Interest::READABLE)
    }

    fn wait(&self, reactor: &mut Self::Child) -> io::Result<()> {
        self.0.block_on(async {
            while reactor.get_mut().next_exit().is_none() {
                let mut ready = reactor.readable_mut().await?;
                ready.clear_ready();
                ready.get_inner_mut().turn(Some(Duration::ZERO))?;
            }
            Ok(())
        })
    }

    fn kill(&self, _reactor: &mut Self::Child) -> io::Result<()> {
        Err(unsupported("handle on one child"))
    }

    fn run(&self, how: &How) -> io::Result<()> {
        self.wait(&mut self.start(how)?)
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        InReactor.read(how, bytes)
    }
}

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = std::task::Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
