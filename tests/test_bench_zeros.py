"""What the bench counts as zero."""

import load_bench  # noqa: F401
import pytest
import torch

import lipvae
from bench import report, zeros
from bench.__main__ import main


def test_shares_unite_six_samples_or_six_images():
    on = torch.zeros(12, 6, 10, dtype=torch.bool)  # [K, B, units]
    on[0, 0, 0] = True
    # One of 2 x 6 strips of samples, or of 1 x 12 strips of images, has one of ten units.
    assert zeros.shares(on) == pytest.approx((1 / 720, 1 / 120, 1 / 120))
    on[:, :, 1] = True
    assert zeros.shares(on) == pytest.approx((1 / 720 + 0.1, 1 / 120 + 0.1, 1 / 120 + 0.1))


@pytest.mark.parametrize("architecture", ["fc", "conv"])
def test_active_units_are_those_behind_a_relu(architecture):
    torch.manual_seed(0)
    model = lipvae.VAE((1, 8, 8), 3, architecture, (8, 12)).eval()
    x = torch.rand(2, 1, 8, 8)
    found = dict(zeros.active(model, x))
    names = {
        "fc": {"12 → 8": 8, "8 → 64": 64},
        "conv": {"12 → 128": 128, "8 to 1 channels": 64},
    }[architecture]  # fmt: skip
    assert found.keys() == names.keys()
    # A layer that nothing reaches: its bias alone goes on.
    with torch.no_grad():
        model.decoder[0].bias.fill_(-1e6)
    first = next(iter(zeros.active(model, x)))
    assert not first[1].any()
    assert 0.2 < float(found[first[0]].float().mean()) < 0.8


def test_a_decoder_without_relu_has_no_such_units():
    model = lipvae.LipschitzVAE((1, 8, 8), 2, "fc", (8,), decoder_lipschitz=3.0).eval()
    assert list(zeros.active(model, torch.rand(1, 1, 8, 8))) == []


def test_the_command_fills_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zeros, "STEPS", (0, 1))
    monkeypatch.setattr(zeros, "HIDDEN", (16, 16))
    path = tmp_path / "model.safetensors"
    lipvae.save(lipvae.VAE((1, 8, 8), 2, "fc", (16,)), path)
    page = tmp_path / report.PAGE
    sections = (report.WEIGHTS, report.UNITS)
    page.write_text("\n".join(line for name in sections for line in report.markers(name)))
    assert main(["zeros", "--model", str(path), "digits", "--out", str(tmp_path)]) == 0
    lines = page.read_text().splitlines()
    assert any(line.startswith("| 0 | 100 | 100 |") for line in lines)
    assert any(line.startswith("| digits, fc | 16 → 64 |") for line in lines)
    assert "| 1 |" in capsys.readouterr().out


def test_an_ensemble_is_refused(tmp_path):
    path = tmp_path / "ensemble.safetensors"
    members = [lipvae.VAE((1, 8, 8), 2, "fc", (8,)) for _ in range(2)]
    lipvae.save(lipvae.Ensemble(members), path)
    with pytest.raises(ValueError, match="ensemble"):
        zeros.unit_table([(path, "digits")])


def test_a_missing_model_is_told_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(zeros, "STEPS", (0,))
    with pytest.raises(SystemExit):
        main(["zeros", "--model", "nowhere.safetensors", "digits"])
    assert "nowhere.safetensors" in capsys.readouterr().err
