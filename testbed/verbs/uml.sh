#!/bin/bash
# uml.sh COMMAND [ARGUMENTS...]: runs a command as root under User-Mode Linux with soft-RoCE: native speed, one
# processor.
#
# The root is this machine's, read-only, under an overlay in memory; what the command writes to /out comes back in $OUT.
# The kernel is built once (uml-build.sh).
#
#   exit status   the command's own; 124: it took longer than LIMIT seconds; 125: the kernel died; 127: something is
#   missing
#   environment   LIMIT=600   MEM=2G   OUT=a new folder   VM_CACHE=~/.cache/tartan-vm   VM_ENV='NAME=value …'
set -euo pipefail
limit=${LIMIT:-600} mem=${MEM:-2G} cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tartan-vm}
here=$PWD
scripts=$(cd "$(dirname "$0")" && pwd)
(($# > 0)) || { echo 'usage: uml.sh COMMAND [ARGUMENTS...]' >&2; exit 127; }
command -v busybox >/dev/null || { echo 'uml.sh: busybox is missing: apt-get install busybox-static' >&2; exit 127; }
mkdir -p "$cache"
exec 9> "$cache/uml.lock"
flock 9
[[ -x $cache/linux-uml ]] || "$scripts/uml-build.sh" "$cache/linux-uml" || exit 127
[[ $cache/uml-ptrace.so -nt $scripts/uml-ptrace.c ]] ||
  gcc -O2 -shared -fPIC -o "$cache/uml-ptrace.so" "$scripts/uml-ptrace.c" || exit 127
flock -u 9

own_out=
[[ -n ${OUT:-} ]] || { OUT=$(mktemp -d); own_out=1; }
mkdir -p "$OUT"
out=$(cd "$OUT" && pwd)
rm -f "$out/.status"
cat > "$out/.init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t tmpfs -o size=75% tmpfs /mnt; $b mkdir /mnt/upper /mnt/work /mnt/new
$b mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/new
cd /mnt/new
$b mount -t proc proc proc; $b mount -t sysfs sys sys; $b mount -t devtmpfs dev dev
$b mkdir -p out dev/pts dev/shm; $b mount -t devpts devpts dev/pts
for t in run tmp dev/shm; do $b mount -t tmpfs tmpfs $t; done
for word in $($b cat proc/cmdline); do case $word in out=*) place=${word#out=};; esac; done
$b mount -t hostfs -o "$place" none out
exec $b chroot /mnt/new /bin/bash /out/.stage2
INIT
chmod +x "$out/.init"
{
  echo 'exec </dev/null >/dev/console 2>&1'
  echo 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/tmp'
  for setting in ${VM_ENV:-}; do printf 'export %q\n' "$setting"; done
  echo 'ip link set lo up; ulimit -l unlimited'
  printf 'cd %q; setsid -w' "$here"
  printf ' %q' "$@"
  echo
  echo 'echo $? > /out/.status; sync; busybox poweroff -f'
} > "$out/.stage2"

# A group of its own: this kernel ignores TERM, and its processes are ours to end with it.
TMPDIR=/dev/shm LD_PRELOAD="$cache/uml-ptrace.so" setsid nice -n 5 \
  "$cache/linux-uml" mem="$mem" root=/dev/root rootfstype=hostfs rootflags=/ ro init="$out/.init" quiet \
  con=null con0=null,fd:1 out="$out" </dev/null 9>&- &
pid=$!
trap 'kill -9 -- "-$pid" 2>/dev/null || true' EXIT
rm -f "$out/.late"
(
  trap 'kill "$nap"; exit' TERM
  sleep "$limit" & nap=$!
  wait "$nap"
  touch "$out/.late"
  kill -9 -- "-$pid"
) >/dev/null 2>&1 &
watch=$!
wait "$pid" 2>/dev/null || true
kill "$watch" 2>/dev/null || true
if [[ -e $out/.status ]]; then
  result=$(cat "$out/.status")
elif [[ -e $out/.late ]]; then
  result=124
else
  result=125
fi
rm -f "$out/.status" "$out/.stage2" "$out/.init" "$out/.late"
[[ -z $own_out ]] || rm -rf "$out"
exit "$result"
