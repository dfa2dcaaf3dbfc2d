//! This process becomes what a command describes. Knows that nobody is left then who could watch it.

use std::os::fd::AsFd;

use super::Command;
use crate::error::Error;
use crate::spawn::{self, Busy, Plan, Source};
use crate::stdio::{Kind, Stdio};
use crate::sys::process::Published;

impl Command {
    /// Replaces this process by the program, as std's [`exec`](std::os::unix::process::CommandExt::exec): it returns only if that fails. The
    /// other threads end, nothing is dropped, and running children become the program's.
    ///
    /// Everything that a child can be given applies, but what needs somebody who watches: contexts, a timeout, a `wait_delay`, a cgroup of
    /// its own and streams that are piped, captured, fed or served are refused; so are new user and PID namespaces, which the kernel gives to new
    /// processes alone. Descriptors that it is not given are closed, as a child's are. What is set on the calling thread alone applies.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`]. This process goes on then as it was: a thread beside the calling one does all this, and until its exec it has
    /// descriptors, directory, umask, root and ids of its own. What belongs to a process as a whole is put back: signal dispositions,
    /// resource limits (a hard limit that was lowered needs `CAP_SYS_RESOURCE`), OOM score, process group. Of the options that were
    /// done before the step that failed four are not: a session, a terminal (taken, dropped, foreground), a cgroup, and what a
    /// [`pre_exec`](Command::pre_exec) closure did to the process, in whose memory it runs.
    ///
    /// While it fails, a moment long, signals that the command ignores are ignored, and SIGPIPE has its default action.
    ///
    /// ```no_run
    /// let error = pidloop::Command::new("sh").env("GREETING", "hello").exec();
    /// eprintln!("still here: {error}");
    /// ```
    pub fn exec(&mut self) -> Error {
        self.become_it().of(self.shown())
    }

    fn become_it(&self) -> Error {
        let prepared = self.validate().and_then(|()| {
            if let Some(why) = self.needs_a_watcher() {
                return Err(self.invalid(why));
            }
            Ok((self.argv()?, self.envp()?))
        });
        let (argv, env) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return error,
        };
        spawn::replace(&Plan {
            program: self.get_program(),
            argv,
            env,
            search_path: self.search_path(),
            stdio: self.stdio.each_ref().map(source),
            extra: self.extra.iter().map(|(number, fd)| (*number, fd.as_fd())).collect(),
            options: &self.options,
            publish: &Published::new(),
            retry_busy: Busy::Spin { tries: 1 },
            raise: false,
        })
    }

    fn needs_a_watcher(&self) -> Option<&'static str> {
        if self.has_served_streams() || self.terminal.is_some() {
            Some("after an exec nobody is left at the other end of a stream")
        } else if !self.contexts.is_empty() || self.timeout.is_some() || self.wait_delay.is_some() {
            Some("after an exec nobody is left to stop it")
        } else if self.cgroup_scope.is_some() {
            Some("after an exec nobody is left to remove its cgroup")
        } else {
            None
        }
    }
}

fn source(stdio: &Option<Stdio>) -> Source<'_> {
    match stdio.as_ref().map(|stdio| &stdio.0) {
        Some(Kind::Null) => Source::Null,
        Some(Kind::Fd(fd)) => Source::Fd(fd.as_fd()),
        Some(Kind::Ours(number)) => Source::Ours(*number),
        Some(Kind::SameAsStdout) => Source::SameAsStdout,
        // The others have been refused.
        _ => Source::Inherit,
    }
}
