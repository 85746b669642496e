import t from 'tap';
import assert from 'node:assert/strict';
import { Access, Flag, SimRandom, SimWorld, Status, type Device, type QueuePair, type SimDevice } from '../../rdma/dist/index.js';
import { conformance, failures } from './conformance.js';
import { bytesOf, connectPair, fill, Log, type World } from './conformance-world.js';

const { SIGNALED } = Flag;

/** A world of two hosts. @param spoil may break a device on purpose */
function open(seed: number | string, spoil: (device: SimDevice) => void = () => {}): World & { sim: SimWorld } {
  const sim = new SimWorld({ seed });
  const [a, b] = [sim.openDevice('10.0.0.1'), sim.openDevice('10.0.0.2')];
  spoil(a);
  spoil(b);
  return {
    sim, a, b,
    address: '10.0.0.2',
    drive: (promise) => sim.complete(promise),
    settle: (until) => sim.run(until),
    quiet: async () => { await sim.run(); },
    close: async () => { await sim.complete(Promise.all([a.close(), b.close()])); },
  };
}

for (const seed of [1, 2, 3, 20_261]) {
  t.test(`the sim device conforms (seed ${seed})`, (t) => {
    conformance(t, async () => open(seed));
    t.end();
  });
}
