//! Steps that change names and attributes.

use super::run::{Outcome, Run, agree, name, pick};
use super::*;

impl Run {
    pub fn rename(&mut self, from: u8, to: u8, n: u8, mode: u8) -> Outcome {
        let Some((from_dir, from_name)) = pick(&self.entries(), from) else { return Ok(()) };
        let Some(to_dir) = pick(&self.dirs(), to) else { return Ok(()) };
        let (from_name, to_name) = (name(from_name), name(n));
        let mode = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]
            [mode as usize % 4];
        let found = self.volume().rename((from_dir, &from_name), (to_dir, &to_name), mode, None);
        let m = &self.model;
        let source = m.get(from_dir).entries[&from_name];
        let target = m.get(to_dir).entries.get(&to_name).copied();
        let is_dir = |ino: Ino| m.get(ino).kind == FileKind::Dir;
        let across = from_dir != to_dir;
        let expected = match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err("exists"),
            (RenameMode::Exchange, None) => Err("not found"),
            (_, Some(t)) if t == source => Ok(()),
            _ if across && is_dir(source) && m.is_within(to_dir, source) => Err("invalid"),
            (RenameMode::Exchange, Some(t)) if across && is_dir(t) && m.is_within(from_dir, t) => {
                Err("invalid")
            }
            (_, Some(t)) if across && is_dir(t) && m.is_within(from_dir, t) => Err("not empty"),
            _ if m.get(to_dir).nlink == 0 => Err("not found"),
            (RenameMode::Replace, Some(t)) if is_dir(source) && !is_dir(t) => Err("not dir"),
            (RenameMode::Replace, Some(t)) if !is_dir(source) && is_dir(t) => Err("is dir"),
            (RenameMode::Replace, Some(t)) if is_dir(t) && !m.get(t).entries.is_empty() => Err("not empty"),
            _ => Ok(()),
        };
        // Their data is committed before the names are looked at.
        self.doubtful.remove(&source);
        target.map(|t| self.doubtful.remove(&t));
        let Some(orphan) = agree("rename", found, expected)? else { return Ok(()) };
        if target == Some(source) {
            return Ok(());
        }
        let now = self.now();
        let was = [(from_dir, &from_name), (to_dir, &to_name)];
        let was = was.map(|(dir, name)| self.model.get(dir).hidden.contains(name));
        let mut gone = None;
        if let Some(t) = target.filter(|_| mode == RenameMode::Exchange) {
            for (ino, dir, other, slot) in
                [(source, to_dir, from_dir, &to_name), (t, from_dir, to_dir, &from_name)]
            {
                self.model.node(dir).entries.insert(slot.clone(), ino);
                let node = self.model.node(ino);
                node.ctime = now;
                if node.kind == FileKind::Dir {
                    node.parent = dir;
                    self.model.node(dir).nlink += 1;
                    self.model.node(other).nlink -= 1;
                }
            }
            self.model.named(to_dir, &to_name, was[0]);
            self.model.named(from_dir, &from_name, was[1]);
        } else {
            if target.is_some() {
                gone = self.model.unname(to_dir, &to_name, now);
            }
            self.model.node(from_dir).entries.remove(&from_name);
            self.model.node(from_dir).hidden.remove(&from_name);
            self.model.node(to_dir).entries.insert(to_name.clone(), source);
            let node = self.model.node(source);
            node.ctime = now;
            if node.kind == FileKind::Dir {
                node.parent = to_dir;
                self.model.node(from_dir).nlink -= 1;
                self.model.node(to_dir).nlink += 1;
            }
            self.model.named(to_dir, &to_name, was[0]);
        }
        self.model.touch_dir(from_dir, now);
        self.model.touch_dir(to_dir, now);
        if orphan == gone { Ok(()) } else { Err(format!("rename orphaned {orphan:?}, expected {gone:?}")) }
    }

    pub fn link(&mut self, file: u8, dir: u8, n: u8) -> Outcome {
        let (Some(ino), Some(dir)) = (pick(&self.all(), file), pick(&self.dirs(), dir)) else {
            return Ok(());
        };
        let found = self.volume().link(ino, dir, &name(n), None);
        self.doubtful.remove(&ino);
        let (node, parent) = (self.model.get(ino), self.model.get(dir));
        let expected = if ino == dir {
            Err("not permitted")
        } else if parent.nlink == 0 {
            Err("not found")
        } else if node.kind == FileKind::Dir {
            Err("not permitted")
        } else if node.nlink == 0 {
            Err("not found")
        } else if parent.entries.contains_key(&name(n)) {
            Err("exists")
        } else {
            Ok(())
        };
        if agree("link", found, expected)?.is_some() {
            let now = self.now();
            let node = self.model.node(ino);
            node.nlink += 1;
            node.ctime = now;
            let was_excluded = node.excluded;
            self.model.node(dir).entries.insert(name(n), ino);
            self.model.named(dir, &name(n), was_excluded);
            self.model.touch_dir(dir, now);
        }
        Ok(())
    }

    pub fn remove(&mut self, entry: u8, wrong: bool) -> Outcome {
        let Some((dir, n)) = pick(&self.entries(), entry) else { return Ok(()) };
        let ino = self.model.get(dir).entries[&name(n)];
        let is_dir = self.model.get(ino).kind == FileKind::Dir;
        let as_dir = is_dir != wrong;
        let volume = self.volume();
        let found =
            if as_dir { volume.rmdir(dir, &name(n), None) } else { volume.unlink(dir, &name(n), None) };
        let expected = match (is_dir, as_dir) {
            (true, false) => Err("is dir"),
            (false, true) => Err("not dir"),
            (true, true) if !self.model.get(ino).entries.is_empty() => Err("not empty"),
            _ => Ok(()),
        };
        let Some(orphan) = agree("remove", found, expected)? else { return Ok(()) };
        let now = self.now();
        let gone = self.model.unname(dir, &name(n), now);
        if orphan == gone { Ok(()) } else { Err(format!("removal orphaned {orphan:?}, expected {gone:?}")) }
    }

    pub fn setattr(&mut self, node: u8, mode: Option<u16>, uid: Option<u32>, mtime: Option<u32>) -> Outcome {
        let Some(ino) = pick(&self.all(), node) else { return Ok(()) };
        let mtime = mtime.map(|s| Timestamp { secs: i64::from(s), nanos: s % 1000 });
        let set = SetAttr { mode, uid, mtime, ..SetAttr::default() };
        agree("setattr", self.volume().setattr(ino, &set, None), Ok(()))?;
        let (now, node) = (self.now(), self.model.node(ino));
        node.mode = mode.map_or(node.mode, |m| m & 0o7777);
        node.owner.0 = uid.unwrap_or(node.owner.0);
        node.mtime = mtime.unwrap_or(node.mtime);
        node.ctime = now;
        Ok(())
    }

    pub fn setxattr(&mut self, node: u8, n: u8, len: u16, mode: u8) -> Outcome {
        let Some(ino) = pick(&self.all(), node) else { return Ok(()) };
        let name = [b"user.".to_vec(), name(n)].concat();
        let value = noise(u64::from(len), len as usize);
        let exists = self.model.get(ino).xattrs.contains_key(&name);
        let (mode, expected) = match mode {
            0 if exists => (XattrMode::Create, Err("exists")),
            0 => (XattrMode::Create, Ok(())),
            1 if !exists => (XattrMode::Replace, Err("no attribute")),
            1 => (XattrMode::Replace, Ok(())),
            _ => (XattrMode::Set, Ok(())),
        };
        if agree("setxattr", self.volume().setxattr(ino, &name, &value, mode, None), expected)?.is_some() {
            let (now, node) = (self.now(), self.model.node(ino));
            node.xattrs.insert(name, value);
            node.ctime = now;
        }
        Ok(())
    }

    pub fn removexattr(&mut self, node: u8, n: u8) -> Outcome {
        let Some(ino) = pick(&self.all(), node) else { return Ok(()) };
        let name = [b"user.".to_vec(), name(n)].concat();
        let exists = self.model.get(ino).xattrs.contains_key(&name);
        let expected = if exists { Ok(()) } else { Err("no attribute") };
        if agree("removexattr", self.volume().removexattr(ino, &name, None), expected)?.is_some() {
            let (now, node) = (self.now(), self.model.node(ino));
            node.xattrs.remove(&name);
            node.ctime = now;
        }
        Ok(())
    }
}
