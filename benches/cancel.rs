//! How long it takes to cancel all children of one context, until the last exit is seen.

mod support;

use support::{AtLeast, AtMost, Bench, Case, Entrant, PEERS, Unit};

fn main() {
    support::run("cancel", ask);
}

/// Where each of thousands costs the others a copy of their descriptors: those who come near.
const NEAR: [&str; 5] = ["floor", "pidloop", "std", "tokio-mt", "async-process"];

fn ask(bench: &mut Bench) {
    let tiny = bench.tiny();
    let all: Vec<&str> = ["floor", "pidloop"].into_iter().chain(PEERS).collect();
    for n in bench.pick(&[10, 100, 1000, 10_000][..], &[100, 1000][..]) {
        let names = if *n > 1000 { &NEAR[..] } else { &all[..] };
        let entrants =
            names.iter().map(|name| Entrant::new(name, format!("hold n={n} child={tiny} args=p")).then("cancel"));
        let case = Case::new(format!("children/{n}"), Unit::Millis, "pidloop").with(entrants);
        let figures = bench.measure(case);
        if *n < 1000 {
            continue;
        }
        bench.goal("P10", format!("cancel {n}: over the floor"), AtMost(1.15), figures.ratio("pidloop", "floor"));
        for peer in names.iter().skip(2) {
            bench.goal("P10", format!("cancel {n}: {peer} over ours"), AtLeast(1.0), figures.ratio(peer, "pidloop"));
        }
    }
}
