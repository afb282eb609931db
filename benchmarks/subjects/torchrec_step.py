"""The embedding step of TorchRec: its `FusedEmbeddingBagCollection`, the update in the backward.

Runs in the peers' environment: `make bench-peers`.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import equations
import numpy as np
import torch
import workload
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "row_wise_adagrad": RowWiseAdagrad,
}
EPSILON = 1e-8


class TorchRecStep:
    """A collection of all tables; its Adagrad is FBGEMM's, and begins at 0."""

    def __init__(self, args):
        torch.set_num_threads(args.threads)
        self.convention = equations.Convention(initial_accumulator=0.0, epsilon=EPSILON)
        self.keys = [f"field_{table}" for table in range(len(args.cardinalities))]
        configs = [
            EmbeddingBagConfig(
                name=f"table_{key}",
                embedding_dim=args.dim,
                num_embeddings=rows,
                feature_names=[key],
            )
            for key, rows in zip(self.keys, args.cardinalities)
        ]
        options = {} if args.rule == "sgd" else {"eps": EPSILON}
        self.collection = FusedEmbeddingBagCollection(
            configs, OPTIMIZERS[args.rule], {"lr": equations.LEARNING_RATE} | options
        )
        with torch.no_grad():
            for table in self._weights():
                table.uniform_(0.0, 0.1)

    def _weights(self):
        tables = self.collection.state_dict()
        return [tables[f"embedding_bags.table_{key}.weight"] for key in self.keys]

    def set_upstream(self, upstream):
        # [num_tables, num_bags, dim] to [num_bags, num_tables * dim]
        rows = np.moveaxis(upstream, 0, 1).reshape(upstream.shape[1], -1)
        self.upstream = torch.from_numpy(np.ascontiguousarray(rows))

    def prepare(self, ids):
        lengths = torch.full([ids.size // ids.shape[-1]], ids.shape[-1], dtype=torch.int32)
        values = torch.from_numpy(ids.reshape(-1).copy())
        return KeyedJaggedTensor(keys=self.keys, values=values, lengths=lengths)

    def step(self, batch):
        self.collection(batch).values().backward(self.upstream)

    def tables(self):
        return [table.detach().numpy().copy() for table in self._weights()]


if __name__ == "__main__":
    packages = ["torch", "torchrec", "fbgemm-gpu-cpu", "numpy"]
    workload.main({"torchrec": TorchRecStep}, packages=packages)
