"""What a process keeps in memory: nothing that was freed, no compiler for a GPU that is not there, no PyTorch where no
model is."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HELD = """
import numpy, psutil
from services import heap
here = psutil.Process()
blocks = [numpy.ones(8000) for _ in range(4000)]  # 64 kB each: below what the C library maps one by one
kept = [blocks[-1]]
del blocks
held = here.memory_info().rss
heap.give_back()
print((held - here.memory_info().rss) // 2**20)
"""

LOADED = """
import sys
from models.device import pick_device
device = pick_device("auto")
import torch
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
print(device.type, "torch._dynamo" in sys.modules, sys.modules.get("triton") is not None)
"""

CONSUMING = """
import sys, tempfile
from services.settings import load_settings
from services.wiring import open_home
with tempfile.TemporaryDirectory() as folder, open_home(load_settings(home=folder, text_encoder="hashing")) as home:
    print(home.consumer("catalogue").name, *(home.consumer(name).name for name in ("features", "trends", "archive")))
print("torch" in sys.modules, "feast" in sys.modules)
"""

SERVING = """
import sys, tempfile
from fastapi.testclient import TestClient
from services.api.app import create_app
from services.processes import Instance
from services.settings import load_settings
from services.wiring import open_home
with tempfile.TemporaryDirectory() as folder, open_home(load_settings(home=folder)) as home:
    with TestClient(create_app(Instance(home))) as client:
        print(client.get("/v1/users/u1/recommendations").status_code)
print("torch" in sys.modules, "psycopg" in sys.modules, "alembic" in sys.modules)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back in its own way")
def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    assert int(_said(HELD)) > 100, "250 MB lay free below one block that is still in use"


def test_without_a_gpu_no_kernel_compiler_is_loaded() -> None:
    device, optimizer_looked, loaded = _said(LOADED).split()
    assert optimizer_looked == "True", "what loads the compiler did not run: this test would prove nothing"
    assert (loaded == "True") == (device == "cuda")


def test_consumers_of_an_instance_that_hashes_its_texts_do_without_pytorch() -> None:
    names, loaded = _said(CONSUMING).splitlines()[-2:]
    assert names == "catalogue features trends archive"
    assert loaded == "False True", "PyTorch, Feast"


def test_a_server_without_a_release_does_without_pytorch_and_an_embedded_one_without_postgresql() -> None:
    status, loaded = _said(SERVING).splitlines()[-2:]
    assert status == "200"
    assert loaded == "False False False", "PyTorch, psycopg, Alembic"


def _said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    return done.stdout.strip()
