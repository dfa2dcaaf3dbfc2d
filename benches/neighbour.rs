//! What a busy thread of a large parent notices of another one that spawns: its page faults, and its ticks of a millisecond.

mod support;

use support::{AtMost, Bench, Case, Entrant, Unit, available_memory};

fn main() {
    support::run("neighbour", ask);
}

const GIB: u64 = 1 << 30;

fn ask(bench: &mut Bench) {
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
