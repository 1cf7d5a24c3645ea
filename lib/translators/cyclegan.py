"""CycleGAN: two generators and two discriminators, trained on unpaired images of two domains.

J.-Y. Zhu, T. Park, P. Isola, A. Efros, "Unpaired image-to-image translation using cycle-consistent adversarial
networks", arXiv 1703.10593.

    symbol      here     meaning
    X, Y        X, Y     the domains: X = NFF, Y = AFF
    x, y        x, y     an image of each, (B, 1, H, W) in [-1, 1]
    G: X → Y    G        generator: makes an NFF an AFF
    F: Y → X    F        generator: makes an AFF an NFF
    D_X, D_Y    D_X, D_Y discriminators: is this a real NFF, a real AFF?
    G(x), F(y)  y_fake, x_fake

    eq. 1    L_GAN(G, D_Y)  least squares (section 4): G minimises (D_Y(G(x)) − 1)², D_Y (D_Y(y) − 1)² + D_Y(G(x))²
    eq. 2    L_cyc(G, F)    = ‖F(G(x)) − x‖₁ + ‖G(F(y)) − y‖₁
    eq. 3    L              = L_GAN(G, D_Y) + L_GAN(F, D_X) + λ·L_cyc
    eq. 4    G*, F*         = arg min_{G, F} max_{D_X, D_Y} L
    sec. 5.2 L_identity     = ‖G(y) − y‖₁ + ‖F(x) − x‖₁, weighted 0.5·λ, added to eq. 3
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import l1_loss

from lib.data.cohort import LABELS, Cohort
from lib.data.hashes import cohort_hash, patients_hash
from lib.run.checkpoints import Checkpoint
from lib.run.files import write_text
from lib.run.hardware import accelerator
from lib.run.progress import progress
from lib.run.randomness import batch_rows, flipped, torch_generator
from lib.run.rank import Rank
from lib.run.weights import known, load_weights, save_weights, weights_metadata
from lib.translators.networks import (
    ImagePool,
    PatchGAN,
    ResNet,
    diffaugment,
    init_weights,
    linear_decay,
    lsgan_discriminator,
    lsgan_generator,
    patch_layers,
    random_crops,
)
from lib.translators.training import (
    EMA,
    RESULTS,
    WEIGHTS,
    History,
    Watch,
    check_finite,
    preview_due,
    save_preview,
)
from lib.translators.translator import check_size, domains, translated


@dataclass(frozen=True)
class Settings:
    """The defaults are the paper's, but for `upsampling` and the discriminators' start (`PatchGAN.init_weights`)."""

    steps: int = 200_000  # updates; the paper's 200 epochs are 200 · (images of the larger domain) / batch
    batch: int = 1  # images of each domain in a step; larger keeps a GPU busy
    learning_rate: float = 2e-4  # Adam, β = (0.5, 0.999); constant for half of the steps, then linearly to 0
    cycle: float = 10.0  # λ of eq. 3
    identity: float = 5.0  # weight of L_identity, 0.5·λ; 0 leaves the term out
    noise: float = 0.0  # σ added to y_fake, x_fake before the way back, exposes a source hidden in them (1712.02950)
    pool: int = 50  # past fakes kept for each discriminator, whatever the batch
    enlarge: float = 286 / 256  # enlarged by this factor, then cropped at random; 1 keeps the field of view
    diffaugment: bool = False  # augment all that D sees (2006.10738): a rare class is otherwise learnt by heart
    ema: float = 0.0  # decay of the averaged generators that translate; 0: the current ones, as published
    width: int = 64  # generator channels at full size
    blocks: int = 9  # residual blocks; the paper takes 6 at 128 px and below
    residual: bool = False  # add the output to the input, so that a generator starts as the identity
    skips: bool = False  # encoder's features added to the decoder's, for lines of a pixel's width
    upsampling: str = "resize"  # no checkerboards; "transposed" is as published
    discriminator_width: int = 64  # discriminator channels of the first layer
    discriminator_layers: int = 3  # layers of stride 2: 3 see patches of 70 px; fewer below 64 px
    log_every: int = 50  # steps between two rows of the history
    previews: int = 8  # times that the preview images are translated on the way

    @property
    def stages(self) -> dict[str, int]:
        """The steps of each stage, by field: there is one."""
        return {"steps": self.steps}


PUBLISHED = asdict(Settings())  # what the paper chose


class Generator(ResNet):
    """(B, 1, H, W) in [-1, 1] → the same: tanh(net(x)) as published, or with `residual` x + 2·tanh(net(x)/2), clamped.

    The sum reaches every grey value from every other, its slope at zero is 1, and gradients pass the clamp unchanged,
    so that a saturated pixel can still be learnt.
    """

    def __init__(self, settings: Settings):
        super().__init__(1, 1, settings.width, settings.blocks, settings.upsampling, skips=settings.skips)
        self.residual = settings.residual

    def init_weights(self, generator: torch.Generator) -> None:
        init_weights(self, generator)
        if self.residual:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = super().forward(x).float()
        if not self.residual:
            return h.tanh()
        y = x.float() + 2 * (h / 2).tanh()
        return y + (y.clamp(-1, 1) - y).detach()


class CycleGAN:
    """A `lib.translators.translator.Translator`.

    >>> gan = CycleGAN(Settings(steps=2000, batch=4, width=16, blocks=4, residual=True))  # doctest: +SKIP
    >>> history = gan.fit(training, Path("runs/quick/cyclegan/r0f0"), seed=0)  # doctest: +SKIP
    >>> synthetic = gan.translate(training.select(label="NFF"), to="AFF")  # doctest: +SKIP
    """

    name = "cyclegan"

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or Settings()
        self.accelerator = accelerator()
        self.device = self.accelerator.device
        self.G, self.F = (self._network(Generator(self.settings)) for _ in range(2))
        self.metadata = {"method": self.name, "settings": asdict(self.settings)}
        self.metadata["precision"] = self.accelerator.mixed_precision  # "bf16", or "no": float32

    def _network(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)

    def fit(
        self, cohort: Cohort, folder: Path, seed: int, preview: Cohort | None = None, watch: Watch | None = None
    ) -> pd.DataFrame:
        """Train on all images of the cohort and return the history of the losses (see
        `lib.translators.translator.Translator`).

        Columns of the history: `step`, `learning_rate`, the terms of eq. 3, unweighted: `adversarial_G`,
        `adversarial_F`, `cycle_X`, `cycle_Y`, `identity_X`, `identity_Y`, then `D_X` and `D_Y`, the losses of the
        discriminators (0.25 where one cannot tell).

        Raises
        ------
        ValueError
            Where the processes do not divide the batch, or were given different things.
        FloatingPointError
            Where a loss of any process is not finite, on all of them.
        """
        s, folder, machine = self.settings, Path(folder), self.accelerator
        share = Rank(s.batch, machine.num_processes, machine.process_index)
        X, Y = domains(cohort, divisor=4, smallest=16, batch=s.batch)
        layers = patch_layers(cohort.size, s.discriminator_layers)
        D_X, D_Y = (self._network(PatchGAN(1, s.discriminator_width, layers)) for _ in range(2))
        self.G.init_weights(torch_generator(seed, 1))
        self.F.init_weights(torch_generator(seed, 2))
        D_X.init_weights(torch_generator(seed, 3))
        D_Y.init_weights(torch_generator(seed, 4))
        G_average, F_average = EMA(self.G, s.ema), EMA(self.F, s.ema)

        adam = {"lr": s.learning_rate, "betas": (0.5, 0.999), "fused": True}
        generators = [*self.G.parameters(), *self.F.parameters()]
        discriminators = [*D_X.parameters(), *D_Y.parameters()]
        optimiser_G, optimiser_D = (torch.optim.Adam(those, **adam) for those in (generators, discriminators))
        pool_X, pool_Y, history = ImagePool(s.pool), ImagePool(s.pool), History()

        for name in ("stopped_at", "processes"):
            self.metadata.pop(name, None)
        self.metadata |= {"processes": share.processes} if share.processes > 1 else {}
        self.metadata |= {"seed": seed, "steps": s.steps, "image_size": cohort.size}
        self.metadata |= {"cohort_hash": cohort_hash(cohort), "patients_hash": patients_hash(cohort)}
        checkpoint = Checkpoint(
            folder / "checkpoint.pt",
            self.metadata,
            objects={
                "G": self.G, "F": self.F, "D_X": D_X, "D_Y": D_Y, "G_average": G_average, "F_average": F_average,
                "optimiser_G": optimiser_G, "optimiser_D": optimiser_D, "pool_X": pool_X, "pool_Y": pool_Y,
                "history": history,
            },
            code=[self.fit],
            results=RESULTS,
        )  # fmt: skip
        done = checkpoint.load()
        share.check_same(checkpoint.inputs | {"steps done": done})
        if not done and machine.is_main_process:
            checkpoint.make_room()

        def draw(images: torch.Tensor, step: int, domain: int) -> torch.Tensor:
            rows = batch_rows(len(images), s.batch, step, seed, 10 + domain)
            batch = flipped(images[rows], seed, 20 + domain, step)
            batch = random_crops(batch, s.enlarge, torch_generator(seed, 30 + domain, step))
            return share.of(batch).to(self.device, memory_format=torch.channels_last)

        def seen(images: torch.Tensor) -> torch.Tensor:
            return diffaugment(images, random, share) if s.diffaugment else images

        bar = progress(s.steps, done, desc=self.name)
        for step in range(done, s.steps):
            learning_rate = s.learning_rate * linear_decay(step, s.steps)
            for group in optimiser_G.param_groups + optimiser_D.param_groups:
                group["lr"] = learning_rate
            random = torch_generator(seed, 40, step)  # of this step's noise, augmentation and pools

            # Draw a batch of each domain.
            x, y = draw(X, step, 0), draw(Y, step, 1)

            # Translate, there and back.
            for D in (D_X, D_Y):
                D.requires_grad_(False)
            with self.accelerator.autocast():
                if s.identity:
                    y_fake, y_same = self.G(torch.cat([x, y])).chunk(2)
                    x_fake, x_same = self.F(torch.cat([y, x])).chunk(2)
                else:
                    y_fake, x_fake = self.G(x), self.F(y)
                    y_same, x_same = y, x
                whole = s.batch, *x.shape[1:]
                noise_Y, noise_X = (s.noise * share.of(torch.randn(whole, generator=random)).to(x) for _ in range(2))
                x_back, y_back = self.F(y_fake + noise_Y), self.G(x_fake + noise_X)
                score_Y, score_X = D_Y(seen(y_fake)), D_X(seen(x_fake))

            # Update the generators.
            adversarial_G, adversarial_F = lsgan_generator(score_Y), lsgan_generator(score_X)  # eq. 1
            cycle_X, cycle_Y = l1_loss(x_back, x), l1_loss(y_back, y)  # eq. 2
            identity_X, identity_Y = l1_loss(x_same, x), l1_loss(y_same, y)
            loss = adversarial_G + adversarial_F + s.cycle * (cycle_X + cycle_Y)  # eq. 3
            loss = loss + s.identity * (identity_X + identity_Y)
            terms = {
                "adversarial_G": adversarial_G, "adversarial_F": adversarial_F, "cycle_X": cycle_X, "cycle_Y": cycle_Y,
                "identity_X": identity_X, "identity_Y": identity_Y,
            }  # fmt: skip
            terms = share.mean(terms)
            check_finite(step + 1, terms)
            optimiser_G.zero_grad()
            loss.backward()
            share.average(generators)
            optimiser_G.step()
            G_average.update()
            F_average.update()

            # Update the discriminators, on fakes of now and of the past.
            losses_D = []
            for D, real, fake, pool in ((D_X, x, x_fake, pool_X), (D_Y, y, y_fake, pool_Y)):
                D.requires_grad_(True)
                both = torch.cat([real, share.of(pool(share.all(fake), random))])
                with self.accelerator.autocast():
                    scores = D(seen(both))
                losses_D.append(lsgan_discriminator(*scores.chunk(2)))
            terms_D = share.mean({"D_X": losses_D[0], "D_Y": losses_D[1]})
            check_finite(step + 1, terms_D)
            optimiser_D.zero_grad()
            sum(losses_D).backward()
            share.average(discriminators)
            optimiser_D.step()

            # Record, show, save.
            recorded = (step + 1) % s.log_every == 0 or step + 1 == s.steps
            if recorded:
                terms = {name: term.item() for name, term in (terms | terms_D).items()}
                history.record(step + 1, learning_rate=learning_rate, **terms)
            if machine.is_main_process and preview is not None and preview_due(step, s.steps, s.previews):
                samplers = {"AFF": self._sampler(G_average.average), "NFF": self._sampler(F_average.average)}
                save_preview(preview, samplers, folder, step + 1)
            if machine.is_main_process and (checkpoint.due() or step + 1 == s.steps):
                checkpoint.save(step + 1)
            bar.update()
            if recorded and watch and step + 1 < s.steps and share.any(watch(history, folder)):
                if machine.is_main_process:
                    checkpoint.save(step + 1)
                self.metadata["stopped_at"] = step + 1
                break
        bar.close()

        # Keep the averaged generators.
        self.G.load_state_dict(G_average.average.state_dict())
        self.F.load_state_dict(F_average.average.state_dict())
        if machine.is_main_process:
            write_text(folder / "history.csv", history.frame().to_csv(index=False))
            self.save(folder)
        machine.wait_for_everyone()
        return history.frame()

    def _sampler(self, network: nn.Module):
        """A function from images to translated images, in float32: bf16 would leave 8 of up to 16 bits."""

        @torch.inference_mode()
        def sample(images: torch.Tensor) -> torch.Tensor:
            return network.eval()(images.to(self.device, memory_format=torch.channels_last))

        return sample

    def translate(self, cohort: Cohort, to: str = "AFF", batch: int = 32) -> Cohort:
        """Each image of the cohort with the other label: G(x) to "AFF", F(y) to "NFF".

        Raises
        ------
        ValueError
            Where an image carries the label `to` already, or the images' size does not fit.
        """
        check_size(cohort, divisor=4, smallest=16)
        sampler = self._sampler(self.F if to == LABELS[0] else self.G)
        return translated(cohort, to, self.name, sampler, batch, self.metadata.get("patients_hash"))

    def round_trip(self, cohort: Cohort, noise: float = 0.0, seed: int = 0) -> float:
        """‖F(G(x) + σ·n) − x‖₁ of NFF images, or ‖G(F(y) + σ·n) − y‖₁ of AFF images; the cohort has one label.

        A small error that a little noise n ~ N(0, 1) makes large means that the translation hides its source in a
        fine pattern (arXiv 1712.02950). `noise` is σ on the scale from -1 to 1.
        """
        there, back = (self.G, self.F) if cohort.table.label.iloc[0] == LABELS[0] else (self.F, self.G)
        images = torch.from_numpy(cohort.images())
        n = torch.randn(images.shape, generator=torch_generator(seed))
        translated = self._sampler(there)(images).cpu()
        return l1_loss(self._sampler(back)(translated + noise * n).cpu(), images).item()

    def save(self, folder: Path) -> None:
        """Write G and F, with settings, seed and the hashes of what they were trained on, to `weights.safetensors`."""
        save_weights(Path(folder) / WEIGHTS, {"G": self.G, "F": self.F}, self.metadata)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The translator that `save` wrote."""
        path = Path(folder) / WEIGHTS
        metadata = weights_metadata(path, cls.name)
        gan = cls(known(Settings, metadata["settings"], path))
        gan.metadata = metadata
        load_weights(path, {"G": gan.G, "F": gan.F})
        return gan
