/**
 * The writer's process of the demo with BMv2: `node demo-writer.js CLUSTER [FILE]`, started by demo-bmv2.ts in the
 * writer's network.
 */
import { TartanError, codeOf } from '../wire/errors.js';
import { connect } from '../writer/index.js';
import type { StageReply, StageRequest, StageVerb } from './demo-bmv2.js';
import { demoOn } from './demo.js';
import { RING_MEMORY_BYTES, type Stage } from './demo-stage.js';

const [cluster = '', path] = process.argv.slice(2);
const waiting = new Map<number, { resolve: () => void; reject: (error: Error) => void }>();
let next = 1;

process.on('message', ({ id, error }: StageReply) => {
  const call = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) call?.resolve();
  else call?.reject(new TartanError('ERR_NOT_RUNNING', error));
});

function ask(verb: StageVerb, node?: string): Promise<void> {
  const id = next++;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    process.send!({ id, verb, ...(node !== undefined && { node }) } satisfies StageRequest);
  });
}

const stage: Stage = {
  description:
    'BMv2 and three storage nodes run, each in a network of its own, and every frame passes the P4 program; ' +
    'BMv2 shows function, not the speed of a switch chip',
  // While BMv2 is away nothing reaches a node, for about a second: that is not yet a reason to call all nodes down.
  connect: () =>
    connect({
      cluster,
      name: 'demo',
      ringMemoryBytes: RING_MEMORY_BYTES,
      transport: 'tcp',
      deadlineMs: 3000,
      secret: process.env['TARTAN_SECRET']!,
    }),
  unload: () => ask('unload'),
  load: () => ask('load'),
  killSwitch: () => ask('killSwitch'),
  // killSwitch() has brought another: without a switch no byte reaches a node.
  startSwitch: () => Promise.resolve(),
  killNode: (node) => ask('killNode', node),
};

try {
  process.exitCode = await demoOn(stage, path);
} catch (error) {
  process.stderr.write(`tartan: ${codeOf(error) ?? 'ERR_TESTBED'}: ${(error as Error).message.split('\n')[0]!}\n`);
  process.exitCode = 1;
}
process.disconnect();
process.stderr.write('', () => {
  process.stdout.write('', () => {
    process.exit();
  });
});
