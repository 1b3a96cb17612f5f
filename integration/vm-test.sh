#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# vm-test.sh [GO TEST FLAG...]
#
# Runs the tests that depend on cgroups or project quotas in the virtual machine, whose
# only hierarchy is cgroup v2: packages' own tests, shims, pods, and some again under
# systemd; with BERTH_TEST_FULL=1 a kubelet's pods and the whole of the snapshotter's
# conformance suite too. Needs `make deps vm build`. Flags are passed to the integration
# tests, for example -test.run=TestCgroupOOM; without them each machine runs its own
# selection.
#
# Emulation is slow: a container's life takes a second or two, so this is a
# selection, with -test.short, and without the race detector.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/.." && pwd)
deps=${BERTH_DEPS:-$top/.deps}
build=${BERTH_BUILD:-$top/.build}

mkdir -p "$build"
# Static: the machine's C library is not the host's.
(cd "$here" && CGO_ENABLED=0 go test -c -o "$build/integration.test" .)
(cd "$top/snapshotter" && CGO_ENABLED=0 go test -c -o "$build/snapshotter.test" .)
(cd "$top/plugin/proxy" && CGO_ENABLED=0 go test -c -o "$build/proxy.test" .)
units=(cgroup rootfs pod)
for unit in "${units[@]}"; do
  (cd "$top/shim/$unit" && CGO_ENABLED=0 go test -c -o "$build/$unit.test" .)
done

plain='^Test(StateTable|MissingProgram|CgroupStats|CgroupOOM|Update|DeathWhilePaused|KillAll|SharedPIDNamespace|TaskOfKilledShim|CtrTasks|DeleteVerb)$'
pods='^TestPods$/^pauseless$/^(life|plain|stats|update|out_of_memory|sysctls|user_namespace|shared_processes)$'
pods+='|^TestPods$/^berth$/^(life|stats|update|out_of_memory)$'
kubelet='^TestKubelet$/^berth_pauseless$'
systemd='^Test(CgroupSystemd|CgroupOOM|ImagePullScope)$'

shares=()
for dir in "$top" "$deps" "$build"; do
  # Below the checkout by default, and then shared with it.
  case $dir in "$top" | "$top"/*) [ "$dir" = "$top" ] || continue ;; esac
  shares+=(-s "$dir:ro")
done

# machine RUN RUNTIME [VM FLAG...]
machine() {
  local run=$1 runtime=$2
  shift 2
  "$here/vm/vm-run.sh" -t 600 "$@" "${shares[@]}" -C "$here" \
    -e BERTH_DEPS="$deps" -e BERTH_BUILD="$build" -e BERTH_TEST_RUNTIME="$runtime" -- \
    "$build/integration.test" -test.short -test.v "-test.run=$run" "${extra[@]}"
}

# shim: the tests of the packages named in units, each in its folder.
shim() {
  "$here/vm/vm-run.sh" -t 300 -s "$top" -s "$build:ro" -c "
    status=0
    for unit in ${units[*]}; do
      echo shim/\$unit
      cd '$top/shim/'\$unit
      '$build/'\$unit.test -test.short -test.v || status=\$?
    done
    exit \$status"
}

# quotas: the snapshotter on the file systems that have project quotas; the host's
# kernel may have none. The machine's /tmp is a tmpfs.
quotas() {
  # The proxy comes first, on a kernel that has not loaded overlayfs. One case takes a
  # minute through it.
  local skip='^TestSuite$/quota/128LayersMount' limit=600
  [ -z "${BERTH_TEST_FULL:-}" ] || skip='^$' limit=1200
  "$here/vm/vm-run.sh" -t $limit -s "$build:ro" -x 2G -e BERTH_TEST_QUOTA=1 -c "
    set -e
    mkfs.xfs -q /dev/vdc
    mkdir /ext4 /xfs
    mount -o prjquota /dev/vdc /xfs
    for dir in /ext4 /xfs; do
      echo \$dir
      TMPDIR=\$dir '$build/proxy.test' -test.run='^TestSuite\$/quota' -test.skip='$skip'
      TMPDIR=\$dir '$build/snapshotter.test' -test.run=/quota
    done"
}

# power: the machine loses its power while the snapshotter works (it ends without
# syncing its disks), and the next one looks at what is there.
power() {
  local test="$build/snapshotter.test" disks status=0
  disks=$(mktemp -d)
  "$here/vm/vm-run.sh" -t 200 -s "$build:ro" -x "1G:$disks/ext4" -x "1G:$disks/xfs" -c "
    set -e
    mkfs.ext4 -q -O quota,project -E quotatype=prjquota /dev/vdc
    mkfs.xfs -q /dev/vdd
    for fs in vdc vdd; do
      mkdir /\$fs
      mount -o prjquota /dev/\$fs /\$fs
      BERTH_TEST_CRASH_ROOT=/\$fs/root BERTH_TEST_CRASH_WAY=quota '$test' -test.run='^TestCrashWork\$' > /dev/null 2>&1 &
    done
    sleep 3" || status=$?
  "$here/vm/vm-run.sh" -t 200 -s "$build:ro" -x "1G:$disks/ext4" -x "1G:$disks/xfs" -c "
    set -e
    for fs in vdc vdd; do
      mkdir /\$fs
      mount -o prjquota /dev/\$fs /\$fs
      echo \$fs: \$(wc -l < /\$fs/root.done) layers
      BERTH_TEST_CRASH_ROOT=/\$fs/root BERTH_TEST_CRASH_WAY=quota '$test' -test.run='^TestCrashCheck\$'
    done" || status=$?
  rm -rf "$disks"
  return $status
}

# installed: berth install and uninstall on a host with systemd, which this machine is.
installed() {
  "$here/vm/vm-run.sh" -t 300 -S "${shares[@]}" -- "$here/vm/install-test.sh" "$deps" "$build/bin"
}

extra=("$@")
status=0
if [ $# -eq 0 ]; then
  echo "cgroup v2: packages of the shim"
  shim || status=$?
  echo "project quotas"
  quotas || status=$?
  echo "power loss"
  power || status=$?
  echo "systemd: berth install"
  installed || status=$?
  echo "cgroup v2: pods"
  machine "$pods" berth || status=$?
  if [ -n "${BERTH_TEST_FULL:-}" ]; then
    echo "cgroup v2: pods of a kubelet"
    machine "$kubelet" berth -m 3072 || status=$?
  fi
fi
echo "cgroup v2"
machine "$plain" berth || status=$?
echo "cgroup v2 under systemd"
machine "$systemd" berth -S || status=$?
exit $status
