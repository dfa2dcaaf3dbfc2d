//! Commands that write into one another, `a | b | c`: started, stopped and waited for as one. Knows how each of them is started and judged;
//! the pipes go from child to child, and no end of them stays here.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::twins::{Ending, Spawning};
use super::{BUSY, Child, Held, finish};
use crate::cause::Cause;
use crate::command::{Cancel, Command};
use crate::context::Context;
use crate::driver::{Driver, default_core};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::exit::{Captured, Exit, Output, Verdict};
use crate::process::Job;
use crate::reactor::cell::Cell;
use crate::reactor::core::Core;
use crate::reactor::start::{Defaults, Manner, start};
use crate::reactor::{BUSY_WITHOUT_SLEEP, ChildId, Reactor, Remote};
use crate::signal::Signal;
use crate::spawn::{Busy, raise};
use crate::stdio::{ChildStderr, ChildStdin, ChildStdout, Stdio};
use crate::token::Token;

/// What a shell's status says of a child that SIGPIPE killed.
const KILLED_BY_SIGPIPE: i32 = 128 + libc::SIGPIPE;

/// Commands whose stdout is the next one's stdin, as `a | b | c` in a shell; one thing that is started, stopped and waited for.
///
/// The pipes go from child to child: nothing is copied here, and a command that ends early gives its writer SIGPIPE, as in a shell.
/// Every other setting is a command's own: its stderr, directory, contexts, [`Cancel`]. What is set here is for all of them.
///
/// It is a builder as [`Command`] is: `Clone`, and it can be spawned again.
///
/// Where a limit counts ([`Driver::set_max_running`]) it counts as its first command: that one waits for room, the others follow.
///
/// ```
/// use std::time::Duration;
/// use pidloop::{Command, Pipeline};
///
/// let mut pipeline = Pipeline::new([
///     Command::new("printf").arg("b\\na\\nb\\n"),
///     Command::new("sort").arg("-u"),
/// ]);
/// let output = pipeline.timeout(Duration::from_secs(10)).output()?;
/// assert_eq!(output.stdout(), b"a\nb\n");
/// assert_eq!(output.exit().exits().len(), 2);
///
/// // The same, shorter; the order of errors and output of one command is kept, too.
/// let both = Command::new("sh").args(["-c", "echo out; echo err >&2"]).stderr(pidloop::Stdio::stdout()).pipe_to(&Command::new("cat")).output()?;
/// assert_eq!(both.stdout(), b"out\nerr\n");
/// # Ok::<(), pidloop::Error>(())
/// ```
#[derive(Clone)]
pub struct Pipeline {
    commands: Vec<Command>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    contexts: Vec<Context>,
    timeout: Option<Duration>,
    wait_delay: Option<Duration>,
    cancel: Option<Cancel>,
    kill_on_drop: Option<bool>,
    group: bool,
    pipefail: Pipefail,
}

/// Which of a pipeline's commands decides about its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pipefail {
    /// The last one, as in a shell.
    #[default]
    Off,
    /// The rightmost that failed, as in a shell after `set -o pipefail`. So `yes | head -1` fails: `yes` dies of SIGPIPE.
    On,
    /// As [`Pipefail::On`], but it is no failure of a command before the last that its reader had enough: death by SIGPIPE, or the
    /// status 141 by which a shell tells of it.
    ExceptSigpipe,
}

/// The commands, and what is for all of them.
impl Pipeline {
    /// A pipeline of these commands; as they are now: what is changed in one later is not changed here.
    pub fn new(commands: impl IntoIterator<Item = impl Borrow<Command>>) -> Pipeline {
        Pipeline {
            commands: commands.into_iter().map(|command| command.borrow().clone()).collect(),
            stdin: None,
            stdout: None,
            stderr: None,
            contexts: Vec::new(),
            timeout: None,
            wait_delay: None,
            cancel: None,
            kill_on_drop: None,
            group: false,
            pipefail: Pipefail::default(),
        }
    }

    /// Adds a command that reads what the last one so far writes.
    pub fn pipe_to(&mut self, next: &Command) -> &mut Pipeline {
        self.commands.push(next.clone());
        self
    }

    /// Where the first command's stdin comes from; unless set: what that command says.
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Pipeline {
        self.stdin = Some(stdio.into());
        self
    }

    /// Where the last command's stdout goes; unless set: what that command says.
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Pipeline {
        self.stdout = Some(stdio.into());
        self
    }

    /// Where the stderr goes of each command that says nothing of its own. [`Stdio::stdout`]: into the pipe, with its stdout.
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Pipeline {
        self.stderr = Some(stdio.into());
        self
    }

    /// Stops all of them when `context` is cancelled or its deadline passes; as [`Command::context`].
    pub fn context(&mut self, context: &Context) -> &mut Pipeline {
        self.contexts.push(context.clone());
        self
    }

    /// A deadline for all of them: `limit` from the call of `spawn`; as [`Command::timeout`].
    pub fn timeout(&mut self, limit: Duration) -> &mut Pipeline {
        self.timeout = Some(limit);
        self
    }

    /// As [`Command::wait_delay`], for each of them.
    pub fn wait_delay(&mut self, delay: Duration) -> &mut Pipeline {
        self.wait_delay = Some(delay);
        self
    }

    /// How each of them is stopped; as [`Command::cancel`].
    pub fn cancel(&mut self, cancel: Cancel) -> &mut Pipeline {
        self.cancel = Some(cancel);
        self
    }

    /// As [`Command::kill_on_drop`], for each of them.
    pub fn kill_on_drop(&mut self, kill: bool) -> &mut Pipeline {
        self.kill_on_drop = Some(kill);
        self
    }

    /// Starts all of them in one process group, as a shell does with a job, and aims every stop at the group: context, deadline, limit,
    /// `kill`, `signal`, `terminate`, `kill_on_drop`. The first command leads it.
    ///
    /// Through pidfds (Linux 6.9), so that what the first command has started is reached also when that has ended; before that each command
    /// is stopped by itself. What is left of the group when all commands have ended is left alone.
    pub fn group(&mut self) -> &mut Pipeline {
        self.group = true;
        self
    }

    /// Which command decides about the status; [`Pipefail::Off`] unless set.
    pub fn pipefail(&mut self, pipefail: Pipefail) -> &mut Pipeline {
        self.pipefail = pipefail;
        self
    }

    /// The commands, first to last.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }
}

impl Command {
    /// A pipeline: what this command writes, `next` reads. `a.pipe_to(&b)` is `a | b`.
    pub fn pipe_to(&self, next: &Command) -> Pipeline {
        Pipeline::new([self, next])
    }
}

impl fmt::Display for Pipeline {
    /// As a shell would be given it; secret arguments read `***`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, command) in self.commands.iter().enumerate() {
            write!(f, "{}{command}", if at > 0 { " | " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Running it.
impl Pipeline {
    /// Starts the commands, first to last, on the default driver. Where children wait for admission ([`Driver::set_max_running`]) the first
    /// command waits and counts for all: were each to wait for a slot of its own, those that have one could wait for the next. Returns when all programs run; or none is left of those that did.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`], of the first command that could not be started: [`Error::command`] is its line, and the message says which of
    /// them it is. Those before it have been killed and reaped by then. [`ErrorKind::InvalidInput`] for a pipeline of no commands, and for a
    /// command within it that has another stdin or stdout than the pipes.
    pub fn spawn(&self) -> Result<Children> {
        self.spawn_on(self.default_core()?)
    }

    /// Runs it to its end, as [`Command::status`]: `Ok` for every exit status. It is the deciding command's: see [`Pipefail`].
    ///
    /// # Errors
    ///
    /// As [`Pipeline::spawn`]; and if a command was stopped, or its status was taken by somebody else.
    pub fn status(&self) -> Result<ExitStatus> {
        self.finish(Defaults::Inherit).and_then(Finished::status)
    }

    /// Runs it to its end, as [`Command::run`].
    ///
    /// # Errors
    ///
    /// As [`Pipeline::status`], and if the deciding command did not exit with status 0.
    pub fn run(&self) -> Result<PipelineExit> {
        self.finish(Defaults::Inherit).and_then(Finished::run)
    }

    /// Runs it to its end and gives what it wrote, as [`Command::output`]: the first stdin is null, the last stdout and every stderr are
    /// captured, unless set; `Ok` for every exit status.
    ///
    /// # Errors
    ///
    /// As [`Pipeline::status`], and if somebody still held a stream when reading was ended. [`Error::output`] has the stdout of the last command, and
    /// the stderr of the one that is to blame.
    pub fn output(&self) -> Result<PipelineOutput> {
        self.finish(Defaults::Capture).and_then(Finished::output)
    }

    fn default_core(&self) -> Result<&'static Arc<Core>> {
        default_core().map_err(|error| error.of(self.to_string()))
    }

    fn spawn_on(&self, core: &Arc<Core>) -> Result<Children> {
        let (started, job) = self.start(core, Defaults::Inherit, BUSY)?;
        let children = started.into_iter().map(|(cell, _)| Child { cell }).collect();
        Ok(Children { children, job, pipefail: self.pipefail })
    }

    /// On the calling thread.
    fn start(&self, core: &Arc<Core>, defaults: Defaults, busy: Busy) -> Result<(Vec<Started>, Option<Arc<Job>>)> {
        core.check_ours().map_err(|error| error.of(self.to_string()))?;
        let mut line = Line::new(self)?;
        let mut started = Vec::with_capacity(self.commands.len());
        while let Some((command, watched)) = line.next() {
            let begun = start(core, &command, Manner { defaults, busy, watched });
            let begun = begun.and_then(|begun| {
                started.push(begun);
                line.begun(&started[started.len() - 1].0)
            });
            if let Err(error) = begun {
                take_back(core, &started);
                return Err(line.blame(error));
            }
        }
        if let Err(error) = line.all_run(started.iter().map(|(cell, _)| cell)) {
            take_back(core, &started);
            return Err(error);
        }
        Ok((started, line.job))
    }

    fn finish(&self, defaults: Defaults) -> Result<Finished> {
        let (started, _) = self.start(self.default_core()?, defaults, BUSY)?;
        let held: Vec<Held> = started.into_iter().map(|(cell, _)| Held(Some(cell))).collect();
        let ended = held.iter().map(|held| finish(held.cell())).collect::<Result<Vec<_>>>()?;
        held.into_iter().for_each(|held| drop(held.release()));
        Ok(Finished::new(ended, self.pipefail))
    }
}

impl Driver {
    /// As [`Pipeline::spawn`], on this driver.
    ///
    /// # Errors
    ///
    /// As [`Pipeline::spawn`] and [`Driver::spawn`].
    pub fn spawn_pipeline(&self, pipeline: &Pipeline) -> Result<Children> {
        pipeline.spawn_on(self.core())
    }
}

impl Reactor {
    /// As [`Pipeline::spawn`]; the ids of the commands, first to last. Each is a child as any other: it is reported by itself, and
    /// [`PipelineExit::new`] joins their ends.
    ///
    /// # Errors
    ///
    /// As [`Pipeline::spawn`] and [`Reactor::spawn`]. Of the commands that were started before the failure none is reported.
    pub fn spawn_pipeline(&mut self, pipeline: &Pipeline) -> Result<Vec<ChildId>> {
        pipeline.spawn_into(self.core())
    }
}

impl Remote {
    /// As [`Reactor::spawn_pipeline`].
    ///
    /// # Errors
    ///
    /// As [`Reactor::spawn_pipeline`] and [`Remote::spawn`].
    pub fn spawn_pipeline(&self, pipeline: &Pipeline) -> Result<Vec<ChildId>> {
        pipeline.spawn_into(self.core())
    }
}

impl Pipeline {
    fn spawn_into(&self, core: &Arc<Core>) -> Result<Vec<ChildId>> {
        let (started, _) = self.start(core, Defaults::Inherit, BUSY_WITHOUT_SLEEP)?;
        Ok(started.into_iter().map(|(_, token)| ChildId::new(token)).collect())
    }
}

type Started = (Arc<Cell>, Token);

/// None of them is left, and nobody is told of them.
fn take_back(core: &Core, started: &[Started]) {
    // First all of them: who reads from another would else end by itself, and might do things before.
    for (cell, _) in started {
        let _ = cell.signal(Signal::SIGKILL);
    }
    for (cell, token) in started {
        cell.put_down();
        core.withdraw(*token);
    }
}

/// The commands of a pipeline that are still to be started, with the pipes between them.
struct Line {
    commands: VecDeque<Command>,
    count: usize,
    begun_at: Instant,
    limit: Option<Duration>,
    /// The group of all.
    job: Option<Arc<Job>>,
}

impl Line {
    /// Takes every pipe before anything is started.
    fn new(pipeline: &Pipeline) -> Result<Line> {
        let job = pipeline.group.then(|| Arc::new(Job::new()));
        let count = pipeline.commands.len();
        let mut line = Line {
            commands: VecDeque::with_capacity(count),
            count,
            begun_at: Instant::now(),
            limit: pipeline.timeout,
            job,
        };
        if count == 0 {
            return Err(Error::new(ErrorKind::InvalidInput).saying("a pipeline of no commands"));
        }
        let mut read_end = None;
        for (at, command) in pipeline.commands.iter().enumerate() {
            let mut command = command.clone();
            line.connect(pipeline, at, &mut command, &mut read_end)
                .map_err(|error| error.of(command.shown()).at_place(at + 1, count))?;
            pipeline.settle(&mut command);
            command.job.clone_from(&line.job);
            command.follows = at > 0;
            line.commands.push_back(command);
        }
        Ok(line)
    }

    /// `read_end`: of the pipe from the command before.
    fn connect(
        &self,
        pipeline: &Pipeline,
        at: usize,
        command: &mut Command,
        read_end: &mut Option<Stdio>,
    ) -> Result<()> {
        let (is_first, is_last) = (at == 0, at + 1 == self.count);
        let why = if !is_first && command.stdio[0].is_some() {
            "its stdin is the pipe from the command before it"
        } else if !is_last && command.stdio[1].is_some() {
            "its stdout is the pipe to the command after it"
        } else if pipeline.group && command.has_group() {
            "its scope is the pipeline's group"
        } else {
            ""
        };
        if !why.is_empty() {
            return Err(command.invalid(why));
        }
        let [stdin, stdout, stderr] = &mut command.stdio;
        match read_end.take() {
            Some(end) => *stdin = Some(end),
            None => replace(stdin, &pipeline.stdin),
        }
        if is_last {
            replace(stdout, &pipeline.stdout);
        } else {
            let (read, write) = pipe()?;
            *stdout = Some(write.into());
            *read_end = Some(read.into());
        }
        if stderr.is_none() {
            replace(stderr, &pipeline.stderr);
        }
        Ok(())
    }

    /// The next command, and whether the loop watches it from the start: a group's leader stays unreaped until all have joined it, so that its
    /// number is nobody else's.
    fn next(&mut self) -> Option<(Command, bool)> {
        let is_first = self.commands.len() == self.count;
        let mut command = self.commands.pop_front()?;
        if let Some(limit) = self.limit {
            let left = limit.saturating_sub(self.begun_at.elapsed());
            command.timeout = Some(command.timeout.map_or(left, |own| own.min(left)));
        }
        match (&self.job, is_first) {
            (None, _) => return Some((command, true)),
            (Some(_), true) => {
                command.group();
            }
            (Some(job), false) => {
                command.process_group(job.leader() as i32);
            }
        }
        Some((command, !is_first))
    }

    /// It runs.
    fn begun(&self, cell: &Arc<Cell>) -> Result<()> {
        match &self.job {
            Some(job) if job.leader() == 0 => {
                job.lead(cell.pidfd()?, cell.pid());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// All run: the leader is watched, too.
    fn all_run<'a>(&self, mut cells: impl Iterator<Item = &'a Arc<Cell>>) -> Result<()> {
        if let (Some(leader), Some(job)) = (cells.next(), &self.job) {
            leader.hand_over().map_err(|error| error.at_place(1, self.count))?;
            job.complete();
        }
        Ok(())
    }

    /// The command that could not be started.
    fn blame(&self, error: Error) -> Error {
        error.at_place(self.count - self.commands.len(), self.count)
    }
}

fn replace(stream: &mut Option<Stdio>, other: &Option<Stdio>) {
    if let Some(other) = other {
        *stream = Some(other.clone());
    }
}

/// (read end, write end), close-on-exec, and neither 0, 1 nor 2.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = crate::pipe::pipe().map_err(|error| Error::os(Stage::Streams, error))?;
    let out_of_the_way = |end: OwnedFd| if end.as_raw_fd() < 3 { raise(end) } else { end };
    Ok((out_of_the_way(read), out_of_the_way(write)))
}

impl Pipeline {
    /// What is for all of them.
    fn settle(&self, command: &mut Command) {
        command.contexts.extend(self.contexts.iter().cloned());
        if let Some(delay) = self.wait_delay {
            command.wait_delay(delay);
        }
        if let Some(cancel) = &self.cancel {
            command.cancel(cancel.clone());
        }
        if let Some(kill) = self.kill_on_drop {
            command.kill_on_drop(kill);
        }
    }
}

// ── the same as futures ──

/// Running it without blocking; needs no runtime in particular.
impl Pipeline {
    /// As [`Pipeline::spawn`], each command as by [`Command::spawn_async`]. Nothing happens before the future is polled.
    ///
    /// # Errors
    ///
    /// As [`Pipeline::spawn`]. The commands before the one that failed have been killed; the loop reaps them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future starts nothing, or kills what it has started.
    pub fn spawn_async(&self) -> impl Future<Output = Result<Children>> + Send + use<> {
        self.spawning(None)
    }

    /// As [`Pipeline::status`], started as by [`Pipeline::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`Pipeline::status`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills all of them.
    pub fn status_async(&self) -> impl Future<Output = Result<ExitStatus>> + Send + use<> {
        let finishing = self.finishing(Defaults::Inherit);
        async move { finishing.await.and_then(Finished::status) }
    }

    /// As [`Pipeline::run`], started as by [`Pipeline::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`Pipeline::run`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills all of them.
    pub fn run_async(&self) -> impl Future<Output = Result<PipelineExit>> + Send + use<> {
        let finishing = self.finishing(Defaults::Inherit);
        async move { finishing.await.and_then(Finished::run) }
    }

    /// As [`Pipeline::output`], started as by [`Pipeline::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`Pipeline::output`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills all of them; what they wrote is lost.
    pub fn output_async(&self) -> impl Future<Output = Result<PipelineOutput>> + Send + use<> {
        let finishing = self.finishing(Defaults::Capture);
        async move { finishing.await.and_then(Finished::output) }
    }

    fn spawning(&self, core: Option<Arc<Core>>) -> impl Future<Output = Result<Children>> + Send + use<> {
        let pipeline = self.clone();
        async move {
            let (held, job) = pipeline.start_async(core, Defaults::Inherit).await?;
            let children = held.into_iter().map(|held| Child { cell: held.release() }).collect();
            Ok(Children { children, job, pipefail: pipeline.pipefail })
        }
    }

    fn finishing(&self, defaults: Defaults) -> impl Future<Output = Result<Finished>> + Send + use<> {
        let pipeline = self.clone();
        async move {
            let (held, _) = pipeline.start_async(None, defaults).await?;
            let mut ended = Vec::with_capacity(held.len());
            for one in &held {
                let exit = Ending::with_output(one.cell())?.await?;
                ended.push((exit, one.cell().take_captured()));
            }
            held.into_iter().for_each(|held| drop(held.release()));
            Ok(Finished::new(ended, pipeline.pipefail))
        }
    }

    /// What is dropped with it is killed.
    async fn start_async(&self, core: Option<Arc<Core>>, defaults: Defaults) -> Result<(Vec<Held>, Option<Arc<Job>>)> {
        let mut line = Line::new(self)?;
        let mut held: Vec<Held> = Vec::with_capacity(self.commands.len());
        while let Some((command, watched)) = line.next() {
            let spawning = Spawning::new(&command, core.as_ref(), Manner { defaults, busy: BUSY, watched });
            let cell = spawning.await.map_err(|error| line.blame(error))?;
            held.push(Held(Some(cell)));
            line.begun(held[held.len() - 1].cell()).map_err(|error| line.blame(error))?;
        }
        line.all_run(held.iter().map(Held::cell))?;
        Ok((held, line.job))
    }
}

impl Driver {
    /// As [`Pipeline::spawn_async`], on this driver.
    ///
    /// # Errors
    ///
    /// As [`Driver::spawn_pipeline`].
    ///
    /// # Cancel safety
    ///
    /// As [`Pipeline::spawn_async`].
    pub fn spawn_pipeline_async(&self, pipeline: &Pipeline) -> impl Future<Output = Result<Children>> + Send + use<> {
        pipeline.spawning(Some(self.core().clone()))
    }
}

// ── in its holder's hands ──

/// The children of a pipeline, first to last.
///
/// Everything takes `&self`, as with [`Child`]. Dropping it drops each [`Child`]: they run on, unless [`Pipeline::kill_on_drop`] says
/// otherwise.
///
/// ```
/// use std::io::Write;
/// use std::time::Duration;
/// use pidloop::{Command, Stdio};
///
/// let mut pipeline = Command::new("tr").args(["a-z", "A-Z"]).pipe_to(Command::new("head").args(["-n", "1"]));
/// let children = pipeline.stdin(Stdio::piped()).stdout(Stdio::captured()).spawn()?;
/// children.take_stdin().unwrap().write_all(b"hello\nworld\n")?;
/// let output = children.wait_with_output()?;
/// assert_eq!(output.stdout(), b"HELLO\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Children {
    children: Vec<Child>,
    job: Option<Arc<Job>>,
    pipefail: Pipefail,
}

impl Children {
    /// Each of them.
    pub fn children(&self) -> &[Child] {
        &self.children
    }

    /// Each of them, to do with them one by one.
    pub fn into_children(self) -> Vec<Child> {
        self.children
    }

    /// Waits for the death of all, as [`Child::wait`]: an untaken piped stdin is closed first, and the answer is `Ok` whatever they did.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn wait(&self) -> Result<PipelineExit> {
        self.join(self.children.iter().map(Child::wait).collect::<Result<_>>()?)
    }

    /// Whether all are dead, and how they ended.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn try_wait(&self) -> Result<Option<PipelineExit>> {
        let exits = self.children.iter().map(Child::try_wait).collect::<Result<Option<_>>>()?;
        exits.map(|exits| self.join(exits)).transpose()
    }

    /// As [`Children::wait`], for at most `limit`; `None` if any is alive then. Nothing is sent to them.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<PipelineExit>> {
        let until = Instant::now().checked_add(limit);
        let exits = self.children.iter().map(|child| child.cell.wait(until)).collect::<Result<Option<_>>>()?;
        exits.map(|exits| self.join(exits)).transpose()
    }

    /// Waits until all are dead and their captured or piped streams are complete or cut, and gives what they wrote. It reports and does not
    /// judge: see [`PipelineOutput::exit`].
    ///
    /// # Errors
    ///
    /// As [`Child::wait_with_output`].
    pub fn wait_with_output(self) -> Result<PipelineOutput> {
        let ended = self.children.iter().map(|child| finish(&child.cell)).collect::<Result<Vec<_>>>()?;
        PipelineOutput::new(Finished::new(ended, self.pipefail))
    }

    /// Sends a signal to each that lives; to their [group](Pipeline::group), if they have one. As [`Child::signal`].
    ///
    /// # Errors
    ///
    /// As [`Child::signal`]: the first one; the others were signalled all the same.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(job) = &self.job {
            // A group that all its commands have left to itself is left alone.
            if self.try_wait()?.is_some() || job.signal(signal) {
                return Ok(());
            }
        }
        let results: Vec<Result<()>> = self.children.iter().map(|child| child.signal(signal)).collect();
        results.into_iter().collect()
    }

    /// SIGKILL. Does not wait.
    ///
    /// # Errors
    ///
    /// As [`Children::signal`].
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// SIGTERM for all, and after `grace` SIGKILL for those that live; waits for the death of all. As [`Child::terminate`].
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn terminate(&self, grace: Duration) -> Result<PipelineExit> {
        self.begin_to_terminate(grace)?;
        self.wait()
    }

    fn begin_to_terminate(&self, grace: Duration) -> Result<()> {
        self.children.iter().try_for_each(|child| child.cell.check_ours())?;
        self.children.iter().for_each(|child| child.cell.terminate(grace));
        Ok(())
    }

    /// The write end of the first one's piped stdin; once.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.children.first()?.take_stdin()
    }

    /// The read end of the last one's piped stdout; once.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.children.last()?.take_stdout()
    }

    /// The read end of the piped stderr of the one at `index`, from 0; once.
    pub fn take_stderr(&self, index: usize) -> Option<ChildStderr> {
        self.children.get(index)?.take_stderr()
    }

    fn join(&self, exits: Vec<Exit>) -> Result<PipelineExit> {
        Ok(PipelineExit { exits, pipefail: self.pipefail })
    }
}

/// Waiting without blocking.
impl Children {
    /// As [`Children::wait`], for any runtime.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing; the children run on.
    pub async fn wait_async(&self) -> Result<PipelineExit> {
        let mut exits = Vec::with_capacity(self.children.len());
        for child in &self.children {
            exits.push(child.wait_async().await?);
        }
        self.join(exits)
    }

    /// As [`Children::wait_with_output`].
    ///
    /// # Errors
    ///
    /// As [`Child::wait_with_output`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the children, and what they wrote: they run on, unless [`kill_on_drop`](Pipeline::kill_on_drop) says
    /// otherwise.
    pub async fn wait_with_output_async(self) -> Result<PipelineOutput> {
        let endings = self.children.iter().map(|child| Ending::with_output(&child.cell)).collect::<Result<Vec<_>>>()?;
        let mut ended = Vec::with_capacity(self.children.len());
        for (ending, child) in endings.into_iter().zip(&self.children) {
            ended.push((ending.await?, child.cell.take_captured()));
        }
        PipelineOutput::new(Finished::new(ended, self.pipefail))
    }

    /// As [`Children::terminate`]. Nothing is sent before the future is polled.
    ///
    /// # Errors
    ///
    /// As [`Child::terminate`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting alone: what was begun goes on, SIGKILL after `grace` included.
    pub async fn terminate_async(&self, grace: Duration) -> Result<PipelineExit> {
        self.begin_to_terminate(grace)?;
        self.wait_async().await
    }
}

// ── how it ended ──

/// How the commands of a pipeline ended, first to last.
#[derive(Clone, Debug)]
pub struct PipelineExit {
    exits: Vec<Exit>,
    pipefail: Pipefail,
}

impl PipelineExit {
    /// Joins the ends of the commands of a pipeline, first to last: of children of a [`Reactor`], which are reported one by one.
    ///
    /// # Panics
    ///
    /// If there are none.
    #[track_caller]
    pub fn new(exits: impl IntoIterator<Item = Exit>, pipefail: Pipefail) -> PipelineExit {
        let exits: Vec<Exit> = exits.into_iter().collect();
        assert!(!exits.is_empty(), "a pipeline has a command");
        PipelineExit { exits, pipefail }
    }

    /// Of each command, first to last.
    pub fn exits(&self) -> &[Exit] {
        &self.exits
    }

    /// Of the command that decides: see [`Pipefail`].
    pub fn exit(&self) -> &Exit {
        &self.exits[self.deciding()]
    }

    fn deciding(&self) -> usize {
        let last = self.exits.len() - 1;
        let failed = |at: &usize| {
            let exit = &self.exits[*at];
            let by_sigpipe = exit.signal() == Some(Signal::SIGPIPE) || exit.code() == Some(KILLED_BY_SIGPIPE);
            let had_to_end = self.pipefail == Pipefail::ExceptSigpipe && *at < last && by_sigpipe;
            !exit.success() && !had_to_end
        };
        match self.pipefail {
            Pipefail::Off => last,
            Pipefail::On | Pipefail::ExceptSigpipe => (0..=last).rev().find(failed).unwrap_or(last),
        }
    }

    /// The exit status of the command that decides; `None` if somebody else took it.
    pub fn status(&self) -> Option<ExitStatus> {
        self.exit().status()
    }

    /// Whether the command that decides exited with status 0.
    pub fn success(&self) -> bool {
        self.exit().success()
    }

    /// The exit code of the command that decides; `None` if a signal killed it.
    pub fn code(&self) -> Option<i32> {
        self.exit().code()
    }

    /// Why a command was stopped: the first one's that was.
    pub fn cause(&self) -> Option<&Cause> {
        self.exits.iter().find_map(Exit::cause)
    }

    /// Ok if no command was stopped, and the one that decides exited with status 0.
    ///
    /// # Errors
    ///
    /// In this order of blame: the first command that was stopped; the deciding one, if it was not successful; the first of which
    /// [`Exit::check`] says something else (a lost status, cut output). [`Error::exit`] is that command's.
    pub fn check(&self) -> Result<()> {
        self.judge(true).map_err(|(error, _)| error)
    }

    /// The error, and whose.
    fn judge(&self, non_success: bool) -> std::result::Result<(), (Error, usize)> {
        let lenient = Verdict { non_success: false, cut: true };
        let stopped = self.exits.iter().position(|exit| exit.cause().is_some());
        let deciding = self.deciding();
        let first = stopped.map(|at| (at, lenient)).or(Some((deciding, Verdict { non_success, cut: true })));
        let all = (0..self.exits.len()).map(|at| (at, lenient));
        for (at, verdict) in first.into_iter().chain(all) {
            let judged = self.exits[at].judge(verdict);
            judged.map_err(|error| (error.at_place(at + 1, self.exits.len()), at))?;
        }
        Ok(())
    }
}

impl fmt::Display for PipelineExit {
    /// As the deciding one is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.exit(), f)
    }
}

/// How the commands of a pipeline ended and what they wrote.
#[derive(Clone, Debug)]
pub struct PipelineOutput {
    status: ExitStatus,
    outputs: Vec<Output>,
    exit: PipelineExit,
}

impl PipelineOutput {
    fn new(finished: Finished) -> Result<PipelineOutput> {
        let Finished { exit, captured } = finished;
        let joined = exit.exits.iter().zip(captured).map(|(exit, captured)| Output::new(exit.clone(), captured));
        let outputs = joined.collect::<Result<Vec<_>>>()?;
        Ok(PipelineOutput { status: outputs[exit.deciding()].status, outputs, exit })
    }

    /// The exit status of the command that decides: see [`Pipefail`].
    pub fn status(&self) -> ExitStatus {
        self.status
    }

    /// What the last command wrote to its stdout.
    pub fn stdout(&self) -> &[u8] {
        self.outputs.last().map_or(&[], |last| &last.stdout)
    }

    /// As [`PipelineOutput::stdout`], by value.
    pub fn into_stdout(mut self) -> Vec<u8> {
        self.outputs.pop().map_or_else(Vec::new, |last| last.stdout)
    }

    /// What each command wrote to its stderr, first to last; the stdout of all but the last is empty.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// How they ended.
    pub fn exit(&self) -> &PipelineExit {
        &self.exit
    }
}

/// A pipeline at its end, to be judged.
struct Finished {
    exit: PipelineExit,
    captured: Vec<Captured>,
}

impl Finished {
    fn new(ended: Vec<(Exit, Captured)>, pipefail: Pipefail) -> Finished {
        let (exits, captured) = ended.into_iter().unzip();
        Finished { exit: PipelineExit { exits, pipefail }, captured }
    }

    fn judge(&mut self, non_success: bool) -> Result<()> {
        self.exit.judge(non_success).map_err(|(error, whose)| {
            let stderr = std::mem::take(&mut self.captured[whose]);
            let stdout = self.captured.last_mut().map(std::mem::take).unwrap_or_default();
            // Of one and the same command it is all there.
            let is_last = whose + 1 == self.captured.len();
            error.with_captured(if is_last { stderr } else { stdout.with_stderr_of(stderr) })
        })
    }

    fn status(mut self) -> Result<ExitStatus> {
        self.judge(false)?;
        self.exit.status().ok_or_else(|| Error::new(ErrorKind::StatusLost))
    }

    fn run(mut self) -> Result<PipelineExit> {
        self.judge(true).map(|()| self.exit)
    }

    fn output(mut self) -> Result<PipelineOutput> {
        self.judge(false)?;
        PipelineOutput::new(self)
    }
}
