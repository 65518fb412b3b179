"""Parts of layers: where a convolution's channels stand among all that another layer reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """Channels side by side, among all that a layer reads or serves, as behind a concatenation.

    Args:
        layer: name of the layer.
        first: position of the first of the channels that are meant; their number is that of the
            filters that they come from.
        of: number of channels that the layer reads or serves, of all that come together.
    """

    layer: str
    first: int
    of: int
