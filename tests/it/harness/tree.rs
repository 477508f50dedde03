//! What a tree of files holds, and how two of them differ.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::sys::{data_ranges, facts_of, get_xattr, list_xattrs, names};

/// Contents are hashed in pieces of this size, to say where a difference lies.
const PIECE: u64 = 64 * 1024;
/// Larger files are read only where `SEEK_DATA` says that they hold data.
const READ_WHOLE_MAX: u64 = 64 * 1024 * 1024;
/// Holes are compared in pages: ext4 knows no smaller ones.
const PAGE: u64 = 4096;

/// Which modification times must agree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// All: one tree was made from the other.
    All,
    /// Only those that were set by hand, outside 2000-2040: both trees were made by the same operations.
    Planted,
}

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    rdev: u64,
    mtime: (i64, i64),
    xattrs: BTreeMap<String, Vec<u8>>,
    target: Option<PathBuf>,
    /// Hashes of the pieces that are not all zero.
    pieces: BTreeMap<u64, u64>,
    data: Vec<(u64, u64)>,
    /// The first path, in order, of the same inode.
    first_link: PathBuf,
}

/// Everything a user can see of a tree, by path below its root; the root itself is the empty path.
#[derive(Clone, Debug)]
pub struct Tree(BTreeMap<PathBuf, Node>);

impl Tree {
    /// Reads a whole tree.
    pub fn read(root: &Path) -> Tree {
        let mut nodes = BTreeMap::new();
        let mut inodes: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
            let (node, inode, children) = node(&full).unwrap_or_else(|e| panic!("reading {full:?}: {e}"));
            let first = inodes.entry(inode).or_insert_with(|| path.clone());
            if path < *first {
                *first = path.clone();
            }
            todo.extend(children.iter().map(|name| path.join(name)));
            nodes.insert(path, (node, inode));
        }
        let link = |(path, (mut node, inode)): (PathBuf, (Node, _))| {
            node.first_link = inodes.get(&inode).cloned().unwrap_or_default();
            (path, node)
        };
        Tree(nodes.into_iter().map(link).collect())
    }

    /// How many files, directories and links there are, the root included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What differs, one sentence each. Where this tree has a hole, the other must have one too; the other
    /// may have more of them, since ext4 keeps blocks that hold zeros.
    pub fn differences(&self, other: &Tree, times: Times) -> Vec<String> {
        let mut found = Vec::new();
        for (path, node) in &self.0 {
            match other.0.get(path) {
                None => found.push(format!("{path:?} is missing")),
                Some(theirs) => compare(path, node, theirs, times, &mut found),
            }
        }
        let extra = other.0.keys().filter(|path| !self.0.contains_key(*path));
        found.extend(extra.map(|path| format!("{path:?} should not be there")));
        found
    }

    /// Fails the test if the other tree differs.
    pub fn assert_same(&self, other: &Tree, times: Times, what: &str) {
        let found = self.differences(other, times);
        let shown = found.iter().take(20).map(|line| format!("\n  {line}")).collect::<String>();
        assert!(found.is_empty(), "{what}: {} differences{shown}", found.len());
    }
}

/// Fails the test unless `other` is what `reference` is: names, types, contents, modes, owners, times,
/// xattrs, link targets, hard links, holes and device numbers.
pub fn same_tree(reference: &Path, other: &Path) {
    let what = format!("{} against {}", other.display(), reference.display());
    Tree::read(reference).assert_same(&Tree::read(other), Times::All, &what);
}

type Inode = (u64, u64);

fn node(path: &Path) -> io::Result<(Node, Inode, Vec<std::ffi::OsString>)> {
    let m = path.symlink_metadata()?;
    let facts = facts_of(&m);
    let mut xattrs = BTreeMap::new();
    for name in list_xattrs(path)? {
        let value = get_xattr(path, &name)?;
        xattrs.insert(String::from_utf8_lossy(&name).into_owned(), value);
    }
    let target = m.is_symlink().then(|| path.read_link()).transpose()?;
    let children = if m.is_dir() { names(path)? } else { Vec::new() };
    let (data, pieces) = if m.is_file() { content(&File::open(path)?, m.len())? } else { Default::default() };
    let node = Node {
        mode: facts.mode,
        owner: (facts.uid, facts.gid),
        size: facts.size,
        rdev: facts.rdev,
        mtime: (m.mtime(), m.mtime_nsec()),
        xattrs,
        target,
        pieces,
        data,
        first_link: PathBuf::new(),
    };
    Ok((node, (m.dev(), m.ino()), children))
}

type Content = (Vec<(u64, u64)>, BTreeMap<u64, u64>);

fn content(file: &File, size: u64) -> io::Result<Content> {
    let data = data_ranges(file)?;
    let mut pieces = BTreeMap::new();
    let mut buf = vec![0; PIECE as usize];
    let whole = [(0, size)];
    let ranges = if size <= READ_WHOLE_MAX { &whole[..] } else { &data[..] };
    for &(start, end) in ranges {
        for piece in start / PIECE..end.div_ceil(PIECE) {
            let want = (size - piece * PIECE).min(PIECE) as usize;
            file.read_exact_at(&mut buf[..want], piece * PIECE)?;
            if buf[..want].iter().any(|&b| b != 0) {
                let mut hash = DefaultHasher::new();
                hash.write(&buf[..want]);
                pieces.insert(piece, hash.finish());
            }
        }
        if file.read_at(&mut buf[..1], size)? != 0 {
            return Err(io::Error::other("bytes can be read past the end"));
        }
    }
    Ok((data, pieces))
}

fn compare(path: &Path, a: &Node, b: &Node, times: Times, found: &mut Vec<String>) {
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("{path:?}: {what} is {b}, not {a}"));
        }
    };
    differ("mode", format!("{:o}", a.mode), format!("{:o}", b.mode));
    differ("owner", format!("{:?}", a.owner), format!("{:?}", b.owner));
    differ("size", a.size.to_string(), b.size.to_string());
    differ("device number", a.rdev.to_string(), b.rdev.to_string());
    differ("xattrs", format!("{:?}", a.xattrs), format!("{:?}", b.xattrs));
    differ("target", format!("{:?}", a.target), format!("{:?}", b.target));
    differ("first hard link", format!("{:?}", a.first_link), format!("{:?}", b.first_link));
    let planted = |secs: i64| !(946_684_800..2_208_988_800).contains(&secs);
    if times == Times::All || planted(a.mtime.0) || planted(b.mtime.0) {
        differ("mtime", format!("{:?}", a.mtime), format!("{:?}", b.mtime));
    }
    let pieces = |n: &Node, piece: &u64| n.pieces.get(piece).copied();
    let mut all = a.pieces.keys().chain(b.pieces.keys());
    if let Some(piece) = all.find(|piece| pieces(a, piece) != pieces(b, piece)) {
        found.push(format!("{path:?}: contents differ in the 64 KiB from {}", piece * PIECE));
    }
    if let Some((from, to)) = lost_hole(a, b) {
        found.push(format!("{path:?}: the hole from {from} to {to} became data"));
    }
}

/// A hole of `a`, in whole pages, that `b` has data in.
fn lost_hole(a: &Node, b: &Node) -> Option<(u64, u64)> {
    let starts = std::iter::once(0).chain(a.data.iter().map(|r| r.1));
    let ends = a.data.iter().map(|r| r.0).chain(std::iter::once(a.size));
    let pages = starts.zip(ends).map(|(from, to)| (from.next_multiple_of(PAGE), to / PAGE * PAGE));
    pages
        .filter(|(from, to)| from < to)
        .find(|&(from, to)| b.data.iter().any(|&(start, end)| start < to && end > from))
}

#[cfg(test)]
mod tests {
    use super::super::{Rng, sample, sys, test_root};
    use super::*;

    /// A comparison that overlooks something would make every other test worthless.
    #[test]
    fn the_comparison_of_trees_sees_every_kind_of_change() {
        let dir = tempfile::tempdir_in(test_root()).expect("a directory");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&a).expect("a tree");
        sample::plant(&a, &mut Rng::new(1)).expect("planting a tree");
        super::super::tool(dir.path(), "cp", &super::super::args!["-a", a, b]);
        same_tree(&a, &b);
        type Change<'a> = (&'a str, &'a dyn Fn(&Path) -> io::Result<()>);
        let changes: [Change; 9] = [
            ("contents differ", &|t| File::options().write(true).open(t)?.write_all_at(b"X", 70_000)),
            ("mode", &|t| sys::chmod(t, 0o600)),
            ("owner", &|t| sys::chown(t, 1, 2)),
            ("size", &|t| File::options().write(true).open(t)?.set_len(3)),
            ("xattrs", &|t| sys::set_xattr(t, "user.more", b"1", 0)),
            ("mtime", &|t| sys::set_times(t, (0, 0), (5, 6))),
            ("missing", &|t| std::fs::remove_file(t)),
            ("should not be there", &|t| std::fs::write(t.with_file_name("new"), b"")),
            ("became data", &|t| File::options().write(true).open(t)?.write_all_at(&[0; 4096], 1 << 20)),
        ];
        for (word, change) in changes {
            let copy = dir.path().join("copy");
            super::super::tool(dir.path(), "cp", &super::super::args!["-a", a, copy]);
            change(&copy.join("sparse")).expect("changing the copy");
            let found = Tree::read(&a).differences(&Tree::read(&copy), Times::All);
            assert!(found.iter().any(|line| line.contains(word)), "{word:?} was not seen: {found:?}");
            std::fs::remove_dir_all(&copy).expect("removing the copy");
        }
        std::fs::remove_file(b.join("links/two")).expect("breaking a hard link");
        std::fs::copy(b.join("links/one"), b.join("links/two")).expect("a copy in its place");
        let found = Tree::read(&a).differences(&Tree::read(&b), Times::All);
        assert!(found.iter().any(|line| line.contains("first hard link")), "{found:?}");
    }
}
