# SPDX-License-Identifier: Apache-2.0

DEPS   := .deps# external programs, images and the test machine; see BERTH_DEPS
BUILD  := .build# berth's own programs
IMAGES := $(DEPS)/images
PREFIX := /usr/local
GO     := go

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Static and without symbols: the shim is executed for every container.
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
# `make lint` vets.
GOTEST  := $(GO) test -count=1 -vet=off
# In `make test` the race detector looks at those whose concurrency is their own; they
# are built with it soon, and what links containerd takes ten minutes.
RACED   := ./shim/... ./snapshotter/...
UNRACED  = $(shell $(GO) list ./... | grep -vE '/(integration|shim|snapshotter)(/|$$)')

# What `make run` runs; empty: images made here.
IMAGE :=
# What `make fuzz` gives each target.
FUZZTIME := 30s

# The version is the linker's affair, and git may refuse root somebody else's checkout.
# Signatures are checked without cgo and gpgme.
export GOFLAGS     := $(GOFLAGS) -buildvcs=false -tags=containers_image_openpgp
export BERTH_DEPS  := $(CURDIR)/$(DEPS)
export BERTH_BUILD := $(CURDIR)/$(BUILD)

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 13

# Neither needs the kubelet, which takes three minutes to build.
run bench: export WITHOUT := kubelet

run: deps build ## see it work: real containers under a private containerd (IMAGE=docker.io/library/...)
	@$(GO) run ./integration/demo -image '$(IMAGE)'

# The kubelet and the virtual machine take minutes to build on a fresh machine, and unit
# tests need neither.
test: ## all tests, as root; builds what they need
	@$(MAKE) --no-print-directory WITHOUT=kubelet deps build
	@nice -n 19 $(MAKE) --no-print-directory deps vm & \
	  $(MAKE) --no-print-directory WITHOUT=kubelet unit; status=$$?; \
	  wait $$! && exit $$status
	@$(MAKE) --no-print-directory integration vm-test

build: ## berth's programs, to .build/bin
	@mkdir -p $(BUILD)/bin
	$(GOBUILD) -o $(BUILD)/bin/ ./cmd/...

# Four at a time: those that drive containerd mostly wait.
unit: deps build ## tests of the packages
	$(GOTEST) -race -timeout 10m $(RACED)
	$(GOTEST) -timeout 10m -p 4 $(UNRACED)

race: deps build ## tests of the packages, all with the race detector: a quarter of an hour
	$(GOTEST) -race -timeout 20m -p 4 $(RACED) $(UNRACED)

integration: deps build ## tests against containerd and runc on this machine
	$(GOTEST) -timeout 20m ./integration/...

vm-test: deps vm build ## tests that need cgroup v2 or systemd, in a virtual machine
	integration/vm-test.sh

bench: deps build ## measure against the stock shim, to a table and .build/bench.json
	$(GO) run ./integration/bench

fuzz: ## each fuzz target for FUZZTIME
	@git ls-files '*_test.go' | xargs grep -lE '^func Fuzz' | while read -r file; do \
	  for name in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/p' "$$file"); do \
	    $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" || exit 1; \
	  done; \
	done

deps: ## what the tests and `make run` drive: containerd, runc, CNI plugins, a registry, a kubelet, images
	@integration/deps/apt.sh busybox-static libseccomp-dev pkg-config iptables gpg gpg-agent
	@integration/deps/build.sh $(DEPS)
	@integration/deps/newer.sh crun $(DEPS)
	@integration/deps/newer.sh criu $(DEPS)
	@$(MAKE) --no-print-directory images

deps-older: ## the oldest containerd that is supported, for BERTH_TEST_CONTAINERD (docs/testing.md)
	@integration/deps/build.sh $(DEPS)/older older

# Small images made here, for `ctr images import`.
images: $(IMAGES)/web.tar
	@:

$(IMAGES)/pause: integration/image/pause/pause.c
	@mkdir -p $(@D)
	gcc -static -Os -s -Wall -Werror -o $@ $<

$(IMAGES)/web: integration/web/main.go
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./integration/web

$(IMAGES)/web.tar: $(IMAGES)/pause $(IMAGES)/web $(filter-out %_test.go,$(wildcard integration/image/*.go integration/image/build/*.go))
	$(GO) run ./integration/image/build -programs $(IMAGES) -o $(IMAGES)

vm: ## the machine of vm-test
	@integration/deps/apt.sh mmdebstrap e2fsprogs cpio qemu-system-x86
	@integration/vm/build-image.sh $(DEPS)/vm

lint: ## what a change is checked against
	$(GO) vet ./...
	$(GO) tool staticcheck -checks all ./...
	@echo gofumpt; files=$$(git ls-files '*.go' | xargs $(GO) tool gofumpt -l -d); [ -z "$$files" ] || { echo "$$files"; exit 1; }
	$(GO) fix -diff ./...
	$(GO) mod tidy -diff
	@echo deadcode; dead=$$($(GO) tool deadcode -tags containers_image_openpgp -test ./...); [ -z "$$dead" ] || { echo "$$dead"; exit 1; }
	$(GO) test .

fmt: ## format the code
	git ls-files '*.go' | xargs $(GO) tool gofumpt -l -w

tidy: ## bring go.mod up to date, the pinned programs' too
	$(GO) mod tidy
	for m in integration/deps/*/go.mod; do (cd "$$(dirname "$$m")" && $(GO) mod tidy); done

install: build ## the programs to PREFIX/bin [/usr/local]
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BUILD)/bin/* $(DESTDIR)$(PREFIX)/bin/

clean: ## remove what was built from this source; .deps stays
	rm -rf $(BUILD)

# One thing after the other: two cores, and tests that measure.
.NOTPARALLEL:

.PHONY: help run test build unit race integration vm-test bench fuzz deps deps-older images vm lint fmt tidy install clean
