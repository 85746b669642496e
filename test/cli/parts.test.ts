/** The parts of the command that need no cluster: quantities, the state directory, processes, tap's totals. */
import t from 'tap';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { isRunning, ownIdentity } from '../../cluster/process-identity.js';
import { stopProcess } from '../../cli/child-process.js';
import { interruptible } from '../../cli/interruption.js';
import { Source } from '../../cli/local-files.js';
import { PartialFile } from '../../cli/partial-file.js';
import { formatBytes, formatRate, parseBytes, parseCount, printable, table } from '../../cli/quantities.js';
import { StateDirectory } from '../../cli/state-directory.js';
import type { ProcessRecord } from '../../cli/state-directory.js';

const runTap = (await import(new URL('../../cli/run-tap.mjs', import.meta.url).href)) as {
  TapReader: new (
    print: (line: string) => void,
  ) => { line(line: string): void; totals: { passed: number; failed: number; skipped: number } | undefined };
};

t.test('sizes are read with binary units, and nonsense is refused by name', async (t) => {
  for (const [text, bytes] of [
    ['4096', 4096],
    ['64KiB', 65536],
    ['64K', 65536],
    ['64kb', 65536],
    ['1MiB', 1 << 20],
    ['1.5MiB', 1572864],
    ['2G', 2 ** 31],
    ['7B', 7],
  ] as const) {
    t.equal(parseBytes(text, '--unit'), bytes, text);
  }
  for (const text of ['', '0', '-1', '1.5', '64 potatoes', '1e9', 'NaN', '99999999999TiB']) {
    t.throws(() => parseBytes(text, '--unit'), { code: 'ERR_ARGUMENT', message: /--unit/ }, text);
  }
  t.equal(parseCount('3', '--nodes', 1, 255), 3);
  for (const text of ['0', '256', '3.0', 'three', ''])
    t.throws(() => parseCount(text, '--nodes', 1, 255), { code: 'ERR_ARGUMENT' }, text);
});

t.test('sizes, rates and tables are written for people', async (t) => {
  t.equal(formatBytes(512), '512 B');
  t.equal(formatBytes(65536), '64.0 KiB');
  t.equal(formatBytes(3 * 2 ** 29), '1.5 GiB');
  t.equal(formatRate(5_548_000_000, 1000), '5548 MB/s');
  t.equal(formatRate(1, 0), '-');
  t.equal(
    table([
      ['A', 'LONG'],
      ['bbb', 'c'],
    ]),
    'A    LONG\nbbb  c',
  );
});

t.test('a file that is replaced keeps its permissions, links stay, and nothing half-done is left', async (t) => {
  const dir = t.testdir({ private: 'old', link: t.fixture('symlink', 'private') });
  chmodSync(join(dir, 'private'), 0o640);
  const written = async (name: string): Promise<PartialFile> => {
    const file = new PartialFile(join(dir, name));
    file.stream.end('new');
    await once(file.stream, 'close');
    return file;
  };
  (await written('link')).keep();
  t.equal(readFileSync(join(dir, 'private'), 'utf8'), 'new');
  t.equal(statSync(join(dir, 'private')).mode & 0o777, 0o640);
  t.ok(lstatSync(join(dir, 'link')).isSymbolicLink());
  const late = await written('made');
  writeFileSync(join(dir, 'made'), 'by another');
  t.throws(
    () => {
      late.keep();
    },
    { code: 'ERR_EXISTS' },
  );
  t.equal(readFileSync(join(dir, 'made'), 'utf8'), 'by another');
  (await written('dropped')).discard();
  t.same(readdirSync(dir).sort(), ['link', 'made', 'private']);
});

t.test('what a killed process left beside a target goes with the next one; of one that lives it stays', async (t) => {
  const dir = t.testdir({ b: 'other' }),
    target = join(dir, 'a');
  const program =
    'const { PartialFile } = await import(process.argv[1]); const file = new PartialFile(process.argv[2]);' +
    'file.stream.write("half", () => { console.log("there"); }); setInterval(() => {}, 1 << 30);';
  const module = new URL('../../cli/partial-file.js', import.meta.url).href;
  const start = async () => {
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program, module, target], {
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(() => {
      child.kill('SIGKILL');
    });
    await once(child.stdout, 'data');
    return child;
  };
  const killed = await start();
  killed.kill('SIGKILL');
  await once(killed, 'exit');
  const [left] = readdirSync(dir).filter((name) => name.endsWith('.partial'));
  t.match(left, /^\.a\.\d+-\d+-\d+-[0-9a-f]{32}\.[0-9a-f]{24}\.partial$/);
  const elsewhere = left!.replace(/-[0-9a-f]{32}\./, `-${'0'.repeat(32)}.`);
  writeFileSync(join(dir, elsewhere), 'of another machine');
  const living = await start();
  const both = readdirSync(dir).filter((name) => name.endsWith('.partial'));
  t.notOk(both.includes(left!), 'its successor has removed it');
  new PartialFile(target).discard();
  t.same(
    readdirSync(dir).filter((name) => name.endsWith('.partial')),
    both,
    'that of a process at work stays, and that of another machine',
  );
  t.equal(both.length, 2);
  living.kill('SIGKILL');
});

t.test(
  'work that is interrupted cleans up, and what is said of it is its outcome; else signals do as ever',
  async (t) => {
    const before = ['SIGINT', 'SIGTERM', 'SIGHUP'].map((name) => process.listenerCount(name));
    let isClean = false;
    const busy = setInterval(() => {}, 1000); // waiting for a signal alone keeps no process
    t.teardown(() => {
      clearInterval(busy);
    });
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      isClean = false;
      const work = interruptible(
        () => `It was interrupted; clean: ${isClean}`,
        async (signal) => {
          process.kill(process.pid, name);
          await once(signal, 'abort');
          await setImmediate();
          isClean = true;
          signal.throwIfAborted();
        },
      );
      await t.rejects(work, { code: 'ERR_INTERRUPTED', message: 'It was interrupted; clean: true', signal: name });
    }
    const late = interruptible(
      () => 'not said',
      async (signal) => {
        process.kill(process.pid, 'SIGINT');
        await once(signal, 'abort');
        return 'all done';
      },
    );
    t.equal(await late, 'all done', 'what comes to its end all the same counts');
    const bug = interruptible(
      () => 'not said',
      async (signal) => {
        process.kill(process.pid, 'SIGINT');
        await once(signal, 'abort');
        throw new RangeError('a bug');
      },
    );
    await t.rejects(bug, RangeError, 'a bug is one also then');
    t.same(
      ['SIGINT', 'SIGTERM', 'SIGHUP'].map((name) => process.listenerCount(name)),
      before,
    );
  },
);

t.test('a file that is written to while it is read is not stored as if it had been so', async (t) => {
  const path = join(t.testdir({ a: 'some text' }), 'a');
  const read = async (meanwhile: () => void): Promise<void> => {
    const source = await Source.open(path);
    let bytes = 0;
    try {
      for await (const chunk of source.stream()) bytes += (chunk as Buffer).length;
      meanwhile();
      await source.check(bytes);
    } finally {
      await source.close();
    }
  };
  await read(() => {});
  const { mtimeMs } = statSync(path);
  await t.rejects(
    read(() => {
      writeFileSync(path, 'some TEXT');
      utimesSync(path, new Date(), new Date(mtimeMs + 1000));
    }),
    { code: 'ERR_CHANGED' },
    'of the same length',
  );
  await t.rejects(
    read(() => {
      appendFileSync(path, '!');
    }),
    { code: 'ERR_CHANGED' },
  );
  await read(() => {
    rmSync(path);
  });
  await t.rejects(Source.open(path), { code: 'ERR_NOT_FOUND' });
  await t.rejects(Source.open(join(import.meta.filename, 'a')), { code: 'ERR_NOT_FOUND' });
  await t.rejects(Source.open(import.meta.dirname), { code: 'ERR_IS_DIRECTORY' });
  await t.rejects(Source.open('x'.repeat(300)), { code: 'ERR_LOCAL_FILE', message: /name too long \(ENAMETOOLONG\)$/ });
  const proc = await Source.open('/proc/self/status');
  await proc.check(1000);
  await proc.close();
});

t.test('names do not steer the terminal', async (t) => {
  t.equal(
    printable('a\u001b[2Jb\u202egpj.exe\u0085\u2066\u200f'),
    'a\\u{1b}[2Jb\\u{202e}gpj.exe\\u{85}\\u{2066}\\u{200f}',
  );
  t.equal(printable('Grüße/写真 🎞'), 'Grüße/写真 🎞', 'letters of any script stay');
  t.equal(
    table([
      ['A', 'B'],
      ['x\ny\u202e', 'c'],
    ]),
    'A                B\nx\\u{a}y\\u{202e}  c',
  );
});

t.test("the state directory is --dir, XDG_STATE_HOME or the home directory's", async (t) => {
  const { HOME, XDG_STATE_HOME } = process.env;
  t.teardown(() => {
    for (const [name, value] of Object.entries({ HOME, XDG_STATE_HOME }))
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
  });
  process.env['HOME'] = '/home/somebody';
  process.env['XDG_STATE_HOME'] = '/state';
  t.equal(StateDirectory.choose('/given').path, '/given');
  t.equal(StateDirectory.choose(undefined).path, '/state/tartan');
  process.env['XDG_STATE_HOME'] = 'relative is to be ignored';
  t.equal(StateDirectory.choose(undefined).path, '/home/somebody/.local/state/tartan');
});

t.test('a lock is held against others while its holder runs, and is given back, after errors too', async (t) => {
  const state = new StateDirectory(t.testdir());
  await state.locked(async () => {
    await t.rejects(
      state.locked(async () => {}),
      { code: 'ERR_IN_USE', message: new RegExp(`process ${process.pid} is working on it$`) },
    );
  });
  await t.rejects(
    state.locked(() => Promise.reject(new Error('inside'))),
    { message: 'inside' },
  );
  await state.locked(async () => {
    state.remove();
    t.same(readdirSync(state.path), []);
    await state.locked(async () => {}); // of a folder that is made anew
  });
  t.equal(await state.locked(async () => 'again'), 'again');
  t.equal(statSync(join(state.path, 'in-use')).size, 0, 'there is nothing in it that could be stale');
});

t.test('a record of processes that ended is not taken for a running cluster', async (t) => {
  const state = new StateDirectory(t.testdir());
  t.same(state.processes(), []);
  t.throws(() => state.requireRunning(), { code: 'ERR_NOT_RUNNING' });
  const entry = (id: string, startTime: string): ProcessRecord => ({
    id,
    role: 'node',
    host: '127.0.0.1',
    identity: { ...ownIdentity(), startTime },
    port: 1,
    controlPort: 2,
    metricsPort: 0,
  });
  state.record(entry('n1', '1'));
  state.record(entry('n2', ownIdentity().startTime));
  state.record({ ...entry('n1', '1'), port: 7 });
  t.same(
    state.processes().map((each) => [each.id, each.port]),
    [
      ['n2', 1],
      ['n1', 7],
    ],
  );
  t.same(
    state.requireRunning().map((each) => each.id),
    ['n2'],
  );
  writeFileSync(join(state.path, 'processes.json'), '{');
  t.throws(() => state.processes(), { code: 'ERR_ARGUMENT', message: /processes\.json/ });
});

t.test('a state directory that cannot be made is one clear error', async (t) => {
  const dir = t.testdir({ file: '' });
  t.throws(
    () => {
      new StateDirectory(join(dir, 'file', 'below')).create();
    },
    { code: 'ERR_ARGUMENT' },
  );
  mkdirSync(join(dir, 'fine'));
  new StateDirectory(join(dir, 'fine')).create();
  t.ok(existsSync(join(dir, 'fine', 'cluster')));
});

t.test('stopping ends the process that was meant, obedient or not, and no other', async (t) => {
  const start = async (code: string) => {
    const child = spawn(process.execPath, ['-e', `${code}; setInterval(() => {}, 1000); console.log('up')`], {
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(() => {
      child.kill('SIGKILL');
    });
    await new Promise((resolve) => {
      child.stdout.once('data', resolve);
    });
    const stat = readFileSync(`/proc/${child.pid!}/stat`, 'latin1');
    return { ...ownIdentity(), pid: child.pid!, startTime: stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]! };
  };
  const obedient = await start('');
  t.equal(await stopProcess({ ...obedient, startTime: '1' }, 1000), 'gone');
  t.ok(isRunning(obedient), 'a reused pid is left alone');
  t.equal(await stopProcess(obedient, 10_000), 'ended');
  t.equal(await stopProcess(obedient, 10_000), 'gone');
  const stubborn = await start('process.on("SIGTERM", () => {})');
  t.equal(await stopProcess(stubborn, 50), 'killed');
  t.notOk(isRunning(stubborn));
  t.equal(await stopProcess(await start(''), 0), 'killed');
});

t.test("tap's output becomes a line a file, the failures in full, the skips, and totals of tests", async (t) => {
  const printed: string[] = [];
  const reader = new runTap.TapReader((line) => {
    printed.push(line);
  });
  // As tap prints it: two tests pass, of them one in another; one is skipped as a whole, one from within, one is still
  // to be written; two fail, of them one that ended its process; and an assertion fails that is in no test.
  const output = `TAP version 14
# Subtest: test/a.test.ts
    # Subtest: fine
        ok 1 - one
        ok 2 - two
        1..2
    ok 1 - fine # time=5ms
    
    ok 2 - not here # SKIP no compiler
    # Subtest: skips within
        ok 1 - because # SKIP
        1..1
    ok 3 - skips within # time=1ms
    
    # Subtest: has another
        # Subtest: inner
            ok 1 - fine
            1..1
        ok 1 - inner # time=1ms
        
        ok 2 - fine
        1..2
    ok 4 - has another # time=4ms
    
    ok 5 - to do # TODO
    1..5
ok 1 - test/a.test.ts # time=1500ms

# Subtest: test/b.test.ts
    # Subtest: bad
        ok 1 - quiet
        not ok 2 - should be equal
          ---
          diff: this is it
          source: |
            # Subtest: not one
            ok 1 - nor this
          ...
        1..2
    not ok 1 - bad # time=50ms
    1..1
not ok 2 - test/b.test.ts # time=66ms
  ---
  command: node
  args:
    - --import=x
  exitCode: 1
  ...

# Subtest: test/c.test.ts
    # Subtest: never ends
        not ok 1 - test unfinished
          ---
          test: never ends
          ...
        1..1
    1..0 # no tests found
not ok 3 - test/c.test.ts # time=29.442ms
  ---
  exitCode: 3
  ...

# Subtest: test/d.test.ts
    # Subtest: fine
        ok 1 - one
        1..1
    ok 1 - fine
    not ok 2 - alone
    1..2
not ok 4 - test/d.test.ts # time=2ms

1..4
# { total: 20, pass: 6, fail: 1, skip: 1, todo: 1 }
# time=3796ms`;
  for (const line of output.split('\n')) reader.line(line);
  t.same(reader.totals, { passed: 3, failed: 3, skipped: 3 });
  t.ok(printed.includes('ok     test/a.test.ts (1.5 s)'));
  t.ok(printed.includes('       not here # SKIP no compiler'));
  t.ok(printed.some((line) => line.includes('diff: this is it')));
  t.ok(printed.some((line) => line.includes('exitCode: 1')));
  t.notOk(printed.some((line) => line.includes('quiet') || line.includes('--import')));

  const none = new runTap.TapReader(() => {});
  none.line('TAP version 14');
  t.equal(none.totals, undefined, 'an output that breaks off has no totals');
});
