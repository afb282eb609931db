"""Files and configurations that were altered: each is read well, or refused with a sentence.

A kind of input is a function `kind(random, folder)` that makes one altered input and reads it. It
raises what the reader raises; `ExportError` and `ValueError` are refusals, anything else a fault.

`python -m tests.reliability.fuzzing KIND NUM` tries that many of one kind. With TMPDIR in memory it
takes 0.2 to 2 ms for each.
"""

import functools
import gzip
import json
import os
import pathlib
import resource
import shutil
import sys

import numpy as np

from tests.data.criteo_files import columns_of, make_table, text_of, write_parquet
from tests.delta.damage import header_of, sealed
from tests.reliability.mutations import generator, lasting_folder, mutated, mutated_value
from tf_slipstream import StalenessPolicy
from tf_slipstream.delta.apply import apply_delta
from tf_slipstream.delta.errors import ExportError
from tf_slipstream.delta.inspection import inspect
from tf_slipstream.delta.published_version import PublishedVersion
from tf_slipstream.delta.sealed_file import SealedFile, write_sealed
from tf_slipstream.delta.tensor_index import TensorIndex
from tf_slipstream.delta.verification import verify_tensors
from tf_slipstream.delta.version_record import RECORD, read_record


@functools.cache
def published():
    """Returns a folder with version 1, `d2` and marks, made once in a process."""
    from tests.export.click_models import click_model
    from tf_slipstream import export

    folder = lasting_folder()
    model = click_model(num_rows=200)
    model.train_on_batch(*_batch(0))
    export.DeltaTracker(model, folder / "marks")
    export.save_version(model, folder / "1")
    model.train_on_batch(*_batch(1))
    export.save_delta(model, 1, folder / "d2")
    return folder


def _batch(seed):
    from tests.export.click_models import batch

    return batch(seed, num_rows=200)


def delta_bytes(random, folder):
    (folder / "d").write_bytes(mutated((published() / "d2").read_bytes(), random))
    inspect(folder / "d")
    apply_delta(published() / "1", folder / "d", folder / "2", verify=False)


def delta_header(random, folder):
    header, sections = header_of((published() / "d2").read_bytes())
    value = mutated_value(header, random)
    (folder / "d").write_bytes(sealed(value, sections))
    inspect(folder / "d")
    apply_delta(published() / "1", folder / "d", folder / "2", verify=False)


def delta_sections(random, folder):
    """Sections altered, and sealed again: what somebody makes who means it."""
    path, made = published() / "d2", folder / "d"
    old = SealedFile(path, "delta")
    with write_sealed(made, "delta") as new:
        for name, size in old.section_sizes.items():
            data = old.section(name).tobytes()
            new.add(name, [mutated(data, random).ljust(size, b"\xff")[:size]])
        new.header |= old.header
    inspect(made)
    apply_delta(published() / "1", made, folder / "2", verify=False)
    PublishedVersion(folder / "2").verify()


def version_record(random, folder):
    value = json.loads((published() / "1" / RECORD).read_text())
    (folder / RECORD).parent.mkdir()
    if random.integers(0, 2):
        (folder / RECORD).write_bytes(mutated(json.dumps(value).encode(), random))
    else:
        (folder / RECORD).write_text(json.dumps(mutated_value(value, random)))
    read_record(folder)


def tensor_index(random, folder):
    data = (published() / "1" / "variables" / "variables.index").read_bytes()
    (folder / "v.index").write_bytes(mutated(data, random))
    verify_tensors(TensorIndex(folder / "v.index"))


def sealed_tensor_index(random, folder):
    """Blocks altered under checksums that fit, so that what is in them is read."""
    from tf_slipstream.delta.crc32c import crc32c, masked
    from tf_slipstream.delta.tensor_index import TensorIndex as Index

    source = published() / "1" / "variables" / "variables.index"
    data = bytearray(source.read_bytes())
    offset, size = Index(source)._blocks[random.integers(0, len(Index(source)._blocks))]
    block = mutated(bytes(data[offset : offset + size]), random)
    data[offset : offset + size] = block.ljust(size, b"\x00")[:size]
    crc = masked(crc32c(bytes(data[offset : offset + size + 1])))
    data[offset + size + 1 : offset + size + 5] = crc.to_bytes(4, "little")
    (folder / "variables.index").write_bytes(data)
    os.link(source.with_suffix(".data-00000-of-00001"), folder / "variables.data-00000-of-00001")
    verify_tensors(TensorIndex(folder / "variables.index"))


def mark(random, folder):
    from tf_slipstream.export.marks import MarkStore

    path = next((published() / "marks").iterdir())
    header, sections = header_of(path.read_bytes())
    if random.integers(0, 2):
        data = mutated(path.read_bytes(), random)
    else:
        data = sealed(mutated_value(header, random), sections)
    (folder / path.name).write_bytes(data)
    store = MarkStore(folder, 5)
    for version in store.versions:
        mark = store.of_version(version)
        for name in mark.parents:
            store.changed_between(name, mark.id, mark.id, 28)


@functools.cache
def _criteo():
    return text_of([column[:40] for column in make_table()]).encode()


def criteo_text(random, folder):
    from tf_slipstream.data import open_click_log

    data = mutated(_criteo(), random)
    if random.integers(0, 4) == 0:
        data = mutated(gzip.compress(_criteo(), 1), random)
    (folder / "train.txt").write_bytes(data)
    for _ in open_click_log(folder / "train.txt", 100).batches(None, 16):
        pass


def analyzed_text(random, folder):
    from tf_slipstream.analysis.open_log import open_log

    text = b"label,user,item,when\n" + b"1,3,x,2020-01-01\n0,4,y,2020-01-02\n" * 20
    (folder / "log.csv").write_bytes(mutated(text, random))
    for _ in open_log(folder / "log.csv").chunks():
        pass


@functools.cache
def _parquet():
    folder = lasting_folder()
    table = [column[:40] for column in make_table()]
    ids = np.abs(table[2]).astype(np.int32) % 1000
    path = write_parquet(folder / "train.parquet", columns_of(table, ids), compression="none")
    return path.read_bytes()


def criteo_parquet(random, folder):
    from tf_slipstream.data import open_click_log

    (folder / "train.parquet").write_bytes(mutated(_parquet(), random))
    for _ in open_click_log(folder / "train.parquet", 100).batches(None, 16):
        pass


def policy_config(random, folder):
    config = mutated_value(StalenessPolicy().get_config(), random)
    if isinstance(config, dict) and config.keys() <= StalenessPolicy().get_config().keys():
        StalenessPolicy.from_config(config).numbers(0.5)


def layer_config(random, folder):
    """A layer's configuration, as far as it is ours."""
    from tf_slipstream import SlipstreamEmbedding, SlipstreamEmbeddingCollection

    for cls, layer in (
        (SlipstreamEmbedding, SlipstreamEmbedding(9, 2, combiner="sum", name="a")),
        (SlipstreamEmbeddingCollection, SlipstreamEmbeddingCollection({"u": 9, "i": 4}, 2)),
    ):
        config = layer.get_config()
        names = ("input_dim", "input_dims", "output_dim", "combiner", "policy", "mask_zero")
        ours = {name: config[name] for name in names if name in config}
        altered = mutated_value(ours, random)
        # Keras's `from_config` says of any error that it is a TypeError.
        if isinstance(altered, dict) and altered.keys() == ours.keys():
            cls(**altered)


def cluster_config(random, folder):
    from tf_slipstream.server import parse_task

    value = {
        "cluster": {"worker": ["h:1", "h:2"], "ps": ["h:3"]},
        "task": {"type": "ps", "index": 0},
    }
    text = json.dumps(mutated_value(value, random))
    if random.integers(0, 2):
        text = mutated(text.encode(), random).decode(errors="replace").replace("\x00", "")
    before = os.environ.get("TF_CONFIG")
    os.environ["TF_CONFIG"] = text.encode(errors="replace").decode()
    try:
        parse_task([])
    finally:
        del os.environ["TF_CONFIG"]
        if before is not None:
            os.environ["TF_CONFIG"] = before


KINDS = (
    delta_bytes,
    delta_header,
    delta_sections,
    version_record,
    tensor_index,
    sealed_tensor_index,
    mark,
    criteo_text,
    analyzed_text,
    criteo_parquet,
    policy_config,
    layer_config,
    cluster_config,
)
INPUTS_OF_A_TRIAL = 20


def try_input(kind, seed, folder, random=None):
    """Makes and reads one input in a folder of its own; returns whether it was refused.

    What it is follows from the seed, unless there is a `random` to draw it from.

    Raises:
        AssertionError: For an error that is no refusal, or something half made.
    """
    folder = pathlib.Path(folder, f"{kind.__name__}-{seed}")
    folder.mkdir()
    try:
        kind(random or generator(seed, KINDS.index(kind)), folder)
        return False
    except (ExportError, ValueError):
        left = [path.name for path in folder.iterdir() if "partial" in path.name]
        assert not left and (kind is delta_sections or not (folder / "2").exists()), (left, seed)
        return True
    except Exception as error:
        raise AssertionError(f"{kind.__name__} of seed {seed}: {error!r}") from error
    finally:
        shutil.rmtree(folder)


def trial(seed, folder):
    """Tries some inputs of every kind."""
    numbers = range(seed * INPUTS_OF_A_TRIAL, (seed + 1) * INPUTS_OF_A_TRIAL)
    refused = sum(try_input(kind, number, folder) for kind in KINDS for number in numbers)
    return {"inputs": len(KINDS) * len(numbers), "refused": refused}


def main(kind, num):
    """Tries inputs of a kind, and says how many and in how much memory."""
    (kind,) = [one for one in KINDS if one.__name__ == kind]
    folder, num, num_refused = lasting_folder(), int(num), 0
    for seed in range(num):
        num_refused += try_input(kind, seed, folder)
        if seed + 1 in (num // 10, num):
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            words = f"{kind.__name__}: {seed + 1:,} inputs, {num_refused:,} refused"
            print(f"{words}, {memory:.2f} GB at most", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
