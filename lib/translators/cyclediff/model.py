"""CycleDiff as a translator: algorithm 2, and drawing from noise."""

import zlib
from dataclasses import replace
from typing import Self

import numpy as np
import pandas as pd
import torch

from lib.data.cohort import LABELS, Cohort, to_pixels
from lib.data.images import Images
from lib.run.progress import progress
from lib.run.randomness import torch_generator
from lib.translators.cyclediff.networks import Denoisers, Networks
from lib.translators.cyclediff.process import Denoise, diffuse, generate, invert, time_grid
from lib.translators.cyclediff.settings import Sampler, Settings
from lib.translators.cyclediff.train import CycleDiffTraining
from lib.translators.translator import Function, Translator, check_sources


def of_domain(denoisers: Denoisers, domain: int) -> Denoise:
    """Return Net_θ of one domain as the solvers call it: with one time for all images."""
    return lambda x_t, t: denoisers(x_t, x_t.new_full((len(x_t),), t), domain)


class CycleDiff(Translator):
    """Translates through components, and also draws images from noise.

    With `Sampler(start="fresh")` every seed of `translate` gives another translation; with "inverted" the seed only
    draws the little noise at `first_t`. `metadata["perceptual"]` says which features the perceptual term used.
    """

    name, kinds = "cyclediff", {"settings": Settings, "sampler": Sampler}

    def __init__(self, *chosen):
        super().__init__(*chosen)
        if self.sampler.start_t > self.settings.t_max:
            raise ValueError(
                f"start_t={self.sampler.start_t}: the translators learn times up to t_max={self.settings.t_max} only; "
                "take a start_t up to there, or train with a larger t_max"
            )

    def build(self, size: int) -> Networks:
        """Make the networks for images of this side."""
        return Networks.build(self.settings, size, self.device)

    def training(self, X: Images, Y: Images, seed: int) -> CycleDiffTraining:
        return CycleDiffTraining(self.networks, self.settings, X, Y, seed, self.accelerator)

    def with_sampler(self, **changes) -> Self:
        """Return the same networks, not copied, with some fields of `Sampler` changed."""
        other = type(self)(self.settings, replace(self.sampler, **changes))
        other.networks, other.metadata = self.networks, self.metadata
        return other

    def _translation(self, images: torch.Tensor, to: str, seed: int, networks: Networks) -> tuple:
        """Run algorithm 2 on images (B, 1, H, W) in [-1, 1]; an image's noise follows from it and the seed.

        Returns the times, which rise; x_t of the source at each; C_θ of the source by time, and what the translator
        makes of it; x_t of the target at each time, falling, with x_0 last. All but times are latents (B, c, h, w).
        """
        source, target = (0, 1) if to == LABELS[1] else (1, 0)
        translator = networks.G if to == LABELS[1] else networks.F
        sampler, autoencoders = self.sampler, networks.autoencoders
        times = time_grid(sampler.sampling_steps, sampler.first_t, sampler.start_t)
        for network in vars(networks).values():
            network.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            # Encode, and go a little way along a noise of the image's own.
            x0 = autoencoders.encode(images.to(self.device, memory_format=torch.channels_last), source)
            randoms = [torch_generator(seed, zlib.crc32(image.numpy().tobytes())) for image in images]

            def draw() -> torch.Tensor:
                return torch.stack([torch.randn(x0.shape[1:], generator=random) for random in randoms]).to(x0)

            def at(t: float) -> torch.Tensor:
                return x0.new_full((len(x0),), t)

            x_t = diffuse(x0, at(times[0]), draw())

            # Invert with the source's model, translate the component of every time, generate with the target's.
            inverted, components, eps = invert(of_domain(networks.denoisers, source), x_t, times, sampler.solver)
            translated = {t: translator(C, at(t)) for t, C in components.items()}
            if sampler.start == "fresh":
                eps = draw()
            x_t = diffuse(-translated[times[-1]], at(times[-1]), eps)
            generated = generate(of_domain(networks.denoisers, target), x_t, times, translated, sampler.solver)
        return times, inverted, components, translated, generated

    def translator(self, to: str, seed: int, networks: Networks) -> Function:
        """Return algorithm 2 from images to images, by these networks."""
        target = LABELS.index(to)

        @torch.inference_mode()
        def translate(images: torch.Tensor) -> torch.Tensor:
            *_, generated = self._translation(images, to, seed, networks)
            x0 = generated[-1]
            return networks.autoencoders.decode(x0.float(), target)  # float32: bf16 has 8 of a radiograph's bits

        return translate

    @torch.inference_mode()
    def path(self, cohort: Cohort, to: str = "AFF", seed: int = 0) -> tuple[list[float], dict[str, np.ndarray]]:
        """Return what a few images pass through on their way to the other label: T times, which rise, and pictures.

        These are (T, N, H, W), about -1 to 1, by name: "source x_t", "source component", "translated component",
        "target x_t"; a component is shown as the image that it stands for, −C.
        """
        self.check(cohort)
        check_sources(cohort, to)
        images, target = torch.from_numpy(cohort.images()), LABELS.index(to)
        times, inverted, components, translated, generated = self._translation(images, to, seed, self.networks)
        latents = {
            "source x_t": (inverted, 1 - target),
            "source component": ([-components[t] for t in times], 1 - target),
            "translated component": ([-translated[t] for t in times], target),
            "target x_t": (generated[-2::-1], target),
        }
        decode = self.networks.autoencoders.decode
        pictures = {
            name: np.stack([decode(z.float(), domain)[:, 0].cpu().numpy() for z in zs])
            for name, (zs, domain) in latents.items()
        }
        return times, pictures

    @torch.inference_mode()
    def sample(self, n: int, label: str, seed: int, like: Cohort, batch: int = 32, first: int = 0) -> Cohort:
        """Draw n images from noise, by the domain's own diffusion model alone, in the pixel type of `like`.

        Each follows from the seed and its number, counted from `first`; what they are called: `noise_table`.
        """
        self.check(like)
        if label not in LABELS:
            raise ValueError(f"label={label!r}: images are drawn of {' or '.join(LABELS)}")
        domain, times = LABELS.index(label), time_grid(self.sampler.noise_steps, self.sampler.first_t, 1.0)
        autoencoders, denoisers = self.networks.autoencoders, self.networks.denoisers.eval()
        side = like.size // self.settings.factor
        shape = autoencoders.channels, side, side
        pixels = np.empty((n, like.size, like.size), like.pixels.dtype)

        with progress(n, desc=f"noise to {label}") as bar:
            for start in range(0, n, batch):
                numbers = range(first + start, first + min(start + batch, n))
                randoms = [torch_generator(seed, domain, i) for i in numbers]
                eps = torch.stack([torch.randn(shape, generator=random) for random in randoms])
                eps = eps.to(self.device, memory_format=torch.channels_last)
                with self.accelerator.autocast():
                    x0 = generate(of_domain(denoisers, domain), eps, times, solver=self.sampler.solver)[-1]
                images = autoencoders.decode(x0.float(), domain).cpu().numpy()
                pixels[start : start + batch] = to_pixels(images, pixels.dtype)
                bar.update(len(eps))
        return Cohort(self.noise_table(n, label, seed, first), pixels)

    def noise_table(self, n: int, label: str, seed: int, first: int = 0) -> pd.DataFrame:
        """Return the table of the images of `sample`; as they come from nobody, each has a patient of its own."""
        names = [f"noise-{label}-{seed}-{i:06d}" for i in range(first, first + n)]
        columns = {"image_id": names, "patient_id": names, "label": label, "view": "", "side": ""}
        columns |= {"source_image_id": "", "source_label": "", "method": "noise"}
        return pd.DataFrame(columns | {"generator": self.metadata["patients_hash"]})

    @torch.inference_mode()
    def reconstruct(self, cohort: Cohort) -> Cohort:
        """Encode and decode the cohort, each image by its own domain's autoencoder."""
        self.check(cohort)
        autoencoders, images = self.networks.autoencoders.eval(), Images(cohort.pixels)
        pixels = np.empty(cohort.pixels.shape, cohort.pixels.dtype)
        for domain, label in enumerate(LABELS):
            for rows in torch.from_numpy(np.flatnonzero(cohort.table.label == label)).split(32):
                z = autoencoders.encode(images[rows].to(self.device, memory_format=torch.channels_last), domain)
                pixels[rows] = to_pixels(autoencoders.decode(z, domain).cpu().numpy(), pixels.dtype)
        return Cohort(cohort.table, pixels)

    def check(self, cohort: Cohort) -> None:
        """Raise also where images are not of the size of the training's."""
        super().check(cohort)
        if cohort.size != self.metadata["image_size"]:
            raise ValueError(
                f"images of {cohort.size} x {cohort.size} pixels: this CycleDiff was trained at image_size "
                f"{self.metadata['image_size']}"
            )
