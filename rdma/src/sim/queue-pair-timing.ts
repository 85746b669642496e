/** How long a simulated queue pair takes, and how unevenly. */

/** How long after an error memory may still be touched: uniform, 0 … this, virtual ms; every so often much longer. */
export const FLUSH_MS = 0.1;
export const LONG_FLUSH_MS = 20;
export const LONG_FLUSH_ONE_IN = 8;
/** Every so many pieces (on average) leaves late, by up to this many virtual ms. */
export const LATE_ONE_IN = 4;
export const LATE_MS = 0.05;
/**
 * What takes the link for less than this (virtual ms) is cut only where a piece is late: nothing happens between the
 * others.
 */
export const AT_ONCE_MS = 0.001;
/** How long the device takes to begin: uniform, 0 … this, virtual ms. */
export const BEGIN_MS = 0.01;
