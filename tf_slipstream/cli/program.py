"""Parses the command line; turns failures into one line and an exit code."""

import argparse
import contextlib
import errno
import os
import sys

from tf_slipstream.cli import analyze, apply_delta, compare, inspect
from tf_slipstream.cli.failures import sentence_of
from tf_slipstream.cli.printed import printable
from tf_slipstream.delta.errors import ExportError

_COMMANDS = (analyze, compare, apply_delta, inspect)
_DONE, _FAILED = 0, 1  # argparse itself exits with 2 on wrong usage

_EPILOG = """\
exit codes:
  0  done
  1  refused, or failed; the reason is on stderr, in one line
  2  wrong usage
"""


def main(argv=None):
    """Runs the program.

    Args:
        argv: List of arguments; None: those of the process.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args.run(args)
        # Else a full disk would be noticed at exit alone, and by Python.
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _drop_output()
        return _DONE
    except KeyboardInterrupt:
        return _failed(args, "interrupted; nothing was made")
    except (ExportError, ImportError, OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            _drop_output()
        return _failed(args, error)
    return _DONE


def _drop_output():
    """Lets go of what could not be printed: Python would complain of it again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(args, reason):
    line = printable(sentence_of(reason))
    print(f"tf-slipstream {args.command}: error: {line}", file=sys.stderr)
    return _FAILED


def _parser():
    parser = argparse.ArgumentParser(
        prog="tf-slipstream",
        description="Looks at logs before training; makes and inspects published models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # That of the package, which is imported whenever this module is.
    version = sys.modules["tf_slipstream"].__version__
    parser.add_argument("--version", action="version", version=f"tf-slipstream {version}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(subparsers)
    return parser
