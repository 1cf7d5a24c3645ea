"""What can be chosen: how CycleDiff is built and trained (`Settings`, `ABLATIONS`), how it translates (`Sampler`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from lib.translators.cyclediff.process import SOLVERS, T_MIN


@dataclass(frozen=True)
class Settings:
    """The defaults are the paper's, except where it is said: "released", "ours" or `NOT_IN_PAPER`.

    The discriminators' last layers start as in `lib.translators.networks.PatchGAN.init_weights`.
    """

    # Autoencoder
    autoencoder: str = "kl"  # "pixels": lossless, 2 × 2 pixels packed into channels, for images up to 128 px or so
    shared_autoencoder: bool = False  # one for both domains; needed where `residual` adds latents of both
    autoencoder_factor: int = 4  # of the KL autoencoder: sides of image and latent
    latent_channels: int = 3  # of the KL autoencoder
    autoencoder_width: int = 128  # its channels at full size; twice and four times as many further down
    autoencoder_blocks: int = 2  # residual blocks a level
    autoencoder_steps: int = 50_000  # ours: the published one starts from public kl-f4 weights
    autoencoder_learning_rate: float = 1e-4  # Adam; ours
    kl: float = 1e-6  # weight of the Kullback–Leibler term
    autoencoder_adversarial: float = 0.5  # weight of the adversarial term; ours, released: an adaptive one
    autoencoder_adversarial_from: int = 20_001  # step from which on it counts

    # Diffusion models
    warmup_steps: int = 50_000  # diffusion models alone
    unet_width: int = 128  # channels of the first level
    unet_multipliers: tuple[int, ...] = (1, 2, 2, 2)  # channels of each level, in units of the width
    unet_blocks: int = 3  # residual blocks a level
    unet_attention: tuple[int, ...] = (16, 8)  # sides of the feature maps, in latent pixels, that get self-attention
    dropout: float = 0.1
    shared_unet: bool = False  # one U-Net told the domain: the rare class borrows anatomy (ours)
    unet_learning_rate: float = 1e-4  # AdamW, falls linearly over all steps that train the U-Nets to …
    unet_learning_rate_floor: float = 1e-5
    diffusion_weights: str = "released"  # of the warm-up: functions of t, and an L1 term on x̂_0; paper: "plain", eq. 6

    # Translators and discriminators
    joint_steps: int = 50_000  # all networks together
    joint: str = "both"  # the U-Nets learn on from eq. 13, "diffusion_only": from eq. 6 alone, "frozen": not (ours)
    t_max: float = 1.0  # translators learn the times up to here; images are then translated from no later time (ours)
    translator_width: int = 64
    translator_blocks: int = 12
    translator_time: bool = True  # False: not told the time, the paper's ablation
    translator_attention: bool = True  # False: without, the paper's ablation
    translator_skips: bool = False  # encoder's features added to the decoder's, for lines of a pixel's width (ours)
    residual: bool = False  # translators add their output to the component, so that they start as the identity (ours)
    discriminator_width: int = 64
    discriminator_layers: int = 3  # of stride 2; fewer for latents below 64 px
    discriminator_time: bool = False  # discriminators know t: scale and shift after the first norm (ours)
    diffaugment: bool = False  # augment all that discriminators see: a rare class is otherwise learnt by heart (ours)
    learning_rate: float = 2e-4  # Adam, β = (0.5, 0.999); constant for half of the joint steps, then linearly to 0
    diffusion: float = 0.05  # λ1
    adversarial: float = 1.0  # λ2, least squares
    cycle: float = 10.0  # λ3, L1; 8 in the released configuration
    identity: float = 5.0  # λ4, L1; 4 in the released configuration; 0 leaves the term out
    perceptual: float = 0.5  # λ5, L1 of features of a component and of its round trip; 0 leaves the term out
    contrastive: float = 0.02  # λ6; 0.01 in the released configuration; 0 leaves the term out
    vgg16_weights: str = "imagenet"  # downloaded by torchvision; a safetensors file; "none": U-Net features
    pool: int = 15  # past fakes kept for each discriminator, in batches

    # All stages
    batch: int = 24  # images of each domain in a step
    enlarge: float = 286 / 256  # enlarged by this factor, then cropped at random; 1 keeps the field of view
    clip: float = 1.0  # largest norm of each optimiser's gradient (ours; released: called too late to have an effect)
    ema: float = 0.999  # decay of the averaged autoencoders, U-Nets and translators, which sample
    log_every: int = 50  # steps between two rows of the history
    previews: int = 8  # times that the preview images are translated in the joint stage

    def __post_init__(self):
        for name in ("unet_multipliers", "unet_attention"):  # lists, where settings come from JSON or YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = {"autoencoder": ("kl", "pixels"), "joint": ("both", "diffusion_only", "frozen")}
        known |= {"diffusion_weights": ("released", "plain"), "autoencoder_factor": (2, 4, 8)}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, choices))}")
        lowest = {"log_every": 1, "batch": 1, "enlarge": 1, "previews": 0, "ema": 0}
        lowest |= {name: 1 for name in vars(self) if name.endswith("_width")}
        lowest |= {name: 0 for name in ("autoencoder_steps", "warmup_steps", "joint_steps", "pool")}
        for name, least in lowest.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")
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
    def stages(self) -> dict[str, int]:
        """The steps of each stage that is trained, by field."""
        names = ("autoencoder_steps",) * (self.autoencoder == "kl") + ("warmup_steps", "joint_steps")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def factor(self) -> int:
        """Side of an image in sides of its latent."""
        return 2 if self.autoencoder == "pixels" else self.autoencoder_factor

    @property
    def divisor(self) -> int:
        """What the side of an image must be a multiple of."""
        return self.factor * max(4, 2 ** (len(self.unet_multipliers) - 1))


@dataclass(frozen=True)
class Sampler:
    """How images are translated and drawn. Nothing is trained anew where these change."""

    steps: int = 100  # times from first_t to start_t: steps − 1 moves up, as many down, and one more to t = 0
    solver: str = "euler"  # "heun": second order, two evaluations a step (ours)
    start: str = "inverted"  # the generation's noise, as released; "fresh": as in the paper, several results an image
    start_t: float = 1.0  # where inversion ends and generation starts; smaller keeps more of the image (ours)
    noise_steps: int = 100  # of drawing an image from noise, all the way from t = 1
    first_t: float = 0.02  # where inversion starts, with a drawn noise: at t → 0 the predicted one divides by t (ours)

    def __post_init__(self):
        for name, choices in {"start": ("inverted", "fresh"), "solver": SOLVERS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, choices))}")
        if not 0 < self.first_t <= self.start_t <= 1 or min(self.steps, self.noise_steps) < 1:
            raise ValueError(f"needs 0 < first_t ≤ start_t ≤ 1 and at least one step, not {self}")


# Defaults that are the released code's where the paper has another choice, and the paper's choice.
NOT_IN_PAPER = {"diffusion_weights": "plain", "start": "fresh"}
PUBLISHED = asdict(Settings()) | asdict(Sampler()) | NOT_IN_PAPER  # what the paper chose

ABLATIONS = {
    "as set": {},
    "joint": {"joint": "both"},
    "diffusion only": {"joint": "diffusion_only"},
    "frozen U-Nets": {"joint": "frozen"},
    "without time": {"translator_time": False},
    "without attention": {"translator_attention": False},
    "without contrastive": {"contrastive": 0.0},
    "without perceptual": {"perceptual": 0.0},
    "with perceptual": {"perceptual": 0.5},
    "all times": {"t_max": 1.0},
    "separate U-Nets": {"shared_unet": False},
}


def ablated(settings: Settings, name: str) -> Settings:
    """The settings with one part changed or taken away, by its name in `ABLATIONS`.

    Raises
    ------
    ValueError
        Where there is no such name, or the settings are so already.
    """
    if name not in ABLATIONS:
        raise ValueError(f"no ablation {name!r}; there are {', '.join(map(repr, ABLATIONS))}")
    changed = replace(settings, **ABLATIONS[name])
    if changed == settings and ABLATIONS[name]:
        raise ValueError(f"ablation {name!r} changes nothing here: {ABLATIONS[name]} is set already")
    return changed
