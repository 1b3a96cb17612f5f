#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# build.sh DIR [older]
#
# Builds the programs that berth's tests and `make run` drive, from the Go
# modules pinned by the go.mod files beside this script, into DIR/bin and
# DIR/cni. Nothing is installed on the host. A program whose pin has not changed
# is not built again; DIR/stamps remembers what was built. WITHOUT="NAME..." leaves
# groups out: the kubelet takes as long as all the others together. "older"
# builds the oldest containerd that berth supports, and nothing else.
set -euo pipefail
shopt -s nullglob

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?usage: build.sh DIR [older]}
mkdir -p "$dir"/{bin,cni,stamps}
dir=$(cd "$dir" && pwd)
# The machine's own settings may name another toolchain or vendor mode.
export GOFLAGS=-buildvcs=false GOWORK=off

version() { # GROUP MODULE: the pinned version
  awk -v m="$2" '{sub(/^require /, "")} $1 == m {print $2; exit}' "$here/$1/go.mod"
}

# group NAME MODULE FOLDER [FLAG...] -- PACKAGE...
# Programs are named after the last element of their package.
group() {
  local name=$1 module=$2 folder=$3 flags=() stamp want v
  shift 3
  case " ${WITHOUT:-} " in *" $name "*) return ;; esac
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  v=$(version "$name" "$module")
  want=$(printf '%s\n' "$v" "$(go env GOVERSION)" "${CGO_ENABLED:-}" "${flags[*]}" "$*"; cat "$here/$name/go.mod" "$here/$name"/*.go)
  stamp=$dir/stamps/${!#}        # named after the last program of the group
  stamp=$dir/stamps/${stamp##*/}
  if [ -f "$stamp" ] && [ "$(<"$stamp")" = "$want" ]; then return; fi
  echo "building $name $v"
  # -s -w and -trimpath as the distributed binaries have it: what is measured
  # against berth should be what people run.
  (cd "$here/$name" && go build -trimpath "${flags[@]}" -o "$dir/$folder/" "$@")
  printf '%s\n' "$want" > "$stamp"
}

containerd=github.com/containerd/containerd/v2
tags=urfave_cli_no_docs,static_build
daemon() { # GROUP: containerd and ctr
  local v
  v=$(version "$1" $containerd)
  # The btrfs snapshotter alone needs cgo and its headers.
  CGO_ENABLED=0 group "$1" $containerd bin -tags $tags,no_btrfs \
    -ldflags "-s -w -X $containerd/version.Version=$v -X $containerd/version.Package=$containerd" -- \
    $containerd/cmd/containerd $containerd/cmd/ctr
}
if [ "${2:-}" = older ]; then
  daemon containerd-2.3
  exit
fi
daemon containerd
# no_grpc: as containerd's own Makefile builds the shim. Comparisons need it.
linked="-s -w -X $containerd/version.Version=$(version containerd $containerd) -X $containerd/version.Package=$containerd"
CGO_ENABLED=0 group containerd $containerd bin -tags $tags,no_grpc -ldflags "$linked" -- \
  $containerd/cmd/containerd-shim-runc-v2

runc=github.com/opencontainers/runc
CGO_ENABLED=1 group runc $runc bin -tags seccomp,urfave_cli_no_docs,netgo,osusergo -ldflags "-s -w -extldflags -static" -- $runc

cni=github.com/containernetworking/plugins
CGO_ENABLED=0 group cni $cni cni \
  -ldflags "-s -w -X $cni/pkg/utils/buildversion.BuildVersion=$(version cni $cni)" -- \
  $cni/plugins/main/bridge $cni/plugins/main/loopback $cni/plugins/ipam/host-local $cni/plugins/meta/portmap

# A main package of our own, beside its go.mod.
CGO_ENABLED=0 group registry github.com/distribution/distribution/v3 bin -ldflags "-s -w" -- \
  github.com/berthd/berth/integration/deps/registry

kubernetes=k8s.io/kubernetes
v=$(version kubelet $kubernetes)
minor=${v#v1.}
component=k8s.io/component-base/version
CGO_ENABLED=0 group kubelet $kubernetes bin \
  -ldflags "-s -w -X $component.gitVersion=$v -X $component.gitMajor=1 -X $component.gitMinor=${minor%%.*} -X $component.gitTreeState=clean" -- \
  $kubernetes/cmd/kubelet
