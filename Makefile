# The commands of this project. Servers for tests and demo come from fixtures/servers.sh.
.PHONY: build static deb demo test lint soak types outcomes bench bench-growth bench-load bench-stages

build:
	cargo build --release

# One file that needs no library of the machine's. Once before: rustup target add x86_64-unknown-linux-musl, and
# Debian's musl-tools.
musl = $(shell uname -m)-unknown-linux-musl
static:
	CC_$(subst -,_,$(musl))=musl-gcc cargo build --release --target $(musl)
	target/$(musl)/release/anechoic --version

# A Debian package in target/debian; ANECHOIC_BINARY names a program that is there already.
deb:
	packaging/deb.sh

# Three private databases kept in step while you watch; Ctrl-C leaves nothing behind.
demo:
	cargo build --release
	target/release/anechoic demo

# Servers are deleted afterwards, whatever happens; the status is that of the tests.
with_servers = @trap 'fixtures/servers.sh down' EXIT; trap 'exit 130' INT TERM; fixtures/servers.sh up &&

# Every test, on real servers. Tests wait for servers more than they work: one more at a time than a small machine has cores.
test: export RUST_TEST_THREADS ?= 3
test:
	$(with_servers) cargo test --features failpoints

# The long figures in full (see tests/): 50 kills, a million rows, a minute of quiet.
soak:
	$(with_servers) ANECHOIC_SOAK=1 cargo test --release --features failpoints --test main --test world -- --show-output --include-ignored

# Changes beside the databases' own replication, on servers of its own; see benches/pipeline.
bench:
	cargo bench --bench pipeline

# Throughput and memory by number of tables, systems, changes and by width; writes GROWTH.md.
bench-growth:
	cargo bench --bench growth

# Loads two million rows beside COPY and LOAD DATA, on servers of its own; see benches/load.rs.
bench-load:
	cargo bench --bench load

# Each stage by itself, without servers; see benches/stages.
bench-stages:
	cargo bench --bench stages

# Writes TYPES.md as the servers have it; the tests fail where it is not.
types:
	$(with_servers) ANECHOIC_WRITE_TYPES=1 cargo test --features failpoints --test main -- matrix::

# Writes the table of CONFLICTS.md as the arbiter decides; the tests fail where it is not.
outcomes:
	ANECHOIC_WRITE_OUTCOMES=1 cargo test --features failpoints --test world every_pair

lint:
	cargo fmt --check
	cargo clippy --all-targets --features failpoints -- -D warnings
