"""What each interactive figure is given: arrays of a dataset, bit for bit or to the digits shown.

A payload is plain JSON; arrays travel as base64, little-endian. No number is made here: the
browser draws what an experiment measured, and what its theory predicted, beside it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

Payload = dict[str, Any]


@dataclass(frozen=True)
class Interactive:
    """An interactive figure: its name, the experiment it shows, and what it is given.

    `problem` says in a sentence why there is nothing to show; it is empty where there is.
    """

    name: str
    experiment: str
    payload: Payload | None
    problem: str = ""


def figures(found: dict[str, xr.Dataset | None]) -> dict[str, Interactive]:
    """The interactive figures by name; `found` has the dataset of each experiment that has one."""
    return {name: _figure(name, *entry, found) for name, entry in FIGURES.items()}


def _figure(
    name: str,
    experiment: str,
    payload: Callable[[xr.Dataset], Payload],
    found: dict[str, xr.Dataset | None],
) -> Interactive:
    data = found.get(experiment)
    if data is None:
        return Interactive(name, experiment, None, f"{experiment} has no dataset yet")
    try:
        return Interactive(name, experiment, payload(data))
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        why = f"the dataset of {experiment} lacks what this figure needs: {error}"
        return Interactive(name, experiment, None, why)


def exact(values: Any) -> dict[str, Any]:
    """An array as float64, bit for bit."""
    return _packed(np.asarray(values), "<f8", 0)


def decimals(values: Any, places: int) -> dict[str, Any]:
    """An array to so many decimals, as integers; nan and infinities become the outermost ones."""
    scaled = np.round(np.asarray(values, dtype=float) * 10.0**places)
    limits = np.iinfo(np.int32)
    whole = np.where(np.isnan(scaled), limits.min, np.clip(scaled, -limits.max, limits.max))
    return _packed(whole, "<i4", places)


def _packed(values: Any, kind: str, places: int) -> dict[str, Any]:
    text = base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()
    return {"shape": list(np.shape(values)), "kind": kind, "places": places, "base64": text}


def unpacked(packed: Mapping[str, Any]) -> Any:
    """The array in a payload, as the browser reads it; for one that came by `exact`."""
    flat = np.frombuffer(base64.b64decode(packed["base64"]), packed["kind"])
    return flat.reshape(packed["shape"])


# ---- the scalar chain


def chain(data: xr.Dataset) -> Payload:
    """The line of every weight of the fine grid, and the depths at which formats fail."""
    layer = data.layer.values
    deepest = int(layer[-1])
    views = sorted({depth for depth in (100, 1_000, 10_000) if depth < deepest} | {deepest})
    return {
        "w": exact(data.w_fine),
        "layer": [int(depth) for depth in layer],
        "log10": exact(data.log10_fine),
        "views": views,
        "formats": [str(name) for name in data.format.values],
        "zero": exact(data.first_zero_fine),
        "infinite": exact(data.first_infinite_fine),
        "wrong": exact(data.first_wrong_fine),
        "edges": edges(data),
    }


def edges(data: xr.Dataset) -> list[dict[str, Any]]:
    """For each format the typical magnitude at which it has 0, and infinity, log10."""
    return [
        {
            "format": str(name),
            "floor": _typical(data, data.first_zero_fine.sel(format=name).values),
            "ceiling": _typical(data, data.first_infinite_fine.sel(format=name).values),
        }
        for name in data.format.values
    ]


def _typical(data: xr.Dataset, depths: Any) -> float | None:
    """The median over the grid of the true magnitude at which a format failed, log10, or None."""
    layer = data.layer.values
    seen = [
        float(np.interp(depth, layer, line))
        for depth, line in zip(depths, data.log10_fine.values, strict=True)
        if layer[0] <= depth <= layer[-1]
    ]
    return float(np.median(seen)) if seen else None


# ---- the random network


def network(data: xr.Dataset) -> Payload:
    """Median and quartiles over seeds for each activation and sigma_w, plain and residual."""
    return {
        "activations": [str(name) for name in data.activation.values],
        "kinds": [str(kind) for kind in data.kind.values],
        "sigma_w": exact(data.sigma_w),
        "back": [int(count) for count in data.back.values],
        "median": decimals(_ordered(data.log10_median), 3),
        "low": decimals(_ordered(data.log10_low), 3),
        "high": decimals(_ordered(data.log10_high), 3),
        "predicted": decimals(data.log10_predicted.transpose("activation", "sigma_w", "back"), 3),
        "chi_1": exact(data.chi_1.transpose("activation", "sigma_w")),
        "width": int(data.attrs["width"]),
        "num_seeds": int(data.attrs["num_seeds"]),
    }


def _ordered(values: xr.DataArray) -> xr.DataArray:
    return values.transpose("activation", "kind", "sigma_w", "back")


# ---- clipping


def clipping(data: xr.Dataset) -> Payload:
    """One descent for each tau: where it goes, its gradient and the step that is left of it."""
    axes = ("tau", "step")
    return {
        "tau": exact(data.tau),
        "num_steps": int(data.sizes["step"]),
        **{
            name: exact(data[name].transpose(*axes))
            for name in ("w", "b", "loss", "gradient_norm", "clipped_norm", "step_size")
        },
        "map": {
            "w": [float(data.w_map[0]), float(data.w_map[-1])],
            "b": [float(data.b_map[0]), float(data.b_map[-1])],
            "loss": decimals(data.loss_map.transpose("b_map", "w_map"), 3),
        },
        "meets": int(np.argmax(data.gradient_norm.isel(tau=-1).values)),
        "learning_rate": float(data.attrs["learning_rate"]),
    }


FIGURES: dict[str, tuple[str, Callable[[xr.Dataset], Payload]]] = {
    "chain": ("scalar_chain", chain),
    "network": ("random_network", network),
    "clipping": ("wall", clipping),
}
