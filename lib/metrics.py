"""What a classifier's probabilities are worth: every reported metric, patient by patient."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn import metrics as sk

PRIMARY = "auroc"
KEY_SECONDARY = ("sensitivity_at_90_specificity", "auprc")


def by_patient(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a patient: `patient_id`, `label`, and the mean `probability` over that patient's images.

    The patient is the unit of inference: images of one patient are not independent. Columns that tell predictions
    apart (`condition`, `repeat`, `fold`, `seed`) are kept where they are present. A patient with images of both
    labels (two femurs) counts once for each.
    """
    keys = [key for key in ("condition", "repeat", "fold", "seed") if key in predictions]
    return predictions.groupby([*keys, "patient_id", "label"], sort=False, as_index=False).probability.mean()


def sensitivity_at_specificity(labels: np.ndarray, probabilities: np.ndarray, specificity: float = 0.9) -> float:
    """Highest sensitivity among the thresholds whose specificity is at least the given one."""
    false_positive_rate, sensitivity, _ = sk.roc_curve(labels, probabilities, drop_intermediate=False)
    return float(sensitivity[false_positive_rate <= 1 - specificity + 1e-12].max())


def choose_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold of highest balanced accuracy on validation patients, halfway between neighbouring probabilities.

    Halfway, because a threshold that sits on an observed probability flips that patient at the slightest change.
    Of equally good thresholds the middle one is taken.
    """
    false_positive_rate, sensitivity, thresholds = sk.roc_curve(labels, probabilities, drop_intermediate=False)
    gain = sensitivity - false_positive_rate
    best = np.flatnonzero(np.isclose(gain, gain.max()))
    best = best[len(best) // 2]
    lower = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return float((min(thresholds[best], 1.0) + lower) / 2)


def evaluate(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Every metric of one set of predictions.

    Parameters
    ----------
    labels : (n,) 1 for AFF, 0 for NFF; both must occur
    probabilities : (n,) probability of AFF, 0 … 1
    threshold : AFF is decided where the probability is at least this
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    decisions = (probabilities >= threshold).astype(int)
    return {
        "auroc": float(sk.roc_auc_score(labels, probabilities)),
        "sensitivity_at_90_specificity": sensitivity_at_specificity(labels, probabilities),
        "auprc": float(sk.average_precision_score(labels, probabilities)),
        "accuracy": float(sk.accuracy_score(labels, decisions)),
        "f1": float(sk.f1_score(labels, decisions, zero_division=0)),
        "sensitivity": float(sk.recall_score(labels, decisions, zero_division=0)),
        "specificity": float(sk.recall_score(labels, decisions, pos_label=0, zero_division=0)),
        "balanced_accuracy": float(sk.balanced_accuracy_score(labels, decisions)),
        "mcc": float(sk.matthews_corrcoef(labels, decisions)),
        "brier": float(sk.brier_score_loss(labels, probabilities)),
    }
