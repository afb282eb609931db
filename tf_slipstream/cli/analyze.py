"""tf-slipstream analyze."""

import argparse
import json
import os
import shlex

from tf_slipstream.cli.printed import printable
from tf_slipstream.cli.progress import Progress
from tf_slipstream.cli.written import check_can_write, write_text

_DESCRIPTION = """\
Says what a log holds for training on it: how uneven its ids are, how that changes over time, what a
policy would let sleep, what it would save, and whether it is worth it. Nothing is trained.

The log is read once, in a bounded memory, whatever its size: Criteo's text, any table of comma- or
tab-separated values (.gz too), parquet, or TFRecords of tf.Example (.tfrecord). Order counts: give
the log in the order of training, or with --shuffle.
"""

_EPILOG = """\
examples:
  tf-slipstream analyze train.txt --workers 4 --bandwidth 1 --html report.html
  tf-slipstream analyze clicks.parquet --fields user,item --time when --shuffle 1000000
"""


def add_to(subparsers):
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "analyze",
        help="say whether rows that sleep are worth it for a log, before any training",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("path", metavar="DATA", help="the log")
    add("--fields", metavar="A,B", help="columns of ids; without, all of integers or text")
    add("--label", metavar="NAME", help="column with 0 and 1; without, one of a usual name")
    add("--time", metavar="NAME", help="column with seconds since 1970 or dates: then by day")
    add("--sample", type=float, default=1.0, metavar="SHARE", help="of the log to read; 1")
    add("--shuffle", type=int, default=0, metavar="N", help="shuffle within N examples; 0")
    add("--batch-size", type=int, default=2048, metavar="N", help="examples of a step; 2048")
    add("--dim", type=int, default=16, metavar="N", help="length of a row; 16")
    add("--optimizer", default="adagrad", choices=_OPTIMIZERS, help="the tables'; adagrad")
    add("--workers", type=int, default=1, metavar="N", help="that train at once; 1")
    add("--bandwidth", type=float, default=10.0, metavar="GBIT", help="of a worker, a second; 10")
    add("--compute-ms", type=float, default=0.0, metavar="MS", help="of a step's dense part; 0")
    add("--memory", type=int, default=800, metavar="MB", help="for counts, about; 800")
    add("--json", action="store_true", help="print all that was found as JSON")
    add("--html", metavar="FILE", help="write a page with plots, too")
    add("--language", default="en", choices=("en", "ja"), help="of the page's headline; en")
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show progress on stderr; without either, if stderr is a terminal",
    )
    parser.set_defaults(run=_run)


_OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "ftrl")


def _run(args):
    found = _found(args)
    if args.html:
        from tf_slipstream.analysis.report_page import page

        write_text(args.html, page(found, shlex.join(["tf-slipstream", *args.argv]), args.language))
    if args.json:
        print(json.dumps(found))
        return
    from tf_slipstream.analysis.report_text import lines

    for line in lines(found):
        print(printable(line))
    if args.html:
        print(f"\nThe page is {printable(args.html)}.")


def _found(args):
    from tf_slipstream.analysis.open_log import open_log
    from tf_slipstream.analysis.survey import Options, Survey
    from tf_slipstream.analysis.verdict import Setting, conclude
    from tf_slipstream.policy import StalenessPolicy

    _check(args)
    check_can_write(args.html)
    fields = None if args.fields is None else [f.strip() for f in args.fields.split(",")]
    log = open_log(args.path, fields, args.label, args.time)
    options = Options(
        batch_size=args.batch_size,
        policies={
            "default": StalenessPolicy(),
            "balanced": StalenessPolicy.balanced(),
            "auto": StalenessPolicy.auto(),
            "aggressive": StalenessPolicy.aggressive(),
        },
        optimizer=args.optimizer,
        sample=args.sample,
        shuffle=args.shuffle,
        max_bytes=args.memory * 1_000_000,
    )
    progress, size = Progress(args.progress), os.path.getsize(args.path)
    try:
        found = Survey(log, options).run(lambda done: progress("reading", round(done * size), size))
    finally:
        progress.close()
    setting = Setting(args.workers, 1e9 * args.bandwidth, args.dim, args.optimizer, args.compute_ms)
    return {"path": args.path, **found, **conclude(found, setting, args.path)}


def _check(args):
    """Refuses numbers that mean nothing."""
    for name, is_good, expected in (
        ("sample", 0 < args.sample <= 1, "above 0 and at most 1"),
        ("shuffle", args.shuffle >= 0, "0 or more"),
        ("batch-size", 1 <= args.batch_size <= 1_000_000, "from 1 to 1,000,000"),
        ("dim", args.dim >= 1, "at least 1"),
        ("workers", args.workers >= 1, "at least 1"),
        ("bandwidth", args.bandwidth > 0, "above 0, in Gbit a second"),
        ("compute-ms", args.compute_ms >= 0, "0 or more"),
        ("memory", args.memory >= 10, "at least 10 MB"),
    ):
        if not is_good:
            value = getattr(args, name.replace("-", "_"))
            raise ValueError(f"expected --{name} to be {expected}; got {value}")
