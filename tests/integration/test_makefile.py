"""The Makefile, without installing anything: a stub in the interpreter's place records what would be run."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]

ROOT = Path(__file__).parents[2]
# Logs its arguments; `-m venv DIR` makes a folder whose python and accelerate are copies of itself.
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$MAKE_TEST_LOG"
case "$*" in
  *version_info*) exit "${OLD_PYTHON:-0}" ;;
  *venv*) for last; do :; done
          mkdir -p "$last/bin"
          cp "$0" "$last/bin/python"; cp "$0" "$last/bin/accelerate" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "check out"  # a space in the path is what breaks unquoted lines
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text("")
    stub = tmp_path / "stub"
    stub.write_text(STUB)
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return folder


def make(checkout: Path, *arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    log = checkout.parent / "log"
    log.unlink(missing_ok=True)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    env = keep | {"MAKE_TEST_LOG": str(log), "TORCH_INDEX_URL": ""} | variables
    command = ["make", f"PYTHON={checkout.parent / 'stub'}", *arguments]
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=60)
    return done, log.read_text().splitlines() if log.exists() else []


def test_demo_is_literally_the_readmes_line(checkout: Path) -> None:
    done, ran = make(checkout, "demo")
    assert done.returncode == 0, done.stderr
    assert "accelerate launch finetune/run.py --recipe bert_cls" in done.stdout
    assert ran[-1] == "accelerate launch finetune/run.py --recipe bert_cls"  # the environment's, not another one's


def test_a_second_run_installs_nothing_until_pyproject_changes(checkout: Path) -> None:
    _, first = make(checkout, "test")
    assert "python -m pip install --editable .[dev]" in first
    _, second = make(checkout, "test")
    assert second == ["python -m pytest -n 3 --dist loadfile --no-loadscope-reorder"]
    newer = (checkout / ".venv/.installed").stat().st_mtime + 10
    os.utime(checkout / "pyproject.toml", (newer, newer))
    _, third = make(checkout, "test")
    assert "python -m pip install --editable .[dev]" in third


def test_check_runs_the_three_tools(checkout: Path) -> None:
    _, ran = make(checkout, "check")
    assert ran[-3:] == ["python -m ruff check .", "python -m ruff format --check .", "python -m mypy"]


def test_torch_can_come_from_an_index_of_its_own(checkout: Path) -> None:
    _, ran = make(checkout, "setup", "TORCH_INDEX_URL=https://example.org/cpu")
    torch = ran.index("python -m pip install torch torchvision --index-url https://example.org/cpu")
    assert torch < ran.index("python -m pip install --editable .[dev]")
    shutil.rmtree(checkout / ".venv")
    _, ran = make(checkout, "setup")
    assert not any("--index-url" in line for line in ran)


def test_an_old_python_is_refused_with_the_fix(checkout: Path) -> None:
    done, _ = make(checkout, "demo", OLD_PYTHON="1")
    assert done.returncode == 2
    assert "Try: make PYTHON=python3.12 demo" in done.stderr
    assert not (checkout / ".venv").exists()


def test_clean_keeps_runs(checkout: Path) -> None:
    for folder in ("finetune/__pycache__", "recipes", "tests", "runs/kept"):
        (checkout / folder).mkdir(parents=True)
    make(checkout, "setup")
    done, _ = make(checkout, "clean")
    assert done.returncode == 0, done.stderr
    assert (checkout / "runs/kept").is_dir()
    assert not (checkout / ".venv").exists()
    assert not (checkout / "finetune/__pycache__").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
