"""Images and adversarial examples as a picture, with what the network says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prunerob.robustness.measure import Examples

RIGHT, WRONG = "#00714F", "#B34700"
"""Dark enough to read on white, and for the colour-blind; a wrong one has a cross, too."""


def draw(
    examples: Examples, class_names: Sequence[str] | None = None, *, columns: int = 10
) -> tuple[npt.NDArray[np.uint8], str]:
    """Draw images, adversarial examples and what was changed, a column for each.

    Args:
        examples: of one batch.
        class_names: by class; None shows numbers.
        columns: how many of the images to show.

    Returns:
        the picture, (height, width, 3), and the predictions as text.
    """
    x, x_adv = (t[:columns].float().cpu() for t in (examples.x, examples.x_adv))
    change = x_adv - x
    # Grey is no change; the largest change in the picture is black or white.
    magnified = 0.5 + change / (2 * change.abs().max().clamp(min=1e-12))
    labels, before, after = (
        [_called(int(k), class_names) for k in values[:columns]]
        for values in (examples.labels, examples.before, examples.after)
    )
    figure = Figure(figsize=(1.1 + len(x), 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(x), squeeze=False)
    rows = (("image", x, before), (examples.attack, x_adv, after), ("change", magnified, None))
    for i, (name, images, said) in enumerate(rows):
        for j, image in enumerate(images):
            axes, shown = grid[i][j], image.permute(1, 2, 0).numpy().clip(0, 1)
            axes.imshow(shown.squeeze(-1) if shown.shape[2] == 1 else shown, "gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if said:
                is_right = said[j] == labels[j]
                text = f"{said[j]} ✓" if is_right else f"{labels[j]} → {said[j]} ✗"
                size = 9 if len(text) < 10 else 6
                axes.set_title(text, color=RIGHT if is_right else WRONG, fontsize=size, pad=3)
        grid[i][0].set_ylabel(name[:24], fontsize=8)
    canvas.draw()  # type: ignore[no-untyped-call]
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
    told = zip(labels, before, after, strict=True)
    text = ", ".join(f"{label}: {clean} → {attacked}" for label, clean, attacked in told)
    return picture, f"label: prediction clean → attacked, by column: {text}"


def _called(label: int, names: Sequence[str] | None) -> str:
    return names[label][:12] if names and label < len(names) else str(label)
