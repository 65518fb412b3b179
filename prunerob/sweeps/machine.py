"""A machine of a cluster: what it must have in common with the others, and its part of a sweep.

What Ray calls here imports little: `forget_ranks` comes before Lightning.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout

from prunerob import __version__
from prunerob.errors import UserError
from prunerob.sweeps.worker import forget_ranks, work

LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "numpy")
"""Those that decide the numbers."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a machine must have in common with the one that runs the sweep.

    Args:
        directory: the working directory; paths of the runs may be relative to it.
        token: name of a file that lies in the folder of each sweep.
        import_path: where the configuration's own classes may be imported from.
        versions: of prunerob and of the libraries that decide the numbers.
    """

    directory: str
    token: str
    import_path: Sequence[str]
    versions: Mapping[str, str]

    @classmethod
    def here(cls, token: str) -> Place:
        """The place of this process."""
        return cls(
            directory=str(Path.cwd()), token=token, import_path=sys.path, versions=versions()
        )

    def enter(self, sweeps: Sequence[Path]) -> None:
        """Go there.

        Args:
            sweeps: folders that must be the same.

        Raises:
            UserError: this machine lacks something of it.
        """
        host = socket.gethostname()
        try:
            os.chdir(self.directory)
        except OSError as error:
            raise UserError(
                f"{host} cannot enter {self.directory} ({error.strerror}): start the sweep in a "
                "folder that all machines share"
            ) from None
        for folder in sweeps:
            if not (folder / self.token).is_file():
                raise UserError(
                    f"on {host}, {folder} is another folder than here: put --folder where all "
                    "machines share it"
                )
        there = versions()
        for name, here in self.versions.items():
            if there[name] != here:
                raise UserError(
                    f"{host} has {name} {there[name]}, here is {here}: install the same"
                )
        sys.path += [path for path in self.import_path if path not in sys.path]


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, without the words on how it was built (`+cu130`)."""
    installed = {"prunerob": __version__}
    for name in LIBRARIES:
        try:
            installed[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            installed[name] = "missing"
    return installed


@dataclass(frozen=True)
class Unfit:
    """What a machine says that cannot take a run.

    Args:
        node: Ray's name of it.
        why: what it lacks.
    """

    node: str
    why: str


def look(place: Place, sweeps: Sequence[Path]) -> list[Path]:
    """See whether this machine can take runs.

    Returns:
        folders whose locks, held where the sweep runs, do not reach this machine.

    Raises:
        UserError: it cannot.
    """
    place.enter(sweeps)
    loose = []
    for folder in sweeps:
        try:
            with FileLock(folder / ".lock", timeout=0):
                loose.append(folder)
        except Timeout:
            pass
    return loose


def run(place: Place, sweep: Path, job: bytes, threads: int, gpus: bool) -> str | Unfit:
    """Bring a run to its end on this machine.

    Args:
        place: what it needs here.
        sweep: folder of its sweep.
        job: the pickled run.
        threads: CPU threads.
        gpus: whether it has a GPU, or a share of one.

    Returns:
        why it failed, nothing if it went well; or that this machine cannot take it.
    """
    forget_ranks()
    if not gpus:  # nor those that others were given
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import ray

    node = ray.get_runtime_context().get_node_id()
    try:
        place.enter([sweep])
    except UserError as error:
        return Unfit(node, str(error))
    taken = pickle.loads(job)
    if gpus and taken.plain["trainer"]["accelerator"] != "cpu":
        import torch

        if not torch.cuda.is_available():
            return Unfit(node, f"{socket.gethostname()} has a GPU that its torch cannot use")
    return work(taken, threads)
