//! What a spawn costs in a parent that is large: much touched memory, many open descriptors, many live children.

mod support;

use support::{AtLeast, AtMost, Bench, Case, Entrant, Unit, available_memory};

fn main() {
    support::run("parent", ask);
}

const GIB: u64 = 1 << 30;
const FEW: [&str; 6] = ["floor", "pidloop", "std", "tokio-ct", "async-process", "go"];

fn ask(bench: &mut Bench) {
    let job = format!("spawn n={} ms={} child={}", bench.pick(300, 100), bench.pick(1000, 100), bench.tiny());
    descriptors(bench, &job);
    bench.release();
    children(bench, &job);
    bench.release();
    memory(bench, &job);
}

/// `contender` with few and with many open: also before its first spawn.
fn descriptors(bench: &mut Bench, job: &str) {
    let tiny = bench.tiny();
    let first = format!("spawn n=1 child={tiny}");
    let of = |name: &str| {
        [
            Entrant::new(name, job).after("10 open", "open fds=4"),
            Entrant::new(name, job).after("15000 open", "open fds=15000"),
            Entrant::new(name, job)
                .after("", &first)
                .after("", "open fds=15000")
                .called(format!("{name}, 15000 opened later")),
        ]
    };
    let names = bench.pick(&FEW[..], &["floor", "pidloop", "std", "go"][..]);
    let case =
        Case::new("descriptors", Unit::MicrosPerChild, "pidloop, 10 open").with(names.iter().flat_map(|name| of(name)));
    let figures = bench.measure(case.pinned());
    for many in ["15000 open", "15000 opened later"] {
        let ratio = figures.ratio(&format!("pidloop, {many}"), "pidloop, 10 open");
        bench.goal("P5", format!("{many} over 10"), AtMost(1.10), ratio);
    }
    let capture = format!("{job} stdio=capture args=c");
    let of = |name: &str| {
        [
            Entrant::new(name, &capture).after("10 open", "open fds=4"),
            Entrant::new(name, &capture).after("15000 open", "open fds=15000"),
        ]
    };
    let case = Case::new("descriptors/capture", Unit::MicrosPerChild, "pidloop, 10 open")
        .with(names.iter().flat_map(|name| of(name)));
    let figures = bench.measure(case.pinned());
    let ratio = figures.ratio("pidloop, 15000 open", "pidloop, 10 open");
    bench.goal("P5", "15000 open over 10, output captured", AtMost(1.10), ratio);
}

/// One more child beside many: two entrants of ours and two of a peer at a time, for the sake of the process numbers.
fn children(bench: &mut Bench, job: &str) {
    let many = bench.pick(10_000, 1000);
    let hold = |n: u64, tiny: &str| format!("hold n={n} child={tiny} args=p");
    let tiny = bench.tiny();
    for peer in bench.pick(&["floor", "tokio-ct", "async-process", "std", "go", "libuv"][..], &["tokio-ct", "go"][..]) {
        // Go keeps a thread for each, and dies at 10,000 threads.
        let theirs = if *peer == "go" { many.min(9000) } else { many };
        let of = |name: &str, n: u64| {
            [
                Entrant::new(name, job).after("beside none", hold(0, &tiny)),
                Entrant::new(name, job).after(&format!("beside {n}"), hold(n, &tiny)),
            ]
        };
        let name = format!("children/{peer}");
        let case = Case::new(name, Unit::MicrosPerChild, "pidloop, beside none")
            .with(of("pidloop", many))
            .with(of(peer, theirs));
        let figures = bench.measure(case);
        bench.release();
        let (ours, theirs) = (format!("pidloop, beside {many}"), format!("{peer}, beside {theirs}"));
        match *peer {
            "tokio-ct" => {
                let ratio = figures.ratio(&ours, "pidloop, beside none");
                bench.goal("P6", format!("beside {many} over beside none"), AtMost(1.10), ratio);
                bench.goal(
                    "P6",
                    format!("tokio-ct over ours, beside {many}"),
                    AtLeast(5.0),
                    figures.ratio(&theirs, &ours),
                );
            }
            "go" => bench.goal("P6", format!("{theirs}, over ours"), AtLeast(8.0), figures.ratio(&theirs, &ours)),
            _ => {}
        }
    }
}

fn memory(bench: &mut Bench, job: &str) {
    let touch = |bytes: u64| format!("touch bytes={bytes}");
    let big = bench.pick(8 * GIB, GIB);
    if available_memory() > 2 * big + GIB {
        let of = |name: &str| {
            [
                Entrant::new(name, job).after("10 MB", touch(10 << 20)),
                Entrant::new(name, job).after(&format!("{} GiB", big / GIB), touch(big)),
            ]
        };
        let case =
            Case::new("memory/ours", Unit::MicrosPerChild, "pidloop, 10 MB").with(of("pidloop")).with(of("floor"));
        let figures = bench.measure(case.pinned());
        let ratio = figures.ratio(&format!("pidloop, {} GiB", big / GIB), "pidloop, 10 MB");
        bench.goal("P7", format!("{} GiB touched over 10 MB", big / GIB), AtMost(1.10), ratio);
        bench.release();
    } else {
        println!("\nskipped: memory/ours: not enough memory");
    }
    let bytes = bench.pick(GIB, GIB / 4);
    let all = bench.pick(&support::ALL[..], &FEW[..]);
    let entrants = all.iter().map(|name| Entrant::new(name, job).after("large", touch(bytes)).called(*name));
    let case = Case::new(format!("memory/{}M", bytes >> 20), Unit::MicrosPerChild, "pidloop").with(entrants);
    bench.measure(case.pinned());
}
