//! How fast bytes come out of children: one and eight that write much, all of it kept in memory or not, and many that write little; what it
//! costs their parent in memory and CPU.

mod support;

use support::{ALL, AtLeast, AtMost, Bench, Case, Entrant, PEERS, Unit};

fn main() {
    support::run("pipe", ask);
}

fn ask(bench: &mut Bench) {
    bulk(bench);
    memory(bench);
    kept(bench);
    captures(bench);
}

const MIB: u64 = 1 << 20;

fn bulk(bench: &mut Bench) {
    let tiny = bench.tiny();
    for children in [1, 8] {
        let bytes = bench.pick(512 * MIB, 128 * MIB) / children;
        let job = format!("pipe mode=stream children={children} child={tiny} args=w,{bytes}");
        let mut entrants: Vec<_> =
            ["floor", "pidloop"].into_iter().chain(PEERS).map(|name| Entrant::new(name, &*job)).collect();
        for way in ["limited", "piped"] {
            entrants.push(Entrant::new("pidloop", format!("{job} way={way}")).called(format!("pidloop, {way}")));
        }
        for name in ["std", "tokio-mt"] {
            entrants.push(Entrant::new(name, format!("{job} pipe={MIB}")).called(format!("{name}, pipe of 1 MiB")));
        }
        let case = Case::new(format!("bulk/{children}"), Unit::GigabytesPerSecond, "pidloop").with(entrants);
        let figures = bench.measure(case);
        let ours = figures.higher(&["pidloop", "pidloop, limited", "pidloop, piped"]);
        let of = |peer: &str| figures.ratio(ours, peer);
        if children == 1 {
            for peer in ["std", "tokio-ct", "tokio-mt", "go"] {
                bench.goal("P13", format!("one child: {ours} over {peer}, at its defaults"), AtLeast(3.5), of(peer));
            }
            bench.goal(
                "P13",
                format!("one child: {ours} over tokio-mt, same pipe"),
                AtLeast(1.0),
                of("tokio-mt, pipe of 1 MiB"),
            );
            bench.goal("P13", format!("one child: {ours} over the floor"), AtLeast(0.95), of("floor"));
        } else {
            for peer in PEERS {
                bench.goal("P13", format!("eight children: {ours} over {peer}"), AtLeast(1.0), of(peer));
            }
        }
    }
}

fn memory(bench: &mut Bench) {
    let tiny = bench.tiny();
    // The two that take half a minute for a GiB are in the small one alone.
    let quick = ["floor", "pidloop", "pidloop-reactor", "std", "tokio-ct", "tokio-mt", "subprocess", "duct", "python"];
    let of = |bytes: u64| format!("pipe mode=memory children=1 child={tiny} args=w,{bytes}");
    let (small, large) = bench.pick((64 * MIB, 1024 * MIB), (16 * MIB, 128 * MIB));
    let case = Case::new(format!("memory/{}M", small / MIB), Unit::GigabytesPerSecond, "pidloop");
    bench.measure(case.for_each(bench.pick(&ALL[..], &quick[..]), &of(small)));
    let case =
        Case::new(format!("memory/{}M", large / MIB), Unit::GigabytesPerSecond, "pidloop").for_each(&quick, &of(large));
    let figures = bench.measure(case);
    for peer in ["std", "tokio-ct", "tokio-mt"] {
        bench.goal(
            "P14",
            format!("{} MiB into memory: rate over {peer}", large / MIB),
            AtLeast(2.0),
            figures.ratio("pidloop", peer),
        );
    }
    let sizes = [large / 8, large]
        .map(|bytes| Entrant::new("pidloop", of(bytes)).called(format!("pidloop, {} MiB", bytes / MIB)));
    let labels = sizes.each_ref().map(|entrant| entrant.label.clone());
    let case = Case::new("memory/linear", Unit::GigabytesPerSecond, &labels[0]).with(sizes);
    let figures = bench.measure(case);
    bench.goal(
        "P14",
        "time linear in bytes: rate of an eighth over the whole",
        AtMost(1.25),
        figures.ratio(&labels[0], &labels[1]),
    );
}

/// What the contender's `way=limited` keeps, and how much more it may have for that.
const LIMIT_BYTES: u64 = 128 << 10;
const OVER_BYTES: u64 = MIB;

/// A child that might as well go on for ever; and one whose output nobody reads.
fn kept(bench: &mut Bench) {
    let bytes = bench.pick(1024 * MIB, 256 * MIB);
    let job = format!("pipe mode=memory children=1 child={} args=w,{bytes}", bench.tiny());
    let entrant = |way: &str, label: &str| Entrant::new("pidloop", format!("{job} way={way}")).called(label);
    let whole = || Entrant::new("pidloop", &*job).called("whole");
    let name = format!("peak/{}M", bytes / MIB);
    let case = Case::new(name, Unit::Plain("peak", "resident bytes at most"), "whole");
    let figures = bench.measure(case.with([whole(), entrant("limited", "limited"), entrant("spooled", "spooled")]));
    let text = format!("{} MiB, {LIMIT_BYTES} bytes of them kept: most memory, in bytes", bytes / MIB);
    bench.goal("P14", text, AtMost((LIMIT_BYTES + OVER_BYTES) as f64), figures.spread("limited"));
    let name = format!("parent/{}M", bytes / MIB);
    let case = Case::new(name, Unit::Micros("own_cpu"), "whole");
    let figures = bench.measure(case.with([whole(), entrant("limited", "limited"), entrant("spooled", "spooled")]));
    // Without giving the spool's memory back. What is left is the seal: the kernel looks at each page for it.
    let text = format!("{} MiB: the parent's CPU, spooled over captured", bytes / MIB);
    bench.goal("P14", text, AtMost(0.05), figures.ratio("spooled", "whole"));
}

fn captures(bench: &mut Bench) {
    let (n, ms) = (bench.pick(2000, 500), bench.pick(2000, 250));
    let job = format!("spawn n={n} ms={ms} k=64 stdio=capture args=c child={}", bench.tiny());
    let figures = bench.measure(Case::new("small/64", Unit::MicrosPerChild, "pidloop").for_each(&ALL, &job));
    let ours = figures.lower(&["pidloop", "pidloop-async", "pidloop-reactor"]);
    for (peer, bound) in [("tokio-mt", 1.25), ("std", 1.15), ("go", 1.6)] {
        bench.goal(
            "P12",
            format!("64 captures in flight: {peer} over {ours}"),
            AtLeast(bound),
            figures.ratio(peer, ours),
        );
    }
}
