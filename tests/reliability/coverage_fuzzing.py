"""The inputs of `fuzzing`, altered where it leads to code that no input has reached yet.

    python -m tests.reliability.coverage_fuzzing [KIND ...] [-runs=1000000] [-max_total_time=600]

libFuzzer, through atheris (the extra `fuzz`), draws what `fuzzing` draws at random, and keeps what
reached something new. Options that begin with a dash are libFuzzer's, for each kind; without a kind
all are tried, one process after the other. An input that is a fault is written to a file
`crash-...` in the folder results/fuzzing; given as the last argument, after its kind, it is tried
again alone.
"""

import pathlib
import subprocess
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["tf_slipstream"]):
    from tests.reliability import fuzzing

FOLDER = pathlib.Path("results", "fuzzing")
# Seconds of an input; MiB of the process, of which TensorFlow has most; bytes that draw an input.
LIMITS = ("-timeout=60", "-rss_limit_mb=3000", "-max_len=256", "-len_control=0")


class Drawn:
    """What `mutations` uses of a NumPy generator, from bytes of the fuzzer's; 0 after their end."""

    def __init__(self, data):
        self._provider = atheris.FuzzedDataProvider(data)

    def integers(self, low, high):
        return self._provider.ConsumeIntInRange(int(low), int(high) - 1)

    def choice(self, values):
        return values[self.integers(0, len(values))]

    def bytes(self, size):
        return self._provider.ConsumeBytes(int(size)).ljust(size, b"\0")


def fuzz(kind, options):
    """Tries inputs of a kind in this process, which libFuzzer ends."""
    folder = tempfile.TemporaryDirectory(prefix="fuzzing-")

    def try_one(data):
        fuzzing.try_input(kind, "drawn", folder.name, Drawn(data))

    # Imports what a kind needs, and makes what is made once: no input is said to be slow for it.
    with atheris.instrument_imports(include=["tf_slipstream"]):
        try_one(b"")
    FOLDER.mkdir(parents=True, exist_ok=True)
    atheris.Setup([kind.__name__, *LIMITS, f"-artifact_prefix={FOLDER}/", *options], try_one)
    atheris.Fuzz()


def main(arguments):
    """Returns the number of kinds with a fault."""
    kinds = {kind.__name__: kind for kind in fuzzing.KINDS}
    chosen = [name for name in arguments if name in kinds]
    options = [text for text in arguments if text not in kinds]
    unknown = [o for o in options if not o.startswith("-") and not pathlib.Path(o).exists()]
    if unknown:
        sys.exit(f"Expected kinds, of {', '.join(kinds)}; options of libFuzzer; got {unknown}.")
    if len(chosen) == 1:
        fuzz(kinds[chosen[0]], options)
        return 0
    num_faults = 0
    for name in chosen or kinds:
        command = [sys.executable, "-m", "tests.reliability.coverage_fuzzing", name, *options]
        run = subprocess.run(command, text=True, stderr=subprocess.PIPE)
        lines = run.stderr.splitlines()
        last = next(
            (line for line in reversed(lines) if line[:1] == "#" and line[1:2].isdigit()),
            "nothing tried",
        )
        print(f"{name}: {'a fault' if run.returncode else 'no fault'}; {last}", flush=True)
        if run.returncode:
            num_faults += 1
            print("\n".join(lines[-40:]), flush=True)
    return num_faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
