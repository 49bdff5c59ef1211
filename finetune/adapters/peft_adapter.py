"""What all adapters of the PEFT library share: targets, the wrapped head, saving, loading and merging."""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from finetune.adapters.adapter import Adapter
from finetune.adapters.targets import find_targets, kind
from finetune.data.artefacts import check_artefacts
from finetune.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from finetune.task import Task

WEIGHTS = "adapter_model.safetensors"


class PeftAdapter(Adapter):
    """An adapter of the PEFT library. The head is trained in full and saved with it.

    A subclass says its PEFT configuration in `peft_config`; everything else follows.
    """

    targets: list[str] = Field(default_factory=list)
    """Modules to adapt: names or their ends (`query,value`), regular expressions, `all-linear`, `all-conv`. Empty
    takes what the recipe states."""
    train_modules: list[str] = Field(default_factory=list)
    """Modules that are trained in full besides the head, and saved in the adapter."""

    kinds: ClassVar[tuple[str, ...]] = ("Linear", "Conv1D", "Conv2d")
    """Modules that it can go into."""

    def peft_config(self, model: torch.nn.Module, task: Task, total_updates: int) -> Any:
        """The PEFT configuration, with `target_modules` as full names.

        Raises:
            ConfigError: a setting that this model or plan can't have.
        """
        raise NotImplementedError

    def found_targets(self, model: torch.nn.Module, task: Task) -> list[str]:
        """Full names of the modules that are adapted.

        Raises:
            ConfigError: one of `targets` matches nothing that can be adapted.
        """
        patterns, setting = (self.targets, "adapter.targets") if self.targets else (task.target_modules, "the recipe")
        if not patterns:
            raise ConfigError("adapter.targets is empty, and the recipe states no targets.", "Name the modules.")
        return find_targets(model, patterns, task, self.kinds, setting)

    def trained_modules(self, model: torch.nn.Module, task: Task) -> list[str]:
        """Head modules and `train_modules`, by full name.

        Raises:
            ConfigError: one of `train_modules` is no module of the model.
        """
        names = [name for name, _ in model.named_modules() if name]
        found = list(task.head_modules)
        for wanted in self.train_modules:
            matched = [name for name in names if f".{name}".endswith(f".{wanted}")]
            if not matched:
                near = difflib.get_close_matches(wanted, [*names, *(name.rpartition(".")[2] for name in names)], n=1)
                raise ConfigError(
                    f"adapter.train_modules has {wanted!r}, which is no module of this model.",
                    f"Did you mean {near[0]}?" if near else "Write a module's name or the end of it.",
                )
            found += matched
        return list(dict.fromkeys(found))

    def check(self, task: Task, total_updates: int) -> None:
        super().check(task, total_updates)
        with quiet():
            self.peft_config(task.model, task, total_updates)
        self.trained_modules(task.model, task)

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        from peft import get_peft_model

        with quiet():
            config = self.peft_config(model, task, total_updates)
        config.modules_to_save = self.trained_modules(model, task) or None
        try:
            with quiet():
                wrapped = get_peft_model(model, config)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(
                f"adapter={self.name} doesn't fit this model: {' '.join(str(error).split())}",
                "Choose other adapter.targets, or another adapter.",
            ) from None
        if not hasattr(wrapped.base_model, "merge_and_unload"):
            raise ConfigError(f"adapter={self.name} can't be merged into a plain model.", "Use another adapter.")
        return wrapped

    def train_mode(self, model: torch.nn.Module) -> None:
        # BatchNorm's statistics are part of the base that other adapters share; trained ones move with the adapter.
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not any(
                parameter.requires_grad for parameter in module.parameters()
            ):
                module.eval()

    def save(self, model: Any, folder: Path, base: str, revision: str | None) -> bool:
        save_peft(model, folder, base, revision)
        return True

    def base(self, model: Any) -> torch.nn.Module:
        from peft.utils import ModulesToSaveWrapper

        whole = copy.deepcopy(model)
        for module in whole.modules():
            if isinstance(module, ModulesToSaveWrapper):
                # Else the base would carry the trained head, and nobody would notice an adapter without it.
                module.modules_to_save["default"] = module.original_module
        with quiet():
            return _without_wrappers(whole).unload().requires_grad_(False)

    def load(self, base: Any, folder: Path) -> torch.nn.Module:
        return load_peft(base, folder)

    def plain(self, model: Any) -> torch.nn.Module:
        with quiet():
            return _without_wrappers(model).merge_and_unload()


def save_peft(model: Any, folder: Path, base: str, revision: str | None) -> None:
    """Write an adapter alone in PEFT's format, naming `base` as what it goes onto."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    with quiet():
        # Given explicitly, the state is not checked against a base model that PEFT would look up on the hub.
        model.save_pretrained(folder, state_dict=model.state_dict(), save_embedding_layers=False)
    # PEFT's card is a form to fill in, whose base is a path of this machine; the run's own card says more.
    (folder / "README.md").unlink(missing_ok=True)


def load_peft(base: Any, folder: Path) -> torch.nn.Module:
    """A saved adapter on its base, as plain peft loads it: from safetensors, and nothing that names code.

    Raises:
        SourceError: its configuration asks for code, or a file is missing.
    """
    from peft import PeftModel

    # PEFT writes there what its own AutoPeftModel would import; only that reads it.
    check_artefacts(folder, str(folder), unread=("auto_mapping",))
    if not (folder / WEIGHTS).is_file():  # PEFT would take a pickle in its place, or ask the hub
        raise SourceError(f"{folder / WEIGHTS} is not there.", "Copy the run's folder again.")
    with quiet():
        loaded: torch.nn.Module = PeftModel.from_pretrained(base, folder)
    return loaded


def fan_in_fan_out(model: torch.nn.Module, targets: list[str]) -> bool:
    """Whether the targets keep their weights as [in, out], as GPT-2's Conv1D does."""
    return any(kind(model.get_submodule(name)) == "Conv1D" for name in targets)


def _without_wrappers(model: Any) -> Any:
    """The model with its wrapped heads as plain modules.

    Before PEFT unloads it: some methods leave heads wrapped, and some fail at one of several modules (a ResNet's).
    """
    from peft.utils import ModulesToSaveWrapper

    wrapped = {name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    for name, module in wrapped.items():
        model.set_submodule(name, module.modules_to_save["default"])
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide PEFT's warnings on what is wanted here."""
    with warnings.catch_warnings():
        # Linear and Conv1D targets side by side: PEFT sets it right for each module, and says so each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # PEFT asks models of transformers by a name that these have given up.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        # PEFT can't double rank and alpha of such an adapter when it is saved; `finetune.adapters.lora` does.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern/alpha_pattern")
        # Said of LayerNorm by PEFT's own method for LayerNorm; what can be adapted at all is checked before.
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        # Loading AdaLoRA, PEFT takes its masks for LoRA's ranks by name; it applies them all the same.
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
        # AdaLoRA may leave a matrix without any rank.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors is a no-op")
        yield
