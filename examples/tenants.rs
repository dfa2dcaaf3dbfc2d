//! A job server with tenants: so many processes at a time for all, a share by weight for each, what is beyond that waits; a log of
//! what happens, and the numbers at the end. One tenant goes, and what waits for it with it.
//!
//! ```sh
//! cargo run --example tenants
//! ```

use std::thread;
use std::time::Duration;

use pidloop::{Command, Context, Driver, ErrorKind, EventKind};

fn job(tenant: &Context, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).context(tenant).timeout(Duration::from_secs(30));
    command
}

fn main() -> pidloop::Result<()> {
    let driver = Driver::new()?;
    driver.set_max_running(4);
    // Twice the share of others, and never more than three of the four.
    let paying = Context::new();
    paying.set_weight(2);
    paying.set_max_running(3);
    let free = Context::new();
    free.set_weight(1);
    let leaving = Context::new();

    // What happens, on a thread of its own; it ends with the driver.
    let mut events = driver.events(10_000);
    let log = thread::spawn(move || {
        let failures = events.by_ref().filter(|event| matches!(event.kind, EventKind::Failed { .. }));
        failures.for_each(|event| println!("{event}"));
        println!("{} events lost", events.lost());
    });

    let mut refused = 0;
    thread::scope(|scope| {
        let run = |command: Command| {
            let driver = &driver;
            scope.spawn(move || driver.spawn(&command)?.wait()?.check())
        };
        let mut jobs: Vec<_> = (0..10).map(|_| run(job(&paying, "sleep 0.05"))).collect();
        jobs.extend((0..10).map(|_| run(job(&free, "sleep 0.05"))));
        // More urgent than the rest of its tenant's.
        jobs.push(run(job(&free, "exit 0").priority(1).clone()));
        // Held back, until it is clear that nobody wants them any more.
        leaving.set_max_running(0);
        jobs.extend((0..5).map(|_| run(job(&leaving, "exit 1"))));
        while leaving.load().queued < 5 {
            thread::yield_now();
        }
        leaving.cancel_with("the tenant has left");
        for job in jobs {
            match job.join().expect("no job panics") {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Cancelled => refused += 1,
                Err(error) => println!("{error}"),
            }
        }
    });
    println!("{refused} jobs were not started");
    println!("{}", driver.stats());
    drop(driver);
    log.join().expect("the log does not panic");
    Ok(())
}
