"""`python -m tests.attack fuzz|kill`: the long runs, of which the tests make a small part."""

import argparse
import json
import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(folder) for folder in (_HERE, _HERE.parent, _HERE.parent / "hotswap", _HERE.parent / "recipes")]


def main():
    """Run what was asked for; exit code 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fuzzing = verbs.add_parser("fuzz", help="hostile files, and mutated ones")
    fuzzing.add_argument("--count", type=int, default=10_000, help="of mutated files")
    fuzzing.add_argument("--first", type=int, default=0, help="number of the first of them")
    fuzzing.add_argument("--mutated-only", action="store_true", help="leave the hostile files out")
    killing = verbs.add_parser("kill", help="kill -9 of convert, calibrate and finetune")
    killing.add_argument("--count", type=int, default=200, help="of each")
    placing = verbs.add_parser("places", help="links, full disks, pipes and the like, in the way of every command")
    for verb in (fuzzing, killing):
        verb.add_argument("--seed", type=int, default=0)
    for verb in (fuzzing, killing, placing):
        verb.add_argument("--result", metavar="FILE", help="write what was found there, as JSON")
    chosen = parser.parse_args()
    import campaign

    if chosen.verb == "fuzz":
        found = campaign.run(
            chosen.seed, chosen.first, chosen.count, chosen.result, with_hostile=not chosen.mutated_only
        )
        wrong = found["violations"]
    else:
        import kills
        import places

        if chosen.verb == "kill":
            part = {"commands": kills.run(chosen.count, chosen.seed)}
            wrong = [text for one in part["commands"].values() for text in one["violations"]]
        else:
            part = places.run()
            wrong = part["violations"]
        found = campaign.about(f"python -m tests.attack {' '.join(sys.argv[1:])}") | part
        if chosen.result is not None:
            Path(chosen.result).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
