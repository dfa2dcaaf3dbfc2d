//! What to run, and how it must stop: a description that can be spawned any number of times. Knows nothing of running children.

mod exec;
mod job;
mod options;
mod scope;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use self::job::{Dead, JobState};
pub(crate) use self::job::{Inspect, OnStopped};
pub use self::options::{IoPriority, Namespace, Resource, Scheduler};
pub use self::scope::CgroupScope;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::helpers;
use crate::process::Job;
use crate::shell::Word;
use crate::signal::Signal;
use crate::spawn::{self, Options, Strings};
use crate::stdio::{Kind, Stdio};
use crate::sys::is_open;
use crate::terminal::Terminal;

/// How much of a command line errors and logs show, and each running child keeps.
const LABEL_MAX_BYTES: usize = 1024;

/// What to run, where its streams go, and how it must stop. As std's `Command`, and what Go's `exec.Cmd` adds to that.
///
/// The builder is `Clone` and can be spawned again. It keeps the descriptors it was given until it is dropped: a pipe end given to a
/// `Command` is open in this process as long as the `Command` lives.
///
/// Its `Debug` is the command as a shell would be given it; secret arguments read `***`.
///
/// ```
/// use std::time::Duration;
/// use pidloop::{Command, ErrorKind};
///
/// let mut command = Command::new("sh");
/// command.args(["-c", "echo $GREETING; exit 3"]).env("GREETING", "hello").timeout(Duration::from_secs(10));
///
/// let output = command.output()?;                  // once…
/// assert_eq!((&output.stdout[..], output.status.code()), (&b"hello\n"[..], Some(3)));
///
/// let error = command.run().unwrap_err();          // …and again, this time judged
/// assert_eq!(error.kind(), ErrorKind::Unsuccessful);
/// assert_eq!(error.to_string(), "sh -c 'echo $GREETING; exit 3': exit status 3");
/// # Ok::<(), pidloop::Error>(())
/// ```
#[derive(Clone)]
pub struct Command {
    program: OsString,
    args: Vec<Arg>,
    arg0: Option<OsString>,
    env: Environment,
    pub(crate) stdio: [Option<Stdio>; 3],
    pub(crate) extra: Vec<(RawFd, Arc<OwnedFd>)>,
    pub(crate) options: Options,
    pub(crate) contexts: Vec<Context>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_delay: Option<Duration>,
    pub(crate) cancel: Cancel,
    pub(crate) kill_on_drop: bool,
    pub(crate) priority: i32,
    pub(crate) patient: bool,
    pub(crate) group: bool,
    pub(crate) cgroup_scope: Option<CgroupScope>,
    pub(crate) leftovers: Leftovers,
    pub(crate) inspect: Option<Inspect>,
    pub(crate) on_stopped: Option<OnStopped>,
    /// A terminal of its own.
    pub(crate) terminal: Option<Terminal>,
    /// It is not the first of its pipeline, which was admitted as a whole.
    pub(crate) follows: bool,
    /// The pipeline's group.
    pub(crate) job: Option<Arc<Job>>,
    label: OnceLock<Arc<str>>,
    /// What `execve` takes, made at the first spawn; its environment only where nothing is inherited.
    argv: OnceLock<Arc<Strings>>,
    envp: OnceLock<Arc<Strings>>,
}

#[derive(Clone)]
struct Arg {
    value: OsString,
    secret: bool,
}

/// What the command changes of the environment it inherits.
#[derive(Clone, Default)]
struct Environment {
    clear: bool,
    /// `None` removes.
    vars: BTreeMap<OsString, Option<OsString>>,
}

impl Environment {
    fn is_unchanged(&self) -> bool {
        !self.clear && self.vars.is_empty()
    }
}

/// How a child is stopped when a context fires, a deadline passes or a limit is exceeded; Go's `Cmd.Cancel`.
///
/// It happens at most once per spawn, and never for a spawn that failed.
///
/// ```
/// use std::time::Duration;
/// use pidloop::{Cancel, Cause, Command, Context, Signal, Step};
///
/// let context = Context::new();
/// // Asked, after 100 ms asked again, after 100 ms more killed.
/// let ask = (Step::Signal(Signal::SIGTERM), Duration::from_millis(100));
/// let mut command = Command::new("sleep");
/// let child = command.arg("60").context(&context).cancel(Cancel::Steps(vec![ask; 2])).spawn()?;
/// context.cancel();
/// let exit = child.wait()?;
/// assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGTERM), Some(&Cause::Cancelled)));
/// # Ok::<(), pidloop::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Cancel {
    /// SIGKILL.
    #[default]
    Kill,
    /// This signal, and no more: a child that ignores it runs on unless [`Command::wait_delay`] is set. SIGTERM is
    /// followed by SIGCONT, so that a stopped child receives it.
    Signal(Signal),
    /// Closes the piped or fed stdin that the library still holds; one that was taken is its owner's to close.
    CloseStdin,
    /// Nothing is sent; [`Command::wait_delay`] still runs.
    Nothing,
    /// A ladder: each step, and how long it has. After the last one SIGKILL.
    Steps(Vec<(Step, Duration)>),
    /// What [`Cancel::call`] makes.
    #[doc(hidden)]
    Call(Closure),
}

impl Cancel {
    /// Calls `f` on a helper thread; Go's `Cmd.Cancel`.
    ///
    /// What it returns decides what the child's end is called, as in Go:
    ///
    /// - `Ok`: the child was stopped, whatever its status is.
    /// - An error with `ESRCH` ("no such process") at its bottom: there was nothing to stop. The end is the child's own.
    /// - Another error, or a panic: nothing was stopped, and the end is the child's own. If it is a success,
    ///   [`Exit::check`](crate::Exit::check) tells the failure ([`ErrorKind::CancelFailed`]).
    ///
    /// The closure is not called when the child's exit is seen first. One that blocks delays nothing: the clock of
    /// [`Command::wait_delay`] started when the context fired, and its SIGKILL is a stop of its own. If the child ends while the closure
    /// still runs, its end is published when the closure returns, after 500 ms at the latest: then it counts as `Ok`. So a closure should
    /// not wait for the child. There are 16 helper threads: one that never returns takes one of them away.
    pub fn call(f: impl Fn(&Target<'_>) -> io::Result<()> + Send + Sync + 'static) -> Cancel {
        Cancel::Call(Closure(Arc::new(Box::new(f))))
    }
}

/// The closure of [`Cancel::call`].
#[derive(Clone)]
pub struct Closure(pub(crate) Arc<StopFn>);

type StopFn = Box<dyn Fn(&Target<'_>) -> io::Result<()> + Send + Sync>;

impl Closure {
    /// Has a helper thread drop what it holds, if this is the last of its clones.
    pub(crate) fn retire(self) {
        if let Some(f) = Arc::into_inner(self.0) {
            helpers::run(Box::new(move || drop(f)));
        }
    }
}

impl fmt::Debug for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closure")
    }
}

/// The child that a [`Cancel::call`] closure is asked to stop.
pub struct Target<'a>(pub(crate) &'a dyn Signals);

/// What can be done to a child through a [`Target`].
pub(crate) trait Signals {
    fn pid(&self) -> u32;
    fn signal(&self, signal: Signal) -> Result<()>;
}

impl Target<'_> {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.pid()
    }

    /// Sends a signal, through the pidfd, to the child or (with [`Command::group`]) its group. Ok if it is gone already. What it returns
    /// is what the closure may return: `Cancel::call(|target| target.signal(Signal::SIGTERM))`.
    ///
    /// # Errors
    ///
    /// What `pidfd_send_signal(2)` says: a change of credentials may forbid it.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(self.0.signal(signal)?)
    }
}

impl fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.0.pid()).finish()
    }
}

/// A step of [`Cancel::Steps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Sends this signal; SIGTERM is followed by SIGCONT.
    Signal(Signal),
    /// As [`Cancel::CloseStdin`].
    CloseStdin,
    /// SIGKILL.
    Kill,
}

/// What becomes of the rest of a [`group`](Command::group), or [cgroup](Command::cgroup_scope), whose leader ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leftovers {
    /// It runs on.
    #[default]
    Leave,
    /// It gets SIGKILL.
    Kill,
}

/// What to run, with what, and how it ends.
impl Command {
    /// A command that runs `program`: a path, or a bare name that is looked up in `PATH` at each spawn.
    ///
    /// It inherits environment, directory and streams, as std's.
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        Command {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            arg0: None,
            env: Environment::default(),
            stdio: [None, None, None],
            extra: Vec::new(),
            options: Options::default(),
            contexts: Vec::new(),
            timeout: None,
            wait_delay: None,
            cancel: Cancel::default(),
            kill_on_drop: false,
            priority: 0,
            patient: false,
            group: false,
            cgroup_scope: None,
            leftovers: Leftovers::default(),
            inspect: None,
            on_stopped: None,
            terminal: None,
            follows: false,
            job: None,
            label: OnceLock::new(),
            argv: OnceLock::new(),
            envp: OnceLock::new(),
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Command {
        self.push_arg(arg.as_ref(), false)
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Command {
        for arg in args {
            self.push_arg(arg.as_ref(), false);
        }
        self
    }

    /// Adds an argument that errors, `Debug` and logs show as `***`. Other processes still see it in `/proc`.
    pub fn secret_arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Command {
        self.push_arg(arg.as_ref(), true)
    }

    fn push_arg(&mut self, value: &OsStr, secret: bool) -> &mut Command {
        self.label = OnceLock::new();
        self.argv = OnceLock::new();
        self.args.push(Arg { value: value.to_owned(), secret });
        self
    }

    /// Sets the program's `argv[0]`, which is otherwise its name as given.
    pub fn arg0(&mut self, arg: impl AsRef<OsStr>) -> &mut Command {
        self.argv = OnceLock::new();
        self.arg0 = Some(arg.as_ref().to_owned());
        self
    }

    /// Sets a variable of the environment; the last value wins.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Command {
        self.envp = OnceLock::new();
        self.env.vars.insert(key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Sets variables of the environment.
    pub fn envs(&mut self, vars: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> &mut Command {
        for (key, value) in vars {
            self.env(key, value);
        }
        self
    }

    /// Removes a variable from the environment.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Command {
        self.envp = OnceLock::new();
        if self.env.clear {
            self.env.vars.remove(key.as_ref());
        } else {
            self.env.vars.insert(key.as_ref().to_owned(), None);
        }
        self
    }

    /// Inherits nothing, and forgets what was set before.
    pub fn env_clear(&mut self) -> &mut Command {
        self.envp = OnceLock::new();
        self.env = Environment { clear: true, vars: BTreeMap::new() };
        self
    }

    /// Sets the child's directory, which it enters with its new [`uid`](Command::uid) and so on. A relative program path is relative to
    /// it; `PWD` is left alone, as in std.
    pub fn current_dir(&mut self, dir: impl AsRef<Path>) -> &mut Command {
        self.options.cwd = Some(spawn::Dir::Path(dir.as_ref().to_owned()));
        self
    }

    /// Where stdin comes from. Unless set: inherited by `spawn`, `status` and `run`, null for `output`, as in std.
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Command {
        self.stdio[0] = Some(stdio.into());
        self
    }

    /// Where stdout goes. Unless set: inherited by `spawn`, `status` and `run`, captured by `output`, as in std.
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Command {
        self.stdio[1] = Some(stdio.into());
        self
    }

    /// Where stderr goes. Unless set: inherited by `spawn`, `status` and `run`, captured by `output`, as in std.
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Command {
        self.stdio[2] = Some(stdio.into());
        self
    }

    /// Gives the child a pseudo-terminal of its own: its controlling terminal, in a session of its own, and each of its streams that is not
    /// set. Each spawn makes a new one.
    ///
    /// Who has the other end is said by [`Terminal::output`]: the caller, who takes it ([`Child::take_terminal`](crate::Child::take_terminal)), or the
    /// library. If it is the library and nothing is [typed](Terminal::typed) a stdin that is not set is null: nobody would ever type.
    ///
    /// As with a pipe, a child that writes more than the terminal holds (a few KiB) waits until somebody reads.
    ///
    /// The stream ends when nobody has the terminal open any more; what was written before the child's end is there to be read after it. Its
    /// [`wait_delay`](Command::wait_delay), [`Exit::held_open`](crate::Exit::held_open) and limits are those of a pipe for stdout. The session's
    /// foreground group gets SIGHUP when the child ends, and when our last end is closed: by dropping a [`Child`](crate::Child) whose
    /// terminal nobody took, too.
    ///
    /// ```
    /// use pidloop::{Command, Terminal};
    ///
    /// let output = Command::new("tty").terminal(&Terminal::new()).output()?;
    /// assert_eq!(output.stdout, b"not a tty\r\n");           // nobody types: its stdin is null
    /// let output = Command::new("stty").arg("size").terminal(Terminal::new().size(40, 120).typed("")).output()?;
    /// assert!(output.stdout.starts_with(b"40 120\r\n"));
    /// # Ok::<(), pidloop::Error>(())
    /// ```
    ///
    /// A terminal that cannot be had (no `/dev/ptmx`, `kernel.pty.max`, no descriptors) fails the spawn, in
    /// [`Stage::PseudoTerminal`](crate::Stage::PseudoTerminal).
    pub fn terminal(&mut self, terminal: &Terminal) -> &mut Command {
        self.terminal = Some(terminal.clone());
        self
    }

    /// Gives the child `fd` as its descriptor `child_number`, 3 or more; Go's `ExtraFiles`. The last one for a number counts.
    pub fn fd(&mut self, child_number: RawFd, fd: impl Into<OwnedFd>) -> &mut Command {
        self.forget_descriptor(child_number);
        self.extra.push((child_number, Arc::new(fd.into())));
        self
    }

    /// Lets the child have this process's descriptor `number` under the same number, close-on-exec or not. It is looked at by each spawn,
    /// which fails if it is not open then. What 0, 1 and 2 are is said by [`stdin`](Command::stdin) and so on.
    pub fn inherit_fd(&mut self, number: RawFd) -> &mut Command {
        self.forget_descriptor(number);
        self.options.inherit.push(number);
        self
    }

    fn forget_descriptor(&mut self, child_number: RawFd) {
        self.extra.retain(|(number, _)| *number != child_number);
        self.options.inherit.retain(|number| *number != child_number);
    }

    /// Lets the child have every descriptor of this process that is not close-on-exec, as std does.
    pub fn inherit_fds(&mut self) -> &mut Command {
        self.options.inherit_fds = true;
        self
    }

    /// Stops the child when `context` is cancelled or its deadline passes; Go's `CommandContext`. Several may be attached: the first
    /// to fire wins. A context that is cancelled already keeps `spawn` from starting anything.
    pub fn context(&mut self, context: &Context) -> &mut Command {
        self.contexts.push(context.clone());
        self
    }

    /// A deadline for this child alone: `limit` from the call of `spawn`, never early. Zero: nothing is spawned. After the child's death
    /// it still ends the capturing of its output. One beyond what the clock can say is none.
    pub fn timeout(&mut self, limit: Duration) -> &mut Command {
        self.timeout = Some(limit);
        self
    }

    /// Go's `WaitDelay`: one clock, started by the first of: a stop begins, the child is dead. When `delay` is over a child
    /// that still lives gets SIGKILL, also in the middle of a ladder; then captured streams that somebody holds open are cut. Unless set: no
    /// such clock, as in Go.
    pub fn wait_delay(&mut self, delay: Duration) -> &mut Command {
        self.wait_delay = Some(delay);
        self
    }

    /// Where its spawn must wait for room ([`Driver::set_max_running`](crate::Driver::set_max_running)): it goes before those of a lower
    /// priority, of the same tenant; among equals first come, first served. 0 unless set.
    ///
    /// Every eighth slot that a tenant is given goes to whoever has waited longest, whatever its priority: a low one waits long, but not for
    /// ever. What the child gets of the CPU is another matter: [`nice`](Command::nice).
    pub fn priority(&mut self, priority: i32) -> &mut Command {
        self.priority = priority;
        self
    }

    /// Where descriptors, process slots or memory run out its spawn waits until there are some, instead of failing: until a child of another
    /// patient command ends, and beside that it tries again, few at a time, every 50 ms. Its contexts and its timeout end that, too.
    ///
    /// A [`Reactor`](crate::Reactor) that its caller turns does not wait: there it changes nothing.
    pub fn patient(&mut self, wait: bool) -> &mut Command {
        self.patient = wait;
        self
    }

    /// How the child is stopped; [`Cancel::Kill`] unless set.
    pub fn cancel(&mut self, cancel: Cancel) -> &mut Command {
        self.cancel = cancel;
        self
    }

    /// Whether dropping the [`Child`](crate::Child) (or its driver or reactor) kills it; unless set it runs on. Dropping never blocks.
    pub fn kill_on_drop(&mut self, kill: bool) -> &mut Command {
        self.kill_on_drop = kill;
        self
    }

    /// Starts the child in a process group of its own and aims every stop at the group: context, deadline, limit, `kill`, `signal`,
    /// `terminate`, `kill_on_drop`. A child that ends by itself leaves the rest of its group alone: see [`Command::group_leftovers`].
    pub fn group(&mut self) -> &mut Command {
        self.group = true;
        self.options.group = Some(spawn::Group::New);
        self
    }

    /// What becomes of the rest of the [group](Command::group), or of the [cgroup](Command::cgroup_scope), when the child ends by itself.
    pub fn group_leftovers(&mut self, leftovers: Leftovers) -> &mut Command {
        self.leftovers = leftovers;
        self
    }

    /// The program, as given.
    pub fn get_program(&self) -> &OsStr {
        &self.program
    }

    /// The arguments, without `argv[0]`.
    pub fn get_args(&self) -> impl ExactSizeIterator<Item = &OsStr> {
        self.args.iter().map(|arg| &*arg.value)
    }

    /// The changes to the environment; `None` for a removed variable.
    pub fn get_envs(&self) -> impl ExactSizeIterator<Item = (&OsStr, Option<&OsStr>)> {
        self.env.vars.iter().map(|(key, value)| (&**key, value.as_deref()))
    }

    /// The directory, if one was set.
    pub fn get_current_dir(&self) -> Option<&Path> {
        match &self.options.cwd {
            Some(spawn::Dir::Path(path)) => Some(path),
            _ => None,
        }
    }

    /// The command as a shell line, secrets hidden; made once.
    pub(crate) fn label(&self) -> Arc<str> {
        self.label.get_or_init(|| self.shown().into()).clone()
    }

    /// As [`label`](Command::label), made anew.
    pub(crate) fn shown(&self) -> String {
        let mut line = self.to_string();
        if line.len() > LABEL_MAX_BYTES {
            let end = (0..=LABEL_MAX_BYTES).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(end);
            line.push('…');
        }
        line
    }

    /// Whether anything but the child's own end can matter to a caller that waits for it on the spot.
    pub(crate) fn is_plain(&self) -> bool {
        let alone = !self.group && self.cgroup_scope.is_none() && self.inspect.is_none();
        let unwatched = self.contexts.is_empty() && self.timeout.is_none() && self.terminal.is_none();
        unwatched && alone && !self.has_served_streams()
    }

    /// Whether one of its streams has us at the other end.
    fn has_served_streams(&self) -> bool {
        self.stdio.iter().flatten().any(|stdio| {
            !matches!(stdio.0, Kind::Inherit | Kind::Null | Kind::Fd(_) | Kind::Ours(_) | Kind::SameAsStdout)
        })
    }

    /// Whether it says itself which process group it is in.
    pub(crate) fn has_group(&self) -> bool {
        self.options.group.is_some() || self.options.session || self.cgroup_scope.is_some() || self.terminal.is_some()
    }

    /// What `execve` takes, or why it cannot; made once.
    pub(crate) fn argv(&self) -> Result<Arc<Strings>> {
        if let Some(argv) = self.argv.get() {
            return Ok(argv.clone());
        }
        if self.program.is_empty() {
            return Err(self.invalid("the command is empty"));
        }
        let first = self.arg0.as_ref().unwrap_or(&self.program);
        let args = || std::iter::once(first).chain(self.args.iter().map(|arg| &arg.value)).map(|arg| arg.as_bytes());
        if args().any(|arg| arg.contains(&0)) {
            return Err(self.invalid("an argument contains a NUL byte"));
        }
        let argv = Strings::new(args(), |bytes, arg| bytes.extend_from_slice(arg));
        Ok(self.argv.get_or_init(|| Arc::new(argv)).clone())
    }

    /// The child's environment as `execve` takes it; `None` if it is this process's, unchanged.
    pub(crate) fn envp(&self) -> Result<Option<Arc<Strings>>> {
        if self.env.is_unchanged() {
            return Ok(None);
        }
        if let Some(envp) = self.envp.get() {
            return Ok(Some(envp.clone()));
        }
        let envp = Arc::new(self.merged_env()?);
        // What is inherited is read anew by each spawn.
        Ok(Some(if self.env.clear { self.envp.get_or_init(|| envp).clone() } else { envp }))
    }

    fn merged_env(&self) -> Result<Strings> {
        // Under std's lock; `environ` itself may change under our feet.
        let inherited: Vec<_> = if self.env.clear { Vec::new() } else { std::env::vars_os().collect() };
        let mut vars: BTreeMap<&OsStr, &OsStr> =
            inherited.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str())).collect();
        for (key, value) in &self.env.vars {
            match value {
                Some(value) => vars.insert(key, value),
                None => vars.remove(key.as_os_str()),
            };
        }
        if vars.iter().any(|(key, value)| key.as_bytes().contains(&0) || value.as_bytes().contains(&0)) {
            // The value itself is not shown: it may be a secret.
            return Err(self.invalid("an environment variable contains a NUL byte"));
        }
        Ok(Strings::new(vars, spawn::variable))
    }

    /// The `PATH` to search, if the command sets or removes it.
    pub(crate) fn search_path(&self) -> Option<OsString> {
        match self.env.vars.get(OsStr::new("PATH")) {
            Some(value) => Some(value.clone().unwrap_or_default()),
            None => self.env.clear.then(OsString::new),
        }
    }

    /// Refuses what cannot be meant.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.program.as_bytes().contains(&0) {
            return Err(self.invalid("the program's name contains a NUL byte"));
        }
        if self.get_current_dir().is_some_and(|dir| dir.as_os_str().as_bytes().contains(&0)) {
            return Err(self.invalid("the directory contains a NUL byte").at(Stage::Directory));
        }
        if let Some((number, _)) = self.extra.iter().find(|(number, _)| *number < 3) {
            return Err(self.invalid(&format!("descriptor {number} is not 3 or more")));
        }
        // To the kernel it means "as it is": the child would keep our privileges.
        let ids = [self.options.uid, self.options.gid];
        if ids.contains(&Some(u32::MAX)) {
            return Err(self.invalid(&format!("{} is nobody's id", u32::MAX)));
        }
        // Now, before descriptors of ours take its place.
        if let Some(number) = self.options.inherit.iter().find(|number| !is_open(**number)) {
            let why = io::Error::from_raw_os_error(libc::EBADF);
            return Err(Error::os(Stage::Descriptors, why)
                .of(&*self.label())
                .saying(format!("descriptor {number} is not open")));
        }
        if let Some(why) = self.contradiction() {
            return Err(self.invalid(&why));
        }
        let [stdin, stdout, stderr] = self.stdio.each_ref().map(|s| s.as_ref().map(|s| &s.0));
        match (stdin, stdout, stderr) {
            (Some(Kind::Captured(_) | Kind::Tee(..)), ..) => Err(self.invalid("stdin cannot be captured")),
            (Some(Kind::Spool(_)), ..) => Err(self.invalid("stdin cannot be spooled")),
            (Some(Kind::Queue(_)), ..) => Err(self.invalid("stdin cannot be received in a queue")),
            (Some(Kind::Writer(_)), ..) => Err(self.invalid("stdin cannot be given to a writer")),
            (_, Some(Kind::Bytes(_)), _) | (.., Some(Kind::Bytes(_))) => {
                Err(self.invalid("only stdin can be fed with bytes"))
            }
            (_, Some(Kind::Reader(_)), _) | (.., Some(Kind::Reader(_))) => {
                Err(self.invalid("only stdin can come from a reader"))
            }
            (Some(Kind::SameAsStdout), ..) | (_, Some(Kind::SameAsStdout), _) => {
                Err(self.invalid("only stderr can be the same as stdout"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn invalid(&self, why: &str) -> Error {
        Error::new(ErrorKind::InvalidInput).of(&*self.label()).saying(why)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Word(&self.program).fmt(f)?;
        for arg in &self.args {
            f.write_str(" ")?;
            if arg.secret { f.write_str("***")? } else { Word(&arg.value).fmt(f)? }
        }
        Ok(())
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
