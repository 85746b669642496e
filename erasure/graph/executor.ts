/**
 * Runs many instances of operation graphs. The only place that handles errors of an operation.
 *
 * Intuition: an instance walks from the head towards the commit. When a node fails, nothing new is issued; when the
 * last node under way has answered, everything done is undone in reverse order of its completion (the roll-back to the
 * head) and the owner learns that the instance rolled back. The owner changes its picture of the array and starts a
 * compensating graph built from the new picture.
 *
 * Invariants: each node is issued at most once per start and answered exactly once by `done` or `fail`; `undo` is
 * called exactly once for each done node of a failed instance, never for others; `finished` and `rolledBack` exclude
 * each other and come last. State is in typed arrays: a start, a completion and a commit allocate nothing.
 *
 * States of a node:   WAITING ──predecessors done──▶ ISSUED ──▶ DONE ──(roll-back)──▶ UNDONE
 *                        └──(another failed)──▶ stays           └─▶ FAILED
 */
import type { GraphTemplate } from './template.js';
import { MAX_GRAPH_NODES } from './template.js';

export const NodeState = { WAITING: 0, ISSUED: 1, DONE: 2, FAILED: 3, UNDONE: 4 } as const;

export interface GraphOwner {
  /** Starts the node's work; answers later, or at once, with done() or fail(). */
  issue(instance: number, node: number, kind: number, argument: number): void;
  /** Takes back what a done node holds. */
  undo(instance: number, node: number, kind: number, argument: number): void;
  finished(instance: number): void;
  /** @param node the first that failed  @param reason as given to fail() */
  rolledBack(instance: number, node: number, reason: number): void;
}

export class GraphExecutor {
  private readonly owner: GraphOwner;
  private readonly templates: (GraphTemplate | undefined)[];
  private readonly states: Uint8Array;
  private readonly waits: Uint8Array;
  /** Order of completion, for undoing in reverse. */
  private readonly order: Uint8Array;
  private readonly doneCount: Uint8Array;
  private readonly underWay: Uint8Array;
  private readonly failedNode: Int16Array;
  private readonly failReason: Uint32Array;

  /** @param instances most instances at once; an instance is named 0 … instances − 1 by the owner */
  constructor(instances: number, owner: GraphOwner) {
    this.owner = owner;
    this.templates = new Array<GraphTemplate | undefined>(instances).fill(undefined);
    this.states = new Uint8Array(instances * MAX_GRAPH_NODES);
    this.waits = new Uint8Array(instances * MAX_GRAPH_NODES);
    this.order = new Uint8Array(instances * MAX_GRAPH_NODES);
    this.doneCount = new Uint8Array(instances);
    this.underWay = new Uint8Array(instances);
    this.failedNode = new Int16Array(instances);
    this.failReason = new Uint32Array(instances);
  }

  /** Whether the instance is between start and its finished or rolledBack. */
  running(instance: number): boolean {
    return this.templates[instance] !== undefined;
  }

  stateOf(instance: number, node: number): number {
    return this.states[instance * MAX_GRAPH_NODES + node]!;
  }

  start(instance: number, template: GraphTemplate): void {
    if (this.templates[instance] !== undefined) throw new Error(`graph instance ${instance} is started twice`);
    this.templates[instance] = template;
    const base = instance * MAX_GRAPH_NODES,
      count = template.nodeCount;
    for (let i = 0; i < count; i++) {
      this.states[base + i] = NodeState.WAITING;
      this.waits[base + i] = template.waits[i]!;
    }
    this.doneCount[instance] = 0;
    this.failedNode[instance] = -1;
    // The head counts as under way while it issues, so that nodes that answer at once can't end the instance early.
    this.underWay[instance] = 1;
    for (let i = 0; i < count && this.failedNode[instance] === -1; i++) {
      if (template.waits[i] === 0 && this.states[base + i] === NodeState.WAITING) this.issue(instance, template, i);
    }
    this.underWay[instance]!--;
    this.settle(instance, template);
  }

  done(instance: number, node: number): void {
    const template = this.answered(instance, node);
    const base = instance * MAX_GRAPH_NODES;
    this.states[base + node] = NodeState.DONE;
    this.order[base + this.doneCount[instance]!++] = node;
    if (this.failedNode[instance] === -1) {
      const end = template.successorStart[node + 1]!;
      for (let i = template.successorStart[node]!; i < end && this.failedNode[instance] === -1; i++) {
        const next = template.successors[i]!;
        if (--this.waits[base + next]! === 0) this.issue(instance, template, next);
      }
    }
    this.underWay[instance]!--;
    this.settle(instance, template);
  }

  /** @param reason any number of the owner's; the first failure's is kept */
  fail(instance: number, node: number, reason: number): void {
    const template = this.answered(instance, node);
    this.states[instance * MAX_GRAPH_NODES + node] = NodeState.FAILED;
    if (this.failedNode[instance] === -1) {
      this.failedNode[instance] = node;
      this.failReason[instance] = reason;
    }
    this.underWay[instance]!--;
    this.settle(instance, template);
  }

  private answered(instance: number, node: number): GraphTemplate {
    const template = this.templates[instance];
    if (template === undefined || this.states[instance * MAX_GRAPH_NODES + node] !== NodeState.ISSUED) {
      throw new Error(`graph instance ${instance}: node ${node} answered but is not under way`);
    }
    return template;
  }

  private issue(instance: number, template: GraphTemplate, node: number): void {
    this.states[instance * MAX_GRAPH_NODES + node] = NodeState.ISSUED;
    this.underWay[instance]!++;
    this.owner.issue(instance, node, template.kinds[node]!, template.args[node]!);
  }

  private settle(instance: number, template: GraphTemplate): void {
    if (this.underWay[instance] !== 0 || this.templates[instance] !== template) return;
    const failed = this.failedNode[instance]!;
    if (failed === -1) {
      // Nothing under way and nothing failed: in an acyclic graph then everything is done.
      this.templates[instance] = undefined;
      this.owner.finished(instance);
      return;
    }
    const base = instance * MAX_GRAPH_NODES;
    for (let i = this.doneCount[instance]! - 1; i >= 0; i--) {
      const node = this.order[base + i]!;
      this.states[base + node] = NodeState.UNDONE;
      this.owner.undo(instance, node, template.kinds[node]!, template.args[node]!);
    }
    this.templates[instance] = undefined;
    this.owner.rolledBack(instance, failed, this.failReason[instance]!);
  }
}
