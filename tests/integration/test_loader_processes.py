"""Several processes that load the same data at once read it once and agree, as the ranks of one run do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

LOAD = """
import sys
from finetune.config import TextClassificationData
from finetune.data import loader
read = []
stage = loader.stage
loader.stage = lambda *args: read.append(1) or stage(*args)
data = loader.load_data(TextClassificationData(source=sys.argv[1]), {"text": None, "label": None})
print(data.sha256, len(read), len(data.splits["train"]))
"""


def test_three_processes_share_one_table(tmp_path: Path) -> None:
    rows = "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(20_000))
    (tmp_path / "d.csv").write_text(f"text,label\n{rows}")
    environment = os.environ | {"FINETUNE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, str(tmp_path / "d.csv")],
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({(sha256, rows) for sha256, _, rows in printed}) == 1
    assert sum(int(read) for _, read, _ in printed) == 1
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir() if path.name.startswith(".")] == []
