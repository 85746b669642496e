/**
 * One connection to the P4Runtime server of a switch, as its controller: mastership, the program, reading and writing.
 *
 * Election ids are from the times at which agents started, so that the one started last is primary, also after the
 * switch has forgotten everybody. One that another has overtaken stays a backup while the primary lives, and stands
 * again when there is none.
 */
import {
  P4RuntimeClient,
  P4RuntimeError,
  Status,
  allMulticastGroups,
  connect,
  tableWildcard,
  v1,
  type Program,
} from 'tartan-p4runtime';
import { TartanError } from '../../wire/errors.js';
import { entering, removing } from './difference.js';
import type { Artefact } from './artefact.js';

const { VERIFY_AND_SAVE, VERIFY_AND_COMMIT, COMMIT } = v1.SetForwardingPipelineConfigRequest_Action;
const { COOKIE_ONLY } = v1.GetForwardingPipelineConfigRequest_ResponseType;

/** A call may take so long at least, a program four times. */
const LEAST_CALL_MS = 5000;

export class Controller {
  /** Why the stream ended; undefined while it is open. */
  ended: P4RuntimeError | undefined;
  /** Told when the stream ends, or mastership changes. */
  onChange: () => void = () => undefined;
  /** Another controller was primary by the server's last word, which stays after the stream has ended. */
  isStandby = false;
  /** How often another was primary, or nobody. What was true of the switch before is not any more. */
  losses = 0;

  private constructor(private readonly client: P4RuntimeClient) {
    client.on('closed', (error) => {
      this.ended = error;
      this.onChange();
    });
    client.on('mastership', ({ primary, electionId }) => {
      this.isStandby = !primary && electionId !== undefined;
      if (!primary) this.losses++;
      this.onChange();
    });
    client.on('stream-error', () => undefined);
  }

  /**
   * Connects and stands for election.
   *
   * @param electionId  what it stands with; an agent that connects again takes the one it had
   * @param takeOver    stands above whoever is primary; else only above those of the past
   * @throws {P4RuntimeError} as connect() and arbitrate()
   */
  static async connect(options: {
    readonly address: string;
    readonly deviceId: number;
    readonly deadlineMs: number;
    readonly electionId: bigint;
    readonly takeOver: boolean;
    readonly leastCallMs?: number | undefined;
  }): Promise<Controller> {
    // Hundreds of entries take a busy switch longer than a silence that means death: that is what the stream and probes
    // are for.
    const client = await connect({
      address: options.address,
      deviceId: options.deviceId,
      deadlineMs: Math.max(options.leastCallMs ?? LEAST_CALL_MS, options.deadlineMs),
    });
    const controller = new Controller(client);
    try {
      const { primary } = await client.arbitrate(options.electionId);
      if (!primary && (options.takeOver || controller.isVacant)) await controller.stand();
    } catch (error) {
      client.close();
      throw error;
    }
    return controller;
  }

  get primary(): boolean {
    return this.client.primary;
  }
  get electionId(): bigint {
    return this.client.electionId ?? 0n;
  }
  /** Nobody is: whoever was has gone. */
  get isVacant(): boolean {
    return !this.client.primary && this.client.mastership.electionId === undefined;
  }

  /** Stands above the highest id that the server has seen. */
  async stand(): Promise<void> {
    const { highestElectionId: highest = 0n, electionId: own = 0n } = this.client;
    await this.client.arbitrate((highest > own ? highest : own) + 1n);
  }

  /** Of the program that the switch runs; undefined when it runs none, or one that came without. */
  async cookie(): Promise<bigint | undefined> {
    try {
      return (await this.client.getPipeline(COOKIE_ONLY)).cookie;
    } catch (error) {
      if (error instanceof P4RuntimeError && error.status === Status.FAILED_PRECONDITION) return undefined;
      throw error;
    }
  }

  /**
   * Gives the switch a program with its entries. Saved first, and committed with what was written meanwhile (P4Runtime
   * 1.4, SetForwardingPipelineConfig): traffic never meets an empty bridge. A server that cannot do that gets program
   * and entries one after the other.
   *
   * The multicast groups of the program before are deleted first, so floods and stripes pause until the commit: BMv2
   * forgets the groups with a push, but keeps their copies, and would send each packet once more after each push.
   *
   * @throws {TartanError} ERR_DEADLINE: a push was not answered · {P4RuntimeError} it was refused
   */
  async install({ program, deviceConfig, cookie }: Artefact, entities: readonly v1.Entity[]): Promise<void> {
    const pipeline = { p4info: program.p4info, deviceConfig, cookie };
    let isSaved = false;
    await this.removeMulticast(program);
    try {
      await this.client.setPipeline(pipeline, VERIFY_AND_SAVE);
      isSaved = true;
      await this.write(entering(program, entities));
      await this.client.setPipeline(undefined, COMMIT);
    } catch (error) {
      if (isUnanswered(error))
        // What does not answer would not answer the next request either, nor does a second push help.
        throw new TartanError(
          'ERR_DEADLINE',
          `Cannot push the program: the switch has not answered ${isSaved ? 'COMMIT' : 'VERIFY_AND_SAVE'} in time; ` +
            'BMv2 may hang there for ever while packets are under way: if it stays so, restart its process',
          { cause: error },
        );
      if (!(error instanceof P4RuntimeError) || (error.code !== 'ERR_P4_RPC' && error.code !== 'ERR_P4_WRITE'))
        throw error;
      // Those that were entered for the saved program; where none was saved a write could kill BMv2.
      if (isSaved) await this.removeMulticast(program);
      await this.client.setPipeline(pipeline, VERIFY_AND_COMMIT);
      await this.write(entering(program, entities));
    }
  }

  /** Of whatever program the switch runs, none included. */
  private async removeMulticast(program: Program): Promise<void> {
    let groups: v1.Entity[];
    try {
      groups = await this.client.readAll(allMulticastGroups());
    } catch (error) {
      // A switch without a program has no groups.
      if (error instanceof P4RuntimeError && error.status === Status.FAILED_PRECONDITION) return;
      throw error;
    }
    await this.write(removing(program, groups));
  }

  /** All tables' entries and all multicast groups. */
  async present(program: Program): Promise<v1.Entity[]> {
    const found = await this.client.readAll(tableWildcard(program));
    // Apart: a server may answer a request of several kinds with the first one's.
    found.push(...(await this.client.readAll(allMulticastGroups())));
    return found;
  }

  /** @returns how many updates were written */
  async write(steps: readonly (readonly v1.Update[])[]): Promise<number> {
    for (const step of steps) await this.client.write(step);
    return steps.reduce((sum, step) => sum + step.length, 0);
  }

  read(...entities: v1.Entity[]): Promise<v1.Entity[]> {
    return this.client.readAll(...entities);
  }

  close(): void {
    this.client.close();
  }
}

function isUnanswered(error: unknown): boolean {
  return error instanceof P4RuntimeError && error.status === Status.DEADLINE_EXCEEDED;
}
