/** The agent of a P4 switch against a server in memory that follows the P4Runtime specification. */
import t from 'tap';
import { ServerCredentials } from '@grpc/grpc-js';
import { readTableEntry, tableWildcard } from 'tartan-p4runtime';
import { loadArtefact } from '../../switch-agent/bmv2/artefact.js';
import { MockServer } from '../p4runtime-js/mock-server.js';
import { stories, type Rig } from './packet-switch-stories.js';

const { program } = loadArtefact('parity-k2-1500');

t.test('an agent controls a switch that follows the specification', async (t) => {
  stories(t, async (): Promise<Rig> => {
    let server = new MockServer();
    const address = await server.listen(),
      { port } = server;
    return {
      address,
      // As parity.p4 does: only with a service address, and with the cookie that stands there.
      ask() {
        const info = server.device.p4info;
        if (!info?.tables.some((table) => table.preamble?.alias === 'service_address'))
          return Promise.resolve(undefined);
        const [found] = [...server.device.read([tableWildcard(program, 'service_address')])];
        if (found?.entity?.$case !== 'tableEntry') return Promise.resolve(undefined);
        const { action } = readTableEntry(program, found.entity.value);
        const cookie = action !== undefined && 'params' in action ? BigInt(action.params['cookie'] ?? 0) : 0n;
        return Promise.resolve({ nonce: 0n, cookie, program: 1, k: 2, m: 4, chunkBytes: 640 });
      },
      kill() {
        server.stop();
        return Promise.resolve();
      },
      async restart() {
        server = new MockServer();
        await server.listen(ServerCredentials.createInsecure(), port);
      },
    };
  });
});
