"""`finetune data check`: what a run would see of some data, and what it would refuse."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from finetune.image_settings import ImageData
    from finetune.recipe import LoadedRecipe

DEFAULT_RECIPE = "bert_cls"
# Whose settings and tokens are taken for each kind of rows, where --recipe names none.
RECIPES = {
    "TextPairData": "bert_pair",
    "TaggedTextData": "bert_ner",
    "ConversationData": "gpt2_sft",
    "ImageData": "resnet_img",
}
# Settings of other sections that change what a run reads.
READING = ("objective.kind", "objective.loss_on")


def check(args: argparse.Namespace) -> int:
    """Print the report; 0 when a run can train on the data, 1 when there are problems."""
    from finetune.data.check_kinds import kind_of_rows, lengths_of, lost_answers
    from finetune.data.check_text import as_text
    from finetune.data.checks import check_data
    from finetune.data.personal import find_personal
    from finetune.data.plan import make_plan
    from finetune.image_settings import ImageData
    from finetune.language_settings import ConversationData

    if args.redact is not None and not args.pii:
        raise ConfigError("--redact says where the copy of --pii goes.", "Give both, or neither.")
    loaded = recipe_of(args, "check")
    settings, objective = loaded.recipe.data, loaded.recipe.objective
    if isinstance(settings, ImageData):
        return _check_images(args, settings)
    kind = kind_of_rows(settings)
    limit = args.max_tokens if args.max_tokens is not None else getattr(settings, "max_tokens", None)
    if limit is not None and limit < 1:
        raise ConfigError(f"--max-tokens {limit} is too small.", "Give a number of tokens, for example 256.")
    tokenizer = _tokenizer(args.model, loaded)
    examine = None
    if isinstance(settings, ConversationData) and tokenizer is not None:
        settings.max_tokens = limit or settings.max_tokens
        examine = lost_answers(settings, tokenizer, getattr(objective, "loss_on", "responses"))
    report = check_data(
        settings,
        kind.roles,
        lengths=None if tokenizer is None else lengths_of(settings, tokenizer),
        unit="words" if tokenizer is None else "tokens",
        max_length=None if tokenizer is None else limit,
        kind=kind.name,
        scores=getattr(objective, "kind", None) == "regression",
        examine=examine,
    )
    personal = find_personal(make_plan(settings, kind.roles), args.redact) if args.pii else None
    if args.json:
        content = report.as_dict() | ({"personal": asdict(personal)} if personal else {})
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        print("\n".join([as_text(report, kind.fate), *(personal.lines() if personal else [])]))
    if args.redact is not None:
        print(f"wrote {args.redact}: what was found is replaced, the rest is as it was", file=sys.stderr)
    return 1 if report.problems else 0


def recipe_of(args: argparse.Namespace, command: str) -> LoadedRecipe:
    """The recipe that says how the data is read: --recipe with its own settings, else that of the kind recognised."""
    from finetune.config import unknown_key
    from finetune.data.check_kinds import recognised
    from finetune.recipe import load_recipe, override

    loaded = load_recipe(args.recipe or RECIPES.get(recognised(args.path).__name__, DEFAULT_RECIPE))
    if args.recipe is None:  # limits that a recipe sets for data of its own are not for other data
        loaded.recipe.data = type(loaded.recipe.data)(source=args.path)
    for change in args.overrides:
        key = change.partition("=")[0].strip()
        if not key.startswith("data.") and key not in READING:
            known = [f"data.{name}" for name in type(loaded.recipe.data).model_fields]
            raise unknown_key(key, [*known, *READING], f"is not a setting of `finetune data {command}`")
    override(loaded, [f"data.source={args.path}", *args.overrides])
    return loaded


def _check_images(args: argparse.Namespace, settings: ImageData) -> int:
    from finetune.data.image_checks import check_images

    if args.model is not None or args.max_tokens is not None or args.json or args.pii:
        raise ConfigError(
            "--model, --max-tokens, --json, --pii and --redact are for texts, but these are images.", "Leave them out."
        )
    report, status = check_images(settings)
    print(report)
    return status


def _tokenizer(name: str | None, loaded: LoadedRecipe) -> Any:
    """The named model's tokenizer, else that of the recipe; None when the latter can't be had just now."""
    from finetune.data.conversations import use_template
    from finetune.data.sources import resolve_model
    from finetune.language_settings import ConversationData
    from finetune.models import load_tokenizer
    from finetune.text_settings import TaggedTextData

    data, model = loaded.recipe.data, loaded.recipe.model
    try:
        files = resolve_model(name or model.name, None if name else model.revision)
        tokenizer = load_tokenizer(files, of_words=isinstance(data, TaggedTextData))
    except SourceError as error:
        if name is not None:
            raise
        # One's own file can be checked without a network.
        print(f"{error.problem} Counting words instead of its tokens.", file=sys.stderr)
        return None
    if isinstance(data, ConversationData):
        use_template(tokenizer, data.chat_template)
    return tokenizer
