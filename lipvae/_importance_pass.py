"""One encode and one decode pass over the samples of each input, equation (5).

In the C++ kernels no row reaches another and no sum is split, so images share their calls and the
kernels share the threads. What torch computes on a CPU, it computes for every image alone, in tiles
of a fixed number of samples and by one thread: a matrix product rounds by its shape and by the
number of its threads. Sums over k are then taken for a few images at once, padded to multiples of
any vector, so that all images take the same path. On an accelerator images go through everything in
blocks of a fixed size, the last one padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from lipvae import _packed_decoder, ops
from lipvae._alignment import aligned
from lipvae._packed_model import PackedModel
from lipvae._walk import first_parameter
from lipvae._workers import for_each
from lipvae.models import VAE, HypersphericalVAE
from lipvae.models.posterior import Streams
from lipvae.noise import sobol_normal, standard_normal
from lipvae.refinement import LogLikelihood, refined
from lipvae.scores import Score
from lipvae.statistics import (
    STATISTICS,
    ImportanceAccumulator,
    ImportanceStatistics,
    joined_statistics,
)

# Samples decoded at once. The logits of 128 samples of 784 pixels (0.4 MB) stay in the cache, and
# a matrix product of 128 rows already runs at full speed.
TILE = 128

# Columns of a CPU block, for as many images or fewer: one vector of doubles, so that no sum treats
# the last ones differently.
GROUP = 8

# Images that are encoded at once by a product whose rows do not reach each other, and the samples
# of all images that a thread decodes at once by the C++ kernels.
ENCODED, DECODED = 512, 1024

# Noise that is kept instead of being drawn again for every block of images, in bytes. A GPU would
# wait for it.
NOISE_BUDGET, GPU_NOISE_BUDGET = 4 << 20, 256 << 20


class NoiseTiles:
    """The noise of samples 0 to K - 1, float64 tiles [K', 1, m]; the same for every input.

    Args:
        num_samples: K.
        seed: of the Philox stream, or of the scrambling.
        dim: m.
        kind: "independent" or "sobol".
    """

    def __init__(self, num_samples: int, seed: int, dim: int, kind: str = "independent") -> None:
        self.num_samples, self._seed, self._dim = num_samples, seed, dim
        self._draw = sobol_normal if kind == "sobol" else standard_normal
        self._starts = range(0, num_samples, TILE)
        self._tiles: dict[tuple[torch.device, int], Tensor] = {}

    def on(self, device: torch.device) -> Iterator[Tensor]:
        """Yields the tiles."""
        budget = NOISE_BUDGET if device.type == "cpu" else GPU_NOISE_BUDGET
        kept = self._starts[: budget // (8 * TILE * self._dim)]
        for start in self._starts:
            tile = self._tiles.get((device, start))
            if tile is None:
                count = min(TILE, self.num_samples - start)
                noise = self._draw(self._seed, count, self._dim, start=start)
                tile = noise.unsqueeze(1).to(device)
                if start in kept:
                    self._tiles[device, start] = tile
            yield tile


class StreamTiles:
    """The streams of samples 0 to K - 1 of a von Mises-Fisher posterior, shared by all inputs.

    Args:
        num_samples: K.
        seed: of the streams.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self._seed = (seed + 2**63) % 2**64 - 2**63  # its 64 bits
        self._seeds: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Iterator[Streams]:
        """Yields the tiles."""
        seed = self._seeds.get(device)
        if seed is None:  # which a GPU is waited for
            with torch.inference_mode(False):
                seed = self._seeds[device] = torch.tensor([self._seed], device=device)
        for start in range(0, self.num_samples, TILE):
            yield Streams(seed, min(TILE, self.num_samples - start), start, shared=True)


Noise = NoiseTiles | StreamTiles


def noise_of(model: VAE, num_samples: int, seed: int, kind: str = "independent") -> Noise:
    """The noise of K samples, as the model's posterior takes it; on a sphere there is one kind."""
    if isinstance(model, HypersphericalVAE):
        return StreamTiles(num_samples, seed)
    return NoiseTiles(num_samples, seed, model.latent_dim, kind)


class ImportancePass:
    """Encodes, samples, decodes and reduces.

    Args:
        model: in evaluation mode.
        noise: of the K samples.
        packed: the model's weights.
        refine: steps by which each input's mean moves before the samples are drawn,
            :mod:`lipvae.refinement`.
        steps_noise: of the samples of those steps, on the model's device; None without any.
        decoder_dtype: what the decoder's products take; None for the model's.
    """

    def __init__(
        self,
        model: VAE,
        noise: Noise,
        packed: PackedModel,
        refine: int = 0,
        steps_noise: Tensor | None = None,
        decoder_dtype: torch.dtype | None = None,
    ) -> None:
        self._model = model
        self._noise = noise
        self._packed = packed
        self._refine = refine
        self._steps_noise = steps_noise
        self._head = model.decoder_head()
        self._dtype = first_parameter(model).dtype
        self._decoder_dtype = decoder_dtype
        # A subclass may have a prior or a posterior of its own.
        usual = (model.log_prior, VAE.log_prior), (model._encode, VAE._encode)
        self._normal = all(getattr(method, "__func__", None) is plain for method, plain in usual)

    def run(self, x: Tensor, block: int) -> ImportanceStatistics:
        """The statistics of each image.

        Args:
            x: [B, C, H, W].
            block: images in a block on an accelerator.
        """
        alone = x.device.type == "cpu"
        decoder = self._packed.decoder() if alone and self._decoder_dtype is None else None
        if decoder is not None and self._normal and not self._refine:
            return self._by_kernels(x, decoder)
        size = _block_size(len(x)) if alone else block
        table = x.new_empty(len(STATISTICS), len(x), dtype=torch.float64)
        encoded = self._encode_together(x) if alone else None

        def work(i: int) -> None:
            columns = slice(i * size, (i + 1) * size)
            with torch.inference_mode():
                posterior = None if encoded is None else encoded[columns]
                width = GROUP if alone else size
                statistics = self._block(x[columns], width, alone, posterior, decoder)
                found = torch.stack([getattr(statistics, name) for name in STATISTICS])
                table[:, columns] = found[:, : min(size, len(x) - columns.start)]

        _each(-(-len(x) // size), work, alone)
        rows = dict(zip(STATISTICS, table, strict=True))
        return ImportanceStatistics(**rows, num_samples=self._noise.num_samples)

    def _by_kernels(self, x: Tensor, decoder: _packed_decoder.Packed) -> ImportanceStatistics:
        """The statistics of each image on a CPU, where nothing but the encoder may need torch."""
        posterior, targets = self.encode(x, GROUP), x.flatten(1)
        threads, images = torch.get_num_threads(), DECODED // min(TILE, self._noise.num_samples)
        rounds = -(-len(x) // (images * threads))
        pooled = decoder.POOLED and len(x) > images * (threads - 1)
        # A pool's threads take a block each, as many as the others; kernels take one together.
        images = -(-len(x) // (rounds * threads)) if pooled else images * threads
        blocks = -(-len(x) // images)
        found: list[Any] = [None] * blocks

        def work(i: int) -> None:
            some = slice(i * images, (i + 1) * images)
            accumulator = ImportanceAccumulator()
            with torch.no_grad():  # tensors of inference mode would be no good to the caller
                for noise in self._noise.on(x.device):
                    z, log_ratio = self._samples(posterior[some], noise)
                    accumulator.update(decoder.log_likelihood(z, targets[some]), log_ratio)
            found[i] = accumulator.statistics()

        _each(blocks, work, pooled)
        return joined_statistics(found)

    def encode(self, x: Tensor, block: int) -> Any:
        """q(z | x) of each image, with parameters in double; arguments as of :meth:`run`."""
        alone = x.device.type == "cpu"
        if alone and (together := self._encode_together(x)) is not None:
            return _joined([together], len(x))
        size = _block_size(len(x)) if alone else block
        blocks = -(-len(x) // size)
        found: list[Any] = [None] * blocks

        def work(i: int) -> None:
            with torch.no_grad():
                parts = _parts(x[i * size : (i + 1) * size], size, alone)
                found[i] = _joined([self._model._encode(part) for part in parts], size)

        _each(blocks, work, alone)
        return _joined(found, len(x))[: len(x)]

    def _encode_together(self, x: Tensor) -> Any:
        """q(z | x) by products that the images share; None where they must not."""
        encoder = self._packed.encoder()
        if encoder is None:
            return None
        with torch.no_grad():
            found = [encoder.posterior(part) for part in x.flatten(1).split(ENCODED)]
        return _concatenated(found)

    def _posteriors(
        self, parts: list[Tensor], encoded: Any, decoder: _packed_decoder.Packed | None
    ) -> list[Any]:
        """q(z | x) of each part, refined; `encoded` is that of all of them, if there is one."""
        if encoded is None:
            found = [self._model._encode(part) for part in parts]
        elif self._steps_noise is not None:
            found = [encoded[i] for i in range(len(parts))]
        else:
            return [encoded]
        if self._steps_noise is None:
            return found
        search: LogLikelihood | None = None
        if decoder is not None:
            search = decoder.log_likelihood
        elif not parts[0].is_cpu and self._decoder_dtype is None:  # the fused head
            search = self._log_likelihood
        return [
            refined(self._model, q, part.flatten(1), self._steps_noise, self._refine, search)
            for q, part in zip(found, parts, strict=True)
        ]

    def _block(
        self,
        x: Tensor,
        size: int,
        alone: bool,
        encoded: Any = None,
        decoder: _packed_decoder.Packed | None = None,
    ) -> ImportanceStatistics:
        """The statistics of at least `size` images: the last one repeats where `x` has fewer."""
        parts = _parts(x, size, alone)
        # In double from here on: rounding of z would enter the densities, not the samples.
        posterior = _joined(self._posteriors(parts, encoded, decoder), size)
        targets = [part.flatten(1) for part in parts]
        together = _cat(targets)
        accumulator = ImportanceAccumulator()
        for noise in self._noise.on(x.device):
            z, log_ratio = self._samples(posterior, noise)
            if decoder is not None:
                found = [decoder.log_likelihood(z[:, : len(x)], together)]
            else:
                columns = z.split(1, 1) if alone else [z]
                pairs = zip(columns, targets, strict=False)
                found = [self._log_likelihood(z_i, target) for z_i, target in pairs]
            accumulator.update(_padded(_cat(found, 1), size, 1), log_ratio)
        return accumulator.statistics()

    def _samples(self, posterior: Any, noise: Any) -> tuple[Tensor, Tensor]:
        """z_k [K', B, m] and log p(z_k) - log q(z_k | x), float64 [K', B]."""
        if self._normal:
            return ops.normal_samples(
                posterior.loc, posterior.log_variance, noise.squeeze(1), self._dtype
            )
        z = posterior.rsample(noise)
        return z.to(self._dtype), self._model.log_prior(z) - posterior.log_prob(z)

    def _log_likelihood(self, z: Tensor, target: Tensor) -> Tensor:
        """log p(x | z_k), [K', B]."""
        if self._decoder_dtype is not None:
            return self._low_log_likelihood(z, target, self._decoder_dtype)
        model, head = self._model, self._head
        if head is None:
            return ops.importance(model.decode(z), target, model.likelihood.name)
        hidden = model.decode_hidden(z)
        return ops.importance_linear(hidden, head.weight, head.bias, target, model.likelihood.name)

    def _low_log_likelihood(self, z: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
        """The same with the decoder's weights and activations rounded to `dtype`."""
        model, head, family = self._model, self._head, self._model.likelihood.name
        with torch.autocast(z.device.type, dtype):
            # The fused kernel adds up and reduces in float32. A CPU's products round their output.
            if z.is_cuda and head is not None:
                hidden = model.decode_hidden(z).to(dtype)
                weight = head.weight.to(dtype)
                bias = None if head.bias is None else head.bias.to(dtype)
                return ops.importance_linear(hidden, weight, bias, target, family)
            parameters = model.decode(z)
        return ops.importance(parameters.to(self._dtype), target, family)


def _block_size(images: int) -> int:
    """Images of a CPU block: fewer than a group where some threads would have none."""
    return min(GROUP, -(-images // torch.get_num_threads()))


def _parts(x: Tensor, size: int, alone: bool) -> list[Tensor]:
    """What goes through the model at once: one image, or all of a padded block."""
    # Copies: rows of a batch differ in their alignment, these don't.
    return [x[i : i + 1].clone() for i in range(len(x))] if alone else [aligned(_padded(x, size))]


def _each(count: int, work: Callable[[int], None], pooled: bool) -> None:
    """Calls ``work(0)`` to ``work(count - 1)``, by a pool of threads or one after the other."""
    if pooled:
        for_each(count, work)
    else:
        for i in range(count):
            work(i)


def _padded(x: Tensor, size: int, dim: int = 0) -> Tensor:
    """`x` with its last slice repeated up to `size`."""
    short = size - x.shape[dim]
    if short <= 0:
        return x
    return torch.cat([x, *[x.narrow(dim, -1, 1)] * short], dim)


def by_columns(statistic: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    """A statistic of each column of a table, [S, B] -> [B], that no other column can reach.

    A vectorised exponential rounds a vector's lanes one way and a remainder another, so the columns
    go through in blocks of the same shape.
    """
    if not table.is_cpu:  # a GPU gives each column a thread of its own
        return statistic(table)
    blocks = [_padded(part, GROUP, 1).contiguous() for part in table.split(GROUP, 1)]
    return torch.cat([statistic(block) for block in blocks])[: table.shape[1]]


def score_of_draws(score: Score, draws: Sequence[ImportanceStatistics]) -> Tensor:
    """A score of source "draws", [B], of what each model says."""
    return by_columns(score.statistic, torch.stack([getattr(draw, score.of) for draw in draws]))


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """torch.cat, which copies a single tensor too."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _concatenated(posteriors: list[Any]) -> Any:
    """The posteriors of all rows in one."""
    if len(posteriors) == 1:
        return posteriors[0]
    names = [field.name for field in fields(posteriors[0])]
    found = {name: torch.cat([getattr(p, name) for p in posteriors]) for name in names}
    return replace(posteriors[0], **found)


def _joined(posteriors: list[Any], size: int) -> Any:
    """The posteriors of all rows in one, with parameters in double, padded to `size` rows."""
    joined = _concatenated(posteriors)
    padded = {
        field.name: _padded(getattr(joined, field.name), size).double() for field in fields(joined)
    }
    return replace(joined, **padded)
