"""The program `tf-slipstream`: subcommands for who serves models, or decides, by a shell.

A subcommand parses arguments, calls a function of the package and prints. No work is done here.
To add one: a module with `add_to(subparsers)`, as in `apply_delta`, listed in `program._COMMANDS`.
Import what does the work when the command runs: `--help` and `--version` are to be quick, and a
serving host may have no TensorFlow.
"""

from tf_slipstream.cli.program import main

__all__ = ["main"]
