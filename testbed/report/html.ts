/**
 * One HTML file with every experiment: charts inside as PNG, tables, goals, and the reference's numbers beside ours.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Cell, Result } from './result.js';

const STYLE = `
body{font:15px/1.5 "DejaVu Sans",system-ui,sans-serif;max-width:1060px;margin:2.5em auto;padding:0 1.2em;color:#1a1a1a}
h1{font-size:1.7em}h2{margin-top:2.6em;border-bottom:2px solid #0072B2;padding-bottom:.2em}
img{max-width:100%;border:1px solid #e2e2e2;margin:.6em 0}.lead{font-size:1.08em}
table{border-collapse:collapse;font-size:.84em;margin:.7em 0}
th,td{padding:.26em .7em;border-bottom:1px solid #e2e2e2;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}th{background:#f4f6f8}
.met{color:#00694d;font-weight:bold}.short{color:#a33d00;font-weight:bold}.none{color:#666}
details{margin:.6em 0}summary{cursor:pointer;color:#0072B2}
.setting{font-size:.82em;color:#444}code{background:#f4f6f8;padding:.1em .3em}
.fail{background:#fff3ec;border-left:4px solid #D55E00;padding:.6em 1em}`;

/** Beyond so many rows a table is cut; the CSV has them all. */
const MOST_ROWS = 120;

/**
 * @param path      of the HTML file; the PNGs that write-result.ts wrote lie beside it
 * @param failures  experiments that gave no result, and why
 * @returns path
 */
export function writeReport(
  path: string,
  results: readonly Result[],
  failures: readonly { readonly name: string; readonly message: string }[] = [],
): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(
    path,
    reportHtml(results, failures, (name) => readFileSync(join(dirname(path), `${name}.png`))),
  );
  return path;
}

export function reportHtml(
  results: readonly Result[],
  failures: readonly { readonly name: string; readonly message: string }[],
  pngOf: (name: string) => Uint8Array,
): string {
  const first = results[0]?.setting;
  return (
    `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" ` +
    'content="width=device-width,initial-scale=1"><title>Tartan: throughput ' +
    `experiments</title><style>${STYLE}</style></head><body>
<h1>Parity in the network: ` +
    `throughput experiments</h1>
` +
    (first === undefined
      ? ''
      : `<p class="lead">${escape(first.machine)}; ${escape(first.kernel)}; ${escape(first.date)}` +
        '. Rates depend on ' +
        'this machine, ratios are of the same run.</p>') +
    `
<table><tr><th>experiment</th><th>what was found</th></tr>` +
    results
      .map(
        (each) =>
          `<tr><td><a href="#${each.name}">${each.name}</a></td><td>` +
          escape(each.summary.replace(`${each.name}: `, '')) +
          '</td></tr>',
      )
      .join('') +
    `</table>
` +
    failures
      .map((each) => `<p class="fail"><b>${escape(each.name)}</b> gave no result: ${escape(each.message)}</p>`)
      .join('\n') +
    `
` +
    results.map((each) => section(each, pngOf(each.name))).join('\n') +
    `
</body></html>
`
  );
}

function section(result: Result, png: Uint8Array): string {
  const { setting } = result;
  return (
    `<h2 id="${result.name}">${escape(result.title)}</h2>
<p class="lead">` +
    `${escape(result.summary)}</p>
<img alt="${escape(result.title)}" ` +
    `src="data:image/png;base64,${Buffer.from(png).toString('base64')}">
` +
    (result.references.length === 0
      ? ''
      : '<table><tr><th>reference figure</th><th>theirs</th><th>ours</th><th>where theirs is ' +
        ('from</th></tr>' +
          result.references
            .map(
              (each) =>
                `<tr><td>${escape(each.figure)}</td><td>${escape(each.value)}</td><td><b>` +
                `${escape(each.ours)}</b></td><td>${escape(each.source)}</td></tr>`,
            )
            .join('') +
          '</table>')) +
    `
` +
    (result.goals.length === 0
      ? ''
      : '<table><tr><th>goal</th><th>reached</th><th></th></tr>' +
        result.goals
          .map(
            (each) =>
              `<tr><td>${escape(each.goal)}</td><td>${escape(each.reached)}</td><td>` +
              `${verdict(each.met)}</td></tr>`,
          )
          .join('') +
        '</table>') +
    `
<ul>` +
    result.notes.map((each) => `<li>${escape(each)}</li>`).join('') +
    `</ul>
<details><summary>${result.rows.length} rows</summary>${tableOf(result)}` +
    `</details>
<p class="setting"><code>${escape(setting.command)}</code> · links: ` +
    `${escape(setting.links)} · durability: ${escape(setting.durability)} · ` +
    `${setting.repetitions} repetition${setting.repetitions === 1 ? '' : 's'} · load ` +
    `before: ${setting.loadBefore.toFixed(1)} · ${escape(setting.date)}</p>`
  );
}

function tableOf({ columns, rows }: Result): string {
  const head = columns
    .map(
      ({ name, unit, about }) =>
        `<th title="${escape(about)}">${escape(name)}${unit === '' ? '' : ` (${escape(unit)})`}</th>`,
    )
    .join('');
  const body = rows
    .slice(0, MOST_ROWS)
    .map((row) => `<tr>${columns.map(({ name }) => cellOf(row[name] ?? null)).join('')}</tr>`)
    .join('');
  return (
    `<table><tr>${head}</tr>${body}</table>` +
    (rows.length > MOST_ROWS ? `<p class="none">${rows.length - MOST_ROWS} more rows are in the CSV file.</p>` : '')
  );
}

function cellOf(cell: Cell): string {
  if (typeof cell === 'number')
    return `<td class="n">${Number.isInteger(cell) ? cell : Number(cell.toPrecision(4))}</td>`;
  return `<td>${cell === null ? '–' : escape(typeof cell === 'boolean' ? (cell ? 'yes' : 'no') : cell)}</td>`;
}

function verdict(met: boolean | null): string {
  return met === null
    ? '<span class="none">not measured</span>'
    : met
      ? '<span class="met">met</span>'
      : '<span class="short">short</span>';
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}
