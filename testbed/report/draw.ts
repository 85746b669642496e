/** Charts: a Vega-Lite specification becomes SVG without a browser, and PNG from that. One look for all of them. */
import { Resvg } from '@resvg/resvg-js';
import type { TopLevelSpec } from 'vega-lite';
import { compile } from 'vega-lite';
import * as vega from 'vega';

const FONT = 'DejaVu Sans';
/** Two for print. */
const PNG_SCALE = 2;

/** Told apart also by those who see no red and green (Okabe and Ito's palette), and by dash or shape beside it. */
export const COLOURS = {
  switch: '#0072B2',
  host: '#D55E00',
  link: '#555555',
  ours: '#0072B2',
  fourth: '#009E73',
  fifth: '#CC79A7',
  sixth: '#E69F00',
} as const;

const CONFIG: TopLevelSpec['config'] = {
  background: 'white',
  font: FONT,
  padding: 8,
  view: { stroke: null },
  title: {
    fontSize: 14,
    fontWeight: 'bold',
    anchor: 'start',
    offset: 12,
    subtitleFontSize: 11,
    subtitleColor: '#444',
    subtitlePadding: 4,
    subtitleLineHeight: 14,
  },
  axis: {
    labelFontSize: 11,
    titleFontSize: 11,
    titleFontWeight: 'normal',
    titlePadding: 8,
    gridColor: '#e6e6e6',
    domainColor: '#333',
    tickColor: '#333',
  },
  legend: {
    labelFontSize: 11,
    titleFontSize: 11,
    titleFontWeight: 'normal',
    symbolSize: 90,
    symbolOpacity: 1,
    columnPadding: 16,
    labelLimit: 400,
  },
  header: { labelFontSize: 12, titleFontSize: 12, labelFontWeight: 'bold' },
};

// Without a canvas Vega takes a letter for 0.8 of its height, which leaves a third of a picture empty beside a long
// title.
const LETTER_WIDTH = 0.6;
(
  vega as unknown as { textMetrics: { width: (item: { fontSize?: number }, text: unknown) => number } }
).textMetrics.width = (item, text) => LETTER_WIDTH * (item.fontSize ?? 11) * String(text ?? '').length;

export async function toSvg(spec: TopLevelSpec): Promise<string> {
  const compiled = compile({ ...spec, config: { ...CONFIG, ...spec.config } } as TopLevelSpec).spec;
  const view = new vega.View(vega.parse(compiled), { renderer: 'none', logLevel: vega.Error });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}

export function toPng(svg: string): Buffer {
  const image = new Resvg(svg, {
    fitTo: { mode: 'zoom', value: PNG_SCALE },
    background: 'white',
    font: { loadSystemFonts: true, defaultFontFamily: FONT },
  });
  return image.render().asPng();
}
