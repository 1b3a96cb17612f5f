#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# vm-run.sh [options] -- COMMAND [ARG...]
# vm-run.sh [options] -c 'SHELL SCRIPT'
#
# Runs a command as root in a throw-away virtual machine whose only cgroup
# hierarchy is v2, and exits with the command's exit code. stdout and stderr of
# the command arrive, merged, on stdout as they are written. Nothing the command does to
# the machine's disk survives; what it writes to a shared folder does.
#
#   -k FLAVOUR    kernel: a folder of the image [the first built]
#   -S            boot systemd (cgroups through systemd, D-Bus, units)
#   -s DIR[:ro]   share a host folder at the same path in the machine; repeatable
#   -C DIR        start there [the current folder where it is shared, else the
#                 first shared folder, else /root]
#   -e NAME=VALUE environment for the command; repeatable
#   -x SIZE[:FILE]  add an empty disk, /dev/vdc and on; repeatable. FILE is the disk
#                 and stays, as the machine left it when its power went
#   -m MIB        memory [2048]
#   -j N          processors [2]
#   -n            network: NAT to the host's network through qemu
#   -t SECONDS    give up after [300]
#   -i DIR        image of build-image.sh [vm in $BERTH_DEPS, else in the checkout's .deps]
#   -a APPEND     more kernel arguments
#   -K            use KVM [plain emulation, which works anywhere]
#   -v            show the machine's console on stderr
#
# Exit codes of its own: 124 timed out, 125 the machine failed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
image=${BERTH_DEPS:-$here/../../.deps}/vm
flavour= systemd= start= mem=2048 cpus=2 network= limit=300 append= accel=tcg,thread=multi verbose= script=
shares=() disks=() envs=()
usage() { sed -n '4,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
while getopts k:Ss:C:e:x:m:j:nt:i:a:Kvc:h opt; do
  case $opt in
    k) flavour=$OPTARG ;; S) systemd=1 ;; s) shares+=("$OPTARG") ;; C) start=$OPTARG ;;
    e) envs+=("$OPTARG") ;; x) disks+=("$OPTARG") ;; m) mem=$OPTARG ;; j) cpus=$OPTARG ;;
    n) network=1 ;; t) limit=$OPTARG ;; i) image=$OPTARG ;; a) append=$OPTARG ;;
    K) accel=kvm ;; v) verbose=1 ;; c) script=$OPTARG ;; *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || [ -n "$script" ] || usage
[ -f "$image/stamp" ] || { echo "vm-run.sh: no image in $image: run make vm" >&2; exit 125; }
flavour=${flavour:-$(head -1 "$image/flavours")}
# Emulated, a plain x86-64-v2 processor is twice as fast as "max": no AVX, SMAP
# or five-level pages to emulate, and the guest trusts its TSC. (With "max" it
# falls back to the HPET, whose every read leaves the guest.)
cpu=Nehalem
[ "$accel" != kvm ] || cpu=host
cpu=${VM_CPU:-$cpu}

tmp=$(mktemp -d)
pids=()
cleanup() {
  [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
  rm -rf "$tmp"
}
trap cleanup EXIT

# --- what the guest reads from /dev/vdb -------------------------------------
share_list= n=0 first= here_shared=
qemu=()
for s in ${shares[@]+"${shares[@]}"}; do
  mode=rw
  case $s in *:ro) mode=ro s=${s%:ro} ;; *:rw) s=${s%:rw} ;; esac
  [ -d "$s" ] || { echo "vm-run.sh: no folder $s" >&2; exit 125; }
  s=$(cd "$s" && pwd)
  share_list+="$s:$mode"$'\n'
  first=${first:-$s}
  [[ $PWD/ != "$s"/* ]] || here_shared=$PWD
  # 9p, not virtiofs: with virtiofs another process writes to the machine's
  # memory, the emulator does not see that code there has changed, and programs
  # started from the share crash at random.
  qemu+=(-fsdev "local,id=fs$n,path=${s//,/,,},security_model=none,multidevs=remap$([ $mode = rw ] || echo ,readonly=on)"
    -device "virtio-9p-pci,fsdev=fs$n,mount_tag=share$n")
  n=$((n + 1))
done
start=${start:-${here_shared:-$first}}
{
  printf 'SHARES=%q\n' "$share_list"
  printf 'NETWORK=%q\n' "$network"
  printf 'START=%q\n' "$start"
  for e in ${envs[@]+"${envs[@]}"}; do printf 'export %s=%q\n' "${e%%=*}" "${e#*=}"; done
} > "$tmp/config"
if [ -n "$script" ]; then printf '%s\n' "$script"; else printf '%q ' "$@"; echo; fi > "$tmp/command"
tar -cf "$tmp/control.tar" -C "$tmp" config command -C "$here" guest-init guest-run

# --- disks -------------------------------------------------------------------
disk() { # FILE FORMAT EXTRA
  qemu+=(-drive "file=$1,format=$2,if=none,id=d$dn,$3" -device "virtio-blk-pci,drive=d$dn,serial=d$dn")
  dn=$((dn + 1))
}
dn=0
disk "$image/rootfs.ext4" raw snapshot=on,cache=unsafe      # writes go to $TMPDIR, then away
disk "$tmp/control.tar" raw readonly=on
for spec in ${disks[@]+"${disks[@]}"}; do
  size=${spec%%:*} file=$tmp/disk$dn
  [ "$spec" = "$size" ] || file=${spec#*:}
  truncate -s "$size" "$file"
  disk "$file" raw cache=unsafe,discard=unmap
done

# --- machine -----------------------------------------------------------------
if [ -n "$network" ]; then
  qemu+=(-netdev user,id=n0 -device virtio-net-pci,netdev=n0)
fi
if [ -n "$systemd" ]; then append="vm.systemd $append"; else append="vm.init=/vm/guest-init $append"; fi
boot() { # boots it and waits; the exit code of qemu is in code
  rm -f "$tmp"/{out,console,exit}
  mkfifo "$tmp/out"
  cat "$tmp/out" &
  reader=$!
  code=0
  TMPDIR=$tmp setpriv --pdeathsig TERM timeout -k 5 "$limit" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -M q35 -accel "$accel" -cpu "$cpu" -smp "$cpus" -m "$mem" \
    -kernel "$image/$flavour/vmlinuz" -initrd "$image/$flavour/initrd.gz" \
    -append "console=ttyS0 quiet panic=-1 softlockup_panic=1 watchdog_thresh=30 tsc=reliable mitigations=off init_on_alloc=0 audit=0 net.ifnames=0 $append" \
    -chardev "file,id=con,path=$tmp/console" -serial chardev:con \
    -device virtio-serial-pci \
    -chardev "file,id=out,path=$tmp/out" -device virtserialport,chardev=out,name=out \
    -chardev "file,id=exit,path=$tmp/exit" -device virtserialport,chardev=exit,name=exit \
    -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
    "${qemu[@]}" < /dev/null 2> "$tmp/qemu.log" &
  machine=$!
  pids=("$machine")
  wait "$machine" || code=$?
  # The reader ends when qemu closes the fifo; if qemu never opened it, end it.
  [ -s "$tmp/exit" ] || kill "$reader" 2>/dev/null || true
  wait "$reader" 2>/dev/null || true
}
# The kernel changes its own code while it starts, and emulated processors sometimes run
# into the breakpoint that it has put there meanwhile. Nothing has happened by then.
fell() {
  [ ! -s "$tmp/exit" ] && grep -q 'Kernel panic' "$tmp/console" && ! grep -q 'guest-run: begins' "$tmp/console"
}
trap 'exit 125' INT TERM QUIT HUP         # cleanup ends the machine
boot
for _ in 1 2; do
  fell || break
  echo "vm-run.sh: the kernel did not get as far as the command; once more" >&2
  boot
done
[ -z "$verbose" ] || cat "$tmp/console" >&2
if [ -s "$tmp/exit" ]; then exit "$(<"$tmp/exit")"; fi
{
  echo "vm-run.sh: the machine ended without an exit code (qemu: $code)"
  cat "$tmp/qemu.log"
  [ -n "$verbose" ] || tail -n 20 "$tmp/console" 2>/dev/null || true
} >&2
[ "$code" = 124 ] || code=125
exit "$code"
