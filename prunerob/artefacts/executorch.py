"""ExecuTorch: programs for phones and smaller devices, with XNNPACK's kernels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from prunerob.artefacts.format import Answers, Format, Source, answered, needed, quiet, refusing
from prunerob.errors import UserError, first_line
from prunerob.runs.folder import write_whole

MOST = 15
"""Images that a program answers at once: memory is laid out for so many.

From 16 on torch may take another convolution, so that a program that is lowered for more is laid
out for 15 all the same.
"""

_needed = partial(needed, form="executorch", extra="executorch")


class ExecuTorch(Format):
    """ExecuTorch's program, its layers handed to XNNPACK."""

    suffix = ".pte"

    def write(self, source: Source, file: Path) -> None:
        """Lower the traced program; see `Format`."""
        with quiet(), refusing("executorch"):
            _lower(source.trace(MOST), file)

    def write_int8(self, source: Source, file: Path, images: Tensor) -> None:
        """The same of 8-bit integers, by torchao's quantiser, per channel.

        Args:
            source: what is written.
            file: where it goes.
            images: training images for the ranges of activations, float32, (N, C, H, W), in [0, 1].

        Raises:
            UserError: it cannot be quantised, or a package is missing.
        """
        with quiet():
            pt2e = _needed("torchao.quantization.pt2e.quantize_pt2e")
            xnnpack = _needed("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        quantizer = xnnpack.XNNPACKQuantizer()
        quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
        with quiet(), refusing("executorch --int8"), torch.no_grad():
            prepared = pt2e.prepare_pt2e(source.trace(MOST).module(), quantizer)
            for part in torch.split(images, MOST):
                prepared(part)
            converted = pt2e.convert_pt2e(prepared)
            x, batch = torch.zeros(2, *source.shape), torch.export.Dim("batch", min=1, max=MOST)
            _lower(torch.export.export(converted, (x,), dynamic_shapes=({0: batch},)), file)

    def open(self, file: Path, *, network: nn.Module, threads: int = 1) -> Answers:
        """A method of ExecuTorch's runtime; its threads are the process's. See `Format`."""
        with quiet():
            runtime = _needed("executorch.runtime")
        library = _needed("executorch.extension.pybindings.portable_lib")
        if library._threadpool_get_thread_count() != threads:
            library._unsafe_reset_threadpool(threads)
        try:
            content = file.read_bytes()
            program = runtime.Runtime.get().load_program(content)
            method = program.load_method("forward")
        except OSError:
            raise
        except Exception as error:  # the runtime has errors of its own
            raise UserError(
                f"{file} is no ExecuTorch program that runs here ({first_line(error):.200})"
            ) from None

        def answers(x: Tensor) -> Tensor:
            def answer() -> Tensor:
                _ = content, program  # which the method points into
                with torch.no_grad():
                    parts = [method.execute([part])[0].clone() for part in torch.split(x, MOST)]
                return torch.cat(parts)

            return answered(file, answer, x)

        return answers


def _lower(program: torch.export.ExportedProgram, file: Path) -> None:
    """Hand a program's layers to XNNPACK, and write it."""
    exir = _needed("executorch.exir")
    xnnpack = _needed("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    write_whole(file, bytes(lowered.to_executorch().buffer))
