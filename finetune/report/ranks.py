"""The ranks that AdaLoRA left in each matrix, as a table of modules by layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

LAYERS_A_BLOCK = 16


def rank_table(ranks: Mapping[str, int]) -> str:
    """Lines of at most 100 columns: a row for each kind of module, a column for each layer.

    Args:
        ranks: ranks by full module name; the first number in a name is its layer.
    """
    table: dict[str, dict[int, int]] = {}
    for name, rank in ranks.items():
        layer = re.search(r"(?:^|\.)(\d+)\.", name)
        row = name[layer.end() :] if layer else name
        table.setdefault(row, {})[int(layer.group(1)) if layer else 0] = rank
    layers = sorted({layer for row in table.values() for layer in row})
    width = min(34, max(len(row) for row in table)) + 2
    lines = []
    for start in range(0, len(layers), LAYERS_A_BLOCK):
        block = layers[start : start + LAYERS_A_BLOCK]
        lines.append(f"{'layer':<{width}}" + "".join(f"{layer:>4}" for layer in block))
        for row, values in table.items():
            cells = (f"{values[layer]:>4}" if layer in values else f"{'-':>4}" for layer in block)
            lines.append(f"{row[-width + 2 :]:<{width}}" + "".join(cells))
    total = sum(ranks.values())
    lines.append(f"{total} ranks in {len(ranks)} matrices: {min(ranks.values())} to {max(ranks.values())} each")
    return "\n".join(lines)
