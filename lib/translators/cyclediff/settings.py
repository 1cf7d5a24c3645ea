"""What can be chosen: how CycleDiff is built and trained (`Settings`), how it translates (`Sampler`).

Where paper and released code disagree:

    what                                       paper           released        here
    translation loss reaches the U-Nets        yes             no              Settings.joint: "both", "diffusion_only"
    heads of the U-Net                         two decoders    one             one: ε follows from C by eq. 1
    start noise of the generation              fresh           inverted        Sampler.start: "inverted", "fresh"
    gradient clipping                          not mentioned   without effect  Settings.clip, before the optimisers
    learning-rate floor 10⁻⁵                   a rate          a factor        a rate
    passes of the U-Nets in a joint step       one             two             one (perceptual features come on top)
    weights of eq. 6 in the warm-up            1               functions of t  Settings.diffusion_weights
    precision of sampling                      not mentioned   part float64    networks as in training, else float32

What is ours whatever the settings: the autoencoders' loss is L1, Kullback–Leibler and least squares against a
discriminator of their own (released: L1, LPIPS and hinge with an adaptive weight), their averages encode, and latents
are means, standardised by channel; the translators' decoders resize and convolve, and their learning rate falls; the
discriminators' last layers start at ½; inversion starts a little above t = 0, with a drawn noise (`Sampler.first_t`);
generation starts from the translated component and the noise at `Sampler.start_t`, which is the noise alone at the
published 1; averages forget the random first weights sooner (`lib.translators.training.EMA`); gradients are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

from lib.run.settings import FromParameters, check_choices, check_least
from lib.translators.cyclediff.process import T_MIN


@dataclass(frozen=True)
class Settings(FromParameters):
    """How CycleDiff is built and trained: defaults are what two cores do in a quarter of an hour.

    "paper:" says what was published, where that is another value.
    """

    # Autoencoder; where it is "kl", what kept a judge's AUROC on the phantom at factor 4, in a quarter of an hour
    autoencoder: str = "pixels"  # 2 x 2 pixels packed: no fracture line is lost; paper: "kl", factor 4
    shared_autoencoder: bool | None = None  # one for both domains; None: as `residual`, which adds latents; paper: no
    autoencoder_factor: int = 4  # of "kl": sides of image and latent; paper: 4
    latent_channels: int = 3  # of "kl"; paper: 3
    autoencoder_width: int = 16  # channels at full size, twice and four times as many further down; paper: 128
    autoencoder_blocks: int = 1  # residual blocks a level; paper: 2
    autoencoder_steps: int = 2000  # paper: starts from public weights; full profile: 50,000
    autoencoder_learning_rate: float = 4e-4  # Adam; full profile: 1e-4
    kl: float = 1e-6  # weight of the Kullback–Leibler term
    autoencoder_adversarial: float = 0.5  # weight of the adversarial term; ours, released: an adaptive one
    autoencoder_adversarial_from: int = 2001  # step it counts from: not at all in so few; paper: 20,001

    # Diffusion models
    warmup_steps: int = 200  # diffusion models alone; paper: 50,000
    unet_width: int = 24  # channels of the first level; paper: 128
    unet_multipliers: tuple[int, ...] = (1, 2, 2)  # of the width, by level; paper: 1, 2, 2, 2
    unet_blocks: int = 1  # residual blocks a level; paper: 3
    unet_attention: tuple[int, ...] = (8,)  # sides of the maps with attention, in latent pixels; paper: 16 and 8
    dropout: float = 0.0  # costs a fifth of the U-Net's time on a CPU; paper: 0.1
    shared_unet: bool = True  # one U-Net told the domain, so that the rare class borrows anatomy; paper: one each
    unet_learning_rate: float = 4e-4  # AdamW, falls linearly over all steps that train the U-Nets to …; paper: 1e-4
    unet_learning_rate_floor: float = 1e-5  # … this; paper: 1e-5
    diffusion_weights: str = "released"  # of the warm-up: functions of t, an L1 term on x̂_0; paper: "plain", eq. 6

    # Translators and discriminators
    joint_steps: int = 2000  # all networks, a quarter of an hour on two cores; paper: 50,000
    joint: str = "diffusion_only"  # U-Nets learn on, from eq. 6 alone; "frozen": they rest; paper: "both", from eq. 13
    t_max: float = 0.1  # translators learn times near the image only: the sooner they translate; paper: 1, all
    translator_width: int = 16  # channels; paper: 64
    translator_blocks: int = 4  # residual blocks; paper: 12
    translator_time: bool = True  # translators are told the time; paper: yes, and no in an ablation
    translator_attention: bool = True  # paper: yes, and no in an ablation
    translator_skips: bool = True  # the encoder's features help the decoder with thin lines; paper: no
    residual: bool = True  # translators add to the component, so they start as the identity; paper: no
    discriminator_width: int = 32  # channels; paper: 64
    discriminator_layers: int = 3  # of stride 2; fewer for latents below 64 px; paper: 3
    discriminator_time: bool = True  # discriminators know the time, after their first norm; paper: no
    diffaugment: bool = True  # augments what discriminators see: they know a hundred AFF by heart soon; paper: no
    learning_rate: float = 3e-4  # Adam, constant for half of the joint steps, then linearly to 0; paper: 2e-4
    diffusion: float = 0.05  # λ1; paper: 0.05
    adversarial: float = 1.0  # λ2, least squares; paper: 1
    cycle: float = 2.0  # λ3, L1; paper: 10. The more, the less of the fracture line is given up in a short training
    identity: float = 0.0  # λ4, L1; paper: 5. Residual translators start as the identity; 0 leaves the term out
    perceptual: float = 0.0  # λ5, L1 of features of a component and of its round trip; paper: 0.5
    contrastive: float = 0.02  # λ6; paper: 0.02, released: 0.01; 0 leaves the term out
    vgg16_weights: str = "none"  # of the perceptual term: "imagenet", or a file; "none": features of the U-Net
    pool: int = 15  # past fakes kept for each discriminator, in batches; paper: 15

    # All stages
    batch: int = 8  # images of each domain a step; paper: 24
    enlarge: float = 1.0  # random crops of an enlarged image; paper: 286/256
    clip: float = 1.0  # largest norm of each optimiser's gradient; ours, released: called too late to have an effect
    ema: float = 0.99  # decay of the averages, which sample; paper: 0.999, too slow for so few steps
    log_every: int = 50  # steps between two rows of the history
    previews: int = 8  # times that the preview images are translated in the joint stage

    def __post_init__(self):
        if self.shared_autoencoder is None:
            object.__setattr__(self, "shared_autoencoder", self.residual)
        for name in ("unet_multipliers", "unet_attention"):  # lists, where settings come from JSON or YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_choices(self, autoencoder=("kl", "pixels"), autoencoder_factor=(2, 4, 8))
        check_choices(self, joint=("both", "diffusion_only", "frozen"), diffusion_weights=("released", "plain"))
        lowest = {"log_every": 1, "batch": 1, "enlarge": 1, "previews": 0, "ema": 0}
        lowest |= {name: 1 for name in vars(self) if name.endswith("_width")}
        lowest |= {name: 0 for name in ("autoencoder_steps", "warmup_steps", "joint_steps", "pool")}
        check_least(self, **lowest)
        if not self.ema < 1 or not self.clip > 0:
            raise ValueError(f"ema={self.ema}, clip={self.clip}: needs ema below 1 and clip above 0")
        if not self.unet_multipliers or min(self.unet_multipliers) < 1:
            raise ValueError(f"unet_multipliers={self.unet_multipliers}: a whole number from 1 on for each level")
        if self.autoencoder == "kl" and not self.autoencoder_steps:
            raise ValueError("autoencoder='kl' has to be trained: autoencoder_steps must not be 0")
        if not T_MIN < self.t_max <= 1:
            raise ValueError(f"t_max={self.t_max}: a time above {T_MIN}, up to 1")
        if self.residual and self.autoencoder == "kl" and not self.shared_autoencoder:
            raise ValueError("residual=True adds latents of both domains: set shared_autoencoder=True too")
        if self.joint == "frozen" and self.joint_steps and not self.warmup_steps:
            raise ValueError("joint='frozen' keeps the U-Nets as the warm-up left them: warmup_steps must not be 0")

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each loss: λ1 to λ5 of eq. 13, λ6 of the discriminators' contrastive loss (eq. 9)."""
        names = ("diffusion", "adversarial", "cycle", "identity", "perceptual", "contrastive")
        found = {f"λ{number} {name}": getattr(self, name) for number, name in enumerate(names, 1)}
        return found | ({"λ1 diffusion": 0.0} if self.joint == "frozen" else {})

    @property
    def stages(self) -> dict[str, int]:
        """The steps of each stage that is trained, by field."""
        trained = ["autoencoder_steps"] if self.autoencoder == "kl" else []
        trained += ["warmup_steps", "joint_steps"]
        return {name: getattr(self, name) for name in trained if getattr(self, name)}

    @property
    def factor(self) -> int:
        """Side of an image in sides of its latent."""
        return 2 if self.autoencoder == "pixels" else self.autoencoder_factor

    @property
    def divisor(self) -> int:
        """What the side of an image must be a multiple of."""
        return self.factor * max(4, 2 ** (len(self.unet_multipliers) - 1))

    @property
    def smallest(self) -> int:
        """The smallest side of an image."""
        return 8 * self.factor


@dataclass(frozen=True)
class Sampler(FromParameters):
    """How images are translated and drawn. Nothing is trained anew where these change."""

    sampling_steps: int = 4  # times from first_t to start_t: one move fewer up, as many down, one to t = 0; paper: 100
    solver: str = "euler"  # "heun": second order, twice the time a step; paper: "euler"
    start: str = "fresh"  # generation starts from a drawn noise, as in the paper; released code: "inverted"
    start_t: float = 0.05  # where inversion ends and generation starts: lowest KID of those compared; paper: 1
    noise_steps: int = 16  # of drawing an image from noise alone, from t = 1: few, to save time; paper: 100
    first_t: float = 0.02  # where inversion starts, with a drawn noise: at t → 0 the predicted one divides by t (ours)

    def __post_init__(self):
        check_choices(self, start=("inverted", "fresh"), solver=("euler", "heun"))
        if not 0 < self.first_t <= self.start_t <= 1 or min(self.sampling_steps, self.noise_steps) < 1:
            raise ValueError(f"needs 0 < first_t ≤ start_t ≤ 1 and at least one step, not {self}")


PUBLISHED = Settings(
    autoencoder="kl", shared_autoencoder=False, autoencoder_width=128, autoencoder_blocks=2, autoencoder_steps=50_000,
    autoencoder_learning_rate=1e-4, autoencoder_adversarial_from=20_001, warmup_steps=50_000, unet_width=128,
    unet_multipliers=(1, 2, 2, 2), unet_blocks=3, unet_attention=(16, 8), dropout=0.1, shared_unet=False,
    unet_learning_rate=1e-4, diffusion_weights="plain", joint_steps=50_000, joint="both", t_max=1.0,
    translator_width=64, translator_blocks=12, translator_skips=False, residual=False, discriminator_width=64,
    discriminator_time=False, diffaugment=False, learning_rate=2e-4, cycle=10.0, identity=5.0, perceptual=0.5,
    vgg16_weights="imagenet", batch=24, enlarge=286 / 256, ema=0.999,
)  # fmt: skip
PUBLISHED_SAMPLER = Sampler(sampling_steps=100, start_t=1.0, noise_steps=100)
