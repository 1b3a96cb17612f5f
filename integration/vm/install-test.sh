#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# install-test.sh DEPS BIN
#
# Inside of the virtual machine, under systemd: `berth install --proxy --restart` on a
# host with a containerd, containers on what was installed, and `berth uninstall`, after
# which the host is as it was but for the layers. Changes the machine it runs on.
set -euo pipefail
deps=$1 bin=$2

say() { echo "install-test: $*"; }
trap 'say "failed in line $LINENO"; journalctl --no-pager -u berthd-proxy -u containerd | tail -40' ERR

files() { find /etc /opt /usr /var/lib -xdev -path /var/lib/containerd -prune -o -path /var/lib/systemd -prune -o -type d -printf '%p\n' -o -printf '%p %m %l %T@\n' | sort; }
# Not by grep -q, which ends what it has read enough of.
served() { [[ $(ctr snapshots --snapshotter berth ls) == *$'\n'"stays "* ]]; }

install -m 755 "$deps"/bin/{containerd,ctr,runc} /usr/local/bin/
cat > /etc/systemd/system/containerd.service <<'EOF'
[Service]
Type=notify
ExecStart=/usr/local/bin/containerd
KillMode=process
Delegate=yes
EOF
systemctl daemon-reload
systemctl start containerd
files > /run/before

say install
"$bin"/berth install --proxy --restart
systemctl is-active berthd-proxy.socket berthd-proxy.service containerd.service
ctr images import --snapshotter berth "$deps/images/busybox.tar"
run=(ctr run --snapshotter berth --runtime io.containerd.berth.v1)
[ "$("${run[@]}" --rm berth.test/busybox:1 hello echo hello)" = hello ]
"${run[@]}" -d berth.test/busybox:1 stays sleep 100000

say restart
pid=$(systemctl show -P MainPID berthd-proxy)
systemctl reload berthd-proxy
served
[ "$(systemctl show -P MainPID berthd-proxy)" = "$pid" ]
systemctl restart berthd-proxy
served
[ "$(ctr tasks exec --exec-id e stays echo there)" = there ]
[[ $("$bin"/berth install --proxy --restart) == *'nothing has changed'* ]]

say uninstall
if "$bin"/berth uninstall --restart 2> /run/refusal; then
  say "not refused, with a container"
  exit 1
fi
grep -q 'containerd-shim-berth-v1 runs for default/stays' /run/refusal
systemctl is-active berthd-proxy.service
ctr tasks kill -s KILL stays
until ctr tasks rm stays; do sleep 0.2; done 2> /dev/null
ctr containers rm stays
"$bin"/berth uninstall --restart
systemctl is-active containerd.service
rm -r /var/lib/berth # the layers
files > /run/after
diff /run/before /run/after
say passed
