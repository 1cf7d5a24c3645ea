"""CycleDiff: a diffusion model for each of two domains, and cycle translators between their image components.

S. Zou, Y. Huang, R. Yi, C. Zhu, K. Xu, "CycleDiff: Cycle diffusion models for unpaired image-to-image translation",
arXiv 2508.06625 (equation numbers of its version of January 2026), on decoupled diffusion models, arXiv 2306.13720.

    symbol        here            meaning
    S, T          X, Y            the domains: X = NFF, Y = AFF; domain 0 and domain 1
    x_0           x0              latent of an image, (B, c, h, w), standardised; x_t: the same after diffusion to t
    t             t               time in (0, 1], (B,): 0 is the image, 1 pure noise
    C             C               image component, −x_0; the network's prediction: C_hat
    ε             eps             noise of N(0, I); the prediction: eps_hat
    Net_θ         denoisers       predicts C and ε from x_t and t, a U-Net per domain (or one that is told the domain)
    G: S → T      G               translator: takes an NFF component at time t to an AFF component at t
    F: T → S      F               the way back
    D_S, D_T      D_X, D_Y        patch discriminators of components

    equation      where                                what
    eq. 1         process.diffuse, recover_x0          x_t = x_0 + t·C + t·ε = (1 − t)·x_0 + t·ε
    eq. 2         process.precondition                 (C_θ, ε_θ) = Net_θ(x_t, t)
    eqs. 3, 4     train.Training._joint_step           G(C_S, t) is a T-component, F(G(C_S, t), t) ≈ C_S, and back
    eq. 5         networks.Translator                  FiLM residual blocks, attention, time-conditioned ResNet
    eq. 6         losses.diffusion_loss                ‖C_θ − C‖² + ‖ε_θ − ε‖²
    eq. 9         losses.contrastive_loss              real patches alike, and unlike translated ones; for D
    eq. 13        losses.objective                     λ1·diffusion + λ2·adversarial + λ3·cycle + λ4·identity
                                                       + λ5·perceptual
    algorithm 1   train.Training.step                  autoencoders, diffusion warm-up, joint training
    algorithm 2   process.invert, process.generate,    invert with the source's model, translate every component,
                  model.CycleDiff._translation         generate with the target's model

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
What else is
ours says so in `Settings` and is off by default.
"""

from lib.translators.cyclediff.model import CycleDiff
from lib.translators.cyclediff.settings import ABLATIONS, NOT_IN_PAPER, PUBLISHED, Sampler, Settings, ablated

__all__ = ["ABLATIONS", "NOT_IN_PAPER", "PUBLISHED", "CycleDiff", "Sampler", "Settings", "ablated"]
