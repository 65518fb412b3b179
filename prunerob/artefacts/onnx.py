"""ONNX: for onnxruntime and many others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from prunerob.artefacts.format import (
    INPUT,
    OUTPUT,
    Answers,
    Format,
    Source,
    answered,
    needed,
    quiet,
    refusing,
)
from prunerob.errors import UserError, first_line


class Onnx(Format):
    """ONNX, by torch's exporter; answered by onnxruntime."""

    suffix = ".onnx"

    def write(self, source: Source, file: Path) -> None:
        """Write it with named input and output and any number of images; see `Format`."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package)
        with quiet(), refusing("onnx"):
            program = torch.onnx.export(
                source.traced,
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            for node in program.model.graph:
                node.metadata_props.clear()  # what the exporter saw of the code
            program.model.metadata_props.update(source.about)
            program.save(str(file))

    def open(self, file: Path, *, network: nn.Module, threads: int = 1) -> Answers:
        """A session of onnxruntime; see `Format`."""
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is wrong comes as an error
        try:
            session = runtime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has errors of its own for each way to fail
            raise UserError(
                f"{file} is no ONNX file that runs here ({first_line(error):.200})"
            ) from None
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
            raise UserError(
                f"{file}: takes {len(inputs)} inputs and gives {len(outputs)} outputs; images, "
                "float32, (B, C, H, W), and logits were expected"
            )

        def answers(x: Tensor) -> Tensor:
            def answer() -> Tensor:
                (found,) = session.run(None, {inputs[0].name: x.numpy()})
                return torch.from_numpy(found)

            return answered(file, answer, x)

        return answers
