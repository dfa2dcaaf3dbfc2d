//! What a busy thread of a large parent notices of another one that spawns: its page faults, and its ticks of a millisecond. What others
//! notice of a child that writes without end, and its own cancel.

mod support;

use support::flood::WAYS;
use support::{AtMost, Bench, Case, Entrant, Unit, available_memory};

fn main() {
    support::run("neighbour", ask);
}

const GIB: u64 = 1 << 30;

fn ask(bench: &mut Bench) {
    flood(bench);
    let tiny = bench.tiny();
    let bytes = bench.pick(4 * GIB, GIB / 2);
    if available_memory() < 4 * bytes + GIB {
        println!("\nskipped: not enough memory");
        return;
    }
    for kind in ["faults", "ticks"] {
        let job = format!("neighbour kind={kind} ms={} child={tiny}", bench.pick(1000, 300));
        let entrant = |name: &str, more: &str| {
            Entrant::new(name, format!("{job} {more}")).after("large", format!("touch bytes={bytes}"))
        };
        let entrants = [
            entrant("pidloop", "spawn=0").called("nobody spawns"),
            entrant("pidloop", "spawn=1").called("pidloop"),
            entrant("pidloop", "spawn=1 option=uid").called("pidloop, uid"),
            entrant("floor", "spawn=1").called("floor"),
            entrant("std", "spawn=1").called("std"),
            entrant("std", "spawn=1 option=uid").called("std, uid"),
            entrant("go", "spawn=1").called("go"),
        ];
        let of = |unit| Case::new(format!("{kind}/{}M", bytes >> 20), unit, "nobody spawns").with(entrants.clone());
        let figures = bench.measure(of(Unit::Micros("p999")).also(&["spawned", "max", "n"]));
        for ours in ["pidloop", "pidloop, uid"] {
            let text = format!("{kind}, p99.9, {ours} over nobody");
            bench.goal("P16", text, AtMost(1.1), figures.ratio(ours, "nobody spawns"));
            let text = format!("{kind}, maximum, {ours} over nobody");
            bench.goal("P16", text, AtMost(1.1), figures.ratio_by("max", ours, "nobody spawns"));
        }
    }
}

/// By each way to take what it writes.
fn flood(bench: &mut Bench) {
    let (tiny, stamp) = (bench.tiny(), bench.stamp_file());
    let job = format!("flood kind=exits n={} child={tiny} args=l,{stamp}", bench.pick(1000, 300));
    let entrant = |way: &str| Entrant::new("pidloop", format!("{job} way={way}")).called(way);
    let entrants = ["none"].iter().chain(&WAYS).map(|way| entrant(way));
    let case = Case::new("flood/exits", Unit::Micros("p99"), "none").also(&["p50", "max"]).with(entrants);
    let figures = bench.measure(case);
    for way in WAYS {
        let text = format!("exit to report beside a flood, p99, {way} over none");
        bench.goal("flood", text, AtMost(1.5), figures.ratio(way, "none"));
    }
    let n = bench.pick(300, 100);
    let entrant = |way: &str, does: &str, args: &str| {
        let job = format!("flood kind=cancels n={n} child={tiny} args={args} way={way}");
        Entrant::new("pidloop", job).called(format!("{way}, {does}"))
    };
    let both = |way: &&str| [entrant(way, "idle", "p"), entrant(way, "flood", "w,1099511627776")];
    let case = Case::new("flood/cancels", Unit::Micros("p99"), "limited, idle").also(&["p50", "max"]);
    let figures = bench.measure(case.with(WAYS.iter().flat_map(both)));
    for way in WAYS {
        let text = format!("cancel to exit of a flood, p99, {way} over idle");
        let ratio = figures.ratio(&format!("{way}, flood"), &format!("{way}, idle"));
        bench.goal("flood", text, AtMost(2.0), ratio);
    }
}
