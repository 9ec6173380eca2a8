#!/usr/bin/env bash
# Debian's cloud kernel and nbd-client for a small guest, taken out of their packages (installing
# the kernel would run the hooks of a host): fetched once. Prints the folder that has
#
#   vmlinuz              the kernel
#   lib/modules/VERSION  its modules, with modules.dep
#   sbin/nbd-client      and the libraries that it needs beside those of this machine
#
#   tests/interop/guest_kernel.sh [DIRECTORY]      default: ~/.cache/platter/guest-kernel
#
# Needs APT, busybox-static and 110 MB.
set -euo pipefail

home=$(getent passwd "$(id -u)" | cut -d: -f6)
dir=${1:-$home/.cache/platter/guest-kernel}
if [[ -f $dir/vmlinuz ]]; then
  echo "$dir"
  exit 0
fi
exec 3>&1 1>&2
mkdir -p "$(dirname -- "$dir")"
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
# APT downloads as another user, who has to be let in.
chmod 755 .

kernel=
download() {
  kernel=$(apt-cache depends --important linux-image-cloud-amd64 |
    sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
  [[ -n $kernel ]] &&
    apt-get download -q "$kernel" nbd-client libnl-3-200 libnl-genl-3-200
}
download || { apt-get update -q && download; } || {
  echo "guest_kernel.sh: no $kernel and nbd-client to be had from APT"
  exit 1
}
mkdir root
for package in *.deb; do dpkg-deb -x "$package" root; done
version=${kernel#linux-image-}
busybox depmod -b "$work/root" "$version"
mkdir ready
mv "root/boot/vmlinuz-$version" ready/vmlinuz
mv root/lib root/sbin ready
# Another may have been as quick.
mv -T ready "$dir" 2>/dev/null || [[ -f $dir/vmlinuz ]]
echo "$dir" >&3
