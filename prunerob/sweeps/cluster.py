"""Runs as Ray tasks: on this machine, or on a cluster whose machines share the sweep's folder."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import Any

from prunerob.errors import UserError
from prunerob.sweeps.job import Job
from prunerob.sweeps.machine import Place, Unfit, look, run
from prunerob.sweeps.processes import cores
from prunerob.sweeps.worker import forget_ranks

RETRIES = 3
"""How often in a row a run's worker may die without having finished an epoch."""

MACHINES = 100
"""On how many unfit machines a run is tried before it counts as failed."""

PATIENCE = 120.0
"""Seconds that a shared file system is given to show here what was written elsewhere."""

GLANCE = 10.0
"""Seconds for which the list of machines is taken as known."""


class RayTasks:
    """An executor: Ray, started here for the time of the sweep, or a cluster that is there.

    Args:
        address: of the cluster, as `ray.init` takes it; None for a Ray of this machine alone.
        at_once: how many runs go on side by side; None for all that there is room for.
        threads: CPUs of each run.
        gpus: share of a GPU for each run, 0 or 0.01 to 1; None for 1 if there are any, unless all
            runs want the CPU.
        accelerators: `trainer.accelerator` of the runs.

    Raises:
        UserError: Ray is not installed, or nobody listens at the address.
    """

    def __init__(
        self,
        *,
        address: str | None,
        at_once: int | None,
        threads: int,
        gpus: float | None,
        accelerators: set[str],
    ) -> None:
        if find_spec("ray") is None:
            raise UserError("--executor ray: Ray is not installed; pip install 'prunerob[ray]'")
        if address:
            _knock(address)
        self.address = address
        self.at_once = at_once
        self.threads = threads
        self.gpus = gpus
        self.accelerators = accelerators
        self._ray: Any = None
        self._own: str | None = None
        self._tokens: list[Path] = []
        self._unfit: set[str] = set()
        self._known: tuple[float, list[dict[str, Any]]] = (-GLANCE, [])
        self._refs: list[Any] = []

    def prepare(self, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        """Start or join Ray, and look at every machine that has room for a run."""
        self._ray = self._join() if self.address else self._start()
        wants_gpu = bool(self.accelerators & {"gpu", "cuda"})
        if self.gpus is None:
            there = any(node["Resources"].get("GPU") for node in self._nodes())
            self.gpus = 1.0 if there and self.accelerators != {"cpu"} else 0.0
        if wants_gpu and not self.gpus:
            raise UserError("trainer.accelerator asks for a GPU: name --gpus, there is none yet")
        sweeps = sorted({job.sweep for job in jobs})
        token = f".shared-{token_hex(8)}"
        for folder in sweeps:
            (folder / token).touch()
            self._tokens.append(folder / token)
        self._place = Place.here(token)
        self._task = self._ray.remote(
            num_cpus=self.threads,
            num_gpus=self.gpus,
            max_calls=1,  # each run in a fresh process
            max_retries=0,  # RayTask sees to it, and tells the user
        )(run)
        wish = _several(self.threads, "CPU") + (f" and {self.gpus:g} GPU" if self.gpus else "")
        fit = [node for node in self._nodes() if self._room_on(node)]
        self._look_at(fit, sweeps, say)
        if fit:
            at = f"at {self.address}, {_several(len(fit), 'machine')}" if self.address else "here"
            say(f"Ray {at}: room for {_several(self.room(), 'run')}, each with {wish}.")
        elif self.address:
            say(f"Ray at {self.address}: no machine has {wish}; the runs wait until one joins.")
        else:
            raise UserError(f"this machine cannot give each run {wish}")

    def _start(self) -> Any:
        """Ray of this machine alone, for the time of the sweep."""
        forget_ranks()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default it reports on its use
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):  # for this Ray alone, in no file
            os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(32))
        os.environ["RAY_AUTH_MODE"] = "token"

        import ray

        linux_or_mac = sys.platform != "win32"
        # Not where TMPDIR says: names of sockets must be short.
        self._own = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if linux_or_mac else None)
        group = os.getpgrp() if linux_or_mac else 0
        try:
            ray.init(
                address="local",
                num_cpus=cores(),
                include_dashboard=False,
                object_store_memory=100 * 2**20,  # runs exchange files
                log_to_driver=False,
                logging_level="error",
                _temp_dir=self._own,
            )
        except Exception as error:
            raise UserError(f"--executor ray: Ray does not start ({_first_line(error)})") from None
        if linux_or_mac:
            with suppress(OSError):  # Ray took this process out of it, and so from Ctrl-C
                os.setpgid(0, group)
        return ray

    def _join(self) -> Any:
        import ray

        path = os.environ.get("PYTHONPATH")
        try:
            ray.init(
                address=self.address,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None,
            )
        except Exception as error:  # ConnectionError, RuntimeError, ValueError and more
            raise UserError(
                f"Ray at {self.address} cannot be joined ({_why_not_joined(error)})"
            ) from None
        return ray

    def _look_at(
        self, fit: Sequence[Mapping[str, Any]], sweeps: list[Path], say: Callable[[str], None]
    ) -> None:
        """Ask machines whether they can take runs.

        Raises:
            UserError: one cannot.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self._ray.remote(num_cpus=0, max_retries=0)(look)
        asked = []
        for node in fit:
            only = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ref = task.options(scheduling_strategy=only).remote(self._place, sweeps)
            asked.append((ref, node["NodeManagerHostname"]))
        for ref, host in asked:
            try:
                loose = self._ray.get(ref, timeout=PATIENCE)
            except self._ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                message = str(cause) if isinstance(cause, UserError) else ""
                raise UserError(message or f"{host}: {_first_line(cause)}") from None
            for folder in loose:
                say(f"Locks do not reach {host}: see that nobody else works in {folder}.")

    def _nodes(self) -> list[dict[str, Any]]:
        """The machines that are there."""
        seen, nodes = self._known
        if monotonic() - seen >= GLANCE:
            with suppress(self._ray.exceptions.RayError):  # for a moment
                nodes = [node for node in self._ray.nodes() if node["Alive"]]
            self._known = monotonic(), nodes
        return nodes

    def _room_on(self, node: Mapping[str, Any]) -> int:
        if node["NodeID"] in self._unfit:
            return 0
        resources = node["Resources"]
        room = resources.get("CPU", 0) // self.threads
        if self.gpus:  # the rests of two are no share
            room = min(room, resources.get("GPU", 0) * int(1 / self.gpus + 1e-9))
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
        """Hand a run to Ray; a reference to what `machine.run` returns."""
        options: dict[str, Any] = {"name": job.name}
        if self._unfit:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._unfit))})"}
        ref = self._task.options(**options).remote(
            self._place, job.sweep, pickle.dumps(job), self.threads, bool(self.gpus)
        )
        self._refs.append(ref)
        return ref

    def outcome(self, ref: Any) -> str | Unfit | None:
        """What `machine.run` returned; None if it has not ended.

        Raises:
            ChildProcessError: its worker died, or its machine.
        """
        errors = self._ray.exceptions
        try:
            if not self._ray.wait([ref], timeout=0)[0]:
                return None
            outcome: str | Unfit = self._ray.get(ref)
        except errors.RayTaskError as error:
            return _first_line(error.cause or error)
        except errors.RayError as error:
            kind = type(error).__name__
            raise ChildProcessError(WHY.get(kind, f"{kind}: {_first_line(error)}")) from None
        return outcome

    def leave_out(self, unfit: Unfit, say: Callable[[str], None]) -> None:
        """Give a machine no more runs."""
        if unfit.node not in self._unfit:
            self._unfit.add(unfit.node)
            say(f"{unfit.why}. It gets no runs.")

    def cancel(self, ref: Any) -> None:
        """End a run, or take it from Ray's queue."""
        self._ray.cancel(ref, force=True)

    def close(self) -> None:
        """Wait for what was cancelled; leave the cluster as it was, end a Ray of one's own."""
        for token in self._tokens:
            token.unlink(missing_ok=True)
        if self._ray is not None:
            if self._refs:
                self._ray.wait(self._refs, num_returns=len(self._refs), timeout=10)
            self._ray.shutdown()
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)


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
        self._refusals = 0
        self._failure = ""
        self._visible_by: float | None = None
        self._submit()

    def _submit(self) -> None:
        self._log_before = _stamp(self.job.log)
        self._checkpoint_before = _stamp(self.job.run.checkpoint())
        self._ref = self.executor.submit(self.job)

    def has_begun(self) -> bool:
        """A worker says so first of all."""
        return _stamp(self.job.log) != self._log_before

    def has_ended(self) -> bool:
        """Whether it is over for good."""
        try:
            outcome = self.executor.outcome(self._ref)
        except ChildProcessError as death:
            return not self._again(str(death))
        if outcome is None:
            return False
        if isinstance(outcome, Unfit):
            self._refusals += 1
            self.executor.leave_out(outcome, self.say)
            if self._refusals <= MACHINES:
                self._submit()
                return False
            outcome = outcome.why
        if outcome:
            self._failure = outcome
            return True
        self._visible_by = self._visible_by or monotonic() + PATIENCE
        return not self.job.commands() or monotonic() > self._visible_by

    def _again(self, why: str) -> bool:
        """Begin again from the last checkpoint, unless it leads nowhere."""
        advanced = _stamp(self.job.run.checkpoint()) != self._checkpoint_before
        self._deaths = 0 if advanced else self._deaths + 1
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


def _stamp(file: Path) -> tuple[int, int] | None:
    """Something that changes whenever a file does; None if it cannot be seen."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _knock(address: str) -> None:
    """See whether anyone listens at HOST:PORT; Ray would try for minutes.

    Raises:
        UserError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"Ray at {address} cannot be reached ({error})") from None


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
