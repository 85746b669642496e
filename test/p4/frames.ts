/** Ethernet frames around the packets of this folder. */
import { IP_UDP_BYTES, STRIPE_PORT, internetChecksum } from '../../wire/packet-header.js';

export interface Addresses {
  srcMac: bigint;
  dstMac: bigint;
  srcIp: number;
  dstIp: number;
  srcPort: number;
  dstPort: number;
  ttl: number;
  identification: number;
}

/** The writer, and the switch's service address: what a stripe packet comes with. */
export const TO_SWITCH: Addresses = {
  srcMac: 0x0200_0000_0001n,
  dstMac: 0x0200_0000_00fen,
  srcIp: 0x0a000001,
  dstIp: 0x0a0000fe,
  srcPort: 40001,
  dstPort: STRIPE_PORT,
  ttl: 64,
  identification: 0x1234,
};

/** IPv4 without options, UDP checksum 0. */
export function udpFrame(addresses: Addresses, payload: Uint8Array): Uint8Array {
  const frame = new Uint8Array(14 + IP_UDP_BYTES + payload.length),
    view = new DataView(frame.buffer);
  setMac(view, 0, addresses.dstMac);
  setMac(view, 6, addresses.srcMac);
  view.setUint16(12, 0x0800);
  view.setUint16(14, 0x4500);
  view.setUint16(16, IP_UDP_BYTES + payload.length);
  view.setUint16(18, addresses.identification);
  view.setUint16(20, 0x4000);
  view.setUint8(22, addresses.ttl);
  view.setUint8(23, 17);
  view.setUint32(26, addresses.srcIp);
  view.setUint32(30, addresses.dstIp);
  view.setUint16(34, addresses.srcPort);
  view.setUint16(36, addresses.dstPort);
  view.setUint16(38, 8 + payload.length);
  frame.set(payload, 14 + IP_UDP_BYTES);
  sealIpv4(frame);
  return frame;
}

/** Sets the IPv4 header checksum of a frame anew. */
export function sealIpv4(frame: Uint8Array): void {
  const view = new DataView(frame.buffer, frame.byteOffset),
    bytes = 4 * (view.getUint8(14) & 15);
  view.setUint16(24, 0);
  view.setUint16(24, internetChecksum(frame.subarray(14, 14 + bytes)));
}

/** RFC 826: who has `targetIp`? (operation 1) or the answer (2). */
export function arpFrame(
  operation: number,
  dstMac: bigint,
  sender: { mac: bigint; ip: number },
  target: { mac: bigint; ip: number },
): Uint8Array {
  const frame = new Uint8Array(42),
    view = new DataView(frame.buffer);
  setMac(view, 0, dstMac);
  setMac(view, 6, sender.mac);
  view.setUint16(12, 0x0806);
  view.setUint16(14, 1);
  view.setUint16(16, 0x0800);
  view.setUint16(18, 0x0604);
  view.setUint16(20, operation);
  setMac(view, 22, sender.mac);
  view.setUint32(28, sender.ip);
  setMac(view, 32, target.mac);
  view.setUint32(38, target.ip);
  return frame;
}

function setMac(view: DataView, at: number, mac: bigint): void {
  view.setUint16(at, Number(mac >> 32n));
  view.setUint32(at + 2, Number(mac & 0xffff_ffffn));
}
