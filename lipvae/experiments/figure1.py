"""Figure 1: where a sphere keeps its inliers, where outliers fall, and the density of the codes."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch
from torch import Tensor

from lipvae.experiments import markdown, store, subsets, table1, table2
from lipvae.experiments.runner import Runner
from lipvae.experiments.settings import SPHERE, Pair
from lipvae.experiments.tasks import Task
from lipvae.models import HypersphericalVAE
from lipvae.scores.latent import aggregated_log_density

NAME = "figure1"
TITLE = "Figure 1: the sphere"
DEFAULT_PAIRS = table1.DEFAULT_PAIRS
PLOTS = True
AVERAGED = False  # over seeds
SEEDS = (1, 1)  # by default, and with --quick

# Cells of the density: rows from the north pole to the south, columns from longitude 0 eastwards.
LATITUDES, LONGITUDES = 90, 180
POINTS = 400  # of each set
DYNAMIC_RANGE = 6.0  # nats of the density below its peak that a picture shows

Array = npt.NDArray[Any]


def _path(runner: Runner, inliers: str, seed: int, name: str) -> Path:
    key = runner.model_key(SPHERE, inliers, seed)
    return runner.out / "spheres" / key / f"{name}-{POINTS}.safetensors"


def grid() -> Tensor:
    """The cells' middles, float64 [LATITUDES * LONGITUDES, 3]."""
    colatitude = (torch.arange(LATITUDES, dtype=torch.float64) + 0.5) * (math.pi / LATITUDES)
    longitude = (torch.arange(LONGITUDES, dtype=torch.float64) + 0.5) * (2 * math.pi / LONGITUDES)
    theta, phi = torch.meshgrid(colatitude, longitude, indexing="ij")
    x = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], -1)
    return x.reshape(-1, 3)


def _posterior(runner: Runner, inliers: str, seed: int, images: Tensor) -> Any:
    model = runner.model(SPHERE, inliers, seed)
    assert isinstance(model, HypersphericalVAE)
    with torch.no_grad():
        return model.encode(images.to(runner.device))


def _points_task(runner: Runner, inliers: str, seed: int, name: str) -> Task:
    path = _path(runner, inliers, seed, name)

    def run() -> None:
        images = runner.images.test(name, POINTS, inliers)
        posterior = _posterior(runner, inliers, seed, images)
        found = {"loc": posterior.loc.cpu(), "concentration": posterior.concentration.cpu()}
        store.write_tensors(path, found, {})

    label = f"encode {subsets.title(name)} by {SPHERE.title} of {subsets.title(inliers)}"
    return Task(str(path), label, 1.0, path.exists, run)


def _density_task(runner: Runner, inliers: str, seed: int) -> Task:
    path = _path(runner, inliers, seed, "density")

    def run() -> None:
        images = runner.images.train(inliers).float()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        images = images[order[: runner.budget.calibration_images]]
        posterior = _posterior(runner, inliers, seed, images)
        density = aggregated_log_density(grid().to(runner.device), posterior)
        store.write_tensors(path, {"log_density": density.cpu()}, {})

    label = f"density of the codes by {SPHERE.title} of {subsets.title(inliers)}"
    return Task(str(path), label, 5.0, path.exists, run)


def tasks(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Task]:
    """The models of Table 1, of the first seed, and what they make of the images."""
    seed, found = seeds[0], []
    for inliers, outliers in table2.available(runner, pairs).items():
        found.append(runner.train_task(SPHERE, inliers, seed))
        found.append(_density_task(runner, inliers, seed))
        found += [_points_task(runner, inliers, seed, name) for name in (inliers, *outliers)]
    return found


def assemble(runner: Runner, pairs: Sequence[Pair], seeds: Sequence[int]) -> dict[str, Any]:
    """Points and densities, as far as they are there."""
    seed = seeds[0]
    missing = [(pair, table2.obstacle(runner, pair)) for pair in pairs]
    spheres = []
    for inliers, outliers in table2.available(runner, pairs).items():
        density = _path(runner, inliers, seed, "density")
        if not density.exists():
            continue
        log_density = store.read_tensors(density)["log_density"]
        sets = {}
        for name in (inliers, *outliers):
            path = _path(runner, inliers, seed, name)
            if path.exists():
                tensors = store.read_tensors(path)
                density_at = log_density[_cells(tensors["loc"])]
                sets[name] = {
                    "title": subsets.title(name),
                    "points": [[round(c, 4) for c in row] for row in tensors["loc"].tolist()],
                    "concentration": float(tensors["concentration"].median()),
                    "log_density": float(density_at.median()),
                }
        spheres.append(
            {
                "inliers": inliers,
                "title": subsets.title(inliers),
                "log_density": [round(value, 3) for value in log_density.tolist()],
                "sets": sets,
            }
        )
    return {
        "latitudes": LATITUDES,
        "longitudes": LONGITUDES,
        "missing": [reason for _, reason in missing if reason is not None],
        "spheres": spheres,
    }


def _place(x: Array) -> tuple[Array, Array]:
    """Rows and columns of directions [N, 3], counted in cells from the grid's corner."""
    row = np.arccos(x[:, 2].clip(-1, 1)) * (LATITUDES / math.pi)
    turn = np.arctan2(x[:, 1], x[:, 0]) % (2 * math.pi)
    return row, turn * (LONGITUDES / (2 * math.pi))


def _cells(x: Tensor) -> Tensor:
    """Indices of the cells that points [N, 3] lie in."""
    row, column = (torch.from_numpy(place).long() for place in _place(x.double().numpy()))
    return row.clamp(max=LATITUDES - 1) * LONGITUDES + column.clamp(max=LONGITUDES - 1)


def render(result: dict[str, Any]) -> str:
    """What the sphere looks like in numbers, as Markdown."""
    parts = [markdown.preamble(TITLE, result)]
    parts.append(
        f"Of seed {result['seeds'][0]}. The density is that of the aggregated posterior of "
        "training images, in nats, with respect to the sphere's area; the uniform density is "
        f"{-math.log(4 * math.pi):.2f}. Density and concentration are medians, "
        f"of at most {POINTS} test images. figure1.html shows the spheres and lets them turn.\n"
    )
    parts += [f"Not run: {reason}.\n" for reason in result["missing"]]
    for sphere in result["spheres"]:
        parts.append(f"## Trained on {sphere['title']}\n")
        lines = [
            [
                of["title"],
                str(len(of["points"])),
                markdown.number(of["log_density"]),
                markdown.number(of["concentration"], 1),
            ]
            for of in sphere["sets"].values()
        ]
        header = ["set", "images", "log density at the mean direction", "concentration"]
        parts.append(markdown.table(header, lines) + "\n")
    return "\n".join(parts)


def shades(log_density: Sequence[float]) -> Array:
    """The density as a picture shows it: 1 at its peak, 0 from `DYNAMIC_RANGE` nats below it."""
    values = np.asarray(log_density, dtype=np.float64)
    return np.clip(1 + (values - values.max()) / DYNAMIC_RANGE, 0, 1)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws two hemispheres for each sphere: towards the inliers' mean direction, and behind it."""
    from lipvae.experiments.plots import subplots

    spheres = result["spheres"]
    with subplots(path, max(1, len(spheres)), 2, width=4.2) as axes:
        for line, sphere in zip(axes, spheres, strict=False):
            centre = np.asarray(sphere["sets"][sphere["inliers"]]["points"]).mean(0)
            for ax, side in zip(line, (1.0, -1.0), strict=True):
                _draw(ax, sphere, _frame(side * centre))
                where = "towards the inliers" if side > 0 else "from behind"
                ax.set_title(f"{sphere['title']}: {where}", fontsize="medium")
            line[-1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))


def _frame(towards: Array) -> Array:
    """An orthonormal basis [3, 3] whose last row points to the viewer."""
    norm = float(np.linalg.norm(towards))
    view = towards / norm if norm > 1e-9 else np.array([0.0, 0.0, 1.0])
    aside = np.cross(np.eye(3)[int(np.abs(view).argmin())], view)
    aside /= np.linalg.norm(aside)
    return np.stack([aside, np.cross(view, aside), view])


def _draw(ax: Any, sphere: dict[str, Any], frame: Array) -> None:
    side = np.linspace(-1, 1, 361)
    x, y = np.meshgrid(side, side)
    inside = x * x + y * y < 1
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, None))
    directions = np.stack([x, y, z], -1)[inside] @ frame
    picture = np.full(x.shape, np.nan)
    picture[inside] = _interpolated(shades(sphere["log_density"]), directions)
    ax.imshow(
        picture, extent=(-1, 1, -1, 1), origin="lower", cmap="Blues", vmin=0, vmax=1.4, zorder=0
    )
    for number, of in enumerate(sphere["sets"].values()):
        seen = np.asarray(of["points"]) @ frame.T
        seen = seen[seen[:, 2] > 0]
        color = ("#1a1a1a", "#d1495b", "#edae49", "#3a7d44")[number % 4]
        ax.scatter(seen[:, 0], seen[:, 1], s=4, linewidths=0, color=color, label=of["title"])
    ax.set_axis_off()
    ax.set_aspect("equal")


def _interpolated(values: Array, directions: Array) -> Array:
    """Values between the cells' middles, linearly, around the sphere: [N] at directions [N, 3]."""
    table = np.pad(values.reshape(LATITUDES, LONGITUDES), ((1, 1), (0, 0)), mode="edge")
    table = np.pad(table, ((0, 0), (1, 1)), mode="wrap")
    # A cell's middle lies half a cell in, and the padding is one cell wide.
    row, column = _place(directions)
    found: Array = scipy.ndimage.map_coordinates(table, [row + 0.5, column + 0.5], order=1)
    return found


def page(result: dict[str, Any]) -> str:
    """The spheres as one HTML page that needs nothing else: drag to turn."""
    spheres = [
        {
            "title": sphere["title"],
            "shades": base64.b64encode(
                np.rint(255 * shades(sphere["log_density"])).astype(np.uint8).tobytes()
            ).decode("ascii"),
            "sets": [
                {"title": of["title"], "points": of["points"]} for of in sphere["sets"].values()
            ],
        }
        for sphere in result["spheres"]
    ]
    content = {
        "latitudes": result["latitudes"],
        "longitudes": result["longitudes"],
        "spheres": spheres,
    }
    template = files("lipvae.experiments").joinpath("sphere.html").read_text(encoding="utf-8")
    # A script element ends at the first "</", in a string or not.
    return template.replace("{{data}}", json.dumps(content).replace("</", "<\\/"))
