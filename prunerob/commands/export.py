"""`prunerob export`: from a run to files that run elsewhere, checked, with a card."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from prunerob.commands.arguments import Arguments, words
from prunerob.errors import UserError

DESCRIPTION = """\
Write a trained network into files that run without prunerob, and a card that says what it is.

    prunerob export RUN --format onnx,safetensors --to FOLDER

RUN is a run's folder, a checkpoint, or weights with their configuration beside them. Channels that
pruning has emptied are taken out. Each file must answer as the network does, on test images, before
anything is kept: FOLDER has all of it or is not there. MODEL_CARD.md and .json say how the network
was trained, pruned and attacked, with what a test has found.

onnx: for onnxruntime and others, any number of images (extra `export`). pt2: torch.export's
program. safetensors: tensors, and a JSON that says how prunerob builds the narrow network. --int8
adds model.int8.onnx, of 8-bit integers. FOLDER also holds the run's configuration and the network's
weights, twin.safetensors, so that `prunerob test --ckpt_path FOLDER/model.int8.onnx` attacks the
file itself: with its own answers, and the twin's gradients.
"""

LEAST_INT8 = 0.9
"""Share of images that integers must put into the same class as the network does."""


def run(args: Sequence[str]) -> None:
    """Export.

    Args:
        args: the command line without the program's name.

    Raises:
        UserError: the request is mistaken, or a file does not answer as the network.
    """
    parser = Arguments("export", DESCRIPTION)
    parser.add_argument("weights", help="what to export")
    parser.add_argument(
        "--format", type=words, default=["onnx"], help="onnx, pt2, safetensors (default onnx)"
    )
    parser.add_argument(
        "--int8", choices=("static", "dynamic"), help="static is calibrated on training images"
    )
    parser.add_argument("--to", required=True, help="folder to make")
    parser.add_argument("--full", action="store_true", help="leave emptied channels in")
    parser.add_argument(
        "--images", type=int, default=1000, help="test images to compare on (default 1000)"
    )
    options = parser.parse_args(list(args)[1:])

    from prunerob.artefacts.formats import FORMATS

    if unknown := [name for name in options.format if name not in FORMATS]:
        raise UserError(f"--format: {unknown[0]} is unknown; there are {', '.join(FORMATS)}")
    if not options.format:
        raise UserError("--format: the list is empty")
    if options.int8 and "onnx" not in options.format:
        raise UserError("--int8: is a form of ONNX; name it in --format, too")
    if options.images < 1:
        raise UserError(f"--images: {options.images} is below 1")
    folder = Path(options.to)
    if not options.to.strip():
        raise UserError("--to: an empty name is no folder")
    if folder.exists():
        raise UserError(f"--to: {folder} is there already; name a new folder")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _export(options, unfinished, "prunerob " + shlex.join(args))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    sys.stdout.write(f"Written: {folder}\n")


def _export(options: Any, folder: Path, command: str) -> None:
    """Write everything into a folder, or fail."""
    import torch
    from safetensors.torch import save

    from prunerob.artefacts.agreement import Agreement, compare
    from prunerob.artefacts.card import make_card, to_json, to_markdown
    from prunerob.artefacts.formats import FORMATS, Answers, Onnx, Source
    from prunerob.artefacts.quantize import CALIBRATION, quantize
    from prunerob.artefacts.speed import latencies
    from prunerob.networks.narrow import Narrowing
    from prunerob.runs.configuration import instantiate
    from prunerob.runs.folder import check_writable, write_whole
    from prunerob.runs.loading import load
    from prunerob.runs.plain import read_yaml
    from prunerob.runs.weights import find_weights

    bare = Path(f"{options.weights}.safetensors")
    weights = find_weights(str(bare) if bare.is_file() else options.weights)
    network = load(str(weights.file))
    place = cast(Path, weights.config)  # load refuses its lack
    config: Any = read_yaml(place)
    try:
        data = instantiate(config["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: data cannot be made ({error})") from None
    data.prepare_data()
    data.setup("test")
    x = data.test_sample(options.images).x
    about = {"prunerob": f"{weights.file.name}; images in [0, 1], (B, C, H, W), to logits"}
    source = Source.of(network, x.shape[1:], config["model"]["network"], about, full=options.full)
    check_writable(folder)
    agreements: dict[Path, Agreement] = {}
    opened: dict[str, Answers] = {}

    def keep(file: Path, answers: Answers, agreement: Agreement) -> None:
        sys.stdout.write(f"{file.name}: {file.stat().st_size:,} bytes, {agreement}\n")
        agreements[file], opened[file.name] = agreement, answers

    for name in options.format:
        file = folder / f"model{FORMATS[name].suffix}"
        FORMATS[name].write(source, file)
        answers = FORMATS[name].open(file)
        agreement = compare(network, answers, x)
        if not agreement.holds:
            told = f"the file does not answer as the network: {agreement}"
            raise UserError(f"--format {name}: {told}")
        keep(file, answers, agreement)
    if options.int8:
        data.setup("fit")
        batches = islice(data.train_dataloader(), -(-CALIBRATION // data.batch_size))
        images = torch.cat([batch.x for batch in batches])
        file = folder / "model.int8.onnx"
        quantize(folder / "model.onnx", file, images[:CALIBRATION], options.int8)
        answers = Onnx().open(file)
        agreement = compare(network, answers, x)
        if agreement.same < LEAST_INT8 * agreement.images:
            raise UserError(f"--int8 {options.int8}: the file answers otherwise: {agreement}")
        keep(file, answers, agreement)
    if "onnx" in options.format and source.narrowing.kept:
        full = folder / "full.onnx"
        Onnx().write(replace(source, narrowing=Narrowing({})), full)
        opened = {"with all channels, .onnx": Onnx().open(full), **opened}
        full.unlink()
    timed = [latencies(opened, source.shape, images=images) for images in (1, 128)]
    speed = {name: [of_it[name] for of_it in timed] for name in opened}
    write_whole(folder / "twin.safetensors", save(dict(network.state_dict())))
    write_whole(folder / "config.yaml", place.read_bytes())
    card = make_card(weights, config, network, source.exported, agreements, speed, command)
    write_whole(folder / "MODEL_CARD.json", to_json(card))
    write_whole(folder / "MODEL_CARD.md", to_markdown(card))
    if not card["attacked"]:
        sys.stdout.write(f"Not tested yet: prunerob test --ckpt_path {options.weights}\n")
