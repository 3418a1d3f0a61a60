"""Traps for code that a file brings along: a folder that it would write to, and an ear for what it would have to do."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

# What no command does while it reads files. `pickle.find_class` is Python's own unpickler looking something up.
_FORBIDDEN = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "pty.spawn",
}
_FORBIDDEN |= {"socket.connect", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen", "shutil.rmtree"}
_MODULE = "trap_module"  # importing it springs the trap
_heard = None  # the events of the watch that is on
_hooked = False


def folder(work):
    """Where code that ran leaves something; also a place for Python to import from."""
    made = Path(work) / "trap"
    made.mkdir(exist_ok=True)
    (made / f"{_MODULE}.py").write_text(f"open({str(made / 'imported')!r}, 'w').close()\ndef run(*a, **k): pass\n")
    if str(made) not in sys.path:
        sys.path.append(str(made))
    return made


def gadgets(trap):
    """Callables with arguments that a pickle would have called: each leaves a file in the folder."""
    left = lambda name: str(Path(trap) / name)  # noqa: E731 (used in every line below)
    code = f"open({left('code')!r}, 'w').close()"
    import importlib
    import runpy
    import subprocess
    import timeit

    import torch

    return {
        "os.system": (os.system, (f"touch {left('system')}",)),
        "os.mkdir": (os.mkdir, (left("mkdir"),)),
        "open": (open, (left("open"), "w")),
        "exec": (exec, (code,)),
        "eval": (eval, (code,)),
        "subprocess": (subprocess.Popen, (["touch", left("popen")],)),
        "import": (importlib.import_module, (_MODULE,)),
        "runpy": (runpy.run_path, (left(f"{_MODULE}.py"),)),
        "timeit": (timeit.timeit, (code,)),
        "torch.save": (torch.save, ({}, left("saved"))),
        "torch.load": (torch.load, (left("nothing.pt"), None, None)),
    }


def sprung(trap):
    """What code has left since the last look; it is removed."""
    found = sorted(p for p in Path(trap).iterdir() if p.name not in (f"{_MODULE}.py", "__pycache__"))
    for path in found:
        path.rmdir() if path.is_dir() else path.unlink()
    sys.modules.pop(_MODULE, None)
    return [p.name for p in found]


@contextmanager
def watched(inside):
    """Hear what the interpreter reports meanwhile: a list of what must not happen, empty as it should be.

    Args:
        inside: the one folder in which files may be written.
    """
    global _heard, _hooked  # noqa: PLW0603 (a hook of the interpreter's cannot be taken back)
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _heard = (str(Path(inside).resolve()), [])
    try:
        yield _heard[1]
    finally:
        _heard = None


def _hook(event, arguments):
    if _heard is None:
        return
    inside, events = _heard
    if event in _FORBIDDEN and not _of_torch(event, arguments):
        events.append(f"{event} {arguments!r:.120}")
    elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link") or (
        event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        _check_inside(event, arguments[0], inside, events)


def _of_torch(event, arguments):
    """Libraries that torch loads when something is used for the first time, which no file names."""
    return event == "ctypes.dlopen" and (arguments[0] is None or "/" in str(arguments[0]))


def _check_inside(event, path, inside, events):
    if isinstance(path, int):  # a file that is open already
        return
    text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (Path resolves links, which may lead out)
    if not text.startswith(inside) and text != "/dev/null" and "__pycache__" not in text:
        events.append(f"{event} {text}")
