"""What a requirements file asks for, what must stay, and how credentials leave a text."""

import netrc
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.requirements.installed import (
    Installed,
    Kept,
    changes,
    importable_numpy,
    is_mxnet,
    kept_packages,
)
from sagemaker_mxnet_toolkit.requirements.known import REMARKS, remarks
from sagemaker_mxnet_toolkit.requirements.package_index import Credentials
from sagemaker_mxnet_toolkit.requirements.requirement_file import (
    LineKind,
    impossible,
    parse,
    render,
    satisfied,
    without,
)

LIBRARIES = Path(__file__).parents[2] / "scripts/libraries"


def kinds(text):
    return [line.kind.value for line in parse(text, {})]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("", LineKind.NOTHING),
        ("   # comment", LineKind.NOTHING),
        ("tiny", LineKind.PLAIN),
        ("tiny==1.0  # comment", LineKind.PLAIN),
        ("tiny[a,b]>=1,<2 ; python_version >= '3'", LineKind.PLAIN),
        ("tiny ; python_version < '3'", LineKind.NOTHING),
        ("tiny==1.0 --hash=sha256:abc", LineKind.OTHER),
        ("tiny @ https://example.com/tiny.whl", LineKind.OTHER),
        ("./wheels/tiny-1.0-py3-none-any.whl", LineKind.OTHER),
        ("git+https://example.com/tiny.git#egg=tiny", LineKind.OTHER),
        ("-e .", LineKind.OTHER),
        ("-r other.txt", LineKind.OTHER),
        ("--require-hashes", LineKind.OTHER),
        ("--index-url https://example.com/simple", LineKind.INDEX),
        ("-i https://example.com/simple", LineKind.INDEX),
        ("--extra-index-url=https://example.com/simple", LineKind.INDEX),
        ("--find-links wheels", LineKind.INDEX),
    ],
)
def test_each_line_is_of_its_kind(line, kind):
    assert kinds(line + "\n" if line else "\n") == [kind.value]


def test_lines_keep_their_numbers_over_continuations_and_variables_are_replaced():
    text = (
        "# head\ntiny==1.0 \\\n  ; python_version > '3'\n-i https://${USER_1}@host/${GONE}\nlast\\"
    )
    lines = parse(text, {"USER_1": "me"})
    assert [(line.number, line.text) for line in lines] == [
        (1, ""),
        (2, "tiny==1.0    ; python_version > '3'"),
        (4, "-i https://me@host/${GONE}"),
        (5, "last"),
    ]


@given(st.text())
def test_no_text_crashes_the_reader_and_reading_what_was_rendered_gives_the_same(text):
    lines = parse(text, {})
    again = parse(render(lines, "/code"), {})
    written = [(line.number, line.kind) for line in lines if line.kind is not LineKind.NOTHING]
    assert [(x.number, x.kind) for x in again if x.kind is not LineKind.NOTHING] == written


def test_files_that_a_file_names_are_found_from_elsewhere_too():
    text = "-r more/a.txt\n-c=b.txt\n--requirement /abs/c.txt\n-r https://host/d.txt\n./local\n"
    assert render(parse(text, {}), "/code").splitlines() == [
        "-r /code/more/a.txt",
        "-c /code/b.txt",
        "--requirement /abs/c.txt",
        "-r https://host/d.txt",
        "./local",
    ]


WORLD = {
    "tiny": Installed("1.0"),
    "pre": Installed("2.0rc1"),
    "top": Installed("1.0", ("tiny<2", "gone; extra == 'more'", "other; python_version < '3'")),
    "loop": Installed("1.0", ("loop[again]", "loop>0")),
    "broken": Installed("1.0", ("not a requirement!",)),
    "mxnet": Installed("1.9.1", ("numpy<1.0",)),
    "numpy": Installed("2.1.0"),
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", True),
        ("tiny", True),
        ("tiny==1.0\ntop\n-i https://example.com", True),
        ("tiny>1", False),
        ("pre>=2.0rc1", True),
        ("top[more]", False),
        ("gone", False),
        ("gone; python_version < '3'", True),
        ("loop", True),
        ("broken", False),
        ("-r other.txt", False),
        ("tiny==1.0 --hash=sha256:abc", False),
        ("mxnet", True),
    ],
)
def test_satisfied_means_that_pip_would_do_nothing(text, answer):
    kept = (Kept("mxnet", "==1.9.1", "since"),)
    assert satisfied(parse(text, {}), WORLD.get, kept) is answer


def asked(text):
    return [line.requirement for line in parse(text, {}) if line.requirement]


def keep(text, world=WORLD, builds=("mxnet",)):
    kept = kept_packages(asked(text), importable_numpy({}), world.get, builds)
    return {package.name: package.specifier for package in kept}


def test_mxnet_and_numpy_stay_as_they_are():
    assert keep("pandas") == {"mxnet": "==1.9.1", "numpy": "==2.1.0"}
    assert keep("numpy>=2") == {"mxnet": "==1.9.1", "numpy": "==2.1.0"}


def test_numpy_moves_where_the_file_names_another_one_within_what_mxnet_imports():
    assert keep("numpy==1.26.4")["numpy"] == ">1.16.0,<3"
    assert keep("numpy", {}, ())["numpy"] == ">1.16.0,<3"


def test_without_the_compatibility_layer_numpy_ends_where_mxnet_does():
    assert importable_numpy({"SAGEMAKER_MXNET_COMPATIBILITY": "0"}) == ">1.16.0,<1.24"


def test_another_build_of_mxnet_counts_as_the_installed_one():
    world = {"mxnet-cu112": Installed("1.9.1")}
    assert keep("mxnet", world, ("mxnet-cu112",))["mxnet"] == "==1.9.1"


def test_the_toolkit_stays_and_so_does_what_it_needs():
    world = {
        "sagemaker-mxnet-training": Installed(
            "5.0.0", ("sagemaker-training<6,>=5.1", "numpy", "pytest>1; extra == 'test'")
        )
    }
    kept = keep("", world, ())
    assert kept["sagemaker-mxnet-training"] == "==5.0.0"
    assert kept["sagemaker-training"] in ("<6,>=5.1", ">=5.1,<6")
    assert "pytest" not in kept


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("tiny\nmxnet==1.8", 2),
        ("MXNet<1.9", 1),
        ("mxnet==1.9.*", None),
        ("mxnet~=1.9", None),
        ("numpy==1.9", 1),
        ("numpy==1.26.4", None),
        ("numpy===1.9", 1),
        ("sagemaker_training==4.0", 1),
        ("sagemaker-training<5", None),  # which versions there are, only an index knows
        ("mxnet==1.8; python_version < '3'", None),
    ],
)
def test_what_a_kept_package_rules_out_is_found_without_an_index(text, number):
    numpy = "==2.1.0" if "numpy" not in text else ">1.16.0,<3"
    kept = [
        Kept("mxnet", "==1.9.1", ""),
        Kept("numpy", numpy, ""),
        Kept("sagemaker-training", ">=5.1,<6", ""),
    ]
    found = impossible(parse(text, {}), kept)
    assert (found[0].number if found else None) == number


def test_lines_for_mxnet_can_be_left_out():
    lines = parse("tiny\nmxnet==1.9.1 --hash=sha256:abc\n-i https://host\nmxnet-cu112\n", {})
    assert [line.text for line in without(lines, is_mxnet)] == ["tiny", "-i https://host"]


@pytest.mark.parametrize("name", ["mxnet", "MXNet_cu112", "mxnet-cu101mkl", "mxnet-mkl"])
def test_builds_of_mxnet_are_known(name):
    assert is_mxnet(name)
    assert not is_mxnet("mxnet-model-server")


def test_changes_name_both_versions():
    before, after = {"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}
    assert changes(before, after) == ["b 1 -> 2", "c 1 -> (none)", "d (none) -> 1"]


words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1).filter(
    lambda text: not set(text) & set("/@?#:%[]")
)


@given(user=words, password=words, port=st.sampled_from(["", ":8080"]))
def test_what_leaves_a_url_can_be_read_from_the_netrc_file(tmp_path_factory, user, password, port):
    credentials = Credentials()
    url = f"https://{user}:{password}@Host.example{port}/simple/"
    text = f"--extra-index-url {url}\ntiny\n"
    stripped = credentials.take_from(text)
    if stripped == text:
        assert sys.version_info < (3, 11)
        return
    assert stripped == f"--extra-index-url https://Host.example{port}/simple/\ntiny\n"
    file = tmp_path_factory.mktemp("netrc") / "netrc"
    file.write_text(credentials.netrc())
    for host in ("Host.example", "host.example"):
        login = netrc.netrc(str(file)).authenticators(host)
        assert (login[0], login[2]) == (user, password)


def test_escapes_in_a_url_are_undone():
    credentials = Credentials()
    credentials.take_from("https://me%40home:a%2Fb@host/")
    assert "machine host login me@home password a/b" in credentials.netrc()


def test_a_second_login_for_the_same_host_stays_where_it_is():
    credentials = Credentials()
    assert credentials.take_from("https://a:1@host/x https://b:2@host/y https://a:1@host/z") == (
        "https://host/x https://b:2@host/y https://host/z"
    )


def test_a_text_without_credentials_stays_as_it_is():
    credentials = Credentials()
    text = "https://host/simple/@scope git+ssh://git@host/x user@host"
    assert credentials.take_from(text) == text
    assert credentials.netrc() == ""


def remarks_on(text):
    return " ".join(remarks(parse(text, {})))


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("keras-mxnet", "KERAS_BACKEND=mxnet"),
        ("Keras_MXNet==2.2.4.3", "collections.Iterable"),
        ("autogluon", "0.3.1"),
        ("autogluon.tabular>=1 # newest", "has no MXNet"),
        ("dgl>=2", "dgl==1.1.1"),
        ("d2l", "numpy==1.23.5"),
        ("mxboard", "protobuf==5.28.3"),
        ("onnx>=1.20", "onnx<1.19"),
    ],
)
def test_a_library_that_needs_a_remedy_is_known(line, remark):
    assert remark in remarks_on(f"numpy\n{line}\n")


@pytest.mark.parametrize(
    "text", ["", "gluoncv\ngluonts\n", "onnx<1.19\n", "dgl; python_version < '3'\n", "-r dgl\n"]
)
def test_nothing_is_said_of_a_library_that_works(text):
    assert remarks_on(text) == ""


def test_the_same_remark_is_made_once():
    assert remarks_on("autogluon\nautogluon.tabular\n").count("0.3.1") == 1


def test_every_library_with_a_remedy_is_tried():
    """What the toolkit says of a library is what ``scripts/library-table.sh`` has seen."""
    programs = {path.stem for path in LIBRARIES.glob("*.py")}
    attempts = (LIBRARIES / "attempts.txt").read_text().splitlines()
    tried = {line.partition(" |")[0] for line in attempts if not line.startswith("#")}
    assert tried == programs
    assert {name for name in REMARKS if not name.startswith("autogluon-")} <= tried
