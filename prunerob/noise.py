"""Noise as a function of a key per image: the same on any device, any rank, and after a resume.

A generator's state depends on what was drawn before; a hash of (key, pixel) does not. So the
noise of an image depends only on the run's seed, the purpose, the epoch, the image and the
restart, never on the batch it came in. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014), in int64 arithmetic that wraps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as the last ones of a number."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _hash(z: Tensor) -> Tensor:
    """Scramble 64 bits. int64 shifts right carry the sign in, so it is masked off."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def mix(key: Tensor, *parts: int | str) -> Tensor:
    """Derive new keys from keys.

    Args:
        key: int64, (B,).
        parts: what tells the new keys apart: numbers (an epoch, a restart) or words (a purpose).

    Returns:
        keys, int64, (B,).
    """
    for part in parts:
        number = crc32(part.encode()) if isinstance(part, str) else part
        key = _hash(key + _signed(_GAMMA * (number + 1)))
    return key


def image_keys(index: Tensor, *, seed: int, purpose: str, epoch: int = 0) -> Tensor:
    """The keys of images: one per image, for one purpose in one epoch of one run.

    Args:
        index: position of each image in its data set, int64, (B,).
        seed: the run's seed.
        purpose: what the noise is for, such as "training".
        epoch: the epoch.

    Returns:
        keys, int64, (B,).
    """
    return mix(_hash(index + _GAMMA), seed, purpose, epoch)


def uniform(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform noise in [0, 1).

    Args:
        key: int64, (B,).
        shape: shape of one image's noise.

    Returns:
        noise, float32, (B, *shape), multiples of 2^-24.
    """
    position = torch.arange(1, math.prod(shape) + 1, device=key.device)
    bits = _hash(key[:, None] + position * _GAMMA)
    noise = ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24
    return noise.view(len(key), *shape)


def normal(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise.

    Args:
        key: int64, (B,).
        shape: shape of one image's noise.

    Returns:
        noise, float32, (B, *shape), within 5.5 of 0.
    """
    u = uniform(key, shape) + 2.0**-25  # in the middle of its cell: never 0
    # The inverse of the distribution function, in float64: devices then agree in float32.
    u = (u.cpu() if key.device.type == "mps" else u).double()
    return (math.sqrt(2) * torch.erfinv(2 * u - 1)).float().to(key.device)


def half_normal(key: Tensor, cut: float) -> Tensor:
    """|z| of a standard normal z, truncated to [0, cut].

    Args:
        key: int64, (B,).
        cut: largest value, in standard deviations.

    Returns:
        noise, float32, (B,).
    """
    # The inverse of the distribution function, in float64: devices then agree in float32.
    u = uniform(key, ())
    u = (u.cpu() if key.device.type == "mps" else u).double()
    return (math.sqrt(2) * torch.erfinv(u * math.erf(cut / math.sqrt(2)))).float().to(key.device)
