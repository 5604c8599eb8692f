"""Counter-based random numbers: the noise of sample k depends on the seed and on k alone.

Every input of a batch shares the noise of sample k. A score is then a function of the model, the
input, the seed and the number of samples; neither the batch nor its order can reach it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lipvae._validate import check_count

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

_SOBOL_BITS = 30  # of torch's Sobol points

Words = npt.NDArray[np.uint32]


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike, rounds: int = 10) -> Words:
    """Philox4x32: four random words for each counter.

    Args:
        counter: integers in [0, 2^32), [..., 4], low word first.
        key: integers in [0, 2^32), [..., 2], broadcast against the counters.
        rounds: number of rounds; 10 is the recommended strength.

    Returns:
        uint32 [..., 4].

    Source: Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
    section 3.3.

    Example:
        >>> [f"{word:08x}" for word in philox4x32([0, 0, 0, 0], [0, 0])]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, dtype=np.uint64), -1, 0)
    for _ in range(rounds):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (second >> _HALF) ^ c1 ^ k0,
            second & _LOW,
            (first >> _HALF) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def normal_like(
    like: Tensor, shape: Sequence[int], generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal numbers for a tensor's device and dtype, drawn where `generator` lives.

    So a CPU generator gives the same numbers to models on any device. They go to a GPU from pinned
    memory, which it does not have to be waited for.

    Args:
        like: a tensor of the device and dtype.
        shape: of the result.
        generator: None for the default one of `like`'s device.
    """
    device = like.device if generator is None else generator.device
    pinned = like.is_cuda and device.type == "cpu"
    noise = torch.randn(
        *shape, generator=generator, device=device, dtype=like.dtype, pin_memory=pinned
    )
    return noise.to(like.device, non_blocking=pinned)


def uniform(seed: int, num_samples: int, dim: int, *, start: int = 0, stream: int = 0) -> Tensor:
    """Uniform numbers on the open interval (0, 1), 52 bits each.

    Args:
        seed: in [0, 2^64).
        num_samples: K, the number of rows.
        dim: m, the length of a row.
        start: index of the first row.
        stream: in [0, 2^32); streams of one seed are independent.

    Returns:
        float64 [K, m] on the CPU. Row k depends on (seed, stream, start + k) alone, and its first
        entries don't depend on m.

    Raises:
        TypeError, ValueError: for an argument that is not an integer in its range.

    Example:
        >>> whole = uniform(0, 8, 3)
        >>> bool((whole[2:] == uniform(0, 6, 3, start=2)).all())
        True
    """
    check_count("seed", seed, 0)
    check_count("num_samples", num_samples, 0)
    check_count("dim", dim, 0)
    check_count("start", start, 0)
    check_count("stream", stream, 0)
    if seed >= 2**64 or start + num_samples > 2**64 or stream >= 2**32 or dim > 2**33:
        raise ValueError(
            "seed, start + num_samples, stream and dim must be below 2**64, 2**64, 2**32 and "
            f"2**33, got {seed}, {start + num_samples}, {stream} and {dim}"
        )
    blocks = -(-dim // 2)
    row = np.arange(num_samples, dtype=np.uint64) + np.uint64(start)
    counter = np.empty((num_samples, blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks, dtype=np.uint64)
    counter[..., 1] = stream
    counter[..., 2] = (row & _LOW)[:, None]
    counter[..., 3] = (row >> _HALF)[:, None]
    words = philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32]).astype(np.uint64)
    # 52 bits and a half: exact in a double, and never 0 or 1.
    bits = ((words[..., 1::2] << _HALF) | words[..., 0::2]) >> np.uint64(12)
    values = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return torch.from_numpy(np.ascontiguousarray(values.reshape(num_samples, 2 * blocks)[:, :dim]))


def standard_normal(
    seed: int, num_samples: int, dim: int, *, start: int = 0, stream: int = 0
) -> Tensor:
    """Standard normal numbers, by the inverse distribution function of :func:`uniform`.

    Args:
        seed: in [0, 2^64).
        num_samples: K, the number of rows.
        dim: m, the length of a row.
        start: index of the first row.
        stream: in [0, 2^32); streams of one seed are independent.

    Returns:
        float64 [K, m] on the CPU, |value| < 8.3. Row k depends on (seed, stream, start + k) alone.

    Raises:
        TypeError, ValueError: for an argument that is not an integer in its range.

    Example:
        >>> standard_normal(0, 2, 3).shape
        torch.Size([2, 3])
    """
    return torch.special.ndtri(uniform(seed, num_samples, dim, start=start, stream=stream))


def sobol_normal(seed: int, num_samples: int, dim: int, *, start: int = 0) -> Tensor:
    """Standard normal numbers that fill space evenly: scrambled Sobol points, transformed.

    Each row is standard normal. Together they are not independent: the mean of a smooth function
    over them has a smaller error than over independent ones, least where K is a power of two.

    Args:
        seed: of the scrambling, in [0, 2^64); torch's generator takes the low 32 bits.
        num_samples: K, the number of rows.
        dim: m, the length of a row, at most 21,201.
        start: index of the first row; start + K at most 2^30.

    Returns:
        float64 [K, m] on the CPU, |value| < 6.3. Row k depends on (seed, m, start + k) alone.

    Raises:
        TypeError, ValueError: for an argument that is not an integer in its range.

    Source: Sobol 1967; Joe & Kuo 2008; Matousek 1998 for the scrambling, as torch has it.

    Example:
        >>> z = sobol_normal(0, 128, 2)
        >>> bool((z.mean(0).abs() < 0.03).all())
        True
    """
    check_count("seed", seed, 0)
    check_count("num_samples", num_samples, 0)
    check_count("dim", dim)
    check_count("start", start, 0)
    largest = torch.quasirandom.SobolEngine.MAXDIM
    if seed >= 2**64 or start + num_samples > 2**_SOBOL_BITS or dim > largest:
        raise ValueError(
            f"seed, start + num_samples and dim must be below 2**64, at most 2**{_SOBOL_BITS} and "
            f"at most {largest}, got {seed}, {start + num_samples} and {dim}"
        )
    if num_samples == 0:
        return torch.empty(0, dim, dtype=torch.float64, device="cpu")
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    engine.fast_forward(start)
    values = engine.draw(num_samples, dtype=torch.float64)
    if start == 0:  # torch rounds the first point to the default dtype, which may make it 1
        values[0] = engine.shift.double() * 2.0**-_SOBOL_BITS
    # In the middle of their cells: never 0 or 1.
    return torch.special.ndtri(values + 2.0 ** -(_SOBOL_BITS + 1))
