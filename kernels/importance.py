"""log p(x | z_k) of decoded samples, the reduction of equation (5): one pass over the parameters.

A program holds samples k of one image, so that the image is read once for all of them. Sums are
float32 in as many lanes as a tile has columns, then pairwise, with an error like that of one
rounded float64 sum. The tile depends on D alone: a row's bits depend neither on K nor on B.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lipvae.kernels._common import OPTIONS, check_companion, on_device, result
from lipvae.kernels._densities import check_likelihood, log_density, log_density_slope

# Pixels of one tile of the categorical kernels, which hold all 256 logits of each.
_CATEGORICAL_PIXELS = 32


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
    SAMPLES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """out [samples, batch] of `SAMPLES` samples of one image."""
    tiles = tl.cdiv(samples, SAMPLES)
    image = tl.program_id(0) // tiles
    sample = tl.program_id(0) % tiles * SAMPLES + tl.arange(0, SAMPLES)
    row = sample.to(tl.int64) * batch + image
    base = parameters_ptr + (row * pixels * COUNT)[:, None]
    acc = tl.zeros([SAMPLES, PIXELS], tl.float32)
    for start in range(0, pixels, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = (sample < samples)[:, None] & (pixel < pixels)[None, :]
        image_row = target_ptr + tl.cast(image, tl.int64) * pixels
        x = tl.load(image_row + pixel, mask=pixel < pixels, other=0.0).to(tl.float32)[None, :]
        first = tl.load(base + pixel[None, :], mask=inside, other=0.0).to(tl.float32)
        second = first
        if COUNT == 2:
            second = tl.load(base + pixels + pixel[None, :], mask=inside, other=0.0).to(tl.float32)
        acc += tl.where(inside, log_density(x, first, second, FAMILY), 0.0)
    tl.store(out_ptr + row, tl.sum(acc, 1), mask=sample < samples)


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
    SAMPLES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Gradient with respect to the parameters, one read and one write of each."""
    tiles = tl.cdiv(samples, SAMPLES)
    image = tl.program_id(0) // tiles
    sample = tl.program_id(0) % tiles * SAMPLES + tl.arange(0, SAMPLES)
    row = sample.to(tl.int64) * batch + image
    offset = (row * pixels * COUNT)[:, None]
    grad = tl.load(grad_ptr + row, mask=sample < samples, other=0.0)[:, None]
    for start in range(0, pixels, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        inside = (sample < samples)[:, None] & (pixel < pixels)[None, :]
        image_row = target_ptr + tl.cast(image, tl.int64) * pixels
        x = tl.load(image_row + pixel, mask=pixel < pixels, other=0.0).to(tl.float32)[None, :]
        at = offset + pixel[None, :]
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
    """Tile of 2048 elements: up to 1024 pixels, the rest samples."""
    width = min(1024, max(16, triton.next_power_of_2(pixels)))
    return {"SAMPLES": 2048 // width if width >= 256 else 8, "PIXELS": width, "num_warps": 4}


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
            grid = (b * triton.cdiv(k, tile["SAMPLES"]),)
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
