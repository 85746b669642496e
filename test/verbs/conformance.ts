/** The verbs device against what every device must do. */
import type { Test } from 'tap';
import { openVerbsDevice } from 'tartan-rdma';
import { conformance, realTimeWorld } from '../rdma/conformance.js';
import { ADDRESSES, DEVICE } from './machine.js';

export function run(t: Test): void {
  t.test(`verbs over ${DEVICE}`, async (t) => {
    conformance(t, async () =>
      realTimeWorld(
        openVerbsDevice({ name: 'a', device: DEVICE }),
        openVerbsDevice({ name: 'b', device: DEVICE }),
        ADDRESSES[0]!,
      ),
    );
  });
}
