# Every recipe is what CI runs, or a stage of it: see tools/test.

export CARGO_TARGET_DIR := env("CARGO_TARGET_DIR", env("HOME") / ".cache/rewindfs-target")

# list the recipes
default:
    @just --list

# format the code in place
fmt:
    cargo fmt --all

# formatting, clippy with warnings denied, shellcheck
lint:
    tools/test --stages fmt,lint,shell

# the tests; a filter picks those whose name contains it
test *filter:
    tools/test {{ if filter == "" { "--stages test" } else { quote(filter) } }}

# format, lints and the tests with the long ones scaled down
quick *filter:
    tools/test --quick {{ filter }}

# licences, bans and sources of the dependencies
deny:
    tools/test --stages deny

# known vulnerabilities in the dependencies (needs the network, so CI leaves it out)
advisories: tools
    bash -ec 'source tools/lib.sh; "$(cargo_deny)" --locked check advisories'

# cargo-deny, compiled once into ~/.cache/rewindfs-tools
tools:
    bash -ec 'source tools/lib.sh; cargo_deny install'

# compile the benchmarks, as CI does
bench-build:
    tools/test --stages benches

# run the benchmarks
bench *args:
    cargo bench --locked -- {{ args }}

# a training run with ten snapshotted checkpoints, read back bit-exact
train:
    tools/test --stages train

# all that CI runs
ci:
    .ci/run

# build, then bring a deleted checkpoint back out of a snapshot
quickstart *dir:
    tools/quickstart {{ dir }}

# servers and holders killed under load, as often as it takes to believe it (about 20 minutes)
survive *args:
    tools/survive --rewindfs "$CARGO_TARGET_DIR/release/rewindfs" --dir "$(mktemp --directory --dry-run --tmpdir rewindfs-survive.XXXXXX)" {{ args }}

# other people's tests on a mount and on ext4, the verdicts compared (about an hour); a name picks one
suites *names:
    tools/suites {{ if names == "" { "pjdfstest fsx stress-ng postgres append" } else { names } }} --rewindfs "$CARGO_TARGET_DIR/release/rewindfs" --dir "$(mktemp --directory --dry-run --tmpdir rewindfs-suites.XXXXXX)"

# the server's program replaced again and again under PostgreSQL and a copy of 5 GiB
upgrades *args:
    tools/upgrades --rewindfs "$CARGO_TARGET_DIR/release/rewindfs" --dir "$(mktemp --directory --dry-run --tmpdir rewindfs-upgrades.XXXXXX)" {{ args }}

# operations from eight processes on trees of their own, and half as many from four on one tree, against ext4
crowd operations="200000":
    REWINDFS_TEST_CROWD={{ quote(operations) }} cargo test --locked --release --test it -- --nocapture differential::crowd::

# a directory of a million entries, listed while it changes (some minutes)
entries many="1000000":
    REWINDFS_TEST_ENTRIES={{ quote(many) }} cargo test --locked --release --test it -- --nocapture posix::listings::

# power cuts of a whole machine (root; 200 take about 7 minutes)
powercut rounds="200":
    tools/powercut {{ quote(rounds) }}

# figures of scale: a million files, a thousand snapshots, full buffers (about 15 minutes)
scale dir:
    tools/scale --rewindfs "$CARGO_TARGET_DIR/release/rewindfs" --dir {{ quote(dir) }}

# random histories against the reference model, other ones each time (10,000 take about 20 minutes)
histories cases="10000":
    PROPTEST_RNG_SEED="$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')" REWINDFS_TEST_CASES={{ quote(cases) }} cargo test --locked --release --lib -- --nocapture volume::tests::points::histories volume::tests::restore:: volume::tests::purge:: volume::tests::log:: volume::tests::changes::

# a tree half removed, a quarter encrypted, a checkpoint written over, and all of it brought back (GiB; about 25 minutes)
disaster gib="20":
    tools/disaster --rewindfs "$CARGO_TARGET_DIR/release/rewindfs" --dir "$(mktemp --directory --dry-run --tmpdir rewindfs-disaster.XXXXXX)" --gib {{ quote(gib) }}

# what deleting snapshots of a million files costs, beside a writer (about 10 minutes)
forget *args:
    tools/forget --rewindfs "$CARGO_TARGET_DIR/release/rewindfs" --dir "$(mktemp --directory --dry-run --tmpdir rewindfs-forget.XXXXXX)" {{ args }}

# servers killed while they forget, rewrite packs and restore
killing kills="100":
    REWINDFS_TEST_KILLS={{ quote(kills) }} cargo test --locked --release --test it -- --nocapture a_server_that_is_killed_while a_restore_whose_server_is_killed
