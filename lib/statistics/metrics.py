"""What a classifier's probabilities are worth: every reported metric, patient by patient."""

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

PRIMARY = "auroc"
KEY_SECONDARY = ("sensitivity_at_90_specificity", "auprc")
METRICS = {  # as sentences, tables and axes call them
    "auroc": "AUROC",
    "image_auroc": "AUROC of images",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "brier": "Brier score as trained (lower is better)",
    "brier_recalibrated": "Brier score, recalibrated (lower is better)",
}


def by_patient(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a patient: `patient_id`, `label`, and the mean `probability` over that patient's images.

    The columns `condition, repeat, fold, seed` are kept where they are present. A patient with images of both labels
    (two femurs) counts once for each.
    """
    keys = [key for key in ("condition", "repeat", "fold", "seed") if key in predictions]
    return predictions.groupby([*keys, "patient_id", "label"], sort=False, as_index=False).probability.mean()


def sensitivity_at_specificity(labels: np.ndarray, probabilities: np.ndarray, specificity: float = 0.9) -> float:
    """Return the highest sensitivity of all thresholds whose specificity is at least this."""
    false_positive_rate, sensitivity, _ = sk.roc_curve(labels, probabilities, drop_intermediate=False)
    return float(sensitivity[false_positive_rate <= 1 - specificity + 1e-12].max())


def choose_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold of highest balanced accuracy, the middle one of several.

    It lies halfway between neighbouring probabilities: one on a probability flips that patient at the slightest change.
    """
    false_positive_rate, sensitivity, thresholds = sk.roc_curve(labels, probabilities, drop_intermediate=False)
    gain = sensitivity - false_positive_rate
    best = np.flatnonzero(np.isclose(gain, gain.max()))
    best = best[len(best) // 2]
    lower = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return float((min(thresholds[best], 1.0) + lower) / 2)


def evaluate(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Compute every metric of one set of predictions.

    `labels` (n,) are 1 for AFF and 0 for NFF, both of which must occur; `probabilities` (n,) those of AFF, 0 … 1. AFF
    is decided where the probability is at least the threshold.
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


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute Brier score, and intercept and slope of logit(label) on logit(probability).

    Cox 1958, doi:10.1093/biomet/45.3-4.562: an intercept of 0 and a slope of 1 are right; a slope below 1 means
    probabilities too far from one half. The intercept is the mean shift at slope 1 (calibration in the large).
    """
    labels = np.asarray(labels)
    slope = LogisticRegression(C=np.inf, max_iter=1000).fit(_logits(probabilities)[:, None], labels).coef_[0, 0]
    return {
        "brier": float(sk.brier_score_loss(labels, probabilities)),
        "intercept": calibration_intercept(labels, probabilities),
        "slope": float(slope),
    }


def calibration_intercept(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return what, added to all logits, makes the mean probability the share of AFF; both labels must occur."""
    labels, logits = np.asarray(labels), _logits(probabilities)
    return float(brentq(lambda shift: (expit(logits + shift) - labels).sum(), -50, 50))


def recalibrated(probabilities: np.ndarray, shift: np.ndarray | float) -> np.ndarray:
    """Move the logits of probabilities by what validation patients asked for (`calibration_intercept`).

    Training on more AFF than there are makes probabilities too high, by design; this takes it away and keeps all ranks.
    """
    return expit(_logits(probabilities) + shift)


def recalibrated_patients(predictions: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Average each patient's probabilities over images, seeds and folds, as trained and recalibrated trial by trial.

    Both tables are those of `lib.trials.trials.run_trials`; the metric `recalibration` is each trial's shift. Columns:
    `condition, patient_id, label, probability, recalibrated, aff` (1 for AFF, 0 for NFF).
    """
    trial = ["condition", "repeat", "fold", "seed"]
    shifts = metrics[metrics.metric == "recalibration"].set_index(trial).value.rename("shift")
    patients = by_patient(predictions).join(shifts, on=trial)
    patients["recalibrated"] = recalibrated(patients.probability, patients["shift"])
    unit = ["condition", "patient_id", "label"]
    patients = patients.groupby(unit, sort=False, as_index=False)[["probability", "recalibrated"]].mean()
    return patients.assign(aff=(patients.label == "AFF").astype(int))


def _logits(probabilities) -> np.ndarray:
    return logit(np.clip(np.asarray(probabilities, float), 1e-6, 1 - 1e-6))


def net_benefit(labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return (T,) net benefit TP/n − FP/n · t/(1 − t) of calling AFF what has a probability of at least t.

    Vickers & Elkin 2006, doi:10.1177/0272989X06295361: t is the probability at which one more false alarm is as bad as
    the benefit of one more AFF found is good. Calling nobody AFF has 0.
    """
    labels, t = np.asarray(labels), np.asarray(thresholds)
    called = np.asarray(probabilities) >= t[:, None]
    return ((called & (labels == 1)).sum(1) - (called & (labels == 0)).sum(1) * t / (1 - t)) / len(labels)


def subgroups(predictions: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Compute the AUROC of patients on their images of one view, or one side, alone; the worst first.

    `predictions` are averaged over seeds and repeats; `table` is the cohort's. Columns: `condition, column, value,
    patients, aff_patients, auroc`; subgroups without both labels are left out.
    """
    means = predictions.groupby(["condition", "image_id", "patient_id", "label"], as_index=False).probability.mean()
    means, rows = means.merge(table[["image_id", "view", "side"]], on="image_id"), []
    for column in ("view", "side"):
        for (name, value), images in means.groupby(["condition", column]):
            patients = by_patient(images)
            labels = (patients.label == "AFF").to_numpy(int)
            if 0 < labels.sum() < len(labels):
                auroc = float(sk.roc_auc_score(labels, patients.probability))
                rows.append((name, column, value, len(labels), int(labels.sum()), auroc))
    names = ["condition", "column", "value", "patients", "aff_patients", "auroc"]
    return pd.DataFrame(rows, columns=names).sort_values("auroc", ignore_index=True)
