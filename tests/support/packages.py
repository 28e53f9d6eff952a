"""Small packages, and a package index on this machine that serves them."""

import base64
import contextlib
import hashlib
import html
import http.server
import io
import tarfile
import threading
import zipfile


def wheel(folder, name, version, requires=(), module=None, code=""):
    """Build a wheel with one module; return its path."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = {
        f"{module or name.replace('-', '_')}.py": code or f"version = {version!r}\n",
        f"{stem}.dist-info/METADATA": metadata,
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{stem}.dist-info/RECORD,,\n"
    files[f"{stem}.dist-info/RECORD"] = record
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in files.items():
            archive.writestr(each, text)
    return path


BACKEND = """
import pathlib, shutil

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    {check}
    built = next(pathlib.Path(__file__).parent.glob("*.whl"))
    shutil.copy(built, wheel_directory)
    return built.name
"""


def source_files(folder, name, version, build_requires=(), check="pass", requires=()):
    """Return the files of a source tree with a build backend of its own."""
    built = wheel(folder, name, version, requires)
    project = f"[build-system]\nrequires = {list(build_requires)!r}\n"
    project += 'build-backend = "backend"\nbackend-path = ["."]\n'
    return {
        "pyproject.toml": project.encode(),
        "backend.py": BACKEND.format(check=check).encode(),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        built.name: built.read_bytes(),
    }


def sdist(folder, build, name, version, **options):
    """Build a source distribution."""
    build.mkdir(exist_ok=True)
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as tar:
        for path, data in source_files(build, name, version, **options).items():
            info = tarfile.TarInfo(f"{name}-{version}/{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Index:
    """A simple package index (PEP 503) of the files in a folder.

    Attributes:
        requests: the requested paths.
        login: user and password that it requires, if any.
        broken: how many of the next requests fail with status 503.
        python: the ``Requires-Python`` of each file that has one.
    """

    def __init__(self, folder, port):
        self.folder = folder
        self.port = port
        self.requests = []
        self.login = None
        self.broken = 0
        self.python = {}

    def url(self, login=""):
        return f"http://{login}{'@' if login else ''}127.0.0.1:{self.port}/simple/"

    def answer(self, path, authorization):
        """Return the status and body of a request."""
        self.requests.append(path)
        if self.login:
            expected = base64.b64encode(":".join(self.login).encode()).decode()
            if authorization != f"Basic {expected}":
                return 401, b""
        if self.broken:
            self.broken -= 1
            return 503, b""
        _, _, rest = path.partition("/simple/")
        if rest:
            name = rest.strip("/").replace("-", "_")
            files = sorted(each.name for each in self.folder.glob(f"{name}-*"))
            links = "".join(map(self._link, files))
            return (200, links.encode()) if files else (404, b"")
        file = self.folder / path.rpartition("/")[2]
        return (200, file.read_bytes()) if file.is_file() else (404, b"")

    def _link(self, file):
        python = html.escape(self.python.get(file, ""))
        return f'<a href="/files/{html.escape(file)}" data-requires-python="{python}">{file}</a>'


@contextlib.contextmanager
def serve(folder, wrap=None):
    """Serve the files of a folder; yield the index. ``wrap`` may put TLS around the socket."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = index.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if wrap:
        server.socket = wrap(server.socket)
    index = Index(folder, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
