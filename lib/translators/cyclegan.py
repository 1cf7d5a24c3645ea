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

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import l1_loss

from lib.data.cohort import LABELS, Cohort
from lib.data.images import Images
from lib.run.randomness import torch_generator
from lib.run.settings import FromParameters, check_choices, check_least
from lib.translators.networks import (
    ImagePool,
    PatchGAN,
    ResNet,
    init_weights,
    linear_decay,
    lsgan_discriminator,
    lsgan_generator,
    patch_layers,
)
from lib.translators.training import Training
from lib.translators.translator import Function, Translator


@dataclass(frozen=True)
class Settings(FromParameters):
    """How CycleGAN is built and trained. The defaults are what two cores do in seven minutes; "paper:" is its choice.

    Its discriminators start as in `lib.translators.networks.PatchGAN.init_weights`.
    """

    steps: int = 2200  # updates; paper: 200 epochs, each of as many steps as the larger domain has images
    batch: int = 4  # images of each domain a step, which keeps a GPU busy; paper: 1
    learning_rate: float = 3e-4  # Adam, constant for half of the steps, then linearly to 0; paper: 2e-4, for one image
    cycle: float = 2.0  # λ; paper: 10. The more, the less of the fracture line is given up in a short training
    identity: float = 0.0  # weight of the identity loss; paper: 5. A residual generator starts as the identity
    noise: float = 0.0  # σ added before the way back, against a source hidden in fine noise (1712.02950); paper: none
    pool: int = 50  # past fakes kept for each discriminator, whatever the batch; paper: 50
    enlarge: float = 1.0  # random crops of an enlarged image; paper: 286/256. 1: the whole field of view
    diffaugment: bool = True  # augments what discriminators see: they know a hundred AFF by heart soon; paper: no
    ema: float = 0.99  # averaged generators translate; paper: 0, the last ones
    width: int = 16  # generator channels at full size; paper: 64
    blocks: int = 4  # residual blocks; paper: 6 at 128 px, 9 at 256
    residual: bool = True  # the output is added to the input, so that a generator starts as the identity; paper: no
    skips: bool = True  # the encoder's features help the decoder to erase and draw thin lines; paper: no
    upsampling: str = "resize"  # leaves no checkerboards; paper: "transposed"
    discriminator_width: int = 32  # discriminator channels; paper: 64
    discriminator_layers: int = 3  # layers of stride 2, fewer below 64 px; paper: 3, which see patches of 70 px
    log_every: int = 50  # steps between two rows of the history
    previews: int = 8  # times that the preview images are translated on the way

    divisor, smallest = 4, 16  # of the side of images

    def __post_init__(self):
        check_choices(self, upsampling=("resize", "transposed"))
        check_least(self, steps=1, batch=1, enlarge=1, log_every=1, previews=0, pool=0, ema=0, learning_rate=0)
        check_least(self, width=1, blocks=0, discriminator_width=1, discriminator_layers=1)
        check_least(self, cycle=0, identity=0, noise=0)
        if self.ema >= 1:
            raise ValueError(f"ema={self.ema}: below 1, or the averaged generators never learn")

    @property
    def stages(self) -> dict[str, int]:
        """The steps of each stage, by field: there is one."""
        return {"steps": self.steps}


PUBLISHED = Settings(
    steps=200_000, batch=1, learning_rate=2e-4, cycle=10.0, identity=5.0, enlarge=286 / 256, diffaugment=False, ema=0.0,
    width=64, blocks=9, residual=False, skips=False, upsampling="transposed", discriminator_width=64,
)  # fmt: skip


class Generator(ResNet):
    """(B, 1, H, W) in [-1, 1] → the same: tanh(net(x)) as published, or with `residual` x + 2·tanh(net(x)/2), clamped.

    The sum reaches every grey value from every other, its slope at zero is 1, and gradients pass the clamp unchanged,
    so that a saturated pixel can still be learnt.
    """

    def __init__(self, settings: Settings):
        super().__init__(1, 1, settings.width, settings.blocks, settings.upsampling, skips=settings.skips)
        self.residual = settings.residual

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the weights; a residual generator then starts as the identity."""
        init_weights(self, generator)
        if self.residual:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = super().forward(x).float()
        if not self.residual:
            return h.tanh()
        y = x.float() + 2 * (h / 2).tanh()
        return y + (y.clamp(-1, 1) - y).detach()


@dataclass
class Networks:
    """What translates."""

    G: Generator
    F: Generator


class CycleGANTraining(Training):
    """Equations 1 to 3: the steps of generators and discriminators.

    The history has the terms of eq. 3, unweighted: `adversarial_G`, `adversarial_F`, `cycle_X`, `cycle_Y`,
    `identity_X`, `identity_Y`, then `D_X` and `D_Y`, the losses of the discriminators (0.25 where one cannot tell).
    """

    def __init__(self, networks: Networks, s: Settings, X: Images, Y: Images, seed: int, accelerator):
        networks.G.init_weights(torch_generator(seed, 1))
        networks.F.init_weights(torch_generator(seed, 2))
        super().__init__(networks, s, X, Y, seed, accelerator)
        layers = patch_layers(X.shape[-1], s.discriminator_layers)
        self.D_X, self.D_Y = (self.place(PatchGAN(1, s.discriminator_width, layers)) for _ in range(2))
        self.D_X.init_weights(torch_generator(seed, 3))
        self.D_Y.init_weights(torch_generator(seed, 4))
        self.pool_X, self.pool_Y = ImagePool(s.pool), ImagePool(s.pool)
        self.optimisers["G"] = self.adam(s.learning_rate, networks.G, networks.F)
        self.optimisers["D"] = self.adam(s.learning_rate, self.D_X, self.D_Y)

    def objects(self) -> dict:
        return super().objects() | {name: getattr(self, name) for name in ("D_X", "D_Y", "pool_X", "pool_Y")}

    def step(self, step: int) -> dict[str, torch.Tensor | float]:
        s, rank, seen = self.settings, self.rank, self.seen
        G, F, D_X, D_Y = self.networks.G, self.networks.F, self.D_X, self.D_Y
        learning_rate = s.learning_rate * linear_decay(step, s.steps)
        self.set_rate(learning_rate, "G", "D")

        # Draw a batch of each domain, and noise.
        x, y = self.draw(step)
        random = torch_generator(self.seed, 40, step)  # of this step's noise, augmentation and pools
        whole = s.batch, *x.shape[1:]
        noise_Y, noise_X = (s.noise * rank.of(torch.randn(whole, generator=random)).to(x) for _ in range(2))

        # Translate, there and back.
        D_X.requires_grad_(False)
        D_Y.requires_grad_(False)
        with self.autocast():
            if s.identity:
                y_fake, y_same = G(torch.cat([x, y])).chunk(2)
                x_fake, x_same = F(torch.cat([y, x])).chunk(2)
            else:
                y_fake, x_fake, y_same, x_same = G(x), F(y), y, x
            x_back, y_back = F(y_fake + noise_Y), G(x_fake + noise_X)
            score_Y, score_X = D_Y(seen(y_fake, random)), D_X(seen(x_fake, random))

        # Update the generators.
        adversarial_G, adversarial_F = lsgan_generator(score_Y), lsgan_generator(score_X)  # eq. 1
        cycle_X, cycle_Y = l1_loss(x_back, x), l1_loss(y_back, y)  # eq. 2
        identity_X, identity_Y = l1_loss(x_same, x), l1_loss(y_same, y)  # section 5.2
        loss = adversarial_G + adversarial_F + s.cycle * (cycle_X + cycle_Y)  # eq. 3
        loss = loss + s.identity * (identity_X + identity_Y)
        terms = {
            "adversarial_G": adversarial_G, "adversarial_F": adversarial_F, "cycle_X": cycle_X, "cycle_Y": cycle_Y,
            "identity_X": identity_X, "identity_Y": identity_Y,
        }  # fmt: skip
        self.update(step, loss, terms, "G")
        self.averages["G"].update()
        self.averages["F"].update()

        # Update the discriminators, on fakes of now and of the past.
        terms_D = {}
        for name, D, real, fake, pool in (("D_X", D_X, x, x_fake, self.pool_X), ("D_Y", D_Y, y, y_fake, self.pool_Y)):
            D.requires_grad_(True)
            both = torch.cat([real, rank.of(pool(rank.all(fake), random))])
            with self.autocast():
                scores = D(seen(both, random))
            terms_D[name] = lsgan_discriminator(*scores.chunk(2))
        self.update(step, sum(terms_D.values()), terms_D, "D")
        return {"learning_rate": learning_rate, **terms, **terms_D}


class CycleGAN(Translator):
    """G(x) to "AFF", F(y) to "NFF"."""

    name, kinds = "cyclegan", {"settings": Settings}

    def build(self, size: int) -> Networks:
        """Make the generators, which fit images of every size."""
        networks = (Generator(self.settings) for _ in range(2))
        return Networks(*(network.to(self.device, memory_format=torch.channels_last) for network in networks))

    def training(self, X: Images, Y: Images, seed: int) -> CycleGANTraining:
        return CycleGANTraining(self.networks, self.settings, X, Y, seed, self.accelerator)

    def translator(self, to: str, seed: int, networks: Networks) -> Function:
        """Return G or F, in float32: bf16 would leave 8 of up to 16 bits."""
        network = networks.G if to == LABELS[1] else networks.F

        @torch.inference_mode()
        def translate(images: torch.Tensor) -> torch.Tensor:
            return network.eval()(images.to(self.device, memory_format=torch.channels_last))

        return translate

    def round_trip(self, cohort: Cohort, noise: float = 0.0, seed: int = 0) -> float:
        """Measure ‖F(G(x) + σ·n) − x‖₁ of NFF images, or ‖G(F(y) + σ·n) − y‖₁ of AFF images; the cohort has one label.

        A small error that a little noise n ~ N(0, 1) makes large means that the translation hides its source in a
        fine pattern (arXiv 1712.02950). `noise` is σ on the scale from -1 to 1.
        """
        own, images = cohort.table.label.iloc[0], torch.from_numpy(cohort.images())
        other = next(label for label in LABELS if label != own)
        there, back = (self.translator(to, seed, self.networks) for to in (other, own))
        n = torch.randn(images.shape, generator=torch_generator(seed))
        return l1_loss(back(there(images).cpu() + noise * n).cpu(), images).item()
