"""The built wheel, installed into a folder of its own, works where there is no checkout."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.py"))
CARDS = sorted(path.name for path in (ROOT / "data_cards").glob("*.md"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return target


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python outside the checkout, with the installed wheel before anything else."""
    keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FINETUNE_DATA")}
    env = keep | {"PYTHONPATH": str(installed), "FINETUNE_CACHE": str(folder / "cache")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def finetune(installed: Path, folder: Path, *arguments: str) -> str:
    done = run(installed, folder, str(installed / "bin" / "finetune"), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_and_cards_are_inside_and_nothing_litters_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert RECIPES
    assert CARDS
    packaged = sorted(name for name in names if name.startswith("finetune/_recipes/"))
    assert [name for name in packaged if "/tables/" not in name] == [f"finetune/_recipes/{name}" for name in RECIPES]
    tables = {f"finetune/_recipes/tables/{path.name}" for path in (ROOT / "recipes" / "tables").glob("*.toml")}
    assert tables <= set(packaged)
    assert sorted(name for name in names if name.startswith("finetune/_data_cards/")) == [
        f"finetune/_data_cards/{name}" for name in CARDS
    ]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"finetune"}
    assert "finetune/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_module_of_the_checkout_is_in_the_wheel(wheel: Path) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "finetune").rglob("*.py")}
    assert modules <= set(zipfile.ZipFile(wheel).namelist())


def test_the_pretrained_weights_are_inside_and_load(wheel: Path, installed: Path, tmp_path: Path) -> None:
    pretrained = {path.relative_to(ROOT).as_posix() for path in (ROOT / "finetune" / "pretrained").rglob("*.*")}
    assert len(pretrained) >= 5
    assert pretrained <= set(zipfile.ZipFile(wheel).namelist())
    code = (
        "from finetune.image_models import *; from finetune.image_settings import ImageModelSettings as S;"
        "s = S(name='builtin:letters_resnet'); f = resolve_image_model(s);"
        "m, _, new = load_image_model(f, s, tuple('01'), 0); print(f.path, new)"
    )
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed / "finetune" / "pretrained"))
    assert "classifier.1.weight" in done.stdout


def test_the_installed_package_is_the_wheel_and_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "-c", "import finetune; print(finetune.__file__)")
    assert Path(done.stdout.strip()) == installed / "finetune" / "__init__.py", done.stderr


def test_list_names_every_recipe(installed: Path, tmp_path: Path) -> None:
    listed = finetune(installed, tmp_path, "list")
    for name in RECIPES:
        assert name.removesuffix(".py") in listed


def test_a_copy_is_made_and_shows_the_same_settings(installed: Path, tmp_path: Path) -> None:
    finetune(installed, tmp_path, "cp", "bert_cls", "mine.py")
    copy = (tmp_path / "mine.py").read_text()
    assert "def build(recipe: Recipe)" in copy
    mine, packaged = (
        [line for line in finetune(installed, tmp_path, "show", name).splitlines() if re.match(r"[a-z.]+=", line)]
        for name in ("mine.py", "bert_cls")
    )
    assert any(line.startswith("train.lr=") for line in packaged)
    assert mine == packaged


def test_packaged_cards_load(installed: Path, tmp_path: Path) -> None:
    code = "from finetune.data.card import load_card; print(load_card('movie_snippets').block.task)"
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr


def test_cache_command_and_launch_module_answer(installed: Path, tmp_path: Path) -> None:
    assert "empty" in finetune(installed, tmp_path, "cache", "ls")
    done = run(installed, tmp_path, "-m", "finetune.run", "--help")
    assert done.returncode == 0, done.stderr
    assert "--recipe" in done.stdout
