#!/bin/bash
# uml-build.sh OUTPUT: builds a User-Mode Linux kernel (a kernel that is an ordinary program) with soft-RoCE and siw
# inside from Debian's linux-source-6.1. About 4 minutes on two cores; uml.config lists what is switched on.
set -euo pipefail
(($# == 1)) || { echo 'usage: uml-build.sh OUTPUT' >&2; exit 127; }
here=$(cd "$(dirname "$0")" && pwd)
for tool in gcc make flex bison bc xz dpkg; do
  command -v "$tool" >/dev/null || {
    echo "uml-build.sh: $tool is missing: apt-get install gcc make flex bison bc libelf-dev xz-utils" >&2
    exit 127
  }
done
mkdir -p "$(dirname "$1")"
output=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq linux-source-6.1 -o APT::Sandbox::User=root
dpkg -x linux-source-6.1_*.deb unpacked
tar xf unpacked/usr/src/linux-source-6.1.tar.xz
rm -rf unpacked ./*.deb
build=(make -C linux-source-6.1 ARCH=um SUBARCH=x86_64 O="$work/um")
mkdir um
"${build[@]}" KCONFIG_ALLCONFIG="$here/uml.config" allnoconfig >/dev/null
"${build[@]}" olddefconfig >/dev/null
for option in CONFIG_RDMA_RXE CONFIG_RDMA_SIW CONFIG_HOSTFS CONFIG_OVERLAY_FS; do
  grep -q "^$option=y" um/.config || { echo "uml-build.sh: the kernel's configuration lost $option" >&2; exit 1; }
done
nice -n 10 "${build[@]}" -j"$(nproc)" linux >build.log 2>&1 || { tail -n 40 build.log; exit 1; }
strip -o "$output" um/linux
