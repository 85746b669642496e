#!/bin/bash
# leaks.sh [SUITE...]: inside vm.sh after soft-roce.sh, runs suites with the verbs addon built under AddressSanitizer
# and LeakSanitizer. Fails on any report that names the addon. (User-Mode Linux has too little address space for it.)
#
#   testbed/verbs/vm.sh testbed/verbs/soft-roce.sh testbed/verbs/leaks.sh conformance
set -euo pipefail
addon=.tartan/leaks/tartan_rdma_verbs.node
if [[ ${1:-} == build ]]; then
  mkdir -p "${addon%/*}"
  # shellcheck disable=SC2046
  g++ -std=c++20 -O1 -g -fPIC -fsanitize=address -fno-omit-frame-pointer \
    -Wno-missing-field-initializers -DNAPI_VERSION=8 \
    -isystem node_modules/node-api-headers/include \
    -shared $(ls rdma/native/verbs/*.cc | grep -v stub) rdma/native/address.cc -ldl -o "$addon"
  exit
fi
[[ -e $addon ]] || { echo 'leaks.sh: first, outside the machine: testbed/verbs/leaks.sh build' >&2; exit 127; }
cp "$addon" rdma/build/tartan_rdma_verbs.node  # this machine's overlay only
status=0
LD_PRELOAD=$(gcc -print-file-name=libasan.so) \
  ASAN_OPTIONS=detect_leaks=1:exitcode=23:log_path=/tmp/asan:fast_unwind_on_malloc=0 \
  node dist/test/verbs/main.js "$@" || status=$?
# Node leaves things of its own behind; what counts is what has passed through the addon or rdma-core on its behalf.
blocks=0
for report in /tmp/asan*; do
  [[ -e $report ]] || continue
  grep -E '^==.*ERROR: AddressSanitizer' "$report" && blocks=$((blocks + 1)) && cat "$report"
  found=$(awk -v RS='' '/leak of/ && /tartan::verbs|tartan_rdma_verbs/' "$report")
  [[ -z $found ]] || { blocks=$((blocks + 1)); echo "$found"; }
done
echo "leaks: $blocks reports name the addon; the suites ended with $status"
((blocks == 0)) && { ((status == 0)) || ((status == 23)); }
