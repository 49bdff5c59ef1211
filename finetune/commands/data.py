"""`finetune data`: look at data before training on it, and write a card for it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError, FinetuneError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.config import TextClassificationData
    from finetune.data.checks import CheckReport
    from finetune.image_settings import ImageData

DEFAULT_RECIPE = "bert_cls"
_RAW = argparse.RawDescriptionHelpFormatter


def add(subparsers: argparse._SubParsersAction) -> None:
    """Add `data check`, `data card` and `data list`."""
    data = subparsers.add_parser(
        "data",
        help="check data, write a card for it, list the shipped cards",
        description="Look at data before training on it. What `check` finds wrong is what a run would refuse.",
        epilog="Example:\n  finetune data check reviews.csv --set data.label=stars",
        formatter_class=_RAW,
    )
    data.set_defaults(call=lambda args: _usage(data))
    commands = data.add_subparsers(metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="rows, labels, duplicates, conflicts, leaks, lengths, and every problem with its line",
        description=(
            "Read data as a run would, but count problems instead of stopping at the first.\n"
            "Exit status: 0 when it can be trained on, 1 when there are problems, 2 when it can't be read."
        ),
        epilog="Example:\n  finetune data check reviews.csv --set data.text=review --set data.label=stars --json",
        formatter_class=_RAW,
    )
    _source_arguments(check)
    check.add_argument(
        "--model",
        metavar="NAME",
        help=f"whose tokens to count (default: {DEFAULT_RECIPE}'s)",
    )
    check.add_argument("--max-tokens", metavar="N", type=int, help="limit whose truncation is reported (default: 256)")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(call=_check)
    card = commands.add_parser(
        "card",
        help="write a data card with measured numbers",
        description=(
            "Write a data card: where the files are (with hashes), columns, labels in order, splits and measured\n"
            "numbers. `--data CARD.md` then means exactly this data. Without --out it is printed."
        ),
        epilog="Example:\n  finetune data card reviews.csv --out reviews.md --license cc-by-4.0 --language en",
        formatter_class=_RAW,
    )
    _source_arguments(card)
    card.add_argument("--out", metavar="FILE", type=Path, help="where to save it; a file that exists is not replaced")
    card.add_argument("--license", default="unknown", help="licence as the hub writes it (default: unknown)")
    card.add_argument("--language", default="und", help="language code, such as en (default: und, undetermined)")
    card.set_defaults(call=_card)
    listed = commands.add_parser(
        "list",
        help="the shipped data cards",
        description="The data sets that come with a card: fetched at first use, then kept in the cache.",
        epilog="Example:\n  finetune data list",
        formatter_class=_RAW,
    )
    listed.set_defaults(call=_list)


def _source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="CSV, TSV, JSONL or Parquet file, folder, card or hub id")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="data.KEY=VALUE",
        help="a data setting, such as data.text=COLUMN (repeatable)",
    )


def _usage(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return 2


def _settings(args: argparse.Namespace) -> TextClassificationData:
    from finetune.config import Section, TextClassificationData, apply_override, settings_of, unknown_key

    class Data(Section):
        data: TextClassificationData

    config = Data(data=TextClassificationData(source=args.path))
    known = [key for key, _, _ in settings_of(config)]
    for override in args.overrides:
        key, equals, _ = override.partition("=")
        if equals and key.strip() not in known:
            raise unknown_key(key.strip(), known, "is not a setting of `finetune data`")
        apply_override(config, override, "finetune data")
    return config.data


def _roles(settings: TextClassificationData) -> dict[str, str | None]:
    """Text and label; the text alone where a card states no label, or the source is plain text."""
    from finetune.data.card import card_names, load_card
    from finetune.data.file_kinds import SUFFIXES

    if settings.source in card_names() or settings.source.endswith(".md"):
        columns = load_card(settings.source).block.columns
        if "text" not in columns:  # a conversation's prompts and responses, for example
            return {role: None for role in columns if role not in ("id", "label")}
        unlabelled = "label" not in columns
    else:
        path = Path(settings.source)
        texts = path.rglob("*") if path.is_dir() else [path]
        kinds = {file.suffix.lower() for file in texts if file.suffix.lower() in SUFFIXES}
        unlabelled = kinds == {".txt"}
    return {"text": settings.text} if unlabelled else {"text": settings.text, "label": settings.label}


def _check(args: argparse.Namespace) -> int:
    from finetune.data.checks import check_data, token_lengths
    from finetune.data.image_checks import check_images, is_images

    if is_images(args.path):
        return _check_images(args, check_images)
    settings = _settings(args)
    limit = args.max_tokens if args.max_tokens is not None else settings.max_tokens
    if limit < 1:
        raise ConfigError(f"--max-tokens {limit} is too small.", "Give a number of tokens, for example 256.")
    tokenizer = _tokenizer(args.model)
    lengths = None if tokenizer is None else token_lengths(tokenizer)
    report = check_data(
        settings,
        _roles(settings),
        lengths=lengths,
        unit="words" if lengths is None else "tokens",
        max_length=None if lengths is None else limit,
    )
    print(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) if args.json else _as_text(report))
    return 1 if report.problems else 0


def _check_images(args: argparse.Namespace, check: Callable[[ImageData], tuple[str, int]]) -> int:
    from finetune.config import Section, apply_override
    from finetune.image_settings import ImageData

    if args.model is not None or args.max_tokens is not None or args.json:
        raise ConfigError("--model, --max-tokens and --json are for texts, but these are images.", "Leave them out.")

    class Data(Section):
        data: ImageData

    config = Data(data=ImageData(source=args.path))
    for override in args.overrides:
        apply_override(config, override, "finetune data")
    report, status = check(config.data)
    print(report)
    return status


def _tokenizer(name: str | None) -> Any:
    """The named model's tokenizer, else that of the default recipe; None when the latter can't be had just now."""
    from finetune.data.sources import resolve_model
    from finetune.models import load_tokenizer

    if name is not None:
        return load_tokenizer(resolve_model(name, None))
    from finetune.recipe import load_recipe

    model = load_recipe(DEFAULT_RECIPE).recipe.model
    try:
        return load_tokenizer(resolve_model(model.name, model.revision))
    except SourceError as error:  # one's own file can be checked without a network
        print(f"{error.problem} Counting words instead of its tokens.", file=sys.stderr)
        return None


def _card(args: argparse.Namespace) -> int:
    from finetune.data.card_draft import draft_card, write_card
    from finetune.data.image_checks import is_images

    if is_images(args.path):
        raise ConfigError(f"{args.path} holds images; cards are drafted for texts only.", "Give the folder to --data.")
    settings = _settings(args)
    out = args.out or Path("card.md")
    text = draft_card(settings, _roles(settings), out, args.license, args.language)
    if args.out is None:
        print(text, end="")
    else:
        write_card(text, args.out)
        print(f"wrote {args.out}; use it by --data {args.out}", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace) -> int:
    from finetune.data.card import card_names, load_card

    status = 0
    width = max((len(name) for name in card_names()), default=0)
    for name in card_names():
        try:
            card = load_card(name)
        except FinetuneError as error:  # one broken card must not hide the others
            print(error, file=sys.stderr)
            status = error.exit_code
            continue
        rows = sum(card.block.rows.values())
        print(f"{name:<{width}}  {rows:>7,} rows  {len(card.block.labels):>2} labels  {card.title}")
    return status


def _as_text(report: CheckReport) -> str:
    measured, lengths = report.measured, report.lengths
    total = sum(measured.rows.values())
    lines = [
        f"{report.name}: {total:,} rows ({', '.join(f'{split} {count:,}' for split, count in measured.rows.items())})",
        f"sha256 {report.sha256}",
        "",
    ]
    if measured.label_counts:
        ratio = f", largest to smallest {report.imbalance:g} : 1" if report.imbalance else ""
        lines.append(f"{len(measured.label_counts)} labels{ratio}")
        width = max(5, *(len(label) for label in measured.label_counts))
        cut = f" over {lengths.limit}" if lengths.truncated_by_label else ""
        lines.append(f"  {'label':<{width}}  {'train':>8} {'valid':>8} {'test':>8}   share{cut:>11}")
        for label, counts in measured.label_counts.items():
            share = sum(counts.values()) / total if total else 0.0
            truncated = lengths.truncated_by_label.get(label)
            tail = f"{truncated:>11.1%}" if truncated is not None else ""
            numbers = " ".join(f"{counts[split]:>8,}" for split in ("train", "valid", "test"))
            lines.append(f"  {label:<{width}}  {numbers}  {share:>6.1%}{tail}")
        lines.append("")
    duplicates = measured.duplicates
    lines += [
        f"duplicates         {duplicates.exact:,} exact, {duplicates.normalised:,} after normalising case and space",
        f"conflicting labels {duplicates.conflicting:,} rows whose text also stands under another label",
        f"cross-split rows   {', '.join(f'{split} {count:,}' for split, count in measured.leaks.items())}",
        f"left out           {report.dropped:,} by the card's label rule",
        f"length in {lengths.unit:<8} " + ", ".join(f"{name} {value:,}" for name, value in lengths.percentiles.items()),
    ]
    if lengths.truncated is not None:
        over = f"{lengths.truncated:.2%} of rows are longer than {lengths.limit} {lengths.unit}"
        lines.append(f"truncated          {over}")
    else:
        lines.append("truncated          unknown: tokens were not counted")
    lines += ["", *(f"note: {note}" for note in report.notes)]
    for kind, (count, first) in report.problems.items():
        lines.append(f"problem: {count:,} x {kind}")
        lines += [f"  {message}".replace("\n", "\n  ") for message in first]
    lines.append("A run would refuse this data." if report.problems else "A run can train on this data.")
    return "\n".join(lines)
