/** What is expected, and what is a bug: by a mark, never by the presence of a code. */
import { readFileSync } from 'node:fs';
import t from 'tap';
import { RdmaError } from 'tartan-rdma';
import { P4RuntimeError } from 'tartan-p4runtime';
import { CodeError, parseCode } from '../../erasure/code/index.js';
import { LayoutError } from '../../erasure/layout/errors.js';
import { TestbedError } from '../../testbed/errors.js';
import {
  errorFromPeer,
  isOperating,
  isOutOfFiles,
  OperatingError,
  parseErrorCode,
  TartanError,
} from '../../wire/errors.js';
import { Refusal, refusalCode } from '../../wire/ring-messages.js';

function thrownBy(action: () => unknown): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  return undefined;
}

t.test('every error class of the project is operating, whatever package it lives in', async (t) => {
  const errors: readonly Error[] = [
    new TartanError('ERR_CLOSED', 'x'),
    new TestbedError('ERR_TOPOLOGY', 'x'),
    new CodeError('ERR_UNKNOWN_CODE', 'x'),
    new LayoutError('ERR_UNIT_BYTES', 'x'),
    new RdmaError('ERR_CONNECT', 'x'),
    new P4RuntimeError('ERR_P4_CLOSED', 'x'),
  ];
  t.same(
    errors.filter((error) => !isOperating(error)).map((error) => error.name),
    [],
  );
  t.ok(errors[0] instanceof OperatingError && errors[1] instanceof OperatingError);
  t.ok(isOperating(thrownBy(() => parseCode('nothing(1+1)'))));
});

t.test(
  "the system's answer to a call is operating; Node's programming errors are bugs though they have codes",
  async (t) => {
    t.ok(isOperating(thrownBy(() => readFileSync('/nowhere/at/all'))));
    const bugs = [
      thrownBy(() => Buffer.alloc(4).writeUInt32LE(-1, 0)), // ERR_OUT_OF_RANGE
      thrownBy(() => Buffer.from(undefined as unknown as string)), // ERR_INVALID_ARG_TYPE
      thrownBy(() => (undefined as unknown as { x: number }).x),
      Object.assign(new Error('x'), { code: 'ERR_CLOSED' }),
      { isOperating: true, code: 'ERR_CLOSED' },
      'ERR_CLOSED',
      undefined,
    ];
    t.same(bugs.filter(isOperating), []);
  },
);

t.test('a code from the network is parsed: what is not known here keeps its name in the message', async (t) => {
  t.equal(errorFromPeer('ERR_STALE_MAP', 'm').code, 'ERR_STALE_MAP');
  t.equal(parseErrorCode('ERR_FROM_THE_FUTURE'), undefined);
  t.equal(parseErrorCode('toString'), undefined);
  const unknown = errorFromPeer('ERR_FROM_THE_FUTURE', 'Cannot do it');
  t.equal(unknown.code, 'ERR_UNKNOWN_REFUSAL');
  t.equal(unknown.message, "Cannot do it (refused as 'ERR_FROM_THE_FUTURE')");
  t.ok(errorFromPeer('E'.repeat(10_000), 'm').message.length < 200, 'a long one is cut');
});

t.test('every refusal number has a code, and room that is missing is not called malformed', async (t) => {
  const numbers = Object.values(Refusal).filter((refusal) => refusal !== Refusal.NONE);
  t.same(
    numbers.filter((refusal) => parseErrorCode(refusalCode(refusal)) === undefined),
    [],
  );
  t.equal(refusalCode(Refusal.CAPACITY), 'ERR_CAPACITY');
});

t.test('that a process may open no more is told by code or by what the system says, not by a name', (t) => {
  const files = Object.assign(new Error('EMFILE: too many open files, open x'), { code: 'EMFILE' });
  for (const error of [files, new Error('connect EMFILE 127.0.0.1:7000'), new Error('socket: Too many open files')])
    t.ok(isOutOfFiles(error), error.message);
  for (const message of ['getaddrinfo ENOTFOUND emfile', "Cannot open 'too many open files': there is no such file"])
    t.notOk(isOutOfFiles(new Error(message)), message);
  t.end();
});
