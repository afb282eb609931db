"""tf-slipstream compare."""

import argparse
import json
import shlex
import textwrap

from tf_slipstream.cli.printed import printable
from tf_slipstream.cli.written import check_can_write, write_text

_DESCRIPTION = """\
Says whether trained configurations are as good as a baseline, with how sure that is, and what their
time is worth. Runs are those that slipstream.Experiment saved: the same test examples, the same
seeds. Or it trains them first, one after the other, each in a process of its own: --train names a
Python file with two functions,

  train(name, seed)   trains the configuration of that name; what it returns goes to
  test(trained)       which returns labels and scores of the test examples, or a dict of what
                      Run.save takes

Only train is timed. Runs that RUNS has already are not done again.
"""

_EPILOG = """\
examples:
  tf-slipstream compare runs --baseline none --by country --price-per-hour 3 --runs-per-day 4
  tf-slipstream compare runs --baseline none --train job.py --configurations none default --seeds 3
"""


def add_to(subparsers):
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="say whether trained configurations are as good as a baseline",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", metavar="RUNS", help="folder of saved runs")
    add("--baseline", required=True, metavar="NAME", help="configuration to compare with")
    add("--train", metavar="FILE", help="Python file: train what RUNS lacks first")
    add("--configurations", nargs="+", metavar="NAME", help="to train; the baseline is one")
    add("--seeds", type=int, metavar="N", help="to train with, 0 to N - 1; 3")
    add("--margin", type=float, default=0.001, help="loss of AUC that is none yet; 0.001")
    add("--by", metavar="COLUMN", help="the same for each group")
    add("--price-per-hour", type=float, metavar="MONEY", help="of training")
    add("--runs-per-day", type=float, metavar="N", help="how often one trains")
    add("--cost-once", type=float, metavar="MONEY", help="of the change, for the break-even")
    add("--json", action="store_true", help="print all that was found as JSON")
    add("--html", metavar="FILE", help="write a page, too")
    add("--markdown", metavar="FILE", help="write Markdown, too")
    add("--language", default="en", choices=("en", "ja"), help="of the page's headline; en")
    parser.set_defaults(run=_run)


def _run(args):
    from tf_slipstream.comparison import report
    from tf_slipstream.comparison.compare import compare, load_runs

    if not args.margin > 0:
        raise ValueError(f"expected --margin to be above 0; got {args.margin}")
    _check_training(args)
    check_can_write(args.html)
    check_can_write(args.markdown)
    if args.train:
        from tf_slipstream.comparison.training import train_runs

        seeds = range(3 if args.seeds is None else args.seeds)
        train_runs(args.folder, args.train, args.configurations, seeds)
    found = compare(
        load_runs(args.folder),
        args.baseline,
        args.margin,
        args.by,
        args.price_per_hour,
        args.runs_per_day,
        args.cost_once,
    )
    command = shlex.join(["tf-slipstream", *args.argv])
    if args.html:
        write_text(args.html, report.page(found, command, args.language))
    if args.markdown:
        write_text(args.markdown, report.markdown(found, command))
    if args.json:
        print(json.dumps(found))
        return
    for line in report.text_lines(found):
        is_prose = not line.startswith("  ")
        for part in textwrap.wrap(line, 80) if is_prose and line else [line]:
            print(printable(part))
    for path in filter(None, (args.html, args.markdown)):
        print(f"\nThe report is {printable(path)}.")


def _check_training(args):
    """Refuses arguments of training that do not fit together."""
    if not args.train:
        if args.configurations or args.seeds is not None:
            raise ValueError("--configurations and --seeds are for --train, which is missing")
        return
    names = args.configurations or []
    if len(set(names)) < 2 or args.baseline not in names:
        raise ValueError(
            f"expected --configurations with {args.baseline!r}, the baseline, and at least one "
            f"other; got {' '.join(names) or 'none'}"
        )
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"expected --seeds to be at least 1; got {args.seeds}")
