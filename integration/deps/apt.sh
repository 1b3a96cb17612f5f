#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# apt.sh PACKAGE...: installs those of the Debian packages that are missing.
set -euo pipefail

missing=()
for p; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "apt.sh: as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -qq -y --no-install-recommends "${missing[@]}" < /dev/null > /dev/null; }
# A fresh image has no package lists, an old one names packages that are gone.
install 2>/dev/null || { apt-get update -qq && install; }
