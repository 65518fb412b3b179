"""A test while it goes on: `begin`, a `step` for each batch, `end`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn

from prunerob.attacks import Attack, NoAttack
from prunerob.attacks.attack import misclassified
from prunerob.attacks.pgd import logit_margin
from prunerob.attacks.suite import Suite, perturb_by_each
from prunerob.data.batches import Batch
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.noise import image_keys
from prunerob.robustness.diagnostics import scrutinize
from prunerob.robustness.journal import Journal
from prunerob.robustness.recorder import Recorder
from prunerob.robustness.scrutiny import Scrutiny
from prunerob.robustness.table import Robustness
from prunerob.runs.ranks import broadcast_object, gather, rank, ranks


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What one attack made of a batch.

    Args:
        attack: the attack's name.
        x: images, float32, (B, C, H, W), pixels in [0, 1].
        x_adv: adversarial examples, as x.
        labels: true labels, int64, (B,).
        before: predictions for the images, int64, (B,).
        after: predictions for the adversarial examples, int64, (B,).
    """

    attack: str
    x: Tensor
    x_adv: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    """Out of mixed precision, which would round a pixel by up to half of 1/255.

    What is counted is the network as it will be used, not as it was trained.
    """
    return torch.autocast(device.type, enabled=False)


class Measurement:
    """Attacks test images with a suite; all ranks together.

    Args:
        suite: the attacks.
        attacked: gives the network to attack, by some images.
        data: the test images.
        device: on which the network is.
        scrutinized_images: number of images on which to look into how far attacks can be trusted.
        seed: of the attacks' noise.
        on_attack: called with the name of each attack before it runs on a batch.
        on_examples: called with what each attack made of the first batch.
        journal: keeps what was measured, and may hold what an earlier try had.
        before: gives the network before pruning, by some images, if it is known.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        attacked: Callable[[Tensor], nn.Module],
        data: ImageDataModule,
        device: torch.device,
        scrutinized_images: int,
        seed: int,
        on_attack: Callable[[str], None] = lambda name: None,
        on_examples: Callable[[Examples], None] = lambda examples: None,
        journal: Journal | None = None,
        before: Callable[[Tensor], nn.Module] | None = None,
    ) -> None:
        self.suite = suite
        self.attacked = attacked
        self.data = data
        self.device = device
        self.scrutinized_images = scrutinized_images
        self.seed = seed
        self.on_attack = on_attack
        self.on_examples = on_examples
        self.journal = journal or Journal(None, {})
        self.before = before
        self._attacks: dict[str, Attack] = {"clean": NoAttack(), **suite.attacks}
        self._sampled = {name: a for name, a in suite.attacks.items() if a.sample is not None}
        """Attacks that are tried on a part of the images alone, at the end."""
        self._recorder = Recorder()
        self._survivors: list[Tensor] = []
        self._batches = 0

    def begin(self) -> None:
        """Let those attacks learn that must."""
        for name, attack in self.suite.attacks.items():
            self._check_classes(name, attack)
            if attack.learns:
                self._attacks[name] = self._prepare(name, attack)

    def _check_classes(self, name: str, attack: Attack) -> None:
        """Refuse an attack that needs more classes than there are, before anything is attacked."""
        if attack.fewest_classes <= 2:
            return
        x = self.data.test_sample(1).x.to(self.device)
        with in_float32(self.device), torch.no_grad():
            classes = self.attacked(x)(x).shape[1]
        if classes < attack.fewest_classes:
            raise UserError(
                f"model.attacks: {name} needs {attack.fewest_classes} classes or more, and the "
                f"network has {classes}; APGD on the cross-entropy, FAB and Square need 2"
            )

    def _prepare(self, name: str, attack: Attack) -> Attack:
        """Let an attack learn, once for all ranks: none may face another substitute."""
        self.on_attack(name)
        start = perf_counter()
        batches = _On(self.device, self.data.attacker_dataloader())
        network = self.attacked(next(iter(batches)).x)
        prepared = broadcast_object(attack.prepare(network, batches).to(torch.device("cpu")))
        prepared = prepared.to(self.device)
        self._recorder.note_learned(name, prepared.learned, perf_counter() - start)
        return prepared

    def step(self, batch: Batch) -> None:
        """Attack a batch with every attack of the suite; each is counted on its final iterate.

        Raises:
            UserError: the network's answers are not finite.
        """
        _, y, index = batch
        if not len(y):
            return
        self._batches += 1
        attacks = {name: a for name, a in self._attacks.items() if name not in self._sampled}
        name_of_batch = f"batch of {int(index[0])}"
        # The first batch is shown, and so attacked again.
        known = self.journal.get(name_of_batch) if self._batches > 1 else None
        entries = _split(known, attacks) if known else self._attack(attacks, batch)
        if not known:
            self.journal.put(name_of_batch, _join(entries))
        if self.suite.worst_case_attacks:
            predictions = [entry["prediction"] for entry in entries.values()]
            right = torch.stack([(p == y.cpu()) | (p < 0) for p in predictions]).all(0)
            self._survivors.append(index.cpu()[right])
        for name, entry in entries.items() if known else ():
            self._recorder.add_again(name, entry)

    def _attack(self, attacks: Mapping[str, Attack], batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Attack a batch with several attacks; returns what was noted of each.

        Raises:
            UserError: the network's answers are not finite.
        """
        x, y, index = batch
        key = image_keys(index, seed=self.seed, purpose="test")
        network = self.attacked(x)
        entries: dict[str, dict[str, Tensor]] = {}
        examples = perturb_by_each(attacks, network, x, y, key=key)
        predictions: dict[str, Tensor] = {}
        for name, attack in attacks.items():
            self.on_attack(name)
            start = perf_counter()
            with in_float32(self.device):
                x_adv = next(examples)
                logits = network(x_adv)
            if name == "clean" and not bool(torch.isfinite(logits).all()):
                raise UserError(
                    "the network's answers to clean images are not finite: its training diverged, "
                    "or its weights are damaged"
                )
            seen = logits.argmax(1)
            predictions[name] = seen.masked_fill(attack.leaves_out(index), -1)
            entries[name] = self._recorder.add(
                name,
                index=index,
                label=y,
                prediction=predictions[name],
                margin=logit_margin(logits.float(), y),
                start=start,
            )
            if self._batches == 1 and attack.perturbs:
                before = predictions["clean"]
                self.on_examples(
                    Examples(attack=name, x=x, x_adv=x_adv, labels=y, before=before, after=seen)
                )
        return entries

    def end(self) -> Robustness:
        """Sum up what was seen into the table.

        Raises:
            UserError: an attack left nothing to count.
        """
        for name, attack in self._sampled.items():
            self._attack_sample(name, attack)
        if self.suite.worst_case_attacks:
            self._attack_survivors()
        robustness = Recorder.of_all(gather(self._recorder)).robustness()
        if empty := [row.attack for row in robustness.rows if not row.images]:
            raise UserError(
                f"model.attacks: all images of this test are the attacker's own in {empty[0]}; "
                "test on more"
            )
        return replace(robustness, scrutiny=self._scrutinize())

    def _attack_sample(self, name: str, attack: Attack) -> None:
        """Try an attack on a part of the test images, together with full batches."""
        sample = self.data.test_sample(attack.sample or 0)
        size, places = self.data.eval_batch_size, torch.arange(len(sample.y))
        for part in torch.split(places, size)[rank() :: ranks()]:
            self.on_attack(name)
            start = perf_counter()
            x, y, index = (column[part].to(self.device) for column in sample)
            key = image_keys(index, seed=self.seed, purpose="test")
            network = self.attacked(x)
            with in_float32(self.device), torch.no_grad():
                x_adv, spent = self._attack_in_parts(name, attack, network, Batch(x, y, index), key)
                logits = network(x_adv)
            self._recorder.add(
                name,
                index=index,
                label=y,
                prediction=logits.argmax(1),
                margin=logit_margin(logits.float(), y),
                start=start - spent,
            )

    def _attack_in_parts(
        self, name: str, attack: Attack, network: nn.Module, batch: Batch, key: Tensor
    ) -> tuple[Tensor, float]:
        """Examples, as the attack's, with who is left after each part of it noted.

        Returns:
            the examples, and the seconds that an earlier try spent on them.
        """
        x, y, index = batch
        stages = attack.stages or ((attack.name, attack),)
        x_adv, left = x.clone(), torch.arange(len(y), device=y.device)
        left = left[~misclassified(network, x, y)]
        if attack.stages:
            self._recorder.note_left(name, "none", len(left))
        spent, start = 0.0, perf_counter()
        for part_name, part in stages:
            entry_name = f"{name}, {part_name} of {int(index[0])}"
            if known := self.journal.get(entry_name):
                x_adv, left = known["x_adv"].to(x.device), known["left"].to(x.device)
                spent = float(known["seconds"])
            else:
                self.on_attack(f"{name}: {part_name}, {len(left):,} of {len(y):,} left")
                x_adv[left] = part(network, x[left], y[left], key=key[left])
                left = left[~misclassified(network, x_adv[left], y[left])]
                seconds = torch.tensor(spent + perf_counter() - start, dtype=torch.float64)
                self.journal.put(entry_name, {"x_adv": x_adv, "left": left, "seconds": seconds})
            if attack.stages:
                self._recorder.note_left(name, part_name, len(left))
        return x_adv, spent

    def _attack_survivors(self) -> None:
        """Attack what no attack of the table got wrong, for the worst case alone."""
        size = self.data.eval_batch_size
        survivors = torch.cat([torch.cat(part) for part in gather(self._survivors) if part])
        # Many batches' together, so that batches stay full; not all, so that memory does not.
        parts = torch.split(survivors.sort().values, 16 * size)
        for part in parts[rank() :: ranks()]:
            left = Batch(*(tensor.to(self.device) for tensor in self.data.test_batch(part)))
            for name, attack in self.suite.worst_case_attacks.items():
                self.on_attack(name)
                start = perf_counter()
                x, y, index = left
                key = image_keys(index, seed=self.seed, purpose="worst case")
                fooled = attack.fools(self.attacked(x), x, y, key=key, batch_size=size)
                self._recorder.add_search(name, index=index, fooled=fooled, start=start)
                left = Batch(*(column[~fooled] for column in left))

    def _scrutinize(self) -> Scrutiny | None:
        """See on some of the test images how far the attacks can be trusted."""
        if not self.scrutinized_images:
            return None
        self.on_attack("scrutiny")
        sample = self.data.test_sample(self.scrutinized_images)
        x, y, index = Batch(*(tensor.to(self.device) for tensor in sample))
        key = image_keys(index, seed=self.seed, purpose="test")
        parts = torch.split(torch.arange(len(y), device=y.device), self.data.eval_batch_size)
        network, before = self.attacked(x), self.before and self.before(x)
        seen = [
            scrutinize(network, self._attacks, x[p], y[p], key=key[p], before=before)
            for p in parts[rank() :: ranks()]
        ]
        return Scrutiny.sum_of([scrutiny for part in gather(seen) for scrutiny in part])


def _join(entries: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Entries of several attacks as one, by their number."""
    return {
        f"{i} {name}": column
        for i, entry in enumerate(entries.values())
        for name, column in entry.items()
    }


def _split(joined: Mapping[str, Tensor], attacks: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Undo `_join`."""
    return {
        attack: {
            name.removeprefix(f"{i} "): column
            for name, column in joined.items()
            if name.startswith(f"{i} ")
        }
        for i, attack in enumerate(attacks)
    }


class _On:
    """Batches on a device, as often as they are asked for."""

    def __init__(self, device: torch.device, batches: Iterable[Batch]) -> None:
        self.device, self.batches = device, batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield Batch(*(tensor.to(self.device) for tensor in batch))
