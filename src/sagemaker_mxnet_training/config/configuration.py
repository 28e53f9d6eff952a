"""From an environment and SageMaker's configuration files to one ``Job``, or to all their faults.

``sources`` reads and parses, ``Validator`` turns what was found into values and notes faults,
``resolve`` says which value comes from where: an ``SM_*`` variable goes before a file, a file
before a default. Where sagemaker-training 5.1.4 reads other variables too, its order is kept
(``environment.Environment.__init__``, ``trainer.train``).
"""

import dataclasses
import json
import os
import re
import socket
import stat
from typing import Any, Dict, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.container.hardware import count_cpus, count_gpus, visible_cpus
from sagemaker_mxnet_toolkit.errors import CodeError, ConfigurationError
from sagemaker_mxnet_toolkit.settings.sources import (
    Faults,
    Found,
    Sources,
    hyperparameters,
    is_framework,
    match,
    walk,
)
from sagemaker_mxnet_toolkit.settings.validation import Validator, unpassable
from sagemaker_mxnet_training.config.job import Job, Settings

ROOT = "/opt/ml"
"""The base directory, where ``SAGEMAKER_BASE_DIR`` names no other."""

_HYPERPARAMETERS = "hyperparameters.json"
_RESOURCES = "resourceconfig.json"
_INPUT_DATA = "inputdataconfig.json"

_OWN = "sagemaker_mxnet_"

# DNS names, the names of docker-compose services, and addresses. They are part of file names.
_HOST = re.compile(r"(?!-|\.+\Z)[A-Za-z0-9._:-]{1,253}\Z")

CHANNEL_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9._-]{1,255}\Z")
"""The pattern of ChannelName (API reference, Channel)."""

# Variables that are JSON, but that the job only passes on to the user's script.
_PASSED_ON = {
    "SM_USER_ARGS": list,
    "SM_TRAINING_ENV": dict,
    "SM_INSTANCE_GROUPS": list,
    "SM_INSTANCE_GROUPS_DICT": dict,
    "SM_CURRENT_INSTANCE_GROUP_HOSTS": list,
    "SM_DISTRIBUTION_INSTANCE_GROUPS": list,
    "SM_TOPOLOGY": list,
    "SM_IS_HETERO": bool,
}


def resolve(environ: Mapping[str, str], root: str = ROOT) -> Job:
    """Return the job that an environment and the files below its base directory describe.

    It reads the three configuration files and looks at directories; it creates nothing.

    Args:
        environ: the environment that the entrypoint was given.
        root: the base directory, where ``SAGEMAKER_BASE_DIR`` names no other.

    Raises:
        ConfigurationError: with all faults, when there is any.
    """
    base = base_directory(environ, root)
    faults = Faults(())
    faults.keep_secret(environ)
    check = Validator(faults)
    config_dir = os.path.join(base, "input", "config")
    sources = Sources(environ, config_dir, faults)
    variable = sources.variable

    resources = sources.document("SM_RESOURCE_CONFIG", _RESOURCES)
    inputs = sources.document("SM_INPUT_DATA_CONFIG", _INPUT_DATA)
    user, platform = hyperparameters(sources, _HYPERPARAMETERS)
    for values in (user, platform):
        faults.keep_secret({name: found.value for name, found in values.items()})
    for name, kind in _PASSED_ON.items():
        sources.json(name, kind)
    _check_hyperparameters(user, faults)
    _check_resources(resources, check, faults)
    _check_inputs(inputs, faults)
    _check_groups(platform, faults)

    def parameter(name: str) -> Optional[Found]:
        return _present(platform.get(f"sagemaker_{name}"))

    current, hosts = _hosts(sources, resources, check, faults)
    code_dir = os.path.join(base, "code")
    entry_point = _entry_point(
        variable("SM_USER_ENTRY_POINT") or variable("SAGEMAKER_PROGRAM") or parameter("program"),
        check,
        faults,
    )
    named = (
        variable("SM_MODULE_DIR")
        or parameter("submit_directory")
        or variable("SAGEMAKER_SUBMIT_DIRECTORY")
    )
    module_dir = _module_dir(named, base, check, faults)
    if entry_point and (os.path.isdir(module_dir) or module_dir == code_dir):
        try:
            check_entry_point(module_dir, entry_point)
        except CodeError as error:
            faults.add(str(error))
    output_dir = check.path(variable("SM_OUTPUT_DIR"), os.path.join(base, "output"))
    output_data_dir = check.path(variable("SM_OUTPUT_DATA_DIR"), os.path.join(output_dir, "data"))
    model_dir = check.path(variable("SM_MODEL_DIR"), os.path.join(base, "model"))
    written = {
        "SM_MODEL_DIR": model_dir,
        "SM_OUTPUT_DIR": output_dir,
        "SM_OUTPUT_DATA_DIR": output_data_dir,
    }
    for name, path in written.items():
        trouble = check_writable(path)
        if trouble:
            faults.add(f"{name}: {trouble}")
    s3_output = check.text(parameter("s3_output"), "") or None
    if s3_output and not s3_output.startswith("s3://"):
        faults.add("not an S3 URL", parameter("s3_output"), "s3://bucket/prefix")
    region = (
        variable("AWS_REGION")
        or parameter("region")
        or variable("SAGEMAKER_REGION")
        or variable("AWS_DEFAULT_REGION")
    )
    job_name = (
        variable("TRAINING_JOB_NAME") or parameter("job_name") or variable("SAGEMAKER_JOB_NAME")
    )
    level = (
        variable("SM_LOG_LEVEL")
        or parameter("container_log_level")
        or variable("SAGEMAKER_CONTAINER_LOG_LEVEL")
    )
    interface = variable("SM_NETWORK_INTERFACE_NAME") or _present(
        resources.get("network_interface_name")
    )
    job = Job(
        base_dir=base,
        current_host=current,
        hosts=hosts,
        network_interface=check.text(interface, "", "the name of a network interface"),
        hyperparameters=_values(user),
        framework_parameters={
            name: found.value
            for name, found in platform.items()
            if is_framework(name) and name != f"{_OWN}job_key"
        },
        channels=_channels(sources, inputs, os.path.join(base, "input", "data"), check),
        resource_config=_values(resources),
        input_data_config=_values(inputs),
        entry_point=entry_point,
        module_dir=module_dir,
        code_dir=code_dir,
        model_dir=model_dir,
        input_dir=os.path.join(base, "input"),
        input_config_dir=config_dir,
        output_dir=output_dir,
        output_data_dir=output_data_dir,
        output_intermediate_dir=check.path(
            variable("SM_OUTPUT_INTERMEDIATE_DIR"), os.path.join(output_dir, "intermediate")
        ),
        num_gpus=check.whole(variable("SM_NUM_GPUS"), count_gpus(), 0, 1024, "a number of GPUs"),
        num_cpus=check.whole(variable("SM_NUM_CPUS"), count_cpus(), 1, 65536, "a number of CPUs"),
        visible_cpus=visible_cpus(),
        log_level=check.level(level),
        parameter_server=check.flag(parameter("parameter_server_enabled")),
        s3_output=s3_output,
        region=check.text(region, "") or None,
        job_name=check.text(job_name, ""),
        settings=_settings(sources, user, platform, check, faults),
        environ=dict(environ),
    )
    told = faults.told()
    if told:
        raise ConfigurationError(told, job)
    return job


def base_directory(environ: Mapping[str, str], root: str = ROOT) -> str:
    """Return what ``/opt/ml`` is in this environment."""
    return os.path.abspath(environ.get("SAGEMAKER_BASE_DIR") or root)


def output_directory(environ: Mapping[str, str], root: str = ROOT) -> str:
    """Return where ``failure`` is written, also where no job can be resolved."""
    given = environ.get("SM_OUTPUT_DIR")
    return os.path.abspath(given or os.path.join(base_directory(environ, root), "output"))


def host_name(environ: Mapping[str, str], root: str = ROOT) -> str:
    """Return this host's name, also where no job can be resolved."""
    faults = Faults(())
    directory = os.path.join(base_directory(environ, root), "input", "config")
    resources = Sources(environ, directory, faults).document("SM_RESOURCE_CONFIG", _RESOURCES)
    return _current_host(Sources(environ, directory, faults), resources, Validator(faults))


def check_entry_point(code_dir: str, name: str) -> None:
    """Check that the user's program is where it should be, once the code is.

    The module of a package (``setup.py``) need not be a file of that name: only installing the
    package shows.

    Args:
        code_dir: the directory that holds the user's code.
        name: the entry point, relative to it.

    Raises:
        CodeError: when it is missing, no file, or outside of the code directory.
    """
    what = "expected the user's program, named relative to the code directory"
    todo = "set the hyperparameter sagemaker_program (or SM_USER_ENTRY_POINT)"
    path = os.path.join(code_dir, name)
    inside = os.path.realpath(code_dir)
    if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise CodeError(f"the entry point {name!r} lies outside of {code_dir}; {what}: {todo}")
    if not name.endswith(".sh") and os.path.exists(os.path.join(code_dir, "setup.py")):
        return
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        there = _listing(code_dir)
        raise CodeError(
            f"the entry point {name!r} cannot be found in {code_dir} ({error.strerror}; {there}); "
            f"{what}: {todo}"
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise CodeError(f"the entry point {name!r} in {code_dir} is {kind}; {what}: {todo}")
    if not os.access(path, os.R_OK):
        raise CodeError(f"the entry point {path} cannot be read; expected read permission for it")


def _listing(directory: str) -> str:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        return f"the directory cannot be listed: {error.strerror}"
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"there is {shown}" if names else "it is empty"


def check_writable(path: str) -> Optional[str]:
    """Return why nothing can be written to a directory, existing or yet to be made, or ``None``.

    Nothing is created to find out. ``os.access`` alone says yes to root on everything, and
    ``statvfs`` alone knows nothing of permissions.
    """
    there = path
    while not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    expected = "expected a directory that can be written: mount one, or name another"
    if not os.path.isdir(there):
        return f"{path} cannot be written: {there} is no directory; {expected}"
    try:
        read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    except OSError as error:
        return f"{path} cannot be written: {there}: {error.strerror}; {expected}"
    if read_only:
        return f"{path} cannot be written: {there} is on a read-only file system; {expected}"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{path} cannot be written: user {os.geteuid()} may not write to {there}; {expected}"
    return None


def _present(found: Optional[Found]) -> Optional[Found]:
    """Return what was found unless it says nothing: ``null``, or an empty text."""
    return None if found is None or found.value is None or found.value == "" else found


def _values(found: Mapping[str, Found]) -> Dict[str, Any]:
    return {name: item.value for name, item in found.items()}


def _current_host(sources: Sources, resources: Mapping[str, Found], check: Validator) -> str:
    found = sources.variable("SM_CURRENT_HOST") or _present(resources.get("current_host"))
    return check.text(found, socket.gethostname(), "the name of this host")


def _hosts(
    sources: Sources, resources: Mapping[str, Found], check: Validator, faults: Faults
) -> Tuple[str, Tuple[str, ...]]:
    """Return this host and all hosts, sorted."""
    current = _current_host(sources, resources, check)
    found = sources.json("SM_HOSTS", list) or resources.get("hosts")
    if found is None:
        found = Found([current], "hosts", "the name of this machine or SM_CURRENT_HOST")
    elif found.name == "hosts" and found.value is None:
        found = dataclasses.replace(found, value=[])
    hosts = check.names(found, _HOST, "host name")
    if hosts is not None and not hosts:
        faults.add("no hosts", found, "at least one host name, this host's among them")
    elif hosts is not None and current not in hosts:
        faults.add(
            f"this host, {current[:253]!r}, is not among the hosts",
            found,
            "the current host (SM_CURRENT_HOST, or current_host in resourceconfig.json) in it",
        )
    return current, tuple(sorted(hosts or [current]))


def _entry_point(found: Optional[Found], check: Validator, faults: Faults) -> str:
    expected = "the name of a file, relative to the code directory, such as train.py"
    if found is None:
        faults.add(
            "no entry point is named",
            None,
            f"{expected}: set the hyperparameter sagemaker_program or SM_USER_ENTRY_POINT",
        )
        return ""
    name = check.text(found, "", expected)
    if not name:
        return ""
    if os.path.isabs(name):
        trouble = "an entry point with an absolute path"
    elif ".." in name.split("/"):
        trouble = "an entry point that may leave the code directory"
    elif name.startswith("-"):
        trouble = "an entry point that would be read as an option"
    elif not name.isprintable():
        trouble = "an entry point with a character that cannot be printed"
    elif os.path.normpath(name) == ".":
        trouble = "an entry point that is a directory"
    else:
        return os.path.normpath(name)
    faults.add(trouble, found, expected)
    return ""


def _module_dir(found: Optional[Found], base: str, check: Validator, faults: Faults) -> str:
    """Return where the user's code comes from."""
    expected = "a directory, a tar.gz or s3://bucket/key"
    code_dir = os.path.join(base, "code")
    if found is None:
        # Where SageMaker puts the code for network isolation (SDK 2.257, vpc_utils and
        # estimator: a channel named "code").
        isolated = os.path.join(base, "input", "data", "code", "sourcedir.tar.gz")
        return isolated if os.path.isfile(isolated) and _is_empty(code_dir) else code_dir
    text = check.text(found, code_dir, expected)
    scheme, separator, rest = text.partition("://")
    if separator:
        bucket, _, key = rest.partition("/")
        if scheme.lower() != "s3" or not bucket or not key:
            faults.add("not a place of code", found, expected)
        return text
    if not os.path.exists(text) and os.path.abspath(text) != code_dir:
        faults.add("code that does not exist", found, expected)
    return os.path.abspath(text)


def _is_empty(directory: str) -> bool:
    try:
        return not os.listdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _channels(
    sources: Sources, inputs: Mapping[str, Found], data_dir: str, check: Validator
) -> Dict[str, str]:
    """Return the channels' paths. Nothing is opened or listed: one in Pipe mode is a FIFO."""
    found = sources.json("SM_CHANNELS", list)
    if found is None:
        found = Found(list(inputs), "channels", f"SM_INPUT_DATA_CONFIG or {_INPUT_DATA}")
    names = check.names(found, CHANNEL_NAME, "channel name") or []
    channels = {name: os.path.join(data_dir, name) for name in names}
    for name, path in sources.prefixed("SM_CHANNEL_"):
        for channel in match(names, name):
            channels[channel] = check.path(_present(path), os.path.join(data_dir, channel))
    return channels


def _check_hyperparameters(user: Mapping[str, Found], faults: Faults) -> None:
    """Note what can be no argument and no variable of the user's program."""
    for name, found in user.items():
        trouble = "a name with '='" if "=" in name else unpassable(name)
        if trouble:
            faults.add(f"hyperparameter {name[:80]!r}: {trouble}", found, "another name")
        texts = (text for _, text in walk(found.value) if isinstance(text, str))
        troubles = [trouble for trouble in map(unpassable, texts) if trouble]
        if troubles:
            faults.add(troubles[0], found, "text that can be handed to a program")


def _check_resources(resources: Mapping[str, Found], check: Validator, faults: Faults) -> None:
    """Note what is wrong in the optional part of ``resourceconfig.json``."""
    for name in ("current_instance_type", "current_instance_group", "current_group_name"):
        check.text(_present(resources.get(name)), "")
    groups = _present(resources.get("instance_groups"))
    if groups is not None and not (
        isinstance(groups.value, list) and all(map(_is_group, groups.value))
    ):
        faults.add(
            "not instance groups",
            groups,
            'a JSON list of {"instance_group_name": ..., "instance_type": ..., "hosts": [...]}',
        )


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and isinstance(group.get("instance_group_name"), str)
        and isinstance(group.get("hosts"), list)
        and all(isinstance(host, str) for host in group["hosts"])
    )


def _check_inputs(inputs: Mapping[str, Found], faults: Faults) -> None:
    for found in inputs.values():
        if not isinstance(found.value, dict):
            faults.add("not the description of a channel", found, "a JSON object")


def _check_groups(platform: Mapping[str, Found], faults: Faults) -> None:
    found = _present(platform.get("sagemaker_distribution_instance_groups"))
    if found is not None and not (
        isinstance(found.value, list) and all(isinstance(name, str) for name in found.value)
    ):
        faults.add("not names of instance groups", found, "a JSON list of texts")


def _settings(
    sources: Sources,
    user: Mapping[str, Found],
    platform: Mapping[str, Found],
    check: Validator,
    faults: Faults,
) -> Settings:
    """Return what is set about this toolkit: the hyperparameter goes before the variable."""
    default = Settings()
    known = [field.name for field in dataclasses.fields(Settings)]
    for name, found in platform.items():
        if name.startswith(_OWN) and name[len(_OWN) :] not in known:
            from difflib import get_close_matches  # noqa: PLC0415  (rarely needed)

            near = get_close_matches(name[len(_OWN) :], known, 1)
            meant = f" (did you mean {_OWN}{near[0]}?)" if near else ""
            faults.add(f"no setting is named {name[:80]!r}{meant}", found)

    def get(name: str) -> Optional[Found]:
        given = _present(platform.get(_OWN + name))
        return given or sources.variable((_OWN + name).upper())

    def seconds(name: str, zero: bool = False) -> float:
        return check.seconds(get(name), getattr(default, name), zero)

    own_port = get("ps_port")
    peer_port = _present(user.get("_ps_port"))
    # 0 is no port to name to others; it is how ``local`` asks for any free one.
    ps_port = check.port(peer_port or own_port, default.ps_port, 1 if peer_port else 0)
    following = ps_port + 1 if ps_port < 65535 else ps_port - 1
    control_port = check.port(get("control_port"), following if ps_port else default.control_port)
    if control_port == ps_port:
        faults.add("the port of the kvstore too", get("control_port"), "another port")
    descriptor = get("control_fd")
    return Settings(
        join_timeout=seconds("join_timeout"),
        peer_timeout=seconds("peer_timeout"),
        stop_grace=seconds("stop_grace", zero=True),
        drain_timeout=seconds("drain_timeout", zero=True),
        stall_timeout=seconds("stall_timeout", zero=True),
        ps_port=ps_port,
        ps_port_given=bool(ps_port) and (peer_port or own_port) is not None,
        ps_verbose=check.whole(
            _present(user.get("_ps_verbose")) or get("ps_verbose"), 0, 0, 9, "a level of ps-lite"
        ),
        servers_per_host=check.whole(
            get("servers_per_host"), default.servers_per_host, 1, 64, "a number of kvstore servers"
        ),
        control_port=control_port,
        host_addresses=_addresses(get("host_addresses"), faults),
        job_key=check.text(get("job_key"), "") or None,
        control_fd=check.whole(descriptor, 0, 0, 2**20, "a file") if descriptor else None,
    )


def _addresses(found: Optional[Found], faults: Faults) -> Dict[str, str]:
    """Return host names and their addresses, from an object or its JSON text."""
    if found is None:
        return {}
    value = found.value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, dict) and all(map(_is_address, value.values())):
        return value
    faults.add("not addresses of hosts", found, 'a JSON object such as {"algo-1": "10.0.0.1"}')
    return {}


def _is_address(value: Any) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, value)
        except (OSError, TypeError, ValueError):
            continue
        return True
    return False
