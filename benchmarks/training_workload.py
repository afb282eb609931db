"""The models and batches of `training_step.py`, the same for every subject.

Needs NumPy alone, so that a peer in another environment can import it.
"""

import argparse
import dataclasses

import numpy as np
import workload

LEARNING_RATE = 0.01
RULES = ("sgd", "adagrad", "adam")


@dataclasses.dataclass(frozen=True)
class Model:
    """A click model: tables, and dense layers that end in one logit.

    Attributes:
        bags: Lookups of each field, summed; one per table.
        dim: Length of a row.
        num_dense: Dense features of an example.
        bottom: Units of the layers on the dense features, relu; the last is `dim`.
        top: Units of the layers on what the interaction gives, relu, before the logit's own.
        towers: Units of the layers of either tower, relu but for the last.
        interaction: `"dot"`, of all pairs of rows and the bottom's output, next to that output;
            `"concat"`, of dense features and rows; or `"towers"`, the dot product of two towers,
            one on the first half of the fields and one on the rest.
    """

    bags: tuple
    dim: int
    num_dense: int
    interaction: str
    bottom: tuple = ()
    top: tuple = ()
    towers: tuple = ()

    @property
    def half(self):
        """How many fields belong to the first tower."""
        return len(self.bags) // 2

    def layer_shapes(self):
        """Returns `(inputs, units)` of every dense layer, in the order of their use."""
        if self.interaction == "towers":
            widths = [self.half * self.dim, (len(self.bags) - self.half) * self.dim]
            return [shape for width in widths for shape in _stack(width, self.towers)]
        width = self.num_dense + len(self.bags) * self.dim
        if self.interaction == "dot":
            num_vectors = len(self.bags) + 1
            width = self.dim + num_vectors * (num_vectors - 1) // 2
        return _stack(self.num_dense, self.bottom) + _stack(width, (*self.top, 1))


def _stack(width, units):
    return list(zip((width, *units), units))


MODELS = {
    # Naumov et al. 2019, and `dlrm_s_criteo_kaggle.sh` beside its code.
    "dlrm": Model((1,) * 26, 16, 13, "dot", bottom=(512, 256, 64, 16), top=(512, 256)),
    # So little in dense layers that the tables decide.
    "small_mlp": Model((1,) * 26, 16, 13, "concat", top=(64,)),
    # As little, and four times as many fields: what each field costs by itself.
    "many_fields": Model((1,) * 100, 16, 13, "concat", top=(64,)),
    # A user and the last items seen; an item and its category.
    "two_tower": Model((1, 10, 1, 1), 32, 0, "towers", towers=(64, 32)),
}
# Of models whose tables are not those of Criteo Kaggle.
CARDINALITIES = {
    "many_fields": (10_000,) * 100,
    "two_tower": (4_000_000, 1_000_000, 1_000_000, 1_000),
}


def arguments(argv=None):
    """Returns a subject's parsed command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subject", required=True)
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--cardinalities", type=int, nargs="+", required=True)
    parser.add_argument("--rule", choices=RULES, default="adagrad")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--zipf", type=float, default=1.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=workload.NUM_BATCHES)
    parser.add_argument("--max-seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def batches(args):
    """Returns `NUM_BATCHES` batches stacked.

    Returns:
        Dense features float32 `[NUM_BATCHES, batch, num_dense]`, a list of ids int64
        `[NUM_BATCHES, batch, bag]` per field, and labels float32 `[NUM_BATCHES, batch, 1]`.
    """
    model = MODELS[args.model]
    rng = np.random.default_rng(args.seed)
    shape = (workload.NUM_BATCHES, args.batch_size)
    ids = [
        workload.zipf_ids(rng, rows, args.zipf, (*shape, bag))
        for rows, bag in zip(args.cardinalities, model.bags)
    ]
    dense = np.log1p(rng.lognormal(1.0, 1.0, (*shape, model.num_dense))).astype(np.float32)
    labels = (rng.random((*shape, 1)) < 0.25).astype(np.float32)
    return dense, ids, labels


def forward_loss(model, tables, layers, dense, ids, labels):
    """Returns the mean loss of a batch in float64: what every subject must compute.

    Args:
        model: `Model`.
        tables: List of arrays `[num_rows, dim]`.
        layers: List of pairs of a kernel `[inputs, units]` and a bias `[units]`.
        dense: `[batch, num_dense]`.
        ids: List of int arrays `[batch, bag]`.
        labels: `[batch, 1]`.
    """
    shapes = [kernel.shape for kernel, _ in layers]
    if shapes != model.layer_shapes():
        raise AssertionError(f"Expected dense layers of {model.layer_shapes()}; got {shapes}.")
    layers = [tuple(array.astype(np.float64) for array in layer) for layer in layers]
    rows = [t.astype(np.float64)[i].sum(axis=1) for t, i in zip(tables, ids)]
    if model.interaction == "towers":
        num = len(model.towers)
        first = _dense_layers(np.concatenate(rows[: model.half], axis=1), layers[:num])
        second = _dense_layers(np.concatenate(rows[model.half :], axis=1), layers[num:])
        logits = np.sum(first * second, axis=1, keepdims=True)
    else:
        num = len(model.bottom)
        x = _dense_layers(dense, layers[:num], ends_linear=False)
        vectors = [x, *rows]
        if model.interaction == "dot":
            stacked = np.stack(vectors, axis=1)  # [batch, num_vectors, dim]
            dots = stacked @ stacked.transpose(0, 2, 1)
            rows, columns = pairs(len(vectors))
            vectors = [x, dots[:, rows, columns]]
        logits = _dense_layers(np.concatenate(vectors, axis=1), layers[num:])
    return np.mean(np.logaddexp(0, logits) - labels * logits)


def pairs(num_vectors):
    """Returns the two index arrays of all pairs, as the published DLRM orders them."""
    return np.tril_indices(num_vectors, k=-1)


def _dense_layers(x, layers, ends_linear=True):
    for index, (kernel, bias) in enumerate(layers):
        x = x @ kernel + bias
        if not ends_linear or index < len(layers) - 1:
            x = np.maximum(x, 0)
    return x


def check(make_subject, args):
    """Fails unless the subject's loss on a small batch is the model's, and a step lowers it."""
    small = argparse.Namespace(**vars(args))
    small.cardinalities = [min(rows, 100) for rows in args.cardinalities]
    small.batch_size = 64
    subject = make_subject(small)
    dense, ids, labels = batches(small)
    model = MODELS[args.model]
    first = dense[0], [field[0] for field in ids], labels[0]
    expected = forward_loss(model, *subject.weights(), *first)
    np.testing.assert_allclose(subject.train_on(*first), expected, rtol=1e-5)
    assert forward_loss(model, *subject.weights(), *first) < expected, "a step did not help"


def main(subjects, packages):
    """Checks, times and reports the subject that the command line names.

    Args:
        subjects: Dict from names to classes, made from `args`, with `weights()` (tables, dense
            layers), `train_on(dense, ids, labels)`, which returns the loss before its step, and
            `measure(args, dense, ids, labels)`, which returns seconds, one per step.
        packages: Names of the distributions whose versions belong in the result.
    """
    args = arguments()
    check(subjects[args.subject], args)
    data = batches(args)
    memory_before = workload.peak_memory()
    seconds = subjects[args.subject](args).measure(args, *data)
    versions = {package: workload.version(package) for package in packages}
    workload.report(args, seconds, memory_before=memory_before, versions=versions)
