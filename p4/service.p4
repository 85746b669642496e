// What is addressed to the switch itself. The agent enters the service address after it has pushed the pipeline, with the
// pipeline's cookie: a switch without an agent's entry answers nothing, and neither does forward.p4.

control Service(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    bit<48> service_mac = 0;
    bit<64> service_cookie = 0;

    action serve(bit<48> mac, bit<64> cookie) {
        service_mac = mac;
        service_cookie = cookie;
    }

    table service_address {
        key = { meta.service_key: exact; }
        actions = { serve; NoAction; }
        default_action = NoAction();
        size = 16;
    }

    action answer_arp() {
        hdr.arp.operation = 2;
        hdr.arp.target_mac = hdr.arp.sender_mac;
        hdr.arp.sender_mac = service_mac;
        bit<32> asked = hdr.arp.target_ip;
        hdr.arp.target_ip = hdr.arp.sender_ip;
        hdr.arp.sender_ip = asked;
    }

    // As long as the question: nothing can be amplified.
    action answer_probe() {
        bit<32> asked = hdr.ipv4.dst;
        hdr.ipv4.dst = hdr.ipv4.src;
        hdr.ipv4.src = asked;
        bit<16> port = hdr.udp.dst_port;
        hdr.udp.dst_port = hdr.udp.src_port;
        hdr.udp.src_port = port;
        hdr.udp.checksum = 0;
        hdr.ipv4.ttl = 64;
        hdr.packet.type = TYPE_PROBE_ANSWER;
        hdr.probe.cookie = service_cookie;
        hdr.probe.program = PROGRAM_VERSION;
        hdr.probe.k = MAX_K;
        hdr.probe.m = MAX_M;
        hdr.probe.chunk_bytes = CHUNK_BYTES;
    }

    action turn_round() {
        hdr.ethernet.dst = hdr.ethernet.src;
        hdr.ethernet.src = service_mac;
        sm.egress_spec = sm.ingress_port;
        meta.ours = OURS_ANSWER;
    }

    action refuse(bit<8> reason) {
        meta.ours = OURS_REFUSED;
        meta.drop_reason = reason;
    }

    apply {
        if (hdr.arp.isValid() && hdr.arp.operation == 1) { meta.service_key = hdr.arp.target_ip; }
        else if (hdr.udp.isValid() && hdr.udp.dst_port == STRIPE_PORT) { meta.service_key = hdr.ipv4.dst; }

        if (meta.service_key != 0 && service_address.apply().hit) {
            if (hdr.arp.isValid()) {
                answer_arp();
                turn_round();
            } else if (sm.parser_error != error.NoError) { refuse(DROP_SHORT); }
            else if (!hdr.packet.isValid()) { refuse(DROP_TYPE); }
            else if (hdr.packet.version != PACKET_FORMAT_VERSION) { refuse(DROP_VERSION); }
            else if (hdr.packet.type == TYPE_STRIPE) { meta.ours = OURS_STRIPE; }
            else if (hdr.packet.type != TYPE_PROBE) { refuse(DROP_TYPE); }
            else if (sm.checksum_error == 1) { refuse(DROP_CHECKSUM); }
            else if (hdr.ipv4.total_bytes != IPV4_BYTES + UDP_BYTES + PACKET_HEADER_BYTES + PROBE_BODY_BYTES
                  || hdr.udp.bytes != UDP_BYTES + PACKET_HEADER_BYTES + PROBE_BODY_BYTES) { refuse(DROP_LENGTH); }
            else {
                answer_probe();
                turn_round();
            }
        }
    }
}
