"""`finetune bench`: benchmark tables that are run, shown and checked from their records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands import bench_speed

if TYPE_CHECKING:
    from finetune.bench.table import Table

_ABOUT = """\
Benchmark tables. A table is a small TOML file: rows (a recipe and settings), columns (data and a metric), seeds, and
published numbers. Every finished run leaves one JSON record; documents are made of the records and of nothing else.
"""
_EXAMPLES = """\
Examples:
  finetune bench list
  finetune bench plan textgcn
  finetune bench run textgcn --workers 2       again: goes on where it stopped
  finetune bench show textgcn
  finetune bench check textgcn
  finetune bench run my_table.toml             one of your own (CONTRIBUTING.md shows one)
  finetune bench speed --rows bert_full        the same updates here and by transformers' Trainer
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune bench` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="benchmark tables: list, plan, run, show, check; and speed beside others",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_subparsers(metavar="WHAT", title="what to do", required=True)
    for name, text, call in (
        ("list", "the shipped tables", _list),
        ("plan", "which runs are done, which are left, and what they will take", _plan),
        ("run", "run what has no record yet", _run),
        ("show", "make the documents from the records, and print the Markdown", _show),
        (
            "check",
            "are the documents what the records give, and the cells within tolerance? exit status 1 if not",
            _check,
        ),
    ):
        example = f"finetune bench {name}" + ("" if name == "list" else " textgcn")
        one = what.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"Example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name != "list":
            one.add_argument("table", metavar="TABLE", help="name, or path of a .toml file")
            one.add_argument(
                "--results", metavar="DIR", help="folder of records and documents (default: beside the table)"
            )
        if name == "run":
            one.add_argument("--workers", type=int, default=1, metavar="N", help="runs at once (default: 1)")
        one.set_defaults(call=call)
    bench_speed.add(what)


def _list(arguments: argparse.Namespace) -> int:
    from finetune.bench.table import load_table, table_names

    for name in table_names():
        content = load_table(name).content
        size = f"{len(content.rows)} x {len(content.columns)}, {len(content.seeds)} seeds"
        print(f"{name:<16}{size:<20}{content.title}")
    return 0


def _open(arguments: argparse.Namespace) -> tuple[Table, Path]:
    from finetune.bench.jobs import results_folder
    from finetune.bench.table import load_table

    table = load_table(arguments.table)
    return table, results_folder(table, arguments.results)


def _plan(arguments: argparse.Namespace) -> int:
    from finetune.bench.estimate import estimates
    from finetune.bench.jobs import changed_data, pending, read_records
    from finetune.bench.work import check_table

    table, folder = _open(arguments)
    check_table(table)
    records = read_records(table, folder)
    cells, stale = estimates(table, records)
    done, planned = sum(cell.done for cell in cells), sum(cell.planned for cell in cells)
    print(f"{table.name}: {done} of {planned} runs done, {len(pending(table, records))} can be started now; records in "
          f"{folder / table.name}/")  # fmt: skip
    if stale:
        print(f"  {stale} records there are of other settings or another version of a recipe, and count for nothing.")
    for message in changed_data(table, records):
        print(f"  {message}.")
    for cell in cells:
        text = "no run of this row to go by" if cell.seconds is None else f"about {cell.seconds:.0f} s a run"
        print(f"  {cell.row} on {cell.column}: {cell.done} of {cell.planned} done; {text}")
    left = [cell for cell in cells if cell.done < cell.planned]
    known = sum((cell.planned - cell.done) * cell.seconds for cell in left if cell.seconds is not None)
    unknown = sum(cell.planned - cell.done for cell in left if cell.seconds is None)
    whole = sum(cell.planned * cell.seconds for cell in cells if cell.seconds is not None)
    if known:
        print(f"About {known / 60:.0f} min with one worker for {planned - done - unknown} of the runs left "
              f"({whole / 60:.0f} min for all, from nothing).")  # fmt: skip
    if unknown:
        print(f"No record to go by for {unknown} of them; `finetune plan RECIPE --data ... --set ...` measures one.")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from finetune.bench.work import run_table
    from finetune.errors import ConfigError

    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers} is none.", "Give 1 or more.")
    table, folder = _open(arguments)
    done, stopped_by = run_table(table, folder, arguments.workers)
    if stopped_by:
        print(f"{table.name}: interrupted after {done} runs; the same command goes on with those that have no record.")
        return 128 + stopped_by
    print(f"{table.name}: {done} runs done here; show them: finetune bench show {arguments.table}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from finetune.bench.show import show

    table, folder = _open(arguments)
    print(show(table, folder), end="")
    if sys.stdout.isatty():
        print(f"\nWritten: {folder / table.name}.md, .csv, .html and .png")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from finetune.bench.check import check

    table, folder = _open(arguments)
    wrong = check(table, folder)
    print("\n".join(wrong) if wrong else f"{table.name}: documents and records agree, cells are within tolerance.")
    return 1 if wrong else 0
