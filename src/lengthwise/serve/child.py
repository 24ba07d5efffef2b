"""vLLM's OpenAI server as a child that ends when its parent does, even when that one is killed.

Run as `python -m lengthwise.serve.child PARENT_PID GRACE_S [--size-worker=N] [vLLM's arguments]`.
It starts the module behind `python -m vllm.entrypoints.openai.api_server`, which also starts where
the `vllm` command does not (the CPU build's command looks for package metadata of another name).
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

from lengthwise.serve.flags import given_flags, with_file
from lengthwise.serve.places import SIZE, sized

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SEVERAL = "--api-server-count"


def end_with_parent(parent: int, grace_s: float) -> None:
    """End when the process `parent` has ended; leave at once if it has.

    The kernel is asked for SIGTERM (on Linux; elsewhere the parent's own clean-up is all there
    is). vLLM then takes its engine down and waits for its connections, on which nothing comes any
    more: clients would hang for as long as they have patience. So the whole process group is
    killed after a while, as the parent would have done.

    Args:
        parent: the process, whose child this one is.
        grace_s: how long after its end what is left of the group is killed.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
    arguments = (parent, grace_s)
    threading.Thread(target=_kill_group_after, args=arguments, daemon=True).start()


def _kill_group_after(parent: int, grace_s: float) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(grace_s)
    if os.getpgrp() == os.getpid():  # it is nobody else's group
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def serve_by_several(arguments: list[str]) -> None:
    """Be what `vllm serve` is with --api-server-count, which the module below does not know."""
    from lengthwise.vllm.compat.serving import serve

    serve(arguments)


def main() -> None:
    """Become the server."""
    end_with_parent(int(sys.argv.pop(1)), float(sys.argv.pop(1)))
    if sys.argv[1:2] and sys.argv[1].startswith(SIZE):
        sys.argv[1:] = sized(sys.argv[2:], int(sys.argv[1].removeprefix(SIZE)))
    if _SEVERAL in given_flags(with_file(sys.argv[1:])):
        serve_by_several(sys.argv[1:])
        return
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
