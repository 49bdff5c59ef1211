"""Writes rows to Arrow files in batches, deals them out to one file a split, and hashes what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune.data.columns import ID, LABEL
from finetune.data.splits import SPLITS

BATCH_ROWS = 1_000
ALL = "all.arrow"


class RowWriter:
    """Appends rows (id, then the roles) to one Arrow file of a folder, a batch at a time."""

    def __init__(self, folder: Path, roles: Mapping[str, pa.DataType]) -> None:
        self.schema = pa.schema([(ID, pa.string()), *roles.items()])
        self._sink = pa.OSFile(str(folder / ALL), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self.schema)
        self._rows: list[Sequence[object]] = []

    def add(self, row: Sequence[object]) -> None:
        """Append one row: its id, then a value for each role."""
        self._rows.append(row)
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()
            self._sink.close()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(values, type=field.type) for values, field in zip(columns, self.schema, strict=True)]
            self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
            self._rows = []


def write_splits(
    folder: Path,
    splits: NDArray[np.int8],
    classes: NDArray[Any] | None,
    labels: Sequence[str],
) -> tuple[dict[str, Path], str]:
    """Deal what RowWriter wrote out to train.arrow, valid.arrow and test.arrow, and take it away.

    Args:
        splits: [rows] index into SPLITS, or negative for rows that are left out.
        classes: [rows] class index or, for regression, score; None where the task has no label.
        labels: class names in index order.

    Returns:
        File by split, and the SHA-256 over the roles' values of all rows, the splits' sizes and the labels. Ids are
        not in it (line numbers differ between CSV and JSON Lines), nor is Arrow's layout.
    """
    files = {name: folder / f"{name}.arrow" for name in SPLITS}
    digests = [hashlib.sha256() for _ in SPLITS]
    # Streamed and not mapped: mapped pages would count as this process's memory.
    with pa.OSFile(str(folder / ALL), "rb") as source, pa.ipc.open_stream(source) as reader:
        schema = reader.schema if classes is None else reader.schema.append(pa.field(LABEL, pa.array(classes[:0]).type))
        sinks = [pa.OSFile(str(path), "wb") for path in files.values()]
        writers = [pa.ipc.new_stream(sink, schema) for sink in sinks]
        try:
            start = 0
            for batch in reader:
                part = slice(start, start + batch.num_rows)
                start += batch.num_rows
                extra = [] if classes is None else [pa.array(classes[part])]
                whole = pa.RecordBatch.from_arrays([*batch.columns, *extra], schema=schema)
                for index, writer in enumerate(writers):
                    chosen = whole.filter(pa.array(splits[part] == index))
                    if chosen.num_rows:
                        writer.write_batch(chosen)
                        for row in zip(*(column.to_pylist() for column in chosen.columns[1:]), strict=True):
                            digests[index].update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        finally:
            for closing in (*writers, *sinks):
                closing.close()
    (folder / ALL).unlink()
    content = {
        "labels": list(labels),
        "roles": schema.names[1:],
        "rows": [int((splits == index).sum()) for index in range(len(SPLITS))],
        "splits": [digest.hexdigest() for digest in digests],
    }
    return files, hashlib.sha256(json.dumps(content).encode()).hexdigest()
