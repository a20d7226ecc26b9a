"""AlexNet features + SVM: convolutions, pooled maps, standardization, a support vector machine; see
`ml.models.svm`.

The convolutions are frozen, or fine-tuned in each training part. Frozen: five grouped inner folds
select the hyperparameters and give the held-out decisions for calibration; a preceding autoencoder,
which uses no labels, is trained on the whole part. Fine-tuned: a single inner split, since each
fine-tuning takes minutes; the convolutions are trained on most groups, and the held-out groups
serve selection and calibration. The final model is fine-tuned on all groups, with the
hyperparameters that the folds selected most often and a calibration from their held-out decisions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ml.models.contract import FitTask, Fitted, held_out_of
from ml.models.features import extractor_of, features_of
from ml.models.inner_folds import inner_folds
from ml.models.svm import Features, answer, choose, summarized, usual_choice
from ml.networks.aggregation import aggregate

SCAN_RULE = aggregate
LAYERS = ("conv3", "conv4", "conv5", "pool5")
LEARNED_LAYER = "conv5"  # the last layer to fine-tune if the layer is selected later
# progress of a fit after the fine-tuning and after the features
LEARNING_SHARE, FEATURES_SHARE = 0.7, 0.8


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    learns, layer = int(task.settings["fine_tune_epochs"]) > 0, str(task.settings["layer"])
    usual = usual_choice(task.chosen) if learns and task.held_out is not None else None
    folds = [] if usual else inner_folds(task, one_split=learns)
    extractor = extractor_of(
        task,
        LEARNED_LAYER if layer == "auto" else layer,
        folds[0][0] if learns and folds else task.train,
        lambda share, figures: task.report(LEARNING_SHARE * share, figures),
    )
    layers = (usual.layer,) if usual else LAYERS if layer == "auto" else (layer,)
    begin = LEARNING_SHARE if extractor.learned else 0.0
    values = features_of(
        task,
        lambda: extractor.build_several(layers),
        lambda maps: summarized(maps[name] for name in layers),
        int(task.settings["augmentation"]),
        lambda share, figures: task.report(begin + (FEATURES_SHARE - begin) * share, figures),
        learned=extractor.learned,
    )
    features = Features(values, {name: replace(extractor, layer=name).shape[1] for name in layers})
    if usual and task.held_out is not None:
        return answer(
            task,
            replace(extractor, layer=usual.layer),
            features,
            usual,
            task.held_out,
            extractor.tuned_by,
        )
    choice, score, decisions = choose(
        task,
        features,
        folds,
        lambda share, figures: task.report(FEATURES_SHARE + (1 - FEATURES_SHARE) * share, figures),
    )
    held_out = held_out_of(decisions, np.flatnonzero(np.isfinite(decisions)), task.scans)
    return answer(
        task,
        replace(extractor, layer=choice.layer),
        features,
        choice,
        held_out,
        {"inner_auroc": score, **extractor.tuned_by},
    )
