/** Plans that find more than one of the broken variants (mutants.ts). */
import { fault, pinned } from './script.js';

/** A node's disk is full from its third unit on. */
export const fullDisk = pinned({
  script: { w1: [['create', 'file1', 'xor(2+1)', 512], ['write', 20_000], ['end']] },
  faults: [fault('disk-full', 'n1', { units: 2, of: 'n1' })],
});

/** A writer that needs its switch's slots again and again. */
export const throughSwitch = pinned({
  switches: ['s1'],
  script: { w1: [['create', 'file1', 'xor(2+1)', 512], ['write', 9000], ['end']] },
});

/**
 * The old owner, which knows nothing of a new one, writes its sixth stripe, to n2 and n3, when those have told the new
 * one what they hold; n4, which takes its time, is asked last.
 */
export const lateStripe = pinned({
  codes: ['copies(1,1)'],
  script: {
    w1: [
      ['create', 'file1', 'copies(1,1)', 512],
      ['write', 2560],
      ['flush'],
      ['wait', { listed: 1, by: 'n3' }],
      ['write', 512],
      ['flush'],
    ],
    w2: [
      ['wait', { steps: 3, of: 'w1' }],
      ['append', 'file1'],
    ],
  },
  faults: [
    fault('store-cut-off', 'w1', { steps: 3, of: 'w1' }, { id: 1 }),
    fault('slow-link', 'w2', { steps: 1, of: 'w1' }, { id: 2, b: 'n4' }),
  ],
});

/** The tail's second version reaches two nodes of five, and one was away from the beginning. */
export const halfRewrite = pinned({
  nodes: ['n1', 'n2', 'n3', 'n4', 'n5'],
  codes: ['rs(3,2)'],
  script: {
    w1: [
      ['create', 'file1', 'rs(3,2)', 512],
      ['wait', { struck: 0 }],
      ['write', 100],
      ['flush'],
      ['wait', { all: [{ struck: 1 }, { struck: 2 }] }],
      ['write', 100],
      ['flush'],
    ],
    w2: [
      ['wait', { struck: 3 }],
      ['append', 'file1'],
    ],
  },
  faults: [
    fault('node-kill', 'n4', { steps: 1, of: 'w1' }),
    fault('cut-writer-node', 'w1', { steps: 4, of: 'w1' }, { id: 1, b: 'n1' }),
    fault('cut-writer-node', 'w1', { steps: 4, of: 'w1' }, { id: 2, b: 'n3' }),
    fault(
      'writer-kill',
      'w1',
      {
        all: [
          { stored: 2, at: 'n2' },
          { stored: 2, at: 'n5' },
        ],
      },
      { id: 3 },
    ),
  ],
});
