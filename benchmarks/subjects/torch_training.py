"""The whole training step of PyTorch, written plainly: `EmbeddingBag(sparse=True)` and oneDNN.

Runs in the peers' environment: `make bench-peers`.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import torch
import training_workload
import workload


class ClickModel(torch.nn.Module):
    def __init__(self, spec, cardinalities):
        super().__init__()
        self.spec = spec
        self.tables = torch.nn.ModuleList(
            torch.nn.EmbeddingBag(
                rows, spec.dim, mode="sum", sparse=True, _weight=torch.rand(rows, spec.dim) * 0.1
            )
            for rows in cardinalities
        )
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(inputs, units) for inputs, units in spec.layer_shapes()
        )
        pairs = training_workload.pairs(len(cardinalities) + 1)
        self.rows, self.columns = (torch.from_numpy(index) for index in pairs)

    def forward(self, dense, ids):
        spec = self.spec
        rows = [table(field) for table, field in zip(self.tables, ids)]
        if spec.interaction == "towers":
            num = len(spec.towers)
            first = self._dense(torch.cat(rows[: spec.half], dim=1), 0, num)
            second = self._dense(torch.cat(rows[spec.half :], dim=1), num, 2 * num)
            return (first * second).sum(dim=1, keepdim=True)
        num = len(spec.bottom)
        x = self._dense(dense, 0, num, ends_linear=False)
        vectors = [x, *rows]
        if spec.interaction == "dot":
            stacked = torch.stack(vectors, dim=1)  # [batch, num_vectors, dim]
            dots = torch.bmm(stacked, stacked.transpose(1, 2))
            vectors = [x, dots[:, self.rows, self.columns]]
        return self._dense(torch.cat(vectors, dim=1), num, len(self.layers))

    def _dense(self, x, begin, end, ends_linear=True):
        for index in range(begin, end):
            x = self.layers[index](x)
            if not ends_linear or index < end - 1:
                x = torch.relu(x)
        return x


class TorchTraining:
    def __init__(self, args):
        torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        self.model = ClickModel(training_workload.MODELS[args.model], args.cardinalities)
        self.loss = torch.nn.BCEWithLogitsLoss()
        self.optimizers = self._make_optimizers(args.rule)

    def _make_optimizers(self, rule):
        rate = training_workload.LEARNING_RATE
        tables = list(self.model.tables.parameters())
        layers = list(self.model.layers.parameters())
        if rule == "sgd":
            return [torch.optim.SGD(tables + layers, lr=rate)]
        if rule == "adagrad":
            return [torch.optim.Adagrad(tables + layers, lr=rate, initial_accumulator_value=0.1)]
        return [torch.optim.SparseAdam(tables, lr=rate), torch.optim.Adam(layers, lr=rate)]

    def _step(self, dense, ids, labels):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model(dense, ids), labels)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def weights(self):
        tables = [table.weight.detach().numpy().copy() for table in self.model.tables]
        layers = [
            (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
            for layer in self.model.layers
        ]
        return tables, layers

    def train_on(self, dense, ids, labels):
        fields = [torch.from_numpy(field) for field in ids]
        return self._step(torch.from_numpy(dense), fields, torch.from_numpy(labels))

    def measure(self, args, dense, ids, labels):
        dense, labels = torch.from_numpy(dense), torch.from_numpy(labels)
        ids = [torch.from_numpy(field) for field in ids]
        batches = [(dense[i], [f[i] for f in ids], labels[i]) for i in range(len(dense))]
        return workload.measure(args, lambda batch: self._step(*batch), batches)


if __name__ == "__main__":
    training_workload.main({"torch": TorchTraining}, packages=["torch", "numpy"])
