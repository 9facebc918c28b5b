"""Pictures of coloured shapes: outlines, textures, clutter, and who hides whom.

Nothing here knows of files. A scene follows from its random generator and its size alone. The outline tells the
classes apart. The main hue of a shape hints at its class, so that a network learns them from scratch within a few
hundred images; its second colour, its texture and the background say nothing.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ['CLASSES', 'PALETTE', 'Scene', 'check_int', 'check_size', 'render_scene']

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross')
PALETTE = ((230, 57, 70), (29, 126, 214), (46, 160, 67), (245, 179, 1), (155, 81, 224))

MIN_SIZE = 32  # pixels, shorter image edge
MAX_OBJECTS = 3
SMALL_RATE = 0.15  # share of small objects
SMALL_SCALE = (0.15, 0.21)  # longer box side / shorter image edge
LARGE_SCALE = (0.26, 0.5)
MIN_EXTENT = 8.0  # pixels: below this a star is a blot
MIN_VISIBLE = 0.88  # visible pixels / area of the whole outline
MIN_PIXELS = 12
MIN_CONTRAST = 48.0  # CIE76 distance in Lab between a shape's colours and what lies under it
HUE_SPREAD = 0.08  # of a turn, around the hue of a class; classes are 0.2 apart
MAX_TURN = 0.12  # radians from upright
MAX_TRIES = 20  # placements of one object before it is left out
SUPERSAMPLING = 4


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is on it, in painter's order.

    Attributes:
        image: RGB, [H, W, 3], uint8.
        labels: Indices into `CLASSES`, [N], int64.
        masks: Visible part of each instance, [N, H, W], bool; no pixel belongs to two instances.
    """

    image: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True, eq=False)
class _Shape:
    """One placed outline: coverage `alpha` [h, w] in 0..1 with its top left pixel at (`top`, `left`)."""

    label: int
    top: int
    left: int
    alpha: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        h, w = self.alpha.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)


# --------------------------------------------------------------------------------------------------------------------
# Outlines: [P, 2] points (x, y) around the origin, of any scale


def _ring(radii: Sequence[float], num_points: int) -> np.ndarray:
    """Points at equal angles whose radii repeat `radii`, the first pointing up, [num_points, 2]."""
    angles = np.arange(num_points) * (2 * math.pi / num_points) - math.pi / 2
    radius = np.resize(np.asarray(radii, dtype=np.float64), num_points)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _cross(arm: float) -> np.ndarray:
    """A cross in the square from -1 to 1 whose arms are 2 * `arm` wide, [12, 2]."""
    quarter = np.array([(-arm, -1.0), (arm, -1.0), (arm, -arm)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])  # by a right angle
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


_OUTLINES = {
    'circle': _ring([1.0], 96),
    'square': np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64),
    'triangle': _ring([1.0], 3),
    'star': _ring([1.0, 0.58], 10),
    'cross': _cross(0.4),
}


def _polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _rasterize(points: np.ndarray, H: int, W: int) -> tuple[int, int, np.ndarray]:
    """Coverage of a polygon in image pixels: (top, left, alpha [h, w]) of its box cut to the image."""
    left, top = np.clip(np.floor(points.min(axis=0)).astype(int), 0, (W - 1, H - 1))
    right, bottom = np.clip(np.ceil(points.max(axis=0)).astype(int), (left + 1, top + 1), (W, H))
    h, w = bottom - top, right - left
    canvas = np.zeros((h * SUPERSAMPLING, w * SUPERSAMPLING), dtype=np.uint8)
    shift = 4  # fractional bits; OpenCV puts integer coordinates at pixel centres, hence the half
    fixed = np.round(((points - (left, top)) * SUPERSAMPLING - 0.5) * 2**shift).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255, shift=shift)
    alpha = cv2.resize(canvas, (int(w), int(h)), interpolation=cv2.INTER_AREA)
    return int(top), int(left), alpha.astype(np.float32) / 255


# --------------------------------------------------------------------------------------------------------------------
# Placement: everything is decided before anything is drawn


def _draw_extent(rng: np.random.Generator, edge: int, scale: tuple[float, float] | None) -> float:
    if scale is None:
        scale = SMALL_SCALE if rng.random() < SMALL_RATE else LARGE_SCALE
    return max(MIN_EXTENT, rng.uniform(*scale) * edge)


def _random_outline(
    rng: np.random.Generator, label: int, H: int, W: int, scale: tuple[float, float] | None
) -> np.ndarray:
    """A jittered, turned outline inside or slightly over the edge of the image, [P, 2]."""
    extent = _draw_extent(rng, min(H, W), scale)
    aspect = math.exp(rng.uniform(-0.2, 0.2))
    angle = rng.uniform(-MAX_TURN, MAX_TURN)
    cos, sin = math.cos(angle), math.sin(angle)
    points = _OUTLINES[CLASSES[label]] * (math.sqrt(aspect), 1 / math.sqrt(aspect))
    points = points @ np.array([(cos, sin), (-sin, cos)])
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) * (extent / (high - low).max())
    margin = 0.49 * extent
    center = rng.uniform((margin, margin), (W - margin, H - margin))
    return points + center


def _place_shapes(
    rng: np.random.Generator, labels: Sequence[int], H: int, W: int, scale: tuple[float, float] | None
) -> tuple[list[_Shape], list[np.ndarray]]:
    """Shapes in painter's order and their visible masks [H, W]; what finds no room is left out."""
    shapes, masks, least = [], [], []  # least: the fewest pixels an instance may keep
    for label in labels:
        for _ in range(MAX_TRIES):
            points = _random_outline(rng, label, H, W, scale)
            top, left, alpha = _rasterize(points, H, W)
            shape = _Shape(label, top, left, alpha)
            solid = np.zeros((H, W), dtype=bool)
            solid[shape.window] = alpha >= 0.5
            covered = [mask & ~solid for mask in masks] + [solid]
            needed = [*least, max(MIN_PIXELS, MIN_VISIBLE * _polygon_area(points))]
            if all(np.count_nonzero(mask) >= pixels for mask, pixels in zip(covered, needed, strict=True)):
                shapes.append(shape)
                masks, least = covered, needed
                break
    return shapes, masks


# --------------------------------------------------------------------------------------------------------------------
# Paint: images are float32 RGB in 0..1 until the very end


def _hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Hue in turns, saturation and value in 0..1, [N, 3] -> RGB in 0..1, [N, 3]."""
    hsv = np.concatenate([hsv[:, :1] % 1.0 * 360, hsv[:, 1:]], axis=1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def _rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """RGB in 0..1, [N, 3] -> CIE Lab, L in 0..100, [N, 3]."""
    return cv2.cvtColor(np.clip(rgb, 0, 1).astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0]


def _random_colors(
    rng: np.random.Generator,
    num: int,
    saturation: tuple[float, float],
    value: tuple[float, float],
    hue: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """RGB, [num, 3]."""
    hsv = [rng.uniform(*hue, num) % 1.0, rng.uniform(*saturation, num), rng.uniform(*value, num)]
    return _hsv_to_rgb(np.stack(hsv, axis=1))


def _pick_colors(rng: np.random.Generator, patch: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Two related colours that stand out from all of `patch` [h, w, 3], the first of the class's hue; each [3]."""
    under = _rgb_to_lab(cv2.resize(patch, (4, 4), interpolation=cv2.INTER_AREA).reshape(-1, 3))
    num = 40
    hue = label / len(CLASSES)
    first = _random_colors(rng, num, (0.6, 1.0), (0.55, 1.0), (hue - HUE_SPREAD, hue + HUE_SPREAD))
    towards = _random_colors(rng, num, (0.0, 0.6), (0.0, 1.0))
    second = first + rng.uniform(0.08, 0.18, (num, 1)).astype(np.float32) * (towards - first)
    pairs = _rgb_to_lab(np.concatenate([first, second]))
    distance = np.linalg.norm(pairs[:, None] - under[None], axis=2).min(axis=1).reshape(2, num).min(axis=0)
    enough = np.flatnonzero(distance >= MIN_CONTRAST)
    best = int(enough[0]) if len(enough) else int(distance.argmax())
    return first[best], second[best]


def _ramp(h: int, w: int, angle: float) -> np.ndarray:
    """Signed distance in pixels from the centre along `angle`, [h, w]."""
    y = (np.arange(h, dtype=np.float32) - (h - 1) / 2)[:, None]
    x = (np.arange(w, dtype=np.float32) - (w - 1) / 2)[None, :]
    return x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))


def _gradient(h: int, w: int, angle: float) -> np.ndarray:
    """A linear ramp from 0 to 1 across the box, [h, w]."""
    reach = abs(math.cos(angle)) * w + abs(math.sin(angle)) * h
    return _ramp(h, w, angle) / np.float32(reach) + np.float32(0.5)


def _clouds(rng: np.random.Generator, h: int, w: int, cell: float) -> np.ndarray:
    """Smooth noise with bumps of about `cell` pixels, in 0..1, [h, w]."""
    grid = rng.random((max(2, round(h / cell) + 1), max(2, round(w / cell) + 1)), dtype=np.float32)
    return np.clip(cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC), 0, 1)


def _stripes(h: int, w: int, angle: float, period: float, phase: float) -> np.ndarray:
    """Soft-edged stripes, in 0..1, [h, w]."""
    wave = np.sin(_ramp(h, w, angle) * np.float32(2 * math.pi / period) + np.float32(phase))
    return np.clip(0.5 + wave * np.float32(max(0.7, period / 8)), 0, 1)


def _dots(h: int, w: int, angle: float, period: float, phase: float) -> np.ndarray:
    """Soft-edged round dots on a square grid, in 0..1, [h, w]."""
    k = np.float32(2 * math.pi / period)
    wave = np.cos(_ramp(h, w, angle) * k + np.float32(phase)) + np.cos(_ramp(h, w, angle + math.pi / 2) * k)
    return np.clip(0.5 + (wave - np.float32(0.55)) * np.float32(max(0.6, period / 9)), 0, 1)


def _shape_texture(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """How much of the second colour each pixel of a shape takes, in 0..1, [h, w]."""
    extent = max(h, w)
    kind = ('gradient', 'stripes', 'dots', 'noise')[rng.integers(4)]
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    period = max(3.5, extent * rng.uniform(0.14, 0.3))
    if kind == 'gradient':
        return _gradient(h, w, angle)
    if kind == 'stripes':
        return _stripes(h, w, angle, period, phase)
    if kind == 'dots':
        return _dots(h, w, angle, period, phase)
    return _clouds(rng, h, w, max(2.0, extent * rng.uniform(0.06, 0.2)))


def _paint_shape(rng: np.random.Generator, image: np.ndarray, shape: _Shape) -> None:
    """Draws one shape over `image` [H, W, 3] in place."""
    window = shape.window
    h, w = shape.alpha.shape
    first, second = _pick_colors(rng, image[window], shape.label)
    texture = _shape_texture(rng, h, w)[..., None]
    paint = first + texture * (second - first)
    paint *= 1.06 - np.float32(0.12) * _gradient(h, w, rng.uniform(0, 2 * math.pi))[..., None]  # a little light
    image[window] += shape.alpha[..., None] * (paint - image[window])


def _paint_strokes(rng: np.random.Generator, image: np.ndarray, color: np.ndarray) -> None:
    """Open, faint curves over the background: clutter that is no shape. `image` [H, W, 3] in place."""
    H, W = image.shape[:2]
    t = np.linspace(0, 1, 24)[:, None]
    layer = np.zeros((H, W), dtype=np.uint8)
    for _ in range(rng.integers(0, 9)):
        start, bend, end = rng.uniform(-0.2, 1.2, (3, 1, 2)) * (W, H)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        thickness = max(1, round(min(H, W) * rng.uniform(0.006, 0.018)))
        points = np.round(curve * 16).astype(np.int32)
        cv2.polylines(layer, [points], False, int(rng.integers(60, 150)), thickness, cv2.LINE_AA, shift=4)
    image += (layer.astype(np.float32) / 255)[..., None] * (color - image)


def _paint_background(rng: np.random.Generator, H: int, W: int) -> np.ndarray:
    """Calm colours under a gradient, clouds, wide stripes or a mix, with faint strokes, [H, W, 3]."""
    edge = min(H, W)
    colors = _random_colors(rng, 3, (0.0, 0.3), (0.1, 0.95))
    colors[1:] = colors[:1] + np.float32(0.2) * (colors[1:] - colors[:1])  # stay near the first
    kind = ('gradient', 'clouds', 'stripes', 'mix')[rng.integers(4)]
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    if kind == 'gradient':
        field = _gradient(H, W, angle)
    elif kind == 'clouds':
        field = 0.65 * _clouds(rng, H, W, edge * 0.3) + 0.35 * _clouds(rng, H, W, edge * 0.07)
    elif kind == 'stripes':
        field = 0.7 * _stripes(H, W, angle, edge * rng.uniform(0.08, 0.3), phase) + 0.3 * _clouds(rng, H, W, edge * 0.2)
    else:
        field = 0.6 * _gradient(H, W, angle) + 0.4 * _clouds(rng, H, W, edge * 0.04)
    image = colors[0] + field[..., None] * (colors[1] - colors[0])
    _paint_strokes(rng, image, colors[2])
    return image


def render_scene(
    rng: np.random.Generator,
    size: int | Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    scale: tuple[float, float] | None = None,
) -> Scene:
    """Draws one scene.

    Objects lie in painter's order, and each keeps at least `MIN_VISIBLE` of its outline and `MIN_PIXELS` pixels: an
    object that finds no such place is not drawn, so nothing on the picture is unlabelled.

    Args:
        rng: Source of every random choice.
        size: Edge of a square image, or (H, W), in pixels, at least 32.
        labels: Indices into `CLASSES`, bottom first; one to three random ones when None.
        scale: Range of the longer box side over the shorter image edge; when None, `SMALL_RATE` of the objects come
            from `SMALL_SCALE` and the others from `LARGE_SCALE`. No object is drawn under 8 pixels.

    Returns:
        The picture [H, W, 3] with labels [N] and visible masks [N, H, W].

    Raises:
        ValueError: if `size`, `labels` or `scale` is out of range.
    """
    H, W = check_size(size)
    if labels is None:
        labels = rng.integers(len(CLASSES), size=rng.integers(1, MAX_OBJECTS + 1)).tolist()
    if not all(0 <= label < len(CLASSES) for label in labels):
        raise ValueError(f'labels={labels!r}: expected indices from 0 to {len(CLASSES) - 1}')
    if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise ValueError(f'scale={scale!r}: expected (low, high) with 0 < low <= high <= 1')

    shapes, masks = _place_shapes(rng, labels, H, W, scale)
    image = _paint_background(rng, H, W)
    for shape in shapes:
        _paint_shape(rng, image, shape)
    image += rng.standard_normal((H, W, 1), dtype=np.float32) * np.float32(rng.uniform(0.004, 0.022))
    return Scene(
        image=np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8),
        labels=np.array([shape.label for shape in shapes], dtype=np.int64),
        masks=np.stack(masks) if masks else np.zeros((0, H, W), dtype=bool),
    )


def check_int(name: str, value: int, low: int, expected: str, high: float = math.inf) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f'{name}={value!r}: expected {expected}')
    return number


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    edges = tuple(size) if isinstance(size, (tuple, list, np.ndarray)) and np.ndim(size) == 1 else (size, size)
    expected = f'an integer or (H, W), each at least {MIN_SIZE}'
    try:
        H, W = (check_int('size', edge, MIN_SIZE, expected) for edge in edges)
    except ValueError:
        raise ValueError(f'size={size!r}: expected {expected}') from None
    return H, W
