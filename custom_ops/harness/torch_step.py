"""Times PyTorch's `EmbeddingBag(sparse=True)` and its optimizers on a GPU, on the steps of time.cc.

    python torch_step.py [OUR_TIMES]

OUR_TIMES is what `time` printed in the same run: the ratios are to the lines of the same name. Two
times of PyTorch: of the optimizer's step alone, given ids and gradients, which is what `time` does,
and of forward, backward and that step. Exit status 77: no PyTorch, or no device.
"""

import re
import sys

NO_DEVICE = 77
NUM_WARM_UPS, NUM_REPEATS = 3, 20
RULES = {"sgd": "SGD", "adagrad": "Adagrad", "adam": "SparseAdam"}


def zipf_ids(torch, num_rows, num_lookups, exponent=1.1):
    """Ranks of a bounded Zipf distribution by inversion of its continuous form; then scattered."""
    uniform = torch.rand(num_lookups, dtype=torch.float64, device="cuda")
    power = 1 - exponent
    ranks = (1 + uniform * ((num_rows + 1.0) ** power - 1)) ** (1 / power)
    return (ranks.clamp(max=num_rows).long() - 1) * 2654435761 % num_rows


def milliseconds(torch, run):
    times = []
    for repeat in range(NUM_WARM_UPS + NUM_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if repeat >= NUM_WARM_UPS:
            times.append(begin.elapsed_time(end))
    return sorted(times)[NUM_REPEATS // 2]


def time_step(torch, num_rows, dim, num_lookups, rule):
    """Returns milliseconds of the optimizer's step, and of the whole step."""
    bags = torch.nn.EmbeddingBag(num_rows, dim, mode="sum", sparse=True, device="cuda")
    optimizer = getattr(torch.optim, RULES[rule])(bags.parameters(), lr=0.01)
    ids = zipf_ids(torch, num_rows, num_lookups)
    offsets = torch.arange(num_lookups, device="cuda")
    upstream = torch.full((num_lookups, dim), 0.5, device="cuda")
    size = (num_rows, dim)

    def update():
        # Made anew: what was once summed need not be again.
        bags.weight.grad = torch.sparse_coo_tensor(
            ids[None], upstream, size, check_invariants=False
        )
        optimizer.step()

    def whole():
        optimizer.zero_grad(set_to_none=True)
        bags(ids, offsets).backward(upstream)
        optimizer.step()

    return milliseconds(torch, update), milliseconds(torch, whole)


def our_times(path):
    """Returns milliseconds by the name of a line of `time`."""
    with open(path) as file:
        matches = (re.match(r"  (.+?)\s+([\d.]+) ms", line) for line in file)
        return {match[1]: float(match[2]) for match in matches if match}


def main():
    try:
        import torch
    except ImportError:
        print("torch_step: there is no PyTorch here; NOTHING WAS TIMED.")
        return NO_DEVICE
    if not torch.cuda.is_available():
        print("torch_step: PyTorch sees no device; NOTHING WAS TIMED.")
        return NO_DEVICE
    ours = our_times(sys.argv[1]) if len(sys.argv) > 1 else {}
    torch.manual_seed(1)
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}; medians of {NUM_REPEATS}")
    print("  milliseconds of: its optimizer's step, whole step; ours, and the first over ours")
    for num_rows, dim in ((1_000_000, 32), (10_000_000, 64)):
        for num_lookups in (53_248, 500_000, 4_000_000):
            for rule in RULES:
                name = f"{num_rows} x {dim}, {num_lookups} lookups, {rule}"
                update, whole = time_step(torch, num_rows, dim, num_lookups, rule)
                line = f"  {name:50s} {update:9.3f} {whole:9.3f}"
                if name in ours:
                    line += f" {ours[name]:9.3f} {update / ours[name]:6.2f}x"
                print(line, flush=True)
    try:
        import fbgemm_gpu  # noqa: F401
    except ImportError:
        print("  FBGEMM is not installed here: not timed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
