/** The agent of a P4 switch against BMv2: its P4Runtime server, and its data plane, which answers the probes. */
import t from 'tap';
import {
  PACKET_HEADER_BYTES,
  PROBE_BODY_BYTES,
  PacketType,
  STRIPE_PORT,
  decodePacketHeader,
  decodeProbeBody,
  encodePacketHeader,
  encodeProbeBody,
  type ProbeBody,
} from '../../wire/packet-header.js';
import { ipNumber } from '../../switch-agent/bmv2/port-map.js';
import { Bmv2Switch, noBmv2 } from '../p4/bmv2-switch.js';
import { udpFrame } from '../p4/frames.js';
import { HOSTS, SERVICE, stories, type Rig } from './packet-switch-stories.js';

const ETHERNET_IP_UDP = 42;

if (noBmv2 !== false) t.test('an agent controls BMv2', { skip: noBmv2 }, () => undefined);
else {
  stories(t, async (): Promise<Rig> => {
    let device = await Bmv2Switch.start(),
      asking: Promise<unknown> = Promise.resolve(),
      nonce = 1n;
    const { address } = device;
    const ask = async (): Promise<ProbeBody | undefined> => {
      const packet = new Uint8Array(PACKET_HEADER_BYTES + PROBE_BODY_BYTES),
        own = nonce++;
      encodeProbeBody({ nonce: own, cookie: 0n, program: 0, k: 0, m: 0, chunkBytes: 0 }, packet);
      encodePacketHeader(
        { type: PacketType.PROBE, k: 0, m: 0, group: 0, mapEpoch: 0, offset: 0, chunkBytes: 0 },
        packet,
        0,
      );
      const mac = (text: string): bigint => BigInt(`0x${text.replaceAll(':', '')}`),
        from = HOSTS[0]!;
      const frame = udpFrame(
        {
          srcMac: mac(from.mac),
          dstMac: mac(SERVICE.mac),
          srcIp: ipNumber(from.host),
          dstIp: ipNumber(SERVICE.host),
          srcPort: 40_000,
          dstPort: STRIPE_PORT,
          ttl: 64,
          identification: 0,
        },
        packet,
      );
      const answers = await device.process(from.port, frame, 1, 300).catch(() => []);
      const bodies = answers
        .map(({ bytes }) => bytes.subarray(ETHERNET_IP_UDP))
        .filter((bytes) => {
          const header = decodePacketHeader(bytes);
          return typeof header !== 'string' && header.type === PacketType.PROBE_ANSWER;
        });
      return bodies.map((bytes) => decodeProbeBody(bytes)).find((each) => each.nonce === own);
    };
    return {
      address,
      // One packet at a time: what leaves is not told apart otherwise.
      ask() {
        const turn = asking.then(ask);
        asking = turn;
        return turn;
      },
      kill: () => device.close(),
      async restart() {
        device = await Bmv2Switch.start(Number(address.split(':')[1]));
      },
    };
  });
}
