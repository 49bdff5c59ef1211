"""A table's published documents, made of its records alone: Markdown, CSV, HTML and a picture."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from finetune.bench.jobs import jobs_of_cell, pending, read_records, stored_of
from finetune.bench.table import FIXED, Column, Reference, Row, Table
from finetune.evaluation.intervals import LEVEL
from finetune.evaluation.multiple import compare_all
from finetune.files import write_atomically
from finetune.report.card_tables import markdown
from finetune.report.summary import SHARES, p_text, title


@dataclass(frozen=True)
class Cell:
    """A cell's runs: scores in the table's unit (shares in per cent), and the mean of what they cost."""

    row: Row
    column: Column
    records: list[dict[str, Any]]
    planned: int

    @property
    def scores(self) -> list[float]:
        """One a seed."""
        return [scale(self.column.metric) * record["score"] for record in self.records]

    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds, by Student's t; none with one seed."""
        if len(self.scores) < 2:
            return None
        spread = float(np.std(self.scores, ddof=1)) / len(self.scores) ** 0.5
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(self.scores) - 1)) * spread
        mean, share = float(np.mean(self.scores)), self.column.metric in SHARES
        # No share lies outside 0 to 100 %, whatever two far runs give.
        return (max(0.0, mean - half), min(100.0, mean + half)) if share else (mean - half, mean + half)

    def mean(self, key: str) -> float:
        """The mean over seeds of a number of the records."""
        return float(np.mean([record[key] for record in self.records]))


def scale(metric: str) -> float:
    """Shares and correlations are shown in per cent."""
    return 100.0 if metric in SHARES or metric in ("mcc", "pearson", "spearman") else 1.0


def cells_of(table: Table, records: Mapping[str, dict[str, Any]]) -> list[Cell]:
    """Every cell that has a record, row by row."""
    cells = []
    for row in table.content.rows:
        for column in table.content.columns:
            if not table.has(row, column):
                continue
            keys = [job.key(table) for job in jobs_of_cell(table, row, column, records)[0]]
            # A metric is no part of a run's key: any can be computed from the answers that are kept.
            found = [with_metric(records[key], column.metric) for key in keys if key in records]
            if found:
                cells.append(Cell(row, column, found, len(table.seeds_of(row, column))))
    return cells


def with_metric(record: dict[str, Any], metric: str) -> dict[str, Any]:
    """A record whose score is the metric that its answers give."""
    return record if record["metric"] == metric else {**record, "score": stored_of(record).value(metric)}


def rows_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def score_text(cell: Cell) -> str:
    """mean [low, high], n."""
    found = cell.interval()
    interval = f" [{found[0]:.2f}, {found[1]:.2f}]" if found else ""
    n = (
        f", n = {len(cell.scores)}"
        if len(cell.scores) == cell.planned
        else f", n = {len(cell.scores)} of {cell.planned}"
    )
    return f"{np.mean(cell.scores):.2f}{interval}{n}"


def document(table: Table, records: Mapping[str, dict[str, Any]]) -> list[tuple[str, list[list[str]]]]:
    """The document as blocks: (a paragraph, rows of the table that follows it, or none)."""
    cells, content = cells_of(table, records), table.content
    at = {(cell.row.name, cell.column.name): cell for cell in cells}
    names = [
        f"{some.name} ({title(some.metric)}{', %' if scale(some.metric) == 100 else ''})" for some in content.columns
    ]
    scores = [["", *names]]
    for row in content.rows:
        texts = [
            score_text(at[row.name, column.name]) if (row.name, column.name) in at
            else "not run" if table.has(row, column) else "–"
            for column in content.columns
        ]  # fmt: skip
        scores.append([row.name, *texts])
    blocks = [(content.about, []), (
        "Mean over seeds with its 95 % interval (Student's t; it covers another seed, not other test rows) and the "
        "number of seeds. Methods without a random part have one run, which is all that there is.", scores,
    )]  # fmt: skip
    blocks += [(note, []) for note in _chance(cells)]
    left = len(pending(table, records))
    if left:
        blocks.append((f"**Not complete:** at least {left} runs of this table have no record yet.", []))
    if cells:
        blocks += [_costs(cells), *_pairs(content.columns, at, content.rows), *_references(content.references, at)]
        blocks.append((_made_on(cells), []))
    methods = [f"{row.name}: {FIXED[row.method]}" for row in content.rows if row.method in FIXED]
    return [*blocks, *([("; ".join(methods) + ".", [])] if methods else [])]


def _chance(cells: Sequence[Cell]) -> list[str]:
    """A note of the cells whose accuracy a method that reads nothing has too."""
    notes = []
    for cell in cells:
        if cell.column.metric != "accuracy" or cell.row.method == "majority":
            continue
        labels = stored_of(cell.records[0]).labels
        commonest = 100.0 * float(np.bincount(labels.astype(np.int64)).max()) / len(labels)
        if float(np.mean(cell.scores)) <= commonest:
            notes.append(f"{cell.row.name} on {cell.column.name} (the commonest class: {commonest:.2f})")
    return [f"**No better than always the commonest class** of the test rows: {', '.join(notes)}."] if notes else []


def _costs(cells: Sequence[Cell]) -> tuple[str, list[list[str]]]:
    rows = [
        ["", "data", "trained parameters", "training (s)", "peak memory (MiB)", "adapter (MB)", "runs, search included"]
    ]
    for cell in cells:
        size = cell.records[0].get("adapter_bytes")
        tries = len(cell.records) + (len(cell.row.search.values) - 1 if cell.row.search else 0)
        rows.append([
            cell.row.name, cell.column.name, f"{cell.records[0]['trainable']:,}", f"{cell.mean('train_s'):.1f}",
            f"{cell.mean('peak_rss_mb'):.0f}", f"{size / 1e6:.2f}" if size else "–", str(tries),
        ])  # fmt: skip
    return "What it cost, mean over seeds; each run judged its test rows once.", rows


def _pairs(
    columns: Sequence[Column], at: Mapping[tuple[str, str], Cell], rows: Sequence[Row]
) -> list[tuple[str, list[list[str]]]]:
    """All pairs of rows in each column, over the same test rows; methods on other test rows are not compared."""
    blocks: list[tuple[str, list[list[str]]]] = []
    for column in columns:
        cells = [at[row.name, column.name] for row in rows if (row.name, column.name) in at]
        if len(cells) < 2:
            continue
        tests = [record["test"] for cell in cells for record in cell.records]
        if len({(test["ids_sha256"], test["labels"]["zlib"]) for test in tests}) > 1:
            blocks.append((f"{column.name}: **not compared**, because its runs saw different test rows.", []))
            continue
        found = compare_all([[stored_of(record) for record in cell.records] for cell in cells], column.metric, 0)
        factor = scale(column.metric)
        lines = [["first", "second", "first - second", "95 % interval", "p (Holm)", "the first is"]]
        lines += [[
            cells[pair.a].row.name, cells[pair.b].row.name, f"{factor * pair.value:+.2f}",
            f"{factor * pair.low:+.2f} to {factor * pair.high:+.2f}", p_text(pair.p_holm), pair.verdict,
        ] for pair in found]  # fmt: skip
        blocks.append((
            f"{column.name}, {title(column.metric)}: paired bootstrap over test rows and seeds, Holm's correction over "
            f"the {len(found)} pairs.", lines,
        ))  # fmt: skip
    return blocks


def _references(
    references: Sequence[Reference], at: Mapping[tuple[str, str], Cell]
) -> list[tuple[str, list[list[str]]]]:
    rows = [["", "data", "published", "here", "difference", "protocol", "source"]]
    for some in references:
        cell = at.get((some.row, some.column))
        here = float(np.mean(cell.scores)) if cell else None
        protocol = f"same, ± {some.tolerance:g}" if some.protocol == "same" else "analogue"
        rows.append([
            some.row, some.column, f"{some.value:g}", "not run" if here is None else f"{here:.2f}",
            "" if here is None else f"{here - some.value:+.2f}", protocol, some.source,
        ])  # fmt: skip
    return [("Published numbers. `same` is held by `finetune bench check`.", rows)] if len(rows) > 1 else []


def _made_on(cells: Sequence[Cell]) -> str:
    records = [record for cell in cells for record in cell.records]
    machines = sorted({f"{one['hardware']['cpu']} ({one['hardware']['threads']} threads a run)" for one in records})
    versions = sorted({f"torch {one['versions']['torch']}, transformers {one['versions']['transformers']}, "
                       f"finetune {one['versions']['finetune']}" for one in records})  # fmt: skip
    return f"Made on {'; '.join(machines)} with {'; '.join(versions)}. {len(records)} records."


def as_markdown(table: Table, blocks: Sequence[tuple[str, list[list[str]]]], picture: bool) -> str:
    """The document as Markdown."""
    parts = [f"# {markdown(table.content.title)}"]
    for text, rows in blocks:
        parts += [text] if text else []
        parts += [rows_markdown([[markdown(cell) if cell else "" for cell in row] for row in rows])] if rows else []
    if picture:
        parts.append(f"![Score against trained parameters, and against training time]({table.name}.png)")
    parts.append(
        f"Made by `finetune bench show {table.argument}` from the records in `{table.name}/`; nothing is typed in."
    )
    return "\n\n".join(parts) + "\n"


def as_html(table: Table, blocks: Sequence[tuple[str, list[list[str]]]]) -> str:
    """The document as a page of its own."""
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(table.content.title)}</title>',
             "<style>body{font:16px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .8em;text-align:left;"
             "border-bottom:1px solid #ddd}table{border-collapse:collapse}</style>",
             f"<h1>{html.escape(table.content.title)}</h1>"]  # fmt: skip
    for text, rows in blocks:
        parts += [f"<p>{html.escape(text.replace('**', ''))}</p>"] if text else []
        if rows:
            lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in rows[0])}</tr>"]
            lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:]]
            parts.append("<table>" + "\n".join(lines) + "</table>")
    return "\n".join(parts) + "\n</html>\n"


def as_csv(cells: Sequence[Cell]) -> str:
    """One line a run, for other programs; full digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = (
        "row",
        "column",
        "seed",
        "metric",
        "score",
        "trainable",
        "train_s",
        "peak_rss_mb",
        "adapter_bytes",
        "key",
    )
    writer.writerow(columns)
    for cell in cells:
        for record in cell.records:
            writer.writerow([{**record, "metric": cell.column.metric}.get(name, "") for name in columns])
    return file.getvalue()


def documents(table: Table, folder: Path) -> dict[Path, str]:
    """What `show` writes besides the picture, by file."""
    records = read_records(table, folder)
    blocks, cells = document(table, records), cells_of(table, records)
    return {
        folder / f"{table.name}.md": as_markdown(table, blocks, bool(cells)),
        folder / f"{table.name}.csv": as_csv(cells),
        folder / f"{table.name}.html": as_html(table, blocks),
    }


def show(table: Table, folder: Path) -> str:
    """Write the documents and the picture; returns the Markdown."""
    from finetune.bench.plot import picture

    found = documents(table, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in found.items():
        write_atomically(path, text)
    cells = cells_of(table, read_records(table, folder))
    if cells:
        picture(table, cells, folder / f"{table.name}.png")
    return found[folder / f"{table.name}.md"]
