"""The faults that only containers show; what processes show is in ``tests/endings``."""

from tests.support.containers import Engine, run
from tests.support.jobs import eventually

FOREVER = """
while True:
    push_and_pull()
    time.sleep(0.05)
"""

TRAINING = """
push_and_pull()
say("training")
"""

# Far above what the tests allow: nothing here is noticed by silence, unless it says so.
PATIENT = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "100"}


def test_entrypoint_is_the_first_process(engine: Engine) -> None:
    """No init and no shell: it reaps what the script leaves, and the script's status is its own."""
    script = """
    import os, subprocess, sys, time

    subprocess.Popen(["sh", "-c", "sleep 0.1 & exit 0"], start_new_session=True).wait()
    time.sleep(0.5)
    def state(pid):
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
    zombies = [pid for pid in os.listdir("/proc") if pid.isdigit() and state(pid) == "Z"]
    print("first:", open("/proc/1/cmdline").read().split("\\0")[:3], "zombies:", zombies)
    sys.exit(3)
    """
    (host,) = engine.job(1, script, kvstore=False)
    assert host.wait() == 3, host.log()
    assert "sagemaker-mxnet-training" in host.log().split("first:")[1].split("]")[0]
    assert "zombies: []" in host.log()


def test_docker_stop_lets_a_checkpoint_finish(engine: Engine) -> None:
    """SIGTERM to one container: the scripts of both finish, and it counts as a stop."""
    script = """
    def checkpoint(number, frame):
        block = os.urandom(1 << 20)
        with open("/opt/ml/state", "wb") as file:
            for _ in range(100):
                file.write(block)
        say("checkpoint written")
        sys.exit(0)

    signal.signal(signal.SIGTERM, checkpoint)
    """
    one, two = engine.job(2, script, TRAINING, FOREVER, env=PATIENT)
    one.says("^training")
    two.says("^training")
    run("docker", "stop", "--time", "60", two.name, timeout=90)
    for host in (one, two):
        assert host.wait() == 0, host.log()
        assert "checkpoint written" in host.log()
        assert (host.base / "state").stat().st_size == 100 << 20
        assert not (host.base / "output" / "failure").exists()


def test_docker_kill_of_another_host(engine: Engine) -> None:
    """The first host ends with the cause, at once."""
    one, two = engine.job(2, TRAINING, FOREVER, env=PATIENT)
    one.says("^training")
    two.says("^training")
    run("docker", "kill", two.name)
    assert one.wait(timeout=30) == 1, one.log()
    assert one.failure.startswith("algo-2: entrypoint failed: lost: "), one.failure


def test_docker_kill_of_the_first_host(engine: Engine) -> None:
    one, two = engine.job(2, TRAINING, FOREVER, env=PATIENT)
    one.says("^training")
    two.says("^training")
    run("docker", "kill", one.name)
    assert two.wait(timeout=30) == 1, two.log()
    assert two.failure.startswith("algo-1: entrypoint failed: lost: "), two.failure


def test_network_disconnected(engine: Engine) -> None:
    """Nobody sees it but by silence: both end, each naming whom it lost."""
    env = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "5"}
    one, two = engine.job(2, TRAINING, FOREVER, env=env)
    one.says("^training")
    two.says("^training")
    run("docker", "network", "disconnect", engine.id, two.name)
    assert (one.wait(), two.wait()) == (1, 1)
    assert one.failure.startswith("algo-2: entrypoint failed: lost: "), one.failure
    assert two.failure.startswith("algo-1: entrypoint failed: lost: "), two.failure


def test_memory_limit_of_one_host_ends_both(engine: Engine) -> None:
    script = """
    hoard = []
    while os.environ["SM_CURRENT_HOST"] == "algo-2":
        hoard.append(bytearray(16 << 20))
    """
    limit = {2: ["--memory", "1g", "--memory-swap", "1g"]}
    one, two = engine.job(2, TRAINING, script, FOREVER, env=PATIENT, only=limit)
    assert (one.wait(), two.wait()) == (1, 137), one.log() + two.log()
    cause = "algo-2: worker failed: out of memory: the container's limit of 1024 MiB"
    assert one.failure.startswith(cause), one.failure
    assert two.failure.startswith(cause), two.failure


def test_a_name_that_never_resolves(engine: Engine) -> None:
    """A host that was never started is named."""
    env = {"SAGEMAKER_MXNET_JOIN_TIMEOUT": "3", "SM_HOSTS": '["algo-1", "algo-9"]'}
    (one,) = engine.job(1, FOREVER, env=env)
    assert one.wait() == 1, one.log()
    assert "algo-9" in one.failure.splitlines()[0]


def test_full_disk_is_no_success(engine: Engine) -> None:
    """Where not even an empty file can be made, the job does not end as if all were well."""
    script = """
    number = 0
    try:
        while True:
            open(f"/opt/ml/output/filler-{number}", "w").close()
            number += 1
    except OSError as error:
        print("full:", error, flush=True)
    """
    options = ["--tmpfs", "/opt/ml/output:size=4m,nr_inodes=50"]
    (host,) = engine.job(1, script, kvstore=False, options=options)
    assert host.wait() == 1, host.log()
    assert "full: [Errno 28]" in host.log()
    assert "the job SUCCEEDED" not in host.log()


def test_workers_that_finish_at_different_times(engine: Engine) -> None:
    """The first one done stays until all are, and says for whom."""
    script = """
    if os.environ["SM_CURRENT_HOST"] == "algo-2":
        while not os.path.exists("/opt/ml/go"):
            time.sleep(0.05)
    """
    one, two = engine.job(2, TRAINING, script)
    one.says("still training: algo-2")
    assert one.status() is None
    (two.base / "go").touch()
    assert (one.wait(), two.wait()) == (0, 0)
    eventually(lambda: one.succeeded and two.succeeded, "success on both hosts")
