"""`finetune predict`: a run's model on new rows."""

from __future__ import annotations

import argparse


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune predict` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="use a run's model on new texts, images or a file",
        description="Predict with a run's exported model: one text after --text, or every row of a file.\n"
        "Probabilities come with each prediction. A file keeps its columns; prediction and probability are added.\n"
        "A run on pairs of texts takes --text-pair after each --text; a tagger adds `entities`.\n"
        "A masked language model fills the mask tokens of each text; `masks` is added.\n"
        "A language model goes on from each text instead, with the run's seed; `generated` is added;\n"
        "one that was tuned on conversations answers each text.",
        epilog='Examples:\n  finetune predict runs/latest --text "A dull, clumsy film."\n'
        "  finetune predict runs/latest --file new.csv --out labelled.csv\n"
        '  finetune predict runs/latest --text "Once there was a [MASK]."\n'
        "  finetune predict runs/latest --image new/1.jpg --image new/2.jpg\n"
        '  finetune predict runs/latest --text "Once upon a time" --max-new-tokens 200',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, for example runs/latest")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", action="append", help="a text; may be repeated")
    what.add_argument("--image", action="append", metavar="PATH", help="an image, for a run of images; may be repeated")
    what.add_argument("--file", metavar="IN", help="CSV, TSV, JSONL or Parquet with a column of texts, or of paths")
    parser.add_argument("--text-pair", action="append", metavar="TEXT", help="with --text, for pairs: the other text")
    parser.add_argument("--out", metavar="OUT", help="with --file: where to write, .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--column", metavar="NAME", help="with --file: the text column, where it has another name")
    parser.add_argument("--column-pair", metavar="NAME", help="with --file, for pairs: the other text's column")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="most tokens that a language model writes (default: 100)"
    )
    parser.set_defaults(call=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from finetune.inference.command import predict

    given = (arguments.run, arguments.text, arguments.file, arguments.out, arguments.column)
    more = {"pairs": arguments.text_pair, "pair_column": arguments.column_pair, "images": arguments.image}
    return predict(*given, tokens=arguments.max_new_tokens, **more)
