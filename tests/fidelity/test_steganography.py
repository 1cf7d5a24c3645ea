"""Steganography: a translator that hides its source must be told from one that does not."""

import numpy as np
import pytest
import torch

from lib.data.phantom import Phantom
from lib.fidelity.steganography import CLEAN, PERTURBATIONS, cycle_errors, hides, radial_spectrum
from lib.translators.translator import translated

NFF = Phantom(patients=16, size=32, aff_share=0.2, seed=9).cohort().select(label="NFF").first(20)


class Honest:
    """Turns dark into light and back: all is in plain sight."""

    def translate(self, cohort, to):
        return translated(cohort, to, "honest", lambda x: -x, 32)


class Cheat:
    """Shows a smooth grey image and writes the source into steps of 1/500, to be read on the way back."""

    step = 2 / 500

    def translate(self, cohort, to):
        def hide(x):
            return 0.9 * (x.mean((2, 3), keepdim=True) / self.step).round() * self.step + x * self.step / 2.5

        def read(y):
            return (y - 0.9 * (y.mean((2, 3), keepdim=True) / self.step / 0.9).round() * self.step) * 2.5 / self.step

        return translated(cohort, to, "cheat", hide if to == "AFF" else read, 32)


def test_a_cheat_is_told_from_an_honest_translator():
    honest, cheat = (cycle_errors(translator(), NFF).set_index("perturbation") for translator in (Honest, Cheat))
    assert cheat.value[CLEAN] < 0.2 * cheat.value["noise 2/255"]  # a good cycle, until it is touched
    assert hides(cheat.reset_index()) and not hides(honest.reset_index())
    assert cheat.gain["noise 2/255"] > 10 and honest.gain["noise 2/255"] == pytest.approx(1, abs=0.05)


class Amplifier:
    """Writes the source 4.5 times fainter; the way back enlarges it again, and is wrong by a chequerboard."""

    def translate(self, cohort, to):
        rows, columns = np.indices((32, 32))
        wrong = torch.from_numpy(0.086 * (-1.0) ** (rows + columns)).float()  # of 2, the range of images
        return translated(cohort, to, "amplifier", lambda x: x / 4.5 if to == "AFF" else 4.5 * x + wrong, 32)


def test_a_cheat_with_a_poor_cycle_is_found_too():
    """Its error hardly grows, for the noise that comes back 4.5 times is lost in what was wrong before."""
    table = cycle_errors(Amplifier(), NFF)
    found = table.set_index("perturbation")
    assert found.value[CLEAN] == pytest.approx(0.043, rel=0.1)
    assert (found.value["noise 2/255"] - found.value[CLEAN]) / found.touched["noise 2/255"] < 2
    assert found.gain["noise 2/255"] == pytest.approx(4.5, rel=0.1) and hides(table)


def test_errors_are_those_of_the_way_back():
    table = cycle_errors(Honest(), NFF).set_index("perturbation")
    assert list(table.index) == list(PERTURBATIONS) and (table.n == len(NFF)).all()
    assert table.value[CLEAN] < 1e-5  # 16 bits
    for sigma in (1, 2, 4):
        expected = sigma / 255 * np.sqrt(2 / np.pi)  # mean absolute value of normal noise
        assert table.value[f"noise {sigma}/255"] == pytest.approx(expected, rel=0.1)
    assert table.value["8 bits"] < 0.26 / 255
    assert np.isnan(table.gain[CLEAN]) and table.touched[CLEAN] == 0


def test_white_noise_has_a_flat_spectrum():
    noise = np.random.default_rng(0).normal(0.5, 0.05, (200, 64, 64))
    spectrum = radial_spectrum(np.rint(np.clip(noise, 0, 1) * 65535).astype(np.uint16))
    np.testing.assert_allclose(spectrum, 0.05**2, rtol=0.1)
    assert spectrum.index[0] == 1 / 64 and spectrum.index[-1] == 0.5


def test_a_wave_has_its_power_at_its_frequency():
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * 8 * np.arange(64) / 64)
    pixels = np.rint(np.broadcast_to(wave, (1, 64, 64)) * 255).astype(np.uint8)
    spectrum = radial_spectrum(pixels)
    assert spectrum.idxmax() == 8 / 64 and spectrum.max() > 1000 * spectrum.drop(8 / 64).max()
