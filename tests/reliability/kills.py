"""kill -9 at random moments: nothing half made, and resuming is never stopping, to the bit."""

import contextlib
import functools
import pathlib

from tests.distribute.clusters import Forks
from tests.reliability.mutations import generator, lasting_folder
from tf_slipstream.delta.inspection import inspect
from tf_slipstream.delta.published_version import PublishedVersion

_PROGRAM = "tests.reliability.killed_program"


@functools.cache
def _forks():
    stack = contextlib.ExitStack()
    return stack.enter_context(Forks(lasting_folder()))


def run(folder, seconds):
    """Runs the program; returns its exit code and what it printed."""
    log = pathlib.Path(folder, "log")
    log.unlink(missing_ok=True)
    code = _forks().start([_PROGRAM, folder, seconds], log).wait(timeout=300)
    return code, log.read_text()


def state_of(folder):
    """Returns what was published: by version its variables' bytes. All must be intact."""
    found = {}
    for path in sorted((folder / "models").iterdir()):
        if path.name.startswith("."):
            continue  # what a kill left, which nobody serves; the next to write removes it
        PublishedVersion(path).verify()
        found[path.name] = (path / "variables" / "variables.data-00000-of-00001").read_bytes()
    for path in (folder / "deltas").iterdir():
        if not path.name.startswith("."):
            inspect(path)
    return found


@functools.cache
def never_stopped():
    """Returns seconds, hash and what is published of a run that nobody kills."""
    folder = lasting_folder()
    code, text = run(folder, -1)
    assert code == 0, text
    took, (_, digest) = text.split("took ")[1].split()[0], text.split()[-2:]
    return float(took), digest, state_of(folder)


def trial(seed, folder, most_kills=4):
    """Trains with up to so many kills, and compares with a run without.

    Returns:
        How many kills there were.
    """
    folder = pathlib.Path(folder, f"killed-{seed}")
    folder.mkdir()
    took, expected_hash, expected = never_stopped()
    random, kills = generator(seed, 1), 0
    while True:
        # Most of them early, because each run begins where the one before was killed.
        seconds = took * random.uniform(0, 1) ** 2 if kills < most_kills else -1
        code, text = run(folder, seconds)
        published = state_of(folder)
        different = [name for name in published if published[name] != expected[name]]
        assert not different, f"seed {seed}: versions {different} after {kills} kills"
        if code == 0:
            break
        assert code == -9, text
        kills += 1
    assert text.split()[-1] == expected_hash, f"seed {seed}: trained otherwise"
    assert published.keys() == expected.keys()
    return {"kills": kills}
