"""Products whose rows do not reach each other, and the decoder made of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lipvae
from lipvae import reference
from lipvae._packed_decoder import PackedDecoder, can_pack
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
        with pytest.raises(ValueError, match=r"x must be torch\.float32 \[N, 8\]"):
            product(bad)


def test_a_pack_is_a_copy() -> None:
    weight, bias = layer(5, 8, torch.float32)
    product, x = PackedLinear(weight, bias), rows(3, 8, torch.float32)
    before = product(x)
    weight.zero_()
    assert torch.equal(product(x), before)


@DTYPES
@pytest.mark.parametrize("family", reference.FAMILIES)
def test_the_decoder_is_the_models(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = (1, 3, 3) if family == "categorical256" else (1, 9, 7)
    model = lipvae.VAE(shape, 3, "fc", (37, 21), family).to(dtype)
    assert can_pack(model)
    z = torch.randn(11, 5, 3, dtype=dtype)
    x = (torch.rand(5, *shape, dtype=dtype) * 255).round() / 255
    with torch.no_grad():
        got = PackedDecoder(model).log_likelihood(z, x.flatten(1))
        expected = model.log_likelihood(x, z)
    torch.testing.assert_close(
        got, expected, rtol=2e-5 if dtype == torch.float32 else 1e-12, atol=0
    )


def test_what_cannot_be_packed() -> None:
    assert not can_pack(lipvae.VAE((1, 8, 8), 2))  # convolutional
    assert not can_pack(lipvae.LipschitzVAE((1, 8, 8), 2, "fc", (8,), decoder_lipschitz=2.0))
    model = lipvae.VAE((1, 8, 8), 2, "fc", (8,))
    with lipvae.backend("reference"):
        assert not can_pack(model)
    handle = model.decoder[0].register_forward_hook(lambda *_: None)
    assert not can_pack(model)
    handle.remove()
    assert can_pack(model)
    model.decoder[1] = nn.Tanh()
    assert not can_pack(model)

    class Own(lipvae.VAE):
        def decode_hidden(self, z: Tensor) -> Tensor:
            return 2 * super().decode_hidden(z)

    assert not can_pack(Own((1, 8, 8), 2, "fc", (8,)))
