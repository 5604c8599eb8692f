"""scipy's own tests of vonmises_fisher, run against lipvae.stats.vonmises_fisher."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose, assert_equal
from scipy.stats import uniform_direction, vonmises

from lipvae.ops.vmf_density import moments
from lipvae.stats import vonmises_fisher


class _Reseed(ast.NodeTransformer):
    """Gives test_fit_accuracy another seed at m = 6 and kappa = 1.

    Its tolerance there, 0.05, is below 0.0555, the expected error of the mean direction of 10,000
    exact samples: with other seeds scipy's own sampler fails every other time (97 of 200 passed).
    A seed fits one stream of random numbers; ours needs its own. The distribution of that error is
    tested below.
    """

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if node.value != 2777937887058094419:
            return node
        return (
            ast.parse(f"{node.value + 1} if (dim, kappa) == (6, 1) else {node.value}").body[0].value
        )

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self.generic_visit(node) if node.name == "test_fit_accuracy" else node


def _scipys_class() -> type:
    """scipy's test class, compiled from its source with our object under the name of theirs."""
    spec = importlib.util.find_spec("scipy.stats.tests.test_multivariate")
    if spec is None or spec.origin is None:
        pytest.skip("this scipy comes without its tests", allow_module_level=True)
    source = ast.fix_missing_locations(_Reseed().visit(ast.parse(Path(spec.origin).read_text())))
    source.body = [
        node
        for node in source.body
        if isinstance(node, ast.ClassDef) and node.name == "TestVonMises_Fisher"
    ]
    scope = {
        "__name__": __name__,
        "assert_allclose": assert_allclose,
        "assert_equal": assert_equal,
        "np": np,
        "pytest": pytest,
        "uniform_direction": uniform_direction,
        "vonmises": vonmises,
        "vonmises_fisher": vonmises_fisher,
    }
    exec(compile(source, spec.origin, "exec"), scope)  # (scipy's code, from the installed package)
    return scope["TestVonMises_Fisher"]  # type: ignore[return-value]


TestVonMisesFisher = _scipys_class()


def test_all_of_scipys_tests_were_taken() -> None:
    assert sum(name.startswith("test_") for name in dir(TestVonMisesFisher)) >= 17


@pytest.mark.parametrize("dim", [2, 5, 30])
@pytest.mark.parametrize("kappa", [1e-2, 3.0, 200.0])
def test_density_and_entropy_agree_with_scipys(dim: int, kappa: float) -> None:
    mu = np.eye(dim)[1]
    x = scipy.stats.uniform_direction(dim).rvs(20, random_state=np.random.default_rng(3))
    ours, theirs = vonmises_fisher(mu, kappa), scipy.stats.vonmises_fisher(mu, kappa)
    np.testing.assert_allclose(ours.logpdf(x), theirs.logpdf(x), rtol=1e-11)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 40, 4096])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 50.0, 1e7])
def test_fit_inverts_the_mean_resultant_length(dim: int, kappa: float) -> None:
    at = moments(torch.tensor(kappa, dtype=torch.float64), dim)
    # Two points at the angle to mu whose cosine is A.
    x = np.zeros((2, dim))
    x[:, 0] = float(at.mean)
    x[:, 1] = np.sqrt(float(at.complement) * (1 + float(at.mean))) * np.array([1, -1])
    mu, found = vonmises_fisher.fit(x)
    assert mu[0] == pytest.approx(1)
    # The norm of a mean near 1 keeps only the digits that 1 - A leaves it.
    tolerance = 1e-9 + 4 * 2.2e-16 / float(at.complement)
    assert found == pytest.approx(kappa, rel=tolerance)


def test_fit_refuses_what_has_no_maximum() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        vonmises_fisher.fit(np.array([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        vonmises_fisher.fit(np.array([[1.0, 0.0], [-1.0, 0.0]]))


def test_the_fitted_direction_errs_as_it_should() -> None:
    """The tangent part of the mean of n samples is normal with variance A / (kappa n)."""
    dim, kappa, n, repeats = 6, 1.0, 1000, 300
    x = vonmises_fisher(np.eye(dim)[0], kappa).rvs((repeats, n), random_state=5)
    mean = x.mean(axis=1)
    across = (mean[:, 1:] ** 2).sum(axis=1)
    at = moments(torch.tensor(kappa, dtype=torch.float64), dim)
    chi_squared = across * n / float(at.mean_over_kappa)
    assert scipy.stats.kstest(chi_squared, scipy.stats.chi2(dim - 1).cdf).pvalue > 1e-4
