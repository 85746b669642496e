#!/bin/bash
# vm.sh COMMAND [ARGUMENTS...]: runs a command as root in a throw-away virtual machine that has soft-RoCE.
#
# The kernel is Debian's own (linux-image-amd64, fetched once), run by QEMU's software emulation: no hardware
# virtualisation, no modules on this machine and no network are needed. The machine's root is this machine's, read-only
# over 9p, under an overlay in memory; what the command writes to /out comes back in $OUT.
#
#   exit status   the command's own; 124: it took longer than LIMIT seconds; 125: the machine died; 127: something is
#   missing
#   environment   LIMIT=600   SMP=2   MEM=2G   OUT=a new folder   VM_CACHE=~/.cache/tartan-vm   VM_ENV='NAME=value …'
#
# The clock is the HPET: the TSC is calibrated at boot, and on a busy machine wrong by a factor of up to four.
# On a busy machine the kernel's check of its timer fails ("IO-APIC + timer doesn't work"): it is left out.
# qemu64 is the emulation's fastest CPU; it lacks AVX2, so coding runs on the portable kernel there.
set -euo pipefail
limit=${LIMIT:-600} smp=${SMP:-2} mem=${MEM:-2G} cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tartan-vm}
here=$PWD
(($# > 0)) || { echo 'usage: vm.sh COMMAND [ARGUMENTS...]' >&2; exit 127; }
for tool in qemu-system-x86_64 busybox cpio depmod modprobe python3 dpkg; do
  command -v "$tool" >/dev/null || {
    echo "vm.sh: $tool is missing: apt-get install qemu-system-x86 busybox-static cpio kmod python3" >&2
    exit 127
  }
done
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# Fetches the kernel and packs a ram disk with just the modules that reach the real root. About 10 s, once.
prepare() {
  local package kernel module verb path _ name
  cd "$cache"
  package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
  [[ -n $package ]] || { echo 'vm.sh: apt knows no linux-image-amd64: run apt-get update' >&2; exit 127; }
  rm -rf unpacked ./*.deb
  apt-get download -qq "$package" -o APT::Sandbox::User=root
  dpkg -x "$package"_*.deb unpacked
  rm -f "$package"_*.deb
  kernel=$(ls unpacked/lib/modules)
  depmod -b "$cache/unpacked" "$kernel"
  # Unpacked here, in native code: the emulation would need 4 s for it at every start.
  python3 - "unpacked/boot/vmlinuz-$kernel" vmlinux <<'PY'
import lzma, sys
image = open(sys.argv[1], 'rb').read()
stream = lzma.LZMADecompressor()
open(sys.argv[2], 'wb').write(stream.decompress(image[image.index(b'\xfd7zXZ\x00'):]))
PY
  rm -rf ramdisk
  mkdir -p ramdisk/{bin,modules,proc,sys,dev,host,overlay,new}
  cp "$(command -v busybox)" ramdisk/bin/busybox
  : > ramdisk/modules/order
  for module in virtio_pci 9pnet_virtio 9p overlay; do
    modprobe -d "$cache/unpacked" -S "$kernel" --show-depends "$module" | while read -r verb path _; do
      name=${path##*/}
      [[ $verb == insmod && ! -e ramdisk/modules/$name ]] || continue
      cp "$path" ramdisk/modules/
      echo "$name" >> ramdisk/modules/order
    done
  done
  cat > ramdisk/init <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
while read -r m; do $b insmod /modules/$m || echo "cannot load $m"; done < /modules/order
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose hostroot /host
$b mount -t tmpfs -o size=75% tmpfs /overlay; $b mkdir /overlay/upper /overlay/work
$b mount -t overlay -o lowerdir=/host,upperdir=/overlay/upper,workdir=/overlay/work root /new
for d in proc sys dev; do $b mount --move /$d /new/$d; done
$b mkdir -p /new/out /new/lib/modules /new/dev/pts /new/dev/shm
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /new/out
$b mount -t devpts devpts /new/dev/pts
for t in run tmp dev/shm; do $b mount -t tmpfs tmpfs /new/$t; done
exec $b switch_root /new /bin/bash /out/.stage2
INIT
  chmod +x ramdisk/init
  (cd ramdisk && find . | cpio -o -H newc --quiet -R 0:0) > ramdisk.cpio
  touch ready
}

exec 9> "$cache/lock"
flock 9
[[ -e $cache/ready ]] || (prepare) || exit 127
flock -u 9
kernel=$(ls "$cache/unpacked/lib/modules")

own_out=
[[ -n ${OUT:-} ]] || { OUT=$(mktemp -d); own_out=1; }
mkdir -p "$OUT"
out=$(cd "$OUT" && pwd)
rm -f "$out/.status"
# 9 is the lock: the machine must not inherit it.
{
  echo 'exec </dev/null >/dev/console 2>&1'
  echo 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/tmp'
  for setting in ${VM_ENV:-}; do printf 'export %q\n' "$setting"; done
  # The machine has a /tmp and a /run of its own: what lies there on this one is shown again where it is needed.
  echo 'mkdir -p /mnt; mount --bind / /mnt'
  for path in "$here" "$cache"; do printf 'mkdir -p %q; mount --bind %q %q\n' "$path" "/mnt$path" "$path"; done
  printf 'mkdir -p /lib/modules/%s; mount --bind %q /lib/modules/%s\n' \
    "$kernel" "$cache/unpacked/lib/modules/$kernel" "$kernel"
  echo 'stty -F /dev/console -opost 2>/dev/null; ip link set lo up; ulimit -l unlimited'
  printf 'cd %q; setsid -w' "$here"
  printf ' %q' "$@"
  echo
  # The last command is of the shell itself: by then the disks are gone.
  echo 'echo $? > /out/.status; sync; echo o > /proc/sysrq-trigger; read -r -t 30 </dev/console'
} > "$out/.stage2"

status=0
timeout -k 5 "$limit" nice -n 10 qemu-system-x86_64 \
  -accel tcg,thread=multi,tb-size=512 -cpu "${CPU:-qemu64}" -machine q35 \
  -smp "$smp" -m "$mem" -nodefaults -no-reboot -display none -monitor none -serial stdio \
  -kernel "$cache/vmlinux" -initrd "$cache/ramdisk.cpio" \
  -append 'console=ttyS0 quiet panic=-1 mitigations=off nokaslr clocksource=hpet tsc=unstable no_timer_check' \
  -virtfs local,path=/,security_model=none,readonly=on,mount_tag=hostroot,multidevs=remap \
  -virtfs local,path="$out",security_model=none,mount_tag=out,multidevs=remap ${QEMU_ARGS:-} \
  </dev/null 9>&- || status=$?
if [[ -e $out/.status ]]; then
  result=$(cat "$out/.status")
elif ((status == 124)); then
  result=124
else
  result=125
fi
rm -f "$out/.status" "$out/.stage2"
[[ -z $own_out ]] || rm -rf "$out"
exit "$result"
