"""What scores need to know of the training images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lipvae._decoder_dtype import DECODER_DTYPES
from lipvae.models import VAE, NormalPosterior, VonMisesFisherPosterior
from lipvae.persistence import StrPath, read_archive, select, write_archive

POSTERIORS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (NormalPosterior, VonMisesFisherPosterior)
}


def fingerprint(model: VAE) -> str:
    """A digest of a model's weights, by which a calibration knows its model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Calibration:
    """Training images as a model sees them; :meth:`lipvae.Scorer.calibrate` makes one.

    Attributes:
        entropy: the mean over the images of -log p(x), in nats.
        images: [R, C, H, W], the images, in the model's dtype.
        posterior: q(z | x_r) of each, with parameters in double.
        num_samples: K of `entropy`.
        model: digest of the model's weights.
        refine: steps of the posteriors that `entropy` comes from, see :class:`lipvae.Scorer`.
        noise: of the samples, likewise.
        decoder_dtype: of the decoder's products there.
    """

    entropy: float
    images: Tensor
    posterior: Any
    num_samples: int
    model: str
    refine: int = 0
    noise: str = "independent"
    decoder_dtype: torch.dtype | None = None

    def to(self, device: torch.device | str) -> Calibration:
        """The same on a device; itself if it is there."""
        if self.images.device == torch.device(device):
            return self
        parts = {f.name: getattr(self.posterior, f.name).to(device) for f in fields(self.posterior)}
        posterior = replace(self.posterior, **parts)
        return replace(self, images=self.images.to(device), posterior=posterior)

    def save(self, path: StrPath) -> None:
        """Writes the calibration to one file, beside the model's for instance.

        Example:
            >>> import lipvae, tempfile
            >>> model = lipvae.VAE((1, 8, 8), 2, architecture="fc", hidden=(16,))
            >>> scorer = lipvae.Scorer(model, ["typicality"], num_samples=8)
            >>> calibration = scorer.calibrate(torch.rand(20, 1, 8, 8)).calibration
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     calibration.save(f"{folder}/calibration")
            ...     loaded = Calibration.load(f"{folder}/calibration")
            >>> loaded.entropy == calibration.entropy
            True
        """
        kind = type(self.posterior).__name__
        parts = {f.name: getattr(self.posterior, f.name) for f in fields(self.posterior)}
        tensors = {"images": self.images.contiguous()}
        tensors |= {f"posterior.{name}": value.contiguous() for name, value in parts.items()}
        content = {
            "entropy": self.entropy,
            "num_samples": self.num_samples,
            "model": self.model,
            "refine": self.refine,
            "noise": self.noise,
            "decoder_dtype": None if self.decoder_dtype is None else str(self.decoder_dtype),
            "posterior": kind,
        }
        write_archive(path, "calibration", tensors, content)

    @classmethod
    def load(cls, path: StrPath, device: torch.device | str = "cpu") -> Calibration:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, or no calibration.
        """
        kind, tensors, content = read_archive(path, device)
        if kind != "calibration":
            raise ValueError(f"path must hold a calibration, got {str(path)!r}, a {kind}")
        try:
            dtype = content["decoder_dtype"]
            posterior = POSTERIORS[content["posterior"]](**select(tensors, "posterior."))
            return cls(
                entropy=float(content["entropy"]),
                images=tensors["images"],
                posterior=posterior,
                num_samples=int(content["num_samples"]),
                model=str(content["model"]),
                refine=int(content["refine"]),
                noise=str(content["noise"]),
                decoder_dtype=None
                if dtype is None
                else DECODER_DTYPES[dtype.removeprefix("torch.")],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} holds a damaged calibration: {error!r}") from error
