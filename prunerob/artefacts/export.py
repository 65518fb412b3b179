"""From trained weights to a folder of artefacts, each asked before it is kept, with their card."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from prunerob import __version__
from prunerob.artefacts.agreement import Agreement, compare
from prunerob.artefacts.attacked import TWIN
from prunerob.artefacts.card import make_card, tested, write_card
from prunerob.artefacts.executorch import ExecuTorch
from prunerob.artefacts.format import Source, sha256
from prunerob.artefacts.formats import FORMATS, FORMATS_BY_SUFFIX
from prunerob.artefacts.leaderboards import LEADERBOARDS, Entry
from prunerob.artefacts.quantize import CALIBRATION, quantize
from prunerob.artefacts.sparse import leave_out_zeros
from prunerob.artefacts.speed import Latency, latencies
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.networks.narrow import Narrowing
from prunerob.runs.configuration import instantiate
from prunerob.runs.folder import check_writable, write_whole
from prunerob.runs.loading import find_trained, load
from prunerob.runs.plain import read_yaml

LEAST_INT8 = 0.9
"""Share of images that integers must put into the same class as the network does."""
BATCHES = (1, 128)
"""Images at once that speed is measured with."""
WIDE = "with all channels, .onnx"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be exported.

    Args:
        formats: names of `FORMATS`.
        int8: how to quantise: "dynamic" for ONNX alone; None for not at all.
        sparse: whether to add ONNX files without zeros.
        full: whether emptied channels stay.
        multiple_of: as many of them stay as make the others such a number.
        images: test images on which to compare.
        leaderboard: a name of `LEADERBOARDS`; None for none.
    """

    formats: Sequence[str]
    int8: Literal["static", "dynamic"] | None = None
    sparse: bool = False
    full: bool = False
    multiple_of: int = 1
    images: int = 1000
    leaderboard: str | None = None


@dataclass
class Exported:
    """The files of a folder so far, each with how it agrees with the network."""

    network: nn.Module
    x: Tensor
    folder: Path
    agreements: dict[Path, Agreement] = field(default_factory=dict)

    def check(self, name: str, told: str, *, least: float | None = None) -> None:
        """Ask a file about the images, and keep it if it answers as it should.

        Args:
            name: of the file.
            told: the option that asked for it.
            least: share of images that must go into the same class; None where all must, with the
                logits but for rounding.

        Raises:
            UserError: it does not.
        """
        file = self.folder / name
        form = FORMATS_BY_SUFFIX[file.suffix]
        agreement = compare(self.network, form.open(file, network=self.network), self.x)
        holds = agreement.holds if least is None else agreement.same >= least * agreement.images
        if not holds:
            raise UserError(f"{told}: {name} does not answer as the network: {agreement}")
        sys.stdout.write(f"{name}: {file.stat().st_size:,} bytes, {agreement}\n")
        self.agreements[file] = agreement


def export(place: str, request: Request, folder: Path, command: str) -> dict[str, Any]:
    """Write everything into a folder.

    Args:
        place: a run's folder, a checkpoint, or weights with their configuration beside them.
        request: what to write.
        folder: that is not there yet.
        command: that repeats it.

    Returns:
        the card.

    Raises:
        UserError: a file does not answer as the network, or something cannot be had.
    """
    weights = find_trained(place)
    network = load(str(weights.file))
    configuration = cast(Path, weights.config)  # load refuses its lack
    config: Any = read_yaml(configuration)
    if missing := {"data", "model", "pruning", "trainer"} - config.keys():
        raise UserError(f"{configuration}: lacks {', '.join(sorted(missing))}; it is of no run")
    try:
        data = instantiate(config["data"])
    except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise UserError(f"{configuration}: data cannot be made ({error})") from None
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{configuration}: data are of no class of images")
    data.prepare_data()
    data.setup("test")
    x = data.test_sample(request.images).x
    about = _about(network, weights.file, x)
    record = config["model"]["network"]
    source = Source.of(
        *(network, x.shape[1:], record, about), full=request.full, multiple_of=request.multiple_of
    )
    check_writable(folder)
    if request.leaderboard:
        inner = folder / request.leaderboard
        inner.mkdir()
        entry = Entry.of(network, config, tested(weights))
        for line in LEADERBOARDS[request.leaderboard].write(entry, inner):
            sys.stdout.write(f"{request.leaderboard}, still to do: {line}\n")
    exported = Exported(network, x, folder)
    for name in request.formats:
        file = folder / f"model{FORMATS[name].suffix}"
        FORMATS[name].write(source, file)
        exported.check(file.name, f"--format {name}")
    if request.int8:
        images, told = _calibration(data), f"--int8 {request.int8}"
        if "onnx" in request.formats:
            quantize(folder / "model.onnx", folder / "model.int8.onnx", images, request.int8)
            exported.check("model.int8.onnx", told, least=LEAST_INT8)
        if "executorch" in request.formats:
            ExecuTorch().write_int8(source, folder / "model.int8.pte", images)
            exported.check("model.int8.pte", told, least=LEAST_INT8)
    if request.sparse:
        for name, least in {"model.onnx": None, "model.int8.onnx": LEAST_INT8}.items():
            if (folder / name).is_file():
                sparse = name.replace(".onnx", ".sparse.onnx")
                leave_out_zeros(folder / name, folder / sparse)
                exported.check(sparse, "--sparse", least=least)
    write_whole(folder / TWIN, save(dict(network.state_dict()), metadata=about))
    write_whole(folder / "config.yaml", configuration.read_bytes())
    speed = _speed(exported, source)
    _tell_if_slow(speed)
    card = make_card(weights, config, source, exported.agreements, speed, command)
    write_card(card, folder)
    return card


def _about(network: nn.Module, file: Path, x: Tensor) -> dict[str, str]:
    """What the files say of themselves."""
    zeros = hashlib.sha256()
    for parameter in network.parameters():
        zeros.update((parameter != 0).numpy().tobytes())
    with torch.no_grad():
        classes = network(x[:1]).shape[1]
    return {
        "producer": f"prunerob {__version__}",
        "input": f"images, float32, (B, {', '.join(map(str, x.shape[1:]))}), pixels in [0, 1]",
        "output": f"logits, float32, (B, {classes})",
        "normalisation": "inside",
        "classes": str(classes),
        "weights_sha256": sha256(file),
        "masks_sha256": zeros.hexdigest(),
    }


def _calibration(data: ImageDataModule) -> Tensor:
    """Training images, float32, (N, C, H, W), for the ranges of activations."""
    data.setup("fit")
    batches = islice(data.train_dataloader(), -(-CALIBRATION // data.batch_size))
    return torch.cat([batch.x for batch in batches])[:CALIBRATION]


def _speed(exported: Exported, source: Source) -> dict[str, list[Latency]]:
    """How fast each file answers, on one thread and on all; and an ONNX file of all channels."""
    files = {file.name: file for file in exported.agreements}
    measured: dict[str, list[Latency]] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as place:
        if "model.onnx" in files and source.narrowing.kept:
            full = Path(place) / "full.onnx"
            FORMATS["onnx"].write(replace(source, narrowing=Narrowing({})), full)
            files = {WIDE: full, **files}
        for threads in sorted({1, cores or 1}):
            opened = {
                name: FORMATS_BY_SUFFIX[file.suffix].open(
                    file, network=exported.network, threads=threads
                )
                for name, file in files.items()
            }
            for images in BATCHES:
                found = latencies(opened, source.shape, images=images, threads=threads)
                for name, latency in found.items():
                    measured.setdefault(name, []).append(latency)
    return measured


def _tell_if_slow(speed: Mapping[str, Sequence[Latency]]) -> None:
    """Say so where a narrow file is slower than with all channels, as odd numbers can be."""
    for wide, narrow in zip(speed.get(WIDE, ()), speed.get("model.onnx", ()), strict=False):
        if narrow.images == BATCHES[-1] and narrow.p50 > wide.p50:
            sys.stdout.write(
                f"model.onnx takes {narrow.p50:.3g} ms for {narrow.images} images on "
                f"{narrow.threads} threads, with all channels {wide.p50:.3g}: kernels like round "
                "numbers of channels; try --multiple-of 8\n"
            )
