//! What a runtime of one thread notices of ten thousand children whose output it awaits: how late its ticks of a millisecond are.

mod support;

use support::{AtMost, Bench, Case, Entrant, Unit};

fn main() {
    support::run("ticks", ask);
}

/// How many children there are at once.
const ROOM: u64 = 256;

fn ask(bench: &mut Bench) {
    let tiny = bench.tiny();
    let n = bench.pick(10_000, 2000);
    let job = |n: u64| format!("ticks n={n} k={ROOM} ms=1000 stdio=capture args=c child={tiny}");
    let entrants = [
        Entrant::new("pidloop-async", job(0)).called("no children"),
        Entrant::new("pidloop-async", job(n)).called("pidloop-async"),
        Entrant::new("tokio-ct", job(0)).called("no children, tokio"),
        Entrant::new("tokio-ct", job(n)).called("tokio-ct"),
    ];
    let case = Case::new(format!("output/{n}"), Unit::Micros("p99"), "no children").with(entrants);
    let figures = bench.measure(case.also(&["p50", "p999", "max", "ns"]).pairs(bench.pick(5, 3)));
    for (ours, nobody) in [("pidloop-async", "no children"), ("tokio-ct", "no children, tokio")] {
        let (Some(with), Some(without)) = (figures.spread(ours), figures.spread(nobody)) else { continue };
        let late = with.minus(without.median).scaled(1e-3);
        bench.goal("tick", format!("ticks late, ms, p99, {ours}, over nobody's"), AtMost(1.0), Some(late));
    }
}
