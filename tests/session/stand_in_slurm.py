"""Slurm's commands as far as submitit uses them, each job a process of this machine; for tests of what is requeued.

``install`` puts them into a folder for ``PATH``; run as a program, this file is each of them, by the name it has.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scontrol", "scancel")
STATE = "STAND_IN_SLURM"


def install(folder: Path) -> dict[str, str]:
    """Make the commands; returns the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    for name in COMMANDS:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", STATE: str(folder)}


def jobs(folder: Path) -> list[Path]:
    """What is kept of each job."""
    return sorted(folder.glob("job-*.json"))


def preempt(folder: Path, job: Path) -> None:
    """As Slurm does it: the signal reaches all processes of the job but its shell."""
    session = json.loads(job.read_text())["session"]
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (place / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[3]) == session and not name.endswith(("(bash", "(sh")):
            os.kill(int(place.name), signal.SIGUSR2)


def end_all(folder: Path) -> None:
    """Kill what is left."""
    for job in jobs(folder):
        about = json.loads(job.read_text())
        for group in (about["slurmd"], about["session"]):
            try:
                os.killpg(group, signal.SIGKILL)
            except (ProcessLookupError, TypeError):
                continue


def _write(job: Path, **changes: object) -> None:
    about = json.loads(job.read_text()) if job.exists() else {}
    part = job.with_suffix(".part")
    part.write_text(json.dumps({**about, **changes}))
    part.replace(job)


def _sbatch(folder: Path, file: str) -> None:
    text = Path(file).read_text()
    (folder / "scripts").mkdir(exist_ok=True)
    number = len(list((folder / "scripts").iterdir())) + 1
    script = folder / "scripts" / f"{number}.sh"
    script.write_text(text)
    array = re.search(r"#SBATCH --array=0-(\d+)", text)
    for task in range(int(array[1]) + 1) if array else (None,):
        name = f"{number}" if task is None else f"{number}_{task}"
        job = folder / f"job-{name}.json"
        _write(job, id=name, state="PENDING", began=0, session=None, slurmd=None)
        line = [sys.executable, __file__, "slurmd", str(job), str(script)]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(line, start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet)
        _write(job, slurmd=process.pid)
    print(f"Submitted batch job {number}")


def _slurmd(job: Path, script: str) -> None:
    number, _, task = json.loads(job.read_text())["id"].partition("_")
    environment = {**os.environ, "SLURM_JOB_ID": number, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    if task:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    while True:
        began = json.loads(job.read_text())["began"] + 1
        process = subprocess.Popen(["bash", script], env=environment, start_new_session=True)
        _write(job, state="RUNNING", session=process.pid, began=began)
        code = process.wait()
        if json.loads(job.read_text())["state"] != "REQUEUED":
            if json.loads(job.read_text())["state"] == "RUNNING":
                _write(job, state="FAILED" if code else "COMPLETED")
            return


def _srun(words: list[str]) -> None:
    where = {}
    while words[0].startswith("--"):
        word = words.pop(0)
        if word in ("--output", "--error"):
            where[word] = words.pop(0)
    marks = {"%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%j": "SLURM_JOB_ID", "%t": "SLURM_PROCID"}
    for place, option in ((1, "--output"), (2, "--error")):
        name = re.sub(r"%[Aajt]", lambda mark: os.environ[marks[mark[0]]], where[option])
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), place)
    os.execvp(words[0], words)


def _scancel(job: Path, words: list[str]) -> None:
    if "--signal" not in words:
        _write(job, state="CANCELLED")
    session = json.loads(job.read_text())["session"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(session, number)
        except (ProcessLookupError, TypeError):
            return
        time.sleep(5)


def main(name: str, words: list[str]) -> None:
    """Be one of the commands."""
    if name == "slurmd":
        _slurmd(Path(words[0]), words[1])
        return
    folder = Path(os.environ[STATE])
    if name == "sbatch":
        _sbatch(folder, words[0])
    elif name == "srun":
        _srun(words)
    elif name == "scontrol":
        assert words[0] == "requeue"
        _write(folder / f"job-{words[1]}.json", state="REQUEUED")
    elif name == "scancel":
        _scancel(folder / f"job-{words[0]}.json", words[1:])
    else:
        print("JobID|State|NodeList")
        for job in jobs(folder):
            about = json.loads(job.read_text())
            print(f"{about['id']}|{about['state']}|here")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
