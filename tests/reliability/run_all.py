"""Every promise of docs/reliability.md, in its long form, one after the other: `run_all.py [NAME...]`.

Prints a line when a proof begins and one when it ends, and appends a line of JSON for each to --results: what was run,
at which commit, when, under which load, whether it held, and its last lines. What it printed is beside that file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LAST = 15  # lines


@dataclass(frozen=True)
class Proof:
    """`minutes`: about what it takes on two idle cores. A path of a test is given to pytest."""

    minutes: int
    promise: str
    script: str
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        path, _, test = self.script.partition("::")
        file = str(HERE / path) + (f"::{test}" if test else "")
        if Path(path).name.startswith("test_"):
            return [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", file, *self.arguments]
        return [sys.executable, file, *self.arguments]


RECOVERY = ("--rounds", "3", "--told", "1", "--back", "5")
PROOFS = {
    "cancels": Proof(2, "cancelled calls crash tritonserver, those that are read on do not", "hammer.py"),
    "workers": Proof(2, "a step's worker that dies or pauses is not noticed", "../served/test_step_workers.py"),
    "recovery": Proof(6, "a death told in 1 s, back in 5 s, whatever is killed or stopped", "recovery.py", RECOVERY),
    "starts": Proof(6, "50 starts, none fails", "recovery.py", ("--rounds", "0", "--starts", "50")),
    "starts under load": Proof(
        25,
        "50 starts beside 8 busy loops, none fails",
        "recovery.py",
        ("--rounds", "0", "--starts", "50", "--busy", "8"),
    ),
    "deaths": Proof(20, "each process killed 20 times under 20 answers: whole, or one clear error", "test_deaths.py"),
    "vanishing": Proof(
        25, "clients vanish while each process is killed 20 times: nothing of theirs stays", "test_clients_vanish.py"
    ),
    "rolling restarts": Proof(10, "two servers restarted in turn: no status but 200", "test_rolling_restarts.py"),
    "overload": Proof(8, "429 in 100 ms, first tokens within 2x at 4x and 20x, shares by API key", "test_overload.py"),
    "endings": Proof(8, "500 endings: nothing stays taken", "test_endings.py"),
    "interruptions": Proof(5, "200 answers interrupted: no slot stays, no unheard word", "test_interruptions.py"),
    "leases": Proof(2, "clients that vanish, stand still or read no more", "test_leases_served.py"),
    "long recording": Proof(6, "first tokens beside a recording of 40 minutes", "long_recording.py"),
    "memory": Proof(4, "what four recordings of 20 minutes took comes back", "memory_after_long_audio.py"),
    "soak": Proof(31, "30 minutes of mixed traffic, 36 wide: no death, nothing grows", "soak.py", ("--busy", "2")),
    "fuzz": Proof(40, "106,000 wrong requests: one clear error each", "test_fuzz.py"),
}


def run(name: str, proof: Proof, results: Path) -> bool:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    print(f"{name}: {proof.promise} (about {proof.minutes} minutes)", flush=True)
    began, load = datetime.now(UTC), os.getloadavg()[0]
    begin = time.monotonic()
    log = results.parent / f"{name.replace(' ', '-')}.log"
    with log.open("w") as file:
        done = subprocess.run(
            proof.command,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"RELIABILITY_ROUNDS": "20"},
        )
    seconds = time.monotonic() - begin
    told = {
        "proof": name, "promise": proof.promise, "command": " ".join(proof.command), "commit": commit.stdout.strip(),
        "began": began.isoformat(timespec="seconds"), "load before": load, "load after": os.getloadavg()[0],
        "seconds": round(seconds), "held": done.returncode == 0,
        "last lines": log.read_text(errors="replace").splitlines()[-LAST:],
    }  # fmt: skip
    with results.open("a") as file:
        file.write(json.dumps(told) + "\n")
    print(f"{name}: {'held' if told['held'] else 'DID NOT HOLD'}, {seconds / 60:.0f} minutes, {log}", flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, unless some are given: {', '.join(PROOFS)}")
    parser.add_argument("--results", type=Path, default=ROOT / ".work" / "reliability" / "results.jsonl")
    given = parser.parse_args()
    if unknown := set(given.names) - set(PROOFS):
        parser.error(f"no such proof: {', '.join(sorted(unknown))}")
    given.results.parent.mkdir(parents=True, exist_ok=True)
    held = [run(name, PROOFS[name], given.results) for name in given.names or PROOFS]
    print(f"{sum(held)} of {len(held)} held: {given.results}")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
