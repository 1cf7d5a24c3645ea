"""CycleDiff as a translator: fit, translate (algorithm 2), draw from noise, save, load."""

from __future__ import annotations

import copy
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch

from lib.data.cohort import LABELS, Cohort, to_pixels
from lib.data.hashes import cohort_hash, patients_hash
from lib.data.images import Images
from lib.run.checkpoints import Checkpoint
from lib.run.files import write_text
from lib.run.hardware import accelerator
from lib.run.progress import progress
from lib.run.randomness import torch_generator
from lib.run.weights import known, load_weights, save_weights, weights_metadata
from lib.translators.cyclediff.networks import Denoisers, Networks
from lib.translators.cyclediff.process import Denoise, diffuse, generate, invert, time_grid
from lib.translators.cyclediff.settings import Sampler, Settings
from lib.translators.cyclediff.train import Training
from lib.translators.training import RESULTS, WEIGHTS, History, Watch, preview_due, save_preview
from lib.translators.translator import check_sources, domains, translated


@dataclass
class Translation:
    """All that algorithm 2 passes through, in latents (B, c, h, w)."""

    times: list[float]  # rising
    inverted: list[torch.Tensor]  # x_t of the source at each time
    components: dict[float, torch.Tensor]  # C_θ of the source by time
    translated: dict[float, torch.Tensor]  # C̃, the same after G or F
    generated: list[torch.Tensor]  # x_t of the target at each time, falling, and x_0 last


def of_domain(denoisers: Denoisers, domain: int) -> Denoise:
    """Net_θ of one domain as the solvers call it: with one time for all images."""
    return lambda x_t, t: denoisers(x_t, x_t.new_full((len(x_t),), t), domain)


class CycleDiff:
    """A `lib.translators.translator.Translator`, which also draws images from noise.

    >>> settings = Settings(autoencoder="pixels", shared_unet=True, residual=True, t_max=0.25)  # doctest: +SKIP
    >>> model = CycleDiff(settings, Sampler(steps=6, start_t=0.25))  # doctest: +SKIP
    >>> history = model.fit(training, Path("runs/quick/cyclediff/r0f0"), seed=0)  # doctest: +SKIP
    >>> synthetic = model.translate(training.select(label="NFF"), to="AFF")  # doctest: +SKIP
    >>> from_noise = model.sample(100, "AFF", seed=0, like=training)  # doctest: +SKIP
    """

    name = "cyclediff"

    def __init__(self, settings: Settings | None = None, sampler: Sampler | None = None):
        self.settings, self.sampler = settings or Settings(), sampler or Sampler()
        self.accelerator = accelerator()
        self.device = self.accelerator.device
        self.networks: Networks | None = None
        self.metadata = {"method": self.name, "settings": asdict(self.settings)}
        self.metadata["precision"] = self.accelerator.mixed_precision  # "bf16", or "no": float32
        self._check_times()

    def fit(
        self, cohort: Cohort, folder: Path, seed: int, preview: Cohort | None = None, watch: Watch | None = None
    ) -> pd.DataFrame:
        """Train on all images of the cohort and return the history of the losses (see
        `lib.translators.translator.Translator`).

        Columns of the history: `step` over all stages, `stage` ("autoencoder", "warm-up", "joint"), `learning_rate`,
        and the terms, unweighted, where a stage has them: `reconstruction`, `divergence`, `adversarial_autoencoder`,
        `D_autoencoder`; `diffusion_X`, `diffusion_Y`; `adversarial_G`, `adversarial_F`, `cycle_X`, `cycle_Y`,
        `identity_X`, `identity_Y`, `perceptual_X`, `perceptual_Y`, `D_X`, `D_Y` (0.25 where a discriminator cannot
        tell), `contrastive_X`, `contrastive_Y`. `metadata["perceptual"]` says which features the perceptual term used.

        With `dropout` the result depends on the number of processes: each draws the masks of its own rows.

        Raises
        ------
        ValueError
            Where the processes do not divide the batch, or were given different things.
        FloatingPointError
            Where a loss or a gradient of any process is not finite, on all of them.
        """
        s, folder, machine = self.settings, Path(folder), self.accelerator
        X, Y = domains(cohort, s.divisor, smallest=8 * s.factor, batch=s.batch)
        torch.manual_seed(seed)
        self.networks = Networks.build(s, cohort.size, self.device)
        training, history = Training(self.networks, s, X, Y, seed, machine), History()
        steps, joint_from, share = training.steps, training.ends[1], training.share

        for name in ("stopped_at", "processes"):
            self.metadata.pop(name, None)
        self.metadata |= {"processes": share.processes} if share.processes > 1 else {}
        self.metadata |= {"seed": seed, "steps": steps, "image_size": cohort.size, "perceptual": training.perceptual}
        self.metadata |= {"cohort_hash": cohort_hash(cohort), "patients_hash": patients_hash(cohort)}
        objects = training.objects() | {"history": history}
        checkpoint = Checkpoint(folder / "checkpoint.pt", self.metadata, objects, code=[self.fit], results=RESULTS)
        done = checkpoint.load()
        share.check_same(checkpoint.inputs | {"steps done": done})
        if not done and machine.is_main_process:
            checkpoint.make_room()

        bar = progress(steps, done, desc=self.name)
        for step in range(done, steps):
            terms, learning_rate = training.step(step)
            recorded = (step + 1) % s.log_every == 0 or step + 1 in (*training.ends, steps)
            if recorded:
                terms = {name: term.item() for name, term in terms.items()}
                history.record(step + 1, stage=training.stage(step), learning_rate=learning_rate, **terms)
            joint = step - joint_from
            due = joint >= 0 and preview_due(joint, s.joint_steps, s.previews)
            if machine.is_main_process and preview is not None and due:
                networks = training.averaged()
                save_preview(preview, {to: self._translator(to, 0, networks) for to in LABELS}, folder, step + 1)
            if machine.is_main_process and (checkpoint.due() or step + 1 == steps):
                checkpoint.save(step + 1)
            bar.set_postfix_str(training.stage(step), refresh=False)
            bar.update()
            if recorded and watch and step + 1 < steps and share.any(watch(history, folder)):
                if machine.is_main_process:
                    checkpoint.save(step + 1)
                self.metadata["stopped_at"] = step + 1
                break
        bar.close()
        machine.wait_for_everyone()
        if self.metadata.get("stopped_at", steps) < joint_from:
            raise RuntimeError(
                f"stopped after step {self.metadata['stopped_at']:,}, before the translators begin to learn (step "
                f"{joint_from + 1:,}): there is nothing to translate with yet. Run it again to go on."
            )

        for name, network in vars(training.averaged()).items():
            getattr(self.networks, name).load_state_dict(network.state_dict())
        if machine.is_main_process:
            write_text(folder / "history.csv", history.frame().to_csv(index=False))
            self.save(folder)
        machine.wait_for_everyone()
        return history.frame()

    # Translating ------------------------------------------------------------------------------------------------------

    def with_sampler(self, **changes) -> Self:
        """The same networks, not copied, with some fields of `Sampler` changed."""
        other = copy.copy(self)
        other.sampler = replace(self.sampler, **changes)
        other._check_times()
        return other

    def _translation(self, images: torch.Tensor, to: str, seed: int, networks: Networks) -> Translation:
        """Algorithm 2 of images (B, 1, H, W) in [-1, 1]; an image's noise follows from it and the seed."""
        source, target = (0, 1) if to == LABELS[1] else (1, 0)
        translator = networks.G if to == LABELS[1] else networks.F
        sampler, autoencoders = self.sampler, networks.autoencoders
        times = time_grid(sampler.steps, sampler.first_t, sampler.start_t)
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
        return Translation(times, inverted, components, translated, generated)

    def _translator(self, to: str, seed: int, networks: Networks):
        """A function from images to translated images, both (B, 1, H, W)."""
        target = LABELS.index(to)

        @torch.inference_mode()
        def translate(images: torch.Tensor) -> torch.Tensor:
            x0 = self._translation(images, to, seed, networks).generated[-1]
            return networks.autoencoders.decode(x0.float(), target)  # float32: bf16 has 8 of a radiograph's bits

        return translate

    def translate(self, cohort: Cohort, to: str = "AFF", batch: int = 32, seed: int = 0) -> Cohort:
        """Each image of the cohort with the other label, by algorithm 2 with `self.sampler`.

        With `Sampler(start="fresh")` every seed gives another translation; with "inverted" the seed only draws the
        little noise at `first_t`.

        Raises
        ------
        ValueError
            Where an image carries the label `to` already, or the images' size is not that of the training.
        """
        self._check(cohort)
        translator = self._translator(to, seed, self.networks)
        return translated(cohort, to, self.name, translator, batch, self.metadata["patients_hash"])

    @torch.inference_mode()
    def path(self, cohort: Cohort, to: str = "AFF", seed: int = 0) -> tuple[list[float], dict[str, np.ndarray]]:
        """What a few images pass through on their way to the other label.

        Returns
        -------
        times : T of them, rising from `sampler.first_t` to `sampler.start_t`
        pictures : by name (T, N, H, W), about -1 to 1: "source x_t", "source component", "translated component",
            "target x_t"; a component is shown as the image that it stands for, −C
        """
        self._check(cohort)
        check_sources(cohort, to)
        way = self._translation(torch.from_numpy(cohort.images()), to, seed, self.networks)
        target = LABELS.index(to)
        latents = {
            "source x_t": (way.inverted, 1 - target),
            "source component": ([-way.components[t] for t in way.times], 1 - target),
            "translated component": ([-way.translated[t] for t in way.times], target),
            "target x_t": (way.generated[-2::-1], target),
        }
        decode = self.networks.autoencoders.decode
        pictures = {
            name: np.stack([decode(z.float(), domain)[:, 0].cpu().numpy() for z in zs])
            for name, (zs, domain) in latents.items()
        }
        return way.times, pictures

    @torch.inference_mode()
    def sample(self, n: int, label: str, seed: int, like: Cohort, batch: int = 32, first: int = 0) -> Cohort:
        """n images from noise, by the domain's own diffusion model alone, in the pixel type of `like`.

        Each follows from the seed and its number, counted from `first`. They come from no patient and no image:
        `method` is "noise", `source_image_id` empty, and each has a patient_id of its own that starts with "noise-";
        `generator` is the hash of the patients of the training.
        """
        self._check(like)
        if label not in LABELS:
            raise ValueError(f"label={label!r}: images are drawn of {' or '.join(LABELS)}")
        domain, times = LABELS.index(label), time_grid(self.sampler.noise_steps, self.sampler.first_t, 1.0)
        autoencoders, denoisers = self.networks.autoencoders, self.networks.denoisers.eval()
        side = like.size // self.settings.factor
        pixels = np.empty((n, like.size, like.size), like.pixels.dtype)

        with progress(n, desc=f"noise to {label}") as bar:
            for start in range(0, n, batch):
                numbers = range(first + start, first + min(start + batch, n))
                randoms = [torch_generator(seed, domain, i) for i in numbers]
                eps = torch.stack(
                    [torch.randn(autoencoders.channels, side, side, generator=random) for random in randoms]
                )
                eps = eps.to(self.device, memory_format=torch.channels_last)
                with self.accelerator.autocast():
                    x0 = generate(of_domain(denoisers, domain), eps, times, solver=self.sampler.solver)[-1]
                images = autoencoders.decode(x0.float(), domain).cpu().numpy()
                pixels[start : start + batch] = to_pixels(images, pixels.dtype)
                bar.update(len(eps))
        return Cohort(self.noise_table(n, label, seed, first), pixels)

    def noise_table(self, n: int, label: str, seed: int, first: int = 0) -> pd.DataFrame:
        """The table of the images of `sample`."""
        names = [f"noise-{label}-{seed}-{i:06d}" for i in range(first, first + n)]
        columns = {"image_id": names, "patient_id": names, "label": label, "view": "", "side": ""}
        columns |= {"source_image_id": "", "source_label": "", "method": "noise"}
        return pd.DataFrame(columns | {"generator": self.metadata["patients_hash"]})

    @torch.inference_mode()
    def reconstruct(self, cohort: Cohort) -> Cohort:
        """The cohort after encoding and decoding, each image by its own domain's autoencoder."""
        self._check(cohort)
        autoencoders, images = self.networks.autoencoders.eval(), Images(cohort.pixels)
        pixels = np.empty(cohort.pixels.shape, cohort.pixels.dtype)
        for domain, label in enumerate(LABELS):
            for rows in torch.from_numpy(np.flatnonzero(cohort.table.label == label)).split(32):
                z = autoencoders.encode(images[rows].to(self.device, memory_format=torch.channels_last), domain)
                pixels[rows] = to_pixels(autoencoders.decode(z, domain).cpu().numpy(), pixels.dtype)
        return Cohort(cohort.table, pixels)

    def _check(self, cohort: Cohort) -> None:
        self._check_times()
        if self.networks is None:
            raise RuntimeError("this CycleDiff is not trained: call fit, or CycleDiff.load")
        if cohort.pixels.shape[1:] != (self.metadata["image_size"],) * 2:
            raise ValueError(
                f"images of {cohort.pixels.shape[1]} x {cohort.pixels.shape[2]} pixels: this CycleDiff was trained at "
                f"image_size {self.metadata['image_size']}"
            )

    def _check_times(self) -> None:
        if self.sampler.start_t > self.settings.t_max:
            raise ValueError(
                f"start_t={self.sampler.start_t}: the translators learn times up to t_max={self.settings.t_max} only; "
                "take a start_t up to there, or train with a larger t_max"
            )

    # Files ------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the networks that translate, with settings and hashes of what they saw, to `weights.safetensors`."""
        save_weights(Path(folder) / WEIGHTS, vars(self.networks), self.metadata | {"sampler": asdict(self.sampler)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The translator that `save` wrote.

        Raises
        ------
        ValueError
            Where the weights are those of another method, or of other shapes than this version of the code makes.
        """
        path = Path(folder) / WEIGHTS
        metadata = weights_metadata(path, cls.name)
        settings, sampler = known(Settings, metadata["settings"], path), known(Sampler, metadata.pop("sampler"), path)
        model = cls(settings, sampler)
        model.metadata = metadata
        model.networks = Networks.build(settings, metadata["image_size"], model.device)
        load_weights(path, vars(model.networks))
        return model
