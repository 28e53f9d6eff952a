"""Trains two of GluonTS's MXNet estimators, and forecasts with them."""

import mxnet  # noqa: F401
import numpy as np
from gluonts.dataset.common import ListDataset
from gluonts.mx import DeepAREstimator, SimpleFeedForwardEstimator, Trainer

series = ListDataset([{"start": "2020-01-01", "target": np.sin(np.arange(200) / 5)}], freq="D")
lengths = {"prediction_length": 5, "context_length": 10}
for estimator in (
    SimpleFeedForwardEstimator(
        num_hidden_dimensions=[8], trainer=Trainer(epochs=2, num_batches_per_epoch=5), **lengths
    ),
    DeepAREstimator(
        freq="D",
        num_layers=1,
        num_cells=8,
        trainer=Trainer(epochs=1, num_batches_per_epoch=5),
        **lengths,
    ),
):
    forecast = next(iter(estimator.train(series).predict(series)))
    assert forecast.mean.shape == (5,)
    assert np.isfinite(forecast.mean).all()
