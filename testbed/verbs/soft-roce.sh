#!/bin/bash
# soft-roce.sh COMMAND [ARGUMENTS...]: inside vm.sh, makes one soft-RoCE device, rxe0, whose network card is a dummy
# with the addresses 10.77.0.1 to 10.77.0.9 (so many "hosts" on one device), and five hosts on a bridge, then runs the
# command.
set -euo pipefail
modprobe -a rdma_rxe rdma_ucm ib_uverbs dummy 2>/dev/null || true  # in User-Mode Linux they are built in
sysctl -qw net.core.somaxconn=1024
ip link add dummy0 type dummy 2>/dev/null || true  # one may be there from the start
ip link set dummy0 mtu 9000 up
for i in 1 2 3 4 5 6 7 8 9; do ip addr add "10.77.0.$i/24" dev dummy0; done
rdma link add rxe0 type rxe netdev dummy0
for _ in 1 2 3 4 5 6 7 8 9 10; do [[ $(rdma link show rxe0/1) == *ACTIVE* ]] && break; sleep 0.2; done
"$(dirname "$0")/bridged-hosts.sh" 5
# Compiled tests find the rdma package beside them, as the sources do. Only this machine sees the link.
[[ -e dist/rdma ]] || ln -s ../rdma dist/rdma
exec "$@"
