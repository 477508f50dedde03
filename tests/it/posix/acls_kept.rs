//! POSIX ACLs: taken away, carried over by tools, kept over remounts, crashes and in snapshots.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::harness::acl::{ACCESS, DEFAULT, acl};
use crate::harness::sys::{
    NOBODY, as_user, chmod, facts, get_xattr, list_xattrs, mkdir, set_xattr, write_file,
};
use crate::harness::{Times, Tree, Twin, args, eventually, same_tree, tool};

/// A tree with ACLs of both sorts.
fn plant(dir: &Path) -> std::io::Result<()> {
    mkdir(&dir.join("team"), 0o755)?;
    set_xattr(&dir.join("team"), DEFAULT, &acl("u:rwx u65534:rwx g:r-x g4242:rwx m:rwx o:---"), 0)?;
    set_xattr(&dir.join("team"), ACCESS, &acl("u:rwx u65534:r-x g:r-x m:r-x o:---"), 0)?;
    fs::write(dir.join("team/inherited"), b"inherited")?;
    mkdir(&dir.join("team/sub"), 0o750)?;
    fs::write(dir.join("team/sub/deeper"), b"deeper")?;
    symlink("inherited", dir.join("team/link"))?;
    write_file(&dir.join("team/own"), 0o600, b"own")?;
    set_xattr(&dir.join("team/own"), ACCESS, &acl("u:rw- u1:rwx u2:r-- g:--- g7:-w- m:rwx o:--x"), 0)?;
    write_file(&dir.join("plain"), 0o644, b"plain")
}

#[test]
fn acls_that_are_removed_leave_nothing_but_the_mode() {
    let mut twin = Twin::new();
    twin.ok("planting", plant);
    for options in [&["-b"][..], &["-k"], &["-x", "u:65534"], &["-n", "-m", "u:5:rwx"]] {
        let left = twin.ok(&format!("setfacl {options:?}"), |dir| {
            let copy = dir.join(format!("copy{}", options.concat().replace(':', "-")));
            tool(dir, "cp", &args!["-a", "team", copy]);
            let mut words: Vec<_> = options.iter().map(|word| std::ffi::OsString::from(*word)).collect();
            words.extend(args!["."]);
            tool(&copy, "setfacl", &words);
            let text = tool(&copy, "getfacl", &args!["--numeric", "--omit-header", "."]);
            Ok((facts(&copy)?, list_xattrs(&copy)?, text))
        });
        assert_eq!(left.1.is_empty(), options == ["-b"], "{options:?} leaves {left:?}");
    }
    twin.ok("setfacl -R -b", |dir| {
        tool(dir, "cp", &args!["-a", "team", "bare"]);
        tool(dir, "setfacl", &args!["-R", "-P", "-b", "bare"]);
        assert!(list_xattrs(&dir.join("bare/own"))?.is_empty());
        facts(&dir.join("bare/own"))
    });
    twin.compare_over_remount();
}

#[test]
fn acls_are_in_every_snapshot_as_they_were_and_decide_there() {
    let mut twin = Twin::new();
    twin.ok("planting", plant);
    twin.mount().snapshot("before");
    let then = Tree::read(twin.plain());
    twin.ok("other ACLs", |dir| {
        set_xattr(&dir.join("team/own"), ACCESS, &acl("u:rwx u65534:rwx g:rwx m:rwx o:rwx"), 0)?;
        tool(dir, "setfacl", &args!["-R", "-P", "-b", "team/sub"]);
        chmod(&dir.join("team"), 0o700)
    });
    let owns = |twin: &Twin| get_xattr(&twin.mount().at("before").join("team/own"), ACCESS.as_bytes());
    for when in ["at once", "after a remount", "without its index"] {
        then.assert_same(&Tree::read(&twin.mount().at("before")), Times::Planted, when);
        assert_eq!(
            owns(&twin).expect("an ACL of the past"),
            acl("u:rw- u1:rwx u2:r-- g:--- g7:-w- m:rwx o:--x")
        );
        let at = |name: &str| twin.mount().at("before").join(name);
        let opens = |uid: u32, name: &str| as_user(uid, uid, || File::open(at(name)).is_ok());
        assert!(opens(NOBODY, "team/inherited"), "{when}: a named user was let in then");
        assert!(!opens(3000, "team/inherited"), "{when}: nobody else was");
        assert!(!opens(NOBODY, "team/own"), "{when}: nor he into this one");
        twin.compare(when);
        if when == "at once" { twin.remount() } else { twin.remount_without_index() }
    }
}

#[test]
fn acls_outlive_remounts_and_killed_servers() {
    let mut twin = Twin::new();
    twin.ok("planting", plant);
    let server = twin.mount().server();
    server.kill();
    eventually("the server to be gone", || !server.alive());
    twin.compare("by the next server");
    twin.ok("inheriting from it", |dir| fs::write(dir.join("team/sub/later"), b"later"));
    let stranger = |dir: &Path| as_user(NOBODY, NOBODY, || File::open(dir.join("team/sub/later")).is_ok());
    assert!(twin.ok("a named user, as the default ACL says", |dir| Ok(stranger(dir))));
    twin.compare_over_remount();
    assert!(twin.ok("and after the remount", |dir| Ok(stranger(dir))));
    twin.remount_without_index();
    twin.compare("after the index was rebuilt");
}

#[test]
fn cp_tar_and_rsync_carry_acls_over() {
    let mut twin = Twin::new();
    let [mount, plain] = twin.roots().map(Path::to_owned);
    plant(&plain).expect("planting");
    for (way, script) in [
        ("cp", "cp -a \"$0\"/. ."),
        ("tar", "tar --acls --xattrs -C \"$0\" -cf - . | tar --acls --xattrs -xpf -"),
        // Else it takes times within one second for equal, and leaves them.
        ("rsync", "rsync -aAXH --modify-window=-1 \"$0\"/ ."),
    ] {
        let (inside, back) = (mount.join(way), twin.mount().store().directory(&format!("back-{way}")));
        mkdir(&inside, 0o755).expect("mkdir");
        tool(&inside, "sh", &args!["-ec", script, plain]);
        same_tree(&plain, &inside);
        tool(&back, "sh", &args!["-ec", script, inside]);
        same_tree(&plain, &back);
    }
    twin.remount();
    for way in ["cp", "tar", "rsync"] {
        same_tree(&plain, &twin.mount().path().join(way));
    }
}

#[test]
fn ls_marks_what_has_an_acl_and_nothing_else() {
    let twin = Twin::new();
    twin.ok("planting", plant);
    let marks = twin.ok("ls -l", |dir| {
        let columns = |line: &str| line.split(' ').next().map(str::to_owned);
        let names = ["team", "team/own", "team/inherited", "team/sub", "team/link", "plain"];
        let lines = names.map(|name| tool(dir, "ls", &args!["-ld", name]));
        Ok(lines.map(|line| columns(&line).unwrap_or_default()))
    });
    let marked = marks.map(|column| column.ends_with('+'));
    assert_eq!(marked, [true, true, true, true, false, false]);
}
