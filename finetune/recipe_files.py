"""Recipe files: found by name or path, summarised and hashed without importing them, so that listing is quick."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
from pathlib import Path

from finetune.errors import ConfigError

COPIED_FROM = "# Copied from"


def recipes_folder() -> Path:
    """Where the packaged recipes stand: the checkout's `recipes`, or the wheel's copy of it."""
    installed = Path(__file__).parent / "_recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in recipes_folder().glob("*.py") if not path.stem.startswith("_"))


def recipe_path(name_or_path: str) -> Path:
    """The file of a recipe.

    Raises:
        ConfigError: no packaged recipe has the name (with the nearest), or no file has the path.
    """
    path = Path(name_or_path)
    if name_or_path.endswith(".py") or len(path.parts) > 1:
        try:
            found = path.is_file()
        except OSError:  # a name longer than the file system takes
            found = False
        if not found:
            raise ConfigError(
                f"There is no recipe file {name_or_path}.",
                "Give a name from `finetune list`, or the path of a .py file.",
            )
        return path
    if name_or_path not in recipe_names():
        near = difflib.get_close_matches(name_or_path, recipe_names(), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(f"There is no recipe {name_or_path}.", f"{hint}`finetune list` shows them all.")
    return recipes_folder() / f"{name_or_path}.py"


def recipe_summary(path: Path) -> str:
    """The first line of a recipe's docstring, read without importing it."""
    return (ast.get_docstring(recipe_tree(path)) or "").strip().partition("\n")[0]


def source_hash(path: Path) -> str:
    """SHA-256 over a recipe's source and, recursively, over each `base("name")` in it; the origin line is left out."""
    digest = hashlib.sha256()
    for part in _sources(path, []):
        lines = read_recipe(part).splitlines()
        digest.update("\n".join(line for line in lines if not line.startswith(COPIED_FROM)).strip().encode())
    return digest.hexdigest()


def code_hash(path: Path) -> str:
    """SHA-256 over the code of a recipe and of each base of it: comments, docstrings and layout are left out.

    For what must not be done again because a measured number was written into a docstring.
    """
    digest = hashlib.sha256()
    for part in _sources(path, []):
        tree = recipe_tree(part)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _sources(path: Path, seen: list[Path]) -> list[Path]:
    seen.append(path)
    for node in ast.walk(recipe_tree(path)):
        if isinstance(node, ast.Call) and _calls_base(node.func):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            name = arguments[0].value if arguments and isinstance(arguments[0], ast.Constant) else None
            if not isinstance(name, str):
                raise ConfigError(
                    f"{path}, line {node.lineno}: base() needs the recipe's name as it stands, in quotes.",
                    'Write base("bert_cls"): the hash of a recipe covers what it derives from.',
                )
            inner = recipe_path(name)
            if inner.resolve() not in [other.resolve() for other in seen]:
                _sources(inner, seen)
    return seen


def _calls_base(called: ast.expr) -> bool:
    """`base(...)`, `recipe.base(...)` or `finetune.recipe.base(...)`."""
    return ast.unparse(called) in ("base", "recipe.base", "finetune.recipe.base")


def read_recipe(path: Path) -> str:
    """The source of a recipe; a byte order mark, as Windows editors write it, is left out.

    Raises:
        ConfigError: it is no text, or can't be read.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from None


def recipe_tree(path: Path) -> ast.Module:
    """The parsed source; a ConfigError names the line of a syntax error."""
    try:
        return ast.parse(read_recipe(path), filename=str(path))
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else str(path)
        raise ConfigError(f"{where}: {error.msg}.", (error.text or "").strip()[:200]) from None


def copied_from(path: Path) -> tuple[str, str, bool] | None:
    """(name, version, whether the origin is still the same), from the line that `finetune cp` writes."""
    first = read_recipe(path).partition("\n")[0]
    found = re.fullmatch(rf"{COPIED_FROM} (.+), finetune (\S+), sha256 ([0-9a-f]{{64}})", first)
    if found is None:
        return None
    name, version, sha256 = found.groups()
    return name, version, name in recipe_names() and source_hash(recipe_path(name)) == sha256
