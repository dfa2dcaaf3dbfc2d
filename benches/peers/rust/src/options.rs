//! The options of the benchmarks, as std's `Command` has them; `pre_exec` where it has no setter of its own.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::worker::{How, Streams, unsupported};

const NOBODY: u32 = 65534;
const ROOT: &CStr = c"/";

/// A command of std's, with everything but captured streams.
pub fn command(how: &How) -> io::Result<Command> {
    let mut command = match how.option.as_str() {
        // A bare name, and a PATH of the child's own to find it in.
        "path" => {
            let path = Path::new(&how.program);
            let mut command = Command::new(path.file_name().unwrap_or_default());
            command.env("PATH", path.parent().unwrap_or(path));
            command
        }
        _ => Command::new(&how.program),
    };
    command.args(&how.args);
    if how.streams == Streams::Null {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    set(&mut command, &how.option)?;
    Ok(command)
}

pub fn set(command: &mut Command, option: &str) -> io::Result<()> {
    match option {
        "" | "path" => {}
        "uid" => {
            command.uid(NOBODY);
        }
        "gid" => {
            command.gid(NOBODY);
        }
        "process_group" => {
            command.process_group(0);
        }
        "cwd" => {
            command.current_dir("/");
        }
        // SAFETY (all of these): one system call, and nothing allocated.
        "setsid" => unsafe { in_child(command, || libc::setsid()) },
        "groups" => unsafe { in_child(command, || libc::setgroups(1, &NOBODY)) },
        "chroot" => unsafe { in_child(command, || libc::chroot(ROOT.as_ptr())) },
        "umask" => unsafe { in_child(command, || libc::umask(0o22) as i32) },
        "rlimit" => unsafe {
            in_child(command, || {
                let limit = libc::rlimit { rlim_cur: 1024, rlim_max: 1024 };
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
            })
        },
        other => return Err(unsupported(other)),
    }
    Ok(())
}

/// # Safety
///
/// That of `pre_exec`.
unsafe fn in_child(command: &mut Command, call: impl Fn() -> i32 + Send + Sync + 'static) {
    // SAFETY: the caller's.
    unsafe {
        command.pre_exec(move || if call() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
}
