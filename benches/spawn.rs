//! How fast children are started and waited for: one at a time and many in flight, a tiny child and `/bin/true`, each kind of streams,
//! one and two calling threads.

mod support;

use support::{ALL, AtLeast, AtMost, Bench, Case, Entrant, Unit};

fn main() {
    support::run("spawn", ask);
}

/// All, with the loop that a caller turns and `spawn` with a blocking `wait` beside `status`.
const ALL_AND_WAIT: [&str; 13] = [
    "floor",
    "pidloop",
    "pidloop-wait",
    "pidloop-reactor",
    "std",
    "tokio-ct",
    "tokio-mt",
    "async-process",
    "subprocess",
    "duct",
    "go",
    "python",
    "libuv",
];
/// For the cases that say little about most.
const FEW: [&str; 6] = ["floor", "pidloop", "std", "tokio-ct", "tokio-mt", "go"];

fn job(bench: &Bench, n: u64, more: &str) -> String {
    format!("spawn n={n} ms={} {more}", bench.pick(2000, 250))
}

fn ask(bench: &mut Bench) {
    let tiny = bench.tiny();
    calls(bench, &tiny);
    one_at_a_time(bench, &tiny);
    in_flight(bench, &tiny);
    callers(bench, &tiny);
    streams(bench, &tiny);
    true_program(bench);
}

fn calls(bench: &mut Bench, tiny: &str) {
    let job = format!("spawn child={tiny}");
    let figures = bench.count_calls("calls/1", bench.pick(&ALL_AND_WAIT[..], &ALL_AND_WAIT[..4]), &job);
    for (ours, bound) in [("pidloop", 13.0), ("pidloop-wait", 16.0), ("pidloop-reactor", 18.0)] {
        bench.goal("P8", format!("system calls per child, {ours}"), AtMost(bound), figures.spread(ours));
    }
}

fn one_at_a_time(bench: &mut Bench, tiny: &str) {
    let sequential = job(bench, bench.pick(1000, 300), &format!("child={tiny}"));
    let case =
        Case::new("tiny/1/pinned", Unit::MicrosPerChild, "pidloop").for_each(&ALL_AND_WAIT, &sequential).pinned();
    let figures = bench.measure(case);
    bench.goal("P1", "one at a time, pinned: over the floor", AtMost(1.08), figures.ratio("pidloop", "floor"));
    for (peer, bound) in [("std", 1.35), ("tokio-ct", 1.45), ("tokio-mt", 1.45), ("go", 1.5)] {
        bench.goal("P1", format!("{peer} over ours"), AtLeast(bound), figures.ratio(peer, "pidloop"));
    }
    let case = Case::new("tiny/1/free", Unit::MicrosPerChild, "pidloop");
    bench.measure(case.for_each(bench.pick(&ALL_AND_WAIT[..], &FEW[..]), &sequential));
}

fn in_flight(bench: &mut Bench, tiny: &str) {
    let many = job(bench, bench.pick(2000, 500), &format!("k=64 child={tiny}"));
    let most = job(bench, bench.pick(4000, 2000), &format!("k=1000 child={tiny}"));
    let case = Case::new("tiny/64", Unit::MicrosPerChild, "pidloop").for_each(&ALL, &many);
    let figures = bench.measure(case);
    let ours = figures.lower(&["pidloop", "pidloop-async", "pidloop-reactor"]);
    for (peer, bound) in [("std", 1.2), ("go", 1.2), ("tokio-mt", 1.4), ("tokio-ct", 1.9), ("async-process", 2.0)] {
        bench.goal("P2", format!("64 in flight: {peer} over {ours}"), AtLeast(bound), figures.ratio(peer, ours));
    }
    let both = ["pidloop", "pidloop-async", "pidloop-reactor", "floor", "std", "tokio-ct", "tokio-mt", "go"];
    let beside = |name: &&str| {
        let label = |k: &str| format!("{name}, {k}");
        [Entrant::new(name, &many).called(label("64")), Entrant::new(name, &most).called(label("1000"))]
    };
    let names = bench.pick(&both[..], &both[..3]);
    let case = Case::new("tiny/64-and-1000", Unit::MicrosPerChild, "pidloop, 64").with(names.iter().flat_map(beside));
    let figures = bench.measure(case);
    for name in ["pidloop", "pidloop-async", "pidloop-reactor"] {
        let ratio = figures.ratio(&format!("{name}, 1000"), &format!("{name}, 64"));
        bench.goal("P3", format!("1,000 in flight over 64, {name}"), AtMost(1.05), ratio);
    }
    let case = Case::new("tiny/1000", Unit::MicrosPerChild, "pidloop");
    bench.measure(case.for_each(bench.pick(&ALL[..], &FEW[..]), &most));
}

fn callers(bench: &mut Bench, tiny: &str) {
    let n = bench.pick(4000, 1000);
    let of = |threads: u64| job(bench, n, &format!("k=64 threads={threads} child={tiny}"));
    let (one, two) = (of(1), of(2));
    let ours = ["pidloop", "pidloop-async", "pidloop-reactor"];
    let entrants = ["floor"].iter().chain(&ours).flat_map(|name| {
        [
            Entrant::new(name, &one).called(format!("{name}, 1 caller")),
            Entrant::new(name, &two).called(format!("{name}, 2 callers")),
        ]
    });
    let case = Case::new("tiny/64/callers", Unit::MicrosPerChild, "pidloop, 1 caller").with(entrants);
    let figures = bench.measure(case);
    for name in ours {
        let ratio = figures.ratio(&format!("{name}, 1 caller"), &format!("{name}, 2 callers"));
        bench.goal("P4", format!("rate of two calling threads over one, {name}"), AtLeast(1.3), ratio);
    }
    let two = ours.map(|name| format!("{name}, 2 callers"));
    let best = figures.lower(&two.each_ref().map(String::as_str));
    let ratio = figures.ratio("floor, 2 callers", best);
    bench.goal("P4", format!("rate of {best}, over the floor's"), AtLeast(0.9), ratio);
}

fn streams(bench: &mut Bench, tiny: &str) {
    if bench.quick() {
        return;
    }
    for (stdio, args) in [("null", "c"), ("inherit", ""), ("capture", "c")] {
        let job = job(bench, 1000, &format!("stdio={stdio} args={args} child={tiny}"));
        let case = Case::new(format!("streams/{stdio}"), Unit::MicrosPerChild, "pidloop").for_each(&FEW, &job);
        bench.measure(case.pinned());
    }
}

fn true_program(bench: &mut Bench) {
    let what = "child=/bin/true";
    for (name, k, n) in [("true/1", 1, 200), ("true/64", 64, 400)] {
        let job = job(bench, bench.pick(n, n / 2), &format!("k={k} {what}"));
        let case = Case::new(name, Unit::MicrosPerChild, "pidloop");
        bench.measure(case.for_each(bench.pick(&ALL[..], &FEW[..4]), &job));
    }
}
