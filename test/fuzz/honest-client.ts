/** Who behaves, while or after others do not. */
import type { Client } from '../../writer/index.js';

/** Numbers 0 … below − 1 from a seed. */
export function numbersFrom(seed: number): (below: number) => number {
  let x = (seed ^ 0x9e37_79b9) >>> 0;
  return (below) => {
    x = (x + 0x6d2b_79f5) >>> 0;
    let z = Math.imul(x ^ (x >>> 15), x | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return Math.floor((((z ^ (z >>> 14)) >>> 0) / 0x1_0000_0000) * below);
  };
}

/** Stores a file, reads it, removes it, and closes the client. @returns whether it read what it had stored */
export async function storeAndRead(client: Client, name: string, seed: number): Promise<boolean> {
  const int = numbersFrom(seed);
  const data = Buffer.from(Uint8Array.from({ length: 60_000 }, () => int(256)));
  const writer = await client.create(name, { code: 'xor(2+1)', unitBytes: 1024 });
  await new Promise<void>((resolve, reject) => {
    writer.once('error', reject);
    writer.once('finish', resolve);
    writer.end(data);
  });
  const reader = await client.open(name);
  const isEqual = (await reader.read(0, data.length)).equals(data);
  await reader.close();
  await client.remove(name);
  await client.close();
  return isEqual;
}
