"""The classes of the generated objects, as functions that draw them.

A class is a function of coordinates ``(u, v)`` in the object's frame, which reach from about -1 to 1, with ``u`` along
the object. It returns the distance to the outline (negative inside, in units of half the length), the index into the
object's palette (0 body, 1 part, 2 mark) and a faint texture of the body in about [-0.3, 0.3], all shaped like ``u``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 in practice; NumPy's stubs lose track of it
Bytes = NDArray[np.uint8]

SHAPE_CLASSES = ("fish", "lock", "beetle", "kite", "moon")
"""Each class has a plain body of its own outline and a small patterned part; colours say nothing about the class."""

Drawing = tuple[Floats, Bytes, Floats]


def _indices(part: NDArray[np.bool_], mark: NDArray[np.bool_]) -> Bytes:
    return np.where(mark, np.uint8(2), part.astype(np.uint8))


def _ellipse(u: Floats, v: Floats, a: float, b: float) -> Floats:
    """Distance to an ellipse: first order, good near the outline."""
    k = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    slope = np.sqrt((u / a**2) ** 2 + (v / b**2) ** 2)
    return (k - 1) * k / np.maximum(slope, 1e-3)


def _fish(u: Floats, v: Floats) -> Drawing:
    """An ellipse with an eye and scales, and a striped tail fin."""
    body = _ellipse(u + 0.25, v, 0.75, 0.45)
    fin = np.maximum(u - 1, 0.78 * (abs(v) - 0.85 * (u - 0.3) - 0.05))
    in_fin = fin < body
    eye = np.hypot(u + 0.65, v - 0.1) < 0.085
    stripes = in_fin & (np.sin(22 * u) > 0)
    return np.minimum(body, fin), _indices(in_fin, eye | stripes), 0.08 * np.sin(16 * u) * np.sin(16 * v)


def _lock(u: Floats, v: Floats) -> Drawing:
    """A brushed rounded square with a ring; what lies behind shows through the ring."""
    qu, qv = abs(u + 0.32) - 0.56, abs(v) - 0.5
    body = np.hypot(np.maximum(qu, 0), np.maximum(qv, 0)) + np.minimum(np.maximum(qu, qv), 0) - 0.12
    from_ring = np.hypot(u - 0.45, v)
    ring = abs(from_ring - 0.42) - 0.13
    in_ring = ring < body
    marks = in_ring & (np.sin(8 * np.arctan2(v, u - 0.45)) > 0.3)
    return np.minimum(body, ring), _indices(in_ring, marks), 0.08 * np.sin(24 * v)


def _beetle(u: Floats, v: Floats) -> Drawing:
    """An oval with a notch behind and a seam along the back, spotted in front."""
    notch = 0.8 * (abs(v) - 0.6 * (-u - 0.45))
    outline = np.maximum(_ellipse(u, v, 1.0, 0.72), -notch)
    spots = np.zeros(u.shape, bool)
    for spot_u, spot_v in ((0.72, 0.0), (0.45, 0.33), (0.45, -0.33), (0.18, 0.08), (0.12, 0.5), (0.12, -0.5)):
        spots |= np.hypot(u - spot_u, v - spot_v) < 0.12
    seam = (abs(v) < 0.045) & (u < 0)
    return outline, _indices(np.hypot(u - 0.95, v) < 0.35, spots), -0.3 * seam.astype(np.float32)


def _kite(u: Floats, v: Floats) -> Drawing:
    """A kite of two tones, chequered at its blunt end."""
    outline = np.maximum(0.72 * (abs(v) - 0.66 * (1 - u) / 0.7), 0.9 * (abs(v) - 0.66 * (1 + u) / 1.3))
    tip = u > 0.34
    checks = tip & ((np.sin(14 * u) > 0) ^ (np.sin(14 * v) > 0))
    return outline, _indices(tip, checks), 0.12 * np.sign(v)


def _moon(u: Floats, v: Floats) -> Drawing:
    """A mottled crescent with bands around one horn; its centroid may lie outside."""
    u, v = v, u  # the long axis joins the horns
    outline = np.maximum(np.hypot(u, v) - 1, 0.68 - np.hypot(u - 0.52, v))
    horn = v > 0.45
    bands = horn & (np.sin(24 * np.arctan2(v, u + 0.3)) > 0)
    return outline, _indices(horn, bands), 0.07 * (np.sin(9 * u + 13 * v) + np.sin(15 * u - 8 * v))


DRAWINGS: tuple[Callable[[Floats, Floats], Drawing], ...] = (_fish, _lock, _beetle, _kite, _moon)
