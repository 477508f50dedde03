//! What people run on a filesystem: git, rsync, SQLite, cargo, tar, cp. Each with its own check.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::sys::{mkdir, set_times};
use crate::harness::{Mount, Rng, Store, args, run, same_tree, sample, tool};

fn mounted() -> Mount {
    Store::encrypted().mount()
}

/// git, untouched by the configuration of whoever runs the tests.
fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "gc.auto=0", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"]);
    command.args(args).current_dir(dir);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "Test").env(format!("GIT_{who}_EMAIL"), "test@example.org");
    }
    run(&mut command).expect_ok()
}

/// A repository with a history of text and binary files, branches and a merge.
fn repository(dir: &Path, rng: &mut Rng) {
    git(dir, &["init", "-q", "."]);
    for commit in 0..60u64 {
        for _ in 0..4 {
            let path = dir.join(format!("src/part-{}/file-{}", rng.below(6), rng.below(30)));
            fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            let (long, len) = (rng.below(5) == 0, rng.below(8000) as usize);
            fs::write(path, if long { rng.bytes(60_000) } else { rng.text(len) }).expect("writing");
        }
        fs::write(dir.join("counter"), format!("{commit}\n")).expect("writing");
        git(dir, &["add", "-A"]);
        git(dir, &["commit", "-q", "-m", &format!("commit {commit}")]);
        match commit {
            20 => drop(git(dir, &["branch", "side"])),
            40 => drop(git(dir, &["tag", "-a", "v1", "-m", "a tag"])),
            _ => {}
        }
    }
    git(dir, &["checkout", "-q", "side"]);
    fs::write(dir.join("only-here"), b"on the side").expect("writing");
    git(dir, &["add", "-A"]);
    git(dir, &["commit", "-q", "-m", "on the side"]);
    git(dir, &["checkout", "-q", "main"]);
    git(dir, &["merge", "-q", "--no-edit", "side"]);
}

#[test]
fn git_clones_collects_garbage_and_finds_itself_sound() {
    let mut mount = mounted();
    let origin = mount.store().directory("origin");
    repository(&origin, &mut Rng::printed());
    let url = format!("file://{}", origin.display());
    git(mount.path(), &["clone", "-q", &url, "clone"]);
    let head = git(&origin, &["rev-parse", "HEAD"]);
    for round in 0..2 {
        let clone = mount.path().join("clone");
        assert_eq!(git(&clone, &["rev-parse", "HEAD"]), head);
        git(&clone, &["fsck", "--full", "--strict", "--no-progress"]);
        assert_eq!(git(&clone, &["status", "--porcelain"]), "");
        git(&clone, &["gc", "-q", "--aggressive", "--prune=now"]);
        git(&clone, &["fsck", "--full", "--strict", "--no-progress"]);
        assert_eq!(git(&clone, &["rev-list", "--count", "HEAD"]).trim(), "62", "round {round}");
        // Work goes on in the clone, and back into it from another one.
        git(&clone, &["checkout", "-q", "-b", &format!("work-{round}")]);
        fs::write(clone.join("counter"), format!("work {round}\n")).expect("writing");
        git(&clone, &["commit", "-q", "-a", "-m", "work"]);
        git(&clone, &["checkout", "-q", "main"]);
        assert_eq!(git(&clone, &["status", "--porcelain"]), "");
        mount = mount.remount();
    }
    let (back, clone) = (mount.store().directory("back"), mount.path().join("clone"));
    git(&back, &["clone", "-q", &clone.to_string_lossy(), "."]);
    assert_eq!(git(&back, &["rev-parse", "HEAD"]), head);
}

#[test]
fn rsync_has_nothing_to_do_the_second_time() {
    let mut mount = mounted();
    let mut rng = Rng::printed();
    let source = mount.store().directory("source");
    sample::plant(&source, &mut rng).expect("planting");
    for i in 0..300 {
        fs::write(source.join(format!("deep/{i}")), rng.text(i * 37)).expect("writing");
    }
    let (from, target) = (format!("{}/", source.display()), mount.path().join("copy"));
    let to = format!("{}/", target.display());
    // Stricter than the promise: nanoseconds are compared too, and holes are made.
    let options = ["-aHAX", "--delete", "--itemize-changes", "--sparse", "--modify-window=-1"];
    let rsync = |more: &[&str]| {
        let options = options.iter().chain(more).map(std::ffi::OsString::from);
        tool(&source, "rsync", &options.chain(args![from, to]).collect::<Vec<_>>())
    };
    assert!(rsync(&[]).lines().count() > 300, "the first run copies");
    assert_eq!(rsync(&[]), "", "the second run changes nothing");
    same_tree(&source, &target);
    mount = mount.remount();
    assert_eq!(rsync(&["--checksum"]), "", "nor does a third, comparing contents, after a remount");
    // Changes of every kind are carried over, deletions too.
    fs::remove_dir_all(source.join("links")).expect("removing");
    fs::write(source.join("deep/7"), b"changed").expect("writing");
    fs::rename(source.join("deep/8"), source.join("moved")).expect("renaming");
    fs::hard_link(source.join("moved"), source.join("linked")).expect("linking");
    set_times(&source.join("deep/9"), (5, 5), (-5, 5)).expect("utimes");
    assert_ne!(rsync(&[]), "");
    assert_eq!(rsync(&[]), "");
    same_tree(&source, &target);
    // And out of the mount.
    let out = mount.store().directory("out");
    let back = args![
        "-aHAX",
        "--sparse",
        "--modify-window=-1",
        format!("{}/", target.display()),
        format!("{}/", out.display())
    ];
    tool(&source, "rsync", &back);
    same_tree(&source, &out);
}

const SQLITE: &str = r#"
import sqlite3, sys
path, mode, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
db = sqlite3.connect(path, isolation_level=None, timeout=60)
assert db.execute('pragma journal_mode=' + mode).fetchone()[0] == mode
db.execute('pragma synchronous=' + sys.argv[5])
db.execute('create table if not exists t (id integer primary key, k text, v blob)')
db.execute('create index if not exists by_k on t (k)')
for i in range(first, first + count):
    db.execute('begin immediate')
    value = bytes([i % 256]) * (i % 900)
    db.execute('insert into t values (?, ?, ?)', (i, 'key %d' % (i * 7919 % 1000), value))
    db.execute('update t set k = k || ? where id = ?', ('!', i * 31 % (i + 1)))
    if i % 10 == 9: db.execute('delete from t where id = ?', (i - 5,))
    db.execute('rollback' if i % 97 == 96 else 'commit')
db.close()
"#;

const SQLITE_CHECK: &str = r#"
import sqlite3, sys, hashlib
db = sqlite3.connect(sys.argv[1])
print(db.execute('pragma integrity_check').fetchone()[0])
digest = hashlib.sha256()
for row in db.execute('select id, k, v from t order by id'): digest.update(repr(row).encode())
print(db.execute('select count(*) from t').fetchone()[0], digest.hexdigest())
"#;

#[test]
fn sqlite_is_sound_after_ten_thousand_transactions() {
    let mut mount = mounted();
    let plain = mount.store().directory("plain");
    let transact = |dir: &Path| {
        for (mode, first, count) in
            [("delete", "0", "1500"), ("wal", "1500", "7000"), ("truncate", "8500", "1500")]
        {
            tool(dir, "python3", &args!["-c", SQLITE, "db", mode, first, count, "full"]);
        }
    };
    let check = |dir: &Path| tool(dir, "python3", &args!["-c", SQLITE_CHECK, "db"]);
    transact(mount.path());
    // The same on a plain directory gives the same rows, there without waiting for the disk.
    tool(&plain, "python3", &args!["-c", SQLITE, "db", "delete", "0", "10000", "off"]);
    let expected = check(&plain);
    assert!(expected.starts_with("ok\n"), "{expected}");
    assert_eq!(check(mount.path()), expected);
    mount.snapshot("s");
    mount = mount.remount();
    assert_eq!(check(mount.path()), expected, "after a remount");
    // A database taken out of a snapshot is whole.
    mkdir(&mount.path().join("restored"), 0o755).expect("mkdir");
    tool(mount.path(), "sh", &args!["-c", "cp -a .snapshots/s/db* restored/"]);
    assert_eq!(check(&mount.path().join("restored")), expected, "out of the snapshot");
}

#[test]
fn a_database_in_a_snapshot_taken_amid_transactions_is_sound() {
    let mount = mounted();
    let dir = mount.path();
    std::thread::scope(|scope| {
        let work =
            scope.spawn(|| tool(dir, "python3", &args!["-c", SQLITE, "db", "wal", "0", "4000", "full"]));
        let mut taken = 0;
        while !work.is_finished() && taken < 50 {
            if dir.join("db").exists() {
                mount.snapshot(&format!("s{taken}"));
                taken += 1;
            }
        }
        work.join().expect("the transactions");
        assert!(taken > 0, "a snapshot was taken while they went on");
    });
    let sound =
        "import sqlite3; print(sqlite3.connect('db').execute('pragma integrity_check').fetchone()[0])";
    for name in mount.snapshot_names() {
        let out = mount.store().directory(&name);
        tool(&out, "sh", &args!["-c", format!("cp -a {}/db* .", mount.at(&name).display())]);
        assert_eq!(tool(&out, "python3", &args!["-c", sound]).trim(), "ok", "{name}");
    }
}

#[test]
fn cargo_builds_a_crate_and_knows_what_is_fresh() {
    let mut mount = mounted();
    let home = mount.path().join("crate");
    fs::create_dir_all(home.join("src/parts")).expect("mkdir");
    let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[workspace]\n";
    fs::write(home.join("Cargo.toml"), manifest).expect("writing");
    fs::write(home.join("build.rs"), "fn main() { println!(\"cargo:rerun-if-changed=build.rs\"); }\n")
        .expect("writing");
    let modules: String = (0..20).map(|i| format!("pub mod p{i};\n")).collect();
    fs::write(home.join("src/parts/mod.rs"), modules).expect("writing");
    for i in 0..20 {
        let text = format!(
            "pub fn value() -> u64 {{ {i} }}\n#[test] fn is_right() {{ assert_eq!(value(), {i}); }}\n"
        );
        fs::write(home.join(format!("src/parts/p{i}.rs")), text).expect("writing");
    }
    let sum: Vec<String> = (0..20).map(|i| format!("parts::p{i}::value()")).collect();
    let main = format!("mod parts;\nfn main() {{ println!(\"{{}}\", {}); }}\n", sum.join(" + "));
    fs::write(home.join("src/main.rs"), main).expect("writing");
    let cargo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(args).arg("--offline").current_dir(&home);
        for name in [
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
        ] {
            command.env_remove(name);
        }
        let run = run(&mut command);
        assert_eq!(run.code, 0, "{run:?}");
        (run.stdout, run.stderr)
    };
    assert!(cargo(&["build"]).1.contains("Compiling small"));
    assert_eq!(cargo(&["run", "-q"]).0.trim(), "190");
    cargo(&["test", "-q"]);
    mount = mount.remount();
    assert!(!cargo(&["build"]).1.contains("Compiling"), "nothing changed, so nothing is built");
    // Later than the build by more than any clock's tick.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    fs::write(home.join("src/parts/p3.rs"), "pub fn value() -> u64 { 1003 }\n").expect("writing");
    assert!(cargo(&["build"]).1.contains("Compiling small"), "a change is seen");
    assert_eq!(cargo(&["run", "-q"]).0.trim(), "1190");
    drop(mount);
}

#[test]
fn tar_brings_a_tree_in_and_out_unchanged() {
    let mut mount = mounted();
    let source = mount.store().directory("source");
    sample::plant(&source, &mut Rng::printed()).expect("planting");
    let pack = ["--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--format=posix"];
    let tar = |dir: &Path, more: &[&str]| {
        tool(dir, "tar", &pack.iter().chain(more).map(std::ffi::OsString::from).collect::<Vec<_>>())
    };
    tar(&source, &["-cf", "../in.tar", "."]);
    let inside = mount.path().join("tree");
    mkdir(&inside, 0o755).expect("mkdir");
    tar(&inside, &["-xpf", "../../in.tar"]);
    same_tree(&source, &inside);
    mount = mount.remount();
    // Onto the mount itself and out again.
    tar(&inside, &["-cf", "../out.tar", "."]);
    let out = mount.store().directory("out");
    tar(&out, &["-xpf", &mount.path().join("out.tar").to_string_lossy()]);
    same_tree(&source, &out);
    tool(mount.path(), "tar", &args!["-df", "out.tar", "-C", "tree"]);
}

#[test]
fn cp_copies_trees_into_out_of_and_within_the_mount() {
    let mut mount = mounted();
    let source = mount.store().directory("source");
    sample::plant(&source, &mut Rng::printed()).expect("planting");
    tool(mount.path(), "cp", &args!["-a", source, "in"]);
    same_tree(&source, &mount.path().join("in"));
    tool(mount.path(), "cp", &args!["-a", "in", "within"]);
    mount = mount.remount();
    same_tree(&source, &mount.path().join("within"));
    for sparse in ["always", "never"] {
        let name = format!("sparse-{sparse}");
        tool(mount.path(), "cp", &args!["-a", format!("--sparse={sparse}"), "in/sparse", name]);
        let read = |path: &Path| fs::read(path).expect("reading");
        assert!(read(&source.join("sparse")) == read(&mount.path().join(&name)), "--sparse={sparse}");
    }
    same_tree(&source.join("sparse"), &mount.path().join("sparse-always"));
    tool(mount.path(), "mv", &args!["within", mount.store().home().join("moved out")]);
    same_tree(&source, &mount.store().home().join("moved out"));
    tool(mount.path(), "diff", &args!["-r", "--no-dereference", "in/deep", source.join("deep")]);
}
