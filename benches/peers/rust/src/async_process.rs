//! async-process: an executor on the calling thread, a task for each child in flight. The thread turns async-io's loop itself, which
//! saves the hop to that library's own.

use std::cell::Cell;
use std::io;
use std::time::Instant;

use async_executor::LocalExecutor;
use async_io::block_on;
use async_process::{Child, Command, Stdio};
use futures_lite::AsyncReadExt;

use crate::options;
use crate::worker::{Bytes, Contender, How, Load, Streams, Tally, nanos};

const PIECE_BYTES: usize = 64 << 10;

pub struct AsyncProcess;

/// Its `Command` sets what it is not told to inherit: the conversion forgets the streams of std's.
fn command(how: &How) -> io::Result<Command> {
    let mut command = Command::from(options::command(how)?);
    match how.streams {
        Streams::Null => {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        Streams::Inherit => {
            command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        }
        Streams::Capture => {}
    }
    Ok(command)
}

async fn run(how: &How) -> io::Result<()> {
    let mut command = command(how)?;
    if how.streams == Streams::Capture { command.output().await.map(drop) } else { command.status().await.map(drop) }
}

async fn read(how: &How, bytes: Bytes) -> io::Result<u64> {
    let mut command = command(how)?;
    command.stdout(Stdio::piped());
    if bytes == Bytes::Keep {
        return command.output().await.map(|output| output.stdout.len() as u64);
    }
    let mut child = command.spawn()?;
    let mut stdout = child.stdout.take().expect("piped");
    let mut piece = vec![0; PIECE_BYTES];
    let mut total = 0;
    loop {
        match stdout.read(&mut piece).await? {
            0 => break,
            got => total += got as u64,
        }
    }
    child.status().await?;
    Ok(total)
}

impl Contender for AsyncProcess {
    type Child = Child;

    fn version(&self) -> String {
        crate::locked("async-process")
    }

    fn start(&self, how: &How) -> io::Result<Child> {
        command(how)?.spawn()
    }

    fn wait(&self, child: &mut Child) -> io::Result<()> {
        block_on(child.status()).map(drop)
    }

    fn kill(&self, child: &mut Child) -> io::Result<()> {
        child.kill()
    }

    fn run(&self, how: &How) -> io::Result<()> {
        block_on(run(how))
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        block_on(read(how, bytes))
    }

    fn load(&self, load: Load, how: &How) -> io::Result<Tally> {
        let (left, begin) = (Cell::new(load.n), Instant::now());
        let work = || async {
            let mut each = Vec::new();
            while begin.elapsed() < load.limit && left.get() > 0 {
                left.set(left.get() - 1);
                let start = Instant::now();
                run(how).await?;
                each.push(nanos(start.elapsed()));
            }
            io::Result::Ok(each)
        };
        let executor = LocalExecutor::new();
        let tasks: Vec<_> = (0..load.in_flight.max(load.threads)).map(|_| executor.spawn(work())).collect();
        let gather = async {
            let mut all = Vec::new();
            for task in tasks {
                all.extend(task.await?);
            }
            io::Result::Ok(all)
        };
        let each = block_on(executor.run(gather))?;
        Ok(Tally { wall: begin.elapsed(), each })
    }

    fn read_many(&self, children: u64, how: &How, bytes: Bytes) -> io::Result<u64> {
        let executor = LocalExecutor::new();
        let tasks: Vec<_> = (0..children).map(|_| executor.spawn(read(how, bytes))).collect();
        block_on(executor.run(async {
            let mut total = 0;
            for task in tasks {
                total += task.await?;
            }
            Ok(total)
        }))
    }
}
