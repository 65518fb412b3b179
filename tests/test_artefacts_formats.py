"""Artefacts: files that answer as the network, are attacked themselves, and have a card."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

import prunerob
from prunerob.artefacts.agreement import Agreement, compare
from prunerob.artefacts.attacked import ArtefactNetwork
from prunerob.artefacts.format import Source
from prunerob.artefacts.formats import FORMATS
from prunerob.artefacts.onnx import Onnx
from prunerob.artefacts.quantize import quantize
from prunerob.attacks import PGD
from prunerob.cli import main
from prunerob.data import MNIST
from prunerob.errors import UserError
from prunerob.networks import MnistCNN, WideResNet
from prunerob.pixels import Pixels
from prunerob.pruning import filter_l1
from prunerob.robustness.diagnostics import scrutinize
from tests.conftest import TINY, refused

ROOT = Path(__file__).parent.parent


def pruned(network: nn.Module, amount: float = 0.5) -> nn.Module:
    prunerob.prune(network, amount, criterion=filter_l1)
    return network.eval()


def source(network: nn.Module, *shape: int, path: str = "", **init_args: object) -> Source:
    record = {"class_path": path, "init_args": init_args}
    return Source.of(network, torch.Size(shape), record, {"prunerob": "a test"})


MAKERS: dict[str, Callable[[], Source]] = {
    "MnistCNN": lambda: source(pruned(MnistCNN()), 1, 28, 28, path="prunerob.networks.MnistCNN"),
    "WideResNet": lambda: source(
        pruned(WideResNet(depth=10, widen_factor=1), 0.3),
        *(3, 32, 32),
        path="prunerob.networks.WideResNet",
        depth=10,
        widen_factor=1,
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_file_answers_as_the_network_in_any_number_of_images(
    name: str, form: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = MAKERS[name]()
    assert sum(map(torch.numel, made.exported.parameters())) < sum(
        map(torch.numel, made.network.parameters())
    )
    file = tmp_path / f"model{FORMATS[form].suffix}"
    FORMATS[form].write(made, file)
    answers = FORMATS[form].open(file, network=made.network)
    for images in (1, 2, 7):
        agreement = compare(made.network, answers, torch.rand(images, *made.shape), batch_size=5)
        assert agreement.holds, agreement


def test_emptied_channels_stay_up_to_a_multiple() -> None:
    torch.manual_seed(0)
    network = pruned(WideResNet(depth=10, widen_factor=2), 0.3)
    shape, x = torch.Size((3, 32, 32)), torch.rand(4, 3, 32, 32)
    sizes = []
    for multiple in (1, 8, 64):
        made = Source.of(network, shape, {}, {}, multiple_of=multiple)
        widths = [m.out_channels for m in made.exported.modules() if isinstance(m, nn.Conv2d)]
        full = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert all(w % multiple == 0 or w == f for w, f in zip(widths, full, strict=True))
        assert compare(network, made.exported, x).holds
        sizes.append(sum(widths))
    assert sizes[0] < sizes[1] < sizes[2] <= sum(full)


@pytest.mark.slow
def test_a_network_of_torchvision_is_exported_narrow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = source(pruned(torchvision.models.resnet18(num_classes=10), 0.4), 3, 64, 64)
    for form in ("onnx", "pt2"):
        file = tmp_path / f"model{FORMATS[form].suffix}"
        FORMATS[form].write(made, file)
        agreement = compare(
            made.network, FORMATS[form].open(file, network=made.network), torch.rand(6, 3, 64, 64)
        )
        assert agreement.holds, agreement


def test_what_does_not_answer_alike_is_told_apart() -> None:
    network, x = MnistCNN().eval(), torch.rand(20, 1, 28, 28)
    assert compare(network, network, x).holds
    assert not compare(network, lambda x: network(x) + 1, x).holds
    assert not compare(network, lambda x: network(x)[:, :9], x).holds
    assert not Agreement(images=10, same=9, difference=0.0, largest=1.0).holds


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the zoo in all formats."""
    folder = tmp_path_factory.mktemp("export") / "net"
    place = str(ROOT / "zoo" / "mnist_pgd_filter-0.75")
    formats = ["--format", "onnx,pt2,safetensors,executorch", "--int8", "static", "--sparse"]
    formats += ["--images", "200"]
    main(["export", place, *formats, "--to", str(folder)])
    return folder


def test_one_command_makes_files_and_a_card(exported: Path) -> None:
    names = {file.name for file in exported.iterdir()}
    models = {"model.onnx", "model.int8.onnx", "model.pt2", "model.safetensors", "model.pte"}
    models |= {"model.json", "model.sparse.onnx", "model.int8.sparse.onnx", "model.int8.pte"}
    others = {"config.yaml", "twin.safetensors", "MODEL_CARD.md", "MODEL_CARD.json"}
    assert names == models | others
    assert not list(exported.parent.glob("*.unfinished"))
    card = json.loads((exported / "MODEL_CARD.json").read_text())
    assert card["parameters"]["exported"] < card["parameters"]["full"] / 10
    assert card["files"]["model.onnx"]["bytes"] == (exported / "model.onnx").stat().st_size
    assert card["files"]["model.int8.onnx"]["bytes"] < card["files"]["model.onnx"]["bytes"] / 2
    assert set(card["attacked"]) == {"the network"}  # its table lies in the zoo
    assert card["flops"]["exported"] < card["flops"]["full"] / 2
    times = card["milliseconds"]
    assert set(times) == {"with all channels, .onnx", *models} - {"model.json"}
    assert [one["images"] for one in times["model.onnx"]][:2] == [1, 128]
    assert times["model.onnx"][0]["threads"] == 1
    dense, narrow = (times[n][1]["p50"] for n in ("with all channels, .onnx", "model.onnx"))
    assert narrow < dense
    text = (exported / "MODEL_CARD.md").read_text()
    assert "| the network | worst case | " in text
    assert "come from 512 training images" in text
    for file in exported.iterdir():
        if not file.name.startswith("MODEL_CARD"):  # whose command says what was asked
            assert str(ROOT).encode() not in file.read_bytes(), file
    assert card["files"]["model.onnx"]["sha256"] in text
    model = onnx.load(str(exported / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    about = {p.key: p.value for p in model.metadata_props}
    assert about["classes"] == "10"
    assert about["normalisation"] == "inside"
    assert about["weights_sha256"] == card["weights"]["sha256"]
    ends = (*model.graph.input, *model.graph.output)
    assert [value.name for value in ends] == ["images", "logits"]
    state = load_file(exported / "model.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == card["parameters"]["exported"]


def test_a_file_is_attacked_with_its_own_answers_and_its_twin_s_gradients(
    exported: Path, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:40], digits[1][:40]
    twin = prunerob.load(ROOT / "zoo" / "mnist_pgd_filter-0.75")
    answers = Onnx().open(exported / "model.int8.onnx", network=MnistCNN())
    network = ArtefactNetwork(twin, answers).eval()
    assert torch.equal(network(x), answers(x))
    assert not torch.equal(network(x), twin(x))
    gradients = []
    for attacked in (network, twin):
        seen = x.clone().requires_grad_()
        logits = attacked(seen)
        gradients.append(torch.autograd.grad(logits.sum(), seen)[0])
    assert torch.allclose(*gradients, atol=1e-4 * float(gradients[1].abs().max()))
    attack = PGD(eps=Pixels(0.3), step_size=Pixels(0.05), steps=10)
    fooled = (answers(attack(network, x, y)).argmax(1) != y).float().mean()
    assert fooled > 0.5


def test_integers_attacked_without_the_twin_raise_an_alarm(
    exported: Path, digits: tuple[Tensor, Tensor]
) -> None:
    answers = Onnx().open(exported / "model.int8.onnx", network=MnistCNN())

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return answers(x.detach())

    x, y = digits[0][:30], digits[1][:30]
    attack = PGD(eps=Pixels(0.3), step_size=Pixels(0.05), steps=3)
    found = scrutinize(Bare(), {"PGD": attack}, x, y, key=torch.arange(30))
    assert found.behaviour is not None
    assert found.behaviour.zero_margin_gradients == 30


def test_the_command_tests_a_file(exported: Path) -> None:
    file = exported / "model.int8.onnx"
    attack = "{PGD: {class_path: prunerob.attacks.PGD, init_args: {eps: 0.3, steps: 5}}}"
    settings = ["--model.attacks", attack, "--data.test_size", "100"]
    main(["test", str(file), "--model.scrutinized_images", "20", *settings])
    result = json.loads((exported / "model.int8_robustness.json").read_text())
    rows = {row["attack"]: row for row in result["rows"]}
    assert list(rows) == ["clean", "PGD", "PGD, transferred", "worst case"]
    assert rows["PGD"]["gradients"] == "straight through, the float network's"
    assert rows["PGD, transferred"]["gradients"] == "none: the float network's examples"
    assert abs(rows["PGD"]["correct"] - rows["PGD, transferred"]["correct"]) <= 10
    assert "| PGD, transferred |" in (exported / "model.int8_robustness.md").read_text()
    card = json.loads((exported / "MODEL_CARD.json").read_text())
    assert card["attacked"]["model.int8.onnx"]["rows"][1]["accuracy"] == rows["PGD"]["accuracy"]
    assert "| model.int8.onnx | PGD |" in (exported / "MODEL_CARD.md").read_text()
    test = MNIST(test_size=100).test_sample(100)
    right = Onnx().open(file, network=MnistCNN())(test.x).argmax(1) == test.y
    assert rows["clean"]["correct"] == int(right.sum())
    for made in exported.glob("model.int8_robustness*"):
        made.unlink()


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_integers_take_a_fourth_of_the_bytes(
    mode: str, exported: Path, tmp_path: Path, digits: tuple[Tensor, Tensor]
) -> None:
    made = tmp_path / "int8.onnx"
    quantize(exported / "model.onnx", made, digits[0][100:200], mode)  # type: ignore[arg-type]
    assert (
        made.stat().st_size
        < (0.6 if mode == "static" else 1.1) * (exported / "model.onnx").stat().st_size
    )
    network = prunerob.load(ROOT / "zoo" / "mnist_pgd_filter-0.75")
    agreement = compare(network, Onnx().open(made, network=MnistCNN()), digits[0][:100])
    assert agreement.same >= 90


def test_a_difference_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunerob.artefacts.agreement.TOLERANCE", -1.0)  # nothing is near enough
    place = str(ROOT / "zoo" / "mnist_pgd_filter-0.75")
    args = ["export", place, "--images", "20", "--to", str(tmp_path / "net")]
    told = refused(capsys, *args, "--format", "safetensors")
    assert (
        "--format safetensors: model.safetensors does not answer as the network: 20 of 20" in told
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--format", "tflite"], "--format: tflite is unknown; there are onnx, pt2, safetensors"),
        (["--format", "pt2", "--sparse"], "--sparse: is a form of ONNX"),
        (["--data.test_size", "5"], "--data.test_size is no option of export"),
        (["--for", "robustbench"], "leaderboards have WideResNet, ResNet18, not MnistCNN"),
        (["--format", ""], "--format: the list is empty"),
        (["--format", "pt2", "--int8", "static"], "--int8: is a form of ONNX and of executorch"),
        (["--format", "executorch", "--int8", "dynamic"], "--int8: is a form of ONNX; name it"),
        (["--multiple-of", "0"], "--multiple-of: 0 is below 1"),
        (["--multiple-of", "8", "--full"], "--multiple-of: --full leaves all channels in"),
        (["--test", "--ckpt_path", "x"], "--ckpt_path: --test attacks the files that are exported"),
        (["--test", "--formt", "pt2"], "formt"),
        (["--images", "0"], "--images: 0 is below 1"),
        (["--to", ""], "--to: an empty name is no folder"),
        (["--to", "."], "--to: . is there already"),
    ],
)
def test_mistakes_cost_nothing(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(ROOT / "zoo" / "mnist_pgd_filter-0.75")
    assert told in refused(capsys, "export", place, "--to", "new", *args)
    assert not Path("new").exists()


def test_weights_without_a_configuration_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (ROOT / "zoo" / "mnist_pgd_dense.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content)
    told = refused(capsys, "export", str(tmp_path / "a.safetensors"), "--to", "new")
    assert "no configuration lies with it that names the network" in told


def test_files_that_are_none_of_ours_are_told_in_a_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (exported / "model.onnx").read_bytes()
    for name in ("config.yaml", "twin.safetensors"):  # no card, which would know the checksum
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    file = tmp_path / "model.onnx"
    for content in (b"", b"no model", good[: len(good) // 2]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is no ONNX file that runs here"):
            Onnx().open(file, network=MnistCNN())
    told = refused(capsys, "test", "--ckpt_path", str(file))
    assert told.startswith(f"prunerob: error: {file} is no ONNX file that runs here")
    file.write_bytes(good)
    with pytest.raises(UserError, match=r"takes no images \(2, 3, 32, 32\)"):
        Onnx().open(file, network=MnistCNN())(torch.rand(2, 3, 32, 32))
    (tmp_path / "twin.safetensors").unlink()
    told = refused(capsys, "test", "--ckpt_path", str(file))
    assert "has no twin.safetensors beside it" in told


def test_a_card_of_a_tested_run_has_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", TINY])
    main(["test"])
    main(["export", "lightning_logs/tiny/version_0", "--format", "safetensors", "--to", "net"])
    card = json.loads(Path("net/MODEL_CARD.json").read_text())
    rows = card["attacked"]["the network"]["rows"]
    assert [row["attack"] for row in rows][-1] == "worst case"
    text = Path("net/MODEL_CARD.md").read_text()
    assert "| the network | worst case |" in text
    assert "- PGD: PGD, eps 0.3" in text
    assert "Pruned: 70 % by prunerob.pruning.weight_magnitude" in text


def test_a_script_classifies_without_torch(exported: Path) -> None:
    code = (
        "import sys; sys.argv = ['deploy.py', sys.argv[1]]; import runpy; "
        f"runpy.run_path({str(ROOT / 'examples' / 'deploy.py')!r}); "
        "assert not {'torch', 'prunerob'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported / "model.int8.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "class" in done.stdout


def test_what_lies_beside_an_export_stays(tmp_path: Path) -> None:
    beside = tmp_path / "net.unfinished"
    beside.mkdir()
    (beside / "thesis.txt").write_text("mine")
    place = str(ROOT / "zoo" / "mnist_pgd_filter-0.75")
    with pytest.raises(SystemExit):
        main(["export", f"{place}-nosuch", "--to", str(tmp_path / "net")])
    to = str(tmp_path / "net")
    main(["export", place, "--format", "safetensors", "--images", "20", "--to", to])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net", "net.unfinished"]
    assert (beside / "thesis.txt").read_text() == "mine"


def test_an_exported_folder_names_its_files(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "test", str(exported))
    assert "is an export: name one of its files, model.int8.onnx, " in told


def test_a_configuration_that_lacks_parts_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = ROOT / "zoo" / "mnist_pgd_filter-0.75.safetensors"
    (tmp_path / "a.safetensors").write_bytes(zoo.read_bytes())
    network = "{class_path: prunerob.networks.MnistCNN}"
    for text, what in (
        (f"model: {{network: {network}}}\ndata: {{}}\n", "lacks pruning, trainer"),
        (
            f"model: {{network: {network}}}\ndata: {{class_path: pathlib.Path}}\n"
            "pruning: {}\ntrainer: {}\n",
            "data are of no class of images",
        ),
        (
            f"model: {{network: {network}}}\ndata: {{class_path: no.such}}\n"
            "pruning: {}\ntrainer: {}\n",
            "data cannot be made",
        ),
    ):
        (tmp_path / "a.yaml").write_text(text)
        told = refused(capsys, "export", str(tmp_path / "a.safetensors"), "--to", "new")
        assert what in told
