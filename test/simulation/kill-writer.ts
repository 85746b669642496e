/**
 * A writer process to be killed: takes the file over (or makes it), and appends bytes that depend on their place alone.
 * Prints `kept N` when it has the file, then `acknowledged N` as the promise grows. Arguments: cluster directory, name,
 * code.
 */
import { writeSync } from 'node:fs';
import { codeOf } from '../../wire/errors.js';
import { connect } from '../../writer/index.js';
import { bytesAt } from './place-bytes.js';

const [cluster, name, code] = process.argv.slice(2) as [string, string, string];
// A pipe's write may be late when the process is killed: what was not said was not promised.
const say = (line: string): void => {
  writeSync(1, `${line}\n`);
};

const client = await connect({ cluster, name: 'to be killed', holdMs: 100, ringMemoryBytes: 16 << 20 });
const writer = await client.append(name).catch((error: unknown) => {
  if (codeOf(error) !== 'ERR_NOT_FOUND') throw error;
  return client.create(name, { code, unitBytes: 4096 });
});
let at = writer.progress.acknowledgedBytes,
  said = at;
say(`kept ${at}`);
setInterval(() => {
  const { acknowledgedBytes } = writer.progress;
  if (acknowledgedBytes > said) say(`acknowledged ${(said = acknowledgedBytes)}`);
}, 2);
for (let round = 1; ; round++) {
  const length = 1 + ((round * 7919) % 30_000);
  await new Promise<void>((resolve, reject) => {
    writer.write(bytesAt(at, length), (error) => {
      if (error) reject(error);
      else resolve();
    });
  });
  at += length;
  if (round % 7 === 0) await writer.flush();
  await new Promise((resolve) => {
    setTimeout(resolve, 3);
  });
}
