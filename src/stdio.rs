//! Where a child's streams go, and the ends a caller may take. Knows nothing of how they are connected.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Where one of a child's streams goes. As std's `Stdio`, and more.
#[derive(Clone, Debug)]
pub struct Stdio(pub(crate) Kind);

#[derive(Clone)]
pub(crate) enum Kind {
    Inherit,
    Null,
    Piped,
    Captured(Option<Limit>),
    Fd(Arc<OwnedFd>),
    Bytes(Arc<[u8]>),
    SameAsStdout,
}

impl std::fmt::Debug for Kind {
    /// The bytes of a stdin are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Inherit => f.write_str("inherit"),
            Kind::Null => f.write_str("null"),
            Kind::Piped => f.write_str("piped"),
            Kind::Captured(None) => f.write_str("captured"),
            Kind::Captured(Some(limit)) => write!(f, "captured {limit:?}"),
            Kind::Fd(fd) => write!(f, "descriptor {}", fd.as_raw_fd()),
            Kind::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Kind::SameAsStdout => f.write_str("as stdout"),
        }
    }
}

impl Stdio {
    /// The child shares this process's stream.
    pub fn inherit() -> Stdio {
        Stdio(Kind::Inherit)
    }

    /// `/dev/null`.
    pub fn null() -> Stdio {
        Stdio(Kind::Null)
    }

    /// A pipe whose other end the caller takes (`take_stdin`, `take_stdout`, `take_stderr`): it is the caller's, blocking, and is never
    /// cut or closed behind its back.
    pub fn piped() -> Stdio {
        Stdio(Kind::Piped)
    }

    /// The reactor reads the stream into memory, without a limit; `wait_with_output` (or [`Ended`](crate::Ended)) has it. Not for stdin.
    pub fn captured() -> Stdio {
        Stdio(Kind::Captured(None))
    }

    /// As [`Stdio::captured`], within a limit.
    pub fn captured_limited(limit: Limit) -> Stdio {
        Stdio(Kind::Captured(Some(limit)))
    }

    /// The reactor writes these bytes to the child's stdin and closes it. A child that does not read them is no error. Only for stdin.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Stdio {
        Stdio(Kind::Bytes(bytes.into().into()))
    }

    /// Only for stderr: the same as stdout, whatever that is; the order of what is written to the two is kept.
    pub fn stdout() -> Stdio {
        Stdio(Kind::SameAsStdout)
    }
}

impl From<OwnedFd> for Stdio {
    /// The child gets this descriptor; its flags are not changed, for nobody.
    fn from(fd: OwnedFd) -> Stdio {
        Stdio(Kind::Fd(Arc::new(fd)))
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Stdio {
        OwnedFd::from(file).into()
    }
}

/// How much captured output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// The first and the last bytes; those between them are counted.
    HeadTail {
        /// How many of the first bytes are kept.
        head_bytes: usize,
        /// How many of the last bytes are kept.
        tail_bytes: usize,
    },
    /// The first bytes; one more stops the child, with [`Cause::OutputLimit`](crate::Cause::OutputLimit).
    StopAt {
        /// How many bytes are allowed.
        bytes: usize,
    },
}

impl Limit {
    /// Keeps the first `head_bytes` and the last `tail_bytes`, and counts the rest.
    pub fn head_tail(head_bytes: usize, tail_bytes: usize) -> Limit {
        Limit::HeadTail { head_bytes, tail_bytes }
    }

    /// Stops the child when it writes more than `bytes`.
    pub fn stop_at(bytes: usize) -> Limit {
        Limit::StopAt { bytes }
    }
}

macro_rules! child_stream {
    ($name:ident, $what:literal) => {
        #[doc = $what]
        ///
        /// It is the caller's: blocking, usable after `wait`, closed when it is dropped.
        #[derive(Debug)]
        pub struct $name(File);

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.0.as_raw_fd()
            }
        }

        impl From<OwnedFd> for $name {
            fn from(fd: OwnedFd) -> $name {
                $name(fd.into())
            }
        }

        impl From<$name> for OwnedFd {
            fn from(stream: $name) -> OwnedFd {
                stream.0.into()
            }
        }

        impl From<$name> for Stdio {
            fn from(stream: $name) -> Stdio {
                OwnedFd::from(stream).into()
            }
        }
    };
}

child_stream!(ChildStdin, "The write end of a child's piped stdin.");
child_stream!(ChildStdout, "The read end of a child's piped stdout.");
child_stream!(ChildStderr, "The read end of a child's piped stderr.");

macro_rules! writes {
    ($($name:ty),*) => {$(
        impl Write for $name {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                (&self.0).write(bytes)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
    )*};
}

macro_rules! reads {
    ($($name:ty),*) => {$(
        impl Read for $name {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                (&self.0).read(bytes)
            }

            fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
                (&self.0).read_to_end(bytes)
            }
        }
    )*};
}

writes!(ChildStdin, &ChildStdin);
reads!(ChildStdout, &ChildStdout, ChildStderr, &ChildStderr);
