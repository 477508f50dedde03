//! POSIX access control lists. The kernel checks them; what is kept here is their effect on what is made and on
//! modes, as POSIX 1003.1e draft 17 says and Linux does it (`fs/posix_acl.c`).
//!
//! They are stored as the extended attributes that programs see: a version, then entries of tag, permissions and
//! id, in the order of the tags (`linux/posix_acl_xattr.h`).

use super::xattr::Changed;
use super::{FsError, FsResult, Volume};
use crate::store::model::{Attrs, Edit, FileKind, RequestId, Xattr};
use crate::types::{Ino, Lsn};

/// Checked at every access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// What new entries of a directory start with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// Which of the two lists of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclKind {
    /// Checked at every access.
    Access,
    /// What new entries of a directory start with.
    Default,
}

impl AclKind {
    /// The list that an extended attribute holds.
    pub fn of_name(name: &[u8]) -> Option<AclKind> {
        match name {
            ACCESS => Some(AclKind::Access),
            DEFAULT => Some(AclKind::Default),
            _ => None,
        }
    }

    fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => ACCESS,
            AclKind::Default => DEFAULT,
        }
    }
}

/// Whom an entry is about, in the order in which they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    Group = 0x04,
    NamedGroup = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

impl Tag {
    fn of(code: u16) -> Option<Tag> {
        let all = [Tag::Owner, Tag::User, Tag::Group, Tag::NamedGroup, Tag::Mask, Tag::Other];
        all.into_iter().find(|tag| *tag as u16 == code)
    }

    fn has_id(self) -> bool {
        matches!(self, Tag::User | Tag::NamedGroup)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    /// Read 4, write 2, execute 1.
    bits: u16,
    id: u32,
}

/// A valid list: owner, group and others once each, and a mask if anyone else is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Reads the form that programs see; none where it has no entries, which removes the list.
    ///
    /// # Errors
    /// [`FsError::Invalid`].
    pub fn decode(bytes: &[u8]) -> FsResult<Option<Acl>> {
        let bad = || FsError::Invalid("not a POSIX ACL");
        let (version, entries) = bytes.split_first_chunk().ok_or_else(bad)?;
        let (entries, rest) = entries.as_chunks::<8>();
        if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
            return Err(bad());
        }
        let entries = entries.iter().map(|[t0, t1, p0, p1, id @ ..]| {
            let (tag, bits) = (Tag::of(u16::from_le_bytes([*t0, *t1]))?, u16::from_le_bytes([*p0, *p1]));
            let id = if tag.has_id() { u32::from_le_bytes(*id) } else { NO_ID };
            (bits <= 7 && (!tag.has_id() || id != NO_ID)).then_some(Entry { tag, bits, id })
        });
        let entries = entries.collect::<Option<Vec<_>>>().ok_or_else(bad)?;
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Acl(entries);
        if acl.is_valid() { Ok(Some(acl)) } else { Err(bad()) }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let named = count(Tag::User) + count(Tag::NamedGroup);
        self.0.is_sorted_by_key(|e| e.tag)
            && [Tag::Owner, Tag::Group, Tag::Other].into_iter().all(|tag| count(tag) == 1)
            && (count(Tag::Mask) == 1 || (count(Tag::Mask) == 0 && named == 0))
    }

    /// The form that programs see.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend((entry.tag as u16).to_le_bytes());
            bytes.extend(entry.bits.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    /// The tag whose bits are the mode's group bits.
    fn group_class(&self) -> Tag {
        if self.0.iter().any(|e| e.tag == Tag::Mask) { Tag::Mask } else { Tag::Group }
    }

    /// Runs `change` over the entries that the nine permission bits of a mode stand for, with their places there.
    fn classes(&mut self, mut change: impl FnMut(&mut u16, u32)) {
        let class = self.group_class();
        for entry in &mut self.0 {
            match entry.tag {
                Tag::Owner => change(&mut entry.bits, 6),
                tag if tag == class => change(&mut entry.bits, 3),
                Tag::Other => change(&mut entry.bits, 0),
                _ => {}
            }
        }
    }

    /// The nine permission bits that stand for it.
    fn mode_bits(&self) -> u16 {
        let mut mode = 0;
        self.clone().classes(|bits, at| mode |= *bits << at);
        mode
    }

    /// Whether the mode says all that it says.
    fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// What it grants a user who is in the groups that `in_group` accepts, on something of that owner and
    /// group. Of several groups the grants add up.
    pub(super) fn granted(&self, uid: u32, owner: (u32, u32), in_group: impl Fn(u32) -> bool) -> u16 {
        let bits = |tag| self.0.iter().find(|e| e.tag == tag).map_or(7, |e| e.bits);
        if uid == owner.0 {
            return bits(Tag::Owner);
        }
        let mask = bits(Tag::Mask);
        if let Some(named) = self.0.iter().find(|e| e.tag == Tag::User && e.id == uid) {
            return named.bits & mask;
        }
        let groups = self.0.iter().filter(|e| match e.tag {
            Tag::Group => in_group(owner.1),
            Tag::NamedGroup => in_group(e.id),
            _ => false,
        });
        match groups.map(|e| e.bits).reduce(|a, b| a | b) {
            Some(all) => all & mask,
            None => bits(Tag::Other),
        }
    }

    /// What `chmod` makes of it.
    fn with_mode(mut self, mode: u16) -> Acl {
        self.classes(|bits, at| *bits = mode >> at & 7);
        self
    }

    /// As a default list: what something new, asked for with `mode`, gets by it.
    fn inherited(mut self, mode: u16) -> Acl {
        self.classes(|bits, at| *bits &= mode >> at & 7);
        self
    }
}

impl Volume {
    /// The edit that gives an inode a list.
    pub(super) fn put_acl(&self, ino: Ino, kind: AclKind, acl: &Acl) -> Edit {
        let xattr = Xattr { name: kind.name().to_vec(), value: acl.encode() };
        Edit::PutXattr { vol: self.vol, ino, hash: self.xattr_hash(kind.name()), xattr }
    }

    pub(super) fn acl(
        &self,
        at: Option<Lsn>,
        ino: Ino,
        attrs: &Attrs,
        kind: AclKind,
    ) -> FsResult<Option<Acl>> {
        if attrs.xattrs == 0 {
            return Ok(None);
        }
        match self.view(at).xattr(ino, &self.xattr_hash(kind.name()))? {
            Some(xattr) => Acl::decode(&xattr.value),
            None => Ok(None),
        }
    }

    /// Completes the mode of something new under `parent`, from what was asked for: by the parent's default list,
    /// or where there is none by the umask. Returns the lists that it gets.
    pub(super) fn inherit(
        &self,
        parent: Ino,
        parent_attrs: &Attrs,
        umask: u16,
        attrs: &mut Attrs,
    ) -> FsResult<Vec<(AclKind, Acl)>> {
        let mut lists = Vec::new();
        if attrs.kind == FileKind::Symlink {
            return Ok(lists);
        }
        let Some(default) = self.acl(None, parent, parent_attrs, AclKind::Default)? else {
            attrs.mode &= !(umask & 0o777);
            return Ok(lists);
        };
        let access = default.clone().inherited(attrs.mode);
        attrs.mode = attrs.mode & !0o777 | access.mode_bits();
        if !access.is_minimal() {
            lists.push((AclKind::Access, access));
        }
        if attrs.kind == FileKind::Dir {
            lists.push((AclKind::Default, default));
        }
        attrs.xattrs = lists.len() as u32;
        Ok(lists)
    }

    /// The edit by which an access list follows a change of the mode, if there is one.
    pub(super) fn follow_mode(&self, ino: Ino, attrs: &Attrs, mode: u16) -> FsResult<Option<Edit>> {
        let acl = self.acl(None, ino, attrs, AclKind::Access)?;
        Ok(acl.map(|acl| self.put_acl(ino, AclKind::Access, &acl.with_mode(mode))))
    }

    /// Sets or removes a list, and what the mode says with it. `clear_setgid` where the caller is not in the
    /// file's group.
    ///
    /// # Errors
    /// [`FsError::NoAccess`] for a default list of something that is no directory, [`FsError::NotSupported`] for
    /// a symbolic link.
    pub fn set_acl(
        &self,
        ino: Ino,
        kind: AclKind,
        acl: Option<Acl>,
        clear_setgid: bool,
        request: Option<RequestId>,
    ) -> FsResult<()> {
        self.change_xattr(ino, kind.name(), request, |attrs, exists| {
            if attrs.kind == FileKind::Symlink {
                return Err(FsError::NotSupported);
            }
            if kind == AclKind::Default && attrs.kind != FileKind::Dir {
                return if acl.is_some() { Err(FsError::NoAccess) } else { Ok(Changed::Nothing) };
            }
            let mut acl = acl;
            if let (AclKind::Access, Some(list)) = (kind, &acl) {
                attrs.mode = attrs.mode & !0o777 | list.mode_bits();
                if clear_setgid {
                    attrs.mode &= !0o2000;
                }
                if list.is_minimal() {
                    acl = None;
                }
            }
            Ok(match acl {
                Some(list) => Changed::To(list.encode()),
                None if exists => Changed::Removed,
                // The mode may have changed.
                None => Changed::Attributes,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acl(entries: &[(Tag, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|&(tag, bits, id)| Entry { tag, bits, id }).collect())
    }

    fn extended() -> Acl {
        acl(&[
            (Tag::Owner, 7, NO_ID),
            (Tag::User, 6, 1000),
            (Tag::Group, 5, NO_ID),
            (Tag::NamedGroup, 7, 50),
            (Tag::Mask, 7, NO_ID),
            (Tag::Other, 4, NO_ID),
        ])
    }

    #[test]
    fn the_mask_stands_for_the_group_in_the_mode() {
        assert_eq!(extended().mode_bits(), 0o774);
        let changed = extended().with_mode(0o751);
        assert_eq!(changed.mode_bits(), 0o751);
        assert_eq!(changed.0[2].bits, 5, "the group's own entry stays");
        let minimal = acl(&[(Tag::Owner, 6, NO_ID), (Tag::Group, 4, NO_ID), (Tag::Other, 0, NO_ID)]);
        assert!(minimal.is_minimal() && minimal.mode_bits() == 0o640);
        assert_eq!(minimal.with_mode(0o604).mode_bits(), 0o604);
        assert_eq!(extended().inherited(0o660).mode_bits(), 0o660);
    }

    #[test]
    fn who_is_named_gets_what_the_mask_leaves() {
        let acl = extended().with_mode(0o751);
        let bits = |uid, groups: &[u32]| acl.granted(uid, (1, 2), |gid| groups.contains(&gid));
        let of = |tag: Tag| acl.0.iter().find(|e| e.tag == tag).unwrap();
        let mask = of(Tag::Mask).bits;
        assert_eq!(bits(1, &[]), of(Tag::Owner).bits);
        assert_eq!(bits(of(Tag::User).id, &[2]), of(Tag::User).bits & mask);
        assert_eq!(bits(99, &[2]), of(Tag::Group).bits & mask);
        assert_eq!(
            bits(99, &[2, of(Tag::NamedGroup).id]),
            (of(Tag::Group).bits | of(Tag::NamedGroup).bits) & mask
        );
        assert_eq!(bits(99, &[98]), of(Tag::Other).bits);
    }

    #[test]
    fn the_form_is_that_of_the_kernel() {
        let minimal = acl(&[(Tag::Owner, 6, NO_ID), (Tag::Group, 4, NO_ID), (Tag::Other, 0, NO_ID)]);
        let bytes =
            b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
        assert_eq!(minimal.encode(), bytes);
        assert_eq!(Acl::decode(bytes).unwrap(), Some(minimal));
        assert_eq!(Acl::decode(&extended().encode()).unwrap(), Some(extended()));
        assert_eq!(Acl::decode(&bytes[..4]).unwrap(), None, "no entries remove the list");
    }

    #[test]
    fn lists_that_the_kernel_would_refuse_are_refused() {
        let refused = |change: &dyn Fn(&mut Vec<Entry>)| {
            let mut list = extended();
            change(&mut list.0);
            Acl::decode(&list.encode()).is_err()
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|l| l.truncate(5)), "others are missing");
        assert!(refused(&|l| l.retain(|e| e.tag != Tag::Mask)), "the mask is missing");
        assert!(refused(&|l| l.swap(0, 1)), "out of order");
        assert!(refused(&|l| l[1].id = NO_ID), "nobody is named");
        assert!(refused(&|l| l[1].bits = 8), "no such permission");
        assert!(refused(&|l| l.push(l[5])), "others twice");
        assert!(Acl::decode(b"").is_err() && Acl::decode(&[1, 0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_valid(bytes: Vec<u8>) {
            if let Ok(Some(list)) = Acl::decode(&bytes) {
                prop_assert!(list.is_valid());
            }
        }
    }
}
