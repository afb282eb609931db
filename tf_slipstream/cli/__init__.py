"""The program `tf-slipstream`: subcommands for who serves models and has only a shell.

A subcommand parses arguments, calls a function of the package and prints. No work is done here.
To add one: a module with `add_to(subparsers)`, as in `apply_delta`, listed in `main._COMMANDS`;
import TensorFlow in it, if at all, when the command runs, because a serving host may have none.
"""

from tf_slipstream.cli.main import main

__all__ = ["main"]
