#!/usr/bin/python3
"""Builds the network that one line of JSON on standard input describes, with Mininet, and takes it down again.

All of Mininet stays in here: namespaces, veth pairs, bridges, htb. It knows nothing of Tartan; processes are started in
the namespaces by who started this, which must give it a network namespace of its own (`unshare --net`): then nothing
that is built shows outside, and nothing remains when this process ends, however it ends.

    in   {"hosts": [{"name", "forwards", "addresses": [on lo], "routes": [arguments of `ip route add`]}],
          "bridges": [name],
          "links": [{"ends": [{"host", "interface", "address" or null, "mac"?}, ...], "rateMbit"?, "mtu"?,
                     "plain"?: no offloads, no IPv6}]}
    out  {"ready": true, "pids": {host: pid of its shell}}, or {"error": one line}
    in   {"link": index, "up": bool}    one link's carrier, on both sides
    out  {"done": true}, or {"error": ...}
    in   end of file: everything is taken down
"""
import json
import os
import signal
import sys


def main():
    reply = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Mininet prints is its log
    spec = json.loads(sys.stdin.readline())
    try:
        net = build(spec)
    except BaseException as error:  # pylint: disable=broad-except
        say(reply, {"error": one_line(error)})
        return 1
    try:
        say(reply, {"ready": True, "pids": {host["name"]: net[host["name"]].pid for host in spec["hosts"]}})
        for line in sys.stdin:
            try:
                command = json.loads(line)
                set_link(net, spec["links"][command["link"]], command["up"])
                say(reply, {"done": True})
            except (KeyError, IndexError, ValueError, RuntimeError) as error:
                say(reply, {"error": one_line(error)})
    finally:
        net.stop()
    return 0


def build(spec):
    from mininet.link import TCIntf, TCLink
    from mininet.net import Mininet
    from mininet.nodelib import LinuxBridge

    # Mininet raises the whole machine's limits on its first use; the shaped links need none of them.
    Mininet.inited = True
    # It ignores rates above 1 Gbit/s unless told otherwise; htb of today keeps them.
    TCIntf.bwParamMax = 100_000
    net = Mininet(topo=None, controller=None, switch=LinuxBridge, link=TCLink, build=False)
    try:
        for host in spec["hosts"]:
            net.addHost(host["name"], ip=None)
        for bridge in spec["bridges"]:
            net.addSwitch(bridge)
        for link in spec["links"]:
            a, b = link["ends"]
            shaped = {"bw": link["rateMbit"]} if "rateMbit" in link else {}
            net.addLink(net[a["host"]], net[b["host"]], intfName1=a["interface"], intfName2=b["interface"], **shaped)
        net.build()
        net.start()
        for link in spec["links"]:
            for end in link["ends"]:
                prepare(net[end["host"]], link, end)
                if end["address"] is not None:
                    run(net[end["host"]], f"ip address add {end['address']} dev {end['interface']}")
        for host in spec["hosts"]:
            node = net[host["name"]]
            run(node, "ip link set lo up")
            # A route whose link lost its carrier is none: the next one is taken.
            run(node, "sysctl -qw net.ipv4.conf.all.ignore_routes_with_linkdown=1 "
                      "net.ipv4.conf.default.ignore_routes_with_linkdown=1")
            for link in spec["links"]:
                for end in link["ends"]:
                    if end["host"] == host["name"]:
                        run(node, f"sysctl -qw net.ipv4.conf.{end['interface']}.ignore_routes_with_linkdown=1")
            if host["forwards"]:
                run(node, "sysctl -qw net.ipv4.ip_forward=1")
            for address in host["addresses"]:
                run(node, f"ip address add {address} dev lo")
            for route in host["routes"]:
                run(node, f"ip route add {route}")
    except BaseException:
        net.stop()
        raise
    return net


def prepare(node, link, end):
    if "mac" in end:
        run(node, f"ip link set {end['interface']} address {end['mac']}")
    if "mtu" in link:
        run(node, f"ip link set {end['interface']} mtu {link['mtu']}")
    if link.get("plain"):
        run(node, f"sysctl -qw net.ipv6.conf.{end['interface']}.disable_ipv6=1")
        # ethtool lists what it changed.
        run(node, f"ethtool -K {end['interface']} tx off rx off gso off tso off gro off > /dev/null 2>&1 "
                  "|| echo offloads stay on")


def set_link(net, link, is_up):
    for end in link["ends"]:
        run(net[end["host"]], f"ip link set {end['interface']} {'up' if is_up else 'down'}")


def run(node, command):
    """Mininet's shells answer with what was printed; these commands print only what went wrong."""
    said = node.cmd(command).strip()
    if said:
        raise RuntimeError(f"{node.name}: {command}: {said.splitlines()[0]}")


def say(reply, message):
    reply.write(json.dumps(message) + "\n")
    reply.flush()


def one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    # Ctrl-C goes to the whole terminal group: who started this decides when the network ends, by closing standard
    # input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.stdin.close())
    sys.exit(main())
