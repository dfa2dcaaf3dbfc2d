//! The promise that only our own children are reaped, where orphans are asked for: adopted, reaped and stopped, and nobody else's child is
//! touched. Each test is a process of its own, since a subreaper is one.

mod common;

use std::fs::{self, File};

use common::{SOON, cgroup2, children_of_ours, eventually, in_own_process, sh, skip, state, threads};
use pidloop::{CgroupScope, Command, Context, ErrorKind, Orphans, adopt_orphans};

#[test]
fn all_orphans_are_reaped_and_stopped_from_above() {
    in_own_process("all_orphans_are_reaped_and_stopped_from_above", || {
        let ctx = Context::new();
        let before = threads();
        let adoption = adopt_orphans(Orphans::all().context(&ctx)).unwrap();
        assert_eq!(adopt_orphans(&Orphans::all()).unwrap_err().kind(), ErrorKind::InvalidInput);
        // Some end by themselves; one leaves a tree, of which each part is an orphan when the one above it dies.
        let tree = "setsid sh -c 'sh -c \"sleep 600 & sleep 600\" & sleep 600' & (sleep 0.05 &) ; (true &) ; exit 3";
        for _ in 0..3 {
            assert_eq!(sh(tree).status().unwrap().code(), Some(3));
        }
        let children = children_of_ours;
        eventually("the roots of three trees are ours, and no zombie", || {
            let ours = children();
            ours.len() == 3 && ours.iter().all(|pid| state(*pid) != Some('Z'))
        });
        // What the library starts is its own, in whatever moment.
        for round in 0..100 {
            assert_eq!(sh(&format!("exit {}", round % 7)).status().unwrap().code(), Some(round % 7));
            assert!(Command::new("true").spawn().unwrap().wait().unwrap().usage().is_some());
        }
        ctx.cancel();
        eventually("all of them are gone", || children().is_empty());
        drop(adoption);
        eventually("the thread is gone", || threads() <= before + 3);
        let adoption = adopt_orphans(&Orphans::all()).unwrap();
        drop(adoption);
    });
}

#[test]
fn of_cgroups_leaves_other_peoples_children_alone() {
    const NAME: &str = "of_cgroups_leaves_other_peoples_children_alone";
    in_own_process(NAME, || {
        let path = cgroup2().map(|root| root.join(format!("pidloop-test-{}-orphans", std::process::id())));
        let Some(path) = path.filter(|path| fs::create_dir(path).is_ok()) else {
            return skip(NAME, "no cgroup may be made");
        };
        let adoption = adopt_orphans(&Orphans::of_cgroups()).unwrap();
        let mut theirs = std::process::Command::new("sh").args(["-c", "(sleep 0.01 &) ; exit 3"]).spawn().unwrap();
        let scope = CgroupScope::new(File::open(&path).unwrap());
        let child = sh("(sleep 0.05 &) ; (true &) ; exit 4").cgroup_scope(&scope).spawn().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(4));
        child.wait_tree_timeout(SOON).unwrap().unwrap();
        // Theirs, and what theirs has left.
        eventually("those of the cgroup are reaped", || children_of_ours().len() == 2);
        assert_eq!(theirs.wait().unwrap().code(), Some(3));
        drop(adoption);
        fs::remove_dir(&path).unwrap();
        assert_eq!(children_of_ours().len(), 1);
    });
}
