/** A watch on etcd whose members take requests and never answer, or break off: played by servers of our own. */
import { Server, ServerCredentials, status, type ServerDuplexStream } from '@grpc/grpc-js';
import t, { type Test } from 'tap';
import { openEtcdStore } from '../../cluster/etcd-store.js';
import {
  KVService,
  WatchService,
  type KVServer,
  type WatchRequest,
  type WatchResponse,
  type WatchServer,
} from '../../wire/generated/etcd.js';
import { collect } from './watching.js';

type Stream = ServerDuplexStream<WatchRequest, WatchResponse>;

/** Every transaction puts this key, whatever it asks for. */
const KEY = Buffer.from('test/a');

/** What the members of one etcd agree on. */
class Log {
  revision = 5;
  readonly changed = new Set<() => void>();

  put(): number {
    this.revision++;
    for (const tell of this.changed) tell();
    return this.revision;
  }
}

/** A member that answers what the store asks for; what it does with a watch is the test's. */
async function member(t: Test, log: Log, watch: (stream: Stream) => void): Promise<string> {
  const header = () => ({ revision: log.revision });
  const server = new Server();
  const calls: Pick<KVServer, 'range' | 'txn'> = {
    range: (_call, answer) => {
      answer(null, { header: header(), kvs: [], more: false });
    },
    txn: (_call, answer) => {
      log.put();
      answer(null, { header: header(), succeeded: true });
    },
  };
  const watches: WatchServer = { watch };
  server.addService(KVService, { ...calls });
  server.addService(WatchService, { ...watches });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => {
      if (error) reject(error);
      else resolve(bound);
    });
  });
  t.teardown(() => {
    server.forceShutdown();
  });
  return `127.0.0.1:${port}`;
}

/** Tells everything from the revision asked for on; 0 is what comes after the stream began, as in etcd. */
function tells(log: Log): (stream: Stream) => void {
  return (stream) => {
    stream.once('data', ({ request }: WatchRequest) => {
      const asked = request?.$case === 'createRequest' ? request.value.startRevision : 0;
      let next = asked === 0 ? log.revision + 1 : asked;
      const header = { revision: log.revision };
      const answer = { header, created: false, canceled: false, compactRevision: 0, cancelReason: '' };
      stream.write({ ...answer, created: true, events: [] });
      const tell = () => {
        for (; next <= log.revision; next++) {
          const kv = { key: KEY, value: Buffer.from(`${next}`), createRevision: 1, modRevision: next, lease: 0 };
          stream.write({ ...answer, events: [{ type: 0, kv }] });
        }
      };
      log.changed.add(tell);
      stream.on('cancelled', () => log.changed.delete(tell));
      tell();
    });
  };
}

t.test('a member that takes a watch and stays silent is left for the next', async (t) => {
  const log = new Log();
  let silent = 0;
  const endpoints = [await member(t, log, () => void silent++), await member(t, log, tells(log))];
  const store = await openEtcdStore(`etcd://${endpoints.join(',')}/test/`);
  t.teardown(() => store.close());
  const seen = collect(store, '');
  await store.transact([], [{ put: 'a', value: 'x' }]);
  await seen.until((events) => events.length > 0);
  t.equal(silent, 1, 'it was asked once');
  seen.close();
});

t.test('a watch from now tells what its client did after asking, though the first streams broke off', async (t) => {
  const log = new Log();
  let refusals = 3;
  const endpoint = await member(t, log, (stream) => {
    if (refusals === 0) tells(log)(stream);
    else if (refusals-- > 0) stream.emit('error', { code: status.UNAVAILABLE, details: 'etcdserver: no leader' });
  });
  const store = await openEtcdStore(`etcd://${endpoint}/test/`);
  t.teardown(() => store.close());
  const seen = collect(store, '');
  const { revision } = await store.transact([], [{ put: 'a', value: 'x' }]);
  await seen.until((events) => events.length > 0);
  t.equal(refusals, 0);
  t.same(
    seen.events.map((event) => event.revision),
    [revision],
  );
  seen.close();
});
