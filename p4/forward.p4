// Forwarding alone: what a switch runs that has lost its programmability. It shares forwarding.p4 with parity.p4, has no
// service address, and answers no probe: for it, stripe packets are ordinary traffic without a route.

#include <core.p4>
#include <v1model.p4>

#include "drop_reasons.p4"

header ethernet_t { bit<48> dst; bit<48> src; bit<16> type; }

header ipv4_t {
    bit<4> version; bit<4> header_words; bit<8> tos; bit<16> total_bytes;
    bit<16> identification; bit<3> flags; bit<13> fragment_offset;
    bit<8> ttl; bit<8> protocol; bit<16> checksum;
    bit<32> src; bit<32> dst;
}

struct headers_t { ethernet_t ethernet; ipv4_t ipv4; }
struct metadata_t { bit<8> drop_reason; bit<1> flooded; }

#include "forwarding.p4"

parser ForwardParser(packet_in pkt, out headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    state start {
        pkt.extract(hdr.ethernet);
        transition select(hdr.ethernet.type) {
            0x0800: parse_ipv4;
            default: accept;
        }
    }

    state parse_ipv4 {
        pkt.extract(hdr.ipv4);
        transition accept;
    }
}

control NoVerification(inout headers_t hdr, inout metadata_t meta) { apply { } }
control NoComputation(inout headers_t hdr, inout metadata_t meta) { apply { } }

control ForwardIngress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    counter(DROP_REASONS, CounterType.packets) ingress_drops;
    Forwarding() forwarding;

    apply {
        forwarding.apply(hdr, meta, sm);
        if (meta.drop_reason != 0) {
            ingress_drops.count((bit<32>) meta.drop_reason);
            mark_to_drop(sm);
        }
    }
}

control ForwardEgress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    Flooding() flooding;
    apply { flooding.apply(meta, sm); }
}

control ForwardDeparser(packet_out pkt, in headers_t hdr) {
    apply {
        pkt.emit(hdr.ethernet);
        pkt.emit(hdr.ipv4);
    }
}

V1Switch(ForwardParser(), NoVerification(), ForwardIngress(), ForwardEgress(), NoComputation(), ForwardDeparser()) main;
