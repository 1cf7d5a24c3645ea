"""The procedural femur: radiographs of atypical and normal femoral fractures drawn from their physics.

An image is what X-rays leave behind a hollow, bowed, broken bone inside a thigh:

    attenuation   A = μ_soft · T + (μ_cortex − μ_soft) · L_cortex + (μ_marrow − μ_soft) · L_marrow
    photons       N ~ Poisson(N0 · (exp(−A) + scatter))                          (Beer–Lambert)
    radiograph    window(−log N), after detector blur

with T the length of a ray through the thigh and L through the materials of the bone. A fracture is a surface
v = f(l, a) that cuts the shaft into fragments. Each fragment is moved rigidly and adds its own path length, front and
back cortex apart: so oblique, spiral and overlapping fragments look as they do in projection.

Coordinates in millimetres: l towards lateral, a towards anterior, v along the shaft towards proximal, origin at the
middle of the shaft piece; in the image u runs across the bone and w along the ray.

Fractures follow the case definition of the American Society for Bone and Mineral Research (Shane et al., J Bone Miner
Res 29(1):1–23, 2014, doi 10.1002/jbmr.1998). Attenuation coefficients are those of ICRU-44 cortical bone and soft
tissue at 60 keV (NIST XCOM tables).
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from math import copysign, cos, hypot, log, radians, sin, tan
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from lib.data.cohort import COLUMNS, LABELS, Cohort
from lib.run.files import write_text

FIELD_OF_VIEW = 90.0  # mm, side of the square frame: a shaft of 28 mm is a little under a third of it
MU_CORTEX, MU_MARROW, MU_SOFT = 0.0604, 0.0235, 0.0217  # 1/mm at 60 keV
SCATTER = 0.01  # share of the incident photons that reach the detector from elsewhere
OVERSAMPLING = 2  # rays per pixel side: intensities are averaged over a pixel, as a detector does
MARKER_SHARE = 0.3  # of the images that carry a side marker
CLEARLY_NORMAL = ("oblique", "spiral", "butterfly")  # subtypes that no one takes for an AFF
FAILURES = ("erased", "blurred", "doubled", "half drawn")  # what a translator may leave that is no fracture


# What is drawn by chance ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patient:
    """What the images of one patient share."""

    label: str
    side: str  # "left" or "right"
    images: int
    radius: float  # mm, outer, of the shaft
    cortex: float  # mm, thickness
    taper: float  # relative change of the radius per mm towards proximal
    bowing: tuple[float, float]  # curvature towards lateral and anterior, 1/mm
    thigh: tuple[float, float]  # mm, half axes of the soft tissue across and along the ray
    fractures: dict[str, Fracture] = field(repr=False)  # the one the patient has, and the counterfactual one


@dataclass(frozen=True)
class Fracture:
    """A fracture surface and what happened around it (lengths in mm, angles in radians)."""

    subtype: str
    height: float  # v of the line at the lateral cortex (AFF) or at the axis (NFF)
    slope: float  # rise of the surface per mm towards medial
    gap: float
    turn: tuple[float, float] = (-99.0, 0.0)  # l below which the line turns oblique, and its extra slope there
    spike: float = 0.0  # height of the medial spike
    reach: float = -99.0  # l at which an incomplete fracture ends
    twist: float = 0.0  # rise of the surface per mm towards anterior: makes front and back lines part (spiral)
    wedge: float = 0.0  # signed slope of a butterfly fragment's second surface; 0: none
    beak: float = 0.0  # periosteal thickening of the lateral cortex
    endosteal: float = 0.0  # endosteal thickening of the lateral cortex
    flare: float = 6.0  # extent of both along the shaft (standard deviation)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # displacement of the distal fragment in l, a, v
    angulation: tuple[float, float] = (0.0, 0.0)  # of the distal fragment, seen from the front and from the side
    jag: tuple[float, float, float] = (0.0, 0.3, 0.0)  # roughness: amplitude, 1/mm, phase


@dataclass(frozen=True)
class Exposure:
    """What differs between the images of one patient."""

    view: str  # "AP" or "lateral"
    angle: float  # rotation about the shaft, radians: 0 from the front, π/2 from the side
    tilt: float  # in-plane rotation, radians
    offset: tuple[float, float]  # mm, of the bone in the frame
    zoom: float
    photons: float  # per mm², incident
    window: tuple[float, float]  # percentiles that become black and white
    collimation: tuple[float, float, float, float]  # mm cut off at left, right, top, bottom
    marker: tuple[bool, bool, bool]  # side marker present, at the right, at the bottom
    texture: np.ndarray = field(repr=False)  # (9, 9) unevenness of the soft tissue


def atypical(rng: np.random.Generator, radius: float) -> Fracture:
    """Draw an atypical fracture: from the lateral cortex, transverse, perhaps turning oblique medially.

    It is little displaced, the lateral cortex is locally thickened (beaking or flaring), and complete ones often have a
    medial spike. A quarter are incomplete.
    """
    beak = rng.uniform(0.5, 4.0)  # mm; a faint one is hard to see
    common = dict(
        height=rng.normal(0, 5),
        slope=tan(radians(rng.normal(0, 5))),
        beak=beak,
        endosteal=rng.uniform(0, 0.6) * beak,
        flare=rng.uniform(4, 8),
        jag=(rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.25), rng.uniform(0, 6)),
    )
    if rng.random() < 0.25:
        return Fracture("incomplete", gap=rng.uniform(1.4, 2.4), reach=radius * rng.uniform(-0.5, 0.3), **common)
    return Fracture(
        "transverse",
        gap=rng.uniform(1.6, 3.4),
        turn=(radius * rng.uniform(-0.5, 0.2), tan(radians(rng.uniform(0, 35)))),
        spike=rng.uniform(2, 6) * bool(rng.random() < 0.5),
        shift=(rng.normal(0, 0.9), rng.normal(0, 0.9), rng.uniform(-0.5, 0.5)),
        angulation=(radians(rng.normal(2, 2)), radians(rng.normal(0, 2))),
        **common,
    )


def normal(rng: np.random.Generator) -> Fracture:
    """Draw a normal fracture: oblique, spiral or with a butterfly fragment, displaced, without beaking."""
    subtype = rng.choice(CLEARLY_NORMAL, p=[0.6, 0.2, 0.2])
    sign = int(rng.choice([-1, 1]))
    return Fracture(
        str(subtype),
        height=rng.normal(0, 5),
        slope=sign * tan(radians(rng.uniform(32, 55))),
        gap=rng.uniform(1.6, 3.4),
        twist=int(rng.choice([-1, 1])) * rng.uniform(0.5, 1.0) if subtype == "spiral" else rng.normal(0, 0.1),
        wedge=-sign * rng.uniform(0.5, 1.2) if subtype == "butterfly" else 0.0,
        shift=(rng.normal(0, 1.6), rng.normal(0, 1.6), rng.uniform(-1, 2)),
        angulation=(radians(rng.normal(0, 3)), radians(rng.normal(0, 3))),
        jag=(rng.uniform(0.2, 0.7), rng.uniform(0.05, 0.25), rng.uniform(0, 6)),
    )


def nearly_transverse(rng: np.random.Generator) -> Fracture:
    """Draw a normal fracture that is hard to tell: up to 15° oblique, little displaced, at most a faint beak."""
    return Fracture(
        "nearly transverse",
        height=rng.normal(0, 5),
        slope=tan(radians(rng.uniform(-15, 15))),
        gap=rng.uniform(1.6, 3.4),
        twist=rng.normal(0, 0.1),
        beak=rng.uniform(0, 2),
        shift=(rng.normal(0, 1.2), rng.normal(0, 1.2), rng.uniform(-0.5, 1)),
        angulation=(radians(rng.normal(0, 2.5)), radians(rng.normal(0, 2.5))),
        jag=(rng.uniform(0.1, 0.6), rng.uniform(0.05, 0.25), rng.uniform(0, 6)),
    )


# Physics -------------------------------------------------------------------------------------------------------------


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """Draw an antialiased edge: 0 outside, 1 inside, linear over one ray's width."""
    return np.clip(distance / width + 0.5, 0, 1)


def fracture_surface(fracture: Fracture, l: np.ndarray, a: np.ndarray, radius: float) -> np.ndarray:  # noqa: E741
    """Return the height v of the fracture surface at the place (l, a) of the bone's cross-section, in mm."""
    amplitude, frequency, phase = fracture.jag
    v = fracture.height - fracture.slope * l + fracture.twist * a + amplitude * np.sin(frequency * 6.28 * l + phase)
    v = v + fracture.turn[1] * np.maximum(fracture.turn[0] - l, 0)
    return v + fracture.spike * np.clip((-l / radius - 0.6) / 0.4, 0, 1)


def half_attenuation(u, v, patient: Patient, fracture: Fracture | None, angle: float) -> np.ndarray:
    """Return what half of an unbroken shaft, in front of its middle or behind, adds to the soft tissue at (u, v)."""
    lateral = cos(angle)
    u = u - 0.5 * v**2 * (patient.bowing[0] * lateral + patient.bowing[1] * sin(angle))
    outer = patient.radius * (1 + patient.taper * v)
    inner = outer - patient.cortex
    thickened = 0.0
    if fracture is not None and fracture.beak:
        bump = np.exp(-0.5 * ((v - fracture.height) / fracture.flare) ** 2)
        towards = np.clip(u * lateral / patient.radius, 0, 1) ** 2
        outer = outer + fracture.beak * bump * towards
        inner = inner - fracture.endosteal * bump * towards
        thickened = (fracture.beak + fracture.endosteal) * 0.5 * bump * (1 - abs(lateral))
        thickened = thickened * np.exp(-((2 * u / patient.radius) ** 2))
    half_outer = np.sqrt(np.maximum(outer**2 - u**2, 0))
    marrow = np.sqrt(np.maximum(inner**2 - u**2, 0))
    return (MU_CORTEX - MU_SOFT) * (half_outer - marrow + thickened) + (MU_MARROW - MU_SOFT) * marrow


def bone_attenuation(u, v, patient: Patient, fracture: Fracture | None, angle: float, ray: float) -> np.ndarray:
    """Return what the bone attenuates beyond the soft tissue it displaces, at image positions (u, v) in mm."""
    if fracture is None:
        return 2 * half_attenuation(u, v, patient, None, angle)

    def side_of_surface(u, v, depth_sign):
        """Return the distance above the fracture surface, half the gap, and that above a butterfly's other one."""
        w = depth_sign * (patient.radius - patient.cortex / 2) * np.sqrt(np.maximum(1 - (u / patient.radius) ** 2, 0))
        l = u * cos(angle) - w * sin(angle)  # noqa: E741
        a = u * sin(angle) + w * cos(angle)
        slope = hypot(1, hypot(fracture.slope, fracture.twist))
        half_gap = 0.5 * fracture.gap * slope * ramp(l - fracture.reach, 4.0)
        above = v - fracture_surface(fracture, l, a, patient.radius)
        above_wedge = v - (fracture.height - 0.25 * patient.radius * abs(fracture.wedge) - fracture.wedge * l)
        return above, half_gap, above_wedge

    def moved(u, v, shift, turn):
        """Return where a point was before its fragment moved by `shift` and turned about the fracture."""
        du = shift[0] * cos(angle) + shift[1] * sin(angle)
        x, y = u - du, v - fracture.height - shift[2]
        return x * cos(turn) + y * sin(turn), fracture.height - x * sin(turn) + y * cos(turn)

    turn = fracture.angulation[0] * cos(angle) + fracture.angulation[1] * sin(angle)
    distal = moved(u, v, fracture.shift, turn)
    total = np.zeros_like(u)
    fragments = [("proximal", (u, v)), ("distal", distal)]
    if fracture.wedge:
        outward = -copysign(1, fracture.wedge)
        fragments.append(("butterfly", moved(u, v, (2.0 * outward, 0.0, 0.5 * fracture.shift[2]), 1.5 * turn)))
    for name, (fu, fv) in fragments:
        half = half_attenuation(fu, fv, patient, fracture, angle)
        for depth_sign in (-1, 1):
            above, half_gap, above_wedge = side_of_surface(fu, fv, depth_sign)
            if name == "proximal":
                inside = ramp(above - half_gap, ray)
            else:
                inside = ramp(-above - half_gap, ray)
                if fracture.wedge:
                    edge = -above_wedge if name == "distal" else above_wedge
                    inside = inside * ramp(edge - half_gap / 2, ray)
            total += half * inside
    return total


@lru_cache
def _interpolation(rays: int, knots: int) -> np.ndarray:
    """Return (rays, knots) weights that blend a coarse grid of values into a smooth one."""
    position = np.linspace(0, knots - 1, rays)[:, None] - np.arange(knots)[None]
    weights = np.exp(-0.5 * (position / 0.7) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


MARKERS = {
    "left": np.array([[1, 0, 0, 0]] * 5 + [[1, 1, 1, 1]], bool),
    "right": np.array([[1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1]], bool),
}


def render(patient: Patient, exposure: Exposure, drawn: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one radiograph, (size, size) uint8.

    Parameters
    ----------
    drawn : the fracture, "AFF" or "NFF", or one of `FAILURES`: a failed attempt at the patient's own
    rng : draws photon noise, and the particulars of a failure
    """
    rays = size * OVERSAMPLING
    ray = FIELD_OF_VIEW / exposure.zoom / rays
    axis = (np.arange(rays, dtype=np.float32) + 0.5 - rays / 2) * ray
    towards_lateral = 1 if patient.side == "left" else -1  # a left femur's lateral side is at the right of the film
    x = towards_lateral * (axis[None] - exposure.offset[0])
    y = -(axis[:, None] - exposure.offset[1])
    u = (x * cos(exposure.tilt) + y * sin(exposure.tilt)).astype(np.float32)
    v = (-x * sin(exposure.tilt) + y * cos(exposure.tilt)).astype(np.float32)

    across, along = patient.thigh
    thickness = 2 * along * np.sqrt(np.maximum(1 - (x / across) ** 2, 0))
    basis = _interpolation(rays, len(exposure.texture))
    A = MU_SOFT * thickness * (1 + basis @ exposure.texture @ basis.T)

    # The bone fills the middle of the frame: rays beyond it need no bone.
    reach = patient.radius * 1.1 + 14
    near = np.flatnonzero((np.abs(u) < reach).any(0))
    columns = slice(near[0], near[-1] + 1)
    u, v = u[:, columns], v[:, columns]

    def bone(fracture):
        return bone_attenuation(u, v, patient, fracture, exposure.angle, ray)

    own = patient.fractures[patient.label]
    if drawn in LABELS:
        bones = bone(patient.fractures[drawn])
    elif drawn == "blurred":
        near_line = np.exp(-0.5 * ((v - own.height) / 12) ** 2)
        bones = bone(own)
        bones += near_line * (gaussian_filter(bones, rng.uniform(2.5, 5) / ray) - bones)
    else:
        bones = unbroken = bone(None)
        if drawn == "doubled":
            for label in LABELS:
                bones = bones + rng.uniform(0.4, 1.0) * (bone(patient.fractures[label]) - unbroken)
            bones = np.maximum(bones, 0)  # where both gaps meet
        elif drawn == "half drawn":
            side = -copysign(1, cos(exposure.angle))  # medial: its lateral half could be an incomplete AFF
            if own.subtype in CLEARLY_NORMAL:
                side = int(rng.choice([-1, 1]))
            bones = unbroken + ramp(side * u, 8.0) * (bone(own) - unbroken)
        elif drawn != "erased":
            raise ValueError(f"unknown drawing {drawn!r}; there are {', '.join((*LABELS, *FAILURES))}")
    A[:, columns] += bones

    # Detector: average the intensities of a pixel's rays, blur, count photons.
    intensity = (np.exp(-A) + SCATTER).reshape(size, OVERSAMPLING, size, OVERSAMPLING).mean((1, 3))
    pixel = ray * OVERSAMPLING
    intensity = gaussian_filter(intensity, 0.35 / pixel)
    counts = rng.poisson(exposure.photons * pixel**2 * intensity)
    image = -np.log(np.maximum(counts, 1))

    edges = np.round(np.array(exposure.collimation) / pixel).astype(int)
    field_ = np.zeros((size, size), bool)
    field_[edges[2] : size - edges[3], edges[0] : size - edges[1]] = True
    black, white = np.percentile(image[field_], exposure.window)
    image = np.clip((image - black) / (white - black), 0, 1) * field_
    if exposure.marker[0]:
        _, right, bottom = exposure.marker
        rows, columns, mask = marker_places(MARKERS[patient.side], size)[2 * bottom + right]
        image[rows, columns][mask] = 1.0
    return np.rint(image * 255).astype(np.uint8)


def marker_places(glyph: np.ndarray, size: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Return rows, columns and bool mask of a marker, 8 % of the image's height, at top left and right, then bottom."""
    mask = np.kron(glyph, np.ones((max(size // 72, 1),) * 2, bool))
    margin, (height, width) = size // 20, mask.shape
    far = size - margin
    places = [(slice(margin, margin + length), slice(far - length, far)) for length in (height, width)]
    return [(rows, columns, mask) for rows in places[0] for columns in places[1]]


def fracture_zone(patient: Patient, exposure: Exposure) -> tuple[float, float]:
    """Return top and bottom of the fracture zone as fractions of the image height.

    It holds the patient's fracture and the counterfactual one, so that it tells nothing of the label.
    """
    l = np.linspace(-1, 1, 9)  # noqa: E741
    heights = [
        fracture_surface(f, l * patient.radius, s * np.sqrt(1 - l**2) * patient.radius * 0.8, patient.radius)
        for f in patient.fractures.values()
        for s in (-1, 1)
    ]
    highest, lowest = np.max(heights) + 5.0, np.min(heights) - 5.0  # a margin of 5 mm
    scale = exposure.zoom / FIELD_OF_VIEW
    middle = 0.5 + exposure.offset[1] * scale
    top, bottom = np.clip([middle - highest * scale, middle - lowest * scale], 0, 1).tolist()
    return top, bottom


def _numbers(image_id: str) -> tuple[int, int]:
    """Return patient and image of "p0012-3"."""
    number, image = image_id.removeprefix("p").split("-")
    return int(number), int(image)


# The cohort ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phantom:
    """A cohort of phantom patients; each image is a pure function of (seed, patient, image).

    With a `marker_difference` the shares of AFF and NFF images that carry a side marker are 0.5 ± half of it. It
    changes nothing else that is drawn. A counterfactual keeps the marker, or its absence.
    """

    patients: int = 1200  # 3.6 images each on average (1 to 8)
    size: int = 256  # side of the images in pixels
    aff_share: float = 0.15  # of the patients; the nearest published cohort has 159 AFF and 914 NFF patients
    overlap: float = 0.25  # share of NFF patients whose fracture is hard to tell from an atypical one
    seed: int = 0
    marker_difference: float = 0.0  # share of AFF minus that of NFF images; 0: both are `MARKER_SHARE`

    def __post_init__(self):
        if not -1 <= self.marker_difference <= 1:
            raise ValueError(f"marker_difference={self.marker_difference} must lie between -1 and 1")
        if not 0 < self.aff_share < 1 or not 0 <= self.overlap <= 1 or self.patients < 2 or self.size < 16:
            allowed = "aff_share in (0, 1), overlap in [0, 1], 2 patients, 16 px"
            raise ValueError(f"no phantom can be drawn from {self}: {allowed}")

    def patient(self, number: int) -> Patient:
        """Draw a patient.

        Labels follow a golden-ratio sequence, not coin tosses: the first n patients hold the share of AFF patients to
        within about one.
        """
        start = np.random.default_rng([self.seed]).random()
        aff = bool((start + number * 0.6180339887498949) % 1 < self.aff_share)
        rng = np.random.default_rng([self.seed, number])
        aff_rng, nff_rng = (np.random.default_rng([self.seed, number, own]) for own in (1, 2))
        radius = min(max(rng.normal(14, 1.2), 11), 17)
        cortex = min(max(rng.normal(5.6 + 0.5 * aff, 0.9), 3.5), 8.5)
        return Patient(
            label="AFF" if aff else "NFF",
            side=str(rng.choice(["left", "right"])),
            images=1 + int(rng.binomial(7, 2.6 / 7)),
            radius=radius,
            cortex=cortex,
            taper=rng.normal(0.0006, 0.0006),
            bowing=(rng.normal(0.0008 + 0.0003 * aff, 0.0005), rng.normal(0.0015, 0.0004)),
            thigh=(min(max(rng.normal(75, 12), 48), 110), min(max(rng.normal(65, 10), 45), 95)),
            fractures={
                "AFF": atypical(aff_rng, radius),
                "NFF": nearly_transverse(nff_rng) if nff_rng.random() < self.overlap else normal(nff_rng),
            },
        )

    def exposure(self, number: int, image: int) -> Exposure:
        """Draw one exposure of a patient; the first is AP."""
        marker_share = MARKER_SHARE
        if self.marker_difference:
            marker_share = 0.5 + self.marker_difference / 2 * (1 if self.patient(number).label == "AFF" else -1)
        rng = np.random.default_rng([self.seed, number, 3 + image])
        view = "lateral" if rng.random() < 0.2 and image > 0 else "AP"
        cut = rng.uniform(3, 14, 4) * (rng.random(4) < 0.12)
        return Exposure(
            view=view,
            angle=radians(rng.normal(90 if view == "lateral" else 0, 8)),
            tilt=radians(rng.normal(0, 4)),
            offset=(rng.normal(0, 4), rng.normal(0, 4)),
            zoom=rng.uniform(0.95, 1.1),
            photons=rng.lognormal(log(1e5), 0.5),
            window=(rng.uniform(0.5, 4), rng.uniform(98.5, 99.9)),
            collimation=tuple(cut),
            marker=(rng.random() < marker_share, rng.random() < 0.5, rng.random() < 0.5),
            texture=rng.normal(0, 0.02, (9, 9)).astype(np.float32),
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row an image: ids, label, view, side, subtype of the fracture, and the fracture zone."""
        rows = []
        for number in range(self.patients):
            patient = self.patient(number)
            for image in range(patient.images):
                exposure = self.exposure(number, image)
                top, bottom = fracture_zone(patient, exposure)
                ids = f"p{number:04d}-{image}", f"p{number:04d}"
                subtype = patient.fractures[patient.label].subtype
                rows.append((*ids, patient.label, exposure.view, patient.side, subtype, top, bottom))
        return pd.DataFrame(rows, columns=[*COLUMNS, "subtype", "zone_top", "zone_bottom"])

    def cohort(self) -> Cohort:
        """Draw every patient with their own fracture."""
        return Cohort(self.table, self.render(self.table.image_id, self.table.label))

    def counterfactual(self, cohort: Cohort) -> Cohort:
        """Draw the same patients, poses, exposures and noise with the other fracture, and label them so."""
        other = cohort.table.label.map({"AFF": "NFF", "NFF": "AFF"})
        table = cohort.table.assign(
            label=other, source_image_id=cohort.table.image_id, image_id="counterfactual-" + cohort.table.image_id
        )
        return Cohort(table.drop(columns="subtype", errors="ignore"), self.render(cohort.table.image_id, other))

    def has_marker(self, image_ids) -> np.ndarray:
        """Return (N,) bool, whether each image was drawn with a side marker."""
        return np.array([self.exposure(*_numbers(image_id)).marker[0] for image_id in image_ids], bool)

    def save(self, folder: str | Path) -> None:
        """Write `phantom.json` beside the cohort."""
        write_text(Path(folder) / "phantom.json", json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: str | Path) -> Phantom | None:
        """Read the phantom that a cohort came from; None where the cohort is of real radiographs."""
        path = Path(folder) / "phantom.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def render(self, image_ids, drawn) -> np.ndarray:
        """Draw (N, size, size) uint8, each image with the fracture or failure named for it in `drawn`."""

        def one(image_id: str, drawn: str) -> np.ndarray:
            number, image = _numbers(image_id)
            noise = np.random.default_rng([self.seed, number, 3 + image, 1])
            return render(self.patient(number), self.exposure(number, image), drawn, self.size, noise)

        pixels = np.empty((len(image_ids), self.size, self.size), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for image, found in zip(pixels, pool.map(one, image_ids, drawn), strict=True):
                image[:] = found
        return pixels
