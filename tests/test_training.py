"""Training: it learns, repeats, resumes bit for bit, and fails clearly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lipvae
from lipvae import VAE, DivergenceError, History, LipschitzVAE, fit


def model(cls=VAE, seed=0, **arguments):
    defaults = {"input_shape": (1, 8, 8), "latent_dim": 3, "architecture": "fc", "hidden": (16,)}
    torch.manual_seed(seed)
    return cls(**(defaults | arguments))


def images(n=200, seed=0):
    """Bars at one of 8 places: something to learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((n, 1, 8, 8), 0.05)
    x[torch.arange(n), 0, torch.randint(8, (n,), generator=generator)] = 0.95
    return x


def weights(m):
    return torch.cat([p.detach().flatten() for p in m.parameters()])


def train(cls=VAE, data=None, **arguments):
    m = model(cls)
    defaults = {"epochs": 3, "batch_size": 32, "progress": False}
    history = fit(m, images() if data is None else data, **(defaults | arguments))
    return m, history


@pytest.mark.parametrize("cls", [VAE, LipschitzVAE])
def test_learns(cls):
    m, history = train(cls, images(600), epochs=25, lr=1e-2)
    assert history.validation_elbo[-1] > history.validation_elbo[0] + 8
    assert history.train_elbo[-1] > history.train_elbo[0] + 8
    # The bound of the best constant image: 64 pixels, of which one row of eight is a bar.
    p = 0.05 + 0.9 / 8
    constant = 64 * (p * math.log(p) + (1 - p) * math.log(1 - p))
    assert history.validation_elbo[-1] > constant
    assert history.train_kl[-1] > 0.5
    assert not m.training
    assert len(history) == 25 == len(history.seconds)
    assert min(history.seconds) > 0


def test_the_same_seed_gives_the_same_weights():
    (a, h), (b, g), (c, _) = train(), train(), train(seed=1)
    assert torch.equal(weights(a), weights(b))
    assert h.train_elbo == g.train_elbo
    assert h.validation_elbo == g.validation_elbo
    assert not torch.equal(weights(a), weights(c))


def test_the_global_generator_is_left_alone():
    m = model()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    fit(m, images(), epochs=1, progress=False)
    assert torch.equal(torch.rand(3), want)


def test_every_form_of_the_data_trains_alike():
    stored = (images() * 255).round().to(torch.uint8)
    forms = {
        "uint8": stored,
        "float": stored.float() / 255,
        "array": stored.numpy(),
        "read-only": np.broadcast_to(stored.numpy(), stored.shape),
        "set": lipvae.data.ImageSet(stored, None, "bars", "train", "made here"),
        "double": stored.double() / 255,
    }
    results = {name: weights(train(data=data, epochs=1)[0]) for name, data in forms.items()}
    for name, result in results.items():
        torch.testing.assert_close(result, results["uint8"], rtol=0, atol=1e-5, msg=name)
    assert torch.equal(results["uint8"], results["set"])


def test_validation_images_are_held_out():
    x = images(100)
    x[:] = torch.arange(100).view(-1, 1, 1, 1) / 100
    train_part, held_out = lipvae.batches.split(model(), x, 0.2, seed=0)
    together = torch.cat([train_part, held_out])[:, 0, 0, 0]
    assert len(held_out) == 20
    assert torch.equal(together.sort().values, x[:, 0, 0, 0])
    again = lipvae.batches.split(model(), x, 0.2, seed=0)[1]
    other = lipvae.batches.split(model(), x, 0.2, seed=1)[1]
    assert torch.equal(held_out, again)
    assert not torch.equal(held_out, other)


def test_validation_by_images_or_none():
    _, history = train(validation=images(64, seed=1), epochs=2)
    assert all(math.isfinite(e) for e in history.validation_elbo)
    _, history = train(validation=0, epochs=2)
    assert all(math.isnan(e) for e in history.validation_elbo)
    assert history.best_epoch is None


def test_validation_elbo_is_that_of_the_model():
    held_out = images(100, seed=1)
    m, history = train(validation=held_out, epochs=2, num_samples=1)
    with torch.no_grad():
        elbo = m.elbo(held_out, 200).mean()
    assert float(elbo) == pytest.approx(history.validation_elbo[-1], abs=0.5)


@pytest.mark.parametrize("cls", [VAE, LipschitzVAE])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"schedule": "cosine", "warmup": 2, "gradient_clip": 1.0},
        {"keep": "best", "num_samples": 2, "lr": 0.05},
    ],
)
def test_resume_continues_bit_for_bit(cls, arguments, tmp_path):
    whole, history = train(cls, epochs=5, **arguments)
    path = tmp_path / "run.safetensors"

    class Killed(Exception):
        pass

    def kill(epoch, _):
        if epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        train(cls, epochs=5, checkpoint=path, callback=kill, **arguments)
    resumed = model(cls, seed=9)  # everything comes from the checkpoint
    rest = fit(
        resumed,
        images(),
        epochs=5,
        batch_size=32,
        progress=False,
        checkpoint=path,
        resume=True,
        **arguments,
    )
    assert torch.equal(weights(resumed), weights(whole))
    assert rest.train_elbo == history.train_elbo
    assert rest.validation_elbo == history.validation_elbo
    assert rest.learning_rate == history.learning_rate
    loaded = lipvae.load(path)
    assert torch.equal(weights(loaded), weights(whole))


def test_resume_prolongs_a_finished_run(tmp_path):
    path = tmp_path / "run.safetensors"
    whole, _ = train(epochs=4)
    train(epochs=2, checkpoint=path)
    longer, history = train(epochs=4, checkpoint=path, resume=True)
    assert torch.equal(weights(longer), weights(whole))
    assert len(history) == 4
    same, history = train(epochs=4, checkpoint=path, resume=True)
    assert torch.equal(weights(same), weights(whole))
    assert len(history) == 4


def test_resume_without_a_file_starts(tmp_path):
    path = tmp_path / "run.safetensors"
    _, history = train(checkpoint=path, resume=True)
    assert len(history) == 3
    assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "its lr is 0.001, not 0.5"),
        ({"batch_size": 7}, "its batch_size is 32, not 7"),
        ({"seed": 4}, "its seed is 0, not 4"),
        ({"validation": 0.5}, "its images is 190, not 100"),
        ({"cls": LipschitzVAE}, "its class is 'VAE', not 'LipschitzVAE'"),
    ],
)
def test_resume_refuses_another_run(change, message, tmp_path):
    path = tmp_path / "run.safetensors"
    train(checkpoint=path)
    with pytest.raises(ValueError, match=message):
        train(checkpoint=path, resume=True, **change)


def test_resume_refuses_other_images_of_the_same_number(tmp_path):
    path = tmp_path / "run.safetensors"
    train(checkpoint=path)
    with pytest.raises(ValueError, match=r"its data is .* \(other training images"):
        train(checkpoint=path, resume=True, data=1 - images())


def test_resume_refuses_another_end_of_a_cosine(tmp_path):
    path = tmp_path / "run.safetensors"
    train(checkpoint=path, schedule="cosine")
    with pytest.raises(ValueError, match="its epochs is 3, not 4"):
        train(checkpoint=path, schedule="cosine", epochs=4, resume=True)


def test_resume_refuses_a_model_file(tmp_path):
    path = tmp_path / "model.safetensors"
    lipvae.save(model(), path)
    with pytest.raises(ValueError, match="a model"):
        train(checkpoint=path, resume=True)


def test_resume_remembers_the_best_epoch(tmp_path):
    path = tmp_path / "run.safetensors"
    arguments = {"lr": 0.2, "validation": 0.3, "keep": "best"}
    whole, history = train(VAE, epochs=12, **arguments)
    # Stopped after the best epoch, so that the weights of it are the checkpoint's to give back.
    train(VAE, epochs=11, checkpoint=path, **arguments)
    assert history.best_epoch <= 10
    resumed, _ = train(VAE, epochs=12, checkpoint=path, resume=True, **arguments)
    assert torch.equal(weights(resumed), weights(whole))


def test_train_elbo_is_the_mean_over_the_batches():
    """With a rate too small to change anything, that of the model."""
    m = model(VAE)
    torch.nn.init.constant_(m.loc.bias, 4.0)  # so that the KL counts
    x = images(64)
    history = fit(m, x, epochs=1, batch_size=16, lr=1e-12, validation=0, progress=False)
    with torch.no_grad():
        log_likelihood, kl = (t.mean().item() for t in m.elbo_terms(x, m.draw_noise(200, 64)))
    assert history.train_kl[0] == pytest.approx(kl, rel=1e-4)
    assert history.train_elbo[0] == pytest.approx(log_likelihood - kl, rel=0.02)
    assert kl > 0.1 * abs(log_likelihood - kl)


def test_keep_best():
    # A large rate makes the ELBO go up and down, so that the last epoch is not the best.
    arguments = {"lr": 0.2, "validation": 0.3}
    m, history = train(VAE, epochs=12, keep="best", **arguments)
    assert history.best_epoch not in (None, 11)
    last, _ = train(VAE, epochs=12, **arguments)
    until_best, _ = train(VAE, epochs=history.best_epoch + 1, **arguments)
    assert torch.equal(weights(m), weights(until_best))
    assert not torch.equal(weights(m), weights(last))


def test_warmup_weighs_the_divergence(monkeypatch):
    seen = []
    m = model()
    real = m.elbo_terms

    def watched(x, noise):
        log_likelihood, kl = real(x, noise)
        kl.register_hook(lambda g: seen.append(float(g.sum())))
        return log_likelihood, kl

    monkeypatch.setattr(m, "elbo_terms", watched)
    fit(m, images(128), epochs=3, batch_size=32, warmup=2, validation=0, progress=False)
    want = [(i + 1) / 8 for i in range(8)] + [1.0] * 4
    assert seen == pytest.approx(want)


def test_cosine_falls_to_zero():
    _, history = train(schedule="cosine", epochs=4, lr=1.0e-3)
    rates = history.learning_rate
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 1e-3
    assert 0 < rates[-1] < 1e-4
    assert train(epochs=2, lr=3e-3)[1].learning_rate == [3e-3, 3e-3]
    assert train(LipschitzVAE, epochs=1)[1].learning_rate == [LipschitzVAE.default_learning_rate]


def test_gradient_clip_bounds_the_step(monkeypatch):
    norms = []
    real = torch.optim.Adam.step

    def step(self, *args):
        group = self.param_groups[0]["params"]
        norms.append(float(torch.stack([p.grad.norm() for p in group]).norm()))
        return real(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    train(epochs=1)
    assert max(norms) > 0.5
    norms.clear()
    train(epochs=1, gradient_clip=0.5)
    assert max(norms) <= 0.5 + 1e-5


@pytest.mark.parametrize("interval", [1, 4])
def test_divergence_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch, interval):
    monkeypatch.setattr(lipvae.training, "check_interval", lambda _: interval)
    path = tmp_path / "run.safetensors"
    good, _ = train(epochs=2)
    m = model()
    real, calls = m.elbo_terms, []

    def spoilt(x, noise):
        log_likelihood, kl = real(x, noise)
        calls.append(1)
        # 6 steps of training and one of validation an epoch; 3rd step of the 3rd epoch
        return (log_likelihood * math.nan, kl) if len(calls) == 17 else (log_likelihood, kl)

    monkeypatch.setattr(m, "elbo_terms", spoilt)
    with pytest.raises(DivergenceError) as caught:
        fit(m, images(), epochs=5, batch_size=32, progress=False, checkpoint=path)
    message = str(caught.value)
    where = ("nan", "epoch 3", "step 3 of 6", "learning rate 0.001")
    for part in (*where, "Try a lower lr", path.name, "after epoch 2"):
        assert part in message, message
    assert torch.equal(weights(lipvae.load(path)), weights(good))
    assert bool(torch.isfinite(weights(m)).all()) == (interval == 1)  # checked before its step


def test_spoilt_weights_are_never_written(tmp_path, monkeypatch):
    # A gradient that is not finite in an epoch's last step shows in no loss of that epoch.
    path = tmp_path / "run.safetensors"
    m = model()
    real, calls = torch.optim.Adam.step, []

    def step(self, *args):
        calls.append(1)
        if len(calls) == 12:
            self.param_groups[0]["params"][0].grad.fill_(math.nan)
        return real(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(DivergenceError, match=r"trunk\.1\.weight was not finite after epoch 2"):
        fit(m, images(), epochs=5, batch_size=32, progress=False, checkpoint=path)
    assert bool(torch.isfinite(weights(lipvae.load(path))).all())


def test_a_gaussian_that_diverges_gets_advice():
    m = model(likelihood="gaussian")
    with pytest.raises(DivergenceError, match="a Gaussian's density has no upper bound"):
        fit(m, images(), epochs=20, lr=1e4, progress=False)


def test_callback_sees_each_epoch_and_may_stop():
    seen = []

    def callback(epoch, history):
        seen.append((epoch, len(history)))
        return epoch == 1

    _, history = train(epochs=9, callback=callback)
    assert seen == [(0, 1), (1, 2)]
    assert len(history) == 2


def test_progress_bar(capsys):
    train(epochs=2, progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "validation=" in shown
    train(epochs=1)
    assert not capsys.readouterr().err


def test_compile_trains(monkeypatch):
    compiled = []
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f: compiled.append(f) or real(f, backend="aot_eager")
    )
    got, _ = train(LipschitzVAE, epochs=1, compile=True)
    want, _ = train(LipschitzVAE, epochs=1)
    assert len(compiled) == 1
    torch.testing.assert_close(weights(got), weights(want), rtol=0, atol=1e-4)


def test_double_precision_and_odd_batches():
    m = model(LipschitzVAE).double()
    history = fit(m, images(33), epochs=2, batch_size=50, validation=0.1, progress=False)
    assert len(history) == 2
    assert m.loc.weight.dtype == torch.float64


def test_history_as_columns():
    history = History([1.0, 3.0, 2.0], [0.0] * 3, [1.0, 3.0, math.nan], [1e-3] * 3, [0.1] * 3)
    assert history.best_epoch == 1
    columns = history.to_dict()
    assert set(columns) == {
        "train_elbo",
        "train_kl",
        "validation_elbo",
        "learning_rate",
        "seconds",
    }
    assert History(**columns).best_epoch == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"schedule": "step"}, ValueError, "schedule must be one of constant, cosine"),
        ({"keep": "all"}, ValueError, "keep must be one of last, best"),
        ({"keep": "best", "validation": 0}, ValueError, "needs validation images"),
        ({"validation": 1.0}, ValueError, r"validation must be in \[0, 1\)"),
        ({"validation": 0.999}, ValueError, "leaves no image of 200"),
        ({"validation": "ten"}, TypeError, "validation must be a tensor"),
        ({"validation": images(5)[:, :, 1:]}, ValueError, "validation must have shape"),
        ({"gradient_clip": 0}, ValueError, "gradient_clip must be positive"),
        ({"resume": True}, ValueError, "resume needs a checkpoint"),
        ({"data": images() * 255}, ValueError, r"data must lie in \[0, 1\]"),
        ({"data": images() * math.nan}, ValueError, "data must be finite"),
        ({"data": images()[:0]}, ValueError, "N >= 1"),
        ({"data": images().flatten(1)}, ValueError, r"data must have shape \[N, 1, 8, 8\]"),
        ({"data": images().long()}, TypeError, "data must be uint8 or floating point"),
        ({"data": "mnist"}, TypeError, "data must be a tensor, an array or an ImageSet"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        train(**arguments)
    with pytest.raises(TypeError, match="model must be a lipvae model"):
        fit(torch.nn.Linear(1, 1), images(), epochs=1)
