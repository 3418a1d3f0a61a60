"""Every command in every place."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from conditions import NotHereError
from ground import Ground
from places import INPUTS, OUTPUTS


def run() -> dict[str, Any]:
    """Counts of what was tried, what could not be, and what was wrong."""
    attacks: dict[str, int] = {}
    skipped: dict[str, str] = {}
    violations: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o755)
        ground = Ground(work)
        kinds = (
            ("writing", ground.attack, ground.writing, OUTPUTS),
            ("reading", ground.attack_by_input, ground.reading, INPUTS),
        )
        for kind, attack, commands, places in kinds:
            for command, place in [(command, place) for command in commands for place in places]:
                try:
                    wrong = attack(command, place)
                except NotHereError as error:
                    skipped[place] = str(error)
                    continue
                except Exception as error:  # noqa: BLE001 (whatever it is, it is to be told)
                    wrong = [f"{type(error).__name__}: {error}"]
                attacks[f"{command}, {kind}"] = attacks.get(f"{command}, {kind}", 0) + 1
                violations += [f"{command}, {place}: {text}" for text in wrong]
                sys.stderr.write(f"{command}, {place}: {wrong or 'as it should be'}\n")
    return {"attacks": attacks, "skipped": skipped, "violations": violations}
