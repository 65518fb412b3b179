"""Runs as Ray tasks: on this machine, or on a cluster whose machines share the sweep's folder."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import Any

from prunerob import __version__
from prunerob.errors import UserError
from prunerob.sweeps.plan import Job
from prunerob.sweeps.progress import epochs_done, last_line
from prunerob.sweeps.worker import work

RETRIES = 3
"""How often in a row a run's worker may die without having finished an epoch."""

PATIENCE = 120.0
"""Seconds that a shared file system is given to show here what was written elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a machine must have in common with the one that runs the sweep.

    Args:
        directory: the working directory; paths of the runs may be relative to it.
        token: name of a file that lies in the folder of each sweep.
        import_path: where the configuration's own classes may be imported from.
        versions: of the libraries that decide the numbers.
    """

    directory: str
    token: str
    import_path: Sequence[str]
    versions: Mapping[str, str]

    def enter(self, sweeps: Sequence[Path]) -> None:
        """Go there.

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
        for name, here in self.versions.items():
            if (there := _version(name)) != here:
                raise UserError(f"{host} has {name} {there}, here is {here}: install the same")
        sys.path += [path for path in self.import_path if path not in sys.path]


def _version(name: str) -> str:
    """A library's version, without the word on how it was built (`+cu130`)."""
    return __version__ if name == "prunerob" else version(name).partition("+")[0]


class RayTasks:
    """An executor: Ray, started here for the time of the sweep, or a cluster that is there.

    Args:
        address: of the cluster, as `ray.init` takes it; None for a Ray of this machine alone.
        at_once: how many runs go on side by side; None for all that there is room for.
        threads: CPUs of each run.
        gpus: share of a GPU for each run, 0 to 1; None for 1 if there are any and `may_use_gpu`.
        may_use_gpu: whether the configurations leave it to the machine what they run on.
    """

    def __init__(
        self,
        *,
        address: str | None,
        at_once: int | None,
        threads: int,
        gpus: float | None,
        may_use_gpu: bool,
    ) -> None:
        self.address = address
        self.at_once = at_once
        self.threads = threads
        self.gpus = gpus
        self.may_use_gpu = may_use_gpu
        self._tokens: list[Path] = []
        self._ray: Any = None

    def prepare(self, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        """Start or join Ray, and look at every machine that has room for a run."""
        self._ray = ray = self._join()
        if self.gpus is None:
            any_gpus = any(node["Resources"].get("GPU") for node in self._nodes())
            self.gpus = 1.0 if any_gpus and self.may_use_gpu else 0.0
        sweeps = sorted({job.sweep for job in jobs})
        token = f".shared-{token_hex(8)}"
        for folder in sweeps:
            for left in folder.glob(".shared-*"):  # by a sweep that was killed
                left.unlink()
            (folder / token).touch()
            self._tokens.append(folder / token)
        versions = {name: _version(name) for name in ("prunerob", "torch")}
        self.place = Place(
            directory=str(Path.cwd()), token=token, import_path=sys.path, versions=versions
        )
        self._task = ray.remote(
            num_cpus=self.threads,
            num_gpus=self.gpus,
            max_calls=1,  # each run in a fresh process
            max_retries=0,  # RayTask sees to it, and tells the user
        )(_work)
        fit = [node for node in self._nodes() if self._room_on(node)]
        wish = _several(self.threads, "CPU")
        wish += f" and {self.gpus:g} GPU" if self.gpus else ""
        if not fit and self.address is None:
            raise UserError(f"this machine cannot give each run {wish}")
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        looks = {
            look.options(scheduling_strategy=pinned(node["NodeID"], soft=False)).remote(
                self.place, sweeps
            ): node["NodeManagerHostname"]
            for node in fit
        }
        for ref, host in looks.items():
            try:
                ray.get(ref, timeout=PATIENCE)
            except ray.exceptions.RayTaskError as error:
                raise UserError(_reason(error, host)) from None
            except ray.exceptions.RayError as error:
                raise UserError(f"{host}: {_first_line(error)}") from None
        if fit:
            at = f"at {self.address}, {_several(len(fit), 'machine')}" if self.address else "here"
            say(f"Ray {at}: room for {_several(self.room(), 'run')}, each with {wish}.")
        else:
            say(f"Ray at {self.address}: no machine has {wish}; the runs wait until one joins.")

    def _join(self) -> Any:
        # Ray reports on its use by default; whoever starts a cluster of their own may choose.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
            import ray.util.scheduling_strategies
        except ImportError:
            raise UserError(
                "--executor ray: Ray is not installed; pip install 'prunerob[ray]'"
            ) from None
        where = f"--ray-address: {self.address}" if self.address else "--executor ray"
        alone = {
            "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,  # runs exchange files
        }
        try:
            _knock(self.address or "")
            ray.init(
                address=self.address or "local",
                log_to_driver=False,
                logging_level="error",
                **({} if self.address else alone),
            )
        except Exception as error:  # ConnectionError, RuntimeError, ValueError and more
            raise UserError(f"{where}: Ray cannot be reached ({_why_not_joined(error)})") from None
        return ray

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _room_on(self, node: Mapping[str, Any]) -> int:
        resources = node["Resources"]
        room = resources.get("CPU", 0) // self.threads
        if self.gpus:  # the rests of two are no share
            room = min(room, resources.get("GPU", 0) * (1 // self.gpus))
        return int(room)

    def accepts(self, running: int) -> bool:
        """All, if no number is given: Ray has a queue, and may start machines for it."""
        return self.at_once is None or running < self.at_once

    def room(self) -> int:
        """As many as the machines that are there now hold."""
        room = sum(self._room_on(node) for node in self._nodes())
        return max(1, room if self.at_once is None else min(room, self.at_once))

    def begin(self, job: Job, say: Callable[[str], None]) -> RayTask:
        """Hand a run to Ray."""
        return RayTask(self, job, say)

    def submit(self, job: Job) -> Any:
        """Hand a run to Ray; what `work` returns, as a reference."""
        task = self._task.options(name=job.name)
        return task.remote(self.place, job, self.threads, bool(self.gpus))

    def status(self, ref: Any) -> int | None:
        """What a run's worker returned; None if it has not ended.

        Raises:
            UserError: its machine lacks something.
            ChildProcessError: it died, or its machine.
        """
        if not self._ray.wait([ref], timeout=0)[0]:
            return None
        errors = self._ray.exceptions
        try:
            status: int = self._ray.get(ref)
        except errors.RayTaskError as error:
            raise UserError(_reason(error, "a worker")) from None
        except errors.RayError as error:
            kind = type(error).__name__
            raise ChildProcessError(WHY.get(kind, f"{kind}: {_first_line(error)}")) from None
        return status

    def cancel(self, ref: Any) -> None:
        """End a run now, or take it from Ray's queue."""
        self._ray.cancel(ref, force=True)
        self._ray.wait([ref], timeout=10)

    def close(self) -> None:
        """Leave the cluster as it was; end a Ray of one's own."""
        for token in self._tokens:
            token.unlink(missing_ok=True)
        if self._ray is not None:
            self._ray.shutdown()


WHY = {
    "WorkerCrashedError": "its worker died",
    "NodeDiedError": "its machine was lost",
    "OutOfMemoryError": "its machine ran out of memory",
}
"""What Ray's errors say, shorter."""


class RayTask:
    """A run in Ray's hands, begun again when its worker dies."""

    def __init__(self, executor: RayTasks, job: Job, say: Callable[[str], None]) -> None:
        self.executor = executor
        self.job = job
        self.say = say
        self._deaths = 0
        self._failure = ""
        self._visible_by = 0.0
        self._submit()

    def _submit(self) -> None:
        self._log_before = _stamp(self.job.log)
        self._epochs_before = epochs_done(self.job)
        self._ref = self.executor.submit(self.job)

    def has_begun(self) -> bool:
        """A worker says so first of all."""
        return _stamp(self.job.log) != self._log_before

    def has_ended(self) -> bool:
        """Whether it is over for good."""
        try:
            status = self.executor.status(self._ref)
        except UserError as error:
            self._failure = str(error)
            return True
        except ChildProcessError as death:
            return not self._again(str(death))
        if status is None:
            return False
        if status:
            self._failure = last_line(self.job.log)
            return True
        self._visible_by = self._visible_by or monotonic() + PATIENCE
        return not self.job.commands() or monotonic() > self._visible_by

    def _again(self, why: str) -> bool:
        """Begin again from the last checkpoint, unless it leads nowhere."""
        self._deaths = 0 if epochs_done(self.job) > self._epochs_before else self._deaths + 1
        if self._deaths > RETRIES:
            self._failure = f"{why}, {self._deaths} times without finishing an epoch"
            return False
        self.say(f"{self.job.name}: {why}; it is begun again from its last epoch")
        self._submit()
        return True

    def failure(self) -> str:
        """Why it failed."""
        return self._failure

    def stop(self) -> None:
        """End it."""
        self.executor.cancel(self._ref)


def _look(place: Place, sweeps: Sequence[Path]) -> None:
    place.enter(sweeps)


def _work(place: Place, job: Job, threads: int, gpus: bool) -> int:
    place.enter([job.sweep])
    if not gpus:  # nor those that others were given
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return work(job, threads)


def _stamp(log: Path) -> tuple[int, int] | None:
    try:
        found = log.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _reason(error: Exception, host: str) -> str:
    """What went wrong in a task, without where in Ray."""
    cause = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, UserError) else f"{host}: {_first_line(cause)}"


def _knock(address: str) -> None:
    """See whether anyone listens at HOST:PORT; Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _why_not_joined(error: BaseException) -> str:
    inner: BaseException | None = error
    while inner is not None:
        if "InvalidAuthToken" in str(inner):
            return "it wants its token: RAY_AUTH_MODE=token, and the same ~/.ray/auth_token"
        inner = inner.__cause__ or inner.__context__
    return _first_line(error)


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
