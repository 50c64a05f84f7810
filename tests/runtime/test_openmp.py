"""How threads wait: what libgomp was told when torch loaded it; the advice to those who import torch first."""

import os
import re
import subprocess
import sys

import psutil
import pytest
import torch

import qdrop
from qdrop.runtime.openmp import VARIABLE, advise


def python(*arguments, **variables):
    """What a process of its own writes to its two streams; nothing is set but what is told here."""
    env = {name: value for name, value in os.environ.items() if name != VARIABLE} | variables
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="torch was built without OpenMP")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another OpenMP, which says less")
@pytest.mark.parametrize("program", [["qdrop", "evaluate"], ["qdrop.commands.evaluate"]], ids=" ".join)
@pytest.mark.parametrize(
    ("variables", "policy"), [({}, "PASSIVE"), ({VARIABLE: "ACTIVE"}, "ACTIVE")], ids=["unset", "set"]
)
def test_threads_of_a_command_wait_asleep_unless_the_user_says_otherwise(program, variables, policy):
    shown, told = python("-m", *program, "--help", OMP_DISPLAY_ENV="TRUE", **variables)
    assert shown.startswith("usage: ")
    assert re.findall(rf"{VARIABLE} = '(\w+)'", told)[-1] == policy


def test_torch_is_not_imported_before_it_is_used():
    shown, _ = python(
        "-c", "import sys, qdrop.cli; print('torch' in sys.modules, qdrop.capture, 'torch' in sys.modules)"
    )
    assert shown.startswith("False <function capture") and shown.endswith("True\n")


@pytest.mark.parametrize("name", qdrop.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(qdrop, name).__doc__ and name in dir(qdrop)


def machine(monkeypatch, cores, percent):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent)


@pytest.mark.parametrize(("cores", "percent", "free"), [(2, 50.0, 1), (2, 100.0, 1), (8, 50.0, 4)])
def test_more_threads_than_free_cores(cores, percent, free, monkeypatch, caplog):
    machine(monkeypatch, cores, percent)
    advise(cores)
    (said,) = caplog.messages
    assert "OMP_WAIT_POLICY=PASSIVE" in said and f"torch.set_num_threads({free})" in said
    assert f"with {cores} threads" in said and f"of {cores} cores" in said


@pytest.mark.parametrize(("threads", "percent"), [(8, 3.0), (2, 60.0), (1, 100.0)])
def test_enough_free_cores(threads, percent, monkeypatch, caplog):
    machine(monkeypatch, 8, percent)
    advise(threads)
    assert not caplog.messages


def test_no_advice_to_those_who_have_decided(monkeypatch, caplog):
    machine(monkeypatch, 2, 100.0)
    monkeypatch.setenv(VARIABLE, "ACTIVE")
    advise(2)
    assert not caplog.messages


def test_quantize_says_it_once(monkeypatch, caplog):
    machine(monkeypatch, 2, 100.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
    qdrop.quantize(model, torch.randn(4, 3, 8, 8), {"w_qconfig": {"bit": 4}, "calibrate": 4, "recon": None})
    assert sum(VARIABLE in message for message in caplog.messages) == 1
