"""`prunerob export`: from a run to files that run elsewhere, checked, with a card."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
program. safetensors: tensors, and a JSON that says how prunerob builds the narrow network.
executorch: a program for phones, .pte (extra `executorch`). --int8 adds model.int8.onnx (or .pte),
of 8-bit integers; --sparse adds copies of the ONNX files without the zeros of pruned weights,
smaller and as fast. FOLDER also holds the run's configuration and the network's weights,
twin.safetensors, so that `prunerob test FOLDER/model.int8.onnx` attacks the file itself: with its
own answers, and the twin's gradients. --test does so at once, with one float file and those of
integers, and enters it into the card; further options are then settings of the test, as
--data.test_size 500.

--for robustbench or apbench adds what those leaderboards ask for.
"""


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
        "--format",
        type=words,
        default=["onnx"],
        help="onnx, pt2, safetensors, executorch (default onnx)",
    )
    parser.add_argument(
        "--int8", choices=("static", "dynamic"), help="static is calibrated on training images"
    )
    parser.add_argument(
        "--sparse", action="store_true", help="also ONNX files without zeros (weight pruning)"
    )
    parser.add_argument("--to", required=True, help="folder to make")
    parser.add_argument("--full", action="store_true", help="leave emptied channels in")
    parser.add_argument(
        "--multiple-of",
        type=int,
        default=1,
        help="leave as many in as make the others such a number: 8 may be faster (default 1)",
    )
    parser.add_argument(
        "--images", type=int, default=1000, help="test images to compare on (default 1000)"
    )
    parser.add_argument("--test", action="store_true", help="attack the files, as `prunerob test`")
    parser.add_argument(
        "--for", dest="board", choices=("robustbench", "apbench"), help="add what it asks for"
    )
    options, settings = parser.parse_known_args(list(args)[1:])
    for word in settings:
        key = word.removeprefix("--").partition("=")[0]
        if not options.test and word.startswith("-"):
            raise UserError(f"{word} is no option of export; settings go with --test alone")
        if word.startswith("-") and key in ("ckpt_path", "config", "-c", "curve", "model.weights"):
            raise UserError(f"{word}: --test attacks the files that are exported, as they were run")
    if options.full and options.multiple_of > 1:
        raise UserError("--multiple-of: --full leaves all channels in; name one of the two")

    from prunerob.artefacts.export import Request, export
    from prunerob.artefacts.formats import FORMATS
    from prunerob.runs.folder import check_writable
    from prunerob.runs.loading import find_trained

    if unknown := [name for name in options.format if name not in FORMATS]:
        raise UserError(f"--format: {unknown[0]} is unknown; there are {', '.join(FORMATS)}")
    if not options.format:
        raise UserError("--format: the list is empty")
    forms = {"onnx"} | ({"executorch"} if options.int8 == "static" else set())
    for name, of in (("int8", forms), ("sparse", {"onnx"})):
        if getattr(options, name) and not of & set(options.format):
            told = " and of ".join(sorted(of, reverse=True)).replace("onnx", "ONNX")
            raise UserError(f"--{name}: is a form of {told}; name it in --format, too")
    if options.multiple_of < 1:
        raise UserError(f"--multiple-of: {options.multiple_of} is below 1")
    if options.images < 1:
        raise UserError(f"--images: {options.images} is below 1")
    folder = Path(options.to)
    if not options.to.strip():
        raise UserError("--to: an empty name is no folder")
    if folder.exists():
        raise UserError(f"--to: {folder} is there already; name a new folder")
    if settings:
        from prunerob.commands.reading import resolve

        if config := find_trained(options.weights).config:
            resolve(["--config", str(config), *settings])  # before anything is made
    check_writable(folder.parent)
    # Of this export alone, whatever else lies or goes on there.
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", dir=folder.parent))
    unfinished = place / folder.name
    request = Request(
        formats=list(dict.fromkeys(options.format)),
        int8=options.int8,
        sparse=options.sparse,
        full=options.full,
        multiple_of=options.multiple_of,
        images=options.images,
        leaderboard=options.board,
    )
    try:
        card = export(options.weights, request, unfinished, "prunerob " + shlex.join(args))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    sys.stdout.write(f"Written: {folder}\n")
    files = [file for file in card["files"] if ".sparse." not in file]
    to_attack = [files[0], *(file for file in files if ".int8." in file)]
    if options.test:
        from prunerob.commands.lightning import run as attack

        for file in to_attack:
            attack(["test", "--ckpt_path", str(folder / file), *settings])
    elif not card["attacked"]:
        sys.stdout.write(f"Not attacked yet: prunerob test {folder / to_attack[-1]}\n")
