/**
 * Mechanical checks on the house itself: what imports what, what is dead, how files are named, what must not be said.
 */
import t from 'tap';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import {
  deadExports,
  longLines,
  MOST_COLUMNS,
  testFaults,
  unansweredPromises,
  usesOf,
  wallClockSleeps,
} from './tidy-rules.js';

const root = resolve(import.meta.dirname, '..');
const SKIPPED_FOLDERS = new Set([
  'node_modules',
  'dist',
  'build',
  'generated',
  '.git',
  '.tap',
  '.tartan',
  '.nyc_output',
]);
const MOST_LINES = 600;
/** Longer since a formatter sets their lines; the list only shrinks. */
const TO_BE_SPLIT = ['pipeline/stripe-reader.ts', 'test/p4runtime-js/conformance.ts', 'writer/rebuild.ts'];

/** Folders and what each may import besides itself; '*' is anything. `main` folders are processes: never each other. */
const BELOW = ['p4runtime-js', 'rdma', 'wire', 'erasure', 'cluster', 'pipeline'];
const MAY_IMPORT: Record<string, readonly string[]> = {
  'p4runtime-js': [],
  rdma: [],
  wire: [],
  erasure: [],
  cluster: ['wire'],
  pipeline: ['p4runtime-js', 'rdma', 'wire', 'erasure', 'cluster'],
  'storage-node': BELOW,
  'switch-agent': BELOW,
  writer: BELOW,
  cli: ['*'],
  testbed: ['*'],
  test: ['*'],
};

/** What others import who are not here. */
const ENTRIES = ['writer/index.ts', 'rdma/src/index.ts', 'p4runtime-js/src/index.ts'];
/** Programs that change only together with what is compiled from them, and a definition that is published elsewhere. */
const LONGER_LINES = [/\.p4$/, /^p4runtime-js\/proto\/p4\//];

const files = walk(root);
const typescript = files.filter((path) => path.endsWith('.ts') && !path.endsWith('.d.ts'));
const sources = files.filter((path) => /\.(ts|mjs|js|cc|h|p4|py|proto|sh)$/.test(path));

t.test('the house is found', async (t) => {
  t.ok(typescript.length > 10, `${typescript.length} TypeScript files`);
  for (const folder of topFolders()) t.ok(MAY_IMPORT[folder], `${folder} has a place in the import order`);
});

t.test('imports point down only', async (t) => {
  const wrong = typescript.flatMap((path) =>
    importsOf(path).flatMap(({ specifier, target }) => {
      const from = folderOf(path),
        to = target === undefined ? workspaceOf(specifier) : folderOf(target);
      const allowed = MAY_IMPORT[from];
      if (to === undefined || to === from || allowed === undefined) return [];
      return allowed.includes('*') || allowed.includes(to) ? [] : [`${path} imports ${specifier}`];
    }),
  );
  t.same(wrong, []);
});

t.test("imports of the project's own files end in .js and lead to a file", async (t) => {
  const wrong = typescript.flatMap((path) =>
    importsOf(path)
      .filter(({ specifier, target }) => specifier.startsWith('.') && (!/\.m?js$/.test(specifier) || !isFile(target)))
      .map(({ specifier }) => `${path} imports ${specifier}`),
  );
  t.same(wrong, []);
});

t.test('no import cycles', async (t) => {
  t.same(
    cycles(
      new Map(
        typescript.map((path) => [path, importsOf(path, { types: false }).flatMap(({ target }) => target ?? [])]),
      ),
    ),
    [],
  );
});

t.test('the search for cycles finds one', async (t) => {
  t.same(
    cycles(
      new Map([
        ['a', ['b']],
        ['b', ['c']],
        ['c', ['a']],
        ['d', ['a']],
      ]),
    ),
    ['a → b → c → a'],
  );
});

t.test("every TypeScript file is reached from a command, a package's entry or a test", async (t) => {
  const entries = typescript.filter(
    (path) =>
      /(^|\/)main\.ts$/.test(path) ||
      path.endsWith('.test.ts') ||
      ENTRIES.includes(path) ||
      /^test\/(bench|simulation)\/[^/]+\.ts$/.test(path) ||
      /^testbed\/[^/]+\.ts$/.test(path) ||
      path === 'test/golden/generate.ts',
  );
  const reached = new Set<string>();
  const open = [...entries];
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    if (reached.has(path)) continue;
    reached.add(path);
    for (const { target } of importsOf(path))
      if (target !== undefined && typescript.includes(target)) open.push(target);
    // Programs that a test starts lie beside it and are named by file.
    if (path.startsWith('test/'))
      for (const [, name] of read(path).matchAll(/'([a-z0-9-]+)\.[jt]s'/g)) {
        const beside = join(dirname(path), `${name}.ts`);
        if (typescript.includes(beside)) open.push(beside);
      }
    // Workspaces are imported through their built form.
    for (const { specifier } of importsOf(path))
      if (workspaceOf(specifier) !== undefined) open.push(`${workspaceOf(specifier)}/src/index.ts`);
  }
  t.same(
    typescript.filter((path) => !reached.has(path)),
    [],
  );
});

t.test('TypeScript and script names are kebab-case, C++ and P4 names snake_case', async (t) => {
  const wrong = sources.filter((path) => {
    const name = basename(path);
    if (/\.(cc|h|p4|py|proto)$/.test(name)) return !/^[a-z][a-z0-9_]*\.[a-z0-9]+$/.test(name);
    return !/^[a-z][a-z0-9]*(-[a-z0-9]+)*(\.(test|config))?\.[a-z]+$/.test(name);
  });
  t.same(wrong, []);
});

t.test(`no source file is longer than ${MOST_LINES} lines`, async (t) => {
  const long = sources.filter((path) => read(path).split('\n').length > MOST_LINES);
  t.same(
    long.filter((path) => !TO_BE_SPLIT.includes(path)),
    [],
  );
  t.same(
    TO_BE_SPLIT.filter((path) => !long.includes(path)),
    [],
    'what has been split is no longer excused',
  );
});

t.test('no file names the place it was written in', async (t) => {
  // Put together here, so that this file does not contain them.
  const forbidden = [
    ['', 'work', ''],
    ['', 'root', ''],
  ].map((parts) => new RegExp(`(^|[\\s"'\`(=:>])${parts.join('/')}`, 'm'));
  const wrong = files.filter(
    (path) => !/\.(png|bin|gz|node)$/.test(path) && forbidden.some((pattern) => pattern.test(read(path))),
  );
  t.same(wrong, []);
  const hosts = [...read('package-lock.json').matchAll(/"resolved": "https?:\/\/([^/"]+)/g)].map((match) => match[1]);
  t.same(
    [...new Set(hosts)].filter((host) => host !== 'registry.npmjs.org'),
    [],
  );
});

t.test('every error code is explained in docs/failure-model.md', async (t) => {
  const union = /const ERROR_CODES = ([^;]+);/.exec(read('wire/errors.ts'))?.[1] ?? '';
  const codes = [...union.matchAll(/'(ERR_[A-Z_]+)'/g)].map((match) => match[1]!);
  for (const path of typescript.filter((each) => /^erasure\/.*errors\.ts$/.test(each)))
    codes.push(...[...read(path).matchAll(/'(ERR_[A-Z_]+)'/g)].map((match) => match[1]!));
  t.ok(codes.length > 20, `${codes.length} codes`);
  const page = existsSync(join(root, 'docs/failure-model.md')) ? read('docs/failure-model.md') : '';
  t.same(
    [...new Set(codes)].filter((code) => !new RegExp(`\\b${code}\\b`).test(page)),
    [],
  );
});

t.test('no test is left running alone, none asserts nothing, and chance has a seed', async (t) => {
  // The samples of the rules themselves are made to be found.
  const tests = typescript.filter((path) => path.startsWith('test/') && !path.startsWith('test/tidy'));
  t.same(
    tests.filter((path) => /\bonly: true\b|\bt\.only\(/.test(read(path))),
    [],
  );
  // What is measured is not drawn again.
  t.same(
    tests.filter((path) => !path.startsWith('test/bench/')).flatMap((path) => testFaults(path, read(path))),
    [],
  );
});

t.test('every promise is awaited, detached, or said to be safe to forget', async (t) => {
  t.same(
    typescript.filter((path) => !path.startsWith('test/')).flatMap((path) => unansweredPromises(path, read(path))),
    [],
  );
});

t.test('a test waits for events, not for a time', (t) => {
  // Those of the simulation wait in its own time; the soak and the benchmarks are none.
  const elsewhere = /^test\/(simulation|soak|bench|tidy-rules\.test)\b/;
  t.same(
    typescript
      .filter((path) => path.startsWith('test/') && !elsewhere.test(path))
      .flatMap((path) => wallClockSleeps(path, read(path))),
    [],
  );
  t.end();
});

t.test(`no line of source is longer than ${MOST_COLUMNS} columns`, async (t) => {
  t.same(
    [...sources, '.ci/run']
      .filter((path) => !LONGER_LINES.some((pattern) => pattern.test(path)))
      .flatMap((path) => longLines(path, read(path))),
    [],
  );
});

t.test('every export is taken by another module', async (t) => {
  const scripts = sources.filter((path) => /\.m?js$/.test(path));
  const modules = [...typescript, ...scripts].map((path) => ({
    path,
    text: read(path),
    uses: usesOf(read(path), (specifier) => {
      const workspace = workspaceOf(specifier);
      if (workspace !== undefined) return `${workspace}/src/index.ts`;
      // Compiled files stand for their sources, also where a script imports one.
      return targetOf(path, specifier)
        ?.replace(/^(rdma|p4runtime-js)\/dist\//, '$1/src/')
        .replace(/^dist\//, '')
        .replace(/\.js$/, '.ts');
    }),
  }));
  t.same(
    deadExports(modules, (path) => ENTRIES.includes(path) || !path.endsWith('.ts')),
    [],
  );
});

function walk(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return SKIPPED_FOLDERS.has(entry.name) ? [] : walk(path);
    // In a worktree .git is a file, which names the place that it is at.
    const isOurs = entry.isFile() && entry.name !== '.git' && !entry.name.endsWith('.log');
    return isOurs ? [relative(root, path)] : [];
  });
}

function read(path: string): string {
  return readFileSync(join(root, path), 'utf8');
}
function folderOf(path: string): string {
  return path.includes('/') ? path.slice(0, path.indexOf('/')) : '';
}
function topFolders(): string[] {
  return [...new Set(typescript.map(folderOf))].filter((folder) => folder !== '');
}
function workspaceOf(specifier: string): string | undefined {
  return { 'tartan-rdma': 'rdma', 'tartan-p4runtime': 'p4runtime-js' }[specifier];
}

/** Generated files exist only after a build: their place counts, not their content. */
function isFile(path: string | undefined): boolean {
  return (
    path !== undefined && (path.includes('/generated/') || path.includes('/dist/') || existsSync(join(root, path)))
  );
}

interface Import {
  readonly specifier: string /** the file meant, from the root; undefined for packages */;
  readonly target: string | undefined;
}

/** Imports, exports from, dynamic imports, and workers named by URL. */
function importsOf(path: string, { types = true } = {}): Import[] {
  const text = read(path).replace(/^\s*(\/\*\*[\s\S]*?\*\/|\/\/.*)/gm, '');
  const patterns = [
    /^\s*(?:import|export)\s+(type\s+)?(?:[^'"();]*?\sfrom\s+)?['"]([^'"]+)['"]/gm,
    /()\bimport\(\s*['"]([^'"]+)['"]\s*\)/g,
    /()new URL\(\s*['"](\.[^'"]+\.m?js)['"]\s*,\s*import\.meta\.url\s*\)/g,
  ];
  return patterns
    .flatMap((pattern) => [...text.matchAll(pattern)])
    .filter((match) => types || !match[1])
    .map((match) => ({ specifier: match[2]!, target: targetOf(path, match[2]!) }));
}

function targetOf(path: string, specifier: string): string | undefined {
  if (!specifier.startsWith('.')) return undefined;
  const target = relative(root, resolve(root, dirname(path), specifier));
  const written = target.replace(/^rdma\/dist\//, 'rdma/src/').replace(/\.js$/, '.ts');
  return existsSync(join(root, written)) || target.includes('/generated/') ? written : target;
}

/** Depth first; each cycle once, from where it was met first. */
function cycles(graph: ReadonlyMap<string, readonly string[]>): string[] {
  const found: string[] = [];
  const done = new Set<string>();
  const visit = (path: string, trail: readonly string[]): void => {
    const at = trail.indexOf(path);
    if (at >= 0) {
      found.push([...trail.slice(at), path].join(' → '));
      return;
    }
    if (done.has(path)) return;
    for (const next of graph.get(path) ?? []) visit(next, [...trail, path]);
    done.add(path);
  };
  for (const path of graph.keys()) visit(path, []);
  return found;
}
