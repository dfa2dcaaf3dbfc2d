//! A child's streams for futures: ends of pipes that do not block, watched by the default driver. Knows descriptors and wakers; knows no
//! runtime but by its traits (features `futures` and `tokio`).

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::driver::default_core;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::reactor::port::{Port, Way};
use crate::stdio::{ChildStderr, ChildStdin, ChildStdout};

/// How much is read in one poll before others have their turn.
const POLL_MAX_BYTES: usize = 1 << 20;
/// The room that is made for a read.
const READ_BYTES: usize = 16 << 10;

/// A stream to read from in a future: [`ChildStdout::into_async`], [`ChildStderr::into_async`]. Needs no runtime: the default driver's
/// reactor thread wakes it.
///
/// With the feature `futures` it is a `futures_io::AsyncRead`, with the feature `tokio` a `tokio::io::AsyncRead`.
///
/// ```
/// use pidloop::{Command, Stdio};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # futures::executor::block_on(async {
/// let mut command = Command::new("tr");
/// command.args(["a-z", "A-Z"]).stdin(Stdio::piped()).stdout(Stdio::piped());
/// let child = command.spawn_async().await?;
/// let mut stdin = child.take_stdin().unwrap().into_async()?;
/// let mut stdout = child.take_stdout().unwrap().into_async()?;
/// stdin.write_all(b"hello").await?;
/// drop(stdin);                                     // the end of its input
/// let mut text = Vec::new();
/// stdout.read_to_end(&mut text).await?;
/// assert_eq!(text, b"HELLO");
/// child.wait_async().await?.check()?;
/// # Ok(())
/// # })
/// # }
/// ```
///
/// Dropping it closes it, and takes it out of the reactor before.
#[derive(Debug)]
pub struct AsyncReader(End);

/// A stream to write to in a future: [`ChildStdin::into_async`]; as [`AsyncReader`]. Dropping it is the end of the child's input.
///
/// With the feature `futures` it is a `futures_io::AsyncWrite`, with the feature `tokio` a `tokio::io::AsyncWrite`; closing it or
/// shutting it down through these closes the descriptor.
#[derive(Debug)]
pub struct AsyncWriter(End);

/// One end of a pipe, or of whatever else can be polled.
#[derive(Debug)]
struct End {
    /// `None`: it was closed through a trait.
    port: Option<Port>,
}

impl End {
    fn new(fd: OwnedFd, way: Way) -> Result<End> {
        let flags = fcntl_getfl(&fd).map_err(streams)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(streams)?;
        let port = Port::new(default_core()?, fd, way).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => Error::new(ErrorKind::InvalidInput).saying("the descriptor cannot be polled"),
            _ => error,
        })?;
        Ok(End { port: Some(port) })
    }

    fn into_blocking(self) -> Result<OwnedFd> {
        let port = self.port.ok_or_else(|| Error::new(ErrorKind::InvalidInput).saying("it was closed"))?;
        let fd = port.into_fd()?;
        let flags = fcntl_getfl(&fd).map_err(streams)?;
        fcntl_setfl(&fd, flags - OFlags::NONBLOCK).map_err(streams)?;
        Ok(fd)
    }

    /// Tries, and if that would block has the task woken when there is hope.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let Some(port) = &self.port else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        port.check_ours()?;
        loop {
            let rings = port.bell().rings();
            match attempt(port.as_fd()) {
                Err(Errno::AGAIN) => {
                    if port.bell().wait(rings, cx.waker())? {
                        return Poll::Pending;
                    }
                }
                Err(Errno::INTR) => {}
                result => return Poll::Ready(result.map_err(io::Error::from)),
            }
        }
    }

    /// Forgets a future's waker when that is dropped.
    fn waiting(&self) -> Waiting<'_> {
        Waiting(self)
    }
}

struct Waiting<'a>(&'a End);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(port) = self.0.port.as_ref().filter(|port| port.check_ours().is_ok()) {
            port.bell().forget();
        }
    }
}

fn streams(errno: Errno) -> Error {
    Error::os(Stage::Streams, errno.into())
}

impl AsyncReader {
    /// Any descriptor that can be polled, as a terminal's or a socket's. It is made non-blocking, for all who share it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if it cannot be polled, as a regular file; [`ErrorKind::NoDescriptors`], [`ErrorKind::NoMemory`] if it
    /// cannot be watched; those of the default driver's start.
    pub fn from_fd(fd: OwnedFd) -> Result<AsyncReader> {
        End::new(fd, Way::Read).map(AsyncReader)
    }

    /// The blocking descriptor again; nothing is lost.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Forked`] in a forked copy of the process; what `fcntl(2)` says.
    pub fn into_blocking(self) -> Result<OwnedFd> {
        self.0.into_blocking()
    }

    /// Reads what is there, at least one byte, at most what `bytes` holds; 0 at the end. `read(2)`.
    ///
    /// # Errors
    ///
    /// What `read(2)` says; [`ErrorKind::Forked`], [`ErrorKind::ReactorDied`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before it is ready has read nothing.
    pub async fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let _waiting = self.0.waiting();
        poll_fn(|cx| self.0.poll(cx, |fd| rustix::io::read(fd, &mut *bytes))).await
    }

    /// Reads to the end, behind what `bytes` holds; says how much.
    ///
    /// # Errors
    ///
    /// As [`AsyncReader::read`]. What was read before is in `bytes`.
    ///
    /// # Cancel safety
    ///
    /// What was read before the future is dropped is in `bytes`; the rest is still in the pipe.
    pub async fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let (_waiting, before) = (self.0.waiting(), bytes.len());
        poll_fn(|cx| {
            let start = bytes.len();
            while bytes.len() - start < POLL_MAX_BYTES {
                bytes.reserve(READ_BYTES);
                match self.0.poll(cx, |fd| rustix::io::read(fd, rustix::buffer::spare_capacity(bytes))) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(bytes.len() - before)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            // There is more, and others have their turn.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

impl AsyncWriter {
    /// As [`AsyncReader::from_fd`].
    ///
    /// # Errors
    ///
    /// As [`AsyncReader::from_fd`].
    pub fn from_fd(fd: OwnedFd) -> Result<AsyncWriter> {
        End::new(fd, Way::Write).map(AsyncWriter)
    }

    /// The blocking descriptor again.
    ///
    /// # Errors
    ///
    /// As [`AsyncReader::into_blocking`]; [`ErrorKind::InvalidInput`] if it was closed through a trait.
    pub fn into_blocking(self) -> Result<OwnedFd> {
        self.0.into_blocking()
    }

    /// Writes what there is room for, at least one byte; says how much. `write(2)`.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when nobody reads any more (a program that has put SIGPIPE back to its default is killed, as with std's); what
    /// `write(2)` says; [`ErrorKind::Forked`], [`ErrorKind::ReactorDied`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before it is ready has written nothing.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _waiting = self.0.waiting();
        poll_fn(|cx| self.0.poll(cx, |fd| rustix::io::write(fd, bytes))).await
    }

    /// Writes all of it.
    ///
    /// # Errors
    ///
    /// As [`AsyncWriter::write`]; some of it may have been written.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may have written some of it, and does not say how much: where that matters, [`AsyncWriter::write`].
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while !bytes.is_empty() {
            let n = self.write(bytes).await?;
            bytes = &bytes[n..];
            written += n;
            if written >= POLL_MAX_BYTES {
                written = 0;
                yield_once().await;
            }
        }
        Ok(())
    }
}

/// Lets others have their turn.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

macro_rules! into_async {
    ($($stream:ty => $into:ident),*) => {$(
        impl $stream {
            /// For futures: watched by the default driver, whose thread wakes whoever reads or writes. It is made non-blocking, for all who
            /// share it; the child's end is another one and stays as it is.
            ///
            /// # Errors
            ///
            #[doc = concat!("As [`", stringify!($into), "::from_fd`].")]
            pub fn into_async(self) -> Result<$into> {
                $into::from_fd(self.into())
            }
        }
    )*};
}

into_async!(ChildStdin => AsyncWriter, ChildStdout => AsyncReader, ChildStderr => AsyncReader);

/// For the runtimes that have `futures-io`'s traits: smol, async-std, `futures::executor`.
#[cfg(feature = "futures")]
mod for_futures {
    use std::pin::Pin;

    use futures_core::Stream;

    use super::{AsyncReader, AsyncWriter, Context, Poll, io};
    use crate::events::{Event, Events};
    use crate::queue::{Queue, QueueItem};

    /// A queue that is no iterator any more: with both traits in scope each method would have to be called by its trait's name.
    struct Items<T: QueueItem>(Queue<T>);

    impl<T: QueueItem> Stream for Items<T> {
        type Item = T;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
            self.0.poll_item(cx)
        }
    }

    impl<T: QueueItem> Queue<T> {
        /// [`Queue::next_async`], again and again. (Feature `futures`.)
        pub fn into_stream(self) -> impl Stream<Item = T> + Send + Unpin {
            Items(self)
        }
    }

    struct Happenings(Events);

    impl Stream for Happenings {
        type Item = Event;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
            self.0.poll_next_event(cx)
        }
    }

    impl Events {
        /// [`Events::next_async`], again and again. (Feature `futures`.)
        pub fn into_stream(self) -> impl Stream<Item = Event> + Send + Unpin {
            Happenings(self)
        }
    }

    impl futures_io::AsyncRead for AsyncReader {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
            self.0.poll(cx, |fd| rustix::io::read(fd, &mut *bytes))
        }
    }

    impl futures_io::AsyncWrite for AsyncWriter {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.poll(cx, |fd| rustix::io::write(fd, bytes))
        }

        /// A pipe has nothing to flush.
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.port = None;
            Poll::Ready(Ok(()))
        }
    }
}

/// For tokio, whose traits are its own.
#[cfg(feature = "tokio")]
mod for_tokio {
    use std::pin::Pin;

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::{AsyncReader, AsyncWriter, Context, Poll, io};

    impl AsyncRead for AsyncReader {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let bytes = into.initialize_unfilled();
            self.0.poll(cx, |fd| rustix::io::read(fd, &mut *bytes)).map_ok(|n| into.advance(n))
        }
    }

    impl AsyncWrite for AsyncWriter {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.poll(cx, |fd| rustix::io::write(fd, bytes))
        }

        /// A pipe has nothing to flush.
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.port = None;
            Poll::Ready(Ok(()))
        }
    }
}
