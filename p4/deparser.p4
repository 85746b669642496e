// From headers to bytes, in the order of docs/wire-format.md. What the parser did not take apart follows by itself.

control ParityDeparser(packet_out pkt, in headers_t hdr) {
    apply {
        pkt.emit(hdr.ethernet);
        pkt.emit(hdr.arp);
        pkt.emit(hdr.ipv4);
        pkt.emit(hdr.udp);
        pkt.emit(hdr.packet);
        pkt.emit(hdr.probe);
        pkt.emit(hdr.unit);
        pkt.emit(hdr.data_crc);     // parity leaves with these …
        pkt.emit(hdr.kept);         // … and with this, data copies with this alone
        pkt.emit(hdr.descriptor);   // only of a packet for somebody else that looks like a stripe
        pkt.emit(hdr.chunk);
    }
}
