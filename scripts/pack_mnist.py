"""Make prunerob/data/mnist.xz, the MNIST that ships inside the package, from the official files.

Usage: python scripts/pack_mnist.py FOLDER

FOLDER holds the four official IDX files, gzipped. Their unpacked contents are checked against the
official MD5 sums, laid end to end and compressed losslessly.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import sys
from pathlib import Path

OFFICIAL_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
TARGET = Path(__file__).parent.parent / "prunerob" / "data" / "mnist.xz"
# LZMA's literal model fits bytes of images best with no context from the previous byte's high
# bits turned off and no position alignment.
FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 26,
        "lc": 4,
        "lp": 0,
        "pb": 0,
    }
]


def main() -> None:
    """Check the four files and write the packed one."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    parts = []
    for name, md5 in OFFICIAL_MD5.items():
        part = gzip.decompress((Path(sys.argv[1]) / f"{name}.gz").read_bytes())
        if hashlib.md5(part).hexdigest() != md5:
            sys.exit(f"{name}.gz does not unpack to the official file (MD5 {md5})")
        parts.append(part)
    packed = lzma.compress(b"".join(parts), check=lzma.CHECK_SHA256, filters=FILTERS)
    TARGET.write_bytes(packed)
    print(f"{TARGET.name}: {len(packed):,} bytes")


if __name__ == "__main__":
    main()
