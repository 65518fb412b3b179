"""Lay the networks of finished sweeps down in zoo/: weights, configuration and table.

    python scripts/make_zoo.py zoo reproduce/mnist_standard/seed0/dense reproduce/...

Each run FOLDER/seedS/NAME becomes zoo/FOLDER_NAME.safetensors, .yaml and _table.json, so that
`prunerob test --ckpt_path zoo/FOLDER_NAME.safetensors` measures its table again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from prunerob.runs.folder import Run


def main(target: str, *folders: str) -> None:
    """Copy networks.

    Args:
        target: folder to copy to.
        folders: of finished and tested runs in sweeps.
    """
    zoo = Path(target)
    zoo.mkdir(exist_ok=True)
    stems = set[str]()
    for run in map(Run, map(Path, folders)):
        weights = run.folder / "weights.safetensors"
        # What was tested is the checkpoint: it must hold the same weights, to the bit.
        tested = torch.load(run.checkpoint(), map_location="cpu", weights_only=True)["state_dict"]
        for name, value in load_file(weights).items():
            if not torch.equal(tested[f"network.{name}"], value):
                sys.exit(f"{weights} and {run.checkpoint()} differ in {name}")
        found = json.loads((run.folder / "robustness.json").read_text())
        config = yaml.safe_load(run.config.read_text())
        config["model"].update(found["suite"])  # the suite that the table is of
        config["ckpt_path"] = config["pruning"]["masks_from"] = None  # runs that are not here
        stem = f"{run.folder.parent.parent.name}_{run.folder.name}"
        if stem in stems:
            sys.exit(f"{stem}: two of these runs would have this name")
        stems.add(stem)
        found["weights"] = f"{stem}.safetensors"
        file = zoo / f"{stem}.safetensors"
        save_file(load_file(weights), file)
        file.chmod(0o644)
        (zoo / f"{stem}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (zoo / f"{stem}_table.json").write_text(json.dumps(found, indent=2) + "\n")
        print(stem, f"seed {config['seed_everything']}")
    size = sum(file.stat().st_size for file in zoo.glob("*.safetensors"))
    print(f"{size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
