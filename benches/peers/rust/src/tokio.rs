//! tokio, with either runtime: a task for each child in flight.

use std::io;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::options;
use crate::worker::{Bytes, Contender, How, Load, Streams, Tally, nanos, size_pipe};

const PIECE_BYTES: usize = 64 << 10;

const TICK: Duration = Duration::from_millis(1);

pub struct Tokio(Runtime);

impl Tokio {
    pub fn current_thread() -> io::Result<Tokio> {
        Builder::new_current_thread().enable_all().build().map(Tokio)
    }

    pub fn multi_thread() -> io::Result<Tokio> {
        Builder::new_multi_thread().enable_all().build().map(Tokio)
    }
}

fn command(how: &How) -> io::Result<Command> {
    options::command(how).map(Command::from)
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
    size_pipe(how, &stdout.as_fd());
    let mut piece = vec![0; PIECE_BYTES];
    let mut total = 0;
    loop {
        match stdout.read(&mut piece).await? {
            0 => break,
            got => total += got as u64,
        }
    }
    child.wait().await?;
    Ok(total)
}

/// Takes from what is left until nothing is, or it is late.
async fn work(load: Load, how: Arc<How>, left: Arc<AtomicU64>) -> io::Result<Vec<u64>> {
    let begin = Instant::now();
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    let mut each = Vec::new();
    while begin.elapsed() < load.limit && take() {
        let start = Instant::now();
        run(&how).await?;
        each.push(nanos(start.elapsed()));
    }
    Ok(each)
}

/// Ticks until it is told that all are done, and says how late each tick was.
async fn tick(done: Arc<AtomicBool>) -> Vec<u64> {
    let mut at = ::tokio::time::Instant::now();
    let mut each = Vec::new();
    while !done.load(Ordering::Relaxed) {
        at += TICK;
        ::tokio::time::sleep_until(at).await;
        each.push(nanos(at.elapsed()));
    }
    each
}

impl Contender for Tokio {
    type Child = Child;

    fn version(&self) -> String {
        crate::locked("tokio")
    }

    fn start(&self, how: &How) -> io::Result<Child> {
        let _inside = self.0.enter();
        command(how)?.spawn()
    }

    fn wait(&self, child: &mut Child) -> io::Result<()> {
        self.0.block_on(child.wait()).map(drop)
    }

    fn kill(&self, child: &mut Child) -> io::Result<()> {
        child.start_kill()
    }

    fn run(&self, how: &How) -> io::Result<()> {
        self.0.block_on(run(how))
    }

    fn read(&self, how: &How, bytes: Bytes) -> io::Result<u64> {
        self.0.block_on(read(how, bytes))
    }

    fn load(&self, load: Load, how: &How) -> io::Result<Tally> {
        let (how, left, begin) = (Arc::new(how.clone()), Arc::new(AtomicU64::new(load.n)), Instant::now());
        let tasks = load.in_flight.max(load.threads);
        let each = self.0.block_on(async {
            if tasks == 1 {
                return work(load, how, left).await;
            }
            let mut set = JoinSet::new();
            for _ in 0..tasks {
                set.spawn(work(load, how.clone(), left.clone()));
            }
            let mut all = Vec::new();
            while let Some(each) = set.join_next().await {
                all.extend(each.map_err(io::Error::other)??);
            }
            Ok(all)
        })?;
        Ok(Tally { wall: begin.elapsed(), each })
    }

    fn ticks(&self, load: Load, how: &How) -> io::Result<Vec<u64>> {
        self.0.block_on(async {
            let done = Arc::new(AtomicBool::new(false));
            let ticking = ::tokio::spawn(tick(done.clone()));
            if load.n == 0 {
                ::tokio::time::sleep(load.limit).await;
            }
            let room = Arc::new(Semaphore::new(load.in_flight as usize));
            let mut set = JoinSet::new();
            for _ in 0..load.n {
                let (room, how) = (room.clone(), how.clone());
                set.spawn(async move {
                    let _room = room.acquire().await;
                    run(&how).await
                });
            }
            while let Some(ran) = set.join_next().await {
                ran.map_err(io::Error::other)??;
            }
            done.store(true, Ordering::Relaxed);
            ticking.await.map_err(io::Error::other)
        })
    }

    fn read_many(&self, children: u64, how: &How, bytes: Bytes) -> io::Result<u64> {
        self.0.block_on(async {
            let mut set = JoinSet::new();
            for _ in 0..children {
                let how = how.clone();
                set.spawn(async move { read(&how, bytes).await });
            }
            let mut total = 0;
            while let Some(read) = set.join_next().await {
                total += read.map_err(io::Error::other)??;
            }
            Ok(total)
        })
    }

    fn end_all(&self, children: &mut [Child]) -> io::Result<()> {
        children.iter_mut().try_for_each(Child::start_kill)?;
        self.0.block_on(async {
            for child in children {
                child.wait().await?;
            }
            Ok(())
        })
    }
}
