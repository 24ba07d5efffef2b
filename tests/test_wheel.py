"""What is installed: a small wheel with all that runs, and nothing that only made it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MOST_BYTES = 6_000_000
# Loaded by nobody who only imports the package.
LATER = {"numpy", "numba", "scipy", "matplotlib", "pyarrow", "aiohttp", "rich", "torch", "vllm"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv, which scripts/install brings, is not there")
    command = [str(uv), "build", "--wheel", "--out-dir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "hatchling" in built.stderr and built.returncode:
        pytest.skip("no package index gives hatchling, which builds the wheel")
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_it_is_small_and_holds_the_package_alone(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"lengthwise"}
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "lengthwise").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("lengthwise/")} == source


def test_it_is_imported_from_where_it_was_unpacked_and_loads_nothing(
    wheel: Path, tmp_path: Path
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import lengthwise; print(lengthwise.__file__)\n"
        f"print(sorted({LATER!r} & set(sys.modules)))\n"
        "from lengthwise import Settings, load_predictor, simulate\n"
        "from lengthwise.reference import model_path; print(model_path().is_dir())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        str(tmp_path / "lengthwise" / "__init__.py"),
        "[]",
        "True",
    ]
