#!/usr/bin/env python3
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Pack a runnable SGLang 0.5.16 (torch 2.11, CUDA 13, Python 3.12, sm_90) for a GPU machine that
has no network.

    python3 bench/sglang_bundle.py .bundle/sglang    # from PyPI's wheels, about two minutes

That release is made for torch 2.11. Of its kernels those for sm_90 are packed, without
FlashAttention and what is for sparse attention (1.2 GB), so that attention is Triton's. Of what it
depends on those packages are packed that its server imports and the GPU machine lacks.
`bench/sglang_session.sh` unpacks it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LEFT_OUT = ("flash_ops", "flashmla_ops", "infllm_ops", "sm100/")
WHEELS = """
sglang==0.5.16 sglang-kernel==0.4.5 flashinfer-python==0.6.14 transformers==5.12.1
tokenizers==0.22.2 xgrammar==0.2.1 apache-tvm-ffi==0.1.11 openai==2.6.1 jiter==0.19.0
distro==1.9.0 sniffio==1.3.1 compressed-tensors==0.17.0 loguru==0.7.3 fastapi==0.136.3
starlette==1.10.0 uvicorn==0.54.0 pydantic==2.14.4 pydantic-core==2.50.5 annotated-types==0.8.0
typing-inspection==0.4.5 pydantic-extra-types==2.11.1 python-multipart==0.0.34
email-validator==2.4.0 dnspython==2.9.2 orjson==3.13.0 msgspec==0.23.0 pybase64==1.5.1
pyzmq==27.3.0 setproctitle==1.3.8 partial-json-parser==0.2.1.1.post7 zstandard==0.25.0
watchfiles==1.3.0 gguf==0.19.0 interegular==0.3.3 llguidance==1.7.6 mistral-common==1.13.1
pycountry==26.2.16 jsonschema==4.26.0 jsonschema-specifications==2025.9.1 referencing==0.37.0
rpds-py==2026.9.1 soundfile==0.14.0 cffi==2.1.1 pycparser==3.12 ipython==9.18.1
traitlets==5.16.1 decorator==5.2.1 jedi==0.20.1 parso==0.8.7 matplotlib-inline==0.2.2
pexpect==4.9.0 ptyprocess==0.7.0 prompt-toolkit==3.0.53 stack-data==0.6.3 executing==2.3.0
asttokens==3.0.2 pure-eval==0.2.4 wcwidth==0.9.4 ipython-pygments-lexers==1.1.1 dill==0.4.1
jmespath==1.1.0 easydict==1.14
"""
PART = 54 << 20  # bytes: what goes in one call, beside the checkout
PARTS = 2  # that bench/sglang_session.sh knows
PLATFORMS = (
    *(f"manylinux_2_{n}" for n in (34, 31, 28, 27, 26, 24, 17, 12, 5)),
    *("manylinux2014", "manylinux2010", "manylinux1"),
)


def download(folder: Path, requirements: list[str]) -> None:
    """Wheels for the GPU machine's Python, without what they depend on."""
    platforms = [word for tag in PLATFORMS for word in ("--platform", f"{tag}_x86_64")]
    abis = [word for abi in ("cp312", "abi3", "none") for word in ("--abi", abi)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", *abis, *platforms]
    subprocess.run([*command, "-d", str(folder), *requirements], check=True)


def unpacked(wheels: Path, site: Path) -> None:
    """What `pip install --target` would put there; libraries without their symbols."""
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            names = [n for n in packed.namelist() if not any(part in n for part in LEFT_OUT)]
            packed.extractall(site, names)
    for library in site.rglob("*.so*"):
        subprocess.run(["strip", "--strip-unneeded", str(library)], check=False)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        wheels, site = Path(work) / "wheels", Path(work) / "site"
        download(wheels, WHEELS.split())
        unpacked(wheels, site)
        packed = Path(work) / "site.tar.xz"
        subprocess.run(
            ["tar", "-C", str(site), "-I", "xz -6 -T0", "-cf", str(packed), "."], check=True
        )
        size = packed.stat().st_size
        if size > PARTS * PART:
            raise SystemExit(f"{size / 2**20:.1f} MiB do not fit into {PARTS} parts")
        with packed.open("rb") as whole:
            for part in range(-(-size // PART)):
                here = folder / str(part)
                here.mkdir(parents=True)
                (here / "site.tar.xz").write_bytes(whole.read(PART))
    print(f"{folder}: {size / 2**20:.1f} MiB in {len(list(folder.iterdir()))} parts")


if __name__ == "__main__":
    main()
