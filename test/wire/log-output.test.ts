/** A log that can't be written costs lines of the log, and nothing else. */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { openSync, closeSync } from 'node:fs';
import { LogFile } from '../../wire/log-output.js';

t.test('lines that could not be written are counted in the first one that can', (t) => {
  const written: string[] = [];
  let room = 9;
  const log = new LogFile(2, ((_: number, text: string) => {
    if (room === 0) throw new Error('no space left on device');
    const taken = text.slice(0, room);
    written.push(taken);
    room -= taken.length;
    return taken.length;
  }) as ConstructorParameters<typeof LogFile>[1]);
  for (const line of ['one\n', 'cut off\n', 'lost\n']) log.write(line);
  t.same(written, ['one\n', 'cut o'], 'what there was room for');
  room = 1000;
  for (const line of ['after\n', 'more\n']) log.write(line);
  t.same(
    written.slice(2),
    ['\n{"level":40,"msg":"2 lines before this could not be written"}\nafter\n', 'more\n'],
    'how many are missing is said once',
  );
  t.end();
});

t.test('a process whose standard output and error are full goes on', (t) => {
  const full = openSync('/dev/full', 'w');
  t.teardown(() => {
    closeSync(full);
  });
  const program =
    'const { logOutput } = await import(process.argv[1]); const log = logOutput();' +
    'process.stdout.write("ready\\n"); log.write("a line\\n"); log.write("another\\n");' +
    'setTimeout(() => { log.write("late\\n"); process.exit(7); }, 50)';
  const module = new URL('../../wire/log-output.js', import.meta.url).href;
  const { status } = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program, module], {
    stdio: ['ignore', full, full],
    env: { ...process.env, NODE_OPTIONS: '' },
  });
  t.equal(status, 7, 'it ended when it wanted to');
  t.end();
});
