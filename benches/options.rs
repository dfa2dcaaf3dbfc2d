//! What a spawn with an option costs in a large parent: the options that make others copy the parent's page tables.

mod support;

use support::{AtLeast, AtMost, Bench, Case, Entrant, Unit, available_memory};

fn main() {
    support::run("options", ask);
}

const GIB: u64 = 1 << 30;
const OPTIONS: [&str; 10] =
    ["uid", "gid", "groups", "setsid", "process_group", "cwd", "chroot", "rlimit", "umask", "path"];
/// What the others have no setter for, or need a hook and so a fork.
const MORE: [&str; 12] = [
    "nice",
    "cpu_affinity",
    "io_priority",
    "oom_score_adj",
    "scheduler",
    "no_new_privs",
    "capabilities",
    "signals",
    "parent_death",
    "unshare",
    "uid_map",
    "uid_maps",
];
const OPTIONS_QUICK: [&str; 4] = ["uid", "setsid", "chroot", "path"];
const FEW: [&str; 5] = ["floor", "pidloop", "std", "tokio-ct", "go"];

fn ask(bench: &mut Bench) {
    let options = bench.pick(&OPTIONS[..], &OPTIONS_QUICK[..]);
    let tiny = bench.tiny();
    let (n, ms) = (bench.pick(200, 50), bench.pick(250, 40));
    let job = move |option: &str| format!("spawn n={n} ms={ms} child={tiny} option={option}");
    let touch = |bytes: u64| format!("touch bytes={bytes}");

    // Everybody, in a parent that fits for all of them at once.
    let bytes = bench.pick(GIB, GIB / 4);
    let all = bench.pick(&support::ALL[..], &FEW[..]);
    for option in options {
        let entrants =
            all.iter().map(|name| Entrant::new(name, job(option)).after("large", touch(bytes)).called(*name));
        let name = format!("{option}/{}M", bytes >> 20);
        bench.measure(Case::new(name, Unit::MicrosPerChild, "pidloop").with(entrants).pinned());
    }
    bench.release();

    // Ours alone, small and as large as it gets.
    let big = bench.pick(8 * GIB, GIB);
    for option in options.iter().chain(bench.pick(&MORE[..], &[])) {
        if available_memory() < big + GIB {
            println!("\nskipped: {option}/ours: not enough memory");
            break;
        }
        let large = format!("{} GiB", big / GIB);
        let entrants = [
            Entrant::new("pidloop", job(option)).after("10 MB", touch(10 << 20)),
            Entrant::new("pidloop", job(option)).after(&large, touch(big)),
        ];
        let case = Case::new(format!("{option}/ours"), Unit::MicrosPerChild, "pidloop, 10 MB").with(entrants);
        let figures = bench.measure(case.pinned());
        let ratio = figures.ratio(&format!("pidloop, {large}"), "pidloop, 10 MB");
        bench.goal("P7", format!("{option}: {large} touched over 10 MB"), AtMost(1.10), ratio);
        if available_memory() < GIB {
            bench.release();
        }
    }
    bench.release();

    let four = bench.pick(4 * GIB, GIB);
    if available_memory() < 3 * four + GIB {
        println!("\nskipped: uid/large: not enough memory");
        return;
    }
    for option in ["uid", "gid"] {
        let names = ["pidloop", "std", "tokio-ct"];
        let entrants = names.map(|name| Entrant::new(name, job(option)).after("large", touch(four)).called(name));
        let name = format!("{option}/{}G", four / GIB);
        let figures = bench.measure(Case::new(name, Unit::MicrosPerChild, "pidloop").with(entrants).pinned());
        for peer in ["std", "tokio-ct"] {
            let text = format!("{option} at {} GiB: {peer} over ours", four / GIB);
            bench.goal("P7", text, AtLeast(bench.pick(1000.0, 250.0)), figures.ratio(peer, "pidloop"));
        }
    }
}
