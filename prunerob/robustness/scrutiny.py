"""What was seen of how far a test can be trusted, on some of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MORE = "more_"
"""How JSON's keys begin for what was tried with more work."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Whether an attack does what it could, on the images of a `Scrutiny`.

    Args:
        attack: the attack's name.
        correct: images classified right under the attack as it is.
        more: those that are left by more of something, such as "steps" or "restarts".
        factor: how much more.
        found: images right on every iterate, not only on the last; None if that was not seen.
        not_rising: images, right without an attack, whose cross-entropy the attack does not raise.
        unbounded: images right where the attack may change every pixel at will, with eps 1.
        transferred: images right under the examples that the attack makes against the network
            before pruning; None where that is not known.
    """

    attack: str
    correct: int
    more: Mapping[str, int]
    factor: int
    found: int | None = None
    not_rising: int | None = None
    unbounded: int | None = None
    transferred: int | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Convergence:
        """Read what `to_plain` wrote."""
        more = {k.removeprefix(MORE): v for k, v in plain.items() if k.startswith(MORE)}
        seen = {name: plain.get(name) for name in SEEN}
        return cls(
            attack=plain["attack"],
            correct=plain["correct"],
            more=more,
            factor=plain["factor"],
            **seen,
        )

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        more = {f"{MORE}{what}": correct for what, correct in self.more.items()}
        seen = {name: getattr(self, name) for name in SEEN if getattr(self, name) is not None}
        return {
            "attack": self.attack,
            "correct": self.correct,
            **more,
            "factor": self.factor,
            **seen,
        }

    @classmethod
    def sum_of(cls, parts: Sequence[Convergence]) -> Convergence:
        """The same attack on several batches; one or more."""
        first = parts[0]
        return cls(
            attack=first.attack,
            correct=sum(part.correct for part in parts),
            more={what: sum(part.more[what] for part in parts) for what in first.more},
            factor=first.factor,
            **{name: _sum([getattr(part, name) for part in parts]) for name in SEEN},
        )


SEEN = ("found", "not_rising", "unbounded", "transferred")
"""What of a `Convergence` older files do not have."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What a network does that attacks do not expect, in images of a `Scrutiny`.

    Args:
        right: classified right, without an attack.
        random: answers change from call to call, by more than 1e-4 or in their class.
        probabilities: answers are 0 or more and sum to 1, as probabilities do.
        uses_autograd: answering calls autograd, which an attack's own gradient may not survive.
        zero_margin_gradients: the gradient of the margin, as of AutoAttack's DLR loss, is exactly
            0 everywhere, in float32.
    """

    right: int
    random: int
    probabilities: int
    uses_autograd: int
    zero_margin_gradients: int

    @classmethod
    def sum_of(cls, parts: Sequence[Behaviour]) -> Behaviour:
        """On several batches."""
        columns = [asdict(part) for part in parts]
        return cls(**{name: sum(column[name] for column in columns) for name in columns[0]})


@dataclass(frozen=True, kw_only=True)
class Scrutiny:
    """How far gradients and attacks can be trusted, seen on some of the test images.

    Args:
        images: number of images looked at.
        zero_gradients: those on which the gradient of the cross-entropy is exactly 0 everywhere,
            in float32: gradient attacks do not move from there.
        convergence: of each attack in the suite that there is more of.
        behaviour: of the network; None if that was not looked at.
    """

    images: int
    zero_gradients: int
    convergence: Sequence[Convergence]
    behaviour: Behaviour | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Scrutiny:
        """Read what `to_plain` wrote."""
        behaviour = plain.get("behaviour")
        return cls(
            images=plain["images"],
            zero_gradients=plain["zero_gradients"],
            convergence=[Convergence.from_plain(c) for c in plain["convergence"]],
            behaviour=Behaviour(**{k: int(v) for k, v in behaviour.items()}) if behaviour else None,
        )

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        plain: dict[str, Any] = {
            "images": self.images,
            "zero_gradients": self.zero_gradients,
            "convergence": [tried.to_plain() for tried in self.convergence],
        }
        if self.behaviour is not None:
            plain["behaviour"] = asdict(self.behaviour)
        return plain

    @classmethod
    def sum_of(cls, parts: Sequence[Scrutiny]) -> Scrutiny:
        """What was seen on several batches, with the same suite; one or more."""
        behaviours = [part.behaviour for part in parts if part.behaviour is not None]
        return cls(
            images=sum(part.images for part in parts),
            zero_gradients=sum(part.zero_gradients for part in parts),
            convergence=[
                Convergence.sum_of([part.convergence[i] for part in parts])
                for i in range(len(parts[0].convergence))
            ],
            behaviour=Behaviour.sum_of(behaviours) if behaviours else None,
        )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
