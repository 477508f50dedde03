use super::*;
use crate::types::{Ino, NodeUuid, VolumeId};
use std::mem::ManuallyDrop;
use std::path::Path;

const NODE: NodeUuid = NodeUuid([0xa7; 16]);

fn owner(ino: u64) -> Owner {
    Owner { volume: VolumeId(1), ino: Ino(ino), time: Timestamp { secs: 9, nanos: 7 }, kill: ino == 5 }
}

/// A node of this test's own, so that tests do not meet in /dev/shm.
fn node(root: &Path) -> NodeUuid {
    let mut id = NODE;
    let hash = blake3::hash(root.as_os_str().as_encoded_bytes());
    id.0.copy_from_slice(&hash.as_bytes()[..16]);
    id
}

fn reopen(root: &Path) -> Arc<Arena> {
    let opened = open(root, node(root), 8 << 20).unwrap();
    assert_eq!(opened.problem, None);
    assert!(opened.arena.survives(), "the test needs a tmpfs at /dev/shm");
    opened.arena
}

/// What a killed server leaves: nothing is dropped.
fn killed(arena: Arc<Arena>, slots: Vec<Slot>) {
    let _ = ManuallyDrop::new((slots, arena));
}

fn kept(recovered: &[Recovered]) -> Vec<(u64, u64, Vec<u8>)> {
    recovered.iter().map(|r| (r.owner.ino.0, r.slot.start(), r.slot.bytes().to_vec())).collect()
}

#[test]
fn slots_outlive_the_server_newest_first() {
    let home = tempfile::tempdir().unwrap();
    let arena = reopen(home.path());
    assert_eq!(pending(home.path(), node(home.path())).map(|(_, bytes)| bytes), Some(0));
    let big = vec![7u8; 100_000];
    let mut first = arena.put(owner(5), 1000, b"hello").unwrap();
    let second = arena.put(owner(6), 0, &big).unwrap();
    assert_eq!(first.append(&owner(5), b" world"), 6);
    assert_eq!(first.overwrite(&owner(5), 1000, b"H"), 1);
    drop(arena.put(owner(9), 0, b"committed").unwrap());
    killed(arena, vec![first, second]);

    let looked = || pending(home.path(), node(home.path())).map(|(_, bytes)| bytes);
    assert_eq!((looked(), looked()), (Some(100_011), Some(100_011)), "looking takes nothing away");
    let arena = reopen(home.path());
    let found = arena.recover(Lsn(0));
    assert_eq!(kept(&found), [(6, 0, big.clone()), (5, 1000, b"Hello world".to_vec())]);
    assert_eq!(found.iter().map(|r| r.owner.kill).collect::<Vec<_>>(), [false, true]);
    assert_eq!(found[0].owner.time, Timestamp { secs: 9, nanos: 7 });
    assert!(!arena.remove(), "it is not empty");
    found.into_iter().for_each(|r| drop(ManuallyDrop::into_inner(r.slot)));
    assert!(arena.remove());
    assert_eq!(looked(), None);
    assert!(!home.path().join("session").exists());
}

#[test]
fn the_journal_decides_what_a_note_means() {
    let home = tempfile::tempdir().unwrap();
    let arena = reopen(home.path());
    let slots: Vec<Slot> = (0..4).map(|n| arena.put(owner(n), 100, b"0123456789").unwrap()).collect();
    slots[0].note(Lsn(50), 0, 0);
    slots[1].note(Lsn(50), 0, 104);
    slots[2].note(Lsn(50), 107, u64::MAX);
    slots[3].note(Lsn(50), 0, 0);
    slots[3].note(Lsn::ZERO, 0, 0);
    assert_eq!(arena.noted(), Some((Lsn(50), Term(0))));
    arena.reign(Term(7));
    killed(arena, slots);
    let whole = b"0123456789".to_vec();
    {
        let arena = reopen(home.path());
        assert_eq!(arena.noted(), Some((Lsn(50), Term(7))));
        let found = arena.recover(Lsn(49));
        assert_eq!(arena.noted(), None, "all of them are settled");
        assert_eq!(found.len(), 4, "the record never came");
        assert!(found.iter().all(|r| r.slot.bytes() == whole));
        for r in &found[1..] {
            let keep = [(107, u64::MAX), (0, 104), (0, 0)];
            let (from, to) = keep[(3 - r.owner.ino.0 as usize) - 1];
            r.slot.note(Lsn(50), from, to);
        }
        let slots = found.into_iter().map(|r| ManuallyDrop::into_inner(r.slot)).collect();
        killed(arena, slots);
    }
    let arena = reopen(home.path());
    let found = arena.recover(Lsn(50));
    let expected = [(3, 100, whole), (2, 107, b"789".to_vec()), (1, 100, b"0123".to_vec())];
    assert_eq!(kept(&found), expected);
    found.into_iter().for_each(|r| drop(ManuallyDrop::into_inner(r.slot)));
    assert!(arena.remove());
}

#[test]
fn an_arena_of_another_session_is_put_aside() {
    let home = tempfile::tempdir().unwrap();
    let arena = reopen(home.path());
    let slot = arena.put(owner(1), 0, b"precious").unwrap();
    killed(arena, vec![slot]);
    std::fs::write(home.path().join("session"), "00112233445566778899aabbccddeeff").unwrap();
    assert_eq!(pending(home.path(), node(home.path())), None);
    let opened = open(home.path(), node(home.path()), 8 << 20).unwrap();
    let problem = opened.problem.unwrap();
    assert!(problem.starts_with("8 bytes that were acknowledged"), "{problem}");
    assert!(opened.arena.recover(Lsn(0)).is_empty());
    let aside = format!("/dev/shm/rewindfs-{}.stale", node(home.path()));
    let text = std::fs::read(&aside).unwrap();
    assert!(text.windows(8).any(|w| w == b"precious"));
    std::fs::remove_file(&aside).unwrap();
    assert!(opened.arena.remove());
}

#[test]
fn garbage_in_descriptors_frees_them() {
    let home = tempfile::tempdir().unwrap();
    let arena = reopen(home.path());
    for page in 0..64u64 {
        let at = Shape::DESCRIPTORS + page as usize * DESCRIPTOR_BYTES;
        for word in 0..8 {
            let mix = (page * 8 + word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            arena.map.word(at + word as usize * 8).store(mix | 1, Ordering::Relaxed);
        }
    }
    killed(arena, Vec::new());
    let arena = reopen(home.path());
    let found = arena.recover(Lsn(3));
    assert!(found.iter().all(|r| r.slot.len() <= r.slot.capacity()));
    found.into_iter().for_each(|r| drop(ManuallyDrop::into_inner(r.slot)));
    assert_eq!(arena.used(), 0);
    assert!(arena.remove());
}

#[test]
fn slots_are_given_and_taken_back() {
    let arena = Arena::volatile(256 * 1024).unwrap();
    let slab = vec![1; SLAB_BYTES];
    let small: Vec<Slot> = (0..32).map(|_| arena.put(owner(1), 0, b"x").unwrap()).collect();
    let big = arena.put(owner(1), 0, &slab).unwrap();
    assert_eq!((big.len(), arena.used()), (SLAB_BYTES, 2 * SLAB_BYTES as u64));
    assert_eq!(arena.put(owner(1), 0, b"x").unwrap_err(), NoRoom);
    drop(big);
    let one = arena.put(owner(1), 0, b"x").unwrap();
    // No whole slab is left: a large write gets small slots.
    assert_eq!(arena.put(owner(1), 0, &slab).unwrap().len(), PAGE_BYTES);
    drop((small, one));
    assert_eq!(arena.used(), 0);
    assert_eq!(arena.put(owner(1), 0, &slab).unwrap().len(), SLAB_BYTES);
}

#[test]
fn unanswered_requests_and_moments_are_found_again() {
    let home = tempfile::tempdir().unwrap();
    let arena = reopen(home.path());
    let begin = |arena: &Arc<Arena>, connection, unique, lsn| {
        arena.begin((connection, unique), unique == 102, Lsn(lsn))
    };
    let kept = [begin(&arena, 11, 100, 7), begin(&arena, 11, 102, 5), begin(&arena, 12, 104, 9)];
    drop(begin(&arena, 11, 106, 1));
    let moment = |number| Moment {
        volume: 1,
        number,
        at: Lsn(40),
        relative: number == 3,
        text: format!("@{number}m"),
    };
    for number in 1..4 {
        arena.remember(&moment(number));
    }
    arena.forget(1, 2);
    let _ = ManuallyDrop::new(kept);
    killed(arena, Vec::new());
    let arena = reopen(home.path());
    assert!(arena.recover(Lsn(0)).is_empty());
    assert_eq!(arena.in_flight().inherited(), Some(Lsn(5)));
    let mut moments = arena.moments().inherited(1);
    moments.sort_by_key(|m| m.number);
    assert_eq!(moments, [moment(1), moment(3)]);
    assert!(arena.moments().inherited(1).is_empty());
    // Asked for again, and killed again before the answer.
    let _ = ManuallyDrop::new(begin(&arena, 11, 102, 50));
    killed(arena, Vec::new());
    let arena = reopen(home.path());
    assert!(arena.recover(Lsn(0)).is_empty());
    assert_eq!(arena.in_flight().inherited(), Some(Lsn(5)), "the first note counts");
    drop(begin(&arena, 11, 102, 60));
    killed(arena, Vec::new());
    for server in 0..8 {
        let arena = reopen(home.path());
        assert!(arena.recover(Lsn(0)).is_empty());
        assert_eq!(arena.in_flight().inherited(), (server < 6).then_some(Lsn(7)), "{server}");
        killed(arena, Vec::new());
    }
    let arena = reopen(home.path());
    assert!(arena.recover(Lsn(0)).is_empty());
    assert!(arena.remove());
}

/// A server can be killed when it has read a request and not yet noted it.
#[test]
fn what_may_be_unanswered_is_near_the_last_request_that_was_noted() {
    let home = tempfile::tempdir().unwrap();
    let arena = reopen(home.path());
    let begin = |connection, unique| arena.begin((connection, unique), false, Lsn(7));
    let kept = [begin(11, 100_000), begin(11, 20), begin(12, 500_000)];
    drop(begin(11, 100_004));
    let _ = ManuallyDrop::new(kept);
    killed(arena, Vec::new());
    let arena = reopen(home.path());
    assert!(arena.recover(Lsn(0)).is_empty());
    let unanswered = arena.take_unanswered(11);
    let reach = 2 * 16 * 1024;
    let expected = [20, 100_000, 100_002, 100_004, 100_006, 100_004 - reach, 100_004 + reach];
    assert!(expected.iter().all(|unique| unanswered.contains(unique)));
    assert_eq!(unanswered.iter().max(), Some(&(100_004 + reach)));
    assert!(arena.take_unanswered(13).is_empty());
    assert!(!arena.take_unanswered(11).contains(&20), "answered once");
    killed(arena, Vec::new());
    let arena = reopen(home.path());
    assert!(arena.recover(Lsn(0)).is_empty());
    assert!(arena.take_unanswered(12).contains(&500_000));
    assert!(arena.remove());
}
