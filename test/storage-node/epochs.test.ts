/** Writer epochs that nobody was given: whoever knows the secret could fence a file with one, for good. */
import t from 'tap';
import { Refusal } from '../../wire/ring-messages.js';
import { Rig } from './rig.js';

const NEVER_GIVEN = 0xffffffff;

t.test('A unit under a writer epoch that is above its file’s record is refused, and fences nobody', async (t) => {
  const rig = await Rig.start(40),
    peer = await rig.peer();
  t.equal((await peer.send(rig.unit({ stripe: 0 }))).refusal, Refusal.NONE);
  for (const epoch of [2, NEVER_GIVEN])
    t.equal((await peer.send(rig.unit({ stripe: 1, epoch }))).refusal, Refusal.MALFORMED, `epoch ${epoch}`);
  t.equal((await peer.send(rig.unit({ stripe: 1, counter: 2 }))).refusal, Refusal.NONE, 'the owner goes on');
  await rig.own(2);
  t.equal((await peer.send(rig.unit({ stripe: 2, epoch: 2 }))).refusal, Refusal.NONE, 'so does the next one');
  t.equal((await peer.send(rig.unit({ stripe: 3, counter: 3 }))).refusal, Refusal.STALE_WRITER_EPOCH);
  t.equal((await peer.send(rig.unit({ stripe: 3, epoch: NEVER_GIVEN }))).refusal, Refusal.MALFORMED);
});

t.test('So are requests: to fence, to discard, to record what is missing, also for a file to come', async (t) => {
  const rig = await Rig.start(41),
    peer = await rig.peer(),
    fileId = rig.file.id;
  t.equal((await peer.send(rig.unit({ stripe: 0 }))).refusal, Refusal.NONE);
  for (const op of [
    { $case: 'fence', value: { fileId, writerEpoch: NEVER_GIVEN } },
    { $case: 'discard', value: { fileId, fromStripe: 0, writerEpoch: NEVER_GIVEN } },
    {
      $case: 'recordMissing',
      value: { fileId, stripe: 0, writerEpoch: 1, counter: 1, mask: 1, requestEpoch: NEVER_GIVEN },
    },
  ] as const)
    t.match(
      await peer.request(op),
      { code: 'ERR_MALFORMED', message: /nobody was given writer epoch 4294967295 of file/ },
      op.$case,
    );
  t.match(await peer.request({ $case: 'fence', value: { fileId: fileId + 1, writerEpoch: NEVER_GIVEN } }), {
    code: 'ERR_NO_UNIT',
  });
  t.match(await peer.request({ $case: 'fileMark', value: { fileId } }), { writerEpoch: 1 });
  t.equal((await peer.send(rig.unit({ stripe: 1, counter: 2 }))).refusal, Refusal.NONE, 'the owner goes on');
});

t.test('While the cluster store is away an epoch is believed: open files do without it', async (t) => {
  const rig = await Rig.start(42),
    peer = await rig.peer();
  t.equal((await peer.send(rig.unit({ stripe: 0 }))).refusal, Refusal.NONE);
  await rig.own(2);
  rig.nodeStore.cutOff();
  t.equal((await peer.send(rig.unit({ stripe: 1, epoch: 2 }))).refusal, Refusal.NONE);
  t.equal((await peer.send(rig.unit({ stripe: 2, epoch: 2, counter: 2 }))).refusal, Refusal.NONE);
});
