"""The VAE with a distribution over its decoder's weights: Bayes by Backprop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lipvae import noise
from lipvae._validate import check_count, check_positive
from lipvae.models import networks
from lipvae.models.ensemble import Ensemble
from lipvae.models.vae import VAE
from lipvae.nn.bayesian import BayesianConvTranspose2d, BayesianLayer, BayesianLinear
from lipvae.ops._common import transforming


class BayesianVAE(VAE):
    r"""A VAE whose decoder has normal weights :math:`\theta \sim q(\theta)`, learnt with the rest.

    Every weight and bias of the decoder is :math:`\mathcal N(\mu, \sigma^2)` under q, and
    :math:`\mathcal N(0, s^2)` under the prior. :func:`lipvae.fit` minimises, for each of N images,

    .. math:: -\mathrm{ELBO}(x; \theta) + \mathrm{KL}(q(\theta) \,\|\, p(\theta)) / N, \qquad
        \theta \sim q(\theta),

    with both divergences annealed over its `warmup`. In evaluation mode the decoder has the
    weights' means. :meth:`ensemble` draws the models :math:`\theta_s` of equation (7).

    Args:
        input_shape: (C, H, W) of the images.
        latent_dim: m, dimensions of z.
        architecture: "conv" (H and W at least 8) or "fc" (any shape).
        hidden: as in :class:`VAE`.
        likelihood: the family of p(x | z), see :mod:`lipvae.likelihoods`.
        prior_scale: s, standard deviation of the prior.
        initial_scale: standard deviation of every weight before training.
        reparameterization: "global", one draw of the weights a step, or "local", one draw of
            each layer's outputs (see :class:`lipvae.nn.bayesian.BayesianLayer`).

    Raises:
        TypeError, ValueError: for arguments that do not fit together.

    Source: Blundell et al. 2015; Glazunov & Zarras 2022, "Do Bayesian Variational Autoencoders
    Know What They Don't Know?".

    Example:
        >>> import torch
        >>> model = BayesianVAE((1, 8, 8), latent_dim=2, architecture="fc", hidden=(32,))
        >>> members = model.eval().ensemble(3, seed=0).members
        >>> len(members), type(members[0]).__name__
        (3, 'VAE')
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 10,
        architecture: str = "conv",
        hidden: Sequence[int] | None = None,
        likelihood: str = "bernoulli",
        prior_scale: float = 1.0,
        initial_scale: float = 0.01,
        reparameterization: str = "global",
    ) -> None:
        self.prior_scale = check_positive("prior_scale", prior_scale)
        self.initial_scale = check_positive("initial_scale", initial_scale)
        self.reparameterization = reparameterization
        super().__init__(input_shape, latent_dim, architecture, hidden, likelihood)
        self._plain_config = dict(self.config)
        self.config |= {
            "prior_scale": self.prior_scale,
            "initial_scale": self.initial_scale,
            "reparameterization": reparameterization,
        }

    def _make_decoder(self) -> nn.Sequential:
        options: dict[str, Any] = {
            "reparameterization": self.reparameterization,
            "initial_scale": self.initial_scale,
        }
        return networks.decoder(
            self.architecture,
            self.input_shape,
            self.hidden,
            self.latent_dim,
            self.likelihood.parameters_per_dim,
            partial(BayesianLinear, **options),
            partial(BayesianConvTranspose2d, **options),
        )

    def _layers(self) -> list[tuple[str, BayesianLayer]]:
        found = self.decoder.named_modules()
        return [(name, layer) for name, layer in found if isinstance(layer, BayesianLayer)]

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draws the weights for the next training step.

        Args:
            generator: source of the draws; the global one of torch by default.
        """
        for _, layer in self._layers():
            layer.redraw(generator)

    def weight_kl(self) -> Tensor:
        """KL(q(theta) || p(theta)) over all weights, analytic: a scalar, float64, in nats."""
        terms = [layer.kl(self.prior_scale) for _, layer in self._layers()]
        return torch.stack(terms).sum()

    def elbo(
        self, x: Tensor, num_samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """As in :class:`VAE`; in training mode under a new draw of the weights."""
        if self.training:
            self.redraw(generator)
        try:
            return super().elbo(x, num_samples, generator)
        finally:
            if transforming():  # whose tensors end with it
                for _, layer in self._layers():
                    layer.forget()

    @torch.no_grad()
    def draw(self, index: int, seed: int = 0) -> VAE:
        """The VAE with the weights theta_s, s = index.

        Args:
            index: s >= 0.
            seed: in [0, 2^64). The weights depend on (seed, index) and q alone.

        Returns:
            A new model in evaluation mode, on the same device; its encoder is a copy.
        """
        check_count("index", index, 0)
        state = {k: v for k, v in self.state_dict().items() if not k.endswith("_rho")}
        # Streams of the decoder's tensors; stream 0 is the scores' noise for z.
        stream = 1
        for name, layer in self._layers():
            for kind, mean, scale in layer.distributions():
                eps = noise.standard_normal(seed, 1, mean.numel(), start=index, stream=stream)
                eps = eps.reshape(mean.shape).to(mean)
                state[f"decoder.{name}.{kind}"] = mean + scale * eps
                stream += 1
        with torch.device("meta"):
            member = VAE(**self._plain_config)
        like = next(self.parameters())
        member = member.to(like.dtype).to_empty(device=like.device)
        member.load_state_dict(state)
        return member.eval()

    def ensemble(self, num_draws: int, seed: int = 0) -> Ensemble:
        """The models theta_s, s = 0..num_draws - 1, of :meth:`draw`.

        Args:
            num_draws: S >= 1.
            seed: in [0, 2^64).
        """
        return Ensemble([self.draw(s, seed) for s in range(check_count("num_draws", num_draws))])
