"""The documented Slurm script and Kubernetes job: what they start is a command line of torchrun's and of ours."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from cramming.cli import compose

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "examples" / "slurm" / "pretrain.sbatch"
JOB = ROOT / "examples" / "kubernetes" / "pretrain-job.yaml"
PAGE = ROOT / "docs" / "several_machines.md"


def check_torchrun(words: list[str], nodes: int, rank: int) -> None:
    """The words behind ``torchrun`` are ones it takes, and what follows the script composes."""
    flags = get_args_parser().parse_args(words)
    assert (flags.nnodes, flags.node_rank) == (str(nodes), rank)
    assert flags.master_addr
    assert flags.nproc_per_node == "8"
    assert flags.training_script == "pretrain_bert.py"
    compose([word for word in flags.training_script_args if not word.startswith("name=")])


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Stand-ins for Slurm's programs and torchrun; what torchrun was given is in ``torchrun.words``."""
    programs = {
        "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "$@" >> "$PLACE/requeued"; fi',
        "srun": "trap 'kill -TERM $child' TERM; shift; \"$@\" & child=$!; wait $child; code=$?\n"
        "while kill -0 $child 2>/dev/null; do wait $child; code=$?; done; exit $code",
        "torchrun": 'printf "%s\\n" "$@" > "$PLACE/torchrun.words"\n'
        'if [ -n "$SLOW" ]; then trap "echo saved > $PLACE/saved; exit 143" TERM; touch "$PLACE/runs"; '
        "while :; do sleep 0.1; done; fi; exit ${CODE:-0}",
    }
    for name, text in programs.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "123456",
        "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "8", "PLACE": str(tmp_path),
    }  # fmt: skip
    return {**os.environ, **slurm, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def test_the_slurm_script_starts_torchrun_with_the_options(tmp_path: Path, cluster: dict[str, str]) -> None:
    options = ["name=first", "arch=bert_base", "data=python_docs", "budget=6", "data.path=a b"]
    subprocess.run(["bash", SBATCH, *options], env=cluster, check=True, timeout=60)
    words = (tmp_path / "torchrun.words").read_text().splitlines()
    assert words[-len(options) :] == options
    check_torchrun([word for word in words if word != "data.path=a b"], nodes=2, rank=1)
    assert "--master-addr=node-a" in words
    assert not (tmp_path / "requeued").exists()


def test_the_slurm_script_ends_as_training_ends(cluster: dict[str, str]) -> None:
    ended = subprocess.run(["bash", SBATCH, "name=x"], env=cluster | {"CODE": "1"}, timeout=60, check=False)
    assert ended.returncode == 1


def test_the_slurm_script_saves_and_requeues_when_asked_to_stop(tmp_path: Path, cluster: dict[str, str]) -> None:
    process = subprocess.Popen(["bash", SBATCH, "name=x"], env=cluster | {"SLOW": "1"}, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "runs").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)  # to the script alone, as B:TERM does
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "saved").exists(), "it waits for the run to save"
    assert (tmp_path / "requeued").read_text() == "requeue 123456\n"


def test_the_slurm_script_is_good_shell() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SBATCH], check=True)
    directives = {line.split("=")[0] for line in SBATCH.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"#SBATCH --requeue", "#SBATCH --signal", "#SBATCH --ntasks-per-node"} <= directives


def test_the_kubernetes_job_fits_together() -> None:
    service, job = (dict(one) for one in yaml.safe_load_all(JOB.read_text()))
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    nodes = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == nodes, "all pods must run at once"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["restartPolicy"] == "Never", "else failures have no policy"
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container["args"]]
    check_torchrun(words, nodes, rank=1)
    flags = get_args_parser().parse_args(words)
    assert flags.master_addr == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert flags.master_port == service["spec"]["ports"][0]["port"]
    assert int(flags.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def test_the_commands_of_the_page_compose() -> None:
    commands = [line.strip() for line in PAGE.read_text().splitlines() if "pretrain_bert.py" in line]
    commands = [line for line in commands if line.startswith(("torchrun", "python"))]
    assert len(commands) >= 3
    for line in commands:
        words = shlex.split(line.replace("$R", "0").replace("$A", "a"), comments=True)
        compose([word for word in words[words.index("pretrain_bert.py") + 1 :] if not word.startswith("name=")])
