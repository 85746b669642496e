// Plain forwarding, the same in parity.p4 and forward.p4: an IPv4 route where there is one, else a bridge by destination
// MAC. Both tables are the agent's (switch-agent); an empty switch forwards nothing and counts no_route.

control Forwarding(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    action to_port(bit<9> port) { sm.egress_spec = port; }

    action flood(bit<16> ports) {
        sm.mcast_grp = ports;
        meta.flooded = 1;
    }

    action no_port() { meta.drop_reason = DROP_NO_ROUTE; }

    action route(bit<9> port, bit<48> src_mac, bit<48> dst_mac) {
        hdr.ethernet.src = src_mac;
        hdr.ethernet.dst = dst_mac;
        sm.egress_spec = port;
    }

    // TTL − 1 adds 0x0100 to the complemented sum; the checksum is adjusted, not recomputed: options stay covered, and a
    // header that came damaged leaves damaged (RFC 1141).
    action count_hop() {
        bit<17> sum = (bit<17>) hdr.ipv4.checksum + 0x0100;
        hdr.ipv4.checksum = sum[15:0] + (bit<16>) sum[16:16];
        hdr.ipv4.ttl = hdr.ipv4.ttl - 1;
    }

    table ipv4_route {
        key = { hdr.ipv4.dst: lpm; }
        actions = { route; NoAction; }
        default_action = NoAction();
        size = 4096;
    }

    table bridge {
        key = { hdr.ethernet.dst: exact; }
        actions = { to_port; flood; no_port; }
        default_action = no_port();
        size = 4096;
    }

    apply {
        if (!hdr.ethernet.isValid()) { meta.drop_reason = DROP_SHORT; }
        else if (hdr.ipv4.isValid() && hdr.ipv4.version == 4 && ipv4_route.apply().hit) {
            if (hdr.ipv4.ttl <= 1) { meta.drop_reason = DROP_TTL; }
            else { count_hop(); }
        } else {
            bridge.apply();
        }
    }
}

// In egress: a flooded packet does not leave by the port it came from. Not a drop: nothing was meant for that port.
control Flooding(inout metadata_t meta, inout standard_metadata_t sm) {
    apply {
        if (meta.flooded == 1 && sm.egress_port == sm.ingress_port) { mark_to_drop(sm); }
    }
}
