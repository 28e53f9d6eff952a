"""Requirements with the real pip, a real index on this machine and a real Python to install into.

That Python is a fresh environment that also sees the packages of the one that runs the tests.
"""

import http.server
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sysconfig
import threading
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from sagemaker_mxnet_toolkit.code import preparation
from sagemaker_mxnet_toolkit.failure import FailureKind, RequirementsError
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.requirements import install as requirements
from sagemaker_mxnet_toolkit.requirements import requirement_file
from sagemaker_mxnet_toolkit.settings.variables import REPORT_FD
from tests.support import packages
from tests.support.leaks import no_leaks

BOUND = 90.0


@dataclass
class Done:
    """Result and output of the program."""

    status: int
    report: dict
    output: str


class Environment:
    """A Python to install into, a code directory, and the program's variables."""

    def __init__(self, folder):
        self.home = folder / "python"
        venv.create(self.home, with_pip=False, symlinks=True)
        self.python = self.home / "bin" / "python"
        libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        code = "".join(f"site.addsitedir({path!r});" for path in dict.fromkeys(libraries))
        (self.site / "outer.pth").write_text(f"import site;{code}\n")
        # Where the import of MXNet is not the subject, one that takes no time is good enough.
        self.mxnet = self.site / "mxnet.py"
        self.mxnet.write_text("")
        self.code = folder / "code"
        self.code.mkdir()
        (self.code / "train.py").write_text("print(1)\n")
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_", "AWS_")) and name != "NETRC"
        }
        self.variables.update(
            HOME=str(folder),
            TMPDIR=str(self.temporary),
            PIP_CONFIG_FILE=os.devnull,
            PIP_RETRIES="0",
            PIP_NO_CACHE_DIR="1",
            SAGEMAKER_BASE_DIR=str(folder),
            PYTHONPATH=str(Path(requirements.__file__).parents[2]),
        )

    @property
    def site(self):
        return next((self.home / "lib").glob("python*")) / "site-packages"

    def start(self, text=None, **variables):
        if text is not None:
            (self.code / "requirements.txt").write_text(text)
        reader, writer = os.pipe()
        environ = {**self.variables, **variables, REPORT_FD: str(writer)}
        arguments = ("--code-dir", str(self.code), "--entry-point", "train.py")
        process = subprocess.Popen(
            [str(self.python), *program.argv(requirements.__name__, *arguments)[1:]],
            cwd=self.code,
            env=environ,
            pass_fds=(writer,),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        os.close(writer)
        process.report_end = reader
        return process

    @staticmethod
    def finish(process):
        try:
            output, _ = process.communicate(timeout=BOUND)
        finally:
            process.kill()
        with open(process.report_end, encoding="utf-8") as pipe:
            lines = pipe.read().splitlines()
        return Done(process.returncode, json.loads(lines[0]) if lines else None, output)

    def run(self, text=None, **variables):
        return self.finish(self.start(text, **variables))

    def version(self, name):
        """Return the version that is installed into this environment, not the outer one."""
        found = list(importlib.metadata.distributions(name=name, path=[str(self.site)]))
        return found[0].version if found else None


@pytest.fixture
def env(tmp_path):
    return Environment(tmp_path)


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    packages.wheel(folder, "tiny", "1.0")
    packages.wheel(folder, "tiny", "2.0")
    packages.wheel(folder, "needs-tiny", "1.0", requires=["tiny<2"])
    packages.wheel(folder, "wants-numpy", "1.0", requires=["numpy<1.0"])
    with packages.serve(folder) as served:
        yield served


needs_mxnet = pytest.mark.skipif(
    importlib.util.find_spec("mxnet") is None, reason="needs mxnet in this environment"
)


def test_missing_packages_are_installed_and_pip_output_is_shown(env, index):
    done = env.run("needs-tiny  # a comment\n", PIP_INDEX_URL=index.url())
    assert (done.status, done.report) == (0, None), done.output
    assert (env.version("needs-tiny"), env.version("tiny")) == ("1.0", "1.0")
    assert "Successfully installed needs-tiny-1.0 tiny-1.0" in done.output
    assert list(env.temporary.iterdir()) == []


def test_what_is_installed_already_costs_neither_pip_nor_network(env, index):
    text = "needs-tiny\ntiny==1.0 ; python_version > '3'\nother ; python_version < '3'\n"
    env.run(text, PIP_INDEX_URL=index.url())
    before = len(index.requests)
    # Were pip to start, it would fail: there is none.
    (env.site / "runpy.py").write_text("raise SystemExit('pip was started')")
    done = env.run(text, PIP_INDEX_URL=index.url())
    assert (done.status, done.report) == (0, None), done.output
    assert "requirements.txt: already satisfied" in done.output
    assert len(index.requests) == before


def test_a_dependency_that_went_missing_is_installed_again(env, index):
    env.run("needs-tiny\n", PIP_INDEX_URL=index.url())
    for path in env.site.glob("tiny*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert env.run("needs-tiny\n", PIP_INDEX_URL=index.url()).status == 0
    assert env.version("tiny") == "1.0"


def test_of_the_versions_that_there_are_the_newest_are_named(env, index, tmp_path):
    """The first 1,024 characters are the job's FailureReason; pip may list a hundred versions."""
    for number in range(100):
        packages.wheel(tmp_path / "packages", "old", f"{number}.0")
    done = env.run("old>=100\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    there = "old>=100 (from versions: ..., 97.0, 98.0, 99.0); No matching distribution found for"
    assert there in done.report["reason"]
    assert "0.0, 1.0, 2.0, 3.0" in done.output, "pip's own line is seen whole"


def test_a_package_that_does_not_exist_ends_with_pips_own_reason(env, index):
    done = env.run("no-such-package\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    reason = done.report["reason"]
    assert reason.startswith("requirements.txt cannot be installed: Could not find a version that")
    assert "No matching distribution found for no-such-package" in reason
    assert str(env.temporary) not in str(done.report)
    assert "Traceback" not in done.output


def test_versions_for_another_python_are_the_cause_if_requested(env, index, tmp_path):
    """pip lists what it ignored as errors before the error that ended it."""
    for number in range(9, 12):
        wheel = packages.wheel(tmp_path / "packages", "tiny", f"9.{number}")
        index.python[wheel.name] = "<3"
    causes = {}
    for line in ("tiny==9.2", "tiny>=9"):
        done = env.run(f"{line}\n", PIP_INDEX_URL=index.url())
        assert "ERROR: Ignored the following versions" in done.output
        causes[line] = done.report["reason"]
        assert causes[line].startswith("requirements.txt cannot be installed: Could not find a ver")
    assert causes["tiny==9.2"].endswith("; No matching distribution found for tiny==9.2")
    assert "; tiny 9.11 requires Python <3, and this is 3." in causes["tiny>=9"]


def test_library_hint_follows_the_cause(env, index):
    done = env.run("dgl>=2\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    cause, _, remark = done.report["reason"].partition("; `dgl==1.1.1` is the last version")
    assert cause.endswith("No matching distribution found for dgl>=2")
    assert "DGLBACKEND=mxnet" in remark.splitlines()[0]


def test_hint_about_an_installed_library_is_logged(env, index, tmp_path):
    packages.wheel(tmp_path / "packages", "keras-mxnet", "2.2.4.3")
    done = env.run("keras-mxnet\n", PIP_INDEX_URL=index.url())
    assert (done.status, done.report) == (0, None), done.output
    assert "requirements.txt: keras-mxnet 2.2.4.3 is the last version: save" in done.output


@pytest.fixture
def silent():
    """A port that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield listening.getsockname()[1]


@pytest.fixture
def certificate(tmp_path):
    """A certificate for localhost that is signed by itself, and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=BOUND,
    )
    return certificate, key


@pytest.fixture
def tls(index, certificate):
    """The index behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with packages.serve(index.folder, lambda s: context.wrap_socket(s, server_side=True)) as served:
        yield served


def unreadable(request, case):
    """Return the URL of an index that cannot be read, and the reason."""
    if case == "closed port":
        return "http://127.0.0.1:9/simple/", "Connection refused"
    if case == "unknown name":
        return "https://index.invalid/simple/", "Name or service not known|name resolution"
    if case == "certificate":
        port = request.getfixturevalue("tls").port
        return f"https://localhost:{port}/simple/", "certificate verify failed: self.signed"
    if case == "silence":
        port = request.getfixturevalue("silent")
        return f"http://127.0.0.1:{port}/simple/", "timed out|didn't respond within"
    assert case == "no TLS"
    return "http://index.invalid/simple/", "ignores a host without TLS unless it is trusted"


@pytest.mark.parametrize(
    "case", ["closed port", "unknown name", "certificate", "silence", "no TLS"]
)
def test_an_index_that_cannot_be_read_is_the_cause(env, request, case):
    """And not "Could not find a version", as if the package did not exist."""
    url, reason = unreadable(request, case)
    with_login = url.replace("://", "://user:s3cr3t-word@")
    done = env.run("tiny\n", PIP_INDEX_URL=with_login, PIP_DEFAULT_TIMEOUT="1")
    assert (done.status, done.report["kind"]) == (1, FailureKind.REQUIREMENTS.value)
    shown = url.replace("://", "://***@") if case != "no TLS" else "index.invalid"
    place = re.escape(shown)
    cause = f"^requirements.txt cannot be installed: the package index {place} cannot be read: "
    assert re.search(f"{cause}.*({reason}).*; No matching distribution", done.report["reason"])
    assert "for tiny" in done.report["reason"] and "PIP_INDEX_URL" in done.report["reason"]
    assert "s3cr3t" not in done.output + str(done.report)


def test_unreadable_index_is_not_the_cause_of_a_conflict(env, index):
    nowhere = "http://127.0.0.1:9/simple/"
    done = env.run("wants-numpy\n", PIP_INDEX_URL=index.url(), PIP_EXTRA_INDEX_URL=nowhere)
    assert done.status == 1
    assert "depends on numpy<1.0" in done.report["reason"]
    assert "cannot be read" not in done.report["reason"]


def test_a_log_of_pip_that_the_user_asked_for_is_kept_and_read(env, tmp_path):
    log = tmp_path / "pip.log"
    log.write_text("Could not fetch URL http://old.invalid/tiny/: long ago - skipping\n")
    nowhere = "http://127.0.0.1:9/simple/"
    done = env.run("tiny\n", PIP_INDEX_URL=nowhere, PIP_LOG=str(log))
    assert nowhere in done.report["reason"] and "old.invalid" not in done.report["reason"]
    assert nowhere in log.read_text()


def test_a_temporary_directory_that_cannot_be_used_is_the_cause(env, index):
    for name in ("TMPDIR", "TEMP", "TMP"):
        env.variables[name] = "/proc/nowhere"
    # Python looks in these, too; its working directory, the code directory, comes last.
    code = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']"
    (env.site / "no_temporary.pth").write_text(f"{code}\n")
    done = env.run("tiny\n", PIP_INDEX_URL=index.url())
    assert (done.status, done.report["kind"]) == (1, FailureKind.REQUIREMENTS.value)
    assert re.match(
        r"requirements.txt cannot be installed: .*No usable temporary directory.*; "
        r"expected a writable temporary directory \(TMPDIR, or /tmp\)",
        done.report["reason"],
    )
    assert "Traceback" not in done.output


def test_a_flaky_index_is_asked_again(env, index):
    index.broken = 2
    done = env.run("tiny\n", PIP_INDEX_URL=index.url(), PIP_RETRIES="5")
    assert (done.status, env.version("tiny")) == (0, "2.0"), done.output


@pytest.mark.parametrize("line", ["numpy==1.9", f"numpy==1.9 --hash=sha256:{'0' * 64}"])
def test_a_numpy_that_mxnet_cannot_import_ends_before_pip_starts(env, index, line):
    done = env.run(f"tiny\n\n{line}\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    where = "numpy==1.9 (requirements.txt, line 3) cannot be installed: "
    assert done.report["reason"].startswith(f"{where}this environment keeps numpy>1.16.0,<3")
    assert (env.version("tiny"), index.requests) == (None, [])


def test_incompatible_numpy_fails_before_installation(env, index):
    packages.wheel(index.folder, "numpy", "0.9")
    done = env.run("tiny\nnumpy<1.0\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    for part in ("numpy<1.0", "numpy>1.16.0,<3", "change requirements that conflict"):
        assert part in done.report["reason"]
    assert env.version("tiny") is None


@needs_mxnet
@pytest.mark.parametrize("line", ["mxnet==1.8.0", "mxnet-cu112<1.9", "mxnet>=2"])
def test_other_mxnet_fails_before_installation(env, index, line):
    done = env.run(f"{line}\ntiny\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    assert done.report["reason"].startswith(
        f"{line} (requirements.txt, line 1) cannot be installed"
    )
    assert "change or remove the line" in done.report["reason"]
    assert (env.version("tiny"), index.requests) == (None, [])


@needs_mxnet
def test_image_mxnet_may_be_required_despite_its_numpy_metadata(env, index):
    env.mxnet.unlink()
    text = "mxnet==1.9.1\nmxnet-cu112\ntiny\n"
    done = env.run(text, PIP_INDEX_URL=index.url())
    assert (done.status, env.version("tiny")) == (0, "2.0"), done.output
    assert not any("mxnet" in path for path in index.requests)


def test_no_newer_numpy_than_installed_unless_it_is_named(env, index):
    installed = importlib.metadata.version("numpy")
    packages.wheel(index.folder, "numpy", "2.9")
    packages.wheel(index.folder, "wants-new-numpy", "1.0", requires=["numpy>=2.9"])
    done = env.run("wants-new-numpy\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    kept = ("depends on numpy>=2.9", f"numpy>1.16.0,<3,<={installed}", "newer NumPy")
    for part in ("Cannot install", *kept):
        assert part in done.report["reason"]
    assert env.version("wants-new-numpy") is None


def test_older_numpy_that_a_package_needs_is_installed(env, index):
    packages.wheel(index.folder, "numpy", "1.19.99")
    packages.wheel(index.folder, "wants-old-numpy", "1.0", requires=["numpy<1.20"])
    done = env.run("wants-old-numpy\n", PIP_INDEX_URL=index.url())
    assert (done.status, env.version("numpy")) == (0, "1.19.99"), done.output


def test_older_numpy_without_a_wheel_is_not_built(env, index, tmp_path):
    packages.sdist(index.folder, tmp_path / "build", "numpy", "1.19.99")
    packages.wheel(index.folder, "wants-old-numpy", "1.0", requires=["numpy<1.20"])
    done = env.run("wants-old-numpy\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    assert "numpy<1.20" in done.report["reason"]
    assert not any(path.endswith(".tar.gz") for path in index.requests)


@needs_mxnet
def test_package_that_requires_mxnet_is_installed_next_to_numpy_2(env, index):
    """MXNet's metadata asks for ``numpy<2``."""
    packages.wheel(index.folder, "numpy", "2.0.99")
    packages.wheel(index.folder, "wants-mxnet", "1.0", requires=["mxnet>=1.6", "numpy"])
    assert env.run("numpy==2.0.99\n", PIP_INDEX_URL=index.url()).status == 0
    done = env.run("wants-mxnet\n", PIP_INDEX_URL=index.url())
    assert (done.status, env.version("wants-mxnet")) == (0, "1.0"), done.output
    assert env.version("numpy") == "2.0.99"
    assert "ERROR" not in done.output
    assert not any("/mxnet" in path for path in index.requests)


def test_another_numpy_that_the_file_names_is_installed(env, index):
    packages.wheel(index.folder, "numpy", "2.0.99")
    done = env.run("numpy==2.0.99\n", PIP_INDEX_URL=index.url())
    assert (done.status, env.version("numpy")) == (0, "2.0.99"), done.output


@needs_mxnet
def test_a_package_after_which_mxnet_cannot_be_imported_is_named(env, index):
    env.mxnet.unlink()
    code = "raise ImportError('this is another mxnet')"
    packages.wheel(index.folder, "shadow", "3.1", module="mxnet", code=code)
    done = env.run("shadow\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    reason = done.report["reason"]
    assert reason.startswith("mxnet cannot be imported after installing requirements.txt")
    assert "ImportError: this is another mxnet" in reason
    assert "changed packages: shadow (none) -> 3.1" in reason


def test_wheels_and_paths_are_relative_to_the_source_directory(env, index):
    (env.code / "wheels").mkdir()
    (env.code / "more").mkdir()
    packages.wheel(env.code / "wheels", "local", "1.0")
    packages.wheel(env.code / "wheels", "found", "1.0")
    packages.wheel(env.code, "beside", "1.0")
    (env.code / "more" / "other.txt").write_text("tiny==1.0\n")
    text = "./wheels/local-1.0-py3-none-any.whl\n--find-links=wheels\nfound\n-r more/other.txt\n"
    done = env.run(f"{text}--find-links .\nbeside\n", PIP_INDEX_URL=index.url())
    assert done.status == 0, done.output
    assert [env.version(name) for name in ("local", "found", "tiny", "beside")] == ["1.0"] * 4


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("./missing", "It looks like a path. File './missing' does not exist."),
        ("tiny=1", "= is not a valid operator. Did you mean == ?"),
        ("tiny 1", ""),
    ],
)
def test_line_that_pip_cannot_parse_is_named_with_pips_hint(env, index, line, expected):
    done = env.run(f"tiny\n\n{line}\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    reason = done.report["reason"]
    assert reason.startswith(f"requirements.txt cannot be installed: Invalid requirement: '{line}'")
    assert reason.endswith(f" (requirements.txt, line 3); {expected}".rstrip("; "))


def test_requirements_in_utf_16_are_read(env, index):
    """As PowerShell's ``pip freeze > requirements.txt`` writes them."""
    (env.code / "requirements.txt").write_bytes("tiny==1.0\r\nneeds-tiny\r\n".encode("utf-16"))
    done = env.run(PIP_INDEX_URL=index.url())
    assert done.status == 0, done.output
    assert [env.version(name) for name in ("needs-tiny", "tiny")] == ["1.0"] * 2


BUILDS = {
    "the last line": "raise SystemExit('libfoo.h is missing: install libfoo-dev')",
    "before the compiler's status": """print("a.c:1:10: fatal error: libfoo.h is missing")
    raise SystemExit("error: command '/usr/bin/gcc' failed with exit code 1")""",
}


@pytest.mark.parametrize("where", BUILDS)
@pytest.mark.parametrize("log", [False, True])
def test_build_error_is_the_cause(env, index, tmp_path, where, log):
    packages.sdist(index.folder, tmp_path / "build", "source", "1.0", check=BUILDS[where])
    variables = {"PIP_LOG": str(tmp_path / "pip.log")} if log else {}
    done = env.run("source\n", PIP_INDEX_URL=index.url(), **variables)
    assert done.status == 1
    cause = "requirements.txt cannot be installed: Preparing metadata (pyproject.toml) failed: "
    assert done.report["reason"].startswith(cause)
    assert "libfoo.h is missing" in done.report["reason"][len(cause) :].split(";")[0]
    assert "libfoo.h is missing" in done.output and "libfoo.h is missing" in done.report["detail"]


def test_index_without_a_builds_dependency_is_the_cause(env, index, tmp_path):
    packages.sdist(env.code, tmp_path / "build", "source", "1.0", build_requires=["tool"])
    nowhere = "http://127.0.0.1:9/simple/"
    done = env.run("./source-1.0.tar.gz\n", PIP_INDEX_URL=nowhere)
    assert done.status == 1
    cause = f"requirements.txt cannot be installed: the package index {nowhere} cannot be read: "
    assert done.report["reason"].startswith(f"{cause}Connection refused; ")


@pytest.mark.parametrize("scheme", ["", "git+"])
def test_certificate_that_is_not_trusted_names_its_variable(env, tls, scheme):
    if scheme and not shutil.which("git"):
        pytest.skip("needs git")
    path = "x.git" if scheme else "files/tiny-2.0-py3-none-any.whl"
    done = env.run(f"tiny @ {scheme}https://localhost:{tls.port}/{path}\n")
    assert done.status == 1
    assert re.search("certificate verif(y|ication) failed", done.report["reason"])
    assert "set PIP_CERT (for git: GIT_SSL_CAINFO)" in done.report["reason"]


def test_hashes_are_demanded_and_checked(env, index):
    good = packages.sha256(index.folder / "tiny-2.0-py3-none-any.whl")
    done = env.run(f"tiny==2.0 \\\n  --hash=sha256:{'0' * 64}\n", PIP_INDEX_URL=index.url())
    assert done.status == 1
    assert "HASHES" in done.report["reason"] + done.report["detail"]
    assert env.version("tiny") is None
    done = env.run(f"tiny==2.0 \\\n  --hash=sha256:{good}\n", PIP_INDEX_URL=index.url())
    assert (done.status, env.version("tiny")) == (0, "2.0"), done.output


def test_modules_of_the_user_do_not_stand_in_for_pips_own(env, index):
    for name in ("json", "logging", "pip", "typing", "runpy"):
        (env.code / f"{name}.py").write_text(f"raise SystemExit('the user\\'s {name}')")
    done = env.run("tiny\n", PIP_INDEX_URL=index.url())
    assert (done.status, env.version("tiny")) == (0, "2.0"), done.output


def test_a_package_is_installed_with_its_dependencies(env, index, tmp_path):
    files = packages.source_files(tmp_path, "trainer", "1.0", requires=["tiny<2"])
    for name, data in files.items():
        (env.code / name).write_bytes(data)
    (env.code / "setup.py").write_text("from setuptools import setup; setup()")
    done = env.run("needs-tiny\n", PIP_INDEX_URL=index.url())
    assert done.status == 0, done.output
    assert [env.version(name) for name in ("trainer", "needs-tiny", "tiny")] == ["1.0"] * 3


def test_package_in_conflict_with_mxnet_fails(env, index, tmp_path):
    files = packages.source_files(tmp_path, "trainer", "1.0", requires=["numpy<1.0"])
    for name, data in files.items():
        (env.code / name).write_bytes(data)
    (env.code / "setup.py").write_text("from setuptools import setup; setup()")
    packages.wheel(index.folder, "numpy", "0.9")
    done = env.run(PIP_INDEX_URL=index.url())
    assert done.status == 1
    assert done.report["reason"].startswith("the package in the code directory cannot be installed")
    assert "numpy<1.0" in done.report["reason"]
    assert env.version("trainer") is None


@pytest.mark.parametrize("place", ["variable", "file", "extra", "interpolated"])
def test_credentials_reach_the_index_and_no_output(env, index, tmp_path, place):
    """A source distribution makes pip start others of its kind, and hand them its index."""
    index.login = ("user", "s3cr3t-word")
    packages.wheel(index.folder, "tool", "1.0")
    packages.sdist(index.folder, tmp_path / "build", "source", "1.0", build_requires=["tool"])
    url = index.url("user:s3cr3t-word")
    variables = {"PIP_INDEX_URL": index.url()}
    text = "source\n"
    if place == "variable":
        variables = {"PIP_INDEX_URL": url}
    elif place == "file":
        text = f"--index-url {url}\nsource\n"
    elif place == "extra":
        text = f"--extra-index-url={url}\nsource\n"
    else:
        variables["INDEX_PASSWORD"] = "s3cr3t-word"
        text = f"-i {index.url('user:${INDEX_PASSWORD}')}\nsource\n"
    done = env.run(text, **variables)
    assert (done.status, env.version("source")) == (0, "1.0"), done.output
    assert any("tool" in path for path in index.requests)
    assert "s3cr3t" not in done.output


def test_credentials_are_in_no_failure(env, index):
    index.login = ("user", "another-word")
    url = index.url("user:s3cr3t-word")
    done = env.run(f"--extra-index-url {url}\ntiny\n", PIP_INDEX_URL=url)
    assert done.status == 1
    assert "s3cr3t" not in done.output + str(done.report)


def test_the_users_netrc_is_used(env, index, tmp_path):
    index.login = ("me", "my-own-word")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password my-own-word\n")
    (tmp_path / ".netrc").chmod(0o600)
    done = env.run("tiny\n", PIP_INDEX_URL=index.url())
    assert (done.status, env.version("tiny")) == (0, "2.0"), done.output


def test_two_hosts_with_one_python_install_one_after_the_other(env, index, tmp_path):
    """The first blocks in its build until the second has logged that it waits."""
    go = tmp_path / "go"
    check = f"""import os, time
    limit = time.monotonic() + {BOUND}
    while not os.path.exists({str(go)!r}) and time.monotonic() < limit: time.sleep(0.02)"""
    packages.sdist(index.folder, tmp_path / "build", "slow", "1.0", check=check)
    first = env.start("slow\n", PIP_INDEX_URL=index.url())
    try:
        deadline = time.monotonic() + BOUND
        while not any(path.endswith("slow-1.0.tar.gz") for path in index.requests):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.02)
        second = env.start(PIP_INDEX_URL=index.url())
        line = second.stdout.readline()
        assert line.startswith("[sagemaker-mxnet-training] waiting for another installation")
    finally:
        go.touch()
        ended = env.finish(first)
    assert ended.status == 0, ended.output
    ended = env.finish(second)
    assert (ended.status, ended.report) == (0, None)
    assert "requirements.txt: already satisfied" in ended.output
    assert sum(path.endswith("slow-1.0.tar.gz") for path in index.requests) == 1


def test_a_stop_leaves_no_temporary_files(env, index, tmp_path):
    index.login = ("user", "s3cr3t-word")
    started = tmp_path / "started"
    check = f"""import time
    open({str(started)!r}, "w").close()
    time.sleep({BOUND})"""
    packages.sdist(index.folder, tmp_path / "build", "slow", "1.0", check=check)
    process = env.start("slow\n", PIP_INDEX_URL=index.url("user:s3cr3t-word"))
    deadline = time.monotonic() + BOUND
    while not started.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    assert list(env.temporary.glob("sagemaker-mxnet-*/requirements.txt"))
    os.killpg(process.pid, signal.SIGTERM)
    assert env.finish(process).status == 128 + signal.SIGTERM
    assert not list(env.temporary.glob("sagemaker-mxnet-*"))


def test_an_installation_that_takes_too_long_is_ended(index, tmp_path):
    lines = requirement_file.parse("tiny\n", {})
    environ = {**os.environ, "PIP_INDEX_URL": index.url(), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with no_leaks():
        with pytest.raises(RequirementsError, match="installing requirements.txt timed out"):
            requirements.run_pip(str(tmp_path), lines, False, (), environ, time.monotonic())


def test_nothing_is_needed_without_a_file_or_a_package(env):
    assert not preparation.install_needed(str(env.code), "train.py")
    (env.code / "setup.py").write_text("")
    assert preparation.install_needed(str(env.code), "train.py")
    assert not preparation.install_needed(str(env.code), "run.sh")
    (env.code / "requirements.txt").write_text("")
    assert preparation.install_needed(str(env.code), "run.sh")


@pytest.fixture
def codeartifact(tls, certificate):
    """The two calls of AWS CodeArtifact's API that matter, and the index with TLS it leads to."""
    tls.login = ("aws", "t0ken-of-codeartifact")

    class Api(http.server.BaseHTTPRequestHandler):
        def answer(self):
            if self.path.startswith("/v1/authorization-token"):
                body = {"authorizationToken": tls.login[1], "expiration": 2e9}
            elif "repository=models" in self.path:
                body = {"repositoryEndpoint": f"https://localhost:{tls.port}/models/"}
            else:
                self.send_response(404)
                self.send_header("x-amzn-ErrorType", "ResourceNotFoundException")
                body = {"message": "no such repository"}
            data = json.dumps(body).encode()
            if "message" not in body:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield (
        tls,
        {
            "AWS_ENDPOINT_URL_CODEARTIFACT": f"http://127.0.0.1:{api.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            # requests prefers this one to what PIP_CERT says.
            "REQUESTS_CA_BUNDLE": str(certificate[0]),
        },
    )
    api.shutdown()
    thread.join()
    api.server_close()


ARN = "arn:aws:codeartifact:us-east-1:123456789012:repository/team/"


def test_codeartifact_repository_is_the_index_and_its_token_is_hidden(env, index, codeartifact):
    tls, variables = codeartifact
    nowhere = "http://127.0.0.1:9/simple/"
    done = env.run("tiny\n", CA_REPOSITORY_ARN=f"{ARN}models", PIP_INDEX_URL=nowhere, **variables)
    assert (done.status, env.version("tiny")) == (0, "2.0"), done.output
    assert tls.requests[0] == "/models/simple/tiny/"
    assert "t0ken" not in done.output


@pytest.mark.parametrize("arn", [f"{ARN}gone", "arn:nonsense"])
def test_unavailable_codeartifact_repository_is_explained(env, codeartifact, arn):
    done = env.run("tiny\n", CA_REPOSITORY_ARN=arn, **codeartifact[1])
    assert done.status == 1
    assert f"CA_REPOSITORY_ARN={arn} is not available: " in done.report["reason"]
    assert ("no such repository" if "gone" in arn else "invalid") in done.report["reason"]
    assert env.version("tiny") is None
