"""Files of results, beside the weights that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prunerob.robustness.table import Robustness
from prunerob.runs.folder import write_whole
from prunerob.runs.weights import Weights


def write(robustness: Robustness, weights: Weights, about: Mapping[str, object]) -> list[Path]:
    """Write robustness.json, .csv and .md, and the per-image file, beside the weights.

    Args:
        robustness: the result.
        weights: what was tested.
        about: what else to record in the JSON.

    Returns:
        the files.
    """
    stem = weights.result("robustness")
    texts = {
        f"{stem.name}.csv": robustness.to_csv(),
        f"{stem.name}.md": robustness.to_markdown(),
        f"{stem.name}_images.csv": robustness.images_to_csv(),
        # The last: where it is, the others are.
        f"{stem.name}.json": robustness.to_json({"weights": weights.file.name, **about}),
    }
    stem.with_name(f"{stem.name}.json").unlink(missing_ok=True)
    for name, text in texts.items():
        write_whole(stem.parent / name, text)
    return [stem.parent / name for name in texts]
