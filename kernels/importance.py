"""log p(x | z_k) of decoded samples, the reduction of equation (5): one pass over the parameters.

A program holds rows that follow one another image by image, so that the samples of an image find it
in the cache. Sums are float32 in as many lanes as a tile has columns, then pairwise, with an error
like that of one rounded float64 sum. The tile depends on D alone: a row's bits depend neither on K
nor on B.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import (
    OPTIONS,
    cdiv,
    check_companion,
    next_power_of_2,
    on_device,
    result,
)
from lipvae.kernels._densities import check_likelihood, log_density, log_density_slope

# Pixels of one tile of the categorical kernels, which hold all 256 logits of each.
_CATEGORICAL_PIXELS = 32


@triton.jit
def _rows(samples, batch, ROWS: tl.constexpr):
    """The rows [K, B] and the images of a program, all samples of an image one after the other."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image = index // samples
    row = (index % samples).to(tl.int64) * batch + image
    return row, image.to(tl.int64), index < samples * batch


@triton.jit
def log_likelihood(
    parameters_ptr,
    target_ptr,
    out_ptr,
    samples,
    batch,
    pixels,
    FAMILY: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """out [samples, batch]."""
    row, image, valid = _rows(samples, batch, ROWS)
    base = parameters_ptr + (row * pixels * COUNT)[:, None]
    target = target_ptr + (image * pixels)[:, None]
    acc = tl.zeros([ROWS, PIXELS], tl.float32)
    for start in range(0, pixels, PIXELS):
        pixel = (start + tl.arange(0, PIXELS))[None, :]
        inside = valid[:, None] & (pixel < pixels)
        x = tl.load(target + pixel, mask=inside, other=0.0).to(tl.float32)
        first = tl.load(base + pixel, mask=inside, other=0.0).to(tl.float32)
        second = first
        if COUNT == 2:
            second = tl.load(base + pixels + pixel, mask=inside, other=0.0).to(tl.float32)
        acc += tl.where(inside, log_density(x, first, second, FAMILY), 0.0)
    tl.store(out_ptr + row, tl.sum(acc, 1), mask=valid)


@triton.jit
def log_likelihood_backward(
    grad_ptr,
    parameters_ptr,
    target_ptr,
    grad_parameters_ptr,
    samples,
    batch,
    pixels,
    FAMILY: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Gradient with respect to the parameters, one read and one write of each."""
    row, image, valid = _rows(samples, batch, ROWS)
    offset = (row * pixels * COUNT)[:, None]
    target = target_ptr + (image * pixels)[:, None]
    grad = tl.load(grad_ptr + row, mask=valid, other=0.0)[:, None]
    for start in range(0, pixels, PIXELS):
        pixel = (start + tl.arange(0, PIXELS))[None, :]
        inside = valid[:, None] & (pixel < pixels)
        x = tl.load(target + pixel, mask=inside, other=0.0).to(tl.float32)
        at = offset + pixel
        first = tl.load(parameters_ptr + at, mask=inside, other=0.0).to(tl.float32)
        second = first
        if COUNT == 2:
            second = tl.load(parameters_ptr + at + pixels, mask=inside, other=0.0).to(tl.float32)
        slope, other = log_density_slope(x, first, second, FAMILY)
        tl.store(grad_parameters_ptr + at, grad * slope, mask=inside)
        if COUNT == 2:
            tl.store(grad_parameters_ptr + at + pixels, grad * other, mask=inside)


@triton.jit
def grey_level(x):
    """The class of a pixel in [0, 1]: 255 x rounded."""
    return tl.floor(x.to(tl.float32) * 255.0 + 0.5).to(tl.int32)


@triton.jit
def log_likelihood_categorical(
    parameters_ptr, target_ptr, out_ptr, batch, pixels, PIXELS: tl.constexpr
):
    """out of one sample of one image: log softmax at the grey level, 256 logits a pixel at once."""
    row = tl.program_id(0).to(tl.int64)
    level = tl.arange(0, 256)
    acc = tl.zeros([PIXELS], tl.float32)
    for start in range(0, pixels, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = pixel < pixels
        x = tl.load(target_ptr + row % batch * pixels + pixel, mask=inside, other=0.0)
        at = row * pixels * 256 + level[:, None] * tl.cast(pixels, tl.int64) + pixel[None, :]
        logit = tl.load(parameters_ptr + at, mask=inside[None, :], other=0.0).to(tl.float32)
        logit -= tl.max(logit, 0)[None, :]
        chosen = tl.sum(tl.where(level[:, None] == grey_level(x)[None, :], logit, 0.0), 0)
        acc += tl.where(inside, chosen - tl.log(tl.sum(tl.exp(logit), 0)), 0.0)
    tl.store(out_ptr + row, tl.sum(acc, 0))


@triton.jit
def log_likelihood_categorical_backward(
    grad_ptr,
    parameters_ptr,
    target_ptr,
    grad_parameters_ptr,
    batch,
    pixels,
    PIXELS: tl.constexpr,
):
    """Gradient of one sample of one image: one-hot less softmax."""
    row = tl.program_id(0).to(tl.int64)
    level = tl.arange(0, 256)
    grad = tl.load(grad_ptr + row)
    for start in range(0, pixels, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = pixel < pixels
        x = tl.load(target_ptr + row % batch * pixels + pixel, mask=inside, other=0.0)
        at = row * pixels * 256 + level[:, None] * tl.cast(pixels, tl.int64) + pixel[None, :]
        logit = tl.load(parameters_ptr + at, mask=inside[None, :], other=0.0).to(tl.float32)
        weight = tl.exp(logit - tl.max(logit, 0)[None, :])
        softmax = weight / tl.sum(weight, 0)[None, :]
        hot = tl.where(level[:, None] == grey_level(x)[None, :], 1.0, 0.0)
        tl.store(grad_parameters_ptr + at, grad * (hot - softmax), mask=inside[None, :])


def tile_config(pixels: int) -> dict[str, int]:
    """A tile of 1024 elements: up to 64 pixels, the rest rows.

    Wider tiles have more columns beyond the image, and fewer rows over which to spread what a
    program does once (docs/performance.md).
    """
    width = min(64, max(16, next_power_of_2(pixels)))
    return {"ROWS": 1024 // width, "PIXELS": width, "num_warps": 2}


def categorical_config() -> dict[str, int]:
    """All 256 logits of some neighbouring pixels, 32 elements a thread."""
    return {"PIXELS": _CATEGORICAL_PIXELS, "num_warps": 8}


def _launch(kernels: tuple[Any, Any], tensors: tuple[Tensor, ...], sizes: Any, family: str) -> None:
    """Runs the elementwise or the categorical kernel of a pair."""
    k, b, d = sizes
    elementwise, categorical = kernels
    with on_device(tensors[0]):
        if family == "categorical256":
            categorical[(k * b,)](*tensors, b, d, **categorical_config(), **OPTIONS)
        else:
            tile = tile_config(d)
            grid = (cdiv(k * b, tile["ROWS"]),)
            count = 2 if family in ("gaussian", "discretized_logistic") else 1
            elementwise[grid](*tensors, k, b, d, FAMILY=family, COUNT=count, **tile, **OPTIONS)


def importance_forward(parameters: Tensor, target: Tensor, family: str = "bernoulli") -> Tensor:
    """log p(x | z_k) summed over the D dimensions, equation (5), in one launch.

    Args:
        parameters: [K, B, P * D], float32, float16 or bfloat16; the D values of one parameter are
            neighbours.
        target: [B, D] in [0, 1], any of the dtypes.
        family: "bernoulli", "continuous_bernoulli" (P = 1, logits), "gaussian",
            "discretized_logistic" (P = 2, mean and log scale) or "categorical256".

    Returns:
        float32 [K, B].
    """
    parameters, target, k, b, d = check_likelihood(parameters, target, family)
    out = result(parameters, (k, b), torch.float32, written=parameters.numel() > 0)
    if parameters.numel():
        kernels = (log_likelihood, log_likelihood_categorical)
        _launch(kernels, (parameters, target, out), (k, b, d), family)
    return out


def importance_backward(
    grad: Tensor, parameters: Tensor, target: Tensor, family: str = "bernoulli"
) -> Tensor:
    """Gradient of :func:`importance_forward` with respect to the parameters, in one launch.

    Args:
        grad: float32 [K, B].
        parameters: [K, B, P * D] of the forward pass.
        target: [B, D] of the forward pass.
        family: as in the forward pass.

    Returns:
        The shape and dtype of `parameters`.
    """
    parameters, target, k, b, d = check_likelihood(parameters, target, family)
    grad = check_companion("grad", grad, parameters, (k, b), torch.float32)
    grad_parameters = torch.empty_like(parameters)
    if parameters.numel():
        kernels = (log_likelihood_backward, log_likelihood_categorical_backward)
        _launch(kernels, (grad, parameters, target, grad_parameters), (k, b, d), family)
    return grad_parameters
