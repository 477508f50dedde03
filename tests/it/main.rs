//! Black-box tests of rewindfs: they start the binary as a user would and judge it by `CLI.md`, POSIX and
//! what ext4 does. Nothing here uses the library. All modules are one test binary, so that RocksDB is linked
//! once.
//!
//! They need root and `/dev/fuse`, and fail with a sentence where these are missing. Variables:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `REWINDFS_TEST_DIR` | where stores, mounts and plain twins are made; on ext4 | the temp dir |
//! | `REWINDFS_TEST_KEEP` | if set, a test's directory is left behind for a look | |
//! | `REWINDFS_TEST_SEED` | seed of every random choice | the clock; printed |
//! | `REWINDFS_TEST_QUICK` | 1: the longest tests are scaled down | |
//! | `REWINDFS_TEST_OPS` | operations of a differential run | 5000 |
//! | `REWINDFS_TEST_CROWD` | operations of all processes of a crowd together | 24000 |
//! | `REWINDFS_TEST_ENTRIES` | entries of the large directory | 100000 |
//! | `REWINDFS_POWER_ROUNDS` | power cuts of the whole machine | 6 |
//! | `REWINDFS_TEST_DEADLINE_SECS` | longest run of one command | 300 |
//! | `REWINDFS_TEST_WATCHDOG_SECS` | age at which a mount is torn down, so that a hung test fails | 1200 |

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test says what it expects and dies where that does not hold"
)]

mod differential;
mod harness;
mod layers;
mod lifecycle;
mod posix;
mod power;
mod snapshots;
mod store;
mod survival;
mod workloads;
