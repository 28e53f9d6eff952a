"""Trains a small BERT encoder of GluonNLP, and runs a language model."""

import gluonnlp as nlp
import mxnet as mx

words = ["hello", "world", "hello", "nice", "world", "hi", "world"]
vocabulary = nlp.Vocab(nlp.data.count_tokens(words))
model, _ = nlp.model.get_model(
    "awd_lstm_lm_1150", dataset_name=None, vocab=vocabulary, pretrained=False
)
model.initialize()
state = model.begin_state(batch_size=2, func=mx.nd.zeros)
output, _ = model(mx.nd.array([[1, 2], [3, 4], [5, 1]]), state)
assert output.shape == (3, 2, len(vocabulary))

encoder = nlp.model.BERTEncoder(
    num_layers=2, units=16, hidden_size=32, num_heads=2, max_length=10, dropout=0.0
)
encoder.initialize()
trainer = mx.gluon.Trainer(encoder.collect_params(), "bertadam", {"learning_rate": 1e-2})
tokens, wanted = (mx.nd.random.normal(shape=(2, 6, 16)) for _ in range(2))
losses = []
for _ in range(5):
    with mx.autograd.record():
        loss = ((encoder(tokens)[0] - wanted) ** 2).mean()
    loss.backward()
    trainer.step(1)
    losses.append(loss.asscalar())
assert losses[-1] < losses[0], losses
