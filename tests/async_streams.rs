//! Taken streams as futures: nothing is lost, nothing spins, nothing is left (promises 10, 11 and 13, and scenarios of pipes). Knows the
//! public API, a counting waker, and the traits of smol and tokio.

mod common;

use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind as Io, Read, Write};
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use common::{eventually, in_own_process, open_descriptors, rounds, sh};
use futures::executor::block_on;
use pidloop::{AsyncReader, AsyncWriter, ErrorKind, Stdio};

/// How often it was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn poll_with<T>(count: &Arc<Count>, future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(&Waker::from(count.clone())))
}

fn pipe() -> (AsyncReader, File) {
    let (read, write) = common::pipe();
    (AsyncReader::from_fd(read.into()).unwrap(), write)
}

#[test]
fn a_megabyte_goes_both_ways_at_once() {
    let child = sh("exec cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.take_stdin().unwrap().into_async().unwrap();
    let mut stdout = child.take_stdout().unwrap().into_async().unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut got = Vec::new();
    block_on(async {
        let writing = async {
            stdin.write_all(&sent).await.unwrap();
            drop(stdin);
        };
        let ((), read) = futures::future::join(writing, stdout.read_to_end(&mut got)).await;
        assert_eq!(read.unwrap(), sent.len());
    });
    assert_eq!(got, sent);
    assert!(child.wait().unwrap().success());
}

#[test]
fn stderr_too_and_what_was_written_before_the_child_died() {
    let child = sh("echo out; echo err >&2").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.wait().unwrap();
    let mut stderr = child.take_stderr().unwrap().into_async().unwrap();
    let mut bytes = [0; 64];
    assert_eq!(block_on(stderr.read(&mut bytes)).unwrap(), 4);
    assert_eq!(block_on(stderr.read(&mut bytes)).unwrap(), 0, "the end");
    assert_eq!(block_on(stderr.read(&mut bytes)).unwrap(), 0, "and again");
}

/// Woken once for each thing that happens, however often it is polled meanwhile; a poll that finds nothing costs one `read`.
#[test]
fn a_reader_that_waits_is_woken_once_and_only_then() {
    let (mut reader, mut writer) = pipe();
    let count = Arc::new(Count::default());
    let mut bytes = [0; 16];
    let mut reading = pin!(reader.read(&mut bytes));
    for _ in 0..100 {
        assert!(poll_with(&count, reading.as_mut()).is_pending());
    }
    assert_eq!(count.times(), 0);
    writer.write_all(b"now").unwrap();
    eventually("it is woken", || count.times() == 1);
    assert!(matches!(poll_with(&count, reading.as_mut()), Poll::Ready(Ok(3))));
    assert_eq!(count.times(), 1);
}

/// The last waker counts, whichever thread polls; the others are let go.
#[test]
fn another_task_may_take_over() {
    let (mut reader, mut writer) = pipe();
    let counts: Vec<Arc<Count>> = (0..4).map(|_| Arc::default()).collect();
    let mut bytes = [0; 16];
    let mut reading = Box::pin(reader.read(&mut bytes));
    for count in &counts {
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(poll_with(count, reading.as_mut()).is_pending()));
        });
    }
    writer.write_all(b"x").unwrap();
    eventually("the last one is woken", || counts[3].times() == 1);
    assert!(counts[..3].iter().all(|count| count.times() == 0 && Arc::strong_count(count) == 1));
}

#[test]
fn a_dropped_read_has_read_nothing_and_keeps_no_waker() {
    let (mut reader, mut writer) = pipe();
    let count = Arc::new(Count::default());
    for round in 0..20 {
        let mut bytes = [0; 16];
        let mut reading = Box::pin(reader.read(&mut bytes));
        assert!(poll_with(&count, reading.as_mut()).is_pending());
        if round % 2 == 1 {
            writer.write_all(b"x").unwrap();
        }
        drop(reading);
        eventually("its waker is gone", || Arc::strong_count(&count) == 1);
        if round % 2 == 1 {
            assert_eq!(block_on(reader.read(&mut bytes)).unwrap(), 1);
        }
    }
    let mut bytes = b"before ".to_vec();
    let mut reading = Box::pin(reader.read_to_end(&mut bytes));
    writer.write_all(b"half").unwrap();
    assert!(poll_with(&count, reading.as_mut()).is_pending());
    drop(reading);
    writer.write_all(b" and half").unwrap();
    drop(writer);
    assert_eq!(block_on(reader.read_to_end(&mut bytes)).unwrap(), 9);
    assert_eq!(bytes, b"before half and half");
}

/// Byte for byte against a thread that writes: an edge that is lost is a hang.
#[test]
fn no_edge_is_lost() {
    let (mut reader, mut writer) = pipe();
    let n = rounds(20_000);
    let thread = std::thread::spawn(move || (0..n).for_each(|i| writer.write_all(&[i as u8]).unwrap()));
    let mut all = Vec::new();
    block_on(async {
        let mut bytes = [0; 3];
        loop {
            match reader.read(&mut bytes).await.unwrap() {
                0 => return,
                n => all.extend_from_slice(&bytes[..n]),
            }
        }
    });
    thread.join().unwrap();
    assert!(all.len() == n && all.iter().enumerate().all(|(i, byte)| i as u8 == *byte));
}

#[test]
fn a_full_pipe_is_awaited_and_one_that_nobody_reads_says_so() {
    let (mut read, write) = common::pipe();
    let mut writer = AsyncWriter::from_fd(write.into()).unwrap();
    let count = Arc::new(Count::default());
    while let Poll::Ready(n) = poll_with(&count, pin!(writer.write(&[7; 4096]))) {
        n.unwrap();
    }
    let mut writing = Box::pin(writer.write(&[7; 4096]));
    assert!(poll_with(&count, writing.as_mut()).is_pending());
    read.read_exact(&mut vec![0; 8192]).unwrap();
    eventually("it is woken", || count.times() > 0);
    assert!(matches!(poll_with(&count, writing.as_mut()), Poll::Ready(Ok(_))));
    drop(writing);
    while let Poll::Ready(n) = poll_with(&count, pin!(writer.write(&[7; 4096]))) {
        n.unwrap();
    }
    let mut writing = Box::pin(writer.write(&[7; 4096]));
    let before = count.times();
    assert!(poll_with(&count, writing.as_mut()).is_pending());
    drop(read);
    eventually("it is woken", || count.times() > before);
    let Poll::Ready(Err(error)) = poll_with(&count, writing.as_mut()) else { panic!("nobody reads") };
    assert_eq!(error.kind(), Io::BrokenPipe);
}

#[test]
fn there_and_back_to_blocking() {
    let (read, write) = common::pipe();
    let mut reader = AsyncReader::from_fd(read.into()).unwrap();
    let mut writer = AsyncWriter::from_fd(write.into()).unwrap();
    block_on(writer.write_all(b"abcd")).unwrap();
    let mut two = [0; 2];
    assert_eq!(block_on(reader.read(&mut two)).unwrap(), 2);
    let (mut read, mut write) =
        (File::from(reader.into_blocking().unwrap()), File::from(writer.into_blocking().unwrap()));
    let thread = std::thread::spawn(move || {
        let mut all = Vec::new();
        read.read_to_end(&mut all).unwrap();
        all
    });
    write.write_all(b"ef").unwrap();
    drop(write);
    assert_eq!(thread.join().unwrap(), b"cdef");
}

#[test]
fn what_cannot_be_polled_is_refused() {
    let file: OwnedFd = File::open("/proc/self/exe").unwrap().into();
    assert_eq!(AsyncReader::from_fd(file).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn nothing_is_left_of_thousands() {
    in_own_process("nothing_is_left_of_thousands", || {
        pidloop::Command::new("true").spawn().unwrap().wait().unwrap();
        let before = open_descriptors();
        let count = Arc::new(Count::default());
        for _ in 0..rounds(20) {
            let mut open: Vec<_> = (0..50).map(|_| pipe()).collect();
            let mut buffers = vec![[0; 8]; open.len()];
            {
                let mut reading: Vec<_> = open
                    .iter_mut()
                    .zip(&mut buffers)
                    .map(|((reader, _), bytes)| Box::pin(reader.read(bytes)))
                    .collect();
                reading.iter_mut().for_each(|future| assert!(poll_with(&count, future.as_mut()).is_pending()));
            }
            open.iter_mut().for_each(|(_, writer)| writer.write_all(b"x").unwrap());
        }
        eventually("no waker is left", || Arc::strong_count(&count) == 1);
        assert_eq!(open_descriptors(), before);
    });
}

/// The copy says so, and what it drops silences nothing in the original.
#[test]
fn in_a_forked_copy() {
    in_own_process("in_a_forked_copy", || {
        let (mut reader, mut writer) = pipe();
        // SAFETY: this process has one thread besides the reactor's; the copy polls, drops and exits.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let mut bytes = [0; 8];
            let count = Arc::new(Count::default());
            let forked = match poll_with(&count, pin!(reader.read(&mut bytes))) {
                Poll::Ready(Err(error)) => error.to_string().contains("fork"),
                _ => false,
            };
            drop(reader);
            // SAFETY: nothing else of the copy is to run.
            unsafe { libc::_exit(i32::from(!forked)) };
        }
        let mut status = 0;
        // SAFETY: a child of this process's own, and an integer.
        assert_eq!(unsafe { libc::waitpid(copy, &mut status, 0) }, copy);
        assert_eq!(status, 0);
        let count = Arc::new(Count::default());
        let mut bytes = [0; 8];
        let mut reading = pin!(reader.read(&mut bytes));
        assert!(poll_with(&count, reading.as_mut()).is_pending());
        writer.write_all(b"x").unwrap();
        eventually("it is still watched", || count.times() == 1);
    });
}

#[test]
#[cfg(feature = "futures")]
fn as_smol_has_them() {
    use smol::io::{AsyncReadExt, AsyncWriteExt};
    smol::block_on(async {
        let child = sh("exec cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn_async().await.unwrap();
        let mut stdin = child.take_stdin().unwrap().into_async().unwrap();
        let mut stdout = child.take_stdout().unwrap().into_async().unwrap();
        AsyncWriteExt::write_all(&mut stdin, b"by traits").await.unwrap();
        AsyncWriteExt::flush(&mut stdin).await.unwrap();
        // Closed, not only flushed: `cat` comes to its end although the writer is still there.
        AsyncWriteExt::close(&mut stdin).await.unwrap();
        let mut text = String::new();
        AsyncReadExt::read_to_string(&mut stdout, &mut text).await.unwrap();
        assert_eq!(text, "by traits");
        assert_eq!(AsyncWriteExt::write(&mut stdin, b"x").await.unwrap_err().kind(), Io::BrokenPipe);
        assert!(child.wait_async().await.unwrap().success());
    });
}

#[test]
#[cfg(feature = "tokio")]
fn as_tokio_has_them() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let all = runtime.block_on(async {
        let child = sh("exec cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn_async().await.unwrap();
        let mut stdin = child.take_stdin().unwrap().into_async().unwrap();
        let mut lines = BufReader::new(child.take_stdout().unwrap().into_async().unwrap()).lines();
        let mut all = Vec::new();
        for line in ["one\n", "two\n"] {
            AsyncWriteExt::write_all(&mut stdin, line.as_bytes()).await.unwrap();
            all.push(lines.next_line().await.unwrap().unwrap());
        }
        AsyncWriteExt::shutdown(&mut stdin).await.unwrap();
        assert_eq!(lines.next_line().await.unwrap(), None);
        assert!(child.wait_async().await.unwrap().success());
        all
    });
    assert_eq!(all, ["one", "two"]);
}
