//! The peers whose calls block: std, subprocess, duct.

use std::io::{self, Read};
use std::process::{Child, Stdio};

use subprocess::{Exec, ExecExt, Redirection};

use crate::options;
use crate::worker::{Bytes, Contender, How, Streams, size_pipe, unsupported};

const PIECE_BYTES: usize = 64 << 10;

/// Reads to the end.
fn read_all(mut source: impl Read, bytes: Bytes) -> io::Result<u64> {
    match bytes {
        Bytes::Keep => {
            let mut all = Vec::new();
            source.read_to_end(&mut all)?;
            Ok(all.len() as u64)
        }
        Bytes::Stream => {
            let mut piece = vec![0; PIECE_BYTES];
            let mut total = 0;
            loop {
                match source.read(&mut piece)? {
                    0 => return Ok(total),
                    got => total += got as u64,
                }
            }
        }
    }
}

pub struct Std;

impl Contender for Std {
    type Child = Child;

    fn version(&self) -> String {
        "(the compiler's)".into()
    }

    fn start(&self, how: &How) -> io::Result<Child> {
        options::command(how)?.spawn()
    }

    fn wait(&self, child: &mut Child) -> io::Result<()> {
        child.wait().map(drop)
    }

    fn kill(&self, child: &mut Child) -> io::Result<()> {
        child.kill()
    }

    fn run(&self, how: &How) -> io::Result<()> {
        let mut command = options::command(how)?;
        if how.streams == Streams::Capture { command.output().map(drop) } else { command.status().map(drop) }
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        let mut command = options::command(how)?;
        if bytes == Bytes::Keep {
            return command.stdout(Stdio::piped()).output().map(|output| output.stdout.len() as u64);
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("piped");
        size_pipe(how, &stdout);
        let total = read_all(stdout, bytes)?;
        child.wait()?;
        Ok(total)
    }
}

pub struct Subprocess;

impl Subprocess {
    fn exec(how: &How) -> io::Result<Exec> {
        let exec = match how.option.as_str() {
            "path" => return Err(unsupported("lookup in the child's PATH")),
            _ => Exec::cmd(&how.program).args(&how.args),
        };
        let exec = match how.streams {
            Streams::Null => exec.stdin(Redirection::Null).stdout(Redirection::Null).stderr(Redirection::Null),
            _ => exec,
        };
        Ok(match how.option.as_str() {
            "" => exec,
            "uid" => exec.setuid(65534),
            "gid" => exec.setgid(65534),
            "process_group" => exec.setpgid(),
            "cwd" => exec.cwd("/"),
            other => return Err(unsupported(other)),
        })
    }
}

impl Contender for Subprocess {
    type Child = subprocess::Job;

    fn version(&self) -> String {
        crate::locked("subprocess")
    }

    fn start(&self, how: &How) -> io::Result<subprocess::Job> {
        Subprocess::exec(how)?.start()
    }

    fn wait(&self, child: &mut subprocess::Job) -> io::Result<()> {
        child.wait().map(drop)
    }

    fn kill(&self, child: &mut subprocess::Job) -> io::Result<()> {
        child.kill()
    }

    fn run(&self, how: &How) -> io::Result<()> {
        let exec = Subprocess::exec(how)?;
        if how.streams == Streams::Capture {
            exec.stdout(Redirection::Pipe).stderr(Redirection::Pipe).capture().map(drop)
        } else {
            exec.join().map(drop)
        }
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        let exec = Subprocess::exec(how)?;
        match bytes {
            Bytes::Keep => exec.stdout(Redirection::Pipe).capture().map(|capture| capture.stdout.len() as u64),
            Bytes::Stream => read_all(exec.stream_stdout()?, bytes),
        }
    }
}

pub struct Duct;

impl Duct {
    fn expression(how: &How) -> io::Result<duct::Expression> {
        let (program, path) = match how.option.as_str() {
            "path" => how.program.rsplit_once('/').map_or((&*how.program, None), |(dir, name)| (name, Some(dir))),
            _ => (&*how.program, None),
        };
        let mut expression = duct::cmd(program, &how.args).unchecked();
        if let Some(path) = path {
            expression = expression.env("PATH", path);
        }
        if !matches!(how.option.as_str(), "" | "path") {
            let option = how.option.clone();
            expression = expression.before_spawn(move |command| options::set(command, &option));
        }
        Ok(expression)
    }

    fn with_streams(how: &How) -> io::Result<duct::Expression> {
        let expression = Duct::expression(how)?;
        Ok(match how.streams {
            Streams::Null => expression.stdin_null().stdout_null().stderr_null(),
            _ => expression,
        })
    }
}

impl Contender for Duct {
    type Child = duct::Handle;

    fn version(&self) -> String {
        crate::locked("duct")
    }

    fn start(&self, how: &How) -> io::Result<duct::Handle> {
        Duct::with_streams(how)?.start()
    }

    fn wait(&self, child: &mut duct::Handle) -> io::Result<()> {
        child.wait().map(drop)
    }

    fn kill(&self, child: &mut duct::Handle) -> io::Result<()> {
        child.kill()
    }

    fn run(&self, how: &How) -> io::Result<()> {
        if how.streams == Streams::Capture {
            Duct::expression(how)?.stdin_null().stdout_capture().stderr_capture().run().map(drop)
        } else {
            Duct::with_streams(how)?.run().map(drop)
        }
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        let expression = Duct::expression(how)?.stdin_null().stderr_null();
        match bytes {
            Bytes::Keep => expression.stdout_capture().run().map(|output| output.stdout.len() as u64),
            Bytes::Stream => read_all(expression.reader()?, bytes),
        }
    }
}
