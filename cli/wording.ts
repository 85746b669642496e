/** The same words for the same states, in every command. */

/** Where the parity of new stripes is computed. */
export function describeParity(mode: 'switch' | 'host'): string {
  return mode === 'switch' ? 'parity in the switch' : 'parity in the writer';
}
