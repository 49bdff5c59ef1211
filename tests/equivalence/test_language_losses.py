"""Chunked cross-entropy equals the whole one in value and gradient, through PEFT too, and holds fewer logits."""

import subprocess
import sys

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from finetune.language_modeling import usable_losses
from finetune.objectives import next_token_count, token_losses

pytestmark = pytest.mark.equivalence

VOCABULARY = 97


def gpt2(**settings: object) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return transformers.GPT2LMHeadModel(config, **settings)


def llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=False,
        )
    )


def gemma2() -> transformers.Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.05, pad_token_id=0,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config)


def lora_on_the_head() -> torch.nn.Module:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    return model


def lora_below_a_frozen_head() -> torch.nn.Module:
    return get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (3, 21), generator=generator)
    targets = ids[:, 1:].clone()
    targets[1, 11:] = -100
    return ids[:, :-1], targets


def whole(model: torch.nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(input_ids=ids).logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks by the old name
@pytest.mark.parametrize("make", [gpt2, llama, lora_on_the_head, lora_below_a_frozen_head])
@pytest.mark.parametrize("chunk", [1, VOCABULARY * 7, 1 << 24])
def test_chunks_equal_the_whole_in_value_and_every_gradient(make: object, chunk: int) -> None:
    ids, targets = batch()
    ours, theirs = make(), make()  # type: ignore[operator]
    loss = token_losses(ours, ids, targets, chunk).sum()
    expected = whole(theirs, ids, targets)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    compared = 0
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is None:
            assert one.grad is None, name
            continue
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5 * float(other.grad.abs().max())), name
        compared += 1
    assert compared >= 4


def test_tokens_without_a_target_do_not_go_through_the_head() -> None:
    """Two of sixty targets: the head sees two rows; without any it still gets a gradient, of zeros."""
    ids, targets = batch()
    targets = torch.full_like(targets, -100).index_put((torch.tensor([0, 2]), torch.tensor([3, 19])), torch.tensor(5))
    model, seen = llama(), []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    losses = token_losses(model, ids, targets)
    assert seen[0] == 2
    assert losses.shape == targets.shape
    assert (losses != 0).nonzero().tolist() == [[0, 3], [2, 19]]
    assert losses.sum().item() == pytest.approx(whole(model, ids, targets).item(), rel=1e-6)
    nothing = token_losses(model, ids, torch.full_like(targets, -100))
    assert nothing.abs().max() == 0
    nothing.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_it_is_the_loss_that_transformers_computes() -> None:
    ids, targets = batch()
    model = gpt2()
    labels = torch.cat([ids[:, :1], targets], dim=1)
    reference = model(input_ids=torch.cat([ids, targets[:, -1:].clamp(min=0)], dim=1), labels=labels).loss
    ours = token_losses(model, ids, targets).sum() / next_token_count(targets)
    assert float(next_token_count(targets)) == 3 * 20 - 9
    assert ours.item() == pytest.approx(reference.item(), rel=1e-6)


def test_autocast_reaches_the_head() -> None:
    ids, targets = batch()
    model = llama()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_losses(model, ids, targets, 100).sum()
        expected = F.cross_entropy(
            model(input_ids=ids).logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
        )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_model_is_as_before_afterwards() -> None:
    ids, targets = batch()
    model = gpt2()
    before = model(input_ids=ids).logits
    token_losses(model, ids, targets)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_model_that_caps_its_logits_is_noticed() -> None:
    ids, targets = batch()
    model = gemma2()
    losses, notes = usable_losses(model)
    assert notes
    assert losses(model, ids, targets).sum().item() == pytest.approx(whole(model, ids, targets).item(), rel=1e-5)
    assert usable_losses(llama()) == (token_losses, [])


# 2 x 512 tokens of a 49,152-word vocabulary: whole logits are 192 MiB in fp32, and softmax and gradient twice more.
MEMORY = """
import sys, torch, transformers
from torch.nn import functional as F
from finetune.objectives import token_losses
config = transformers.GPT2Config(vocab_size=49152, n_positions=512, n_embd=64, n_layer=1, n_head=2)
model, ids = transformers.GPT2LMHeadModel(config), torch.randint(0, 49152, (2, 512))
small = ids[:, :16]
def loss(ids):
    if sys.argv[1] == "chunked":
        return token_losses(model, ids, ids).sum()
    return F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten(), reduction="sum")
loss(small).backward()
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
# The kernel's own peak, from here on: getrusage's begins with what the parent process had.
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
loss(ids).backward()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_a_fraction() -> None:
    chunked, at_once = (
        float(subprocess.run([sys.executable, "-c", MEMORY, how], capture_output=True, text=True, check=True).stdout)
        for how in ("chunked", "whole")
    )
    assert at_once > 192  # the logits once, of what one process needs more than it ever did before
    assert chunked < 0.6 * at_once


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_below_a_frozen_head_every_token_has_a_weight_of_its_own_and_logits_are_made_once() -> None:
    ids, targets = batch()
    weights = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = lora_below_a_frozen_head(), lora_below_a_frozen_head()
    calls = []
    ours.base_model.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    (token_losses(ours, ids, targets, VOCABULARY * 7) * weights).sum().backward()
    logits = theirs(input_ids=ids).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    (losses * weights).sum().backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7), name
    counted = int((targets != -100).sum())
    assert len(calls) == -(-counted // 7) + 1  # each chunk once, and what the model itself goes on with
