/** The conformance suite against the server that follows the specification: no deviations. */
import t from 'tap';
import { conformance } from './conformance.js';
import { MockServer } from './mock-server.js';

const server = new MockServer();
const address = await server.listen();
t.teardown(() => server.stop());
conformance(t, { address, deviceId: 1n, deviations: new Set() });
