/**
 * The mechanical reading of every source file, as `npm run lint`, `npm run format` and `npm test` do it: ESLint for
 * bugs, Biome (TypeScript, JavaScript) and clang-format (C++) for the shape of lines. Versions are package-lock.json's.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** @returns what each tool that found something has printed; '' when all is well */
export function lint(root) {
  const runs = [
    ['eslint', [process.execPath, join(root, 'node_modules/eslint/bin/eslint.js'), '.']],
    ['biome (`npm run format` mends it)', [...biome(root), '--log-level=error', '.']],
    ['clang-format (`npm run format` mends it)', clangFormat(root, ['--dry-run', '--Werror'])],
  ];
  return runs
    .filter(([, command]) => command !== undefined)
    .map(([name, command]) => {
      const { status, stdout, stderr, error } = runIn(root, command);
      return status === 0 ? '' : `${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}\n${name} failed\n`;
    })
    .join('');
}

/** Sets every file's lines anew. @returns what failed, or '' */
export function format(root) {
  return [[...biome(root), '--write', '.'], clangFormat(root, ['-i'])]
    .filter((command) => command !== undefined)
    .map((command) => runIn(root, command))
    .map(({ status, stderr }) => (status === 0 ? '' : stderr))
    .join('');
}

function biome(root) {
  return [process.execPath, join(root, 'node_modules/@biomejs/biome/bin/biome'), 'format'];
}

/** undefined where the package has no binary for this machine: then the C++ files are left as they are. */
function clangFormat(root, options) {
  const binary = join(root, `node_modules/clang-format/bin/${process.platform}_${process.arch}/clang-format`);
  if (!existsSync(binary)) return undefined;
  const files = runIn(root, ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '*.cc', '*.h']);
  const present = files.stdout.split('\n').filter((path) => path !== '' && existsSync(join(root, path)));
  return present.length === 0 ? undefined : [binary, ...options, ...present];
}

function runIn(root, [command, ...args]) {
  return spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
}
