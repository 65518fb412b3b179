"""ExecuTorch: programs for phones and smaller devices, with XNNPACK's kernels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

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
    is_native = True

    def write(self, source: Source, file: Path) -> None:
        """Lower the traced program; see `Format`."""
        with quiet():
            exir = _needed("executorch.exir")
            xnnpack = _needed("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        with quiet(), refusing("executorch"):
            lowered = exir.to_edge_transform_and_lower(
                source.trace(MOST), partitioner=[xnnpack.XnnpackPartitioner()]
            )
            write_whole(file, bytes(lowered.to_executorch().buffer))

    def open(self, file: Path, *, threads: int = 1) -> Answers:
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
