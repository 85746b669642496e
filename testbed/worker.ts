/**
 * A worker process: runs inside a host's network, takes one line of JSON a call, answers with one. Ends with its input.
 */
import { createInterface } from 'node:readline';
import { codeOf } from '../wire/errors.js';
import { tasks } from './worker-tasks.js';
import { detach } from '../wire/front-door.js';

for await (const line of createInterface({ input: process.stdin })) {
  const { id, task, args } = JSON.parse(line) as { id: number; task: keyof typeof tasks; args: never };
  // Calls may overlap: a timeline is stopped by a call while it runs.
  detach(
    (async () => {
      const answer = await (async () => ({ id, result: await tasks[task](args) }))().catch((error: unknown) => ({
        id,
        error: (error instanceof Error ? error.message : String(error)).replace(/\s*\n\s*/g, ' '),
        code: codeOf(error),
      }));
      process.stdout.write(`${JSON.stringify(answer)}\n`);
    })(),
  );
}
process.exit(0);
