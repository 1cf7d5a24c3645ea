"""Algorithm 1: one step of each stage of CycleDiff's training, autoencoders, diffusion warm-up, joint."""

import torch
from accelerate import Accelerator
from torch.nn.functional import l1_loss

from lib.data.images import Images
from lib.run.randomness import torch_generator
from lib.translators.cyclediff.losses import (
    contrastive_loss,
    cycle_loss,
    diffusion_loss,
    identity_loss,
    objective,
    perceptual_loss,
    vgg16_features,
)
from lib.translators.cyclediff.networks import Discriminator, Networks
from lib.translators.cyclediff.process import diffuse, draw_times, per_image
from lib.translators.cyclediff.settings import Settings
from lib.translators.networks import (
    ImagePool,
    PatchGAN,
    linear_decay,
    lsgan_discriminator,
    lsgan_generator,
    patch_layers,
)
from lib.translators.training import Training

Row = dict[str, torch.Tensor | float | str]  # of the history


class CycleDiffTraining(Training):
    """The steps of all networks.

    The history has `stage` ("autoencoder", "warm-up", "joint"), `learning_rate`, and the terms, unweighted, where a
    stage has them: `reconstruction`, `divergence`, `adversarial_autoencoder`, `D_autoencoder`; `diffusion_X`,
    `diffusion_Y`; `adversarial_G`, `adversarial_F`, `cycle_X`, `cycle_Y`, `identity_X`, `identity_Y`, `perceptual_X`,
    `perceptual_Y`, `D_X`, `D_Y` (0.25 where a discriminator cannot tell), `contrastive_X`, `contrastive_Y`.
    With `dropout` the result depends on the number of processes: each draws the masks of its own rows.
    """

    def __init__(self, networks: Networks, s: Settings, X: Images, Y: Images, seed: int, accelerator: Accelerator):
        networks.G.init_weights(torch_generator(seed, 1))
        networks.F.init_weights(torch_generator(seed, 2))
        super().__init__(networks, s, X, Y, seed, accelerator)
        autoencoder_steps = s.stages.get("autoencoder_steps", 0)
        self.ends = (autoencoder_steps, autoencoder_steps + s.warmup_steps)  # of the first two stages
        self.translates_from, self.clip = self.ends[1], s.clip

        channels, size = networks.autoencoders.channels, X.shape[-1] // s.factor
        self.D_X, self.D_Y = (self.place(Discriminator(channels, size, s)) for _ in range(2))
        self.D_X.patches.init_weights(torch_generator(seed, 3))
        self.D_Y.patches.init_weights(torch_generator(seed, 4))
        self.pool_X, self.pool_Y = ImagePool(s.pool * s.batch), ImagePool(s.pool * s.batch)
        vgg16, perceptual = vgg16_features(s.vgg16_weights) if s.perceptual else (None, "no such term")
        if vgg16 and size < 16:
            raise ValueError(
                f"VGG16 needs latents of at least 16 x 16, these have {size} x {size}: take a larger image_size, "
                "vgg16_weights='none' (features of the U-Net) or perceptual=0"
            )
        self.vgg16, self.facts = self.place(vgg16) if vgg16 else None, {"perceptual": perceptual}

        self.optimisers |= {
            "U": torch.optim.AdamW(networks.denoisers.parameters(), lr=s.unet_learning_rate, fused=True),
            "T": self.adam(s.learning_rate, networks.G, networks.F),
            "D": self.adam(s.learning_rate, self.D_X, self.D_Y),
        }
        if autoencoder_steps:
            self.D_A = self.place(PatchGAN(1, s.discriminator_width, patch_layers(X.shape[-1], 3)))
            self.D_A.init_weights(torch_generator(seed, 5))
            self.optimisers["A"] = self.adam(s.autoencoder_learning_rate, networks.autoencoders, beta2=0.9)
            self.optimisers["D_A"] = self.adam(s.autoencoder_learning_rate, self.D_A, beta2=0.9)

    def objects(self) -> dict:
        names = ("D_X", "D_Y", "D_A", "pool_X", "pool_Y")
        return super().objects() | {name: getattr(self, name) for name in names if hasattr(self, name)}

    def step(self, step: int) -> Row:
        stage = ("autoencoder", "warm-up", "joint")[sum(step >= end for end in self.ends)]
        batch = self.draw(step)
        random = torch_generator(self.seed, 40, step)  # of this step's noise, times, augmentation and pools
        apart = (self.rank.index,) if self.rank.index else ()
        torch.manual_seed(torch_generator(self.seed, 41, step, *apart).initial_seed())  # of this step's dropout
        if stage == "autoencoder":
            return {"stage": stage, **self._autoencoder_step(step, batch, random)}
        if step == self.ends[0]:
            self._standardise()
        with torch.no_grad(), self.autocast():
            latents = [self.networks.autoencoders.encode(images, domain) for domain, images in enumerate(batch)]
        s = self.settings
        last = self.ends[1] if s.joint == "frozen" else self.steps  # of the steps that update the U-Nets
        remaining = max(last - step, 0) / max(last - self.ends[0], 1)
        floor = min(s.unet_learning_rate_floor, s.unet_learning_rate)
        self.set_rate(floor + (s.unet_learning_rate - floor) * remaining, "U")
        update = self._warmup_step if stage == "warm-up" else self._joint_step
        return {"stage": stage, **update(step, latents, random)}

    def _standardise(self) -> None:
        """Keep the averaged autoencoders, and give their latents mean 0 and variance 1."""
        autoencoders, average = self.networks.autoencoders, self.averages["autoencoders"].average
        autoencoders.load_state_dict(average.state_dict())
        autoencoders.standardise(*self.images, self.device)
        average.load_state_dict(autoencoders.state_dict())
        for name in {"A", "D_A"} & set(self.optimisers):
            self.optimisers[name].state.clear()  # a fifth of a checkpoint, and never needed again

    def _times(self, t_max: float, random: torch.Generator) -> torch.Tensor:
        """Draw (B,) times up to `t_max`, one for an image of either domain."""
        return self.rank.of(draw_times(self.settings.batch, t_max, random)).to(self.device)

    def _autoencoder_step(self, step: int, batch: list[torch.Tensor], random: torch.Generator) -> Row:
        """Update the autoencoders, then their discriminator."""
        s, autoencoders = self.settings, self.networks.autoencoders
        adversarial_on = step + 1 >= s.autoencoder_adversarial_from
        terms, reconstructed = {"divergence": torch.zeros((), device=self.device)}, []
        self.D_A.requires_grad_(False)
        with self.autocast():
            for domain, images in enumerate(batch):
                side = images.shape[-1] // s.factor
                noise = self.rank.of(torch.randn(s.batch, autoencoders.channels, side, side, generator=random))
                back, divergence = autoencoders.net(domain)(images, noise.to(images))
                reconstructed.append(back)
                terms["divergence"] = terms["divergence"] + divergence / 2
            back, images = torch.cat(reconstructed), torch.cat(batch)
            scores = self.D_A(back) if adversarial_on else None
        terms["reconstruction"] = l1_loss(back, images)
        loss = terms["reconstruction"] + s.kl * terms["divergence"]
        if adversarial_on:
            terms["adversarial_autoencoder"] = lsgan_generator(scores)
            loss = loss + s.autoencoder_adversarial * terms["adversarial_autoencoder"]
        self.update(step, loss, terms, "A")
        self.averages["autoencoders"].update()

        if adversarial_on:
            self.D_A.requires_grad_(True)
            with self.autocast():
                scores = self.D_A(torch.cat([images, back.detach()]))
            terms["D_autoencoder"] = lsgan_discriminator(*scores.chunk(2))
            self.update(step, terms["D_autoencoder"], terms, "D_A")
        return {"learning_rate": s.autoencoder_learning_rate, **terms}

    def _denoise(self, network, latents: list[torch.Tensor], t: torch.Tensor, random: torch.Generator):
        """Diffuse latents to t and predict their components (eqs. 1, 2); return these, and what eq. 6 compares.

        The latents are (B, c, h, w), and t is (B,) or (2·B,): then they are taken twice, and only the second copy
        counts in eq. 6.
        """
        x0 = [z.repeat(len(t) // len(z), 1, 1, 1) for z in latents]
        whole = len(t) * self.rank.processes, *x0[0].shape[1:]
        eps = [self.rank.of(torch.randn(whole, generator=random)).to(z) for z in x0]
        x_t = torch.cat([diffuse(z, t, noise) for z, noise in zip(x0, eps, strict=True)])
        with self.autocast():
            predicted = network.both(x_t, torch.cat([t, t]))
        C_hat, eps_hat = (prediction.chunk(2) for prediction in predicted)
        counted = slice(-len(latents[0]), None)
        compared = [tuple(part[counted] for part in (*parts, t)) for parts in zip(x0, eps, C_hat, eps_hat, strict=True)]
        return C_hat, compared

    @staticmethod
    def _diffusion_terms(compared: list[tuple]) -> dict[str, torch.Tensor]:
        """Return equation 6 of either domain, unweighted."""
        return {f"diffusion_{name}": diffusion_loss(*parts) for name, parts in zip("XY", compared, strict=True)}

    def _warmup_step(self, step: int, latents: list[torch.Tensor], random: torch.Generator) -> Row:
        """Update the diffusion models alone."""
        t = self._times(1.0, random)
        _, compared = self._denoise(self.networks.denoisers, latents, t, random)
        terms = self._diffusion_terms(compared)
        loss = sum(diffusion_loss(*parts, self.settings.diffusion_weights) for parts in compared)
        self.update(step, loss, terms, "U")
        self.averages["denoisers"].update()
        return {"learning_rate": self.optimisers["U"].param_groups[0]["lr"], **terms}

    def _joint_step(self, step: int, latents: list[torch.Tensor], random: torch.Generator) -> Row:
        """Update translators (and diffusion models) on equation 13, then the discriminators on the same components."""
        s, terms, n = self.settings, {}, len(latents[0])
        G, F, D_X, D_Y = self.networks.G, self.networks.F, self.D_X, self.D_Y
        learning_rate = s.learning_rate * linear_decay(step - self.ends[1], s.joint_steps)
        self.set_rate(learning_rate, "T", "D")

        # Predict the components of both domains at one time, in one pass of the U-Nets.
        t = self._times(s.t_max, random)
        if s.joint == "frozen":
            with torch.no_grad():
                (C_X, C_Y), _ = self._denoise(self.averages["denoisers"].average, latents, t, random)
        else:  # where t_max < 1, the diffusion models go on learning all times, on the batch's second copy
            times = t if s.t_max == 1 else torch.cat([t, self._times(1.0, random)])
            (C_X, C_Y), compared = self._denoise(self.networks.denoisers, latents, times, random)
            if s.t_max < 1:
                C_X, C_Y = C_X[:n], C_Y[:n]
            terms |= self._diffusion_terms(compared)  # eq. 6
        if s.joint == "diffusion_only":
            C_X, C_Y = C_X.detach(), C_Y.detach()

        # Translate them, there and back (eqs. 3, 4).
        D_X.requires_grad_(False)
        D_Y.requires_grad_(False)
        with self.autocast():
            if s.identity:
                tt = torch.cat([t, t])
                C_XY, C_YY = G(torch.cat([C_X, C_Y]), tt).chunk(2)
                C_YX, C_XX = F(torch.cat([C_Y, C_X]), tt).chunk(2)
            else:
                C_XY, C_YX = G(C_X, t), F(C_Y, t)
            C_XYX, C_YXY = F(C_XY, t), G(C_YX, t)
            score_Y, score_X = D_Y(self.seen(C_XY, random), t), D_X(self.seen(C_YX, random), t)
            if s.perceptual:
                features_X = [self._features(C, 0) for C in (C_X, C_XYX)]
                features_Y = [self._features(C, 1) for C in (C_Y, C_YXY)]

        # Update the translators, and the diffusion models with them (eq. 13).
        terms |= {"adversarial_G": lsgan_generator(score_Y), "adversarial_F": lsgan_generator(score_X)}
        terms |= {"cycle_X": cycle_loss(C_X, C_XYX), "cycle_Y": cycle_loss(C_Y, C_YXY)}
        if s.identity:
            terms |= {"identity_X": identity_loss(C_X, C_XX), "identity_Y": identity_loss(C_Y, C_YY)}
        if s.perceptual:
            terms |= {"perceptual_X": perceptual_loss(*features_X), "perceptual_Y": perceptual_loss(*features_Y)}
        updated = ("T",) if s.joint == "frozen" else ("T", "U")
        self.update(step, objective(terms, s), terms, *updated)
        for name in ("G", "F") if s.joint == "frozen" else ("G", "F", "denoisers"):
            self.averages[name].update()

        # Update the discriminators, on translated components of now and of the past with their times.
        terms_D, loss = {}, torch.zeros((), device=self.device)
        for name, D, real, fake, pool in (("X", D_X, C_X, C_YX, self.pool_X), ("Y", D_Y, C_Y, C_XY, self.pool_Y)):
            D.requires_grad_(True)
            timed = torch.cat([fake, per_image(t).expand_as(fake[:, :1])], dim=1)
            past = self.rank.of(pool(self.rank.all(timed), random))
            components, seen_times = torch.cat([real.detach(), past[:, :-1]]), torch.cat([t, past[:, -1, 0, 0]])
            with self.autocast():
                real_scores, fake_scores = D(self.seen(components, random), seen_times).chunk(2)
            terms_D[f"D_{name}"] = lsgan_discriminator(real_scores, fake_scores)
            loss = loss + terms_D[f"D_{name}"]
            if s.contrastive:  # eq. 9
                terms_D[f"contrastive_{name}"] = contrastive_loss(real_scores, fake_scores)
                loss = loss + s.contrastive * terms_D[f"contrastive_{name}"]
        self.update(step, loss, terms_D, "D")
        return {"learning_rate": learning_rate, **terms, **terms_D}

    def _features(self, C: torch.Tensor, domain: int) -> list[torch.Tensor]:
        """Return what the perceptual term compares of components: features of VGG16, or of the averaged U-Net."""
        return self.vgg16(C) if self.vgg16 else self.averages["denoisers"].average.features(C, domain)
