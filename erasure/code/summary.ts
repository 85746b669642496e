/**
 * The lengthwise summary of a unit: the XOR of its 16-byte lanes, the last one padded with zeros.
 *
 * It is linear: encoding the data units' summaries gives the parity units' summaries. So parity made anywhere can be
 * checked by whoever stores it, and a scrub need not move payloads.
 */

export const SUMMARY_BYTES = 16;

/** @returns 16 bytes; zeros for an empty unit */
export function summary(data: Uint8Array): Uint8Array {
  const lanes = new Uint8Array(SUMMARY_BYTES);
  for (let i = 0; i < data.length; i++) lanes[i % SUMMARY_BYTES]! ^= data[i]!;
  return lanes;
}
