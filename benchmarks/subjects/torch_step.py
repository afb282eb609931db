"""The embedding step of PyTorch: `EmbeddingBag(sparse=True)` and `torch.optim`.

Runs in the peers' environment: `make bench-peers`.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import equations
import torch
import workload

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1, "eps": 1e-10}),
    "adam": (torch.optim.SparseAdam, {"eps": 1e-8}),
}
EPSILONS = {"sgd": 0.0, "adagrad": 1e-10, "adam": 1e-8}


class TorchStep:
    """An `EmbeddingBag` per table under one optimizer, sums as the combiner."""

    def __init__(self, args):
        torch.set_num_threads(args.threads)
        self.convention = equations.Convention(epsilon=EPSILONS[args.rule])
        self.bags = [
            torch.nn.EmbeddingBag(
                rows, args.dim, mode="sum", sparse=True, _weight=torch.rand(rows, args.dim) * 0.1
            )
            for rows in args.cardinalities
        ]
        make, options = OPTIMIZERS[args.rule]
        parameters = [bag.weight for bag in self.bags]
        self.optimizer = make(parameters, lr=equations.LEARNING_RATE, **options)

    def set_upstream(self, upstream):
        self.upstream = list(torch.from_numpy(upstream))

    def prepare(self, ids):
        return list(torch.from_numpy(ids))  # of each table [num_bags, bag]

    def step(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        vectors = [bag(ids) for bag, ids in zip(self.bags, batch)]
        torch.autograd.backward(vectors, self.upstream)
        self.optimizer.step()

    def tables(self):
        return [bag.weight.detach().numpy().copy() for bag in self.bags]


if __name__ == "__main__":
    workload.main({"torch": TorchStep}, packages=["torch", "numpy"])
