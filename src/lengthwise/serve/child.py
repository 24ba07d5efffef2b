"""vLLM's OpenAI server as a child that ends when its parent does, even when that one is killed.

Run as `python -m lengthwise.serve.child PARENT_PID [--size-worker=N] [vLLM's own arguments]`. It
starts the module behind `python -m vllm.entrypoints.openai.api_server`, which also starts where the
`vllm` command does not (the CPU build's command looks for package metadata of another name).
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

from lengthwise.serve.places import SIZE, sized

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SEVERAL = ("--api-server-count", "--api_server_count")


def end_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the process `parent` ends; leave at once if it has.

    Elsewhere than on Linux nothing is asked: the parent's own clean-up is all there is.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


def serve_by_several(arguments: list[str]) -> None:
    """Be what `vllm serve` is with --api-server-count, which the module below does not know."""
    from lengthwise.vllm.compat.serving import serve

    serve(arguments)


def main() -> None:
    """Become the server."""
    end_with_parent(int(sys.argv.pop(1)))
    if sys.argv[1:2] and sys.argv[1].startswith(SIZE):
        sys.argv[1:] = sized(sys.argv[2:], int(sys.argv[1].removeprefix(SIZE)))
    if any(text.startswith(_SEVERAL) for text in sys.argv[1:]):
        serve_by_several(sys.argv[1:])
        return
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
