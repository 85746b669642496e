/**
 * `npm run test:sanitize -- [address|thread] [files]`: the tests of the native engine (test/rdma) with the addon built
 * under AddressSanitizer and UndefinedBehaviorSanitizer, or ThreadSanitizer; both when none is named. A report is a
 * failure whatever the tests say. The last line is `N passed, N failed, N skipped`.
 */
import { rmSync } from 'node:fs';
import { buildAddon, outcomeOf, readReports, reportFolder, SANITIZERS, startSanitized } from './sanitizers.js';

const FILES = ['soft-conformance', 'soft', 'soft-strangers', 'packets', 'packet-faults', 'revoked-peer'].map(
  (name) => `test/rdma/${name}.test.ts`,
);

const args = process.argv.slice(2);
const sanitizers = SANITIZERS.filter((each) => args.includes(each));
const files = args.filter((each) => each.endsWith('.ts'));
let passed = 0,
  failed = 0;
for (const sanitizer of sanitizers.length > 0 ? sanitizers : SANITIZERS) {
  buildAddon(sanitizer);
  for (const file of files.length > 0 ? files : FILES) {
    const reports = reportFolder();
    const { status, output } = await outcomeOf(startSanitized(sanitizer, ['--import', 'tsx', file], reports));
    const found = readReports(reports);
    const isGood = status === 0 && found.length === 0;
    process.stdout.write(`${isGood ? 'ok    ' : 'NOT OK'} ${sanitizer} ${file}\n`);
    if (isGood) passed++;
    else {
      failed++;
      const told = output.split('\n').filter((line) => /not ok|Error|assert/.test(line));
      process.stdout.write(`${[...found, ...told.slice(0, 40), `exit status ${status}`].join('\n')}\n`);
    }
    rmSync(reports, { recursive: true });
  }
}
process.stdout.write(`${passed} passed, ${failed} failed, 0 skipped\n`);
process.exitCode = failed === 0 ? 0 : 1;
