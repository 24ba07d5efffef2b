"""The same predictor and the same schedule, to the last digit, on another processor.

Another processor is acted: other kernels of the linear algebra library, numpy without its wide
instructions, another logarithm in the C library, and machine code compiled for the oldest one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What each library was built for stays; these are what it would choose by looking at the machine.
OLD_LIBRARIES = {
    "OPENBLAS_CORETYPE": "Prescott",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_ICL AVX2 FMA3",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
}
OLD_COMPILER = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}

TRAIN = """
import sys
from pathlib import Path
from tests.support.answer_tables import table
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
train(table(600), load_tokenizer("reference"), Recipe(seed=1)).save(Path(sys.argv[1]))
"""

TIE = """
import numpy as np
from bench.published import LogTPredictor
from lengthwise.predict.tokenizer import load_tokenizer
from tests.support.answer_tables import table
dataset = table(300, samples=8)
scores = LogTPredictor(dataset, load_tokenizer("reference")).laws(dataset).scores(0.3)
print(np.argsort(scores, kind="stable").tolist(), scores.tolist())
"""

BENCH = [
    *(str(Path(sys.executable).with_name("lengthwise")), "bench", "reference"),
    *("--engine", "virtual", "--gpu", "a100", "--model", "llama-3-8b", "--max-num-seqs", "8"),
    *("--requests", "60", "--load", "1.2,burst", "--policy", "fcfs,ltr,srpt"),
]


def run(command: list[str], **environment: str) -> str:
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), str(root / "src")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(folder: Path, **environment: str) -> str:
    run([sys.executable, "-c", TRAIN, str(folder)], **environment)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_libraries_do_compute_otherwise() -> None:
    # Else the tests below would compare a processor with itself.
    look = (
        "import numpy as np\n"
        "values = np.random.default_rng(0).standard_normal((200, 200))\n"
        "print(repr((values @ values).sum()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", look],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for environment in ({}, OLD_LIBRARIES)
    }
    if len(said) == 1:
        pytest.skip("this machine's linear algebra library adds up as its oldest one does")


def test_training_gives_the_same_predictor(tmp_path: Path) -> None:
    assert train(tmp_path / "here") == train(tmp_path / "there", **OLD_LIBRARIES)


@pytest.mark.slow
def test_the_published_law_gives_the_same_scores() -> None:
    command = [sys.executable, "-c", TIE]
    assert run(command) == run(command, **OLD_LIBRARIES) != ""


@pytest.mark.slow
def test_predictor_and_schedule_are_the_same(tmp_path: Path) -> None:
    there = {**OLD_LIBRARIES, **OLD_COMPILER, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert train(tmp_path / "p") == train(tmp_path / "q", **there)
    predictor = ["--predictor", str(tmp_path / "p")]
    run([*BENCH, *predictor, "--out", str(tmp_path / "here")])
    run([*BENCH, *predictor, "--out", str(tmp_path / "there")], **there)
    here, elsewhere = (tmp_path / name / "results.json" for name in ("here", "there"))
    assert here.read_bytes() == elsewhere.read_bytes()
