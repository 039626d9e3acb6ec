"""0 acknowledged points lost, doubled, altered or reordered, whatever is killed. Small here; ENCORE_TORTURE=1 does all of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdk._ids import derived_id
from tests.torture.house import TORTURE, Chaos, House, Web, kill, senders, until
from tests.torture.ledger import Account, Ledger, compare
from tests.torture.results import Results

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000 if TORTURE else 300)]

HERE = Path(__file__).parent
RANKS = 4
TRAINER_KILLS, KILLS_A_RUN = (10_000, 100) if TORTURE else (80, 40)
PROGRAM_KILLS = 150 if TORTURE else 6
SERVER_KILLS = 50 if TORTURE else 5


def new_run(house: House, what: str, number: int = 0) -> dict:
    house.runs += 1
    run = derived_id("torture", f"{what}-{number}-{time.time_ns()}")
    return {"id": run, "project": "torture", "name": f"{what} {number}", "created_us": time.time_ns() // 1000}


def account_of(house: House, run: str, ledger: Ledger, ranks: int) -> Account:
    """What the API gives at full resolution, rank by rank, against the ledger."""
    opened = {slot: found for slot in range(ledger.slots) if (found := ledger.read(slot)) is not None}
    assert until(lambda: house.state(run) not in (None, "running"), 120)
    total = Account()
    for rank in range(ranks):
        slots = [slot for slot, found in opened.items() if found[2] == rank]
        account = compare(ledger, slots, rank, house.history(run, "x", rank))
        total += account
        # The second key of the same records: an integer that is the step itself.
        for step, _, value in house.history(run, "i", rank):
            if value != step:
                total.note("altered", f"rank {rank}: i is {value!r} at step {step}")
    # Nothing is thrown away, and nothing stands twice: all points of all attempts, counted by the server.
    count = until(lambda: next((row["count"] for row in house.up.get(f"runs/{run}/keys")["results"] if row["key"] == "x"), 0), 120)
    if not total.acknowledged <= int(str(count)) <= total.acknowledged + len(opened):
        counted = until(lambda: total.acknowledged <= stored(house, run) <= total.acknowledged + len(opened), 120)
        if not counted:
            total.note("lost" if stored(house, run) < total.acknowledged else "doubled", f"{stored(house, run)} points stored in all")
    return total


def stored(house: House, run: str) -> int:
    """Points of x that the server holds, superseded ones too (its summaries follow within seconds)."""
    return next((row["count"] for row in house.up.get(f"runs/{run}/keys")["results"] if row["key"] == "x"), 0)


def kill_trainers(house: House, number: int, kills: int, seed: int, kill_senders: bool) -> tuple[Account, int]:
    """One run: `kills` starts of its ranks, each killed; its sender too, again and again, when asked for. (account, senders killed)"""
    run = new_run(house, "trainers", number)
    folder = house.journal / run["id"]
    ledger_path = house.folder / f"ledger-{run['id']}"
    ledger = Ledger(ledger_path, kills)
    spec = {"root": str(house.journal), "run": run, "ledger": str(ledger_path), "slots": kills, "first_slot": 0, "kills": kills}
    spec_path = house.folder / f"spec-{run['id']}.json"
    spec_path.write_text(json.dumps(spec | {"ranks": RANKS, "seed": seed, "mode": ("map", "write")[(number + kill_senders) % 2]}))
    killing = subprocess.Popen([sys.executable, str(HERE / "writers.py"), str(spec_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert until(lambda: folder.exists() or killing.poll() is not None)
        house.send(run["id"])
        chaos = Chaos(seed, (0.2, 1.2), lambda: kill(senders(folder)) + 0 * house.send(run["id"])) if kill_senders else None
        out, _ = killing.communicate(timeout=600)
        assert json.loads(out)["kills"] == kills
        assert chaos is None or until(lambda: chaos.count >= 2, 120)  # a quick machine is done before a sender has come up
    finally:
        if killing.poll() is None:
            killing.kill()
        killed = chaos.stop() if chaos is not None else 0
    assert until(lambda: house.is_delivered(run["id"])), (folder / "sender.json").read_text()
    account = account_of(house, run["id"], ledger, RANKS)
    if account.exact:
        shutil.rmtree(folder, ignore_errors=True)  # its last sender may still be writing its last word
    ledger_path.unlink()
    spec_path.unlink()
    return account, killed


@pytest.mark.parametrize("kill_senders", [False, True], ids=["trainers", "trainers-and-senders"])
def test_trainers_killed_at_random_instants_lose_nothing(house: House, results: Results, kill_senders: bool) -> None:
    """Each start of a rank is killed, at once, in its first records, or later; each next one resumes. With and without the sender,
    and in both ways of writing the journal."""
    total, kills, senders_killed = Account(), 0, 0
    runs = range(max(1, TRAINER_KILLS // KILLS_A_RUN // 2))
    over = time.monotonic() + float(os.environ.get("ENCORE_TORTURE_SECONDS", "inf")) / 4
    with ThreadPoolExecutor(3 if TORTURE else 1) as pool:  # while one run is brought over, the next ones are killed

        def one(number: int) -> tuple[Account, int] | None:
            return kill_trainers(house, number, KILLS_A_RUN, 1000 + number, kill_senders) if time.monotonic() < over else None

        for done in filter(None, pool.map(one, runs)):
            total, kills, senders_killed = total + done[0], kills + KILLS_A_RUN, senders_killed + done[1]
    results.add(f"SIGKILL of the trainer{', senders killed beside' if kill_senders else ''}", kills, total)
    if kill_senders:
        results.add("SIGKILL of the sender, trainers killed beside", senders_killed, total)
        assert senders_killed
    assert total.exact, total.examples
    assert total.acknowledged > kills / 4  # six in ten were killed after a call had returned


PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from tests.torture.ledger import Ledger, value_of
import sdk
slot, first, limit = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ledger = Ledger({ledger!r}, {slots})
run = sdk.init(project="torture", id={run!r}, resume="allow", config={{"slot": slot}})
ledger.open(slot, run.writer.id, 0, first)
print("open", flush=True)
step = first
while step - first < limit:
    sdk.log({{"x": value_of(slot, step), "i": step}}, step=step)
    step += 1
    ledger.returned(slot, step - first)
sdk.finish()
"""


def test_whole_process_groups_killed_at_random_instants_lose_nothing(house: House, results: Results) -> None:
    """Real programs with `import sdk`: trainer, its group and the sender, all killed in the same instant; the next start resumes."""
    chance = random.Random(77)
    run = new_run(house, "programs")
    ledger_path = house.folder / "ledger-programs"
    slots = PROGRAM_KILLS + 1
    ledger = Ledger(ledger_path, slots)
    script = house.folder / "program.py"
    root = str(HERE.parents[1])
    script.write_text(PROGRAM.format(root=root, ledger=str(ledger_path), slots=slots, run=run["id"]))
    folder, reached, killed_senders = house.journal / run["id"], 0, 0
    over, slot = time.monotonic() + float(os.environ.get("ENCORE_TORTURE_SECONDS", "inf")) / 4, 0
    while True:
        is_last = slot == slots - 1 or time.monotonic() > over
        argv = [sys.executable, str(script), str(slot), str(reached), "500" if is_last else "1000000"]
        process = subprocess.Popen(
            argv, env=house.environment(ENCORE_CONSOLE="0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )
        if is_last:
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            break
        if chance.random() < 0.7:  # else while it starts, anywhere in import and init
            process.stdout.readline()
            time.sleep(chance.random() * 0.25)
        else:
            time.sleep(chance.random() * 0.3)
        at_work = senders(folder)
        os.killpg(process.pid, signal.SIGKILL)
        killed_senders += kill(at_work)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        found = ledger.read(slot)
        reached = max(reached, found[0] + found[1]) if found else reached
        slot += 1
    assert until(lambda: house.is_delivered(run["id"])), (folder / "sender.json").read_text()
    account = account_of(house, run["id"], ledger, 1)
    results.add("SIGKILL of program, process group and sender in one instant", slot, account, f"{killed_senders} senders")
    assert account.exact, account.examples
    assert house.state(run["id"]) == "finished"


def test_a_server_killed_at_random_instants_loses_and_doubles_nothing(house: House, results: Results) -> None:
    """granian and its worker killed under load, again and again; the program goes on, and all of it is there in the end."""
    web = Web(house)
    web.start()
    run = new_run(house, "server")
    ledger_path = house.folder / "ledger-server"
    ledger = Ledger(ledger_path, 1)
    script = house.folder / "program.py"
    stop = house.folder / "stop"
    program = PROGRAM.format(root=str(HERE.parents[1]), ledger=str(ledger_path), slots=1, run=run["id"])
    paced = f"    import time; time.sleep(0.0005)\n    if os.path.exists({str(stop)!r}): break\n"
    script.write_text(program.replace("    sdk.log(", paced + "    sdk.log("))
    chance = random.Random(4242)
    process = subprocess.Popen(
        [sys.executable, str(script), "0", "0", "100000000"],
        env=house.environment(web.url, ENCORE_FINISH_SECONDS="120"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()
        for _ in range(SERVER_KILLS):
            before = ledger.read(0)[0]
            time.sleep(chance.random() * 0.8)
            web.kill()
            web.start()
            assert process.poll() is None
            assert ledger.read(0)[0] > before  # training went on meanwhile
    finally:
        stop.touch()
        _, err = process.communicate(timeout=300)
        stop.unlink()
    assert process.returncode == 0, err
    folder = house.journal / run["id"]
    try:
        assert until(lambda: json.loads((folder / "sender.json").read_text()).get("done")), (folder / "sender.json").read_text()
    finally:
        web.kill()
    account = account_of(house, run["id"], ledger, 1)
    results.add("SIGKILL of the server under load", SERVER_KILLS, account)
    assert account.exact, account.examples
