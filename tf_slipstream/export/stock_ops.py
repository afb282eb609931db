"""Refuses a SavedModel that a plain TensorFlow could not run."""

import pathlib

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_slipstream.delta.errors import ExportError
from tf_slipstream.file_errors import read_bytes


def check_stock_ops(path, allow_ops=()):
    """Checks that a SavedModel has only ops of TensorFlow itself.

    Looks at the graph and at every function in it, those of gradients included. A TensorFlow
    Serving without the library of another op cannot load the model at all.

    Args:
        path: Folder of the SavedModel.
        allow_ops: Names of ops that are fine nevertheless, because the server has them.

    Raises:
        ExportError: If there are others; it names each, and where it is.
    """
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString(read_bytes(pathlib.Path(path, "saved_model.pb")))
    found = {}
    for meta_graph in saved_model.meta_graphs:
        graph = meta_graph.graph_def
        functions = {
            function.signature.name: function.node_def for function in graph.library.function
        }
        for where, nodes in [("the graph", graph.node), *functions.items()]:
            for node in nodes:
                is_stock = hasattr(tf.raw_ops, node.op) or node.op in functions
                if not is_stock and node.op not in allow_ops:
                    found.setdefault(node.op, where)
    if found:
        ops = ", ".join(f"{op} (in {where})" for op, where in sorted(found.items()))
        raise ExportError(
            f"the model would need ops that TensorFlow Serving does not have: {ops}. Replace the "
            "layer that uses them, or pass `allow_ops` if your server has their library"
        )
