/** One transfer in a process of its own: `transfer.js put|get CLUSTER NAME BYTES TRANSPORT PARITY`; prints a line of JSON. */
import { once } from 'node:events';
import { connect } from '../../writer/index.js';

const [verb, cluster, name, bytesText, transport, parity] = process.argv.slice(2) as [string, string, string, string, 'tcp' | 'shm', 'auto' | 'host'];
const bytes = Number(bytesText);
const client = await connect({ cluster, transport, parity });
const cpu = process.cpuUsage();
let seconds = 0, extra = {};
if (verb === 'put') {
  const writer = await client.create(name);
  const begin = performance.now();
  for (let left = bytes; left > 0;) {
    // Filled in place by whoever has the data: here it is whatever the ring holds, as in the yardstick.
    const { view, commit } = writer.reserve(left);
    if (view.length === 0) { await once(writer, 'drain'); continue; }
    commit(view.length);
    left -= view.length;
  }
  await new Promise<void>((resolve, reject) => { writer.once('error', reject); writer.end(resolve); });
  seconds = (performance.now() - begin) / 1000;
  extra = { mode: parity === 'host' ? 'host' : 'switch', redriven: writer.progress.stripesRedriven, modeChanges: writer.progress.modeChanges };
} else {
  const reader = await client.open(name);
  const begin = performance.now();
  let length = 0;
  for await (const chunk of reader.stream()) length += (chunk as Buffer).length;
  if (length !== bytes) throw new Error(`read ${length} of ${bytes} bytes`);
  seconds = (performance.now() - begin) / 1000;
  extra = { degraded: reader.progress.degradedStripes, checksumFailures: reader.progress.checksumFailures };
}
const used = process.cpuUsage(cpu);
await client.close();
process.stdout.write(`${JSON.stringify({ mbPerS: bytes / seconds / 1e6, cpuSeconds: (used.user + used.system) / 1e6, ...extra })}\n`);
