"""`python -m benchmarks.startup`: processor time of commands that have no work to do, each a process of its own."""

import os
import resource
import statistics
import subprocess
import sys

COMMANDS = (
    ("--version",),
    ("--help",),
    ("convert", "--help"),
    ("finetune", "--help"),
    ("convret",),
    ("verify", "--nonsense"),
    ("verify", "nowhere.safetensors"),
    ("convert", "torchvision:vgg16", "--resize", "cubic"),
    ("finetune", "nowhere.yaml"),
)
COMPLETION = {"_HOTSWAP_COMPLETE": "bash_complete", "COMP_WORDS": "hotswap inspect timm:test_res", "COMP_CWORD": "2"}
ROUNDS = 5


def main() -> None:
    """Print the median of some runs, user and system time together."""
    for words in COMMANDS:
        print(f"{_seconds(words, {}):.2f} s  hotswap {' '.join(words)}")
    print(f"{_seconds((), COMPLETION):.2f} s  {COMPLETION['COMP_WORDS']}<TAB>")


def _seconds(words: tuple[str, ...], environment: dict[str, str]) -> float:
    return statistics.median(_once(words, environment) for _ in range(ROUNDS))


def _once(words: tuple[str, ...], environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "hotswap", *words]
    subprocess.run(command, env=os.environ | environment, capture_output=True, check=False)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
