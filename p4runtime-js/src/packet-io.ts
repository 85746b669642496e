/** Packets to and from the device, with the metadata that the program's controller headers name. */
import type { PacketIn, PacketOut } from './generated/p4/v1/p4runtime.js';
import { toByteString, type Value } from './byte-string.js';
import { invalid } from './errors.js';
import { readValue } from './match.js';
import type { Program } from './program.js';
import { requireNames } from './table-entry.js';

/** @param metadata  every field of the program's packet_out header, by name */
export function packetOut(
  program: Program,
  payload: Uint8Array,
  metadata: Readonly<Record<string, Value>> = {},
): PacketOut {
  const fields = program.has('controller header', 'packet_out')
    ? program.find('controller header', 'packet_out').metadata
    : [];
  requireNames(
    Object.keys(metadata),
    fields.map((field) => field.name),
    'packet_out: field',
  );
  return {
    payload: Buffer.from(payload),
    metadata: fields.map((field) => {
      const value = metadata[field.name];
      if (value === undefined) throw invalid(`packet_out: field '${field.name}' is missing`);
      return { metadataId: field.id, value: toByteString(value, field.bitwidth, `packet_out, field '${field.name}'`) };
    }),
  };
}

export function readPacketIn(
  program: Program,
  packet: PacketIn,
): { payload: Uint8Array; metadata: Record<string, bigint | string> } {
  const fields = program.has('controller header', 'packet_in')
    ? program.find('controller header', 'packet_in').metadata
    : [];
  return {
    payload: packet.payload,
    metadata: Object.fromEntries(
      packet.metadata.flatMap(({ metadataId, value }) => {
        const field = fields.find((candidate) => candidate.id === metadataId);
        return field === undefined ? [] : [[field.name, readValue(value, field.bitwidth)]];
      }),
    ),
  };
}
