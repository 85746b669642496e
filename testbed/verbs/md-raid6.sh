#!/bin/bash
# md-raid6.sh: inside vm.sh, makes Linux md RAID-6 arrays over ram disks, writes /out/data-K to each and leaves the
# members' first bytes in /out/member-K-N, the kernel's version in /out/kernel. K is the number of data disks.
#
# Metadata 1.0 lies at a member's end, so member data begins at byte 0. Left-symmetric and a chunk of 4 KiB are said
# explicitly; the array is made clean first (resync done), so that what is read is what md computed for our data.
set -euo pipefail
uname -r > /out/kernel
modprobe raid456
modprobe brd rd_nr=16 rd_size=4096
disk=0
for k in ${MD_DATA_DISKS:-2 3 4}; do
  n=$((k + 2)) members=()
  for ((i = 0; i < n; i++)); do members+=("/dev/ram$((disk++))"); done
  mdadm --create "/dev/md$k" --run --level=6 --raid-devices="$n" --chunk=4 \
    --layout=left-symmetric --metadata=1.0 --bitmap=none "${members[@]}" </dev/null 2>&1 | grep -v '^$' || true
  mdadm --wait "/dev/md$k" || true
  dd if="/out/data-$k" of="/dev/md$k" bs=4096 oflag=direct conv=fsync status=none
  mdadm --detail "/dev/md$k" | grep -E 'Level|Layout|Chunk|State :'
  mdadm --stop "/dev/md$k"
  for ((i = 0; i < n; i++)); do
    dd if="${members[i]}" of="/out/member-$k-$i" bs=4096 count="$n" iflag=direct status=none
  done
done
