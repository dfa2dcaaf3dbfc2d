//! Where a child's streams go, and the ends a caller may take. Knows nothing of how they are connected.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::queue::{Queue, QueueOptions, Tap};

/// Where one of a child's streams goes. As std's `Stdio`, and more.
///
/// | | who has the other end | `wait_with_output` waits for it |
/// |---|---|---|
/// | [`inherit`](Stdio::inherit), [`null`](Stdio::null), `From<OwnedFd>` | whoever had it before | no |
/// | [`piped`](Stdio::piped) | the caller, who takes it | unless it was taken |
/// | [`captured`](Stdio::captured), [`captured_limited`](Stdio::captured_limited) | the reactor, which reads it | yes |
/// | [`tee`](Stdio::tee), [`tee_limited`](Stdio::tee_limited) | the reactor, which reads it, and a thread with the caller's `Write` | yes |
/// | [`spooled`](Stdio::spooled), [`spooled_into`](Stdio::spooled_into) | nobody: the child writes into a file | no |
/// | [`bytes`](Stdio::bytes) | the reactor, which writes it | no |
/// | [`reader`](Stdio::reader) | a thread with the caller's `Read` | no |
/// | [`writer`](Stdio::writer) | a thread with the caller's `Write` | yes |
/// | [`lines`](Stdio::lines), [`chunks`](Stdio::chunks), [`QueueOptions`] | the reactor, which reads it into a [`Queue`] | yes, not for its consumer |
///
/// A stream that is waited for ends when the last process that holds it has closed it; [`wait_delay`](crate::Command::wait_delay), a
/// [context](crate::Command::context) or a [timeout](crate::Command::timeout) ends it before.
#[derive(Clone, Debug)]
pub struct Stdio(pub(crate) Kind);

#[derive(Clone)]
pub(crate) enum Kind {
    Inherit,
    Null,
    Piped,
    Captured(Option<Limit>),
    /// Captured, and passed on.
    Tee(Option<Limit>, OneShot<dyn Write + Send>),
    Fd(Arc<OwnedFd>),
    /// This process's descriptor of that number: 1 or 2.
    Ours(RawFd),
    Bytes(Arc<Vec<u8>>),
    Reader(OneShot<dyn Read + Send>),
    Writer(OneShot<dyn Write + Send>),
    Queue(OneShot<Tap>),
    /// Into memory, or behind what is in a file.
    Spool(Option<Arc<OwnedFd>>),
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
            Kind::Tee(None, _) => f.write_str("captured and passed on"),
            Kind::Tee(Some(limit), _) => write!(f, "captured {limit:?} and passed on"),
            Kind::Fd(fd) => write!(f, "descriptor {}", fd.as_raw_fd()),
            Kind::Ours(number) => write!(f, "our descriptor {number}"),
            Kind::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Kind::Reader(_) => f.write_str("reader"),
            Kind::Writer(_) => f.write_str("writer"),
            Kind::Queue(_) => f.write_str("queue"),
            Kind::Spool(None) => f.write_str("spooled"),
            Kind::Spool(Some(fd)) => write!(f, "spooled into descriptor {}", fd.as_raw_fd()),
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
    ///
    /// Each stream has its bytes apart; with [`Stdio::stdout`] for stderr both are one, in order. To have both marked as they came in, take them
    /// out of a queue without bounds when the child is done:
    ///
    /// ```
    /// use pidloop::{Command, QueueOptions, Stream};
    ///
    /// # fn main() -> pidloop::Result<()> {
    /// let (stdout, stderr, chunks) = QueueOptions::chunks().unbounded().both();
    /// Command::new("sh").args(["-c", "echo out; echo err >&2"]).stdout(stdout).stderr(stderr).run()?;
    /// let mut chunks: Vec<(Stream, Vec<u8>)> = chunks.collect();
    /// chunks.sort();
    /// assert_eq!(chunks, [(Stream::Stdout, b"out\n".to_vec()), (Stream::Stderr, b"err\n".to_vec())]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn captured() -> Stdio {
        Stdio(Kind::Captured(None))
    }

    /// As [`Stdio::captured`], within a limit.
    pub fn captured_limited(limit: Limit) -> Stdio {
        Stdio(Kind::Captured(Some(limit)))
    }

    /// The child writes into a file in memory (`memfd_create(2)`) by itself: [`Output::stdout_spool`](crate::Output::stdout_spool) is it. No pipe,
    /// nobody who copies, however much it is; whoever else still holds it when the child is dead holds up nobody. Not for stdin.
    ///
    /// It is complete when the child is dead: then it is sealed, so that it can be [mapped or read](crate::Spool), and whom the child has left
    /// behind fails to write into it, with `EPERM`. All writes append, so that several who write at once lose nothing. With
    /// [`Stdio::stdout`] for stderr both are one, in order.
    ///
    /// What it cannot do: there is no limit of its size (it is memory, counted as this process's or its cgroup's), nobody can follow it while it
    /// is written or wait for more, and a program that truncates its stdout (`echo > /dev/stdout`), or reads it, does so. A program may ask
    /// what its stdout is, and buffer otherwise than into a pipe.
    ///
    /// ```
    /// use pidloop::{Command, Stdio};
    ///
    /// # fn main() -> pidloop::Result<()> {
    /// let output = Command::new("seq").arg("100000").stdout(Stdio::spooled()).output()?;
    /// let spool = output.stdout_spool.unwrap();
    /// assert_eq!(spool.len_bytes(), 588_895);
    /// assert!(spool.read().unwrap().ends_with(b"\n99999\n100000\n"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn spooled() -> Stdio {
        Stdio(Kind::Spool(None))
    }

    /// As [`Stdio::spooled`], behind what is in `file` already, which has to be a regular file that this process may open for reading and for
    /// writing (it is opened anew, through `/proc`, so that its own flags and position stay as they are). It is not sealed.
    ///
    /// Where nobody asks for what was written `Stdio::from(file)` does: this one appends, and says what the child's part is.
    pub fn spooled_into(file: impl Into<OwnedFd>) -> Stdio {
        Stdio(Kind::Spool(Some(Arc::new(file.into()))))
    }

    /// As [`Stdio::captured`], and all of it is passed on to `writer` as it comes: a file, this process's own stdout; `tee(1)`.
    ///
    /// The reactor reads, and a thread of its own writes, as with [`Stdio::writer`], which see for how that ends. A writer that is slow holds
    /// the child up when a mebibyte waits for it, and nobody else. One that fails (a full disk) is given up, the capture goes on, and
    /// [`Exit::check`](crate::Exit::check) names the failure of a child that otherwise did well ([`ErrorKind::Io`](crate::ErrorKind::Io)).
    /// It serves one spawn, as [`Stdio::reader`].
    ///
    /// ```
    /// use pidloop::{Command, Stdio};
    ///
    /// # fn main() -> pidloop::Result<()> {
    /// let output = Command::new("echo").arg("seen twice").stdout(Stdio::tee(std::io::stdout())).output()?;
    /// assert_eq!(output.stdout, b"seen twice\n");
    /// # Ok(())
    /// # }
    /// ```
    pub fn tee(writer: impl Write + Send + 'static) -> Stdio {
        Stdio(Kind::Tee(None, OneShot::new(Box::new(writer))))
    }

    /// As [`Stdio::tee`], where what is captured is limited and what is passed on is not.
    pub fn tee_limited(limit: Limit, writer: impl Write + Send + 'static) -> Stdio {
        Stdio(Kind::Tee(Some(limit), OneShot::new(Box::new(writer))))
    }

    /// The reactor writes these bytes to the child's stdin and closes it. A child that does not read them is no error; what it has left
    /// unread when it is dead and its output has ended is given up. Only for stdin.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Stdio {
        Stdio(Kind::Bytes(Arc::new(bytes.into())))
    }

    /// What `reader` gives is written to the child's stdin, which is closed at its end; Go's `Cmd.Stdin`. Only for stdin.
    ///
    /// It serves one spawn, as do its clones together: a second one fails with [`ErrorKind::StreamUsed`](crate::ErrorKind::StreamUsed). A
    /// spawn that fails leaves it for the next.
    ///
    /// It is read on a thread of its own, which ends with it; at most 1,024 of them run at once. When the child is dead and its output
    /// has ended nobody waits for it: a reader that blocks is left behind, and dropped when it returns. A child that does not read is no error. An error that `reader`
    /// returns (or a panic) closes the stdin, and is what [`Exit::check`](crate::Exit::check) says of a child that otherwise did well
    /// ([`ErrorKind::Io`](crate::ErrorKind::Io)); one that comes later is not told.
    ///
    /// ```
    /// use std::io::Read;
    /// use pidloop::{Command, Stdio};
    ///
    /// # fn main() -> pidloop::Result<()> {
    /// let lines = std::io::repeat(b'y').take(3).chain(&b"es"[..]);
    /// let output = Command::new("cat").stdin(Stdio::reader(lines)).output()?;
    /// assert_eq!(output.stdout, b"yyyes");
    /// # Ok(())
    /// # }
    /// ```
    pub fn reader(reader: impl Read + Send + 'static) -> Stdio {
        Stdio(Kind::Reader(OneShot::new(Box::new(reader))))
    }

    /// What the child writes is written to `writer`, as it comes; at the end it is flushed and dropped; Go's `Cmd.Stdout`. Not for stdin.
    ///
    /// It serves one spawn, as [`Stdio::reader`], on a thread of its own. The stream is complete, or cut, and `writer` dropped when
    /// `wait_with_output`, `output`, `status`, `run` return or the reactor reports the child; `wait` returns at its death. A writer
    /// that blocks makes the child wait, as a pipe that nobody reads. [`Command::wait_delay`](crate::Command::wait_delay) or a cancel that ends
    /// the reading leaves it 250 ms to take what the child had written; then it is left behind, takes the rest in its own time, and the stream
    /// counts as [held open](crate::Exit::output_held_open).
    ///
    /// An error that it returns (or a panic) closes our end of the pipe, so that the child gets `SIGPIPE` or `EPIPE`, and is what
    /// [`Exit::check`](crate::Exit::check) says of a child that otherwise did well ([`ErrorKind::Io`](crate::ErrorKind::Io)).
    ///
    /// ```
    /// use std::io::Write;
    /// use std::sync::mpsc;
    /// use pidloop::{Command, Stdio};
    ///
    /// struct Chunks(mpsc::SyncSender<Vec<u8>>);
    ///
    /// impl Write for Chunks {
    ///     fn write(&mut self, chunk: &[u8]) -> std::io::Result<usize> {
    ///         self.0.send(chunk.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
    ///         Ok(chunk.len())
    ///     }
    ///
    ///     fn flush(&mut self) -> std::io::Result<()> {
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # fn main() -> pidloop::Result<()> {
    /// let (chunks, received) = mpsc::sync_channel(16);
    /// let stdout = Stdio::writer(Chunks(chunks));
    /// let child = Command::new("echo").arg("hello").stdout(stdout).spawn()?;
    /// // Ends when the stream has: the writer, and with it the sender, is dropped then.
    /// let text: Vec<u8> = received.into_iter().flatten().collect();
    /// assert_eq!(text, b"hello\n");
    /// child.wait()?.check()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn writer(writer: impl Write + Send + 'static) -> Stdio {
        Stdio(Kind::Writer(OneShot::new(Box::new(writer))))
    }

    /// The lines that the child writes arrive in a queue; not for stdin. Each has its `\n`; the last one may have none, and one of more than a
    /// mebibyte arrives in pieces. The queue ends when the stream has.
    ///
    /// When `lines_max` lines or 8 MiB wait in it, the child waits, too: see [`Queue`]. As [`Stdio::reader`] it serves one spawn. Other
    /// bounds, both streams in one queue, what becomes of long lines: [`QueueOptions`].
    ///
    /// ```
    /// use pidloop::{Command, Stdio};
    ///
    /// # fn main() -> pidloop::Result<()> {
    /// let (stdout, lines) = Stdio::lines(100);
    /// let child = Command::new("seq").arg("3").stdout(stdout).spawn()?;
    /// for (line, number) in lines.zip(1..) {
    ///     assert_eq!(line, format!("{number}\n").into_bytes());
    /// }
    /// child.wait()?.check()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lines(lines_max: usize) -> (Stdio, Queue) {
        QueueOptions::lines().items_max(lines_max).one()
    }

    /// As [`Stdio::lines`], in chunks as they are read, of at most 64 KiB: when `bytes_max` bytes wait the child waits, too.
    ///
    /// ```
    /// use pidloop::{Command, Stdio};
    ///
    /// # fn main() -> pidloop::Result<()> {
    /// let (stdout, chunks) = Stdio::chunks(1 << 20);
    /// let child = Command::new("head").args(["-c", "1000000", "/dev/zero"]).stdout(stdout).spawn()?;
    /// assert_eq!(chunks.map(|chunk| chunk.len()).sum::<usize>(), 1_000_000);
    /// child.wait()?.check()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn chunks(bytes_max: usize) -> (Stdio, Queue) {
        QueueOptions::chunks().items_max(usize::MAX).bytes_max(bytes_max).one()
    }

    pub(crate) fn queue(tap: Tap) -> Stdio {
        Stdio(Kind::Queue(OneShot::new(Box::new(tap))))
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

impl From<io::Stdout> for Stdio {
    /// This process's stdout, as it is at the spawn: also for the child's stderr.
    fn from(_: io::Stdout) -> Stdio {
        Stdio(Kind::Ours(1))
    }
}

impl From<io::Stderr> for Stdio {
    /// This process's stderr, as it is at the spawn: also for the child's stdout.
    fn from(_: io::Stderr) -> Stdio {
        Stdio(Kind::Ours(2))
    }
}

/// A caller's value that serves one spawn, shared by the clones of a command.
pub(crate) struct OneShot<T: ?Sized>(Arc<Mutex<Option<Box<T>>>>);

impl<T: ?Sized> Clone for OneShot<T> {
    fn clone(&self) -> OneShot<T> {
        OneShot(self.0.clone())
    }
}

impl<T: ?Sized> OneShot<T> {
    fn new(value: Box<T>) -> OneShot<T> {
        OneShot(Arc::new(Mutex::new(Some(value))))
    }

    /// Takes it for a spawn; `None` if another one has it, or had it.
    pub(crate) fn claim(&self) -> Option<Claim<T>> {
        let value = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Claim { slot: Some(self.clone()), value: Some(value) })
    }
}

/// A value taken for a spawn. If that fails it goes back, unused.
pub(crate) struct Claim<T: ?Sized> {
    /// Where it goes back to.
    slot: Option<OneShot<T>>,
    value: Option<Box<T>>,
}

impl<T: ?Sized> std::fmt::Debug for Claim<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a claim")
    }
}

impl<T: ?Sized> Claim<T> {
    /// For good.
    pub(crate) fn redeem(mut self) -> Box<T> {
        self.value.take().expect("it is taken here alone")
    }

    /// For good, where it is.
    pub(crate) fn keep(&mut self) {
        self.slot = None;
    }
}

impl<T: ?Sized> Deref for Claim<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_deref().expect("held until it is redeemed")
    }
}

impl<T: ?Sized> DerefMut for Claim<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_deref_mut().expect("held until it is redeemed")
    }
}

impl<T: ?Sized> Drop for Claim<T> {
    fn drop(&mut self) {
        if let (Some(slot), Some(value)) = (&self.slot, self.value.take()) {
            *slot.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        }
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
    /// The first bytes; one more stops the child, with [`Cause::OutputLimit`](crate::Cause::OutputLimit). One that has ended by then
    /// was not stopped, but its output is as incomplete: [`ErrorKind::OutputLimit`](crate::ErrorKind::OutputLimit) as well.
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

        impl IntoRawFd for $name {
            fn into_raw_fd(self) -> RawFd {
                self.0.into_raw_fd()
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

        impl From<std::process::$name> for Stdio {
            /// Of a child that std started.
            fn from(stream: std::process::$name) -> Stdio {
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

            fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                (&self.0).write_vectored(slices)
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

            fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                (&self.0).read_vectored(slices)
            }

            fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
                (&self.0).read_to_end(bytes)
            }
        }
    )*};
}

writes!(ChildStdin, &ChildStdin);
reads!(ChildStdout, &ChildStdout, ChildStderr, &ChildStderr);
