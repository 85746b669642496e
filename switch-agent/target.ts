/** What an agent's process needs of the switch that it drives: the software switch, or a P4 switch. */
import type { OpenGroupsReply, OpenGroupsRequest, SwitchStatus } from '../wire/generated/control.js';
import type { Sample } from './metrics.js';

export interface Target {
  /**
   * @param controlPort  where the agent is reached by then
   * @returns the port to tell: of rings, or the control port
   */
  start(controlPort: number): Promise<number>;
  load(program: string): Promise<void>;
  unload(): Promise<void>;
  /** Also before start(): then it is down. */
  status(): Promise<SwitchStatus>;
  openGroups?(request: OpenGroupsRequest): Promise<OpenGroupsReply>;
  /** By metric name. */
  counters(): Promise<Record<string, number>>;
  /** Those with labels. */
  samples(): readonly Sample[];
  stop(): Promise<void>;
}
