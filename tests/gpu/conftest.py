"""What the GPU tests share: they skip without CUDA, and run the kernels of one real bundle.

The bundle is $PRISM_TEST_BUNDLE, or generated/gpu-tests, which is built where it is missing, as by

    python -m prism_gen build -m tests/models/smollm2-135m-instruct.json -m tests/models/llama-3.1-8b.json \
        --block-size 64x64,128x64,128x128 --out generated/gpu-tests
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from prism_gen.runtime import Bundle

REPOSITORY = Path(__file__).parents[2]
CONFIGS = ("smollm2-135m-instruct.json", "llama-3.1-8b.json")  # 9 q / 3 kv heads of 64 dims, 32 / 8 of 128


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a gpu test on a machine without a CUDA device."""
    if "gpu" in item.keywords:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The loaded bundle with both models."""
    from prism_gen.runtime import load_bundle

    path = Path(os.environ.get("PRISM_TEST_BUNDLE", REPOSITORY / "generated" / "gpu-tests"))
    if not path.exists():
        models = [word for name in CONFIGS for word in ("-m", str(REPOSITORY / "tests" / "models" / name))]
        options = ["--block-size", "64x64,128x64,128x128", "--out", str(path)]
        subprocess.run([sys.executable, "-m", "prism_gen", "build", *models, *options], cwd=REPOSITORY, check=True)
    return load_bundle(path)


@pytest.fixture(scope="session")
def fine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A 64-dim and a 128-dim model with sub-blocks of 4 x 8: $PRISM_TEST_FINE_BUNDLE, or built into generated/."""
    from prism_gen.runtime import load_bundle

    path = Path(os.environ.get("PRISM_TEST_FINE_BUNDLE", REPOSITORY / "generated" / "gpu-fine-tests"))
    if not path.exists():
        models = []
        for name in CONFIGS:
            config = json.loads((REPOSITORY / "tests" / "models" / name).read_text())
            config["prism"] = {"estimator": "subblock", "sub_block_q": 4, "fused_rope": True}
            written = tmp_path_factory.mktemp("fine") / name
            written.write_text(json.dumps(config))
            models += ["-m", str(written)]
        options = ["--block-size", "64x64,128x64", "--out", str(path)]
        command = [sys.executable, "-m", "prism_gen", "build", *models, *options]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    return load_bundle(path)
