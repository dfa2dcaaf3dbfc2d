//! A thread that starts children for others and lives as long as the process: what the kernel ties to the thread that forks is then
//! tied to the process. Knows nothing of what it runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::thread;

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::sys::Leaked;
use crate::sys::process::{generation, with_signals_blocked};
use crate::tell::{Level, tell};

type Job = Box<dyn FnOnce() + Send>;

struct Spawner {
    /// The process it belongs to.
    generation: u64,
    jobs: Mutex<Sender<Job>>,
}

static SPAWNER: Leaked<Spawner> = Leaked::new();

/// Runs `spawn` on the thread and waits for what it returns.
pub(crate) fn run<T: Send + 'static>(spawn: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let job = Box::new(move || {
        // The caller waits: it cannot be gone.
        let _ = sender.send(spawn());
    });
    current()?.send(job);
    receiver.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io).saying("the spawner thread panicked")))
}

impl Spawner {
    fn send(&self, job: Job) {
        let jobs = self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The thread ends with the process.
        let _ = jobs.send(job);
    }
}

fn current() -> Result<&'static Spawner> {
    loop {
        let known = SPAWNER.get();
        match known {
            Some(spawner) if spawner.generation == generation() => return Ok(spawner),
            _ => {}
        }
        let (sender, jobs) = mpsc::channel::<Job>();
        let main = move || {
            for job in jobs {
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tell(Level::Error, format_args!("a spawn panicked"));
                }
            }
        };
        with_signals_blocked(|| thread::Builder::new().name("pidloop-spawner".into()).spawn(main))
            .map_err(|e| Error::os(Stage::Clone, e).saying("the spawner thread"))?;
        // If another thread was first, ours ends with its channel.
        SPAWNER.replace(known, Box::new(Spawner { generation: generation(), jobs: Mutex::new(sender) }));
    }
}
