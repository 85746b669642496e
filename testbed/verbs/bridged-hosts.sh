#!/bin/bash
# bridged-hosts.sh N: inside vm.sh, makes N "hosts" with a wire between them: soft-RoCE devices rxe1 … rxeN on veths h1
# … hN with the addresses 10.79.0.1 … N, whose peers b1 … bN are ports of a bridge. Everything is one network namespace
# (soft-RoCE of Linux 6.1 does not work in others), so policy routing forces packets between two of our own addresses
# onto the wire: what tc does to a port, or `ip link set b2 down`, then acts on that host's traffic.
set -euo pipefail
modprobe -a veth bridge sch_netem sch_tbf 2>/dev/null || true
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.accept_local=1 \
  net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
ip link add br0 type bridge
ip link set br0 mtu 9000 up
for ((i = 1; i <= $1; i++)); do
  ip link add "h$i" mtu 9000 type veth peer name "b$i" mtu 9000
  ip link set "b$i" master br0 up
  ip link set "h$i" up
  ip addr add "10.79.0.$i/32" dev "h$i"
  ip rule add pref 10 iif "h$i" lookup local                           # what comes in is ours
  ip rule add pref 20 from "10.79.0.$i" to 10.79.0.0/24 lookup $((100 + i))  # what goes out leaves by its own card
  ip route add 10.79.0.0/24 dev "h$i" table $((100 + i))
done
# Neighbours by hand: a connection manager's first packet, lost to a slow ARP, is sent again only after four seconds.
for ((i = 1; i <= $1; i++)); do
  for ((j = 1; j <= $1; j++)); do
    ((i == j)) || ip neigh replace "10.79.0.$j" lladdr "$(<"/sys/class/net/h$j/address")" dev "h$i" nud permanent
  done
done
ip rule add pref 100 lookup local
ip rule del pref 0
ip route add 10.79.0.0/24 dev h1
for ((i = 1; i <= $1; i++)); do rdma link add "rxe$i" type rxe netdev "h$i"; done
for ((i = 1; i <= $1; i++)); do
  for ((tries = 0; tries < 50; tries++)); do
    # 3: forwarding
    [[ $(rdma link show "rxe$i/1") == *ACTIVE* && $(</sys/class/net/b"$i"/brport/state) == 3 ]] && break
    sleep 0.1
  done
done
