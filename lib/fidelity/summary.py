"""Summary: a run's fidelity, as notebook 04 shows and says it."""

from collections.abc import Iterator

import pandas as pd

from lib.data.cohort import Cohort
from lib.fidelity.measures import DIRECTIONS, OF_JUDGE
from lib.fidelity.synthesis import load_test
from lib.study import Fold

KINDS = {"pixels": "pixels compared", "eye": "what the judge takes them for"}  # of measures, besides feature spaces


def compared(fold: Fold, to: str) -> dict[str, Cohort]:
    """Return the test images to be translated to a label, each method's translations, and the counterfactual."""
    source = fold.test.take(fold.test.table.label != to)
    made = {method: images.select(label=to) for method, images in load_test(fold).items()}
    ideal = {"counterfactual": fold.phantom.counterfactual(source)} if fold.phantom else {}
    return {"source": source, **made, **ideal}


def drawn_by_lot(rows: dict[str, Cohort], seed: int, most: int = 8) -> dict[str, Cohort]:
    """Draw the same few images of each row, in their order."""
    n = len(rows["source"])
    columns = pd.Series(range(n)).sample(min(most, n), random_state=seed).sort_values()
    return {name: images.take(columns) for name, images in rows.items()}


def tables(measures: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield a name, a caption and the means over folds, for each direction and kind of measure."""
    kinds = measures.features.where(~measures.metric.isin(OF_JUDGE), "eye")
    for to, direction in DIRECTIONS.items():
        for kind, rows in measures[measures.direction == direction].groupby(kinds, sort=False):
            means = rows.pivot_table("value", "method", "metric", sort=False)
            about = KINDS.get(kind, f"features of {kind}")
            yield f"04_fidelity_to_{to.lower()}_{kind}", f"Translations {direction}, {about}: mean over folds.", means


def sentences(measures: pd.DataFrame, methods: list[str]) -> Iterator[str]:
    """Say in a sentence what each method's translations are worth, for each direction."""
    value = measures[measures.features != "pca"].groupby(["direction", "metric", "method"]).value.mean()
    for direction in DIRECTIONS.values():
        for method in methods:
            of = value[direction].unstack()[method]
            yield (
                f"{method}, {direction}: the judge accepts {of.transfer:.0%}, after blur {of.transfer_blurred:.0%}, "
                f"after noise {of.transfer_noised:.0%} (untranslated {value[direction, 'transfer', 'source']:.0%}, "
                f"real {value[direction, 'transfer', 'real']:.0%}) and calls {of.neither:.0%} neither; "
                f"KID {of.kid:.3f} (real against real {value[direction, 'kid', 'real']:.3f}); "
                f"SSIM outside the fracture {of.ssim_outside:.2f}; {of.change_in_zone:.0%} of the change lies in the "
                f"zone, which is {value[direction, 'zone_share', 'source']:.0%} of the image."
            )
