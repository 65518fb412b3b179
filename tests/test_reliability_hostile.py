"""A round of hostile inputs through the command line: no traceback, no hang, no wrong success."""

# ruff: noqa: E501  (tables of inputs)

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.io import write_jpeg, write_png

from prunerob.cli import main
from prunerob.data import MNIST
from prunerob.training.classifier import Classifier
from tests.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

LIMIT = 60
"""Seconds that one input may take."""

Input = tuple[list[str], set[object]]
"""A command line, and the ways in which it may end: a status, or "begun" for training that begins."""

REFUSED: set[object] = {2}
EITHER: set[object] = {2, "begun", None, 0}


class Begun(BaseException):
    """Ends training that begins."""


class Hang(BaseException):
    """The limit is over."""


def odd_paths(here: Path) -> list[str]:
    """Paths where no file is that a command could use."""
    (here / "folder").mkdir()
    (here / "empty").touch()
    (here / "loop").symlink_to("loop")
    (here / "dangling").symlink_to("nothing")
    (here / "sp ace é☃ [x] $\\foo$").write_text("x")
    (here / "zeros.ckpt").write_bytes(bytes(5000))
    (here / "zeros.safetensors").write_bytes(bytes(5000))
    (here / "huge.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    (here / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    return [
        *("folder", "empty", "loop", "dangling", "sp ace é☃ [x] $\\foo$", "nothing", "/dev/null"),
        *("zeros.ckpt", "zeros.safetensors", "huge.safetensors", "list.safetensors"),
        *("", " ", ".", "..", "/", "~", "a" * 5000, "a\x00b", "-", "--", "http://", "http://[",
          "http://127.0.0.1:1/x", "https://127.0.0.1:1/x", "http://127.0.0.1:99999/x",
          "file:///etc/passwd", "ftp://127.0.0.1/x", "last", "best", "\n", "é" * 300),
    ]  # fmt: skip


def texts() -> list[bytes]:
    """Configurations that are none, or that are wrong somewhere."""
    base = Path(TINY).read_bytes()
    draw = random.Random(7)
    found = [
        *(b"", b"\x00", b"\xff\xfe" + "a: 1".encode("utf-16-le"), b"a: \xe9", b"- 1", b"1", b"null"),
        *(b"a: [", b"{", b"a: &a [*a]", b"? [1]\n: 2", b"!!python/object:os.system x", b"--- 1\n--- 2"),
        *(b"trainer: !!python/name:os.system", b"a: b: c", b"\t", b"%YAML 9.9\n---\na: 1"),
        b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n".encode() for p, c in itertools.pairwise("abcdefghi")
        ),
        *(b"[" * 3000, b"{a: " * 2000, b"x" * 200_000, b"model: " + b"9" * 3000, b"'" * 99),
        *(b"1: 2", b"null: 3", b"true: x", b"2026-02-30: 1", b"a: 2026-02-30", b"? {}\n: 1"),
        *(b"trainer:\n  callbacks: os.system", b"trainer: {logger: {class_path: os.system}}"),
        *(b"data: {class_path: os.system}", b"data: {class_path: nothing.Nothing}"),
        *(b"model: {network: {class_path: nothing.Nothing}}", b"model: {network: [1, 2]}"),
        *(b"pruning: {criterion: nothing.nothing}", b"pruning: {amount: .inf}", b"pruning: {epoch: 1.5}"),
        *(b"seed_everything: -1", b"seed_everything: 1e400", b"seed_everything: 99999999999999999999"),
    ]  # fmt: skip
    for _ in range(25):
        changed = bytearray(base)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        found.append(bytes(changed))
    return found


SETTINGS = [
    *("trainer.max_epochs=0", "trainer.max_epochs=-2", "trainer.max_epochs=1e9", "trainer.max_steps=0"),
    *("trainer.max_time={}", "trainer.max_time=x", "trainer.max_time=00:00:00:00", "trainer.devices=0"),
    *("trainer.accelerator=gpux", "trainer.accelerator=cuda", "trainer.precision=8", "trainer.precision=16-true"),
    *("trainer.limit_train_batches=0", "trainer.limit_train_batches=-1", "trainer.limit_val_batches=-3"),
    *("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=nan", "trainer.accumulate_grad_batches=0"),
    *("trainer.check_val_every_n_epoch=0", "trainer.val_check_interval=-1", "trainer.num_nodes=0"),
    *("trainer.logger=false", "trainer.logger=null", "trainer.logger=3", "trainer.callbacks=[1]"),
    *("trainer.strategy=fsdp", "trainer.strategy=nothing", "trainer.profiler=nothing", "trainer.plugins=[3]"),
    *("data.batch_size=0", "data.batch_size=1e30", "data.validation_size=60000", "data.validation_size=-1"),
    *("data.train_size=0", "data.test_size=0", "data.train_size=99999999", "data.eval_batch_size=0"),
    *("data.augmentation=nothing", "data=nothing", "data=prunerob.networks.MnistCNN", "data.predict_folder=3"),
    *("model.network=torch.nn.Identity", "model.network=os.system", "model.network.filters=[]"),
    *("model.network.filters=[0,0,0]", "model.network.filters=[-1,2,3]", "model.network.filters=[1e9,8,8]"),
    *("model.optimizer.lr=-1", "model.optimizer.lr=nan", "model.optimizer=os.system", "model.optimizer.lr=x"),
    *("model.schedule=nothing", "model.attacks={}", "model.attacks=3", "model.attacks={a: 3}"),
    *("model.attacks.PGD.steps=-1", "model.attacks.PGD.eps=-1", "model.attacks.PGD.eps=nan"),
    *("model.attacks.PGD.eps=8/0", "model.attacks.PGD.eps=1/2/3", "model.attacks.PGD.restarts=0"),
    *("model.adversarial_training.weight=2", "model.adversarial_training.weight=-1"),
    *("model.adversarial_training.ramp_epochs=-1", "model.adversarial_training.ramp_epochs=inf"),
    *("model.validation_attack_images=-1", "model.scrutinized_images=-1", "model.seed=3"),
    *("pruning.amount=1", "pruning.amount=-0.1", "pruning.amount=nan", "pruning.amount=1e-320"),
    *("pruning.epoch=-1", "pruning.epoch=99", "pruning.criterion=os.system", "pruning.reading=x"),
    *("pruning.residual=x", "pruning.masks_from=nothing", "pruning.masks_from=/dev/null", "pruning.narrow=3"),
    *("seed_everything=-1", "seed_everything=4294967296", "seed_everything=x", "seed_everything=true"),
    *("nothing=1", "=1", "trainer=", "pruning.=1", ".=.", "model..network=3", "x" * 3000 + "=1"),
]  # fmt: skip

SWEEPS = [
    *(["--amount", a] for a in ("", "1", "-0.1", "nan", "inf", "x", "0.5,0.5", "0,,1", "1e400", ",")),
    *(["--amount", "0.5", "--seed", s] for s in ("", "-1", "x", "0,0", "1.5", "4294967296", "9" * 40)),
    *(["--amount", "0.5", "--criterion", c] for c in (
        "", "x", "weight,weight", "os.system", "no.such", "filter:x", "filter:weights:x", ":", "a" * 900)),
    *(["--amount", "0.5", *more] for more in (
        ["--jobs", "0"], ["--jobs", "-3"], ["--jobs", "x"], ["--threads", "0"], ["--executor", "x"],
        ["--gpus", "0.5"], ["--ray-address", "x"], ["--folder", "/dev/null/x"], ["--folder", "/proc/x"],
        ["--config", "nothing"], ["--config", "."], ["--trainer.devices", "2"], ["--nothing", "3"],
        ["--trainer.fast_dev_run", "true"], ["--trainer.limit_test_batches", "3"], ["--pruning.epoch", "0"],
        ["--pruning.epoch", "4"], ["--seed_everything", "3"], ["--ckpt_path", "x"], ["--pruning.amount", "1"])),
]  # fmt: skip

SWEEP_FILES = [
    *(b"", b"[]", b"3", b"{", b"a: 1", b"config: 3", b"config: x", b"config: null\namount: [0.5]"),
    *(f"config: {TINY}\n{line}".encode() for line in (
        "amount: x", "amount: []", "amount: {}", "amount: {weight: x}", "amount: {weight: [2]}",
        "amount: {x: [0.5]}", "amount: [0.5]\nseed: x", "amount: [0.5]\nseed: [x]", "amount: [true]",
        "amount: [0.5]\ncriterion: weight", "amount: [0.5]\nscratch: maybe", "amount: [.nan]",
        "amount: [0.5]\njobs: x", "amount: [0.5]\ngpus: x", "amount: [0.5]\nsettings: [1]",
        "amount: [0.5]\nsettings: {nothing: 1}", "amount: [0.5]\nfolder: 3", "amount: [[0.5]]",
        "amount: [0.5]\nexecutor: 3", "amount: [0.5]\nseed: [-1]", "amount: [0.5]\nseed: []")),
]  # fmt: skip


def checkpoints(run: Path) -> Iterator[Path]:
    """Weights that are damaged, for another network, or made by hand."""
    last = run / "checkpoints" / "last.ckpt"
    whole, draw = last.read_bytes(), random.Random(3)
    sound = torch.load(last, weights_only=True)
    bare = load_file(run / "weights.safetensors")
    folder = Path("made")
    folder.mkdir()
    number = itertools.count()

    def file(content: bytes, ending: str = "ckpt") -> Path:
        path = folder / f"{next(number)}.{ending}"
        path.write_bytes(content)
        return path

    def saved(content: Any) -> Path:
        path = folder / f"{next(number)}.ckpt"
        torch.save(content, path)
        return path

    for share in (0.1, 0.5, 0.9, 0.999):
        yield file(whole[: int(share * len(whole))])
    name = b"data.pkl"
    place = whole.index(name) + 200
    for _ in range(6):  # in the pickle
        changed = bytearray(whole)
        changed[place + draw.randrange(1000)] ^= 1 << draw.randrange(8)
        yield file(bytes(changed))
    yield from (saved(value) for value in (None, 3, [], {}, "x", {"state_dict": None}))
    state = dict(sound["state_dict"])
    first = next(iter(state))
    for value in (
        None,
        3,
        [1.0],
        state[first].to_sparse(),
        state[first].long(),
        state[first][..., :1],
    ):
        yield saved({**sound, "state_dict": {**state, first: value}})
    yield saved({**sound, "state_dict": {k: v for k, v in state.items() if k != first}})
    yield saved({**sound, "state_dict": {**state, "network.more": torch.zeros(1)}})
    yield saved({**sound, "state_dict": {**state, first: state[first] * torch.nan}})
    good = (run / "weights.safetensors").read_bytes()
    for share in (0.0, 0.01, 0.5, 0.99):
        yield file(good[: int(share * len(good))], "safetensors")
    changed = bytearray(good)
    changed[9] ^= 4
    yield file(bytes(changed), "safetensors")
    for one in (bare["conv1.weight"].long(), bare["conv1.weight"] * torch.inf, torch.zeros(0)):
        path = folder / f"{next(number)}.safetensors"
        save_file({**bare, "conv1.weight": one.contiguous()}, path)
        yield path


def training_states(run: Path) -> Iterator[Path]:
    """Checkpoints to go on from, made by hand."""
    sound = torch.load(run / "checkpoints" / "before_pruning.ckpt", weights_only=True)
    folder = Path("states")
    folder.mkdir()
    changes: list[dict[str, Any]] = [
        *({key: value} for key in ("optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch")
          for value in (None, [], {}, "x", -1, [3])),
        *({"global_step": v} for v in (None, -1, "x", 1e9)),
        *({"phase": v} for v in (None, "x", 3, [])),
        *({"phase_steps": v} for v in (None, "x", -1)),
        {"callbacks": {"Checkpoints": 3}},
        {"callbacks": {"Checkpoints": {}}},
        {"callbacks": {**sound["callbacks"], "Pruning": {"masks": 3}}},
        {"callbacks": {**sound["callbacks"], "Pruning": {"masks": {}, "settings": {}}}},
        {"loops": {"fit_loop": {}}},
        {"pytorch-lightning_version": None},
    ]  # fmt: skip
    for number, change in enumerate(changes):
        made = {**sound, **change}
        if change == {"lr_schedulers": []}:
            continue  # as a run without a schedule has it
        torch.save(made, folder / f"{number}.ckpt")
        yield folder / f"{number}.ckpt"


def image_folders() -> Iterator[tuple[Path, set[object]]]:
    """Folders for `predict`, each with something wrong in it."""
    black = torch.zeros(1, 28, 28, dtype=torch.uint8)
    write_png(black, "good.png")
    write_jpeg(black, "good.jpg")
    draw = random.Random(5)
    number = itertools.count()
    for kind in ("png", "jpg"):
        whole = Path(f"good.{kind}").read_bytes()
        contents: list[tuple[bytes, set[object]]] = [
            *((whole[: int(share * len(whole))], REFUSED) for share in (0, 0.2, 0.7)),
            (b"GIF89a" + whole, REFUSED),
        ]
        for _ in range(5):
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            contents.append((bytes(changed), EITHER))
        for content, ends in contents:
            folder = Path(f"images{next(number)}")
            folder.mkdir()
            (folder / f"a.{kind}").write_bytes(content)
            yield folder, ends
    folder = Path(f"images{next(number)}")
    folder.mkdir()
    (folder / "a.png").mkdir()
    yield folder, REFUSED
    folder = Path(f"images{next(number)}")
    folder.mkdir()
    write_png(torch.zeros(1, 27, 28, dtype=torch.uint8), str(folder / "a.png"))
    yield folder, REFUSED


def reports(run: Path) -> Iterator[tuple[Path, set[object]]]:
    """Folders of runs with a result file that was tampered with."""
    draw = random.Random(9)
    number = itertools.count()
    for name in (
        "robustness.json",
        "robustness_images.csv",
        "summary.json",
        "pruning.json",
        "config.yaml",
    ):
        whole = (run / name).read_bytes()
        contents = [b"", b"[]", b"null", b"\xff", b"{}", b"[" * 9000, whole[: len(whole) // 2]]
        for _ in range(2):
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] = draw.randrange(256)
            contents.append(bytes(changed))
        for i, content in enumerate(contents):
            folder = Path(f"report{next(number)}") / "run"
            folder.mkdir(parents=True)
            for kept in (
                "robustness.json",
                "robustness_images.csv",
                "summary.json",
                "pruning.json",
                "config.yaml",
            ):
                shutil.copy(run / kept, folder / kept)
            (folder / "checkpoints").mkdir()
            (folder / name).write_bytes(content)
            yield folder.parent, REFUSED if i in (0, 3) else EITHER


def inputs(run: Path, here: Path) -> Iterator[Input]:
    fit = ["fit", "--config", TINY]
    for command in (
        [],
        ["nothing"],
        ["FIT"],
        ["--nothing"],
        ["-x"],
        ["é☃"],
        ["fit"],
        ["test"],
        ["\x00"],
    ):
        if command:
            yield list(command), EITHER if command == ["test"] else REFUSED
    for path in odd_paths(here):
        yield ["fit", "--config", path], REFUSED
        yield (
            ["validate", "--config", TINY, "--ckpt_path", path],
            EITHER if path == "last" else REFUSED,
        )
        yield ["report", path], EITHER if path in (".", "..", "/") else REFUSED
    for number, text in enumerate(texts()):
        Path(f"c{number}.yaml").write_bytes(text)
        yield [*fit, "--config", f"c{number}.yaml"], EITHER
    for setting in SETTINGS:
        key, _, value = setting.partition("=")
        yield [*fit, f"--{key}", value], EITHER
    for number, text in enumerate(SWEEP_FILES):
        Path(f"s{number}.yaml").write_bytes(text)
        yield ["sweep", f"s{number}.yaml"], REFUSED
    for more in SWEEPS:
        # What is no criterion may show only in its run, which has failed then.
        yield ["sweep", "--config", TINY, *more], {2, 1} if "os.system" in more else REFUSED
    for file in checkpoints(run):
        yield ["validate", "--config", TINY, "--ckpt_path", str(file)], REFUSED
    for file in training_states(run):
        again = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(file)]
        yield again, REFUSED if "version" not in str(file) else EITHER
    for folder, ends in image_folders():
        predict = ["predict", "--ckpt_path", str(run), "--data.predict_folder", str(folder)]
        yield predict, ends
    for folder, ends in reports(run):
        yield ["report", str(folder), "--output", str(folder / "out")], ends


def attempt(args: list[str]) -> object:
    """How a command ended: a status, "begun", or an error that nobody should see."""

    def hang(number: int, frame: types.FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    try:
        main(args)
    except SystemExit as end:
        return end.code
    except Begun:
        return "begun"
    except BaseException as error:  # what a user would see as a traceback, or a hang
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def test_hostile_inputs_end_in_a_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(_: object) -> None:
        raise Begun

    main(["test", "--ckpt_path", str(run)])
    monkeypatch.setattr(Classifier, "on_train_start", begin)
    loaded = MNIST().load()  # once, not for every input
    monkeypatch.setattr(MNIST, "load", lambda _: loaded)
    start, tried, problems = int(os.environ.get("HOSTILE_FROM", "0")), 0, []
    counts: dict[str, int] = {}
    slowest = 0.0
    for number, (args, ends) in enumerate(inputs(run, tmp_path)):
        if number < start:
            continue
        capsys.readouterr()
        began = monotonic()
        ended = attempt(args)
        slowest = max(slowest, monotonic() - began)
        told = capsys.readouterr().err.strip().splitlines()
        tried += 1
        if os.environ.get("HOSTILE_LOG") and ended in ("begun", None, 0):
            with Path(os.environ["HOSTILE_LOG"]).with_suffix(".begun").open("a") as log:
                log.write(f"{number} {args[-2:]}: {ended}\n"[:200])
        counts[str(ended)[:20]] = counts.get(str(ended)[:20], 0) + 1
        shown = json.dumps([arg[:60] for arg in args])
        if ended not in ends:
            problems.append(f"{number} {shown}: {ended} {told[-1:]}")
        elif ended == 2 and not (told and told[-1].startswith("prunerob: error: ")):
            problems.append(f"{number} {shown}: no line, {told[-1:]}")
        elif "Traceback" in "\n".join(told):
            problems.append(f"{number} {shown}: a traceback is shown")
        if problems and os.environ.get("HOSTILE_LOG"):
            Path(os.environ["HOSTILE_LOG"]).write_text("\n".join(problems) + f"\n{tried} tried\n")
    print(f"{tried} inputs: {counts}; the slowest took {slowest:.1f} s")
    assert not problems, "\n".join(problems)
    assert tried >= 300 or start
