//! How late things are noticed: from a child's last act to its waiter's return, from a kill to the death seen, from the call of spawn
//! to the program's first act; and how long spawn keeps its caller.

mod support;

use support::{AtLeast, AtMost, Bench, Case, Entrant, PEERS, Unit};

fn main() {
    support::run("latency", ask);
}

fn ask(bench: &mut Bench) {
    let (tiny, stamp) = (bench.tiny(), bench.stamp_file());
    let n = bench.pick(200, 100);
    let names = |ours: &[&'static str]| -> Vec<&str> { ["floor"].iter().chain(ours).copied().chain(PEERS).collect() };
    let case = |name: &str, names: &[&str], job: String| {
        Case::new(name, Unit::Micros("p50"), "pidloop").with(names.iter().map(|name| Entrant::new(name, &*job)))
    };

    let job = format!("latency kind=exit n={n} child={tiny} args=l,{stamp} file={stamp}");
    // Waited for by a future, and started by one or not.
    let spawned = Entrant::new("pidloop-async", format!("{job} way=spawn")).called("pidloop-async, spawn");
    let case_of_exit =
        case("exit", &names(&["pidloop", "pidloop-async", "pidloop-reactor", "pidloop-nested"]), job).with([spawned]);
    let figures = bench.measure(case_of_exit);
    let ours = figures.lower(&["pidloop-async", "pidloop-async, spawn"]);
    bench.goal("P11", "exit to a blocking waiter, p50, over waitid", AtMost(1.1), figures.ratio("pidloop", "floor"));
    // A runtime of one thread that turns the reactor itself: no other thread has to be woken first.
    let text = "exit to an async waiter, p50: tokio-ct over a Reactor in tokio's AsyncFd";
    bench.goal("P11", text, AtLeast(1.0), figures.ratio("tokio-ct", "pidloop-nested"));
    for peer in ["tokio-ct", "tokio-mt"] {
        let text = format!("exit to an async waiter, p50: {peer} over {ours}");
        bench.goal("P11", text, AtLeast(1.0), figures.ratio(peer, ours));
    }

    let job = format!("latency kind=cancel n={n} child={tiny} args=p");
    bench.measure(case("cancel", &names(&["pidloop", "pidloop-context", "pidloop-async"]), job));

    let job = format!("latency kind=exec n={n} child={tiny} args=f,{stamp} file={stamp}");
    bench.measure(case("exec", &names(&["pidloop"]), job));

    calls(bench, n, &tiny);
}

/// Small, and in a parent that would be long in copying.
fn calls(bench: &mut Bench, n: u64, tiny: &str) {
    let job = format!("latency kind=call n={n} child={tiny}");
    let all: Vec<&str> = ["floor", "pidloop", "pidloop-async"].into_iter().chain(PEERS).collect();
    let entrants = all.iter().map(|name| Entrant::new(name, &*job));
    let figures = bench.measure(Case::new("call/small", Unit::Micros("p50"), "pidloop-async").with(entrants));
    let goals = |bench: &mut Bench, figures: &support::Figures, what: &str| {
        let p99 = figures.of("pidloop-async", "p99").map(|spread| spread.scaled(1e-3));
        bench.goal(
            "P15",
            format!("spawn_async keeps its caller, us, p50, {what}"),
            AtMost(10.0),
            figures.spread("pidloop-async"),
        );
        bench.goal("P15", format!("spawn_async keeps its caller, us, p99, {what}"), AtMost(50.0), p99);
    };
    goals(bench, &figures, "small");
    bench.release();

    let bytes: u64 = bench.pick(1 << 30, 1 << 28);
    let job = format!("latency kind=call n={} child={tiny} option=uid", bench.pick(20, 10));
    let entrants = ["pidloop", "pidloop-async", "std", "tokio-ct", "tokio-mt", "async-process", "go"]
        .map(|name| Entrant::new(name, &*job).after("large", format!("touch bytes={bytes}")).called(name));
    let name = format!("call/uid/{}M", bytes >> 20);
    let figures = bench.measure(Case::new(name, Unit::Micros("p50"), "pidloop-async").with(entrants));
    goals(bench, &figures, "in a large parent, with uid");
}
