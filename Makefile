# Two goals for a fresh Debian or Ubuntu machine, `make start` and `make test`; `make help` lists the others.

PREFIX ?= $(HOME)/.local
BENCH ?=
FUZZ_SECONDS ?= 30
FUZZ_LIMIT ?= -max_total_time=$(FUZZ_SECONDS)

# What a goal needs, as `probe:Debian package`; a probe is a program, a file (`/…`) or a static library (`….a`).
START_NEEDS = bwrap:bubblewrap cc:gcc libc.a:libc6-dev git:git curl:curl /etc/ssl/certs/*:ca-certificates
LINT_NEEDS = $(START_NEEDS) shellcheck:shellcheck
TEST_NEEDS = $(LINT_NEEDS) nix:nix-bin node:nodejs npm:npm openssl:openssl perl:perl python3:python3 \
             strace:strace tmux:tmux fish:fish vim:vim gpg:gnupg ip:iproute2 \
             wget:wget go:golang-go /usr/bin/pip3:python3-pip /usr/lib/python3/dist-packages/requests:python3-requests \
             /usr/lib/python3/dist-packages/httpx:python3-httpx ssh:openssh-client /usr/sbin/sshd:openssh-server \
             dbus-daemon:dbus-daemon chromium:chromium chromedriver:chromium-driver
FUZZ_NEEDS = $(START_NEEDS) c++:g++

# A missing one of these fails its tests instead of skipping them.
export CLOISTER_TEST_REQUIRE ?= bubblewrap,chromium,clients,dbus,nix,npm,strace,terminals

# Where rustup and `cargo install` put programs.
export PATH := $(PATH):$(HOME)/.cargo/bin
# The flags of the static link stand in .cargo/config.toml, and this variable would silence them.
unexport RUSTFLAGS

BINARY = $${CARGO_TARGET_DIR:-target}/$$(rustc --print host-tuple)/release/cloister
BIN = $(PREFIX)/bin

# What stands behind CMD= goes to the shell in the sandbox as it is, `$` included.
ifeq ($(origin CMD),command line)
override CMD := $(value CMD)
export CMD
COMMAND = -- sh -c "$$CMD"
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help start build install test lint fmt doc bench fuzz needs-start needs-lint needs-fuzz needs-test

help: ## list the goals
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

start: install ## open the sandbox on this repository; CMD='…' runs a command in it
	@exec "$(BIN)/cloister" start $(COMMAND)

build: needs-start ## build the release binary
	cargo build --locked --release

# A running binary can't be written, and a reader must never see half of one: write beside it, then rename.
install: build ## install the binary to PREFIX/bin (PREFIX is ~/.local)
	@if ! cmp --silent "$(BINARY)" "$(BIN)/cloister"; then \
	  mkdir -p "$(BIN)" && install -m 755 "$(BINARY)" "$(BIN)/.cloister.new" \
	  && mv -f "$(BIN)/.cloister.new" "$(BIN)/cloister" && echo 'installed $(BIN)/cloister'; fi

test: needs-test lint ## run the lints and all tests, skipping none
	cargo test --locked --release --doc
	cargo nextest run --locked --release
	@.ci/threats "target/nextest/$${NEXTEST_PROFILE:-default}/junit.xml"

lint: needs-lint doc ## check formatting, lints, dependencies and scripts
	cargo fmt --check
	cargo clippy --locked --release --all-targets -- -D warnings
	cargo fetch --locked --quiet
	cargo deny --offline check --hide-inclusion-graph bans licenses sources
	shellcheck $$(grep -l '^#!.*bash' .ci/*)

fmt: ## format the code
	cargo fmt

doc: export RUSTDOCFLAGS = -D warnings
doc: needs-start ## build the documentation, broken links being errors
	cargo doc --locked --release --no-deps --document-private-items

bench: needs-start ## run the benchmarks on what packages hold; BENCH='…' chooses some
	cargo bench --locked --profile dist $(BENCH)

# libFuzzer needs unstable flags of the compiler; the variable allows them to these commands alone. No sanitizer: what
# it would find needs `unsafe`, and the build takes half the time without one.
fuzz: needs-fuzz ## fuzz every target for FUZZ_SECONDS
	@set -e; for target in $$(cargo fuzz list --fuzz-dir tests/fuzz); do \
	  mkdir -p "tests/fuzz/corpus/$$target"; \
	  RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none --fuzz-dir tests/fuzz "$$target" \
	    "tests/fuzz/corpus/$$target" "tests/fuzz/seeds/$$target" -- $(FUZZ_LIMIT); done

needs-start:
	@.ci/install-missing $(START_NEEDS)

needs-lint:
	@.ci/install-missing $(LINT_NEEDS)
	@.ci/install-cargo-tool cargo-deny

needs-fuzz:
	@.ci/install-missing $(FUZZ_NEEDS)
	@.ci/install-cargo-tool cargo-fuzz

needs-test:
	@.ci/install-missing $(TEST_NEEDS)
	@.ci/install-cargo-tool cargo-nextest
