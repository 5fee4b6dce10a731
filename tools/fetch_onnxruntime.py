#!/usr/bin/env python3
"""Fetches the pinned ONNX Runtime libraries into .deps/onnxruntime/ of the repository.

Owns: which wheel fits this machine, the check of its hash (pip's --require-hashes), and an all-or-nothing replacement of the folder.
Knows nothing of models. Needs Python 3.7 or newer with pip, nothing else; where pip downloads from is pip's own configuration.

    python3 tools/fetch_onnxruntime.py                 the CPU library
    python3 tools/fetch_onnxruntime.py --variant gpu   with the CUDA and TensorRT providers and NVIDIA's libraries (about 730 MB to download)
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
# The libraries in the wheels do not depend on Python: naming one ABI lets any Python fetch them, and one hash an architecture is enough.
WHEEL_PYTHON, WHEEL_ABI = "3.12", "cp312"
WHEEL_PLATFORMS = ("manylinux_2_28_{machine}", "manylinux_2_27_{machine}", "manylinux2014_{machine}")
# Beginnings of the libraries' names that the worker needs, by the folder of a wheel that they lie in.
LIBRARIES = {"onnxruntime/capi": ("libonnxruntime",), "nvidia/cu13/lib": ("libcudart", "libcublas", "libcurand")}
MACHINES = {"cpu": ("x86_64", "aarch64"), "gpu": ("x86_64",)}
NOTICES = ("LICENSE", "ThirdPartyNotices.txt")
STAMP = "fetched.json"


class Refusal(Exception):
    """What stops the fetch, in words for the person who started it."""


def main():
    parser = argparse.ArgumentParser(description="fetch the pinned ONNX Runtime libraries")
    parser.add_argument("--variant", choices=sorted(MACHINES), default="cpu")
    parser.add_argument("--to", type=Path, default=TOOLS.parent / ".deps" / "onnxruntime", help="folder to (re)place")
    arguments = parser.parse_args()
    try:
        print(fetch(arguments.variant, arguments.to))
    except Refusal as refusal:
        print("fetch_onnxruntime: {}".format(refusal), file=sys.stderr)
        return 1
    return 0


def fetch(variant, target):
    """Makes `target` hold the pinned libraries; returns one line that says what happened."""
    machine = machine_name(variant)
    requirements = TOOLS / "requirements-onnxruntime-{}.txt".format(variant)
    wanted = {"variant": variant, "machine": machine, "requirements_sha256": sha256(requirements)}
    if is_present(target, wanted):
        return "onnxruntime ({}) is already in {}".format(variant, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the renames stay within one file system.
    with tempfile.TemporaryDirectory(prefix=".onnxruntime-", dir=str(target.parent)) as scratch:
        scratch = Path(scratch)
        fresh = scratch / "fresh"
        fresh.mkdir()
        libraries = {}
        for wheel in download(requirements, machine, scratch):
            libraries.update(unpack(wheel, fresh))
        if not any(name.startswith("libonnxruntime.so") for name in libraries):
            raise Refusal("what {} pins holds no libonnxruntime.so".format(requirements.name))
        (fresh / STAMP).write_text(json.dumps(dict(wanted, libraries=libraries), indent=1) + "\n")
        replace(fresh, target, scratch / "old")
    return "onnxruntime ({}) fetched into {}".format(variant, target)


def machine_name(variant):
    if platform.system() != "Linux":
        raise Refusal(
            "the pinned libraries are for Linux, this is {}; install ONNX Runtime 1.24 or newer yourself and "
            "set ORT_DYLIB_PATH to its library".format(platform.system())
        )
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if machine not in MACHINES[variant]:
        raise Refusal(
            "there is no pinned {} library for {} machines, only for {}; build ONNX Runtime 1.24 or newer and "
            "set ORT_DYLIB_PATH to its library".format(variant, machine, " and ".join(MACHINES[variant]))
        )
    return machine


def is_present(target, wanted):
    """True when the stamp names the same requirements and every library it lists has its size."""
    try:
        stamp = json.loads((target / STAMP).read_text())
        libraries = stamp.pop("libraries")
        sizes = {name: (target / name).stat().st_size for name in libraries}
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return stamp == wanted and sizes == libraries


def download(requirements, machine, scratch):
    """Downloads the wheels with pip, which refuses one whose hash is not listed; returns their paths."""
    wheels = scratch / "wheels"
    command = pip(scratch) + ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", WHEEL_PYTHON, "--abi", WHEEL_ABI]
    for platform_tag in WHEEL_PLATFORMS:
        command += ["--platform", platform_tag.format(machine=machine)]
    command += ["--dest", str(wheels), "--requirement", str(requirements)]
    if sys.stderr.isatty():
        command.remove("--quiet")  # pip's own progress bar
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, universal_newlines=True)
    found = sorted(wheels.glob("*.whl")) if done.returncode == 0 else []
    if not found:
        raise Refusal(
            "pip could not download what {} pins; check the network and pip's configuration, then try again. pip said:\n{}".format(
                requirements.name, done.stderr.strip() or "(nothing)"
            )
        )
    return found


def pip(scratch):
    """The command that starts pip; makes a throw-away environment where this Python came without it."""
    if runs([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip"]
    environment = scratch / "pip"
    if runs([sys.executable, "-m", "venv", str(environment)]):
        return [str(environment / "bin" / "python"), "-m", "pip"]
    raise Refusal("this Python ({}) has neither pip nor venv; install them (Debian: apt-get install python3-pip)".format(sys.executable))


def runs(command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def unpack(wheel, folder):
    """Writes the wheel's shared libraries and notices into `folder`; returns {file name: bytes} of the libraries."""
    libraries = {}
    with zipfile.ZipFile(str(wheel)) as archive:
        for entry in archive.namelist():
            name = kept_as(entry)
            if name is None:
                continue
            with archive.open(entry) as source, open(str(folder / name), "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            if ".so" in name:
                libraries[name] = (folder / name).stat().st_size
    return libraries


def kept_as(entry):
    """The name of the file that an entry of a wheel becomes; None for what the worker does not need."""
    folder, _, name = entry.rpartition("/")
    if ".so" in name and name.startswith(LIBRARIES.get(folder, ())):
        return name
    if folder == "onnxruntime" and name in NOTICES:
        return name
    if folder.endswith(".dist-info/licenses"):
        return "{}.{}".format(folder.partition(".dist-info")[0], name)
    return None


def replace(fresh, target, aside):
    """Renames `fresh` to `target`; a reader sees the old folder, for an instant none, or the new one, never a half."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(str(target), str(aside))
    os.rename(str(fresh), str(target))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
