//! A small tree with one of everything that a backup could lose.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use nix::sys::stat::SFlag;

use super::Rng;
use super::sys::{chmod, chown, mkdir, raw_name, set_times, set_xattr, special, write_file};

/// Fills an empty directory. Modification times are set last, directories after what is in them.
pub fn plant(dir: &Path, rng: &mut Rng) -> io::Result<()> {
    for (name, mode) in [("deep", 0o755), ("deep/er", 0o700), ("deep/er/est", 0o1777), ("links", 0o2775)] {
        mkdir(&dir.join(name), 0o755)?;
        chmod(&dir.join(name), mode)?;
    }
    mkdir(&dir.join("empty"), 0o755)?;
    for (i, len) in [0, 1, 511, 4096, 4097, 65_537, 262_144, 262_145, 1_500_000].into_iter().enumerate() {
        let content = if i % 2 == 0 { rng.bytes(len) } else { rng.text(len) };
        write_file(&dir.join(format!("deep/er/file-{len}")), 0o600 + i as u32 * 0o11, &content)?;
    }
    for name in [&b"caf\xe9 \xff"[..], b"two\nlines", b" blank ", b"-dash", b"back\\slash'\""] {
        write_file(&dir.join("deep/er/est").join(raw_name(name)), 0o640, name)?;
    }
    write_file(&dir.join("setuid"), 0o755, b"#!/bin/sh\n")?;
    chown(&dir.join("setuid"), 1000, 2000)?;
    chmod(&dir.join("setuid"), 0o6755)?;

    let sparse = File::create(dir.join("sparse"))?;
    sparse.write_all_at(b"start", 0)?;
    sparse.write_all_at(&rng.bytes(10_000), 5_000_000)?;
    sparse.set_len(9_000_001)?;
    sparse.sync_all()?;

    write_file(&dir.join("links/one"), 0o644, b"one inode, three names")?;
    fs::hard_link(dir.join("links/one"), dir.join("links/two"))?;
    fs::hard_link(dir.join("links/one"), dir.join("deep/er/three"))?;
    symlink("links/one", dir.join("relative"))?;
    symlink("/does/not/exist", dir.join("dangling"))?;
    symlink("x".repeat(1000), dir.join("long"))?;
    special(&dir.join("fifo"), SFlag::S_IFIFO, 0o622, 0)?;
    special(&dir.join("device"), SFlag::S_IFCHR, 0o600, nix::sys::stat::makedev(1, 3))?;

    set_xattr(&dir.join("deep"), "user.on a directory", b"yes", 0)?;
    set_xattr(&dir.join("sparse"), "user.binary", &rng.bytes(700), 0)?;
    set_xattr(&dir.join("sparse"), "user.empty", b"", 0)?;
    set_xattr(&dir.join("sparse"), "trusted.secret", b"root only", 0)?;
    set_xattr(&dir.join("sparse"), "security.label", b"labelled", 0)?;
    set_xattr(&dir.join("relative"), "trusted.on a link", b"1", 0)?;

    let times = [
        ("deep/er/est/-dash", (-315_619_200, 123_456_789)),
        ("deep/er/file-4096", (4_102_444_800, 999_999_999)),
        ("deep/er/file-1", (1, 1)),
        ("relative", (1_000_000_000, 7)),
        ("fifo", (1_234_567_890, 1)),
        ("empty", (86_400, 5)),
        ("deep/er/est", (1_500_000_000, 500_000_001)),
        ("deep/er", (-1, 999_999_999)),
        ("links", (2_500_000_000, 3)),
    ];
    times.iter().try_for_each(|(name, mtime)| set_times(&dir.join(name), (1_600_000_000, 1), *mtime))
}
