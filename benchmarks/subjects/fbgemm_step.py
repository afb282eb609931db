"""The embedding step of FBGEMM: table-batched embeddings on CPU, the update fused in the backward.

Runs in the peers' environment: `make bench-peers`.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import equations
import numpy as np
import torch
import workload
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "row_wise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}
EPSILON = 1e-8


class FbgemmStep:
    """All tables in one operator; its Adagrad begins at 0 and has no other choice."""

    def __init__(self, args):
        torch.set_num_threads(args.threads)
        self.convention = equations.Convention(initial_accumulator=0.0, epsilon=EPSILON)
        self.embeddings = SplitTableBatchedEmbeddingBagsCodegen(
            [
                (rows, args.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)
                for rows in args.cardinalities
            ],
            optimizer=OPTIMIZERS[args.rule],
            learning_rate=equations.LEARNING_RATE,
            eps=EPSILON,
            stochastic_rounding=False,
        )
        for table in self.embeddings.split_embedding_weights():
            table.uniform_(0.0, 0.1)

    def set_upstream(self, upstream):
        # [num_tables, num_bags, dim] to [num_bags, num_tables * dim]
        rows = np.moveaxis(upstream, 0, 1).reshape(upstream.shape[1], -1)
        self.upstream = torch.from_numpy(np.ascontiguousarray(rows))

    def prepare(self, ids):
        offsets = np.arange(0, ids.size + 1, ids.shape[-1])
        return torch.from_numpy(ids.reshape(-1).copy()), torch.from_numpy(offsets)

    def step(self, batch):
        indices, offsets = batch
        self.embeddings(indices=indices, offsets=offsets).backward(self.upstream)

    def tables(self):
        return [t.detach().numpy().copy() for t in self.embeddings.split_embedding_weights()]


if __name__ == "__main__":
    workload.main({"fbgemm": FbgemmStep}, packages=["torch", "fbgemm-gpu-cpu", "numpy"])
