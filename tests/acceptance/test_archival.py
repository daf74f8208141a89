"""From a registered package to a proven copy, through real managers and workers."""

import hashlib
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Installation, wait_for

from ccat_data_transfer import dispatch, routing

LARGE = 1 << 30


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def all_completed(installation: Installation, count: int) -> list[dict[str, Any]]:
    transfers = installation.transfers()
    done = [transfer for transfer in transfers if transfer["status"] == "completed"]
    return done if len(done) == count else []


def incoming(root: Path) -> list[Path]:
    """Temporaries of attempts that have written something."""
    return [path for path in (root / ".incoming").glob("*") if path.stat().st_size]


def test_two_sites_archive_their_packages_through_managers_and_workers(installation: Installation) -> None:
    installation.apply_topology("chile", "cologne")
    sources = [
        installation.make_package(site, f"{site}-{number}.tar", 70_000)
        for site in ("chile", "cologne")
        for number in range(3)
    ]
    with (
        installation.running("archive-manager"),
        installation.running("worker", "--site", "chile"),
        installation.running("worker", "--site", "Cologne", "--concurrency", "1"),
    ):
        done = wait_for(lambda: all_completed(installation, 6), "six completed operations")
    assert {(t["site"], t["queue"]) for t in done} == {
        (site, routing.queue_name(site, "lta")) for site in ("chile", "cologne")
    }
    for source in sources:
        site = source.parent.parent.name
        archived = installation.root / site / "lta" / source.stem / source.name
        assert archived.read_bytes() == source.read_bytes()
        subprocess.run(
            ["sha256sum", "-c", f"{source.name}.sha256"], cwd=archived.parent, check=True, stdout=subprocess.DEVNULL
        )
    assert {package["state"] for package in installation.json("package", "list")} == {"archived"}


def test_a_worker_killed_mid_copy_leaves_no_object_and_the_next_attempt_succeeds(
    redis_installation: Installation,
) -> None:
    installation = redis_installation
    installation.apply_topology("cologne")
    source = installation.make_package("cologne", "large.tar", LARGE)
    lta = installation.root / "cologne" / "lta"
    installation.run("archive-manager", "--once")
    with installation.running("worker") as process:
        wait_for(lambda: incoming(lta), "a temporary that grows")
        process.kill()
        process.wait()
    wait_for(lambda: not processes_below(installation), "the death of the worker's children")
    assert not (lta / "large" / "large.tar").exists()
    assert installation.transfers()[0]["status"] == "in_progress"

    with installation.running("archive-manager"), installation.running("worker"):
        (done,) = wait_for(lambda: all_completed(installation, 1), "the second attempt")
    assert done["attempt"] == 2
    assert done["retry_count"] == 1
    assert sha256(lta / "large" / "large.tar") == sha256(source)
    assert not incoming(lta)


def processes_below(installation: Installation) -> list[str]:
    """Processes that still have this installation's settings."""
    marker = f"CCAT_DATA_TRANSFER_WORKING_DIRECTORY={installation.root / 'work'}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue  # it has just ended
    return found


def test_a_message_that_comes_five_times_copies_once(installation: Installation) -> None:
    installation.apply_topology("cologne")
    installation.make_package("cologne", "once.tar", 200_000)
    installation.run("archive-manager", "--once")
    send = (
        "from ccat_data_transfer import celery_app\n"
        f"for _ in range(4): celery_app.app.send_task({dispatch.TASK!r}, args=(1,), "
        f"queue={routing.queue_name('cologne', 'lta')!r})\n"
    )
    subprocess.run([sys.executable, "-c", send], env=installation.environment, check=True)
    with installation.running("worker"):
        wait_for(lambda: all_completed(installation, 1), "the completed operation")
        log = installation.root / "background.log"
        wait_for(lambda: log.read_text().count("operation_not_claimed") >= 4, "four refused messages")
    history = installation.json("transfer", "show", "1")
    assert Counter(entry["verb"] for entry in history["log"])["claim"] == 1
    assert installation.transfers()[0]["attempt"] == 1


def test_a_plain_celery_worker_serves_a_queue(redis_installation: Installation) -> None:
    installation = redis_installation
    installation.apply_topology("cologne")
    installation.make_package("cologne", "plain.tar", 100_000)
    installation.run("archive-manager", "--once")
    celery = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "ccat_data_transfer.celery_app", "worker"),
            *("-c", "1", "-Q", routing.queue_name("cologne", "lta")),
        ],
        env=installation.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: all_completed(installation, 1), "the completed operation")
    finally:
        celery.send_signal(signal.SIGTERM)
        celery.wait(60)


def test_a_broker_that_comes_later_is_waited_for(redis_installation: Installation) -> None:
    installation = redis_installation
    installation.apply_topology("cologne")
    installation.make_package("cologne", "late.tar", 100_000)
    here = installation.environment["CCAT_DATA_TRANSFER_BROKER_URL"]
    installation.environment["CCAT_DATA_TRANSFER_BROKER_URL"] = "redis://127.0.0.1:1/0"
    installation.run("archive-manager", "--once", code=5)
    assert installation.transfers()[0]["status"] == "scheduled"
    installation.environment["CCAT_DATA_TRANSFER_BROKER_URL"] = here
    with installation.running("archive-manager"), installation.running("worker"):
        wait_for(lambda: all_completed(installation, 1), "the completed operation")


def test_without_a_broker_the_manager_alone_archives(brokerless_installation: Installation) -> None:
    installation = brokerless_installation
    installation.apply_topology("cologne")
    installation.make_package("cologne", "small.tar", 100_000)
    installation.run("archive-manager", "--once")
    assert len(all_completed(installation, 1)) == 1


def test_without_a_broker_workers_serve_from_the_database_alone(brokerless_installation: Installation) -> None:
    installation = brokerless_installation
    installation.apply_topology("cologne")
    with installation.running("archive-manager"), installation.running("worker", "--site", "cologne"):
        installation.make_package("cologne", "first.tar", 100_000)
        installation.make_package("cologne", "second.tar", 100_000)
        wait_for(lambda: all_completed(installation, 2), "two completed operations")
