"""Saves what trained configurations did on the same test examples, for `tf-slipstream compare`."""

import contextlib
import json
import os
import pathlib
import resource
import time

import numpy as np

_RAPL = pathlib.Path("/sys/class/powercap")


class Experiment:
    """A folder of runs: each a configuration that was trained with a seed.

    Give all runs the same test examples in the same order, and each configuration the same seeds:
    they are compared pair by pair.

    Args:
        folder: Path, made where it is not there.

    Example:

    ```python
    experiment = slipstream.Experiment("runs")
    for seed in range(5):
        for name, policy in (("none", None), ("default", "default")):
            with experiment.run(name, seed) as run:
                model = train(policy, seed)
            run.save(labels, model.predict(inputs), groups={"country": country})
    # then: tf-slipstream compare runs --baseline none --by country
    ```
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def run(self, name, seed):
        """Measures what a `with` block takes, the training; gives a `Run` to save after it.

        Args:
            name: Of the configuration, letters, digits, `.`, `_`, `=`, `,` and `-`.
            seed: Integer of at least 0.
        """
        run = Run(self.folder, name, seed)
        _reset_peak()
        joules, began = _joules(), time.perf_counter()
        yield run
        run.seconds = time.perf_counter() - began
        run.peak_bytes = _peak_bytes()
        after = _joules()
        # The counter begins anew once in a while.
        run.joules = after - joules if joules is not None and after >= joules else None


class Run:
    """One run.

    Attributes:
        name, seed: As of `Experiment.run`.
        seconds: That the training took.
        peak_bytes: The most memory of this process in it; None where Linux does not tell.
        joules: Of the processors meanwhile, all programs' together; None where they do not tell.
    """

    def __init__(self, folder, name, seed):
        is_plain = isinstance(name, str) and name and all(c.isalnum() or c in "._=,-" for c in name)
        if not is_plain or name.startswith("."):
            raise ValueError(
                f"`name` must be letters, digits, '.', '_', '=', ',' or '-'; got {name!r}."
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"`seed` must be an integer of at least 0, got {seed!r}.")
        self._path = pathlib.Path(folder) / f"{name}-{seed}.run.npz"
        self.name, self.seed = name, seed
        self.seconds = self.peak_bytes = self.joules = None

    def is_saved(self):
        """Returns whether the folder has a run of this name and seed."""
        return self._path.exists()

    def save(self, labels, scores, groups=None, waits=None, num_bytes=None):
        """Saves the run to a file of the folder, in place of one of the same name and seed.

        Args:
            labels: `[num_examples]`, 0 or 1, of the test examples.
            scores: `[num_examples]`, the model's probabilities.
            groups: Dict from a column's name to values `[num_examples]`, integers or text, for
                `--by`.
            waits: `[num_examples]`, the share of each example's lookups that go to rows that may
                sleep (`slipstream.popular_share`), to be told by group.
            num_bytes: That crossed the network in training, where somebody counted.

        Raises:
            ValueError: If a shape does not fit, a label is not 0 or 1, or a score no probability.
        """
        labels = np.asarray(labels, np.float64).ravel()
        scores = np.asarray(scores, np.float64).ravel()
        columns = {f"group_{name}": np.asarray(values) for name, values in (groups or {}).items()}
        if waits is not None:
            columns["waits"] = np.asarray(waits, np.float64)
        for name, column in {"scores": scores, **columns}.items():
            if column.shape != labels.shape:
                raise ValueError(
                    f"`{name}` must have one value for each of {len(labels):,} labels, got shape "
                    f"{column.shape}."
                )
        if not len(labels) or not np.isin(labels, (0, 1)).all() or len(np.unique(labels)) < 2:
            raise ValueError("`labels` must be 0 and 1, with some of both.")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("`scores` must be probabilities in [0, 1]; apply a sigmoid to logits.")
        about = {
            "name": self.name,
            "seed": self.seed,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "joules": self.joules,
            "num_bytes": num_bytes,
        }
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as stream:
                np.savez_compressed(
                    stream,
                    about=json.dumps(about),
                    labels=labels.astype(np.int8),
                    scores=scores,
                    **{
                        name: column.astype(str) if column.dtype == object else column
                        for name, column in columns.items()
                    },
                )
            os.replace(part, self._path)
        except OSError as error:
            if error.filename is None and error.errno is not None:  # as a write's
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            raise
        finally:
            part.unlink(missing_ok=True)


def popular_share(optimizer, ids):
    """Returns which share of each example's lookups goes to rows that may sleep.

    Args:
        optimizer: `SlipstreamOptimizer`, on one device.
        ids: Dict from a table's name to the ids that examples look up in it, integers
            `[num_examples]` or `[num_examples, num_lookups]`.

    Returns:
        Float array `[num_examples]`.

    Raises:
        ValueError: If there is no such table, or none has a policy.
    """
    shares = []
    for name, some in ids.items():
        state = optimizer.tables.get(name)
        if state is None:
            raise ValueError(
                f"There is no table {name!r}; there are: {', '.join(optimizer.tables)}."
            )
        some = np.asarray(some).reshape(len(some), -1)
        if state.row_states is None:
            shares.append(np.zeros(some.shape))
            continue
        states = state.row_states.numpy().view(np.int32)
        shares.append(states[some] < 0)
    if not shares:
        raise ValueError("`ids` must have at least one table.")
    return np.concatenate(shares, axis=1).mean(axis=1)


def _reset_peak():
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def _peak_bytes():
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/self/status") as stream:
            line = next(line for line in stream if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _joules():
    """Returns a counter of the processors' energy; None where it cannot be read."""
    try:
        paths = sorted(_RAPL.glob("intel-rapl:?/energy_uj"))
        return sum(int(path.read_text()) for path in paths) / 1e6 if paths else None
    except (OSError, ValueError):
        return None
