"""Records the inputs with which Gluon blocks build their graphs, and builds graphs from them.

A hybridized block builds its graph when it is first called, and MXNet 1.9.1 does not keep the
shapes of its inputs (``mxnet/gluon/block.py``). ``training_utils.save`` needs them for
``model-shapes.json``. Checkpoints contain them as well, since a run that resumes after its last
epoch has no batch for the graph that ``save`` and ``HybridBlock.export`` need.

Importing this module does not import MXNet. When MXNet is imported, ``HybridBlock`` is patched.
"""

import functools
import hashlib
import json
import logging
import sys
import types
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit import compatibility

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")

_RECORD = "__sagemaker_mxnet_inputs"
"""Attribute of a block with its record, a JSON object: ``inputs``, ``training`` and ``graph``."""


def shapes(block: Any) -> Optional[List[Tuple[int, ...]]]:
    """Return the shapes of a block's inputs, or ``None`` if they are unknown."""
    record = vars(block).get(_RECORD)
    return None if record is None else [tuple(x["shape"]) for x in _flat(record["inputs"])]


def records(net: Any) -> Dict[str, Any]:
    """Return the records of a network and its blocks by path, as JSON for a checkpoint."""
    found = ((path, vars(block).get(_RECORD)) for path, block in _blocks(net, ""))
    return {path: record for path, record in found if record is not None}


def restore(net: Any, found: Mapping[str, Any]) -> None:
    """Restore the records in a checkpoint, except of blocks with a graph of this process."""
    for path, block in _blocks(net, ""):
        if path in found:
            vars(block).setdefault(_RECORD, found[path])


def build(block: Any) -> bool:
    """Build the graph of a hybridized block if it has none; return whether it has one.

    It is only built from recorded inputs, and must be the recorded graph: it could depend on more
    than its inputs. Nothing is computed, so that weights, statistics of ``BatchNorm`` and random
    numbers do not change.
    """
    import mxnet

    if block._cached_op is not None:
        return True
    record = vars(block).get(_RECORD)
    if record is None or not (block._active or isinstance(block, mxnet.gluon.SymbolBlock)):
        return False
    try:
        parameters = block.collect_params().values()
        contexts = [each.list_ctx()[0] for each in parameters] or [mxnet.current_context()]
        with contexts[0], mxnet.autograd.pause(train_mode=record["training"]):
            block._build_cache(*(_zeros(each, contexts[0]) for each in record["inputs"]))
        problem = "" if vars(block)[_RECORD] == record else "it differs from that of training"
    except Exception as error:  # of the script's own code
        problem = f"{type(error).__name__}: {error}"
    if problem:
        _LOG.warning("the graph of %r cannot be built without a batch: %s", block.name, problem)
        block._clear_cached_op()
        vars(block)[_RECORD] = record
    return not problem


def _blocks(block: Any, path: str) -> Iterator[Tuple[str, Any]]:
    yield path, block
    for name, child in block._children.items():
        yield from _blocks(child, f"{path}.{name}")


def _describe(value: Any) -> Any:
    """Return nested inputs as JSON, with an object for each array."""
    if isinstance(value, (list, tuple)):
        return [_describe(each) for each in value]
    if value is None:
        return None
    import mxnet
    import numpy

    return {
        "shape": list(value.shape),
        "dtype": numpy.dtype(value.dtype).name,
        "stype": value.stype,
        "numpy": isinstance(value, mxnet.np.ndarray),
    }


def _zeros(value: Any, context: Any) -> Any:
    """Return zeros for the result of ``_describe``."""
    if isinstance(value, list):
        return [_zeros(each, context) for each in value]
    if value is None:
        return None
    import mxnet

    array = mxnet.nd.zeros(tuple(value["shape"]), context, value["dtype"], stype=value["stype"])
    return array.as_np_ndarray() if value["numpy"] else array


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    elif value is not None:
        yield value


def _digest(symbol: Any) -> str:
    """Return a digest of what a graph computes."""
    return hashlib.sha256(json.dumps(_structure(json.loads(symbol.tojson()))).encode()).hexdigest()


def _structure(graph: Any) -> Any:
    """Return a graph without what may differ when it is built again.

    These are names, which may have counters, attributes like the shape of a parameter, which is
    often unknown when a graph is first built, and the version of each input: a parameter that an
    operator writes to, like the mean of ``BatchNorm``, has a higher one in each further graph.
    """
    nodes = [
        (
            node["op"],
            [entry[:2] for entry in node["inputs"]],
            [pair for pair in node.get("attrs", {}).items() if not pair[0].startswith("__")],
            [_structure(each) for each in node.get("subgraphs", ())],
        )
        for node in graph["nodes"]
    ]
    return nodes, [entry[:2] for entry in graph["heads"]]


def _patch(module: types.ModuleType) -> None:
    """Patch the blocks of ``mxnet.gluon.block``."""
    build_cache, export = module.HybridBlock._build_cache, module.HybridBlock.export

    @functools.wraps(build_cache)
    def build_and_record(block: Any, *args: Any) -> None:
        import mxnet

        build_cache(block, *args)
        flat = module._flatten(args, "input")[0]
        if all(arg is None or hasattr(arg, "shape") for arg in flat):  # a Symbol has none
            vars(block)[_RECORD] = {
                "inputs": _describe(args),
                "training": mxnet.autograd.is_training(),
                "graph": _digest(block._cached_graph[1]),
            }

    @functools.wraps(export)
    def build_and_export(block: Any, *args: Any, **options: Any) -> Any:
        build(block)
        return export(block, *args, **options)

    module.HybridBlock._build_cache = build_and_record
    module.HybridBlock.export = build_and_export


_BLOCK_MODULE = "mxnet.gluon.block"
if _BLOCK_MODULE in sys.modules:
    _patch(sys.modules[_BLOCK_MODULE])
else:
    compatibility.after_import(lambda: _patch(sys.modules[_BLOCK_MODULE]))
