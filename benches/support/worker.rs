//! The side of a benchmark that starts children: a job is a line `verb key=value …` on stdin, its answer a line `ok key=value …` or
//! `no why` on stdout. Knows how a job is told and how a load is laid on; how a child is started is the contender's.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What a child is started with.
#[derive(Clone, Debug)]
pub struct How {
    pub program: String,
    pub args: Vec<String>,
    pub streams: Streams,
    /// One option by name, as `uid`; empty for none.
    pub option: String,
    /// The size that a pipe is set to by the caller; 0: left alone.
    pub pipe_bytes: u64,
    /// Which of a library's several ways to read is meant; empty for the first.
    pub way: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    Null,
    Inherit,
    Capture,
}

/// How many children, and how many of them at once.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub n: u64,
    pub in_flight: u64,
    /// Calling threads, for those who need one for each child anyway not a limit.
    pub threads: u64,
    /// None is started after this time.
    pub limit: Duration,
}

/// What a load took: each child's time from the call that started it to its waiter's return, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub wall: Duration,
    pub each: Vec<u64>,
}

/// What is done with a child's stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// Read in pieces, and forgotten.
    Stream,
    /// Gathered in memory.
    Keep,
}

/// Who starts children: one library in its fastest documented use.
pub trait Contender: Sync {
    type Child: Send;

    fn version(&self) -> String;

    fn start(&self, how: &How) -> io::Result<Self::Child>;

    /// As [`Contender::start`], with the time for which it kept its caller, in nanoseconds.
    fn start_timed(&self, how: &How) -> io::Result<(Self::Child, u64)> {
        let begin = Instant::now();
        let child = self.start(how)?;
        Ok((child, nanos(begin.elapsed())))
    }

    fn wait(&self, child: &mut Self::Child) -> io::Result<()>;

    fn kill(&self, child: &mut Self::Child) -> io::Result<()>;

    /// Starts it and waits for it; with [`Streams::Capture`] has what it wrote.
    fn run(&self, how: &How) -> io::Result<()>;

    /// Reads all of a child's stdout; says how many bytes that was.
    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64>;

    /// A thread for each child in flight, unless the library has something better.
    fn load(&self, load: Load, how: &How) -> io::Result<Tally> {
        in_threads(load, load.in_flight.max(load.threads), || self.run(how))
    }

    /// Several at once; a thread for each, unless the library has something better.
    fn read_many(&self, children: u64, how: &How, bytes: Bytes) -> io::Result<u64> {
        thread::scope(|scope| {
            let readers: Vec<_> = (0..children).map(|_| scope.spawn(|| self.read(how, bytes))).collect();
            readers.into_iter().map(|reader| reader.join().expect("a reader panicked")).sum()
        })
    }

    /// What a child that writes without end does to `n` others (`exits`), or to its own cancel; in nanoseconds.
    fn flood(&self, _kind: &str, _n: u64, _how: &How) -> io::Result<Vec<u64>> {
        Err(unsupported("flood"))
    }

    /// `load.n` children whose output is captured, all asked for at once and `load.in_flight` of them there at most, in a runtime of one thread,
    /// which ticks meanwhile: how late each tick of a millisecond was, in nanoseconds. Without children: for as long as the limit says.
    fn ticks(&self, _load: Load, _how: &How) -> io::Result<Vec<u64>> {
        Err(unsupported("runtime of one thread"))
    }

    fn hold(&self, n: u64, how: &How) -> io::Result<Vec<Self::Child>> {
        (0..n).map(|_| self.start(how)).collect()
    }

    /// All signals first, then all exits.
    fn end_all(&self, children: &mut [Self::Child]) -> io::Result<()> {
        children.iter_mut().try_for_each(|child| self.kill(child))?;
        children.iter_mut().try_for_each(|child| self.wait(child))
    }
}

/// The error for what a library does not offer.
pub fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("it has no {what}"))
}

/// `threads` threads that call `one`, again and again, until enough was done.
pub fn in_threads(load: Load, threads: u64, one: impl Fn() -> io::Result<()> + Sync) -> io::Result<Tally> {
    if threads == 1 {
        let begin = Instant::now();
        let mut each = Vec::with_capacity(load.n.min(1 << 16) as usize);
        while (each.len() as u64) < load.n && begin.elapsed() < load.limit {
            let start = Instant::now();
            one()?;
            each.push(nanos(start.elapsed()));
        }
        return Ok(Tally { wall: begin.elapsed(), each });
    }
    // The threads exist before the clock starts.
    let (gate, left, all) = (Barrier::new(threads as usize + 1), AtomicU64::new(load.n), Mutex::new(Vec::new()));
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    let work = || {
        gate.wait();
        let begin = Instant::now();
        let mut each = Vec::new();
        while begin.elapsed() < load.limit && take() {
            let start = Instant::now();
            one()?;
            each.push(nanos(start.elapsed()));
        }
        all.lock().expect("a thread panicked").extend(each);
        io::Result::Ok(())
    };
    let wall = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        gate.wait();
        let begin = Instant::now();
        let failed = workers.into_iter().map(|w| w.join().expect("a thread panicked")).find(Result::is_err);
        failed.unwrap_or(Ok(())).map(|()| begin.elapsed())
    })?;
    Ok(Tally { wall, each: all.into_inner().expect("a thread panicked") })
}

/// fcntl(2) F_SETPIPE_SZ, as `how` has it.
pub fn size_pipe(how: &How, end: &impl std::os::fd::AsRawFd) {
    if how.pipe_bytes > 0 {
        // SAFETY: a number for a number.
        unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETPIPE_SZ, how.pipe_bytes as libc::c_int) };
    }
}

pub fn nanos(span: Duration) -> u64 {
    span.as_nanos() as u64
}

// ── jobs and answers ──

struct Job {
    verb: String,
    pairs: HashMap<String, String>,
}

impl Job {
    fn parse(line: &str) -> Job {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default().to_owned();
        let pairs = words.filter_map(|w| w.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Job { verb, pairs }
    }

    fn text(&self, key: &str) -> &str {
        self.pairs.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str, otherwise: u64) -> u64 {
        self.text(key).parse().unwrap_or(otherwise)
    }

    fn millis(&self) -> Duration {
        Duration::from_millis(self.number("ms", 60_000))
    }

    fn how(&self) -> How {
        How {
            program: self.text("child").to_owned(),
            args: self.text("args").split(',').filter(|arg| !arg.is_empty()).map(str::to_owned).collect(),
            streams: match self.text("stdio") {
                "inherit" => Streams::Inherit,
                "capture" => Streams::Capture,
                _ => Streams::Null,
            },
            option: self.text("option").to_owned(),
            pipe_bytes: self.number("pipe", 0),
            way: self.text("way").to_owned(),
        }
    }

    fn load(&self) -> Load {
        Load {
            n: self.number("n", 1),
            in_flight: self.number("k", 1),
            threads: self.number("threads", 1),
            limit: self.millis(),
        }
    }

    fn bytes(&self) -> Bytes {
        if self.text("mode") == "memory" { Bytes::Keep } else { Bytes::Stream }
    }
}

/// Answers jobs until stdin ends; then ends what is still held.
pub fn serve<C: Contender>(contender: &C) -> io::Result<()> {
    let mut held = Vec::new();
    let mut touched = Vec::new();
    for line in io::stdin().lock().lines() {
        let job = Job::parse(&line?);
        let answer = match job.verb.as_str() {
            "about" => Ok(format!("version={}", contender.version().replace(' ', "-"))),
            "spawn" => answer_spawn(contender, &job),
            "hold" => contender.hold(job.number("n", 0), &job.how()).map(|more| {
                held.extend(more);
                format!("n={}", held.len())
            }),
            "cancel" => answer_cancel(contender, &mut held),
            "latency" => answer_latency(contender, &job),
            "pipe" => answer_pipe(contender, &job),
            "touch" => Pages::touch(job.number("bytes", 0) as usize).map(|pages| {
                touched.push(pages);
                String::new()
            }),
            "open" => open_many(job.number("fds", 0)),
            "neighbour" => answer_neighbour(contender, &job),
            "flood" => contender
                .flood(job.text("kind"), job.number("n", 1), &job.how())
                .map(|each| format!("n={}{}", each.len(), quantiles(each))),
            "ticks" => answer_ticks(contender, &job),
            other => Err(io::Error::other(format!("an unknown verb: {other}"))),
        };
        let mut out = io::stdout().lock();
        match answer {
            Ok(answer) => writeln!(out, "ok {answer}")?,
            Err(error) => writeln!(out, "no {error}")?,
        }
        out.flush()?;
    }
    contender.end_all(&mut held)
}

fn answer_spawn<C: Contender>(contender: &C, job: &Job) -> io::Result<String> {
    let cpu = cpu();
    let tally = contender.load(job.load(), &job.how())?;
    let cpu = nanos(self::cpu() - cpu);
    let (n, ns) = (tally.each.len(), nanos(tally.wall));
    Ok(format!("n={n} ns={ns} cpu={cpu}{}", quantiles(tally.each)))
}

fn answer_cancel<C: Contender>(contender: &C, held: &mut Vec<C::Child>) -> io::Result<String> {
    let begin = Instant::now();
    contender.end_all(held)?;
    let ns = nanos(begin.elapsed());
    let n = held.len();
    *held = Vec::new();
    Ok(format!("n={n} ns={ns}"))
}

fn answer_latency<C: Contender>(contender: &C, job: &Job) -> io::Result<String> {
    let how = job.how();
    let (kind, file) = (job.text("kind"), job.text("file"));
    let one = || -> io::Result<u64> {
        let mut begin = now();
        let (mut child, kept) = contender.start_timed(&how)?;
        if kind == "cancel" {
            // It is asleep by now, and so is whoever watches it.
            thread::sleep(Duration::from_micros(300));
            begin = now();
            contender.kill(&mut child)?;
        }
        contender.wait(&mut child)?;
        let end = now();
        Ok(match kind {
            "exit" => end.saturating_sub(stamp(file)?),
            "exec" => stamp(file)?.saturating_sub(begin),
            "call" => kept,
            _ => end - begin,
        })
    };
    let each = (0..job.number("n", 1)).map(|_| one()).collect::<io::Result<Vec<_>>>()?;
    Ok(format!("n={}{}", each.len(), quantiles(each)))
}

fn answer_ticks<C: Contender>(contender: &C, job: &Job) -> io::Result<String> {
    let begin = Instant::now();
    let each = contender.ticks(job.load(), &job.how())?;
    Ok(format!("n={} ns={}{}", each.len(), nanos(begin.elapsed()), quantiles(each)))
}

fn answer_pipe<C: Contender>(contender: &C, job: &Job) -> io::Result<String> {
    let (mut was, resident) = ([0; 2], reset_peak()?);
    was[0] = nanos(cpu());
    was[1] = nanos(cpu_of(libc::RUSAGE_SELF));
    let begin = Instant::now();
    let bytes = contender.read_many(job.number("children", 1), &job.how(), job.bytes())?;
    let ns = nanos(begin.elapsed());
    let (cpu, own_cpu) = (nanos(cpu()) - was[0], nanos(cpu_of(libc::RUSAGE_SELF)) - was[1]);
    let own_cpu = own_cpu.saturating_sub(ASIDE.swap(0, Ordering::Relaxed));
    let peak = status_bytes("VmHWM:")?.saturating_sub(resident);
    Ok(format!("bytes={bytes} ns={ns} cpu={cpu} own_cpu={own_cpu} peak={peak}"))
}

/// CPU time of this process that does not count as its own.
static ASIDE: AtomicU64 = AtomicU64::new(0);

/// What `f` costs is not counted: the kernel's work of taking back a file's memory, which somebody has to do some time.
pub fn aside(f: impl FnOnce()) {
    let before = cpu_of(libc::RUSAGE_SELF);
    f();
    ASIDE.fetch_add(nanos(cpu_of(libc::RUSAGE_SELF) - before), Ordering::Relaxed);
}

/// From now on the largest resident set is counted anew; what is resident now. proc_pid_clear_refs(5).
fn reset_peak() -> io::Result<u64> {
    std::fs::write("/proc/self/clear_refs", "5")?;
    status_bytes("VmRSS:")
}

/// proc_pid_status(5).
fn status_bytes(key: &str) -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    Ok(line.trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024)
}

fn open_many(n: u64) -> io::Result<String> {
    for _ in 0..n {
        // They stay open until the process ends.
        std::mem::forget(File::open("/dev/null")?);
    }
    Ok(String::new())
}

/// What a child wrote of its first or last act.
pub fn stamp(file: &str) -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open(file)?.read_exact_at(&mut bytes, 0)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// `CLOCK_MONOTONIC`, as the children read it.
pub fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Of this process and the children it has reaped.
fn cpu() -> Duration {
    cpu_of(libc::RUSAGE_SELF) + cpu_of(libc::RUSAGE_CHILDREN)
}

fn cpu_of(who: libc::c_int) -> Duration {
    // SAFETY: all zeroes are a rusage, and getrusage(2) writes one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &mut usage);
        usage
    };
    let span = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    span(usage.ru_utime) + span(usage.ru_stime)
}

fn quantiles(mut each: Vec<u64>) -> String {
    each.sort_unstable();
    let at = |q: f64| each.get((each.len().saturating_sub(1) as f64 * q) as usize).copied().unwrap_or(0);
    format!(" p50={} p99={} p999={} max={}", at(0.5), at(0.99), at(0.999), at(1.0))
}

// ── memory and a busy neighbour ──

const PAGE_BYTES: usize = 4096;

/// Private anonymous memory in pages of 4 KiB.
struct Pages {
    base: *mut u8,
    bytes: usize,
}

impl Pages {
    fn new(bytes: usize) -> io::Result<Pages> {
        // SAFETY: fresh anonymous memory.
        let base = unsafe {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advice about that mapping.
        unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) };
        Ok(Pages { base: base.cast(), bytes })
    }

    fn touch(bytes: usize) -> io::Result<Pages> {
        let pages = Pages::new(bytes.max(PAGE_BYTES))?;
        (0..pages.bytes / PAGE_BYTES).for_each(|i| pages.fault(i));
        Ok(pages)
    }

    fn fault(&self, page: usize) {
        // SAFETY: `page` is one of ours, as both callers count.
        unsafe { self.base.add(page * PAGE_BYTES).write_volatile(1) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

const FAULTS_MAX: usize = 8 << 20;
const PATCH_PAGES: usize = 256;
const TICK: Duration = Duration::from_millis(1);

/// How long each page fault took.
fn fault_pages(stop: &AtomicBool) -> io::Result<Vec<u64>> {
    let mut each = Vec::with_capacity(FAULTS_MAX);
    // Its own pages are there before the clock runs.
    each.resize(FAULTS_MAX, 1);
    each.clear();
    while !stop.load(Ordering::Relaxed) && each.len() + PATCH_PAGES <= FAULTS_MAX {
        let patch = Pages::new(PATCH_PAGES * PAGE_BYTES)?;
        for page in 0..PATCH_PAGES {
            let start = now();
            patch.fault(page);
            each.push(now() - start);
        }
    }
    Ok(each)
}

/// How late each tick of a millisecond was.
fn count_ticks(stop: &AtomicBool) -> io::Result<Vec<u64>> {
    let mut each = Vec::new();
    let mut at = now();
    while !stop.load(Ordering::Relaxed) {
        at += nanos(TICK);
        let until = libc::timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
        // SAFETY: reads a timespec.
        unsafe {
            libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &until, std::ptr::null_mut());
        }
        each.push(now().saturating_sub(at));
    }
    Ok(each)
}

fn answer_neighbour<C: Contender>(contender: &C, job: &Job) -> io::Result<String> {
    let stop = AtomicBool::new(false);
    let busy = if job.text("kind") == "ticks" { count_ticks } else { fault_pages };
    let (each, spawned) = thread::scope(|scope| {
        let busy = scope.spawn(|| busy(&stop));
        let spawned = if job.number("spawn", 0) == 1 {
            contender.load(Load { n: u64::MAX >> 20, ..job.load() }, &job.how()).map(|tally| tally.each.len())
        } else {
            thread::sleep(job.millis());
            Ok(0)
        };
        stop.store(true, Ordering::Relaxed);
        let each = busy.join().expect("the busy thread panicked")?;
        io::Result::Ok((each, spawned?))
    })?;
    Ok(format!("n={} spawned={spawned}{}", each.len(), quantiles(each)))
}
