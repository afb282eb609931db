"""Forks processes from one that has imported TensorFlow: importing takes seconds, a fork none.

Run as a program: each line of its input is a JSON object with the `argv` of a Python module or file
to run, what to add to `environ`, the file `log`, and as `machine` the file that stands for one of a
box, or null. It answers with the process's id. Children end when it does.
"""

import ctypes
import json
import os
import pathlib
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _run(task):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(task["environ"])
    if task["machine"]:
        sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
        from distribution import network

        network.enter(task["machine"])
    sys.argv = task["argv"]
    if task["argv"][0].endswith(".py"):
        runpy.run_path(task["argv"][0], run_name="__main__")
    else:
        runpy.run_module(task["argv"][0], run_name="__main__", alter_sys=True)


def _main():
    import tf_slipstream  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _run(task)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)


def _note_ends(*_):
    """Leaves the codes of those that have ended, a file each."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        with open(os.path.join(os.environ["FORKS_FOLDER"], f"{pid}.code"), "w") as file:
            file.write(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, _note_ends)
    _main()
