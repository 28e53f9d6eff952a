"""Fits a linear regression with the classes of "Dive into Deep Learning"."""

import matplotlib

matplotlib.use("agg")
from d2l import mxnet as d2l
from mxnet import np, npx

npx.set_np()
weights = np.array([2, -3.4])
model = d2l.LinearRegression(lr=0.03)
d2l.Trainer(max_epochs=3).fit(model, d2l.SyntheticRegressionData(w=weights, b=4.2))
assert abs(model.get_w_b()[0].reshape(weights.shape) - weights).max() < 0.5
assert d2l.resnet18(10) is not None
