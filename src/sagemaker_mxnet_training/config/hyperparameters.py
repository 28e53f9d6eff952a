"""The hyperparameters of a job: the user's, and the platform's (``sagemaker_*``)."""

from typing import Any, Dict, Mapping, NamedTuple, Optional

from sagemaker_mxnet_toolkit.settings.sources import (
    Faults,
    Found,
    Sources,
    decode,
    match,
    members,
    non_empty,
    spelling,
    variable_text,
    walk,
)
from sagemaker_mxnet_toolkit.settings.validation import FLAG, Validator, argument_problem

FILE = "hyperparameters.json"
"""The configuration file with all hyperparameters."""

# Hyperparameters of the platform without its prefix (sagemaker-training 5.1.4,
# params.SAGEMAKER_HYPERPARAMETERS).
_PLATFORM = frozenset({"_tuning_objective_metric", "default_user_module_name"})

# Hyperparameters of the platform that are not framework parameters.
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
    """All hyperparameters of a job.

    Attributes:
        user: those that are passed to the user's program.
        platform: those of SageMaker, its SDK and this toolkit.
    """

    user: Mapping[str, Found]
    platform: Mapping[str, Found]

    def parameter(self, name: str) -> Optional[Found]:
        """Return ``sagemaker_<name>``, or ``None`` if it is not set or empty."""
        return non_empty(self.platform.get(f"sagemaker_{name}"))

    def flag(self, name: str, check: Validator) -> bool:
        """Return ``sagemaker_<name>`` as a boolean, false by default."""
        return check.value(self.parameter(name), FLAG, False)

    def framework(self) -> Dict[str, Any]:
        """Return the framework parameters (``SM_FRAMEWORK_PARAMS``), without the job's key."""
        return {
            name: found.value
            for name, found in self.platform.items()
            if name not in _NAMED and name != _JOB_KEY
        }


def read(sources: Sources, check: Validator) -> Hyperparameters:
    """Return the hyperparameters. Those that cannot be passed to a program are faults.

    ``SM_HPS`` and ``SM_FRAMEWORK_PARAMS`` replace those of the file; ``SM_HP_<name>`` then
    overrides or adds a single one. The platform's may be in any of them.
    """
    user: Dict[str, Found] = {}
    platform: Dict[str, Found] = {}
    for name, found in sources.document(None, FILE).items():
        value = decode(found.value) if isinstance(found.value, str) else found.value
        (platform if _is_platform(name) else user)[name] = Found(value, name, found.source)
    hps = sources.json("SM_HPS", dict)
    framework = sources.json("SM_FRAMEWORK_PARAMS", dict)
    if hps is not None:
        user = {}
    if framework is not None:
        platform = {name: found for name, found in platform.items() if name in _NAMED}
    for name, found in members(hps).items() if hps else ():
        (platform if _is_platform(name) else user)[name] = found
    platform.update(members(framework) if framework else {})
    for name, found in sources.prefixed("SM_HP_"):
        _override((platform if _is_platform(name.lower()) else user), name, found)
    for values in (user, platform):
        check.faults.keep_secret({name: found.value for name, found in values.items()})
    _check_user(user, check.faults)
    found_all = Hyperparameters(user, platform)
    _check_platform(found_all, check)
    return found_all


def _is_platform(name: str) -> bool:
    return name.startswith("sagemaker_") or name in _PLATFORM


def _override(values: Dict[str, Found], name: str, found: Found) -> None:
    """Apply ``SM_HP_<name>``, whose name is mostly in capitals."""
    same = [known for known in values if spelling(known) == spelling(name)]
    if any(variable_text(values[known].value) == found.value for known in same):
        # The same value as in SM_HPS, which has the type: the string "5" must stay a string.
        return
    for known in match(values, name):
        values[known] = Found(decode(found.value), known, found.source)


def _check_user(user: Mapping[str, Found], faults: Faults) -> None:
    """Check that hyperparameters can be arguments and variables of the user's program."""
    for name, found in user.items():
        problem = "contains '='" if "=" in name else argument_problem(name)
        if problem:
            text = f"the name of hyperparameter {name[:80]!r} {problem}"
            faults.add(text, found, "another name")
        texts = (text for _, text in walk(found.value) if isinstance(text, str))
        problems = [problem for problem in map(argument_problem, texts) if problem]
        if problems:
            faults.add(problems[0], found, "a string that can be passed to a program")


def _check_platform(hyperparameters: Hyperparameters, check: Validator) -> None:
    """Check the names of instance groups."""
    groups = hyperparameters.parameter("distribution_instance_groups")
    if groups is not None and not (
        isinstance(groups.value, list) and all(isinstance(name, str) for name in groups.value)
    ):
        check.faults.add("not a list of instance groups", groups, "a JSON list of strings")
