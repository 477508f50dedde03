//! Where the answer is another than ext4's, as `docs/SEMANTICS.md` says; and that programs get by.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::harness::twin::errno;
use crate::harness::{Store, Twin, args, tool};

#[test]
fn unnamed_temporary_files_are_refused_and_programs_name_theirs() {
    let mount = Store::encrypted().mount();
    let unnamed = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(mount.path());
    assert_eq!(errno(unnamed).map(drop), Err(Errno::EOPNOTSUPP));
    let script = "
import tempfile
with tempfile.TemporaryFile(dir='.') as f:
    f.write(b'kept'); f.seek(0); print(f.read().decode())
";
    assert_eq!(tool(mount.path(), "python3", &args!["-c", script]).trim(), "kept");
    assert!(crate::harness::sys::names(mount.path()).expect("listing").is_empty());
}

#[test]
fn there_is_no_time_of_birth_to_ask_for() {
    let twin = Twin::new();
    for root in twin.roots() {
        File::create(root.join("f")).expect("creating");
    }
    let born = twin.roots().map(|root| tool(root, "stat", &args!["--format", "%W", "f"]).trim() != "0");
    assert_eq!(born, [false, true], "ours, ext4's");
}

#[test]
fn file_flags_handles_and_swap_are_refused() {
    let mount = Store::encrypted().mount();
    let path = mount.path().join("f");
    std::fs::write(&path, vec![1; 1 << 20]).expect("writing");
    let file = File::open(&path).expect("opening");
    let mut flags = 0u64;
    // FS_IOC_GETFLAGS; SAFETY: the kernel writes at most a word.
    let told = unsafe { libc::ioctl(file.as_raw_fd(), 0x8008_6601, &raw mut flags) };
    assert!(matches!(Errno::result(told), Err(Errno::ENOTTY | Errno::EOPNOTSUPP)), "chattr");
    let mut handle = [0u8; 256];
    handle[..4].copy_from_slice(&128u32.to_ne_bytes());
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a path");
    let mut id = 0i32;
    // SAFETY: the buffer says how much room it has, and all pointers are live.
    let told = unsafe {
        let start = handle.as_mut_ptr().cast::<libc::c_void>();
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, name.as_ptr(), start, &raw mut id, 0)
    };
    assert_eq!(Errno::result(told), Err(Errno::EOPNOTSUPP), "what an NFS server would ask for");
    // SAFETY: the string ends with NUL; nothing is swapped to a file that is none for swapping.
    let told = unsafe { libc::swapon(name.as_ptr(), 0) };
    assert_eq!(Errno::result(told), Err(Errno::EINVAL), "swapon");
}
