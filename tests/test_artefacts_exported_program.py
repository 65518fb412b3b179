"""Programs of torch.export: nothing in a file of someone else's runs when it is opened."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunerob.artefacts.exported_program import ExportedProgram
from prunerob.artefacts.format import Answers, Source
from prunerob.errors import UserError
from prunerob.networks import MnistCNN


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("pt2") / "model.pt2"
    source = Source.of(MnistCNN().eval(), torch.Size((1, 28, 28)), {}, {"prunerob": "a test"})
    ExportedProgram().write(source, file)
    return file


def opened(file: Path) -> Answers:
    return ExportedProgram().open(file, network=MnistCNN())


def changed(good: Path, to: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with some of its records changed, or left out."""
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(to, "w") as out:
        for record in archive.infolist():
            content = change(record.filename.partition("/")[2], archive.read(record))
            if content is not None:
                out.writestr(record.filename, content)
    return to


class Planted:
    """Runs code when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def test_a_file_says_nothing_of_this_machine_and_holds_no_pickle(good: Path) -> None:
    root = str(Path(__file__).parent.parent).encode()
    with zipfile.ZipFile(good) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert root not in content
            assert b"site-packages" not in content
            if name.endswith(".pt"):
                assert content == b""
            elif "weight_" not in name:  # raw bytes may be anything
                with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, EOFError)):
                    pickle.loads(content)
    # torch itself reads it, too.
    program = torch.export.load(good).module()
    x = torch.rand(3, 1, 28, 28)
    assert torch.allclose(program(x), opened(good)(x))


def test_pickled_images_are_left_aside(good: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    written = io.BytesIO()
    torch.save((Planted(trap),), written)

    def plant(place: str, content: bytes) -> bytes:
        return written.getvalue() if place.endswith("sample_inputs/model.pt") else content

    file = changed(good, tmp_path / "bad.pt2", plant)
    assert opened(file)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert not trap.exists()


def in_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def of(place: str, content: bytes) -> bytes:
        if place != "models/model.json":
            return content
        model = json.loads(content)
        change(model)
        return json.dumps(model).encode()

    return of


def pickled(place: str, content: bytes) -> bytes:
    return content.replace(b'"use_pickle": false', b'"use_pickle": true')


def elsewhere(place: str, content: bytes) -> bytes:
    if place.endswith("weights_config.json"):
        return content.replace(b'"weight_0"', b'"../../etc/x"')
    return content


def repeated(place: str, content: bytes) -> bytes:
    """A tensor of a few bytes that says it is as large as a disk."""
    if not place.endswith("weights_config.json"):
        return content
    config = json.loads(content)
    meta = config["config"]["network.conv1.weight"]["tensor_meta"]
    meta["sizes"][0]["as_int"], meta["strides"][0]["as_int"] = 10**9, 0
    return json.dumps(config).encode()


def operator(name: str) -> Callable[[str, bytes], bytes]:
    def change(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = name

    return in_graph(change)


def size(model: dict[str, Any]) -> None:
    sizes = model["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "__import__('os').getcwd()"


def subgraph(model: dict[str, Any]) -> None:
    node = model["graph_module"]["graph"]["nodes"][0]
    node["inputs"][0]["arg"] = {"as_graph": {"name": "inner", "graph": {}}}


def name(model: dict[str, Any]) -> None:
    model["graph_module"]["graph"]["nodes"][0]["name"] = "a; import os"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (pickled, "pickled tensors"),
        (elsewhere, "tensors of another place"),
        (repeated, "tensors larger than their bytes"),
        (operator("torch.load"), "the operator 'torch.load'"),
        (operator("torch.ops.aten.from_file.default"), "the operator 'torch.ops.aten.from_file"),
        (operator("torch.ops.prims.x.y"), "the operator 'torch.ops.prims"),
        (in_graph(size), 'the text "__import__'),
        (in_graph(name), "the text 'a; import os'"),
        (in_graph(subgraph), "the argument 'as_graph'"),
        (operator("torch.ops.aten._sparse_coo_tensor_unsafe.default"), "the operator"),
        (operator("torch.ops.aten.zero_.default"), "the operator"),
        (operator("torch.ops.aten.set_grad_enabled.default"), "the operator"),
    ],
)
def test_what_could_run_is_refused(
    change: Callable[[str, bytes], bytes], told: str, good: Path, tmp_path: Path
) -> None:
    file = changed(good, tmp_path / "bad.pt2", change)
    with pytest.raises(UserError, match="was refused: it holds ") as refused:
        opened(file)
    assert told in str(refused.value)


def test_compiled_code_is_refused(good: Path, tmp_path: Path) -> None:
    file = changed(good, tmp_path / "bad.pt2", lambda _, content: content)
    with zipfile.ZipFile(file, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/data/aotinductor/model/x.so", b"code")
    with pytest.raises(UserError, match=r"holds 'data/aotinductor/model/x\.so', more than"):
        opened(file)


def test_source_code_of_guards_is_left_aside(good: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    def guard(model: dict[str, Any]) -> None:
        model["guards_code"] = [f"open({str(trap)!r}, 'w') is not None"]

    file = changed(good, tmp_path / "bad.pt2", in_graph(guard))
    opened(file)(torch.rand(2, 1, 28, 28))
    assert not trap.exists()


def test_classes_of_nested_arguments_are_not_imported(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("from pathlib import Path; Path('trap').touch()")
    monkeypatch.syspath_prepend(str(tmp_path))
    leaf = {"type": None, "context": None, "children_spec": []}
    context = {"default_factory_module": "planted", "default_factory_name": "x", "dict_context": []}
    nested = {
        "type": "collections.defaultdict",
        "context": json.dumps(context),
        "children_spec": [leaf],
    }

    def nest(model: dict[str, Any]) -> None:
        for call in model["graph_module"]["module_call_graph"]:
            if call["signature"]:
                call["signature"]["in_spec"] = json.dumps([1, nested])

    opened(changed(good, tmp_path / "bad.pt2", in_graph(nest)))(torch.rand(2, 1, 28, 28))
    assert not Path("trap").exists()


def test_a_network_in_place_leaves_the_images_alone(good: Path, tmp_path: Path) -> None:
    def in_place(model: dict[str, Any]) -> None:
        for node in model["graph_module"]["graph"]["nodes"]:
            node["target"] = node["target"].replace("aten.relu.", "aten.relu_.")

    x = torch.rand(2, 1, 28, 28) - 0.5
    before = x.clone()
    answers = opened(changed(good, tmp_path / "in_place.pt2", in_graph(in_place)))
    assert torch.allclose(answers(x), opened(good)(before))
    assert torch.equal(x, before)


def test_archives_that_unfold_are_refused(good: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.pt2"
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for record in archive.infolist():
            out.writestr(record.filename, archive.read(record))
    with pytest.raises(UserError, match=r"bad\.pt2 is damaged \(it is compressed"):
        opened(file)
    file.write_bytes(b" " + file.read_bytes())
    with pytest.raises(UserError, match=r"bad\.pt2 is no program"):
        opened(file)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_damage_is_told_in_a_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pt2 is (no program|damaged)"):
        opened(file)
