"""Evaluations as tables and pictures."""

from lipvae.report.evaluation import Evaluation, evaluate
from lipvae.report.histograms import check_picture, draw_histograms
from lipvae.report.tables import latent_table, metrics_table

__all__ = [
    "Evaluation",
    "check_picture",
    "draw_histograms",
    "evaluate",
    "latent_table",
    "metrics_table",
]
