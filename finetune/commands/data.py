"""`finetune data`: look at data before training on it, and write a card for it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import ConfigError, FinetuneError

if TYPE_CHECKING:
    from finetune.config import TextClassificationData

_RAW = argparse.RawDescriptionHelpFormatter


def add(subparsers: argparse._SubParsersAction) -> None:
    """Add `data check`, `data leaks`, `data card` and `data list`."""
    data = subparsers.add_parser(
        "data",
        help="check data, find leaks, write a card for it, list the shipped cards",
        description="Look at data before training on it. What `check` finds wrong is what a run would refuse.",
        epilog="Example:\n  finetune data check reviews.csv --set data.label=stars",
        formatter_class=_RAW,
    )
    commands = data.add_subparsers(metavar="COMMAND", title="commands", required=True)
    check = commands.add_parser(
        "check",
        help="rows, labels, duplicates, conflicts, leaks, lengths, and every problem with its line",
        description=(
            "Read data as a run would, but count problems instead of stopping at the first.\n"
            "What rows are (texts, pairs of texts, words with tags, conversations, images) shows in the columns, or\n"
            "--recipe says it, with that recipe's data settings.\n"
            "Exit status: 0 when it can be trained on, 1 when there are problems, 2 when it can't be read."
        ),
        epilog="Examples:\n  finetune data check reviews.csv --set data.text=review --set data.label=stars --json\n"
        "  finetune data check pairs.csv --recipe bert_pair --set objective.kind=regression",
        formatter_class=_RAW,
    )
    _source_arguments(check)
    check.add_argument("--recipe", metavar="NAME", help="read the data as this recipe does; a name or a path")
    check.add_argument("--model", metavar="NAME", help="whose tokens to count (default: the recipe's)")
    check.add_argument(
        "--max-tokens", metavar="N", type=int, help="limit whose truncation is reported (default: data.max_tokens)"
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument(
        "--pii",
        action="store_true",
        help="also count e-mail addresses, phone, card and account numbers, IP addresses and keys",
    )
    check.add_argument(
        "--redact",
        metavar="OUT",
        type=Path,
        help="with --pii: write a copy in which [KIND] stands for each (.jsonl; a folder for several files)",
    )
    check.set_defaults(call=_check)
    leaks = commands.add_parser(
        "leaks",
        help="rows that two splits share, exactly or nearly, and a run's score without them",
        description=(
            "Rows of validation and test that also stand in a split before theirs: word for word, after normalising\n"
            "case and space, or nearly (MinHash of word shingles; perceptual hashes of images). With --run, the test\n"
            "score of that run with and without them."
        ),
        epilog="Examples:\n  finetune data leaks reviews.csv\n  finetune data leaks reuters_r8 --run runs/latest",
        formatter_class=_RAW,
    )
    _source_arguments(leaks)
    leaks.add_argument("--recipe", metavar="NAME", help="read the data as this recipe does; a name or a path")
    leaks.add_argument(
        "--threshold", metavar="SHARE", type=float, help="Jaccard similarity from which texts are near (default: 0.7)"
    )
    leaks.add_argument("--run", metavar="RUN", help="a finished run on this data")
    leaks.add_argument("--metric", metavar="NAME", help="of the run's score: accuracy, macro_f1, mcc, ...")
    leaks.add_argument("--examples", metavar="N", type=int, default=2, help="rows shown of each kind (default: 2)")
    leaks.add_argument("--json", action="store_true", help="print every leaked row as JSON")
    leaks.set_defaults(call=_leaks)
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
    from finetune.commands.data_check import check

    return check(args)


def _leaks(args: argparse.Namespace) -> int:
    from finetune.commands.data_leaks import leaks

    return leaks(args)


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
