//! A contender's process, seen from the benchmark: asked over its stdin, answering on its stdout. Knows no meaning of a job.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Nobody takes longer for one job.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug)]
pub struct Subject {
    process: Child,
    jobs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// `key=value` of an answer.
#[derive(Clone, Debug, Default)]
pub struct Answer(HashMap<String, String>);

impl Answer {
    pub fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key)?.parse().ok()
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub fn set(&mut self, key: &str, value: f64) {
        self.0.insert(key.to_owned(), value.to_string());
    }
}

impl Subject {
    /// Starts it; `pinned`: on the last of our CPUs alone, with everything it starts.
    pub fn start(line: &[String], pinned: bool) -> Result<Subject, String> {
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut spawn = || command.spawn().map_err(|e| format!("{}: {e}", line[0]));
        let mut process = if pinned { on_one_cpu(spawn)? } else { spawn()? };
        let (jobs, answers) = (process.stdin.take(), process.stdout.take().expect("piped"));
        Ok(Subject { process, jobs, answers: BufReader::new(answers) })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// # Errors
    ///
    /// Its own reason, or that it does not answer (any more).
    pub fn ask(&mut self, job: &str) -> Result<Answer, String> {
        let jobs = self.jobs.as_mut().expect("open until it is dropped");
        writeln!(jobs, "{job}").map_err(|e| format!("it is gone: {e}"))?;
        self.await_answer(job)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).map_err(|e| e.to_string())?;
        match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
            ("ok", pairs) => {
                let pairs = pairs.split(' ').filter_map(|pair| pair.split_once('='));
                Ok(Answer(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()))
            }
            ("no", why) => Err(why.to_owned()),
            _ => Err(format!("it died of `{job}`")),
        }
    }

    /// One answer for one job: nothing is buffered before it comes.
    fn await_answer(&mut self, job: &str) -> Result<(), String> {
        let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(self.answers.get_ref(), PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => {
                let _ = self.process.kill();
                Err(format!("no answer to `{job}` in {} s", PATIENCE.as_secs()))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Resident bytes by smaps_rollup, descriptors, threads, and CPU time in ns, as the kernel counts them.
    pub fn footprint(&self) -> std::io::Result<Footprint> {
        let proc = format!("/proc/{}", self.pid());
        let rollup = std::fs::read_to_string(format!("{proc}/smaps_rollup"))?;
        let rss =
            rollup.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let count = |dir: &str| std::fs::read_dir(format!("{proc}/{dir}")).map(Iterator::count);
        let mut cpu_ns = 0;
        for task in std::fs::read_dir(format!("{proc}/task"))? {
            let stat = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            cpu_ns += stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Footprint { rss_bytes: rss.unwrap_or(0) * 1024, descriptors: count("fd")?, threads: count("task")?, cpu_ns })
    }
}

/// What a process costs at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    pub rss_bytes: u64,
    pub descriptors: usize,
    pub threads: usize,
    pub cpu_ns: u64,
}

impl Drop for Subject {
    /// Its stdin ends: it kills what it holds and ends.
    fn drop(&mut self) {
        self.jobs = None;
        let wait = Timespec { tv_sec: 30, tv_nsec: 0 };
        let ends = poll(&mut [PollFd::from_borrowed_fd(self.answers.get_ref().as_fd(), PollFlags::IN)], Some(&wait));
        if ends == Ok(0) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// What is spawned inherits the affinity of the spawning thread.
fn on_one_cpu<T>(spawn: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let all = sched_getaffinity(None).map_err(|e| e.to_string())?;
    let last = (0..CpuSet::MAX_CPU).rfind(|cpu| all.is_set(*cpu)).unwrap_or(0);
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).map_err(|e| e.to_string())?;
    let result = spawn();
    sched_setaffinity(None, &all).map_err(|e| e.to_string())?;
    result
}
