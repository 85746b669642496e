/**
 * Compiles better-sqlite3, the embedded cluster store's database: `node cluster/build-sqlite.mjs` is the command.
 *
 * Its own install script would first try to download a binary, then let node-gyp download Node's headers, and npm would
 * show neither. Here it is compiled with the headers that lie beside this Node, once per Node version; what fails is
 * printed. It prints one line when it did something.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';

const module = dirname(createRequire(import.meta.url).resolve('better-sqlite3/package.json'));
const addon = join(module, 'build/Release/better_sqlite3.node');
/** Names the Node version that the addon was compiled for; written last. */
const stamp = join(module, 'build/compiled-for');
const { modules } = process.versions;

function fail(line) {
  process.stderr.write(`cluster/build-sqlite: ${line}\n`);
  process.exit(1);
}

/** The folder that holds include/node. */
function headers() {
  // Beside the binary, as in Node's own packages; or where Debian's put them.
  const candidates = [dirname(dirname(process.execPath)), '/usr'];
  const found = candidates.find((each) => existsSync(join(each, 'include/node/node.h')));
  return found ?? fail(`cannot find Node's headers: no include/node in ${candidates.join(' or ')}`);
}

function nodeGyp() {
  const candidates = [
    ...(process.env.npm_execpath === undefined ? [] : [join(dirname(process.env.npm_execpath), '../node_modules')]),
    join(dirname(dirname(process.execPath)), 'lib/node_modules/npm/node_modules'),
    '/usr/share/nodejs',
  ].map((each) => join(each, 'node-gyp/bin/node-gyp.js'));
  return candidates.find(existsSync) ?? fail(`cannot find npm's node-gyp: tried ${candidates.join(', ')}`);
}

if (!existsSync(addon) || !existsSync(stamp) || readFileSync(stamp, 'utf8') !== modules) {
  const started = Date.now();
  const { status, stdout, stderr, error } = spawnSync(
    process.execPath,
    [nodeGyp(), 'rebuild', '--release', `--nodedir=${headers()}`, `--jobs=${availableParallelism()}`],
    { cwd: module, encoding: 'utf8', maxBuffer: 1 << 28 },
  );
  if (status !== 0 || !existsSync(addon)) {
    process.stderr.write(`${stdout}${stderr}`);
    fail(`cannot compile better-sqlite3 (${error?.message ?? `node-gyp ended with ${status}`}, see the lines above)`);
  }
  writeFileSync(stamp, modules);
  process.stdout.write(
    `cluster/build-sqlite: compiled better-sqlite3 (${((Date.now() - started) / 1000).toFixed(1)} s)\n`,
  );
}
