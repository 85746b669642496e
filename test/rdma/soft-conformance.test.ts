/** The soft device against what every device must do, over each of its transports. */
import t from 'tap';
import { openSoftDevice } from 'tartan-rdma';
import { conformance, realTimeWorld } from './conformance.js';

for (const transport of ['tcp', 'shm'] as const) {
  t.test(`soft over ${transport}`, async (t) => {
    conformance(t, async () =>
      realTimeWorld(openSoftDevice({ name: 'a' }), openSoftDevice({ name: 'b' }), '127.0.0.1', { transport }),
    );
  });
}
