# SPDX-License-Identifier: Apache-2.0

# External programs that tests and `make run` drive; berth's own binaries.
DEPS  := .deps
BUILD := .build
GO    := go

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

deps: ## build what tests and `make run` drive: containerd, runc, CNI plugins, a registry, ...
	@integration/deps/apt.sh busybox-static libseccomp-dev pkg-config
	@integration/deps/build.sh $(DEPS)
	@integration/deps/newer.sh crun $(DEPS)
	@integration/deps/newer.sh criu $(DEPS)
	@$(MAKE) --no-print-directory images

# Small images made here, for `ctr images import`: busybox, pause and web.
IMAGES := $(DEPS)/images
images: $(IMAGES)/web.tar
	@:

$(IMAGES)/pause: integration/image/pause/pause.c
	@mkdir -p $(@D)
	gcc -static -Os -s -Wall -Werror -o $@ $<

$(IMAGES)/web: integration/web/main.go
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./integration/web

$(IMAGES)/web.tar: $(IMAGES)/pause $(IMAGES)/web $(wildcard integration/image/*.go integration/image/build/*.go)
	$(GO) run ./integration/image/build -programs $(IMAGES) -o $(IMAGES)

clean: ## remove what was built, except what `make deps` fetched
	rm -rf $(BUILD)

.PHONY: help deps images clean
