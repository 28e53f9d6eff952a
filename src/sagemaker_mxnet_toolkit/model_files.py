"""The files of a saved model: training writes them, serving reads them.

Their names are those that ``mx.model.load_checkpoint`` and SageMaker's MXNet inference toolkit
look for.
"""

PREFIX, EPOCH = "model", 0
"""What ``mx.model.load_checkpoint`` is given, the prefix below the model directory."""

SYMBOL, PARAMS, SHAPES = "model-symbol.json", "model-0000.params", "model-shapes.json"
"""The graph, the parameters, and a JSON list of ``{"name", "shape"}``, one for each input."""
