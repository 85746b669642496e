/**
 * What files of a soak hold, known from the name alone, so that whoever reads a range can tell whether it is right: a
 * block of pseudo-random bytes again and again. Its length is a prime, so that no unit looks like another.
 */
import { createHash } from 'node:crypto';

const BLOCK_BYTES = 65_521;

const blocks = new Map<string, Buffer>();

function blockOf(name: string): Buffer {
  let block = blocks.get(name);
  if (block === undefined) {
    const digests: Buffer[] = [];
    for (let i = 0; i * 32 < BLOCK_BYTES; i++) digests.push(createHash('sha256').update(`${name} ${i}`).digest());
    block = Buffer.concat(digests).subarray(0, BLOCK_BYTES);
    if (blocks.size > 64) blocks.clear();
    blocks.set(name, block);
  }
  return block;
}

/** The bytes of file `name` from `offset` on. */
export function contentOf(name: string, offset: number, bytes: number): Buffer {
  const block = blockOf(name),
    out = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; ) {
    const from = (offset + at) % BLOCK_BYTES;
    at += block.copy(out, at, from, Math.min(BLOCK_BYTES, from + bytes - at));
  }
  return out;
}
