# Two commands do everything: `make demo` and `make test`. Both need root (network namespaces, BPF) and install what
# they need from apt themselves.

CARGO ?= cargo

.PHONY: help demo demo-quick stars star test lint doc build image bench fuzz deps deps-run deps-test loom clean-lab

help:
	@sed -n 's/^## //p' Makefile

## make demo        build, bring the lab up, show real flows and load, compare with the kernel
demo: deps deps-run
	$(CARGO) build --release -p sluice -p sluiced
	target/release/sluice demo $(DEMO_FLAGS)

## make demo-quick  the same without most of the load
demo-quick:
	$(MAKE) demo DEMO_FLAGS="--quick"

## make stars       play the Stars demo: network policies on real pods; STARS_FLAGS=--serve shows it in a browser
stars: build deps-run
	target/release/sluice lab stars $(STARS_FLAGS)

## make star        the demo's workload as a static binary, for an image: deploy/stars/star/Containerfile
STAR_TARGET ?= $(shell rustc -vV | sed -n 's/^host: //p')
star:
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile dist -p sluice-star --target $(STAR_TARGET)
	mkdir -p target/star
	cp target/$(STAR_TARGET)/dist/star deploy/stars/star/Containerfile target/star/

## make test        every test: engine, BPF programs, ports, daemon, lab end to end, kernel oracle
test: deps deps-run deps-test
	tests/run-all

## make lint        formatting, clippy with warnings denied, documentation, dependency rules
lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

## make loom        model checks of the flow table
loom: deps
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test -p sluice-engine --release --lib loom

## make build       release binaries
build: deps
	$(CARGO) build --release -p sluice -p sluiced -p sluice-agent -p sluice-cni -p sluice-star

## make image       the container image of both DaemonSets: target/image/sluice.tar (docs/deploy.md)
image: build
	@tests/apt mmdebstrap buildah
	deploy/image/build target/release sluice:latest

## make bench       forwarding harness against kernel peers (90 s); see bench/README.md
bench: build deps-run
	$(CARGO) run --release -p sluice-bench -- forwarding --quick

## make fuzz        every fuzz target for SECONDS (default 30) each
fuzz: deps
	tests/fuzz $${SECONDS_EACH:-30}

## make clean-lab   remove every lab that was left behind
clean-lab:
	-for lab in $$(ls /run/sluice-lab 2>/dev/null | grep -v '\.lock$$'); do target/release/sluice lab down --name $$lab; done

deps:
	@tests/apt clang llvm libclang-dev m4 make gcc g++ libc6-dev pkg-config libelf-dev zlib1g-dev

deps-run:
	@tests/apt iproute2 nftables iptables ethtool iperf3 tshark conntrack iputils-ping

deps-test:
	@tests/apt chromium python3 python3-venv mmdebstrap buildah runc containernetworking-plugins containerd busybox-static
