// The switch program: one packet brings the same byte range of all k data units of a stripe, k + m packets leave,
// each with one data unit's range or one parity unit's. All other traffic is forwarded as if the program were not there.
//
//     parser ─▶ ingress: is it for the service address?
//                 no   forwarding ──────────────────────────────────────────▶ egress: untouched
//                 ARP, probe: answered to where it came from
//                 stripe: checked, group ─▶ multicast, one copy a unit ─────▶ egress: keep one unit, or encode row r
//
// Stateless: nothing of a packet stays in the switch, so sending one again is always safe. One source, several classes:
// MAX_K, FIELDS and FIELD_BITS come from p4/classes.json (p4/build.mjs passes them); docs/p4.md has the table.

#include <core.p4>
#include <v1model.p4>

#include "chunk_class.p4"   // how many data units, how long a chunk; loops over a chunk's fields
#include "headers.p4"       // what the bytes mean
#include "drop_reasons.p4"  // why a packet ends here: numbers never reused
#include "parser.p4"        // from bytes to headers
#include "checksums.p4"     // verified on the way in, recomputed on the way out
#include "forwarding.p4"    // everything that is not ours: routes and bridge; also all of forward.p4
#include "service.p4"       // what is addressed to the switch itself: ARP and probes
#include "check.p4"         // a stripe packet must be what it says
#include "split.p4"         // group → multicast; copy → which unit, to whom
#include "parity_rows.p4"   // Horner over the data units in GF(2^8)
#include "deparser.p4"      // from headers to bytes

control ParityIngress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    counter(DROP_REASONS, CounterType.packets) ingress_drops;
    Service() service;
    Check() check;
    Group() group;
    Forwarding() forwarding;

    apply {
        service.apply(hdr, meta, sm);
        if (meta.ours == OURS_STRIPE) {
            check.apply(hdr, meta, sm);
            if (meta.drop_reason == 0) { group.apply(hdr, meta, sm); }
        } else if (meta.ours == OURS_NOT) {
            forwarding.apply(hdr, meta, sm);
        }
        if (meta.drop_reason != 0) {
            ingress_drops.count((bit<32>) meta.drop_reason);
            mark_to_drop(sm);
        }
    }
}

control ParityEgress(inout headers_t hdr, inout metadata_t meta, inout standard_metadata_t sm) {
    counter(DROP_REASONS, CounterType.packets) egress_drops;
    Replica() replica;
    KeepUnit() keep_unit;
    ParityRow() parity_row;
    UnitPacket() unit_packet;
    Flooding() flooding;

    apply {
        if (meta.ours == OURS_STRIPE) {
            replica.apply(hdr, meta, sm);
            if (meta.copy == COPY_NONE) {
                egress_drops.count(DROP_NO_REPLICA);
                mark_to_drop(sm);
            } else {
                if (meta.copy == COPY_DATA) { keep_unit.apply(hdr, meta); }
                else { parity_row.apply(hdr, meta); }
                unit_packet.apply(hdr, meta);
            }
        } else if (meta.ours == OURS_NOT) {
            flooding.apply(meta, sm);
        }
    }
}

V1Switch(ParityParser(), VerifyChecksums(), ParityIngress(), ParityEgress(), ComputeChecksums(), ParityDeparser()) main;
