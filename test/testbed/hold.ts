/** Holds a testbed until it is interrupted (exit status 3) or killed: `hold.js FOLDER`. Prints the namespaces' pids. */
import { Testbed } from '../../testbed/testbed.js';
import { starTopology } from '../../testbed/topology.js';
import { codeOf } from '../../wire/errors.js';

try {
  await Testbed.use(
    { topology: starTopology({ nodes: 1, rateMbit: 40 }), durability: 'discard', folder: process.argv[2]! },
    async (testbed) => {
      process.stdout.write(`${JSON.stringify(['w1', 's1', 'n1'].map((host) => testbed.network.pidOf(host)))}\n`);
      await new Promise((resolve) => {
        setTimeout(resolve, 120_000);
      });
    },
  );
} catch (error) {
  process.exit(codeOf(error) === 'ERR_INTERRUPTED' ? 3 : 1);
}
