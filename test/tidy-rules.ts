/**
 * The rules that test/tidy.test.ts holds the house to, as functions of paths and texts, so that each can be shown to
 * fail on a made-up sample (test/tidy-rules.test.ts).
 */

export const MOST_COLUMNS = 120;

/** Every line that is too long, as 'PATH:LINE'. Columns are characters, as a reader counts them. */
export function longLines(path: string, text: string): string[] {
  return text
    .split('\n')
    .flatMap((line, i) =>
      [...line].length > MOST_COLUMNS ? [`${path}:${i + 1} has ${[...line].length} columns`] : [],
    );
}

/** What tap calls an assertion that can fail. t.pass, t.comment and t.fail are none: a test of these shows nothing. */
const ASSERTION = new RegExp(
  '\\bt{1,2}\\.(ok|notOk|equal|not|same|notSame|strictSame|strictNotSame|match|notMatch|throws|doesNotThrow|rejects|' +
    'resolves|resolveMatch|has|hasStrict|hasProps|type|emits|matchOnly|matchOnlyStrict|notHas|notHasStrict|error)\\(',
);
/** Something else is given the test, and asserts. */
const PASSED_ON = /[(,]\s*t{1,2}\s*[,)]|\{ t\b|\bt, |\bas Test\b|new \w+\(t\b/;

/**
 * Promises that nobody answers for: `void work()` (it must be awaited, or detached: wire/front-door.ts), and rejections
 * that are swallowed, bugs with them, without a word about why that is safe on the line or the one above.
 */
export function unansweredPromises(path: string, text: string): string[] {
  const lines = text.split('\n');
  return lines.flatMap((line, i) => {
    const isExplained = /\/\//.test(line) || /^\s*\/\//.test(lines[i - 1] ?? '');
    if (/(^|[;{}]|\belse|=>|\))\s*void [A-Za-z(]/.test(line.replace(/'[^']*'/g, '')))
      return [`${path}:${i + 1}: void of a promise`];
    return /\.catch\(\(\w*\) => (\{|undefined|null|\(\{|\[)/.test(line) && !isExplained
      ? [`${path}:${i + 1}: a rejection is swallowed, and nothing says why`]
      : [];
  });
}

/**
 * Waits of so many milliseconds of the machine's own time: "nothing has happened yet" is no proof on a slow machine, so
 * a test waits for events and counts them. Allowed are polls (a loop around the wait), and whatever a comment on the
 * line or the one above gives a reason for.
 */
export function wallClockSleeps(path: string, text: string): string[] {
  const lines = text.split('\n');
  const depth = (line: string): number => line.search(/\S/);
  return lines.flatMap((line, i) => {
    if (!/await (pause|delay|sleep)\([\w.*/+ ?:]+\)|await new Promise\(.*setTimeout\(/.test(line)) return [];
    if (/\/\/|^\s*\*/.test(line) || /^\s*\/\//.test(lines[i - 1] ?? '')) return [];
    let least = depth(line);
    if (/\b(for|while) \(/.test(line)) return [];
    for (let j = i - 1; j >= 0 && least > 0; j--) {
      const above = lines[j]!;
      if (above.trim() === '' || depth(above) >= least) continue;
      least = depth(above);
      if (/^\s*(for|while|do)\b/.test(above)) return [];
      if (/=> \{$|=>$|\bfunction\b/.test(above)) break;
    }
    return [`${path}:${i + 1}: waits for a time, and nothing says why not for an event`];
  });
}

/** What is wrong with the tests of a file. */
export function testFaults(path: string, text: string): string[] {
  const code = withoutComments(text);
  const faults: string[] = [];
  if (/\bt{1,2}\.pass\(/.test(code)) faults.push(`${path}: t.pass() asserts nothing`);
  const random = /\bMath\.random\(|\brandom(Bytes|Int|FillSync)\(|\bgetRandomValues\(/.exec(code)?.[0];
  if (random !== undefined && importsRandom(code, random) && !/\bseed/i.test(code))
    faults.push(`${path}: ${random}) has no seed, so that what it found cannot be found again`);
  if (!path.endsWith('.test.ts')) return faults;
  const tests = testsOf(code);
  if (tests.length === 0 && !isPassedOn(code)) faults.push(`${path}: there is no test`);
  // What a machine lacks is said by tests that are skipped: those need no body.
  for (const { name, body } of tests)
    if (!/\bskip\b/.test(name) && !ASSERTION.test(body) && !isPassedOn(body))
      faults.push(`${path}: nothing is asserted in ${name}`);
  return faults;
}

/** Parameters of functions are not given to anybody. */
function isPassedOn(code: string): boolean {
  return PASSED_ON.test(code.replaceAll(/\([^()]*\)\s*(:[^=(){}]+)?=>/g, '=>'));
}

/** node:crypto's functions, not those of the project that have the same name and a seed. */
function importsRandom(code: string, call: string): boolean {
  const name = call.replace(/\($/, '');
  if (name === 'Math.random') return true;
  return new RegExp(`import \\{[^}]*\\b${name}\\b[^}]*\\} from 'node:crypto'`).test(code);
}

/** Calls of t.test() and of functions named test, with what is in them. */
export function testsOf(code: string): { readonly name: string; readonly body: string }[] {
  return [...code.matchAll(/(?:^|[\s(])(?:t{1,2}\.)?test\(/g)].flatMap((match) => {
    const body = upToClosing(code, match.index + match[0].length);
    // `test: …` in a type, or a declaration of such a function, is no test.
    if (!/=>|function/.test(body)) return [];
    return [{ name: body.trim().slice(0, 120).replaceAll(/\s+/g, ' '), body }];
  });
}

/** From `at` to the bracket that closes the one before it; texts in quotes are skipped. */
function upToClosing(code: string, at: number): string {
  let depth = 1;
  for (let i = at; i < code.length; i++) {
    const char = code[i]!;
    if (char === "'" || char === '"') {
      const end = new RegExp(`(?<!\\\\)(?:\\\\\\\\)*${char}`).exec(code.slice(i + 1));
      if (end === null) return code.slice(at);
      i += 1 + end.index + end[0].length - 1;
    } else if ('([{'.includes(char)) depth++;
    else if (')]}'.includes(char) && --depth === 0) return code.slice(at, i);
  }
  return code.slice(at);
}

export function withoutComments(text: string): string {
  return text.replace(/^\s*\/\*[\s\S]*?\*\/|^\s*\/\/.*|\s\/\/ .*$/gm, '');
}

export interface Module {
  readonly path: string;
  readonly text: string;
  /** What it imports of which other module; '*' is all of it. */
  readonly uses: readonly { readonly target: string; readonly names: readonly string[] }[];
}

/** A type that is named elsewhere in its module. */
function isOwnType(text: string, name: string): boolean {
  const isType = new RegExp(`^export (?:declare )?(?:interface|type|enum) ${name}\\b`, 'm').test(text);
  return isType && [...text.matchAll(new RegExp(`\\b${name}\\b`, 'g'))].length > 1;
}

/** Names that a module gives away: declarations and lists, not what it passes on from others. */
export function exportsOf(text: string): string[] {
  const code = withoutComments(text);
  const declared = code.matchAll(
    /^export (?:(?:default|declare|abstract|async) )*(?:const|let|class|function\*?|interface|type|enum)\s+(\w+)/gm,
  );
  const listed = code.matchAll(/^export (?:type )?\{([^}]*)\}(?! from)/gm);
  return [
    ...[...declared].map(([, name]) => name!),
    ...[...listed].flatMap(([, list]) => namesIn(list!).map(([, to]) => to)),
  ];
}

/** [there, here] of each entry in the braces of an import or export. */
function namesIn(list: string): [string, string][] {
  return list
    .split(',')
    .map((entry) => entry.trim().replace(/^type /, ''))
    .filter((entry) => entry !== '')
    .map((entry) => {
      const [there, here] = entry.split(/\s+as\s+/) as [string, string?];
      return [there, here ?? there];
    });
}

/** What a module takes from others. @param resolve  the module that a specifier means, if it is one of the project's */
export function usesOf(text: string, resolve: (specifier: string) => string | undefined): Module['uses'] {
  const code = withoutComments(text);
  const uses: { target: string; names: string[] }[] = [];
  const add = (specifier: string, names: string[]): void => {
    const target = resolve(specifier);
    if (target !== undefined) uses.push({ target, names });
  };
  for (const [, list, specifier] of code.matchAll(
    /^(?:import|export)\s+(?:type\s+)?(?:\w+\s*,\s*)?\{([^}]*)\}\s*from\s*['"]([^'"]+)['"]/gm,
  ))
    add(
      specifier!,
      namesIn(list!).map(([there]) => there),
    );
  for (const [, specifier] of code.matchAll(/^(?:import|export)\s+(?:type\s+)?\*[^'"]*from\s*['"]([^'"]+)['"]/gm))
    add(specifier!, ['*']);
  for (const [, specifier] of code.matchAll(/\bimport\(\s*['"]([^'"]+)['"]\s*\)/g)) add(specifier!, ['*']);
  for (const [, specifier] of code.matchAll(
    /^import\s+(?:type\s+)?\w+(?:\s*,\s*\{[^}]*\})?\s+from\s*['"]([^'"]+)['"]/gm,
  ))
    add(specifier!, ['default']);
  return uses;
}

/**
 * Exports that no other module takes, as 'PATH: NAME'; types that say what their module's functions take and return are
 * theirs.
 *
 * @param isEntry  whose exports are there for others
 */
export function deadExports(modules: readonly Module[], isEntry: (path: string) => boolean): string[] {
  const used = new Map<string, Set<string>>();
  for (const { uses } of modules)
    for (const { target, names } of uses) {
      const of = used.get(target) ?? new Set();
      used.set(target, of);
      for (const name of names) of.add(name);
    }
  return modules.flatMap(({ path, text }) => {
    const names = used.get(path);
    if (isEntry(path) || names?.has('*') === true) return [];
    return exportsOf(text)
      .filter((name) => names?.has(name) !== true && !isOwnType(text, name))
      .map((name) => `${path}: ${name}`);
  });
}
