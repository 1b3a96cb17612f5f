#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# newer.sh criu|crun DIR
#
# DIR/bin/criu or DIR/bin/crun from a later Debian release than 12, whose own are
# too old: criu 3.17 cannot start on kernels with a changed vDSO (6.13 and later),
# and crun 1.8.1 refuses the spec version that containerd 2.4 writes. The package
# is unpacked beside the libraries it needs and started with their loader: nothing
# is installed, and the system's apt settings stay as they are. The archive is the
# one that this machine's apt uses.
#
# crun refuses hybrid cgroups. On such a host start what executes it in a private
# mount namespace from which the cgroup2 mount has been removed.
set -euo pipefail

usage='usage: newer.sh criu|crun DIR'
what=${1:?$usage} dir=${2:?$usage}
case $what in
  criu) suite=forky program=usr/sbin/criu want=4.2 ;;   # 4.1, trixie's, fails on TCP sockets
  crun) suite=trixie program=usr/bin/crun want=1.21 ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
mkdir -p "$dir"/{bin,stamps}
dir=$(cd "$dir" && pwd)
stamp=$dir/stamps/$what
if [ -f "$stamp" ] && [ "$(<"$stamp")" = "$suite $want $dir" ]; then exit; fi
echo "fetching $what from Debian $suite"

# apt with settings of its own, so that the machine's package state is not touched.
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/{lists/partial,archives/partial}
: > "$apt/status"
archive() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | sed -n 1p; }
archive=$(archive)
[ -n "$archive" ] || { apt-get -qq update; archive=$(archive); }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $archive $suite main" > "$apt/sources.list"
options=(-qq -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status"
  -o Dir::Cache="$apt" -o Dir::Cache::archives="$apt/archives"
  -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Acquire::Languages=none)
apt-get "${options[@]}" update
apt-get "${options[@]}" -y --no-install-recommends --download-only install "$what" < /dev/null > /dev/null

tree=$dir/tree-$what
rm -rf "$tree"
mkdir -p "$tree"
for package in "$apt"/archives/*.deb; do dpkg -x "$package" "$tree"; done
lib=$tree/usr/lib/x86_64-linux-gnu
cat > "$dir/bin/$what" <<WRAPPER
#!/bin/sh
exec $lib/ld-linux-x86-64.so.2 --library-path $lib $tree/$program "\$@"
WRAPPER
chmod +x "$dir/bin/$what"
got=$("$dir/bin/$what" --version | head -1)
case $got in
  *" $want"*) ;;
  *) echo "newer.sh: $suite has $got, wanted $want" >&2 ;;   # a testing suite moves on
esac
printf '%s' "$suite $want $dir" > "$stamp"
