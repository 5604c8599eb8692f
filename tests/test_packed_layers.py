"""Products whose rows do not reach each other, and the encoder and decoder made of them."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipvae
from lipvae import _packed_decoder, reference
from lipvae._packed_encoder import PackedEncoder
from lipvae._packed_encoder import can_pack as can_pack_encoder
from lipvae.models.posterior import NormalPosterior
from lipvae.nn.freezing import FrozenLayers
from lipvae.ops.conv_transpose import PackedConvTranspose2d
from lipvae.ops.panels import PackedLinear

pytest.importorskip("lipvae._C")
SIZES = [1, 2, 7, 15, 16, 17, 37, 90, 300]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def layer(columns: int, inner: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(columns * 1000 + inner)
    weight = torch.randn(columns, inner, generator=generator, dtype=torch.float64)
    bias = torch.randn(columns, generator=generator, dtype=torch.float64)
    return weight.to(dtype), bias.to(dtype)


def rows(count: int, inner: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, inner, generator=generator, dtype=torch.float64).to(dtype)


@DTYPES
@pytest.mark.parametrize("inner", [*SIZES, 1030])
def test_products_are_as_accurate_as_torchs(inner: int, dtype: torch.dtype) -> None:
    for columns in SIZES:
        weight, bias = layer(columns, inner, dtype)
        x = rows(23, inner, dtype)
        truth = nn.functional.linear(x.double(), weight.double(), bias.double())
        size = nn.functional.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
        got = PackedLinear(weight, bias)(x)
        same = nn.functional.linear(x, weight, bias)
        worst = ((got - truth).abs() / size).max()
        assert worst <= 4 * torch.finfo(dtype).eps
        if dtype == torch.float32:
            theirs = ((same - truth).abs() / size).max()
            assert worst <= 2 * theirs + torch.finfo(dtype).eps
        assert torch.equal(PackedLinear(weight, bias)(x, relu=True), got.relu())
        no_bias = PackedLinear(weight, None)(x)
        assert torch.equal(no_bias, PackedLinear(weight, torch.zeros_like(bias))(x))


@DTYPES
@pytest.mark.parametrize("columns", SIZES)
def test_a_row_knows_no_other(columns: int, dtype: torch.dtype) -> None:
    weight, bias = layer(columns, 257, dtype)
    product, x = PackedLinear(weight, bias), rows(41, 257, dtype)
    whole = product(x)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    assert torch.equal(product(x[order]), whole[order])
    for count in (1, 2, 5, 6, 7, 40):
        assert torch.equal(product(x[:count]), whole[:count])
        assert torch.equal(product(x[41 - count :]), whole[41 - count :])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        big = x.repeat(60, 1)
        assert torch.equal(product(big), whole.repeat(60, 1))
    finally:
        torch.set_num_threads(threads)


def test_what_is_not_finite_stays_in_its_row() -> None:
    weight, bias = layer(20, 30, torch.float32)
    x = rows(9, 30, torch.float32)
    x[3, 4], x[5, 6] = torch.nan, torch.inf
    product = PackedLinear(weight, bias)
    for relu in (False, True):
        got = product(x, relu=relu)
        assert got[3].isnan().all()
        assert not got[5].isfinite().all()
        others = [0, 1, 2, 4, 6, 7, 8]
        assert torch.equal(got[others], product(x[others], relu=relu))


def test_shapes_of_products() -> None:
    weight, bias = layer(5, 8, torch.float32)
    product = PackedLinear(weight, bias)
    assert product(torch.empty(0, 8)).shape == (0, 5)
    strided = rows(6, 16, torch.float32)[:, ::2]
    assert torch.equal(product(strided), product(strided.contiguous()))
    turned = layer(8, 5, torch.float32)[0].t()
    assert torch.equal(
        PackedLinear(turned, bias)(strided), PackedLinear(turned.clone(), bias)(strided)
    )
    for bad in (torch.rand(3, 7), torch.rand(3, 8).double()):
        with pytest.raises(ValueError, match=r"x must be torch\.float32 \[\.\.\., N, 8\]"):
            product(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("together", [1, 2, 5, 16, 100])
def test_what_is_left_out_changes_no_bit(together: int, dtype: torch.dtype) -> None:
    # Neighbours are zero in like places, as samples of an image are after a ReLU.
    weight, bias = layer(150, 70, dtype)
    product, groups = PackedLinear(weight, bias), 200 // together
    x = rows(groups * together, 70, dtype).view(groups, together, 70)
    x *= torch.rand(groups, 1, 70) < 0.4
    x[:, ::3] *= torch.rand(70) < 0.9
    alone = torch.cat([product(row[None]) for row in x.flatten(0, 1)])
    assert torch.equal(product(x), alone.view(groups, together, 150))
    assert torch.equal(product(x.flatten(0, 1)), alone)


def test_a_weight_that_is_not_finite_shows_also_where_it_is_left_out() -> None:
    weight, bias = layer(150, 40, torch.float32)
    weight[7, 3], weight[9, 3] = float("nan"), float("inf")
    x = rows(12, 40, torch.float32)
    x[:, :20] = 0
    found = PackedLinear(weight, bias)(x)
    assert found.isnan().all(0).nonzero().flatten().tolist() == [7, 9]
    assert found[:, [i for i in range(150) if i not in (7, 9)]].isfinite().all()


def test_a_pack_is_a_copy() -> None:
    weight, bias = layer(5, 8, torch.float32)
    product, x = PackedLinear(weight, bias), rows(3, 8, torch.float32)
    before = product(x)
    weight.zero_()
    assert torch.equal(product(x), before)


def make(kind: str, family: str = "bernoulli") -> lipvae.VAE:
    torch.manual_seed(0)
    shape = (1, 3, 3) if family == "categorical256" else (1, 9, 7)
    if kind == "plain":
        return lipvae.VAE(shape, 3, "fc", (36, 20), family).eval()
    options: dict[str, Any] = {
        "group sort": {},
        "groups of 4": {"group_size": 4},
        "free log-variance": {"constrain_log_variance": False},
        "Lipschitz decoder": {"decoder_lipschitz": 4.0},
    }[kind]
    return lipvae.LipschitzVAE(shape, 3, "fc", (36, 20), family, **options).eval()


KINDS = ["plain", "group sort", "groups of 4", "free log-variance", "Lipschitz decoder"]


def decoder(model: lipvae.VAE) -> _packed_decoder.Packed:
    kind = _packed_decoder.pack(model)
    assert kind is not None
    return kind(model, FrozenLayers(model))


def close(got: Tensor, expected: Tensor, *, near_zero: bool = False) -> None:
    rtol = 2e-5 if got.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol if near_zero else 0)


@DTYPES
@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, "bernoulli") for kind in KINDS), *(("plain", f) for f in reference.FAMILIES)],
)
def test_encoder_and_decoder_are_the_models(kind: str, family: str, dtype: torch.dtype) -> None:
    model = make(kind, family).to(dtype)
    z = torch.randn(11, 5, 3, dtype=dtype)
    x = (torch.rand(5, *model.input_shape, dtype=dtype) * 255).round() / 255
    with torch.no_grad():
        q, expected = (
            PackedEncoder(model, FrozenLayers(model)).posterior(x.flatten(1)),
            model.encode(x),
        )
        close(q.loc, expected.loc, near_zero=True)
        close(q.log_variance, expected.log_variance, near_zero=True)
        close(
            decoder(model).log_likelihood(z, x.flatten(1)),
            model.log_likelihood(x, z),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_knows_no_other(kind: str) -> None:
    model = make(kind)
    x, encoder = torch.rand(13, 63), PackedEncoder(model, FrozenLayers(model))
    whole = encoder.posterior(x)
    for i in range(13):
        alone = encoder.posterior(x[i : i + 1])
        assert torch.equal(alone.loc[0], whole.loc[i])
        assert torch.equal(alone.log_variance[0], whole.log_variance[i])


PACKED = pytest.mark.parametrize(
    ("can_pack", "network"),
    [(can_pack_encoder, "trunk"), (_packed_decoder.pack, "decoder")],
    ids=["encoder", "decoder"],
)


@PACKED
def test_what_cannot_be_packed(can_pack: Callable[[lipvae.VAE], bool], network: str) -> None:
    model = make("plain")
    with lipvae.backend("reference"):
        assert not can_pack(model)
    for hooked in (getattr(model, network), getattr(model, network)[1]):
        handle = hooked.register_forward_hook(lambda *_: None)
        assert not can_pack(model)
        handle.remove()
    assert can_pack(model)
    getattr(model, network)[2] = nn.Tanh()
    assert not can_pack(model)
    convolutional = lipvae.LipschitzVAE((1, 8, 8), 2, decoder_lipschitz=2.0)
    assert not can_pack(convolutional)


def test_what_a_subclass_computes_itself_is_not_packed() -> None:
    class Own(lipvae.VAE):
        def decode_hidden(self, z: Tensor) -> Tensor:
            return 2 * super().decode_hidden(z)

        def _encode(self, x: Tensor) -> NormalPosterior:
            return super()._encode(1 - x)

    own = Own((1, 8, 8), 2, "fc", (8,))
    assert not _packed_decoder.pack(own)
    assert not can_pack_encoder(own)
    assert not can_pack_encoder(lipvae.HypersphericalVAE((1, 8, 8), 3, "fc", (8,)))
    for architecture, hidden in (("fc", (8,)), ("conv", (4, 8))):
        assert not _packed_decoder.pack(lipvae.BayesianVAE((1, 8, 8), 3, architecture, hidden))


CONVOLUTIONAL = {
    "grey": ((1, 9, 14), (5, 6, 20), "bernoulli"),
    "colour": ((3, 8, 8), (9, 16, 20), "discretized_logistic"),
    "levels": ((1, 8, 8), (4, 20), "categorical256"),
    "default": ((1, 28, 28), None, "gaussian"),
}


@DTYPES
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_decoder_is_the_models(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape, hidden, family = CONVOLUTIONAL[name]
    model = lipvae.VAE(shape, 3, "conv", hidden, family).to(dtype).eval()
    z = torch.randn(11, 5, 3, dtype=dtype)
    x = (torch.rand(5, *shape, dtype=dtype) * 255).round() / 255
    with torch.no_grad():
        packed = decoder(model)
        assert isinstance(packed, _packed_decoder.ConvolutionalDecoder)
        got = packed.log_likelihood(z, x.flatten(1))
        close(got, model.log_likelihood(x, z))
        for i in range(5):  # images do not reach each other
            assert torch.equal(
                packed.log_likelihood(z[:, i : i + 1], x[i : i + 1].flatten(1)), got[:, i : i + 1]
            )
        assert torch.equal(packed.log_likelihood(z[3:4], x.flatten(1)), got[3:4])


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.__setitem__(-1, nn.ConvTranspose2d(4, 1, 4, dilation=2)),
        lambda layers: layers.__setitem__(-1, nn.ConvTranspose2d(4, 4096, 4)),  # too many taps
        lambda layers: layers.__setitem__(-2, nn.Tanh()),
        lambda layers: layers.append(nn.ReLU()),
        lambda layers: layers[-1].register_forward_pre_hook(lambda *_: None),
    ],
)
def test_convolutions_that_cannot_be_packed(change: Callable[[nn.Sequential], object]) -> None:
    model = lipvae.VAE((1, 8, 8), 2, "conv", (4, 8))
    assert _packed_decoder.pack(model)
    change(model.decoder)
    assert not _packed_decoder.pack(model)


@DTYPES
def test_transposed_convolutions(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for channels, kernel, stride, padding, more in (
        ((5, 7), (4, 4), (2, 2), (1, 1), (1, 0)),
        ((3, 1), (3, 5), (3, 2), (0, 2), (2, 1)),
        ((2, 16), (2, 2), (1, 1), (1, 0), (0, 0)),
    ):
        weight = torch.randn(*channels, *kernel, generator=generator, dtype=dtype)
        bias = torch.randn(channels[1], generator=generator, dtype=dtype)
        x = torch.randn(4, channels[0], 6, 5, generator=generator, dtype=dtype)
        for b in (bias, None):
            expected = nn.functional.conv_transpose2d(x, weight, b, stride, padding, more)
            layer = PackedConvTranspose2d(weight, b, stride, padding, more)
            got = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            scale = nn.functional.conv_transpose2d(
                x.abs(), weight.abs(), None if b is None else b.abs(), stride, padding, more
            )
            assert ((got - expected).abs() <= 16 * torch.finfo(dtype).eps * scale).all()
            assert torch.equal(
                layer(x.permute(0, 2, 3, 1), relu=True).permute(0, 3, 1, 2), got.relu()
            )
    assert layer(torch.empty(0, 6, 5, 2, dtype=dtype)).shape == (0, 5, 6, 16)
    with pytest.raises(ValueError, match=r"x must be torch\.float.* \[N, H, W, 2\]"):
        layer(torch.rand(1, 6, 5, 3, dtype=dtype))


def test_what_is_not_finite_stays_in_its_image() -> None:
    weight = torch.randn(3, 5, 4, 4)
    x = torch.randn(6, 4, 4, 3)
    layer = PackedConvTranspose2d(weight, None, (2, 2), (1, 1))
    clean = layer(x)
    x[2, 0, 1, 1], x[4, 3, 3, 2] = torch.nan, torch.inf
    got = layer(x)
    assert got[2].isnan().any()
    assert not got[4].isfinite().all()
    assert torch.equal(got[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def _step(model: lipvae.VAE) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    model.elbo(torch.rand(4, *model.input_shape)).sum().backward()
    optimizer.step()


def _fused_step(model: lipvae.VAE) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)  # counts no version itself
    model.elbo(torch.rand(4, *model.input_shape)).sum().backward()
    optimizer.step()


def _new_storage(model: lipvae.VAE) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.01


def _radius(model: lipvae.VAE) -> None:
    model.loc.lipschitz *= 0.5  # type: ignore[operator, union-attr]


def _activation(model: lipvae.VAE) -> None:
    model.decoder[0] = nn.Sequential(model.decoder[0], nn.Tanh())


def _hook(model: lipvae.VAE) -> None:
    model.trunk.register_forward_hook(lambda _, __, out: 2 * out)


def _load(model: lipvae.VAE) -> None:
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()})


@pytest.mark.parametrize(
    "change", [_step, _fused_step, _new_storage, _radius, _activation, _hook, _load]
)
@pytest.mark.parametrize("kind", ["group sort", "Lipschitz decoder"])
def test_no_score_is_of_weights_that_were(kind: str, change: Callable[[lipvae.VAE], None]) -> None:
    model = make(kind)
    scorer, x = lipvae.Scorer(model, num_samples=8), torch.rand(3, 1, 9, 7)
    before = scorer(x)["elbo"]
    change(model)
    after = scorer(x)["elbo"]
    assert not torch.equal(after, before)
    assert torch.equal(after, lipvae.Scorer(model, num_samples=8)(x)["elbo"])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_packed_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    kernels = importlib.import_module("lipvae._C")

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(kernels, name)
        return lambda *args: calls.append(name) or real(*args)

    names = ("linear_pack", "lipschitz_linear_forward", "l1_ball_forward")
    for name in names:
        monkeypatch.setattr(kernels, name, counted(name))
    model = make(kind)
    scorer, x = lipvae.Scorer(model, num_samples=8), torch.rand(3, 1, 9, 7)
    first = scorer(x)
    assert "linear_pack" in calls
    assert ("lipschitz_linear_forward" in calls) == (kind != "plain")
    calls.clear()
    again = scorer(x)
    assert not calls
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_scorer_packs_for_itself(copied: Callable[[lipvae.Scorer], lipvae.Scorer]) -> None:
    model = make("group sort")
    scorer, x = lipvae.Scorer(model, num_samples=8), torch.rand(3, 1, 9, 7)
    before = scorer(x)["elbo"]
    other = copied(scorer)
    assert torch.equal(other(x)["elbo"], before)
    _step(other.model)  # type: ignore[arg-type]
    assert not torch.equal(other(x)["elbo"], before)
    assert torch.equal(scorer(x)["elbo"], before)


def test_weights_of_inference_mode_are_read_anew() -> None:
    # They have no version, so a change could not be seen.
    with torch.inference_mode():
        model = lipvae.VAE((1, 8, 8), 2, "fc", (8,)).eval()
        scorer, x = lipvae.Scorer(model, num_samples=8), torch.rand(3, 1, 8, 8)
        before = scorer(x)["elbo"]
        model.decoder[0].weight.mul_(2)
        assert not torch.equal(scorer(x)["elbo"], before)
