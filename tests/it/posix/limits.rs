//! The longest names and paths, the most links, the largest files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::{Whence, lseek, truncate};

use crate::harness::sys::{data_ranges, facts, in_directory, mkdir, names, open_rw, rename, special};
use crate::harness::twin::errno;
use crate::harness::{Store, Twin, args, tool};

#[test]
fn names_of_255_bytes_work_in_every_call_and_of_256_in_none() {
    let mut twin = Twin::new();
    type Call = (&'static str, fn(&Path, &str) -> io::Result<()>);
    let calls: [Call; 12] = [
        ("open", |d, n| fs::write(d.join(n), b"")),
        ("stat", |d, n| facts(&d.join(n)).map(drop)),
        ("rename away", |d, n| fs::rename(d.join(n), d.join("x"))),
        ("rename to", |d, n| fs::write(d.join("x"), b"").and_then(|()| fs::rename(d.join("x"), d.join(n)))),
        ("exchange", |d, n| rename(&d.join(n), &d.join("f"), nix::fcntl::RenameFlags::RENAME_EXCHANGE)),
        ("link", |d, n| fs::hard_link(d.join("f"), d.join(n.replace('n', "l")))),
        ("unlink", |d, n| fs::remove_file(d.join(n))),
        ("mkdir", |d, n| mkdir(&d.join(n), 0o755)),
        ("below it", |d, n| {
            fs::write(d.join(n).join("f"), b"").and_then(|()| fs::remove_file(d.join(n).join("f")))
        }),
        ("rmdir", |d, n| fs::remove_dir(d.join(n))),
        ("symlink", |d, n| symlink("f", d.join(n.replace('n', "s")))),
        ("mknod", |d, n| special(&d.join(n.replace('n', "p")), SFlag::S_IFIFO, 0o600, 0)),
    ];
    twin.ok("preparing", |dir| fs::write(dir.join("f"), b""));
    for len in [255, 256, 300] {
        for (what, call) in calls {
            let told = twin.same(&format!("{what} with {len} bytes"), |dir| call(dir, &"n".repeat(len)));
            let expected = if len == 255 { Ok(()) } else { Err(Errno::ENAMETOOLONG) };
            assert_eq!(told, expected, "{what}");
        }
    }
    twin.compare_over_remount();
}

#[test]
fn paths_of_4095_bytes_work_and_longer_ones_are_walked_in_steps() {
    let twin = Twin::new();
    let found = twin.ok("as long as a path may be", |dir| {
        fs::write(dir.join("f"), b"found")?;
        let long = |len: usize| {
            let rest = len - dir.as_os_str().len() - 2;
            let dots = "./".repeat(rest / 2) + if rest.is_multiple_of(2) { "" } else { "/" };
            PathBuf::from(format!("{}/{dots}f", dir.display()))
        };
        assert_eq!(long(4095).as_os_str().len(), 4095);
        Ok((fs::read(long(4095))?, errno(fs::read(long(4096)))))
    });
    assert_eq!(found, (b"found".to_vec(), Err(Errno::ENAMETOOLONG)));
    let deep = twin.ok("deeper than a path is long", |dir| {
        in_directory(dir, 0o022, || {
            for level in 0..40 {
                let name = format!("{level:02}{}", "d".repeat(200));
                mkdir(Path::new(&name), 0o755)?;
                std::env::set_current_dir(&name)?;
            }
            fs::write("bottom", b"deep")?;
            fs::rename("bottom", "../moved")?;
            fs::hard_link("../moved", "again")?;
            let found = (fs::read("again")?, names(Path::new(".."))?.len(), facts(Path::new("again"))?.nlink);
            let path = errno(std::env::current_dir().map(drop)).is_ok();
            for level in (0..40).rev() {
                std::env::set_current_dir("..")?;
                if level == 20 {
                    fs::write("halfway", b"")?;
                }
            }
            Ok((found, path, names(Path::new("."))?))
        })
    });
    assert_eq!(deep.0.0, b"deep");
    let (bytes, inodes) = twin.ok("removing it all", |dir| {
        let list = tool(dir, "sh", &args!["-c", "find . | wc -l"]);
        tool(dir, "sh", &args!["-c", "rm -r 00*"]);
        Ok((list, names(dir)?))
    });
    assert_eq!((bytes.trim(), inodes.len()), ("45", 1));
}

#[test]
fn forty_symbolic_links_are_followed_and_one_more_is_eloop() {
    let twin = Twin::new();
    twin.ok("chains", |dir| {
        fs::write(dir.join("0"), b"end")?;
        mkdir(&dir.join("d0"), 0o755)?;
        fs::write(dir.join("d0/f"), b"end")?;
        (1..=42).try_for_each(|i| {
            symlink(format!("{}", i - 1), dir.join(format!("{i}")))?;
            symlink(format!("d{}", i - 1), dir.join(format!("d{i}")))
        })?;
        symlink("self", dir.join("self"))
    });
    for i in [1, 39, 40, 41, 42] {
        let told = twin.same(&format!("a chain of {i}"), |dir| fs::read(dir.join(format!("{i}"))));
        assert_eq!(told.err(), (i > 40).then_some(Errno::ELOOP));
        let _: Result<Vec<u8>, _> =
            twin.same(&format!("through {i}"), |dir| fs::read(dir.join(format!("d{i}/f"))));
    }
    twin.err("one that leads to itself", Errno::ELOOP, |dir| fs::write(dir.join("self"), b""));
    twin.err("below it", Errno::ELOOP, |dir| mkdir(&dir.join("self/x"), 0o755));
    twin.err("opened itself", Errno::ELOOP, |dir| {
        use std::os::unix::fs::OpenOptionsExt;
        File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(dir.join("1")).map(drop)
    });
}

#[test]
fn a_file_has_65_000_names_and_not_one_more() {
    let mut mount = Store::encrypted().mount();
    let dir = mount.path().join("names");
    mkdir(&dir, 0o755).expect("mkdir");
    let first = dir.join("0");
    fs::write(&first, b"one of many").expect("writing");
    for i in 1..65_000 {
        fs::hard_link(&first, dir.join(format!("{i}"))).unwrap_or_else(|e| panic!("link {i}: {e}"));
    }
    assert_eq!(facts(&first).expect("stat").nlink, 65_000);
    for _ in 0..2 {
        assert_eq!(errno(fs::hard_link(dir.join("77"), dir.join("more"))), Err(Errno::EMLINK));
    }
    mount = mount.remount();
    let dir = mount.path().join("names");
    assert_eq!(facts(&dir.join("64999")).expect("stat").nlink, 65_000);
    assert_eq!(errno(fs::hard_link(dir.join("77"), dir.join("more"))), Err(Errno::EMLINK));
    assert_eq!(names(&dir).expect("listing").len(), 65_000);
    fs::remove_file(dir.join("5")).expect("removing");
    fs::hard_link(dir.join("77"), dir.join("more")).expect("there is room for one again");
    assert_eq!(fs::read(dir.join("more")).expect("reading"), b"one of many");
}

#[test]
fn the_last_byte_of_the_largest_file_can_be_written_and_none_behind_it() {
    let mut mount = Store::encrypted().mount();
    let path = mount.path().join("f");
    let last = i64::MAX as u64 - 1;
    let file = File::options().create_new(true).read(true).write(true).open(&path).expect("creating");
    file.write_all_at(b"first", 0).expect("writing");
    assert_eq!(file.write_at(b"Z", last).expect("the last byte"), 1);
    for at in [last + 1, last + 2] {
        assert!(file.write_at(b"x", at).is_err(), "a byte at {at}");
    }
    assert!(file.write_at(b"YZ!", last - 1).is_err(), "three bytes where two fit");
    assert_eq!(file.write_at(b"YZ", last - 1).expect("the last two"), 2);
    file.sync_all().expect("syncing");
    drop(file);
    for when in ["at once", "after a remount"] {
        let path = mount.path().join("f");
        let file = open_rw(&path).expect("opening");
        assert_eq!(file.metadata().expect("stat").len(), i64::MAX as u64, "{when}");
        let mut end = [9; 4];
        assert_eq!(file.read_at(&mut end, last - 3).expect("reading"), 4, "{when}");
        assert_eq!(&end, b"\0\0YZ", "{when}");
        let ranges = data_ranges(&file);
        assert_eq!(ranges.expect("SEEK_DATA"), [(0, 5), (last - 1, last + 1)], "{when}");
        assert_eq!(lseek(&file, 5, Whence::SeekData), Ok(last as i64 - 1), "{when}");
        assert_eq!(lseek(&file, last as i64, Whence::SeekHole), Ok(i64::MAX), "{when}");
        assert_eq!(lseek(&file, 1, Whence::SeekHole), Ok(5), "{when}");
        assert_eq!(lseek(&file, 0, Whence::SeekEnd), Ok(i64::MAX), "{when}");
        assert_eq!(lseek(&file, 1, Whence::SeekEnd).map_err(|e| e == Errno::EFBIG), Err(false), "{when}");
        drop(file);
        mount = mount.remount();
    }
    let path = mount.path().join("f");
    for size in [i64::MAX - 1, 1 << 62, 5, i64::MAX] {
        truncate(&path, size).unwrap_or_else(|e| panic!("truncating to {size}: {e}"));
        assert_eq!(path.metadata().expect("stat").len(), size as u64);
    }
    let file = open_rw(&path).expect("opening");
    assert_eq!(data_ranges(&file).expect("SEEK_DATA"), [(0, 5)], "what was cut is gone");
    assert!(path.metadata().expect("stat").blocks() <= 8);
}

#[test]
fn writes_behind_the_largest_offset_are_refused_as_on_ext4() {
    let twin = Twin::new();
    twin.ok("preparing", |dir| fs::write(dir.join("f"), b"content"));
    twin.err("a write there", Errno::EINVAL, |dir| {
        Ok(nix::sys::uio::pwrite(open_rw(&dir.join("f"))?, b"x", -5).map(drop)?)
    });
    let _: Result<usize, _> = twin.same("a write that would end there", |dir| {
        Ok(nix::sys::uio::pwrite(open_rw(&dir.join("f"))?, b"xyz", i64::MAX)?)
    });
    twin.err("truncating below nothing", Errno::EINVAL, |dir| Ok(truncate(&dir.join("f"), -1)?));
    let _: Result<i64, _> =
        twin.same("seeking below nothing", |dir| Ok(lseek(open_rw(&dir.join("f"))?, -1, Whence::SeekSet)?));
    twin.compare("nothing was changed");
}

const LIMITED: &str = "
import errno, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
caught = []
signal.signal(signal.SIGXFSZ, lambda *_: caught.append('SIGXFSZ'))
fd = os.open('f', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
def told(what, *args):
    try: result = what(*args)
    except OSError as e: result = errno.errorcode[e.errno]
    print(result, os.fstat(fd).st_size, caught)
    caught.clear()
told(os.pwrite, fd, b'x' * 9000, 0)
told(os.pwrite, fd, b'x' * 9000, 5000)
told(os.pwrite, fd, b'x', 10000)
told(os.pwrite, fd, b'', 10000)
told(os.ftruncate, fd, 10000)
told(os.ftruncate, fd, 10001)
told(os.truncate, 'f', 20000)
told(os.posix_fallocate, fd, 0, 10000)
told(os.posix_fallocate, fd, 0, 10001)
other = os.open('f', os.O_WRONLY | os.O_APPEND)
told(os.write, other, b'more')
big = os.open('big', os.O_RDWR)
told(os.pwrite, big, b'inside', 9000)
told(os.pwrite, big, b'behind', 15000)
told(os.ftruncate, big, 12000)
told(os.copy_file_range, big, fd, 5000, 0, 8000)
";

#[test]
fn the_limit_of_file_sizes_of_a_process_is_obeyed_as_on_ext4() {
    let twin = Twin::new();
    let told = twin.ok("under a limit", |dir| {
        fs::write(dir.join("big"), [b'b'; 20_000])?;
        Ok(tool(dir, "python3", &args!["-c", LIMITED]))
    });
    assert!(told.contains("EFBIG 10000 ['SIGXFSZ']"), "{told}");
    let code = twin.ok("without a handler it kills", |dir| {
        let script = "ulimit -f 1; exec dd if=/dev/zero of=g bs=100000 count=1 status=none";
        let mut command = std::process::Command::new("bash");
        Ok(crate::harness::run(command.args(["-c", script]).current_dir(dir)).code)
    });
    assert_eq!(code, 128 + libc::SIGXFSZ);
    twin.compare("what was written");
}
