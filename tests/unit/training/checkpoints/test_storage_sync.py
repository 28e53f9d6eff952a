"""SageMaker copies checkpoints to S3 while they are written: a new instance finds complete ones.

Simulated by the rules of its documentation. Files that are in S3 at the start come to the instance;
new ones are uploaded, but for names that end in ``.sagemaker-ignore``; markers say that an upload
has begun and ended; what is deleted locally is deleted in S3.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sagemaker_mxnet_training.checkpoints import catalog, storage

SUFFIXES = (catalog.UPLOADING, catalog.UPLOADED, catalog.IGNORED)


class Sync(RuleBasedStateMachine):
    """An instance that writes checkpoints, its agent, and S3."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.bucket: Dict[str, bytes] = {}
        self.committed: Dict[str, bytes] = {}
        self.upload: Optional[Tuple[str, bytes]] = None
        self.was_in_s3 = False
        self.instances = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @initialize(keep=st.integers(1, 3))
    def begin(self, keep: int) -> None:
        self.keep = keep
        self.instance()

    def instance(self) -> None:
        """Start on a new instance with what S3 has."""
        self.instances += 1
        self.directory = self.root / str(self.instances)
        self.directory.mkdir()
        self.upload = None
        for name, content in self.bucket.items():
            (self.directory / name).write_bytes(content)
        entry, _ = catalog.newest_whole(str(self.directory))
        self.inherited = None if entry is None else entry.name

    @rule(step=st.integers(0, 3))
    def checkpoint(self, step: int) -> None:
        members = [("about.json", [f"{len(self.committed)} {step}".encode()])]
        storage.prepare(str(self.directory))
        name = storage.commit(str(self.directory), step, members)
        self.committed[name] = (self.directory / name).read_bytes()
        storage.retain(str(self.directory), self.keep, self.inherited)

    @rule()
    def begin_a_file(self) -> None:
        """Be killed while a file is written: what is there of it has the name of no checkpoint."""
        name = catalog.next_name([path.name for path in self.directory.iterdir()], 1)
        (self.directory / catalog.temporary_name(name)).write_bytes(b"PK")

    def waiting(self) -> List[Path]:
        """Return the files that are still to be uploaded."""
        files = (path for path in self.directory.iterdir() if not path.name.endswith(SUFFIXES))
        return sorted(path for path in files if path.name not in self.bucket)

    @precondition(lambda self: self.upload is None and self.waiting())
    @rule(data=st.data())
    def begin_upload(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.waiting()))
        (self.directory / (path.name + catalog.UPLOADING)).touch()
        self.upload = path.name, path.read_bytes()

    @precondition(lambda self: self.upload is not None)
    @rule()
    def end_upload(self) -> None:
        assert self.upload is not None
        name, content = self.upload
        assert (self.directory / name).read_bytes() == content, "the upload lost its file"
        self.bucket[name] = content
        (self.directory / (name + catalog.UPLOADED)).touch()
        (self.directory / (name + catalog.UPLOADING)).unlink()
        self.was_in_s3 = True
        self.upload = None

    @rule()
    def delete_in_s3(self) -> None:
        here = {path.name for path in self.directory.iterdir()}
        for name in set(self.bucket) - here:
            del self.bucket[name]

    @rule(partial=st.booleans())
    def lose_the_instance(self, partial: bool) -> None:
        """Start again elsewhere. S3 itself rules out that half an upload has come through."""
        whole = set(self.bucket)
        half = None
        if partial and self.upload is not None and self.upload[0] not in whole:
            half, content = self.upload[0], self.upload[1]
            self.bucket[half] = content[: len(content) // 2]
        self.instance()
        entry, damaged = catalog.newest_whole(str(self.directory))
        newest = max(catalog.entries(whole), default=None)
        assert entry == newest
        assert {damage.name for damage in damaged} <= {half}
        assert entry is not None or not self.was_in_s3
        if entry is not None:
            found = (self.directory / entry.name).read_bytes()
            assert found == self.committed[entry.name]
        if half is not None:
            (self.directory / half).unlink()
            del self.bucket[half]


Sync.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestSync = Sync.TestCase
