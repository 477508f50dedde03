//! What a volume should be, in memory: nodes by inode number, file bytes in pages. Cloning is cheap, so that
//! every moment can be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;

pub const PAGE: u64 = 16 * 1024;

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: FileKind,
    pub mode: u16,
    pub owner: (u32, u32),
    pub nlink: u32,
    pub size: u64,
    pub pages: BTreeMap<u64, Arc<Vec<u8>>>,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub entries: BTreeMap<Vec<u8>, Ino>,
    pub parent: Ino,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// No point shows it.
    pub excluded: bool,
    /// Of its entries, those that no point shows.
    pub hidden: BTreeSet<Vec<u8>>,
}

impl Node {
    pub fn new(kind: FileKind, mode: u16, owner: (u32, u32), now: Timestamp) -> Node {
        Node {
            kind,
            mode,
            owner,
            nlink: if kind == FileKind::Dir { 2 } else { 1 },
            size: 0,
            pages: BTreeMap::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
            parent: Ino(0),
            atime: now,
            mtime: now,
            ctime: now,
            excluded: false,
            hidden: BTreeSet::new(),
        }
    }

    /// What the volume shows of it now.
    fn found(volume: &Volume, ino: Ino) -> Result<Node, FsError> {
        let attrs = volume.getattr(None, ino)?.attrs;
        let mut node = Node::new(attrs.kind, attrs.mode, (attrs.uid, attrs.gid), attrs.mtime);
        (node.nlink, node.parent, node.excluded) = (attrs.nlink, attrs.parent, attrs.excluded);
        (node.atime, node.ctime, node.target) = (attrs.atime, attrs.ctime, attrs.target);
        for name in volume.listxattr(None, ino)?.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            node.xattrs.insert(name.to_vec(), volume.getxattr(None, ino, name)?);
        }
        if attrs.kind == FileKind::Dir {
            volume.readdir(None, ino, 0, |entry| {
                node.entries.insert(entry.name.clone(), entry.ino);
                Ok(true)
            })?;
            node.entries.retain(|name, _| name != b"." && name != b"..");
            for name in node.entries.keys() {
                let entry = volume.view(None).dirent(ino, &volume.name_hash(name))?;
                if entry.is_some_and(|entry| entry.excluded) {
                    node.hidden.insert(name.clone());
                }
            }
        } else if attrs.kind == FileKind::File {
            for at in (0..attrs.size).step_by(PAGE as usize) {
                let page = volume.read(None, ino, at, PAGE as usize)?;
                if page.iter().any(|b| *b != 0) {
                    node.write(at, &page);
                }
            }
            node.size = attrs.size;
        }
        Ok(node)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % PAGE) as usize;
            let (part, tail) = rest.split_at(rest.len().min(PAGE as usize - within));
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new(vec![0; PAGE as usize]));
            Arc::make_mut(page)[within..within + part.len()].copy_from_slice(part);
            at += part.len() as u64;
            rest = tail;
        }
        self.size = self.size.max(at);
    }

    /// Makes `from..to` zeros; the size stays.
    pub fn clear(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let touched: Vec<u64> = self.pages.range(from / PAGE..=(to - 1) / PAGE).map(|(p, _)| *p).collect();
        for page in touched {
            let start = page * PAGE;
            if from <= start && start + PAGE <= to {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let (lo, hi) = (from.max(start) - start, to.min(start + PAGE) - start);
                Arc::make_mut(bytes)[lo as usize..hi as usize].fill(0);
            }
        }
    }

    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.clear(size, self.size.next_multiple_of(PAGE));
        }
        self.size = size;
    }

    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(offset + len as u64);
        if offset >= end {
            return Vec::new();
        }
        let mut out = vec![0; (end - offset) as usize];
        for (page, bytes) in self.pages.range(offset / PAGE..=(end - 1) / PAGE) {
            extents::copy_over(page * PAGE, bytes, offset, &mut out);
        }
        out
    }

    pub fn is_zero(&self, from: u64, to: u64) -> bool {
        from >= to
            || self.pages.range(from / PAGE..=(to - 1) / PAGE).all(|(page, bytes)| {
                let start = page * PAGE;
                let (lo, hi) = (from.max(start) - start, to.min(start + PAGE) - start);
                bytes[lo as usize..hi as usize].iter().all(|b| *b == 0)
            })
    }
}

#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: BTreeMap<Ino, Arc<Node>>,
    /// Which of [`PATTERNS`] are in force, a bit each.
    pub patterns: u8,
}

/// What histories exclude.
pub const PATTERNS: [&str; 3] = ["**/e", "f/**", "a/b"];

impl Model {
    pub fn new(volume: &Volume) -> Model {
        let attrs = volume.getattr(None, Ino::ROOT).unwrap().attrs;
        let mut root = Node::new(FileKind::Dir, attrs.mode, (attrs.uid, attrs.gid), attrs.mtime);
        root.parent = Ino::ROOT;
        Model { nodes: BTreeMap::from([(Ino::ROOT, Arc::new(root))]), patterns: 0 }
    }

    /// What the volume shows now, after something whose outcome was compared in another way.
    pub fn found(volume: &Volume, patterns: u8) -> Result<Model, FsError> {
        let mut model = Model { nodes: BTreeMap::new(), patterns };
        let mut todo = vec![Ino::ROOT];
        while let Some(ino) = todo.pop() {
            if model.nodes.contains_key(&ino) {
                continue;
            }
            let node = Node::found(volume, ino)?;
            todo.extend(node.entries.values());
            model.nodes.insert(ino, Arc::new(node));
        }
        Ok(model)
    }

    pub fn get(&self, ino: Ino) -> &Node {
        &self.nodes[&ino]
    }

    pub fn node(&mut self, ino: Ino) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&ino).unwrap())
    }

    pub fn of_kind(&self, wanted: impl Fn(&Node) -> bool) -> Vec<Ino> {
        self.nodes.iter().filter(|(_, n)| wanted(n)).map(|(i, _)| *i).collect()
    }

    pub fn orphans(&self) -> BTreeSet<Ino> {
        self.of_kind(|n| n.nlink == 0).into_iter().collect()
    }

    pub fn touch_dir(&mut self, dir: Ino, now: Timestamp) {
        let dir = self.node(dir);
        (dir.mtime, dir.ctime) = (now, now);
    }

    /// Whether `ino` is `ancestor` or beneath it.
    pub fn is_within(&self, mut ino: Ino, ancestor: Ino) -> bool {
        loop {
            if ino == ancestor {
                return true;
            }
            // What lies above a directory that was removed may be gone.
            let Some(node) = self.nodes.get(&ino).filter(|_| ino != Ino::ROOT) else { return false };
            ino = node.parent;
        }
    }

    /// Takes a name away; the node becomes an orphan if it was the last.
    pub fn unname(&mut self, parent: Ino, name: &[u8], now: Timestamp) -> Option<Ino> {
        let ino = self.node(parent).entries.remove(name).unwrap();
        self.node(parent).hidden.remove(name);
        let node = self.node(ino);
        node.ctime = now;
        let is_dir = node.kind == FileKind::Dir;
        node.nlink = if is_dir { 0 } else { node.nlink - 1 };
        let gone = node.nlink == 0;
        if is_dir {
            self.node(parent).nlink -= 1;
        }
        self.touch_dir(parent, now);
        gone.then_some(ino)
    }

    /// The name of a directory.
    fn name_of(&self, dir: Ino) -> Vec<u8> {
        let parent = self.get(self.get(dir).parent);
        parent.entries.iter().find(|(_, ino)| **ino == dir).unwrap().0.clone()
    }

    /// Whether that name has no history if it is given now.
    pub fn excludes(&self, dir: Ino, name: &[u8]) -> bool {
        let (mut path, mut at) = (vec![name.to_vec()], dir);
        while self.patterns > 0 && at != Ino::ROOT {
            path.insert(0, self.name_of(at));
            at = self.get(at).parent;
        }
        let is = |at: usize, name: &[u8]| path.get(at).is_some_and(|n| n == name);
        let matches =
            [path.iter().any(|n| n == b"e"), is(0, b"f") && path.len() > 1, is(0, b"a") && is(1, b"b")];
        (0..3).any(|i| self.patterns & (1 << i) != 0 && matches[i])
    }

    /// A directory and those that it lies in are shown from here on.
    pub fn reveal_above(&mut self, dir: Ino) {
        let mut at = dir;
        while self.get(at).excluded {
            let (name, parent) = (self.name_of(at), self.get(at).parent);
            self.node(at).excluded = false;
            self.node(parent).hidden.remove(&name);
            at = parent;
        }
    }

    /// A name was given, to something that was excluded or not.
    pub fn named(&mut self, dir: Ino, name: &[u8], excluded: bool) {
        let excluded = excluded && self.excludes(dir, name);
        let ino = self.get(dir).entries[name];
        self.node(ino).excluded &= excluded;
        if excluded {
            self.node(dir).hidden.insert(name.to_vec());
        } else {
            self.node(dir).hidden.remove(name);
            self.reveal_above(dir);
        }
        self.settle(dir, name);
    }

    /// What lies below a name that was given, and is not excluded there, is shown from here on.
    fn settle(&mut self, dir: Ino, name: &[u8]) {
        if self.excludes(dir, name) {
            return;
        }
        self.node(dir).hidden.remove(name);
        let ino = self.get(dir).entries[name];
        self.node(ino).excluded = false;
        for below in self.get(ino).entries.keys().cloned().collect::<Vec<_>>() {
            self.settle(ino, &below);
        }
    }

    /// What a point shows.
    pub fn shown(&self) -> Model {
        let shown = |node: &Node| {
            let is_dir = |name: &Vec<u8>| self.get(node.entries[name]).kind == FileKind::Dir;
            let dirs = node.hidden.iter().filter(|name| is_dir(name)).count() as u32;
            let mut entries = node.entries.clone();
            entries.retain(|name, _| !node.hidden.contains(name));
            Node { entries, nlink: node.nlink - dirs, hidden: BTreeSet::new(), ..node.clone() }
        };
        let kept = self.nodes.iter().filter(|(_, node)| !node.excluded);
        let nodes = kept.map(|(ino, node)| match node.hidden.is_empty() {
            true => (*ino, node.clone()),
            false => (*ino, Arc::new(shown(node))),
        });
        Model { nodes: nodes.collect(), patterns: self.patterns }
    }

    /// What a path leads to.
    pub fn find(&self, names: &[Vec<u8>]) -> Option<Ino> {
        names.iter().try_fold(Ino::ROOT, |dir, name| self.nodes.get(&dir)?.entries.get(name).copied())
    }

    /// The paths of all that is no directory.
    pub fn paths(&self) -> Vec<Vec<Vec<u8>>> {
        let (mut paths, mut left) = (Vec::new(), vec![(Ino::ROOT, Vec::new())]);
        while let Some((dir, path)) = left.pop() {
            for (name, ino) in &self.get(dir).entries {
                let path = [&path[..], std::slice::from_ref(name)].concat();
                match self.get(*ino).kind {
                    FileKind::Dir => left.push((*ino, path)),
                    _ => paths.push(path),
                }
            }
        }
        paths
    }
}

/// Compares one node with what the volume shows at `at`.
pub fn compare(volume: &Volume, at: Option<Lsn>, ino: Ino, node: &Node, seeks: bool) -> Result<(), String> {
    let fail = |what: String| Err(format!("inode {ino} at {at:?}: {what}"));
    let attr = match volume.getattr(at, ino) {
        Ok(attr) => attr.attrs,
        Err(e) => return fail(format!("getattr: {e}")),
    };
    let found = (attr.kind, attr.mode, (attr.uid, attr.gid), attr.nlink, attr.size, attr.target.clone());
    let size = if node.kind == FileKind::Symlink { node.target.len() as u64 } else { node.size };
    let expected = (node.kind, node.mode, node.owner, node.nlink, size, node.target.clone());
    if found != expected {
        return fail(format!("attributes {found:?}, expected {expected:?}"));
    }
    let times = (attr.atime, attr.mtime, attr.ctime);
    if times != (node.atime, node.mtime, node.ctime) {
        return fail(format!("times {times:?}, expected {:?}", (node.atime, node.mtime, node.ctime)));
    }
    let names: Vec<u8> = node.xattrs.keys().flat_map(|n| n.iter().copied().chain([0])).collect();
    if volume.listxattr(at, ino).map_err(|e| e.to_string())? != names {
        return fail("other xattrs".into());
    }
    for (name, value) in &node.xattrs {
        if volume.getxattr(at, ino, name).map_err(|e| e.to_string())? != *value {
            return fail("another xattr value".into());
        }
    }
    match node.kind {
        FileKind::Dir => compare_dir(volume, at, ino, node),
        FileKind::File => compare_bytes(volume, at, ino, node, seeks),
        _ => Ok(()),
    }
}

fn compare_dir(volume: &Volume, at: Option<Lsn>, ino: Ino, node: &Node) -> Result<(), String> {
    let (mut found, mut from) = (BTreeMap::new(), 0);
    loop {
        let mut seen = 0;
        volume
            .readdir(at, ino, from, |entry| {
                seen += 1;
                from = entry.cookie;
                if found.insert(entry.name.clone(), entry.ino).is_some() {
                    return Err(FsError::Invalid("a name came twice"));
                }
                Ok(seen < 3)
            })
            .map_err(|e| format!("readdir {ino}: {e}"))?;
        if seen == 0 {
            break;
        }
    }
    let mut expected = node.entries.clone();
    expected.insert(b".".to_vec(), ino);
    expected.insert(b"..".to_vec(), node.parent);
    if found != expected {
        return Err(format!("directory {ino} at {at:?}: {found:?}, expected {expected:?}"));
    }
    Ok(())
}

fn compare_bytes(volume: &Volume, at: Option<Lsn>, ino: Ino, node: &Node, seeks: bool) -> Result<(), String> {
    let fail = |what: String| Err(format!("file {ino} at {at:?}: {what}"));
    let differ = |offset: u64, len: usize| -> Result<(), String> {
        let found =
            volume.read(at, ino, offset, len).map_err(|e| format!("file {ino} at {at:?}: read: {e}"))?;
        let expected = node.read(offset, len);
        if found == expected {
            return Ok(());
        }
        let first = found.iter().zip(&expected).position(|(a, b)| a != b);
        Err(format!(
            "file {ino} at {at:?}: {} bytes read at {offset}, {} expected; first difference at {:?} (size {})",
            found.len(),
            expected.len(),
            first.map(|f| f as u64 + offset),
            node.size
        ))
    };
    if node.size <= 2 << 20 {
        differ(0, node.size as usize + 10)?;
    } else {
        for page in node.pages.keys() {
            differ((page * PAGE).saturating_sub(5), PAGE as usize + 10)?;
        }
        differ(node.size - 5, 10)?;
    }
    let mut offset = 0;
    while seeks && offset < node.size {
        let data = match volume.seek(at, ino, offset, Seek::Data) {
            Ok(data) => data,
            Err(FsError::NoSuchOffset) => node.size,
            Err(e) => return fail(format!("seek: {e}")),
        };
        if data < offset || !node.is_zero(offset, data) {
            return fail(format!("no hole at {offset}..{data}"));
        }
        if data > offset && volume.seek(at, ino, offset, Seek::Hole).ok() != Some(offset) {
            return fail(format!("a hole begins at {offset}, seek says otherwise"));
        }
        if data >= node.size {
            break;
        }
        let hole = volume.seek(at, ino, data, Seek::Hole).map_err(|e| e.to_string())?;
        if hole <= data || hole > node.size {
            return fail(format!("data at {data} ends at {hole}"));
        }
        offset = hole;
    }
    Ok(())
}

/// Compares the whole volume. `known` are all inode numbers ever seen.
pub fn compare_all(
    volume: &Volume,
    at: Option<Lsn>,
    model: &Model,
    known: &BTreeSet<Ino>,
    seeks: bool,
) -> Result<(), String> {
    let model = if at.is_some() { &model.shown() } else { model };
    for (ino, node) in &model.nodes {
        compare(volume, at, *ino, node, seeks)?;
        for (name, child) in &node.entries {
            match volume.lookup(at, *ino, name) {
                Ok(attr) if attr.ino == *child => {}
                other => {
                    return Err(format!(
                        "lookup of {name:?} in {ino} at {at:?}: {other:?}, expected {child}"
                    ));
                }
            }
        }
    }
    for ino in known.iter().filter(|i| !model.nodes.contains_key(i)) {
        if let Ok(attr) = volume.getattr(at, *ino) {
            return Err(format!("inode {ino} at {at:?} should not exist: {attr:?}"));
        }
    }
    Ok(())
}
