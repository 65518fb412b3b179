"""Safetensors: tensors that any tool reads, and a JSON that says how the network is built."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from prunerob.artefacts.format import Answers, Format, Source, answered
from prunerob.errors import UserError, first_line
from prunerob.networks.narrow import Narrowing
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

    def open(self, file: Path, *, network: nn.Module, threads: int = 1) -> Answers:
        """The network with these tensors, narrow as the JSON says; see `Format`.

        What the JSON says of the network's class is for people: nothing is imported by it.
        """
        beside = file.with_suffix(".json")
        try:
            kept = {
                str(name): tuple(None if p is None else torch.tensor(p) for p in positions)
                for name, positions in json.loads(beside.read_text("utf-8"))["kept"].items()
            }
            narrow = Narrowing(kept).network(network)  # type: ignore[arg-type]
            narrow.load_state_dict(load_file(file))
        except OSError:
            raise
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({first_line(error):.200})") from None
        except Exception as error:  # a JSON of a stranger's can be wrong in any way
            told = f"{first_line(error):.200}"
            raise UserError(f"{beside} does not fit {file} and its network ({told})") from None
        narrow.eval()

        def answers(x: Tensor) -> Tensor:
            def answer() -> Tensor:
                with torch.no_grad():
                    logits: Tensor = narrow(x)
                return logits

            return answered(file, answer, x)

        return answers
