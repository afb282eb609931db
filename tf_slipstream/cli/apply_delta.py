"""tf-slipstream apply-delta."""

import argparse
import dataclasses
import json

from tf_slipstream.cli.printed import printable, unverified_lines
from tf_slipstream.cli.progress import Progress

_DESCRIPTION = """\
Makes the folder of a version from that of its base and a delta.

The folder appears when it is complete, so that TensorFlow Serving never loads half of it. A delta
or a base that was cut off or altered is refused, as is a delta that does not fit the base, and
nothing is made.
"""

_EPILOG = """\
example:
  tf-slipstream apply-delta --base models/m/1 --delta d2 --out models/m/2
"""


def add_to(subparsers):
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "apply-delta",
        help="make the next version's folder from its base and a delta",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", required=True, metavar="DIR", help="folder of the base version")
    parser.add_argument("--delta", required=True, metavar="FILE", help="what save_delta made")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the base with its checksums, which reads all of it",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show progress on stderr; without either, if stderr is a terminal",
    )
    parser.set_defaults(run=_run)


def _run(args):
    from tf_slipstream.delta.apply import apply_delta

    progress = Progress(args.progress)
    try:
        done = apply_delta(args.base, args.delta, args.out, progress, verify=args.verify)
    finally:
        progress.close()
    if args.json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(f"{printable(done.out)}: version {done.version}, {done.num_bytes / 1e6:,.1f} MB")
    for name, num_rows in done.num_rows.items():
        print(f"  {printable(name)}: {num_rows:,} rows changed")
    for line in unverified_lines(done.is_verified, done.unverified):
        print(line)
