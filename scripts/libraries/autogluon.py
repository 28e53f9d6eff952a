"""Trains a small tabular model of the last AutoGluon that used MXNet."""

import pandas
from autogluon.tabular import TabularPredictor

table = pandas.DataFrame({"x": range(100), "y": [number % 2 for number in range(100)]})
TabularPredictor(label="y").fit(table, hyperparameters={"NN": {"num_epochs": 1}})
