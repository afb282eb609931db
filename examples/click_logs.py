"""The click log that an example trains on: a file of Criteo's, or a synthetic one."""

import sys

import running
import tensorflow as tf

import tf_slipstream as slipstream


def add_arguments(parser):
    """Adds the arguments that `load` reads."""
    parser.add_argument("--data", help="Criteo .tsv, .tsv.gz or .parquet; default: synthetic")
    parser.add_argument("--hash-size", type=running.count, help="ids per field of --data")
    parser.add_argument(
        "--scale", type=running.rate, default=0.01, help="of Criteo's fields, if synthetic"
    )
    parser.add_argument("--seed", type=int, default=0)


def load(args, num_needed=5, **options):
    """Returns the `ClickLog` that the command line asks for; ends the program if it cannot.

    Args:
        args: Parsed arguments of `add_arguments`.
        num_needed: How many examples a file must have.
        **options: Arguments of `SyntheticClickLog`.
    """
    if args.data is None:
        cardinalities = slipstream.data.criteo_cardinalities(scale=args.scale)
        return slipstream.data.SyntheticClickLog(
            cardinalities=cardinalities, seed=args.seed, **options
        )
    try:
        log = slipstream.data.open_click_log(args.data, hash_size=args.hash_size)
        num_examples = log.num_examples  # Reads text to its end, to count its lines.
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"Cannot read {args.data}: {error}")
    if num_examples < num_needed:
        sys.exit(
            f"{args.data} has {num_examples:,} examples, and {num_needed:,} are asked for: give "
            "smaller numbers of examples"
        )
    return log


def dataset(log, num_examples, batch_size, start=0):
    """Returns a part of a log as a dataset that knows how many batches it has."""
    data = log.dataset(num_examples, batch_size, start=start)
    return data.apply(tf.data.experimental.assert_cardinality(-(-num_examples // batch_size)))
