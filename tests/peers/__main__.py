"""`python tests/peers/__main__.py REQUEST`: train as the named peer does; JSON on the last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# In place of this folder: its modules are those of a package.
sys.path[0] = str(Path(__file__).parents[2])


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    import torch

    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    peer = request["peer"]
    if peer.startswith("trainer_"):
        from tests.peers.text import train
    elif peer == "run_clm_lora":
        from tests.peers.language import train
    elif peer.startswith("torchvision_"):
        from tests.peers.images import train
    elif peer == "setfit":
        from tests.peers.few_shot import train
    else:
        raise SystemExit(f"There is no peer {peer}.")
    print(json.dumps(train(request)))


if __name__ == "__main__":
    main()
