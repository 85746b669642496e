/** When a peer is taken for gone: after a deadline in which nothing was heard of it, and not before. */
import t from 'tap';
import type { MessageChannel } from '../../pipeline/channel.js';
import { Heartbeat } from '../../pipeline/session.js';
import { VirtualClock } from '../cluster/virtual-clock.js';

const DEADLINE_MS = 1000,
  INTERVAL_MS = 100;

/** A heartbeat whose probes are sent and never answered. */
function unanswered() {
  const clock = new VirtualClock();
  const late: number[] = [];
  const heartbeat = new Heartbeat({
    clock,
    channel: { closed: false, sendControl: () => {} } as unknown as MessageChannel,
    intervalMs: INTERVAL_MS,
    deadlineMs: DEADLINE_MS,
    onLate: (ms) => {
      late.push(ms);
    },
  });
  return { clock, late, heartbeat };
}

t.test('a peer of which nothing is heard is gone after the deadline', async (t) => {
  const { clock, late } = unanswered();
  await clock.advance(DEADLINE_MS);
  t.same(late, []);
  await clock.advance(2 * INTERVAL_MS);
  t.equal(late.length, 1);
});

t.test(
  'a peer that acknowledges while the probe waits behind data on a slow link is not gone, until it falls silent',
  async (t) => {
    const { clock, late, heartbeat } = unanswered();
    for (let ms = 0; ms < 5 * DEADLINE_MS; ms += DEADLINE_MS / 2) {
      await clock.advance(DEADLINE_MS / 2);
      heartbeat.heard();
    }
    t.same(late, [], 'five deadlines passed, something was heard in each');
    await clock.advance(DEADLINE_MS + 2 * INTERVAL_MS);
    t.equal(late.length, 1);
  },
);
