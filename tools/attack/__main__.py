"""`python -m tools.attack fuzz|places|kill`: the long runs, of which the tests make a small part."""

import argparse
import json
import sys
from pathlib import Path

from tools.attack import campaign, every_place, kills


def main() -> None:
    """Run what was asked for; exit code 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.attack")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fuzz = verbs.add_parser("fuzz", help="hostile files, and mutated ones")
    fuzz.add_argument("--count", type=int, default=10_000, help="of mutated files")
    fuzz.add_argument("--first", type=int, default=0, help="number of the first of them")
    fuzz.add_argument("--mutated-only", action="store_true", help="leave the hostile files out")
    kill = verbs.add_parser("kill", help="kill -9 of convert, calibrate and finetune")
    kill.add_argument("--count", type=int, default=200, help="of each")
    places = verbs.add_parser("places", help="links, full disks, pipes and the like, in the way of every command")
    for verb in (fuzz, kill):
        verb.add_argument("--seed", type=int, default=0)
    for verb in (fuzz, kill, places):
        verb.add_argument("--result", metavar="FILE", help="write the result there, as JSON")
    chosen = parser.parse_args()
    if chosen.verb == "fuzz":
        result = campaign.run(chosen.seed, chosen.first, chosen.count, with_hostile=not chosen.mutated_only)
    elif chosen.verb == "kill":
        result = kills.run(chosen.count, chosen.seed)
    else:
        result = every_place.run()
    text = json.dumps(campaign.about(f"python -m tools.attack {' '.join(sys.argv[1:])}") | result, indent=2)
    if chosen.result is not None:
        Path(chosen.result).write_text(f"{text}\n")
    print(text)
    sys.exit(bool(result["violations"]))


if __name__ == "__main__":
    main()
