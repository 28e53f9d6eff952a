"""Training scripts whose every loss and last weights can be compared, bit for bit."""

COMMON = '''
import hashlib, json, logging
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from sagemaker_mxnet_training.checkpoints import Checkpoint

hosts = json.loads(os.environ["SM_HOSTS"])
index = hosts.index(host)
KVSTORE = os.environ["KVSTORE"]
EPOCHS, BATCH = int(os.environ.get("EPOCHS", 3)), 8
EVERY = int(os.environ.get("EVERY", 4))
DROPOUT = float(os.environ.get("DROPOUT", 0.3))
PAUSE = float(os.environ.get("PAUSE", 0.03))
DEVICES = [mx.cpu(number) for number in range(int(os.environ.get("DEVICES", 1)))]


@mx.optimizer.register
class Drifting(mx.optimizer.Optimizer):
    """Has a state and a counter for each key, since keys arrive in any order."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = {}

    def create_state(self, index, weight):
        return mx.nd.zeros_like(weight)

    def update(self, index, weight, grad, state):
        self._update_count(index)
        self.calls[index] = self.calls.get(index, 0) + 1
        state[:] = 0.9 * state + grad * self.rescale_grad
        weight[:] = weight - self._get_lr(index) * state * (1 + 0.01 * (self.calls[index] % 7))


OPTIMIZERS = {
    "sgd": ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-3}),
    "adam": ("adam", {"learning_rate": 0.01}),
    "nag": ("nag", {"learning_rate": 0.1, "momentum": 0.9}),
    "drifting": ("drifting", {"learning_rate": 0.05}),
    "scheduled": ("sgd", {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "lr_scheduler": mx.lr_scheduler.FactorScheduler(step=5, factor=0.8),
    }),
    "warming": ("sgd", {
        "learning_rate": 0.1,
        "lr_scheduler": mx.lr_scheduler.CosineScheduler(40, base_lr=0.1, warmup_steps=8),
    }),
    "half": ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "multi_precision": True}),
}
NAME, OPTIONS = OPTIMIZERS[os.environ["OPTIMIZER"]]

images = np.random.RandomState(1).randn(128, 6).astype("float32")
labels = np.random.RandomState(2).randint(0, 3, 128).astype("float32")
images, labels = images[index :: len(hosts)], labels[index :: len(hosts)]
np.random.seed(7)
mx.random.seed(7)


def digest(arrays):
    return hashlib.sha256(b"".join(a.asnumpy().tobytes() for a in arrays)).hexdigest()[:16]
'''

GLUON = (
    COMMON
    + """
class Scale(gluon.HybridBlock):
    # A float16 weight; without a GPU no large operator computes with one.

    def __init__(self):
        super().__init__()
        with self.name_scope():
            self.scale = self.params.get("scale", shape=(1, 6), dtype="float16", init="ones")

    def hybrid_forward(self, F, x, scale):
        return F.broadcast_mul(x, F.cast(scale, "float32"))


FEATURES = (1, 2, 3) if "CONVOLUTION" in os.environ else (6,)
net = gluon.nn.HybridSequential()
if os.environ["OPTIMIZER"] == "half":
    net.add(Scale())
if "CONVOLUTION" in os.environ:
    net.add(gluon.nn.Conv2D(16, kernel_size=3, padding=1, activation="relu"))
net.add(
    gluon.nn.Dense(16, activation="relu"),
    gluon.nn.BatchNorm(),
    gluon.nn.Dropout(DROPOUT),
    gluon.nn.Dense(3),
)
net.initialize(mx.init.Xavier(), ctx=DEVICES)
net.hybridize()
images = images.reshape((-1, *FEATURES))
if "PREDICTED" in os.environ:  # gives all parameters their shapes and values before the Checkpoint
    net(mx.nd.array(images[:1])).wait_to_read()
kvstore = mx.kv.create(KVSTORE) if "OBJECT" in os.environ else KVSTORE
where = {"0": False, "1": True}.get(os.environ.get("ON_KVSTORE", ""))
trainer = gluon.Trainer(
    net.collect_params(), NAME, OPTIONS, kvstore=kvstore, update_on_kvstore=where
)
data = gluon.data.ArrayDataset(images, labels)
LOADERS = int(os.environ.get("LOADERS", 0))
if LOADERS:  # which the training waits for

    def slowly(*row):
        time.sleep(0.03)
        return row

    data = data.transform(slowly)
loader = gluon.data.DataLoader(data, BATCH, shuffle=True, num_workers=LOADERS)
loss_of = gluon.loss.SoftmaxCrossEntropyLoss()


def of_each_device(batch):
    return gluon.utils.split_and_load(batch, DEVICES)


checkpoint = Checkpoint(net, trainer, every=EVERY)
for epoch in checkpoint.epochs(EPOCHS):
    for batch, label in checkpoint.batches(loader):
        with autograd.record():
            parts = zip(of_each_device(batch), of_each_device(label))
            losses = [loss_of(net(x), y) for x, y in parts]
        autograd.backward(losses)
        trainer.step(BATCH * len(hosts))
        loss = sum(float(each.sum().asscalar()) for each in losses)
        say("step", checkpoint.step + 1, loss.hex(), ".")
        time.sleep(PAUSE)
    checkpoint.state.setdefault("epochs", []).append(epoch)
say("state", json.dumps(checkpoint.state), ".")
parameters = [(p.list_data()[0], p.grad_req) for p in net.collect_params().values()]
say("weights", digest(array for array, grad_req in parameters if grad_req != "null"), ".")
say("statistics", digest(array for array, grad_req in parameters if grad_req == "null"), ".")
"""
)

MODULE = (
    COMMON
    + """
symbol = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=16)
symbol = mx.sym.Dropout(mx.sym.BatchNorm(mx.sym.Activation(symbol, act_type="relu")), p=DROPOUT)
symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(symbol, num_hidden=3), name="softmax")
train = mx.io.NDArrayIter(images, labels, BATCH, shuffle=True)
module = mx.mod.Module(symbol, context=DEVICES)
checkpoint = Checkpoint(every=EVERY)


def after_batch(param):
    output = module.get_outputs()[0].asnumpy()  # that of all devices
    say("step", checkpoint.step + 1, hashlib.sha256(output.tobytes()).hexdigest()[:16], ".")
    time.sleep(PAUSE)


checkpoint.fit(
    module,
    train,
    num_epoch=EPOCHS,
    optimizer=NAME,
    optimizer_params=OPTIONS,
    kvstore=KVSTORE,
    batch_end_callback=after_batch,
)
arguments, auxiliary = module.get_params()
say("weights", digest(arguments.values()), ".")
say("statistics", digest(auxiliary.values()), ".")
"""
)

SCRIPTS = {"gluon": GLUON, "module": MODULE}

COUNTED = """
import os, time
import mxnet as mx
from mxnet import autograd, gluon
from sagemaker_mxnet_training.checkpoints import Checkpoint

net = gluon.nn.Dense(1, use_bias=False, in_units=2)
net.initialize(mx.init.One())
trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.001}, kvstore="dist_sync")
checkpoint = Checkpoint(net, trainer, every=5)
for _ in checkpoint.epochs(1):
    for number in checkpoint.batches(range(int(os.environ["STEPS"]))):
        with autograd.record():
            loss = net(mx.nd.array([[1.0, number % 7]])).sum()
        loss.backward()
        trainer.step(1)
        os.write(1, b"\\nstep %d done\\n" % number)
        time.sleep(0.05)
os.write(1, b"\\nweights %.4f %.4f\\n" % tuple(net.weight.data().asnumpy()[0]))
"""
"""Each step takes 0.001 for each host from the first weight, and 0 to 0.006 from the second."""
