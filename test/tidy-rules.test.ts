/** Each rule of the house finds what it is there to find, in made-up samples, and leaves the rest alone. */
import t from 'tap';
import {
  deadExports,
  exportsOf,
  longLines,
  testFaults,
  testsOf,
  unansweredPromises,
  usesOf,
  wallClockSleeps,
  withoutComments,
} from './tidy-rules.js';

t.test('lines are counted in characters', async (t) => {
  t.same(longLines('a.ts', `${'x'.repeat(120)}\n${'é'.repeat(120)}\n${'→'.repeat(60)}`), []);
  t.same(longLines('a.ts', `ok\n${'x'.repeat(121)}\n`), ['a.ts:2 has 121 columns']);
});

t.test('a test that asserts nothing is found, whatever else it says', async (t) => {
  const file = (body: string): string =>
    `import t from 'tap';\nvoid t.test('it works', async (t) => {\n  ${body}\n});\n`;
  const found = (body: string): number => testFaults('test/a.test.ts', file(body)).length;
  t.equal(found('t.equal(1, 1);'), 0);
  t.equal(found('await helper(t);'), 0, 'who is given the test asserts');
  t.equal(found("t.comment('looked');"), 1);
  t.equal(found("if (broken()) t.fail('broken');"), 1, 'what never happens is not asserted by waiting for it');
  t.equal(found('await sleep(100);'), 1);
  t.equal(found('// t.equal(1, 1);'), 1, 'a comment asserts nothing');
  t.equal(found("t.pass('done');"), 2, 'nor does this, which is a fault of its own');
  t.same(testFaults('test/a.test.ts', "import t from 'tap';\n"), ['test/a.test.ts: there is no test']);
  t.same(testFaults('test/a.ts', 'export const a = 1;\n'), [], 'a file beside the tests needs none');
  t.same(testFaults('test/a.test.ts', "t.test('BMv2', { skip: missing }, () => {});"), [], 'nor does a skipped one');
  t.same(
    testsOf("t.test('one (', async (t) => { t.ok(1); }); t.test('two', () => {});").map(({ body }) => body.length > 10),
    [true, true],
  );
});

t.test('randomness without a seed is found', async (t) => {
  const asserting = "t.test('a', async (t) => { t.ok(draw()); });";
  const faults = (text: string): number => testFaults('test/a.test.ts', `${text}\n${asserting}`).length;
  t.equal(faults('const draw = () => Math.random();'), 1);
  t.equal(faults("import { randomInt } from 'node:crypto';\nconst draw = () => randomInt(5);"), 1);
  t.equal(faults("import { randomBytes } from '../random-bytes.js';\nconst draw = () => randomBytes(5);"), 0);
  t.equal(faults("import { randomInt } from 'node:crypto';\nconst seed = randomInt(5);"), 0, 'it draws the seed');
});

t.test('a promise that nobody answers for is found', async (t) => {
  const faults = (text: string): number => unansweredPromises('a.ts', text).length;
  t.equal(faults('  void work();'), 1);
  t.equal(faults('  else void work().then(next);'), 1);
  t.equal(faults('  if (isLate) void this.work();'), 1);
  t.equal(faults('  detach(work());'), 0);
  t.equal(faults('  run(): void {'), 0);
  t.equal(faults('  readonly run: (x: number) => void = () => {};'), 0);
  t.equal(faults('  work.catch(() => {});'), 1);
  t.equal(faults('  work.catch((error) => undefined);'), 1);
  t.equal(faults('  work.catch(() => {}); // whoever asked is told'), 0);
  t.equal(faults('  // Awaited below.\n  work.catch(() => {});'), 0);
  t.equal(faults('  await work.catch(tolerate);'), 0);
});

t.test('an export that nobody takes is found', async (t) => {
  const module = (path: string, text: string) => ({
    path,
    text,
    uses: usesOf(text, (specifier) =>
      specifier.startsWith('./') ? specifier.slice(2).replace('.js', '.ts') : undefined,
    ),
  });
  const dead = (...modules: [string, string][]): string[] =>
    deadExports(
      modules.map(([path, text]) => module(path, text)),
      (path) => path === 'main.ts',
    );
  const a = 'export const used = 1;\nexport function unused() {}\nexport class Alive {}\n';
  t.same(dead(['a.ts', a], ['main.ts', "import { used, type Alive as B } from './a.js';"]), ['a.ts: unused']);
  t.same(dead(['a.ts', a], ['main.ts', "import * as all from './a.js';"]), []);
  const from = "'./a.js'";
  t.same(dead(['a.ts', a], ['main.ts', `const { used } = await import(${from});`]), []);
  t.same(dead(['a.ts', a], ['main.ts', "export { used, unused, Alive } from './a.js';"]), []);
  t.same(dead(['a.ts', a], ['main.ts', "// import { unused, used, Alive } from './a.js';"]).length, 3);
  t.same(dead(['a.ts', 'export interface Own {}\nexport interface Lonely {}\nlet own: Own;\n']), ['a.ts: Lonely']);
  t.same(dead(['main.ts', a]), [], "an entry's exports are for others");
  t.same(exportsOf('const x = 1, y = 2;\nexport { x, y as z };\nexport type { T } from "./b.js";\n'), ['x', 'z']);
});

t.test('comments are taken out, addresses in texts are not', async (t) => {
  t.equal(
    withoutComments("const at = 'http://here'; // there\n// gone\n/* gone\n   too */\n").trim(),
    "const at = 'http://here';",
  );
});

t.test('a wait for a time without a reason is found, a poll is not', (t) => {
  const faults = (...lines: string[]): number => wallClockSleeps('test/a.test.ts', lines.join('\n')).length;
  t.equal(faults('  await pause(100);'), 1);
  t.equal(faults('  await delay(2 * DEADLINE_MS);', "  t.equal(told, 1, 'nothing more');"), 1);
  t.equal(faults('  await new Promise((resolve) => setTimeout(resolve, 20));'), 1);
  t.equal(faults('  await pause(100); // A slow reader.'), 0);
  t.equal(faults('  // A slow reader.', '  await pause(100);'), 0);
  t.equal(faults('while (!done()) await sleep(5);'), 0);
  t.equal(faults('  for (;;) {', '    if (done()) return;', '    await sleep(5);', '  }'), 0);
  t.equal(
    faults('for (const each of cases) {', '  t.test(each, async () => {', '    await sleep(5);', '  });', '}'),
    1,
  );
  t.equal(faults("  await sleep(cluster.clock('test'), 5);"), 0, 'virtual time');
  t.end();
});
