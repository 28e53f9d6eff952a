"""Settings as any package declares and reads them, and what values of each kind are valid."""

import dataclasses
from dataclasses import dataclass
from typing import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.settings import declaration, sources, validation
from sagemaker_mxnet_toolkit.settings.declaration import declared, setting
from sagemaker_mxnet_toolkit.settings.sources import Faults, Found, Sources
from sagemaker_mxnet_toolkit.settings.validation import Validator


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a package that has variables only."""

    workers: int = setting(2, validation.integer(1, 8, "a number of workers"), "processes")
    timeout: float = setting(5.0, validation.seconds(1), "time for one request")
    password: str = setting("", validation.string("a text"), "needed by clients", secret=True)
    names: Mapping[str, str] = setting({}, validation.ADDRESSES, "addresses")
    started: float = 0.0


def read(environ, hyperparameters=None, prefix="sagemaker_mxnet_serving_", settings=ServerSettings):
    faults = Faults()
    sources = Sources(environ, "/nowhere", faults)
    found = {name: Found(value, name, name) for name, value in (hyperparameters or {}).items()}
    values, given_names = declaration.read(settings, prefix, sources, found, Validator(faults))
    return values, given_names, faults.sentences()


def test_without_variables_all_have_their_defaults():
    assert read({}) == (ServerSettings(), frozenset(), ())


def test_a_variable_sets_one():
    values, names, faults = read({"SAGEMAKER_MXNET_SERVING_WORKERS": "4"})
    assert (values.workers, names, faults) == (4, {"workers"}, ())


def test_a_hyperparameter_takes_precedence_over_a_variable():
    values, _, _ = read(
        {"SAGEMAKER_MXNET_SERVING_WORKERS": "4"}, {"sagemaker_mxnet_serving_workers": 3}
    )
    assert values.workers == 3


def test_alias_takes_precedence_and_has_its_own_kind():
    @dataclass(frozen=True)
    class Aliased:
        port: int = setting(
            80, validation.port(0), "", alias="_port", alias_kind=validation.port(1)
        )

    environ = {"SAGEMAKER_MXNET_PORT": "0"}

    def resolved(hyperparameters):
        return read(environ, hyperparameters, "sagemaker_mxnet_", Aliased)

    assert resolved({})[0].port == 0
    assert resolved({"_port": "9"})[0].port == 9
    values, _, (fault,) = resolved({"_port": "0"})
    assert values.port == 80
    assert "from 1 to 65535" in fault


def test_an_invalid_value_is_a_fault_and_gives_the_default():
    values, _, (fault,) = read({"SAGEMAKER_MXNET_SERVING_WORKERS": "9"})
    assert values.workers == 2
    assert fault == (
        "SAGEMAKER_MXNET_SERVING_WORKERS: not a number of workers: '9'; "
        "expected an integer from 1 to 8"
    )


def test_each_package_checks_the_names_of_its_own_variables():
    misspelled = {"SAGEMAKER_MXNET_SERVING_WORKER": "4", "SAGEMAKER_MXNET_JOIN_TIMOUT": "3"}
    _, _, (fault,) = read(misspelled)
    assert "did you mean SAGEMAKER_MXNET_SERVING_WORKERS?" in fault
    _, _, (fault,) = read(misspelled, prefix="sagemaker_mxnet_")
    assert "SAGEMAKER_MXNET_JOIN_TIMOUT" in fault


def test_a_setting_can_have_variables_of_other_names():
    @dataclass(frozen=True)
    class Named:
        timeout: float = setting(
            1.0,
            validation.seconds(),
            "",
            variables=("SAGEMAKER_MXNET_LIMIT", "SAGEMAKER_TIMEOUT_SECONDS"),
        )

    def timeout(**environ):
        values, _, faults = read(environ, None, "sagemaker_mxnet_", Named)
        return faults or values.timeout

    assert timeout(SAGEMAKER_TIMEOUT_SECONDS="2") == 2
    assert timeout(SAGEMAKER_TIMEOUT_SECONDS="2", SAGEMAKER_MXNET_LIMIT="3") == 3
    (fault,) = timeout(SAGEMAKER_MXNET_LIMITS="4")
    assert "did you mean SAGEMAKER_MXNET_LIMIT?" in fault


def test_a_field_without_a_declaration_cannot_be_set():
    _, _, (fault,) = read({"SAGEMAKER_MXNET_SERVING_STARTED": "1"})
    assert "is not a setting" in fault
    assert "started" not in declared(ServerSettings)


def test_a_secret_is_not_in_the_repr():
    assert "hunter" not in repr(dataclasses.replace(ServerSettings(), password="hunter-2222"))


KINDS = {
    "text": validation.string("a text"),
    "path": validation.PATH,
    "flag": validation.FLAG,
    "level": validation.LOG_LEVEL,
    "addresses": validation.ADDRESSES,
    "port": validation.port(),
    "seconds": validation.seconds(),
}

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("name", KINDS)
@given(value=ANYTHING)
def test_a_kind_accepts_a_value_or_says_what_is_wrong(name, value):
    try:
        converted = KINDS[name].convert(value)
    except ValueError as error:
        assert str(error)
    else:
        assert KINDS[name].convert(converted) == converted, "what is valid stays valid"


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_not_json(text):
    with pytest.raises(ValueError, match="not a finite number"):
        sources.parse(f"[{text}]")


@given(ANYTHING.map(sources.variable_text))
def test_any_variable_can_be_decoded(text):
    sources.decode(text)
