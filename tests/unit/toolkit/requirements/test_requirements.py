"""Parsing of requirements files, protected packages, and redaction of credentials."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.requirements import known
from sagemaker_mxnet_toolkit.requirements.installed import (
    Installed,
    Kept,
    changes,
    importable_numpy,
    is_mxnet,
    kept_packages,
)
from sagemaker_mxnet_toolkit.requirements.known import REMARKS, remarks
from sagemaker_mxnet_toolkit.requirements.pip_failure import (
    FailedCommand,
    failed_command,
    failure,
)
from sagemaker_mxnet_toolkit.requirements.requirement_file import (
    LineKind,
    find_conflict,
    parse,
    render,
    satisfied,
    without,
)

LIBRARIES = Path(__file__).parents[4] / "scripts/libraries"


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


def test_line_numbers_and_variables():
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
def test_any_text_round_trips(text):
    lines = parse(text, {})
    again = parse(render(lines, "/code"), {})
    written = [(line.number, line.kind) for line in lines if line.kind is not LineKind.NOTHING]
    assert [(x.number, x.kind) for x in again if x.kind is not LineKind.NOTHING] == written


def test_files_that_a_file_names_are_found_from_elsewhere_too():
    paths = {
        "-r more/a.txt": "-r /my code/more/a.txt",
        "-c=b.txt": "-c /my code/b.txt",
        "--find-links .": "--find-links /my code/.",
        "--no-index -fwheels": "--no-index -f /my code/wheels",
        "--find-links=wheels --pre": "--find-links /my code/wheels --pre",
        "--requirement 'my file.txt'": "--requirement '/my code/my file.txt'",
    }
    kept = [
        "--requirement /abs/c.txt",
        "-r https://host/d.txt",
        "-f file:///x",
        "-f ~/x",
        "./local",
    ]
    kept += ["--require-hashes", "-e ./local"]
    text = "\n".join([*paths, *kept])
    expected = [path.replace(" /my code", " /my\\ code") for path in paths.values()] + kept
    assert render(parse(text, {}), "/my code").splitlines() == expected


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


def test_mxnet_stays_and_numpy_is_no_newer():
    expected = {"mxnet": "==1.9.1", "numpy": ">1.16.0,<3,<=2.1.0"}
    assert keep("pandas") == keep("numpy>=2") == expected
    local = {**WORLD, "numpy": Installed("2.1.0+mkl")}
    assert keep("pandas", local) == expected
    beyond = {**WORLD, "numpy": Installed("3.0")}
    assert keep("pandas", beyond)["numpy"] == "==3.0"


def test_compatible_numpy_of_the_file_replaces_the_installed_one():
    assert keep("numpy==1.26.4")["numpy"] == ">1.16.0,<3"
    assert keep("numpy", {}, ())["numpy"] == ">1.16.0,<3"


def test_numpy_limit_without_the_compatibility_layer():
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
    found = find_conflict(parse(text, {}), kept)
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


def remarks_on(text):
    return " ".join(remarks(parse(text, {})))


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("keras-mxnet", "save_mxnet_model"),
        ("Keras_MXNet==2.2.4.3", "save_mxnet_model"),
        ("autogluon", "0.3.1"),
        ("autogluon.tabular>=1 # newest", "uses PyTorch instead of MXNet"),
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


MXBOARD = 'File "/x/site-packages/mxboard/a.py", line 1, in <module>\n'
KERAS = 'ImportError: no\n  File "/x/site-packages/keras/a.py"\nImportError: '
LOADER = 'multiprocessing.context.TimeoutError\n  File "/x/mxnet/gluon/data/dataloader.py"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AttributeError: module 'numpy' has no attribute 'int'. `np.int` was", "np.int: "),
        ("module 'numpy' has no attribute 'long'", "use int in the code"),
        ("AttributeError: `np.float_` was removed in the NumPy 2.0 release.", "numpy<2"),
        ("AttributeError: module 'numpy' has no attribute 'in1d'", "numpy<2"),
        ("ImportError: numpy.core.multiarray failed to import", "numpy<2"),
        ("ImportError: libxcb.so.1: cannot open shared object file", "opencv-python-headless"),
        ("ImportError: libGL.so.1: cannot open shared object file", "opencv-python-headless"),
        ("ModuleNotFoundError: No module named 'pandas'", "add pandas to requirements.txt"),
        ("ModuleNotFoundError: No module named 'sklearn.svm'", "add scikit-learn to"),
        ("ModuleNotFoundError: No module named 'mxnet'", "pip install --no-deps mxnet==1.9.1"),
        ("bdb.BdbQuit", "breakpoint() has no terminal here"),
        ("ModuleNotFoundError: No module named 'json.gone'", "the version of json"),
        ("ModuleNotFoundError: No module named 'cv2'", "add opencv-python-headless to"),
        ("ModuleNotFoundError: No module named 'onnx.mapping'", "onnx<1.19"),
        (f"{MXBOARD}TypeError: Descriptors cannot be created directly.", "protobuf==5.28.3"),
        ("TypeError: Descriptors cannot be created directly.", "protobuf<3.21"),
        ("/dist-packages/dgl/a.py\nModuleNotFoundError: No module named 'torch'", "DGLBACKEND"),
        (f"{KERAS}cannot import name 'Iterable' from 'collections'", "collections.abc"),
        (LOADER, "DataLoader(timeout=SECONDS)"),
        (
            "../3rdparty/ps-lite/src/van.cc:520: Check failed: pb.ParseFromArray(meta_buf, ",
            "a program outside this job",
        ),
        ("killed by SIGBUS", "/dev/shm, which has"),
        ("OSError: [Errno 28] No space left on device\n File /x/multiprocessing/", "--shm-size"),
        ("env: 'python\\r': No such file or directory", "CRLF"),
        ("bash: ./x.sh: /bin/bash^M: bad interpreter: No such file", "CRLF"),
    ],
)
def test_failure_with_a_known_remedy(text, expected):
    assert expected in known.remedy(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ValueError: boom",
        "AttributeError: module 'numpy' has no attribute 'arrange'",
        "AttributeError: module 'mynumpy' has no attribute 'int'",
        "OSError: [Errno 28] No space left on device: '/opt/ml/model/x'",
        "TimeoutError: the database",
    ],
)
def test_failure_without_a_known_remedy(text):
    assert known.remedy(text) is None


def test_readme_installs_as_doctor_and_serve_say():
    readme = (LIBRARIES.parents[1] / "README.md").read_text()
    installation = (LIBRARIES.parents[1] / "docs/installation.md").read_text()
    for text in (readme, installation):
        assert f"pip install '.[serving]' && {known.INSTALL_MXNET}\n" in text
    assert known.INSTALL_SERVING in installation


def test_every_library_with_a_remedy_is_tried():
    """The toolkit's hints match the results of ``scripts/library-table.sh``."""
    programs = {path.stem for path in LIBRARIES.glob("*.py")}
    attempts = (LIBRARIES / "attempts.txt").read_text().splitlines()
    tried = {line.partition(" |")[0] for line in attempts if not line.startswith("#")}
    assert tried == programs
    assert {name for name in REMARKS if not name.startswith("autogluon-")} <= tried


@pytest.mark.parametrize("again", [(), ("ERROR: [present-rich] git clone exited with 128",)])
def test_output_of_the_program_that_failed_is_in_pips_log(again):
    log = ["Running command git version", "  git version 2.39", "  Running command git clone"]
    log += ["  fatal: unable to access", "  More.", "  ERROR: git clone exited with 128", *again]
    found = failed_command([*log, "Removed build tracker"])
    assert found == FailedCommand("git clone", ("  fatal: unable to access", "  More."))
    assert found.cause == "fatal: unable to access"
    assert failed_command(log[:3]) is None


def test_invalid_line_as_pip_22_prints_it():
    output = [
        "ERROR: Invalid requirement: './missing' (from line 2 of requirements.txt)",
        "Hint: It looks like a path. File './missing' does not exist.",
    ]
    cause = str(failure(1, output, [], "requirements.txt", [])).splitlines()[0]
    assert cause == (
        "requirements.txt cannot be installed: Invalid requirement: './missing' "
        "(requirements.txt, line 2); It looks like a path. File './missing' does not exist."
    )
