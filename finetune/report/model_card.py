"""The README.md of a run: a model card in the hub's format, made of the run record alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from finetune.files import write_atomically
from finetune.report.card_tables import markdown, part, quoted_samples, result_tables, said_in
from finetune.report.summary import (
    answers_line,
    clean,
    difference,
    reported_split,
    shown_metrics,
    title,
    unit,
    verdict,
)

PICTURE = "result.png"
DATA_CARD = "data_card.md"
FEW_ROWS = 30
MAX_LABELS = 60

# What the hub calls our metrics, and the arguments that make its metric ours.
HUB_METRICS: dict[str, tuple[str, dict[str, str] | None]] = {
    "accuracy": ("accuracy", None),
    "macro_f1": ("f1", {"average": "macro"}),
    "weighted_f1": ("f1", {"average": "weighted"}),
    "macro_precision": ("precision", {"average": "macro"}),
    "macro_recall": ("recall", {"average": "macro"}),
    "mcc": ("matthews_correlation", None),
    "pearson": ("pearsonr", None),
    "spearman": ("spearmanr", None),
    "ece": ("expected_calibration_error", None),
    "perplexity": ("perplexity", None),
}


def write_model_card(run_folder: Path, record: Mapping[str, Any]) -> None:
    """Write README.md into a run folder, in one step: a card that was there before stays whole or is replaced.

    `result.png` and `data_card.md` are linked where the run folder has them.

    Args:
        record: run.json's dict; parts that it lacks (after a failed run) are left out of the card. Besides the usual
            keys it may hold `command` (the line that ran it), `baseline_notes` {name: note}, `task` (the pipeline's
            name), `license` and `data.language`.
    """
    text = model_card(record, picture=(run_folder / PICTURE).is_file(), data_card=(run_folder / DATA_CARD).is_file())
    write_atomically(run_folder / "README.md", text)


def model_card(record: Mapping[str, Any], *, picture: bool = False, data_card: bool = False) -> str:
    """The card as text. `huggingface_hub.ModelCard` reads it back."""
    template = resources.files("finetune.report").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    data, model, config = part(record, "data"), part(record, "model"), part(record, "config")
    name, source = _name(record), _source(record)
    task = record.get("task", "text-classification")
    # The pipeline's own default would let a long text fail instead of being cut as it was in training.
    max_tokens = part(config, "data").get("max_tokens")
    labels = data.get("labels") or []
    return environment.from_string(template).render(
        metadata=_metadata(record, task).to_yaml().strip(),
        name=markdown(name),
        summary=_summary(record, name, source),
        picture=PICTURE if picture else "",
        picture_text="Scores of the fine-tuned model and of the baselines, with intervals",
        usable=reported_split(record) is not None,
        task=task,
        **_example(record, task, max_tokens),
        adapter_base=_adapter_base(record, model),
        chat="response" in part(config, "data"),
        samples=quoted_samples(record),
        answers=answers_line(record["answers"]) if record.get("answers") else "",
        labels=", ".join(f"`{_code(label)}`" for label in labels[:MAX_LABELS])
        + (
            f" and {len(labels) - MAX_LABELS} more (`id2label` in model/config.json)"
            if len(labels) > MAX_LABELS
            else ""
        ),
        tables=result_tables(record),
        data=_data_lines(data, source, data_card),
        training=_training_lines(record, model),
        command=record.get("command") or _command(record, config),
        config=json.dumps(config, indent=2, ensure_ascii=False),
        limits=_limits(record),
    )


def _example(record: Mapping[str, Any], task: str, max_tokens: int | None) -> dict[str, str]:
    """Name, text and further arguments of the call that the card shows."""
    if task == "text-generation":
        config = part(record, "config")
        if "response" in part(config, "data"):  # a chat model: the pipeline puts messages into its template
            asked = (record.get("samples") or [{"prompt": "Hello!"}])[0]["prompt"]
            messages = json.dumps([{"role": "user", "content": asked}], ensure_ascii=False)
            return {"call": "generate", "example": messages, "call_arguments": ", max_new_tokens=60"}
        prompts = part(config, "objective").get("prompts") or ["Once upon a time"]
        # Prompt and answer must fit into the context of a small model trained on short blocks.
        tokens = min(60, int(part(config, "data").get("block_tokens") or 120) // 2)
        return {"call": "generate", "example": json.dumps(prompts[0]), "call_arguments": f", max_new_tokens={tokens}"}
    if task == "token-classification":
        # As in training, a word's label is that of its first sub-word.
        return {"call": "tag", "example": '"Your text here."', "call_arguments": ', aggregation_strategy="first"'}
    if task == "fill-mask":
        return {"call": "fill", "example": 'f"Your text with one {fill.tokenizer.mask_token}."', "call_arguments": ""}
    if task == "image-classification":
        return {"call": "classify", "example": '"your_image.jpg"', "call_arguments": ""}
    arguments = f", truncation=True, max_length={max_tokens}" if max_tokens else ""
    if "text_pair" in part(part(record, "config"), "data"):
        pair = '{"text": "One text.", "text_pair": "The other."}'
        return {"call": "classify", "example": pair, "call_arguments": arguments}
    return {"call": "classify", "example": '"Your text here."', "call_arguments": arguments}


def _adapter_base(record: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """What loads the base of a run that exported an adapter alone, as Python; empty where there is a model/."""
    parts = part(part(record, "export_check"), "parts")
    if not parts or "model" in parts:
        return ""
    if model.get("revision") is None:
        return json.dumps({"pretrained_model_name_or_path": "base"})
    return json.dumps({"pretrained_model_name_or_path": model["name"], "revision": model["revision"]})


def _code(text: object) -> str:
    return clean(text).replace("`", "'").replace("|", "\\|")


def _name(record: Mapping[str, Any]) -> str:
    return " on ".join(filter(None, [str(part(record, "recipe").get("name") or "a recipe"), _source(record)]))


def _source(record: Mapping[str, Any]) -> str:
    stated = part(record, "data").get("card") or part(part(record, "config"), "data").get("source") or ""
    return str(stated)


def _metadata(record: Mapping[str, Any], task: str) -> ModelCardData:
    model, data, split = part(record, "model"), part(record, "data"), reported_split(record)
    source = _source(record)
    results = []
    for metric, score in (record["metrics"][split] if split else {}).items():
        hub_name, arguments = HUB_METRICS.get(metric, (metric, None))
        interval = f"95 % interval {score['low']:.4f} to {score['high']:.4f}, n = {score['n']}"
        results.append(
            EvalResult(
                task_type=task,
                dataset_type=source or "unknown",
                dataset_name=source or "unknown",
                dataset_split=split,
                metric_type=hub_name,
                metric_name=f"{title(metric)} ({interval})",
                metric_value=round(score["value"], 6),
                metric_args=arguments,
            )
        )
    return ModelCardData(
        # The hub refuses a base_model or a data set that is not a hub id.
        base_model=model.get("name") if _is_hub_id(model.get("name")) else None,
        datasets=[source] if _is_hub_id(source) else None,
        language=data.get("language"),
        license=record.get("license"),
        library_name="peft" if _adapter_base(record, model) else "transformers",
        pipeline_tag=task,
        tags=[task, "finetune-proven"],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=_name(record) if results else None,
        eval_results=results or None,
    )


def _is_hub_id(name: object) -> bool:
    """OWNER/NAME, which is neither a path nor a file."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
        and Path(name).suffix.lower() not in {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".md", ".txt"}
        and not Path(name).exists()
    )


def _summary(record: Mapping[str, Any], name: str, source: str) -> str:
    split = reported_split(record)
    # A wheel's source ends in its hash, which stands among the training facts; its last folder names the model.
    base = markdown(str(part(record, "model").get("name") or "a pretrained model").partition("#")[0])
    lines = [f"{base}, fine-tuned" + (f" on {markdown(source)}." if source else ".")]
    if record.get("status", "completed") != "completed":
        lines.append(f"**The run did not finish (status: {markdown(record['status'])}).**")
    if split:
        metric = shown_metrics(record["metrics"][split])[0]
        score = record["metrics"][split][metric]
        lines.append(
            f"On {score['n']:,} {split} {unit(record)} its {title(metric)} is {score['value']:.3f} "
            f"(95 % interval {score['low']:.3f} to {score['high']:.3f})."
        )
    for baseline, gain in sorted(part(record, "gains").items(), key=lambda item: item[1]["value"])[:1]:
        value, low, high = (difference(gain["metric"], gain[key]) for key in ("value", "low", "high"))
        lines.append(
            f"Against the strongest baseline ({markdown(baseline)}) that is {value} [{low}, {high}] "
            f"{said_in(gain['metric'])}paired over the same {unit(record)}: {verdict(gain)}."
        )
    return "\n".join(lines)


def _data_lines(data: Mapping[str, Any], source: str, data_card: bool) -> list[str]:
    lines = []
    if source:
        card = f"[{markdown(source)}]({DATA_CARD})" if data_card else markdown(source)
        if _is_hub_id(source):
            card = f"[{markdown(source)}](https://huggingface.co/datasets/{source})"
        lines.append(f"Data: {card}")
    if data.get("rows"):
        lines.append("Rows: " + ", ".join(f"{rows:,} {split}" for split, rows in data["rows"].items()))
    if data.get("sha256"):
        lines.append(f"SHA-256 over all rows and labels: `{data['sha256']}`")
    return [*lines, *(markdown(note) for note in data.get("notes") or [])] or ["Not recorded."]


def _training_lines(record: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    hardware, timing = part(record, "hardware"), part(record, "timing")
    lines = []
    if model.get("name"):
        at = f" at revision {markdown(model['revision'])}" if model.get("revision") else ""
        weights = f"; SHA-256 of its weights `{model['sha256']}`" if model.get("sha256") else ""
        lines.append(f"Starts from {markdown(model['name'])}{at}{weights}")
    if model.get("parameters"):
        share = model["trainable"] / model["parameters"]
        lines.append(f"Parameters: {model['parameters']:,}, of which {model['trainable']:,} ({share:.1%}) were trained")
    if record.get("updates") is not None:
        kept = f"; the weights after update {record['best_update']:,} were kept" if record.get("best_update") else ""
        lines.append(f"Updates: {record['updates']:,}{kept}; seed {record.get('seed')}; {record.get('precision')}")
    if hardware:
        gpus = ", ".join(map(str, hardware.get("gpus") or [])) or "no GPU"
        took = f"; training took {timing['train_s']:,.0f} s" if timing.get("train_s") else ""
        where = f"{markdown(hardware.get('cpu'))} ({hardware.get('cores')} cores, {markdown(gpus)})"
        lines.append(f"Machine: {where}, {hardware.get('processes')} process(es){took}")
    if record.get("versions"):
        lines.append("Versions: " + ", ".join(f"{name} {markdown(v)}" for name, v in record["versions"].items()))
    return lines or ["Not recorded."]


def _command(record: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    parts = ["finetune", "run", str(part(record, "recipe").get("name") or "RECIPE")]
    if part(config, "data").get("source"):
        parts += ["--data", str(config["data"]["source"])]
    return shlex.join([*parts, "--seed", str(record.get("seed", 0))])


def _limits(record: Mapping[str, Any]) -> list[str]:
    """What the numbers themselves warn of, so that no card claims more than was measured."""
    others = "texts of another kind, time or language"
    if record.get("task") == "image-classification":
        others = "images of another kind, camera or light"
    lines = [f"Measured on the rows above only; {others} can score far lower."]
    split = reported_split(record)
    if split is None:
        return [*lines, "This model was never evaluated. Do not use it."]
    metrics, classes = record["metrics"][split], part(record, "per_class").get(split) or []
    if split != "test":
        lines.append(f"There was no test split: the {split} split that chose the weights flatters them.")
    few = [row["label"] for row in classes if row["support"] < FEW_ROWS]
    if few:
        named = ", ".join(markdown(label) for label in few[:8]) + (" and others" if len(few) > 8 else "")
        lines.append(f"{len(few)} of {len(classes)} classes have fewer than {FEW_ROWS} {split} rows ({named}).")
    missed = [row["label"] for row in classes if row["support"] and not row["recall"]]
    if missed:
        lines.append("Never found: " + ", ".join(markdown(label) for label in missed[:8]) + ".")
    for name, gain in part(record, "gains").items():
        if verdict(gain) == "worse":
            lines.append(f"It is worse than the baseline {markdown(name)} on these rows.")
        elif verdict(gain) != "better":
            lines.append(f"On these rows it can't be told apart from the baseline {markdown(name)}.")
    if "ece" in metrics and metrics["ece"]["value"] > 0.05:
        lines.append(
            f"Its confidence is off by {metrics['ece']['value']:.3f} on average: do not read scores as chances."
        )
    return lines
