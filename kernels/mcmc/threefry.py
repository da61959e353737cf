"""Threefry-2x32, random numbers made where they are used: a word is a function of a key and a counter, and of no state.

Elementwise on unsigned 32-bit integers, so the same text runs under XLA and inside Pallas kernels.
Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
"""

from typing import Any

import numpy as np

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)
ROUNDS = 20
"""As the paper advises; 13 pass its tests."""


def threefry_2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Computes two random words from a key of two words and a counter of two words: all uint32."""
    keys = *key, key[0] ^ key[1] ^ _PARITY
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(ROUNDS // 4):
        for distance in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(distance)) | (y >> np.uint32(32 - distance)))
        x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y
