"""Maps of channels."""

from __future__ import annotations

import pytest
from torch import nn

from prunerob.errors import UserError
from prunerob.networks import Channels, MnistCNN
from prunerob.networks.channels import channels_of


@pytest.mark.parametrize(
    ("leads", "told"),
    [
        ({"conv9": Channels()}, "'conv9' is no layer of it"),
        ({"conv1": Channels(readers=("conv4",))}, "'conv4' is no layer of it"),
        ({"conv1": Channels(norms=("conv3",))}, "conv3 is of 5 channels"),
        ({"conv3": Channels(readers=("conv2",))}, "conv2 reads 8 channels, which cannot be the 5"),
    ],
)
def test_a_map_of_channels_must_fit_the_network(leads: dict[str, Channels], told: str) -> None:
    class Mapped(MnistCNN):
        def channels(self) -> dict[str, Channels]:
            return leads

    with pytest.raises(UserError, match=rf"Mapped\.channels\(\): .*{told}"):
        channels_of(Mapped((8, 16, 5)))


def test_a_map_of_channels_may_name_a_normalisation_without_weights() -> None:
    class Mapped(MnistCNN):
        def __init__(self, width: int) -> None:
            super().__init__((8, 16, 5))
            self.norm = nn.BatchNorm2d(width, affine=False)

        def channels(self) -> dict[str, Channels]:
            return {"conv1": Channels(readers=("conv2",), norms=("norm",))}

    assert channels_of(Mapped(8)).keys() == {"conv1"}
    with pytest.raises(UserError, match="norm is of 9 channels, conv1 of 8"):
        channels_of(Mapped(9))
