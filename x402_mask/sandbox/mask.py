"""mask-refinement itself: make a coarse mask follow the edges of its picture.

Three steps, all box filters and histograms in numpy: near the coarse outline the mask is doubted;
there, each pixel is judged by which side's colours it shares; a guided filter (He, Sun, Tang 2010)
with the picture's luminance as guide then lays the result along the edges.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

PIXELS_MAX = 4_000_000  # some 2 s and 300 MB of work
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_LEVELS = 16  # per colour channel: fine enough to tell a subject, coarse enough to fill the bins
_SOFT = (0.35, 0.65)

Plane = NDArray[np.float64]


def refine(photo: bytes, mask: bytes) -> bytes:
    """Return *mask* refined to the edges of *photo*, as a grey PNG of the photo's size.

    A mask of another size is scaled first. Raises ``ValueError`` for what is not a picture.
    """
    picture = ImageOps.exif_transpose(_open(photo, "ImageURL")).convert("RGB")
    coarse = _opacity(_open(mask, "MaskImageURL"))
    if coarse.size != picture.size:
        coarse = coarse.resize(picture.size, Image.Resampling.BILINEAR)
    colours = np.asarray(picture, dtype=np.uint8)
    refined = _refine(colours, np.asarray(coarse, dtype=np.float64) / 255)
    answer = io.BytesIO()
    Image.fromarray(np.round(refined * 255).astype(np.uint8)).save(answer, "PNG", optimize=True)
    return answer.getvalue()


def _open(content: bytes, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > PIXELS_MAX:
            raise ValueError(f"{name} has more than {PIXELS_MAX} pixels")
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{name} is not a readable picture ({', '.join(FORMATS)})") from None
    return image


def _opacity(image: Image.Image) -> Image.Image:
    """The mask as grey: its alpha channel if that says anything, else its brightness."""
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        low, high = alpha.getextrema()
        if low != high:
            return alpha
    return image.convert("L")


def _refine(colours: NDArray[np.uint8], coarse: Plane) -> Plane:
    radius = max(4, min(coarse.shape) // 20)
    around = _mean(coarse, radius)
    inside, outside = around > 0.98, around < 0.02
    if not inside.any() or not outside.any():  # a thin subject: trust the mask for its colours
        inside, outside = coarse > 0.5, coarse <= 0.5
    if not inside.any() or not outside.any():
        return coarse
    doubtful = (around >= 0.02) & (around <= 0.98)
    likely = _likelihood(colours, inside, outside, prior=_mean(coarse, radius // 3))
    guess = np.where(doubtful, likely, coarse)
    luminance = colours @ np.array([0.299, 0.587, 0.114]) / 255
    smooth = _guided(luminance, guess, radius=max(2, radius // 4), eps=1e-3)
    ramp = np.clip((smooth - _SOFT[0]) / (_SOFT[1] - _SOFT[0]), 0, 1)
    soft: Plane = ramp * ramp * (3 - 2 * ramp)
    return soft


def _likelihood(
    colours: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    *,
    prior: Plane,
) -> Plane:
    """How likely each pixel is inside, by its colour; *prior* decides for colours never seen."""
    steps = (colours // (256 // _LEVELS)).astype(np.intp)
    bins = (steps[..., 0] * _LEVELS + steps[..., 1]) * _LEVELS + steps[..., 2]
    within, without = _histogram(bins[inside]), _histogram(bins[outside])
    prior = np.clip(prior, 0.2, 0.8)
    yes, no = within[bins] * prior, without[bins] * (1 - prior)
    share: Plane = yes / (yes + no)
    return share


def _histogram(bins: NDArray[np.intp]) -> Plane:
    counts = np.bincount(bins, minlength=_LEVELS**3).reshape((_LEVELS,) * 3).astype(np.float64)
    for axis in range(3):  # neighbouring bins vouch for each other, or noise would empty half
        padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in range(3)], "edge")
        before, after = (
            np.take(padded, range(start, start + _LEVELS), axis=axis) for start in (0, 2)
        )
        counts = (before + 2 * counts + after) / 4
    flat: Plane = counts.ravel() / counts.sum() + 1e-4
    return flat


def _guided(guide: Plane, source: Plane, *, radius: int, eps: float) -> Plane:
    """The grey guided filter: *source* as a local linear function of *guide*."""
    mean_guide, mean_source = _mean(guide, radius), _mean(source, radius)
    covariance = _mean(guide * source, radius) - mean_guide * mean_source
    variance = _mean(guide * guide, radius) - mean_guide * mean_guide
    slope = covariance / (variance + eps)
    offset = mean_source - slope * mean_guide
    return _mean(slope, radius) * guide + _mean(offset, radius)


def _mean(plane: Plane, radius: int) -> Plane:
    """The mean over a square of side ``2 * radius + 1``, its edges repeated outwards."""
    padded = np.pad(plane, radius + 1, mode="edge")
    total = padded.cumsum(axis=0).cumsum(axis=1)
    side = 2 * radius + 1
    corners = total[side:, side:] - total[:-side, side:] - total[side:, :-side]
    window: Plane = (corners + total[:-side, :-side])[:-1, :-1] / side**2
    return window
