"""The hyperparameters of a job: the user's, and the platform's (``sagemaker_*``)."""

from typing import Any, Dict, Mapping, NamedTuple, Optional

from sagemaker_mxnet_toolkit.settings.faults import Faults, Found, present
from sagemaker_mxnet_toolkit.settings.json_text import decode, variable_text, walk
from sagemaker_mxnet_toolkit.settings.sources import Sources, match, members, spelling
from sagemaker_mxnet_toolkit.settings.validation import FLAG, Validator, unpassable

FILE = "hyperparameters.json"
"""The configuration file that holds the user's and the platform's."""

# Hyperparameters that are the platform's although their names say otherwise
# (sagemaker-training 5.1.4, params.SAGEMAKER_HYPERPARAMETERS).
_PLATFORM = frozenset({"_tuning_objective_metric", "default_user_module_name"})

# Those of the platform's that are not framework parameters (the same tuple).
_NAMED = _PLATFORM | {
    "sagemaker_program",
    "sagemaker_submit_directory",
    "sagemaker_enable_cloudwatch_metrics",
    "sagemaker_region",
    "sagemaker_container_log_level",
    "sagemaker_job_name",
    "sagemaker_s3_output",
}


_JOB_KEY = "sagemaker_mxnet_job_key"


class Hyperparameters(NamedTuple):
    """All hyperparameters of a job, each with its place.

    Attributes:
        user: those that the user's program gets as arguments.
        platform: those of SageMaker, its SDK and this toolkit.
    """

    user: Mapping[str, Found]
    platform: Mapping[str, Found]

    def parameter(self, name: str) -> Optional[Found]:
        """Return the platform's ``sagemaker_<name>``; ``None`` if it is not set, or empty."""
        return present(self.platform.get(f"sagemaker_{name}"))

    def flag(self, name: str, check: Validator) -> bool:
        """Return the platform's ``sagemaker_<name>`` as true or false, false by default."""
        return check.value(self.parameter(name), FLAG, False)

    def framework(self) -> Dict[str, Any]:
        """Return the values of the framework parameters, those of ``SM_FRAMEWORK_PARAMS``.

        The job's key is left out: scripts do not get it.
        """
        return {
            name: found.value
            for name, found in self.platform.items()
            if name not in _NAMED and name != _JOB_KEY
        }


def read(sources: Sources, check: Validator) -> Hyperparameters:
    """Return the hyperparameters; those that no program can be given are faults.

    A whole set in a variable (``SM_HPS``, ``SM_FRAMEWORK_PARAMS``) replaces the file's set;
    ``SM_HP_<name>`` then changes or adds a single one. The platform's may be in any of them.
    """
    user: Dict[str, Found] = {}
    platform: Dict[str, Found] = {}
    for name, found in sources.document(None, FILE).items():
        value = decode(found.value) if isinstance(found.value, str) else found.value
        (platform if _is_platform(name) else user)[name] = Found(value, name, found.place)
    whole = sources.json("SM_HPS", dict)
    framework = sources.json("SM_FRAMEWORK_PARAMS", dict)
    if whole is not None:
        user = {}
    if framework is not None:
        platform = {name: found for name, found in platform.items() if name in _NAMED}
    for name, found in members(whole).items() if whole else ():
        (platform if _is_platform(name) else user)[name] = found
    platform.update(members(framework) if framework else {})
    for name, found in sources.prefixed("SM_HP_"):
        _change((platform if _is_platform(name.lower()) else user), name, found)
    for values in (user, platform):
        check.faults.keep_secret({name: found.value for name, found in values.items()})
    _check_user(user, check.faults)
    found_all = Hyperparameters(user, platform)
    _check_platform(found_all, check)
    return found_all


def _is_platform(name: str) -> bool:
    return name.startswith("sagemaker_") or name in _PLATFORM


def _change(values: Dict[str, Found], name: str, found: Found) -> None:
    """Apply one ``SM_HP_<name>``. Variables are spelled in capitals, hyperparameters seldom."""
    same = [known for known in values if spelling(known) == spelling(name)]
    if any(variable_text(values[known].value) == found.value for known in same):
        # It only repeats what SM_HPS says with its type: the text "5" is to stay a text.
        return
    for known in match(values, name):
        values[known] = Found(decode(found.value), known, found.place)


def _check_user(user: Mapping[str, Found], faults: Faults) -> None:
    """Note what cannot be an argument and a variable of the user's program."""
    for name, found in user.items():
        trouble = "a name with '='" if "=" in name else unpassable(name)
        if trouble:
            faults.add(f"hyperparameter {name[:80]!r}: {trouble}", found, "another name")
        texts = (text for _, text in walk(found.value) if isinstance(text, str))
        troubles = [trouble for trouble in map(unpassable, texts) if trouble]
        if troubles:
            faults.add(troubles[0], found, "text that can be handed to a program")


def _check_platform(hyperparameters: Hyperparameters, check: Validator) -> None:
    """Note ways of distributing the training that this toolkit does not have."""
    groups = hyperparameters.parameter("distribution_instance_groups")
    if groups is not None and not (
        isinstance(groups.value, list) and all(isinstance(name, str) for name in groups.value)
    ):
        check.faults.add("not names of instance groups", groups, "a JSON list of texts")
    if hyperparameters.flag("mpi_enabled", check):
        check.faults.add(
            "distributed training with MPI (Horovod) is switched on, and this toolkit does not run "
            "mpirun",
            hyperparameters.parameter("mpi_enabled"),
            "MXNet's parameter server: in the SageMaker SDK replace distribution={'mpi': ...} by "
            "distribution={'parameter_server': {'enabled': True}} (the hyperparameter "
            "sagemaker_parameter_server_enabled), and in the script Horovod by "
            "mx.kv.create('dist_sync'); or leave out distribution, so that every host trains alone",
        )
