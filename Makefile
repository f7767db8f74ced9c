# The commands of this project. Servers for tests and demo come from fixtures/servers.sh.
.PHONY: build demo test lint soak

build:
	cargo build --release

# Three private databases kept in step while you watch; Ctrl-C leaves nothing behind.
demo:
	cargo build --release
	target/release/anechoic demo

# Every test, on real servers that are started before and deleted after.
test:
	@status=0; \
	fixtures/servers.sh up && cargo test --features failpoints || status=$$?; \
	fixtures/servers.sh down; \
	exit $$status

# The long figures in full (see tests/): 50 kills, a million rows, a minute of quiet.
soak:
	@status=0; \
	fixtures/servers.sh up && ANECHOIC_SOAK=1 cargo test --release --features failpoints --test main || status=$$?; \
	fixtures/servers.sh down; \
	exit $$status

lint:
	cargo fmt --check
	cargo clippy --all-targets --features failpoints -- -D warnings
