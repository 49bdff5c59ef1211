"""Executes the notebooks from nothing; `make notebooks` writes their outputs anew with it."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("quickstart", "choose_a_method", "copy_a_recipe", "read_a_benchmark_table")
TIMEOUT_S = 300
WIDTH = 760
# A tqdm bar as it stands in a file: title, percentage, bar, counts and rate.
BAR = re.compile(r"\d+%\|.*\| *\S+ \[.*\]")


def execute(name: str, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that it gives in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    folder = folder.resolve()
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    environment = dict(os.environ)
    # As in an activated environment, and without a trace in the home folder.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {name: str(folder / ".jupyter") for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
    # accelerate lists the defaults of its launcher at each start, and tqdm asks for widgets, which no file can hold.
    environment |= {"ACCELERATE_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore:IProgress not found"}
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _cleaned(output, folder)) is not None]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def _cleaned(output: Any, folder: Path) -> Any:
    """Without progress bars and without the folder's name, pictures made small; None when nothing is left."""
    if output.output_type != "stream":
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = _small(output.data["image/png"])
        return output
    text = output.text.replace(f"{folder}/", "")
    if output.name == "stderr":
        lines = [line for line in re.split(r"[\r\n]", text) if line.strip() and not BAR.search(line)]
        text = "".join(f"{line}\n" for line in lines)
    output.text = text
    return output if text else None


def _small(png: str) -> str:
    """A PNG in base64 with 128 colours and at most 760 pixels wide: enough for plots, and git stays small."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def figures(notebook: nbformat.NotebookNode) -> str:
    """What the cells tagged `figures` printed: the numbers that must come out again."""
    tagged = [cell for cell in notebook.cells if "figures" in cell.metadata.get("tags", ())]
    assert tagged, "no cell is tagged `figures`"
    return "".join(output.text for cell in tagged for output in cell.outputs if output.get("name") == "stdout")


def main(names: list[str]) -> None:
    """Execute the named notebooks, or all, and write them back with their outputs."""
    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(name, Path(folder))
        nbformat.validate(notebook)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: written", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
