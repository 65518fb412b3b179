"""Distances between images, in pixel units of [0, 1]."""

from __future__ import annotations

from fractions import Fraction


class Pixels(float):
    """A distance in pixel units, in [0, 1]: a number (`0.3`) or a fraction (`8/255`).

    Args:
        value: number, or text holding a number or a fraction.

    Raises:
        ValueError: below 0, above 1, or not a number.

    Examples:
        >>> Pixels("8/255") == 8 / 255
        True
    """

    def __new__(cls, value: float | str = 0.0) -> Pixels:
        """Read and check a distance."""
        try:
            if isinstance(value, bool):
                raise TypeError
            # Fraction("0.3") is exactly 3/10, and float() of it the nearest double: 0.3.
            number = float(Fraction(value) if isinstance(value, str) else value)
        except (ValueError, ZeroDivisionError, TypeError, OverflowError):
            raise ValueError(f"{value!r} is not a number or a fraction such as 8/255") from None
        if not 0 <= number <= 1:
            hint = f"; is {value}/255 meant?" if 1 < number <= 255 else ""
            raise ValueError(f"{value} lies outside [0, 1], the pixel units of images{hint}")
        return super().__new__(cls, number)

    def __str__(self) -> str:
        """The shorter of the decimal number and n/255, each exact."""
        fraction = f"{round(self * 255)}/255"
        decimal = float.__repr__(self)
        exact = round(self * 255) / 255 == float(self)
        return fraction if exact and len(fraction) < len(decimal) else decimal

    __repr__ = __str__
