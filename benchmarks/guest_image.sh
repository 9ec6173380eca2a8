#!/usr/bin/env bash
# Builds a real Debian 12 disk image (4 GiB, about 650 MB of data, boots from BIOS to a login prompt
# on the serial console) for benchmarks and boot tests, once, and prints its path.
#
#   benchmarks/guest_image.sh [DIRECTORY]      default: ~/.cache/platter/guest
#
# Needs root (a loop device), mmdebstrap, parted, e2fsprogs and about 90 seconds the first time.
set -euo pipefail

dir=${1:-$HOME/.cache/platter/guest}
image=$dir/debian12.raw
if [[ -f $image ]]; then
  echo "$image"
  exit 0
fi
mkdir -p "$dir"
exec 3>&1 1>&2

for tool in mmdebstrap:mmdebstrap parted:parted mkfs.ext4:e2fsprogs losetup:mount; do
  command -v "${tool%%:*}" >/dev/null || apt-get install -y --no-install-recommends "${tool##*:}"
done

work=$(mktemp -d "$dir/build.XXXXXX")
loop=
cleanup() {
  mountpoint -q "$work/mnt" && umount "$work/mnt"
  [[ -z $loop ]] || losetup -d "$loop"
  rm -rf "$work"
}
trap cleanup EXIT

tarball=$dir/rootfs.tar
[[ -f $tarball ]] || {
  mmdebstrap --variant=minbase \
    --include=linux-image-cloud-amd64,systemd-sysv,udev,grub-pc-bin,grub2-common,iproute2,openssh-server,less,vim-tiny,perl,python3,gcc \
    bookworm "$work/rootfs.tar"
  mv "$work/rootfs.tar" "$tarball"
}

truncate -s 4G "$work/disk.raw"
parted -s "$work/disk.raw" mklabel msdos mkpart primary ext4 1MiB 100%
loop=$(losetup --find --show --offset 1MiB "$work/disk.raw")
mkfs.ext4 -q "$loop"
uuid=$(blkid -o value -s UUID "$loop")
mkdir "$work/mnt"
mount "$loop" "$work/mnt"
tar -xf "$tarball" -C "$work/mnt"
echo "UUID=$uuid / ext4 defaults 0 1" >"$work/mnt/etc/fstab"
echo deb-guest >"$work/mnt/etc/hostname"
ln -sf /lib/systemd/system/serial-getty@.service \
  "$work/mnt/etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service"
kernels=("$work"/mnt/boot/vmlinuz-*) initrds=("$work"/mnt/boot/initrd.img-*)
kernel=$(basename "${kernels[-1]}") initrd=$(basename "${initrds[-1]}")
mkdir -p "$work/mnt/boot/grub"
cat >"$work/mnt/boot/grub/grub.cfg" <<CFG
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
search --no-floppy --fs-uuid --set=root $uuid
linux /boot/$kernel root=UUID=$uuid ro console=ttyS0
initrd /boot/$initrd
boot
CFG
# grub-install does not find the loop device; boot.img in the MBR and core.img in the gap behind it
# are all that it would write.
chroot "$work/mnt" grub-mkimage -O i386-pc -o /tmp/core.img -p '(hd0,msdos1)/boot/grub' \
  biosdisk part_msdos ext2 normal serial search search_fs_uuid linux echo configfile
cp "$work/mnt/usr/lib/grub/i386-pc/boot.img" "$work/mnt/tmp/core.img" "$work/"
rm "$work/mnt/tmp/core.img"
umount "$work/mnt"
losetup -d "$loop"
loop=
dd if="$work/boot.img" of="$work/disk.raw" bs=440 count=1 conv=notrunc status=none
dd if="$work/core.img" of="$work/disk.raw" bs=512 seek=1 conv=notrunc status=none
mv "$work/disk.raw" "$image"
echo "$image" >&3
