//! What a child that writes without end does to the others, and to its own cancel, by each way to take what it writes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pidloop::{Child, Command, Context, Limit, Stdio};

use super::worker::{How, now, stamp};

pub const WAYS: [&str; 7] = ["captured", "limited", "lines", "chunks", "tee", "writer", "spooled"];
const LIMIT: Limit = Limit::HeadTail { head_bytes: 64 << 10, tail_bytes: 64 << 10 };
const GIB: u64 = 1 << 30;

/// A child whose stdout is taken that way; what a queue has is taken by a thread, as its user would.
fn start(way: &str, command: &mut Command) -> io::Result<Child> {
    let stdout = match way {
        "captured" => Stdio::captured(),
        "limited" => Stdio::captured_limited(LIMIT),
        "tee" => Stdio::tee_limited(LIMIT, io::sink()),
        "writer" => Stdio::writer(io::sink()),
        "spooled" => Stdio::spooled(),
        _ => {
            let (stdout, queue) = if way == "lines" { Stdio::lines(1000) } else { Stdio::chunks(1 << 20) };
            thread::spawn(|| queue.count());
            stdout
        }
    };
    Ok(command.stdin(Stdio::null()).stdout(stdout).spawn()?)
}

/// From the last act of each of `n` captured children to the report, while another one writes a gigabyte after the other.
pub fn exits(how: &How, n: u64) -> io::Result<Vec<u64>> {
    let (stop, ctx) = (AtomicBool::new(false), Context::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            while how.way != "none" && !stop.load(Ordering::Relaxed) {
                let mut command = Command::new(&how.program);
                let child = start(&how.way, command.arg("w").arg(GIB.to_string()).context(&ctx));
                let _ = child.map(Child::wait_with_output);
            }
        });
        let mut command = Command::new(&how.program);
        command.args(&how.args).stdin(Stdio::null()).stdout(Stdio::captured());
        let one = |_| {
            command.spawn()?.wait_with_output()?;
            Ok(now().saturating_sub(stamp(&how.args[1])?))
        };
        let each = (0..n).map(one).collect();
        stop.store(true, Ordering::Relaxed);
        ctx.cancel();
        each
    })
}

/// From the cancel of a child to its death seen: of one that writes without end, or does nothing.
pub fn cancels(how: &How, n: u64) -> io::Result<Vec<u64>> {
    let one = |_| {
        let ctx = Context::new();
        let child = start(&how.way, Command::new(&how.program).args(&how.args).context(&ctx))?;
        thread::sleep(Duration::from_millis(2));
        let begin = now();
        ctx.cancel();
        child.wait()?;
        Ok(now() - begin)
    };
    (0..n).map(one).collect()
}
