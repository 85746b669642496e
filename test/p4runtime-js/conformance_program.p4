// What the conformance suite drives: a table of every match kind, counters, copies, a digest, and packets to and from the
// controller. A packet from the controller names the port it should seem to have come from.

#include <core.p4>
#include <v1model.p4>

const bit<9> CPU_PORT = 255;

@controller_header("packet_in")
header packet_in_t { bit<16> ingress_port; bit<8> reason; }

@controller_header("packet_out")
header packet_out_t { bit<16> as_from; }

header ethernet_t { bit<48> dst; bit<48> src; bit<16> type; }
header address_t { bit<32> src; bit<32> dst; bit<16> port; bit<8> kind; }

struct headers_t { packet_in_t packet_in; packet_out_t packet_out; ethernet_t ethernet; address_t address; }
struct learned_t { bit<48> mac; bit<16> port; }
struct metadata_t { bit<16> from; }

parser ConformanceParser(packet_in pkt, out headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    state start {
        meta.from = (bit<16>) sm.ingress_port;
        transition select(sm.ingress_port) {
            CPU_PORT: from_controller;
            default: parse_ethernet;
        }
    }
    state from_controller {
        pkt.extract(hdr.packet_out);
        meta.from = hdr.packet_out.as_from;
        transition parse_ethernet;
    }
    state parse_ethernet {
        pkt.extract(hdr.ethernet);
        transition select(hdr.ethernet.type) {
            0x88b5: parse_address;
            default: accept;
        }
    }
    state parse_address {
        pkt.extract(hdr.address);
        transition accept;
    }
}

control NoVerification(inout headers_t hdr, inout metadata_t meta) { apply { } }
control NoComputation(inout headers_t hdr, inout metadata_t meta) { apply { } }

control ConformanceIngress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    counter(16, CounterType.packets_and_bytes) seen;
    direct_counter(CounterType.packets_and_bytes) route_counter;

    action drop() { mark_to_drop(sm); }
    action forward(bit<9> port) { sm.egress_spec = port; }
    action flood(bit<16> group) { sm.mcast_grp = group; }
    action to_controller(bit<8> reason) {
        sm.egress_spec = CPU_PORT;
        hdr.packet_in.setValid();
        hdr.packet_in.ingress_port = meta.from;
        hdr.packet_in.reason = reason;
    }
    action learn() { digest<learned_t>(1, { hdr.ethernet.src, meta.from }); }

    table station {
        key = { hdr.ethernet.dst: exact; }
        actions = { forward; flood; to_controller; @defaultonly drop; }
        default_action = drop();
        size = 1024;
    }

    table route {
        key = { hdr.address.dst: lpm; }
        actions = { forward; to_controller; @defaultonly NoAction; }
        default_action = NoAction();
        counters = route_counter;
        size = 1024;
    }

    table acl {
        key = { hdr.address.src: ternary; hdr.address.port: range; hdr.address.kind: optional; }
        actions = { drop; learn; @defaultonly NoAction; }
        default_action = NoAction();
        size = 1024;
    }

    table fixed {
        key = { hdr.ethernet.type: exact; }
        actions = { NoAction; }
        const default_action = NoAction();
        const entries = { 0x0800: NoAction(); }
    }

    apply {
        seen.count((bit<32>) (meta.from & 15));
        hdr.packet_out.setInvalid();
        station.apply();
        fixed.apply();
        if (hdr.address.isValid()) {
            route.apply();
            acl.apply();
        }
    }
}

control ConformanceEgress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) { apply { } }

control ConformanceDeparser(packet_out pkt, in headers_t hdr) {
    apply {
        pkt.emit(hdr.packet_in);
        pkt.emit(hdr.ethernet);
        pkt.emit(hdr.address);
    }
}

V1Switch(ConformanceParser(), NoVerification(), ConformanceIngress(), ConformanceEgress(), NoComputation(), ConformanceDeparser()) main;
