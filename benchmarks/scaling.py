"""Time per epoch against the number of devices: a model, its inputs measured, checked at two.

    python -m benchmarks.scaling --config configs/mnist_pgd.yaml
    python -m benchmarks.scaling --config configs/cifar10_pgd.yaml --accelerator cuda

A step of training on N devices is a step on one device with a batch N times smaller, and then an
all-reduce of the gradients. Both are measured here: the first by `prunerob fit` on one device with
smaller batches, under ddp, whose bookkeeping costs something even alone; the second between two
processes. The model is then held against `prunerob fit` on two devices. What two devices of one
machine take from each other without talking (clock, memory) is measured by two `fit`s side by side
that know nothing of each other. Epochs are timed inside `fit`, without validation; the first of
each run is left out. On the CPU each process has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import multiprocessing

from prunerob.commands.reading import resolve
from prunerob.runs.configuration import instantiate

EPOCHS = 4
"""Of each run that is timed, the first not counted."""


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """What summing a tensor over N devices costs, in a ring.

    Args:
        latency: seconds of one message.
        bandwidth: bytes per second that a device sends.
    """

    latency: float
    bandwidth: float

    def seconds(self, size: float, devices: int) -> float:
        """How long it takes.

        Args:
            size: of the tensor, in bytes.
            devices: N; each sends 2 (N - 1) messages of a share 1 / N.
        """
        messages = 2 * (devices - 1)
        return messages * (self.latency + size / devices / self.bandwidth)


def epoch_seconds(
    *, steps: int, step: float, network: AllReduce, size: float, devices: int
) -> float:
    """The model: time of an epoch of training.

    It leaves out that DDP sends gradients while others are still computed, and that all wait for
    the slowest in every step.

    Args:
        steps: of an epoch.
        step: seconds of a step on one device, with the batch that each of the devices gets.
        network: between the devices.
        size: of the gradients, in bytes.
        devices: how many.
    """
    return steps * (step + network.seconds(size, devices))


class EpochSeconds(Callback):
    """Writes how long each epoch took.

    Args:
        file: a line for each epoch.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = self._now()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        if trainer.is_global_zero:
            with self.file.open("a") as file:
                file.write(f"{self._now() - self._began}\n")

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()


def time_fit(
    args: Sequence[str], *, batch: int, steps: int, devices: int, ddp: bool = True
) -> float:
    """Seconds per step of `prunerob fit`: the median of its epochs but the first.

    Args:
        args: its configuration and settings.
        batch: images of a step, on all devices together.
        steps: of an epoch.
        devices: how many.
        ddp: with that strategy, also on one.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "seconds"
        command = [sys.executable, "-m", "prunerob", "fit", *args]
        command += ["--trainer.callbacks+=benchmarks.scaling.EpochSeconds"]
        command += ["--trainer.callbacks.file", str(file)]
        command += ["--trainer.max_epochs", str(EPOCHS), "--pruning.epoch", "null"]
        command += ["--trainer.limit_val_batches", "0", "--trainer.logger.save_dir", folder]
        command += ["--trainer.enable_progress_bar", "false"]
        command += ["--data.batch_size", str(batch), "--data.train_size", str(batch * steps)]
        command += ["--trainer.devices", str(devices)]
        command += ["--trainer.strategy", "ddp"] if ddp else []
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=one_thread, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return statistics.median(map(float, file.read_text().split()[1:])) / steps


def measure_all_reduce(sizes: Sequence[int], backend: str) -> list[float]:
    """Seconds that summing takes between two processes of this machine: medians of 30.

    Args:
        sizes: of tensors of float32, in bytes.
        backend: "gloo" or "nccl".
    """
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        results = context.SimpleQueue()
        meeting = f"file://{folder}/meeting"
        processes = [
            context.Process(target=_sum, args=(rank, sizes, backend, meeting, results))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("the all-reduce failed")
        found: list[float] = results.get()
        return found


def _sum(rank: int, sizes: Sequence[int], backend: str, meeting: str, results: object) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=2)
    medians = []
    for size in sizes:
        tensor = torch.ones(max(1, size // 4), device=device)
        found = []
        for _ in range(35):
            dist.barrier()
            began = EpochSeconds._now()
            dist.all_reduce(tensor)
            found.append(EpochSeconds._now() - began)
            tensor.fill_(1)
        medians.append(statistics.median(found[5:]))
    if rank == 0:
        results.put(medians)  # type: ignore[attr-defined]
    dist.destroy_process_group()


def main() -> None:
    """Measure, predict, check and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--accelerator", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=20, help="of each epoch that is timed")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of one and two devices")
    parser.add_argument("--json", type=Path, help="file to write")
    said, settings = parser.parse_known_args()
    args = ["--config", said.config, "--trainer.accelerator", said.accelerator, *settings]
    plain = resolve(args)
    batch = plain["data"]["init_args"]["batch_size"]
    network = instantiate(plain["model"]["network"])
    size = 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)

    # Taking turns: a machine's speed changes within minutes.
    counts = [n for n in sorted({1, 2, *said.devices}) if batch % n == 0]
    alone: dict[int, list[float]] = {n: [] for n in counts}
    plainly: list[float] = []
    beside: list[float] = []
    together: list[float] = []
    fit = partial(time_fit, args, steps=said.steps)
    for again in range(said.rounds):
        plainly.append(fit(batch=batch, devices=1, ddp=False))
        for n in counts:
            if n <= 2 or not again:
                alone[n].append(fit(batch=batch // n, devices=1))
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(fit, batch=batch // 2, devices=1) for _ in range(2)]
            beside += [done.result() for done in both]
        together.append(fit(batch=batch, devices=2))
    step = {n: statistics.median(values) for n, values in alone.items()}
    small, large = measure_all_reduce([4, size], "nccl" if said.accelerator == "cuda" else "gloo")
    ring = AllReduce(latency=small / 2, bandwidth=size / max(1e-9, large - small))

    print(f"{said.config}, batch {batch}; gradients {size / 1e6:.2f} MB; {said.accelerator}")
    print(f"all-reduce between two: {1e3 * large:.2f} ms (of nothing {1e3 * small:.2f} ms)")
    one = statistics.median(plainly)
    print(f"one device without ddp: {1e3 * one:.1f} ms a step")
    print("devices   images each   step alone   + all-reduce   epoch against one device")
    model = {}
    for n in counts:
        model[n] = epoch_seconds(steps=1, step=step[n], network=ring, size=size, devices=n)
        share = 1e3 * (model[n] - step[n])
        row = f"{n:7}{batch // n:14}{1e3 * step[n]:10.1f} ms{share:12.2f} ms"
        print(f"{row}{one / model[n]:14.2f}x faster")
    measured, shared = statistics.median(together), statistics.median(beside)
    busy = epoch_seconds(steps=1, step=shared, network=ring, size=size, devices=2)
    print(f"measured on two: {1e3 * measured:.1f} ms a step, {one / measured:.2f}x faster")
    for what, seconds in (("the model", model[2]), ("with both devices busy", busy)):
        print(f"{what}: {1e3 * seconds:.1f} ms, {100 * (seconds / measured - 1):+.1f} %")
    if said.json:
        result = {
            "config": said.config,
            "batch": batch,
            "bytes": size,
            "all_reduce": [small, large],
        }
        steps = {
            "step_plain": plainly,
            "step_alone": alone,
            "step_beside": beside,
            "step_together": together,
        }
        said.json.write_text(json.dumps({**result, **steps, "model": model}, indent=1))


if __name__ == "__main__":
    main()
