"""tf-slipstream inspect."""

import argparse
import json

from tf_slipstream.cli.printed import printable, unverified_lines

_DESCRIPTION = """\
Says what a SavedModel, a checkpoint or a delta holds: tables, rows, dims, changed rows, versions.

A checkpoint is named by its prefix (ckpt-7) or its index file (ckpt-7.index). All of it is compared
with its checksums, and refused if a byte was altered.
"""

_EPILOG = """\
examples:
  tf-slipstream inspect models/m/1
  tf-slipstream inspect --json deltas/2
"""


def add_to(subparsers):
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "inspect",
        help="say what a SavedModel, checkpoint or delta holds",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="SavedModel folder, checkpoint or delta file")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare it with its checksums, which reads all of it",
    )
    parser.set_defaults(run=_run)


def _run(args):
    from tf_slipstream.delta.inspection import inspect

    described = inspect(args.path, verify=args.verify)
    if args.json:
        print(json.dumps(described))
        return
    size = f"{described['num_bytes'] / 1e6:,.1f} MB"
    print(f"{printable(args.path)}: {_headline(described)}, {size}")
    rows = [_row(tensor) for tensor in described["tensors"]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for line in unverified_lines(described["is_verified"], described["unverified"]):
        print(line)


def _headline(described):
    if described["kind"] == "delta":
        base, result = described["base"], described["result"]
        return f"delta from version {base['version']} to version {result['version']}"
    if described.get("version") is not None:
        return f"SavedModel, version {described['version']} (id {described['id']})"
    return {"saved_model": "SavedModel", "checkpoint": "checkpoint"}[described["kind"]]


def _row(tensor):
    shape = tensor["shape"]
    if len(shape) == 2:
        what = f"{shape[0]:,} rows of {shape[1]:,}"
    else:
        what = "x".join(f"{size:,}" for size in shape) or "scalar"
    table = f"table {tensor['table']}" if tensor.get("table") else ""
    changed = {None: "", "none": "unchanged", "whole": "changed"}.get(tensor.get("change"))
    if changed is None:
        changed = f"{tensor['num_rows']:,} rows changed"
    return [printable(cell) for cell in (tensor["name"], tensor["dtype"], what, table, changed)]
