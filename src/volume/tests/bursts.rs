//! What counts towards a burst, and what is said of one.

use super::policy::keep;
use super::*;
use crate::types::point::Point;
use crate::volume::policy::burst::Kind;
use crate::volume::policy::keeper::Rounds;

const LARGE: u64 = 50 << 30;

fn set_size(bench: &Bench, file: Ino, size: u64) {
    bench.main().setattr(file, &SetAttr { size: Some(size), ..SetAttr::default() }, None).unwrap();
    bench.volumes().sync().unwrap();
}

fn count(bench: &Bench, kind: Kind) -> u64 {
    bench.main().alarms().0.of(kind)
}

#[test]
fn holes_that_go_are_no_loss() {
    let bench = Bench::new(quiet());
    let file = bench.file(Ino::ROOT, "f");
    set_size(&bench, file, LARGE);
    set_size(&bench, file, 0);
    assert_eq!(count(&bench, Kind::OverwrittenBytes), 0);
    bench.write(file, LARGE - 5000, &[7; 5000]);
    bench.volumes().sync().unwrap();
    bench.main().allocate(file, 0, LARGE - 5000, Allocate::Punch, Writer::ROOT, None).unwrap();
    assert!(count(&bench, Kind::OverwrittenBytes) <= 5000);
    set_size(&bench, file, 100);
    assert!((5000..=10_000).contains(&count(&bench, Kind::OverwrittenBytes)));
    bench.care();
    for name in ["f", "g"] {
        let file = bench.main().lookup(None, Ino::ROOT, b"f").unwrap().ino;
        set_size(&bench, file, LARGE);
        bench.write(file, 1 << 30, &[7; 3000]);
        if name == "f" {
            let new = bench.file(Ino::ROOT, "new");
            assert_ne!(new, file);
            let (from, to) = ((Ino::ROOT, b"new".as_slice()), (Ino::ROOT, b"f".as_slice()));
            bench.main().rename(from, to, RenameMode::Replace, None).unwrap();
        } else {
            bench.main().unlink(Ino::ROOT, b"f", None).unwrap();
        }
    }
    assert_eq!(count(&bench, Kind::RemovedFiles), 2);
    assert!(
        (6000..=10_000).contains(&count(&bench, Kind::RemovedBytes)),
        "{}",
        count(&bench, Kind::RemovedBytes)
    );
}

#[test]
fn the_command_that_a_burst_names_has_a_moment_that_exists() {
    let bench = Bench::new(quiet());
    let mut rounds = Rounds::default();
    bench.clock.advance(500_000_000);
    for n in 0..1400 {
        bench.file(Ino::ROOT, &format!("f{n}"));
    }
    keep(&bench, &mut rounds);
    bench.clock.advance(20_000_000_000);
    for n in 0..1300 {
        bench.main().unlink(Ino::ROOT, format!("f{n}").as_bytes(), None).unwrap();
    }
    let told = keep(&bench, &mut rounds);
    let told = told.into_iter().chain(bench.volumes().problems()).collect::<Vec<_>>().join("\n");
    assert!(told.contains("1300 files were removed") && told.contains("up to 1000 files would be"), "{told}");
    let (_, command) = told.split_once("rewindfs diff PATH ").unwrap();
    let point: Point = command.lines().next().unwrap().parse().unwrap();
    bench.main().resolve(&point).unwrap();
}

#[test]
fn sizes_are_told_for_people() {
    assert_eq!(Kind::OverwrittenBytes.happened(50 << 30), "50.0 GiB were written over or cut off");
    assert_eq!(Kind::RemovedBytes.happened(2048), "files of 2.00 KiB were removed or replaced");
    assert_eq!(Kind::RemovedFiles.amount(7), "7 files");
}
