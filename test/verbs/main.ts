/**
 * The suites that need an RDMA device, inside a machine that has one: `npm run test:verbs` starts the machine and this.
 * Arguments: the suites to run, all by default.
 */
import t from 'tap';

const SUITES: Record<string, () => Promise<{ run(t: typeof import('tap').t): void }>> = {
  conformance: () => import('./conformance.js'),
  failures: () => import('./failures.js'),
  shared: () => import('./shared-receives.js'),
  testbed: () => import('./testbed.js'),
  cluster: () => import('./cluster.js'),
};

const wanted = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(SUITES);
for (const name of wanted) {
  const suite = SUITES[name];
  if (suite === undefined)
    throw new RangeError(`There is no suite '${name}': ${Object.keys(SUITES).join(', ')} are expected`);
  (await suite()).run(t);
}
