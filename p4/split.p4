// Who gets which unit. A group is one ordered set of nodes under one map epoch; a new map brings new groups, and an entry
// is never edited in place: a packet that is on its way under an old map meets the old group or none.
//
//     ingress   group ─▶ multicast group, if map epoch, k and m are the group's
//     egress    (group, replica) ─▶ this copy is data unit u, or parity row r, and goes to that node
//
// A node that the map calls down has no replica: its unit is not sent.

control Group(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    bit<32> group_map_epoch = 0;
    bit<8> group_k = 0;
    bit<8> group_m = 0;
    bit<16> replicas = 0;
    direct_counter(CounterType.packets_and_bytes) group_packets;

    action stripe_group(bit<16> multicast_group, bit<32> map_epoch, bit<8> k, bit<8> m) {
        replicas = multicast_group;
        group_map_epoch = map_epoch;
        group_k = k;
        group_m = m;
        group_packets.count();
    }

    action unknown_group() { meta.drop_reason = DROP_GROUP; }

    table group {
        key = { hdr.packet.group: exact; }
        actions = { stripe_group; @defaultonly unknown_group; }
        default_action = unknown_group();
        size = 4096;
        counters = group_packets;
    }

    apply {
        if (group.apply().hit) {
            if (group_map_epoch != hdr.packet.map_epoch) { meta.drop_reason = DROP_MAP_EPOCH; }
            else if (group_k != hdr.packet.k || group_m != hdr.packet.m) { meta.drop_reason = DROP_GROUP_SHAPE; }
            else { sm.mcast_grp = replicas; }
        }
    }
}

control Replica(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    direct_counter(CounterType.packets_and_bytes) unit_packets;

    // The writer's address and port stay the source: the node acknowledges to the writer, through the same switch.
    action address(bit<48> src_mac, bit<48> dst_mac, bit<32> dst_ip, bit<16> dst_port) {
        hdr.ethernet.src = src_mac;
        hdr.ethernet.dst = dst_mac;
        hdr.ipv4.dst = dst_ip;
        hdr.ipv4.ttl = 64;
        hdr.udp.dst_port = dst_port;
        hdr.udp.checksum = 0;
        unit_packets.count();
    }

    action data_unit(bit<8> unit, bit<48> src_mac, bit<48> dst_mac, bit<32> dst_ip, bit<16> dst_port) {
        meta.copy = COPY_DATA;
        meta.unit = unit;
        address(src_mac, dst_mac, dst_ip, dst_port);
    }

    action parity_row(bit<8> row, bit<48> src_mac, bit<48> dst_mac, bit<32> dst_ip, bit<16> dst_port) {
        meta.copy = COPY_PARITY;
        meta.row = row;
        meta.unit = hdr.packet.k + row;
        address(src_mac, dst_mac, dst_ip, dst_port);
    }

    table replica {
        key = { hdr.packet.group: exact; sm.egress_rid: exact; }
        actions = { data_unit; parity_row; @defaultonly NoAction; }
        default_action = NoAction();
        size = 32768;
        counters = unit_packets;
    }

    apply { replica.apply(); }
}

// A data copy: the descriptor completes the stripe header to that of unit meta.unit, and only its chunk leaves.
control KeepUnit(inout headers_t hdr, inout metadata_t meta) {
#define KEEP_ACTION(c) \
    action keep_##c() { \
        hdr.unit.unit_length = hdr.descriptor[c].unit_length; \
        hdr.unit.payload_crc = hdr.descriptor[c].payload_crc; \
        hdr.unit.seal = hdr.descriptor[c].seal; \
        hdr.unit.summary = hdr.descriptor[c].summary; \
        hdr.kept = hdr.chunk[c]; \
    }
    EACH_UNIT(KEEP_ACTION)

    apply {
        hdr.packet.type = TYPE_UNIT;
        hdr.unit.extension_words = DATA_EXTENSION_WORDS;
#define KEEP(c) if (meta.unit == c) { keep_##c(); }
        EACH_UNIT(KEEP)
    }
}

// What data and parity copies have in common: one chunk leaves, the others and the descriptors do not.
control UnitPacket(inout headers_t hdr, inout metadata_t meta) {
    apply {
        hdr.unit.unit = meta.unit;
        bit<16> udp_bytes = UDP_BYTES + PACKET_HEADER_BYTES + UNIT_HEADER_BYTES + CHUNK_BYTES;
        if (meta.copy == COPY_PARITY) { udp_bytes = udp_bytes + ((bit<16>) hdr.packet.k << 2); }
        hdr.udp.bytes = udp_bytes;
        hdr.ipv4.total_bytes = IPV4_BYTES + udp_bytes;
#define FORGET(c) hdr.descriptor[c].setInvalid(); hdr.chunk[c].setInvalid();
        EACH_UNIT(FORGET)
    }
}
