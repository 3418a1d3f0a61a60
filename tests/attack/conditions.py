"""What some places need: another user, permissions, small disks. Most of it takes root."""

import os
import subprocess
from contextlib import contextmanager

NOBODY = 65534


class NotHereError(Exception):
    """What a place needs is not to be had on this machine, with the reason."""


@contextmanager
def as_somebody():
    """As a user whom permissions hold back, as they do not hold root."""
    if os.getuid() != 0:
        yield
        return
    try:
        os.setresuid(NOBODY, NOBODY, 0)
    except PermissionError as error:
        raise NotHereError("root may not become anybody else here") from error
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextmanager
def permissions(path, mode):
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(0o700)


@contextmanager
def immutable(path):
    """Which holds root back too."""
    system("chattr", "+i", path)
    try:
        yield
    finally:
        system("chattr", "-i", path)


@contextmanager
def mounted(folder, options):
    """A disk of its own there, in memory."""
    system("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield
    finally:
        system("umount", folder)


def system(*words):
    try:
        done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotHereError(f"there is no {words[0]}") from error
    if done.returncode != 0:
        raise NotHereError(f"{words[0]}: {done.stderr.strip()}")
