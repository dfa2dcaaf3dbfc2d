//! What a child costs that does nothing but live: resident memory by smaps_rollup, descriptors, threads, and CPU time of its parent.

mod support;

use std::thread;
use std::time::Duration;

use support::{Answer, AtMost, Bench, Case, Entrant, PEERS, Subject, Unit};

fn main() {
    support::run("idle", ask);
}

/// What is there before the count starts: threads, tables, the first page of everything.
const BEFORE: u64 = 100;
/// What the last spawn has left to do is done.
const SETTLE: Duration = Duration::from_millis(100);

fn ask(bench: &mut Bench) {
    let tiny = bench.tiny();
    let n = bench.pick(10_000, 1000);
    let names = ["floor", "pidloop", "pidloop-context"].into_iter().chain(PEERS);
    let hold = |n: u64| format!("hold n={n} child={tiny} args=p");
    let rest = Duration::from_millis(bench.pick(1000, 300));
    let entrants = names.map(|name| {
        let n = match name {
            // A thread for each, and it dies at 10,000 threads; two descriptors for each.
            "go" | "pidloop-context" => n.min(9000),
            _ => n,
        };
        Entrant::new(name, hold(n)).after("", hold(BEFORE)).called(name)
    });
    let case = Case::new(format!("children/{n}"), Unit::Plain("bytes", "resident bytes/child"), "pidloop")
        .with(entrants)
        .also(&["descriptors_per_child", "threads", "idle_cpu_us_per_second"])
        .pairs(bench.pick(3, 1))
        .alone();
    let figures = bench.measure_by(case, |subject, entrant, _| weigh(subject, &entrant.jobs[0], rest));
    let spread = figures.spread("pidloop");
    bench.goal("P9", format!("bytes per child, {n} under one context"), AtMost(256.0), spread);
    let spread = figures.spread("pidloop-context");
    bench.goal("P9", "bytes per child, each with a context of its own", AtMost(512.0), spread);
    for (key, bound) in [("descriptors_per_child", 1.0), ("threads", 2.0), ("idle_cpu_us_per_second", 1.0)] {
        bench.goal("P9", key, AtMost(bound), figures.of("pidloop", key));
    }
}

fn weigh(subject: &mut Subject, hold: &str, rest: Duration) -> Result<Answer, String> {
    let read = |subject: &Subject| subject.footprint().map_err(|e| format!("/proc: {e}"));
    let before = read(subject)?;
    let mut answer = subject.ask(hold)?;
    thread::sleep(SETTLE);
    let n = answer.number("n").unwrap_or(0.0) - BEFORE as f64;
    let full = read(subject)?;
    thread::sleep(rest);
    let later = read(subject)?;
    answer.set("bytes", (later.rss_bytes as f64 - before.rss_bytes as f64) / n);
    answer.set("descriptors_per_child", (full.descriptors as f64 - before.descriptors as f64) / n);
    answer.set("threads", later.threads as f64);
    answer.set("idle_cpu_us_per_second", (later.cpu_ns - full.cpu_ns) as f64 / 1e3 / rest.as_secs_f64());
    Ok(answer)
}
