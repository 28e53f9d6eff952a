"""Moments at which a script waits for what a test does to it, so that nothing depends on timing.

``HOLDS`` in the environment of a job lists ``attempt:moment:host``; the script says ``holding at
<attempt>:<moment>:<host> .`` there, and goes on when the file ``release`` appears in its base
directory. At the moments in ``FAILS``, whose attempt may be ``*``, it does what ``FAILS_BY`` says.
Moments: ``import``, ``step N``, ``write N`` (in the middle of writing the attempt's Nth
checkpoint), ``restore`` (in the middle of reading an optimizer's state) and ``end``.
"""

from .scripts import SCRIPTS

BEGIN = """
attempt = 1 + int(os.environ["SAGEMAKER_MXNET_RESTART_COUNT"])
worker = os.environ.get("DMLC_ROLE", "worker") == "worker"
HOLDS, FAILS = (set(os.environ.get(name, "").split(";")) for name in ("HOLDS", "FAILS"))


def eat():
    memory = []
    while True:
        memory.append(os.urandom(1 << 20))


def reached(moment):
    if not worker:
        return
    place = f"{attempt}:{moment}:{host}"
    if {place, f"*:{moment}:{host}"} & FAILS:
        eval(os.environ["FAILS_BY"])
    if place in HOLDS:
        HOLDS.discard(place)
        say("holding at", place, ".")
        release = os.path.join(os.environ["SAGEMAKER_BASE_DIR"], "release")
        while not os.path.exists(release):
            time.sleep(0.02)


plainly = say


def say(*words):
    plainly(*words)
    if words[0] == "step":
        # A due checkpoint is left out while another one is written.
        if not any(place.startswith((f"{attempt}:write", "*:write")) for place in HOLDS | FAILS):
            checkpoint._manager._writer.join()
        reached(f"step {words[1]}")


def halved(chunks, moment):
    for chunk in chunks:
        yield chunk[: len(chunk) // 2]
        reached(moment)
        yield chunk[len(chunk) // 2 :]


if worker:
    say("attempt", attempt, "resumes", os.environ.get("SAGEMAKER_MXNET_RESUME", "nothing"), ".")
    reached("import")
    from sagemaker_mxnet_training.checkpoints import checkpoint_file
    from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointFile

    read, write, verify = CheckpointFile.chunks, checkpoint_file.write, CheckpointFile.verify
    written, verified = [], []

    def held_chunks(self, name):
        chunks = read(self, name)
        held = verified and name.endswith(".states")
        return halved(chunks, "restore") if held else chunks

    def held_verify(self):
        verify(self)
        verified.append(self.name)

    def held_write(file, members):
        written.append(file)
        moment = f"write {len(written)}"
        write(file, ((name, halved(chunks, moment)) for name, chunks in members))

    CheckpointFile.chunks, CheckpointFile.verify = held_chunks, held_verify
    checkpoint_file.write = held_write
"""

END = """
say("end", ".")
reached("end")
"""


def held_script(kind: str) -> str:
    """Return a script of ``scripts`` that waits at moments."""
    return BEGIN + SCRIPTS[kind] + END
