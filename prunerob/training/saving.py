"""How checkpoints are written: beside their place, in full or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from prunerob.runs.folder import write_whole


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint in its own folder; Lightning's way leads through the system's own.

    So a full disk is named rightly, and leaves the checkpoint that was there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a file.

        Args:
            checkpoint: tensors and plain values.
            path: of the file, in a folder that is there.
            storage_options: Lightning's; there are none.

        Raises:
            OSError: it cannot be written; the error names the folder.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getvalue())
