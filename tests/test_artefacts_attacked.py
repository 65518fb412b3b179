"""Files under attack: their own answers, their twin's gradients, and none of their tricks."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import prunerob
from prunerob.artefacts.attacked import (
    NONE,
    STRAIGHT,
    SUFFIX,
    TRANSFERRED,
    Artefact,
    ArtefactNetwork,
    Transferred,
    load_artefact,
    with_transferred,
)
from prunerob.artefacts.card import note_test
from prunerob.artefacts.executorch import ExecuTorch
from prunerob.artefacts.export import Request, export
from prunerob.artefacts.formats import format_of
from prunerob.artefacts.trial import try_out
from prunerob.attacks import FGSM, PGD, Attack, AutoAttack, Square
from prunerob.attacks.suite import Suite
from prunerob.cli import main
from prunerob.data import MNIST
from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.pixels import Pixels
from prunerob.robustness.evaluation import evaluate
from tests.conftest import refused

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "zoo" / "mnist_pgd_filter-0.75"
WHITE = PGD(eps=Pixels(0.3), step_size=Pixels(0.05), steps=5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked") / "net"
    formats = ("onnx", "pt2", "safetensors", "executorch")
    export(str(ZOO), Request(formats=formats, images=50), folder, "prunerob export")
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.safetensors", "model.pte"])
def test_each_format_is_tested_by_the_command(
    name: str, exported: Path, tmp_path: Path, digits: tuple[Tensor, Tensor]
) -> None:
    folder = tmp_path / "net"
    shutil.copytree(exported, folder)
    attack = "{FGSM: {class_path: prunerob.attacks.FGSM, init_args: {eps: 0.2}}}"
    settings = ["--model.scrutinized_images", "0", "--data.test_size", "60"]
    main(["test", str(folder / name), "--model.attacks", attack, *settings])
    result = json.loads((folder / f"{Path(name).stem}_robustness.json").read_text())
    rows = {row["attack"]: row for row in result["rows"]}
    assert list(rows) == ["clean", "FGSM", f"FGSM{SUFFIX}", "worst case"]
    twin, test = prunerob.load(ZOO), MNIST(test_size=60).test_sample(60)
    assert rows["clean"]["correct"] == int((twin(test.x).argmax(1) == test.y).sum())
    x_adv = FGSM(eps=Pixels(0.2))(twin, test.x, test.y)
    assert abs(rows["FGSM"]["correct"] - int((twin(x_adv).argmax(1) == test.y).sum())) <= 1
    card = json.loads((folder / "MODEL_CARD.json").read_text())
    assert set(card["attacked"]) == {"the network", name}


def test_each_row_says_where_its_gradients_came_from() -> None:
    twin = MnistCNN().eval()
    eps = Pixels(0.3)
    attacks: dict[str, Attack] = {
        "FGSM": FGSM(eps=eps),
        "PGD": WHITE,
        "Square": Square(eps=eps, queries=10),
        "AA": AutoAttack(eps=eps, images=100),
    }
    suite = with_transferred(Suite(attacks), twin)
    assert list(suite.attacks) == [*attacks, f"FGSM{SUFFIX}", f"PGD{SUFFIX}", f"AA{SUFFIX}"]
    assert suite.attacks[f"AA{SUFFIX}"].sample == 100
    artefact = Artefact(Path("x"), ArtefactNetwork(twin, twin), suite)
    assert artefact.gradients() == {
        "FGSM": STRAIGHT,
        "PGD": STRAIGHT,
        "Square": NONE,
        "AA": f"{STRAIGHT} and {NONE}",
        f"FGSM{SUFFIX}": TRANSFERRED,
        f"PGD{SUFFIX}": TRANSFERRED,
        f"AA{SUFFIX}": TRANSFERRED,
    }


def test_examples_that_transfer_where_attacks_fail_raise_an_alarm(
    digits: tuple[Tensor, Tensor],
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    twin = prunerob.load(ROOT / "zoo" / "mnist_standard_dense")

    class Misled(ArtefactNetwork):
        """Whose gradient is that of noise."""

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5
            seen = super().forward(x)
            if not x.requires_grad:
                return seen
            shift = (noise * x).sum((1, 2, 3), keepdim=False)[:, None]
            return seen.detach() + (shift - shift.detach()) * torch.eye(10)[y[: len(x)]]

    suite = with_transferred(Suite({"PGD": WHITE}), twin)
    honest = Artefact(Path("x"), ArtefactNetwork(twin, twin).eval(), suite)
    assert honest.review(evaluate(honest.network, x, y, suite.attacks)) == []
    misled = Artefact(Path("x"), Misled(twin, twin).eval(), suite)
    (told,) = misled.review(evaluate(misled.network, x, y, suite.attacks))
    assert told.startswith("PGD, transferred: the float network's examples leave ")
    assert told.endswith(" %: its gradients mislead")


def test_transferred_examples_are_the_twin_s(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:5], digits[1][:5]
    twin, other = prunerob.load(ZOO), MnistCNN().eval()
    attack = Transferred(WHITE, twin)
    assert torch.equal(attack(other, x, y), WHITE(twin, x, y))
    assert (attack.radius, attack.sample, attack.sees_gradients) == (WHITE.radius, None, False)
    assert attack.harder(5) == {}


def spoilt(exported: Path, to: Path, spoil: Callable[[Path], None], name: str) -> Path:
    shutil.copytree(exported, to)
    (to / "MODEL_CARD.json").unlink()
    spoil(to / name)
    return to / name


def more_classes(file: Path) -> None:
    model = onnx.load(str(file))
    node = onnx.helper.make_node("Concat", ["logits", "logits"], ["more"], axis=1)
    model.graph.node.append(node)
    model.graph.output[0].name = "more"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(model, str(file))


def custom_operator(file: Path) -> None:
    model = onnx.load(str(file))
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, str(file))


def too_new(file: Path) -> None:
    model = onnx.load(str(file))
    model.opset_import[0].version = 999
    onnx.save(model, str(file))


def outside(file: Path) -> None:
    """Tensors that lie in another file, of the whole machine."""
    model = onnx.load(str(file))
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            more_classes,
            "answers (2, 20) to 2 images, and the network that it was made",
        ),
        (custom_operator, "is no ONNX file that runs here"),
        (too_new, "is no ONNX file that runs here"),
        (outside, "is no ONNX file that runs here"),
    ],
)
def test_a_file_that_goes_beyond_its_twin_is_refused(
    spoil: Callable[[Path], None], told: str, exported: Path, tmp_path: Path
) -> None:
    file = spoilt(exported, tmp_path / "net", spoil, "model.onnx")
    with pytest.raises(UserError) as refusal:
        load_artefact(file, MnistCNN(), Suite(), MNIST(test_size=10))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_was_changed_is_told_by_its_card(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "net"
    shutil.copytree(exported, folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    told = refused(capsys, "test", str(folder / "model.onnx"))
    assert "is not the file that MODEL_CARD.json beside it tells of" in told


def test_what_ends_its_reader_is_told_in_a_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.onnx"
    shutil.copyfile(exported / "model.onnx", file)
    try_out(file, (1, 28, 28))
    with pytest.raises(UserError, match=r"takes no images \(2, 3, 28, 28\)"):
        try_out(file, (3, 28, 28))
    with monkeypatch.context() as patched:
        program = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        patched.setattr("prunerob.artefacts.trial.PROGRAM", program)
        with pytest.raises(UserError, match=r"damaged, or asks for .* ended with status -11"):
            try_out(file, (1, 28, 28))


def test_what_asks_for_more_memory_than_its_share_is_told(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(str(exported / "model.onnx"))
    size = onnx.numpy_helper.from_array(torch.tensor([2**34, 10]).numpy(), "size")
    model.graph.initializer.append(size)
    huge = onnx.helper.make_node("Expand", ["logits", "size"], ["huge"])
    mean = onnx.helper.make_node("ReduceMax", ["huge"], ["more"], keepdims=1)
    model.graph.node.extend([huge, mean])
    model.graph.output[0].name = "more"
    file = tmp_path / "model.onnx"
    onnx.save(model, str(file))
    monkeypatch.setattr("prunerob.artefacts.trial.MEMORY", 3 << 30)
    with pytest.raises(UserError, match=r"takes no images|asks for too much memory"):
        try_out(file, (1, 28, 28))


def test_damaged_programs_for_phones_are_told(exported: Path, tmp_path: Path) -> None:
    good = (exported / "model.pte").read_bytes()
    for content in (b"", b"no program", good[: len(good) // 2]):
        file = tmp_path / "model.pte"
        file.write_bytes(content)
        with pytest.raises(UserError, match="is no ExecuTorch program that runs here"):
            ExecuTorch().open(file, network=MnistCNN())


def test_weights_are_no_artefacts(exported: Path) -> None:
    assert format_of(ZOO.with_suffix(".safetensors")) is None
    assert format_of(exported / "twin.safetensors") is None
    assert format_of(exported / "last.ckpt") is None
    assert format_of(exported / "model.safetensors") is not None


def test_a_network_without_channels_to_narrow_is_its_own(digits: tuple[Tensor, Tensor]) -> None:
    twin = MnistCNN().eval()
    network = ArtefactNetwork(twin, twin)
    assert network.channels() == {}
    assert isinstance(network.twin, nn.Module)
    assert torch.equal(network(digits[0][:3]), twin(digits[0][:3]))


def test_a_json_beside_tensors_imports_nothing(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(exported, folder)
    place = folder / "model.json"
    record = json.loads(place.read_text())
    settings = {"command": f"touch {tmp_path / 'trap'}"}
    record["network"] = {"class_path": "os.system", "init_args": settings}
    place.write_text(json.dumps(record))
    data = MNIST(test_size=10)
    assert load_artefact(folder / "model.safetensors", MnistCNN(), Suite(), data) is not None
    assert not (tmp_path / "trap").exists()
    place.write_text('{"kept": {"conv1.weight": 3}}')
    with pytest.raises(UserError, match=r"model\.json does not fit .*model\.safetensors"):
        load_artefact(folder / "model.safetensors", MnistCNN(), Suite(), data)


def test_a_first_try_imports_nothing_from_the_working_directory(exported: Path) -> None:
    Path("onnxruntime.py").write_text("from pathlib import Path; Path('trap').touch()")
    try_out(exported / "model.onnx", (1, 28, 28))
    assert not Path("trap").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", '{"files": 3}', '{"files": {"m": 1}}'])
def test_a_damaged_card_stops_nothing(
    content: str, exported: Path, tmp_path: Path, digits: tuple[Tensor, Tensor]
) -> None:
    folder = tmp_path / "net"
    shutil.copytree(exported, folder)
    (folder / "MODEL_CARD.json").write_text(content)
    loaded = load_artefact(folder / "model.pt2", MnistCNN(), Suite(), MNIST(test_size=10))
    assert loaded is not None
    result = folder / "model_robustness.json"
    result.write_text(json.dumps({"rows": [], "suite": {"attacks": {}}}))
    note_test(folder / "model.pt2", result)
    assert (folder / "MODEL_CARD.json").read_text() == content


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.pte"])
def test_damaged_bytes_end_nothing(name: str, exported: Path, tmp_path: Path) -> None:
    good, file = (exported / name).read_bytes(), tmp_path / name
    for seed in range(12):
        draw = random.Random(seed)
        content = bytearray(good[: draw.randrange(len(good))] if seed % 3 == 0 else good)
        for _ in range(8 if seed % 3 else 0):
            within = 6000 if seed % 3 == 1 else len(content)
            content[draw.randrange(min(within, len(content)))] = draw.randrange(256)
        file.write_bytes(content)
        told = ""
        try:
            try_out(file, (1, 28, 28))
        except UserError as error:
            told = str(error)
        assert "\n" not in told
