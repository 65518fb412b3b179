"""Safetensors: tensors that any tool reads, and a JSON that says how the network is built."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from prunerob.artefacts.format import Answers, Format, Source, answered
from prunerob.errors import UserError, first_line
from prunerob.networks.narrow import Narrowing
from prunerob.runs.configuration import instantiate
from prunerob.runs.folder import write_whole


class Safetensors(Format):
    """Plain tensors, and beside them a JSON that says how the narrow network is built."""

    suffix = ".safetensors"

    def write(self, source: Source, file: Path) -> None:
        """Write tensors and JSON; see `Format`."""
        state = source.exported.state_dict()
        state = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
        kept = {
            name: [None if p is None else p.tolist() for p in positions]
            for name, positions in source.narrowing.kept.items()
        }
        write_whole(file, save(state, metadata=dict(source.about)))
        record = {"network": source.record, "kept": kept, "image": list(source.shape)}
        write_whole(file.with_suffix(".json"), json.dumps(record) + "\n")

    def open(self, file: Path, *, threads: int = 1) -> Answers:
        """The network, built as the JSON says; its class must be there. See `Format`."""
        beside = file.with_suffix(".json")
        try:
            record = json.loads(beside.read_text("utf-8"))
            network = instantiate(record["network"])
            kept = {
                name: tuple(None if p is None else torch.tensor(p) for p in positions)
                for name, positions in record["kept"].items()
            }
            if kept:
                network = Narrowing(kept).network(network)  # type: ignore[arg-type]
            network.load_state_dict(load_file(file))
        except (UserError, OSError):
            raise
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({first_line(error):.200})") from None
        except Exception as error:  # a JSON of a stranger's can be wrong in any way
            told = f"{first_line(error):.200}"
            raise UserError(f"{beside} does not build the network of {file} ({told})") from None
        network.eval()

        def answers(x: Tensor) -> Tensor:
            def answer() -> Tensor:
                with torch.no_grad():
                    logits: Tensor = network(x)
                return logits

            return answered(file, answer, x)

        return answers
