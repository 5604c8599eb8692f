"""Samples of the von Mises-Fisher distribution, equation (4), and the derivative of their angle.

t = 1 - <mu, x> comes from Wood's rejection sampler, one sample a thread, and the tangent from the
normals of Box & Muller, some samples a program. Seed and samples stay on the device. t and the sums
over a sample are float64, the normals float32.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import (
    OPTIONS,
    cdiv,
    check_companion,
    check_doubles,
    check_operand,
    next_power_of_2,
    on_device,
)
from lipvae.kernels._vmf_draws import (
    asin_small,
    sin_cos,
    sphere,
    stream_t_words,
    tangent,
    uniform52,
    wide_tangent,
    wood,
)
from lipvae.reference.vmf import quadrature

# A sample of m - 1 numbers stays in the registers of one program.
MAX_DIM = 8192
BLOCK = 128


@triton.jit
def _reflect(t, gg, gm, mm, mu0):
    """x0 and the factors of g and mu in the other coordinates, for one sample's sums.

    x = H [-sign w, s v] with H = I - u u^T / (1 + |mu0|) and u = mu + sign e0.
    """
    scale = 1.0 / tl.sqrt(mm + mu0 * mu0)
    first = mu0 * scale
    sign = tl.where(first < 0, -1.0, 1.0)
    w = 1.0 - t
    along = tl.sqrt(t * (2.0 - t)) / tl.sqrt(gg)
    c = along * gm * scale
    return first * w - sign * c, along, (w - c / (1.0 + tl.abs(first))) * scale


@triton.jit
def _index(flat, start, rows, SHARED: tl.constexpr):
    return start + (flat // rows if SHARED else flat)


@triton.jit
def draw_t(
    concentration_ptr,
    seed_ptr,
    t_ptr,
    start,
    total,
    rows,
    dim,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """t of one sample a thread, for m >= 4."""
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = flat < total
    kappa = tl.load(concentration_ptr + flat % rows, mask=valid, other=0.0).to(tl.float64)
    index = _index(flat, start, rows, SHARED)
    t, _ = wood(tl.load(seed_ptr), index, kappa, dim, valid, False)
    tl.store(t_ptr + flat, t, mask=valid)


@triton.jit
def place_rows(
    loc_ptr,
    seed_ptr,
    t_ptr,
    x_ptr,
    start,
    total,
    rows,
    dim,
    SHARED: tl.constexpr,
    WIDE: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The tangents of SAMPLES samples a program, for m >= 4; in float64 if `WIDE`."""
    flat = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)
    valid = flat < total
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (column < dim - 1) & valid[:, None]
    index = _index(flat, start, rows, SHARED)
    if WIDE:
        normals = wide_tangent(tl.load(seed_ptr), index, SAMPLES, COLUMNS)
    else:
        normals = tangent(tl.load(seed_ptr), index, SAMPLES, COLUMNS)
    g = tl.where(inside, normals, 0.0)

    mu_ptr = loc_ptr + (flat % rows) * dim
    mu0 = tl.load(mu_ptr, mask=valid, other=1.0).to(tl.float64)
    mu = tl.load(mu_ptr[:, None] + 1 + column, mask=inside, other=0.0)
    if not WIDE:
        mu = mu.to(tl.float32)
    wide_g = g.to(tl.float64)
    wide_mu = mu.to(tl.float64)
    gg = tl.where(valid, tl.sum(wide_g * wide_g, 1), 1.0)
    gm = tl.sum(wide_g * wide_mu, 1)
    mm = tl.sum(wide_mu * wide_mu, 1)
    t = tl.load(t_ptr + flat, mask=valid, other=1.0)
    x0, by_g, by_mu = _reflect(t, gg, gm, mm, mu0)
    x = by_g.to(g.dtype)[:, None] * g + by_mu.to(mu.dtype)[:, None] * mu
    out = x_ptr + flat * dim
    tl.store(out, x0.to(g.dtype), mask=valid)
    tl.store(out[:, None] + 1 + column, x, mask=inside)


@triton.jit
def sample_small(
    loc_ptr,
    concentration_ptr,
    seed_ptr,
    x_ptr,
    t_ptr,
    start,
    total,
    rows,
    SHARED: tl.constexpr,
    WIDE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One sample a thread, for m = 2 and 3; stored in float64 if `WIDE`."""
    stored: tl.constexpr = tl.float64 if WIDE else tl.float32
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = flat < total
    row = flat % rows
    index = _index(flat, start, rows, SHARED)
    seed = tl.load(seed_ptr)
    kappa = tl.load(concentration_ptr + row, mask=valid, other=0.0).to(tl.float64)
    mu_ptr = loc_ptr + row * DIM
    mu0 = tl.load(mu_ptr, mask=valid, other=1.0).to(tl.float64)
    mu1 = tl.load(mu_ptr + 1, mask=valid, other=0.0).to(tl.float64)
    out = x_ptr + flat * DIM
    if DIM == 2:
        t, word = wood(seed, index, kappa, tl.full((), 2, tl.int32), valid, True)
        g1 = 1.0 - 2.0 * (word & 1).to(tl.float64)
        x0, by_g, by_mu = _reflect(t, g1 * g1, g1 * mu1, mu1 * mu1, mu0)
    else:
        w0, w1, w2, w3 = stream_t_words(seed, index)
        t = sphere(kappa, uniform52(w0, w1))
        g2, g1 = sin_cos(4.0 * uniform52(w2, w3))
        mu2 = tl.load(mu_ptr + 2, mask=valid, other=0.0).to(tl.float64)
        gg = g1 * g1 + g2 * g2
        x0, by_g, by_mu = _reflect(t, gg, g1 * mu1 + g2 * mu2, mu1 * mu1 + mu2 * mu2, mu0)
        tl.store(out + 2, (by_g * g2 + by_mu * mu2).to(stored), mask=valid)
    # By way of float32: the interpreter cannot turn float64 into bfloat16.
    tl.store(out, x0.to(stored), mask=valid)
    tl.store(out + 1, (by_g * g1 + by_mu * mu1).to(stored), mask=valid)
    tl.store(t_ptr + flat, t, mask=valid)


@triton.jit
def angle_rows(
    t_ptr,
    concentration_ptr,
    complement_ptr,
    node_ptr,
    weight_ptr,
    out_ptr,
    total,
    rows,
    dim,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d acos(1 - t) / d kappa; ``lipvae.reference.angle_derivative`` says how."""
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = flat < total
    t = tl.load(t_ptr + flat, mask=valid, other=1.0)
    kappa = tl.load(concentration_ptr + flat % rows, mask=valid, other=1.0)
    complement = tl.load(complement_ptr + flat % rows, mask=valid, other=0.5)
    power = (dim - 2).to(tl.float64)
    cosine = 1.0 - t
    sine = tl.sqrt(t * (2.0 - t))
    near = t < 1.0
    half = 2.0 * asin_small(tl.sqrt(tl.where(near, t, 2.0 - t) * 0.5))
    phi = tl.where(near, half, 3.141592653589793 - half)
    cotangent = cosine / tl.maximum(sine, 1e-300)
    left = t < complement
    side = tl.where(left, 1.0, -1.0)
    slope = side * (cotangent * power - kappa * sine)
    bend = kappa * tl.maximum(cosine, 0.0)
    curvature = tl.where(left, power / tl.maximum(sine * sine, 1e-300) + bend, power + 0.4 * bend)
    root = tl.sqrt(slope * slope + curvature * 56.0)
    reach = 56.0 / tl.maximum(slope + root, 1e-300)
    length = tl.minimum(tl.where(left, phi, 3.141592653589793 - phi), reach)
    total_weight = t * 0.0
    for i in range(NODES):
        y = length * tl.load(node_ptr + i)
        sin_half, cos_half = sin_cos(y * 0.3183098861837907)
        versine = 2.0 * sin_half * sin_half
        sin_y = 2.0 * sin_half * cos_half
        change = side * sine * sin_y - cosine * versine
        ratio = tl.maximum((1.0 - versine) - side * cotangent * sin_y, 1e-300)
        weight = tl.exp(tl.log(ratio) * power + kappa * change)
        total_weight += weight * ((complement - t) + change) * tl.load(weight_ptr + i)
    tl.store(out_ptr + flat, -side * total_weight * length, mask=valid)


def tangent_config(dim: int) -> dict[str, int]:
    """Tile and warps of `place_rows`: 8 numbers a thread, up to 16 warps."""
    columns = max(4, next_power_of_2(dim - 1))
    samples = max(1, 1024 // columns)
    warps = min(16, max(4, columns // 256))
    return {"SAMPLES": samples, "COLUMNS": columns, "num_warps": warps}


def vmf_forward(
    loc: Tensor, concentration: Tensor, samples: int, seed: Tensor, start: int, shared: bool
) -> tuple[Tensor, Tensor]:
    """Samples of vMF(loc[row], concentration[row]): one launch for m of 2 and 3, two above.

    Args:
        loc: [rows, m], 2 <= m <= 8192, used through its direction. float64 takes other random words
            than the narrower dtypes, as the reference does.
        concentration: [rows], >= 0, the dtype of `loc`.
        samples: S.
        seed: int64 [1] on the device of `loc`.
        start: index of the first sample.
        shared: whether all rows share the random numbers of sample s.

    Returns:
        x [S, rows, m] in the dtype of `loc`, and t = 1 - <mu, x>, float64 [S, rows].
    """
    wide = loc.dtype == torch.float64
    loc = check_doubles("loc", loc, dim=2) if wide else check_operand("loc", loc, dim=2)
    rows, dim = loc.shape
    if not 2 <= dim <= MAX_DIM:
        raise ValueError(f"loc must have 2 to {MAX_DIM} columns, got {dim}")
    concentration = check_companion("concentration", concentration, loc, (rows,), loc.dtype)
    seed = check_companion("seed", seed, loc, (1,), torch.int64)
    x = loc.new_empty(samples, rows, dim)
    t = loc.new_empty(samples, rows, dtype=torch.float64)
    total = samples * rows
    if not total:
        return x, t
    span = (start, total, rows)
    blocks = (cdiv(total, BLOCK),)
    common = {"SHARED": shared, "WIDE": wide, **OPTIONS}
    with on_device(loc):
        if dim <= 3:
            sample_small[blocks](
                loc, concentration, seed, x, t, *span, DIM=dim, BLOCK=BLOCK, num_warps=4, **common
            )
        else:
            draw_t[blocks](
                concentration,
                seed,
                t,
                *span,
                dim,
                SHARED=shared,
                BLOCK=BLOCK,
                num_warps=4,
                **OPTIONS,
            )
            config = tangent_config(dim)
            place_rows[(cdiv(total, config["SAMPLES"]),)](
                loc, seed, t, x, *span, dim, **config, **common
            )
    return x, t


@functools.cache
def _quadrature_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """Copied once: during a graph's capture it could not be."""
    with torch.inference_mode(False):
        node, weight = quadrature()
        return node.to(device), weight.to(device)


def vmf_angle(t: Tensor, concentration: Tensor, complement: Tensor, dim: int) -> Tensor:
    """d acos(1 - t) / d kappa at a fixed level of the distribution function, in one launch.

    Args:
        t: float64 [S, rows].
        concentration: float64 [rows].
        complement: float64 [rows], 1 - A_m of the concentration.
        dim: m.

    Returns:
        float64 [S, rows].
    """
    samples, rows = t.shape
    t = check_companion("t", t, concentration, (samples, rows), torch.float64)
    concentration = check_companion("concentration", concentration, t, (rows,), torch.float64)
    complement = check_companion("complement", complement, t, (rows,), torch.float64)
    node, weight = _quadrature_on(t.device)
    out = torch.empty_like(t)
    if t.numel():
        with on_device(t):
            angle_rows[(cdiv(t.numel(), BLOCK),)](
                t,
                concentration,
                complement,
                node,
                weight,
                out,
                t.numel(),
                rows,
                dim,
                NODES=len(node),
                BLOCK=BLOCK,
                num_warps=4,
                **OPTIONS,
            )
    return out
