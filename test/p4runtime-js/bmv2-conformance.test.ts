/**
 * The conformance suite against BMv2 (simple_switch_grpc 1.15 with PI), with what it is known for.
 * p4runtime-js/README.md describes each deviation; one that is gone, or a new one, fails here.
 */
import t from 'tap';
import { conformance } from './conformance.js';
import { Bmv2Switch, DEVICE_ID, noBmv2 } from '../p4/bmv2-switch.js';

if (noBmv2 !== false) {
  t.test('BMv2 conforms but for its known deviations', { skip: noBmv2 }, () => undefined);
} else {
  const device = await Bmv2Switch.start();
  t.teardown(() => device.close());
  conformance(t, {
    address: device.address,
    deviceId: DEVICE_ID,
    deviations: new Set([
      'promotes-connected',
      'writes-without-controller',
      'zero-id-is-primary',
      'any-device',
      'empty-pipeline',
      'saved-is-visible',
      'commit-without-save-unknown',
      'reconcile-fails',
      'clone-never-truncates',
      'counter-index-unknown',
    ]),
  });
}
