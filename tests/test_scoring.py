"""The Scorer: what a score depends on, what it agrees with, and what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lipvae
import lipvae.distributions
from lipvae import _importance_pass, _workers, reference
from lipvae._evaluation import evaluating
from lipvae._importance_pass import ImportancePass, noise_of
from lipvae._packed_model import PackedModel
from lipvae._workers import for_each
from lipvae.calibration import Calibration
from lipvae.models import VAE, HypersphericalVAE, LipschitzVAE
from lipvae.noise import sobol_normal, standard_normal
from lipvae.scores import SCORES
from lipvae.scoring import Scorer

OF_STATISTICS = {name: score for name, score in SCORES.items() if score.source == "statistics"}

SHAPE = (1, 8, 8)
MODELS = {
    "fc": lambda: VAE(SHAPE, 3, "fc", (32, 32)),
    "fc-lipschitz": lambda: LipschitzVAE(SHAPE, 3, "fc", (32, 32)),
    "conv": lambda: VAE((3, 8, 8), 3, "conv", (8, 16)),
    "conv-lipschitz": lambda: LipschitzVAE(SHAPE, 3, "conv", (8, 16)),
    "gaussian": lambda: VAE(SHAPE, 3, "fc", (32,), "gaussian"),
    "categorical256": lambda: VAE((1, 3, 3), 3, "fc", (16,), "categorical256"),
    "sphere": lambda: HypersphericalVAE(SHAPE, 3, "fc", (32, 32)),
    "conv-sphere": lambda: HypersphericalVAE(SHAPE, 12, "conv", (8, 16)),
    "wide": lambda: VAE((1, 28, 28), 10, "fc", (300, 200)),
}


def make(name: str = "fc") -> VAE:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():  # spread the samples, as training does
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
    return model.eval()


def images(model: VAE, n: int, seed: int = 1) -> Tensor:
    levels = torch.rand(n, *model.input_shape, generator=torch.Generator().manual_seed(seed))
    return (levels * 255).round() / 255


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def eager(model: VAE, x: Tensor, num_samples: int, seed: int) -> dict[str, Tensor]:
    """The statistics by a plain pipeline that holds [K, B, D] in memory."""
    if isinstance(model, HypersphericalVAE):
        return eager_on_the_sphere(model, x, num_samples, seed)
    with torch.no_grad():
        posterior = model.encode(x)
        noise = standard_normal(seed, num_samples, model.latent_dim).unsqueeze(1).to(x.dtype)
        z = posterior.loc + posterior.scale * noise
        ll = reference.importance(model.decode(z), x.flatten(1), model.likelihood.name)
        normal = torch.distributions.Normal
        prior = normal(0.0, 1.0).log_prob(z).sum(-1)
        log_posterior = normal(posterior.loc, posterior.scale).log_prob(z).sum(-1)
    return reference.importance_statistics(ll, prior, log_posterior)


def eager_on_the_sphere(
    model: HypersphericalVAE, x: Tensor, num_samples: int, seed: int
) -> dict[str, Tensor]:
    with torch.no_grad():
        posterior = model.encode(x)
        q = lipvae.distributions.VonMisesFisher(posterior.loc, posterior.concentration)
        z, _ = reference.sample_vmf(
            q.loc, q.concentration, num_samples, torch.tensor([seed]), shared=True
        )
        ll = reference.importance(model.decode(z), x.flatten(1), model.likelihood.name)
        prior = lipvae.distributions.HypersphericalUniform(model.latent_dim).log_prob(z)
        log_posterior = q.log_prob(z)
    return reference.importance_statistics(ll, prior, log_posterior)


ORIENTED = {
    "hole_indicator": ("hole_indicator", 1),
    "stds_of_lls": ("stds_of_lls", 1),
    "is_log_likelihood": ("is_log_likelihood", -1),
    "elbo": ("elbo", -1),
    "log_likelihood": ("log_likelihood_mean", -1),
    "kl": ("kl", 1),
    "ess": ("ess", -1),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_samples", [2, 100, 300])
def test_agrees_with_the_eager_pipeline_in_double(name: str, num_samples: int) -> None:
    model = make(name).double()
    x = images(model, 11).double()
    truth = eager(model, x, num_samples, seed=3)
    scores = Scorer(model, num_samples=num_samples, seed=3)(x)
    assert set(scores) == set(OF_STATISTICS) == set(ORIENTED)
    for score, (statistic, sign) in ORIENTED.items():
        assert scores[score].dtype == torch.float64
        assert torch.allclose(scores[score], sign * truth[statistic], rtol=1e-9, atol=1e-9), score


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_close_to_double(name: str) -> None:
    model = make(name)
    x = images(model, 11)
    truth = eager(copy.deepcopy(model).double(), x.double(), 200, seed=0)
    scores = Scorer(model, num_samples=200)(x)
    scale = truth["log_likelihood_mean"].abs() + 3 * truth["hole_indicator"]
    for score in ("hole_indicator", "stds_of_lls", "is_log_likelihood", "elbo", "log_likelihood"):
        statistic, sign = ORIENTED[score]
        error = (scores[score] - sign * truth[statistic]).abs() / scale
        assert error.max() < 4e-6, score


@pytest.mark.parametrize("name", MODELS)
def test_no_batch_order_or_neighbour_reaches_a_score(name: str, threads: int) -> None:
    model = make(name)
    scorer = Scorer(model, num_samples=150)
    x = images(model, 21)
    whole = scorer(x)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(2))
    assert same(scorer(x[order]), {k: v[order] for k, v in whole.items()})
    for size in (1, 3, 8):
        parts = [scorer(part) for part in x.split(size)]
        assert same({k: torch.cat([p[k] for p in parts]) for k in whole}, whole), size
    for start in (1, 4, 13):
        assert same(scorer(x[start:]), {k: v[start:] for k, v in whole.items()}), start
    others = torch.cat([x[4:5], torch.zeros_like(x[:6]), torch.ones_like(x[:6])])
    assert same(
        {k: v[:1] for k, v in scorer(others).items()}, {k: v[4:5] for k, v in whole.items()}
    )
    strided = torch.empty(*x.shape, 2)[..., 0].copy_(x)
    assert same(scorer(strided), whole)


@pytest.mark.parametrize("name", MODELS)
def test_threads_do_not_reach_a_score(name: str) -> None:
    model = make(name)
    x = images(model, 30)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            found.append(Scorer(model, num_samples=130)(x))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert all(same(scores, found[0]) for scores in found[1:])


@pytest.mark.slow
def test_processes_with_other_thread_counts_agree() -> None:
    script = textwrap.dedent("""
        import hashlib, torch, lipvae
        torch.manual_seed(0)
        model = lipvae.VAE((1, 28, 28), 10, "fc").eval()
        x = torch.rand(40, 1, 28, 28)
        scores = lipvae.Scorer(model)(x)
        flat = torch.stack(list(scores.values())).numpy().tobytes()
        print(hashlib.sha256(flat).hexdigest())
    """)
    found = {
        subprocess.run(
            [sys.executable, "-c", f"import torch; torch.set_num_threads({count})\n{script}"],
            capture_output=True, text=True, check=True,
        ).stdout
        for count in (1, 2, 6)
    }  # fmt: skip
    assert len(found) == 1


def test_scores_work_in_a_forked_child() -> None:
    script = textwrap.dedent("""
        import os, sys, torch, lipvae
        torch.set_num_threads(2)
        model = lipvae.VAE((1, 8, 8), 2, "fc", (16,)).eval()
        x = torch.rand(9, 1, 8, 8)
        scorer = lipvae.Scorer(model, num_samples=4)
        here = scorer(x)["elbo"]  # starts the threads, which a child does not inherit
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(scorer(x)["elbo"], here) else 1)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("tile", [1, 16, 64, 1000])
def test_the_tile_is_only_rounding(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    model = make().double()
    x = images(model, 5).double()
    expected = Scorer(model, num_samples=150)(x)
    monkeypatch.setattr(_importance_pass, "TILE", tile)
    scores = Scorer(model, num_samples=150)(x)
    for name, score in scores.items():
        assert torch.allclose(score, expected[name], rtol=1e-10, atol=1e-10), name


def test_noise_beyond_the_budget_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    x = images(model, 9)
    expected = Scorer(model, num_samples=300)(x)
    monkeypatch.setattr(_importance_pass, "NOISE_BUDGET", 8 * 128 * 3)
    scorer = Scorer(model, num_samples=300)
    assert same(scorer(x), expected)
    assert len(scorer._noise[model.posterior_family, model.latent_dim]._tiles) == 1


@pytest.mark.parametrize("name", ["fc", "conv-lipschitz", "conv-sphere"])
def test_blocks_of_an_accelerator(name: str) -> None:
    # The path of an accelerator, on the CPU: padded blocks.
    model = make(name)
    x = images(model, 5)
    samples = ImportancePass(model, noise_of(model, 150, 0), PackedModel(model))
    with torch.inference_mode():
        whole = samples._block(x, 8, alone=False)
        alone = samples._block(x, 8, alone=True)
    for score in OF_STATISTICS.values():
        ours, expected = score.statistic(whole)[:5], score.statistic(alone)[:5]
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4), score.name
    with torch.inference_mode():
        # The padding repeats the last image; a BLAS may round its rows differently.
        assert torch.allclose(whole.elbo[4:], whole.elbo[4:5].expand(4), rtol=1e-6)
        moved = samples._block(x.flip(0), 8, alone=False)
    assert torch.allclose(moved.elbo[:5].flip(0), whole.elbo[:5], rtol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("name", ["fc", "conv"])
def test_memory_does_not_grow_with_the_samples(name: str) -> None:
    model = make(name)
    x = images(model, 3)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the mode sees its own thread
    try:
        found = []
        for num_samples in (256, 4096):
            scorer = Scorer(model, num_samples=num_samples)
            with LargestTensor() as largest:
                scorer(x)
            found.append(largest.bytes)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert found[1] <= 4 * _importance_pass.TILE * 8 * 3 * 64  # never [K, B, D]


def test_seed_and_samples_matter() -> None:
    model = make()
    x = images(model, 4)
    base = Scorer(model, num_samples=16)(x)
    for other in (Scorer(model, num_samples=16, seed=1), Scorer(model, num_samples=17)):
        assert not (other(x)["hole_indicator"] == base["hole_indicator"]).any()
    assert same(Scorer(model, num_samples=16)(x), base)
    torch.manual_seed(123)
    assert same(Scorer(model, num_samples=16)(x), base)


def rounded_decoder(model: VAE, z: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of a fully connected decoder whose every product and output is rounded."""
    rows = z.to(dtype)
    for layer in model.decoder:
        if isinstance(layer, torch.nn.Linear):
            rows = rows.double() @ layer.weight.to(dtype).double().t()
            rows = (rows + layer.bias.to(dtype).double()).to(dtype)
        else:
            rows = layer(rows)
    return rows.double()


@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decoder_of_16_bits_is_the_rounded_one(dtype: torch.dtype) -> None:
    model = make()
    x = images(model, 9)
    found = Scorer(model, num_samples=50, decoder_dtype=dtype).statistics(x)
    full = Scorer(model, num_samples=50).statistics(x)
    with torch.no_grad():
        posterior = model.encode(x)
        noise = standard_normal(0, 50, model.latent_dim).unsqueeze(1)
        z = (posterior.loc.double() + (0.5 * posterior.log_variance.double()).exp() * noise).float()
        logits = rounded_decoder(model, z, dtype)
        truth = reference.importance(logits, x.flatten(1).double(), "bernoulli").mean(0)
    error = (found.log_likelihood_mean - truth).abs().mean()
    rounding = (full.log_likelihood_mean - truth).abs().mean()
    assert error < 0.1 * rounding
    assert rounding < 64 * torch.finfo(dtype).eps * full.hole_indicator.max()


@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
@pytest.mark.parametrize("name", ["fc", "fc-lipschitz", "conv", "gaussian", "sphere"])
def test_a_decoder_of_16_bits_keeps_the_promises(name: str, threads: int) -> None:
    model = make(name)
    x = images(model, 10)
    scorer = Scorer(model, num_samples=30, decoder_dtype=torch.bfloat16)
    whole = scorer(x)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    assert same(scorer(x[order]), {n: v[order] for n, v in whole.items()})
    assert same(scorer(x[4:5]), {n: v[4:5] for n, v in whole.items()})
    full = Scorer(model, num_samples=30)(x)
    assert not torch.equal(whole["elbo"], full["elbo"])
    torch.testing.assert_close(whole["kl"], full["kl"])  # the decoder has no part in it
    torch.testing.assert_close(whole["elbo"], full["elbo"], rtol=0.02, atol=0.1)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.filterwarnings("ignore:this CPU has no instructions")
def test_a_calibration_belongs_to_its_decoder_dtype(tmp_path: Path) -> None:
    model = make()
    options: dict[str, Any] = {"scores": ["typicality"], "num_samples": 4}
    low = Scorer(model, **options, decoder_dtype=torch.float16).calibrate(images(model, 6))
    assert low.calibration is not None
    low.calibration.save(tmp_path / "calibration")
    kept = Calibration.load(tmp_path / "calibration")
    assert kept.decoder_dtype == torch.float16
    Scorer(model, **options, decoder_dtype=torch.float16, calibration=kept)
    with pytest.raises(ValueError, match=r"decoder_dtype=None, got one of torch\.float16"):
        Scorer(model, **options, calibration=kept)


def test_a_decoder_of_16_bits_where_it_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipvae._decoder_dtype.cpu_multiplies", lambda dtype: False)
    with pytest.warns(RuntimeWarning, match="no instructions for torch.bfloat16"):
        scorer = Scorer(make(), num_samples=8, decoder_dtype=torch.bfloat16)
    assert "decoder_dtype=torch.bfloat16" in repr(scorer)
    monkeypatch.setattr("lipvae._decoder_dtype.cpu_multiplies", lambda dtype: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scorer(make(), num_samples=8, decoder_dtype=torch.float16)
    bounded = LipschitzVAE(SHAPE, 3, "fc", (32, 32), decoder_lipschitz=2.0)
    with pytest.raises(ValueError, match="rounding would break its constant"):
        Scorer(bounded, decoder_dtype=torch.bfloat16)


def test_names_and_default_scores() -> None:
    model = make()
    x = images(model, 2)
    assert Scorer(model).names == tuple(OF_STATISTICS)
    one = Scorer(model, num_samples=1)
    assert "hole_indicator" not in one.names
    assert all(torch.isfinite(score).all() for score in one(x).values())
    chosen = Scorer(model, scores=("elbo", "hole_indicator"), num_samples=4)
    assert list(chosen(x)) == ["elbo", "hole_indicator"]
    assert "num_samples=4" in repr(chosen)


def test_statistics_keep_their_own_signs() -> None:
    model = make()
    x = images(model, 6)
    scorer = Scorer(model, num_samples=32)
    scores, statistics = scorer(x), scorer.statistics(x)
    assert statistics.num_samples == 32
    assert torch.equal(scores["is_log_likelihood"], -statistics.is_log_likelihood)
    assert (statistics.ess >= 1 - 1e-9).all()
    assert (statistics.ess <= 32 + 1e-9).all()
    assert (statistics.is_log_likelihood >= statistics.elbo).all()  # Jensen


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model = make("conv-lipschitz")
    model.decoder.insert(1, nn.Dropout(0.5))
    model.train()
    model.trunk.eval()
    modes = [module.training for module in model.modules()]
    x = images(model, 3).requires_grad_()
    scorer = Scorer(model, num_samples=8)
    scores = scorer(x)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not any(score.requires_grad or score.is_inference() for score in scores.values())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert same(scorer(x.detach()), scores)  # no dropout
    model.elbo(x.detach()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_error_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("fc-lipschitz").train()
    scorer = Scorer(model, num_samples=8)
    x = images(model, 30)
    expected = scorer(x)

    def broken(z: Tensor) -> Tensor:
        raise OSError("out of paper")

    monkeypatch.setattr(model, "decode_hidden", broken)
    with pytest.raises(OSError, match="paper"):
        scorer(x)
    assert model.training
    monkeypatch.undo()
    assert same(scorer(x), expected)


def test_weights_may_change_between_calls() -> None:
    model = make("fc-lipschitz")
    scorer = Scorer(model, num_samples=8)
    x = images(model, 2)
    before = scorer(x)
    with torch.no_grad():
        model.loc.weight.mul_(-1)
    assert not torch.equal(scorer(x)["elbo"], before["elbo"])


def test_stream() -> None:
    model = make()
    x = images(model, 20)
    scorer = Scorer(model, num_samples=8)
    pulled = []

    def batches() -> Iterator[Tensor]:
        for part in x.split(6):
            pulled.append(len(part))
            yield part

    stream = scorer.stream(batches())
    first = next(stream)
    assert pulled == [6]
    parts = [first, *stream]
    assert same({k: torch.cat([p[k] for p in parts]) for k in first}, scorer(x))


def test_the_callers_backend_holds_in_the_threads(threads: int) -> None:
    model = make()
    with lipvae.backend("triton"), pytest.raises(RuntimeError, match="triton"):
        Scorer(model, num_samples=8)(images(model, 20))
    with lipvae.backend("reference"):
        assert len(Scorer(model, num_samples=8)(images(model, 20))["elbo"]) == 20


def test_other_floating_types_are_converted() -> None:
    model = make()
    x = images(model, 3)
    scorer = Scorer(model, num_samples=8)
    assert same(scorer(x.double()), scorer(x))
    assert same(scorer(x.half().float()), scorer(x.half()))


BAD = [
    (lambda x: x.numpy(), TypeError, "x must be a torch.Tensor, got ndarray"),
    (lambda x: (x * 255).to(torch.uint8), TypeError, "uint8; divide 8-bit pixels by 255"),
    (lambda x: x.long(), TypeError, "floating point.*int64"),
    (lambda x: x[0], ValueError, r"\[B, 1, 8, 8\], got .*\(1, 8, 8\)"),
    (lambda x: x.flatten(1), ValueError, r"\[B, 1, 8, 8\], got .*\(4, 64\)"),
    (lambda x: x.expand(4, 3, 8, 8), ValueError, r"\[B, 1, 8, 8\]"),
    (lambda x: x[:0], ValueError, "empty batch"),
    (lambda x: x.to("meta"), ValueError, "device cpu, got meta"),
    (lambda x: x.index_fill(0, torch.tensor([1]), torch.nan), ValueError, "finite, got 64 NaN"),
    (lambda x: x.index_fill(0, torch.tensor([1]), torch.inf), ValueError, "finite"),
    (lambda x: x * 255, ValueError, r"\[0, 1\].*divide 8-bit"),
    (lambda x: x - 0.5, ValueError, r"\[0, 1\], got \[-0.5"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_inputs(change, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    model = make()
    x = images(model, 4)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
    with pytest.raises(error, match=message):
        Scorer(model, num_samples=4)(change(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"num_samples": 1.5}, TypeError, "num_samples"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"scores": ()}, ValueError, "at least one"),
        ({"scores": "elbo"}, TypeError, "sequence of names, or 'all', got 'elbo'"),
        ({"scores": ("elbo", "nonsense")}, ValueError, "hole_indicator.*got 'nonsense'"),
        ({"scores": ("elbo", "elbo")}, ValueError, "repeat"),
        ({"scores": ("hole_indicator",), "num_samples": 1}, ValueError, "at least 2, got 1"),
        ({"decoder_dtype": torch.float32}, ValueError, "decoder_dtype must be None, torch.bfloat"),
        ({"decoder_dtype": "bfloat16"}, ValueError, "decoder_dtype must be None, torch.bfloat16"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Scorer(make(), **arguments)


def test_the_model_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"model must be a lipvae\.VAE, got Linear"):
        Scorer(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_workers_run_everything_once_and_with_one_thread(threads: int) -> None:
    seen: list[tuple[int, int]] = []
    for_each(50, lambda i: seen.append((i, torch.get_num_threads())))
    assert sorted(seen) == [(i, 1) for i in range(50)]
    for_each(0, lambda i: pytest.fail("called"))


def test_workers_stop_at_the_first_error(threads: int) -> None:
    started = []

    def work(i: int) -> None:
        started.append(i)
        raise KeyError(i)

    with pytest.raises(KeyError):
        for_each(1000, work)
    assert len(started) <= threads
    assert torch.get_num_threads() == threads


def test_scores_of_draws_and_of_the_mean_in_any_order() -> None:
    torch.manual_seed(0)
    model = lipvae.BayesianVAE((1, 8, 8), 3, "fc", (8,)).eval()
    x = torch.rand(2, 1, 8, 8)
    names = ["hole_indicator", "waic"]
    expected = Scorer(model, names, num_samples=4, num_draws=2)(x)
    scorer = Scorer(model, names[::-1], num_samples=4, num_draws=2)
    for _ in range(2):
        assert same(scorer(x), expected)
    with torch.no_grad():
        model.decoder[0].weight.add_(0.1)
    changed = scorer(x)
    assert same(changed, Scorer(model, names, num_samples=4, num_draws=2)(x))
    assert not torch.equal(changed["waic"], expected["waic"])


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_sobol_noise(architecture: str) -> None:
    torch.manual_seed(5)
    hidden = {"fc": (24,), "conv": (4, 8, 16)}[architecture]
    model = lipvae.VAE((1, 8, 8), 3, architecture=architecture, hidden=hidden).eval()
    x = torch.rand(11, 1, 8, 8)
    scorer = Scorer(model, num_samples=150, seed=1, noise="sobol")
    found = scorer(x)
    assert all(torch.equal(scorer(x[6:])[name], found[name][6:]) for name in found)
    assert not same(found, Scorer(model, num_samples=150, seed=1)(x))
    # Its samples are those of sobol_normal.
    with torch.no_grad():
        q = model.encode(x)
        z = q.loc.double() + q.scale.double() * sobol_normal(1, 150, 3).unsqueeze(1)
        logits = model.decode(z.flatten(0, 1).float()).view(150, 11, 64)
    target = x.flatten(1).double()
    log_likelihood = (target * logits.double() - nn.functional.softplus(logits.double())).sum(-1)
    torch.testing.assert_close(found["hole_indicator"], log_likelihood.std(0), rtol=1e-4, atol=1e-5)
    # Scores hang less on the seed.
    spread = [
        torch.stack([Scorer(model, ["elbo"], 64, s, noise=noise)(x)["elbo"] for s in range(12)])
        .std(0)
        .mean()
        for noise in ("sobol", "independent")
    ]
    assert spread[0] < 0.5 * spread[1]


def test_refinement_is_part_of_a_calibration(tmp_path) -> None:
    model = lipvae.VAE((1, 8, 8), 2, "fc", (8,))
    data = torch.rand(9, 1, 8, 8)
    scorer = Scorer(model, ["typicality"], 8, refine=2).calibrate(data)
    scorer.calibration.save(tmp_path / "c")
    kept = Calibration.load(tmp_path / "c")
    assert kept.refine == 2
    again = Scorer(model, ["typicality"], 8, refine=2, calibration=kept)
    assert torch.equal(again(data)["typicality"], scorer(data)["typicality"])
    with pytest.raises(ValueError, match="calibration must be of refine=0, got one of 2"):
        Scorer(model, ["typicality"], 8, calibration=kept)


class WidePrior(lipvae.VAE):
    """p(z) = N(0, 9)."""

    def log_prior(self, z: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(0.0, 3.0).log_prob(z).sum(-1)


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_a_subclass_may_have_a_prior_of_its_own(architecture: str) -> None:
    torch.manual_seed(3)
    hidden = {"fc": (24,), "conv": (4, 8, 16)}[architecture]
    model = WidePrior((1, 8, 8), 3, architecture, hidden).eval()
    x = torch.rand(4, 1, 8, 8)
    found = Scorer(model, ["kl", "log_likelihood", "elbo"], num_samples=40, seed=1)(x)
    q = model.encode(x)
    z = q.loc.double() + q.scale.double() * standard_normal(1, 40, 3).unsqueeze(1)
    log_q = torch.distributions.Normal(q.loc.double(), q.scale.double()).log_prob(z).sum(-1)
    divergence = (log_q - model.log_prior(z)).mean(0)
    torch.testing.assert_close(found["kl"], divergence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found["elbo"], found["log_likelihood"] + divergence, rtol=1e-5, atol=1e-4
    )


def test_an_ensemble_of_one_has_no_score() -> None:
    model = lipvae.VAE((1, 8, 8), 2, "fc", (8,))
    for ensemble, draws in ((lipvae.Ensemble([model]), None), (lipvae.Ensemble([model] * 3), 1)):
        with pytest.raises(ValueError, match=r"at least 2 models .* num_draws of 1"):
            Scorer(ensemble, num_draws=draws)


def test_modes_outlast_calls_that_overlap() -> None:
    torch.manual_seed(0)
    model = lipvae.BayesianVAE((1, 8, 8), 2, "fc", (8,), initial_scale=0.5).train()
    model.trunk.eval()
    modes = [module.training for module in model.modules()]
    first, second = evaluating(model), evaluating(model.decoder)
    with first:
        second.__enter__()
    # The first is over: the second still holds the decoder.
    assert model.training
    assert not any(module.training for module in model.decoder.modules())
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["conv", "sphere"])
def test_a_callers_autocast_does_not_reach_the_scores(name: str, threads: int) -> None:
    torch.manual_seed(0)
    if name == "conv":
        model: lipvae.VAE = lipvae.VAE((1, 8, 8), 2, "conv", (4, 8)).eval()
    else:
        model = lipvae.HypersphericalVAE((1, 8, 8), 3, "fc", (8,)).eval()
    x = torch.rand(16, 1, 8, 8)
    names = ["hole_indicator", "is_log_likelihood", "likelihood_regret"]
    names = names[:2] if name == "sphere" else names
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = Scorer(model, names, num_samples=16)(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert same(Scorer(model, names, num_samples=16)(x), expected)
    finally:
        torch.set_num_threads(before)


def test_strides_do_not_reach_a_score() -> None:
    torch.manual_seed(0)
    model = lipvae.VAE((3, 16, 16), 2, "conv", (4, 8)).eval()
    x = torch.rand(4, 3, 16, 16)
    scorer = Scorer(model, num_samples=8)
    assert same(scorer(x.to(memory_format=torch.channels_last)), scorer(x))


def test_num_draws_takes_the_first_members() -> None:
    torch.manual_seed(0)
    models = [lipvae.VAE((1, 8, 8), 2, "fc", (8,)) for _ in range(4)]
    x = torch.rand(3, 1, 8, 8)
    found = Scorer(lipvae.Ensemble(models), num_samples=4, num_draws=2)(x)
    assert same(found, Scorer(lipvae.Ensemble(models[:2]), num_samples=4)(x))
    assert not same(found, Scorer(lipvae.Ensemble(models), num_samples=4)(x))


def test_noise_is_part_of_a_calibration_and_of_a_normal_posterior(tmp_path) -> None:
    with pytest.raises(ValueError, match="noise must be independent or sobol, got 'halton'"):
        Scorer(lipvae.VAE((1, 8, 8), 2, "fc", (8,)), noise="halton")
    sphere = lipvae.HypersphericalVAE((1, 8, 8), 3, "fc", (8,))
    with pytest.raises(ValueError, match=r"noise must be independent .* HypersphericalVAE"):
        Scorer(sphere, noise="sobol")
    model = lipvae.VAE((1, 8, 8), 2, "fc", (8,))
    data = torch.rand(9, 1, 8, 8)
    scorer = Scorer(model, ["typicality"], 8, noise="sobol").calibrate(data)
    scorer.calibration.save(tmp_path / "c")
    kept = Calibration.load(tmp_path / "c")
    again = Scorer(model, ["typicality"], 8, noise="sobol", calibration=kept)
    assert torch.equal(again(data)["typicality"], scorer(data)["typicality"])
    with pytest.raises(ValueError, match="calibration must be of noise='independent', got one of"):
        Scorer(model, ["typicality"], 8, calibration=kept)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_kernels_of_few_items_share_the_threads(count: int) -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, int]] = []
    try:
        torch.set_num_threads(4)
        _workers.for_each(
            count, lambda _: seen.append((_workers.kernel_threads(), torch.get_num_threads()))
        )
        assert seen == [(max(1, 4 // count), 1)] * count
        assert _workers.kernel_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cls", [lipvae.VAE, lipvae.LipschitzVAE])
def test_a_scorer_follows_the_training(cls: type[lipvae.VAE]) -> None:
    model = cls((1, 8, 8), 4, "fc", (32,))
    x = torch.rand(100, 1, 8, 8)
    scorer = lipvae.Scorer(model, ["elbo"], 8)
    before = scorer(x)["elbo"]
    lipvae.fit(model, x, epochs=2, progress=False)
    after = scorer(x)["elbo"]
    assert not torch.equal(after, before)
    assert torch.equal(after, lipvae.Scorer(model, ["elbo"], 8)(x)["elbo"])


def test_a_pool_whose_thread_cannot_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that did start would wait for it for ever, and the process for them."""
    submit, calls = ThreadPoolExecutor.submit, []

    def third_fails(self: ThreadPoolExecutor, *arguments: object) -> object:
        calls.append(self)
        if len(calls) == 3:
            raise RuntimeError("can't start new thread")
        return submit(self, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", third_fails)
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        _workers._pool(7)  # of a size that nothing else has
    assert 7 not in _workers._pools
    assert torch.get_num_threads() == before
    for thread in calls[0]._threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("cls", [lipvae.VAE, lipvae.LipschitzVAE])
@pytest.mark.parametrize("hooked", [False, True], ids=["packed", "by torch"])
def test_weights_replaced_while_another_thread_scores(cls: type[lipvae.VAE], hooked: bool) -> None:
    """What scores after the change has the new weights, and keeps them after the other's end."""
    torch.manual_seed(0)
    model, other = (cls((1, 8, 8), 3, "fc", (8,)).eval() for _ in range(2))
    for each in (model, other) if hooked else ():
        each.trunk.register_forward_hook(lambda *_: None)
    x = torch.rand(3, 1, 8, 8)
    scorer = Scorer(model, num_samples=4)
    started, go_on = threading.Event(), threading.Event()

    def score_slowly() -> None:
        with scorer._evaluating(model):
            started.set()
            go_on.wait()

    old = scorer(x)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(score_slowly)
        started.wait()
        model.load_state_dict(other.state_dict())
        during = scorer(x)
        go_on.set()
        running.result()
    expected = Scorer(other, num_samples=4)(x)
    assert not same(old, expected)
    assert same(during, expected)
    assert same(scorer(x), expected)
    assert all(getattr(layer, "_frozen", None) is None for layer in model.modules())


def test_a_forked_child_keeps_nothing_of_other_threads_blocks() -> None:
    script = textwrap.dedent("""
        import os, sys, threading, lipvae
        from lipvae._evaluation import evaluating
        from lipvae.nn import LipschitzLinear
        theirs, mine = (lipvae.LipschitzVAE((1, 8, 8), 3, "fc", (8,)).train() for _ in range(2))
        layers = [m for m in theirs.modules() if isinstance(m, LipschitzLinear)]
        started, go_on = threading.Event(), threading.Event()

        def score_slowly():
            with lipvae.Scorer(theirs)._evaluating(theirs):
                started.set()
                go_on.wait()

        other = threading.Thread(target=score_slowly)
        other.start()
        started.wait()
        with evaluating(mine):
            assert not theirs.training and all(l._frozen is not None for l in layers)
            child = os.fork()
            if child == 0:
                free = theirs.training and all(l._frozen is None for l in layers)
                os._exit(0 if free and not mine.training else 1)
            status = os.waitpid(child, 0)[1]
        go_on.set()
        other.join()
        assert theirs.training and mine.training and all(l._frozen is None for l in layers)
        sys.exit(os.waitstatus_to_exitcode(status))
    """)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


def test_an_ensemble_is_scored_by_all_its_members() -> None:
    torch.manual_seed(0)
    models = [lipvae.VAE((1, 8, 8), 2, "fc", (8,)) for _ in range(10)]
    x = torch.rand(3, 1, 8, 8)
    scorer = Scorer(lipvae.Ensemble(models), num_samples=4)
    assert len(scorer.statistics_of_draws(x)) == scorer.num_draws == 10
    assert Scorer(lipvae.BayesianVAE((1, 8, 8), 2, "fc", (8,))).num_draws == 8
    with pytest.raises(ValueError, match=r"num_draws must be at most the 10 models .* got 11"):
        Scorer(lipvae.Ensemble(models), num_draws=11)


def test_a_calibration_is_of_the_weights_that_score() -> None:
    torch.manual_seed(0)
    model, x = lipvae.VAE((1, 8, 8), 2, "fc", (8,)), torch.rand(9, 1, 8, 8)
    scorer = Scorer(model, ["typicality", "elbo"], 8).calibrate(x)
    expected = scorer(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.decoder[0].weight.add_(0.1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"have changed since its calibration: call calib"):
            scorer(x)
    assert len(Scorer(model, ["elbo"], 8)(x)["elbo"]) == 9
    model.load_state_dict(state)  # the same numbers again
    assert same(scorer(x), expected)
    with torch.no_grad():
        model.decoder[0].weight.add_(0.1)
    assert not same(scorer.calibrate(x)(x), expected)


def test_every_score_in_inference_mode() -> None:
    torch.manual_seed(0)
    model = lipvae.VAE((1, 8, 8), 2, "fc", (8,)).eval()
    x = torch.rand(3, 1, 8, 8)
    scorer = Scorer(model, "all", num_samples=4)
    expected = scorer(x)
    with torch.inference_mode():
        assert same(scorer(x), expected)
        assert same(scorer(x.clone()), expected)
