#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# build-image.sh DIR
#
# Builds, from Debian packages only, what vm-run.sh boots:
#   DIR/rootfs.ext4           Debian 12, minimal, with systemd and what containers need
#   DIR/<flavour>/vmlinuz     one kernel per flavour in $KERNELS
#   DIR/<flavour>/initrd.gz   busybox and virtio modules: mounts /dev/vda, unpacks
#                             /dev/vdb (guest-init, guest-run, the command) to /vm
# Does nothing when DIR already holds the image of these settings.
#
# Needs root (mmdebstrap changes root) and the packages mmdebstrap, e2fsprogs and
# cpio. Nothing is mounted on the host and no loop device is used.
#
# Environment:
#   KERNELS   flavour=package pairs; a meta package stands for the newest real one.
#             The first flavour is vm-run.sh's default.
#   PACKAGES  added to the image, comma separated
#   SIZE      size of the root file system (sparse)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build-image.sh DIR}
KERNELS=${KERNELS:-"6.12=linux-image-6.12-amd64"}
PACKAGES=${PACKAGES:-}
SIZE=${SIZE:-4G}
suite=bookworm
base=systemd,systemd-sysv,dbus,kmod,iproute2,iptables,procps,e2fsprogs,xfsprogs,apparmor,busybox-static,ca-certificates

stamp=$(echo "$KERNELS $PACKAGES $SIZE"; sha256sum < "$0"; sha256sum < "$here/guest-run.service")
if [ -f "$out/stamp" ] && [ "$(<"$out/stamp")" = "$stamp" ]; then exit; fi
echo "building the image of the test machine"

# The archives that this machine itself uses, as its apt knows them.
sources() {
  apt-get indextargets --format "deb \$(REPO_URI) \$(CODENAME) \$(COMPONENT)" 'Created-By: Packages' |
    awk -v s=$suite '$3 == s || $3 == s "-updates" || $3 == s "-security"' | grep ' main$' | sort -u
}
list=$(sources)
# Also the lists may be missing, or too old for the kernel's meta package.
[ -n "$list" ] && apt-cache show linux-image-6.12-amd64 > /dev/null 2>&1 || { apt-get -qq update; list=$(sources); }

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# --- root file system ------------------------------------------------------
root=$work/root
mmdebstrap --quiet --variant=minbase --include="$base${PACKAGES:+,$PACKAGES}" \
  --aptopt='Apt::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  "$suite" "$root" - <<< "$list"

# --- kernels ---------------------------------------------------------------
real_kernel() { # meta package -> real package
  local dep
  case $1 in
    linux-image-[0-9]*.[0-9]*.[0-9]*) echo "$1"; return ;;
  esac
  dep=$(apt-cache depends --important "$1" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
  echo "${dep:?no kernel for $1}"
}

: > "$out/flavours"
mkdir -p "$root/usr/lib/modules"
for pair in $KERNELS; do
  flavour=${pair%%=*}
  pkg=$(real_kernel "${pair#*=}")
  echo "kernel $flavour: $pkg"
  mkdir -p "$work/deb" "$work/k-$flavour" "$out/$flavour"
  (cd "$work/deb" && apt-get -qq -o APT::Sandbox::User=root download "$pkg")
  dpkg -x "$work"/deb/"$pkg"_*.deb "$work/k-$flavour"
  release=${pkg#linux-image-}
  cp -a "$work/k-$flavour"/lib/modules/"$release" "$root/usr/lib/modules/"
  chroot "$root" depmod "$release"
  cp "$work/k-$flavour/boot/vmlinuz-$release" "$out/$flavour/vmlinuz"
  cp "$work/k-$flavour/boot/config-$release" "$out/$flavour/config"

  # initramfs: just enough to find the root disk.
  ird=$work/ird-$flavour
  mkdir -p "$ird"/{bin,dev,proc,sys,root,mod}
  cp "$root/bin/busybox" "$ird/bin/busybox"
  for m in virtio_pci virtio_blk crc32c_generic ext4 quota_v2; do   # quota_v2: the root disk has project quota
    chroot "$root" modprobe -S "$release" --show-depends "$m" || echo "no module $m" >&2
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r ko; do
    cp "$root$ko" "$ird/mod/"
    basename "$ko" >> "$ird/mod/list"
  done
  cat > "$ird/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r m; do $b insmod /mod/$m; done < /mod/list
i=0
while [ ! -b /dev/vda -o ! -b /dev/vdb ] && [ $i -lt 100 ]; do $b sleep 0.05; i=$((i+1)); done
$b mount -t ext4 -o rw,prjquota /dev/vda /root || { echo "no root disk"; $b poweroff -f; }
$b mkdir -p /root/vm
$b tar -xf /dev/vdb -C /root/vm || { echo "no control disk"; $b poweroff -f; }
for d in dev proc sys; do $b mount --move /$d /root/$d; done
init=/sbin/init
for a in $($b cat /root/proc/cmdline); do
  case $a in vm.init=*) init=${a#vm.init=} ;; esac
done
exec $b switch_root /root $init
INIT
  chmod +x "$ird/init"
  (cd "$ird" && find . | cpio -o -H newc --quiet | gzip -1) > "$out/$flavour/initrd.gz"
  echo "$flavour" >> "$out/flavours"
done

# --- settings ---------------------------------------------------------------
install -m 644 "$here/guest-run.service" "$root/etc/systemd/system/guest-run.service"
ln -sf /etc/systemd/system/guest-run.service \
  "$root/etc/systemd/system/multi-user.target.wants/guest-run.service"
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
# Slow or pointless in a throw-away machine.
for u in systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer \
  e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-pstore.service quota.service quotarpc.service \
  getty@tty1.service serial-getty@ttyS0.service systemd-networkd-wait-online.service \
  systemd-firstboot.service systemd-update-utmp.service systemd-random-seed.service; do
  ln -sf /dev/null "$root/etc/systemd/system/$u"
done
: > "$root/etc/fstab"
echo berth-vm > "$root/etc/hostname"
printf '127.0.0.1 localhost berth-vm\n' > "$root/etc/hosts"
echo 2f2d0d5f1d6b4c0e8b1f2a3c4d5e6f70 > "$root/etc/machine-id"
mkdir -p "$root/mnt/share"

truncate -s "$SIZE" "$work/rootfs.ext4"
mke2fs -q -t ext4 -O quota,project -E quotatype=prjquota,lazy_itable_init=1,root_owner=0:0 \
  -I 256 -m 0 -d "$root" "$work/rootfs.ext4"
mv "$work/rootfs.ext4" "$out/rootfs.ext4"      # machines that run keep the old one
printf '%s\n' "$stamp" > "$out/stamp"
