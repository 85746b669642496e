/** The commands that build a network of their own: `tartan testbed` and `tartan experiment`. */
import { Option, type Command } from 'commander';
import { parseCount } from './quantities.js';

/**
 * @param command  makes a command of the program
 * @param json     makes the option of commands that can print JSON
 */
export function addTestbedCommands(command: (name: string, description: string) => Command, json: () => Option): void {
  command('testbed', 'a cluster on a shaped network of namespaces, until Ctrl-C (root, Mininet)')
    .option('--nodes <n>', 'storage hosts', '3')
    .option('--writers <n>', 'writer hosts', '1')
    .option('--switches <n>', 'switch hosts', '1')
    .option('--rate <rate>', 'of every link: 200mbit, 1gbit', '1gbit')
    .option('--code <code>', 'refuses a network that is too small for it')
    .addOption(
      new Option('--durability <kind>', 'of the nodes').choices(['sync', 'volatile', 'discard']).default('sync'),
    )
    .addOption(
      new Option('--device <device>', 'soft: on the shaped network; verbs: over soft-RoCE on this machine, unshaped')
        .choices(['soft', 'verbs'])
        .default('soft'),
    )
    .addOption(
      new Option('--switch <kind>', 'bmv2: one P4 switch, which every frame passes (simple_switch_grpc on PATH)')
        .choices(['soft', 'bmv2'])
        .default('soft'),
    )
    .option('--netdev <card>', 'with --device verbs: the network card to use (default: one made for it)')
    .addOption(json())
    .action(async (_: unknown, self: Command) => {
      const options = self.opts<{
        device: 'soft' | 'verbs';
        netdev?: string;
        nodes: string;
        writers: string;
        switches: string;
        rate: string;
        code?: string;
        durability: 'sync' | 'volatile' | 'discard';
        switch: 'soft' | 'bmv2';
        json?: boolean;
      }>();
      const { testbed, verbsTestbed } = await import('./testbed-commands.js');
      if (options.device === 'verbs') {
        await verbsTestbed({
          nodes: parseCount(options.nodes, '--nodes', 1, 14),
          netdev: options.netdev,
          durability: options.durability,
          json: options.json === true,
        });
        return;
      }
      await testbed({
        nodes: parseCount(options.nodes, '--nodes', 1, 48),
        writers: parseCount(options.writers, '--writers', 1, 16),
        switches: parseCount(options.switches, '--switches', 1, 4),
        rate: options.rate,
        code: options.code,
        durability: options.durability,
        switchKind: options.switch,
        json: options.json === true,
      });
    });

  command('experiment', 'measures on shaped links, writes CSV, JSON, SVG and PNG (root, Mininet); all: one HTML report')
    .argument('<name>', 'all, or one of those that a wrong name lists')
    .option('--quick', 'a few points, under two minutes')
    .option('--rate <rate>', "of every link (default: the experiment's own)")
    .option('--code <code...>', 'stripe-size, files: only these codes')
    .addOption(
      new Option('--switch <kind>', 'bmv2: a P4 switch, for stripe-size and fallback')
        .choices(['soft', 'bmv2'])
        .default('soft'),
    )
    .option('--out <folder>', 'where its files go', 'experiments')
    .addOption(json())
    .action(async (name: string, _: unknown, self: Command) => {
      const options = self.opts<{
        quick?: boolean;
        rate?: string;
        code?: string[];
        switch: 'soft' | 'bmv2';
        out: string;
        json?: boolean;
      }>();
      const { experiment } = await import('./experiment-commands.js');
      await experiment(name, {
        quick: options.quick === true,
        rate: options.rate,
        codes: options.code,
        switchKind: options.switch,
        out: options.out,
        json: options.json === true,
      });
    });
}
