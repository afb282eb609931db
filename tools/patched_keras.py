"""A pytest plugin: other people's tests with our layer and optimizer in place of tf_keras's.

    TF_USE_LEGACY_KERAS=1 PYTHONPATH=tools python -m pytest -p patched_keras TESTS

`keras.layers.Embedding` is `SlipstreamEmbedding`, and `compile` wraps each optimizer that is not a
legacy one. Says at the end how many models were compiled so, and with how many tables.
"""

import importlib

import tf_keras as keras

import tf_slipstream as slipstream

NOT_WRAPPED = (slipstream.SlipstreamOptimizer, keras.optimizers.legacy.Optimizer)
counts = {"models": 0, "tables": 0}
for name in ("tf_keras.layers", "tensorflow.keras.layers"):
    importlib.import_module(name).Embedding = slipstream.SlipstreamEmbedding
compile_as_ever = keras.Model.compile


def compile_with_ours(model, optimizer="rmsprop", *args, **kwargs):
    if not isinstance(optimizer, NOT_WRAPPED):
        layers = model._flatten_layers()
        counts["models"] += 1
        counts["tables"] += sum(isinstance(one, slipstream.SlipstreamEmbedding) for one in layers)
        optimizer = slipstream.SlipstreamOptimizer(optimizer)
    return compile_as_ever(model, optimizer, *args, **kwargs)


keras.Model.compile = compile_with_ours


def pytest_terminal_summary(terminalreporter):
    line = "{models} models were compiled with our optimizer, which have {tables} tables"
    terminalreporter.write_line(line.format(**counts))
