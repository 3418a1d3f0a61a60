"""Build the sdist and the wheels, and check that people can use them: `make dist`.

    python -m tools.check_dist

On Linux the wheel is for every distribution with the C library that it was found to need (a manylinux tag, given by
auditwheel), for every Python, and holds the kernels for every width of vectors. A second wheel, for everything else,
is built from the sdist without a C compiler, without kernels. The wheels must hold every file of the three packages
and nothing else, the sdist all that git has. Each is installed into an empty environment, where the commands run.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PACKAGES = ("pac_ops", "hotswap", "recipes")
EXTENSION = "pac_ops/_native"
COMPILED = """
import platform
import torch
from pac_ops.backends import choose
from pac_ops.backends.native.compiled import has
assert choose.backend_for(torch.zeros(1)) == "native", choose.explain(torch.zeros(1))
wide = platform.machine() != "x86_64" or has("pac_convolution_avx512")
assert has("pac_convolution") and wide, "a width of vectors is missing"
"""  # what must hold where a wheel with kernels is installed
LEFT_OUT = (".ci/", ".github/", ".gitignore")  # of the sdist: what only a clone has a use for


def main() -> None:
    """Build and check, or end with what is wrong."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    if sys.platform == "linux":
        wheel = for_every_linux(wheel)
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as folder:
        install_and_run(wheel, Path(folder))
        plain = without_a_compiler(sdist, Path(folder))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, plain, sdist)
    print(f"good: {wheel.name}, {plain.name}, {sdist.name}")


def for_every_linux(wheel: Path) -> Path:
    """The wheel with the oldest tag that its symbols allow, instead of one of this machine alone."""
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", DIST, wheel)
    wheel.unlink()
    (repaired,) = DIST.glob("*.whl")
    demand("-abi3-manylinux" in repaired.name, f"the wheel must be for every Python and Linux, got {repaired.name}")
    return repaired


def check_contents(wheel: Path, sdist: Path) -> None:
    """Compare what is packed with what git has."""
    tracked = {name for name in lines("git", "ls-files") if (ROOT / name).exists()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    compiled = {name for name in packed if name.startswith(EXTENSION) and name.endswith(".so")}
    demand(len(compiled) == 1, f"the wheel must hold one compiled extension, got {sorted(compiled)}")
    compare(packed - compiled, (name for name in tracked if name.startswith(tuple(f"{p}/" for p in PACKAGES))), wheel)
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in packed if name.startswith("hotswap.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    compare(packed - made, (name for name in tracked if not name.startswith(LEFT_OUT)), sdist)


def compare(packed: set[str], wanted: Iterable[str], archive: Path) -> None:
    """End where an archive lacks a file or has one too many."""
    wanted = set(wanted)
    demand(
        packed == wanted, f"{archive.name} lacks {sorted(wanted - packed)}, has too many {sorted(packed - wanted)}"
    )


def install_and_run(wheel: Path, folder: Path) -> None:
    """Install the wheel with its dependencies into an empty environment, and run what it brings."""
    home = folder / "empty"
    venv.create(home, with_pip=True)
    python, hotswap = home / "bin" / "python", home / "bin" / "hotswap"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    run(python, "-m", "pip", "check", "--disable-pip-version-check")
    for arguments in (["--help"], ["finetune", "--help"], ["doctor"]):
        run(hotswap, *arguments, cwd=folder)
    run(python, "-c", COMPILED, cwd=folder)
    run(python, "-c", "import pac_ops, sys; assert not {'hotswap', 'recipes'} & sys.modules.keys()", cwd=folder)
    missing = subprocess.run(
        [hotswap, "finetune", "quickstart"], capture_output=True, text=True, check=False, cwd=folder
    )
    demand(
        missing.returncode == 1 and "pip install 'hotswap[recipes]'" in missing.stderr,
        f"without the extra, finetune must name it, got {missing.stderr}",
    )


def without_a_compiler(sdist: Path, folder: Path) -> Path:
    """The wheel that is built where there is no C compiler, for any machine; put in the other's place, and run."""
    out, python = folder / "plain", folder / "empty" / "bin" / "python"
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, sdist, env={"CC": "/bin/false"})
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        demand(not any(name.endswith(".so") for name in archive.namelist()), "there must be no extension")
    tags = ("--python-tag", "py3", "--abi-tag", "none", "--platform-tag", "any")
    run(sys.executable, "-m", "wheel", "tags", "--remove", *tags, wheel)
    (wheel,) = out.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    run(folder / "empty" / "bin" / "hotswap", "doctor", cwd=folder)
    return Path(shutil.copy(wheel, DIST))


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Show a command and run it."""
    print("$", *command, flush=True)
    subprocess.run(command, check=True, cwd=cwd, env=os.environ | (env or {}))


def lines(*command: str) -> list[str]:
    """What a command prints, in the repository."""
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def demand(holds: bool, message: str) -> None:
    """End with a message where something does not hold."""
    if not holds:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
