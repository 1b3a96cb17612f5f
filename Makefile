# SPDX-License-Identifier: Apache-2.0

# External programs that tests and `make run` drive; berth's own binaries.
DEPS  := .deps
BUILD := .build

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

deps: ## build what tests and `make run` drive: containerd, runc, CNI plugins, a registry, ...
	@integration/deps/apt.sh busybox-static libseccomp-dev pkg-config
	@integration/deps/build.sh $(DEPS)
	@integration/deps/newer.sh crun $(DEPS)
	@integration/deps/newer.sh criu $(DEPS)

clean: ## remove what was built, except what `make deps` fetched
	rm -rf $(BUILD)

.PHONY: help deps clean
