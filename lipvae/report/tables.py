"""Tables for a terminal or a file."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text
from torch import Tensor

from lipvae.nn import Certificate
from lipvae.report.evaluation import Evaluation
from lipvae.scores import SCORES


def metrics_table(evaluation: Evaluation, title: str) -> Table:
    """AUROC, both AUPRCs and FPR80 of every score against every outlier set, in percent."""
    # Text, since brackets in names are not markup.
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    table.caption = Text(
        f"Inliers: {evaluation.inlier_name}. Per cent; a score is higher for outliers. AUPRC has "
        "the outliers as the positive class, AUPRC(in) the inliers. FPR80: inliers flagged where "
        "80% of the outliers are."
    )
    table.add_column("Outliers", overflow="fold")
    table.add_column("Score", no_wrap=True)
    for name in ("AUROC", "AUPRC", "AUPRC(in)", "FPR80"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, by_score in evaluation.metrics.items():
        for row, (score, found) in enumerate(by_score.items()):
            values = (found.auroc, found.auprc, found.auprc_inlier, found.fpr80)
            table.add_row(
                Text("" if row else name),
                SCORES[score].title if score in SCORES else score,
                *(f"{100 * value:.2f}" for value in values),
            )
        table.add_section()
    return table


def latent_table(certificate: Certificate, means: dict[str, Tensor]) -> Table:
    """Where the encoder's means may lie, and where those of some images do lie.

    Args:
        certificate: of the mean head over [0, 1]^n.
        means: f(x) [N, m] of some images, by name.
    """
    table = Table(title="Latent means f(x)", title_justify="left", caption_justify="left")
    table.caption = (
        "Lowest and highest coordinate, and the farthest that one is from f(1/2), its value at "
        "the mid-grey image."
    )
    table.add_column("", overflow="fold")
    for name in ("lowest", "highest", "max |f(x) - f(1/2)|"):
        table.add_column(name, justify="right", no_wrap=True)
    centre = certificate.center
    half = certificate.bound / 2
    rows: dict[str, tuple[float | Tensor, ...]] = {
        f"guaranteed by M = {certificate.bound:g}": (
            centre.min() - half,
            centre.max() + half,
            half,
        ),
        "certified for these weights, rounding included": (
            certificate.lower.min(),
            certificate.upper.max(),
            certificate.radius.max(),
        ),
    }
    for name, mean in means.items():
        y = mean.detach().to(centre)
        rows[f"observed: {name}"] = (y.min(), y.max(), (y - centre).abs().max())
    for name, values in rows.items():
        table.add_row(Text(name), *(f"{float(value):.4f}" for value in values))
    return table
