//! The control socket against clients that mean no good, and the protocol against bytes that mean nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as Peer;
use std::sync::atomic::AtomicU32;
use std::time::Instant as Moment;

use proptest::prelude::*;

use super::*;
use crate::daemon::client::Client;
use crate::daemon::protocol::{MountRequest, NodeKind, SnapshotCreate, Target, VersionInfo, encode_request};

/// Answers `Ping`, streams progress for `Fsck`, panics at `Stop`, blocks at `KeyList` until `release` grows.
#[derive(Default)]
struct Echo {
    release: AtomicU32,
    working: AtomicU32,
}

impl ControlHandler for Echo {
    fn handle(
        &self,
        caller: &Caller,
        request: Request,
        listener: &mut dyn Listener,
    ) -> Result<Response, ControlError> {
        match request {
            Request::Ping {} => Ok(Response::Pong { version: "t".into(), pid: caller.uid }),
            Request::Fsck {} => {
                for done in 0..3 {
                    listener.progress(Progress {
                        what: "checking".into(),
                        done,
                        total: 3,
                        unit: "packs".into(),
                    });
                }
                Err(ControlError::new(super::super::protocol::Kind::WrongKey, "two\nlines"))
            }
            Request::Stop {} => std::panic::panic_any("on purpose"),
            Request::KeyList {} => {
                self.working.fetch_add(1, Ordering::SeqCst);
                while self.release.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(Response::Done {})
            }
            Request::VolumeList {} => {
                for lsn in 0..PARTS {
                    let totals = VersionInfo { lsn, ..version() };
                    if let Err(left) = listener.part(Part::Versions(vec![totals; 100])) {
                        self.release.store(u32::MAX, Ordering::SeqCst);
                        return Err(left);
                    }
                }
                Ok(Response::Log { versions: PARTS, more: false })
            }
            _ => Ok(Response::Done {}),
        }
    }
}

/// More than a socket's buffer and the queue hold.
const PARTS: u64 = 300;

fn version() -> VersionInfo {
    VersionInfo {
        time: crate::types::Timestamp::default(),
        size: 1,
        author: 2,
        author_name: None,
        lsn: 3,
        snapshots: vec!["a name".into()],
        snapshots_total: 1,
        path: "some/path/of/a/file".into(),
        snapshot_path: None,
        kind: NodeKind::File,
    }
}

/// Takes parts slowly.
struct Slow(Vec<u64>);

impl Listener for Slow {
    fn progress(&mut self, _: Progress) {}

    fn part(&mut self, part: Part) -> Result<(), ControlError> {
        if self.0.len() < 20 {
            std::thread::sleep(Duration::from_millis(5));
        }
        match part {
            Part::Versions(versions) => self.0.extend(versions.first().map(|v| v.lsn)),
            Part::Changes(_) => panic!("nobody sent changes"),
        }
        Ok(())
    }
}

struct Served {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    handler: Arc<Echo>,
    server: Option<ControlServer>,
}

impl Served {
    fn new() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let handler = Arc::new(Echo::default());
        let server = Some(ControlServer::start(&socket, handler.clone()).unwrap());
        Served { _dir: dir, socket, handler, server }
    }

    fn ask(&self, request: Request) -> Result<Response, ControlError> {
        Client::new(self.socket.clone(), None).call(request, &mut |_: Progress| {})
    }

    fn is_well(&self) -> bool {
        matches!(self.ask(Request::Ping {}), Ok(Response::Pong { .. }))
    }

    /// Sends raw bytes and reads until the server closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut peer = Peer::connect(&self.socket).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may close before it has read everything.
        let _ = peer.write_all(bytes);
        let mut answer = Vec::new();
        let _ = peer.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.handler.release.store(1, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            server.stop(Duration::from_secs(5));
        }
    }
}

fn wait_until(what: impl Fn() -> bool) {
    let start = Moment::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_kernel_says_who_asks() {
    let served = Served::new();
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!(served.ask(Request::Ping {}), Ok(Response::Pong { version: "t".into(), pid: uid }));
    let mode = fs::metadata(&served.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
}

#[test]
fn parts_come_all_and_in_order_however_slowly_they_are_taken() {
    let served = Served::new();
    let mut slow = Slow(Vec::new());
    let result = Client::new(served.socket.clone(), None).call(Request::VolumeList {}, &mut slow);
    assert_eq!(result, Ok(Response::Log { versions: PARTS, more: false }));
    assert_eq!(slow.0, (0..PARTS).collect::<Vec<_>>());
    assert!(served.ask(Request::VolumeList {}).is_err(), "who expects one line gets an error");
    // Then the handler hears that nobody listens, and the server goes on.
    wait_until(|| served.handler.release.load(Ordering::SeqCst) == u32::MAX);
    assert!(served.is_well());
}

#[test]
fn progress_comes_before_the_result_in_order() {
    let served = Served::new();
    let mut seen = Vec::new();
    let result =
        Client::new(served.socket.clone(), None).call(Request::Fsck {}, &mut |p: Progress| seen.push(p.done));
    assert_eq!(seen, [0, 1, 2]);
    let error = result.unwrap_err();
    assert_eq!((error.kind.exit_code(), error.to_string()), (12, "two lines".to_owned()));
}

#[test]
fn garbage_gets_one_line_and_a_closed_connection() {
    let served = Served::new();
    let mut huge = vec![b'x'; CONTROL_REQUEST_BYTES_MAX * 2];
    huge.push(b'\n');
    let cases: [&[u8]; 9] = [
        b"\n",
        b"hello\n",
        b"{}\n",
        b"{\"v\":1}\n",
        b"{\"v\":2,\"m\":{\"ping\":{}}}\n",
        b"{\"v\":1,\"m\":{\"destroy\":{}}}\n",
        b"{\"v\":1,\"m\":{\"ping\":{\"x\":1}}}\n",
        b"\xff\xfe\x00\n",
        &huge,
    ];
    for case in cases {
        let answer = served.raw(case);
        assert_eq!(answer.matches('\n').count(), 1, "{answer}");
        assert!(answer.contains("\"error\""), "{answer}");
    }
    let nested = "[".repeat(CONTROL_REQUEST_BYTES_MAX - 100) + "\n";
    assert!(served.raw(nested.as_bytes()).contains("\"error\""));
    assert!(served.is_well());
}

#[test]
fn an_unfinished_line_and_a_silent_peer_are_let_go() {
    let served = Served::new();
    let silent = std::thread::spawn({
        let socket = served.socket.clone();
        move || {
            let mut peer = Peer::connect(socket).unwrap();
            let mut answer = Vec::new();
            peer.read_to_end(&mut answer).unwrap();
            answer
        }
    });
    let answer = served.raw(b"{\"v\":1,");
    assert!(answer.contains("no whole request"), "{answer}");
    assert_eq!(silent.join().unwrap(), b"");
    assert!(served.is_well());
}

#[test]
fn requests_may_follow_each_other_on_one_connection() {
    let served = Served::new();
    let mut peer = Peer::connect(&served.socket).unwrap();
    let ping = encode_request(&Request::Ping {}).unwrap();
    peer.write_all(&[ping.clone(), ping].concat()).unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.matches("pong").count(), 2, "{answer}");
}

#[test]
fn a_panic_is_an_error_and_the_next_request_works() {
    let served = Served::new();
    let error = served.ask(Request::Stop {}).unwrap_err();
    assert!(error.to_string().contains("internal error"), "{error}");
    assert!(served.is_well());
}

#[test]
fn bad_names_do_not_reach_the_handler() {
    let served = Served::new();
    for name in ["", ".x", "@x", "a/b", "a\0b"] {
        let error = served.ask(Request::VolumeCreate { name: name.into() }).unwrap_err();
        assert_eq!(error.kind.exit_code(), 2, "{name:?}");
    }
}

#[test]
fn connections_are_bounded_and_a_leaving_peer_keeps_its_place_until_its_work_is_done() {
    let served = Served::new();
    let request = encode_request(&Request::KeyList {}).unwrap();
    let count = u32::try_from(CONTROL_CONNECTIONS_MAX).unwrap();
    let bound = if nix::unistd::geteuid().is_root() { count } else { count / 4 };
    for n in 1..=bound {
        let mut peer = Peer::connect(&served.socket).unwrap();
        peer.write_all(&request).unwrap();
        drop(peer);
        wait_until(|| served.handler.working.load(Ordering::SeqCst) == n);
    }
    let error = served.ask(Request::Ping {}).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
    served.handler.release.store(1, Ordering::SeqCst);
    wait_until(|| served.is_well());
}

#[test]
fn one_user_cannot_take_every_place() {
    let slots = Arc::new(Slots::default());
    let taken: Vec<Slot> = std::iter::from_fn(|| slots.take(1000)).collect();
    assert_eq!(taken.len(), USER_CONNECTIONS_MAX);
    let others: Vec<Slot> = (2000..3000).filter_map(|uid| slots.take(uid)).collect();
    assert_eq!(taken.len() + others.len(), CONTROL_CONNECTIONS_MAX - ROOT_CONNECTIONS);
    assert!(slots.take(0).is_some());
    drop((taken, others));
    assert_eq!(slots.in_use(), 0);
}

#[test]
fn stopping_waits_for_work_and_removes_the_socket() {
    let mut served = Served::new();
    let mut peer = Peer::connect(&served.socket).unwrap();
    peer.write_all(&encode_request(&Request::KeyList {}).unwrap()).unwrap();
    wait_until(|| served.handler.working.load(Ordering::SeqCst) == 1);
    let handler = served.handler.clone();
    let releaser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        handler.release.store(1, Ordering::SeqCst);
    });
    served.server.take().unwrap().stop(Duration::from_secs(10));
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("done"), "{answer}");
    assert!(!served.socket.exists());
    releaser.join().unwrap();
}

#[test]
fn a_stuck_request_does_not_keep_the_server_from_stopping() {
    let mut served = Served::new();
    let mut peer = Peer::connect(&served.socket).unwrap();
    peer.write_all(&encode_request(&Request::KeyList {}).unwrap()).unwrap();
    wait_until(|| served.handler.working.load(Ordering::SeqCst) == 1);
    let start = Moment::now();
    served.server.take().unwrap().stop(Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(5));
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,20}"
}

fn request() -> impl Strategy<Value = Request> {
    let path = proptest::collection::vec(1u8..=255, 1..40).prop_map(|bytes| {
        use std::os::unix::ffi::OsStringExt as _;
        PathBuf::from(std::ffi::OsString::from_vec(bytes))
    });
    let target = prop_oneof![
        Just(Target::Store),
        text().prop_map(|volume| Target::Volume { volume }),
        (text(), any::<u64>()).prop_map(|(volume, ino)| Target::File { volume, ino }),
    ];
    let tags = proptest::collection::btree_map(text(), text(), 0..4);
    let names = proptest::collection::vec(text(), 0..4);
    prop_oneof![
        (text(), path.clone()).prop_map(|(volume, mountpoint)| {
            Request::Mount(MountRequest { volume, mountpoint, options: Default::default() })
        }),
        path.prop_map(|mountpoint| Request::Unmount { mountpoint }),
        (target.clone(), proptest::option::of(text()), tags, any::<bool>(), any::<bool>()).prop_map(
            |(target, name, tags, hold, all_volumes)| {
                Request::SnapshotCreate(SnapshotCreate { target, name, tags, hold, all_volumes })
            }
        ),
        (target, names, any::<bool>()).prop_map(|(target, names, dry_run)| Request::SnapshotDelete {
            target,
            names,
            dry_run
        }),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip_on_one_line(request in request()) {
        let line = encode(&request).unwrap();
        prop_assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        prop_assert_eq!(decode::<Request>(line.trim_ascii_end()), Ok(request));
    }

    #[test]
    fn damaged_lines_are_errors_and_not_panics(
        request in request(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut line = encode(&request).unwrap();
        for (at, byte) in damage {
            let at = at.index(line.len());
            if let Some(hit) = line.get_mut(at) {
                *hit = byte;
            }
        }
        line.truncate(cut.index(line.len() + 1));
        if let Err(error) = decode::<Request>(&line) {
            prop_assert!(!error.to_string().contains('\n'));
        }
        let _ = decode::<Reply>(&line);
    }

    #[test]
    fn noise_is_an_error_and_not_a_panic(bytes: Vec<u8>) {
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Reply>(&bytes);
    }
}
